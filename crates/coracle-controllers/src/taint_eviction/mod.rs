//! Deletes Pods from nodes with taints that they do not tolerate, or not for so long.
//!
//! [`timers`] keeps the time. Before a Pod is deleted its node is read again: a taint that is gone and not yet heard of
//! evicts nobody.

pub mod timers;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_client::request::{self, PatchBody};
use coracle_client::{
    Deletion, ErrorExt as _, EventRecorder, EventType, ObjectKey, key_of, reference, uid_of,
};
use coracle_clock::{Clock, select};
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::{Client, Error};
use serde_json::json;

use crate::ControllerInputs;
use crate::keyed::{self, Looked};
use timers::{Timers, stays};

const WORKERS: usize = 8;
/// While a Pod waits, somebody looks at least this often, so that a pause of the process is noticed.
const LOOK: Duration = Duration::from_secs(10);

struct Eviction {
    client: Client,
    recorder: EventRecorder,
    inputs: ControllerInputs,
    clock: Clock,
    timers: Mutex<Timers>,
}

/// The taints of a node that make Pods leave.
fn evicting(node: &Node) -> Vec<Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    taints.iter().filter(|taint| taint.effect == "NoExecute").cloned().collect()
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

pub(crate) async fn run(client: Client, inputs: ControllerInputs, clock: Clock) {
    let (mut nodes, mut pods) = (inputs.nodes.subscribe(), inputs.pods.subscribe());
    inputs.nodes.synced().await;
    inputs.pods.synced().await;
    let recorder = EventRecorder::new(&client, "taint-eviction-controller", "", clock.clone());
    let eviction = Eviction { client, recorder, inputs, clock: clock.clone(), timers: Mutex::default() };
    let queue = keyed::queue(&clock);
    let eviction = &eviction;
    let watch = async {
        let mut tainted: BTreeMap<String, Vec<Taint>> = BTreeMap::new();
        loop {
            // Nodes first: a Pod is judged by the newest taints that are known.
            for key in nodes.pending() {
                let node = eviction.inputs.nodes.get_key(&key);
                let taints = node.map(|node| evicting(&node)).unwrap_or_default();
                let before = tainted.remove(&key.name).unwrap_or_default();
                if !taints.is_empty() {
                    tainted.insert(key.name.clone(), taints.clone());
                }
                if taints != before {
                    for pod in eviction.inputs.pods.list() {
                        if node_of(&pod) == key.name {
                            eviction.judge(&key_of(pod.as_ref()), &tainted);
                        }
                    }
                }
            }
            for key in pods.pending() {
                eviction.judge(&key, &tainted);
            }
            let wait = {
                let (mut timers, elapsed) = (eviction.timers(), clock.elapsed());
                timers.take_due(elapsed).into_iter().for_each(|key| queue.add(key));
                timers.plan(elapsed, LOOK).map(|at| at.saturating_sub(elapsed))
            };
            select! {
                open = nodes.filled() => if !open { return },
                open = pods.filled() => if !open { return },
                () = clock.sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
        }
    };
    select! {
        () = watch => {}
        () = keyed::serve("taint-eviction", &queue, WORKERS, |key| eviction.evict(key)) => {}
    }
}

impl Eviction {
    fn timers(&self) -> MutexGuard<'_, Timers> {
        // Each change is whole before anything can panic.
        self.timers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the timer of a Pod by the taints of its node.
    fn judge(&self, key: &ObjectKey, tainted: &BTreeMap<String, Vec<Taint>>) {
        let pod = self.inputs.pods.get_key(key);
        // Whoever is going anyway needs no push.
        let Some(pod) = pod.filter(|pod| pod.metadata.deletion_timestamp.is_none()) else {
            self.timers().forget(key);
            return;
        };
        let taints = tainted.get(node_of(&pod)).map(Vec::as_slice).unwrap_or_default();
        if taints.is_empty() && !self.timers().has(key) {
            return;
        }
        let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
        let stays = stays(taints, tolerations);
        if self.timers().set(key, uid_of(pod.as_ref()), stays, self.clock.elapsed()) {
            self.tell(&pod, "Cancelling deletion of Pod");
        }
    }

    fn tell(&self, pod: &Pod, what: &str) {
        let message = format!("{what} {}", key_of(pod));
        self.recorder.event(&reference(pod), EventType::Normal, "TaintManagerEviction", message);
    }

    /// Deletes a Pod whose time is over, if its node still wants it gone.
    async fn evict(&self, key: ObjectKey) -> Result<Looked, Error> {
        let uid = self.timers().over(&key, self.clock.elapsed()).map(str::to_owned);
        let (Some(uid), Some(pod)) = (uid, self.inputs.pods.get_key(&key)) else {
            return Ok(Looked::Settled);
        };
        if uid_of(pod.as_ref()) != uid {
            return Ok(Looked::Settled);
        }
        let node = match request::get::<Node>(&self.client, &ObjectKey::cluster(node_of(&pod))).await {
            // Its Pods are somebody else's to collect.
            Err(error) if error.is_not_found() => return Ok(Looked::Settled),
            node => node?,
        };
        let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
        if stays(&evicting(&node), tolerations).iter().all(|(_, stay)| stay.is_none()) {
            // What the watch is about to tell.
            return Ok(Looked::Again);
        }
        self.tell(&pod, "Marking for deletion Pod");
        let since = coracle_api::metadata::rfc3339(self.clock.now());
        let mut condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": since,
        });
        if let Some(generation) = pod.metadata.generation {
            condition["observedGeneration"] = generation.into();
        }
        let patch = json!({"metadata": {"uid": uid}, "status": {"conditions": [condition]}});
        let result = async {
            request::patch_status::<Pod>(&self.client, &key, &PatchBody::Strategic(patch)).await?;
            request::delete::<Pod>(&self.client, &key, &Deletion::of(uid)).await
        };
        match result.await {
            // It is gone, or another one by now.
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(Looked::Settled),
            result => result.map(|_| Looked::Settled),
        }
    }
}
