//! Says of nodes that are not heard of that nobody knows how they are, and keeps the taints that follow from conditions.
//!
//! [`monitor`] decides when, [`zones`] how fast Pods are made to leave, [`taints`] which taints a node has to have. That Pods
//! then leave is another controller's work.

pub mod monitor;
pub mod taints;
#[cfg(test)]
mod tests;
pub mod zones;

use std::time::Duration;

use coracle_client::request::{self, PatchBody};
use coracle_client::{ErrorExt as _, EventRecorder, EventType, key_of, reference};
use coracle_clock::{Clock, select};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod};
use kube::{Client, Error};
use serde_json::{Value, json};

use crate::ControllerInputs;
use monitor::{Monitor, Plan, Step};

/// After a failed write the nodes are looked at again.
const RETRY: Duration = Duration::from_secs(1);

/// The patch by which a Pod on a silent node is no longer Ready; `None` if it is not.
#[must_use]
pub fn not_ready(pod: &Pod, now: Timestamp) -> Option<Value> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    let since = coracle_api::metadata::rfc3339(now);
    let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": since});
    Some(json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}}))
}

struct Lifecycle {
    client: Client,
    recorder: EventRecorder,
    inputs: ControllerInputs,
    clock: Clock,
}

pub(crate) async fn run(client: Client, inputs: ControllerInputs, clock: Clock) {
    let mut monitor = Monitor::default();
    let (mut nodes, mut leases) = (inputs.nodes.subscribe(), inputs.leases.subscribe());
    inputs.nodes.synced().await;
    inputs.leases.synced().await;
    inputs.pods.synced().await;
    let recorder = EventRecorder::new(&client, "node-controller", "", clock.clone());
    let lifecycle = Lifecycle { client, recorder, inputs, clock: clock.clone() };
    loop {
        nodes.pending();
        let known = lifecycle.inputs.nodes.list();
        let renewed = leases.pending();
        let plan = {
            for key in renewed {
                let lease = lifecycle.inputs.leases.get_key(&key);
                let time = lease.and_then(|lease| Some(lease.spec.as_ref()?.renew_time.as_ref()?.0));
                monitor.renewed(&key.name, time, clock.elapsed());
            }
            monitor.look(&known, clock.elapsed(), clock.now())
        };
        let wake_at = plan.wake_at;
        let retry = !lifecycle.carry_out(plan).await;
        // A renewed Lease moves the time of the next look, but needs none by itself.
        loop {
            let wait = wake_at.map(|at| at.saturating_sub(clock.elapsed()));
            select! {
                open = nodes.filled() => if open { break } else { return },
                () = clock.sleep(RETRY), if retry => break,
                () = clock.sleep(wait.unwrap_or_default()), if wait.is_some() => break,
                open = leases.filled() => {
                    if !open {
                        return;
                    }
                    for key in leases.pending() {
                        let lease = lifecycle.inputs.leases.get_key(&key);
                        let time = lease.and_then(|lease| Some(lease.spec.as_ref()?.renew_time.as_ref()?.0));
                        monitor.renewed(&key.name, time, clock.elapsed());
                    }
                }
            }
        }
    }
}

impl Lifecycle {
    /// True if all of it succeeded.
    async fn carry_out(&self, plan: Plan) -> bool {
        for (name, uid) in &plan.registered {
            self.tell(name, uid, "RegisteredNode", &format!("Registered Node {name} in Controller"));
        }
        for (name, uid) in &plan.removed {
            self.tell(name, uid, "RemovingNode", &format!("Removing Node {name} from Controller"));
        }
        let mut well = true;
        for step in &plan.steps {
            well &= succeeded("node", &key_of(step.node.as_ref()), self.write(step).await);
        }
        if plan.silent.is_empty() {
            return well;
        }
        let on_silent = |pod: &Pod| {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
            node.is_some_and(|node| plan.silent.contains(node))
        };
        for pod in self.inputs.pods.list().into_iter().filter(|pod| on_silent(pod)) {
            let Some(patch) = not_ready(&pod, self.clock.now()) else { continue };
            let key = key_of(pod.as_ref());
            let patched =
                request::patch_status::<Pod>(&self.client, &key, &PatchBody::Strategic(patch)).await;
            if patched.is_ok() {
                let about = reference(pod.as_ref());
                self.recorder.event(&about, EventType::Warning, "NodeNotReady", "Node is not ready");
            }
            well &= succeeded("pod", &key, patched.map(drop));
        }
        well
    }

    async fn write(&self, step: &Step) -> Result<(), Error> {
        let key = key_of(step.node.as_ref());
        let mut revision = step.node.metadata.resource_version.clone();
        let seen =
            |revision: &Option<String>| json!({"uid": step.node.metadata.uid, "resourceVersion": revision});
        if !step.conditions.is_empty() {
            let was_ready = step.node.status.as_ref().is_some_and(|status| {
                let mut conditions = status.conditions.iter().flatten();
                conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
            });
            let patch = json!({"metadata": seen(&revision), "status": {"conditions": step.conditions}});
            let patch = PatchBody::Strategic(patch);
            let written = request::patch_status::<Node>(&self.client, &key, &patch).await?;
            revision = written.metadata.resource_version;
            if was_ready {
                let message = format!("Node {} status is now: NodeNotReady", key.name);
                let about = reference(step.node.as_ref());
                self.recorder.event(&about, EventType::Normal, "NodeNotReady", message);
            }
        }
        if let Some(taints) = &step.taints {
            let taints = if taints.is_empty() { Value::Null } else { json!(taints) };
            let patch = PatchBody::Merge(json!({"metadata": seen(&revision), "spec": {"taints": taints}}));
            request::patch::<Node>(&self.client, &key, &patch).await?;
        }
        Ok(())
    }

    fn tell(&self, name: &str, uid: &str, reason: &str, what: &str) {
        let node = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        self.recorder.event(&node, EventType::Normal, reason, format!("Node {name} event: {what}"));
    }
}

fn succeeded(what: &str, key: &coracle_client::ObjectKey, written: Result<(), Error>) -> bool {
    match written {
        Ok(()) => true,
        Err(error) if error.is_not_found() => true,
        // Somebody else was there in between; what they did is heard of.
        Err(error) if error.is_conflict() => false,
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(what, key = %key, error, "cannot write how a node is");
            false
        }
    }
}
