//! Snapshots: the content as of the oldest readable revision in one file, so that the segments before it can go.
//!
//! A snapshot is taken beside the writer, from a revision that the index is asked to keep meanwhile. It gets its
//! name when it is complete and durable, and only then the files that it replaces are removed. An interrupted one
//! leaves a `.tmp` file that the next opening removes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::format::{self, FILE_HEADER, FrameBuffer, SNAPSHOT_MAGIC};
use super::{Execution, Shared, snapshot_name};
use crate::contract::{Revision, StoreError};
use crate::files::{Directory, File, is_no_space};

/// How many keys are looked at with the index locked.
const KEYS_AT_ONCE: usize = 256;
const FRAME_BYTES: usize = 256 << 10;
/// The sequence number of a snapshot's last frame, which is empty.
pub(super) const LAST_FRAME: u64 = u64::MAX;

/// A snapshot on disk.
#[derive(Debug, Clone)]
pub(super) struct Existing {
    pub(super) name: String,
    pub(super) revision: Revision,
    pub(super) bytes: u64,
}

/// The files that a snapshot replaces.
#[derive(Debug)]
pub(super) struct Replaceable {
    /// Oldest first.
    pub(super) segments: Vec<String>,
    pub(super) snapshot: Option<String>,
}

/// A snapshot under way.
pub(super) struct Job {
    done: oneshot::Receiver<Option<Existing>>,
    cancelled: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Job {
    /// Starts a snapshot of `revision`, which is pinned. `None` if that is not possible now.
    pub(super) fn start(
        files: &Arc<dyn Directory>,
        shared: &Arc<Shared>,
        execution: Execution,
        revision: Revision,
        replaces: Replaceable,
    ) -> Option<Job> {
        let (sender, done) = oneshot::channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let run = Run {
            files: Arc::clone(files),
            shared: Arc::clone(shared),
            cancelled: Arc::clone(&cancelled),
            revision,
        };
        let thread = match execution {
            Execution::Threads => {
                let builder = std::thread::Builder::new().name("store-snapshot".to_owned());
                let spawned = builder.spawn(move || {
                    let result = run.all_at_once(&replaces);
                    run.end(result, sender);
                });
                match spawned {
                    Ok(thread) => Some(thread),
                    Err(error) => {
                        tracing::warn!(%error, "could not start a snapshot");
                        if let Ok(mut index) = shared.index_mut() {
                            index.unpin();
                        }
                        return None;
                    }
                }
            }
            Execution::Tasks => {
                // It owns no resource but files, which `cancelled` keeps it from touching: nobody needs to join it.
                drop(tokio::spawn(async move {
                    let result = run.bit_by_bit(&replaces).await;
                    run.end(result, sender);
                }));
                None
            }
        };
        Some(Job { done, cancelled, thread })
    }

    /// The result, if it has ended: `Some(None)` if there is no new snapshot.
    #[allow(clippy::option_option, reason = "not ended, ended without, ended with")]
    pub(super) fn poll(&mut self) -> Option<Option<Existing>> {
        match self.done.try_recv() {
            Ok(result) => Some(result),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(None),
        }
    }

    /// Ends it where it is.
    pub(super) fn cancel(self) {
        self.cancelled.store(true, Ordering::Release);
        if let Some(thread) = self.thread
            && thread.join().is_err()
        {
            tracing::error!("the snapshot has panicked");
        }
    }
}

enum Failure {
    Cancelled,
    Stopped(StoreError),
    /// Without consequence: the next one may have more luck.
    NoSpace(io::Error),
    Fatal(String),
}

struct Run {
    files: Arc<dyn Directory>,
    shared: Arc<Shared>,
    cancelled: Arc<AtomicBool>,
    revision: Revision,
}

/// The file being written.
struct Output {
    file: Box<dyn File>,
    end: u64,
    frames: u64,
    frame: FrameBuffer,
    after: Option<Bytes>,
}

impl Run {
    fn all_at_once(&self, replaces: &Replaceable) -> Result<Existing, Failure> {
        let mut output = self.begin()?;
        while self.step(&mut output)? {}
        self.finish(output, replaces)
    }

    async fn bit_by_bit(&self, replaces: &Replaceable) -> Result<Existing, Failure> {
        let mut output = self.begin()?;
        while self.step(&mut output)? {
            tokio::task::yield_now().await;
        }
        self.finish(output, replaces)
    }

