//! The Node object: registration, status and Lease.
//!
//! The status is posted when it changes, and every five minutes. The only other periodic work is the Lease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_client::{ErrorExt as _, ObjectKey, request};
use coracle_clock::Rng;
use coracle_cri::RuntimeStatus;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures, NodeStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::api::Patch;
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::KubeletConfig;
use crate::context::Context;
use crate::node_events;
use crate::pod::merge_patch;

/// What this node agent calls itself in `nodeInfo.kubeletVersion`.
pub const KUBELET_VERSION: &str = concat!("v1.37.0+coracle.", env!("CARGO_PKG_VERSION"));

const STATUS_PERIOD: Duration = Duration::from_secs(300);
const LEASE_SECONDS: i32 = 40;
const LEASE_PERIOD: Duration = Duration::from_secs(10);
const LEASE_NAMESPACE: &str = "kube-node-lease";
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(7);

/// What the status of the Node is made from.
#[derive(Debug, Clone)]
pub struct NodeInputs<'a> {
    /// The settings.
    pub config: &'a KubeletConfig,
    /// Port of the kubelet's API, if it listens.
    pub api_port: Option<u16>,
    /// `NAME://VERSION` of the runtime.
    pub runtime_version: String,
    /// Health of the runtime, or why it did not tell.
    pub runtime: Result<RuntimeStatus, String>,
    /// The status that the API server has.
    pub current: NodeStatus,
    /// The time of this look.
    pub now: Timestamp,
}

/// Computes the Node's status. What belongs to others is taken over.
#[must_use]
pub fn node_status(i: &NodeInputs<'_>) -> NodeStatus {
    let machine = &i.config.machine;
    let quantities: BTreeMap<String, Quantity> = [
        ("cpu", machine.cpus.to_string()),
        ("memory", format!("{}Ki", machine.memory_bytes / 1024)),
        ("ephemeral-storage", format!("{}Ki", machine.storage_bytes / 1024)),
        ("pods", i.config.max_pods.to_string()),
    ]
    .into_iter()
    .map(|(name, amount)| (name.to_owned(), Quantity(amount)))
    .collect();
    let address = |kind: &str, address: String| NodeAddress { type_: kind.to_owned(), address };
    let ips = i.config.node_ips.iter().map(|ip| address("InternalIP", ip.to_string()));
    let mut status = i.current.clone();
    status.addresses = Some(ips.chain([address("Hostname", i.config.hostname.clone())]).collect());
    status.capacity = Some(quantities.clone());
    status.allocatable = Some(quantities);
    status.node_info = Some(machine.node_info(&i.runtime_version, KUBELET_VERSION));
    status.daemon_endpoints = i
        .api_port
        .map(|port| NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(port) }) });
    status.features = Some(NodeFeatures { supplemental_groups_policy: Some(true) });
    status.conditions = Some(node_conditions(i));
    status
}

fn node_conditions(i: &NodeInputs<'_>) -> Vec<NodeCondition> {
    let (ready, reason, message) = readiness(&i.runtime);
    let verdicts = [
        (
            "MemoryPressure",
            false,
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available".to_owned(),
        ),
        ("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure".to_owned()),
        ("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available".to_owned()),
        ("Ready", ready, reason, message),
    ];
    let current = i.current.conditions.as_deref().unwrap_or_default();
    let foreign = current.iter().filter(|c| !verdicts.iter().any(|(kind, ..)| *kind == c.type_)).cloned();
    let own = verdicts.iter().map(|(kind, holds, reason, message)| {
        let status = if *holds { "True" } else { "False" };
        let unmoved = current.iter().find(|c| c.type_ == *kind && c.status == status);
        NodeCondition {
            type_: (*kind).to_owned(),
            status: status.to_owned(),
            reason: Some((*reason).to_owned()),
            message: Some(message.clone()),
            last_heartbeat_time: Some(Time(i.now)),
            last_transition_time: unmoved.and_then(|c| c.last_transition_time.clone()).or(Some(Time(i.now))),
        }
    });
    foreign.chain(own).collect()
}

/// Whether the node takes Pods: reason and message of the condition Ready.
fn readiness(runtime: &Result<RuntimeStatus, String>) -> (bool, &'static str, String) {
    const NOT_READY: &str = "KubeletNotReady";
    let status = match runtime {
        Ok(status) => status,
        Err(why) => return (false, NOT_READY, format!("container runtime is down: {why}")),
    };
    for (kind, what) in [
        ("RuntimeReady", "container runtime not ready"),
        ("NetworkReady", "container runtime network not ready"),
    ] {
        match status.conditions.iter().find(|c| c.kind == kind) {
            Some(condition) if condition.status => {}
            Some(condition) => {
                let text =
                    format!("{what}: {kind}=false reason:{} message:{}", condition.reason, condition.message);
                return (false, NOT_READY, text);
            }
            None => return (false, NOT_READY, format!("{what}: {kind} is not reported")),
        }
    }
    (true, "KubeletReady", "kubelet is posting ready status".to_owned())
}

