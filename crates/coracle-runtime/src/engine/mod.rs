//! The embedded engine: sandboxes and containers, behind [`coracle_cri::RuntimeService`].
//!
//! - The truth is on disk and in the kernel; what is in memory is an index of it, made anew by
//!   [`EmbeddedRuntime::open`]. One keeper process for each Pod parents its containers, so they outlive the
//!   daemon, and a new daemon finds them by their keepers' sockets.
//! - Calls that change something run in tasks of their own: a caller that goes away does not leave them half
//!   done. Operations on one sandbox or container take turns; nothing slow happens under the index's lock.
//! - A container's end is on disk, written by its keeper, before anyone here hears of it; the word carries the
//!   end too, for when the disk is full.
//! - Only a keeper that nobody can reach any more is dead. One that is silent is waited for with a limit, and what
//!   it keeps is believed to go on; `silence.rs` says when that ends.
//!
//! Where to read next: `sandbox.rs` and `container.rs` for the operations, `session.rs` for exec, `attach.rs` for attach and ports, `recover.rs`
//! for what a new daemon does, `rootfs.rs` and `spec.rs` for what a container sees.

mod attach;
mod cgroup;
mod container;
mod devices;
mod ends;
mod keeper;
mod mounted;
mod purge;
mod recover;
mod rootfs;
mod sandbox;
mod service;
mod session;
mod silence;
mod spec;
mod state;
mod stop;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_clock::watch;
use coracle_clock::{Clock, Rng};
use coracle_cri::{
    ContainerEvent, ContainerEventKind, ContainerId, CriError, CriResult, ImageRunConfig,
    LinuxContainerResources, PodNetwork,
};
use coracle_keeper::ExitRecord;
pub use coracle_keeper::LogLimit;
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::image::{ImageStore, Rootfs};
use cgroup::Cgroups;
use keeper::KeeperBinary;
use state::{ContainerRecord, Layout, SandboxPhase, SandboxRecord};

pub use cgroup::{CgroupVersion, MachineCgroups};
pub use purge::purge;
pub use silence::Patience;

/// Where one cluster's runtime keeps its things. No two clusters share any of these.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// What must outlive a reboot.
    pub data_dir: PathBuf,
    /// What need not: sockets, pinned namespaces.
    pub run_dir: PathBuf,
    /// Control group of the cluster, from the root of each hierarchy, for example `/coracle-NAME`.
    pub cgroup_root: PathBuf,
    /// When logs of containers are rotated.
    pub log_limit: LogLimit,
    /// How long keepers may be silent.
    pub patience: Patience,
}

/// Where root file systems come from. Everything may block.
pub trait RootfsSource: Send + Sync {
    /// What the image says about running it.
    fn run_config(&self, image_id: &str) -> CriResult<ImageRunConfig>;
    /// Makes the directories of a container's overlay; the same ones again if they are there.
    fn prepare_rootfs(&self, image_id: &str, container_id: &str) -> CriResult<Rootfs>;
    /// Removes them; they are not mounted any more. Succeeds if there are none.
    fn release_rootfs(&self, container_id: &str) -> CriResult<()>;
    /// Ids of the containers that have one.
    fn prepared_rootfs(&self) -> CriResult<Vec<String>>;
}

impl RootfsSource for ImageStore {
    fn run_config(&self, image_id: &str) -> CriResult<ImageRunConfig> {
        Ok(ImageStore::run_config(self, image_id)?)
    }
    fn prepare_rootfs(&self, image_id: &str, container_id: &str) -> CriResult<Rootfs> {
        Ok(ImageStore::prepare_rootfs(self, image_id, &ContainerId(container_id.to_owned()))?)
    }
    fn release_rootfs(&self, container_id: &str) -> CriResult<()> {
        Ok(ImageStore::release_rootfs(self, &ContainerId(container_id.to_owned()))?)
    }
    fn prepared_rootfs(&self) -> CriResult<Vec<String>> {
        Ok(ImageStore::prepared_rootfs(self)?.into_iter().map(|id| id.0).collect())
    }
}

/// The engine.
pub struct EmbeddedRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    layout: Layout,
    cgroups: Cgroups,
    keeper: KeeperBinary,
    network: Arc<dyn PodNetwork>,
    images: Arc<dyn RootfsSource>,
    clock: Clock,
    rng: Mutex<Rng>,
    index: Mutex<Index>,
    /// One turn at a time for those who make the same thing, by its name.
    making: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    listeners: Mutex<Vec<mpsc::Sender<ContainerEvent>>>,
    held_capabilities: u64,
    log_limit: LogLimit,
    patience: Patience,
}

#[derive(Default)]
struct Index {
    sandboxes: BTreeMap<String, Arc<Sandbox>>,
    containers: BTreeMap<String, Arc<Container>>,
}

struct Sandbox {
    /// Its `phase` and `ips` are those it was read with; the live ones are in `state`.
    record: SandboxRecord,
    state: Mutex<SandboxState>,
    turn: tokio::sync::Mutex<()>,
    /// The keeper has been told to end: its going is no accident.
    ending: AtomicBool,
    /// Turns true when the keeper has said what runs: until then the disk alone speaks, which may be behind.
    met: watch::Sender<bool>,
    /// Turns true when the keeper has gone and what it left has been seen to.
    gone: watch::Sender<bool>,
    silence: silence::Silence,
}

#[derive(Debug, Clone)]
struct SandboxState {
    phase: SandboxPhase,
    ips: Vec<std::net::IpAddr>,
}

struct Container {
    record: ContainerRecord,
    phase: watch::Sender<Phase>,
    turn: tokio::sync::Mutex<()>,
    /// The stop signal has been sent.
    asked_to_stop: AtomicBool,
    resources: Mutex<LinuxContainerResources>,
}

