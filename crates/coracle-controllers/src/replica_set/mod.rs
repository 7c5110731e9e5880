//! ReplicaSets: as many Pods of a template as are asked for, and never more.
//!
//! [`reconcile()`] decides from a copy of the cluster; this loop carries it out. What keeps it from creating twice is
//! that no ReplicaSet is planned before the copies show all that was written for it, and that the name of a Pod whose
//! creation was not answered is used again.

mod reconcile;

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_client::request::PatchBody;
use coracle_client::{
    Deletion, ErrorExt as _, EventRecorder, EventType, ObjectKey, Workqueue, WrittenRevisions, key_of,
    reference, request, revision_of, uid_of,
};
use coracle_clock::{Clock, Rng, select};
use futures::future::join;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{Client, Error};

pub use reconcile::{Outcome, Plan, concluded, reconcile, wanted};

use crate::ControllerInputs;
use crate::keyed::{self, Looked};
use crate::workload::births::{self, Births, slow_start};
use crate::workload::family::{Changed, Family};
use crate::workload::{
    CATCH_UP, claim, controller_of, controller_reference, is_terminating_namespace, pods, selector, selects,
    status, words_of,
};

const WORKERS: usize = 5;

struct Shell {
    client: Client,
    inputs: ControllerInputs,
    clock: Clock,
    recorder: EventRecorder,
    queue: Workqueue<ObjectKey>,
    family: Family<Pod>,
    births: Births,
    written_pods: WrittenRevisions,
    written_statuses: WrittenRevisions,
}

pub(crate) async fn run(client: Client, inputs: ControllerInputs, clock: Clock, rng: Rng) {
    let mut changes = inputs.replica_sets.subscribe();
    let mut pod_changes = inputs.pods.subscribe();
    inputs.replica_sets.synced().await;
    inputs.pods.synced().await;
    let shell = Shell {
        recorder: EventRecorder::new(&client, "replicaset-controller", "", clock.clone()),
        queue: keyed::queue(&clock),
        family: Family::new(inputs.pods.clone(), "ReplicaSet"),
        births: Births::new(rng),
        written_pods: WrittenRevisions::new(),
        written_statuses: WrittenRevisions::new(),
        client,
        inputs,
        clock,
    };
    let shell = &shell;
    let own = async {
        while let Some(keys) = changes.changed().await {
            keys.into_iter().for_each(|key| shell.queue.add(key));
        }
    };
    let of_pods = async {
        while pod_changes.changed().await.is_some() {
            shell.concerns(shell.family.refresh());
        }
    };
    let feeds = async {
        join(own, of_pods).await;
        shell.queue.close();
    };
    let look = |key| async move { shell.look(&key).await };
    select! {
        _ = join(feeds, keyed::serve("replicaset-controller", &shell.queue, WORKERS, look)) => {}
    }
}

impl Shell {
    /// Has those looked at whose Pods changed, and those that might take in a Pod without an owner.
    fn concerns(&self, changed: Changed) {
        changed.owners.into_iter().for_each(|owner| self.queue.add(owner));
        for orphan in changed.orphans.iter().filter_map(|key| self.inputs.pods.get_key(key)) {
            let namespace = orphan.metadata.namespace.as_deref().unwrap_or_default();
            for candidate in self.inputs.replica_sets.list_namespace(namespace) {
                let wants = selector(&candidate.spec.selector);
                if wants.is_some_and(|wants| selects(&wants, orphan.as_ref())) {
                    self.queue.add(key_of(candidate.as_ref()));
                }
            }
        }
    }

