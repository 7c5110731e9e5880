//! The status of a Pod.

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStatus, HostIP, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::containers::{self, Kind};
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
    let of = |member| container_status::container_status(i, &member);
    let sorted = |mut list: Vec<ContainerStatus>| {
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    };
    // Init containers stay as the spec has them.
    let mut init: Vec<_> = containers::init(i.spec()).map(of).collect();
    let mut regular = sorted(containers::regular(i.spec()).map(of).collect());
    let ephemeral = sorted(containers::ephemeral(i.spec()).map(of).collect());
    if ended {
        end_unknown(i, &mut init, &mut regular);
    }
    status.init_container_statuses = (!init.is_empty()).then_some(init);
    status.container_statuses = Some(regular);
    status.ephemeral_container_statuses = (!ephemeral.is_empty()).then_some(ephemeral);
    let computed = decide_phase(i, ended, &mut status);
    status.conditions = Some(conditions::conditions(i, &status, computed));
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

/// Sets phase, reason and message. Returns the phase that containers tell of, which is not shown as long as
/// something may still run: a Pod that has ended holds nothing any more.
fn decide_phase(i: &PodInputs, ended: bool, status: &mut PodStatus) -> Phase {
    let known =
        |status: &PodStatus| status.phase.as_deref().and_then(Phase::parse).filter(|p| p.is_terminal());
    if let Some(phase) = known(&i.published).or_else(|| known(&i.previous_status)).or_else(|| known(status)) {
        let source = if known(&i.published).is_some() { &i.published } else { &i.previous_status };
        status.reason = status.reason.take().or_else(|| source.reason.clone());
        status.message = status.message.take().or_else(|| source.message.clone());
        status.phase = Some(phase.as_str().to_owned());
        return phase;
    }
    let initialized = containers::regular(i.spec())
        .any(|member| i.newest_here(member.name()).is_some_and(|c| c.started_at.is_some()));
    let list = |list: &'_ Option<Vec<ContainerStatus>>| list.clone().unwrap_or_default();
    let (regular, init) = (list(&status.container_statuses), list(&status.init_container_statuses));
    let computed = phase::phase(i.spec(), &regular, &init, ended, initialized);
    if !ended {
        let before = i.previous_status.phase.as_deref().and_then(Phase::parse).unwrap_or(Phase::Pending);
        let shown = if computed.is_terminal() { before } else { computed };
        status.phase = Some(shown.as_str().to_owned());
        return computed;
    }
    // A Pod that ended is over, whatever its containers tell.
    let mut phase = if computed.is_terminal() { computed } else { Phase::Failed };
    let why = match (&i.lifecycle, &i.eviction) {
        (Lifecycle::Terminated { cause: TerminationCause::DeadlineExceeded }, _) => {
            Some((reasons::DEADLINE_EXCEEDED, reasons::DEADLINE_EXCEEDED_MESSAGE))
        }
        (Lifecycle::Terminated { cause: TerminationCause::Evicted }, Some(eviction)) => {
            Some((eviction.reason, eviction.message.as_str()))
        }
        _ => None,
    };
    if let Some((reason, message)) = why {
        phase = Phase::Failed;
        status.reason = Some(reason.to_owned());
        status.message = Some(message.to_owned());
    }
    status.phase = Some(phase.as_str().to_owned());
    phase
}

/// Containers whose end nobody saw when the Pod ended: all regular ones of a Pod that had come so far, and the init
/// containers up to the last one that had begun.
fn end_unknown(i: &PodInputs, init: &mut [ContainerStatus], regular: &mut [ContainerStatus]) {
    if was_initialized(i, init, regular) {
        regular.iter_mut().for_each(end_one);
    }
    let moved = |status: &ContainerStatus| !waits(status) || ended_before(status).is_some();
    let begun = init.iter().rposition(moved).unwrap_or(0);
    init.iter_mut().take(begun + 1).for_each(end_one);
}

fn was_initialized(i: &PodInputs, init: &[ContainerStatus], regular: &[ContainerStatus]) -> bool {
    let Some((last, member)) = init.last().zip(containers::init(i.spec()).last()) else { return true };
    if regular.iter().any(|status| !waits(status) || ended_before(status).is_some()) {
        return true;
    }
    let running = last.state.as_ref().is_some_and(|s| s.running.is_some());
    let now = last.state.as_ref().and_then(|s| s.terminated.as_ref());
    match member.kind {
        Kind::Sidecar => running && last.started == Some(true),
        _ => [now, ended_before(last)].into_iter().flatten().any(|t| t.exit_code == 0),
    }
}

fn waits(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.waiting.is_some())
}

fn ended_before(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.last_state.as_ref()?.terminated.as_ref()
}

fn end_one(status: &mut ContainerStatus) {
    if status.state.as_ref().is_some_and(|s| s.terminated.is_some()) {
        return;
    }
    let terminated = match ended_before(status).cloned() {
        // It ended and waited for its restart: how it ended is how it stays.
        Some(last) if waits(status) => {
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
