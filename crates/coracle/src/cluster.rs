//! One cluster on this machine: its directories, its settings, and the lock that says whether it runs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::cli::Target;
use crate::files::{private_directory, write_private};
use crate::lock::{self, Holder, Lock, Purpose};
use crate::ranges::Range;
use crate::register::{Held, Register};
use crate::settings::{Machine, Settings, Wishes, choose, free_port};

/// The name whose cluster gets the well-known ports and log directories.
pub(crate) const DEFAULT_NAME: &str = "coracle";

/// The settings, in the data directory.
const SETTINGS: &str = "cluster.json";

/// The lock, in the data directory.
const LOCK: &str = "lock";

/// Knows the clusters under one directory, where those of the whole machine cannot be known.
const CHOOSE_LOCK: &str = "choose.lock";

/// Where everything of one cluster is.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    pub(crate) name: String,
    /// Directory of all clusters' data.
    base: PathBuf,
    /// What survives a reboot.
    pub(crate) data: PathBuf,
    /// What does not.
    pub(crate) run: PathBuf,
    /// Knows the other clusters of this machine.
    register: Register,
}

impl Cluster {
    /// The cluster that the command line means.
    pub(crate) fn of(target: &Target) -> Self {
        Cluster {
            name: target.name.clone(),
            base: target.data_dir.clone(),
            data: target.data_dir.join(&target.name),
            run: target.run_dir.join(&target.name),
            register: Register::of_machine(),
        }
    }

    /// The same, as if on a machine whose clusters are those of this register.
    #[cfg(test)]
    pub(crate) fn on(target: &Target, register: Register) -> Self {
        Cluster { register, ..Cluster::of(target) }
    }

    /// A command line for this cluster, as messages quote it.
    pub(crate) fn command(&self, command: &str) -> String {
        let name = if self.name == DEFAULT_NAME { String::new() } else { format!(" --name {}", self.name) };
        format!("`coracle {command}{name}`")
    }

