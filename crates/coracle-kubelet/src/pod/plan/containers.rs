//! The containers of a Pod that is kept: which of them is started, stopped, or waited for.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use coracle_clock::later;
use coracle_cri::{ContainerState, ContainerStatus, PodSandboxId};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;

use super::lifecycle::{active_deadline, is_alive};
use super::removal::remove_leftovers;
use super::restart_all::plan_restart_all;
use super::sandbox::plan_sandbox;
use super::start::{
    StartFrame, current_failure, failure_holds_back, obtain_volumes, plan_start, restart_backoff,
};
use super::terminating::{has_pre_stop, stop_grace, teardown_waits};
use super::{PodAction, PodPlan, WaitingOn, volumes};
use crate::pod::backoff::Backoff;
use crate::pod::containers::{self, Kind, Member};
use crate::pod::definition_hash;
use crate::pod::initialization;
use crate::pod::inputs::{ANNOTATION_HASH, End, OperationKey, PodInputs, SEEN_PATIENCE};
use crate::pod::reasons::{self, PodEvent};
use crate::pod::volumes::of_images;
use crate::probe::ProbeKind;

pub(super) fn plan_syncing(i: &PodInputs, plan: &mut PodPlan) {
    if let Some(at) = active_deadline(i) {
        plan.wake(at);
    }
    plan.actions.extend(other_family(i).map(PodAction::Report));
    if plan_restart_all(i, plan) {
        return;
    }
    remove_leftovers(i, plan);
    for member in containers::all(i.spec()) {
        if let Some(newest) = i.newest(member.name()).filter(|c| is_alive(c.container.state)) {
            plan_running(i, &member, newest, plan);
        }
    }
    if !volumes::plan_set_up(i, plan) {
        return;
    }
    let Some(sandbox) = i.current_sandbox().cloned() else {
        plan_sandbox(i, plan);
        return;
    };
    start_missing(i, &sandbox, plan);
    if plan.waiting_on.is_empty() {
        plan.wait(WaitingOn::StatusPublished);
    }
}

/// The node has an address of another family than the one that the Pod was shown with.
fn other_family(i: &PodInputs) -> Option<PodEvent> {
    let (was, is) = (i.published.host_ip.as_ref()?, i.node.host_ips.first()?);
    let family = |ip: IpAddr| if ip.is_ipv4() { 4 } else { 6 };
    let (old, new) = (family(was.parse().ok()?), family(*is));
    if old == new || i.history.told.contains(reasons::HOST_IPS_FAMILY_MISMATCH) {
        return None;
    }
    let text = format!(
        "Kubelet detected an IPv{old} node IP ({was}), but the cloud provider selected an IPv{new} node IP ({is}); pass an \
         explicit `--node-ip` to kubelet to fix this."
    );
    Some(PodEvent::pod_warning(reasons::HOST_IPS_FAMILY_MISMATCH, text))
}

#[derive(PartialEq, Eq)]
pub(super) enum Turn {
    /// The next container may be looked at.
    Next,
    /// This one is in the middle of a start.
    Busy,
}

/// Ephemeral containers first, that they may help where init containers cannot be started; then what is in volumes of
/// those that have not begun; then init containers one after the other, with the sidecars before them kept alive;
/// then regular ones.
fn start_missing(i: &PodInputs, sandbox: &PodSandboxId, plan: &mut PodPlan) {
    for member in containers::ephemeral(i.spec()) {
        if plan_container(i, &member, sandbox, plan) == Turn::Busy {
            return;
        }
    }
    let Some(without_volume) = fetch_ahead(i, plan) else { return };
    let due = |member: &Member<'_>| match member.kind {
        Kind::Init => initialization::is_due(i, member.name()),
        Kind::Sidecar | Kind::Regular | Kind::Ephemeral => initialization::has_turn(i, member),
    };
    let order = containers::init(i.spec()).chain(containers::regular(i.spec())).filter(due);
    for member in order.filter(|member| !without_volume.contains(member.name())) {
        // Starts are strictly one after the other: a pull or start in progress holds back the containers after it.
        if plan_container(i, &member, sandbox, plan) == Turn::Busy {
            break;
        }
    }
}

