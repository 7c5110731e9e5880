//! The events of one storage prefix, and who is told of which.
//!
//! A watcher says what its objects have in common that can be told without decoding them: its [`Scope`]. Scopes that
//! somebody watches are topics. An event touches the few topics that its key and its indexed values name, so that
//! its cost does not grow with the number of watchers that it does not concern. A topic keeps its own references to
//! the events that the ring holds: a watcher of a quiet topic loses nothing when others are busy.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use coracle_clock::watch;
use coracle_store::Revision;

use super::event::Event;

/// Events kept per prefix; older ones come from the store's own history.
const RING_EVENTS: usize = 4096;
/// Bytes of events kept per prefix, old and new values together.
const RING_BYTES: usize = 16 << 20;
/// What one look returns at most, so that a watcher that is slow to send holds little.
pub(super) const LOOK_EVENTS: usize = 64;
const LOOK_BYTES: usize = 256 * 1024;

/// Which objects of a prefix a watcher can be concerned by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    All,
    /// Those whose key begins with this, which is the prefix and a namespace with a slash behind it.
    Namespace(Bytes),
    /// The one with this key.
    Object(Bytes),
    /// Those whose indexed field has, or had, this value.
    Indexed(Box<str>),
}

impl Scope {
    /// Under which name the topics of a feed list it; `None` for the whole feed. Keys begin with a slash.
    fn topic(&self) -> Option<Bytes> {
        match self {
            Scope::All => None,
            Scope::Namespace(name) | Scope::Object(name) => Some(name.clone()),
            Scope::Indexed(value) => Some(indexed(value)),
        }
    }

    /// Whether the object before and after an event is one of them.
    pub(super) fn covers(&self, event: &Event, field: Option<&str>) -> (bool, bool) {
        let there = (event.old.is_some(), event.new.is_some());
        match self {
            Scope::All => there,
            Scope::Namespace(start) if event.key.starts_with(start) => there,
            Scope::Object(key) if event.key == key => there,
            Scope::Namespace(_) | Scope::Object(_) => (false, false),
            Scope::Indexed(value) => {
                let [old, new] = field.map_or([None, None], |field| event.indexed(field));
                (old == Some(&**value), new == Some(&**value))
            }
        }
    }
}

fn indexed(value: &str) -> Bytes {
    [b"=", value.as_bytes()].concat().into()
}

/// Those who have the same scope.
#[derive(Debug)]
struct Topic {
    /// The events of the ring that concern it, after `floor`.
    events: VecDeque<Arc<Event>>,
    floor: Revision,
    watchers: usize,
    /// Whether its watchers are still to be told of an event.
    touched: bool,
    newest: watch::Sender<Revision>,
}

#[derive(Debug)]
struct Ring {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// Every event of the prefix after this revision, up to the hub's progress, is in `events`.
    floor: Revision,
    topics: BTreeMap<Bytes, Topic>,
    /// Topics of values of the indexed field.
    indexed: usize,
    touched: Vec<Bytes>,
    /// Watchers have been told of what happened up to this revision.
    told: Revision,
}

/// The events of one storage prefix.
#[derive(Debug)]
pub(super) struct Feed {
    prefix: &'static str,
    /// The path of the field that events are indexed by.
    pub(super) field: Option<&'static str>,
    ring: Mutex<Ring>,
    /// Revision of the newest event; watchers of everything wait for it to change.
    newest: watch::Sender<Revision>,
}

/// A place among the watchers of a scope; dropping it gives it up.
#[derive(Debug)]
pub(super) struct Place {
    feed: Arc<Feed>,
    topic: Option<Bytes>,
    pub(super) newest: watch::Receiver<Revision>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(name) = &self.topic else { return };
        let mut ring = self.feed.ring();
        if let Some(topic) = ring.topics.get_mut(name) {
            topic.watchers -= 1;
            if topic.watchers == 0 {
                ring.topics.remove(name);
                ring.indexed -= usize::from(name.starts_with(b"="));
            }
        }
    }
}

