//! Sandboxes and containers: the `RuntimeService` of CRI.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::{AttachRequest, CriResult, ExecRequest, ImageSpec, PortStream, StreamSession};

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id_type!(
    /// Identity of a sandbox, given by the runtime: 64 hexadecimal digits.
    PodSandboxId
);
id_type!(
    /// Identity of a container, given by the runtime: 64 hexadecimal digits.
    ContainerId
);

/// Who a sandbox is for. Together with `attempt` this is the idempotency key of [`RuntimeService::run_pod_sandbox`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct PodSandboxMetadata {
    /// Name of the Pod.
    pub name: String,
    /// UID of the Pod.
    pub uid: String,
    /// Namespace of the Pod.
    pub namespace: String,
    /// Which sandbox of this Pod it is, from 0.
    pub attempt: u32,
}

/// Where a namespace comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// One for all containers of the Pod.
    #[default]
    Pod,
    /// One for each container.
    Container,
    /// The node's own.
    Node,
    /// That of another container of the Pod.
    Target(ContainerId),
}

/// Which namespaces are shared with whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceOptions {
    /// Network (and UTS) namespace: `Pod` or `Node`.
    pub network: NamespaceMode,
    /// Process ids: `Container` by default, `Pod` for a shared process namespace.
    pub pid: NamespaceMode,
    /// System V IPC: `Pod` or `Node`.
    pub ipc: NamespaceMode,
}

impl Default for NamespaceOptions {
    fn default() -> Self {
        NamespaceOptions {
            network: NamespaceMode::Pod,
            pid: NamespaceMode::Container,
            ipc: NamespaceMode::Pod,
        }
    }
}

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port of the host that leads into the Pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port inside the Pod.
    pub container_port: u16,
    /// Port of the host.
    pub host_port: u16,
    /// Address of the host to listen on; all if `None`.
    pub host_ip: Option<IpAddr>,
}

/// Contents of the Pod's `/etc/resolv.conf`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsConfig {
    /// Name servers, in order.
    pub servers: Vec<String>,
    /// Search domains, in order.
    pub searches: Vec<String>,
    /// Options such as `ndots:5`.
    pub options: Vec<String>,
}

/// Resources of a whole Pod, or of one container. `None` sets nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LinuxContainerResources {
    /// CFS period in microseconds.
    pub cpu_period: Option<u64>,
    /// CFS quota in microseconds for each period.
    pub cpu_quota: Option<i64>,
    /// Relative weight in cgroup v1 units (2 to 262144).
    pub cpu_shares: Option<u64>,
    /// Memory limit in bytes.
    pub memory_limit_in_bytes: Option<i64>,
    /// The kernel's preference to kill this first: -1000 to 1000. If it cannot be lowered as far as asked, the
    /// runtime gets as near as it may.
    pub oom_score_adj: Option<i32>,
    /// Processors, as in `0-3,7`.
    pub cpuset_cpus: Option<String>,
    /// Limit on the number of processes.
    pub pids_limit: Option<i64>,
    /// cgroup v2 keys set as they are; not looked at on a machine with cgroup v1.
    pub unified: BTreeMap<String, String>,
}

/// See [`LinuxContainerResources`]: the sum for a Pod's cgroup.
pub type SandboxResources = LinuxContainerResources;

/// What a container may do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SecurityContext {
    /// All capabilities and devices, no masks.
    pub privileged: bool,
    /// Capabilities beyond the default set, without the `CAP_` prefix.
    pub add_capabilities: Vec<String>,
    /// Capabilities taken from the default set; `ALL` takes all.
    pub drop_capabilities: Vec<String>,
    /// Numeric user; overrides the image's.
    pub run_as_user: Option<i64>,
    /// Numeric primary group.
    pub run_as_group: Option<i64>,
    /// Further groups.
    pub supplemental_groups: Vec<i64>,
    /// No others: those that the image's files give the user do not count.
    #[serde(default)]
    pub strict_groups: bool,
    /// The root file system cannot be written.
    pub readonly_rootfs: bool,
    /// No way to more privileges than the parent has.
    pub no_new_privs: bool,
    /// Run without the default system call filter.
    pub seccomp_unconfined: bool,
    /// Namespaces of the container.
    pub namespaces: NamespaceOptions,
    /// Paths hidden in the container; the usual set if `None`.
    pub masked_paths: Option<Vec<String>>,
    /// Paths read-only in the container; the usual set if `None`.
    pub readonly_paths: Option<Vec<String>>,
}

