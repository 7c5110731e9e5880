//! What to do next for one Pod, when to look again, and what is being waited for.

use std::time::Duration;

use coracle_clock::later;
use coracle_cri::{ContainerId, ContainerState, Image, PodSandboxId, PodSandboxState};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, PodStatus};

use super::backoff::Backoff;
use super::history::StartFailure;
use super::inputs::{
    ANNOTATION_BACKOFF, ANNOTATION_HASH, ImagePresence, Lifecycle, OperationKey, PodInputs, SEEN_PATIENCE,
    TerminationCause,
};
use super::phase::Phase;
use super::reasons::{self, PodEvent};
use super::{definition_hash, image_name};

/// The least time between the stop signal and the kill.
pub const MINIMUM_GRACE: SignedDuration = SignedDuration::from_secs(2);

/// The decision about one Pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodPlan {
    /// Where the Pod is now on its way.
    pub lifecycle: Lifecycle,
    /// What to do, in this order.
    pub actions: Vec<PodAction>,
    /// When to look again even if nothing happens.
    pub wake_at: Option<Timestamp>,
    /// What is being waited for. Only empty when the Pod is gone.
    pub waiting_on: Vec<WaitingOn>,
}

/// One thing to do. The executor may fail at it or skip it, but has nothing to choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodAction {
    /// Make a sandbox.
    CreateSandbox {
        /// Which one of this Pod.
        attempt: u32,
    },
    /// Stop a sandbox.
    StopSandbox(PodSandboxId),
    /// Remove a sandbox with its containers.
    RemoveSandbox(PodSandboxId),
    /// Fetch an image.
    PullImage {
        /// For which container.
        container: String,
        /// The name that the spec gives, with a tag or digest.
        image: String,
    },
    /// Create and start a container.
    StartContainer(Box<StartContainer>),
    /// Send the stop signal and kill at the deadline. If a stop is in flight already, this one replaces it.
    StopContainer {
        /// Which instance.
        id: ContainerId,
        /// When to kill.
        deadline: Timestamp,
        /// Time from now to the kill.
        grace: Duration,
        /// The event that tells of it; `None` if it has been told.
        event: Option<PodEvent>,
        /// The container is started again, with its new definition.
        replaces: Option<String>,
    },
    /// Remove a dead container and its log.
    RemoveContainer(ContainerId),
    /// Give up work in flight.
    Cancel(OperationKey),
    /// Take note that a start cannot be tried.
    FailStart {
        /// Which container.
        container: String,
        /// The image that the spec asks for.
        image: String,
        /// Waiting reason.
        reason: &'static str,
        /// Waiting message.
        message: String,
        /// Events that tell of it.
        events: Vec<PodEvent>,
    },
    /// A failure or an exit has been shown: its back-off begins to show.
    BeginBackOff {
        /// Which container.
        container: String,
        /// The exited instance, for a restart.
        instance: Option<ContainerId>,
        /// The event that tells of it, if one does.
        event: Option<PodEvent>,
    },
    /// Tell the user.
    Report(PodEvent),
    /// Tell the API server that the Pod may go.
    DeletePod,
    /// Remove the Pod's directories.
    CleanUp,
}

/// Everything about a start that is decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartContainer {
    /// Which container.
    pub container: String,
    /// Its restart count.
    pub attempt: u32,
    /// The sandbox it goes into.
    pub sandbox: PodSandboxId,
    /// The image, if the image service has shown it.
    pub image: Option<Image>,
    /// The reference that a pull gave, if there was one.
    pub pulled: Option<String>,
    /// The back-off that holds from now on, if this is a restart.
    pub backoff: Option<Backoff>,
    /// Hash of the definition.
    pub hash: String,
    /// The event that says that the image was there.
    pub event: Option<PodEvent>,
}

/// Why nothing more happens right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitingOn {
    /// The network of the node.
    NetworkReady(String),
    /// A sandbox is being made.
    Sandbox,
    /// The next try to make a sandbox.
    SandboxRetry(Timestamp),
    /// An image is being fetched.
    ImagePull {
        /// For which container.
        container: String,
    },
    /// The next try to fetch an image or to start a container.
    StartRetry {
        /// Which container.
        container: String,
        /// Why the last one failed.
        reason: String,
        /// When, if not upon a change of the spec.
        until: Option<Timestamp>,
    },
    /// The restart back-off.
    RestartBackOff {
        /// Which container.
        container: String,
        /// Its end.
        until: Timestamp,
    },
    /// A container is being started.
    ContainerStart {
        /// Which container.
        container: String,
    },
    /// A running container: it may end.
    ContainerExit {
        /// Which container.
        container: String,
    },
    /// A container is being stopped.
    ContainerStop {
        /// Which instance.
        id: ContainerId,
        /// When it is killed.
        deadline: Timestamp,
    },
    /// An outcome must be seen in the API before it is acted on.
    StatusPublished,
    /// A sandbox is being stopped or removed.
    SandboxTeardown,
    /// The next try to stop or remove something.
    TeardownRetry(Timestamp),
    /// The answer to the final delete, or the next try.
    PodDeletion,
    /// Finalizers of others.
    ObjectRemoval,
    /// Somebody deleting the finished Pod.
    UserDeletion,
    /// Directories are being removed.
    CleanUp,
}

