//! What is left over: of a Pod that is kept, and of one that has ended.

use super::lifecycle::is_alive;
use super::terminating::teardown_waits;
use super::{PodAction, PodPlan, WaitingOn, volumes};
use crate::pod::containers;
use crate::pod::inputs::{OperationKey, PodInputs};
use crate::pod::phase::Phase;

/// Dead containers beyond the newest instance and the one before it, and sandboxes that hold nothing kept.
pub(super) fn remove_leftovers(i: &PodInputs, plan: &mut PodPlan) {
    if i.history.teardown_retry.is_some_and(|retry| i.now < retry.at) {
        return;
    }
    let mut kept = Vec::new();
    for member in containers::all(i.spec()) {
        for (index, instance) in i.instances(member.name()).into_iter().enumerate() {
            if index < 2 || is_alive(instance.container.state) {
                kept.push(&instance.container.sandbox);
                continue;
            }
            let id = instance.container.id.clone();
            if !i.operations.contains_key(&OperationKey::RemoveContainer(id.clone())) {
                plan.actions.push(PodAction::RemoveContainer(id));
            }
        }
    }
    for old in i.sandboxes.iter().skip(1) {
        let id = old.sandbox.id.clone();
        if kept.contains(&&id) || i.operations.contains_key(&OperationKey::RemoveSandbox(id.clone())) {
            continue;
        }
        plan.actions.push(PodAction::RemoveSandbox(id));
    }
}

pub(super) fn plan_terminated(i: &PodInputs, plan: &mut PodPlan) {
    if !volumes::plan_tear_down(i, plan) {
        return;
    }
    if i.object_gone {
        plan_removal(i, plan);
    } else if i.pod.metadata.deletion_timestamp.is_none() {
        plan.wait(WaitingOn::UserDeletion);
    } else if i.history.delete_sent {
        plan.wait(WaitingOn::ObjectRemoval);
    } else if !final_status_is_published(i) {
        plan.wait(WaitingOn::StatusPublished);
    } else {
        plan.wait(WaitingOn::PodDeletion);
        match i.history.delete_retry {
            _ if i.operations.contains_key(&OperationKey::DeletePod) => {}
            Some(retry) if i.now < retry.at => plan.wake(retry.at),
            _ => plan.actions.push(PodAction::DeletePod),
        }
    }
}

/// The API server shows how the Pod ended.
fn final_status_is_published(i: &PodInputs) -> bool {
    let ended = i.published.phase.as_deref().and_then(Phase::parse).is_some_and(Phase::is_terminal);
    ended && !crate::pod::differs(&i.published, &crate::pod::status(i))
}

fn plan_removal(i: &PodInputs, plan: &mut PodPlan) {
    if !i.sandboxes.is_empty() || !i.containers.is_empty() {
        plan.wait(WaitingOn::SandboxTeardown);
        if teardown_waits(i, plan) {
            return;
        }
        for sandbox in &i.sandboxes {
            let id = sandbox.sandbox.id.clone();
            if !i.operations.contains_key(&OperationKey::RemoveSandbox(id.clone())) {
                plan.actions.push(PodAction::RemoveSandbox(id));
            }
        }
        let lost =
            i.containers.iter().filter(|c| !i.sandboxes.iter().any(|s| s.sandbox.id == c.container.sandbox));
        for container in lost {
            let id = container.container.id.clone();
            if !i.operations.contains_key(&OperationKey::RemoveContainer(id.clone())) {
                plan.actions.push(PodAction::RemoveContainer(id));
            }
        }
        return;
    }
    plan.wait(WaitingOn::CleanUp);
    if !i.operations.contains_key(&OperationKey::CleanUp) && !teardown_waits(i, plan) {
        plan.actions.push(PodAction::CleanUp);
    }
}
