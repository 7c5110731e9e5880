//! Who watches a run: a copy of the store that follows it by itself, the trace, and the invariants.
//!
//! It looks at quiet points only, and sees then every revision since it looked last, in order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use coracle_clock::Clock;
use coracle_cri::scripted::{Listener, Note};
use coracle_store::{Event, EventKind, KeyValue, Revision, Store, StoreError, WatchStream};
use futures::FutureExt as _;
use serde_json::Value;

use crate::acknowledged::Acknowledged;
use crate::describe;
use crate::invariants::{Change, Heard, Invariants};
use crate::rush::Rush;
use crate::trace::{Listen, Trace};
use crate::view;
use crate::violation::Violation;

/// Every object is below this.
pub(crate) const ROOT: &[u8] = b"/registry/";

/// What happened on nodes since the observer looked last: when, on which node, what.
pub(crate) type Notes = Arc<Mutex<Vec<(Duration, String, Note)>>>;

/// A stored object.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) value: Bytes,
    pub(crate) revision: u64,
    parts: Parts,
}

/// What there is to look at in a stored object, decoded once.
#[derive(Debug, Clone)]
enum Parts {
    Pod(Option<Arc<view::Pod>>),
    Node(Option<Arc<view::Node>>),
    Event(Option<view::Event>),
    Other(Option<Value>),
    Silent,
}

pub(crate) struct Observer {
    clock: Clock,
    seed: u64,
    store: Option<Arc<dyn Store>>,
    stream: Option<WatchStream>,
    objects: BTreeMap<String, Stored>,
    revision: u64,
    acknowledged: Acknowledged,
    rush: Rush,
    notes: Notes,
    pub(crate) heard: Heard,
    trace: Trace,
    pub(crate) invariants: Invariants,
    violation: Option<Violation>,
}

impl Observer {
    pub(crate) fn new(
        clock: Clock,
        seed: u64,
        (acknowledged, rush): (Acknowledged, Rush),
        keep_lines: bool,
    ) -> Self {
        Observer {
            clock,
            seed,
            store: None,
            stream: None,
            objects: BTreeMap::new(),
            revision: 0,
            acknowledged,
            rush,
            notes: Notes::default(),
            heard: Heard::default(),
            trace: Trace::new(keep_lines),
            invariants: Invariants::default(),
            violation: None,
        }
    }

    /// For the runtime of a node to tell of itself.
    pub(crate) fn listener(&self, node: &str) -> Listener {
        let (notes, node, clock) = (Arc::clone(&self.notes), node.to_owned(), self.clock.clone());
        Arc::new(move |note| {
            let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
            notes.push((clock.elapsed(), node.clone(), note.clone()));
        })
    }

    /// Lets somebody hear of everything from now on.
    pub(crate) fn listen(&mut self, listen: Listen) {
        self.trace.listen(listen);
    }

    pub(crate) fn trace(&self) -> &Trace {
        &self.trace
    }

    pub(crate) fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn objects(&self) -> &BTreeMap<String, Stored> {
        &self.objects
    }

    /// Adds a line that is not about an object.
    pub(crate) fn say(&mut self, text: &str) {
        self.trace.line(self.clock.elapsed(), text);
    }

    /// Takes note of a rule that does not hold. The first one counts.
    pub(crate) fn broken(&mut self, rule: &'static str, what: String) {
        if self.violation.is_some() {
            return;
        }
        let violation =
            Violation { seed: self.seed, at: self.clock.elapsed(), revision: self.revision, rule, what };
        self.trace.line(violation.at, &format!("VIOLATION {rule}: {}", violation.what));
        self.violation = Some(violation);
    }

    // === The store ===

