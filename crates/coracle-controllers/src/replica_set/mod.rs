//! ReplicaSets: as many Pods of a template as are asked for, and never more.
//!
//! [`reconcile()`] decides from a copy of the cluster; this loop carries it out. What keeps it from creating twice is
//! that no ReplicaSet is planned before the copies show all that was written for it, and that the name of a Pod whose
//! creation was not answered is used again.

mod reconcile;

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_client::{ObjectKey, key_of, reference};
use coracle_clock::{Clock, Rng};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, Error};

pub use reconcile::{Outcome, Plan, concluded, reconcile, wanted};

use crate::ControllerInputs;
use crate::keyed::Looked;
use crate::workload::births::{Births, slow_start};
use crate::workload::desk::{Case, Desk};
use crate::workload::{controller_of, controller_reference, pods, selector, status, words_of};

const NAME: &str = "replicaset-controller";
const WORKERS: usize = 5;

struct Shell {
    desk: Desk<ReplicaSet, Pod>,
    births: Births,
}

pub(crate) async fn run(client: Client, inputs: ControllerInputs, clock: Clock, rng: Rng) {
    let wants = |set: &ReplicaSet| selector(&set.spec.selector);
    let copies = (inputs.replica_sets, inputs.pods);
    let desk = Desk::open(NAME, client, clock, copies, wants, None).await;
    let shell = Shell { desk, births: Births::new(rng) };
    let look = |key: ObjectKey| {
        let shell = &shell;
        async move { shell.look(&key).await }
    };
    shell.desk.serve(NAME, WORKERS, look).await;
}

impl Shell {
    async fn look(&self, key: &ObjectKey) -> Result<Looked, Error> {
        let desk = &self.desk;
        let (replica_set, held) = match desk.case(key).await? {
            Case::Gone(_) => {
                self.births.forget(key);
                return Ok(Looked::Settled);
            }
            Case::Later(looked) => return Ok(looked),
            Case::Open(replica_set, held) => (replica_set, held),
        };
        self.births.settle(key, |name| desk.children.get(&key.namespace, name).is_some());
        let now = desk.clock.now();
        let related = self.related(&replica_set, &held);
        let mut neighbours = BTreeMap::new();
        for pod in &related {
            *neighbours.entry(pods::node_of(pod)).or_insert(0) += 1;
        }
        let plan = reconcile(&replica_set, &held, &neighbours, now);
        if plan.create > 0 && !desk.is_to_stay(&replica_set).await? {
            return Ok(Looked::Again);
        }
        if let Some(at) = plan.wake_at {
            desk.wake_at(key, at);
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
            desk.write_status(key, patch).await?;
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
        let siblings = self.desk.owners.list_namespace(namespace);
        siblings
            .iter()
            .filter(|other| controller_of(other.as_ref()).is_some_and(|of| of.uid == controller.uid))
            .flat_map(|sibling| self.desk.children_of(&key_of(sibling.as_ref())))
            .filter(|pod| pods::is_active(pod))
            .collect()
    }

    async fn carry_out(&self, key: &ObjectKey, replica_set: &ReplicaSet, plan: &Plan) -> Result<(), Error> {
        let owner = reference(replica_set);
        if plan.create > 0 {
            let template = replica_set.spec.template.clone().unwrap_or_default();
            let made = slow_start(plan.create, |_| {
                let controller = controller_reference(replica_set);
                let pod = pods::from_template(&template, &key.namespace, controller, &key.name);
                self.births.create(&self.desk.client, key, pod)
            })
            .await;
            return self.desk.tell_of_births(key, &owner, made);
        }
        self.desk.delete_pods(key, &owner, &plan.delete).await
    }
}
