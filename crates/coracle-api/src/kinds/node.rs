//! Nodes.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::catalogue::Strategy;
use crate::field::{FieldError, Path};
use crate::metadata;
use crate::names;
use crate::table::Column;
use crate::tree::{self, entries_at, list_at, object_in, str_at, true_at};

/// What is special about Nodes.
pub(crate) struct NodeStrategy;

static COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Status", "The status of the node"),
    Column::text("Roles", "The roles of the node"),
    Column::AGE,
    Column::text("Version", "Kubelet Version reported by the node."),
    Column::wide("Internal-IP", "List of addresses reachable to the node."),
    Column::wide("External-IP", "List of addresses reachable to the node."),
    Column::wide("OS-Image", "OS Image reported by the node from /etc/os-release."),
    Column::wide("Kernel-Version", "Kernel Version reported by the node from 'uname -r'."),
    Column::wide(
        "Container-Runtime",
        "ContainerRuntime Version reported by the node through runtime remote API.",
    ),
];

impl Strategy for NodeStrategy {
    fn default(&self, object: &mut Value) {
        if let Some(capacity) = tree::at(object, &["status", "capacity"]).cloned()
            && let Some(status) = object_in(object, "status")
        {
            status.entry("allocatable").or_insert(capacity);
        }
        // The singular field is the first of the plural one, whichever was said.
        let Some(spec) = object_in(object, "spec") else { return };
        let first = spec.get("podCIDRs").and_then(|all| all.get(0)).cloned();
        match (spec.get("podCIDR").cloned(), first) {
            (None, Some(first)) => {
                spec.insert("podCIDR".into(), first);
            }
            (Some(one), None) => {
                spec.insert("podCIDRs".into(), json!([one]));
            }
            _ => {}
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        // What takes Pods is known once the node has said so: until then nothing is sent there.
        let taint = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
        let same =
            |other: &Value| ["key", "effect"].iter().all(|field| other.get(*field) == taint.get(*field));
        if list_at(object, &["spec", "taints"]).iter().any(same) {
            return;
        }
        let Some(spec) = object_in(object, "spec") else { return };
        if let Some(taints) = spec.entry("taints").or_insert_with(|| json!([])).as_array_mut() {
            taints.push(taint);
        }
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        tree::set_or_remove(new, "status", old.get("status").cloned());
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        validate(object)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = validate(new);
        let spec = Path::new("spec");
        let was = list_at(old, &["spec", "podCIDRs"]);
        if !was.is_empty() && list_at(new, &["spec", "podCIDRs"]) != was {
            errors.push(FieldError::forbidden(
                &spec.child("podCIDRs"),
                "node updates may not change podCIDR except from \"\" to valid",
            ));
        }
        let was = str_at(old, &["spec", "providerID"]);
        if !was.is_empty() && str_at(new, &["spec", "providerID"]) != was {
            errors.push(FieldError::forbidden(
                &spec.child("providerID"),
                "node updates may not change providerID except from \"\" to valid",
            ));
        }
        errors
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
        validate_status(new)
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["spec.unschedulable"]
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("spec.unschedulable", true_at(object, &["spec", "unschedulable"]).to_string())]
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn row(&self, node: &Value, now: Timestamp) -> Vec<Value> {
        let ready = list_at(node, &["status", "conditions"])
            .iter()
            .find(|c| str_at(c, &["type"]) == "Ready")
            .map(|c| str_at(c, &["status"]) == "True");
        let mut status = match ready {
            Some(true) => "Ready",
            Some(false) => "NotReady",
            None => "Unknown",
        }
        .to_owned();
        if true_at(node, &["spec", "unschedulable"]) {
            status.push_str(",SchedulingDisabled");
        }
        let address = |kind: &str| -> Value {
            list_at(node, &["status", "addresses"])
                .iter()
                .find(|a| str_at(a, &["type"]) == kind)
                .map_or("<none>", |a| str_at(a, &["address"]))
                .into()
        };
        let info = |field: &str| -> Value {
            match str_at(node, &["status", "nodeInfo", field]) {
                "" => "<unknown>".into(),
                text => text.into(),
            }
        };
        vec![
            metadata::name(node).into(),
            status.into(),
            roles(node).into(),
            super::age(node, now),
            str_at(node, &["status", "nodeInfo", "kubeletVersion"]).into(),
            address("InternalIP"),
            address("ExternalIP"),
            info("osImage"),
            info("kernelVersion"),
            info("containerRuntimeVersion"),
        ]
    }
}

fn roles(node: &Value) -> String {
    let mut roles = std::collections::BTreeSet::new();
    for (label, value) in entries_at(node, &["metadata", "labels"]) {
        let role = match label.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => role,
            None if label == "kubernetes.io/role" => value.as_str().unwrap_or_default(),
            None => "",
        };
        if !role.is_empty() {
            roles.insert(role);
        }
    }
    if roles.is_empty() {
        return "<none>".to_owned();
    }
    roles.into_iter().collect::<Vec<_>>().join(",")
}