/// Whether two statuses differ in more than their heartbeats.
fn differs(a: &NodeStatus, b: &NodeStatus) -> bool {
    let still = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    let (a, b) = (still(a), still(b));
    // Most looks find nothing, and need no trees for that.
    a != b && to_value(&a) != to_value(&b)
}

fn to_value(status: &NodeStatus) -> Value {
    serde_json::to_value(status).expect("a status has string keys only and serializes into a tree")
}

/// Keeps the Node object: registers it, hands its podCIDR to the runtime, posts its status. Runs for ever.
pub(crate) async fn keep_node(context: Arc<Context>, api_port: Option<u16>, mut rng: Rng) {
    node_events::report_start(&context);
    register(&context, api_port, &mut rng).await;
    let mut changes = context.nodes.subscribe();
    let mut network_was = None;
    let mut unschedulable = None;
    let mut posted_at = Duration::ZERO;
    let mut retry = RETRY_MIN;
    loop {
        if let Some(node) = context.nodes.get("", &context.config.node_name) {
            let now = node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true));
            node_events::report_schedulable(&context, &mut unschedulable, now);
        }
        let settled = match post_status(&context, api_port, &mut posted_at, &mut network_was).await {
            Ok(settled) => settled,
            Err(why) => {
                warn!(error = %why, "cannot post the node's status");
                false
            }
        };
        let until = if settled {
            retry = RETRY_MIN;
            (posted_at + STATUS_PERIOD).saturating_sub(context.clock.elapsed())
        } else {
            let pause = retry;
            retry = (retry * 2).min(RETRY_MAX);
            pause
        };
        coracle_clock::select! {
            changed = changes.changed() => if changed.is_none() { return },
            () = context.clock.sleep(until) => {}
        }
    }
}

/// One look. True if all is well; false if it is worth looking again soon: nobody tells when a runtime gets ready.
async fn post_status(
    context: &Context,
    api_port: Option<u16>,
    posted_at: &mut Duration,
    pod_cidr_given: &mut Option<String>,
) -> Result<bool, kube::Error> {
    let name = &context.config.node_name;
    let Some(node) = context.nodes.get("", name) else { return Ok(false) };
    let pod_cidr = node.spec.as_ref().and_then(|s| s.pod_cidr.clone()).filter(|cidr| !cidr.is_empty());
    if let Some(cidr) = &pod_cidr
        && pod_cidr_given.as_ref() != Some(cidr)
    {
        match context.runtime.update_pod_cidr(cidr).await {
            Ok(()) => {
                info!(pod_cidr = %cidr, "the node has its range of pod addresses");
                *pod_cidr_given = Some(cidr.clone());
            }
            Err(why) => {
                warn!(pod_cidr = %cidr, error = %why, "the runtime does not take the range of pod addresses");
            }
        }
    }
    let runtime = context.runtime.status().await.map_err(|why| why.to_string());
    publish_network(context, &runtime);
    let well = readiness(&runtime).0;
    let current = node.status.clone().unwrap_or_default();
    let inputs = NodeInputs {
        config: &context.config,
        api_port,
        runtime_version: runtime_version(context).await,
        runtime,
        current: current.clone(),
        now: context.clock.now(),
    };
    let status = node_status(&inputs);
    let due = context.clock.elapsed() >= *posted_at + STATUS_PERIOD;
    if !due && !differs(&current, &status) {
        return Ok(well && (pod_cidr == *pod_cidr_given || pod_cidr.is_none()));
    }
    let Some(change) = merge_patch(&to_value(&current), &to_value(&status)) else { return Ok(well) };
    let uid = node.metadata.uid.clone().unwrap_or_default();
    let revision = node.metadata.resource_version.clone().unwrap_or_default();
    let patch =
        Patch::Merge(json!({"metadata": {"uid": uid, "resourceVersion": revision}, "status": change}));
    match request::patch_status::<Node>(&context.client, &ObjectKey::cluster(name.clone()), &patch).await {
        Ok(_) => {
            *posted_at = context.clock.elapsed();
            node_events::report_changes(context, &current, &status);
            Ok(well)
        }
        // The informer is about to bring what the status has to be made from.
        Err(why) if why.is_conflict() => Ok(false),
        Err(why) => Err(why),
    }
}

