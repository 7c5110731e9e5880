//! How much history is kept. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use crate::contract::Revision;

/// Limits of the history that reads and watches can go back to. Whatever is beyond any of them is compacted away
/// with the next commit; a store that nobody writes to does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// No more than so many revisions.
    pub revisions: u64,
    /// No more than about so many bytes of memory.
    pub bytes: u64,
    /// Nothing that was replaced longer ago.
    pub age: Duration,
}

impl Default for Retention {
    /// Five minutes, as a cluster on etcd has, within 50,000 revisions and 32 MiB.
    fn default() -> Self {
        Retention { revisions: 50_000, bytes: 32 << 20, age: Duration::from_secs(5 * 60) }
    }
}

impl Retention {
    /// Everything until [`crate::Store::compact`] is called.
    #[must_use]
    pub fn forever() -> Self {
        Retention { revisions: u64::MAX, bytes: u64::MAX, age: Duration::MAX }
    }
}

/// Remembers, coarsely, which revision was the newest when.
#[derive(Debug, Default)]
pub(crate) struct Ages {
    marks: VecDeque<Mark>,
}

/// The newest revision of a stretch of time with commits.
#[derive(Debug)]
struct Mark {
    since: Duration,
    until: Duration,
    revision: Revision,
}

impl Ages {
    /// The oldest revision to keep when `revision` has just been committed.
    pub(crate) fn oldest(&mut self, limits: &Retention, now: Duration, revision: Revision) -> Revision {
        let mut oldest = Revision(revision.0.saturating_sub(limits.revisions));
        while let Some(mark) = self.marks.front()
            && now.saturating_sub(mark.until) >= limits.age
        {
            oldest = oldest.max(mark.revision);
            self.marks.pop_front();
        }
        match self.marks.back_mut() {
            Some(mark) if now.saturating_sub(mark.since) < limits.age / 16 => {
                mark.until = now;
                mark.revision = revision;
            }
            _ => self.marks.push_back(Mark { since: now, until: now, revision }),
        }
        oldest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_limited_by_count_and_by_age() {
        let limits = Retention { revisions: 10, bytes: u64::MAX, age: Duration::from_secs(160) };
        let mut ages = Ages::default();
        let mut at = |second: u64, revision: u64| {
            ages.oldest(&limits, Duration::from_secs(second), Revision(revision)).0
        };
        assert_eq!(at(0, 1), 0);
        assert_eq!(at(5, 5), 0);
        assert_eq!(at(5, 15), 5);
        assert_eq!(at(20, 16), 6);
        assert_eq!(at(165, 17), 15, "what was current 160 seconds ago");
        assert_eq!(at(200, 18), 16, "what was current 180 seconds ago");
    }
}