fn validate(node: &Value) -> Vec<FieldError> {
    let mut errors = validate_status(node);
    let path = Path::new("spec").child("taints");
    let mut seen = std::collections::BTreeSet::new();
    for (index, taint) in list_at(node, &["spec", "taints"]).iter().enumerate() {
        let path = path.index(index);
        let [key, value, effect] = ["key", "value", "effect"].map(|f| str_at(taint, &[f]));
        errors.extend(
            names::qualified_name(key).into_iter().map(|c| FieldError::invalid(&path.child("key"), key, c)),
        );
        let complaints = names::label_value(value);
        if !complaints.is_empty() {
            errors.push(FieldError::invalid(&path.child("value"), value, complaints.join(";")));
        }
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        if effect.is_empty() {
            errors.push(FieldError::required(&path.child("effect"), ""));
        } else if !effects.contains(&effect) {
            errors.push(FieldError::not_supported(&path.child("effect"), effect, &effects));
        }
        if !seen.insert((key, effect)) {
            let mut error = FieldError::duplicate(&path, taint.clone());
            error.detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(error);
        }
    }
    for (index, cidr) in list_at(node, &["spec", "podCIDRs"]).iter().enumerate() {
        let cidr = cidr.as_str().unwrap_or_default();
        if !is_cidr(cidr) {
            errors.push(FieldError::invalid(
                &Path::new("spec").child("podCIDRs").index(index),
                cidr,
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            ));
        }
    }
    errors
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let most = match address.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(_)) => 32,
        Ok(std::net::IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    bits.parse::<u8>().is_ok_and(|bits| bits <= most)
}

fn validate_status(node: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for list in ["capacity", "allocatable"] {
        for (name, amount) in entries_at(node, &["status", list]) {
            let path = Path::new("status").child(list).key(name);
            let quantity = amount.as_str().and_then(|text| text.parse::<crate::quantity::Quantity>().ok());
            if quantity.is_some_and(|q| q.is_negative()) {
                errors.push(FieldError::invalid(&path, amount.clone(), "must be greater than or equal to 0"));
            }
        }
    }
    let mut seen = Vec::new();
    for (index, address) in list_at(node, &["status", "addresses"]).iter().enumerate() {
        if seen.contains(&address) {
            let path = Path::new("status").child("addresses").index(index);
            errors.push(FieldError::duplicate(&path, address.clone()));
        }
        seen.push(address);
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_state_roles_and_addresses() {
        let node = json!({
            "metadata": {"name": "n", "labels": {
                "node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": ""
            }},
            "spec": {"unschedulable": true},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.37.0", "osImage": "Debian"}
            }
        });
        let cells = NodeStrategy.row(&node, Timestamp::UNIX_EPOCH);
        let shown: Vec<&str> = cells.iter().map(|c| c.as_str().unwrap()).collect();
        assert_eq!(
            shown,
            [
                "n",
                "Ready,SchedulingDisabled",
                "control-plane,worker",
                "<unknown>",
                "v1.37.0",
                "10.0.0.1",
                "<none>",
                "Debian",
                "<unknown>",
                "<unknown>"
            ]
        );
    }

    #[test]
    fn addresses_of_pods_are_given_once() {
        let strategy = NodeStrategy;
        let mut new = json!({"spec": {"podCIDRs": ["10.42.0.0/24"]}});
        strategy.default(&mut new);
        assert_eq!(new["spec"]["podCIDR"], "10.42.0.0/24");
        assert_eq!(strategy.validate_update(&new, &json!({"spec": {}})), []);
        let changed = json!({"spec": {"podCIDRs": ["10.42.1.0/24"]}});
        assert_eq!(
            strategy.validate_update(&changed, &new)[0].to_string(),
            "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"
        );
        let bad = json!({"spec": {"taints": [{"key": "a", "effect": "x"}], "podCIDRs": ["x"]}});
        assert_eq!(strategy.validate_create(&bad).len(), 2);
    }

    #[test]
    fn a_new_node_takes_no_pods_until_it_is_known_to_be_ready() {
        let not_ready = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
        let other = json!({"key": "a", "effect": "NoExecute"});
        for (taints, expected) in [
            (Value::Null, json!([not_ready])),
            (json!([other]), json!([other, not_ready])),
            (json!([not_ready]), json!([not_ready])),
        ] {
            let mut node = json!({"spec": {}});
            if !taints.is_null() {
                node["spec"]["taints"] = taints;
            }
            NodeStrategy.prepare_for_create(&mut node);
            assert_eq!(node["spec"]["taints"], expected);
            assert_eq!(validate(&node), []);
        }
    }
}
