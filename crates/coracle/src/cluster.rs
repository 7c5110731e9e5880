//! One cluster on this machine: its directories, its settings, and the lock that says whether it runs.

use std::fs::{self, File};
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use coracle_api::join::ClusterNetwork;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::cli::{Server, Target};
use crate::lock::{self, Holder, Lock, Purpose};
use crate::ranges::{self, Range};
use crate::store::{self, EtcdSettings, StoreWish};

/// The name whose cluster gets the well-known ports and log directories.
pub(crate) const DEFAULT_NAME: &str = "coracle";

/// Services have a bitmap of their range, which the API server keeps this small.
const WIDEST_SERVICES: u32 = 12;

/// Held by whoever chooses the settings of a new cluster.
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
}

/// What was decided when the cluster was first started, and holds from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Number of this cluster on this machine, from 0; the others are derived from it by default.
    pub(crate) index: u8,
    pub(crate) api_port: u16,
    pub(crate) kubelet_port: u16,
    pub(crate) bridge: String,
    pub(crate) pod_cidr: String,
    pub(crate) service_cidr: String,
    /// Name of this machine's Node. A host name that changes later makes no second Node.
    pub(crate) node_name: String,
    /// The cluster on another machine that this machine is a node of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) joined: Option<Joined>,
    /// The etcd that holds the objects; `None` if they are in the data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) store: Option<EtcdSettings>,
}

/// What a machine knows of the cluster that it has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Joined {
    /// URL of the server.
    pub(crate) server: String,
    /// What all nodes agree on.
    pub(crate) network: ClusterNetwork,
}

