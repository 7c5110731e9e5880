//! Termination messages: the end of a file that the container writes, or of its log.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};

use coracle_cri::ContainerStatus;
use k8s_openapi::api::core::v1::Pod;
use tokio::fs;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use crate::logs::last_output;
use crate::spec::container::TERMINATION_MESSAGE_PATH;

const MESSAGE_BYTES: u64 = 4096;
const ALL_MESSAGES_BYTES: u64 = 12 * 1024;
const LOG_LINES: u64 = 80;
const LOG_BYTES: u64 = 2048;

/// The message of a container that has ended; empty if it left none. Files that cannot be read say nothing.
///
/// `logs` is the directory of all Pods' logs: no log outside of it is read.
pub(crate) async fn read_message(logs: &Path, pod: &Pod, status: &ContainerStatus) -> String {
    let containers = pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default();
    let spec = containers.iter().find(|c| c.name == status.container.name);
    let share = ALL_MESSAGES_BYTES / u64::try_from(containers.len().max(1)).unwrap_or(1);
    let path = spec.and_then(|c| c.termination_message_path.as_deref()).unwrap_or(TERMINATION_MESSAGE_PATH);
    let mounted = status.mounts.iter().find(|m| m.container_path == Path::new(path));
    let mut message = String::new();
    if let Some(mount) = mounted {
        message = read_tail(&mount.host_path, MESSAGE_BYTES.min(share)).await.unwrap_or_default();
    }
    let policy = spec.and_then(|c| c.termination_message_policy.as_deref());
    let failed = status.exit_code.is_some_and(|code| code != 0);
    if message.is_empty() && failed && policy == Some("FallbackToLogsOnError") {
        message = log_tail(logs, &status.log_path, LOG_BYTES.min(share)).await;
    }
    message
}

/// The file of the termination message on the host.
pub(crate) fn message_file(status: &ContainerStatus) -> Option<PathBuf> {
    let ours =
        |path: &Path| path.file_name().is_some_and(|n| n.to_string_lossy().ends_with("-termination-log"));
    status.mounts.iter().map(|m| &m.host_path).find(|path| ours(path)).cloned()
}

async fn read_tail(path: &Path, bytes: u64) -> std::io::Result<String> {
    let mut file = fs::File::open(path).await?;
    let length = file.metadata().await?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes))).await?;
    let mut tail = Vec::new();
    file.take(bytes).read_to_end(&mut tail).await?;
    Ok(String::from_utf8_lossy(&tail).into_owned())
}

/// The last lines of a log, without their stamps.
async fn log_tail(root: &Path, path: &Path, bytes: u64) -> String {
    let (root, path) = (root.to_owned(), path.to_owned());
    let limit = usize::try_from(bytes).unwrap_or(usize::MAX);
    let read = tokio::task::spawn_blocking(move || last_output(&root, &path, LOG_LINES, limit)).await;
    let tail = read.ok().and_then(Result::ok).unwrap_or_default();
    String::from_utf8_lossy(&tail).into_owned()
}
