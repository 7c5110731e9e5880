//! Read your writes: a component that plans from copies remembers what it wrote.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_clock::Clock;

use crate::{Informer, Object, ObjectKey};

/// The newest revision that was written on behalf of each key, for one kind.
///
/// An [`Informer`] is behind its reader's own writes. Who plans a key from an older copy than that does twice what is
/// done already: creates another Pod, counts another failure. So every write is noted with its revision, and nobody
/// plans that key before the copy has it. All revisions are of one store, so that a single number says it.
#[derive(Debug, Default)]
pub struct WrittenRevisions(Mutex<BTreeMap<ObjectKey, u64>>);

impl WrittenRevisions {
    /// Nothing was written yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that something was written for `key` at `revision`.
    pub fn note(&self, key: &ObjectKey, revision: u64) {
        let mut written = self.lock();
        let newest = written.entry(key.clone()).or_insert(0);
        *newest = revision.max(*newest);
    }

    /// Forgets a key that nobody will plan again.
    pub fn forget(&self, key: &ObjectKey) {
        self.lock().remove(key);
    }

    /// Waits until the copy of `informer` shows all that was written for `key`; false if that takes longer than
    /// `limit`, in which case the key must not be planned yet.
    pub async fn caught_up<K: Object>(
        &self,
        key: &ObjectKey,
        informer: &Informer<K>,
        clock: &Clock,
        limit: Duration,
    ) -> bool {
        let Some(newest) = self.lock().get(key).copied() else { return true };
        if informer.revision() < newest && clock.timeout(limit, informer.reached(newest)).await.is_none() {
            return false;
        }
        // A write that was noted meanwhile stays noted.
        let mut written = self.lock();
        if written.get(key) == Some(&newest) {
            written.remove(key);
            return true;
        }
        false
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ObjectKey, u64>> {
        // Changes are single calls: a poisoned map is a whole one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
