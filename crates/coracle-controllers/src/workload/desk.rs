//! What every controller of a workload does before it decides: wait for its own writes, and know who its children are.

use std::sync::Arc;

use coracle_api::selector::LabelSelector;
use coracle_client::request::{self, PatchBody};
use coracle_client::{
    Deletion, ErrorExt as _, EventRecorder, EventType, Informer, Object, ObjectKey, Workqueue,
    WrittenRevisions, key_of, revision_of, uid_of,
};
use coracle_clock::{Clock, select};
use futures::future::join;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{Client, Error};
use serde_json::Value;

use super::claim::CarriedOut;
use super::family::{Changed, Family};
use super::{CATCH_UP, claim, controller_of, is_terminating_namespace, selects, words_of};
use crate::keyed::{self, Looked};

/// Owners of one kind, their children of another, and what is needed to look after them.
pub(crate) struct Desk<O, C> {
    pub(crate) client: Client,
    pub(crate) clock: Clock,
    pub(crate) recorder: EventRecorder,
    pub(crate) queue: Workqueue<ObjectKey>,
    pub(crate) owners: Informer<O>,
    pub(crate) children: Informer<C>,
    pub(crate) family: Family<C>,
    written_owners: WrittenRevisions,
    written_children: WrittenRevisions,
    /// Whom an owner selects, if it takes in strangers.
    selector: fn(&O) -> Option<LabelSelector>,
    /// What children carry while they are held.
    finalizer: Option<&'static str>,
}

/// What there is to decide about.
pub(crate) enum Case<O, C> {
    /// The owner is gone; these name it still.
    Gone(Vec<Arc<C>>),
    /// Not now: this is how the look ends.
    Later(Looked),
    /// An owner, and its own children.
    Open(Arc<O>, Vec<Arc<C>>),
}

