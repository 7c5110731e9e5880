//! The end of a Pod's containers: each is asked to stop, and killed when its grace is over.

use std::time::Duration;

use coracle_clock::later;
use coracle_cri::{ContainerState, ContainerStatus, PodSandboxState};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;

use super::lifecycle::is_alive;
use super::{MINIMUM_GRACE, PodAction, PodPlan, WaitingOn};
use crate::pod::containers::{self, Kind, Member};
use crate::pod::inputs::{Lifecycle, OperationKey, PodInputs};
use crate::pod::reasons::{self, PodEvent};

/// The least time before it is said that a Pod should have been killed by now.
const OVERRUN_MIN: SignedDuration = SignedDuration::from_secs(10);

pub(super) fn plan_terminating(i: &PodInputs, deadline: Timestamp, plan: &mut PodPlan) {
    for key in i.operations.keys() {
        match key {
            OperationKey::PullImage(_) => plan.actions.push(PodAction::Cancel(key.clone())),
            OperationKey::CreateSandbox => plan.wait(WaitingOn::Sandbox),
            // Its hook may take for ever; the container is there to be stopped.
            OperationKey::StartContainer(name) if runs_post_start(i, name) => {
                plan.actions.push(PodAction::Cancel(key.clone()));
            }
            OperationKey::StartContainer(name) => {
                plan.wait(WaitingOn::ContainerStart { container: name.clone() });
            }
            OperationKey::MountVolumes => plan.actions.push(PodAction::Cancel(key.clone())),
            _ => {}
        }
    }
    let mut alive = !plan.waiting_on.is_empty();
    for instance in i.containers.iter().filter(|c| is_alive(c.container.state)) {
        alive = true;
        plan_stop(i, instance, deadline, plan);
    }
    if alive {
        tell_of_overrun(i, deadline, plan);
        return;
    }
    for sandbox in &i.sandboxes {
        let id = sandbox.sandbox.id.clone();
        if sandbox.sandbox.state == PodSandboxState::NotReady || i.history.stopped_sandboxes.contains(&id) {
            continue;
        }
        plan.wait(WaitingOn::SandboxTeardown);
        if i.operations.contains_key(&OperationKey::StopSandbox(id.clone())) || teardown_waits(i, plan) {
            continue;
        }
        plan.actions.push(PodAction::StopSandbox(id));
    }
}

/// A runtime that has not killed what it was to kill is told of, once: half the grace later, and not in the first seconds.
fn tell_of_overrun(i: &PodInputs, deadline: Timestamp, plan: &mut PodPlan) {
    let Lifecycle::Terminating { since, .. } = i.lifecycle else { return };
    if i.history.told.contains(reasons::EXCEEDED_GRACE_PERIOD) {
        return;
    }
    let grace = deadline.duration_since(since);
    let at = later(since, (grace + grace / 2).max(OVERRUN_MIN));
    if i.now < at {
        plan.wake(at);
        return;
    }
    let text = "Container runtime did not kill the pod within specified grace period.";
    plan.actions.push(PodAction::Report(PodEvent::pod_warning(reasons::EXCEEDED_GRACE_PERIOD, text)));
}

/// All are told at once that they are to end. Then regular containers are stopped; a sidecar waits for its turn, and
/// its hook runs meanwhile.
fn plan_stop(i: &PodInputs, instance: &ContainerStatus, deadline: Timestamp, plan: &mut PodPlan) {
    let id = instance.container.id.clone();
    let name = &instance.container.name;
    let member = containers::find(i.spec(), name);
    let in_flight = i.operations.get(&OperationKey::StopContainer(id.clone()));
    let may_hook = member.as_ref().is_some_and(|member| has_pre_stop(&member.container))
        && i.now < deadline
        && !i.history.pre_stopped.contains(&id);
    if in_flight.is_none() && !i.history.announced_stops.contains(&id) {
        let event = PodEvent::normal(name, "Killing", format!("Stopping container {name}"));
        plan.actions.push(PodAction::AnnounceStop { id: id.clone(), event });
    }
    let hook = OperationKey::PreStop(id.clone());
    let hook_runs = i.operations.contains_key(&hook);
    let waits = i.now < deadline && member.as_ref().is_some_and(|member| !is_its_turn(i, member));
    if in_flight.is_none() && i.now < deadline && (waits || hook_runs) {
        plan.wake(deadline);
        plan.wait(WaitingOn::TurnToStop { id: id.clone(), deadline });
        if may_hook && !hook_runs {
            let left = deadline.duration_since(i.now);
            let grace = Duration::try_from(left).unwrap_or(Duration::ZERO);
            plan.actions.push(PodAction::PreStop { id, deadline, grace });
        }
        return;
    }
    if hook_runs {
        plan.actions.push(PodAction::Cancel(hook));
    }
    let (grace, stop_at) = stop_grace(i, deadline, may_hook && !hook_runs);
    if let Some(due) = in_flight.and_then(|op| op.deadline).filter(|due| *due <= stop_at) {
        plan.wait(WaitingOn::ContainerStop { id, deadline: due });
        return;
    }
    if teardown_waits(i, plan) {
        return;
    }
    plan.wait(WaitingOn::ContainerStop { id: id.clone(), deadline: stop_at });
    let pre_stop = may_hook && !hook_runs;
    plan.actions.push(PodAction::StopContainer { id, deadline: stop_at, grace, pre_stop, restarts: None });
}

/// A sidecar is stopped when every regular container and every sidecar declared after it has ended.
fn is_its_turn(i: &PodInputs, member: &Member<'_>) -> bool {
    if member.kind != Kind::Sidecar {
        return true;
    }
    let later = containers::init(i.spec()).skip_while(|other| other.name() != member.name()).skip(1);
    let later = later.filter(|other| other.kind == Kind::Sidecar);
    !containers::regular(i.spec()).chain(later).any(|other| {
        i.is_starting(other.name()) || i.instances(other.name()).iter().any(|c| is_alive(c.container.state))
    })
}

/// Whether a start in flight has come to the hook of the container.
fn runs_post_start(i: &PodInputs, name: &str) -> bool {
    let member = containers::find(i.spec(), name);
    let hook = member.as_ref().and_then(|member| member.container.lifecycle.as_ref()?.post_start.as_ref());
    hook.is_some() && i.newest(name).is_some_and(|newest| newest.container.state == ContainerState::Running)
}

/// Whether a container has something to do before it is asked to stop.
pub(super) fn has_pre_stop(container: &Container) -> bool {
    container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.pre_stop.is_some())
}

/// The grace left until `deadline` and the deadline that follows from it: at least [`MINIMUM_GRACE`], unless a hook
/// comes first, which has what is left and no more.
pub(super) fn stop_grace(i: &PodInputs, deadline: Timestamp, pre_stop: bool) -> (Duration, Timestamp) {
    let left = deadline.duration_since(i.now);
    let left = if pre_stop { left } else { left.max(MINIMUM_GRACE) };
    (Duration::try_from(left).unwrap_or(Duration::ZERO), later(i.now, left))
}

pub(super) fn teardown_waits(i: &PodInputs, plan: &mut PodPlan) -> bool {
    let Some(retry) = i.history.teardown_retry.filter(|retry| i.now < retry.at) else { return false };
    plan.wake(retry.at);
    plan.wait(WaitingOn::TeardownRetry(retry.at));
    true
}
