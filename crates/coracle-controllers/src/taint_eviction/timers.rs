//! Which Pods have to leave their nodes because of taints, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use coracle_api::placement::tolerates;
use coracle_client::ObjectKey;
use k8s_openapi::api::core::v1::{Taint, Toleration};

use crate::node_lifecycle::taints::{NOT_READY, UNREACHABLE};

/// A look that comes later than planned by more than this means that nobody looked in between.
const LATE: Duration = Duration::from_secs(1);
/// How long the state of nodes has to become known after such a pause before anybody is evicted.
const SETTLE: Duration = Duration::from_secs(30);

/// A taint as Pods count their time by it. A node that goes from not ready to unreachable is bad all the while.
type Cause = (String, String);

fn cause(taint: &Taint) -> Cause {
    match taint.key.as_str() {
        NOT_READY | UNREACHABLE => (NOT_READY.to_owned(), String::new()),
        key => (key.to_owned(), taint.value.clone().unwrap_or_default()),
    }
}

/// How long a Pod stays with each of the taints that want it gone: `None` for ever. By the first toleration that covers a
/// taint, not at all if none does.
#[must_use]
pub fn stays(taints: &[Taint], tolerations: &[Toleration]) -> Vec<(Cause, Option<Duration>)> {
    let stay = |taint: &Taint| {
        let covering = tolerations.iter().find(|one| tolerates(std::slice::from_ref(*one), taint));
        match covering.map(|toleration| toleration.toleration_seconds) {
            None => Some(Duration::ZERO),
            Some(None) => None,
            Some(Some(seconds)) => Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))),
        }
    };
    taints.iter().map(|taint| (cause(taint), stay(taint))).collect()
}

/// A Pod that will have to leave.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Timer {
    uid: String,
    /// Each cause with a time: since when, and how long.
    causes: BTreeMap<Cause, (Duration, Duration)>,
    /// Its time is over, and somebody deletes it.
    taken: bool,
}

impl Timer {
    fn due(&self) -> Duration {
        let ends = self.causes.values().map(|(since, stay)| since.saturating_add(*stay));
        ends.min().unwrap_or(Duration::MAX)
    }
}

/// All Pods that will have to leave.
#[derive(Debug, Default)]
pub struct Timers {
    timers: BTreeMap<ObjectKey, Timer>,
    planned: Option<Duration>,
}

impl Timers {
    /// Takes in how long a Pod stays. True if it had to leave and no longer has to.
    pub fn set(
        &mut self,
        key: &ObjectKey,
        uid: &str,
        stays: Vec<(Cause, Option<Duration>)>,
        elapsed: Duration,
    ) -> bool {
        let before = self.timers.remove(key).filter(|timer| timer.uid == uid);
        let known = |cause: &Cause| Some(before.as_ref()?.causes.get(cause)?.0);
        let causes: BTreeMap<_, _> = stays
            .into_iter()
            .filter_map(|(cause, stay)| {
                let since = known(&cause).unwrap_or(elapsed);
                Some((cause, (since, stay?)))
            })
            .collect();
        if causes.is_empty() {
            return before.is_some();
        }
        let mut timer = Timer { uid: uid.to_owned(), causes, taken: false };
        timer.taken = before.is_some_and(|before| before.taken) && timer.due() <= elapsed;
        self.timers.insert(key.clone(), timer);
        false
    }

    /// Forgets a Pod that is gone, or going.
    pub fn forget(&mut self, key: &ObjectKey) {
        self.timers.remove(key);
    }

    /// Whether a Pod has a timer.
    #[must_use]
    pub fn has(&self, key: &ObjectKey) -> bool {
        self.timers.contains_key(key)
    }

    /// The UID of a Pod whose time is over.
    #[must_use]
    pub fn over(&self, key: &ObjectKey, elapsed: Duration) -> Option<&str> {
        self.timers.get(key).filter(|timer| timer.due() <= elapsed).map(|timer| timer.uid.as_str())
    }

    /// Takes the Pods whose time is over, each once.
    pub fn take_due(&mut self, elapsed: Duration) -> BTreeSet<ObjectKey> {
        if let Some(planned) = self.planned
            && planned + LATE < elapsed
        {
            self.hear_out(elapsed - planned, elapsed + SETTLE);
        }
        let mut due = BTreeSet::new();
        for (key, timer) in &mut self.timers {
            if !timer.taken && timer.due() <= elapsed {
                timer.taken = true;
                due.insert(key.clone());
            }
        }
        due
    }

    /// When to look again, at the latest: `None` if nobody waits. Time that passes without a look is noticed by that.
    pub fn plan(&mut self, elapsed: Duration, longest: Duration) -> Option<Duration> {
        let next = self.timers.values().filter(|timer| !timer.taken).map(Timer::due).min();
        self.planned = next.map(|next| next.min(elapsed + longest).max(elapsed));
        self.planned
    }

