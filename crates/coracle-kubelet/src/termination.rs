//! Termination messages: the end of a file that the container writes, or of its log.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use coracle_clock::Clock;
use coracle_cri::ContainerStatus;
use k8s_openapi::api::core::v1::Pod;
use rustix::fs::{Mode, OFlags};

use crate::logs::last_output;
use crate::pod::containers;
use crate::spec::container::termination_message_path;

const MESSAGE_BYTES: u64 = 4096;
const ALL_MESSAGES_BYTES: usize = 12 * 1024;
const LOG_LINES: u64 = 80;
const LOG_BYTES: usize = 2048;

/// The message of a container that has ended; empty if it left none. Files that cannot be read say nothing.
///
/// `logs` is the directory of all Pods' logs: no log outside of it is read.
pub(crate) async fn read_message(clock: &Clock, logs: &Path, pod: &Pod, status: &ContainerStatus) -> String {
    let Some(spec) = &pod.spec else { return String::new() };
    let member = containers::find(spec, &status.container.name);
    let container = member.as_ref().map(|member| member.container.as_ref());
    let path = container.and_then(termination_message_path);
    let mounted = path.and_then(|path| status.mounts.iter().find(|mount| mount.container_path == path));
    let mut message = String::new();
    if let Some(mount) = mounted {
        let file = mount.host_path.clone();
        let read = clock.blocking(move || read_tail(&file, MESSAGE_BYTES)).await;
        message = read.unwrap_or_default();
    }
    let policy = container.and_then(|c| c.termination_message_policy.as_deref());
    let failed = status.exit_code.is_some_and(|code| code != 0);
    if message.is_empty() && failed && policy == Some("FallbackToLogsOnError") {
        let (root, path) = (logs.to_owned(), status.log_path.clone());
        let read = clock.blocking(move || last_output(&root, &path, LOG_LINES, LOG_BYTES)).await;
        message = String::from_utf8_lossy(&read.unwrap_or_default()).into_owned();
    }
    let share = ALL_MESSAGES_BYTES / containers::all(spec).count().max(1);
    message.truncate(message.floor_char_boundary(share));
    message
}

/// The file of the termination message on the host.
pub(crate) fn message_file(status: &ContainerStatus) -> Option<PathBuf> {
    let ours =
        |path: &Path| path.file_name().is_some_and(|n| n.to_string_lossy().ends_with("-termination-log"));
    status.mounts.iter().map(|m| &m.host_path).find(|path| ours(path)).cloned()
}

