//! What a decision about one Pod is made from: plain data, gathered fresh for every turn.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use coracle_clock::later;
use coracle_cri::{self as cri, ContainerId, ContainerState, PodSandboxId, PodSandboxState};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{self as api, Pod, PodSpec, PodStatus};
use serde::{Deserialize, Serialize};

use super::containers::{Kind, Member};
use super::history::History;
use super::phase::restartable;
use super::volumes::VolumesState;
use super::{initialization, reasons};
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
    /// Why the node ends the Pod although nobody deleted it, if it does.
    pub eviction: Option<Eviction>,
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
    /// The same of the images whose content it has as volumes, by volume.
    pub volume_images: BTreeMap<String, ImagePresence>,
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
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
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

impl Lifecycle {
    /// The calendar was set by so much.
    pub(crate) fn shift(&mut self, by: SignedDuration) {
        if let Lifecycle::Terminating { since, deadline, .. } = self {
            (*since, *deadline) = (later(*since, by), later(*deadline, by));
        }
    }
}

/// Why a Pod ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The node ends it for the sake of others.
    Evicted,
}

/// Why the node ends a Pod for the sake of others: `status.reason` and `status.message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eviction {
    /// For example `Preempting`; the event's reason too.
    pub reason: &'static str,
    /// Explanation, which the event and the condition `DisruptionTarget` carry too.
    pub message: String,
}

impl Eviction {
    /// It ends so that a critical Pod finds room.
    #[must_use]
    pub fn preemption() -> Eviction {
        Eviction { reason: reasons::PREEMPTING, message: reasons::PREEMPTING_MESSAGE.to_owned() }
    }
}

