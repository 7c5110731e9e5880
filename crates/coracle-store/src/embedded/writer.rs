//! Group commit: one writer takes every transaction that waits, decides them in order, and makes them durable with
//! one write and one flush. Nothing of a group is visible, and nobody of it is answered, before its flush.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::format::{self, FILE_HEADER, FrameBuffer, SEGMENT_MAGIC};
use super::index::Index;
use super::snapshot::{self, Job, Replaceable};
use super::{Options, Shared, segment_name};
use crate::contract::{Event, EventKind, KeyValue, Op, Revision, StoreError, StoreResult, Txn, TxnOutcome};
use crate::files::{Directory, File, is_no_space};
use crate::retention::Ages;

/// A group is closed when its record has reached this size.
const GROUP_BYTES: usize = 2 << 20;
const GROUP_TXNS: usize = 1024;
/// How much old history is freed after a group, at least; it is always more than what the group adds.
const TRIM_COMMITS: usize = 64;
/// How often watches without events hear how far the store has come, while there are writes.
const PROGRESS: Duration = Duration::from_secs(1);
/// How long after a snapshot that did not come about the next is tried.
const SNAPSHOT_RETRY: Duration = Duration::from_secs(30);

/// A transaction and who waits for it.
pub(super) struct Request {
    pub(super) txn: Txn,
    pub(super) reply: oneshot::Sender<StoreResult<TxnOutcome>>,
}

/// The segment that is being written.
pub(super) struct Segment {
    pub(super) name: String,
    pub(super) file: Box<dyn File>,
    pub(super) end: u64,
}

/// A segment that is complete.
#[derive(Debug, Clone)]
pub(super) struct Sealed {
    pub(super) name: String,
    pub(super) last: Revision,
    pub(super) bytes: u64,
}

pub(super) struct Writer {
    pub(super) files: Arc<dyn Directory>,
    pub(super) shared: Arc<Shared>,
    pub(super) options: Options,
    pub(super) active: Segment,
    pub(super) sealed: Vec<Sealed>,
    pub(super) snapshot: Option<snapshot::Existing>,
    pub(super) job: Option<Job>,
    frame: FrameBuffer,
    ages: Ages,
    last_progress: Duration,
    no_snapshot_before: Duration,
}

/// What a group's transactions come to, before anything is durable.
struct Group {
    /// In the order of the requests.
    outcomes: Vec<StoreResult<TxnOutcome>>,
    commits: Vec<Vec<Event>>,
}

enum WriteFailure {
    /// Nothing happened.
    NoSpace(String),
    /// The files are in an unknown state.
    Fatal(String),
}

impl Writer {
    pub(super) fn new(
        files: Arc<dyn Directory>,
        shared: Arc<Shared>,
        options: Options,
        active: Segment,
        sealed: Vec<Sealed>,
        snapshot: Option<snapshot::Existing>,
    ) -> Self {
        Writer {
            files,
            shared,
            options,
            active,
            sealed,
            snapshot,
            job: None,
            frame: FrameBuffer::default(),
            ages: Ages::default(),
            last_progress: Duration::ZERO,
            no_snapshot_before: Duration::ZERO,
        }
    }

    /// Serves on a thread of its own until all senders are gone.
    pub(super) fn run_on_thread(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut group = Vec::new();
        while requests.blocking_recv_many(&mut group, GROUP_TXNS) > 0 {
            self.commit(&mut group);
        }
        self.close();
    }

    /// Serves as a task, for file layers that do not block.
    pub(super) async fn run_as_task(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut group = Vec::new();
        while requests.recv_many(&mut group, GROUP_TXNS).await > 0 {
            self.commit(&mut group);
        }
        self.close();
    }

    /// Gives back the space that was reserved and not used. A failure leaves only that: the next opening does it.
    fn close(mut self) {
        if let Some(job) = self.job.take() {
            job.cancel();
        }
        if !self.shared.is_stopped()
            && let Err(error) = self.active.file.set_len(self.active.end)
        {
            tracing::debug!(%error, "could not trim the last segment");
        }
    }