    fn temporary(&self) -> String {
        format!("{}.tmp", snapshot_name(self.revision))
    }

    fn check(&self) -> Result<(), Failure> {
        if self.cancelled.load(Ordering::Acquire) || self.shared.is_closed() {
            return Err(Failure::Cancelled);
        }
        Ok(())
    }

    fn io<T>(&self, what: &str, result: io::Result<T>) -> Result<T, Failure> {
        result.map_err(|error| {
            if is_no_space(&error) {
                return Failure::NoSpace(error);
            }
            let path = self.files.describe(&snapshot_name(self.revision));
            Failure::Fatal(format!("{what} the snapshot {path} failed: {error}"))
        })
    }

    fn begin(&self) -> Result<Output, Failure> {
        self.check()?;
        let file = self.io("making", self.files.create(&self.temporary()))?;
        self.io("writing", file.write_at(0, &format::file_header(SNAPSHOT_MAGIC, self.revision)))?;
        let mut frame = FrameBuffer::default();
        frame.clear();
        Ok(Output { file, end: FILE_HEADER as u64, frames: 0, frame, after: None })
    }

    /// Writes some more; whether there is more.
    fn step(&self, output: &mut Output) -> Result<bool, Failure> {
        self.check()?;
        let mut items = Vec::new();
        let rest = {
            let index = self.shared.index().map_err(Failure::Stopped)?;
            let after = output.after.as_ref();
            index.range(&Bytes::new(), after, self.revision, usize::MAX, KEYS_AT_ONCE, &mut items)
        };
        for item in &items {
            output.frame.push_item(item);
            if output.frame.payload_len() >= FRAME_BYTES {
                self.write_frame(output, None)?;
            }
        }
        output.after = rest;
        Ok(output.after.is_some())
    }

    fn write_frame(&self, output: &mut Output, sequence: Option<u64>) -> Result<(), Failure> {
        let bytes = output.frame.finish(sequence.unwrap_or(output.frames));
        self.io("writing", output.file.write_at(output.end, bytes))?;
        output.end += bytes.len() as u64;
        output.frames += 1;
        output.frame.clear();
        Ok(())
    }

    fn finish(&self, mut output: Output, replaces: &Replaceable) -> Result<Existing, Failure> {
        if output.frame.payload_len() > 0 {
            self.write_frame(&mut output, None)?;
        }
        self.write_frame(&mut output, Some(LAST_FRAME))?;
        self.io("flushing", output.file.sync())?;
        self.check()?;
        let name = snapshot_name(self.revision);
        self.io("naming", self.files.rename(&self.temporary(), &name))?;
        self.io("naming", self.files.sync())?;
        // The new one counts now. Whatever an interruption leaves of the old files, the next opening removes.
        let old = replaces.snapshot.iter().filter(|old| **old != name);
        for old in old.chain(replaces.segments.iter()) {
            self.check()?;
            let removed = self.files.remove(old);
            if let Err(error) = removed {
                let path = self.files.describe(old);
                tracing::warn!(%error, path, "could not remove a file that a snapshot replaces");
            }
        }
        Ok(Existing { name, revision: self.revision, bytes: output.end })
    }

    fn end(&self, result: Result<Existing, Failure>, sender: oneshot::Sender<Option<Existing>>) {
        let failure = match result {
            Ok(existing) => {
                tracing::debug!(revision = %existing.revision, bytes = existing.bytes, "snapshot taken");
                self.unpin();
                drop(sender.send(Some(existing)));
                return;
            }
            Err(failure) => failure,
        };
        match failure {
            Failure::Cancelled => {}
            Failure::Stopped(error) => tracing::debug!(%error, "snapshot given up"),
            Failure::NoSpace(error) => tracing::warn!(%error, "no room for a snapshot, the log is kept"),
            Failure::Fatal(what) => drop(self.shared.stop(what)),
        }
        if !self.shared.is_closed() && !self.shared.is_stopped() {
            // It may not exist.
            drop(self.files.remove(&self.temporary()));
        }
        self.unpin();
        drop(sender.send(None));
    }

    fn unpin(&self) {
        if let Ok(mut index) = self.shared.index_mut() {
            index.unpin();
        }
    }
}
