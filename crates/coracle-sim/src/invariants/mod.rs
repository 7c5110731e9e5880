//! What holds at every moment of every run, whatever goes wrong.
//!
//! Each rule looks at changes as they come and at quiet points; what it needs to remember is in [`Invariants`]. Rules
//! that say when something has happened by make allowance for faults: a clock starts anew when a fault that touches the
//! node or the server ends, and then includes the time that components take to reconnect.

mod calm;
mod capacity;
mod order;
mod pods;
mod running;
mod streams;
mod told;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::scripted::Note;
use jiff::Timestamp;
use serde_json::Value;

use crate::acknowledged::Write;
use crate::view::{Event, Node, Pod};
pub(crate) use calm::{Calm, Scope};
use capacity::Capacity;
use order::Order;
use pods::Pods;
use running::Live;
use streams::Streams;
pub(crate) use streams::{Heard, News};
use told::Told;

/// A rule that does not hold, and what was seen.
pub(crate) type Broken = Option<(&'static str, String)>;

/// Revisions that are remembered, to find what an acknowledgement was about.
const HISTORY: usize = 100_000;

/// A change of an object: as it was before, as it is now.
#[derive(Debug)]
pub(crate) enum Change {
    Pod(Option<Arc<Pod>>, Option<Arc<Pod>>),
    Node(Option<Arc<Node>>, Option<Arc<Node>>),
    Event(Option<Event>),
    Other(Option<Value>, Option<Value>),
    /// Not worth a word.
    Silent,
}

#[derive(Default)]
pub(crate) struct Invariants {
    pub(crate) calm: Calm,
    pods: Pods,
    live: Live,
    capacity: Capacity,
    order: Order,
    told: Told,
    /// Pods in the store, by UID.
    shown: BTreeMap<String, Arc<Pod>>,
    pub(crate) streams: Streams,
    /// Which key each of the last revisions was about.
    history: BTreeMap<u64, Vec<String>>,
}

impl Invariants {
    /// An object changed.
    pub(crate) fn changed(&mut self, now: Duration, revision: u64, key: &str, change: &Change) -> Broken {
        self.history.entry(revision).or_default().push(key.to_owned());
        while self.history.len() > HISTORY {
            self.history.pop_first();
        }
        match change {
            Change::Pod(old, new) => {
                if let Some(old) = old {
                    self.shown.remove(&old.metadata.uid);
                }
                if let Some(new) = new {
                    self.shown.insert(new.metadata.uid.clone(), Arc::clone(new));
                }
                let (old, new) = (old.as_deref(), new.as_deref());
                self.live.pod_changed(now, old, new);
                let broken = self.pods.changed(now, old, new);
                let broken = broken.or_else(|| self.capacity.pod_changed(now, old, new));
                broken.or_else(|| self.order.pod_changed(old, new))
            }
            Change::Node(old, new) => {
                self.capacity.node_changed(new.as_deref(), old.as_deref());
                None
            }
            Change::Other(old, new) => {
                self.capacity.other_changed(now, old.as_ref(), new.as_ref());
                None
            }
            Change::Event(_) | Change::Silent => None,
        }
    }

    /// A runtime told of something.
    pub(crate) fn noted(&mut self, now: Duration, node: &str, note: &Note) -> Broken {
        match note {
            Note::Started(instance) => {
                let broken = self.live.started(now, node, instance);
                broken.or_else(|| {
                    self.order.started(self.shown.get(&instance.pod_uid).map(AsRef::as_ref), instance)
                })
            }
            Note::Ended(instance, code) => {
                self.order.ended(instance, *code);
                self.live.ended(instance);
                self.told.ended(now, node, instance);
                None
            }
            Note::Asked(..) | Note::Call(_) => None,
        }
    }

    /// A container may have answered something.
    pub(crate) fn answered(&mut self, note: &Note) {
        if let Note::Asked(instance, words, code) = note {
            self.order.asked(instance, words, *code);
        }
    }

    /// A client was told that a write is done.
    pub(crate) fn acknowledged(&self, revision: u64, write: &Write) -> Broken {
        const RULE: &str = "an acknowledged write is in the store";
        let Write { kind, namespace, name, revision: at } = write;
        if *at > revision {
            let what =
                format!("{kind} {namespace}/{name} was acknowledged at {at}, and the store is at {revision}");
            return Some((RULE, what));
        }
        let ends = format!("/{name}");
        match self.history.get(at) {
            Some(keys) if !keys.iter().any(|key| key.ends_with(&ends)) => Some((
                RULE,
                format!("{kind} {namespace}/{name} was acknowledged at {at}, which is about {keys:?}"),
            )),
            _ => None,
        }
    }

    /// What runs and belongs to no Pod.
    pub(crate) fn strays(&self) -> Vec<String> {
        self.live.strays()
    }

    /// Nothing can go on before time does.
    pub(crate) fn quiet(&mut self, now: Duration, _calendar: Timestamp) -> Broken {
        let is_there = |node: &str| self.capacity.knows(node);
        let broken = self.pods.quiet(now, &self.calm, is_there).or_else(|| self.live.quiet(now, &self.calm));
        let broken = broken.or_else(|| self.streams.quiet());
        broken.or_else(|| self.told.quiet(now, &self.calm, &self.shown))
    }
}
