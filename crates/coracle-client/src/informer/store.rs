//! The objects of an informer and who wants to hear of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use coracle_clock::watch;
use tokio::sync::Notify;

use crate::{Object, ObjectKey, key_of, revision_of};

pub(super) struct Store<K> {
    state: RwLock<State<K>>,
    /// The revision of `state`, for those who wait for it; always sent after `state` has changed.
    reached: watch::Sender<u64>,
}

struct State<K> {
    objects: BTreeMap<ObjectKey, Arc<K>>,
    revision: u64,
    subscribers: Vec<Weak<Mailbox>>,
    closed: bool,
}

impl<K> Store<K> {
    pub(super) fn new() -> Self {
        let state = State { objects: BTreeMap::new(), revision: 0, subscribers: Vec::new(), closed: false };
        Store { state: RwLock::new(state), reached: watch::Sender::new(0) }
    }

    pub(super) fn read<R>(&self, look: impl FnOnce(&BTreeMap<ObjectKey, Arc<K>>, u64) -> R) -> R {
        let state = self.shared();
        look(&state.objects, state.revision)
    }

    pub(super) async fn wait(&self, revision: u64) {
        // An error means that the store is gone, and then nobody waits on it.
        let _ = self.reached.subscribe().wait_for(|&reached| reached >= revision).await;
    }

    pub(super) fn subscribe(&self) -> Arc<Mailbox> {
        let mailbox = Arc::new(Mailbox::default());
        let mut state = self.exclusive();
        for key in state.objects.keys() {
            mailbox.put(key, false, true);
        }
        if state.closed {
            mailbox.close();
        }
        state.subscribers.retain(|subscriber| subscriber.strong_count() > 0);
        state.subscribers.push(Arc::downgrade(&mailbox));
        mailbox
    }

    pub(super) fn close(&self) {
        let mut state = self.exclusive();
        state.closed = true;
        state.each_subscriber(|mailbox| mailbox.close());
    }

    /// Moves the revision without a change of an object.
    pub(super) fn progress(&self, revision: u64) {
        let mut state = self.exclusive();
        state.revision = state.revision.max(revision);
        self.announce(state);
    }

    fn announce(&self, state: RwLockWriteGuard<'_, State<K>>) {
        let revision = state.revision;
        drop(state);
        self.reached.send_replace(revision);
    }

    fn shared(&self) -> RwLockReadGuard<'_, State<K>> {
        // Changes are single assignments: a poisoned state is a whole one.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, State<K>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Object> Store<K> {
    /// Takes in an object that was added or changed.
    pub(super) fn set(&self, object: K) {
        let (key, revision) = (key_of(&object), revision_of(&object));
        let object = shared(object);
        let mut state = self.exclusive();
        let known = state.objects.insert(key.clone(), object).is_some();
        state.revision = state.revision.max(revision);
        state.each_subscriber(|mailbox| mailbox.put(&key, known, true));
        self.announce(state);
    }

    /// Takes in that an object is gone, with its last state.
    pub(super) fn remove(&self, last: &K) {
        let key = key_of(last);
        let mut state = self.exclusive();
        state.revision = state.revision.max(revision_of(last));
        if state.objects.remove(&key).is_some() {
            state.each_subscriber(|mailbox| mailbox.put(&key, true, false));
        }
        self.announce(state);
    }

    /// Takes in a whole list; only differences are heard.
    pub(super) fn replace(&self, items: Vec<K>, revision: u64) {
        let mut listed: BTreeMap<_, _> = items.into_iter().map(|object| (key_of(&object), object)).collect();
        let mut state = self.exclusive();
        let gone: Vec<_> = state.objects.keys().filter(|key| !listed.contains_key(*key)).cloned().collect();
        for key in gone {
            state.objects.remove(&key);
            state.each_subscriber(|mailbox| mailbox.put(&key, true, false));
        }
        while let Some((key, object)) = listed.pop_first() {
            let old = state.objects.get(&key);
            if old.is_some_and(|old| old.meta().resource_version == object.meta().resource_version) {
                continue;
            }
            let known = old.is_some();
            state.each_subscriber(|mailbox| mailbox.put(&key, known, true));
            state.objects.insert(key, shared(object));
        }
        // A restored store may be younger than what was seen before: the list says what is true now.
        state.revision = revision;
        self.announce(state);
    }
}

/// Nobody reads `managedFields`, and they are a good part of an object's memory.
fn shared<K: Object>(mut object: K) -> Arc<K> {
    object.meta_mut().managed_fields = None;
    Arc::new(object)
}

impl<K> State<K> {
    fn each_subscriber(&self, tell: impl Fn(&Mailbox)) {
        for mailbox in self.subscribers.iter().filter_map(Weak::upgrade) {
            tell(&mailbox);
        }
    }
}

/// What one subscriber has not taken yet.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    state: Mutex<Pending>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    /// Changed keys, each with whether the subscriber knows an object of that name. A key it does not know and that
    /// is gone again is dropped, which is what bounds this map.
    keys: BTreeMap<ObjectKey, bool>,
    closed: bool,
}

impl Mailbox {
    /// `known`: there was an object of this name before the change; `exists`: there is one after it.
    fn put(&self, key: &ObjectKey, known: bool, exists: bool) {
        {
            let mut pending = self.lock();
            let known = *pending.keys.entry(key.clone()).or_insert(known);
            if !known && !exists {
                pending.keys.remove(key);
            }
        }
        self.filled.notify_one();
    }

    fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_one();
    }

    pub(super) fn drain(&self) -> BTreeSet<ObjectKey> {
        std::mem::take(&mut self.lock().keys).into_keys().collect()
    }

    /// Waits until there is something to drain; false if there never will be.
    pub(super) async fn wait(&self) -> bool {
        loop {
            {
                let pending = self.lock();
                if !pending.keys.is_empty() {
                    return true;
                }
                if pending.closed {
                    return false;
                }
            }
            self.filled.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
