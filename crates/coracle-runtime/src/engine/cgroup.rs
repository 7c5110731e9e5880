//! Control groups, by the file system: v1, hybrid and v2.
//!
//! The engine manages them itself rather than through the OCI library: limits of a Pod come before its first
//! container, names and layout are the same in all hierarchies, and removal kills what is left. In a hybrid
//! layout the controllers are those of v1; processes are put in the unified hierarchy too, for `cgroup.kill`
//! and so that no service manager takes a keeper for a part of the daemon.

mod layout;

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use coracle_cri::LinuxContainerResources;
use coracle_keeper::kill::kill_members;
use rustix::process::Pid;

pub(crate) use layout::Layout;
pub use layout::{CgroupVersion, MachineCgroups};

const SWAP_MAX: &str = "memory.swap.max";

/// The control groups of one cluster: everything below `prefix` in every hierarchy.
#[derive(Debug)]
pub(crate) struct Cgroups {
    layout: Layout,
    prefix: PathBuf,
}

/// A control group, relative to the root of each hierarchy; starts with the cluster's prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CgroupPath(PathBuf);

impl CgroupPath {
    /// With a leading slash, as the OCI specification wants it.
    pub(crate) fn absolute(&self) -> PathBuf {
        Path::new("/").join(&self.0)
    }

    pub(crate) fn parent(&self) -> CgroupPath {
        CgroupPath(self.0.parent().unwrap_or(&self.0).to_owned())
    }
}

