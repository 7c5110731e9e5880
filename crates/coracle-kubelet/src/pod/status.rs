//! The status of a Pod.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, HostIP, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::inputs::{Lifecycle, PodInputs, TerminationCause, UNKNOWN_EXIT_CODE};
use super::phase::{self, Phase};
use super::{conditions, container_status, reasons};

/// Computes the status. Total, and a function of its inputs alone. What belongs to others (QoS class, foreign
/// conditions, nominated node …) is taken over from the object.
#[must_use]
pub fn status(i: &PodInputs) -> PodStatus {
    let mut status = i.pod.status.clone().unwrap_or_default();
    let previous = &i.previous_status;
    status.observed_generation = i.pod.metadata.generation;
    status.start_time = (status.start_time.take())
        .or_else(|| i.published.start_time.clone())
        .or_else(|| previous.start_time.clone())
        .or(Some(Time(i.now)));
    status.host_ip = i.node.host_ips.first().map(ToString::to_string).or(status.host_ip);
    if !i.node.host_ips.is_empty() {
        status.host_ips = Some(i.node.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect());
    }
    if let Some(rejection) = &i.rejection {
        status.phase = Some(Phase::Failed.as_str().to_owned());
        status.reason = Some(rejection.reason.clone());
        status.message = Some(format!("Pod was rejected: {}", rejection.message));
        return status;
    }
    set_pod_ips(i, &mut status);

    let ended = matches!(i.lifecycle, Lifecycle::Terminated { .. } | Lifecycle::Gone);
    let mut statuses: Vec<_> = i
        .spec()
        .containers
        .iter()
        .map(|container| container_status::container_status(i, container))
        .collect();
    statuses.sort_by(|a, b| a.name.cmp(&b.name));
    if ended {
        statuses.iter_mut().for_each(end_unknown);
    }
    let phase = decide_phase(i, &statuses, ended, &mut status);
    status.container_statuses = Some(statuses);
    status.phase = Some(phase.as_str().to_owned());
    status.conditions = Some(conditions::conditions(i, &status, phase));
    status
}

fn set_pod_ips(i: &PodInputs, status: &mut PodStatus) {
    let ips: Vec<String> = if i.host_network() {
        if i.sandboxes.is_empty() {
            Vec::new()
        } else {
            i.node.host_ips.iter().map(ToString::to_string).collect()
        }
    } else {
        i.ready_sandbox().map(|s| s.ips.iter().map(ToString::to_string).collect()).unwrap_or_default()
    };
    if let Some(first) = ips.first() {
        status.pod_ip = Some(first.clone());
        status.pod_ips = Some(ips.into_iter().map(|ip| PodIP { ip }).collect());
    } else if status.pod_ip.is_none() {
        // What the last computation knew and the API server may not: the address of a Pod that has ended.
        status.pod_ip = i.previous_status.pod_ip.clone();
        status.pod_ips = i.previous_status.pod_ips.clone();
    }
}

fn decide_phase(
    i: &PodInputs,
    statuses: &[k8s_openapi::api::core::v1::ContainerStatus],
    ended: bool,
    status: &mut PodStatus,
) -> Phase {
    let known =
        |status: &PodStatus| status.phase.as_deref().and_then(Phase::parse).filter(|p| p.is_terminal());
    if let Some(phase) = known(&i.published).or_else(|| known(&i.previous_status)).or_else(|| known(status)) {
        let source = if known(&i.published).is_some() { &i.published } else { &i.previous_status };
        status.reason = status.reason.take().or_else(|| source.reason.clone());
        status.message = status.message.take().or_else(|| source.message.clone());
        return phase;
    }
    let initialized = i.ready_sandbox().is_some_and(|s| {
        i.containers.iter().any(|c| c.container.sandbox == s.sandbox.id && c.started_at.is_some())
    });
    let init = status.init_container_statuses.as_deref().unwrap_or_default();
    let phase = phase::phase(i.spec(), statuses, init, ended, initialized);
    if !ended {
        return phase;
    }
    if let Lifecycle::Terminated { cause: TerminationCause::DeadlineExceeded } = i.lifecycle {
        status.reason = Some(reasons::DEADLINE_EXCEEDED.to_owned());
        status.message = Some(reasons::DEADLINE_EXCEEDED_MESSAGE.to_owned());
        return Phase::Failed;
    }
    // A Pod that ended is over, whatever its containers tell.
    if phase.is_terminal() { phase } else { Phase::Failed }
}

/// A container whose end nobody saw when the Pod ended.
fn end_unknown(status: &mut k8s_openapi::api::core::v1::ContainerStatus) {
    if status.state.as_ref().is_some_and(|s| s.terminated.is_some()) {
        return;
    }
    let last = status.last_state.as_ref().and_then(|s| s.terminated.clone());
    let waited = status.state.as_ref().is_some_and(|s| s.waiting.is_some());
    let terminated = match last {
        // It ended and waited for its restart: how it ended is how it stays.
        Some(last) if waited => {
            status.last_state = Some(ContainerState::default());
            last
        }
        _ => ContainerStateTerminated {
            exit_code: UNKNOWN_EXIT_CODE,
            reason: Some(reasons::CONTAINER_STATUS_UNKNOWN.to_owned()),
            message: Some(reasons::LOST_WHEN_TERMINATED.to_owned()),
            ..ContainerStateTerminated::default()
        },
    };
    status.state = Some(ContainerState { terminated: Some(terminated), ..ContainerState::default() });
    status.ready = false;
    status.started = Some(false);
}
