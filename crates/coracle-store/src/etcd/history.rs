//! The newest changes, in memory: what watches that start in the past are served from. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use crate::contract::{Event, Revision, StoreError, StoreResult};
use crate::retention::{Ages, Retention};

#[derive(Debug)]
struct Commit {
    revision: Revision,
    events: Vec<Event>,
    cost: u64,
}

/// Every change after `floor` up to `progress`.
#[derive(Debug)]
pub(super) struct History {
    commits: VecDeque<Commit>,
    /// Watches can start here and later.
    floor: Revision,
    /// Everything up to here has come.
    progress: Revision,
    cost: u64,
    ages: Ages,
    limits: Retention,
}

impl History {
    /// A history that begins after `floor`.
    pub(super) fn new(floor: Revision, limits: Retention) -> Self {
        History { commits: VecDeque::new(), floor, progress: floor, cost: 0, ages: Ages::default(), limits }
    }

    /// Forgets everything and begins again after `floor`.
    pub(super) fn restart(&mut self, floor: Revision) {
        *self = History::new(floor, self.limits);
    }

    #[cfg(test)]
    fn floor(&self) -> Revision {
        self.floor
    }

    pub(super) fn progress(&self) -> Revision {
        self.progress
    }

    /// Takes what has come: whole revisions, in order, all of them after [`History::progress`].
    pub(super) fn push(&mut self, events: &[Event], progress: Revision, now: Duration) {
        for events in events.chunk_by(|a, b| a.revision == b.revision) {
            let cost = 64 + events.iter().map(cost).sum::<u64>();
            self.cost += cost;
            self.commits.push_back(Commit { revision: events[0].revision, events: events.to_vec(), cost });
        }
        self.progress = self.progress.max(progress);
        if !events.is_empty() {
            let oldest = self.ages.oldest(&self.limits, now, self.progress);
            self.forget_before(oldest.max(self.floor));
        }
        while self.cost > self.limits.bytes
            && let Some(first) = self.commits.front()
        {
            self.forget_before(first.revision);
        }
    }

    /// Makes `revision` the oldest at which a watch can start, if that is older now. It may be one that has not come
    /// yet.
    pub(super) fn forget_before(&mut self, revision: Revision) {
        self.floor = self.floor.max(revision);
        while let Some(first) = self.commits.front()
            && first.revision <= self.floor
        {
            self.cost -= first.cost;
            self.commits.pop_front();
        }
    }

    /// All changes after `after` of keys that `wanted` asks for.
    pub(super) fn events_after(
        &self,
        after: Revision,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> StoreResult<Vec<Event>> {
        if after < self.floor {
            return Err(StoreError::Compacted { requested: after, oldest: self.floor });
        }
        let first = self.commits.partition_point(|commit| commit.revision <= after);
        let events = self.commits.iter().skip(first).flat_map(|commit| &commit.events);
        Ok(events.filter(|event| wanted(&event.key)).cloned().collect())
    }
}

/// What keeping an event costs, about.
fn cost(event: &Event) -> u64 {
    let value = event.value.as_ref().map_or(0, |value| value.len());
    let previous = event.previous.as_ref().map_or(0, |previous| previous.value.len());
    (256 + event.key.len() + value + previous) as u64
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::contract::EventKind;

    fn event(revision: u64, key: &str, size: usize) -> Event {
        Event {
            kind: EventKind::Put,
            revision: Revision(revision),
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Some(Bytes::from(vec![0; size])),
            previous: None,
        }
    }

    fn revisions(history: &History, after: u64) -> StoreResult<Vec<u64>> {
        let events = history.events_after(Revision(after), |key| key.starts_with(b"/a"))?;
        Ok(events.iter().map(|event| event.revision.0).collect())
    }

    #[test]
    fn a_watch_can_start_anywhere_after_the_floor() {
        let mut history = History::new(Revision(10), Retention::forever());
        assert_eq!(revisions(&history, 10), Ok(vec![]));
        // Revisions 12 and 14 are of keys outside this store.
        let events = [event(11, "/a1", 1), event(11, "/a2", 1), event(13, "/b", 1), event(15, "/a1", 1)];
        history.push(&events, Revision(16), Duration::ZERO);
        assert_eq!(history.progress(), Revision(16));
        assert_eq!(revisions(&history, 10), Ok(vec![11, 11, 15]));
        assert_eq!(revisions(&history, 12), Ok(vec![15]));
        assert_eq!(revisions(&history, 20), Ok(vec![]), "ahead of what has come");
        let gone = StoreError::Compacted { requested: Revision(9), oldest: Revision(10) };
        assert_eq!(revisions(&history, 9), Err(gone));
        history.forget_before(Revision(14));
        assert_eq!((history.floor(), revisions(&history, 14)), (Revision(14), Ok(vec![15])));
        assert!(revisions(&history, 13).is_err());
        history.forget_before(Revision(18));
        history.push(&[event(17, "/a1", 1), event(19, "/a1", 1)], Revision(19), Duration::ZERO);
        assert_eq!(revisions(&history, 18), Ok(vec![19]), "what is compacted before it comes is not kept");
        assert!(revisions(&history, 17).is_err());
    }

    #[test]
    fn memory_is_bounded() {
        let limits = Retention { bytes: 10_000, ..Retention::forever() };
        let mut history = History::new(Revision(0), limits);
        for revision in 1..=100 {
            history.push(&[event(revision, "/a", 680)], Revision(revision), Duration::ZERO);
        }
        assert_eq!(history.floor(), Revision(91));
        assert_eq!(revisions(&history, 91), Ok((92..=100).collect()));
        // One change that is too large alone is passed on and not kept.
        history.push(&[event(101, "/a", 20_000)], Revision(101), Duration::ZERO);
        assert_eq!((history.floor(), history.cost), (Revision(101), 0));
    }
}