impl Cgroups {
    pub(crate) fn open(prefix: &Path) -> io::Result<Self> {
        let layout = Layout::from_mountinfo(&fs::read_to_string("/proc/self/mountinfo")?)
            .ok_or_else(|| io::Error::other("no control groups are mounted on this machine"))?;
        let prefix = below_root(prefix)?;
        if prefix.as_os_str().is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the root control group is not ours"));
        }
        Ok(Cgroups { layout, prefix })
    }

    pub(crate) fn is_v2(&self) -> bool {
        matches!(self.layout, Layout::V2(_))
    }

    /// The group's directory in each hierarchy of v1, with the name that the hierarchy has; none on v2, where a
    /// namespace shows a group as the root.
    pub(crate) fn views(&self, path: &CgroupPath) -> Vec<(String, PathBuf)> {
        let Layout::V1 { controllers, others } = &self.layout else { return Vec::new() };
        let named = others.iter().filter_map(|root| Some((root.file_name()?.to_str()?.to_owned(), root)));
        let all = controllers.iter().map(|(name, root)| (name.clone(), root)).chain(named);
        all.map(|(name, root)| (name, root.join(&path.0))).filter(|(_, group)| group.is_dir()).collect()
    }

    /// The group `path` below the cluster's prefix.
    pub(crate) fn path(&self, path: &Path) -> io::Result<CgroupPath> {
        Ok(CgroupPath(self.prefix.join(below_root(path)?)))
    }

    /// Makes the group in every hierarchy and sets its limits.
    pub(crate) fn create(&self, path: &CgroupPath, resources: &LinuxContainerResources) -> io::Result<()> {
        match &self.layout {
            Layout::V2(root) => {
                let mut dir = root.clone();
                for component in path.0.components() {
                    delegate(&dir);
                    dir.push(component);
                    make_dir(&dir)?;
                }
            }
            Layout::V1 { controllers, .. } => {
                let cpuset = controllers.get("cpuset");
                for root in self.layout.roots() {
                    let mut dir = root.to_owned();
                    for component in path.0.components() {
                        let parent = dir.clone();
                        dir.push(component);
                        make_dir(&dir)?;
                        if cpuset.is_some_and(|c| c == root) {
                            inherit_cpuset(&parent, &dir)?;
                        }
                    }
                }
            }
        }
        self.update(path, resources)
    }

    /// Sets the limits that are given; the others stay.
    pub(crate) fn update(&self, path: &CgroupPath, resources: &LinuxContainerResources) -> io::Result<()> {
        match &self.layout {
            Layout::V2(root) => {
                let dir = root.join(&path.0);
                for (name, value) in v2_values(resources) {
                    // A kernel that does not count swap has no such file.
                    if name != SWAP_MAX || dir.join(&name).exists() {
                        set(&dir, &name, &value)?;
                    }
                }
                Ok(())
            }
            Layout::V1 { controllers, .. } => {
                for (controller, name, value, needed) in v1_values(resources) {
                    let Some(root) = controllers.get(controller) else {
                        if needed {
                            return Err(io::Error::other(format!(
                                "this machine has no {controller} controller, which {name} needs"
                            )));
                        }
                        continue;
                    };
                    match set(&root.join(&path.0), name, &value) {
                        Err(error) if needed => return Err(error),
                        Ok(()) | Err(_) => {}
                    }
                }
                Ok(())
            }
        }
    }

    /// Lets the group's processes use the usual devices only. On v2 that takes a program in the kernel, and
    /// the engine withholds `CAP_MKNOD` instead.
    pub(crate) fn restrict_devices(&self, path: &CgroupPath) -> io::Result<()> {
        let Layout::V1 { controllers, .. } = &self.layout else { return Ok(()) };
        let Some(root) = controllers.get("devices") else { return Ok(()) };
        let dir = root.join(&path.0);
        set(&dir, "devices.deny", "a")?;
        for rule in [
            "c *:* m",
            "b *:* m",
            "c 1:3 rwm",
            "c 1:5 rwm",
            "c 1:7 rwm",
            "c 1:8 rwm",
            "c 1:9 rwm",
            "c 5:0 rwm",
            "c 5:1 rwm",
            "c 5:2 rwm",
            "c 136:* rwm",
        ] {
            set(&dir, "devices.allow", rule)?;
        }
        Ok(())
    }

    /// Whether something keeps the group's processes from devices that are not theirs.
    pub(crate) fn restricts_devices(&self) -> bool {
        matches!(&self.layout, Layout::V1 { controllers, .. } if controllers.contains_key("devices"))
    }

    /// The files to join the group by; the first is of a hierarchy that limits memory, if there is one.
    pub(crate) fn procs(&self, path: &CgroupPath) -> Vec<PathBuf> {
        let mut roots = self.layout.roots();
        if let Layout::V1 { controllers, .. } = &self.layout
            && let Some(memory) = controllers.get("memory")
        {
            roots.sort_by_key(|root| *root != memory);
        }
        roots.into_iter().map(|root| root.join(&path.0).join("cgroup.procs")).collect()
    }

    /// The file that counts out-of-memory kills.
    pub(crate) fn oom_file(&self, path: &CgroupPath) -> Option<PathBuf> {
        match &self.layout {
            Layout::V2(root) => Some(root.join(&path.0).join("memory.events")),
            Layout::V1 { controllers, .. } => {
                controllers.get("memory").map(|root| root.join(&path.0).join("memory.oom_control"))
            }
        }
    }

    /// Kills every process in the group and below, and returns when none is left.
    pub(crate) fn kill(&self, path: &CgroupPath) -> io::Result<()> {
        for attempt in 0..500 {
            let mut alive = false;
            for root in self.layout.roots() {
                let dir = root.join(&path.0);
                // Kernels before 5.14 and v1 hierarchies have no such file.
                let _ = fs::write(dir.join("cgroup.kill"), "1");
                alive |= kill_members(|| processes(&dir));
            }
            if !alive {
                return Ok(());
            }
            breathe(attempt);
        }
        Err(io::Error::other(format!("processes in control group {} do not die", path.0.display())))
    }

    /// Processes in the group and below.
    pub(crate) fn processes(&self, path: &CgroupPath) -> Vec<Pid> {
        let mut found: Vec<Pid> =
            self.layout.roots().into_iter().flat_map(|root| processes(&root.join(&path.0))).collect();
        found.sort_unstable_by_key(|pid| pid.as_raw_nonzero());
        found.dedup();
        found
    }

    /// Removes the group and everything below it. There must be no process left.
    pub(crate) fn remove(&self, path: &CgroupPath) -> io::Result<()> {
        for root in self.layout.roots() {
            remove_tree(&root.join(&path.0))?;
        }
        Ok(())
    }

    /// Removes the group where nothing is in it.
    pub(crate) fn remove_if_empty(&self, path: &CgroupPath) {
        if path.0.starts_with(&self.prefix) && path.0 != self.prefix {
            for root in self.layout.roots() {
                let _ = fs::remove_dir(root.join(&path.0));
            }
        }
    }

    /// The cluster's groups of this name, wherever they are.
    pub(crate) fn named(&self, name: &str) -> Vec<CgroupPath> {
        let mut found = Vec::new();
        for root in self.layout.roots() {
            let mut todo = vec![root.join(&self.prefix)];
            while let Some(dir) = todo.pop() {
                if dir.file_name().is_some_and(|last| last == name)
                    && let Ok(path) = dir.strip_prefix(root)
                {
                    found.push(CgroupPath(path.to_owned()));
                } else {
                    todo.extend(children(&dir));
                }
            }
        }
        found.sort();
        found.dedup();
        found
    }

    /// Kills and removes everything of the cluster.
    pub(crate) fn purge(&self) -> io::Result<()> {
        let all = CgroupPath(self.prefix.clone());
        self.kill(&all)?;
        self.remove(&all)
    }
}

