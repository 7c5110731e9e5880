//! What a keeper and a daemon say to each other, and what a keeper leaves on disk.
//!
//! A keeper outlives the daemon that started it, so an upgraded daemon meets old keepers, and an older one newer
//! keepers: a request carries the version that it came with ([`Request::since`]), so that all who know it do it; a
//! keeper tells its own; fields are only ever added with a default, and the records on disk are read leniently.
//!
//! Each operation has a connection of its own on the keeper's `SOCK_SEQPACKET` socket: one request, then its
//! replies. A connection that closes ends what it asked for (an exec is killed), except for a container, which
//! is what must outlive its daemon.

pub mod kill;
pub mod wire;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Version of the messages. It rises when there is a new request, or when one means something new.
pub const PROTOCOL_VERSION: u32 = 2;
/// The oldest version that is still spoken.
pub const OLDEST_VERSION: u32 = 1;

/// Why a keeper, or a daemon, of this version cannot be talked to, if so. `who` is the one of that version.
#[must_use]
pub fn version_problem(who: &str, version: u32) -> Option<String> {
    if version < OLDEST_VERSION {
        return Some(format!(
            "{who} speaks version {version} of the protocol, which is too old: {OLDEST_VERSION} is the oldest that is \
             spoken here"
        ));
    }
    None
}

/// Annotation of an OCI specification: numbers of the capabilities that the container really gets, with commas.
/// The specification itself has two more, which the keeper's child needs to the end and gives up then.
pub const CAPABILITIES_ANNOTATION: &str = "coracle.capabilities";
/// Annotation of an OCI specification that wants the default system call filter.
pub const FILTER_ANNOTATION: &str = "coracle.filter";

/// File in a sandbox's run directory with the [`SandboxSetup`].
pub const SETUP_FILE: &str = "keeper.json";
/// The keeper's socket in a sandbox's run directory.
pub const SOCKET_FILE: &str = "keeper.sock";
/// Directory of pinned namespaces in a sandbox's run directory: `net`, for who gives it addresses, and `pid`, for the
/// containers that share it. The others are the keeper's, from which its containers have them. Each pin is a
/// mount, and every start of a container copies and reads all mounts of the machine. All that is mounted for a
/// sandbox is below its [`MOUNTS_DIR`], so that one call takes all of it away.
pub const NAMESPACES_DIR: &str = "mounts/ns";
/// A small file system in a sandbox's run directory.
pub const MOUNTS_DIR: &str = "mounts";
/// File in a container's directory with the [`StartRecord`].
pub const START_FILE: &str = "start.json";
/// File in a container's directory with the [`ExitRecord`].
pub const EXIT_FILE: &str = "exit.json";

/// How a keeper sets itself up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxSetup {
    /// Host name of the Pod; only with a UTS namespace of its own.
    pub hostname: String,
    /// Make a network namespace (with loopback up), which is pinned, and a UTS namespace.
    pub own_network: bool,
    /// Make an IPC namespace.
    pub own_ipc: bool,
    /// Make and pin a process namespace, with an init that reaps, shared by all containers.
    pub shared_pid: bool,
    /// Kernel parameters to write inside the namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// `cgroup.procs` files of the cgroups that the keeper itself belongs in.
    pub cgroup_procs: Vec<PathBuf>,
}

/// How large a log gets, and how many there are of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimit {
    /// Length at which a log gets another name and a new one begins.
    pub bytes: u64,
    /// Files kept, with the one that is written.
    pub files: u32,
}

impl Default for LogLimit {
    /// Upstream's `containerLogMaxSize` and `containerLogMaxFiles`.
    fn default() -> Self {
        LogLimit { bytes: 10 << 20, files: 5 }
    }
}

/// Whether the file `name` is what `log` (both without a directory) became when it was rotated:
/// `LOG.YYYYMMDD-HHMMSS`.
#[must_use]
pub fn is_rotation_of(name: &str, log: &str) -> bool {
    let stamp = name.strip_prefix(log).and_then(|rest| rest.strip_prefix('.')).unwrap_or_default();
    stamp.len() == 15
        && stamp
            .bytes()
            .enumerate()
            .all(|(i, byte)| if i == 8 { byte == b'-' } else { byte.is_ascii_digit() })
}

