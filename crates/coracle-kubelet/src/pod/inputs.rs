//! What a decision about one Pod is made from: plain data, gathered fresh for every turn.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use coracle_cri::{self as cri, ContainerId, ContainerState, PodSandboxId, PodSandboxState};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{self as api, Container, Pod, PodSpec, PodStatus};

use super::history::History;
use super::volumes::VolumesState;
use crate::probe::ProbeResults;

/// Everything [`super::plan`] and [`super::status`] look at.
#[derive(Debug, Clone)]
pub struct PodInputs {
    /// The Pod as the API server last told it; the last known one if the object is gone.
    pub pod: Arc<Pod>,
    /// The object is no longer in the API server.
    pub object_gone: bool,
    /// The time of this turn.
    pub now: Timestamp,
    /// What the node contributes.
    pub node: NodeFacts,
    /// The lifecycle that the last turn ended with.
    pub lifecycle: Lifecycle,
    /// Why the node refuses the Pod, if it does.
    pub rejection: Option<Rejection>,
    /// The Pod's sandboxes, newest first.
    pub sandboxes: Vec<cri::PodSandboxStatus>,
    /// The Pod's containers in all its sandboxes.
    pub containers: Vec<cri::ContainerStatus>,
    /// Termination messages of exited containers.
    pub termination_messages: BTreeMap<ContainerId, String>,
    /// What the probes of each running instance have found. An instance without probes has no entry.
    pub probes: BTreeMap<ContainerId, ProbeResults>,
    /// What the image service says about the image of each container that does not run, by container name.
    pub images: BTreeMap<String, ImagePresence>,
    /// How far its volumes are.
    pub volumes: VolumesState,
    /// Work in flight.
    pub operations: BTreeMap<OperationKey, Operation>,
    /// What past attempts left behind.
    pub history: History,
    /// The status computed last, or the API server's if there is none yet.
    pub previous_status: PodStatus,
    /// The status that the API server is known to have.
    pub published: PodStatus,
}

/// What the node contributes to every Pod's inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// Addresses of the node, the primary one first.
    pub host_ips: Vec<IpAddr>,
    /// Name of the runtime, the scheme of container ids.
    pub runtime_name: String,
    /// Whether Pods can be connected to the network, and if not, why.
    pub network: Result<(), String>,
    /// Upper bound of the restart back-off.
    pub restart_backoff_max: SignedDuration,
}

/// Where a Pod is on its way. Only goes forward.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Lifecycle {
    /// Its containers are brought to, and kept in, the state that the spec asks for.
    #[default]
    Syncing,
    /// Its containers are being stopped.
    Terminating {
        /// When this began.
        since: Timestamp,
        /// When what still runs is killed.
        deadline: Timestamp,
        /// Why.
        cause: TerminationCause,
    },
    /// Nothing of it runs, and nothing will.
    Terminated {
        /// Why.
        cause: TerminationCause,
    },
    /// The object is gone and the node holds nothing of the Pod any more.
    Gone,
}

/// Why a Pod ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TerminationCause {
    /// Its containers are done and none will be restarted.
    Completed,
    /// The object was deleted.
    Deleted,
    /// The object vanished without a graceful deletion.
    Orphaned,
    /// `activeDeadlineSeconds` passed.
    DeadlineExceeded,
    /// The node refused it.
    Rejected,
}

/// Why the node refuses a Pod: `status.reason`, and the text of the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// For example `OutOfcpu`.
    pub reason: String,
    /// Explanation, without the prefix that the status message carries.
    pub message: String,
}

/// What the image service says about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImagePresence {
    /// It is in the store.
    Present(cri::Image),
    /// It is not.
    Absent,
    /// The service could not tell, and why.
    InspectFailed(String),
}

/// Names a piece of long work. There is never more than one in flight with the same key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum OperationKey {
    /// Making the sandbox.
    CreateSandbox,
    /// Stopping a sandbox.
    StopSandbox(PodSandboxId),
    /// Removing a sandbox with its containers.
    RemoveSandbox(PodSandboxId),
    /// Fetching the image of a container.
    PullImage(String),
    /// Creating and starting a container.
    StartContainer(String),
    /// Stopping a container.
    StopContainer(ContainerId),
    /// Removing a dead container and its log.
    RemoveContainer(ContainerId),
    /// Setting up volumes.
    MountVolumes,
    /// Taking volumes down.
    UnmountVolumes,
    /// Telling the API server that the Pod may go.
    DeletePod,
    /// Removing the Pod's directories.
    CleanUp,
}

/// A piece of work in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// When it was started.
    pub since: Timestamp,
    /// For a stop: when the runtime kills.
    pub deadline: Option<Timestamp>,
}

/// Annotation of a container: hash of the part of its definition that cannot change while it runs.
pub const ANNOTATION_HASH: &str = "io.kubernetes.container.hash";
/// Annotation of a container: the name that its status shows as `image`.
pub const ANNOTATION_IMAGE: &str = "coracle.io/image";
/// Annotation of a container: what its status shows as `imageID`.
pub const ANNOTATION_IMAGE_ID: &str = "coracle.io/image-id";
/// Annotation of a container: the restart back-off that held when it was made, so that a node agent that
/// starts anew goes on with it.
pub const ANNOTATION_BACKOFF: &str = "coracle.io/restart-backoff";

impl PodInputs {
    /// The Pod's spec.
    pub(crate) fn spec(&self) -> &PodSpec {
        static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        self.pod.spec.as_ref().unwrap_or(&EMPTY)
    }