impl<O: Object, C: Object> Desk<O, C> {
    /// Waits for the first copies.
    pub(crate) async fn open(
        name: &str,
        client: Client,
        clock: Clock,
        (owners, children): (Informer<O>, Informer<C>),
        selector: fn(&O) -> Option<LabelSelector>,
        finalizer: Option<&'static str>,
    ) -> Self {
        owners.synced().await;
        children.synced().await;
        // The kind of a type is a constant.
        let kind: &'static str = match O::kind(&()) {
            std::borrow::Cow::Borrowed(kind) => kind,
            std::borrow::Cow::Owned(_) => "",
        };
        Desk {
            recorder: EventRecorder::new(&client, name, "", clock.clone()),
            queue: keyed::queue(&clock),
            family: Family::new(children.clone(), kind),
            written_owners: WrittenRevisions::new(),
            written_children: WrittenRevisions::new(),
            client,
            clock,
            owners,
            children,
            selector,
            finalizer,
        }
    }

    /// Looks at every owner that changes, or whose children do, until an informer ends.
    pub(crate) async fn serve<W>(&self, name: &str, workers: usize, look: impl Fn(ObjectKey) -> W)
    where
        W: Future<Output = Result<Looked, Error>>,
    {
        let (mut own, mut of_children) = (self.owners.subscribe(), self.children.subscribe());
        let own = async {
            while let Some(keys) = own.changed().await {
                keys.into_iter().for_each(|key| self.queue.add(key));
            }
        };
        let of_children = async {
            while of_children.changed().await.is_some() {
                self.concerns(self.family.refresh());
            }
        };
        let feeds = async {
            join(own, of_children).await;
            self.queue.close();
        };
        select! {
            _ = join(feeds, keyed::serve(name, &self.queue, workers, look)) => {}
        }
    }

    /// Has those looked at whose children changed, and those that might take in a child without an owner.
    fn concerns(&self, changed: Changed) {
        changed.owners.into_iter().for_each(|owner| self.queue.add(owner));
        for orphan in changed.orphans.iter().filter_map(|key| self.children.get_key(key)) {
            let namespace = orphan.meta().namespace.as_deref().unwrap_or_default();
            for candidate in self.owners.list_namespace(namespace) {
                let wants = (self.selector)(&candidate);
                if wants.is_some_and(|wants| selects(&wants, orphan.as_ref())) {
                    self.queue.add(key_of(candidate.as_ref()));
                }
            }
        }
    }

    /// The children that name the owner of this name, as the newest copy has them.
    pub(crate) fn children_of(&self, key: &ObjectKey) -> Vec<Arc<C>> {
        let (children, _, changed) = self.family.of(key);
        self.concerns(changed);
        children
    }

    /// What there is to decide about an owner, once the copies show all that was written for it. Strangers are taken in
    /// and let go first.
    pub(crate) async fn case(&self, key: &ObjectKey) -> Result<Case<O, C>, Error> {
        if !self.written_children.caught_up(key, &self.children, &self.clock, CATCH_UP).await
            || !self.written_owners.caught_up(key, &self.owners, &self.clock, CATCH_UP).await
        {
            return Ok(Case::Later(Looked::Again));
        }
        let owner = self.owners.get_key(key);
        let (children, orphans, changed) = self.family.of(key);
        self.concerns(changed);
        let Some(owner) = owner else {
            return Ok(Case::Gone(children));
        };
        // Who selects nobody has those that it made.
        let Some(selector) = (self.selector)(&owner) else {
            let own = |child: &Arc<C>| {
                controller_of(child.as_ref()).is_some_and(|of| of.uid == uid_of(owner.as_ref()))
            };
            let held = children.into_iter().filter(own).collect();
            return Ok(Case::Open(owner, held));
        };
        let claims = claim::decide(owner.as_ref(), &selector, children, orphans);
        match claim::carry_out(&self.client, owner.as_ref(), &claims, self.finalizer).await? {
            CarriedOut::Newest(revision) => {
                self.written_children.note(key, revision);
                self.queue.add(key.clone());
                Ok(Case::Later(Looked::Settled))
            }
            // The copies are of before something that the server knows: to look again at once is to see the same.
            CarriedOut::InVain => Ok(Case::Later(Looked::Again)),
            CarriedOut::Nothing => Ok(Case::Open(owner, claims.held)),
        }
    }

    /// Whether an owner is still there, and is to stay, before something is made for it. A copy that is behind shows
    /// owners that are gone: what is made for those is collected at once, and would be missed at once.
    pub(crate) async fn is_to_stay(&self, owner: &O) -> Result<bool, Error> {
        match request::get::<O>(&self.client, &key_of(owner)).await {
            Ok(now) => Ok(uid_of(&now) == uid_of(owner) && now.meta().deletion_timestamp.is_none()),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Notes a write of a child.
    pub(crate) fn wrote_child(&self, key: &ObjectKey, revision: u64) {
        self.written_children.note(key, revision);
    }

    /// Writes what was seen of an owner; that it is gone by now is fine.
    pub(crate) async fn write_status(&self, key: &ObjectKey, patch: Value) -> Result<(), Error> {
        match request::patch_status::<O>(&self.client, key, &PatchBody::Merge(patch)).await {
            Ok(written) => {
                self.written_owners.note(key, revision_of(&written));
                Ok(())
            }
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Looks again at a time, whatever happens until then.
    pub(crate) fn wake_at(&self, key: &ObjectKey, at: jiff::Timestamp) {
        let wait = self.clock.now().duration_until(at);
        self.queue.add_after(key.clone(), std::time::Duration::try_from(wait).unwrap_or_default());
    }
}

impl<O: Object> Desk<O, Pod> {
    /// Tells what became of Pods that were to be made; the first failure, if there is one.
    pub(crate) fn tell_of_births(
        &self,
        key: &ObjectKey,
        owner: &ObjectReference,
        made: Vec<Result<Pod, Error>>,
    ) -> Result<(), Error> {
        let mut first = Ok(());
        for result in made {
            match result {
                Ok(pod) => {
                    self.wrote_child(key, revision_of(&pod));
                    let message = format!("Created pod: {}", pod.metadata.name.unwrap_or_default());
                    self.recorder.event(owner, EventType::Normal, "SuccessfulCreate", message);
                }
                Err(error) if is_terminating_namespace(&error) => {}
                Err(error) => {
                    let message = format!("Error creating: {}", words_of(&error));
                    self.recorder.event(owner, EventType::Warning, "FailedCreate", message);
                    first = first.and(Err(error));
                }
            }
        }
        first
    }

    /// Deletes Pods, all that can be; the first failure, if there is one.
    pub(crate) async fn delete_pods(
        &self,
        key: &ObjectKey,
        owner: &ObjectReference,
        pods: &[Arc<Pod>],
    ) -> Result<(), Error> {
        let mut first = Ok(());
        for pod in pods {
            let pod_key = key_of(pod.as_ref());
            match request::delete::<Pod>(&self.client, &pod_key, &Deletion::of(uid_of(pod.as_ref()))).await {
                Ok(revision) => {
                    self.wrote_child(key, revision);
                    let message = format!("Deleted pod: {}", pod_key.name);
                    self.recorder.event(owner, EventType::Normal, "SuccessfulDelete", message);
                }
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => {
                    let message = format!("Error deleting: {}", words_of(&error));
                    self.recorder.event(owner, EventType::Warning, "FailedDelete", message);
                    first = first.and(Err(error));
                }
            }
        }
        first
    }
}