/// How to start a container whose bundle (`config.json`, mounted root file system) is ready.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Start {
    /// Id of the container.
    pub container: String,
    /// Its durable directory: the bundle, and where records go.
    pub dir: PathBuf,
    /// Directory for what is needed while a container of this sandbox is being started; not durable.
    pub oci_root: PathBuf,
    /// Log file.
    pub log_path: PathBuf,
    /// Give it a terminal.
    pub tty: bool,
    /// Keep its standard input open.
    pub stdin: bool,
    /// Close its standard input with the first attacher that has it.
    pub stdin_once: bool,
    /// User id of its first process, which must be able to open its own standard streams.
    pub uid: u32,
    /// `cgroup.procs` files of its cgroups.
    pub cgroup_procs: Vec<PathBuf>,
    /// File with an `oom_kill N` line, which tells an out-of-memory kill from another.
    pub oom_file: Option<PathBuf>,
    /// Wanted score; the keeper gets as near as it may.
    pub oom_score_adj: Option<i32>,
    /// When to rotate the log; never, for a daemon that does not ask for it.
    pub log_limit: Option<LogLimit>,
    /// Its processes outlive its first one (no process namespace of its own), so kill what is left in its
    /// cgroup when the first one ends.
    pub kill_stragglers: bool,
}

/// How to run one more process in a running container. Standard streams come along as descriptors: with a
/// terminal none, otherwise stdin, stdout and stderr.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
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

/// Whose output, and whose input. Descriptors come along in the order of the fields: a pipe to read what is typed
/// from, and pipes to write standard output (or the terminal) and standard error to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attach {
    /// Id of the container.
    pub container: String,
    /// Write to its standard input.
    pub stdin: bool,
    /// Be told of its standard output.
    pub stdout: bool,
    /// Be told of its standard error.
    pub stderr: bool,
}

/// What a daemon asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Who are you, and tell me about every exit from now on: [`Reply::Hello`], then [`Reply::Exited`]s.
    Subscribe,
    /// [`Reply::Started`] once its program has been executed, or [`Reply::Failed`]. Who asks for what has been
    /// asked for already gets the answer to that.
    Start(Box<Start>),
    /// [`Reply::Started`] and then [`Reply::ExecExited`], or [`Reply::Failed`].
    Exec(Box<Exec>),
    /// Sends a signal to a container's first process; [`Reply::Done`] also if it has ended. One that is being
    /// started takes a kill only.
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
    /// [`Reply::Attached`] and, at the end, [`Reply::Detached`]; or [`Reply::Failed`].
    Attach(Attach),
    /// Gives a container's terminal another size, in characters; [`Reply::Done`] also if it has none.
    Resize {
        /// Id of the container.
        container: String,
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Kills what runs and ends the keeper.
    Shutdown,
}

impl Request {
    /// The version of the protocol that this request came with.
    #[must_use]
    pub fn since(&self) -> u32 {
        match self {
            Request::Subscribe
            | Request::Start(_)
            | Request::Exec(_)
            | Request::Signal { .. }
            | Request::ReopenLog { .. }
            | Request::Shutdown => 1,
            Request::Attach(_) | Request::Resize { .. } => 2,
        }
    }
}

/// A request with the version that it needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// [`Request::since`] of the request.
    pub version: u32,
    /// The request.
    pub request: Request,
}

