//! What keeps a Pod from a node: taints, labels, ports that are taken. The scheduler asks before it binds, the node agent
//! before it starts anything.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

use crate::pod::is_sidecar;

/// All addresses of a node.
const ALL_ADDRESSES: &str = "0.0.0.0";

/// Whether one of `tolerations` covers `taint`.
#[must_use]
pub fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (key, effect) = (text(&toleration.key), text(&toleration.effect));
        (effect.is_empty() || effect == taint.effect)
            && (key.is_empty() || key == taint.key)
            && match toleration.operator.as_deref() {
                None | Some("" | "Equal") => text(&toleration.value) == text(&taint.value),
                Some("Exists") => true,
                Some(_) => false,
            }
    })
}

/// A port of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// The port.
    pub port: i32,
    /// As `TCP`.
    pub protocol: String,
    /// The address; `0.0.0.0` for all.
    pub ip: String,
}

impl HostPort {
    /// Whether both cannot be had at once.
    #[must_use]
    pub fn conflicts(&self, other: &HostPort) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == ALL_ADDRESSES || other.ip == ALL_ADDRESSES)
    }
}

/// The ports of its node that a Pod needs.
#[must_use]
pub fn host_ports(spec: &PodSpec) -> BTreeSet<HostPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|container| is_sidecar(container));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let text = |text: &Option<String>, default: &str| {
        text.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| default.to_owned())
    };
    ports
        .filter_map(|port| {
            Some(HostPort {
                port: port.host_port.filter(|&port| port > 0)?,
                protocol: text(&port.protocol, "TCP"),
                ip: text(&port.host_ip, ALL_ADDRESSES),
            })
        })
        .collect()
}

/// Whether a node of this name and with these labels is one that a Pod with this `nodeSelector` and this required node
/// affinity may go to.
#[must_use]
pub fn allows_node(
    node_selector: &BTreeMap<String, String>,
    affinity: Option<&NodeSelector>,
    name: &str,
    labels: &BTreeMap<String, String>,
) -> bool {
    node_selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        && affinity.is_none_or(|selector| selects(selector, name, labels))
}

/// One of the terms must match; a term that says nothing matches nothing.
fn selects(selector: &NodeSelector, name: &str, labels: &BTreeMap<String, String>) -> bool {
    selector.node_selector_terms.iter().any(|term| {
        let NodeSelectorTerm { match_expressions, match_fields } = term;
        let expressions = match_expressions.as_deref().unwrap_or_default();
        let fields = match_fields.as_deref().unwrap_or_default();
        !(expressions.is_empty() && fields.is_empty())
            && expressions.iter().all(|wanted| holds(wanted, labels.get(&wanted.key).map(String::as_str)))
            && fields.iter().all(|wanted| holds(wanted, (wanted.key == "metadata.name").then_some(name)))
    })
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = || value.is_some_and(|value| values.iter().any(|listed| listed == value));
    let compare = |holds: fn(i64, i64) -> bool| {
        let number = |text: &str| text.parse::<i64>().ok();
        value
            .and_then(number)
            .zip(values.first().and_then(|value| number(value)))
            .is_some_and(|(value, limit)| holds(value, limit))
    };
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|value, limit| value > limit),
        "Lt" => compare(|value, limit| value < limit),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tolerations_cover_taints() {
        let taint = Taint {
            key: "k".into(),
            value: Some("v".into()),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        for (toleration, covered) in [
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "operator": "Exists"}), true),
            (json!({"key": "k", "value": "v"}), true),
            (json!({"key": "k", "operator": "Equal", "value": "w"}), false),
            (json!({"operator": "Equal", "value": "v"}), true),
            (json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), false),
            (json!({"key": "other", "operator": "Exists"}), false),
            (json!({"key": "k", "operator": "Gt", "value": "v"}), false),
        ] {
            let tolerations = [serde_json::from_value(toleration.clone()).unwrap()];
            assert_eq!(tolerates(&tolerations, &taint), covered, "{toleration}");
        }
    }

    #[test]
    fn ports_conflict_on_the_same_or_on_all_addresses() {
        let port = |ip: &str, protocol: &str| {
            let spec = json!({"containers": [{"name": "c", "ports": [
                {"containerPort": 1, "hostPort": 80, "hostIP": ip, "protocol": protocol}, {"containerPort": 2}
            ]}]});
            let spec: PodSpec = serde_json::from_value(spec).unwrap();
            host_ports(&spec).pop_first().unwrap()
        };
        let tcp = port("", "");
        assert_eq!((tcp.ip.as_str(), tcp.protocol.as_str()), ("0.0.0.0", "TCP"));
        assert!(tcp.conflicts(&port("10.0.0.1", "TCP")));
        assert!(!tcp.conflicts(&port("10.0.0.1", "UDP")));
        assert!(!port("10.0.0.1", "TCP").conflicts(&port("10.0.0.2", "TCP")));
    }
}