    /// `name_namespace(uid)`, as messages name a Pod.
    pub(crate) fn full_name(&self) -> String {
        let meta = &self.pod.metadata;
        format!(
            "{}_{}({})",
            meta.name.as_deref().unwrap_or_default(),
            meta.namespace.as_deref().unwrap_or_default(),
            meta.uid.as_deref().unwrap_or_default()
        )
    }

    /// Whether the Pod uses the node's network.
    pub(crate) fn host_network(&self) -> bool {
        self.spec().host_network == Some(true)
    }

    /// The Pod has been asked to go: its object is being deleted or already gone.
    pub(crate) fn is_deleted(&self) -> bool {
        self.object_gone || self.pod.metadata.deletion_timestamp.is_some()
    }

    /// The sandbox that counts: the newest one, if it is usable.
    pub(crate) fn ready_sandbox(&self) -> Option<&cri::PodSandboxStatus> {
        self.sandboxes.first().filter(|s| s.sandbox.state == PodSandboxState::Ready)
    }

    /// Instances of a container, newest first.
    pub(crate) fn instances(&self, name: &str) -> Vec<&cri::ContainerStatus> {
        let mut found: Vec<_> = self.containers.iter().filter(|c| c.container.name == name).collect();
        found.sort_by(|a, b| {
            (b.container.attempt, b.container.created_at, &b.container.id).cmp(&(
                a.container.attempt,
                a.container.created_at,
                &a.container.id,
            ))
        });
        found
    }

    /// A start of this container is in flight.
    pub(crate) fn is_starting(&self, name: &str) -> bool {
        self.operations.contains_key(&OperationKey::StartContainer(name.to_owned()))
    }

    /// The container's status as computed last.
    pub(crate) fn previous(&self, name: &str) -> Option<&api::ContainerStatus> {
        status_of(&self.previous_status, name)
    }

    /// The container's status as the API server has it.
    pub(crate) fn published(&self, name: &str) -> Option<&api::ContainerStatus> {
        status_of(&self.published, name)
    }

    /// A container id as statuses show it.
    pub(crate) fn container_id(&self, id: &ContainerId) -> String {
        format!("{}://{id}", self.node.runtime_name)
    }

    /// Whether the container's newest instance may be started (anew), by what is known of its past.
    pub(crate) fn should_start(&self, container: &Container) -> bool {
        let policy = self.spec().restart_policy.as_deref();
        let again = |exit| super::phase::restartable(policy, container, false, exit);
        match self.instances(&container.name).first() {
            Some(newest) => match newest.container.state {
                ContainerState::Running | ContainerState::Unknown => false,
                ContainerState::Created => true,
                ContainerState::Exited => {
                    self.history.was_replaced(&container.name, &newest.container.id)
                        || again(newest.exit_code.unwrap_or(UNKNOWN_EXIT_CODE))
                }
            },
            None => match self.previous(&container.name) {
                None => true,
                Some(previous) => match (running(previous), last_termination(previous)) {
                    (true, _) => again(UNKNOWN_EXIT_CODE),
                    (false, Some(terminated)) => again(terminated.exit_code),
                    (false, None) => true,
                },
            },
        }
    }

    /// The restart count that the next instance of the container gets.
    pub(crate) fn next_attempt(&self, name: &str) -> u32 {
        if let Some(newest) = self.instances(name).first() {
            return match newest.container.state {
                ContainerState::Created => newest.container.attempt,
                // One that the runtime has forgotten has been counted, too.
                _ => newest.container.attempt.max(self.restart_count(name)) + 1,
            };
        }
        let Some(previous) = self.previous(name) else { return 0 };
        let count = self.restart_count(name);
        let already_counted = last_termination(previous)
            .is_none_or(|t| t.reason.as_deref() == Some(super::reasons::CONTAINER_STATUS_UNKNOWN));
        if already_counted && !running(previous) { count } else { count + 1 }
    }

    /// The restart count that was shown last.
    pub(crate) fn restart_count(&self, name: &str) -> u32 {
        self.previous(name).and_then(|c| u32::try_from(c.restart_count).ok()).unwrap_or(0)
    }

    /// Whether the API server has shown the end of this instance, or has been unable to for long enough.
    pub(crate) fn exit_is_seen(&self, instance: &cri::ContainerStatus) -> bool {
        let id = self.container_id(&instance.container.id);
        let shown = |state: &Option<api::ContainerState>| {
            state
                .as_ref()
                .and_then(|s| s.terminated.as_ref())
                .is_some_and(|t| t.container_id.as_deref() == Some(id.as_str()))
        };
        self.published(&instance.container.name).is_some_and(|c| shown(&c.state) || shown(&c.last_state))
            || instance.finished_at.is_none_or(|at| self.now >= at + SEEN_PATIENCE)
    }
}

/// How long an outcome that the API server cannot be told holds back what follows from it.
pub(crate) const SEEN_PATIENCE: SignedDuration = SignedDuration::from_secs(2);

/// Exit code of a container whose end nobody saw.
pub(crate) const UNKNOWN_EXIT_CODE: i32 = 137;

fn status_of<'a>(status: &'a PodStatus, name: &str) -> Option<&'a api::ContainerStatus> {
    status.container_statuses.iter().flatten().find(|c| c.name == name)
}

fn running(status: &api::ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.running.is_some())
}

fn last_termination(status: &api::ContainerStatus) -> Option<&api::ContainerStateTerminated> {
    let terminated = |s: &'_ Option<api::ContainerState>| s.as_ref().is_some_and(|s| s.terminated.is_some());
    let state = if terminated(&status.state) { &status.state } else { &status.last_state };
    state.as_ref()?.terminated.as_ref()
}
