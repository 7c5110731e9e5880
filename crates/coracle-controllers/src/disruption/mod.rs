//! PodDisruptionBudgets: how many of their Pods may be evicted now.
//!
//! [`reconcile()`] counts; the API server's evictions take from what it allows. Both write with the revision that they
//! have read, so that neither undoes the other's work.

mod reconcile;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use coracle_api::catalogue;
use coracle_client::request::{self, PatchBody};
use coracle_client::{
    ErrorExt as _, EventRecorder, EventType, Object, ObjectKey, Workqueue, key_of, reference, uid_of,
};
use coracle_clock::{Clock, select};
use futures::future::{join, join3};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Client, Error};
use serde_json::{Value, json};

pub use reconcile::{PATIENCE, Plan, Scaled, reconcile, stale_from};

use crate::ControllerInputs;
use crate::interest::Interest;
use crate::keyed::{self, Looked};
use crate::workload::{controller_of, selector, selects, status};
use reconcile::Sight;

const NAME: &str = "disruption-controller";
/// Upstream's recorder has a name of its own.
const RECORDER: &str = "controllermanager";
const WORKERS: usize = 2;

struct Shell {
    client: Client,
    clock: Clock,
    inputs: ControllerInputs,
    recorder: EventRecorder,
    interest: Interest<Sight>,
    budgets: Workqueue<ObjectKey>,
    /// Pods whose disruption was announced.
    announced: Workqueue<ObjectKey>,
}

pub(crate) async fn run(client: Client, inputs: ControllerInputs, clock: Clock) {
    inputs.budgets.synced().await;
    inputs.pods.synced().await;
    inputs.replica_sets.synced().await;
    inputs.deployments.synced().await;
    let shell = Shell {
        recorder: EventRecorder::new(&client, RECORDER, "", clock.clone()),
        interest: Interest::new(),
        budgets: keyed::queue(&clock),
        announced: keyed::queue(&clock),
        client,
        clock,
        inputs,
    };
    let shell = &shell;
    let (mut budgets, mut pods) = (shell.inputs.budgets.subscribe(), shell.inputs.pods.subscribe());
    let of_budgets = async {
        while let Some(keys) = budgets.changed().await {
            keys.into_iter().for_each(|key| shell.budgets.add(key));
        }
    };
    let of_pods = async {
        while let Some(keys) = pods.changed().await {
            keys.iter().for_each(|key| shell.pod_changed(key));
        }
    };
    let feeds = async {
        join(of_budgets, of_pods).await;
        shell.budgets.close();
        shell.announced.close();
    };
    let looks = |key: ObjectKey| async move { shell.look(&key).await };
    let doubts = |key: ObjectKey| async move { shell.doubt(&key).await };
    let serving = join3(
        feeds,
        keyed::serve(NAME, &shell.budgets, WORKERS, looks),
        keyed::serve("stale disruptions", &shell.announced, 1, doubts),
    );
    select! {
        _ = serving => {}
    }
}

/// Whether a budget is about a Pod: a selector that is not there is about none.
fn is_about(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let wanted = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()).and_then(selector);
    wanted.is_some_and(|wanted| selects(&wanted, pod))
}

impl Shell {
    fn pod_changed(&self, key: &ObjectKey) {
        let pod = self.inputs.pods.get_key(key);
        let now = pod.as_ref().map(|pod| {
            let budgets = self.inputs.budgets.list_namespace(&key.namespace);
            let about: BTreeSet<ObjectKey> =
                budgets.iter().filter(|budget| is_about(budget, pod)).map(|b| key_of(b.as_ref())).collect();
            (Sight::of(pod), about)
        });
        self.interest.changed(key, now).into_iter().for_each(|budget| self.budgets.add(budget));
        if pod.is_some_and(|pod| stale_from(&pod).is_some()) {
            self.announced.add(key.clone());
        }
    }

