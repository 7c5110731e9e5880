//! The status of one container.

use coracle_cri::{self as cri, ContainerState as CriState};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, LinuxContainerUser, ResourceRequirements, VolumeMount, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::containers::{self, Kind, Member};
use super::inputs::{self, ANNOTATION_IMAGE, ANNOTATION_IMAGE_ID, Lifecycle, PodInputs, UNKNOWN_EXIT_CODE};
use super::{definition_hash, initialization, plan, reasons};

/// The status of a container of any kind.
pub(super) fn container_status(i: &PodInputs, member: &Member<'_>) -> ContainerStatus {
    let mut status = observed(i, member);
    match member.kind {
        // It is ready when it has done its work.
        Kind::Init => status.ready = exit_code(&status) == Some(0),
        Kind::Ephemeral => (status.started, status.ready) = (None, false),
        Kind::Sidecar | Kind::Regular => {}
    }
    // The API writes it out also if there is none.
    status.last_state.get_or_insert_default();
    status.volume_mounts = volume_mounts(&member.container);
    status
}

/// What the container finds mounted of volumes, by the names that only the spec knows.
fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let shown = |mount: &VolumeMount| {
        let read_only = (mount.read_only == Some(true)).then_some(true);
        let recursive = matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"));
        let recursive = if recursive { "Enabled" } else { "Disabled" };
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only,
            recursive_read_only: read_only.map(|_| recursive.to_owned()),
            ..VolumeMountStatus::default()
        }
    };
    let mounts: Vec<_> = container.volume_mounts.iter().flatten().map(shown).collect();
    (!mounts.is_empty()).then_some(mounts)
}

fn exit_code(status: &ContainerStatus) -> Option<i32> {
    Some(status.state.as_ref()?.terminated.as_ref()?.exit_code)
}

fn observed(i: &PodInputs, member: &Member<'_>) -> ContainerStatus {
    let container = member.container.as_ref();
    let name = container.name.as_str();
    let previous = i.previous(name);
    // An instance that a start in flight has made but not started yet is not shown, nor one whose start is not over
    // before its hook is.
    let starting = i.is_starting(name);
    let hooked = container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some());
    let begins = |state: CriState| {
        state == CriState::Created || hooked && matches!(state, CriState::Running | CriState::Unknown)
    };
    let instances: Vec<_> =
        i.instances(name).into_iter().filter(|c| !(starting && begins(c.container.state))).collect();
    let mut status = ContainerStatus {
        name: name.to_owned(),
        image: container.image.clone().unwrap_or_default(),
        started: Some(false),
        ..ContainerStatus::default()
    };
    let Some(newest) = instances.first() else {
        forgotten(i, member, previous, &mut status);
        return status;
    };
    describe_instance(i, newest, &mut status);
    status.last_state = last_state(i, &instances, previous);
    match newest.container.state {
        CriState::Running => {
            status.state = Some(running(newest));
            let started = initialization::is_started(i, member, newest);
            status.started = Some(started);
            status.ready = started && initialization::is_ready(i, member, newest);
            describe_running(container, newest, &mut status);
        }
        CriState::Created => status.state = Some(waiting("", "")),
        CriState::Unknown => {
            let was_running = previous.is_some_and(|p| {
                p.state.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some())
            });
            status.state = Some(if was_running {
                lost(reasons::LOST_WHEN_TERMINATED, Some(i.container_id(&newest.container.id)))
            } else {
                waiting("", "")
            });
        }
        CriState::Exited => {
            let mut ended = terminated(i, newest);
            if member.kind != Kind::Ephemeral && i.was_restarting_all() && was_alive(previous, &ended) {
                ended.terminated.iter_mut().for_each(ended_for_restart);
            }
            if comes_back_against_its_policy(i, member, newest) {
                status.state = Some(waiting(reasons::CONTAINER_CREATING, ""));
                status.last_state = Some(ended);
            } else {
                status.state = Some(ended);
            }
        }
    }
    if newest.container.state != CriState::Running {
        wait_for_start(i, member, Some(newest), &mut status);
    }
    status
}

/// It was stopped to be started again, which its policy would not do. The API server takes an end that is shown as
/// one that stays, and no status after it.
fn comes_back_against_its_policy(i: &PodInputs, member: &Member<'_>, ended: &cri::ContainerStatus) -> bool {
    i.lifecycle == Lifecycle::Syncing
        && i.history.must_restart(member.name(), &ended.container.id)
        && !i.restarts(member, ended.exit_code.unwrap_or(UNKNOWN_EXIT_CODE))
}

/// What was shown last of the instance that has `ended` is that it ran, or that it was stopped so that all start anew.
fn was_alive(previous: Option<&ContainerStatus>, ended: &ContainerState) -> bool {
    let Some(before) = previous.filter(|p| {
        p.container_id.is_some()
            && p.container_id == ended.terminated.as_ref().and_then(|t| t.container_id.clone())
    }) else {
        return false;
    };
    let Some(state) = &before.state else { return false };
    let stopped =
        |t: &ContainerStateTerminated| t.reason.as_deref() == Some(reasons::RESTARTING_ALL_CONTAINERS);
    state.running.is_some() || state.terminated.as_ref().is_some_and(stopped)
}

