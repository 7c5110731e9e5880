//! Whether time can go on: whoever asks the same again and again at one moment keeps it from ever passing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The requests of the moment. Clones count together.
#[derive(Clone)]
pub(crate) struct Rush {
    /// So many requests for one path by one user at one moment are for who gets on.
    most: u32,
    moment: Arc<Mutex<Moment>>,
}

#[derive(Default)]
struct Moment {
    at: Duration,
    asked: u32,
    by_path: BTreeMap<String, u32>,
    /// What was asked too often.
    found: Option<String>,
}

impl Rush {
    pub(crate) fn new(most: u32) -> Self {
        Rush { most, moment: Arc::default() }
    }

    /// Counts a request. False if it is one of those that never end, and is better not answered.
    pub(crate) fn count(&self, now: Duration, user: &str, method: &str, path: &str) -> bool {
        self.count_of(now, || format!("{method} {path} by {user}"))
    }

    fn count_of(&self, now: Duration, what: impl Fn() -> String) -> bool {
        let mut moment = self.moment();
        if moment.found.is_some() {
            return false;
        }
        if moment.at != now {
            moment.at = now;
            moment.asked = 0;
            moment.by_path.clear();
        }
        moment.asked += 1;
        // Nearly always there is no need to tell them apart.
        if moment.asked <= self.most / 2 {
            return true;
        }
        let what = what();
        let times = moment.by_path.entry(what.clone()).or_default();
        *times += 1;
        if *times <= self.most {
            return true;
        }
        moment.found = Some(what);
        false
    }

    /// What never comes to an end.
    pub(crate) fn found(&self) -> Option<String> {
        self.moment().found.clone()
    }

    fn moment(&self) -> MutexGuard<'_, Moment> {
        self.moment.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_without_end_is_found_and_not_answered_any_more() {
        let rush = Rush::new(2);
        let ask = |at: u64, what: &str| rush.count_of(Duration::from_secs(at), || what.to_owned());
        for at in 0..10 {
            assert!((0..3).all(|_| ask(at, "a")), "three of one moment");
        }
        assert!(["b", "c", "c", "d", "d"].iter().all(|what| ask(20, what)), "each of a few things");
        assert_eq!(rush.found(), None);
        assert!(!ask(20, "c"));
        assert!(!ask(21, "d"), "nobody is answered any more");
        assert_eq!(rush.found().as_deref(), Some("c"));
    }
}
