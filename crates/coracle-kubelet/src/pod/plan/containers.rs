//! The containers of a Pod that is kept: which of them is started, stopped, or waited for.

use coracle_clock::later;
use coracle_cri::{ContainerState, PodSandboxId};
use k8s_openapi::api::core::v1::Container;

use super::lifecycle::{active_deadline, is_alive, spec_grace};
use super::removal::remove_leftovers;
use super::sandbox::plan_sandbox;
use super::start::{StartFrame, current_failure, failure_holds_back, plan_start, restart_backoff};
use super::terminating::{grace, teardown_waits};
use super::{PodAction, PodPlan, WaitingOn, volumes};
use crate::pod::backoff::Backoff;
use crate::pod::definition_hash;
use crate::pod::inputs::{ANNOTATION_HASH, OperationKey, PodInputs, SEEN_PATIENCE};
use crate::pod::reasons::{self, PodEvent};

pub(super) fn plan_syncing(i: &PodInputs, plan: &mut PodPlan) {
    if let Some(at) = active_deadline(i) {
        plan.wake(at);
    }
    remove_leftovers(i, plan);
    if !volumes::plan_set_up(i, plan) {
        return;
    }
    let Some(sandbox) = i.ready_sandbox().filter(|s| !i.history.stopped_sandboxes.contains(&s.sandbox.id))
    else {
        plan_sandbox(i, plan);
        return;
    };
    let sandbox = sandbox.sandbox.id.clone();
    for container in &i.spec().containers {
        // Starts are strictly one after the other: a pull or start in progress holds back the containers after it.
        if plan_container(i, container, &sandbox, plan) == Turn::Busy {
            break;
        }
    }
    if plan.waiting_on.is_empty() {
        plan.wait(WaitingOn::StatusPublished);
    }
}

#[derive(PartialEq, Eq)]
pub(super) enum Turn {
    /// The next container may be looked at.
    Next,
    /// This one is in the middle of a start.
    Busy,
}

fn plan_container(i: &PodInputs, container: &Container, sandbox: &PodSandboxId, plan: &mut PodPlan) -> Turn {
    let name = container.name.clone();
    if i.is_starting(&name) {
        plan.wait(WaitingOn::ContainerStart { container: name });
        return Turn::Busy;
    }
    if i.operations.contains_key(&OperationKey::PullImage(name.clone())) {
        plan.wait(WaitingOn::ImagePull { container: name });
        return Turn::Busy;
    }
    let instances = i.instances(&name);
    if let Some(newest) = instances.first().filter(|n| is_alive(n.container.state)) {
        plan_running(i, container, newest, plan);
        return Turn::Next;
    }
    if !i.should_start(container) {
        return Turn::Next;
    }
    let exited = instances.first().filter(|n| n.container.state == ContainerState::Exited);
    let hash = definition_hash(container);
    let mut backoff = None;
    if let Some(failure) = current_failure(i, container)
        && failure_holds_back(i, &name, failure, exited.is_some(), plan)
    {
        return Turn::Next;
    }
    if let Some(exited) = exited {
        if !i.exit_is_seen(exited) {
            plan.wait(WaitingOn::StatusPublished);
            plan.wake(exited.finished_at.map_or(i.now, |at| at + SEEN_PATIENCE));
            return Turn::Next;
        }
        let finished = exited.finished_at.unwrap_or(exited.container.created_at);
        let entry = restart_backoff(i, &name, &hash);
        if let Some(until) = entry.and_then(|entry| entry.until(finished)).filter(|until| i.now < *until) {
            if i.history.containers.get(&name).and_then(|h| h.announced.as_ref())
                != Some(&exited.container.id)
            {
                plan.actions.push(PodAction::BeginBackOff {
                    event: Some(reasons::restart_back_off_event(&name, &i.full_name())),
                    container: name.clone(),
                    instance: Some(exited.container.id.clone()),
                });
            }
            plan.wake(until);
            plan.wait(WaitingOn::RestartBackOff { container: name, until });
            return Turn::Next;
        }
        backoff = Some(Backoff::next(entry, finished, i.now, i.node.restart_backoff_max));
    }
    plan_start(i, container, StartFrame { sandbox, hash, backoff }, plan)
}

fn plan_running(
    i: &PodInputs,
    container: &Container,
    newest: &coracle_cri::ContainerStatus,
    plan: &mut PodPlan,
) {
    let id = newest.container.id.clone();
    if let Some(stop) = i.operations.get(&OperationKey::StopContainer(id.clone())) {
        plan.wait(WaitingOn::ContainerStop { id, deadline: stop.deadline.unwrap_or(i.now) });
        return;
    }
    let made_with = newest.container.annotations.get(ANNOTATION_HASH);
    let changed = made_with.is_some_and(|hash| *hash != definition_hash(container));
    let unknown = newest.container.state == ContainerState::Unknown;
    if !changed && !unknown {
        plan.wait(WaitingOn::ContainerExit { container: container.name.clone() });
        return;
    }
    if teardown_waits(i, plan) {
        return;
    }
    let what =
        if changed { "definition changed" } else { "is in unknown state, try killing it before restart" };
    let text = if changed {
        format!("Container {} {what}, will be restarted", container.name)
    } else {
        format!("Container {} {what}", container.name)
    };
    let (grace, deadline) = grace(i, later(i.now, spec_grace(i)));
    plan.wait(WaitingOn::ContainerStop { id: id.clone(), deadline });
    plan.actions.push(PodAction::StopContainer {
        id,
        deadline,
        grace,
        event: Some(PodEvent::normal(&container.name, "Killing", text)),
        replaces: Some(container.name.clone()),
    });
}