/// Where a container is in its life; only forward.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Created,
    Running { pid: Option<u32>, started_at: Timestamp },
    Exited { started_at: Option<Timestamp>, exit: ExitRecord },
    Removed,
}

impl EmbeddedRuntime {
    /// Opens the engine: finds what an earlier daemon left, repairs what it left half done, and goes on.
    pub async fn open(
        config: RuntimeConfig,
        network: Arc<dyn PodNetwork>,
        images: Arc<dyn RootfsSource>,
        clock: Clock,
        rng: Rng,
    ) -> CriResult<Arc<Self>> {
        let layout = Layout { data: config.data_dir.clone(), run: config.run_dir.clone() };
        let inner = blocking(move || {
            for dir in [layout.sandboxes(), layout.containers(), layout.sandbox_runs()] {
                state::make_private_dir(&dir).map_err(failed("make", &dir))?;
            }
            let cgroups = Cgroups::open(&config.cgroup_root).map_err(internal)?;
            let keepers = cgroups.path(Path::new(KEEPERS_CGROUP)).map_err(internal)?;
            cgroups.create(&keepers, &LinuxContainerResources::default()).map_err(internal)?;
            let pods = cgroups.path(Path::new(PODS_CGROUP)).map_err(internal)?;
            cgroups.create(&pods, &all_pods(&machine_pids())).map_err(internal)?;
            Ok(Arc::new(Inner {
                layout,
                cgroups,
                keeper: KeeperBinary::load().map_err(internal)?,
                network,
                images,
                clock,
                rng: Mutex::new(rng),
                index: Mutex::default(),
                making: Mutex::default(),
                listeners: Mutex::default(),
                held_capabilities: held_capabilities(),
                log_limit: config.log_limit,
                patience: config.patience,
            }))
        })
        .await?;
        inner.recover().await?;
        Ok(Arc::new(EmbeddedRuntime { inner }))
    }
}

const KEEPERS_CGROUP: &str = "keepers";
/// The group of all Pods, by the name that upstream's node agent gives it.
const PODS_CGROUP: &str = "kubepods";

/// What all Pods may take together: of every ten processes that the machine can have one stays for others.
fn all_pods(machine_pids: &[i64]) -> LinuxContainerResources {
    let most = machine_pids.iter().min().map(|pids| pids - pids / 10);
    LinuxContainerResources { pids_limit: most, ..Default::default() }
}

/// What the kernel sets as limits of processes and threads.
fn machine_pids() -> Vec<i64> {
    let read =
        |name: &str| std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?.trim().parse().ok();
    ["pid_max", "threads-max"].into_iter().filter_map(read).collect()
}

impl Inner {
    fn sandbox(&self, id: &str) -> CriResult<Arc<Sandbox>> {
        let found = lock(&self.index).sandboxes.get(id).cloned();
        found.ok_or_else(|| {
            CriError::NotFound(format!("an error occurred when try to find sandbox: {id}: not found"))
        })
    }

    fn container(&self, id: &str) -> CriResult<Arc<Container>> {
        let found = lock(&self.index).containers.get(id).cloned();
        found.ok_or_else(|| {
            CriError::NotFound(format!("an error occurred when try to find container {id:?}: not found"))
        })
    }

    fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        lock(&self.index).containers.values().filter(|c| c.record.sandbox == sandbox).cloned().collect()
    }

    fn new_id(&self) -> String {
        let mut bytes = [0u8; 32];
        lock(&self.rng).fill(&mut bytes);
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The turn of whoever makes `name`.
    fn making(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut making = lock(&self.making);
        making.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(making.entry(name.to_owned()).or_default())
    }

    /// Tells everyone who listens. Who does not keep up loses the hint.
    fn tell(&self, kind: ContainerEventKind, pod_uid: &str, container: Option<&str>) {
        let event = ContainerEvent {
            kind,
            pod_uid: pod_uid.to_owned(),
            container: container.map(|id| ContainerId(id.to_owned())),
        };
        lock(&self.listeners).retain(|listener| {
            !matches!(listener.try_send(event.clone()), Err(mpsc::error::TrySendError::Closed(_)))
        });
    }
}

impl Container {
    fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// Moves forward; says whether it moved.
    fn advance(&self, to: Phase) -> bool {
        let rank = |phase: &Phase| match phase {
            Phase::Created => 0,
            Phase::Running { .. } => 1,
            Phase::Exited { .. } => 2,
            Phase::Removed => 3,
        };
        self.phase.send_if_modified(|phase| {
            let forward = rank(&to) > rank(phase);
            if forward {
                *phase = to;
            }
            forward
        })
    }

    /// Waits until its process has ended.
    async fn ended(&self) {
        let mut phase = self.phase.subscribe();
        // The sender is `self`, so the channel cannot close while this waits.
        let _ = phase.wait_for(|phase| matches!(phase, Phase::Exited { .. } | Phase::Removed)).await;
    }
}

/// Takes a lock whose data no panic can leave inconsistent: nothing fallible happens under it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs blocking work on a thread for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> CriResult<T> + Send + 'static) -> CriResult<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| CriError::Internal(format!("panicked: {error}")))?
}

/// Runs a change to its end, whatever becomes of the caller.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = CriResult<T>> + Send + 'static,
) -> CriResult<T> {
    tokio::spawn(work).await.map_err(|error| CriError::Internal(format!("panicked: {error}")))?
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn internal(error: io::Error) -> CriError {
    CriError::Internal(error.to_string())
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CriError {
    let path = path.to_owned();
    move |error| CriError::Internal(format!("{action} {}: {error}", path.display()))
}

/// The daemon's permitted capabilities; a container can get no others.
fn held_capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapPrm:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}
