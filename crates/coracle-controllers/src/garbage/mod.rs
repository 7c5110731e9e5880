//! Collects objects whose owners are gone, and carries out foreground and orphan deletion.
//!
//! The graph is what the watches have told; it says at whom to look. What is done to an object is decided by reading it
//! and its owners from the API server: nothing is deleted because a watch was behind. A delete states the revision
//! that was looked at.

mod decide;
mod graph;

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use coracle_api::catalogue::{self, Dependents, Resource};
use coracle_client::request::PatchBody;
use coracle_client::{
    Collection, Deletion, ErrorExt as _, EventRecorder, EventType, Informer, Metadata, Workqueue,
};
use coracle_clock::{Clock, Rng, select};
use futures::future::join_all;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Client, Error, Resource as _};
use serde_json::Value;

pub use decide::{Action, Owner, decide, disown, release, unblock};
pub use graph::{Graph, Hold, Item, Uid, blocks};

use crate::keyed::{self, Looked};

const WORKERS: usize = 8;
/// How many owners that are gone are remembered, so that the second object that they owned costs no look.
const GONE_MAX: usize = 500;

/// The kinds that are collected: what can be deleted and watched, each stored object under one kind only. Events own
/// nothing and are owned by nothing.
#[must_use]
pub fn kinds() -> Vec<&'static Resource> {
    let mut stored = BTreeSet::new();
    catalogue::resources()
        .iter()
        .filter(|row| ["list", "watch", "delete"].iter().all(|verb| row.allows(verb)))
        .filter(|row| row.strategy.dependents() != Dependents::None)
        .filter(|row| stored.insert(row.storage_prefix))
        .collect()
}

struct Collector {
    client: Client,
    recorder: EventRecorder,
    kinds: Vec<&'static Resource>,
    graph: Mutex<Graph>,
    /// Owners that do not exist. A UID is never given twice, so what is gone stays gone.
    gone: Mutex<VecDeque<Uid>>,
}

pub(crate) async fn run(client: Client, clock: Clock, mut rng: Rng) {
    let kinds = kinds();
    let mut watched: Vec<_> = kinds
        .iter()
        .map(|row| {
            let own = rng.fork("metadata");
            let informer: Informer<Metadata> =
                Informer::start_metadata(client.clone(), row.path(None), clock.clone(), own);
            let changes = informer.subscribe();
            (*row, informer, changes)
        })
        .collect();
    // Before everything is known, much would look as if it had no owner.
    join_all(watched.iter().map(|(_, informer, _)| informer.synced())).await;
    let collector = Collector {
        recorder: EventRecorder::new(&client, "garbage-collector-controller", "", clock.clone()),
        client,
        kinds,
        graph: Mutex::default(),
        gone: Mutex::default(),
    };
    let queue = keyed::queue(&clock);
    for (row, informer, changes) in &mut watched {
        for key in changes.pending() {
            let object = informer.get_key(&key);
            collector.graph().observe(row, &key, object.as_deref().map(kube::Resource::meta));
        }
    }
    for uid in collector.graph().all_that_need_a_look() {
        queue.add(uid);
    }
    let (collector, queue) = (&collector, &queue);
    let feeds = keyed::all(watched.into_iter().map(|(row, informer, mut changes)| async move {
        while let Some(keys) = changes.changed().await {
            for key in keys {
                let object = informer.get_key(&key);
                let touched = collector.graph().observe(row, &key, object.as_deref().map(Metadata::meta));
                touched.into_iter().for_each(|uid| queue.add(uid));
            }
        }
    }));
    select! {
        () = feeds => {}
        () = keyed::serve("garbage-collector", queue, WORKERS, |uid| collector.look(queue, uid)) => {}
    }
}