/// Decides what to do. Total, and a function of its inputs alone.
#[must_use]
pub fn plan(inputs: &PodInputs) -> PodPlan {
    let lifecycle = next_lifecycle(inputs);
    let mut plan = PodPlan { lifecycle: lifecycle.clone(), ..PodPlan::default() };
    if let (Lifecycle::Syncing, Lifecycle::Terminating { cause: TerminationCause::DeadlineExceeded, .. }) =
        (&inputs.lifecycle, &lifecycle)
    {
        let event = PodEvent::pod(reasons::DEADLINE_EXCEEDED, reasons::DEADLINE_EXCEEDED_MESSAGE);
        plan.actions.push(PodAction::Report(event));
    }
    match lifecycle {
        Lifecycle::Syncing => plan_syncing(inputs, &mut plan),
        Lifecycle::Terminating { deadline, .. } => plan_terminating(inputs, deadline, &mut plan),
        Lifecycle::Terminated { .. } => plan_terminated(inputs, &mut plan),
        Lifecycle::Gone => {}
    }
    plan
}

impl PodPlan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    fn wait(&mut self, on: WaitingOn) {
        self.waiting_on.push(on);
    }
}

// === Lifecycle ===

fn next_lifecycle(i: &PodInputs) -> Lifecycle {
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
    } else if phase(&i.published).is_some_and(Phase::is_terminal) || is_completed(i) {
        Some(TerminationCause::Completed)
    } else if active_deadline(i).is_some_and(|at| i.now >= at) {
        Some(TerminationCause::DeadlineExceeded)
    } else {
        None
    }
}

fn active_deadline(i: &PodInputs) -> Option<Timestamp> {
    let start = i.previous_status.start_time.as_ref()?.0;
    Some(later(start, SignedDuration::from_secs(i.spec().active_deadline_seconds?)))
}

