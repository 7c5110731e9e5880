//! What the engine remembers: small files, one directory for each sandbox and container, and their identities.
//!
//! `DATA/sandboxes/ID/sandbox.json` and `DATA/containers/ID/container.json` make the thing exist: they are the
//! last file written when it is made and the first removed when it goes. A directory without one is a leftover.
//! Beside them a keeper writes when a container started and how it ended.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use coracle_cri::{ContainerConfig, ContainerUser, LinuxContainerResources, PodSandboxConfig};
use coracle_keeper::{EXIT_FILE, ExitRecord, START_FILE, StartRecord, UnixNanos, write_durably, write_whole};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub(crate) const SANDBOX_FILE: &str = "sandbox.json";
pub(crate) const CONTAINER_FILE: &str = "container.json";
pub(crate) const RESOURCES_FILE: &str = "resources.json";
pub(crate) const SPEC_FILE: &str = "config.json";

/// How far a sandbox is; only forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SandboxPhase {
    /// Being made; after a crash, taken back.
    Creating,
    /// Usable.
    Ready,
    /// Stopped, or its keeper died. What it had may be partly taken back; stopping again does the rest.
    Stopped,
}

/// A sandbox on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) id: String,
    pub(crate) config: PodSandboxConfig,
    pub(crate) created_at: Timestamp,
    /// The Pod's control group below the cluster's.
    pub(crate) cgroup: PathBuf,
    pub(crate) phase: SandboxPhase,
    pub(crate) ips: Vec<IpAddr>,
}

/// A container on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: String,
    pub(crate) sandbox: String,
    pub(crate) pod_uid: String,
    pub(crate) config: ContainerConfig,
    pub(crate) created_at: Timestamp,
    pub(crate) image_ref: String,
    pub(crate) log_path: PathBuf,
    pub(crate) user: ContainerUser,
    /// Number of the signal that asks it to end.
    pub(crate) stop_signal: i32,
    /// Where its root file system is mounted.
    pub(crate) rootfs: PathBuf,
    /// Its control group below the cluster's.
    pub(crate) cgroup: PathBuf,
    /// It has a process namespace of its own: all in it die with its first process.
    pub(crate) own_pid_namespace: bool,
}

/// Directories of one engine.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) data: PathBuf,
    pub(crate) run: PathBuf,
}

impl Layout {
    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.data.join("sandboxes")
    }
    pub(crate) fn containers(&self) -> PathBuf {
        self.data.join("containers")
    }
    pub(crate) fn sandbox(&self, id: &str) -> PathBuf {
        self.sandboxes().join(id)
    }
    pub(crate) fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }
    pub(crate) fn sandbox_runs(&self) -> PathBuf {
        self.run.join("sandboxes")
    }
    pub(crate) fn sandbox_run(&self, id: &str) -> PathBuf {
        self.sandbox_runs().join(id)
    }
    /// What is needed while a sandbox's containers are being started.
    pub(crate) fn oci_root(&self, sandbox: &str) -> PathBuf {
        self.sandbox_run(sandbox).join("oci")
    }
}

/// Writes a record whole. Power loss may take back the latest one: nothing that it tells of has survived then,
/// and what is found instead is a leftover or a container that nobody started. The end of a container is the
/// exception, which [`store_exit`] writes.
pub(crate) fn store<T: Serialize>(dir: &Path, name: &str, record: &T) -> io::Result<()> {
    write_whole(dir, name, &serde_json::to_vec(record)?)
}

/// Writes down how a container ended, for good.
pub(crate) fn store_exit(dir: &Path, exit: &ExitRecord) -> io::Result<()> {
    write_durably(dir, EXIT_FILE, &serde_json::to_vec(exit)?)
}

/// Reads a record; `None` if there is none.
pub(crate) fn load<T: DeserializeOwned>(dir: &Path, name: &str) -> io::Result<Option<T>> {
    match std::fs::read(dir.join(name)) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A container's start, if it has been started.
pub(crate) fn load_start(dir: &Path) -> io::Result<Option<StartRecord>> {
    load(dir, START_FILE)
}

/// A container's end, if it has ended.
pub(crate) fn load_exit(dir: &Path) -> io::Result<Option<ExitRecord>> {
    load(dir, EXIT_FILE)
}

/// Limits changed since a container was made.
pub(crate) fn load_resources(dir: &Path) -> io::Result<Option<LinuxContainerResources>> {
    load(dir, RESOURCES_FILE)
}

/// A directory that only root enters.
pub(crate) fn make_private_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Removes a tree; succeeds if there is none. What is put there meanwhile goes with it.
pub(crate) fn remove_tree(dir: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(dir) {
        Ok(found) if found.is_dir() => coracle_tree::remove(dir),
        Ok(_) => Err(io::Error::from(io::ErrorKind::NotADirectory)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Names in a directory, sorted.
pub(crate) fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

pub(crate) fn timestamp(nanos: UnixNanos) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_default()
}

pub(crate) fn nanos(at: Timestamp) -> UnixNanos {
    UnixNanos::try_from(at.as_nanosecond()).unwrap_or(UnixNanos::MAX)
}