    fn commit(&mut self, requests: &mut Vec<Request>) {
        while !requests.is_empty() {
            let (taken, result) = self.commit_some(requests);
            let (outcomes, failure) = match result {
                Ok(outcomes) => (outcomes, None),
                Err(error) => (Vec::new(), Some(error)),
            };
            let mut outcomes = outcomes.into_iter();
            for request in requests.drain(..taken) {
                let outcome = match (&failure, outcomes.next()) {
                    (Some(error), _) => Err(error.clone()),
                    (None, Some(outcome)) => outcome,
                    (None, None) => Err(StoreError::Stopped("a transaction was not decided".to_owned())),
                };
                // Who does not wait any more does not hear.
                drop(request.reply.send(outcome));
            }
        }
        self.maintain();
    }

    /// Commits as many of the requests as go into one group; how many, and their outcomes.
    fn commit_some(&mut self, requests: &[Request]) -> (usize, StoreResult<Vec<StoreResult<TxnOutcome>>>) {
        let first = match self.shared.index() {
            Ok(index) => Revision(index.revision().0 + 1),
            Err(error) => return (requests.len(), Err(error)),
        };
        let (taken, group) = match self.decide(requests, first) {
            Ok(decided) => decided,
            Err(error) => return (requests.len(), Err(error)),
        };
        if group.commits.is_empty() {
            return (taken, Ok(group.outcomes));
        }
        match self.write(first) {
            Ok(()) => {}
            Err(WriteFailure::NoSpace(what)) => return (taken, Err(StoreError::NoSpace(what))),
            Err(WriteFailure::Fatal(what)) => return (requests.len(), Err(self.shared.stop(what))),
        }
        if let Err(error) = self.publish(group.commits) {
            return (requests.len(), Err(error));
        }
        (taken, Ok(group.outcomes))
    }

    /// Decides transactions in order and puts what they change into the frame.
    fn decide(&mut self, requests: &[Request], first: Revision) -> StoreResult<(usize, Group)> {
        let shared = Arc::clone(&self.shared);
        let index = shared.index()?;
        let mut view = View { index: &index, changed: HashMap::new() };
        let mut group = Group { outcomes: Vec::with_capacity(requests.len()), commits: Vec::new() };
        self.frame.clear();
        for request in requests {
            if self.frame.payload_len() >= GROUP_BYTES {
                break;
            }
            let next = Revision(first.0 + group.commits.len() as u64);
            group.outcomes.push(Ok(match view.decide(&request.txn, next) {
                Decision::Conflict(states) => TxnOutcome::Conflict(states),
                Decision::Nothing => TxnOutcome::Committed(Revision(next.0 - 1)),
                Decision::Commit(events) => {
                    self.frame.push_txn(&request.txn.ops);
                    group.commits.push(events);
                    TxnOutcome::Committed(next)
                }
            }));
        }
        Ok((group.outcomes.len(), group))
    }

    /// Writes the frame and flushes it.
    fn write(&mut self, first: Revision) -> Result<(), WriteFailure> {
        let length = self.frame.payload_len() as u64 + 64;
        if self.active.end > FILE_HEADER as u64 && self.active.end + length > self.options.segment_bytes {
            self.rotate(first)?;
        }
        let frame = self.frame.finish(first.0);
        let length = frame.len() as u64;
        if let Err(error) = self.active.file.write_at(self.active.end, frame) {
            let path = self.files.describe(&self.active.name);
            if !is_no_space(&error) {
                return Err(WriteFailure::Fatal(format!("cannot write {path}: {error}")));
            }
            return match self.repair_tail() {
                Ok(()) => Err(WriteFailure::NoSpace(format!("cannot write {path}: {error}"))),
                Err(repair) => Err(WriteFailure::Fatal(format!("cannot repair {path}: {repair}"))),
            };
        }
        if let Err(error) = self.active.file.sync() {
            let path = self.files.describe(&self.active.name);
            return Err(WriteFailure::Fatal(format!("flushing {path} failed: {error}")));
        }
        self.active.end += length;
        Ok(())
    }