    /// Compares an opened store with what was seen before it was: what was visible or acknowledged is still there.
    pub(crate) fn compare(&mut self, revision: Revision, at_last: &[KeyValue]) {
        self.take_changes();
        if revision.0 < self.revision {
            let what = format!("the store had revision {} and opens at {}", self.revision, revision.0);
            return self.broken("an acknowledged write is never lost", what);
        }
        let there: BTreeMap<&[u8], u64> =
            at_last.iter().map(|kv| (kv.key.as_ref(), kv.mod_revision.0)).collect();
        let lost =
            self.objects.iter().find(|(key, stored)| there.get(key.as_bytes()) != Some(&stored.revision));
        if let Some((key, stored)) = lost {
            let what = format!(
                "{key} was at revision {}, and is at {:?}",
                stored.revision,
                there.get(key.as_bytes())
            );
            return self.broken("an acknowledged write is never lost", what);
        }
        if there.len() != self.objects.len() {
            let what = format!("there were {} objects, and are {}", self.objects.len(), there.len());
            self.broken("an acknowledged write is never lost", what);
        }
    }

    /// Follows this store from here on.
    pub(crate) fn follow(&mut self, store: Arc<dyn Store>) {
        self.store = Some(store);
        self.resume();
    }

    /// The store is about to end. What it has told may rest on what was answered in this very moment.
    pub(crate) fn unfollow(&mut self) {
        let notes = Arc::clone(&self.notes);
        self.hear_answers(&notes.lock().unwrap_or_else(PoisonError::into_inner));
        self.take_changes();
        self.store = None;
        self.stream = None;
    }

    fn resume(&mut self) {
        let Some(store) = self.store.clone() else { return };
        let watch = store.watch(Bytes::from_static(ROOT), Some(Revision(self.revision)));
        match watch.now_or_never() {
            Some(Ok(stream)) => self.stream = Some(stream),
            Some(Err(StoreError::Stopped(_) | StoreError::Unavailable(_))) | None => self.stream = None,
            Some(Err(error)) => self.broken("watch streams are gapless", format!("cannot resume: {error}")),
        }
    }

    /// Takes in everything since it looked last. Returns the time.
    pub(crate) fn look(&mut self) -> Duration {
        let now = self.clock.elapsed();
        let notes = std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner));
        // What was answered may be told of already.
        self.hear_answers(&notes);
        // Then objects: what runs is judged by what there is.
        self.take_changes();
        for (at, node, note) in notes {
            let text = match &note {
                // So often that nobody would read it.
                Note::Asked(..) => continue,
                Note::Call(call) => format!("{node}: {call}"),
                Note::Started(instance) => {
                    format!("{node}: {} runs {}", instance.container, of_pod(instance))
                }
                Note::Ended(instance, code) => {
                    format!("{node}: {} ended with {code} {}", instance.container, of_pod(instance))
                }
            };
            self.trace.line(at, &text);
            let broken = self.invariants.noted(at, &node, &note);
            self.judge(broken);
        }
        for (prefix, news) in self.heard.take() {
            let broken = self.invariants.streams.heard(prefix, news);
            self.judge(broken);
        }
        for write in self.acknowledged.take() {
            let broken = self.invariants.acknowledged(self.revision, &write);
            self.judge(broken);
        }
        if let Some(what) = self.rush.found() {
            self.broken("the cluster comes to rest at every moment", format!("{what}, again and again"));
        }
        let broken = self.invariants.quiet(now, self.clock.now());
        self.judge(broken);
        now
    }

    fn hear_answers(&mut self, notes: &[(Duration, String, Note)]) {
        for (_, _, note) in notes {
            self.invariants.answered(note);
        }
    }

    fn judge(&mut self, broken: Option<(&'static str, String)>) {
        if let Some((rule, what)) = broken {
            self.broken(rule, what);
        }
    }

    fn take_changes(&mut self) {
        // Twice, because a watch that was too far behind ends and is resumed at once.
        for _ in 0..2 {
            while let Some(stream) = &mut self.stream {
                match stream.try_recv() {
                    Ok(Ok(batch)) => {
                        for event in batch.events {
                            self.change(event);
                        }
                        self.moved_to(batch.revision.0);
                    }
                    Ok(Err(_)) | Err(tokio::sync::mpsc::error::TryRecvError::Disconnected) => {
                        self.stream = None;
                    }
                    Err(tokio::sync::mpsc::error::TryRecvError::Empty) => return,
                }
            }
            self.resume();
        }
    }

    fn moved_to(&mut self, revision: u64) {
        if revision < self.revision {
            self.broken("revisions only grow", format!("from {} to {revision}", self.revision));
        }
        self.revision = self.revision.max(revision);
    }

    fn change(&mut self, event: Event) {
        let revision = event.revision.0;
        self.moved_to(revision);
        let key = String::from_utf8_lossy(&event.key).into_owned();
        self.trace.absorb(&revision.to_le_bytes());
        self.trace.absorb(key.as_bytes());
        let value = match event.kind {
            EventKind::Delete => None,
            _ => event.value,
        };
        self.trace.absorb(value.as_deref().unwrap_or_default());
        let parts = Parts::of(&key, value.as_ref());
        let old = match &value {
            Some(value) => {
                let stored = Stored { value: value.clone(), revision, parts: parts.kept() };
                self.objects.insert(key.clone(), stored)
            }
            None => self.objects.remove(&key),
        };
        let known = event.previous.as_ref().map(|previous| previous.mod_revision.0);
        if known != old.as_ref().map(|old| old.revision) {
            let last = old.as_ref().map(|old| old.revision);
            let what =
                format!("{key} changed from revision {known:?}, and {last:?} was the last that was seen");
            self.broken("watch streams are gapless", what);
        }
        let change = parts.after(old);
        let text = describe_change(&change);
        self.trace.change(self.clock.elapsed(), revision, &key, value.as_ref(), text.as_deref());
        self.invariants.streams.changed(revision, &key, value.is_some());
        let broken = self.invariants.changed(self.clock.elapsed(), revision, &key, &change);
        self.judge(broken);
    }
}