/// All containers have ended for good.
fn is_completed(i: &PodInputs) -> bool {
    let containers = &i.spec().containers;
    !containers.is_empty()
        && containers.iter().all(|c| {
            let ended = match i.instances(&c.name).first() {
                Some(newest) => newest.container.state == ContainerState::Exited,
                None => i.previous(&c.name).is_some(),
            };
            ended && !i.is_starting(&c.name) && !i.should_start(c)
        })
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

fn is_alive(state: ContainerState) -> bool {
    matches!(state, ContainerState::Running | ContainerState::Unknown)
}

/// The grace that the deletion gives from now; `None` if the Pod is not being deleted.
fn deletion_grace(i: &PodInputs) -> Option<SignedDuration> {
    if i.object_gone {
        return Some(SignedDuration::from_secs(1));
    }
    i.pod.metadata.deletion_timestamp.as_ref()?;
    let seconds = i.pod.metadata.deletion_grace_period_seconds;
    Some(seconds.map_or_else(|| spec_grace(i), |s| SignedDuration::from_secs(s.max(1))))
}

fn spec_grace(i: &PodInputs) -> SignedDuration {
    SignedDuration::from_secs(i.spec().termination_grace_period_seconds.unwrap_or(30).max(1))
}

// === Syncing ===

fn plan_syncing(i: &PodInputs, plan: &mut PodPlan) {
    if let Some(at) = active_deadline(i) {
        plan.wake(at);
    }
    remove_leftovers(i, plan);
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

fn plan_sandbox(i: &PodInputs, plan: &mut PodPlan) {
    if i.operations.contains_key(&OperationKey::CreateSandbox) {
        plan.wait(WaitingOn::Sandbox);
        return;
    }
    if let Some(old) = i.sandboxes.first()
        && !i.history.stopped_sandboxes.contains(&old.sandbox.id)
    {
        let id = old.sandbox.id.clone();
        plan.wait(WaitingOn::SandboxTeardown);
        if i.operations.contains_key(&OperationKey::StopSandbox(id.clone())) || teardown_waits(i, plan) {
            return;
        }
        if i.history.teardown_retry.is_none() {
            let text = "Pod sandbox changed, it will be killed and re-created.";
            plan.actions.push(PodAction::Report(PodEvent::pod("SandboxChanged", text)));
        }
        plan.actions.push(PodAction::StopSandbox(id));
        return;
    }
    if let Err(why) = &i.node.network
        && !i.host_network()
    {
        plan.wait(WaitingOn::NetworkReady(why.clone()));
        if !i.history.network_reported {
            let text = format!("network is not ready: {why}");
            plan.actions.push(PodAction::Report(PodEvent::pod_warning("NetworkNotReady", text)));
        }
        return;
    }
    if let Some(retry) = i.history.sandbox_retry
        && i.now < retry.at
    {
        plan.wake(retry.at);
        plan.wait(WaitingOn::SandboxRetry(retry.at));
        return;
    }
    let attempt = i.sandboxes.first().map_or(0, |old| old.sandbox.metadata.attempt + 1);
    plan.wait(WaitingOn::Sandbox);
    plan.actions.push(PodAction::CreateSandbox { attempt });
}

#[derive(PartialEq, Eq)]
enum Turn {
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

/// The failure that still concerns what the spec asks for.
pub(super) fn current_failure<'a>(i: &'a PodInputs, container: &Container) -> Option<&'a StartFailure> {
    let failure = i.history.containers.get(&container.name)?.failure.as_ref()?;
    (container.image.as_deref() == Some(failure.image.as_str())).then_some(failure)
}

fn failure_holds_back(
    i: &PodInputs,
    name: &str,
    failure: &StartFailure,
    exited: bool,
    plan: &mut PodPlan,
) -> bool {
    if !failure.backing_off {
        if !failure_is_seen(i, name, failure) {
            plan.wait(WaitingOn::StatusPublished);
            plan.wake(failure.at + SEEN_PATIENCE);
            return true;
        }
        // That it has been shown is noted, for what is shown next no longer tells.
        plan.actions.push(PodAction::BeginBackOff {
            container: name.to_owned(),
            instance: None,
            event: failure.is_pull().then(|| reasons::pull_back_off_event(name, &failure.image)),
        });
    }
    if failure.reason == reasons::RUN_CONTAINER_ERROR && exited {
        // What ended is an instance like any other: its restart back-off decides.
        return false;
    }
    if failure.retry_at.is_some_and(|at| i.now >= at) {
        return false;
    }
    if let Some(at) = failure.retry_at {
        plan.wake(at);
    }
    let (reason, _) = failure.shown();
    plan.wait(WaitingOn::StartRetry { container: name.to_owned(), reason, until: failure.retry_at });
    true
}

fn failure_is_seen(i: &PodInputs, name: &str, failure: &StartFailure) -> bool {
    let shown = i.published(name).and_then(|c| c.state.as_ref()?.waiting.as_ref()).is_some_and(|w| {
        w.reason.as_deref() == Some(failure.reason.as_str())
            && w.message.as_deref().unwrap_or_default() == failure.message
    });
    shown || i.now >= failure.at + SEEN_PATIENCE
}

/// The restart back-off that holds for this definition: remembered, or as the newest instance carries it.
pub(super) fn restart_backoff(i: &PodInputs, name: &str, hash: &str) -> Option<Backoff> {
    if let Some((of, entry)) = i.history.containers.get(name).and_then(|h| h.restart_backoff.as_ref()) {
        return (of == hash).then_some(*entry);
    }
    let newest = *i.instances(name).first()?;
    if newest.container.annotations.get(ANNOTATION_HASH).is_some_and(|of| of != hash) {
        return None;
    }
    Backoff::from_annotation(newest.container.annotations.get(ANNOTATION_BACKOFF)?)
}

struct StartFrame<'a> {
    sandbox: &'a PodSandboxId,
    hash: String,
    backoff: Option<Backoff>,
}

