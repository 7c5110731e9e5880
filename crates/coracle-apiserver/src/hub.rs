//! The watch hub: one watch of the store, fanned out to every watcher.
//!
//! One task follows the whole key space and sorts events into a ring per storage prefix. A watcher has a cursor and
//! pulls what lies behind it; a notification only tells it to look. So nothing here waits for a watcher: one
//! that falls out of the ring finds that out at its next look and is told that its revision is too old.
//!
//! # Guarantees
//! - A watcher that starts after revision R sees each later change of its scope exactly once, in order.
//! - Progress, once read, covers events that a look made afterwards returns: a bookmark is never ahead of an event.
//! - Who watches one object, one namespace or one value of the indexed field is not woken by any other event.
//! - What is derived from an event is made once for all who ask at about the same time, and held in bounded memory.

mod event;
mod feed;
mod watcher;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use coracle_clock::{Clock, watch};
use coracle_store::{Revision, Store, StoreError, StoreResult, WatchBatch, WatchStream};

use event::Kept;
pub(crate) use event::line;
pub use event::{Attributes, Event, Side, WatchKind};
use feed::Feed;
pub use feed::Scope;
use watcher::Replay;
pub use watcher::Watcher;

/// A pause before a store that does not answer is asked again.
const RETRY: Duration = Duration::from_millis(500);
/// Bytes of lines and attributes made from events and kept for the next who asks.
const KEPT_BYTES: usize = 4 << 20;

/// A storage prefix, and the field by which its events are indexed: the path of a text in the stored form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// As `/registry/pods`.
    pub prefix: &'static str,
    /// As `spec.nodeName`.
    pub indexed: Option<&'static str>,
}

/// What the hub and its watchers share.
#[derive(Debug)]
struct Shared {
    progress: AtomicU64,
    wakeups: AtomicU64,
}

impl Shared {
    fn progress(&self) -> Revision {
        Revision(self.progress.load(Ordering::Acquire))
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
    shared: Arc<Shared>,
    kept: Arc<Kept>,
    closed: watch::Sender<bool>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("progress", &self.progress()).finish_non_exhaustive()
    }
}

impl Hub {
    /// A hub over `store` for the given storage prefixes; `root` is a prefix of all of them.
    /// The future that comes with it feeds the hub, through every absence of the store, and ends only when the store
    /// has stopped.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn start(
        store: Arc<dyn Store>,
        clock: Clock,
        root: &'static str,
        prefixes: Vec<Prefix>,
    ) -> StoreResult<(Arc<Hub>, impl Future<Output = StoreError> + Send + use<>)> {
        let begin = store.revision().await?;
        let stream = store.watch(Bytes::from_static(root.as_bytes()), Some(begin)).await?;
        let feed = |Prefix { prefix, indexed }| (prefix, Arc::new(Feed::new(prefix, indexed, begin)));
        let feeds = prefixes.into_iter().map(feed).collect();
        let hub = Arc::new(Hub {
            store,
            clock,
            feeds,
            shared: Arc::new(Shared { progress: AtomicU64::new(begin.0), wakeups: AtomicU64::new(0) }),
            kept: Arc::new(Kept::new(KEPT_BYTES)),
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
        self.shared.progress.fetch_max(begin.0, Ordering::Release);
        for feed in self.feeds.values() {
            feed.notify(begin);
        }
        Ok(stream)
    }

    fn publish(&self, batch: WatchBatch) {
        let mut touched: BTreeMap<&'static str, Revision> = BTreeMap::new();
        for event in batch.events {
            let Some((prefix, feed)) = self.feed_of(&event.key) else { continue };
            touched.insert(prefix, event.revision);
            feed.push(Arc::new(Event::new(event, Some(Arc::clone(&self.kept)))));
        }
        self.shared.progress.fetch_max(batch.revision.0, Ordering::Release);
        for (prefix, revision) in touched {
            if let Some(feed) = self.feeds.get(prefix) {
                feed.notify(revision);
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
        self.shared.progress()
    }

    /// How many times a watcher has been told to look.
    #[must_use]
    pub fn wakeups(&self) -> u64 {
        self.shared.wakeups.load(Ordering::Relaxed)
    }

    /// Bytes held of what was made from events.
    #[must_use]
    pub fn derived_bytes(&self) -> usize {
        self.kept.bytes()
    }

    /// Ends every watch.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Follows the changes of `scope` in `prefix` with revisions greater than `after`.
    ///
    /// # Errors
    /// [`WatchEnd::TooOld`] if history no longer reaches back to `after`, [`WatchEnd::Store`] if the store fails.
    pub async fn watch(&self, prefix: &str, scope: Scope, after: Revision) -> Result<Watcher, WatchEnd> {
        let Some(feed) = self.feeds.get(prefix).cloned() else { return Err(WatchEnd::Closed) };
        let place = feed.join(&scope, after);
        let replay = if after < place.floor() {
            let keys = match &scope {
                Scope::Namespace(start) => start.clone(),
                Scope::Object(key) => key.clone(),
                Scope::All | Scope::Indexed(_) => Bytes::from(format!("{prefix}/")),
            };
            let stream = self.store.watch(keys, Some(after)).await.map_err(|error| match error {
                StoreError::Compacted { requested, oldest } => WatchEnd::TooOld { requested, oldest },
                other => WatchEnd::Store(other),
            })?;
            Some(Replay::new(stream))
        } else {
            None
        };
        let (shared, closed) = (Arc::clone(&self.shared), self.closed.subscribe());
        Ok(Watcher { feed, scope, place, closed, shared, cursor: after, replay })
    }
}