/// The last bytes of a regular file. What the user has mounted in its place is neither followed nor waited for.
fn read_tail(path: &Path, bytes: u64) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    file.seek(SeekFrom::Start(meta.len().saturating_sub(bytes)))?;
    let mut tail = Vec::new();
    file.take(bytes).read_to_end(&mut tail)?;
    Ok(String::from_utf8_lossy(&tail).into_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use coracle_cri::{Container, ContainerId, ContainerState, Mount, MountPropagation, PodSandboxId};
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::spec::container::TERMINATION_MESSAGE_PATH;

    /// The message of the first of `containers` containers, given its file and its log.
    async fn message(policy: &str, containers: usize, exit_code: i32, file: &str, log: &str) -> String {
        let all: Vec<_> = (0..containers)
            .map(|n| json!({"name": format!("c{n}"), "terminationMessagePolicy": policy}))
            .collect();
        message_in(json!({ "containers": all }), exit_code, file, log).await
    }

    /// The message of the container `c0` of a Pod.
    async fn message_in(spec: serde_json::Value, exit_code: i32, file: &str, log: &str) -> String {
        message_at(TERMINATION_MESSAGE_PATH, spec, exit_code, file, log).await
    }

    /// The same, where the container has the file at this path.
    async fn message_at(
        path: &str,
        spec: serde_json::Value,
        exit_code: i32,
        file: &str,
        log: &str,
    ) -> String {
        let root = tempfile::tempdir().unwrap();
        let log_path = root.path().join("ns_p_u/c0/0.log");
        std::fs::create_dir_all(log_path.parent().unwrap()).unwrap();
        std::fs::write(&log_path, log).unwrap();
        let host_path = root.path().join("0-termination-log");
        std::fs::write(&host_path, file).unwrap();
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
        let status = ContainerStatus {
            container: Container {
                id: ContainerId("i".into()),
                sandbox: PodSandboxId("s".into()),
                name: "c0".into(),
                attempt: 0,
                image: Default::default(),
                image_ref: String::new(),
                state: ContainerState::Exited,
                created_at: Timestamp::UNIX_EPOCH,
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
            },
            started_at: None,
            finished_at: None,
            exit_code: Some(exit_code),
            reason: String::new(),
            message: String::new(),
            log_path,
            mounts: vec![Mount {
                container_path: path.into(),
                host_path: host_path.clone(),
                readonly: false,
                recursive_readonly: false,
                image: None,
                propagation: MountPropagation::Private,
            }],
            user: None,
            pid: None,
            resources: Default::default(),
        };
        assert_eq!(message_file(&status), Some(host_path));
        read_message(&Clock::system(), root.path(), &pod, &status).await
    }

    #[tokio::test]
    async fn the_end_of_the_file_counts_and_the_log_only_after_a_failure_without_one() {
        const LOG: &str = "2026-01-01T00:00:00Z stderr F one\n2026-01-01T00:00:00Z stderr F two\n";
        const FALLBACK: &str = "FallbackToLogsOnError";
        assert_eq!(message("File", 1, 1, "said", LOG).await, "said");
        assert_eq!(message("File", 1, 1, "", LOG).await, "");
        assert_eq!(message(FALLBACK, 1, 1, "", LOG).await, "one\ntwo\n");
        assert_eq!(message(FALLBACK, 1, 0, "", LOG).await, "");
        assert_eq!(message(FALLBACK, 1, 1, "said", LOG).await, "said");
        let long = format!("{}end", "x".repeat(5000));
        let tail = message("File", 1, 0, &long, "").await;
        assert_eq!((tail.len(), tail.ends_with("end")), (4096, true));
        let shared = message("File", 6, 0, &long, "").await;
        assert_eq!((shared.len(), shared.ends_with("end")), (2048, false), "all containers share 12 KiB");
        let huge = format!("{}end", "ä".repeat(1 << 19));
        let tail = message("File", 1, 0, &huge, "").await;
        assert!(tail.ends_with("end") && (4000..4200).contains(&tail.len()), "{}", tail.len());
        let lines: String = (0..200).map(|n| format!("2026-01-01T00:00:00Z stderr F line {n}\n")).collect();
        let last = message(FALLBACK, 1, 1, "", &lines).await;
        assert!(last.starts_with("line 120\n") && last.ends_with("line 199\n"), "{last}");
        let wide = format!("2026-01-01T00:00:00Z stdout F {}end\n", "y".repeat(5000));
        let last = message(FALLBACK, 1, 1, "", &wide).await;
        assert_eq!((last.len(), last.ends_with("end\n")), (2048, true));
    }

    #[tokio::test]
    async fn the_file_is_where_the_container_says() {
        let said = async |wanted: &str, mounted: &str| {
            let spec = json!({"containers": [{"name": "c0", "terminationMessagePath": wanted}]});
            message_at(mounted, spec, 0, "said", "").await
        };
        assert_eq!(said("/var/why", "/var/why").await, "said");
        assert_eq!(said("var/why", "/var/why").await, "said");
        assert_eq!(said("/var/why", TERMINATION_MESSAGE_PATH).await, "", "it is a mount like any other");
    }

    #[test]
    fn what_is_no_regular_file_says_nothing() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::write(at("secret"), "secret").unwrap();
        std::os::unix::fs::symlink(at("secret"), at("link")).unwrap();
        let pipe = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), pipe, Mode::from_bits_retain(0o600), 0).unwrap();
        for name in ["link", "pipe", ".", "nothing"] {
            assert!(read_tail(&at(name), 10).is_err(), "{name}");
        }
        assert!(read_tail(Path::new("/dev/zero"), 10).is_err());
        assert_eq!(read_tail(&at("secret"), 4).unwrap(), "cret");
    }

    #[tokio::test]
    async fn containers_of_every_kind_leave_a_message_by_their_own_policy() {
        const LOG: &str = "2026-01-01T00:00:00Z stderr F one\n";
        for kind in ["initContainers", "ephemeralContainers"] {
            let own = json!([{"name": "c0", "terminationMessagePolicy": "FallbackToLogsOnError"}]);
            let spec = json!({"containers": [{"name": "app"}], kind: own});
            assert_eq!(message_in(spec, 1, "", LOG).await, "one\n", "{kind}");
        }
    }
}
