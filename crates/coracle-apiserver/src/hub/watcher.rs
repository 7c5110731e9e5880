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

/// A look may follow: everything that it will not find is going to wake the watcher.
struct Told;

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
        let marked = self.mark_told();
        self.look(marked)
    }

    /// Takes what the watcher was told so far as heard, before it looks: what is published from here on wakes it again.
    fn mark_told(&mut self) -> Told {
        self.place.newest.borrow_and_update();
        Told
    }

    /// Progress is read after the mark, because an event between the two would be neither found nor told of; and
    /// before the ring, because what it covers has been pushed by then.
    fn look(&mut self, _: Told) -> Result<Vec<Arc<Event>>, WatchEnd> {
        let progress = self.shared.progress();
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use bytes::Bytes;
    use coracle_store::{Event, EventKind};

    use super::super::event::Event as Published;
    use super::*;

    #[test]
    fn what_is_published_before_the_look_is_found_or_told_of() {
        let key = Bytes::from_static(b"/registry/pods/default/a");
        let feed = Arc::new(Feed::new("/registry/pods", None, Revision(1)));
        let scope = Scope::Object(key.clone());
        let shared = Arc::new(Shared { progress: 1.into(), wakeups: 0.into() });
        let (_open, closed) = watch::channel(false);
        let mut watcher = Watcher {
            place: feed.join(&scope, Revision(1)),
            feed: Arc::clone(&feed),
            scope,
            closed,
            shared: Arc::clone(&shared),
            cursor: Revision(1),
            replay: None,
        };
        let marked = watcher.mark_told();
        let value = Some(Bytes::from_static(b"{}"));
        let event = Event { revision: Revision(2), kind: EventKind::Put, key, value, previous: None };
        feed.push(Arc::new(Published::new(event, None)));
        shared.progress.store(2, Ordering::Release);
        feed.notify(Revision(2));
        assert_eq!(watcher.look(marked).unwrap().len(), 1, "nothing else may ever happen to this object");
        // Told of as well, and for nothing: that is the price of the order.
        assert!(watcher.ready().unwrap().is_empty());
    }
}