impl Place {
    /// Every event of the scope after this revision can be had from the ring.
    pub(super) fn floor(&self) -> Revision {
        let ring = self.feed.ring();
        self.topic.as_ref().and_then(|name| ring.topics.get(name)).map_or(ring.floor, |topic| topic.floor)
    }

    /// The events of the scope after `cursor`, as many as one look returns, none newer than `progress`; and the
    /// revision up to which there are no others.
    ///
    /// # Errors
    /// The floor, if `cursor` is below it.
    pub(super) fn look(
        &self,
        cursor: Revision,
        progress: Revision,
    ) -> Result<(Vec<Arc<Event>>, Revision), Revision> {
        let ring = self.feed.ring();
        let topic = self.topic.as_ref().and_then(|name| ring.topics.get(name));
        let (events, floor) = topic.map_or((&ring.events, ring.floor), |topic| (&topic.events, topic.floor));
        if cursor < floor {
            return Err(floor);
        }
        let begin = events.partition_point(|event| event.revision <= cursor);
        let (mut taken, mut bytes) = (Vec::<Arc<Event>>::new(), 0);
        // A transaction is published as a whole: its later half may still be on its way.
        for event in events.range(begin..).take_while(|event| event.revision <= progress) {
            if let Some(last) = taken.last()
                && (taken.len() >= LOOK_EVENTS || bytes >= LOOK_BYTES)
                && last.revision != event.revision
            {
                let reached = last.revision;
                return Ok((taken, reached));
            }
            bytes += event.size();
            taken.push(Arc::clone(event));
        }
        Ok((taken, progress.max(cursor)))
    }
}