/// The images whose content the containers mount that have not begun are fetched before any of them starts. One that
/// cannot be had holds back its own containers alone, which are returned. `None` while one is being fetched.
fn fetch_ahead(i: &PodInputs, plan: &mut PodPlan) -> Option<BTreeSet<String>> {
    let mut without = BTreeSet::new();
    let mounts = |member: &Member<'_>| of_images(i.spec(), &member.container).next().is_some();
    for member in containers::init(i.spec()).chain(containers::regular(i.spec())).filter(mounts) {
        let name = member.name();
        let turn = initialization::has_turn(i, &member);
        if i.newest_here(name).is_some() || i.is_starting(name) || (turn && !i.should_start(&member)) {
            continue;
        }
        if i.operations.contains_key(&OperationKey::PullImage(name.to_owned())) {
            plan.wait(WaitingOn::ImagePull { container: name.to_owned() });
            return None;
        }
        // One whose turn has come is tried again when it is looked at itself.
        let failed = current_failure(i, &member.container);
        if failed.is_some_and(|failure| turn || failure_holds_back(i, name, failure, false, plan)) {
            continue;
        }
        match obtain_volumes(i, &member.container, plan) {
            Ok(_) => {}
            Err(Turn::Next) => {
                without.insert(name.to_owned());
            }
            Err(Turn::Busy) => return None,
        }
    }
    Some(without)
}

fn plan_container(i: &PodInputs, member: &Member<'_>, sandbox: &PodSandboxId, plan: &mut PodPlan) -> Turn {
    let name = member.name().to_owned();
    if i.is_starting(&name) {
        plan.wait(WaitingOn::ContainerStart { container: name });
        return Turn::Busy;
    }
    if i.operations.contains_key(&OperationKey::PullImage(name.clone())) {
        plan.wait(WaitingOn::ImagePull { container: name });
        return Turn::Busy;
    }
    if !i.should_start(member) {
        return Turn::Next;
    }
    let end = i.end(&name);
    let hash = definition_hash(&member.container);
    if let Some(failure) = current_failure(i, &member.container)
        && failure_holds_back(i, &name, failure, end.is_some(), plan)
    {
        return Turn::Next;
    }
    let mut backoff = None;
    if let Some(end) = end {
        let entry = restart_backoff(i, &name, &hash);
        if restart_is_held_back(i, &name, &end, entry, plan) {
            return Turn::Next;
        }
        backoff = Some(Backoff::next(entry, end.finished_at, i.now, i.node.restart_backoff_max));
    }
    plan_start(i, member, StartFrame { sandbox, hash, backoff }, plan)
}

/// What has ended is first seen to have ended, and then waits for its back-off.
fn restart_is_held_back(
    i: &PodInputs,
    name: &str,
    end: &End,
    entry: Option<Backoff>,
    plan: &mut PodPlan,
) -> bool {
    if !end.seen {
        plan.wait(WaitingOn::StatusPublished);
        plan.wake(end.finished_at + SEEN_PATIENCE);
        return true;
    }
    let until = entry.and_then(|entry| entry.until(end.finished_at));
    let Some(until) = until.filter(|until| i.now < *until) else { return false };
    if i.history.containers.get(name).and_then(|h| h.announced.as_ref()) != Some(&end.id) {
        plan.actions.push(PodAction::BeginBackOff {
            event: Some(reasons::restart_back_off_event(name, &i.full_name())),
            container: name.to_owned(),
            instance: Some(end.id.clone()),
        });
    }
    plan.wake(until);
    plan.wait(WaitingOn::RestartBackOff { container: name.to_owned(), until });
    true
}

// === Containers that run ===

/// Why a running container is stopped although the Pod is kept.
struct Kill {
    message: String,
    grace_seconds: Option<i64>,
    /// By when, if that has been decided before.
    until: Option<Timestamp>,
    restarts: bool,
}

