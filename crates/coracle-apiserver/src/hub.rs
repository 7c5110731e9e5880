//! The watch hub: one watch of the store, fanned out to every watcher.
//!
//! One task follows the whole key space and sorts events into a ring per storage prefix. A watcher has a cursor and
//! pulls what lies behind it; a notification only tells it to look. So nothing here waits for a watcher: one
//! that falls out of the ring finds that out at its next look and is told that its revision is too old.
//!
//! # Guarantees
//! - A watcher that starts after revision R sees each later change of its prefix exactly once, in order.
//! - Progress, once read, covers events that a look made afterwards returns: a bookmark is never ahead of an event.
//! - Bytes of an event are made once, whoever asks first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use coracle_clock::Clock;
use coracle_clock::watch;
use coracle_store::{EventKind, Revision, Store, StoreError, StoreResult, WatchBatch, WatchStream};

use crate::object;

/// Events kept per prefix; older ones come from the store's own history.
const RING_EVENTS: usize = 4096;
/// Bytes of events kept per prefix, old and new values together.
const RING_BYTES: usize = 16 << 20;

/// A pause before a store that does not answer is asked again.
const RETRY: Duration = Duration::from_millis(500);

/// What a watcher sees of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WatchKind {
    /// The object is new to this watcher.
    Added,
    /// It changed.
    Modified,
    /// It is gone, or no longer selected.
    Deleted,
}

impl WatchKind {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            WatchKind::Added => "ADDED",
            WatchKind::Modified => "MODIFIED",
            WatchKind::Deleted => "DELETED",
        }
    }
}

/// One change of one object.
#[derive(Debug)]
pub struct Event {
    /// When it happened.
    pub revision: Revision,
    /// The storage key.
    pub key: Bytes,
    /// Stored bytes after the change; `None` for a removal.
    pub new: Option<Bytes>,
    /// Stored bytes before the change.
    pub old: Option<Bytes>,
    lines: [OnceLock<Bytes>; 3],
}

impl Event {
    pub(crate) fn from_store(event: coracle_store::Event) -> Self {
        Event {
            revision: event.revision,
            key: event.key,
            new: match event.kind {
                EventKind::Put => event.value,
                EventKind::Delete => None,
            },
            old: event.previous.map(|previous| previous.value),
            lines: [OnceLock::new(), OnceLock::new(), OnceLock::new()],
        }
    }

    /// The stored bytes that `kind` shows: what was there before for a deletion, what is there now otherwise.
    #[must_use]
    pub fn shown(&self, kind: WatchKind) -> Option<&Bytes> {
        match kind {
            WatchKind::Added | WatchKind::Modified => self.new.as_ref(),
            WatchKind::Deleted => self.old.as_ref(),
        }
    }

    /// The line of a watch in which this event is of `kind`, shared by all its watchers.
    pub(crate) fn line(&self, kind: WatchKind) -> Option<Bytes> {
        let cell = &self.lines[kind as usize];
        if let Some(line) = cell.get() {
            return Some(line.clone());
        }
        let stored = self.shown(kind)?;
        let mut out = Vec::with_capacity(stored.len() + 96);
        out.extend_from_slice(br#"{"type":""#);
        out.extend_from_slice(kind.as_str().as_bytes());
        out.extend_from_slice(br#"","object":"#);
        object::write_object(&mut out, stored, self.revision).ok()?;
        out.extend_from_slice(b"}\n");
        Some(cell.get_or_init(|| out.into()).clone())
    }

    fn size(&self) -> usize {
        self.new.as_ref().map_or(0, Bytes::len) + self.old.as_ref().map_or(0, Bytes::len)
    }
}

#[derive(Debug)]
struct Ring {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// Every event of the prefix after this revision, up to the hub's progress, is in `events`.
    floor: Revision,
}

/// The events of one storage prefix.
#[derive(Debug)]
struct Feed {
    ring: Mutex<Ring>,
    /// Revision of the newest event; watchers wait for it to change.
    newest: watch::Sender<Revision>,
}

impl Feed {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Pushing and popping cannot panic half way.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets everything up to `begin`.
    fn begin_again(&self, begin: Revision) {
        let mut ring = self.ring();
        *ring = Ring { events: VecDeque::new(), bytes: 0, floor: begin };
    }

    fn push(&self, event: Arc<Event>) {
        let mut ring = self.ring();
        ring.bytes += event.size();
        ring.events.push_back(event);
        while ring.events.len() > RING_EVENTS || (ring.bytes > RING_BYTES && ring.events.len() > 1) {
            let Some(dropped) = ring.events.pop_front() else { break };
            ring.bytes -= dropped.size();
            ring.floor = dropped.revision;
        }
        // Several events of one transaction share a revision; a cursor at it has to lie above all of them.
        while ring.events.front().is_some_and(|next| next.revision <= ring.floor) {
            if let Some(dropped) = ring.events.pop_front() {
                ring.bytes -= dropped.size();
            }
        }
    }
}

/// Why a watch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEnd {
    /// History after the watcher's revision is no longer complete.
    TooOld {
        /// Where the watcher was.
        requested: Revision,
        /// The oldest revision it could start from.
        oldest: Revision,
    },
    /// The hub, and with it the server, is ending.
    Closed,
    /// The store failed.
    Store(StoreError),
}

/// The hub.
pub struct Hub {
    store: Arc<dyn Store>,
    clock: Clock,
    feeds: BTreeMap<&'static str, Arc<Feed>>,
    progress: Arc<AtomicU64>,
    closed: watch::Sender<bool>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("progress", &self.progress()).finish_non_exhaustive()
    }
}