/// How to make a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PodSandboxConfig {
    /// For whom.
    pub metadata: PodSandboxMetadata,
    /// Host name inside.
    pub hostname: String,
    /// Directory of the host in which the containers' log files go.
    pub log_directory: PathBuf,
    /// Contents of `/etc/resolv.conf`.
    pub dns_config: DnsConfig,
    /// Ports of the host that lead into the Pod.
    pub port_mappings: Vec<PortMapping>,
    /// Labels to store and to filter by.
    pub labels: BTreeMap<String, String>,
    /// Annotations to store.
    pub annotations: BTreeMap<String, String>,
    /// Parent cgroup of the Pod's containers, relative to the root of each hierarchy, for example
    /// `/kubepods/besteffort/pod<uid>`. Made by the runtime if missing, and removed with the sandbox.
    pub cgroup_parent: String,
    /// Limits of the Pod's cgroup.
    pub resources: SandboxResources,
    /// Kernel parameters of the Pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Namespaces of the Pod.
    pub namespaces: NamespaceOptions,
}

/// State of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodSandboxState {
    /// Usable: namespaces pinned, network connected, keeper alive.
    Ready,
    /// Not usable; only stop and remove are left.
    NotReady,
}

/// A sandbox, in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSandbox {
    /// Identity.
    pub id: PodSandboxId,
    /// For whom.
    pub metadata: PodSandboxMetadata,
    /// State.
    pub state: PodSandboxState,
    /// When it was made.
    pub created_at: Timestamp,
    /// Labels it was made with.
    pub labels: BTreeMap<String, String>,
    /// Annotations it was made with.
    pub annotations: BTreeMap<String, String>,
}

/// A sandbox, in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSandboxStatus {
    /// The short form.
    pub sandbox: PodSandbox,
    /// Addresses, the primary one first; empty on the node's network.
    pub ips: Vec<IpAddr>,
    /// The pinned network namespace; `None` on the node's network.
    pub netns: Option<PathBuf>,
    /// Namespaces of the Pod.
    pub namespaces: NamespaceOptions,
}

/// Which sandboxes to list. Empty fields match all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodSandboxFilter {
    /// By id.
    pub id: Option<PodSandboxId>,
    /// By state.
    pub state: Option<PodSandboxState>,
    /// By labels, all of which must be equal.
    pub labels: BTreeMap<String, String>,
}

/// An environment variable. Values are bytes in the kernel; here they are text, as in the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Name.
    pub key: String,
    /// Value.
    pub value: String,
}

/// Whether mounts made later on one side are seen on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum MountPropagation {
    /// Neither way.
    #[default]
    Private,
    /// From the host to the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// What an image holds, or a part of it, to be looked at and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageContent {
    /// The image: an id, as [`crate::ImageService::pull_image`] or `image_status` gave it.
    pub image: ImageSpec,
    /// Path in the image; all of it if empty.
    pub sub_path: String,
}

/// A bind mount from the host, or of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Path in the container.
    pub container_path: PathBuf,
    /// Path on the host; means nothing for an image.
    pub host_path: PathBuf,
    /// The image whose content it is: always read-only, and nothing in it can be executed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageContent>,
    /// Read-only.
    pub readonly: bool,
    /// Whatever is mounted below on the host is read-only, too.
    #[serde(default)]
    pub recursive_readonly: bool,
    /// Propagation.
    pub propagation: MountPropagation,
}

/// How to make a container. (sandbox, `name`, `attempt`) is the idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Name of the container in the Pod.
    pub name: String,
    /// Restart count: which container of this name it is, from 0.
    pub attempt: u32,
    /// The image: an id, as [`crate::ImageService::pull_image`] or `image_status` gave it.
    pub image: ImageSpec,
    /// The name that the user gave the image, reported back in the status.
    pub user_specified_image: String,
    /// Replaces the image's `ENTRYPOINT` (and then its `CMD` is not used either).
    pub command: Vec<String>,
    /// Replaces the image's `CMD`.
    pub args: Vec<String>,
    /// Replaces the image's `WORKDIR`; made if missing.
    pub working_dir: String,
    /// Added to, and stronger than, the image's `ENV`.
    pub envs: Vec<EnvVar>,
    /// Bind mounts.
    pub mounts: Vec<Mount>,
    /// Labels to store and to filter by.
    pub labels: BTreeMap<String, String>,
    /// Annotations to store.
    pub annotations: BTreeMap<String, String>,
    /// Log file, relative to the sandbox's log directory.
    pub log_path: PathBuf,
    /// Keep standard input open.
    pub stdin: bool,
    /// Close standard input after the first attached session ends.
    pub stdin_once: bool,
    /// Give the process a terminal.
    pub tty: bool,
    /// Limits.
    pub resources: LinuxContainerResources,
    /// What it may do.
    pub security_context: SecurityContext,
    /// Overrides the image's `STOPSIGNAL`; a name such as `SIGUSR1`, empty for none.
    pub stop_signal: String,
}

