//! Which control groups a machine has, and where they are mounted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Which hierarchies there are, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One hierarchy with all controllers.
    V2(PathBuf),
    /// A hierarchy for each controller, by name, and further ones without controllers of ours.
    V1 { controllers: BTreeMap<String, PathBuf>, others: Vec<PathBuf> },
}

const V1_CONTROLLERS: &[&str] =
    &["blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "pids"];

impl Layout {
    /// Reads the layout off the contents of `/proc/self/mountinfo`.
    pub(crate) fn from_mountinfo(text: &str) -> Option<Layout> {
        let mut controllers = BTreeMap::new();
        let mut others = Vec::new();
        let mut unified = None;
        for line in text.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mount_point) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut right = right.split(' ');
            match right.next() {
                Some("cgroup2") => {
                    unified.get_or_insert(mount_point);
                }
                Some("cgroup") => {
                    let options = right.nth(1).unwrap_or_default();
                    let ours: Vec<&str> = options.split(',').filter(|o| V1_CONTROLLERS.contains(o)).collect();
                    if ours.is_empty() {
                        others.push(mount_point);
                    } else {
                        for name in ours {
                            controllers.entry(name.to_owned()).or_insert_with(|| mount_point.clone());
                        }
                    }
                }
                Some(_) | None => {}
            }
        }
        if controllers.is_empty() {
            return unified.map(Layout::V2);
        }
        others.extend(unified);
        Some(Layout::V1 { controllers, others })
    }

    pub(super) fn roots(&self) -> Vec<&Path> {
        match self {
            Layout::V2(root) => vec![root],
            Layout::V1 { controllers, others } => {
                let mut roots: Vec<&Path> = controllers.values().map(PathBuf::as_path).collect();
                roots.extend(others.iter().map(PathBuf::as_path));
                roots.dedup();
                roots
            }
        }
    }
}

/// How a machine has its control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// A hierarchy for each controller.
    V1,
    /// The same, and a unified one without controllers.
    Hybrid,
    /// One hierarchy with all controllers.
    V2,
}

/// What control groups a machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineCgroups {
    /// Their layout.
    pub version: CgroupVersion,
    /// The controllers that can be used, by name.
    pub controllers: BTreeSet<String>,
    /// Hierarchies in which nothing can be made.
    pub read_only: Vec<PathBuf>,
}

impl MachineCgroups {
    /// Those of this machine; `None` if none are mounted.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn inspect() -> io::Result<Option<Self>> {
        let Some(layout) = Layout::from_mountinfo(&fs::read_to_string("/proc/self/mountinfo")?) else {
            return Ok(None);
        };
        let unified = |root: &Path| root.join("cgroup.controllers").exists();
        let (version, controllers) = match &layout {
            Layout::V2(root) => {
                let names = fs::read_to_string(root.join("cgroup.controllers"))?;
                (CgroupVersion::V2, names.split_whitespace().map(str::to_owned).collect())
            }
            Layout::V1 { controllers, others } => {
                let hybrid = others.iter().any(|root| unified(root));
                let version = if hybrid { CgroupVersion::Hybrid } else { CgroupVersion::V1 };
                (version, controllers.keys().cloned().collect())
            }
        };
        let writable = |root: &Path| rustix::fs::access(root, rustix::fs::Access::WRITE_OK).is_ok();
        let read_only =
            layout.roots().into_iter().filter(|root| !writable(root)).map(Path::to_owned).collect();
        Ok(Some(MachineCgroups { version, controllers, read_only }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn a_hybrid_layout_uses_the_controllers_of_v1() {
        let Some(Layout::V1 { controllers, others }) = Layout::from_mountinfo(HYBRID) else { panic!() };
        assert_eq!(controllers.keys().collect::<Vec<_>>(), ["cpu", "cpuacct", "memory"]);
        assert_eq!(others, [Path::new("/sys/fs/cgroup/systemd"), Path::new("/sys/fs/cgroup/unified")]);
    }

    #[test]
    fn a_unified_layout_is_v2() {
        let text = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(Layout::from_mountinfo(text), Some(Layout::V2("/sys/fs/cgroup".into())));
        assert_eq!(Layout::from_mountinfo("1 1 0:1 / / rw - ext4 /dev/sda rw"), None);
    }
}
