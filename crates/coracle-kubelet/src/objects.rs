//! What the node agent reads of ConfigMaps and Secrets: those that its Pods refer to and no others.
//!
//! Each is followed by a watch of its own while some Pod refers to it, so that a change reaches the Pod's volumes as
//! soon as it is there. One that says that it is immutable is read once and followed no longer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_client::{ErrorExt as _, Informer, ListOptions, Object, ObjectKey, request};
use coracle_clock::{Clock, Rng};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// The longest that somebody waits for the first answer of a watch.
const PATIENCE: Duration = Duration::from_secs(1);

/// A kind that Pods refer to.
pub(crate) trait Referable: Object {
    /// As messages name it.
    const WHAT: &'static str;
    /// It says that it never changes.
    fn is_immutable(&self) -> bool;
}

impl Referable for ConfigMap {
    const WHAT: &'static str = "configmap";
    fn is_immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}

impl Referable for Secret {
    const WHAT: &'static str = "secret";
    fn is_immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}

/// The objects that one Pod refers to, in its own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct References {
    pub(crate) config_maps: BTreeSet<String>,
    pub(crate) secrets: BTreeSet<String>,
}

/// The copies.
pub(crate) struct Objects {
    pub(crate) config_maps: Followed<ConfigMap>,
    pub(crate) secrets: Followed<Secret>,
}

impl Objects {
    pub(crate) fn new(client: &kube::Client, clock: &Clock, rng: &mut Rng) -> Self {
        Objects {
            config_maps: Followed::new(client.clone(), clock.clone(), rng.fork("configmaps")),
            secrets: Followed::new(client.clone(), clock.clone(), rng.fork("secrets")),
        }
    }

    /// From now on this Pod refers to exactly these. It is woken when one of them changes.
    pub(crate) fn follow(&self, uid: &str, wake: &Arc<Notify>, namespace: &str, references: &References) {
        self.config_maps.follow(uid, wake, namespace, &references.config_maps);
        self.secrets.follow(uid, wake, namespace, &references.secrets);
    }

    /// The Pod refers to nothing any more.
    pub(crate) fn forget(&self, uid: &str) {
        self.config_maps.forget(uid);
        self.secrets.forget(uid);
    }
}

/// The copies of one kind.
pub(crate) struct Followed<K: Referable> {
    client: kube::Client,
    clock: Clock,
    state: Mutex<State<K>>,
}

struct State<K: Referable> {
    rng: Rng,
    entries: BTreeMap<ObjectKey, Entry<K>>,
}

struct Entry<K: Referable> {
    copy: Copy<K>,
    users: Users,
}

/// Who wakes up when the object changes, by Pod UID.
type Users = Arc<Mutex<BTreeMap<String, Arc<Notify>>>>;

enum Copy<K: Referable> {
    Live(Informer<K>, AbortHandle),
    Fixed(Arc<K>),
}

impl<K: Referable> Drop for Entry<K> {
    fn drop(&mut self) {
        if let Copy::Live(_, teller) = &self.copy {
            teller.abort();
        }
    }
}

