//! Where a Pod is on its way: whether it is to end, why, and by when.

use coracle_clock::later;
use coracle_cri::{ContainerState, PodSandboxState};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::PodStatus;

use crate::pod::containers;
use crate::pod::initialization;
use crate::pod::inputs::{Lifecycle, OperationKey, PodInputs, TerminationCause};
use crate::pod::phase::Phase;

pub(super) fn next_lifecycle(i: &PodInputs) -> Lifecycle {
    let terminating = match &i.lifecycle {
        Lifecycle::Gone => return Lifecycle::Gone,
        Lifecycle::Terminated { cause } => {
            let gone =
                i.object_gone && i.sandboxes.is_empty() && i.containers.is_empty() && i.history.cleaned_up;
            return if gone { Lifecycle::Gone } else { Lifecycle::Terminated { cause: *cause } };
        }
        Lifecycle::Terminating { since, deadline, cause } => {
            let grace = deletion_grace(i).map(|grace| later(i.now, grace));
            let deadline = grace.filter(|_| i.is_deleted()).map_or(*deadline, |new| new.min(*deadline));
            let cause = if i.object_gone && *cause == TerminationCause::Deleted {
                TerminationCause::Orphaned
            } else {
                *cause
            };
            Lifecycle::Terminating { since: *since, deadline, cause }
        }
        Lifecycle::Syncing => match termination_cause(i) {
            None => return Lifecycle::Syncing,
            Some(cause) => {
                let grace = deletion_grace(i).unwrap_or_else(|| spec_grace(i));
                Lifecycle::Terminating { since: i.now, deadline: later(i.now, grace), cause }
            }
        },
    };
    match terminating {
        Lifecycle::Terminating { cause, .. } if is_stopped(i) => Lifecycle::Terminated { cause },
        other => other,
    }
}

fn termination_cause(i: &PodInputs) -> Option<TerminationCause> {
    let phase = |status: &PodStatus| status.phase.as_deref().and_then(Phase::parse);
    if i.object_gone {
        Some(TerminationCause::Orphaned)
    } else if i.pod.metadata.deletion_timestamp.is_some() {
        Some(TerminationCause::Deleted)
    } else if i.rejection.is_some() {
        Some(TerminationCause::Rejected)
    } else if i.eviction.is_some() {
        Some(TerminationCause::Evicted)
    } else if phase(&i.published).is_some_and(Phase::is_terminal) || is_completed(i) {
        Some(TerminationCause::Completed)
    } else if active_deadline(i).is_some_and(|at| i.now >= at) {
        Some(TerminationCause::DeadlineExceeded)
    } else {
        None
    }
}

pub(super) fn active_deadline(i: &PodInputs) -> Option<Timestamp> {
    let start = i.previous_status.start_time.as_ref()?.0;
    Some(later(start, SignedDuration::from_secs(i.spec().active_deadline_seconds?)))
}

/// An init container has failed for good, or all regular containers have ended for good. Sidecars do not count.
fn is_completed(i: &PodInputs) -> bool {
    if initialization::restarts_all(i) {
        return false;
    }
    let regular: Vec<_> = containers::regular(i.spec()).collect();
    let done = !regular.is_empty()
        && regular.iter().all(|member| {
            let name = member.name();
            let ended = match i.newest(name) {
                Some(newest) => newest.container.state == ContainerState::Exited,
                None => i.previous(name).is_some(),
            };
            ended && !i.is_starting(name) && !i.should_start(member)
        });
    done || initialization::has_failed(i)
}

/// Nothing runs and nothing is on its way to run.
fn is_stopped(i: &PodInputs) -> bool {
    let on_its_way = i
        .operations
        .keys()
        .any(|key| matches!(key, OperationKey::CreateSandbox | OperationKey::StartContainer(_)));
    !on_its_way
        && i.containers.iter().all(|c| !is_alive(c.container.state))
        && i.sandboxes.iter().all(|s| {
            s.sandbox.state == PodSandboxState::NotReady
                || i.history.stopped_sandboxes.contains(&s.sandbox.id)
        })
}

pub(super) fn is_alive(state: ContainerState) -> bool {
    matches!(state, ContainerState::Running | ContainerState::Unknown)
}

/// The grace that the deletion gives from now; `None` if the Pod is not being deleted.
pub(super) fn deletion_grace(i: &PodInputs) -> Option<SignedDuration> {
    if i.object_gone {
        return Some(SignedDuration::from_secs(1));
    }
    i.pod.metadata.deletion_timestamp.as_ref()?;
    let seconds = i.pod.metadata.deletion_grace_period_seconds;
    Some(seconds.map_or_else(|| spec_grace(i), |s| SignedDuration::from_secs(s.max(1))))
}

/// The grace that the spec gives, at least a second.
pub(super) fn spec_grace(i: &PodInputs) -> SignedDuration {
    SignedDuration::from_secs(i.spec().termination_grace_period_seconds.unwrap_or(30).max(1))
}