impl Cluster {
    /// The cluster that the command line means.
    pub(crate) fn of(target: &Target) -> Self {
        Cluster {
            name: target.name.clone(),
            base: target.data_dir.clone(),
            data: target.data_dir.join(&target.name),
            run: target.run_dir.join(&target.name),
        }
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

    /// Refuses settings that collide with those of another cluster under the same directory.
    pub(crate) fn check_alone(&self, settings: &Settings) -> anyhow::Result<()> {
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
        if let Some(other) = self.others()?.iter().find(|other| collides(other)) {
            bail!(
                "another cluster on this machine (https://127.0.0.1:{}) has the same links, ports or ranges: remove \
                 that one, or restore on another machine",
                other.api_port
            );
        }
        Ok(())
    }

    pub(crate) fn settings_file(&self) -> PathBuf {
        self.data.join("cluster.json")
    }

    /// Whether this cluster was ever started here.
    pub(crate) fn exists(&self) -> bool {
        self.data.exists()
    }

    /// The settings, if the cluster was ever started.
    pub(crate) fn settings(&self) -> anyhow::Result<Option<Settings>> {
        let path = self.settings_file();
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(|| {
                format!(
                    "{} is damaged: restore it, or remove the cluster with `coracle down --purge`",
                    path.display()
                )
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// The settings of a cluster that is taken away: those of its last start if the file is damaged.
    pub(crate) fn settings_to_remove(&self) -> anyhow::Result<Option<Settings>> {
        self.settings().or_else(|error| match fs::read(self.last_settings_file()) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|_| error),
            // Since the last boot it was not started: nothing of it is in the kernel.
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(_) => Err(error),
        })
    }

    /// Keeps a copy of the settings for as long as there can be links and rules that follow from them.
    pub(crate) fn remember_settings(&self, settings: &Settings) -> anyhow::Result<()> {
        private_directory(&self.run)?;
        write_private(&self.last_settings_file(), &serde_json::to_vec_pretty(settings)?)
    }

    fn last_settings_file(&self) -> PathBuf {
        self.run.join("cluster.json")
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

    /// Takes back what was chosen for a node that did not get to join.
    pub(crate) fn drop_settings_unless_joined(&self) -> anyhow::Result<()> {
        if self.settings()?.is_some_and(|settings| settings.joined.is_none()) {
            let path = self.settings_file();
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    /// The settings; at the first start they are chosen, around those of the other clusters, and kept.
    pub(crate) fn settings_or_choose(&self, wishes: &Wishes) -> anyhow::Result<Settings> {
        private_directory(&self.base)?;
        // Two clusters that start for the first time at once must not choose the same.
        let _guard = lock_file(&self.base.join(CHOOSE_LOCK))?;
        if let Some(mut settings) = self.settings()? {
            let corrected = wishes.correct_store(&mut settings);
            wishes.check(&settings)?;
            if corrected {
                self.keep_settings(&settings)?;
            }
            return Ok(settings);
        }
        if let Some(trace) = self.trace_of_namesake() {
            bail!(
                "{trace} belongs to a cluster {:?} with another --data-dir: choose another --name, or remove that one \
                 with `coracle down --purge`",
                self.name
            );
        }
        let machine =
            Machine { port_is_free: &port_is_free, link_exists: &link_exists, ranges: ranges::of_machine() };
        let settings = choose(&self.others()?, wishes, &machine)?;
        self.keep_settings(&settings)?;
        Ok(settings)
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

    /// Settings of the other clusters under the same directory.
    fn others(&self) -> anyhow::Result<Vec<Settings>> {
        let mut others = Vec::new();
        for entry in
            fs::read_dir(&self.base).with_context(|| format!("cannot read {}", self.base.display()))?
        {
            let other = Cluster { data: entry?.path(), ..self.clone() };
            if other.data != self.data && other.data.is_dir() {
                // One that is damaged is no reason for this one not to start; its links show all the same.
                match other.settings() {
                    Ok(settings) => others.extend(settings),
                    Err(error) => crate::output::note(format_args!("warning: {error:#}")),
                }
            }
        }
        Ok(others)
    }

    /// Removes what clusters share, if this was the last of them.
    pub(crate) fn forget(&self) -> anyhow::Result<()> {
        for base in [Some(self.base.as_path()), self.run.parent()].into_iter().flatten() {
            let lock = base.join(CHOOSE_LOCK);
            if lock.exists() {
                // Held, so that nobody who chooses now loses the file under their hands.
                let _guard = lock_file(&lock)?;
                let alone = fs::read_dir(base)
                    .is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(|e| e.path() == lock)));
                if alone {
                    let _ = fs::remove_file(&lock);
                }
            }
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
        self.data.join("lock")
    }
}

/// What the command line asked for; `None` takes what is free.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wishes {
    pub(crate) api_port: Option<u16>,
    pub(crate) pod_cidr: Option<String>,
    pub(crate) service_cidr: Option<String>,
    pub(crate) node_name: Option<String>,
    pub(crate) store: Option<StoreWish>,
}

impl Wishes {
    pub(crate) fn of(options: &Server) -> anyhow::Result<Self> {
        Ok(Wishes {
            api_port: options.port,
            pod_cidr: options.pod_cidr.clone(),
            service_cidr: options.service_cidr.clone(),
            node_name: options.machine.node_name.clone(),
            store: StoreWish::of(&options.store)?,
        })
    }

    /// An etcd that was never used was perhaps the wrong one; whether `settings` have changed.
    fn correct_store(&self, settings: &mut Settings) -> bool {
        match (&self.store, &settings.store) {
            (Some(wish), Some(has)) if !has.used && !wish.is(Some(has)) => {
                settings.store = wish.settings();
                true
            }
            _ => false,
        }
    }

    /// Settings hold from the first start on: a different wish later is an error, not silently ignored.
    fn check(&self, settings: &Settings) -> anyhow::Result<()> {
        let differs = |flag: &str, wish: String, has: String| {
            bail!(
                "{flag} {wish} differs from {has}, which this cluster was made with; \
                 `coracle down --purge` removes it, or choose another --name"
            )
        };
        if let Some(port) = self.api_port.filter(|port| *port != settings.api_port) {
            return differs("--port", port.to_string(), settings.api_port.to_string());
        }
        if let Some(cidr) = self.pod_cidr.as_ref().filter(|cidr| **cidr != settings.pod_cidr) {
            return differs("--pod-cidr", cidr.clone(), settings.pod_cidr.clone());
        }
        if let Some(cidr) = self.service_cidr.as_ref().filter(|cidr| **cidr != settings.service_cidr) {
            return differs("--service-cidr", cidr.clone(), settings.service_cidr.clone());
        }
        if let Some(name) = self.node_name.as_ref().filter(|name| **name != settings.node_name) {
            return differs("--node-name", name.clone(), settings.node_name.clone());
        }
        if let Some(wish) = self.store.as_ref().filter(|wish| !wish.is(settings.store.as_ref())) {
            let (wish, has) = (wish.settings(), settings.store.as_ref());
            return differs("--store", store::describe(wish.as_ref()), store::describe(has));
        }
        Ok(())
    }
}

/// What is taken on this machine by others than clusters under the same directory.
struct Machine<'a> {
    port_is_free: &'a dyn Fn(u16) -> bool,
    link_exists: &'a dyn Fn(&str) -> bool,
    ranges: Vec<Range>,
}

/// Chooses settings that collide with no other cluster's, and with nothing else on the machine.
fn choose(others: &[Settings], wishes: &Wishes, machine: &Machine<'_>) -> anyhow::Result<Settings> {
    let ranges: Vec<Range> = others
        .iter()
        .flat_map(|other| [&other.pod_cidr, &other.service_cidr])
        .filter_map(|cidr| cidr.parse().ok())
        .chain(machine.ranges.iter().copied())
        .collect();
    let wish = |flag: &str, wish: &Option<String>| {
        let Some(text) = wish else { return Ok(None) };
        let range: Range = text.parse().with_context(|| format!("{flag} {text}"))?;
        match ranges.iter().find(|used| used.overlaps(range)) {
            Some(used) => bail!("{flag} {text} overlaps {used}, which is in use on this machine"),
            None => Ok(Some(range)),
        }
    };
    let (pods, services) =
        (wish("--pod-cidr", &wishes.pod_cidr)?, wish("--service-cidr", &wishes.service_cidr)?);
    let range_of = |second: u16| -> Option<Range> { format!("10.{second}.0.0/16").parse().ok() };
    let ranges_of = |index: u8| {
        let first = 42 + 2 * u16::from(index);
        Some((pods.or_else(|| range_of(first))?, services.or_else(|| range_of(first + 1))?))
    };
    let taken =
        |range: Range, wish: Option<Range>| wish.is_none() && ranges.iter().any(|r| r.overlaps(range));
    let mut candidates = (0..=100).filter(|index| {
        others.iter().all(|other| other.index != *index) && !(machine.link_exists)(&bridge_name(*index))
    });
    let (index, pods, services) = candidates
        .find_map(|index| {
            let (pod_range, service_range) = ranges_of(index)?;
            let free = !taken(pod_range, pods) && !taken(service_range, services);
            free.then_some((index, pod_range, service_range))
        })
        .context(
            "there are already 100 clusters on this machine, or no range is free: remove a cluster with \
             `coracle down --purge`, or choose a --pod-cidr and a --service-cidr",
        )?;
    if services.length() < WIDEST_SERVICES {
        bail!("--service-cidr {services}: the prefix length must be from {WIDEST_SERVICES} to 24");
    }
    if services.overlaps(pods) {
        bail!("--service-cidr {services} overlaps the Pods' range {pods}");
    }
    let free_port = |first: u16| {
        let taken = |port| others.iter().any(|other| other.api_port == port || other.kubelet_port == port);
        (first..first + 2000).find(|port| !taken(*port) && (machine.port_is_free)(*port))
    };
    let api_port = match wishes.api_port {
        Some(port) if !(machine.port_is_free)(port) => bail!("port {port} is in use: choose another --port"),
        Some(port) => port,
        None => {
            free_port(6443 + u16::from(index)).context("no free port for the API server: choose a --port")?
        }
    };
    let kubelet_port = free_port(10250 + u16::from(index)).context("no free port for the node agent")?;
    let (pod_cidr, service_cidr) = (pods.to_string(), services.to_string());
    let node_name = match &wishes.node_name {
        Some(name) => name.clone(),
        None => host_name()?,
    };
    let bridge = bridge_name(index);
    let store = wishes.store.as_ref().and_then(StoreWish::settings);
    Ok(Settings {
        index,
        api_port,
        kubelet_port,
        bridge,
        pod_cidr,
        service_cidr,
        node_name,
        joined: None,
        store,
    })
}

/// The host name, in the form that the name of a Node has.
fn host_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("cannot read the host name")?;
    let name: String = name
        .to_string_lossy()
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '-' })
        .collect();
    let name = name.trim_matches(['-', '.']);
    Ok(if name.is_empty() { "node".to_owned() } else { name.to_owned() })
}

