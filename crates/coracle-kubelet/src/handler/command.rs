//! Commands in containers, with as much of their output as anybody is shown.

use std::time::Duration;

use bytes::Bytes;
use coracle_cri::{ContainerId, ExecRequest};
use jiff::SignedDuration;
use tokio::sync::mpsc;

use super::Handlers;
use crate::pod::reasons::go_duration;

/// The most output that is kept: of all streams together.
pub(super) const OUTPUT_BYTES_MAX: usize = 10 * 1024;
/// The most of one stream that is read at all. A command that writes on is stopped by its full pipe, and by its time.
const READ_BYTES_MAX: usize = 16 << 20;

/// A command that came to its end.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) exit_code: i32,
    /// What it wrote to standard output, then what it wrote to standard error, cut.
    pub(super) output: String,
    /// What it wrote to standard error alone, cut.
    pub(super) errors: String,
}

/// A command that did not.
#[derive(Debug)]
pub(super) enum CommandError {
    /// It took longer than it may; it has been killed.
    TimedOut(String),
    /// It could not be run.
    NotRun(String),
}

/// Runs a command to its end. Dropping this kills it.
pub(super) async fn run(
    handlers: &Handlers,
    id: &ContainerId,
    command: &[String],
    timeout: Option<Duration>,
) -> Result<Ran, CommandError> {
    let request = ExecRequest { container: id.clone(), command: command.to_vec(), tty: false, stdin: false };
    let work = async {
        let session =
            handlers.runtime.exec(&request).await.map_err(|why| CommandError::NotRun(why.to_string()))?;
        let (stdout, stderr) = futures::join!(collect(session.stdout), collect(session.stderr));
        let exit_code = match session.exit.await {
            Ok(ended) => ended.map_err(|why| CommandError::NotRun(why.to_string()))?,
            Err(_) => return Err(CommandError::NotRun("nobody saw the command end".to_owned())),
        };
        let errors = String::from_utf8_lossy(&stderr).into_owned();
        let mut output = stdout;
        output.extend_from_slice(&stderr);
        output.truncate(OUTPUT_BYTES_MAX);
        Ok(Ran { exit_code, output: String::from_utf8_lossy(&output).into_owned(), errors })
    };
    let Some(limit) = timeout else { return work.await };
    handlers.clock.timeout(limit, work).await.unwrap_or_else(|| {
        let after = go_duration(SignedDuration::try_from(limit).unwrap_or(SignedDuration::MAX));
        Err(CommandError::TimedOut(format!(
            "command timed out: {:?} timed out after {after}",
            command.join(" ")
        )))
    })
}

/// The beginning of a stream; what is beyond is read and dropped, up to a point.
async fn collect(mut stream: mpsc::Receiver<Bytes>) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut read = 0;
    while let Some(chunk) = stream.recv().await {
        kept.extend_from_slice(&chunk[..chunk.len().min(OUTPUT_BYTES_MAX - kept.len())]);
        read += chunk.len();
        if read > READ_BYTES_MAX {
            // Held open, so that the command blocks instead of being told of a broken pipe.
            return std::future::pending().await;
        }
    }
    kept
}