fn publish_network(context: &Context, runtime: &Result<RuntimeStatus, String>) {
    let ready = match runtime {
        Ok(status) => match status.conditions.iter().find(|c| c.kind == "NetworkReady") {
            Some(condition) if !condition.status => Err(format!(
                "container runtime network not ready: NetworkReady=false reason:{} message:{}",
                condition.reason, condition.message
            )),
            _ => Ok(()),
        },
        Err(why) => Err(why.clone()),
    };
    context.network.send_if_modified(|current| {
        let changed = *current != ready;
        *current = ready;
        changed
    });
}

async fn runtime_version(context: &Context) -> String {
    let version = context.runtime.version().await.unwrap_or_default();
    format!("{}://{}", context.runtime_name, version.runtime_version)
}

/// Makes the Node object, or brings the labels of the one that is there up to date. Tries until it succeeds.
async fn register(context: &Context, api_port: Option<u16>, rng: &mut Rng) {
    let mut retry = RETRY_MIN;
    loop {
        match try_register(context, api_port).await {
            Ok(()) => return,
            Err(why) => warn!(error = %why, "cannot register the node"),
        }
        let jitter = Duration::from_millis(rng.below(100));
        context.clock.sleep(retry + jitter).await;
        retry = (retry * 2).min(RETRY_MAX);
    }
}

async fn try_register(context: &Context, api_port: Option<u16>) -> Result<(), kube::Error> {
    let config = &context.config;
    let labels = node_labels(config);
    let key = ObjectKey::cluster(config.node_name.clone());
    match request::get::<Node>(&context.client, &key).await {
        Ok(node) => {
            let current = node.metadata.labels.unwrap_or_default();
            if labels.iter().all(|(key, value)| current.get(key) == Some(value)) {
                return Ok(());
            }
            let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
            request::patch::<Node>(&context.client, &key, &patch).await.map(|_| ())
        }
        Err(why) if why.is_not_found() => {
            let runtime = context.runtime.status().await.map_err(|why| why.to_string());
            let inputs = NodeInputs {
                config,
                api_port,
                runtime_version: runtime_version(context).await,
                runtime,
                current: NodeStatus::default(),
                now: context.clock.now(),
            };
            let node = Node {
                metadata: ObjectMeta {
                    name: Some(config.node_name.clone()),
                    labels: Some(labels),
                    ..ObjectMeta::default()
                },
                status: Some(node_status(&inputs)),
                ..Node::default()
            };
            request::create(&context.client, &node).await?;
            info!(node = %config.node_name, "registered the node");
            let status = node.status.unwrap_or_default();
            node_events::report_changes(context, &NodeStatus::default(), &status);
            Ok(())
        }
        Err(why) => Err(why),
    }
}

fn node_labels(config: &KubeletConfig) -> BTreeMap<String, String> {
    let arch = config.machine.architecture.as_str();
    let usual = [
        ("kubernetes.io/hostname", config.hostname.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
    ];
    let mut labels = config.node_labels.clone();
    labels.extend(usual.map(|(key, value)| (key.to_owned(), value.to_owned())));
    labels
}

/// Renews the Lease. Runs for ever.
pub(crate) async fn keep_lease(context: Arc<Context>) {
    // A Lease belongs to its Node.
    let mut changes = context.nodes.subscribe();
    while context.nodes.get("", &context.config.node_name).is_none() {
        if changes.changed().await.is_none() {
            return;
        }
    }
    drop(changes);
    let mut retry = RETRY_MIN;
    loop {
        let pause = match renew_lease(&context).await {
            Ok(()) => {
                retry = RETRY_MIN;
                LEASE_PERIOD
            }
            Err(why) => {
                warn!(error = %why, "cannot renew the node's lease");
                let pause = retry;
                retry = (retry * 2).min(RETRY_MAX);
                pause
            }
        };
        context.clock.sleep(pause).await;
    }
}

async fn renew_lease(context: &Context) -> Result<(), kube::Error> {
    let name = &context.config.node_name;
    let key = ObjectKey::namespaced(LEASE_NAMESPACE, name.clone());
    let now = MicroTime(context.clock.now());
    let patch = Patch::Merge(json!({"spec": {
        "holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": &now}}));
    match request::patch::<Lease>(&context.client, &key, &patch).await {
        Err(why) if why.is_not_found() => {}
        other => return other.map(|_| ()),
    }
    // Without its Node, a Lease would be collected as soon as it is made.
    let Some(node) = context.nodes.get("", name) else { return Ok(()) };
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(LEASE_NAMESPACE.to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: name.clone(),
                uid: node.metadata.uid.clone().unwrap_or_default(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    request::create(&context.client, &lease).await.map(|_| ())
}
