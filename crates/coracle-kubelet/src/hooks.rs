//! The hooks around the life of a container: after its start, as part of it; before its stop, at the cost of its grace.

use std::time::Duration;

use coracle_cri::{ContainerId, ContainerStatus, CriError, CriResult};
use k8s_openapi::api::core::v1::{Container, Pod};
use tracing::warn;

use crate::context::Context;
use crate::handler::{self, Subject};
use crate::pod::reasons::PodEvent;
use crate::pod::{MINIMUM_GRACE, containers};

/// Runs the postStart hook of a container that has just been started.
///
/// # Errors
/// The hook failed, and the container has been stopped: the waiting message that tells why.
pub(crate) async fn after_start(
    context: &Context,
    pod: &Pod,
    container: &Container,
    id: &ContainerId,
    pod_ip: &str,
) -> Result<(), String> {
    let tell = |event| context.report(pod, &event);
    let subject = Subject { container, id, pod_ip };
    let Err(failure) = handler::post_start(&context.handlers, pod, subject, &tell).await else {
        return Ok(());
    };
    tell(PodEvent::normal(&container.name, "Killing", "FailedPostStartHook"));
    let seconds = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
    let grace = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    if let Err(why) = stop(context, pod, id, grace, true).await {
        warn!(container = %id, error = %why, "cannot stop a container whose postStart hook failed");
    }
    Err(failure.message)
}

/// Stops a container; before, if `pre_stop`, its hook has its turn and takes from the grace.
pub(crate) async fn stop(
    context: &Context,
    pod: &Pod,
    id: &ContainerId,
    grace: Duration,
    pre_stop: bool,
) -> CriResult<()> {
    let grace = if pre_stop { before_stop(context, pod, id, grace).await } else { grace };
    match context.runtime.stop_container(id, grace).await {
        Ok(()) | Err(CriError::NotFound(_)) => Ok(()),
        Err(why) => Err(why),
    }
}

/// Runs the preStop hook of a container that runs, if it has one. Returns what is left of the grace: enough, in any
/// case, to end in good order.
pub(crate) async fn before_stop(context: &Context, pod: &Pod, id: &ContainerId, grace: Duration) -> Duration {
    let least = Duration::try_from(MINIMUM_GRACE).unwrap_or_default();
    // Without its status there is nothing to run a hook in.
    let Ok(status) = context.runtime.container_status(id).await else { return grace.max(least) };
    let member = pod.spec.as_ref().and_then(|spec| containers::find(spec, &status.container.name));
    let Some(member) = member.filter(|_| !grace.is_zero()) else { return grace.max(least) };
    let pod_ip = pod_ip(context, pod, &status).await;
    let subject = Subject { container: &member.container, id, pod_ip: &pod_ip };
    let tell = |event| context.report(pod, &event);
    handler::pre_stop(&context.handlers, pod, subject, grace, &tell).await.max(least)
}

async fn pod_ip(context: &Context, pod: &Pod, status: &ContainerStatus) -> String {
    let on_node = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    let ip = if on_node {
        context.config.node_ips.first().copied()
    } else {
        let sandbox = context.runtime.pod_sandbox_status(&status.container.sandbox).await;
        sandbox.ok().and_then(|sandbox| sandbox.ips.first().copied())
    };
    ip.map(|ip| ip.to_string()).unwrap_or_default()
}