fn plan_running(i: &PodInputs, member: &Member<'_>, newest: &ContainerStatus, plan: &mut PodPlan) {
    let id = newest.container.id.clone();
    let name = member.name().to_owned();
    if let Some(stop) = i.operations.get(&OperationKey::StopContainer(id.clone())) {
        plan.wait(WaitingOn::ContainerStop { id, deadline: stop.deadline.unwrap_or(i.now) });
        return;
    }
    if i.start_in_flight(&name) {
        // Its start is not over before its hook is.
        return;
    }
    if let Some(id) = i.unfinished_start(&name).cloned() {
        plan.wait(WaitingOn::ContainerStart { container: name.clone() });
        plan.actions.push(PodAction::FinishStart { container: name, id });
        return;
    }
    let Some(kill) = reason_to_kill(i, member, newest) else {
        plan.wait(if initialization::is_started(i, member, newest) {
            WaitingOn::ContainerExit { container: name }
        } else {
            WaitingOn::Startup { container: name }
        });
        return;
    };
    if teardown_waits(i, plan) {
        return;
    }
    let seconds = kill.grace_seconds.or(i.spec().termination_grace_period_seconds).unwrap_or(30).max(0);
    let until = kill.until.unwrap_or_else(|| later(i.now, SignedDuration::from_secs(seconds)));
    let pre_stop = has_pre_stop(&member.container) && until > i.now;
    let (grace, deadline): (Duration, _) = stop_grace(i, until, pre_stop);
    plan.wait(WaitingOn::ContainerStop { id: id.clone(), deadline });
    if !i.history.announced_stops.contains(&id) {
        let event = PodEvent::normal(&name, "Killing", kill.message);
        plan.actions.push(PodAction::AnnounceStop { id: id.clone(), event });
    }
    let restarts = kill.restarts.then_some(name);
    plan.actions.push(PodAction::StopContainer { id, deadline, grace, pre_stop, restarts });
}

fn reason_to_kill(i: &PodInputs, member: &Member<'_>, newest: &ContainerStatus) -> Option<Kill> {
    let name = member.name();
    let init = matches!(member.kind, Kind::Init | Kind::Sidecar);
    let subject = if init { "Init container" } else { "Container" };
    if let Some(until) = i.history.restart_by(name, &newest.container.id) {
        // Its stop has begun and did not come to an end: it failed, or the node agent ended.
        let message = format!("Stopping container {name}");
        return Some(Kill { message, grace_seconds: None, until: Some(until), restarts: true });
    }
    if newest.container.state == ContainerState::Unknown && member.kind != Kind::Ephemeral {
        let message = format!("{subject} is in \"unknown\" state, try killing it before restart");
        return Some(Kill { message, grace_seconds: None, until: None, restarts: member.kind != Kind::Init });
    }
    if !matches!(member.kind, Kind::Sidecar | Kind::Regular) {
        return None;
    }
    let kill = |what: &str, grace_seconds, restarts| {
        // Only of regular containers upstream says that they come back.
        let ending = if restarts && !init { ", will be restarted" } else { "" };
        let message = format!("{subject} {name} {what}{ending}");
        Kill { message, grace_seconds, until: None, restarts }
    };
    let made_with = newest.container.annotations.get(ANNOTATION_HASH);
    if made_with.is_some_and(|hash| *hash != definition_hash(&member.container)) {
        return Some(kill("definition changed", None, true));
    }
    let probe = i.probes.get(&newest.container.id)?.kills(&member.container)?;
    let restarts = init || restarts_on_failure(i, &member.container);
    let what = match probe {
        ProbeKind::Startup => "failed startup probe",
        ProbeKind::Liveness | ProbeKind::Readiness => "failed liveness probe",
    };
    let grace_seconds = probe.of(&member.container).and_then(|p| p.termination_grace_period_seconds);
    Some(kill(what, grace_seconds, restarts))
}

/// Whether what a probe has killed comes back, whatever its exit code is.
fn restarts_on_failure(i: &PodInputs, container: &Container) -> bool {
    let policy = container.restart_policy.as_deref().or(i.spec().restart_policy.as_deref());
    policy != Some("Never")
}