impl Hub {
    /// A hub over `store` for the given storage prefixes (as `/registry/pods`); `root` is a prefix of all of them.
    /// The future that comes with it feeds the hub, through every absence of the store, and ends only when the store
    /// has stopped.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn start(
        store: Arc<dyn Store>,
        clock: Clock,
        root: &'static str,
        prefixes: Vec<&'static str>,
    ) -> StoreResult<(Arc<Hub>, impl Future<Output = StoreError> + Send + use<>)> {
        let begin = store.revision().await?;
        let stream = store.watch(Bytes::from_static(root.as_bytes()), Some(begin)).await?;
        let feed = || {
            let ring = Mutex::new(Ring { events: VecDeque::new(), bytes: 0, floor: begin });
            Arc::new(Feed { ring, newest: watch::Sender::new(begin) })
        };
        let feeds = prefixes.into_iter().map(|prefix| (prefix, feed())).collect();
        let hub = Arc::new(Hub {
            store,
            clock,
            feeds,
            progress: Arc::new(AtomicU64::new(begin.0)),
            closed: watch::Sender::new(false),
        });
        let feeder = Arc::clone(&hub);
        Ok((Arc::clone(&hub), async move {
            let error = feeder.follow(stream, root).await;
            feeder.closed.send_replace(true);
            error
        }))
    }

    async fn follow(&self, mut stream: WatchStream, root: &'static str) -> StoreError {
        loop {
            let error = match stream.recv().await {
                Some(Ok(batch)) => {
                    self.publish(batch);
                    continue;
                }
                Some(Err(error)) => error,
                None => StoreError::Lagging,
            };
            stream = match self.resume(error, root).await {
                Ok(again) => again,
                Err(error) => return error,
            };
        }
    }

    /// A watch that goes on where the last one ended because of `error`.
    async fn resume(&self, mut error: StoreError, root: &'static str) -> StoreResult<WatchStream> {
        let root = Bytes::from_static(root.as_bytes());
        loop {
            let resumed = match error {
                // Resuming after what was published keeps the stream gapless.
                StoreError::Lagging | StoreError::Unavailable(_) => {
                    self.store.watch(root.clone(), Some(self.progress())).await
                }
                // What happened in between is gone: whoever has not seen it must look anew.
                StoreError::Compacted { .. } => self.begin_again(&root).await,
                fatal => return Err(fatal),
            };
            error = match resumed {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            if matches!(error, StoreError::Unavailable(_)) {
                self.clock.sleep(RETRY).await;
            }
        }
    }

    /// Goes on at the newest revision; every watcher that is behind it is told that it is too old.
    async fn begin_again(&self, root: &Bytes) -> StoreResult<WatchStream> {
        let begin = self.store.revision().await?;
        let stream = self.store.watch(root.clone(), Some(begin)).await?;
        tracing::warn!(%begin, after = %self.progress(), "changes were missed; watches begin again");
        for feed in self.feeds.values() {
            feed.begin_again(begin);
        }
        self.progress.fetch_max(begin.0, Ordering::Release);
        for feed in self.feeds.values() {
            feed.newest.send_replace(begin);
        }
        Ok(stream)
    }

    fn publish(&self, batch: WatchBatch) {
        let mut touched: BTreeMap<&'static str, Revision> = BTreeMap::new();
        for event in batch.events {
            let Some((prefix, feed)) = self.feed_of(&event.key) else { continue };
            touched.insert(prefix, event.revision);
            feed.push(Arc::new(Event::from_store(event)));
        }
        self.progress.fetch_max(batch.revision.0, Ordering::Release);
        for (prefix, revision) in touched {
            if let Some(feed) = self.feeds.get(prefix) {
                feed.newest.send_replace(revision);
            }
        }
    }

    fn feed_of(&self, key: &[u8]) -> Option<(&'static str, &Arc<Feed>)> {
        // The prefix that a key belongs to is the greatest one that is not greater than the key.
        let key = std::str::from_utf8(key).ok()?;
        let mut end = key.len();
        while let Some(slash) = key[..end].rfind('/') {
            if let Some((prefix, feed)) = self.feeds.get_key_value(&key[..slash]) {
                return Some((prefix, feed));
            }
            end = slash;
        }
        None
    }

    /// Every change up to this revision has been published.
    #[must_use]
    pub fn progress(&self) -> Revision {
        Revision(self.progress.load(Ordering::Acquire))
    }

    /// Ends every watch.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Follows the changes of `prefix` with revisions greater than `after`.
    ///
    /// # Errors
    /// [`WatchEnd::TooOld`] if history no longer reaches back to `after`, [`WatchEnd::Store`] if the store fails.
    pub async fn watch(&self, prefix: &str, after: Revision) -> Result<Watcher, WatchEnd> {
        let Some(feed) = self.feeds.get(prefix).cloned() else { return Err(WatchEnd::Closed) };
        let newest = feed.newest.subscribe();
        let mut watcher = Watcher {
            feed,
            newest,
            closed: self.closed.subscribe(),
            progress: Arc::clone(&self.progress),
            cursor: after,
            replay: None,
        };
        let floor = watcher.feed.ring().floor;
        if after < floor {
            let keys = Bytes::from(format!("{prefix}/"));
            let stream = self.store.watch(keys, Some(after)).await.map_err(|error| match error {
                StoreError::Compacted { requested, oldest } => WatchEnd::TooOld { requested, oldest },
                other => WatchEnd::Store(other),
            })?;
            watcher.replay = Some(stream);
        }
        Ok(watcher)
    }
}

