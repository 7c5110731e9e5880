//! Sandboxes: made, stopped, removed, watched over.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coracle_clock::watch;
use coracle_cri::{
    ContainerEventKind, CriError, CriResult, DnsConfig, NamespaceMode, PodNetworkRequest, PodSandboxConfig,
    PodSandboxId,
};
use coracle_keeper::{MOUNTS_DIR, NAMESPACES_DIR, Reply, Request, SETUP_FILE, SandboxSetup};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use super::keeper::{Connection, NoAnswer};
use super::rootfs::unmount_all;
use super::silence::Silence;
use super::state::{self, SANDBOX_FILE, SandboxPhase, SandboxRecord};
use super::{Inner, KEEPERS_CGROUP, Sandbox, SandboxState, blocking, failed, internal, lock};

/// Size of `/dev/shm`, as containerd has it.
const SHM_OPTIONS: &std::ffi::CStr = c"mode=700,size=67108864";

/// The Pod's `/dev/shm` in its mounts.
pub(super) const SHM_DIR: &str = "shm";

/// How long one may take that keeps nothing: of a sandbox that was not made to the end, for example.
const SHUT_LIMIT: Duration = Duration::from_secs(5);

impl Sandbox {
    pub(super) fn new(record: SandboxRecord) -> Arc<Self> {
        let state = SandboxState { phase: record.phase, ips: record.ips.clone() };
        Arc::new(Sandbox {
            record,
            state: Mutex::new(state),
            turn: tokio::sync::Mutex::default(),
            ending: AtomicBool::new(false),
            met: watch::Sender::new(false),
            gone: watch::Sender::new(false),
            silence: Silence::default(),
        })
    }

    pub(super) fn is_ready(&self) -> bool {
        lock(&self.state).phase == SandboxPhase::Ready
    }

    pub(super) fn own_network(&self) -> bool {
        own_network(&self.record.config)
    }
}

pub(super) fn own_network(config: &PodSandboxConfig) -> bool {
    config.namespaces.network != NamespaceMode::Node
}

fn own_ipc(config: &PodSandboxConfig) -> bool {
    config.namespaces.ipc != NamespaceMode::Node
}

impl Inner {
    pub(super) async fn run_sandbox(self: Arc<Self>, config: PodSandboxConfig) -> CriResult<PodSandboxId> {
        let metadata = &config.metadata;
        let making = self.making(&format!("sandbox/{}/{}", metadata.uid, metadata.attempt));
        let _turn = making.lock().await;
        let existing = lock(&self.index)
            .sandboxes
            .values()
            .find(|s| {
                s.record.config.metadata.uid == metadata.uid
                    && s.record.config.metadata.attempt == metadata.attempt
            })
            .cloned();
        if let Some(existing) = existing {
            return Ok(PodSandboxId(existing.record.id.clone()));
        }
        check_sysctls(&config)?;

        let id = self.new_id();
        let cgroup = match config.cgroup_parent.as_str() {
            "" => PathBuf::from(format!("pods/{id}")),
            parent => PathBuf::from(parent),
        };
        let mut record = SandboxRecord {
            id: id.clone(),
            config,
            created_at: self.clock.now(),
            cgroup,
            phase: SandboxPhase::Creating,
            ips: Vec::new(),
        };
        let mut child = None;
        match self.make_sandbox(&mut record, &mut child).await {
            Ok(events) => {
                let sandbox = Sandbox::new(record);
                sandbox.met.send_replace(true);
                lock(&self.index).sandboxes.insert(id.clone(), Arc::clone(&sandbox));
                self.watch_keeper(sandbox, Some(events), child);
                Ok(PodSandboxId(id))
            }
            Err(error) => {
                if let Some(mut child) = child {
                    // It keeps nothing yet. What is not waited for stays as a zombie.
                    let reaped = blocking(move || {
                        child.kill().map_err(internal)?;
                        child.wait().map_err(internal)
                    });
                    if let Err(error) = reaped.await {
                        tracing::warn!(sandbox = %id, %error, "a keeper is left over");
                    }
                }
                if let Err(leftover) = self.take_back(&record).await {
                    tracing::warn!(sandbox = %id, error = %leftover, "a sandbox that could not be made leaves something behind");
                }
                Err(error)
            }
        }
    }