/// `path` without its leading slash; refuses to leave the root.
fn below_root(path: &Path) -> io::Result<PathBuf> {
    let mut relative = PathBuf::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => relative.push(name),
            Component::ParentDir | Component::Prefix(_) => {
                let text = format!("invalid control group {:?}", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        }
    }
    Ok(relative)
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(io::Error::new(error.kind(), format!("make control group {}: {error}", dir.display())))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Lets the children of a v2 group have the controllers that the group has.
fn delegate(dir: &Path) {
    let available = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let enabled = fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
    for controller in available.split_whitespace() {
        if ["cpu", "cpuset", "io", "memory", "pids"].contains(&controller)
            && !enabled.split_whitespace().any(|e| e == controller)
        {
            // A controller that cannot be had shows when a limit is set with it.
            let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
}

/// A v1 cpuset takes no process before its processors and memory nodes are set.
fn inherit_cpuset(parent: &Path, dir: &Path) -> io::Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if fs::read_to_string(dir.join(name))?.trim().is_empty() {
            let value = fs::read_to_string(parent.join(name))?;
            set(dir, name, value.trim())?;
        }
    }
    Ok(())
}

fn set(dir: &Path, name: &str, value: &str) -> io::Result<()> {
    fs::write(dir.join(name), value).map_err(|error| {
        io::Error::new(error.kind(), format!("write {value:?} to {}: {error}", dir.join(name).display()))
    })
}

fn v2_values(resources: &LinuxContainerResources) -> Vec<(String, String)> {
    let mut values = Vec::new();
    let mut add = |name: &str, value: String| values.push((name.to_owned(), value));
    if resources.cpu_quota.is_some() || resources.cpu_period.is_some() {
        let quota = match resources.cpu_quota {
            Some(quota) if quota > 0 => quota.to_string(),
            Some(_) | None => "max".to_owned(),
        };
        add("cpu.max", format!("{quota} {}", resources.cpu_period.unwrap_or(100_000)));
    }
    if let Some(shares) = resources.cpu_shares {
        // The conversion of KEP-2254.
        add("cpu.weight", (1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142).to_string());
    }
    if let Some(limit) = resources.memory_limit_in_bytes {
        add("memory.max", if limit > 0 { limit.to_string() } else { "max".to_owned() });
        // No more memory by way of swap.
        add(SWAP_MAX, if limit > 0 { "0" } else { "max" }.to_owned());
    }
    if let Some(limit) = resources.pids_limit {
        add("pids.max", if limit > 0 { limit.to_string() } else { "max".to_owned() });
    }
    if let Some(cpus) = &resources.cpuset_cpus {
        add("cpuset.cpus", cpus.clone());
    }
    values.extend(resources.unified.iter().map(|(name, value)| (name.clone(), value.clone())));
    values
}

/// Controller, file, value, and whether failing to set it is an error.
fn v1_values(resources: &LinuxContainerResources) -> Vec<(&'static str, &'static str, String, bool)> {
    let mut values = Vec::new();
    if let Some(period) = resources.cpu_period {
        values.push(("cpu", "cpu.cfs_period_us", period.to_string(), true));
    }
    if let Some(quota) = resources.cpu_quota {
        let quota = if quota > 0 { quota } else { -1 };
        values.push(("cpu", "cpu.cfs_quota_us", quota.to_string(), true));
    }
    if let Some(shares) = resources.cpu_shares {
        values.push(("cpu", "cpu.shares", shares.to_string(), true));
    }
    if let Some(limit) = resources.memory_limit_in_bytes {
        let limit = if limit > 0 { limit } else { -1 };
        values.push(("memory", "memory.limit_in_bytes", limit.to_string(), true));
        // No more memory by way of swap, where swap is counted.
        values.push(("memory", "memory.memsw.limit_in_bytes", limit.to_string(), false));
    }
    if let Some(limit) = resources.pids_limit {
        let limit = if limit > 0 { limit.to_string() } else { "max".to_owned() };
        values.push(("pids", "pids.max", limit, true));
    }
    if let Some(cpus) = &resources.cpuset_cpus {
        values.push(("cpuset", "cpuset.cpus", cpus.clone(), true));
    }
    values
}

fn processes(dir: &Path) -> Vec<Pid> {
    let mut found: Vec<Pid> = fs::read_to_string(dir.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok().and_then(Pid::from_raw))
        .collect();
    for child in children(dir) {
        found.extend(processes(&child));
    }
    found
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for child in children(dir) {
        remove_tree(&child)?;
    }
    for attempt in 0..500 {
        match fs::remove_dir(dir) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => breathe(attempt),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => return Ok(()),
        }
    }
    Err(io::Error::other(format!("control group {} stays busy", dir.display())))
}

/// A dead process leaves its group a moment after it is seen dead, and v1 tells nobody when.
fn breathe(attempt: u32) {
    let pause = Duration::from_millis(u64::from(attempt.min(10)) + 1);
    let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: i64::from(pause.subsec_nanos()) };
    let _ = rustix::event::poll(&mut [], Some(&pause));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn limits_in_the_words_of_v2() {
        let resources = LinuxContainerResources {
            cpu_quota: Some(50_000),
            cpu_shares: Some(1024),
            memory_limit_in_bytes: Some(64 << 20),
            pids_limit: Some(-1),
            ..Default::default()
        };
        let values: BTreeMap<_, _> = v2_values(&resources).into_iter().collect();
        assert_eq!(values["cpu.max"], "50000 100000");
        assert_eq!(values["cpu.weight"], "39");
        assert_eq!(values["memory.max"], "67108864");
        assert_eq!(values["memory.swap.max"], "0", "a container over its limit is killed, not swapped");
        assert_eq!(values["pids.max"], "max");
    }

    #[test]
    fn a_group_outside_the_cluster_is_refused() {
        assert!(below_root(Path::new("/kubepods/../../x")).is_err());
        assert_eq!(below_root(Path::new("/kubepods/besteffort")).unwrap(), Path::new("kubepods/besteffort"));
    }
}