    async fn look(&self, key: &ObjectKey) -> Result<Looked, Error> {
        let Some(budget) = self.inputs.budgets.get_key(key) else { return Ok(Looked::Settled) };
        let mut pods = self.inputs.pods.list_namespace(&key.namespace);
        pods.retain(|pod| is_about(&budget, pod));
        let scale = |controller: &OwnerReference| self.scale(controller, &key.namespace);
        let plan = reconcile(&budget, &pods, scale, self.clock.now());
        let about = reference(budget.as_ref());
        for (kind, reason, message) in plan.told {
            self.recorder.event(&about, kind, reason, message);
        }
        for pod in &plan.not_deleted {
            let (namespace, name) = (&key.namespace, &key.name);
            let message = format!("Pod was expected by PDB {namespace}/{name} to be deleted but it wasn't");
            self.recorder.event(&reference(pod.as_ref()), EventType::Warning, "NotDeleted", message);
        }
        if let Some(at) = plan.wake_at {
            self.budgets.add_after(key.clone(), until(self.clock.now(), at));
        }
        let uid = budget.metadata.uid.as_deref();
        if let Some(mut patch) = status::patch(uid, budget.status.as_ref(), &plan.status) {
            patch["metadata"]["resourceVersion"] = json!(budget.metadata.resource_version);
            self.write::<PodDisruptionBudget>(key, &PatchBody::Merge(patch)).await?;
        }
        Ok(Looked::Settled)
    }

    /// How many Pods a controller is to have.
    fn scale(&self, controller: &OwnerReference, namespace: &str) -> Scaled {
        let (group, version) =
            controller.api_version.split_once('/').unwrap_or(("", &controller.api_version));
        let Some(row) = catalogue::by_kind(group, version, &controller.kind) else {
            let (kind, api_version) = (&controller.kind, &controller.api_version);
            return Err(format!("no matches for kind {kind:?} in version {api_version:?}"));
        };
        if row.subresource("scale").is_none() {
            let resource = coracle_api::status::qualified(row.group, row.plural);
            return Err(format!("{resource} does not implement the scale subresource"));
        }
        let replicas =
            |uid: &str, wanted: Option<i32>| Ok(Some((uid.to_owned(), wanted.unwrap_or(1).into())));
        let inputs = &self.inputs;
        match controller.kind.as_str() {
            "ReplicaSet" => {
                let set = inputs.replica_sets.get(namespace, &controller.name);
                let Some(set) = set.filter(|set| uid_of(set.as_ref()) == controller.uid) else {
                    return Ok(None);
                };
                match controller_of(set.as_ref()) {
                    Some(owner) if owner.kind == "Deployment" => self.scale(owner, namespace),
                    _ => replicas(&controller.uid, set.spec.replicas),
                }
            }
            "Deployment" => {
                let deployment = inputs.deployments.get(namespace, &controller.name);
                let same = deployment.filter(|found| uid_of(found.as_ref()) == controller.uid);
                same.map_or(Ok(None), |found| replicas(&controller.uid, found.spec.replicas))
            }
            _ => Ok(None),
        }
    }

    /// Takes back an announcement that nothing came of.
    async fn doubt(&self, key: &ObjectKey) -> Result<Looked, Error> {
        let Some(pod) = self.inputs.pods.get_key(key) else { return Ok(Looked::Settled) };
        let Some(from) = stale_from(&pod) else { return Ok(Looked::Settled) };
        let now = self.clock.now();
        if from > now {
            self.announced.add_after(key.clone(), until(now, from));
            return Ok(Looked::Settled);
        }
        self.write::<Pod>(key, &PatchBody::Strategic(taken_back(&pod, now))).await?;
        Ok(Looked::Settled)
    }

    async fn write<K: Object>(&self, key: &ObjectKey, patch: &PatchBody) -> Result<(), Error> {
        match request::patch_status::<K>(&self.client, key, patch).await {
            Err(error) if error.is_not_found() => Ok(()),
            result => result.map(|_| ()),
        }
    }
}

fn taken_back(pod: &Arc<Pod>, now: Timestamp) -> Value {
    let mut condition = json!({
        "type": "DisruptionTarget", "status": "False",
        "lastTransitionTime": coracle_api::metadata::rfc3339(now),
    });
    if let Some(generation) = pod.metadata.generation {
        condition["observedGeneration"] = generation.into();
    }
    json!({
        "metadata": { "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version },
        "status": { "conditions": [condition] },
    })
}

fn until(now: Timestamp, at: Timestamp) -> Duration {
    Duration::try_from(now.duration_until(at)).unwrap_or_default()
}