/// What a keeper answers. A daemon skips an answer that it does not know.
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
    /// A container has ended. Its [`ExitRecord`] is on disk, unless the disk did not take it. To a new listener
    /// the latter are told before the [`Reply::Hello`].
    Exited {
        /// Id of the container.
        container: String,
        /// How. A keeper of before this field leaves it out.
        #[serde(default)]
        record: Option<ExitRecord>,
    },
    /// From now on.
    Attached,
    /// The container has ended, or the attacher's input has where that ends the attachment.
    Detached {
        /// Why the attacher was cut off, if it was.
        #[serde(default)]
        problem: Option<String>,
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
    /// Nobody saw the end, as when the machine lost its power; code and time are made up.
    #[serde(default)]
    pub unseen: bool,
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

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    /// What version 1 began as, word for word: keepers that say this, and records that read so, are out there.
    fn first_words() -> Vec<(&'static str, Value)> {
        vec![
            (
                "setup",
                json!({"hostname": "web", "own_network": true, "own_ipc": true, "shared_pid": false,
                "sysctls": {"net.core.somaxconn": "10"}, "cgroup_procs": ["/sys/fs/cgroup/x/cgroup.procs"]}),
            ),
            ("started", json!({"pid": 7, "started_at": 5})),
            ("ended", json!({"exit_code": 3, "oom_killed": false, "finished_at": 9})),
            ("request", json!({"version": 1, "request": "subscribe"})),
            (
                "request",
                json!({"version": 1, "request": {"start": {"container": "c", "dir": "/d", "oci_root": "/o",
                "log_path": "/l", "tty": false, "stdin": false, "uid": 0, "cgroup_procs": [], "oom_file": null,
                "oom_score_adj": 3, "kill_stragglers": false}}}),
            ),
            (
                "request",
                json!({"version": 1, "request": {"exec": {"container": "c", "oci_root": "/o",
                "process_file": "/p", "console_socket": null, "uid": 0, "cgroup_procs": [],
                "oom_score_adj": null}}}),
            ),
            ("request", json!({"version": 1, "request": {"signal": {"container": "c", "signal": 15}}})),
            ("request", json!({"version": 1, "request": {"reopen_log": {"container": "c"}}})),
            ("request", json!({"version": 1, "request": "shutdown"})),
            ("reply", json!({"hello": {"version": 1, "pid": 3, "running": ["c"]}})),
            ("reply", json!({"started": {"pid": 3}})),
            ("reply", json!({"failed": {"message": "no"}})),
            ("reply", json!("done")),
            ("reply", json!({"exited": {"container": "c"}})),
            ("reply", json!({"exec_exited": {"exit_code": 1}})),
        ]
    }

    /// What came with version 2.
    fn second_words() -> Vec<(&'static str, Value)> {
        vec![
            (
                "request",
                json!({"version": 2, "request": {"attach": {"container": "c", "stdin": true, "stdout": true,
                "stderr": false}}}),
            ),
            (
                "request",
                json!({"version": 2, "request": {"resize": {"container": "c", "width": 80, "height": 24}}}),
            ),
            ("reply", json!("attached")),
            ("reply", json!({"detached": {}})),
            ("reply", json!({"detached": {"problem": "slow"}})),
        ]
    }

    fn decode(kind: &str, value: &Value) -> Value {
        fn there_and_back<T: DeserializeOwned + Serialize>(value: &Value) -> Value {
            let decoded: T = serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{value}: {e}"));
            serde_json::to_value(decoded).unwrap()
        }
        match kind {
            "setup" => there_and_back::<SandboxSetup>(value),
            "started" => there_and_back::<StartRecord>(value),
            "ended" => there_and_back::<ExitRecord>(value),
            "request" => there_and_back::<Envelope>(value),
            _ => there_and_back::<Reply>(value),
        }
    }

    /// With a field that nobody knows.
    fn extended(value: &Value) -> Value {
        let mut value = value.clone();
        if let Value::Object(fields) = &mut value {
            fields.insert("a_later_field".into(), json!({"x": [1]}));
        }
        value
    }

    /// The same of what a variant carries.
    fn extended_variant(value: &Value) -> Value {
        match value {
            Value::Object(variant) => {
                Value::Object(variant.iter().map(|(name, fields)| (name.clone(), extended(fields))).collect())
            }
            unit => unit.clone(),
        }
    }

    /// Whether `found` says all that `expected` says.
    fn contains(found: &Value, expected: &Value) -> bool {
        match (found, expected) {
            (Value::Object(found), Value::Object(expected)) => {
                expected.iter().all(|(name, value)| found.get(name).is_some_and(|f| contains(f, value)))
            }
            (found, expected) => found == expected,
        }
    }

    #[test]
    fn the_first_words_of_each_version_are_understood_for_ever() {
        for (kind, words) in first_words().into_iter().chain(second_words()) {
            let decoded = decode(kind, &words);
            assert!(contains(&decoded, &words), "{words} became {decoded}");
        }
    }

    #[test]
    fn what_a_later_version_adds_is_passed_over() {
        for (kind, words) in first_words().into_iter().chain(second_words()) {
            let words_and_more = match kind {
                "reply" => extended_variant(&words),
                "request" => {
                    let mut envelope = extended(&words);
                    envelope["request"] = extended_variant(&words["request"]);
                    envelope
                }
                _ => extended(&words),
            };
            let decoded = decode(kind, &words_and_more);
            assert!(contains(&decoded, &words), "{words_and_more} became {decoded}");
        }
    }

    #[test]
    fn what_an_earlier_version_leaves_out_has_a_default() {
        assert_eq!(serde_json::from_str::<SandboxSetup>("{}").unwrap(), SandboxSetup::default());
        assert_eq!(serde_json::from_str::<Start>("{}").unwrap(), Start::default());
        assert_eq!(serde_json::from_str::<Exec>("{}").unwrap(), Exec::default());
        let exited: Reply = serde_json::from_str(r#"{"exited":{"container":"c"}}"#).unwrap();
        assert_eq!(exited, Reply::Exited { container: "c".into(), record: None });
    }

    #[test]
    fn what_an_older_keeper_does_not_know_asks_for_a_version_that_it_refuses() {
        assert_eq!(Request::Attach(Attach::default()).since(), 2);
        assert_eq!(Request::Resize { container: String::new(), width: 1, height: 1 }.since(), 2);
        // What older keepers do is asked for in their own words.
        assert_eq!(Request::Start(Box::default()).since(), 1);
    }

    #[test]
    fn rotated_logs_have_upstreams_names() {
        assert!(is_rotation_of("0.log.20000229-123456", "0.log"));
        for other in [
            "0.log",
            "0.log.tmp",
            "10.log.20000229-123456",
            "0.log.20000229-12345x",
            "0.log.20000229-1234567",
        ] {
            assert!(!is_rotation_of(other, "0.log"), "{other}");
        }
    }
}
