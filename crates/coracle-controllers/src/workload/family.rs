//! Who belongs to whom: the children of each owner, kept current from an informer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_client::{Informer, Object, ObjectKey, Subscription};

use super::controller_of;

/// An index of the objects of one kind by the controller that they name, if that is of the kind `owner_kind`.
///
/// # Guarantees
/// What [`Family::of`] answers is at least as new as the informer's copy was when it was called: changes are taken in
/// before every answer, so that nobody plans without a child that the copy has.
pub(crate) struct Family<C> {
    children: Informer<C>,
    owner_kind: &'static str,
    state: Mutex<State>,
}

struct State {
    changes: Subscription,
    places: BTreeMap<ObjectKey, Place>,
    owned: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    orphans: BTreeMap<String, BTreeSet<ObjectKey>>,
}

/// Where a child stands.
#[derive(Clone, PartialEq, Eq)]
enum Place {
    /// With the owner of this name in its namespace.
    With(String),
    /// With nobody.
    Alone,
}

/// What a look at the changes came to.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    /// Whose children changed, came or went.
    pub(crate) owners: BTreeSet<ObjectKey>,
    /// Children without an owner that changed or came.
    pub(crate) orphans: BTreeSet<ObjectKey>,
}

impl<C: Object> Family<C> {
    pub(crate) fn new(children: Informer<C>, owner_kind: &'static str) -> Self {
        let state = State {
            changes: children.subscribe(),
            places: BTreeMap::new(),
            owned: BTreeMap::new(),
            orphans: BTreeMap::new(),
        };
        Family { children, owner_kind, state: Mutex::new(state) }
    }

    /// Takes in what has changed, and tells whom it concerns.
    pub(crate) fn refresh(&self) -> Changed {
        self.take_in(&mut self.lock())
    }

    /// The children that name the owner of this name, whichever its UID, and those of its namespace that name nobody.
    /// What else has changed is told, too.
    pub(crate) fn of(&self, owner: &ObjectKey) -> (Vec<Arc<C>>, Vec<Arc<C>>, Changed) {
        let mut state = self.lock();
        let changed = self.take_in(&mut state);
        let fetch = |keys: Option<&BTreeSet<ObjectKey>>| {
            keys.into_iter().flatten().filter_map(|key| self.children.get_key(key)).collect()
        };
        (fetch(state.owned.get(owner)), fetch(state.orphans.get(&owner.namespace)), changed)
    }

    fn take_in(&self, state: &mut State) -> Changed {
        let mut changed = Changed::default();
        for key in state.changes.pending() {
            let child = self.children.get_key(&key);
            let place = child.as_deref().and_then(|child| match controller_of(child) {
                None => Some(Place::Alone),
                Some(owner) if owner.kind == self.owner_kind => Some(Place::With(owner.name.clone())),
                Some(_) => None,
            });
            let before = match &place {
                Some(place) => state.places.insert(key.clone(), place.clone()),
                None => state.places.remove(&key),
            };
            if before != place {
                state.leave(&key, before.as_ref());
                state.join(&key, place.as_ref());
            }
            for place in [before, place.clone()].into_iter().flatten() {
                if let Place::With(owner) = place {
                    changed.owners.insert(ObjectKey::namespaced(key.namespace.as_str(), owner));
                }
            }
            if place == Some(Place::Alone) {
                changed.orphans.insert(key);
            }
        }
        changed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Who panicked here panicked before changing anything: nothing in between can.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn leave(&mut self, child: &ObjectKey, place: Option<&Place>) {
        match place {
            None => {}
            Some(Place::Alone) => remove(&mut self.orphans, &child.namespace, child),
            Some(Place::With(owner)) => {
                let owner = ObjectKey::namespaced(child.namespace.as_str(), owner.as_str());
                remove(&mut self.owned, &owner, child);
            }
        }
    }

    fn join(&mut self, child: &ObjectKey, place: Option<&Place>) {
        let siblings = match place {
            None => return,
            Some(Place::Alone) => self.orphans.entry(child.namespace.clone()).or_default(),
            Some(Place::With(owner)) => {
                let owner = ObjectKey::namespaced(child.namespace.as_str(), owner.as_str());
                self.owned.entry(owner).or_default()
            }
        };
        siblings.insert(child.clone());
    }
}

fn remove<K: Ord>(map: &mut BTreeMap<K, BTreeSet<ObjectKey>>, key: &K, child: &ObjectKey) {
    if let Some(siblings) = map.get_mut(key) {
        siblings.remove(child);
        if siblings.is_empty() {
            map.remove(key);
        }
    }
}
