//! The parts of stored objects that the trace tells of and the invariants look at.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;

/// What all objects have.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Meta {
    pub(crate) uid: String,
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) deletion_timestamp: Option<Timestamp>,
    pub(crate) deletion_grace_period_seconds: Option<i64>,
    pub(crate) finalizers: Vec<String>,
    pub(crate) owner_references: Vec<Owner>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Owner {
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) controller: bool,
}

/// A Pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Pod {
    pub(crate) metadata: Meta,
    pub(crate) spec: PodSpec,
    pub(crate) status: PodStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpec {
    pub(crate) node_name: Option<String>,
    pub(crate) termination_grace_period_seconds: Option<i64>,
    pub(crate) active_deadline_seconds: Option<i64>,
    pub(crate) restart_policy: String,
    pub(crate) init_containers: Vec<ContainerSpec>,
    pub(crate) containers: Vec<ContainerSpec>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ContainerSpec {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) restart_policy: Option<String>,
    pub(crate) restart_policy_rules: Vec<serde_json::Value>,
    pub(crate) startup_probe: Option<Probe>,
    pub(crate) readiness_probe: Option<Probe>,
    pub(crate) resources: Resources,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Probe {
    exec: Option<Exec>,
    http_get: Option<Asked>,
    tcp_socket: Option<Asked>,
    grpc: Option<Asked>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Exec {
    command: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Asked {
    port: serde_json::Value,
    path: Option<String>,
    service: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Resources {
    pub(crate) requests: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodStatus {
    pub(crate) phase: String,
    pub(crate) start_time: Option<Timestamp>,
    pub(crate) reason: String,
    pub(crate) conditions: Vec<Condition>,
    pub(crate) init_container_statuses: Vec<Container>,
    pub(crate) container_statuses: Vec<Container>,
    pub(crate) ephemeral_container_statuses: Vec<Container>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) status: String,
    pub(crate) reason: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Container {
    pub(crate) name: String,
    #[serde(rename = "containerID")]
    pub(crate) id: String,
    pub(crate) restart_count: i64,
    pub(crate) ready: bool,
    pub(crate) started: Option<bool>,
    pub(crate) state: State,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct State {
    pub(crate) waiting: Option<Waiting>,
    pub(crate) running: Option<Running>,
    pub(crate) terminated: Option<Terminated>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Waiting {
    pub(crate) reason: String,
    pub(crate) message: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(crate) struct Running {}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Terminated {
    pub(crate) reason: String,
    pub(crate) exit_code: i64,
}

/// A Node.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Node {
    pub(crate) metadata: Meta,
    pub(crate) spec: NodeSpec,
    pub(crate) status: NodeStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pub(crate) pod_cidr: String,
    pub(crate) unschedulable: bool,
    pub(crate) taints: Vec<Taint>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Taint {
    pub(crate) key: String,
    pub(crate) effect: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct NodeStatus {
    pub(crate) allocatable: BTreeMap<String, String>,
    pub(crate) conditions: Vec<Condition>,
}

/// A core/v1 Event.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Event {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) count: i64,
    pub(crate) involved_object: Involved,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Involved {
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) field_path: String,
}

impl ContainerSpec {
    /// Of init containers: whether it goes on beside the others.
    pub(crate) fn is_sidecar(&self) -> bool {
        self.restart_policy.as_deref() == Some("Always")
    }
}

impl Probe {
    /// What a scripted container is asked.
    pub(crate) fn words(&self) -> Vec<String> {
        let network = |kind: &str, asked: &Asked, more: Option<String>| {
            let port = asked.port.as_str().map_or_else(|| asked.port.to_string(), str::to_owned);
            [kind.to_owned(), port].into_iter().chain(more).collect()
        };
        if let Some(exec) = &self.exec {
            exec.command.clone()
        } else if let Some(asked) = &self.http_get {
            network("httpGet", asked, Some(asked.path.clone().unwrap_or_else(|| "/".to_owned())))
        } else if let Some(asked) = &self.tcp_socket {
            network("tcpSocket", asked, None)
        } else if let Some(asked) = &self.grpc {
            network("grpc", asked, Some(asked.service.clone().unwrap_or_default()))
        } else {
            Vec::new()
        }
    }
}

impl PodStatus {
    /// The statuses of all containers.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Container> {
        self.init_container_statuses
            .iter()
            .chain(&self.container_statuses)
            .chain(&self.ephemeral_container_statuses)
    }
}

impl Pod {
    /// `NAMESPACE/NAME`.
    pub(crate) fn full_name(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }

    /// It has come to its end: nothing of it runs any more, ever.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// It is on its way to its end, or may be without anybody saying so.
    pub(crate) fn may_be_ending(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
            || self.spec.active_deadline_seconds.is_some()
            || self.condition("DisruptionTarget") == "True"
    }

    /// The object that controls it.
    pub(crate) fn controller(&self) -> Option<&Owner> {
        self.metadata.owner_references.iter().find(|owner| owner.controller)
    }

    pub(crate) fn condition(&self, kind: &str) -> &str {
        condition(&self.status.conditions, kind)
    }
}

impl Node {
    pub(crate) fn condition(&self, kind: &str) -> &str {
        condition(&self.status.conditions, kind)
    }
}

fn condition<'a>(conditions: &'a [Condition], kind: &str) -> &'a str {
    conditions.iter().find(|c| c.kind == kind).map_or("", |c| c.status.as_str())
}