fn plan_start(i: &PodInputs, container: &Container, frame: StartFrame<'_>, plan: &mut PodPlan) -> Turn {
    let name = container.name.clone();
    let wanted = container.image.clone().unwrap_or_default();
    let fail = |reason, message: String, events| PodAction::FailStart {
        container: name.clone(),
        image: wanted.clone(),
        reason,
        message,
        events,
    };
    let image = match image_name::with_default_tag(&wanted) {
        Ok(image) => image,
        Err(message) => {
            let events = vec![
                PodEvent::warning(&name, "InspectFailed", message.clone()),
                reasons::start_failed_event(&name, reasons::INVALID_IMAGE_NAME),
            ];
            plan.actions.push(fail(reasons::INVALID_IMAGE_NAME, message, events));
            plan.wait(WaitingOn::StatusPublished);
            return Turn::Next;
        }
    };
    let pulled = i.history.containers.get(&name).and_then(|h| h.pulled.clone());
    let present = match i.images.get(&name) {
        Some(ImagePresence::Present(image)) => Some(image.clone()),
        Some(ImagePresence::InspectFailed(why)) => {
            let message = format!("Failed to inspect image \"{image}\": {why}");
            let events = vec![
                PodEvent::warning(&name, "InspectFailed", message.clone()),
                reasons::start_failed_event(&name, reasons::IMAGE_INSPECT_ERROR),
            ];
            plan.actions.push(fail(reasons::IMAGE_INSPECT_ERROR, message, events));
            plan.wait(WaitingOn::StatusPublished);
            return Turn::Next;
        }
        Some(ImagePresence::Absent) | None => None,
    };
    let policy = container.image_pull_policy.as_deref().unwrap_or_else(|| image_name::default_policy(&image));
    match (policy, &pulled, &present) {
        ("Never", _, None) => {
            if let Some(failure) =
                current_failure(i, container).filter(|f| f.reason == reasons::ERR_IMAGE_NEVER_PULL)
            {
                let until = i.now + super::history::RETRY;
                plan.wake(until);
                let reason = failure.reason.clone();
                plan.wait(WaitingOn::StartRetry { container: name.clone(), reason, until: Some(until) });
                return Turn::Next;
            }
            let message = format!("Container image \"{image}\" is not present with pull policy of Never");
            let events = vec![
                PodEvent::warning(&name, "ErrImageNeverPull", message.clone()),
                reasons::start_failed_event(&name, reasons::ERR_IMAGE_NEVER_PULL),
            ];
            plan.actions.push(fail(reasons::ERR_IMAGE_NEVER_PULL, message, events));
            plan.wait(WaitingOn::StatusPublished);
            return Turn::Next;
        }
        ("Always", None, _) | (_, None, None) => {
            plan.wait(WaitingOn::ImagePull { container: name.clone() });
            plan.actions.push(PodAction::PullImage { container: name, image });
            return Turn::Busy;
        }
        _ => {}
    }
    let event = pulled.is_none().then(|| {
        let text =
            format!("Container image \"{image}\" already present on machine and can be accessed by the pod");
        PodEvent::normal(&name, "Pulled", text)
    });
    plan.wait(WaitingOn::ContainerStart { container: name.clone() });
    plan.actions.push(PodAction::StartContainer(Box::new(StartContainer {
        attempt: i.next_attempt(&name),
        container: name,
        sandbox: frame.sandbox.clone(),
        image: present,
        pulled,
        backoff: frame.backoff,
        hash: frame.hash,
        event,
    })));
    Turn::Busy
}

/// Dead containers beyond the newest instance and the one before it, and sandboxes that hold nothing kept.
fn remove_leftovers(i: &PodInputs, plan: &mut PodPlan) {
    if i.history.teardown_retry.is_some_and(|retry| i.now < retry.at) {
        return;
    }
    let mut kept = Vec::new();
    for container in &i.spec().containers {
        for (index, instance) in i.instances(&container.name).into_iter().enumerate() {
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

// === Terminating ===

fn plan_terminating(i: &PodInputs, deadline: Timestamp, plan: &mut PodPlan) {
    for key in i.operations.keys() {
        match key {
            OperationKey::PullImage(_) => plan.actions.push(PodAction::Cancel(key.clone())),
            OperationKey::CreateSandbox => plan.wait(WaitingOn::Sandbox),
            OperationKey::StartContainer(name) => {
                plan.wait(WaitingOn::ContainerStart { container: name.clone() });
            }
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
fn grace(i: &PodInputs, deadline: Timestamp) -> (Duration, Timestamp) {
    let left = deadline.duration_since(i.now).max(MINIMUM_GRACE);
    (Duration::try_from(left).unwrap_or(Duration::ZERO), later(i.now, left))
}

fn teardown_waits(i: &PodInputs, plan: &mut PodPlan) -> bool {
    let Some(retry) = i.history.teardown_retry.filter(|retry| i.now < retry.at) else { return false };
    plan.wake(retry.at);
    plan.wait(WaitingOn::TeardownRetry(retry.at));
    true
}

// === Terminated ===

fn plan_terminated(i: &PodInputs, plan: &mut PodPlan) {
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
    ended && !super::publish::differs(&i.published, &super::status(i))
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