/// State of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Its first process runs.
    Running,
    /// Its first process has ended, or could not be started.
    Exited,
    /// The runtime cannot tell.
    Unknown,
}

/// A container, in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Identity.
    pub id: ContainerId,
    /// Its sandbox.
    pub sandbox: PodSandboxId,
    /// Name in the Pod.
    pub name: String,
    /// Restart count.
    pub attempt: u32,
    /// The image it was asked to run.
    pub image: ImageSpec,
    /// The image it runs (an id).
    pub image_ref: String,
    /// State.
    pub state: ContainerState,
    /// When it was made.
    pub created_at: Timestamp,
    /// Labels it was made with.
    pub labels: BTreeMap<String, String>,
    /// Annotations it was made with.
    pub annotations: BTreeMap<String, String>,
}

/// A process's identity.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerUser {
    /// User id.
    pub uid: i64,
    /// Primary group id.
    pub gid: i64,
    /// Further groups.
    pub supplemental_groups: Vec<i64>,
}

/// A container, in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerStatus {
    /// The short form.
    pub container: Container,
    /// When its process started.
    pub started_at: Option<Timestamp>,
    /// When its process ended.
    pub finished_at: Option<Timestamp>,
    /// Exit code; 128 + n for signal n; 128 with reason `StartError` if it could not be started.
    pub exit_code: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled` or `StartError` once exited; empty before.
    pub reason: String,
    /// Details for people, for example why it could not be started.
    pub message: String,
    /// Log file on the host.
    pub log_path: PathBuf,
    /// Bind mounts it was made with.
    pub mounts: Vec<Mount>,
    /// Who its first process runs as, once known.
    pub user: Option<ContainerUser>,
    /// Process id of its first process on the host while it runs.
    pub pid: Option<u32>,
    /// Limits now in force.
    pub resources: LinuxContainerResources,
}

/// Which containers to list. Empty fields match all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerFilter {
    /// By id.
    pub id: Option<ContainerId>,
    /// By state.
    pub state: Option<ContainerState>,
    /// By sandbox.
    pub sandbox: Option<PodSandboxId>,
    /// By labels, all of which must be equal.
    pub labels: BTreeMap<String, String>,
}

/// Result of a command run to its end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecSyncResult {
    /// Standard output, cut at 16 MiB.
    pub stdout: Vec<u8>,
    /// Standard error, likewise.
    pub stderr: Vec<u8>,
    /// Exit code.
    pub exit_code: i32,
}

/// What happened to a container or sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerEventKind {
    /// A container was made.
    Created,
    /// A container's process started.
    Started,
    /// A container's process ended; the exit is already on disk.
    Stopped,
    /// A container was removed.
    Deleted,
    /// A sandbox changed: it stopped, or its keeper died.
    SandboxChanged,
}

/// A hint that something changed. Events say "look again" and no more: they may be lost or doubled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerEvent {
    /// What happened.
    pub kind: ContainerEventKind,
    /// UID of the Pod.
    pub pod_uid: String,
    /// The container; `None` for [`ContainerEventKind::SandboxChanged`].
    pub container: Option<ContainerId>,
}

/// Name and version of a runtime.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Version {
    /// For example `coracle`; also the scheme of container ids (`coracle://…`).
    pub runtime_name: String,
    /// Version of the runtime.
    pub runtime_version: String,
}

/// One aspect of the runtime's health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeCondition {
    /// `RuntimeReady` or `NetworkReady`.
    pub kind: String,
    /// Whether it holds.
    pub status: bool,
    /// Why not, in one word.
    pub reason: String,
    /// Why not, in a sentence.
    pub message: String,
}