    async fn make_sandbox(
        self: &Arc<Self>,
        record: &mut SandboxRecord,
        child: &mut Option<Child>,
    ) -> CriResult<Connection> {
        let (inner, copy) = (Arc::clone(self), record.clone());
        *child = Some(blocking(move || inner.prepare_sandbox(&copy)).await?);
        let run = self.layout.sandbox_run(&record.id);
        let mut events = Connection::ask(&run, Request::Subscribe, &[])?;
        match events.reply_within(&self.clock, self.patience.answer).await {
            Ok(Reply::Hello { .. }) => {}
            Ok(Reply::Failed { message }) => {
                return Err(CriError::Internal(format!("failed to set up sandbox: {message}")));
            }
            Ok(_) | Err(NoAnswer::Gone) => {
                let said = std::fs::read_to_string(run.join("keeper.log")).unwrap_or_default();
                return Err(CriError::Internal(format!("failed to set up sandbox: {}", said.trim())));
            }
            Err(reason) => return Err(reason.into()),
        }
        if own_network(&record.config) {
            let status = self
                .network
                .setup(&PodNetworkRequest {
                    sandbox: PodSandboxId(record.id.clone()),
                    netns: self.netns(&record.id),
                    pod_namespace: record.config.metadata.namespace.clone(),
                    pod_name: record.config.metadata.name.clone(),
                    port_mappings: record.config.port_mappings.clone(),
                })
                .await?;
            record.ips = status.ips;
        }
        record.phase = SandboxPhase::Ready;
        let (dir, copy) = (self.layout.sandbox(&record.id), record.clone());
        blocking(move || state::store(&dir, SANDBOX_FILE, &copy).map_err(internal)).await?;
        Ok(events)
    }