/// A cursor in the history of one prefix.
#[derive(Debug)]
pub struct Watcher {
    feed: Arc<Feed>,
    newest: watch::Receiver<Revision>,
    closed: watch::Receiver<bool>,
    progress: Arc<AtomicU64>,
    cursor: Revision,
    /// History from before the ring, until the cursor has reached it.
    replay: Option<WatchStream>,
}

impl Watcher {
    /// Everything of the prefix up to this revision has been returned by [`Watcher::next`].
    #[must_use]
    pub fn cursor(&self) -> Revision {
        self.cursor
    }

    /// The next events, in order; waits for at least one. Cancellation-safe: an unfinished call returned nothing
    /// and skipped nothing.
    ///
    /// # Errors
    /// Why the watch is over.
    pub async fn next(&mut self) -> Result<Vec<Arc<Event>>, WatchEnd> {
        loop {
            if *self.closed.borrow() {
                return Err(WatchEnd::Closed);
            }
            let events = match self.replay.as_mut() {
                Some(stream) => {
                    let batch = coracle_clock::select! {
                        _ = self.closed.changed() => continue,
                        batch = stream.recv() => batch,
                    };
                    match batch {
                        Some(Ok(batch)) => self.replayed(batch),
                        Some(Err(StoreError::Compacted { requested, oldest })) => {
                            return Err(WatchEnd::TooOld { requested, oldest });
                        }
                        Some(Err(StoreError::Lagging)) | None => {
                            return Err(WatchEnd::TooOld { requested: self.cursor, oldest: self.cursor });
                        }
                        Some(Err(error)) => return Err(WatchEnd::Store(error)),
                    }
                }
                None => self.ready()?,
            };
            if !events.is_empty() {
                return Ok(events);
            }
            if self.replay.is_none() {
                coracle_clock::select! {
                    _ = self.closed.changed() => {}
                    _ = self.newest.changed() => {}
                }
            }
        }
    }

    /// What lies behind the cursor right now; moves the cursor up to the hub's progress, so that it is a
    /// bookmark afterwards.
    ///
    /// # Errors
    /// [`WatchEnd::TooOld`] if the watcher was too slow for the ring.
    pub fn ready(&mut self) -> Result<Vec<Arc<Event>>, WatchEnd> {
        if self.replay.is_some() {
            return Ok(Vec::new());
        }
        // Progress is read before the ring: what it covers has been pushed by then. The notification is marked as
        // seen before as well, so that an event pushed meanwhile wakes us again.
        let progress = Revision(self.progress.load(Ordering::Acquire));
        self.newest.borrow_and_update();
        let ring = self.feed.ring();
        if self.cursor < ring.floor {
            return Err(WatchEnd::TooOld { requested: self.cursor, oldest: ring.floor });
        }
        let begin = ring.events.partition_point(|event| event.revision <= self.cursor);
        let events: Vec<_> = ring
            .events
            .iter()
            .skip(begin)
            // A transaction is published as a whole: its later half may still be on its way.
            .take_while(|event| event.revision <= progress)
            .cloned()
            .collect();
        self.cursor = self.cursor.max(progress);
        Ok(events)
    }

    fn replayed(&mut self, batch: WatchBatch) -> Vec<Arc<Event>> {
        let begin = self.cursor;
        self.cursor = self.cursor.max(batch.revision);
        if self.cursor >= self.feed.ring().floor {
            self.replay = None;
        }
        let after = |event: &coracle_store::Event| event.revision > begin;
        batch.events.into_iter().filter(after).map(|event| Arc::new(Event::from_store(event))).collect()
    }
}