    /// Removes a part of a frame, durably: nothing of it may show up between frames that come later.
    fn repair_tail(&self) -> io::Result<()> {
        self.active.file.set_len(self.active.end)?;
        reserve(&*self.active.file, self.options.segment_bytes);
        self.active.file.sync()
    }

    /// Seals the active segment and starts the next.
    fn rotate(&mut self, first: Revision) -> Result<(), WriteFailure> {
        let path = self.files.describe(&self.active.name);
        let fatal = |error: io::Error| WriteFailure::Fatal(format!("sealing {path} failed: {error}"));
        // The new one first: if there is no room for it, the old one stays as it is.
        let next = prepare_segment(&*self.files, first, self.options.segment_bytes)?;
        self.active.file.set_len(self.active.end).map_err(fatal)?;
        self.active.file.sync().map_err(fatal)?;
        let next = next.publish(&*self.files)?;
        let sealed = std::mem::replace(&mut self.active, next);
        self.sealed.push(Sealed { name: sealed.name, last: Revision(first.0 - 1), bytes: sealed.end });
        Ok(())
    }

    /// Makes a durable group visible.
    fn publish(&mut self, commits: Vec<Vec<Event>>) -> StoreResult<()> {
        let count = commits.len();
        let now = self.shared.clock.elapsed();
        let progress = now.saturating_sub(self.last_progress) >= PROGRESS;
        if progress {
            self.last_progress = now;
        }
        let mut hub = self.shared.hub();
        let has_watches = hub.is_watched();
        let events: Vec<Event> =
            if has_watches { commits.iter().flatten().cloned().collect() } else { Vec::new() };
        let mut index = self.shared.index_mut()?;
        for events in commits {
            index.apply(events);
        }
        let revision = index.revision();
        let limits = &self.options.retention;
        index.forget_before(self.ages.oldest(limits, now, revision));
        index.forget_above_cost(limits.bytes);
        index.trim(TRIM_COMMITS + 2 * count);
        drop(index);
        if has_watches {
            hub.publish(&events, revision, progress);
        }
        Ok(())
    }

    /// Starts a snapshot when enough of the files is garbage, and takes note of one that has ended.
    fn maintain(&mut self) {
        if let Some(job) = &mut self.job {
            let Some(done) = job.poll() else { return };
            self.job = None;
            match done {
                Some(existing) => {
                    self.sealed.retain(|segment| segment.last > existing.revision);
                    self.snapshot = Some(existing);
                }
                None => self.no_snapshot_before = self.shared.clock.elapsed() + SNAPSHOT_RETRY,
            }
        }
        if self.sealed.is_empty() || self.shared.clock.elapsed() < self.no_snapshot_before {
            return;
        }
        let Ok(mut index) = self.shared.index_mut() else { return };
        let at = index.oldest();
        let replaceable: Vec<Sealed> =
            self.sealed.iter().filter(|segment| segment.last <= at).cloned().collect();
        let on_disk = replaceable.iter().map(|segment| segment.bytes).sum::<u64>()
            + self.snapshot.as_ref().map_or(0, |snapshot| snapshot.bytes);
        let content = index.snapshot_bytes();
        let garbage = on_disk.saturating_sub(content);
        if replaceable.is_empty() || garbage < content.max(self.options.garbage_bytes) {
            return;
        }
        index.pin(at);
        drop(index);
        let replaceable = Replaceable {
            segments: replaceable.into_iter().map(|segment| segment.name).collect(),
            snapshot: self.snapshot.as_ref().map(|snapshot| snapshot.name.clone()),
        };
        self.job = Job::start(&self.files, &self.shared, self.options.execution, at, replaceable);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Nobody waits for ever for a writer that is no more.
        if std::thread::panicking() {
            self.shared.stop("its writer has panicked".to_owned());
        }
    }
}

/// A segment that has no name of its own yet.
pub(super) struct Prepared {
    temporary: String,
    segment: Segment,
}

