//! What the node agent keeps on disk for a Pod: plain blocking functions, one for each occasion.
//!
//! [`coracle_clock::Clock::blocking`] runs them where blocking does no harm.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::logs::remove_logs;
use crate::volume::VolumeHost;
use crate::volume::tear_down::remove_volumes;

/// What a text file says; nothing if it cannot be read.
pub(crate) fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Makes a directory of a Pod, with those on the way to it. Other users of the machine do not get to see what is in them.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(path)
}

/// The files that a container finds mounted.
#[derive(Debug)]
pub(crate) struct ContainerFiles {
    /// Shared by the containers of the Pod.
    pub(crate) hosts_file: PathBuf,
    pub(crate) hosts: String,
    pub(crate) termination_file: PathBuf,
}

impl ContainerFiles {
    /// Makes the Pod's hosts file and an empty termination message file.
    pub(crate) fn make(&self) -> io::Result<()> {
        if let Some(directory) = self.termination_file.parent() {
            make_directory(directory)?;
        }
        // Containers that run have this very file mounted: it is only written when it says something else.
        if fs::read_to_string(&self.hosts_file).ok().as_deref() != Some(self.hosts.as_str()) {
            fs::write(&self.hosts_file, &self.hosts)?;
            set_mode(&self.hosts_file, 0o644)?;
        }
        fs::write(&self.termination_file, "")?;
        set_mode(&self.termination_file, 0o666)
    }
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Makes `link` lead to `log`, if there is none yet.
pub(crate) fn link_log(log: &Path, link: &Path) -> io::Result<()> {
    if let Some(directory) = link.parent() {
        fs::create_dir_all(directory)?;
    }
    match symlink(log, link) {
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Removes what is on disk of a container that is gone. What cannot be removed goes with the Pod.
pub(crate) fn remove_container(link: &Path, log: &Path, message: Option<&Path>) {
    let _ = fs::remove_file(link);
    // The log's file name is the restart count: a container made after a reset may write it now.
    remove_logs(log);
    if let Some(file) = message {
        let _ = fs::remove_file(file);
    }
}

/// What is on disk of a Pod.
#[derive(Debug)]
pub(crate) struct PodFiles {
    /// Where the links to logs of all containers are.
    pub(crate) links: PathBuf,
    /// With what the names of this Pod's links begin.
    pub(crate) prefix: String,
    pub(crate) logs: PathBuf,
    pub(crate) directory: PathBuf,
    /// On what machine its volumes are.
    pub(crate) volume_host: VolumeHost,
}

impl PodFiles {
    /// Removes all of it; what is not there any more is no failure.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let absent = |result: io::Result<()>| match result {
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        for link in fs::read_dir(&self.links).into_iter().flatten() {
            let link = link?;
            let named = link.file_name().to_string_lossy().starts_with(&self.prefix);
            if named && fs::read_link(link.path()).is_ok_and(|target| target.starts_with(&self.logs)) {
                absent(fs::remove_file(link.path()))?;
            }
        }
        absent(fs::remove_dir_all(&self.logs))?;
        remove_pod(&self.directory, &self.volume_host)
    }
}

/// Removes the directory of a Pod, with volumes that are still there.
fn remove_pod(directory: &Path, volume_host: &VolumeHost) -> io::Result<()> {
    remove_volumes(directory, volume_host)?;
    coracle_tree::remove(directory)
}

/// UIDs of the Pods that have a directory.
pub(crate) fn pods(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut uids: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    uids.sort();
    uids
}

/// Removes what is on disk of a Pod of which nothing but its UID is known.
pub(crate) fn remove_forgotten(
    uid: &str,
    pods: &Path,
    logs: &Path,
    links: &Path,
    volume_host: &VolumeHost,
) -> io::Result<()> {
    let suffix = format!("_{uid}");
    for log in fs::read_dir(logs).into_iter().flatten().flatten() {
        let name = log.file_name().to_string_lossy().into_owned();
        let mut parts = name.split('_');
        if let (true, Some(namespace), Some(pod)) = (name.ends_with(&suffix), parts.next(), parts.next()) {
            let files = PodFiles {
                links: links.to_owned(),
                prefix: format!("{pod}_{namespace}_"),
                logs: log.path(),
                directory: pods.join(uid),
                volume_host: volume_host.clone(),
            };
            files.remove()?;
        }
    }
    remove_pod(&pods.join(uid), volume_host)
}

/// Removes the directories of all Pods of a node that is no more, with whatever is mounted there. Doing it again succeeds.
///
/// # Errors
/// Something cannot be unmounted or removed.
pub fn remove_pod_directories(directory: &Path) -> io::Result<()> {
    pods(directory).iter().try_for_each(|uid| remove_pod(&directory.join(uid), &VolumeHost::Machine))?;
    coracle_tree::remove(directory)
}
