//! Read your writes.

use std::collections::BTreeMap;
use std::time::Duration;

/// How long a key may wait for its own write to come back on the watch.
const OVERDUE: Duration = Duration::from_secs(5);

/// The revision of one's last write per key.
///
/// A level-triggered component that plans again from a snapshot older than its own last write does things twice.
/// It notes each write here and does not plan a key before the informer has reached that revision.
///
/// # Guarantees
/// A key is [`Freshness::Stale`] while the snapshot is older than the last noted write to it, for at most five
/// seconds; then it is [`Freshness::Overdue`], once: read the object directly, and go on.
///
/// # Assumptions
/// Revisions are of the one store that the informer follows. A write that changed nothing returns an older revision,
/// which does no harm.
#[derive(Debug)]
pub struct WrittenRevisions<K> {
    written: BTreeMap<K, Written>,
}

#[derive(Debug)]
struct Written {
    revision: u64,
    overdue_at: Duration,
}

/// Whether a key may be planned on a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Yes: it has every noted write.
    Fresh,
    /// Not before the snapshot has reached `until`; look again after `wait` even if nothing was heard.
    Stale {
        /// The revision of the last write.
        until: u64,
        /// How long until the key is overdue.
        wait: Duration,
    },
    /// The snapshot is late: read the object itself.
    Overdue,
}

impl<K: Ord> WrittenRevisions<K> {
    /// Nothing written yet.
    #[must_use]
    pub fn new() -> Self {
        WrittenRevisions { written: BTreeMap::new() }
    }

    /// Notes that `key` was written at `revision`. `now` is [`coracle_clock::Clock::elapsed`].
    pub fn wrote(&mut self, key: K, revision: u64, now: Duration) {
        let written = self.written.entry(key).or_insert(Written { revision: 0, overdue_at: now });
        written.revision = written.revision.max(revision);
        written.overdue_at = now + OVERDUE;
    }

    /// Whether `key` may be planned on a snapshot that has reached `snapshot`. Forgets what is settled.
    pub fn freshness(&mut self, key: &K, snapshot: u64, now: Duration) -> Freshness {
        let Some(written) = self.written.get(key) else { return Freshness::Fresh };
        let freshness = if written.revision <= snapshot {
            Freshness::Fresh
        } else if now >= written.overdue_at {
            Freshness::Overdue
        } else {
            return Freshness::Stale { until: written.revision, wait: written.overdue_at - now };
        };
        self.written.remove(key);
        freshness
    }

    /// Forgets `key`, whose object is gone.
    pub fn forget(&mut self, key: &K) {
        self.written.remove(key);
    }
}

impl<K: Ord> Default for WrittenRevisions<K> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_waits_for_its_own_write_and_others_do_not() {
        let mut written = WrittenRevisions::new();
        let now = Duration::from_secs(100);
        written.wrote("a", 7, now);
        written.wrote("a", 5, now);
        assert_eq!(written.freshness(&"a", 6, now), Freshness::Stale { until: 7, wait: OVERDUE });
        assert_eq!(written.freshness(&"b", 6, now), Freshness::Fresh);
        assert_eq!(written.freshness(&"a", 7, now), Freshness::Fresh);
        assert_eq!(written.freshness(&"a", 0, now), Freshness::Fresh, "settled keys are forgotten");
    }

    #[test]
    fn a_late_snapshot_makes_a_key_overdue_once() {
        let mut written = WrittenRevisions::new();
        written.wrote("a", 7, Duration::ZERO);
        assert_eq!(written.freshness(&"a", 6, OVERDUE), Freshness::Overdue);
        assert_eq!(written.freshness(&"a", 6, OVERDUE), Freshness::Fresh);
    }
}