    /// Directories, files, control group and keeper.
    fn prepare_sandbox(&self, record: &SandboxRecord) -> CriResult<Child> {
        let (dir, run) = (self.layout.sandbox(&record.id), self.layout.sandbox_run(&record.id));
        state::make_private_dir(&dir).map_err(failed("make", &dir))?;
        state::make_private_dir(&run).map_err(failed("make", &run))?;
        state::store(&dir, SANDBOX_FILE, record).map_err(internal)?;

        let config = &record.config;
        if !config.log_directory.as_os_str().is_empty() {
            std::fs::create_dir_all(&config.log_directory).map_err(failed("make", &config.log_directory))?;
        }
        let resolv_conf = resolv_conf(&config.dns_config)
            .unwrap_or_else(|| std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
        let hostname = if own_network(config) {
            config.hostname.clone()
        } else {
            rustix::system::uname().nodename().to_string_lossy().into_owned()
        };
        for (name, text) in [("resolv.conf", resolv_conf), ("hostname", format!("{hostname}\n"))] {
            // Readable by every user of the container, in a directory that only root enters.
            std::fs::write(dir.join(name), text).map_err(failed("write", &dir.join(name)))?;
        }
        let mounts = run.join(MOUNTS_DIR);
        state::make_private_dir(&mounts).map_err(failed("make", &mounts))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("shm", &mounts, "tmpfs", flags, Some(SHM_OPTIONS))
            .map_err(|e| failed("mount", &mounts)(e.into()))?;
        // What is mounted here later stays here, and goes with it.
        mount_change(&mounts, MountPropagationFlags::PRIVATE)
            .map_err(|e| failed("mount", &mounts)(e.into()))?;
        let shm = mounts.join(SHM_DIR);
        std::fs::create_dir(&shm).map_err(failed("make", &shm))?;
        std::fs::set_permissions(&shm, Permissions::from_mode(0o1777)).map_err(failed("make", &shm))?;
        let cgroup = self.cgroups.path(&record.cgroup).map_err(internal)?;
        let made = self.cgroups.create(&cgroup, &config.resources);
        made.map_err(|why| CriError::Cgroup(why.to_string()))?;

        let keepers = self.cgroups.path(Path::new(KEEPERS_CGROUP)).map_err(internal)?;
        let setup = SandboxSetup {
            hostname: config.hostname.clone(),
            own_network: own_network(config),
            own_ipc: own_ipc(config),
            shared_pid: config.namespaces.pid == NamespaceMode::Pod,
            sysctls: config.sysctls.clone(),
            cgroup_procs: self.cgroups.procs(&keepers),
        };
        let text = serde_json::to_vec(&setup).map_err(|e| internal(e.into()))?;
        std::fs::write(run.join(SETUP_FILE), text).map_err(failed("write", &run))?;
        self.keeper.spawn(&run).map_err(|e| CriError::Internal(format!("start a keeper: {e}")))
    }

    pub(super) fn netns(&self, sandbox: &str) -> PathBuf {
        self.layout.sandbox_run(sandbox).join(NAMESPACES_DIR).join("net")
    }

    pub(super) async fn mark_stopped(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let ips = {
            let mut state = lock(&sandbox.state);
            state.phase = SandboxPhase::Stopped;
            state.ips.clone()
        };
        let record = SandboxRecord { phase: SandboxPhase::Stopped, ips, ..sandbox.record.clone() };
        let dir = self.layout.sandbox(&record.id);
        if let Err(error) =
            blocking(move || state::store(&dir, SANDBOX_FILE, &record).map_err(internal)).await
        {
            tracing::error!(sandbox = %sandbox.record.id, %error, "cannot write down that a sandbox has stopped");
        }
    }

    pub(super) async fn stop_sandbox(self: Arc<Self>, id: PodSandboxId) -> CriResult<()> {
        let Ok(sandbox) = self.sandbox(&id.0) else { return Ok(()) };
        let _turn = sandbox.turn.lock().await;
        self.stop_sandbox_in_turn(&sandbox).await
    }

    async fn stop_sandbox_in_turn(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> CriResult<()> {
        let containers = self.containers_of(&sandbox.record.id);
        futures::future::try_join_all(containers.iter().map(|c| self.stop(c, Duration::ZERO))).await?;
        if self.layout.sandbox_run(&sandbox.record.id).exists() {
            self.end_keeper(sandbox).await?;
            if sandbox.own_network() {
                self.network.teardown(&PodSandboxId(sandbox.record.id.clone())).await?;
            }
            let (inner, id) = (Arc::clone(self), sandbox.record.id.clone());
            blocking(move || inner.remove_run_dir(&id)).await?;
        }
        if sandbox.is_ready() {
            self.mark_stopped(sandbox).await;
            self.tell(ContainerEventKind::SandboxChanged, &sandbox.record.config.metadata.uid, None);
        }
        Ok(())
    }

    /// Tells the keeper to end and waits until it has.
    async fn end_keeper(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> CriResult<()> {
        if *sandbox.gone.borrow() {
            return Ok(());
        }
        sandbox.ending.store(true, Ordering::Release);
        let run = self.layout.sandbox_run(&sandbox.record.id);
        let mut gone = sandbox.gone.subscribe();
        if sandbox.silence.refusal().is_none() {
            match Connection::ask(&run, Request::Shutdown, &[]) {
                // Its connections are full: it has been silent for long.
                Ok(_) | Err(NoAnswer::Silent) => {}
                // No keeper: there is nothing to end.
                Err(NoAnswer::Gone) => return Ok(()),
                Err(reason) => return Err(reason.into()),
            }
            if self.clock.timeout(self.patience.at_end, gone.wait_for(|gone| *gone)).await.is_some() {
                return Ok(());
            }
            // One that answers waits for processes that the kernel does not let go: without it they would not end
            // either.
            match self.meet(sandbox).await {
                Err(NoAnswer::Silent | NoAnswer::Refused(_)) => {}
                _ => {
                    return Err(CriError::DeadlineExceeded("the sandbox's keeper does not end".to_owned()));
                }
            }
        }
        self.end_by_force(sandbox).await?;
        let ended = self.clock.timeout(self.patience.answer, gone.wait_for(|gone| *gone)).await;
        ended.map(|_| ()).ok_or_else(|| {
            CriError::DeadlineExceeded("the sandbox's keeper has been killed and does not end".to_owned())
        })
    }

    pub(super) fn remove_run_dir(&self, id: &str) -> CriResult<()> {
        let run = self.layout.sandbox_run(id);
        let mounts = run.join(MOUNTS_DIR);
        unmount_all(&mounts).map_err(failed("unmount", &mounts))?;
        state::remove_tree(&run).map_err(failed("remove", &run))
    }

    pub(super) async fn remove_sandbox(self: Arc<Self>, id: PodSandboxId) -> CriResult<()> {
        let Ok(sandbox) = self.sandbox(&id.0) else { return Ok(()) };
        let _turn = sandbox.turn.lock().await;
        self.stop_sandbox_in_turn(&sandbox).await?;
        for container in self.containers_of(&id.0) {
            Arc::clone(&self).remove(container).await?;
        }
        self.take_back(&sandbox.record).await?;
        lock(&self.index).sandboxes.remove(&id.0);
        Ok(())
    }

    /// Ends the keeper of a sandbox that nobody watches, if there is one. It keeps nothing that matters, so one
    /// that does not hear is killed soon.
    pub(super) async fn shut_keeper(self: &Arc<Self>, sandbox: &str) -> CriResult<()> {
        let run = self.layout.sandbox_run(sandbox);
        if !run.exists() {
            return Ok(());
        }
        let asked = match Connection::ask(&run, Request::Shutdown, &[]) {
            // Until it has closed its side.
            Ok(mut keeper) => keeper.reply_within(&self.clock, SHUT_LIMIT).await,
            Err(reason) => Err(reason),
        };
        match asked {
            // It may be there although nobody listens: somebody removed its socket.
            Ok(Reply::Failed { .. }) | Err(NoAnswer::Silent | NoAnswer::Gone) => {
                self.kill_keeper(sandbox).await
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Takes back all that a sandbox has, at whatever point its making or removing stopped.
    pub(super) async fn take_back(self: &Arc<Self>, record: &SandboxRecord) -> CriResult<()> {
        self.shut_keeper(&record.id).await?;
        if own_network(&record.config) {
            self.network.teardown(&PodSandboxId(record.id.clone())).await?;
        }
        let (inner, id, cgroup) = (Arc::clone(self), record.id.clone(), record.cgroup.clone());
        blocking(move || {
            let dir = inner.layout.sandbox(&id);
            inner.kill_group(&id, &cgroup)?;
            if !inner.shares_group(&id, &cgroup) {
                inner.cgroups.remove(&inner.cgroups.path(&cgroup).map_err(internal)?).map_err(internal)?;
            }
            inner.remove_run_dir(&id)?;
            // First the record: from here on it is a leftover, whatever happens.
            match std::fs::remove_file(dir.join(SANDBOX_FILE)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(internal(error)),
                Ok(()) | Err(_) => {}
            }
            state::remove_tree(&dir).map_err(failed("remove", &dir))
        })
        .await
    }

    /// Kills what a sandbox has in its control group. That is the Pod's, so another sandbox of the Pod may have
    /// processes there: then only the containers of this one end.
    pub(super) fn kill_group(&self, id: &str, group: &Path) -> CriResult<()> {
        if !self.shares_group(id, group) {
            return self.cgroups.kill(&self.cgroups.path(group).map_err(internal)?).map_err(internal);
        }
        for container in self.containers_of(id) {
            let own = self.cgroups.path(&container.record.cgroup).map_err(internal)?;
            self.cgroups.kill(&own).map_err(internal)?;
        }
        Ok(())
    }

    fn shares_group(&self, id: &str, group: &Path) -> bool {
        lock(&self.index).sandboxes.values().any(|s| s.record.id != id && s.record.cgroup == group)
    }
}

/// The text of `/etc/resolv.conf`; `None` leaves the node's.
fn resolv_conf(dns: &DnsConfig) -> Option<String> {
    if *dns == DnsConfig::default() {
        return None;
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    Some(text)
}

/// Only what belongs to namespaces of the Pod may be set.
fn check_sysctls(config: &PodSandboxConfig) -> CriResult<()> {
    let own: BTreeMap<&str, bool> = [
        ("net.", own_network(config)),
        ("kernel.shm", own_ipc(config)),
        ("kernel.msg", own_ipc(config)),
        ("kernel.sem", own_ipc(config)),
        ("fs.mqueue.", own_ipc(config)),
    ]
    .into();
    for name in config.sysctls.keys() {
        let safe = !name.contains("..") && !name.contains('/');
        if !safe || !own.iter().any(|(prefix, own)| *own && name.starts_with(prefix)) {
            return Err(CriError::InvalidArgument(format!(
                "sysctl {name:?} is not in a separate kernel namespace"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_written_in_upstreams_order() {
        let dns = DnsConfig {
            servers: vec!["10.96.0.10".into()],
            searches: vec!["default.svc.cluster.local".into(), "cluster.local".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(&dns).unwrap(),
            "search default.svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
        assert_eq!(resolv_conf(&DnsConfig::default()), None);
    }

    #[test]
    fn only_the_pods_own_kernel_parameters_may_be_set() {
        let check = |name: &str, network: NamespaceMode| {
            let mut config = PodSandboxConfig {
                sysctls: [(name.to_owned(), "1".to_owned())].into(),
                ..Default::default()
            };
            config.namespaces.network = network;
            check_sysctls(&config).is_ok()
        };
        assert!(check("net.ipv4.ip_forward", NamespaceMode::Pod));
        assert!(!check("net.ipv4.ip_forward", NamespaceMode::Node));
        assert!(!check("kernel.hostname", NamespaceMode::Pod));
        assert!(!check("net.../../kernel/core_pattern", NamespaceMode::Pod));
    }
}