impl Feed {
    pub(super) fn new(prefix: &'static str, field: Option<&'static str>, begin: Revision) -> Self {
        let ring = Ring {
            events: VecDeque::new(),
            bytes: 0,
            floor: begin,
            topics: BTreeMap::new(),
            indexed: 0,
            touched: Vec::new(),
            told: begin,
        };
        Feed { prefix, field, ring: Mutex::new(ring), newest: watch::Sender::new(begin) }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Pushing and popping cannot panic half way.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets everything up to `begin`.
    pub(super) fn begin_again(&self, begin: Revision) {
        let mut ring = self.ring();
        let Ring { events, bytes, floor, topics, touched, .. } = &mut *ring;
        events.clear();
        (*bytes, *floor) = (0, begin);
        for (name, topic) in topics {
            topic.events.clear();
            topic.floor = begin;
            if !std::mem::replace(&mut topic.touched, true) {
                touched.push(name.clone());
            }
        }
    }

    /// A place among the watchers of `scope`, for one that has seen everything up to `after`.
    pub(super) fn join(self: &Arc<Self>, scope: &Scope, after: Revision) -> Place {
        let place = |topic, newest| Place { feed: Arc::clone(self), topic, newest };
        let Some(name) = scope.topic() else { return place(None, self.newest.subscribe()) };
        let mut ring = self.ring();
        let ring = &mut *ring;
        let floor = after.max(ring.floor);
        let known = ring.topics.get(&name).map(|topic| topic.floor);
        // A topic begins with its first watcher, and is filled up when one comes that needs more of the ring.
        if known.is_none_or(|known| floor < known) {
            let begin = ring.events.partition_point(|event| event.revision <= floor);
            let concerns = |event: &&Arc<Event>| {
                let gone_unseen = event.old.is_none() && event.new.is_none();
                let (old, new) = scope.covers(event, self.field);
                old || new || gone_unseen
            };
            let events: VecDeque<_> = ring.events.range(begin..).filter(concerns).cloned().collect();
            let fresh = !ring.topics.contains_key(&name);
            ring.indexed += usize::from(fresh && matches!(scope, Scope::Indexed(_)));
            let topic = ring.topics.entry(name.clone()).or_insert_with(|| Topic {
                events: VecDeque::new(),
                floor,
                watchers: 0,
                touched: false,
                newest: watch::Sender::new(after),
            });
            (topic.events, topic.floor) = (events, floor);
            // What is being published right now was sorted before there was this topic.
            let untold = topic.events.back().is_some_and(|newest| newest.revision > ring.told);
            if untold && !std::mem::replace(&mut topic.touched, true) {
                ring.touched.push(name.clone());
            }
        }
        let topic = ring.topics.get_mut(&name);
        let newest = topic.map_or_else(
            || self.newest.subscribe(),
            |topic| {
                topic.watchers += 1;
                topic.newest.subscribe()
            },
        );
        place(Some(name), newest)
    }

    /// Calls `each` for every watched topic that the event concerns.
    fn topics_of(&self, ring: &mut Ring, event: &Event, mut each: impl FnMut(&Bytes, &mut Topic)) {
        if ring.topics.is_empty() {
            return;
        }
        let key = &event.key;
        if let Some(topic) = ring.topics.get_mut(key) {
            each(key, topic);
        }
        let rest = key.get(self.prefix.len() + 1..).unwrap_or_default();
        if let Some(slash) = rest.iter().position(|&byte| byte == b'/') {
            let name = key.slice(..self.prefix.len() + slash + 2);
            if let Some(topic) = ring.topics.get_mut(&name) {
                each(&name, topic);
            }
        }
        if ring.indexed == 0 {
            return;
        }
        let Some(field) = self.field else { return };
        match event.indexed(field) {
            // What was removed cannot be told: everybody has to know.
            [None, None] => {
                let all = ring.topics.iter_mut().filter(|(name, _)| name.starts_with(b"="));
                all.for_each(|(name, topic)| each(name, topic));
            }
            [old, new] => {
                for value in [old, new.filter(|_| new != old)].into_iter().flatten() {
                    let name = indexed(value);
                    if let Some(topic) = ring.topics.get_mut(&name) {
                        each(&name, topic);
                    }
                }
            }
        }
    }

    /// Takes an event in; [`Feed::notify`] tells of it.
    pub(super) fn push(&self, event: Arc<Event>) {
        let mut ring = self.ring();
        let ring = &mut *ring;
        ring.bytes += event.size();
        let mut touched = std::mem::take(&mut ring.touched);
        self.topics_of(ring, &event, |name, topic| {
            topic.events.push_back(Arc::clone(&event));
            if !std::mem::replace(&mut topic.touched, true) {
                touched.push(name.clone());
            }
        });
        ring.touched = touched;
        ring.events.push_back(event);
        while ring.events.len() > RING_EVENTS || (ring.bytes > RING_BYTES && ring.events.len() > 1) {
            self.drop_oldest(ring);
        }
        // Several events of one transaction share a revision; a cursor at it has to lie above all of them.
        while ring.events.front().is_some_and(|next| next.revision <= ring.floor) {
            self.drop_oldest(ring);
        }
    }

    fn drop_oldest(&self, ring: &mut Ring) {
        let Some(dropped) = ring.events.pop_front() else { return };
        ring.bytes -= dropped.size();
        ring.floor = dropped.revision;
        self.topics_of(ring, &dropped, |_, topic| {
            // A topic that began later has not got it.
            if topic.events.front().is_some_and(|first| Arc::ptr_eq(first, &dropped)) {
                topic.events.pop_front();
                topic.floor = dropped.revision;
            }
        });
    }

    /// Tells those whom the events up to `revision` concern to look.
    pub(super) fn notify(&self, revision: Revision) {
        let told: Vec<_> = {
            let mut ring = self.ring();
            ring.told = revision.max(ring.told);
            let touched = std::mem::take(&mut ring.touched);
            touched
                .iter()
                .filter_map(|name| {
                    let topic = ring.topics.get_mut(name)?;
                    topic.touched = false;
                    Some(topic.newest.clone())
                })
                .collect()
        };
        self.newest.send_replace(revision);
        for newest in told {
            newest.send_replace(revision);
        }
    }
}