/// Entries are replaced as a whole: a panic elsewhere leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Referable> Followed<K> {
    fn new(client: kube::Client, clock: Clock, rng: Rng) -> Self {
        Followed { client, clock, state: Mutex::new(State { rng, entries: BTreeMap::new() }) }
    }

    fn follow(&self, uid: &str, wake: &Arc<Notify>, namespace: &str, names: &BTreeSet<String>) {
        let mut state = lock(&self.state);
        let State { rng, entries } = &mut *state;
        for name in names {
            let key = ObjectKey::namespaced(namespace, name);
            let entry = entries.entry(key).or_insert_with(|| self.start(namespace, name, rng));
            lock(&entry.users).insert(uid.to_owned(), wake.clone());
        }
        entries.retain(|key, entry| {
            let mut users = lock(&entry.users);
            if key.namespace == namespace && !names.contains(&key.name) {
                users.remove(uid);
            }
            !users.is_empty()
        });
    }

    fn forget(&self, uid: &str) {
        lock(&self.state).entries.retain(|_, entry| {
            let mut users = lock(&entry.users);
            users.remove(uid);
            !users.is_empty()
        });
    }

    fn start(&self, namespace: &str, name: &str, rng: &mut Rng) -> Entry<K> {
        let options = ListOptions {
            namespace: Some(namespace.to_owned()),
            fields: Some(format!("metadata.name={name}")),
            ..ListOptions::default()
        };
        let informer = Informer::start(self.client.clone(), options, self.clock.clone(), rng.fork(name));
        let users = Users::default();
        let (mut changes, told) = (informer.subscribe(), users.clone());
        let teller = tokio::spawn(async move {
            while changes.changed().await.is_some() {
                lock(&told).values().for_each(|wake| wake.notify_one());
            }
        });
        Entry { copy: Copy::Live(informer, teller.abort_handle()), users }
    }

    /// What identifies the state that is known of an object; it says also that there is none, or that nothing is
    /// known yet.
    pub(crate) fn version(&self, namespace: &str, name: &str) -> String {
        let key = ObjectKey::namespaced(namespace, name);
        let state = lock(&self.state);
        let object = match state.entries.get(&key).map(|entry| &entry.copy) {
            Some(Copy::Fixed(object)) => Some(object.clone()),
            Some(Copy::Live(informer, _)) if informer.revision() == 0 => return "unknown".to_owned(),
            Some(Copy::Live(informer, _)) => informer.get_key(&key),
            None => return "unknown".to_owned(),
        };
        version_of(object.as_deref())
    }

    /// The object; `None` if there is none.
    ///
    /// # Errors
    /// Why nothing is known about it, in upstream's words.
    pub(crate) async fn get(&self, namespace: &str, name: &str) -> Result<Option<Arc<K>>, String> {
        let key = ObjectKey::namespaced(namespace, name);
        let informer = match lock(&self.state).entries.get(&key).map(|entry| &entry.copy) {
            Some(Copy::Fixed(object)) => return Ok(Some(object.clone())),
            Some(Copy::Live(informer, _)) => Some(informer.clone()),
            None => None,
        };
        let Some(informer) = informer else {
            // Nobody has said that it will be asked for: an ephemeral container that came a moment ago.
            return match request::get(&self.client, &key).await {
                Ok(object) => Ok(Some(Arc::new(object))),
                Err(why) if why.is_not_found() => Ok(None),
                Err(why) => Err(why.to_string()),
            };
        };
        if self.clock.timeout(PATIENCE, informer.synced()).await.is_none() {
            return Err(format!("failed to sync {} cache: timed out waiting for the condition", K::WHAT));
        }
        let object = informer.get_key(&key);
        if let Some(object) = object.as_ref().filter(|object| object.is_immutable()) {
            self.fix(&key, object);
        }
        Ok(object)
    }

    /// Keeps the object and ends its watch.
    fn fix(&self, key: &ObjectKey, object: &Arc<K>) {
        if let Some(entry) = lock(&self.state).entries.get_mut(key)
            && let Copy::Live(_, teller) = &entry.copy
        {
            teller.abort();
            entry.copy = Copy::Fixed(object.clone());
        }
    }
}

/// What identifies a state of an object.
pub(crate) fn version_of<K: Referable>(object: Option<&K>) -> String {
    match object {
        Some(object) => {
            let meta = object.meta();
            let text = |field: &Option<String>| field.clone().unwrap_or_default();
            format!("{}/{}", text(&meta.uid), text(&meta.resource_version))
        }
        None => "absent".to_owned(),
    }
}

/// How a message says that there is no such object.
pub(crate) fn not_found<K: Referable>(name: &str) -> String {
    format!("{} {} not found", K::WHAT, coracle_api::field::go_quote(name))
}
