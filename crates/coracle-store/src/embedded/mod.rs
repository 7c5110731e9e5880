//! The embedded engine: an index in memory over a checksummed log.
//!
//! ```text
//! txn ─▶ queue ─▶ writer: decide the group ─▶ one write ─▶ one flush ─▶ index ─▶ watches ─▶ answers
//!                    │ enough garbage on disk
//!                    └─▶ snapshot of the oldest readable revision ─▶ old segments go
//! get, list ─▶ index          watch ─▶ history, then live
//! ```
//!
//! - [`format`](self) (private) says what the bytes are and what damage is; `index` is pure, and so are
//!   the retention and the hub, which this engine shares with others.
//! - The writer is the only one who writes to the log; transactions that come while it flushes form the next group.
//! - Locks are taken in the order hub, index, and never across a flush.
//! - Compaction is about memory and the readable past: after a restart some compacted history may be readable again.

mod format;
mod index;
mod recovery;
mod restore;
mod snapshot;
mod writer;

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use bytes::Bytes;
use coracle_clock::Clock;
use tokio::sync::{mpsc, oneshot};

use crate::contract::{
    KeyValue, ListPage, ListRequest, Op, Revision, Store, StoreError, StoreResult, Txn, TxnOutcome,
    WatchBatch, WatchStream,
};
use crate::files::{Directory, Disk};
use crate::hub::Hub;
pub use crate::retention::Retention;
use index::Index;
pub use recovery::{Cut, OpenError, Recovery};
pub use restore::NewStore;
use writer::{Request, Writer};

/// Transactions that wait for the writer; more wait for their place.
const QUEUE: usize = 1024;
/// Keys and values of one transaction take no more bytes than this.
const TXN_BYTES: usize = 64 << 20;
/// How many keys a read looks at with the index locked.
const LIST_AT_ONCE: usize = 4096;
/// So many unfinished lists in pages are remembered.
const COUNTS: usize = 64;
/// How many commits are freed with the index locked.
const TRIM_AT_ONCE: usize = 512;

/// Who does the work in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Execution {
    /// Threads: for files that block.
    #[default]
    Threads,
    /// Tasks of the current Tokio runtime: for simulated files, so that one schedule gives one run.
    Tasks,
}

/// How a store behaves.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Where the work is done.
    pub execution: Execution,
    /// How much history is kept.
    pub retention: Retention,
    /// The log is cut into files of this size.
    pub segment_bytes: u64,
    /// How much garbage the files may hold beside their content, and at least as much as the content itself.
    pub garbage_bytes: u64,
    /// How many batches a watch may be behind before it ends.
    pub watch_buffer: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            execution: Execution::Threads,
            retention: Retention::default(),
            segment_bytes: 8 << 20,
            garbage_bytes: 16 << 20,
            watch_buffer: 1024,
        }
    }
}

/// The embedded engine.
///
/// Dropping it ends the writer, after the transactions that are already in the queue, and frees the directory.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    counts: Mutex<Counts>,
    queue: Option<mpsc::Sender<Request>>,
    writer: Background,
    /// Freed when everything else has ended.
    _lock: Box<dyn Any + Send + Sync>,
}

/// How many keys come after the pages that were read last. What one revision holds does not change, so a list in
/// pages counts once.
#[derive(Default)]
struct Counts(VecDeque<(Revision, Bytes, Bytes, usize)>);

impl Counts {
    /// How many keys come after what `request` continues.
    fn take(&mut self, request: &ListRequest, revision: Revision) -> Option<usize> {
        let after = request.after.as_ref()?;
        let at = self.0.iter().position(|(at, prefix, last, _)| {
            *at == revision && *prefix == request.prefix && last == after
        })?;
        self.0.remove(at).map(|(.., remaining)| remaining)
    }

    fn put(&mut self, prefix: &Bytes, revision: Revision, last: &Bytes, remaining: usize) {
        if self.0.len() == COUNTS {
            self.0.pop_front();
        }
        self.0.push_back((revision, prefix.clone(), last.clone(), remaining));
    }
}

enum Background {
    Thread(Option<std::thread::JoinHandle<()>>),
    Task(tokio::task::JoinHandle<()>),
}

