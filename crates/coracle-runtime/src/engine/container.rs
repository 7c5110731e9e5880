//! Containers: made, started, stopped, removed, changed.

use std::path::{Component, Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coracle_clock::watch;
use coracle_cri::{
    ContainerConfig, ContainerEventKind, ContainerId, CriError, CriResult, ImageRunConfig,
    LinuxContainerResources, MountPropagation, NamespaceMode, PodSandboxId,
};
use coracle_keeper::{ExitRecord, MOUNTS_DIR, NAMESPACES_DIR, Reply, Request, Start};
use nix::sys::signal::Signal;

use crate::image::DeviceNodes;

use super::devices::host_devices;
use super::keeper::{Connection, LAUNCH_LIMIT};
use super::mounted::{owner_of, unmount_roots_of};
use super::rootfs::{Kind, Root, WantedUser};
use super::sandbox::SHM_DIR;
use super::spec::{self, Bind, Namespaces};
use super::state::{self, CONTAINER_FILE, ContainerRecord, RESOURCES_FILE, SPEC_FILE};
use super::{Container, Inner, Phase, Sandbox, blocking, failed, internal, lock};

/// What a keeper says that does not know how to be asked twice for the same start.
const ALREADY_RUNS: &str = "the container already runs";

impl Container {
    pub(super) fn new(
        record: ContainerRecord,
        phase: Phase,
        resources: LinuxContainerResources,
    ) -> Arc<Self> {
        Arc::new(Container {
            record,
            phase: watch::Sender::new(phase),
            turn: tokio::sync::Mutex::default(),
            asked_to_stop: AtomicBool::new(false),
            resources: Mutex::new(resources),
        })
    }
}

impl Inner {
    pub(super) async fn create(
        self: Arc<Self>,
        sandbox: PodSandboxId,
        config: ContainerConfig,
    ) -> CriResult<ContainerId> {
        let making = self.making(&format!("container/{sandbox}/{}/{}", config.name, config.attempt));
        let _turn = making.lock().await;
        let existing = self
            .containers_of(&sandbox.0)
            .into_iter()
            .find(|c| c.record.config.name == config.name && c.record.config.attempt == config.attempt);
        if let Some(existing) = existing {
            return Ok(ContainerId(existing.record.id.clone()));
        }
        let sandbox = self.sandbox(&sandbox.0)?;
        // The sandbox does not go while a container is made in it.
        let _sandbox_turn = sandbox.turn.lock().await;
        if !sandbox.is_ready() {
            return Err(CriError::FailedPrecondition(format!(
                "sandbox {} is not running",
                sandbox.record.id
            )));
        }
        let id = self.new_id();
        let (inner, within, copy) = (Arc::clone(&self), Arc::clone(&sandbox), id.clone());
        let container = blocking(move || {
            inner.make_container(&within, &copy, config).inspect_err(|_| {
                if let Err(leftover) = inner.clear_container(&copy, &within.record.cgroup.join(&copy)) {
                    tracing::warn!(container = %copy, error = %leftover, "a container that could not be made leaves something behind");
                }
            })
        })
        .await?;
        lock(&self.index).containers.insert(id.clone(), Arc::clone(&container));
        self.tell(ContainerEventKind::Created, &container.record.pod_uid, Some(&id));
        Ok(ContainerId(id))
    }

    fn make_container(
        &self,
        sandbox: &Sandbox,
        id: &str,
        config: ContainerConfig,
    ) -> CriResult<Arc<Container>> {
        let image = self.images.run_config(&config.image.image)?;
        let stop_signal = stop_signal(&config, &image)?;
        let log_path = log_path(&sandbox.record.config.log_directory, &config.log_path)?;
        let namespaces = self.namespaces(sandbox, &config)?;
        let own_pid_namespace = namespaces.pid.as_ref().is_some_and(|path| path.as_os_str().is_empty());
        let dir = self.layout.container(id);
        state::make_private_dir(&dir).map_err(failed("make", &dir))?;

        let rootfs = self.images.prepare_rootfs(&config.image.image, id)?;
        let privileged = config.security_context.privileged;
        let nodes = if privileged { DeviceNodes::Live } else { DeviceNodes::Dead };
        rootfs
            .mount(nodes)
            .map_err(|e| CriError::Internal(format!("failed to mount rootfs of the container: {e}")))?;
        let contents = self.mount_contents(id, &config)?;
        let prepared = self.prepare_root(sandbox, &config, &image, &rootfs.merged, contents)?;
        if config.security_context.readonly_rootfs {
            rootfs.make_readonly(nodes).map_err(|e| {
                CriError::Internal(format!("failed to make rootfs of the container read-only: {e}"))
            })?;
        }

        let cgroup = sandbox.record.cgroup.join(id);
        let cgroup_path = self.cgroups.path(&cgroup).map_err(internal)?;
        self.cgroups.create(&cgroup_path, &config.resources).map_err(internal)?;
        if !privileged {
            self.cgroups.restrict_devices(&cgroup_path).map_err(internal)?;
        }
        let devices = if privileged { host_devices(Path::new("/dev")) } else { Vec::new() };
        let specification = spec::specification(&spec::Input {
            config: &config,
            image: &image,
            user: &prepared.user,
            rootfs: &rootfs.merged,
            cwd: &prepared.cwd,
            hostname: &sandbox.record.config.hostname,
            binds: &prepared.binds,
            namespaces: &namespaces,
            cgroup: &cgroup_path.absolute(),
            cgroup_v2: self.cgroups.is_v2(),
            cgroup_views: &self.cgroups.views(&cgroup_path),
            devices_restricted: self.cgroups.restricts_devices(),
            held_capabilities: self.held_capabilities,
            devices: &devices,
        })?;
        let text = serde_json::to_vec(&specification).map_err(|e| internal(e.into()))?;
        std::fs::write(dir.join(SPEC_FILE), text).map_err(failed("write", &dir.join(SPEC_FILE)))?;

        let resources = config.resources.clone();
        let record = ContainerRecord {
            id: id.to_owned(),
            sandbox: sandbox.record.id.clone(),
            pod_uid: sandbox.record.config.metadata.uid.clone(),
            image_ref: config.image.image.clone(),
            config,
            created_at: self.clock.now(),
            log_path,
            user: prepared.user,
            stop_signal,
            rootfs: rootfs.merged,
            cgroup,
            own_pid_namespace,
        };
        state::store(&dir, CONTAINER_FILE, &record).map_err(internal)?;
        Ok(Container::new(record, Phase::Created, resources))
    }

    fn namespaces(&self, sandbox: &Sandbox, config: &ContainerConfig) -> CriResult<Namespaces> {
        let pins = self.layout.sandbox_run(&sandbox.record.id).join(NAMESPACES_DIR);
        let pod = &sandbox.record.config.namespaces;
        let pid = match &config.security_context.namespaces.pid {
            NamespaceMode::Node => None,
            NamespaceMode::Container => Some(PathBuf::new()),
            NamespaceMode::Pod if pod.pid == NamespaceMode::Pod => Some(pins.join("pid")),
            NamespaceMode::Pod => {
                return Err(CriError::InvalidArgument(
                    "the sandbox has no process namespace to share".to_owned(),
                ));
            }
            NamespaceMode::Target(target) => match self.container(&target.0)?.phase() {
                Phase::Running { pid: Some(pid), .. } => Some(PathBuf::from(format!("/proc/{pid}/ns/pid"))),
                _ => return Err(CriError::FailedPrecondition(format!("container {target} does not run"))),
            },
        };
        Ok(Namespaces { pid })
    }

    /// Mounts the images whose content the container is to see, for this container alone.
    fn mount_contents(&self, id: &str, config: &ContainerConfig) -> CriResult<Vec<Bind>> {
        let mut binds = Vec::new();
        for (index, mount) in config.mounts.iter().enumerate() {
            let Some(content) = &mount.image else { continue };
            let root = self.images.prepare_rootfs(&content.image.image, &format!("{id}-{index}"))?;
            let bad = |what: &str, e: std::io::Error| CriError::Internal(format!("{what} of an image: {e}"));
            root.mount_content().map_err(|e| bad("failed to mount the content", e))?;
            let part = Path::new(&content.sub_path);
            let place = Root::open(&root.merged)
                .and_then(|within| within.find(part))
                .map_err(|e| bad(&format!("failed to find {:?} in the content", content.sub_path), e))?;
            binds.push(Bind {
                source: root.merged.components().chain(place.components()).collect(),
                destination: mount.container_path.clone(),
                readonly: true,
                recursive_readonly: false,
                inert: true,
                propagation: mount.propagation,
            });
        }
        Ok(binds)
    }

    /// Makes the mounted root file system ready, and learns from it.
    fn prepare_root(
        &self,
        sandbox: &Sandbox,
        config: &ContainerConfig,
        image: &ImageRunConfig,
        mounted: &Path,
        contents: Vec<Bind>,
    ) -> CriResult<Prepared> {
        let root = Root::open(mounted).map_err(failed("open", mounted))?;
        let bad = |what: &str, e: std::io::Error| CriError::Internal(format!("{what}: {e}"));
        for name in ["dev", "proc", "sys"] {
            root.force_directory(name).map_err(|e| bad("prepare rootfs", e))?;
        }
        let mut binds = contents;
        for mount in config.mounts.iter().filter(|mount| mount.image.is_none()) {
            if !mount.host_path.exists() {
                std::fs::create_dir_all(&mount.host_path).map_err(failed("make", &mount.host_path))?;
            }
            let source = mount.host_path.canonicalize().map_err(failed("resolve", &mount.host_path))?;
            binds.push(Bind {
                source,
                destination: mount.container_path.clone(),
                readonly: mount.readonly,
                recursive_readonly: mount.recursive_readonly,
                inert: false,
                propagation: mount.propagation,
            });
        }
        let dir = self.layout.sandbox(&sandbox.record.id);
        let shm = match sandbox.record.config.namespaces.ipc {
            NamespaceMode::Node => PathBuf::from("/dev/shm"),
            _ => self.layout.sandbox_run(&sandbox.record.id).join(MOUNTS_DIR).join(SHM_DIR),
        };
        let readonly = config.security_context.readonly_rootfs;
        for (source, destination, readonly) in [
            (shm, "/dev/shm", false),
            (dir.join("resolv.conf"), "/etc/resolv.conf", readonly),
            (dir.join("hostname"), "/etc/hostname", readonly),
        ] {
            if !binds.iter().any(|b| b.destination == Path::new(destination)) {
                let propagation = MountPropagation::Private;
                let (recursive_readonly, inert) = (false, false);
                let destination = destination.into();
                binds.push(Bind { source, destination, readonly, recursive_readonly, inert, propagation });
            }
        }
        for bind in &mut binds {
            let kind = if bind.source.is_dir() { Kind::Directory } else { Kind::File };
            bind.destination = if in_kernel_file_system(&bind.destination)? {
                // Made by the OCI library in a file system that is not the image's.
                bind.destination.clone()
            } else {
                let what = format!("mount point {}", bind.destination.display());
                root.make(&bind.destination, kind).map_err(|e| bad(&what, e))?
            };
            // Where it really is: a link of the image may lead there.
            not_over_proc(&bind.destination)?;
        }
        let cwd = match (config.working_dir.as_str(), image.working_dir.as_str()) {
            ("", "") => "/",
            ("", dir) | (dir, _) => dir,
        };
        if !cwd.starts_with('/') {
            return Err(CriError::InvalidArgument(format!("working directory {cwd:?} is not absolute")));
        }
        let cwd = if in_kernel_file_system(Path::new(cwd))? {
            PathBuf::from(cwd)
        } else {
            root.make(Path::new(cwd), Kind::Directory).map_err(|e| bad("working directory", e))?
        };
        let security = &config.security_context;
        let user = root
            .resolve_user(&WantedUser {
                uid: security.run_as_user,
                gid: security.run_as_group,
                user: Some(image.user.clone()),
                supplemental_groups: security.supplemental_groups.clone(),
                strict_groups: security.strict_groups,
            })
            .map_err(internal)?;
        Ok(Prepared { user, cwd, binds })
    }

    pub(super) async fn start(self: Arc<Self>, id: ContainerId) -> CriResult<()> {
        let container = self.container(&id.0)?;
        let _turn = container.turn.lock().await;
        match container.phase() {
            Phase::Created => {}
            Phase::Running { .. } => return Ok(()),
            Phase::Exited { .. } => {
                return Err(CriError::FailedPrecondition(format!("container {id} has exited")));
            }
            Phase::Removed => return Err(CriError::NotFound(format!("container {id} is removed"))),
        }
        let record = &container.record;
        self.met(&record.sandbox).await?;
        let cgroup = self.cgroups.path(&record.cgroup).map_err(internal)?;
        let request = Start {
            container: record.id.clone(),
            dir: self.layout.container(&record.id),
            oci_root: self.layout.oci_root(&record.sandbox),
            log_path: record.log_path.clone(),
            tty: record.config.tty,
            stdin: record.config.stdin,
            stdin_once: record.config.stdin_once,
            uid: u32::try_from(record.user.uid).unwrap_or(0),
            cgroup_procs: self.cgroups.procs(&cgroup),
            oom_file: self.cgroups.oom_file(&cgroup),
            oom_score_adj: record.config.resources.oom_score_adj,
            log_limit: Some(self.log_limit),
            kill_stragglers: !record.own_pid_namespace,
        };
        let run = self.layout.sandbox_run(&record.sandbox);
        let mut keeper = Connection::ask(&run, Request::Start(Box::new(request)), &[])?;
        match keeper.reply_within(&self.clock, LAUNCH_LIMIT).await? {
            Reply::Failed { message } if message != ALREADY_RUNS => {
                let exit = self.record_failed_start(record, &message);
                self.exited(&container, exit);
                Err(CriError::Internal(message))
            }
            reply => {
                let start = state::load_start(&self.layout.container(&record.id)).ok().flatten();
                let pid = match (&reply, &start) {
                    (Reply::Started { pid }, _) => Some(*pid),
                    (_, Some(start)) => Some(start.pid),
                    (_, None) => None,
                };
                let started_at =
                    start.map_or_else(|| self.clock.now(), |start| state::timestamp(start.started_at));
                let pid = pid.and_then(|pid| u32::try_from(pid).ok());
                container.advance(Phase::Running { pid, started_at });
                self.tell(ContainerEventKind::Started, &record.pod_uid, Some(&record.id));
                Ok(())
            }
        }
    }

    /// The keeper writes this down itself, unless it did not come so far.
    fn record_failed_start(&self, record: &ContainerRecord, message: &str) -> ExitRecord {
        let dir = self.layout.container(&record.id);
        if let Ok(Some(exit)) = state::load_exit(&dir) {
            return exit;
        }
        let exit = ExitRecord {
            exit_code: 128,
            oom_killed: false,
            finished_at: state::nanos(self.clock.now()),
            start_error: Some(message.to_owned()),
            unseen: false,
        };
        self.write_down(&record.id, &exit);
        exit
    }

    pub(super) async fn remove(self: Arc<Self>, container: Arc<Container>) -> CriResult<()> {
        let _turn = container.turn.lock().await;
        if container.phase() == Phase::Removed {
            return Ok(());
        }
        self.stop(&container, Duration::ZERO).await?;
        let (inner, copy) = (Arc::clone(&self), Arc::clone(&container));
        blocking(move || inner.clear_container(&copy.record.id, &copy.record.cgroup)).await?;
        lock(&self.index).containers.remove(&container.record.id);
        container.advance(Phase::Removed);
        self.tell(ContainerEventKind::Deleted, &container.record.pod_uid, Some(&container.record.id));
        Ok(())
    }

    /// Takes back all that a container has, at whatever point its making or removing stopped.
    pub(super) fn clear_container(&self, id: &str, cgroup: &Path) -> CriResult<()> {
        let dir = self.layout.container(id);
        // First the record: from here on it is a leftover, whatever happens.
        match std::fs::remove_file(dir.join(CONTAINER_FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(internal(error)),
            Ok(()) | Err(_) => {}
        }
        let cgroup = self.cgroups.path(cgroup).map_err(internal)?;
        self.cgroups.kill(&cgroup).map_err(internal)?;
        self.cgroups.remove(&cgroup).map_err(internal)?;
        unmount_roots_of(id).map_err(internal)?;
        self.images.release_rootfs(id)?;
        for content in self.images.prepared_rootfs()?.iter().filter(|name| owner_of(name) == id) {
            self.images.release_rootfs(content)?;
        }
        state::remove_tree(&dir).map_err(failed("remove", &dir))
    }

    pub(super) async fn update(
        self: Arc<Self>,
        id: ContainerId,
        changed: LinuxContainerResources,
    ) -> CriResult<()> {
        let container = self.container(&id.0)?;
        let _turn = container.turn.lock().await;
        let container = Arc::clone(&container);
        blocking(move || {
            let cgroup = self.cgroups.path(&container.record.cgroup).map_err(internal)?;
            self.cgroups.update(&cgroup, &changed).map_err(internal)?;
            let merged = merge(&lock(&container.resources), changed);
            state::store(&self.layout.container(&id.0), RESOURCES_FILE, &merged).map_err(internal)?;
            *lock(&container.resources) = merged;
            Ok(())
        })
        .await
    }

    pub(super) async fn reopen_log(&self, id: &ContainerId) -> CriResult<()> {
        let container = self.container(&id.0)?;
        if !matches!(container.phase(), Phase::Running { .. }) {
            return Err(CriError::FailedPrecondition(format!("container {id} is not running")));
        }
        let run = self.layout.sandbox_run(&container.record.sandbox);
        let request = Request::ReopenLog { container: id.0.clone() };
        let mut keeper = Connection::ask(&run, request, &[])?;
        match keeper.reply_within(&self.clock, self.patience.answer).await? {
            Reply::Failed { message } => Err(CriError::Internal(message)),
            _ => Ok(()),
        }
    }
}

struct Prepared {
    user: coracle_cri::ContainerUser,
    cwd: PathBuf,
    binds: Vec<Bind>,
}

fn merge(old: &LinuxContainerResources, new: LinuxContainerResources) -> LinuxContainerResources {
    let old = old.clone();
    let mut unified = old.unified;
    unified.extend(new.unified);
    LinuxContainerResources {
        cpu_period: new.cpu_period.or(old.cpu_period),
        cpu_quota: new.cpu_quota.or(old.cpu_quota),
        cpu_shares: new.cpu_shares.or(old.cpu_shares),
        memory_limit_in_bytes: new.memory_limit_in_bytes.or(old.memory_limit_in_bytes),
        oom_score_adj: new.oom_score_adj.or(old.oom_score_adj),
        cpuset_cpus: new.cpuset_cpus.or(old.cpuset_cpus),
        pids_limit: new.pids_limit.or(old.pids_limit),
        unified,
    }
}

/// `/dev`, `/proc` and `/sys` are mounted over in the container: what lies in them is not the image's.
fn in_kernel_file_system(path: &Path) -> CriResult<bool> {
    if path.components().any(|c| c == Component::ParentDir) {
        return Err(CriError::InvalidArgument(format!("path {:?} contains \"..\"", path.display())));
    }
    Ok(["/dev", "/proc", "/sys"].iter().any(|top| path.starts_with(top)))
}

/// Files in `/proc` that may have something mounted over them: programs look there for what there is of a resource,
/// and others show them what there is for a container.
const PROC_FILES: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/net/dev",
];

/// Refuses a mount in `/proc`: what is written there in good faith must not end up elsewhere (CVE-2025-52881).
fn not_over_proc(path: &Path) -> CriResult<()> {
    if path.starts_with("/proc") && !PROC_FILES.iter().any(|file| path == Path::new(file)) {
        let message = format!("mount point {} is inside /proc: nothing may be mounted there", path.display());
        return Err(CriError::InvalidArgument(message));
    }
    Ok(())
}

fn log_path(directory: &Path, name: &Path) -> CriResult<PathBuf> {
    if name.as_os_str().is_empty() || directory.as_os_str().is_empty() {
        return Ok(PathBuf::from("/dev/null"));
    }
    if !name.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(CriError::InvalidArgument(format!("invalid log path {:?}", name.display())));
    }
    let path = directory.join(name);
    let parent = path.parent().unwrap_or(directory);
    std::fs::create_dir_all(parent).map_err(failed("make", parent))?;
    Ok(path)
}

