//! What a keeper and a daemon say to each other, and what a keeper leaves on disk.
//!
//! A keeper outlives the daemon that started it, so an upgraded daemon meets old keepers: every message carries
//! [`PROTOCOL_VERSION`], fields are only ever added with a default, and the records on disk are read leniently.
//!
//! Each operation has a connection of its own on the keeper's `SOCK_SEQPACKET` socket: one request, then its
//! replies. A connection that closes ends what it asked for (an exec is killed), except for a container, which
//! is what must outlive its daemon.

pub mod wire;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Version of the messages. A keeper refuses a request of a later version with [`Reply::Failed`].
pub const PROTOCOL_VERSION: u32 = 1;

/// Annotation of an OCI specification: numbers of the capabilities that the container really gets, with commas.
/// The specification itself has two more, which the keeper's child needs to the end and gives up then.
pub const CAPABILITIES_ANNOTATION: &str = "coracle.capabilities";
/// Annotation of an OCI specification that wants the default system call filter.
pub const FILTER_ANNOTATION: &str = "coracle.filter";

/// File in a sandbox's run directory with the [`SandboxSetup`].
pub const SETUP_FILE: &str = "keeper.json";
/// The keeper's socket in a sandbox's run directory.
pub const SOCKET_FILE: &str = "keeper.sock";
/// Directory of pinned namespaces (`net`, `ipc`, `uts`, `pid`) in a sandbox's run directory. All that is mounted
/// for a sandbox is below its [`MOUNTS_DIR`], so that one call takes all of it away.
pub const NAMESPACES_DIR: &str = "mounts/ns";
/// A small file system in a sandbox's run directory.
pub const MOUNTS_DIR: &str = "mounts";
/// File in a container's directory with the [`StartRecord`].
pub const START_FILE: &str = "start.json";
/// File in a container's directory with the [`ExitRecord`].
pub const EXIT_FILE: &str = "exit.json";

/// How a keeper sets itself up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSetup {
    /// Host name of the Pod; only with a UTS namespace of its own.
    pub hostname: String,
    /// Make and pin a network namespace (with loopback up) and a UTS namespace.
    pub own_network: bool,
    /// Make and pin an IPC namespace.
    pub own_ipc: bool,
    /// Make and pin a process namespace, with an init that reaps, shared by all containers.
    pub shared_pid: bool,
    /// Kernel parameters to write inside the namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// `cgroup.procs` files of the cgroups that the keeper itself belongs in.
    pub cgroup_procs: Vec<PathBuf>,
}

/// How to start a container whose bundle (`config.json`, mounted root file system) is ready.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Id of the container.
    pub container: String,
    /// Its durable directory: the bundle, and where records go.
    pub dir: PathBuf,
    /// Directory for the OCI library's own state of this sandbox's containers; not durable.
    pub oci_root: PathBuf,
    /// Log file.
    pub log_path: PathBuf,
    /// Give it a terminal.
    pub tty: bool,
    /// Keep its standard input open.
    pub stdin: bool,
    /// User id of its first process, which must be able to open its own standard streams.
    pub uid: u32,
    /// `cgroup.procs` files of its cgroups.
    pub cgroup_procs: Vec<PathBuf>,
    /// File with an `oom_kill N` line, which tells an out-of-memory kill from another.
    pub oom_file: Option<PathBuf>,
    /// Wanted score; the keeper gets as near as it may.
    pub oom_score_adj: Option<i32>,
    /// Its processes outlive its first one (no process namespace of its own), so kill what is left in its
    /// cgroup when the first one ends.
    pub kill_stragglers: bool,
}

/// How to run one more process in a running container. Standard streams come along as descriptors: with a
/// terminal none, otherwise stdin, stdout and stderr.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Id of the container.
    pub container: String,
    /// See [`Start::oci_root`].
    pub oci_root: PathBuf,
    /// File with the OCI process to run.
    pub process_file: PathBuf,
    /// Socket that takes the terminal, when it is to have one.
    pub console_socket: Option<PathBuf>,
    /// User id of the process.
    pub uid: u32,
    /// `cgroup.procs` files of the container's cgroups.
    pub cgroup_procs: Vec<PathBuf>,
    /// See [`Start::oom_score_adj`].
    pub oom_score_adj: Option<i32>,
}

/// What a daemon asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Who are you, and tell me about every exit from now on: [`Reply::Hello`], then [`Reply::Exited`]s.
    Subscribe,
    /// [`Reply::Started`] once its program has been executed, or [`Reply::Failed`].
    Start(Box<Start>),
    /// [`Reply::Started`] and then [`Reply::ExecExited`], or [`Reply::Failed`].
    Exec(Box<Exec>),
    /// Sends a signal to a container's first process; [`Reply::Done`] also if it has ended.
    Signal {
        /// Id of the container.
        container: String,
        /// Number of the signal.
        signal: i32,
    },
    /// Closes the log file and opens it anew by its path.
    ReopenLog {
        /// Id of the container.
        container: String,
    },
    /// Kills what runs and ends the keeper.
    Shutdown,
}

/// A request with the version of its sender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub version: u32,
    /// The request.
    pub request: Request,
}

/// What a keeper answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The keeper is set up and listens.
    Hello {
        /// [`PROTOCOL_VERSION`] of the keeper.
        version: u32,
        /// Its process id.
        pid: i32,
        /// Containers that run now.
        running: Vec<String>,
    },
    /// The program was executed.
    Started {
        /// Process id on the host.
        pid: i32,
    },
    /// It could not be done; nothing is left of the attempt.
    Failed {
        /// Why, for people.
        message: String,
    },
    /// It is done.
    Done,
    /// A container has ended; its [`ExitRecord`] is on disk.
    Exited {
        /// Id of the container.
        container: String,
    },
    /// The command of an exec has ended.
    ExecExited {
        /// Exit code, 128 + n for signal n.
        exit_code: i32,
    },
}

/// A moment: nanoseconds since the epoch. The keeper has no calendar.
pub type UnixNanos = i64;

/// What is on disk about a start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartRecord {
    /// Process id on the host.
    pub pid: i32,
    /// When.
    pub started_at: UnixNanos,
}

/// What is on disk about an end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit code, 128 + n for signal n.
    pub exit_code: i32,
    /// The kernel killed something in the container for want of memory.
    pub oom_killed: bool,
    /// When.
    pub finished_at: UnixNanos,
    /// Set if it could not be started: why.
    #[serde(default)]
    pub start_error: Option<String>,
}

/// Writes `bytes` to `dir/name` so that after a crash the new file is there, whole.
pub fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    write_whole(dir, name, bytes)?;
    std::fs::File::open(dir)?.sync_all()
}

/// Writes `bytes` to `dir/name` so that after a crash either the old or the new file is there, whole.
pub fn write_whole(dir: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let temporary = dir.join(format!(".{name}.new"));
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    std::fs::rename(&temporary, dir.join(name))
}
