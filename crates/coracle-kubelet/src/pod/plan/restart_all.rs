//! All containers start anew in the same sandbox, because one has ended as a rule says (RestartAllContainers).
//!
//! The condition that tells of it is written before anything is removed: it is what a node agent that starts anew goes
//! by, when the instance that gave rise to it may be gone.

use std::time::Duration;

use super::lifecycle::is_alive;
use super::terminating::teardown_waits;
use super::{PodAction, PodPlan, WaitingOn};
use crate::pod::initialization::{removable, restart_triggers, restarts_all};
use crate::pod::inputs::{OperationKey, PodInputs, SEEN_PATIENCE};
use crate::pod::reasons;

/// Kills all containers without order, hooks or grace, and removes them. True while that is not over.
pub(super) fn plan_restart_all(i: &PodInputs, plan: &mut PodPlan) -> bool {
    if !restarts_all(i) {
        return false;
    }
    if let Some(until) = waits_to_be_seen(i) {
        plan.wait(WaitingOn::StatusPublished);
        plan.wake(until);
        return true;
    }
    let mut busy = false;
    for key in i.operations.keys() {
        match key {
            OperationKey::PullImage(_) => plan.actions.push(PodAction::Cancel(key.clone())),
            OperationKey::StartContainer(container) => {
                plan.wait(WaitingOn::ContainerStart { container: container.clone() });
                busy = true;
            }
            _ => {}
        }
    }
    for instance in removable(i).filter(|c| is_alive(c.container.state)) {
        busy = true;
        let id = instance.container.id.clone();
        let in_flight = i.operations.get(&OperationKey::StopContainer(id.clone()));
        plan.wait(WaitingOn::ContainerStop { id: id.clone(), deadline: i.now });
        if in_flight.and_then(|stop| stop.deadline).is_some_and(|due| due <= i.now) || teardown_waits(i, plan)
        {
            continue;
        }
        let (deadline, grace) = (i.now, Duration::ZERO);
        plan.actions.push(PodAction::StopContainer { id, deadline, grace, pre_stop: false, restarts: None });
    }
    if !busy {
        remove(i, plan);
    }
    true
}

/// Until when the API server has not shown that the containers are about to go.
fn waits_to_be_seen(i: &PodInputs) -> Option<jiff::Timestamp> {
    let conditions = i.published.conditions.as_deref().unwrap_or_default();
    let shown =
        conditions.iter().any(|c| c.type_ == reasons::ALL_CONTAINERS_RESTARTING && c.status == "True");
    let ended = restart_triggers(i).filter_map(|trigger| trigger.finished_at).max()?;
    let until = ended + SEEN_PATIENCE;
    (!shown && i.now < until).then_some(until)
}

/// What gave rise to it goes last.
fn remove(i: &PodInputs, plan: &mut PodPlan) {
    let triggers: Vec<_> = restart_triggers(i).map(|c| &c.container.id).collect();
    let others: Vec<_> = removable(i).filter(|c| !triggers.contains(&&c.container.id)).collect();
    let now: Vec<_> = if others.is_empty() { removable(i).collect() } else { others };
    plan.wait(WaitingOn::SandboxTeardown);
    if teardown_waits(i, plan) {
        return;
    }
    for instance in now {
        let id = instance.container.id.clone();
        if !i.operations.contains_key(&OperationKey::RemoveContainer(id.clone())) {
            plan.actions.push(PodAction::RemoveContainer(id));
        }
    }
}
