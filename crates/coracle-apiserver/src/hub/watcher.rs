//! One watcher: a cursor that pulls, and what wakes it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use coracle_clock::watch;
use coracle_store::{Revision, StoreError, WatchBatch, WatchStream};

use super::event::Event;
use super::feed::{Feed, LOOK_EVENTS, Place, Scope};
use super::{Shared, WatchEnd};

/// A cursor in the history of a scope.
#[derive(Debug)]
pub struct Watcher {
    pub(super) feed: Arc<Feed>,
    pub(super) scope: Scope,
    pub(super) place: Place,
    pub(super) closed: watch::Receiver<bool>,
    pub(super) shared: Arc<Shared>,
    pub(super) cursor: Revision,
    /// History from before the ring, until the cursor has reached it.
    pub(super) replay: Option<Replay>,
}

/// History that is older than the ring: the store sends it all at once, and it is passed on in parts.
#[derive(Debug)]
pub(super) struct Replay {
    stream: WatchStream,
    backlog: VecDeque<coracle_store::Event>,
    /// What there is no more of when the backlog is empty.
    complete: Revision,
}

impl Replay {
    pub(super) fn new(stream: WatchStream) -> Self {
        Replay { stream, backlog: VecDeque::new(), complete: Revision(0) }
    }

    fn take_in(&mut self, batch: WatchBatch, after: Revision) {
        self.complete = batch.revision;
        self.backlog.extend(batch.events.into_iter().filter(|event| event.revision > after));
    }

    /// Some events of whole transactions, and the revision up to which there are no others.
    fn part(&mut self) -> (Vec<coracle_store::Event>, Revision) {
        let mut part: Vec<coracle_store::Event> = Vec::new();
        while let Some(next) = self.backlog.front() {
            if let Some(last) = part.last()
                && part.len() >= LOOK_EVENTS
                && last.revision != next.revision
            {
                let reached = last.revision;
                return (part, reached);
            }
            part.extend(self.backlog.pop_front());
        }
        (part, self.complete)
    }
}

impl Watcher {
    /// Everything of the scope up to this revision has been returned by [`Watcher::next`].
    #[must_use]
    pub fn cursor(&self) -> Revision {
        self.cursor
    }

    /// Whether the object was in the scope before the event, and whether it is in it after.
    #[must_use]
    pub fn covers(&self, event: &Event) -> (bool, bool) {
        self.scope.covers(event, self.feed.field)
    }

    /// The next events, in order, as many as are held well at a time; waits for at least one. Cancellation-safe: an
    /// unfinished call returned nothing and skipped nothing.
    ///
    /// # Errors
    /// Why the watch is over.
    pub async fn next(&mut self) -> Result<Vec<Arc<Event>>, WatchEnd> {
        loop {
            if *self.closed.borrow() {
                return Err(WatchEnd::Closed);
            }
            let events = match self.replay.as_mut() {
                Some(replay) if !replay.backlog.is_empty() => self.replayed(),
                Some(replay) => {
                    let batch = coracle_clock::select! {
                        _ = self.closed.changed() => continue,
                        batch = replay.stream.recv() => batch,
                    };
                    match batch {
                        Some(Ok(batch)) => {
                            replay.take_in(batch, self.cursor);
                            self.replayed()
                        }
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
                    _ = self.place.newest.changed() => {
                        self.shared.wakeups.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
    }

    /// What lies behind the cursor right now, or the first part of it; moves the cursor behind that, at the end up to
    /// the hub's progress, so that it is a bookmark afterwards.
    ///
    /// # Errors
    /// [`WatchEnd::TooOld`] if the watcher was too slow for the ring.
    pub fn ready(&mut self) -> Result<Vec<Arc<Event>>, WatchEnd> {
        if self.replay.is_some() {
            return Ok(Vec::new());
        }
        // Progress is read before the ring: what it covers has been pushed by then. The notification is marked as
        // seen before as well, so that an event pushed meanwhile wakes us again.
        let progress = self.shared.progress();
        self.place.newest.borrow_and_update();
        let looked = self.place.look(self.cursor, progress);
        let (events, reached) =
            looked.map_err(|oldest| WatchEnd::TooOld { requested: self.cursor, oldest })?;
        self.cursor = reached;
        Ok(events)
    }

    fn replayed(&mut self) -> Vec<Arc<Event>> {
        let Some(replay) = self.replay.as_mut() else { return Vec::new() };
        let (part, reached) = replay.part();
        let exhausted = replay.backlog.is_empty();
        self.cursor = self.cursor.max(reached);
        if exhausted && self.cursor >= self.place.floor() {
            self.replay = None;
        }
        let events = part.into_iter().map(|event| Arc::new(Event::new(event, None)));
        events.filter(|event| self.concerns(event)).collect()
    }

    fn concerns(&self, event: &Event) -> bool {
        let gone_unseen = event.old.is_none() && event.new.is_none();
        let (old, new) = self.covers(event);
        old || new || gone_unseen
    }
}