/// Makes a segment for the revisions from `first` on, durable but for its name.
fn prepare_segment(files: &dyn Directory, first: Revision, bytes: u64) -> Result<Prepared, WriteFailure> {
    let name = segment_name(first);
    let temporary = format!("{name}.tmp");
    let path = files.describe(&temporary);
    let made = files.create(&temporary).and_then(|file| {
        reserve(&*file, bytes);
        file.write_at(0, &format::file_header(SEGMENT_MAGIC, first))?;
        Ok(file)
    });
    let file = match made {
        Ok(file) => file,
        Err(error) if is_no_space(&error) => {
            if let Err(error) = files.remove(&temporary) {
                tracing::debug!(%error, path, "could not remove a segment that has no room");
            }
            return Err(WriteFailure::NoSpace(format!("cannot make {path}: {error}")));
        }
        Err(error) => return Err(WriteFailure::Fatal(format!("cannot make {path}: {error}"))),
    };
    file.sync().map_err(|error| WriteFailure::Fatal(format!("flushing {path} failed: {error}")))?;
    Ok(Prepared { temporary, segment: Segment { name, file, end: FILE_HEADER as u64 } })
}

impl Prepared {
    fn publish(self, files: &dyn Directory) -> Result<Segment, WriteFailure> {
        let path = files.describe(&self.segment.name);
        files
            .rename(&self.temporary, &self.segment.name)
            .and_then(|()| files.sync())
            .map_err(|error| WriteFailure::Fatal(format!("cannot name {path}: {error}")))?;
        Ok(self.segment)
    }
}

/// Makes the segment that starts at `first`, durably.
pub(super) fn create_segment(files: &dyn Directory, first: Revision, bytes: u64) -> Result<Segment, String> {
    prepare_segment(files, first, bytes).and_then(|prepared| prepared.publish(files)).map_err(|failure| {
        match failure {
            WriteFailure::NoSpace(what) | WriteFailure::Fatal(what) => what,
        }
    })
}

/// Reserving is for speed only: a file system that cannot, or has little space left, gets a growing file.
fn reserve(file: &dyn File, bytes: u64) {
    if let Err(error) = file.reserve(bytes) {
        tracing::debug!(%error, "could not reserve space for a segment");
    }
}

/// The index with the changes of a group that is not durable yet.
struct View<'a> {
    index: &'a Index,
    changed: HashMap<Bytes, Option<KeyValue>>,
}

enum Decision {
    Conflict(Vec<Option<KeyValue>>),
    /// The conditions hold and nothing changes.
    Nothing,
    Commit(Vec<Event>),
}

impl View<'_> {
    fn get(&self, key: &Bytes) -> Option<KeyValue> {
        match self.changed.get(key) {
            Some(changed) => changed.clone(),
            None => self.index.get(key),
        }
    }

    /// Decides a transaction that would commit at `revision`.
    fn decide(&mut self, txn: &Txn, revision: Revision) -> Decision {
        let holds = txn.compares.iter().all(|compare| {
            self.get(&compare.key).map_or(Revision(0), |current| current.mod_revision) == compare.mod_revision
        });
        if !holds {
            return Decision::Conflict(txn.compares.iter().map(|compare| self.get(&compare.key)).collect());
        }
        let events: Vec<Event> = txn.ops.iter().filter_map(|op| self.event(op, revision)).collect();
        if events.is_empty() {
            return Decision::Nothing;
        }
        for event in &events {
            let now = event.value.clone().map(|value| KeyValue {
                key: event.key.clone(),
                value,
                create_revision: event.previous.as_ref().map_or(revision, |before| before.create_revision),
                mod_revision: revision,
            });
            self.changed.insert(event.key.clone(), now);
        }
        Decision::Commit(events)
    }

    fn event(&self, op: &Op, revision: Revision) -> Option<Event> {
        match op {
            Op::Put { key, value } => Some(Event {
                kind: EventKind::Put,
                revision,
                key: key.clone(),
                value: Some(value.clone()),
                previous: self.get(key),
            }),
            Op::Delete { key } => Some(Event {
                kind: EventKind::Delete,
                revision,
                key: key.clone(),
                value: None,
                previous: Some(self.get(key)?),
            }),
        }
    }
}
