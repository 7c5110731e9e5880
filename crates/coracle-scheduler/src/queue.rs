//! Pods that need a node: whose turn it is, who waits, for what, and until when.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use coracle_client::ObjectKey;

use crate::filter::Refusal;
use crate::info::PodInfo;
use crate::schedule::Unschedulable;

const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A Pod is looked at again after this time even if nothing that could help it was heard of.
const RESYNC: Duration = Duration::from_secs(300);

/// What has happened that could help a Pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Help {
    /// A node came or changed.
    Node,
    /// A Pod left a node.
    Room,
}

/// What a Pod in the queue waits for: the answer to "why is it not scheduled".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// When the queue first saw it, by [`coracle_clock::Clock::elapsed`].
    pub since: Duration,
    /// How often it was tried in vain.
    pub attempts: u32,
    /// When it will be tried again at the latest; `None` if it is its turn, or its binding is under way.
    pub retry_at: Option<Duration>,
    /// What was in the way at the last try.
    pub reason: Option<Unschedulable>,
}

/// The scheduling queue. All times are [`coracle_clock::Clock::elapsed`].
///
/// A Pod is ready, backing off, waiting for help, or out for scheduling; nothing is lost between these. Higher
/// priority goes first, then who came first.
#[derive(Debug, Default)]
pub struct Queue {
    entries: BTreeMap<String, Entry>,
    uids: BTreeMap<ObjectKey, String>,
    ready: BTreeSet<Turn>,
    timers: BTreeSet<(Duration, String)>,
    serial: u64,
}

type Turn = (Reverse<i32>, u64, String);

#[derive(Debug)]
struct Entry {
    pod: PodInfo,
    state: State,
    since: Duration,
    attempts: u32,
    tried: Duration,
    reason: Option<Unschedulable>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Ready(Turn),
    /// Will be tried at that time.
    BackingOff(Duration),
    /// Waits for help, at most until that time.
    Waiting(Duration),
    /// Taken by [`Queue::pop`]; its binding may be under way.
    Out,
}

impl Queue {
    /// Without Pods.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in a Pod that needs a node, as it is now; `None` if there is none of that name, or it needs none.
    pub fn set(&mut self, key: &ObjectKey, pod: Option<PodInfo>, now: Duration) {
        if let Some(uid) = self.uids.get(key)
            && pod.as_ref().is_none_or(|pod| pod.uid != *uid)
        {
            let gone = uid.clone();
            self.remove(&gone);
        }
        let Some(pod) = pod else { return };
        let uid = pod.uid.clone();
        let Some(entry) = self.entries.get_mut(&uid) else {
            self.uids.insert(key.clone(), uid.clone());
            let (since, state) = (now, State::Out);
            let entry = Entry { pod, state, since, attempts: 0, tried: now, reason: None };
            self.entries.insert(uid.clone(), entry);
            return self.make_ready(&uid);
        };
        // Only what matters to scheduling is compared: the Pod's status, which the scheduler writes itself, is not.
        if entry.pod == pod {
            return;
        }
        entry.pod = pod;
        match entry.state {
            State::Ready(_) => self.make_ready(&uid),
            State::Waiting(_) => self.retry(&uid, now),
            State::BackingOff(_) | State::Out => {}
        }
    }

    /// The Pod whose turn it is. It is out until [`Queue::unschedulable`], [`Queue::failed`] or its removal.
    pub fn pop(&mut self, now: Duration) -> Option<PodInfo> {
        self.promote(now);
        let (_, _, uid) = self.ready.pop_first()?;
        let entry = self.entries.get_mut(&uid)?;
        entry.state = State::Out;
        entry.tried = now;
        Some(entry.pod.clone())
    }

    /// A Pod that is out fits nowhere: it waits for help.
    pub fn unschedulable(&mut self, uid: &str, reason: Unschedulable, now: Duration) {
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.attempts = entry.attempts.saturating_add(1);
            entry.reason = Some(reason);
            self.move_to(uid, State::Waiting(now + RESYNC));
        }
    }

    /// Scheduling a Pod that is out failed in some other way: it is tried again after its back-off.
    pub fn failed(&mut self, uid: &str, now: Duration) {
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.attempts = entry.attempts.saturating_add(1);
            entry.tried = now;
            let until = entry.backed_off_until();
            self.move_to(uid, State::BackingOff(until));
        }
    }

    /// Something has happened: Pods it could help are tried again, each after its back-off.
    pub fn help(&mut self, help: Help, now: Duration) {
        let helped: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| matches!(entry.state, State::Waiting(_)) && entry.is_helped_by(help))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in helped {
            self.retry(&uid, now);
        }
    }

    /// When to call [`Queue::pop`] again even if nothing happens.
    #[must_use]
    pub fn next_wake(&self) -> Option<Duration> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// What a Pod waits for; `None` if it is not in the queue.
    #[must_use]
    pub fn waiting(&self, uid: &str) -> Option<Waiting> {
        let entry = self.entries.get(uid)?;
        Some(Waiting {
            since: entry.since,
            attempts: entry.attempts,
            retry_at: match entry.state {
                State::BackingOff(at) | State::Waiting(at) => Some(at),
                State::Ready(_) | State::Out => None,
            },
            reason: entry.reason.clone(),
        })
    }

    /// How many Pods need a node.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no Pod needs a node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn promote(&mut self, now: Duration) {
        while let Some((at, uid)) = self.timers.first().cloned() {
            if at > now {
                break;
            }
            self.make_ready(&uid);
        }
    }

    fn retry(&mut self, uid: &str, now: Duration) {
        let Some(until) = self.entries.get(uid).map(Entry::backed_off_until) else { return };
        if until <= now {
            self.make_ready(uid);
        } else {
            self.move_to(uid, State::BackingOff(until));
        }
    }

    fn make_ready(&mut self, uid: &str) {
        let Some(entry) = self.entries.get(uid) else { return };
        self.serial += 1;
        let turn = (Reverse(entry.pod.priority), self.serial, uid.to_owned());
        self.move_to(uid, State::Ready(turn));
    }

    /// The one place where a Pod's state changes, so that `ready` and `timers` always agree with it.
    fn move_to(&mut self, uid: &str, state: State) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        match &entry.state {
            State::Ready(turn) => {
                self.ready.remove(turn);
            }
            State::BackingOff(at) | State::Waiting(at) => {
                self.timers.remove(&(*at, uid.to_owned()));
            }
            State::Out => {}
        }
        match &state {
            State::Ready(turn) => {
                self.ready.insert(turn.clone());
            }
            State::BackingOff(at) | State::Waiting(at) => {
                self.timers.insert((*at, uid.to_owned()));
            }
            State::Out => {}
        }
        entry.state = state;
    }

    fn remove(&mut self, uid: &str) {
        self.move_to(uid, State::Out);
        if let Some(entry) = self.entries.remove(uid) {
            self.uids.remove(&entry.pod.key);
        }
    }
}

impl Entry {
    fn backed_off_until(&self) -> Duration {
        let doublings = self.attempts.saturating_sub(1).min(8);
        let delay = if self.attempts == 0 { Duration::ZERO } else { BACKOFF_FIRST * (1 << doublings) };
        self.tried + delay.min(BACKOFF_MAX)
    }

    fn is_helped_by(&self, help: Help) -> bool {
        match (help, &self.reason) {
            (Help::Node, _) | (Help::Room, None) => true,
            (Help::Room, Some(reason)) => reason.by_node.values().flatten().any(Refusal::resolvable),
        }
    }
}