/// What readers, the writer and a snapshot share.
struct Shared {
    clock: Clock,
    index: RwLock<Index>,
    hub: Mutex<Hub>,
    stopped: OnceLock<StoreError>,
    /// The store has been dropped: nobody touches the files any more.
    closed: AtomicBool,
}

impl EmbeddedStore {
    /// Opens the store in the directory `path`, and makes it if there is none. Blocks for the recovery.
    ///
    /// # Errors
    /// As [`EmbeddedStore::open`].
    pub fn open_dir(path: &Path, clock: Clock, options: Options) -> Result<(Arc<Self>, Recovery), OpenError> {
        let disk = Disk::open(path).map_err(|source| OpenError::Io {
            doing: "open the directory",
            file: path.display().to_string(),
            source,
        })?;
        Self::open(Arc::new(disk), clock, options)
    }

    /// Opens the store in `files`, and makes it if there is none. Blocks for the recovery. With
    /// [`Execution::Tasks`] it must be called in a Tokio runtime.
    ///
    /// # Errors
    /// If another process has it, a newer version wrote it, or something durable is damaged. Nothing has been
    /// changed then.
    pub fn open(
        files: Arc<dyn Directory>,
        clock: Clock,
        options: Options,
    ) -> Result<(Arc<Self>, Recovery), OpenError> {
        let lock = files.lock().map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => OpenError::Locked { path: files.describe("") },
            _ => OpenError::Io { doing: "lock", file: files.describe(""), source },
        })?;
        let recovered = recovery::recover(&*files, &options)?;
        let shared = Arc::new(Shared {
            clock,
            index: RwLock::new(recovered.index),
            hub: Mutex::new(Hub::new(options.watch_buffer)),
            stopped: OnceLock::new(),
            closed: AtomicBool::new(false),
        });
        let (queue, requests) = mpsc::channel(QUEUE);
        let writer = Writer::new(
            files,
            Arc::clone(&shared),
            options,
            recovered.active,
            recovered.sealed,
            recovered.snapshot,
        );
        let writer = match options.execution {
            Execution::Threads => {
                let builder = std::thread::Builder::new().name("store-writer".to_owned());
                let thread = builder
                    .spawn(move || writer.run_on_thread(requests))
                    .map_err(|error| OpenError::Start(format!("cannot start the store's thread: {error}")))?;
                Background::Thread(Some(thread))
            }
            Execution::Tasks => Background::Task(tokio::spawn(writer.run_as_task(requests))),
        };
        let store =
            EmbeddedStore { shared, counts: Mutex::default(), queue: Some(queue), writer, _lock: lock };
        Ok((Arc::new(store), recovered.report))
    }

    /// How much memory the history takes, about.
    ///
    /// # Errors
    /// If the store has stopped.
    pub fn history_bytes(&self) -> StoreResult<u64> {
        Ok(self.shared.index()?.history_cost())
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Entries are whole or absent, whatever panics.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A list in pieces, so that a long one does not keep the writer waiting. `None` if a compaction came between.
    async fn list_in_pieces(&self, request: &ListRequest) -> StoreResult<Option<ListPage>> {
        let limit = if request.limit == 0 { usize::MAX } else { request.limit };
        let mut items = Vec::new();
        let mut after = request.after.clone();
        let mut at = request.at;
        loop {
            {
                let index = self.shared.index()?;
                let revision = *at.get_or_insert(index.revision());
                match index.check_readable(revision) {
                    Err(StoreError::Compacted { .. }) if request.at.is_none() => return Ok(None),
                    checked => checked?,
                }
                let rest =
                    index.range(&request.prefix, after.as_ref(), revision, limit, LIST_AT_ONCE, &mut items);
                let Some(rest) = rest else {
                    return Ok(Some(ListPage { items, revision, remaining: 0 }));
                };
                if let Some(last) = items.last()
                    && items.len() == limit
                {
                    let remaining = match self.counts().take(request, revision) {
                        Some(after_the_page_before) => after_the_page_before - limit,
                        None => index.count(&request.prefix, &rest, revision),
                    };
                    self.counts().put(&request.prefix, revision, &last.key, remaining);
                    return Ok(Some(ListPage { items, revision, remaining }));
                }
                after = Some(rest);
            }
            tokio::task::yield_now().await;
        }
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn revision(&self) -> StoreResult<Revision> {
        Ok(self.shared.index()?.revision())
    }

    async fn get(&self, key: &Bytes) -> StoreResult<(Option<KeyValue>, Revision)> {
        let index = self.shared.index()?;
        Ok((index.get(key), index.revision()))
    }

    async fn list(&self, request: &ListRequest) -> StoreResult<ListPage> {
        match self.list_in_pieces(request).await? {
            Some(page) => Ok(page),
            None => self.shared.index()?.list(request),
        }
    }

    async fn txn(&self, txn: Txn) -> StoreResult<TxnOutcome> {
        txn.check()?;
        check_size(&txn)?;
        let (reply, answer) = oneshot::channel();
        let queue = self.queue.as_ref().expect("the queue is there until the store is dropped");
        if queue.send(Request { txn, reply }).await.is_err() {
            return Err(self.shared.why_stopped());
        }
        answer.await.unwrap_or_else(|_| Err(self.shared.why_stopped()))
    }

    async fn watch(&self, prefix: Bytes, after: Option<Revision>) -> StoreResult<WatchStream> {
        // The hub is locked first: no commit can come between history and subscription.
        let mut hub = self.shared.hub();
        let index = self.shared.index()?;
        let revision = index.revision();
        let events = match after {
            None => Vec::new(),
            Some(after) => {
                index.check_readable(after)?;
                index.events_after(after, |key| key.starts_with(&prefix))
            }
        };
        drop(index);
        Ok(hub.subscribe(prefix, WatchBatch { events, revision }))
    }

    async fn compact(&self, revision: Revision) -> StoreResult<()> {
        {
            let mut index = self.shared.index_mut()?;
            let current = index.revision();
            if revision > current {
                return Err(StoreError::Future { requested: revision, current });
            }
            index.forget_before(revision);
        }
        while self.shared.index_mut()?.trim(TRIM_AT_ONCE) {
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        drop(self.queue.take());
        match &mut self.writer {
            Background::Thread(thread) => {
                if let Some(thread) = thread.take()
                    && thread.join().is_err()
                {
                    tracing::error!("the store's writer has panicked");
                }
            }
            // It runs on this very thread, so it is between two groups now.
            Background::Task(task) => task.abort(),
        }
        self.shared.closed.store(true, Ordering::Release);
        self.shared.hub().stop(&StoreError::Stopped("it was closed".to_owned()));
    }
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EmbeddedStore")
    }
}

impl Shared {
    fn index(&self) -> StoreResult<RwLockReadGuard<'_, Index>> {
        self.check()?;
        self.index.read().map_err(|_| StoreError::Stopped("a writer has panicked".to_owned()))
    }

    fn index_mut(&self) -> StoreResult<RwLockWriteGuard<'_, Index>> {
        self.check()?;
        self.index.write().map_err(|_| StoreError::Stopped("a writer has panicked".to_owned()))
    }

    fn hub(&self) -> MutexGuard<'_, Hub> {
        // Whatever a panic left in there, `Index` is what tells the truth, and it refuses after a panic.
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self) -> StoreResult<()> {
        self.stopped.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    fn is_stopped(&self) -> bool {
        self.stopped.get().is_some()
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn why_stopped(&self) -> StoreError {
        let ended = || StoreError::Stopped("its writer has ended".to_owned());
        self.stopped.get().cloned().unwrap_or_else(ended)
    }

    /// Stops the store for good; the first reason stays.
    fn stop(&self, what: String) -> StoreError {
        let error = self.stopped.get_or_init(|| {
            tracing::error!(what, "the store stops");
            StoreError::Stopped(what)
        });
        self.hub().stop(error);
        error.clone()
    }
}

/// Refuses transactions that are too large.
fn check_size(txn: &Txn) -> StoreResult<()> {
    let bytes: usize = txn
        .ops
        .iter()
        .map(|op| match op {
            Op::Put { key, value } => key.len() + value.len(),
            Op::Delete { key } => key.len(),
        })
        .sum();
    if bytes > TXN_BYTES {
        return Err(StoreError::NoSpace(format!(
            "a transaction of {bytes} bytes is over the limit of {TXN_BYTES}"
        )));
    }
    Ok(())
}

fn segment_name(first: Revision) -> String {
    format!("{:020}.log", first.0)
}

fn snapshot_name(revision: Revision) -> String {
    format!("{:020}.snapshot", revision.0)
}
