//! Why a Pod cannot go to a node.

use std::fmt;

use coracle_api::placement::{allows_node, tolerates};
use k8s_openapi::api::core::v1::Taint;

use crate::NodeState;
use crate::info::{NodeInfo, PodInfo};

/// A reason, in upstream's words when shown.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// The node is cordoned.
    Cordoned,
    /// The Pod wants another node.
    NodeName,
    /// The node has a taint that the Pod does not tolerate.
    Taint {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
    },
    /// The node's labels are not what the Pod asks for.
    Affinity,
    /// A port is taken.
    Ports,
    /// The node has as many Pods as it takes.
    TooManyPods,
    /// A resource is short.
    Insufficient {
        /// Which.
        resource: String,
        /// What the Pod asks for.
        requested: i64,
        /// What others have.
        used: i64,
        /// What there is in all.
        allocatable: i64,
    },
}

impl Refusal {
    /// Whether the Pod could go there if other Pods went away.
    #[must_use]
    pub fn resolvable(&self) -> bool {
        match self {
            Refusal::Ports | Refusal::TooManyPods => true,
            Refusal::Insufficient { requested, allocatable, .. } => requested <= allocatable,
            Refusal::Cordoned | Refusal::NodeName | Refusal::Taint { .. } | Refusal::Affinity => false,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Cordoned => "node(s) were unschedulable",
            Refusal::NodeName => "node(s) didn't match the requested node name",
            Refusal::Taint { .. } => "node(s) had untolerated taint(s)",
            Refusal::Affinity => "node(s) didn't match Pod's node affinity/selector",
            Refusal::Ports => "node(s) didn't have free ports for the requested pod ports",
            Refusal::TooManyPods => "Too many pods",
            Refusal::Insufficient { resource, .. } => return write!(f, "Insufficient {resource}"),
        })
    }
}

/// Why `pod` cannot go to `node`; empty if it can. Like upstream, the first kind of reason found is the one that
/// counts, with all the resources that are short if it is that.
#[must_use]
pub fn refusals(pod: &PodInfo, node: &NodeInfo, state: &NodeState) -> Vec<Refusal> {
    let one = |refusal| vec![refusal];
    if node.unschedulable && !tolerates(&pod.tolerations, &cordon()) {
        return one(Refusal::Cordoned);
    }
    if pod.node_name.as_ref().is_some_and(|name| *name != node.name) {
        return one(Refusal::NodeName);
    }
    if let Some(taint) = untolerated(pod, node) {
        return one(Refusal::Taint {
            key: taint.key.clone(),
            value: taint.value.clone().unwrap_or_default(),
        });
    }
    if !affinity_matches(pod, node) {
        return one(Refusal::Affinity);
    }
    if pod.host_ports.iter().any(|wanted| state.ports.keys().any(|used| wanted.conflicts(used))) {
        return one(Refusal::Ports);
    }
    shortages(pod, node, state)
}

fn shortages(pod: &PodInfo, node: &NodeInfo, state: &NodeState) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    if state.pods.saturating_add(1) > node.allocatable.get("pods") {
        refusals.push(Refusal::TooManyPods);
    }
    for (resource, &requested) in &pod.requests.0 {
        let (used, allocatable) = (state.used.get(resource), node.allocatable.get(resource));
        if requested > 0 && requested > allocatable.saturating_sub(used) {
            refusals.push(Refusal::Insufficient { resource: resource.clone(), requested, used, allocatable });
        }
    }
    refusals
}

fn untolerated<'a>(pod: &PodInfo, node: &'a NodeInfo) -> Option<&'a Taint> {
    node.taints
        .iter()
        .filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
        .find(|taint| !tolerates(&pod.tolerations, taint))
}

/// How many taints of the node the Pod would rather not live with.
#[must_use]
pub fn disliked_taints(pod: &PodInfo, node: &NodeInfo) -> usize {
    node.taints
        .iter()
        .filter(|taint| taint.effect == "PreferNoSchedule" && !tolerates(&pod.tolerations, taint))
        .count()
}

/// What cordoning amounts to.
fn cordon() -> Taint {
    Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    }
}

/// Whether the node is one that the Pod's node selector and required node affinity allow.
#[must_use]
pub fn affinity_matches(pod: &PodInfo, node: &NodeInfo) -> bool {
    allows_node(&pod.node_selector, pod.node_affinity.as_ref(), &node.name, &node.labels)
}