fn bridge_name(index: u8) -> String {
    format!("coracle{index}")
}

/// Whether the machine has a network link of this name: one of a cluster under another directory, for example.
fn link_exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

fn port_is_free(port: u16) -> bool {
    std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}

/// Makes a directory that only its owner can enter, with its parents.
pub(crate) fn private_directory(path: &Path) -> anyhow::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot make {}", path.display())),
    }
}

/// Writes a file that only its owner can read, whole or not at all, and durably.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let partial = path.with_extension("partial");
    let write = || -> std::io::Result<()> {
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Opens a lock file, which is made if it is not there.
pub(crate) fn open_lock(path: &Path) -> anyhow::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot open {}: are you root?", path.display()))
}

fn lock_file(path: &Path) -> anyhow::Result<Flock<File>> {
    loop {
        let locked = Flock::lock(open_lock(path)?, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .with_context(|| format!("cannot lock {}", path.display()))?;
        // Whoever held it may have removed the file: then this is a lock on nothing.
        let same = |there: fs::Metadata| locked.metadata().is_ok_and(|mine| mine.ino() == there.ino());
        if fs::metadata(path).is_ok_and(same) {
            return Ok(locked);
        }
        private_directory(path.parent().unwrap_or(Path::new("/")))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(base: &Path, name: &str) -> Cluster {
        Cluster::of(&Target { name: name.into(), data_dir: base.join("data"), run_dir: base.join("run") })
    }

    fn machine() -> Machine<'static> {
        Machine { port_is_free: &|_| true, link_exists: &|_| false, ranges: Vec::new() }
    }

    #[test]
    fn clusters_side_by_side_share_nothing() {
        let first = choose(&[], &Wishes::default(), &machine()).unwrap();
        assert_eq!((first.api_port, first.kubelet_port, first.index), (6443, 10250, 0));
        assert_eq!((first.pod_cidr.as_str(), first.service_cidr.as_str()), ("10.42.0.0/16", "10.43.0.0/16"));
        let busy = Machine { port_is_free: &|port| port != 6444, ..machine() };
        let second = choose(std::slice::from_ref(&first), &Wishes::default(), &busy).unwrap();
        assert_eq!((second.api_port, second.kubelet_port, second.index), (6445, 10251, 1));
        assert_ne!(second.bridge, first.bridge);
        assert_ne!(second.pod_cidr, first.pod_cidr);
        let third = choose(&[second], &Wishes::default(), &machine()).unwrap();
        assert_eq!(third.index, 0, "a number that became free is used again");
    }

    #[test]
    fn settings_are_kept_and_a_different_wish_later_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let cluster = cluster(base.path(), "a");
        let wishes = Wishes { pod_cidr: Some("10.99.0.0/16".into()), ..Wishes::default() };
        let made = cluster.settings_or_choose(&wishes).unwrap();
        assert_eq!(cluster.settings_or_choose(&Wishes::default()).unwrap(), made);
        let other = Wishes { pod_cidr: Some("10.98.0.0/16".into()), ..Wishes::default() };
        let message = cluster.settings_or_choose(&other).unwrap_err().to_string();
        assert!(message.contains("--pod-cidr 10.98.0.0/16 differs from 10.99.0.0/16"), "{message}");
    }

    #[test]
    fn a_store_may_be_corrected_until_it_is_used() {
        let base = tempfile::tempdir().unwrap();
        let cluster = cluster(base.path(), "a");
        let wish = |address: &str| {
            let address = address.to_owned();
            let etcd = EtcdSettings { address, ca: None, cert: None, key: None, used: false };
            Wishes { store: Some(StoreWish::Etcd(etcd)), ..Wishes::default() }
        };
        cluster.settings_or_choose(&wish("etcd://wrong:2379")).unwrap();
        let settings = cluster.settings_or_choose(&wish("etcd://right:2379")).unwrap();
        assert_eq!(cluster.settings_or_choose(&Wishes::default()).unwrap(), settings, "it is remembered");
        cluster.store_is_used(&settings).unwrap();
        cluster.settings_or_choose(&wish("etcd://right:2379")).unwrap();
        let message = cluster.settings_or_choose(&wish("etcd://other:2379")).unwrap_err().to_string();
        assert!(message.contains("--store etcd://other:2379 differs from etcd://right:2379"), "{message}");
        let embedded = Wishes { store: Some(StoreWish::Embedded), ..Wishes::default() };
        let message = cluster.settings_or_choose(&embedded).unwrap_err().to_string();
        assert!(message.contains("--store embedded differs from etcd://right:2379"), "{message}");
    }

    #[test]
    fn ranges_are_chosen_around_those_in_use_and_wishes_for_them_are_refused() {
        let first = choose(&[], &Wishes::default(), &machine()).unwrap();
        let home = Machine { ranges: vec!["10.42.3.0/24".parse().unwrap()], ..machine() };
        let around = choose(&[], &Wishes::default(), &home).unwrap();
        assert_eq!(
            (around.index, around.pod_cidr.as_str(), around.service_cidr.as_str()),
            (1, "10.44.0.0/16", "10.45.0.0/16")
        );
        let refused = |others: &[Settings], machine: &Machine<'_>, pod: &str| {
            let wishes = Wishes { pod_cidr: Some(pod.into()), ..Wishes::default() };
            format!("{:#}", choose(others, &wishes, machine).unwrap_err())
        };
        assert_eq!(
            refused(&[], &home, "10.42.0.0/16"),
            "--pod-cidr 10.42.0.0/16 overlaps 10.42.3.0/24, which is in use on this machine"
        );
        assert_eq!(
            refused(&[first], &machine(), "10.43.9.0/24"),
            "--pod-cidr 10.43.9.0/24 overlaps 10.43.0.0/16, which is in use on this machine"
        );
        assert_eq!(refused(&[], &machine(), "x"), "--pod-cidr x: a range looks like 10.42.0.0/16");
        let both = Wishes {
            pod_cidr: Some("10.9.0.0/16".into()),
            service_cidr: Some("10.9.1.0/24".into()),
            ..Wishes::default()
        };
        let wide = Wishes { service_cidr: Some("11.0.0.0/8".into()), ..Wishes::default() };
        let message = choose(&[], &wide, &machine()).unwrap_err().to_string();
        assert!(message.contains("from 12 to 24"), "{message}");
        let message = choose(&[], &both, &machine()).unwrap_err().to_string();
        assert_eq!(message, "--service-cidr 10.9.1.0/24 overlaps the Pods' range 10.9.0.0/16");
    }

    #[test]
    fn a_cluster_with_damaged_settings_can_be_removed() {
        let base = tempfile::tempdir().unwrap();
        let cluster = cluster(base.path(), "a");
        let made = cluster.settings_or_choose(&Wishes::default()).unwrap();
        cluster.remember_settings(&made).unwrap();
        fs::write(cluster.settings_file(), "{").unwrap();
        assert!(cluster.settings().unwrap_err().to_string().contains("is damaged"));
        assert_eq!(cluster.settings_to_remove().unwrap(), Some(made));
        fs::remove_file(cluster.last_settings_file()).unwrap();
        assert_eq!(cluster.settings_to_remove().unwrap(), None);
    }
}