/// Why the node refuses a Pod: `status.reason`, and the text of the event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// It is in the store, but nobody knows whether this Pod could have fetched it.
    Unproven,
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
    /// Running the hook of a container that must not be stopped yet.
    PreStop(ContainerId),
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

    /// The sandbox that containers are started in.
    pub(crate) fn current_sandbox(&self) -> Option<&PodSandboxId> {
        let id = &self.ready_sandbox()?.sandbox.id;
        (!self.history.stopped_sandboxes.contains(id)).then_some(id)
    }

    /// Instances of a container, newest first.
    pub(crate) fn instances(&self, name: &str) -> Vec<&cri::ContainerStatus> {
        let mut found: Vec<_> = self.containers.iter().filter(|c| c.container.name == name).collect();
        // One that was made and never started is made again as the same attempt. When each was made does not tell which
        // came later if the clock was set back meanwhile.
        let age = |status: &cri::ContainerStatus| {
            let started = status.container.state != ContainerState::Created;
            (status.container.attempt, started, status.container.created_at)
        };
        found.sort_by(|a, b| (age(b), &b.container.id).cmp(&(age(a), &a.container.id)));
        found
    }

    /// The newest instance of a container.
    pub(crate) fn newest(&self, name: &str) -> Option<&cri::ContainerStatus> {
        self.instances(name).into_iter().next()
    }

    /// The newest instance of a container, if it is in the sandbox that counts.
    pub(crate) fn newest_here(&self, name: &str) -> Option<&cri::ContainerStatus> {
        let sandbox = self.current_sandbox()?;
        self.newest(name).filter(|c| c.container.sandbox == *sandbox)
    }

    /// A start of this container is in flight, or was when the node agent ended and has to go on.
    pub(crate) fn is_starting(&self, name: &str) -> bool {
        self.start_in_flight(name) || self.unfinished_start(name).is_some()
    }

    /// A start of this container is in flight.
    pub(crate) fn start_in_flight(&self, name: &str) -> bool {
        self.operations.contains_key(&OperationKey::StartContainer(name.to_owned()))
    }

    /// The running instance whose postStart hook has not ended.
    pub(crate) fn unfinished_start(&self, name: &str) -> Option<&ContainerId> {
        let attempt = self.history.containers.get(name)?.post_start?;
        let newest = &self.newest_here(name)?.container;
        (newest.attempt == attempt && newest.state == ContainerState::Running).then_some(&newest.id)
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

    /// Whether the container is to be started (anew), by what is known of its past. Its turn may not have come.
    pub(crate) fn should_start(&self, member: &Member<'_>) -> bool {
        let name = member.name();
        let newest = self.newest(name);
        if let Some(newest) = newest {
            match newest.container.state {
                ContainerState::Running | ContainerState::Unknown => return false,
                ContainerState::Created => return true,
                ContainerState::Exited if self.history.must_restart(name, &newest.container.id) => {
                    return true;
                }
                ContainerState::Exited => {}
            }
        }
        match member.kind {
            Kind::Ephemeral => newest.is_none() && self.previous(name).is_none_or(|p| !has_run(p)),
            Kind::Init => {
                initialization::is_due(self, name)
                    && match self.newest_here(name) {
                        Some(here) => self.restarts(member, here.exit_code.unwrap_or(UNKNOWN_EXIT_CODE)),
                        None => true,
                    }
            }
            Kind::Sidecar => true,
            Kind::Regular => match newest {
                Some(newest) => self.restarts(member, newest.exit_code.unwrap_or(UNKNOWN_EXIT_CODE)),
                None => self.previous(name).is_none_or(|previous| self.forgotten_restarts(member, previous)),
            },
        }
    }

    /// Whether a container that ended with `exit` is started again by the rules.
    pub(crate) fn restarts(&self, member: &Member<'_>, exit: i32) -> bool {
        let init = matches!(member.kind, Kind::Init | Kind::Sidecar);
        member.kind != Kind::Ephemeral
            && restartable(self.spec().restart_policy.as_deref(), &member.container, init, exit)
    }

    /// The same for one that the runtime has forgotten.
    fn forgotten_restarts(&self, member: &Member<'_>, previous: &api::ContainerStatus) -> bool {
        if self.was_restarting_all() {
            return true;
        }
        match last_termination(previous) {
            _ if running(previous) => self.restarts(member, UNKNOWN_EXIT_CODE),
            None => true,
            // It waited for its restart, which had been decided.
            Some(last) if waiting(previous).is_some() && !is_lost(last) => true,
            Some(last) => self.restarts(member, last.exit_code),
        }
    }

    /// The last status computed says that all containers are being restarted.
    pub(crate) fn was_restarting_all(&self) -> bool {
        let conditions = self.previous_status.conditions.as_deref().unwrap_or_default();
        conditions.iter().any(|c| c.type_ == reasons::ALL_CONTAINERS_RESTARTING && c.status == "True")
    }

    /// The end of the newest instance, as the runtime or the last status knows it.
    pub(crate) fn end(&self, name: &str) -> Option<End> {
        if let Some(newest) = self.newest(name) {
            return (newest.container.state == ContainerState::Exited).then(|| End {
                id: newest.container.id.clone(),
                finished_at: newest.finished_at.unwrap_or(newest.container.created_at),
                seen: self.exit_is_seen(newest),
            });
        }
        let last = last_termination(self.previous(name)?)?;
        let id = last.container_id.as_deref()?;
        Some(End {
            id: ContainerId(id.split_once("://").map_or(id, |(_, id)| id).to_owned()),
            finished_at: last.finished_at.as_ref()?.0,
            seen: true,
        })
    }

    /// The restart count that the next instance of the container gets.
    pub(crate) fn next_attempt(&self, name: &str) -> u32 {
        if let Some(newest) = self.newest(name) {
            return match newest.container.state {
                ContainerState::Created => newest.container.attempt,
                // One that the runtime has forgotten has been counted, too.
                _ => newest.container.attempt.max(self.restart_count(name)) + 1,
            };
        }
        let Some(previous) = self.previous(name) else { return 0 };
        let count = self.restart_count(name);
        let removed = waiting(previous) == Some(reasons::RESTARTING_ALL_CONTAINERS);
        let already_counted = removed || last_termination(previous).is_none_or(is_lost);
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

/// The end of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) id: ContainerId,
    pub(crate) finished_at: Timestamp,
    /// The API server has shown it, or has been unable to for long enough.
    pub(crate) seen: bool,
}

/// How long an outcome that the API server cannot be told holds back what follows from it.
pub(crate) const SEEN_PATIENCE: SignedDuration = SignedDuration::from_secs(2);

/// Exit code of a container whose end nobody saw.
pub(crate) const UNKNOWN_EXIT_CODE: i32 = 137;

fn status_of<'a>(status: &'a PodStatus, name: &str) -> Option<&'a api::ContainerStatus> {
    statuses(status).find(|c| c.name == name)
}

/// The statuses of containers of all kinds.
pub(crate) fn statuses(status: &PodStatus) -> impl Iterator<Item = &api::ContainerStatus> {
    let lists =
        [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten()
}

fn running(status: &api::ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.running.is_some())
}

/// The waiting reason, if it waits for one.
pub(crate) fn waiting(status: &api::ContainerStatus) -> Option<&str> {
    status.state.as_ref()?.waiting.as_ref().map(|waiting| waiting.reason.as_deref().unwrap_or_default())
}

/// Some instance of it has been started.
pub(crate) fn has_run(status: &api::ContainerStatus) -> bool {
    running(status) || last_termination(status).is_some()
}

fn is_lost(terminated: &api::ContainerStateTerminated) -> bool {
    terminated.reason.as_deref() == Some(reasons::CONTAINER_STATUS_UNKNOWN)
}

fn last_termination(status: &api::ContainerStatus) -> Option<&api::ContainerStateTerminated> {
    let terminated = |s: &'_ Option<api::ContainerState>| s.as_ref().is_some_and(|s| s.terminated.is_some());
    let state = if terminated(&status.state) { &status.state } else { &status.last_state };
    state.as_ref()?.terminated.as_ref()
}