    /// Says that the cluster was never started here, and how to start it.
    pub(crate) fn unknown(&self) -> String {
        format!("cluster {:?} was never started here: start it with {}", self.name, self.command("up"))
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.data.join("kubeconfig")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.data.join("coracle.log")
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.data.join("pki")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    /// Where each Pod has a directory of its own, by UID.
    pub(crate) fn pod_directories(&self) -> PathBuf {
        self.data.join("kubelet/pods")
    }

    /// Where the node agent writes down with which credentials images were fetched.
    pub(crate) fn image_records(&self) -> PathBuf {
        self.data.join("kubelet/images")
    }

    /// The cgroup above all of this cluster's Pods, in every hierarchy.
    pub(crate) fn cgroup_root(&self) -> String {
        format!("/coracle-{}", self.name)
    }

    /// This machine's key and certificates as a node of a cluster on another one.
    pub(crate) fn node_pki(&self) -> PathBuf {
        self.data.join("node-pki")
    }

    /// The nftables table of this cluster.
    pub(crate) fn nft_table(&self) -> String {
        format!("coracle-{}", self.name)
    }

    /// Where container logs go: the well-known place for the default cluster, so that log collectors find them.
    pub(crate) fn pod_logs(&self) -> PathBuf {
        if self.is_default() { "/var/log/pods".into() } else { self.data.join("log/pods") }
    }

    /// Where the links to container logs go.
    pub(crate) fn container_logs(&self) -> PathBuf {
        if self.is_default() { "/var/log/containers".into() } else { self.data.join("log/containers") }
    }

    fn is_default(&self) -> bool {
        self.name == DEFAULT_NAME && self.base == Path::new("/var/lib/coracle")
    }

    /// Where the embedded engine keeps the objects.
    pub(crate) fn store(&self) -> PathBuf {
        self.data.join("store")
    }

    /// Is there while a restore takes the place of what was here.
    pub(crate) fn restore_mark(&self) -> PathBuf {
        self.data.join("restoring")
    }

    /// Refuses settings that collide with those of another cluster. While what this returns is held, nobody chooses
    /// any; from then on others go around what is in this cluster's directory.
    pub(crate) fn check_alone(&self, settings: &Settings) -> anyhow::Result<Held> {
        let mut held = self.hold_register()?;
        let collides = |other: &Settings| {
            let range = |cidr: &String| cidr.parse::<Range>().ok();
            let ranges = |settings: &Settings| [range(&settings.pod_cidr), range(&settings.service_cidr)];
            let ports = |settings: &Settings| [settings.api_port, settings.kubelet_port];
            other.index == settings.index
                || other.bridge == settings.bridge
                || ports(other).iter().any(|port| ports(settings).contains(port))
                || ranges(other)
                    .into_iter()
                    .flatten()
                    .any(|theirs| ranges(settings).into_iter().flatten().any(|ours| ours.overlaps(theirs)))
        };
        if let Some(other) = self.others(&held)?.iter().find(|other| collides(other)) {
            bail!(
                "another cluster on this machine (https://127.0.0.1:{}) has the same links, ports or ranges: remove \
                 that one, or restore on another machine",
                other.api_port
            );
        }
        held.add(&self.place())?;
        Ok(held)
    }

    pub(crate) fn settings_file(&self) -> PathBuf {
        self.data.join(SETTINGS)
    }

    /// Whether this cluster was ever started here.
    pub(crate) fn exists(&self) -> bool {
        self.data.exists()
    }

    /// The settings, if the cluster was ever started.
    pub(crate) fn settings(&self) -> anyhow::Result<Option<Settings>> {
        let path = self.settings_file();
        match fs::read(&path) {
            Ok(bytes) => Settings::read(&path, &bytes).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// The settings of a cluster that is taken away: those of its last start if the file is damaged.
    pub(crate) fn settings_to_remove(&self) -> anyhow::Result<Option<Settings>> {
        let kept = self.settings();
        if matches!(kept, Ok(Some(_))) {
            return kept;
        }
        match fs::read(self.last_settings_file()) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).or(kept),
            // Since the last boot it was not started: nothing of it is in the kernel.
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(_) => kept,
        }
    }

    /// Keeps a copy of the settings for as long as there can be links and rules that follow from them.
    pub(crate) fn remember_settings(&self, settings: &Settings) -> anyhow::Result<()> {
        private_directory(&self.run)?;
        write_private(&self.last_settings_file(), &serde_json::to_vec_pretty(settings)?)
    }

    fn last_settings_file(&self) -> PathBuf {
        self.run.join(SETTINGS)
    }

    /// Keeps settings that have changed.
    pub(crate) fn keep_settings(&self, settings: &Settings) -> anyhow::Result<()> {
        private_directory(&self.data)?;
        write_private(&self.settings_file(), &serde_json::to_vec_pretty(settings)?)
    }

    /// Remembers that the cluster has objects in its etcd.
    pub(crate) fn store_is_used(&self, settings: &Settings) -> anyhow::Result<()> {
        let mut settings = settings.clone();
        if let Some(store) = &mut settings.store {
            store.used = true;
        }
        self.keep_settings(&settings)
    }

    /// Whether there is nothing here yet that anybody could miss: no keys, no objects, no membership.
    pub(crate) fn is_new(&self) -> bool {
        !self.authority().exists() && !self.node_pki().exists() && !self.has_store()
    }

    /// The certificate of the cluster's authority: what makes it this cluster.
    pub(crate) fn authority(&self) -> PathBuf {
        self.pki().join("ca.crt")
    }

    /// Whether the embedded engine has left anything here.
    pub(crate) fn has_store(&self) -> bool {
        let left = |name: &std::ffi::OsStr| {
            matches!(Path::new(name).extension().and_then(|kind| kind.to_str()), Some("log" | "snapshot"))
        };
        fs::read_dir(self.store())
            .is_ok_and(|entries| entries.flatten().any(|entry| left(&entry.file_name())))
    }

    /// Other ports for a cluster that starts for the first time, when others were faster to take the chosen ones.
    pub(crate) fn choose_ports_again(
        &self,
        settings: &mut Settings,
        api_port_too: bool,
    ) -> anyhow::Result<()> {
        let held = self.hold_register()?;
        let (others, machine) = (self.others(&held)?, Machine::this());
        if api_port_too {
            settings.api_port =
                free_port(settings.api_port, &others, &machine).context("no free port for the API server")?;
        }
        settings.kubelet_port =
            free_port(settings.kubelet_port, &others, &machine).context("no free port for the node agent")?;
        self.keep_settings(settings)
    }

    /// The settings; at the first start they are chosen, around those of the other clusters, and kept.
    pub(crate) fn settings_or_choose(&self, wishes: &Wishes) -> anyhow::Result<Settings> {
        // Two clusters that start for the first time at once must not choose the same.
        let mut held = self.hold_register()?;
        let path = self.settings_file();
        if let Some(mut settings) = self.settings()? {
            if let Some(other) = self.namesakes(held.directories()).find(|data| runs(data)) {
                bail!("{} is a cluster {:?} that runs: stop it first", other.display(), self.name);
            }
            let amended = wishes.amend(&mut settings);
            wishes.check(&settings)?;
            if amended {
                self.keep_settings(&settings)?;
            }
            held.add(&self.place())?;
            return Ok(settings);
        }
        if !self.is_new() {
            let copy = self.last_settings_file();
            let remedy = if Settings::read(&copy, &fs::read(&copy).unwrap_or_default()).is_ok() {
                format!(
                    "`cp {} {}` puts those of the last start in its place",
                    copy.display(),
                    path.display()
                )
            } else {
                format!(
                    "restore it from a backup, or remove the cluster with {}",
                    self.command("down --purge")
                )
            };
            bail!("{} is gone, although the cluster was started here: {remedy}", path.display());
        }
        let namesake = self.namesakes(held.directories()).next().map(|data| data.display().to_string());
        if let Some(trace) = namesake.or_else(|| self.trace_of_namesake()) {
            bail!(
                "{trace} belongs to a cluster {:?} with another --data-dir: choose another --name, or remove that one \
                 with `coracle down --purge`",
                self.name
            );
        }
        let settings = choose(&self.others(&held)?, wishes, &Machine::this())?;
        held.add(&self.place())?;
        self.keep_settings(&settings)?;
        Ok(settings)
    }

    /// Other clusters' directories that have this one's name, and with it its control groups and packet rules.
    fn namesakes<'a>(&self, directories: &'a [PathBuf]) -> impl Iterator<Item = &'a PathBuf> {
        let own = self.place();
        directories.iter().filter(move |data| {
            **data != own && data.file_name() == own.file_name() && data.join(SETTINGS).exists()
        })
    }

    /// The directory of the cluster to which what has this one's name on the machine belongs, if that is another: one
    /// that runs, or any if this one was never started.
    pub(crate) fn elsewhere(&self) -> Option<PathBuf> {
        let never = !self.settings_file().exists() && self.is_new();
        let directories = self.register.directories();
        self.namesakes(&directories).find(|data| never || runs(data)).cloned()
    }

    /// A cgroup with this cluster's name, although this cluster was never started.
    fn trace_of_namesake(&self) -> Option<String> {
        let root = self.cgroup_root();
        let hierarchies =
            fs::read_dir("/sys/fs/cgroup").ok()?.filter_map(Result::ok).map(|entry| entry.path());
        hierarchies
            .chain([PathBuf::from("/sys/fs/cgroup")])
            .map(|hierarchy| hierarchy.join(root.trim_start_matches('/')))
            .find(|path| path.is_dir())
            .map(|path| path.display().to_string())
    }

    fn hold_register(&self) -> anyhow::Result<Held> {
        private_directory(&self.base)?;
        self.register.hold(&self.base.join(CHOOSE_LOCK))
    }

    /// The data directory, under one name however the command line names it.
    fn place(&self) -> PathBuf {
        let base = fs::canonicalize(&self.base).or_else(|_| std::path::absolute(&self.base));
        base.unwrap_or_else(|_| self.base.clone()).join(&self.name)
    }

    /// Settings of the other clusters of this machine: those under the same directory, and those in the register.
    fn others(&self, held: &Held) -> anyhow::Result<Vec<Settings>> {
        let own = self.place();
        let base = own.parent().unwrap_or(&self.base);
        let mut places: BTreeSet<PathBuf> = held.directories().iter().cloned().collect();
        for entry in fs::read_dir(base).with_context(|| format!("cannot read {}", base.display()))? {
            places.insert(entry?.path());
        }
        let mut others = Vec::new();
        for data in places.into_iter().filter(|data| *data != own && data.is_dir()) {
            // One that is damaged is no reason for this one not to start; its links show all the same.
            match (Cluster { data, ..self.clone() }).settings() {
                Ok(settings) => others.extend(settings),
                Err(error) => crate::output::note(format_args!("warning: {error:#}")),
            }
        }
        Ok(others)
    }

    /// Removes what clusters share, if this was the last of them.
    pub(crate) fn forget(&self) -> anyhow::Result<()> {
        let own = self.place();
        // Held, so that nobody who chooses now loses the file under their hands.
        let mut held = self.hold_register()?;
        held.retain(|data| *data != own && data.join(SETTINGS).exists())?;
        // Left by a version that knew the clusters under one directory only: it held nothing.
        let lock = self.base.join(CHOOSE_LOCK);
        if fs::metadata(&lock).is_ok_and(|lock| lock.len() == 0) {
            let _ = fs::remove_file(lock);
        }
        for base in [Some(self.base.as_path()), self.run.parent()].into_iter().flatten() {
            // Fails while another cluster is there, as it should.
            let _ = fs::remove_dir(base);
        }
        Ok(())
    }

    /// Takes the lock, which one process of the cluster has at a time.
    pub(crate) fn lock(&self, purpose: Purpose) -> anyhow::Result<Lock> {
        private_directory(&self.data)?;
        if let Some(lock) = Lock::take(&self.lock_path(), purpose)? {
            return Ok(lock);
        }
        let (what, pid) = match self.holder()? {
            Some(Holder { pid, purpose: Purpose::Stopping }) => {
                ("being stopped", format!(" (process {pid})"))
            }
            Some(Holder { pid, .. }) => ("already running", format!(" (process {pid})")),
            None => ("being started or stopped", String::new()),
        };
        bail!("cluster {:?} is {what}{pid}", self.name)
    }

    /// The process that has the lock: it runs this cluster, or takes it away.
    pub(crate) fn holder(&self) -> anyhow::Result<Option<Holder>> {
        lock::holder(&self.lock_path())
    }

    /// The process that runs this cluster, if it runs.
    pub(crate) fn running(&self) -> anyhow::Result<Option<i32>> {
        let holder = self.holder()?.filter(|holder| holder.purpose != Purpose::Stopping);
        Ok(holder.map(|holder| holder.pid))
    }

    fn lock_path(&self) -> PathBuf {
        self.data.join(LOCK)
    }
}

/// Whether the cluster with this data directory runs.
fn runs(data: &Path) -> bool {
    matches!(lock::holder(&data.join(LOCK)), Ok(Some(_)))
}

#[cfg(test)]
mod tests;
