//! What the scheduler knows of a Pod and of a node: compact, so that thousands can be kept.

use std::collections::{BTreeMap, BTreeSet};

use coracle_api::placement::{HostPort, host_ports};
use coracle_client::{ObjectKey, key_of, uid_of};
use k8s_openapi::api::core::v1::{Node, NodeSelector, Pod, Taint, Toleration};

use crate::Amounts;
use crate::amounts::NonZero;

/// What matters of a Pod.
#[derive(Debug, Clone, PartialEq)]
pub struct PodInfo {
    /// Its name.
    pub key: ObjectKey,
    /// Its identity.
    pub uid: String,
    /// The scheduler it asks for.
    pub scheduler_name: String,
    /// The node it is on.
    pub node_name: Option<String>,
    /// Whether it has ended: it uses nothing any more.
    pub finished: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether scheduling gates hold it back.
    pub gated: bool,
    /// Higher goes first.
    pub priority: i32,
    /// Whether it may never push others away.
    pub never_preempts: bool,
    /// What it needs.
    pub requests: Amounts,
    /// What it counts for when load is compared.
    pub load: NonZero,
    /// Ports it needs of the node.
    pub host_ports: BTreeSet<HostPort>,
    /// Labels a node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Required node affinity.
    pub node_affinity: Option<NodeSelector>,
    /// Taints it can live with.
    pub tolerations: Vec<Toleration>,
}

impl PodInfo {
    /// Of `pod`.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let key = key_of(pod);
        let uid = uid_of(pod).to_owned();
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let spec = pod.spec.as_ref();
        let text = |text: Option<&String>| text.filter(|text| !text.is_empty()).cloned();
        PodInfo {
            key,
            uid,
            scheduler_name: text(spec.and_then(|spec| spec.scheduler_name.as_ref()))
                .unwrap_or_else(|| "default-scheduler".to_owned()),
            node_name: text(spec.and_then(|spec| spec.node_name.as_ref())),
            finished: matches!(phase, Some("Succeeded" | "Failed")),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            gated: spec
                .and_then(|spec| spec.scheduling_gates.as_ref())
                .is_some_and(|gates| !gates.is_empty()),
            priority: spec.and_then(|spec| spec.priority).unwrap_or(0),
            never_preempts: spec.and_then(|spec| spec.preemption_policy.as_deref()) == Some("Never"),
            requests: Amounts::requested(pod),
            load: NonZero::of(pod),
            host_ports: spec.map(host_ports).unwrap_or_default(),
            node_selector: spec.and_then(|spec| spec.node_selector.clone()).unwrap_or_default(),
            node_affinity: spec
                .and_then(|spec| spec.affinity.as_ref())
                .and_then(|affinity| affinity.node_affinity.as_ref())
                .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.clone()),
            tolerations: spec.and_then(|spec| spec.tolerations.clone()).unwrap_or_default(),
        }
    }

    /// Whether a scheduler of that name has to find a node for it.
    #[must_use]
    pub fn needs(&self, scheduler_name: &str) -> bool {
        self.node_name.is_none()
            && !self.finished
            && !self.deleting
            && !self.gated
            && self.scheduler_name == scheduler_name
    }
}

/// What matters of a node. Equal infos mean that nothing happened that could help a Pod: heartbeats do not show here.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// Whether it is cordoned.
    pub unschedulable: bool,
    /// What Pods may use.
    pub allocatable: Amounts,
}

impl NodeInfo {
    /// Of `node`.
    #[must_use]
    pub fn of(node: &Node) -> Self {
        NodeInfo {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default(),
            unschedulable: node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false),
            allocatable: node
                .status
                .as_ref()
                .and_then(|status| status.allocatable.as_ref())
                .map(Amounts::offered)
                .unwrap_or_default(),
        }
    }
}
