//! The end of a Pod's containers: each is asked to stop, and killed when its grace is over.

use std::time::Duration;

use coracle_clock::later;
use coracle_cri::PodSandboxState;
use jiff::Timestamp;

use super::lifecycle::is_alive;
use super::{MINIMUM_GRACE, PodAction, PodPlan, WaitingOn};
use crate::pod::inputs::{OperationKey, PodInputs};
use crate::pod::reasons::PodEvent;

pub(super) fn plan_terminating(i: &PodInputs, deadline: Timestamp, plan: &mut PodPlan) {
    for key in i.operations.keys() {
        match key {
            OperationKey::PullImage(_) => plan.actions.push(PodAction::Cancel(key.clone())),
            OperationKey::CreateSandbox => plan.wait(WaitingOn::Sandbox),
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
        let id = instance.container.id.clone();
        let in_flight = i.operations.get(&OperationKey::StopContainer(id.clone()));
        let (grace, stop_at) = grace(i, deadline);
        if let Some(due) = in_flight.and_then(|op| op.deadline).filter(|due| *due <= stop_at) {
            plan.wait(WaitingOn::ContainerStop { id, deadline: due });
            continue;
        }
        if teardown_waits(i, plan) {
            continue;
        }
        plan.wait(WaitingOn::ContainerStop { id: id.clone(), deadline: stop_at });
        let name = &instance.container.name;
        let event = (in_flight.is_none() && i.history.teardown_retry.is_none())
            .then(|| PodEvent::normal(name, "Killing", format!("Stopping container {name}")));
        plan.actions.push(PodAction::StopContainer { id, deadline: stop_at, grace, event, replaces: None });
    }
    if alive {
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

/// The grace left until `deadline`, but at least [`MINIMUM_GRACE`], and the deadline that follows from it.
pub(super) fn grace(i: &PodInputs, deadline: Timestamp) -> (Duration, Timestamp) {
    let left = deadline.duration_since(i.now).max(MINIMUM_GRACE);
    (Duration::try_from(left).unwrap_or(Duration::ZERO), later(i.now, left))
}

pub(super) fn teardown_waits(i: &PodInputs, plan: &mut PodPlan) -> bool {
    let Some(retry) = i.history.teardown_retry.filter(|retry| i.now < retry.at) else { return false };
    plan.wake(retry.at);
    plan.wait(WaitingOn::TeardownRetry(retry.at));
    true
}
