//! Tables of raw objects for the decisions, properties for the bookkeeping.

mod bookkeeping;
mod decisions;
mod reporting;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use crate::info::{NodeInfo, PodInfo};
use crate::{Cluster, Decision, Profile, schedule};

pub(crate) fn node(name: &str, change: &Value) -> Node {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "ephemeral-storage": "20Gi", "pods": "110"}},
    });
    merge(&mut node, change);
    serde_json::from_value(node).unwrap()
}

pub(crate) fn pod(name: &str, spec: &Value) -> Pod {
    let mut pod = json!({
        "metadata": {"namespace": "default", "name": name, "uid": format!("uid-{name}")},
        "spec": {"containers": [{"name": "c"}], "schedulerName": "default-scheduler", "priority": 0},
        "status": {"phase": "Pending"},
    });
    merge(&mut pod["spec"], spec);
    serde_json::from_value(pod).unwrap()
}

pub(crate) fn requests(requests: &Value) -> Value {
    json!({"containers": [{"name": "c", "resources": {"requests": requests}}]})
}

fn merge(target: &mut Value, change: &Value) {
    match (target, change) {
        (Value::Object(target), Value::Object(change)) => {
            for (key, value) in change {
                merge(target.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (target, change) => *target = change.clone(),
    }
}

fn cluster(nodes: &[Node], pods: &[Pod]) -> Cluster {
    let mut cluster = Cluster::new();
    for node in nodes {
        let info = NodeInfo::of(node);
        cluster.set_node(&info.name.clone(), Some(info));
    }
    for pod in pods {
        let info = PodInfo::of(pod);
        cluster.set_pod(&info.key.clone(), Some(&info));
    }
    cluster
}

fn decide(pod: &Pod, cluster: &Cluster) -> Decision {
    schedule(&PodInfo::of(pod), cluster, &Profile::default(), 0)
}

#[track_caller]
fn bound(decision: &Decision) -> &str {
    match decision {
        Decision::Bind { node, .. } => node,
        Decision::Unschedulable(reason) => panic!("{}", reason.message),
    }
}

#[track_caller]
fn message(decision: Decision) -> String {
    match decision {
        Decision::Bind { node, .. } => panic!("bound to {node}"),
        Decision::Unschedulable(reason) => reason.message,
    }
}