/// Health of the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuntimeStatus {
    /// Its conditions.
    pub conditions: Vec<RuntimeCondition>,
}

/// The runtime half of the contract.
///
/// # Guarantees asked of an implementation
/// - Making is idempotent by identity: asking again for the same (Pod UID, attempt) or (sandbox, name, attempt)
///   returns the one that is there.
/// - An exit is on disk before an event or a status tells of it.
/// - Stopping and removing succeed if there is nothing to stop or remove.
/// - Dropping the future of a call leaves a state that the same call repairs.
#[async_trait]
pub trait RuntimeService: Send + Sync {
    /// Name and version.
    async fn version(&self) -> CriResult<Version>;
    /// Health.
    async fn status(&self) -> CriResult<RuntimeStatus>;
    /// The network of this node's Pods, when it becomes known.
    async fn update_pod_cidr(&self, pod_cidr: &str) -> CriResult<()>;

    /// Makes a sandbox: namespaces, cgroup, network; ready when this returns.
    async fn run_pod_sandbox(&self, config: &PodSandboxConfig) -> CriResult<PodSandboxId>;
    /// Kills what runs in the sandbox and frees its network.
    async fn stop_pod_sandbox(&self, id: &PodSandboxId) -> CriResult<()>;
    /// Stops and removes the sandbox with its containers, mounts, cgroup and files (not its logs).
    async fn remove_pod_sandbox(&self, id: &PodSandboxId) -> CriResult<()>;
    /// Looks at one sandbox.
    async fn pod_sandbox_status(&self, id: &PodSandboxId) -> CriResult<PodSandboxStatus>;
    /// Lists sandboxes.
    async fn list_pod_sandboxes(&self, filter: &PodSandboxFilter) -> CriResult<Vec<PodSandbox>>;

    /// Makes a container. The image must be in the store.
    async fn create_container(
        &self,
        sandbox: &PodSandboxId,
        config: &ContainerConfig,
        sandbox_config: &PodSandboxConfig,
    ) -> CriResult<ContainerId>;
    /// Starts a container. A program that cannot be executed is an error here, and the container is then exited
    /// with code 128 (127 or 126 are a shell's) and reason `StartError`.
    async fn start_container(&self, id: &ContainerId) -> CriResult<()>;
    /// Sends the stop signal, waits up to `grace`, then kills everything in the container; returns when it has
    /// ended. A later call with a shorter grace takes effect at once.
    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> CriResult<()>;
    /// Removes a container that does not run (kills it first if it does), with its mounts and files.
    async fn remove_container(&self, id: &ContainerId) -> CriResult<()>;
    /// Lists containers.
    async fn list_containers(&self, filter: &ContainerFilter) -> CriResult<Vec<Container>>;
    /// Looks at one container.
    async fn container_status(&self, id: &ContainerId) -> CriResult<ContainerStatus>;
    /// Changes limits of a running container.
    async fn update_container_resources(
        &self,
        id: &ContainerId,
        resources: &LinuxContainerResources,
    ) -> CriResult<()>;
    /// Closes the log file and opens it anew by its path, after a rotation.
    async fn reopen_container_log(&self, id: &ContainerId) -> CriResult<()>;

    /// Runs a command to its end or to `timeout`, when it is killed and the result is `DeadlineExceeded`.
    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Option<Duration>,
    ) -> CriResult<ExecSyncResult>;
    /// Runs a command interactively.
    async fn exec(&self, request: &ExecRequest) -> CriResult<StreamSession>;
    /// Joins the streams of a running container's first process: its output from now on, its standard input with
    /// whoever else writes to it. Neither the container nor its log wait for an attacher that does not read: after a
    /// moment it is cut off.
    ///
    /// The end of an attacher's input, or its leaving, closes that of a container made with `stdin_once` and without
    /// a terminal; of any other container it ends the attachment alone.
    async fn attach(&self, request: &AttachRequest) -> CriResult<StreamSession>;
    /// Connects to a port on the loopback address of the Pod's network.
    async fn port_forward(&self, sandbox: &PodSandboxId, port: u16) -> CriResult<PortStream>;

    /// Hints about changes, from now on. A receiver that lags loses hints and must look at everything.
    async fn container_events(&self) -> CriResult<mpsc::Receiver<ContainerEvent>>;
}