fn ended_for_restart(ended: &mut ContainerStateTerminated) {
    ended.reason = Some(reasons::RESTARTING_ALL_CONTAINERS.to_owned());
    ended.message = Some(reasons::RESTARTING_ALL_CONTAINERS_MESSAGE.to_owned());
}

/// No instance is known to the runtime: never started, or forgotten.
fn forgotten(
    i: &PodInputs,
    member: &Member<'_>,
    previous: Option<&ContainerStatus>,
    status: &mut ContainerStatus,
) {
    let default = if i.spec().init_containers.as_ref().is_some_and(|c| !c.is_empty()) {
        reasons::POD_INITIALIZING
    } else {
        reasons::CONTAINER_CREATING
    };
    status.state = Some(waiting(default, ""));
    if let Some(previous) = previous {
        remember(i, member, previous, status);
    }
    let begun = |other: Member<'_>| i.newest_here(other.name()).is_some();
    let waits = status.state.as_ref().is_some_and(|s| s.waiting.is_some());
    if member.kind == Kind::Init
        && waits
        && containers::regular(i.spec()).any(begun)
        && !i.was_restarting_all()
    {
        status.state = Some(completed_unseen());
    }
    wait_for_start(i, member, None, status);
}

/// What the last status knows of a container that the runtime does not know.
fn remember(i: &PodInputs, member: &Member<'_>, previous: &ContainerStatus, status: &mut ContainerStatus) {
    status.restart_count = previous.restart_count;
    status.last_state = previous.last_state.clone().filter(|s| s.terminated.is_some());
    let removed = inputs::waiting(previous) == Some(reasons::RESTARTING_ALL_CONTAINERS);
    if removed {
        status.state.clone_from(&previous.state);
        return;
    }
    let restarting = member.kind != Kind::Ephemeral && i.was_restarting_all() && inputs::has_run(previous);
    let state = previous.state.clone().unwrap_or_default();
    if restarting {
        let mut end = lost(reasons::LOST_WHEN_DELETED, previous.container_id.clone());
        end.terminated.iter_mut().for_each(ended_for_restart);
        if state.terminated.is_some() {
            status.last_state = Some(state);
        } else if state.running.is_some() {
            status.last_state = Some(end);
        }
        status.state =
            Some(waiting(reasons::RESTARTING_ALL_CONTAINERS, reasons::RESTARTING_ALL_CONTAINERS_MESSAGE));
        status.restart_count += 1;
    } else if state.terminated.is_some() {
        *status = previous.clone();
        status.ready = false;
        status.started = Some(false);
    } else if state.running.is_some() {
        if i.is_deleted() {
            status.image_id = previous.image_id.clone();
            status.container_id = previous.container_id.clone();
            status.state = Some(lost(reasons::LOST_WHEN_DELETED, previous.container_id.clone()));
            return;
        }
        status.last_state = Some(lost(reasons::LOST_WHEN_DELETED, previous.container_id.clone()));
        status.restart_count += 1;
    }
}

/// Replaces the state by what delays or prevents the next start, if there is to be one.
fn wait_for_start(
    i: &PodInputs,
    member: &Member<'_>,
    newest: Option<&cri::ContainerStatus>,
    status: &mut ContainerStatus,
) {
    if i.lifecycle != Lifecycle::Syncing {
        return;
    }
    let container = member.container.as_ref();
    let name = container.name.as_str();
    if i.is_starting(name) {
        // Until the start has an outcome, what was shown before is still true: also while what it has started runs.
        if let Some(before) = i.previous(name).and_then(|p| p.state.clone()).filter(|s| s.running.is_none()) {
            status.state = Some(before);
            status.last_state = i.previous(name).and_then(|p| p.last_state.clone());
        }
        return;
    }
    if !i.should_start(member) {
        return;
    }
    let exited = newest.filter(|n| n.container.state == CriState::Exited);
    let removed = inputs::waiting(status) == Some(reasons::RESTARTING_ALL_CONTAINERS);
    // What was fetched in vain before its turn is told when its turn has come.
    let told = newest.is_some() || initialization::has_turn(i, member);
    let shown = failure_shown(i, container, exited.is_some())
        .filter(|_| told)
        .or_else(|| crash_loop_shown(i, container).filter(|_| !removed));
    let Some((reason, message)) = shown else { return };
    if let Some(exited) = exited {
        status.last_state = Some(terminated(i, exited));
    } else if let Some(ended) = status.state.take().filter(|s| s.terminated.is_some()) {
        status.last_state = Some(ended);
    }
    status.state = Some(waiting(&reason, &message));
}

