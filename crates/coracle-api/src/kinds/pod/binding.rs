//! Binding: giving a Pod its node, once.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::field::{FieldError, Path};
use crate::metadata::{self, rfc3339};
use crate::status::Status;
use crate::tree;

/// What is wrong with a Binding.
pub(crate) fn validate_binding(binding: &Value) -> Vec<FieldError> {
    let target = Path::new("target");
    let mut errors = Vec::new();
    let kind = tree::str_at(binding, &["target", "kind"]);
    if !kind.is_empty() && kind != "Node" {
        errors.push(FieldError::not_supported(&target.child("kind"), kind, &["Node", "<empty>"]));
    }
    if tree::str_at(binding, &["target", "name"]).is_empty() {
        errors.push(FieldError::required(&target.child("name"), ""));
    }
    errors
}

/// The Pod with the node that `binding` names, and its condition `PodScheduled`.
///
/// # Errors
/// 409 if the Pod has a node already, is being deleted, or is another one than the binding means.
pub(crate) fn bind(pod: &Value, binding: &Value, now: Timestamp) -> Result<Value, Status> {
    let name = metadata::name(pod);
    let refuse = |why: String| Err(Status::conflict("", "pods/binding", name, &why));
    let (meant, uid) = (tree::str_at(binding, &["metadata", "uid"]), tree::str_at(pod, &["metadata", "uid"]));
    if !meant.is_empty() && meant != uid {
        return refuse(format!(
            "Precondition failed: UID in precondition: {meant}, UID in object meta: {uid}"
        ));
    }
    if metadata::is_deleting(pod) {
        return refuse(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let node = tree::str_at(pod, &["spec", "nodeName"]);
    if !node.is_empty() {
        return refuse(format!("pod {name} is already assigned to node {}", crate::field::go_quote(node)));
    }
    if !tree::list_at(pod, &["spec", "schedulingGates"]).is_empty() {
        return refuse(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut bound = pod.clone();
    if let Some(spec) = tree::object_in(&mut bound, "spec") {
        spec.insert("nodeName".into(), tree::str_at(binding, &["target", "name"]).into());
    }
    for map in ["annotations", "labels"] {
        let added: Vec<(String, Value)> = tree::entries_at(binding, &["metadata", map])
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if !added.is_empty()
            && let Some(existing) =
                bound.get_mut("metadata").and_then(|metadata| tree::object_in(metadata, map))
        {
            existing.extend(added);
        }
    }
    metadata::bump_generation(&mut bound);
    set_scheduled(&mut bound, now);
    Ok(bound)
}

fn set_scheduled(pod: &mut Value, now: Timestamp) {
    let generation = tree::int_at(pod, &["metadata", "generation"]);
    let Some(status) = tree::object_in(pod, "status") else { return };
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    let Some(conditions) = conditions.as_array_mut() else { return };
    let mut condition = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": rfc3339(now),
    });
    if let Some(generation) = generation {
        condition["observedGeneration"] = generation.into();
    }
    match conditions.iter_mut().find(|c| tree::str_at(c, &["type"]) == "PodScheduled") {
        Some(existing) => {
            if tree::str_at(existing, &["status"]) == "True" {
                condition["lastTransitionTime"] =
                    existing.get("lastTransitionTime").cloned().unwrap_or_default();
            }
            *existing = condition;
        }
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2020-01-01T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn a_pod_gets_its_node_once() {
        let pod = json!({
            "metadata": {"name": "a", "uid": "u", "generation": 1}, "spec": {}, "status": {"phase": "Pending"}
        });
        let binding = json!({
            "metadata": {"name": "a", "annotations": {"k": "v"}}, "target": {"kind": "Node", "name": "n"}
        });
        let bound = bind(&pod, &binding, now()).unwrap();
        assert_eq!(bound["spec"]["nodeName"], "n");
        assert_eq!(bound["metadata"]["annotations"], json!({"k": "v"}));
        assert_eq!(bound["metadata"]["generation"], 2);
        assert_eq!(
            bound["status"],
            json!({"phase": "Pending", "conditions": [{
                "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2020-01-01T00:00:00Z",
                "observedGeneration": 2
            }]})
        );
        let message = |pod: &Value, binding: &Value| bind(pod, binding, now()).unwrap_err().message;
        assert_eq!(
            message(&bound, &binding),
            "Operation cannot be fulfilled on pods/binding \"a\": pod a is already assigned to node \"n\""
        );
        let mut other = binding.clone();
        other["metadata"]["uid"] = "x".into();
        assert!(message(&pod, &other).ends_with("UID in precondition: x, UID in object meta: u"));
        let mut deleted = pod;
        deleted["metadata"]["deletionTimestamp"] = "2020-01-01T00:00:00Z".into();
        assert!(
            message(&deleted, &binding).ends_with("pod a is being deleted, cannot be assigned to a host")
        );
    }

    #[test]
    fn a_binding_names_a_node() {
        let errors = |target: Value| {
            validate_binding(&json!({ "target": target })).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(errors(json!({"kind": "Node", "name": "n"})), Vec::<String>::new());
        assert_eq!(errors(json!({})), ["target.name: Required value"]);
        assert_eq!(
            errors(json!({"kind": "Pod", "name": "n"})),
            ["target.kind: Unsupported value: \"Pod\": supported values: \"Node\", \"<empty>\""]
        );
    }
}
