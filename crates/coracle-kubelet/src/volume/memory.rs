//! What a Pod's worker keeps of its volumes between turns: which hold what, which failed, when to look again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coracle_clock::later;
use jiff::{SignedDuration, Timestamp};

use super::set_up::Shared;
use crate::pod::volumes::{VolumesRound, VolumesState};

const PAUSE_MIN: SignedDuration = SignedDuration::from_millis(500);
const PAUSE_MAX: SignedDuration = SignedDuration::from_secs(122);

/// See the head of this file.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Shared with the work in flight.
    pub(crate) shared: Arc<Shared>,
    /// Which state of its sources each volume holds.
    done: BTreeMap<String, String>,
    renew_at: BTreeMap<String, Timestamp>,
    failed: BTreeMap<String, Failure>,
    /// What the round in flight is to set up.
    asked: BTreeMap<String, String>,
    /// Something may be on the node; `None` before anybody has looked.
    pub(crate) present: Option<bool>,
}

#[derive(Debug, Clone)]
struct Failure {
    version: String,
    retry_at: Timestamp,
    pause: SignedDuration,
}

impl Memory {
    /// How far the volumes are, given the state of the sources of each.
    pub(crate) fn state(&self, wanted: &BTreeMap<String, String>, now: Timestamp) -> VolumesState {
        VolumesState {
            ready: wanted.keys().all(|name| self.done.contains_key(name)),
            due: wanted.iter().filter_map(|(name, version)| self.due_at(name, version, now)).min(),
            present: self.present == Some(true),
        }
    }

    fn due_at(&self, name: &str, version: &str, now: Timestamp) -> Option<Timestamp> {
        let renewal = self.renew_at.get(name).copied();
        if self.done.get(name).is_some_and(|done| done == version) && renewal.is_none_or(|at| now < at) {
            return renewal;
        }
        // When a source has changed since, what failed may well succeed.
        let failure = self.failed.get(name).filter(|failure| failure.version == version);
        Some(failure.map_or(now, |failure| failure.retry_at))
    }

    /// The calendar was set by so much. When something expires that others issued stays.
    pub(crate) fn shift(&mut self, by: SignedDuration) {
        for failure in self.failed.values_mut() {
            failure.retry_at = later(failure.retry_at, by);
        }
    }

    /// A round begins. Returns the volumes that it is about.
    pub(crate) fn begin(&mut self, wanted: &BTreeMap<String, String>, now: Timestamp) -> BTreeSet<String> {
        let due = |(name, version): &(&String, &String)| {
            self.due_at(name, version, now).is_some_and(|at| at <= now)
        };
        let asked: BTreeMap<_, _> =
            wanted.iter().filter(due).map(|(name, version)| (name.clone(), version.clone())).collect();
        self.asked = asked;
        self.present = Some(true);
        self.asked.keys().cloned().collect()
    }

    /// A round has ended.
    pub(crate) fn note(&mut self, round: &VolumesRound, now: Timestamp) {
        for (name, asked) in std::mem::take(&mut self.asked) {
            if let Some(version) = round.done.get(&name) {
                self.done.insert(name.clone(), version.clone());
                self.failed.remove(&name);
                match round.renew_at.get(&name) {
                    Some(at) => self.renew_at.insert(name, *at),
                    None => self.renew_at.remove(&name),
                };
                continue;
            }
            let version = round.failed.get(&name).map_or(asked, |(version, _)| version.clone());
            let before = self.failed.get(&name).filter(|failure| failure.version == version);
            let pause = before.map_or(PAUSE_MIN, |failure| (failure.pause * 2).min(PAUSE_MAX));
            self.failed.insert(name, Failure { version, retry_at: now + pause, pause });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).unwrap()
    }

    fn wanted(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned())).collect()
    }

    fn failed(name: &str, version: &str) -> VolumesRound {
        let failed = BTreeMap::from([(name.to_owned(), (version.to_owned(), "why".to_owned()))]);
        VolumesRound { failed, ..VolumesRound::default() }
    }

    fn done(name: &str, version: &str) -> VolumesRound {
        VolumesRound { done: wanted(&[(name, version)]), ..VolumesRound::default() }
    }

    #[test]
    fn what_fails_is_tried_again_with_doubling_pauses_up_to_two_minutes() {
        let mut memory = Memory::default();
        let sources = wanted(&[("v", "absent")]);
        let (mut now, mut pauses) = (0, Vec::new());
        for _ in 0..10 {
            assert_eq!(memory.begin(&sources, at(now)).len(), 1);
            memory.note(&failed("v", "absent"), at(now));
            let state = memory.state(&sources, at(now));
            let next = state.due.unwrap().as_millisecond();
            assert!(!state.ready && memory.begin(&sources, at(next - 1)).is_empty());
            pauses.push(next - now);
            now = next;
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16000, 32000, 64000, 122_000, 122_000]);
    }

    #[test]
    fn a_source_that_has_changed_is_looked_at_at_once() {
        let mut memory = Memory::default();
        memory.begin(&wanted(&[("v", "absent")]), at(0));
        memory.note(&failed("v", "absent"), at(0));
        assert_eq!(memory.state(&wanted(&[("v", "1")]), at(1)).due, Some(at(1)));
        memory.begin(&wanted(&[("v", "1")]), at(1));
        memory.note(&done("v", "1"), at(1));
        let state = memory.state(&wanted(&[("v", "1")]), at(2));
        assert_eq!(state, VolumesState { ready: true, due: None, present: true });
        let changed = memory.state(&wanted(&[("v", "2")]), at(3));
        assert_eq!((changed.ready, changed.due), (true, Some(at(3))), "what runs goes on meanwhile");
        // The source goes away: what the volume holds stays, and is tried again and again.
        memory.begin(&wanted(&[("v", "absent")]), at(4));
        memory.note(&failed("v", "absent"), at(4));
        let gone = memory.state(&wanted(&[("v", "absent")]), at(4));
        assert_eq!((gone.ready, gone.due), (true, Some(at(504))));
    }

    #[test]
    fn each_volume_is_for_itself_and_tokens_are_renewed() {
        let mut memory = Memory::default();
        let sources = wanted(&[("a", "1"), ("b", "1")]);
        assert_eq!(memory.begin(&sources, at(0)).len(), 2);
        let mut round = done("a", "1");
        round.renew_at.insert("a".to_owned(), at(9000));
        memory.note(&round, at(0));
        let state = memory.state(&sources, at(1));
        assert_eq!((state.ready, state.due), (false, Some(at(500))), "one that said nothing has failed");
        assert_eq!(memory.begin(&sources, at(500)).into_iter().collect::<Vec<_>>(), ["b"]);
        memory.note(&done("b", "1"), at(500));
        let state = memory.state(&sources, at(600));
        assert_eq!((state.ready, state.due), (true, Some(at(9000))));
        assert_eq!(memory.begin(&sources, at(9000)).into_iter().collect::<Vec<_>>(), ["a"]);
    }
}