fn failure_shown(i: &PodInputs, container: &Container, exited: bool) -> Option<(String, String)> {
    let failure = plan::current_failure(i, container)?;
    let ended_at_once = failure.left_an_instance() && exited;
    if ended_at_once && failure.backing_off {
        return crash_loop_shown(i, container).or_else(|| Some(failure.shown()));
    }
    Some(failure.shown())
}

fn crash_loop_shown(i: &PodInputs, container: &Container) -> Option<(String, String)> {
    let name = container.name.as_str();
    let end = i.end(name).filter(|end| end.seen)?;
    let entry = plan::restart_backoff(i, name, &definition_hash(container))?;
    entry.until(end.finished_at)?;
    let message = reasons::crash_loop_message(entry.delay, name, &i.full_name());
    Some((reasons::CRASH_LOOP_BACK_OFF.to_owned(), message))
}

fn describe_instance(i: &PodInputs, newest: &cri::ContainerStatus, status: &mut ContainerStatus) {
    let annotations = &newest.container.annotations;
    if let Some(image) = annotations.get(ANNOTATION_IMAGE) {
        status.image.clone_from(image);
    }
    status.image_id = annotations.get(ANNOTATION_IMAGE_ID).unwrap_or(&newest.container.image_ref).clone();
    status.container_id = Some(i.container_id(&newest.container.id));
    let count = newest.container.attempt.max(i.restart_count(&status.name));
    status.restart_count = i32::try_from(count).unwrap_or(i32::MAX);
}

fn describe_running(container: &Container, newest: &cri::ContainerStatus, status: &mut ContainerStatus) {
    if let Some(resources) = &container.resources {
        status.allocated_resources = resources.requests.clone().filter(|r| !r.is_empty());
        let ResourceRequirements { limits, requests, .. } = resources.clone();
        status.resources = Some(ResourceRequirements { limits, requests, claims: None });
    }
    status.stop_signal = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.clone());
    status.user = newest.user.as_ref().map(|user| ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user.uid,
            gid: user.gid,
            supplemental_groups: Some(user.supplemental_groups.clone()).filter(|groups| !groups.is_empty()),
        }),
    });
}

fn last_state(
    i: &PodInputs,
    instances: &[&cri::ContainerStatus],
    previous: Option<&ContainerStatus>,
) -> Option<ContainerState> {
    if let Some(before) = instances.get(1).filter(|c| c.container.state == CriState::Exited) {
        return Some(terminated(i, before));
    }
    let newest = i.container_id(&instances.first()?.container.id);
    let other = |s: &&ContainerState| {
        s.terminated.as_ref().is_some_and(|t| t.container_id.as_deref() != Some(newest.as_str()))
    };
    let previous = previous?;
    previous.state.as_ref().filter(other).or_else(|| previous.last_state.as_ref().filter(other)).cloned()
}

fn running(container: &cri::ContainerStatus) -> ContainerState {
    let started_at = Some(Time(container.started_at.unwrap_or(container.container.created_at)));
    ContainerState { running: Some(ContainerStateRunning { started_at }), ..ContainerState::default() }
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let waiting = ContainerStateWaiting { reason: text(reason), message: text(message) };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

/// The state of an instance that has ended.
pub(super) fn terminated(i: &PodInputs, container: &cri::ContainerStatus) -> ContainerState {
    let exit_code = container.exit_code.unwrap_or(UNKNOWN_EXIT_CODE);
    let by_code = if exit_code == 0 { reasons::COMPLETED } else { reasons::ERROR };
    let reason = if container.reason.is_empty() { by_code } else { container.reason.as_str() };
    // What the runtime says of the end, and what the container itself has left behind.
    let left = i.termination_messages.get(&container.container.id).map_or("", String::as_str);
    let said: Vec<&str> = [container.message.as_str(), left].into_iter().filter(|m| !m.is_empty()).collect();
    let message = (!said.is_empty()).then(|| said.join(": "));
    let terminated = ContainerStateTerminated {
        container_id: Some(i.container_id(&container.container.id)),
        exit_code,
        reason: Some(reason.to_owned()),
        message,
        // One that could not be started has the zero of the runtime's clock, as upstream.
        started_at: Some(Time(container.started_at.unwrap_or(Timestamp::UNIX_EPOCH))),
        finished_at: container.finished_at.map(Time),
        signal: None,
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

/// The state of a plain init container that must have ended well, since the Pod has come further.
fn completed_unseen() -> ContainerState {
    let terminated = ContainerStateTerminated {
        exit_code: 0,
        reason: Some(reasons::COMPLETED.to_owned()),
        message: Some(reasons::INIT_FORGOTTEN.to_owned()),
        ..ContainerStateTerminated::default()
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

fn lost(message: &str, container_id: Option<String>) -> ContainerState {
    let terminated = ContainerStateTerminated {
        container_id,
        exit_code: UNKNOWN_EXIT_CODE,
        reason: Some(reasons::CONTAINER_STATUS_UNKNOWN.to_owned()),
        message: Some(message.to_owned()),
        ..ContainerStateTerminated::default()
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}
