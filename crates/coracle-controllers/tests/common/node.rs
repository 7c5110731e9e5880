//! What stands for scheduler and node agents: it binds Pods, lets them run or end as their image says, and lets those
//! go that are deleted.

use std::collections::BTreeSet;
use std::time::Duration;

use coracle_client::request::{self, PatchBody};
use coracle_client::{Deletion, Informer, ListOptions, ObjectKey, key_of, uid_of};
use coracle_clock::{Clock, Rng};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Binding, Node, Pod};
use kube::Client;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// The node that all Pods go to.
const NODE: &str = "n";

/// How long a Pod takes to start, to end, and to go.
pub(crate) const STEP: Duration = Duration::from_secs(1);

/// Runs until the test ends. Images: `run` is ready for ever, `exit-N` ends with that code after a step, `stuck` never
/// gets ready, `odd-fails` ends with 1 where its index is odd and with 0 where it is even.
pub(crate) async fn run(client: Client, clock: Clock) {
    // Seldom, but often enough: these tests go over days.
    let _agent = Agent::renewing(&client, &clock, NODE, Duration::from_secs(40)).await;
    let pods: Informer<Pod> =
        Informer::start(client.clone(), ListOptions::default(), clock.clone(), Rng::seeded(4));
    let mut changes = pods.subscribe();
    let mut seen: BTreeSet<(String, &'static str)> = BTreeSet::new();
    while let Some(keys) = changes.changed().await {
        for key in keys {
            let Some(pod) = pods.get_key(&key) else { continue };
            let step = next(&pod);
            if step == "none" || !seen.insert((uid_of(pod.as_ref()).to_owned(), step)) {
                continue;
            }
            let (client, clock) = (client.clone(), clock.clone());
            tokio::spawn(async move {
                if step != "bind" {
                    clock.sleep(STEP).await;
                }
                take(&client, &clock, &key, &pod, step).await;
            });
        }
    }
}

fn next(pod: &Pod) -> &'static str {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    match phase {
        _ if pod.metadata.deletion_timestamp.is_some() => "go",
        "Pending" if !bound => "bind",
        "Pending" if image(pod) != "stuck" => "start",
        "Running" if image(pod) != "run" => "end",
        _ => "none",
    }
}

fn image(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.containers[0].image.as_deref()).unwrap_or_default()
}

fn exit_code(pod: &Pod) -> i32 {
    let index = || -> Option<i32> {
        pod.metadata.annotations.as_ref()?.get("batch.kubernetes.io/job-completion-index")?.parse().ok()
    };
    match image(pod) {
        "odd-fails" => index().unwrap_or(0) % 2,
        other => other.strip_prefix("exit-").and_then(|code| code.parse().ok()).unwrap_or(0),
    }
}

async fn take(client: &Client, clock: &Clock, key: &ObjectKey, pod: &Pod, step: &str) {
    let uid = uid_of(pod);
    match step {
        "bind" => {
            let binding: Binding = serde_json::from_value(json!({
                "metadata": {"namespace": key.namespace, "name": key.name, "uid": uid},
                "target": {"kind": "Node", "name": NODE},
            }))
            .unwrap();
            let _ = request::create_subresource::<Pod, Value>(client, key, "binding", &binding).await;
        }
        "go" => {
            // A second delete, as node agents send it: now it has ended.
            let how = Deletion::of(uid).grace(0);
            let _ = request::delete::<Pod>(client, &key_of(pod), &how).await;
        }
        step => {
            let status = status(pod, step, &coracle_api::metadata::rfc3339(clock.now()));
            let patch = PatchBody::Merge(json!({"metadata": {"uid": uid}, "status": status}));
            let _ = request::patch_status::<Pod>(client, key, &patch).await;
        }
    }
}

fn status(pod: &Pod, step: &str, now: &str) -> Value {
    let ready = |is: &str| json!([{"type": "Ready", "status": is, "lastTransitionTime": now}]);
    let container = |state: Value, ready: bool| json!([{"name": "c", "image": "i", "imageID": "i", "ready": ready, "restartCount": 0, "state": state}]);
    if step == "start" {
        return json!({
            "phase": "Running", "conditions": ready("True"),
            "containerStatuses": container(json!({"running": {"startedAt": now}}), true),
        });
    }
    let code = exit_code(pod);
    json!({
        "phase": if code == 0 { "Succeeded" } else { "Failed" }, "conditions": ready("False"),
        "containerStatuses": container(json!({"terminated": {"exitCode": code, "finishedAt": now}}), false),
    })
}

/// What a node agent does about its Node: a status when it starts, and a Lease every ten seconds.
pub(crate) struct Agent(JoinHandle<()>);

impl Agent {
    pub(crate) async fn start(client: &Client, clock: &Clock, name: &str) -> Self {
        Self::renewing(client, clock, name, Duration::from_secs(10)).await
    }

    async fn renewing(client: &Client, clock: &Clock, name: &str, period: Duration) -> Self {
        let (client, clock, name) = (client.clone(), clock.clone(), name.to_owned());
        post(&client, &clock, &name).await;
        Agent(tokio::spawn(async move {
            loop {
                renew(&client, &clock, &name).await;
                clock.sleep(period).await;
            }
        }))
    }

    /// The machine loses power.
    pub(crate) fn die(self) {
        self.0.abort();
    }
}

async fn post(client: &Client, clock: &Clock, name: &str) {
    let key = ObjectKey::cluster(name);
    if request::get::<Node>(client, &key).await.is_err() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        request::create(client, &node).await.unwrap();
    }
    let condition = |kind: &str, status: &str| {
        json!({
            "type": kind, "status": status, "reason": "KubeletReady", "message": "",
            "lastHeartbeatTime": clock.now(), "lastTransitionTime": clock.now(),
        })
    };
    let conditions = json!([
        condition("MemoryPressure", "False"),
        condition("DiskPressure", "False"),
        condition("PIDPressure", "False"),
        condition("Ready", "True"),
    ]);
    let patch = PatchBody::Strategic(json!({"status": {"conditions": conditions}}));
    request::patch_status::<Node>(client, &key, &patch).await.unwrap();
}

async fn renew(client: &Client, clock: &Clock, name: &str) {
    let key = ObjectKey::namespaced("kube-node-lease", name);
    let time = coracle_api::metadata::rfc3339_micro(clock.now());
    let spec = json!({"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": time});
    let patch = PatchBody::Merge(json!({"spec": spec}));
    if request::patch::<Lease>(client, &key, &patch).await.is_err() {
        let metadata = json!({"namespace": "kube-node-lease", "name": name});
        let lease: Lease = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
        request::create(client, &lease).await.unwrap();
    }
}
