//! Running watches: who gets which events. Pure but for the channels.

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::contract::{Event, Revision, StoreError, StoreResult, WatchBatch, WatchStream};

type Sender = mpsc::Sender<StoreResult<WatchBatch>>;

/// The watches by prefix. Finding the watchers of a key takes one look-up per distinct length of prefix, however
/// many watchers there are.
#[derive(Debug)]
pub(crate) struct Hub {
    watchers: BTreeMap<Bytes, Vec<Watcher>>,
    /// How many prefixes have this length.
    lengths: BTreeMap<usize, usize>,
    buffer: usize,
}

#[derive(Debug)]
struct Watcher {
    sender: Sender,
    /// What the watch started after: it has been told of nothing up to here, and is not.
    after: Revision,
    pending: Vec<Event>,
}

impl Watcher {
    /// Whether the watcher goes on. The last place of the channel is for the error that ends it.
    fn send(&self, batch: WatchBatch) -> bool {
        if self.sender.capacity() > 1 {
            return self.sender.try_send(Ok(batch)).is_ok();
        }
        self.end(StoreError::Lagging);
        false
    }

    fn end(&self, error: StoreError) {
        // Fails only if the receiver has gone, who then does not care.
        drop(self.sender.try_send(Err(error)));
    }
}

impl Hub {
    /// A hub whose watchers may be `buffer` batches behind.
    pub(crate) fn new(buffer: usize) -> Self {
        Hub { watchers: BTreeMap::new(), lengths: BTreeMap::new(), buffer: buffer.max(1) }
    }

    /// Whether there is any watch.
    pub(crate) fn is_watched(&self) -> bool {
        !self.watchers.is_empty()
    }

    /// Starts a watch that has already happened up to `first.revision`, which may be ahead of what is published.
    pub(crate) fn subscribe(&mut self, prefix: Bytes, first: WatchBatch) -> WatchStream {
        let (sender, receiver) = mpsc::channel(self.buffer + 1);
        let watcher = Watcher { sender, after: first.revision, pending: Vec::new() };
        if watcher.send(first) {
            let length = prefix.len();
            let watchers = self.watchers.entry(prefix).or_default();
            if watchers.is_empty() {
                *self.lengths.entry(length).or_default() += 1;
            }
            // Whoever comes clears away who has left the same place.
            watchers.retain(|watcher| !watcher.sender.is_closed());
            watchers.push(watcher);
        }
        receiver
    }

    /// Sends events of revisions up to `revision`. With `progress`, watches without an event hear of the revision.
    pub(crate) fn publish(&mut self, events: &[Event], revision: Revision, progress: bool) {
        let mut touched: Vec<Bytes> = Vec::new();
        for event in events {
            for &length in self.lengths.keys().take_while(|&&length| length <= event.key.len()) {
                let Some(watchers) = self.watchers.get_mut(&event.key[..length]) else { continue };
                if watchers.iter().all(|watcher| watcher.pending.is_empty()) {
                    touched.push(event.key.slice(..length));
                }
                for watcher in watchers.iter_mut().filter(|watcher| event.revision > watcher.after) {
                    watcher.pending.push(event.clone());
                }
            }
        }
        if progress {
            touched = self.watchers.keys().cloned().collect();
        }
        for prefix in touched {
            let Some(watchers) = self.watchers.get_mut(&prefix) else { continue };
            watchers.retain_mut(|watcher| {
                let events = std::mem::take(&mut watcher.pending);
                // Nobody falls behind because of mere progress, and nobody hears of progress that is none.
                if events.is_empty() && (watcher.sender.capacity() <= 2 || revision <= watcher.after) {
                    return !watcher.sender.is_closed();
                }
                watcher.send(WatchBatch { events, revision })
            });
            if watchers.is_empty() {
                self.forget(&prefix);
            }
        }
    }

    /// Ends the watches that started before `revision`.
    pub(crate) fn end_before(&mut self, revision: Revision, error: &StoreError) {
        let watchers = std::mem::take(&mut self.watchers);
        for (prefix, mut watchers) in watchers {
            watchers.retain(|watcher| {
                let stays = watcher.after >= revision;
                if !stays {
                    watcher.end(error.clone());
                }
                stays
            });
            if watchers.is_empty() {
                self.forget(&prefix);
            } else {
                self.watchers.insert(prefix, watchers);
            }
        }
    }

    /// Ends all watches.
    pub(crate) fn stop(&mut self, error: &StoreError) {
        for watcher in self.watchers.values().flatten() {
            watcher.end(error.clone());
        }
        self.watchers.clear();
        self.lengths.clear();
    }

    fn forget(&mut self, prefix: &Bytes) {
        self.watchers.remove(prefix);
        if let Some(count) = self.lengths.get_mut(&prefix.len()) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&prefix.len());
            }
        }
    }
}
