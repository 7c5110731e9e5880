//! One shared, ordered, always current copy of a kind.
//!
//! `feed` lists and watches and calls [`Store`]; `store` holds the objects and wakes who subscribed.

mod feed;
mod lines;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use coracle_clock::{Clock, Rng};
use tokio::task::AbortHandle;

use crate::{Metadata, Object, ObjectKey, supervise};
use feed::Subject;
use store::{Mailbox, Store};

/// What an informer follows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// Only this namespace.
    pub namespace: Option<String>,
    /// Only objects whose labels match.
    pub labels: Option<String>,
    /// Only objects whose fields match, as `spec.nodeName=a`.
    pub fields: Option<String>,
}

/// A shared copy of all objects of a kind (that match a selector), kept current by a watch.
///
/// # Guarantees
/// - The copy is a state that the store has had, except while the first list after a lost watch is taken in; objects
///   of one key never go back.
/// - When a subscriber hears of a key, the copy has that change or a later one. When [`Informer::revision`] is at
///   least R, the copy has every change up to R.
/// - Each object is decoded once and shared by all readers. `metadata.managedFields` is dropped.
/// - Listing is in order of namespace and name.
///
/// # What is not guaranteed
/// - That a subscriber sees every state of an object: changes that follow each other are one wake-up, an object that
///   came and went between two wake-ups may not be heard of at all, and one that was deleted and made again under
///   the same name looks like a change (compare UIDs).
/// - That the copy is as new as the store: it is behind by one delivery, and by an outage if there is one, also behind
///   the reader's own writes. What is written because of it names the revision or the identity it was decided on.
///
/// # Errors
/// A failed list or watch is retried for ever, with back-off from a tenth of a second to thirty; a log line says so.
/// A watch that ends is resumed where it was; one whose history is gone (410) starts over with a list, of which only
/// the differences are heard. So does a panic on the way, after a pause.
///
/// The watch ends when the last clone is dropped; subscriptions then end, too.
pub struct Informer<K>(Arc<Running<K>>);

struct Running<K> {
    store: Arc<Store<K>>,
    feed: AbortHandle,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer(self.0.clone())
    }
}

impl<K> Drop for Running<K> {
    fn drop(&mut self) {
        self.feed.abort();
        self.store.close();
    }
}

impl Informer<Metadata> {
    /// Starts to follow the metadata of a kind that is known by the path of its collection only. Must be called within a
    /// Tokio runtime.
    #[must_use]
    pub fn start_metadata(client: kube::Client, path: String, clock: Clock, rng: Rng) -> Self {
        let name = format!("metadata of {path}");
        let subject = Subject { name, path, metadata_only: true, labels: None, fields: None };
        Self::follow(client, subject, clock, rng)
    }
}

impl<K: Object> Informer<K> {
    /// Starts to follow a kind. Must be called within a Tokio runtime.
    #[must_use]
    pub fn start(client: kube::Client, options: ListOptions, clock: Clock, rng: Rng) -> Self {
        let subject = Subject {
            name: K::kind(&()).into_owned(),
            path: K::url_path(&(), options.namespace.as_deref()),
            metadata_only: false,
            labels: options.labels,
            fields: options.fields,
        };
        Self::follow(client, subject, clock, rng)
    }

    fn follow(client: kube::Client, subject: Subject, clock: Clock, mut rng: Rng) -> Self {
        let store = Arc::new(Store::new());
        let fed = store.clone();
        let feed = tokio::spawn(async move {
            let restarts = rng.fork("restarts");
            let feed =
                || feed::run(client.clone(), subject.clone(), fed.clone(), clock.clone(), rng.fork("feed"));
            supervise(&subject.name, &clock, restarts, feed).await;
        });
        Informer(Arc::new(Running { store, feed: feed.abort_handle() }))
    }

    /// An object by namespace (empty for a kind without) and name.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.get_key(&ObjectKey::namespaced(namespace, name))
    }

    /// An object by its key.
    #[must_use]
    pub fn get_key(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.0.store.read(|objects, _| objects.get(key).cloned())
    }

    /// All objects, in order of their keys.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<K>> {
        self.0.store.read(|objects, _| objects.values().cloned().collect())
    }

    /// All objects of a namespace, in order of their names.
    #[must_use]
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let first = ObjectKey::namespaced(namespace, "");
        self.0.store.read(|objects, _| {
            objects
                .range(first..)
                .take_while(|(key, _)| key.namespace == namespace)
                .map(|(_, object)| object.clone())
                .collect()
        })
    }

    /// All objects and the revision they are of, in one look.
    #[must_use]
    pub fn snapshot(&self) -> (Vec<Arc<K>>, u64) {
        self.0.store.read(|objects, revision| (objects.values().cloned().collect(), revision))
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.store.read(|objects, _| objects.len())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The revision that the copy has reached; 0 before the first list.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.0.store.read(|_, revision| revision)
    }

    /// Waits for the first list.
    pub async fn synced(&self) {
        self.0.store.wait(1).await;
    }

    /// Waits until the copy has every change up to `revision` of the objects it follows.
    ///
    /// Between changes the revision moves by the server's bookmarks, which may take a minute: wait only for a revision
    /// at which an object of this informer changed.
    pub async fn reached(&self, revision: u64) {
        self.0.store.wait(revision).await;
    }

    /// A stream of changed keys. The first item is every key there is, if there are any.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        Subscription(self.0.store.subscribe())
    }
}

/// Keys that changed, for one subscriber.
///
/// Keys are collected until they are taken: a slow subscriber gets a larger set and never holds anyone up. The set is
/// bounded by the objects that the subscriber knows and those that exist.
#[derive(Debug)]
pub struct Subscription(Arc<Mailbox>);

impl Subscription {
    /// Waits for changes and takes them all; `None` when the informer is gone. Cancel-safe.
    pub async fn changed(&mut self) -> Option<BTreeSet<ObjectKey>> {
        self.filled().await.then(|| self.pending())
    }

    /// Waits until there are changes to take with [`Subscription::pending`]; false when the informer is gone.
    /// Cancel-safe.
    pub async fn filled(&mut self) -> bool {
        self.0.wait().await
    }

    /// What has changed up to now, without waiting.
    pub fn pending(&mut self) -> BTreeSet<ObjectKey> {
        self.0.drain()
    }
}