impl Collector {
    fn graph(&self) -> MutexGuard<'_, Graph> {
        // Each change is whole before anything can panic.
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gone(&self) -> MutexGuard<'_, VecDeque<Uid>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, row: &Resource, namespace: &str) -> Collection {
        Collection::new(&self.client, row.path(Some(namespace)))
    }

    async fn look(&self, queue: &Workqueue<Uid>, uid: Uid) -> Result<Looked, Error> {
        let Some(item) = self.graph().item(&uid).cloned() else { return Ok(Looked::Settled) };
        let at = self.of(item.row, &item.key.namespace);
        let object = match at.get(&item.key.name).await {
            Err(error) if error.is_not_found() => return Ok(Looked::Settled),
            object => object?,
        };
        let meta = object.meta();
        if meta.uid.as_deref() != Some(&uid) {
            return Ok(Looked::Settled);
        }
        let done = if meta.deletion_timestamp.is_some() {
            match Hold::of(meta) {
                None => return Ok(Looked::Settled),
                Some(Hold::Orphan) => self.orphan(&item, meta).await,
                Some(Hold::Foreground) => self.let_go(queue, &item, meta).await,
            }
        } else {
            self.judge(&item, meta).await
        };
        match done {
            Err(error) if error.is_not_found() => Ok(Looked::Settled),
            done => done,
        }
    }

    /// Deletes an object without owners, or takes from it those that are gone.
    async fn judge(&self, item: &Item, meta: &ObjectMeta) -> Result<Looked, Error> {
        let references = meta.owner_references.as_deref().unwrap_or_default();
        let mut owners = Vec::with_capacity(references.len());
        let mut unheard = false;
        for reference in references {
            let (owner, heard) = self.look_up(item, meta, reference).await?;
            unheard |= !heard;
            owners.push(owner);
        }
        let uid = meta.uid.clone().unwrap_or_default();
        let dependents: Vec<_> = self.graph().dependents(&uid).map(|(_, item)| item.hold).collect();
        let at = self.of(item.row, &item.key.namespace);
        let mut revision = meta.resource_version.clone();
        match decide(meta, &owners, &dependents) {
            // An owner that is there and that no watch has told of yet could go without anybody telling.
            Action::Keep => return Ok(if unheard { Looked::Again } else { Looked::Settled }),
            Action::Disown(leaving) => {
                let patch = PatchBody::Merge(disown(meta, &leaving));
                at.patch(&item.key.name, &patch).await?;
            }
            Action::Delete { propagation, unblock: mutual } => {
                if mutual {
                    let patch = PatchBody::Merge(unblock(meta));
                    revision = at.patch(&item.key.name, &patch).await?.meta().resource_version.clone();
                }
                let mut how = Deletion::of(uid).propagating(propagation);
                how.resource_version = revision;
                tracing::debug!(kind = item.row.kind, key = %item.key, ?propagation, "collecting");
                at.delete(&item.key.name, &how).await?;
            }
        }
        Ok(Looked::Settled)
    }

    /// What an owner is, and whether a watch has told of it, if one will.
    async fn look_up(
        &self,
        item: &Item,
        meta: &ObjectMeta,
        reference: &OwnerReference,
    ) -> Result<(Owner, bool), Error> {
        let known = self.graph().item(&reference.uid).cloned();
        if known.as_ref().is_some_and(|owner| !owner.is_meant(reference, item)) {
            self.tell_of_wrong_owner(item, meta, reference);
        }
        if self.gone().contains(&reference.uid) {
            return Ok((Owner::Gone, true));
        }
        let (group, version) = reference.api_version.rsplit_once('/').unwrap_or(("", &reference.api_version));
        let Some(row) = catalogue::by_kind(group, version, &reference.kind) else {
            return Ok((Owner::Unknowable, true));
        };
        if row.namespaced && !item.row.namespaced {
            self.tell_of_wrong_owner(item, meta, reference);
            return Ok((Owner::Unknowable, true));
        }
        let found = match self.of(row, &item.key.namespace).get(&reference.name).await {
            Err(error) if error.is_not_found() => None,
            found => Some(found?).filter(|owner| owner.meta().uid.as_deref() == Some(&reference.uid)),
        };
        let Some(owner) = found else {
            // Somewhere else there is an object of this UID: then this reference is wrong, and that one may be right.
            if known.is_none() {
                let mut gone = self.gone();
                gone.push_back(reference.uid.clone());
                if gone.len() > GONE_MAX {
                    gone.pop_front();
                }
            }
            return Ok((Owner::Gone, true));
        };
        let waits = Hold::of(owner.meta()) == Some(Hold::Foreground);
        let watched = self.kinds.iter().any(|kind| kind.storage_prefix == row.storage_prefix);
        Ok((if waits { Owner::Waiting } else { Owner::Solid }, known.is_some() || !watched))
    }

    fn tell_of_wrong_owner(&self, item: &Item, meta: &ObjectMeta, reference: &OwnerReference) {
        let OwnerReference { api_version, kind, name, uid, .. } = reference;
        let namespace = &item.key.namespace;
        let message = format!(
            "ownerRef [{api_version}/{kind}, namespace: {namespace}, name: {name}, uid: {uid}] does not exist in \
             namespace {namespace:?}"
        );
        let about = ObjectReference {
            api_version: Some(item.row.api_version()),
            kind: Some(item.row.kind.to_owned()),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            ..ObjectReference::default()
        };
        self.recorder.event(&about, EventType::Warning, "OwnerRefInvalidNamespace", message);
    }

    /// Everything that names the object as its owner, read from the API server.
    async fn owned(&self, item: &Item, uid: &str) -> Result<Vec<(&'static Resource, Metadata)>, Error> {
        let namespace = Some(item.key.namespace.as_str()).filter(|_| item.row.namespaced);
        let mut owned = Vec::new();
        for row in self.kinds.iter().filter(|row| row.namespaced || namespace.is_none()) {
            let objects = Collection::new(&self.client, row.path(namespace)).list().await?;
            let names = |meta: &ObjectMeta| {
                meta.owner_references.iter().flatten().any(|reference| reference.uid == uid)
            };
            owned.extend(
                objects.into_iter().filter(|object| names(object.meta())).map(|object| (*row, object)),
            );
        }
        Ok(owned)
    }

    /// Takes an owner from all that it owns, then lets it go.
    async fn orphan(&self, item: &Item, meta: &ObjectMeta) -> Result<Looked, Error> {
        let uid = meta.uid.clone().unwrap_or_default();
        let leaving = BTreeSet::from([uid.clone()]);
        for (row, object) in self.owned(item, &uid).await? {
            let dependent = object.meta();
            let at = self.of(row, dependent.namespace.as_deref().unwrap_or_default());
            let patch = PatchBody::Merge(disown(dependent, &leaving));
            match at.patch(dependent.name.as_deref().unwrap_or_default(), &patch).await {
                Err(error) if error.is_not_found() => {}
                patched => drop(patched?),
            }
        }
        self.release(item, release(meta, Hold::Orphan)).await
    }

    /// Lets an object go when nothing that it waits for is left, and looks after that otherwise.
    async fn let_go(&self, queue: &Workqueue<Uid>, item: &Item, meta: &ObjectMeta) -> Result<Looked, Error> {
        let uid = meta.uid.clone().unwrap_or_default();
        let blocking: Vec<_> =
            self.graph().blocking(&uid).map(|(uid, item)| (uid.clone(), item.hold)).collect();
        if !blocking.is_empty() {
            for (dependent, hold) in blocking {
                if hold != Some(Hold::Foreground) && self.graph().needs_look(&dependent) {
                    queue.add(dependent);
                }
            }
            return Ok(Looked::Settled);
        }
        // A watch may not have told of what was made last.
        let owned = self.owned(item, &uid).await?;
        let blocked = owned
            .iter()
            .any(|(_, object)| blocks(object.meta().owner_references.as_deref().unwrap_or_default(), &uid));
        if blocked {
            return Ok(Looked::Again);
        }
        self.release(item, release(meta, Hold::Foreground)).await
    }

    async fn release(&self, item: &Item, patch: Value) -> Result<Looked, Error> {
        let at = self.of(item.row, &item.key.namespace);
        at.patch(&item.key.name, &PatchBody::Merge(patch)).await?;
        Ok(Looked::Settled)
    }
}