    async fn look(&self, key: &ObjectKey) -> Result<Looked, Error> {
        let Some(replica_set) = self.inputs.replica_sets.get_key(key) else {
            self.written_pods.forget(key);
            self.written_statuses.forget(key);
            self.births.forget(key);
            return Ok(Looked::Settled);
        };
        let (pods, sets) = (&self.inputs.pods, &self.inputs.replica_sets);
        if !self.written_pods.caught_up(key, pods, &self.clock, CATCH_UP).await
            || !self.written_statuses.caught_up(key, sets, &self.clock, CATCH_UP).await
        {
            return Ok(Looked::Again);
        }
        // Again, because it may have waited.
        let Some(replica_set) =
            sets.get_key(key).filter(|now| uid_of(now.as_ref()) == uid_of(replica_set.as_ref()))
        else {
            return Ok(Looked::Again);
        };
        let Some(selector) = selector(&replica_set.spec.selector) else {
            return Ok(Looked::Settled);
        };
        let (children, orphans, changed) = self.family.of(key);
        self.concerns(changed);
        self.births.settle(key, |name| pods.get(&key.namespace, name).is_some());
        let claims = claim::decide(replica_set.as_ref(), &selector, children, orphans);
        if let Some(newest) = claim::carry_out(&self.client, replica_set.as_ref(), &claims, None).await? {
            self.written_pods.note(key, newest);
            self.queue.add(key.clone());
            return Ok(Looked::Settled);
        }
        let now = self.clock.now();
        let related = self.related(&replica_set, &claims.held);
        let mut neighbours = BTreeMap::new();
        for pod in &related {
            *neighbours.entry(pods::node_of(pod)).or_insert(0) += 1;
        }
        let plan = reconcile(&replica_set, &claims.held, &neighbours, now);
        if let Some(at) = plan.wake_at {
            let wait = now.duration_until(at).unsigned_abs();
            self.queue.add_after(key.clone(), wait);
        }
        let done = self.carry_out(key, &replica_set, &plan).await;
        let outcome = match &done {
            Ok(()) => Outcome::Fine,
            Err(error) if plan.create > 0 => Outcome::Failed("FailedCreate", words_of(error)),
            Err(error) => Outcome::Failed("FailedDelete", words_of(error)),
        };
        let new = concluded(plan.status, &outcome, now);
        let uid = replica_set.metadata.uid.as_deref();
        if let Some(patch) = status::patch(uid, replica_set.status.as_ref(), &new) {
            match request::patch_status::<ReplicaSet>(&self.client, key, &PatchBody::Merge(patch)).await {
                Ok(written) => self.written_statuses.note(key, revision_of(&written)),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        done.map(|()| Looked::Settled)
    }

    /// The active Pods of all ReplicaSets of one controller: Pods that are to go are taken where there are many.
    fn related(&self, replica_set: &ReplicaSet, held: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
        if held.iter().filter(|pod| pods::is_active(pod)).count() <= wanted(replica_set) {
            return Vec::new();
        }
        let namespace = replica_set.metadata.namespace.as_deref().unwrap_or_default();
        let Some(controller) = controller_of(replica_set) else { return held.to_vec() };
        let siblings = self.inputs.replica_sets.list_namespace(namespace);
        let mut changed = Vec::new();
        let related = siblings
            .iter()
            .filter(|other| controller_of(other.as_ref()).is_some_and(|of| of.uid == controller.uid))
            .flat_map(|sibling| {
                let (children, _, more) = self.family.of(&key_of(sibling.as_ref()));
                changed.push(more);
                children
            })
            .filter(|pod| pods::is_active(pod))
            .collect();
        changed.into_iter().for_each(|more| self.concerns(more));
        related
    }

    async fn carry_out(&self, key: &ObjectKey, replica_set: &ReplicaSet, plan: &Plan) -> Result<(), Error> {
        let owner = reference(replica_set);
        if plan.create > 0 {
            let template = replica_set.spec.template.clone().unwrap_or_default();
            let made = slow_start(plan.create, |_| {
                let controller = controller_reference(replica_set);
                let pod = pods::from_template(&template, &key.namespace, controller, &key.name);
                self.births.create(&self.client, key, pod)
            })
            .await;
            self.written_pods.note(key, births::newest(&made));
            return self.tell_of_births(&owner, made);
        }
        let mut first = Ok(());
        for pod in &plan.delete {
            let pod_key = key_of(pod.as_ref());
            match request::delete::<Pod>(&self.client, &pod_key, &Deletion::of(uid_of(pod.as_ref()))).await {
                Ok(revision) => {
                    self.written_pods.note(key, revision);
                    let message = format!("Deleted pod: {}", pod_key.name);
                    self.recorder.event(&owner, EventType::Normal, "SuccessfulDelete", message);
                }
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => {
                    let message = format!("Error deleting: {}", words_of(&error));
                    self.recorder.event(&owner, EventType::Warning, "FailedDelete", message);
                    first = first.and(Err(error));
                }
            }
        }
        first
    }

    fn tell_of_births(&self, owner: &ObjectReference, made: Vec<Result<Pod, Error>>) -> Result<(), Error> {
        let mut first = Ok(());
        for result in made {
            match result {
                Ok(pod) => {
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
}