fn of_pod(instance: &coracle_cri::scripted::Instance) -> String {
    format!("(pod {}/{})", instance.pod.0, instance.pod.1)
}

fn describe_change(change: &Change) -> Option<String> {
    match change {
        Change::Pod(old, new) => describe::pod(old.as_deref(), new.as_deref()),
        Change::Node(old, new) => describe::node(old.as_deref(), new.as_deref()),
        Change::Event(new) => new.as_ref().map(describe::event),
        Change::Other(old, new) => describe::other(old.as_ref(), new.as_ref()),
        Change::Silent => None,
    }
}

impl Parts {
    fn of(key: &str, value: Option<&Bytes>) -> Parts {
        let below = |plural: &str| {
            key.strip_prefix("/registry/")
                .and_then(|rest| rest.strip_prefix(plural))
                .is_some_and(|r| r.starts_with('/'))
        };
        fn part<T: serde::de::DeserializeOwned>(bytes: Option<&Bytes>) -> Option<T> {
            serde_json::from_slice(bytes?).ok()
        }
        if below("pods") {
            Parts::Pod(part::<view::Pod>(value).map(Arc::new))
        } else if below("nodes") || below("minions") {
            Parts::Node(part::<view::Node>(value).map(Arc::new))
        } else if below("events") {
            Parts::Event(part::<view::Event>(value))
        } else if below("leases") {
            Parts::Silent
        } else {
            Parts::Other(part::<Value>(value))
        }
    }

    /// What is kept until the object changes again: not what is large, or not looked at then.
    fn kept(&self) -> Parts {
        match self {
            Parts::Pod(pod) => Parts::Pod(pod.clone()),
            Parts::Node(node) => Parts::Node(node.clone()),
            Parts::Event(_) | Parts::Other(_) | Parts::Silent => Parts::Silent,
        }
    }

    /// The change from what was stored to this.
    fn after(self, old: Option<Stored>) -> Change {
        match self {
            Parts::Pod(new) => {
                let old = old.and_then(|old| if let Parts::Pod(old) = old.parts { old } else { None });
                Change::Pod(old, new)
            }
            Parts::Node(new) => {
                let old = old.and_then(|old| if let Parts::Node(old) = old.parts { old } else { None });
                Change::Node(old, new)
            }
            Parts::Event(new) => Change::Event(new),
            Parts::Other(new) => {
                Change::Other(old.and_then(|old| serde_json::from_slice(&old.value).ok()), new)
            }
            Parts::Silent => Change::Silent,
        }
    }
}