fn stop_signal(config: &ContainerConfig, image: &ImageRunConfig) -> CriResult<i32> {
    let name = match (config.stop_signal.as_str(), image.stop_signal.as_str()) {
        ("", "") => return Ok(libc::SIGTERM),
        ("", name) | (name, _) => name,
    };
    let unknown = || CriError::InvalidArgument(format!("unknown signal {name:?}"));
    if let Ok(number) = name.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = bare.strip_prefix("RTMIN") {
        let offset: i32 = offset
            .trim_start_matches("PLUS")
            .trim_start_matches('+')
            .parse()
            .or_else(|e| if offset.is_empty() { Ok(0) } else { Err(e) })
            .map_err(|_| unknown())?;
        return Some(34 + offset).filter(|n| (34..=64).contains(n)).ok_or_else(unknown);
    }
    if let Some(offset) = bare.strip_prefix("RTMAX") {
        let offset: i32 = offset
            .trim_start_matches("MINUS")
            .trim_start_matches('-')
            .parse()
            .or_else(|e| if offset.is_empty() { Ok(0) } else { Err(e) })
            .map_err(|_| unknown())?;
        return Some(64 - offset).filter(|n| (34..=64).contains(n)).ok_or_else(unknown);
    }
    let bare = match bare {
        "CLD" => "CHLD",
        "IOT" => "ABRT",
        "POLL" => "IO",
        other => other,
    };
    format!("SIG{bare}").parse::<Signal>().map(|signal| signal as i32).map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_are_names_or_numbers() {
        let signal = |name: &str| {
            stop_signal(
                &ContainerConfig { stop_signal: name.into(), ..Default::default() },
                &ImageRunConfig::default(),
            )
        };
        assert_eq!(signal(""), Ok(15));
        assert_eq!(signal("SIGQUIT"), Ok(3));
        assert_eq!(signal("usr1"), Ok(10));
        assert_eq!(signal("9"), Ok(9));
        assert_eq!(signal("SIGRTMIN+3"), Ok(37));
        assert_eq!(signal("SIGRTMAX-1"), Ok(63));
        // As the API names them.
        assert_eq!((signal("SIGRTMINPLUS15"), signal("SIGRTMAXMINUS14")), (Ok(49), Ok(50)));
        assert_eq!((signal("SIGCLD"), signal("SIGIOT"), signal("SIGPOLL")), (Ok(17), Ok(6), Ok(29)));
        assert!(signal("SIGFOO").is_err());
        // What the image says counts where the container says nothing.
        let image = ImageRunConfig { stop_signal: "SIGQUIT".into(), ..Default::default() };
        assert_eq!(stop_signal(&ContainerConfig::default(), &image), Ok(3));
        let own = ContainerConfig { stop_signal: "SIGUSR1".into(), ..Default::default() };
        assert_eq!(stop_signal(&own, &image), Ok(10));
    }

    #[test]
    fn log_paths_stay_in_their_directory() {
        assert_eq!(log_path(Path::new(""), Path::new("")).unwrap(), Path::new("/dev/null"));
        assert!(log_path(Path::new("/nowhere"), Path::new("../x.log")).is_err());
        assert!(log_path(Path::new("/nowhere"), Path::new("/etc/x")).is_err());
    }
}