    /// Time in which nobody looked does not count, and nobody leaves before `until`.
    fn hear_out(&mut self, pause: Duration, until: Duration) {
        for timer in self.timers.values_mut().filter(|timer| !timer.taken) {
            for (since, stay) in timer.causes.values_mut() {
                *since = (*since + pause).max(until.saturating_sub(*stay));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn taint(key: &str, value: &str) -> Taint {
        Taint {
            key: key.to_owned(),
            value: (!value.is_empty()).then(|| value.to_owned()),
            effect: "NoExecute".to_owned(),
            ..Taint::default()
        }
    }

    #[test]
    fn the_first_toleration_that_covers_a_taint_says_how_long() {
        let tolerations: Vec<Toleration> = serde_json::from_value(json!([
            {"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60},
            {"key": "a", "value": "v"},
            {"key": "b", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "c", "operator": "Exists", "tolerationSeconds": -5, "effect": "NoExecute"},
            {"key": "d", "value": "v", "effect": "NoExecute"},
        ]))
        .unwrap();
        for (key, value, expected) in [
            ("a", "v", Some(seconds(60))),
            ("b", "", Some(seconds(0))),
            ("c", "", Some(seconds(0))),
            ("d", "v", None),
            ("d", "w", Some(seconds(0))),
        ] {
            let stays = stays(&[taint(key, value)], &tolerations);
            assert_eq!(stays[0].1, expected, "{key}={value}");
        }
    }

    fn key() -> ObjectKey {
        ObjectKey::namespaced("default", "p")
    }

    fn stay(key: &str, time: Option<u64>) -> (Cause, Option<Duration>) {
        (cause(&taint(key, "")), time.map(seconds))
    }

    #[test]
    fn time_runs_from_each_taint_and_the_first_to_end_counts() {
        let mut timers = Timers::default();
        assert!(!timers.set(&key(), "u", vec![stay("a", Some(300))], seconds(0)));
        assert_eq!(timers.plan(seconds(0), seconds(1000)), Some(seconds(300)));
        // A second one that gives less time, from when it came.
        timers.set(&key(), "u", vec![stay("a", Some(300)), stay("b", Some(60))], seconds(100));
        assert_eq!(timers.plan(seconds(100), seconds(1000)), Some(seconds(160)));
        // It goes again, and the first still counts from when it came.
        timers.set(&key(), "u", vec![stay("a", Some(300))], seconds(120));
        assert_eq!(timers.plan(seconds(120), seconds(1000)), Some(seconds(300)));
        assert_eq!(timers.take_due(seconds(299)), BTreeSet::new());
        assert_eq!(timers.take_due(seconds(300)), BTreeSet::from([key()]));
        assert_eq!(timers.take_due(seconds(301)), BTreeSet::new(), "once");
        assert_eq!(timers.over(&key(), seconds(300)), Some("u"));
    }

    #[test]
    fn a_node_that_gets_worse_gives_no_more_time_and_one_that_recovers_all_of_it() {
        let mut timers = Timers::default();
        timers.set(&key(), "u", vec![stay(NOT_READY, Some(300))], seconds(0));
        timers.set(&key(), "u", vec![stay(UNREACHABLE, Some(300))], seconds(50));
        assert_eq!(timers.plan(seconds(50), seconds(1000)), Some(seconds(300)));
        assert!(timers.set(&key(), "u", Vec::new(), seconds(60)), "called off");
        assert!(!timers.set(&key(), "u", Vec::new(), seconds(61)), "once");
        timers.set(&key(), "u", vec![stay(NOT_READY, Some(300))], seconds(100));
        assert_eq!(timers.plan(seconds(100), seconds(1000)), Some(seconds(400)));
        // Another Pod of the same name has all of its own time.
        timers.set(&key(), "v", vec![stay(NOT_READY, Some(300))], seconds(200));
        assert_eq!(timers.plan(seconds(200), seconds(1000)), Some(seconds(500)));
    }

    #[test]
    fn who_tolerates_for_ever_stays_and_who_does_not_leaves_at_once() {
        let mut timers = Timers::default();
        timers.set(&key(), "u", vec![stay("a", None)], seconds(0));
        assert_eq!(timers.plan(seconds(0), seconds(10)), None);
        timers.set(&key(), "u", vec![stay("a", None), stay("b", Some(0))], seconds(1));
        assert_eq!(timers.take_due(seconds(1)), BTreeSet::from([key()]));
    }

    #[test]
    fn a_pause_of_ones_own_is_not_held_against_pods() {
        let mut timers = Timers::default();
        timers.set(&key(), "u", vec![stay("a", Some(300))], seconds(0));
        for now in (0..=200).step_by(10) {
            assert_eq!(timers.take_due(seconds(now)), BTreeSet::new());
            assert_eq!(timers.plan(seconds(now), seconds(10)), Some(seconds(now + 10)));
        }
        // An hour of sleep, after which 90 seconds are left as before.
        let woken = 210 + 3600;
        assert_eq!(timers.take_due(seconds(woken)), BTreeSet::new());
        assert_eq!(timers.plan(seconds(woken), seconds(1000)), Some(seconds(woken + 90)));
        assert_eq!(timers.take_due(seconds(woken + 90)), BTreeSet::from([key()]));

        let other = ObjectKey::namespaced("default", "q");
        timers.set(&other, "w", vec![stay("a", Some(5))], seconds(10_000));
        timers.plan(seconds(10_000), seconds(10));
        assert_eq!(timers.take_due(seconds(20_000)), BTreeSet::new());
        assert_eq!(timers.plan(seconds(20_000), seconds(1000)), Some(seconds(20_030)), "time to look around");
    }
}
