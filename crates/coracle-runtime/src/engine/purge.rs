//! The end of a cluster: nothing of its runtime is left.

use std::io;
use std::path::Path;

use super::RuntimeConfig;
use super::cgroup::Cgroups;
use super::mounted::{mount_points, unmount_roots_of};
use super::rootfs::unmount_all;
use super::state::{self, Layout};

/// Kills every keeper and container of the cluster and removes its mounts, control groups and directories.
///
/// Needs no daemon and no readable record, only the configuration: everything that runs is in the cluster's
/// control groups, everything mounted is below its directories. No daemon may run on them. Blocks. Doing it again
/// succeeds.
pub fn purge(config: &RuntimeConfig) -> io::Result<()> {
    Cgroups::open(&config.cgroup_root)?.purge()?;
    let layout = Layout { data: config.data_dir.clone(), run: config.run_dir.clone() };
    for id in state::names(&layout.containers()).unwrap_or_default() {
        unmount_roots_of(&id)?;
    }
    for dir in [&config.run_dir, &config.data_dir] {
        unmount_below(dir)?;
        match state::remove_tree(dir) {
            // A file in the way is somebody else's.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
            removed => removed?,
        }
    }
    Ok(())
}

fn unmount_below(dir: &Path) -> io::Result<()> {
    let Ok(dir) = dir.canonicalize() else { return Ok(()) };
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    for point in mount_points(&mounts).into_iter().rev().filter(|point| point.starts_with(&dir)) {
        unmount_all(&point)?;
    }
    Ok(())
}
