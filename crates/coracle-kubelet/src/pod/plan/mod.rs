//! What to do next for one Pod, when to look again, and what is being waited for.

mod containers;
mod lifecycle;
mod removal;
mod restart_all;
mod sandbox;
mod start;
mod terminating;
mod volumes;

pub(super) use start::{current_failure, restart_backoff};

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_cri::{ContainerId, Image, PodSandboxId};
use jiff::{SignedDuration, Timestamp};

use super::backoff::Backoff;
use super::inputs::{Lifecycle, OperationKey, PodInputs, TerminationCause};
use super::reasons::{self, PodEvent};
use containers::plan_syncing;
use lifecycle::next_lifecycle;
use removal::plan_terminated;
use terminating::plan_terminating;

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
        /// It is the content of a volume, and so the Pod's more than the container's.
        volume: bool,
    },
    /// Create and start a container.
    StartContainer(Box<StartContainer>),
    /// Run the postStart hook of a container that an earlier node agent has started.
    FinishStart {
        /// Which container.
        container: String,
        /// Its instance.
        id: ContainerId,
    },
    /// Tell the user that a container is being stopped.
    AnnounceStop {
        /// Which instance.
        id: ContainerId,
        /// The event that tells of it.
        event: PodEvent,
    },
    /// Run the preStop hook of a container whose turn to be stopped has not come.
    PreStop {
        /// Which instance.
        id: ContainerId,
        /// When the hook is given up.
        deadline: Timestamp,
        /// Time from now until then.
        grace: Duration,
    },
    /// Send the stop signal and kill at the deadline. If a stop is in flight already, this one replaces it.
    StopContainer {
        /// Which instance.
        id: ContainerId,
        /// When to kill.
        deadline: Timestamp,
        /// Time from now to the kill; zero kills at once. What the preStop hook takes is taken from it, but at least
        /// [`MINIMUM_GRACE`] is left for the signal.
        grace: Duration,
        /// The preStop hook comes first.
        pre_stop: bool,
        /// The container that is started again however this instance ends.
        restarts: Option<String>,
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
    /// Set up volumes, or write anew those whose sources have changed.
    MountVolumes,
    /// Take the Pod's volumes down.
    UnmountVolumes,
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
    /// The images whose content it mounts, by volume.
    pub volumes: BTreeMap<String, String>,
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
    /// The instance whose processes it is to see.
    pub target: Option<ContainerId>,
    /// The start is not over before a hook is.
    pub post_start: bool,
}

/// Why nothing more happens right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitingOn {
    /// The network of the node.
    NetworkReady(String),
    /// Volumes are being set up, or cannot be.
    Volumes,
    /// Volumes are being taken down.
    VolumesTeardown,
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
    /// A running container has not started yet, as its startup probe sees it.
    Startup {
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
    /// Other containers end before this one is stopped.
    TurnToStop {
        /// Which instance.
        id: ContainerId,
        /// When it is stopped even so.
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
    if let (Lifecycle::Syncing, Lifecycle::Terminating { cause, .. } | Lifecycle::Terminated { cause }) =
        (&inputs.lifecycle, &lifecycle)
    {
        plan.actions.extend(told_of(inputs, *cause).map(PodAction::Report));
    }
    match lifecycle {
        Lifecycle::Syncing => plan_syncing(inputs, &mut plan),
        Lifecycle::Terminating { deadline, .. } => plan_terminating(inputs, deadline, &mut plan),
        Lifecycle::Terminated { .. } => plan_terminated(inputs, &mut plan),
        Lifecycle::Gone => {}
    }
    plan
}

/// The event that tells why a Pod ends, where its containers' do not.
fn told_of(i: &PodInputs, cause: TerminationCause) -> Option<PodEvent> {
    match (cause, &i.eviction) {
        (TerminationCause::DeadlineExceeded, _) => {
            Some(PodEvent::pod(reasons::DEADLINE_EXCEEDED, reasons::DEADLINE_EXCEEDED_MESSAGE))
        }
        (TerminationCause::Evicted, Some(eviction)) => {
            Some(PodEvent::pod_warning(eviction.reason, eviction.message.clone()))
        }
        _ => None,
    }
}

impl PodPlan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    fn wait(&mut self, on: WaitingOn) {
        self.waiting_on.push(on);
    }
}
