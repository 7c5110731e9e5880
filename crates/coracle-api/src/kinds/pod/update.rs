//! What an update of a Pod may change: very little.

use serde_json::Value;

use super::validate;
use crate::field::{FieldError, Path};
use crate::tree;

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
                         `spec.tolerations` (only additions to existing tolerations),\
                         `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// What is wrong with an update of a Pod's spec.
pub(super) fn validate(new: &Value, old: &Value) -> Vec<FieldError> {
    let path = Path::new("spec");
    let mut errors = Vec::new();
    let (Some(new_spec), Some(old_spec)) = (new.get("spec"), old.get("spec")) else {
        return vec![FieldError::required(&path, "")];
    };
    for field in ["containers", "initContainers"] {
        if tree::list_at(new_spec, &[field]).len() != tree::list_at(old_spec, &[field]).len() {
            errors.push(FieldError::forbidden(
                &path.child(field),
                "pod updates may not add or remove containers",
            ));
            return errors;
        }
    }
    // What may change is checked by itself and then made equal; the rest must be equal.
    let mut munged = new_spec.clone();
    for field in ["containers", "initContainers"] {
        let path = path.child(field);
        let old_containers = tree::list_at(old_spec, &[field]);
        for (index, (container, old)) in munged
            .get_mut(field)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
            .zip(old_containers)
            .enumerate()
        {
            errors.extend(validate::image(container, &path.index(index)));
            tree::set_or_remove(container, "image", old.get("image").cloned());
        }
    }
    errors.extend(tolerations(new_spec, old_spec));
    tree::set_or_remove(&mut munged, "tolerations", old_spec.get("tolerations").cloned());
    let grace = |spec: &Value| tree::int_at(spec, &["terminationGracePeriodSeconds"]);
    if grace(old_spec).is_some_and(|g| g < 0) && grace(new_spec) == Some(1) {
        tree::set_or_remove(
            &mut munged,
            "terminationGracePeriodSeconds",
            old_spec.get("terminationGracePeriodSeconds").cloned(),
        );
    }
    errors.extend(deadline(new_spec, old_spec));
    tree::set_or_remove(&mut munged, "activeDeadlineSeconds", old_spec.get("activeDeadlineSeconds").cloned());
    if munged != *old_spec {
        let mut differences = String::new();
        describe("", old_spec, &munged, &mut differences);
        errors.push(FieldError::forbidden(
            &path,
            format!("pod updates may not change fields other than {UPDATABLE}\n{differences}"),
        ));
    }
    errors
}

fn tolerations(new: &Value, old: &Value) -> Vec<FieldError> {
    let path = Path::new("spec").child("tolerations");
    let (new, old) = (tree::list_at(new, &["tolerations"]), tree::list_at(old, &["tolerations"]));
    let bare = |toleration: &Value| {
        let mut bare = toleration.clone();
        tree::set_or_remove(&mut bare, "tolerationSeconds", None);
        bare
    };
    let kept = old.iter().all(|toleration| new.iter().any(|other| bare(other) == bare(toleration)));
    if !kept {
        return vec![FieldError::forbidden(
            &path,
            "existing toleration can not be modified except its tolerationSeconds",
        )];
    }
    validate::tolerations(new, &path)
}

fn deadline(new: &Value, old: &Value) -> Vec<FieldError> {
    let path = Path::new("spec").child("activeDeadlineSeconds");
    let deadline = |spec: &Value| tree::int_at(spec, &["activeDeadlineSeconds"]);
    match (deadline(new), deadline(old)) {
        (new, old) if new == old => Vec::new(),
        (None, Some(_)) => vec![FieldError::invalid(
            &path,
            Value::Null,
            "must not update from a positive integer to nil value",
        )],
        // A deadline is not honoured yet, so none may be added either.
        (Some(_), _) => {
            vec![FieldError::forbidden(&path, "activeDeadlineSeconds is not supported by Coracle yet")]
        }
        (None, None) => Vec::new(),
    }
}

/// One line for each place where two values differ.
fn describe(path: &str, old: &Value, new: &Value, out: &mut String) {
    match (old, new) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                describe(&path, a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null), out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                describe(&format!("{path}[{index}]"), a, b, out);
            }
        }
        (old, new) if old != new => out.push_str(&format!("  {path}: {old} -> {new}\n")),
        _ => {}
    }
}

/// The status of `new` on the Pod `old`, with what a status may never lose.
pub(super) fn prepare_status(new: &mut Value, old: &Value) {
    tree::set_or_remove(new, "spec", old.get("spec").cloned());
    // Node agents of old wrote these back damaged.
    let owners = tree::at(old, &["metadata", "ownerReferences"]).cloned();
    if let Some(metadata) = new.get_mut("metadata") {
        tree::set_or_remove(metadata, "ownerReferences", owners);
    }
    let Some(status) = new.get_mut("status") else { return };
    for field in ["qosClass", "observedGeneration"] {
        if tree::is_empty(status.get(field))
            && let Some(kept) = tree::at(old, &["status", field])
        {
            tree::set_or_remove(status, field, Some(kept.clone()));
        }
    }
}

/// What is wrong with an update of a Pod's status.
pub(super) fn validate_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let path = Path::new("status");
    let mut errors = Vec::new();
    let nominated = tree::str_at(new, &["status", "nominatedNodeName"]);
    if nominated != tree::str_at(old, &["status", "nominatedNodeName"]) && !nominated.is_empty() {
        errors.extend(
            crate::names::dns1123_subdomain(nominated)
                .into_iter()
                .map(|c| FieldError::invalid(&path.child("nominatedNodeName"), nominated, c)),
        );
    }
    let (is, was) = (tree::str_at(new, &["status", "qosClass"]), tree::str_at(old, &["status", "qosClass"]));
    if !was.is_empty() && is != was {
        errors.push(FieldError::invalid(&path.child("qosClass"), is, "field is immutable"));
    }
    let policy = tree::str_at(new, &["spec", "restartPolicy"]);
    errors.extend(terminated_stay(new, old, "containerStatuses", policy));
    for (index, ip) in tree::list_at(new, &["status", "podIPs"]).iter().enumerate() {
        let ip = tree::str_at(ip, &["ip"]);
        let path = path.child("podIPs").index(index).child("ip");
        errors.extend(crate::names::ip(ip).into_iter().map(|c| FieldError::invalid(&path, ip, c)));
    }
    let mut seen: Vec<&str> = Vec::new();
    for (index, condition) in tree::list_at(new, &["status", "conditions"]).iter().enumerate() {
        let kind = tree::str_at(condition, &["type"]);
        let path = path.child("conditions").index(index);
        if kind.is_empty() {
            errors.push(FieldError::required(&path.child("type"), ""));
        } else if seen.contains(&kind) {
            errors.push(FieldError::duplicate(&path.child("type"), kind));
        }
        seen.push(kind);
    }
    errors
}

/// A container that ended for good does not come back.
fn terminated_stay(new: &Value, old: &Value, field: &str, policy: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if policy == "Always" {
        return errors;
    }
    let new_statuses = tree::list_at(new, &["status", field]);
    for old_status in tree::list_at(old, &["status", field]) {
        let Some(terminated) = tree::at(old_status, &["state", "terminated"]) else { continue };
        let failed = tree::int_at(terminated, &["exitCode"]).unwrap_or(0) != 0;
        if policy == "OnFailure" && failed {
            continue;
        }
        let name = tree::str_at(old_status, &["name"]);
        for (index, status) in new_statuses.iter().enumerate() {
            if tree::str_at(status, &["name"]) == name && tree::at(status, &["state", "terminated"]).is_none()
            {
                errors.push(FieldError::forbidden(
                    &Path::new("status").child(field).index(index).child("state"),
                    "may not be transitioned to non-terminated state",
                ));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Value {
        let mut pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [
            {"name": "c", "image": "i:1"}
        ], "tolerations": [{"key": "k", "operator": "Exists"}]}});
        super::super::defaults::apply(&mut pod);
        pod
    }

    fn change(mutate: impl Fn(&mut Value)) -> Vec<String> {
        let mut new = pod();
        mutate(&mut new);
        validate(&new, &pod()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn little_may_change() {
        assert_eq!(change(|p| p["spec"]["containers"][0]["image"] = "i:2".into()), Vec::<String>::new());
        assert_eq!(
            change(|p| p["spec"]["tolerations"].as_array_mut().unwrap().push(json!({"operator": "Exists"}))),
            Vec::<String>::new()
        );
        assert_eq!(
            change(|p| p["spec"]["containers"][0]["image"] = "".into()),
            ["spec.containers[0].image: Required value"]
        );
        assert_eq!(
            change(|p| p["spec"]["tolerations"] = json!([])),
            [
                "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"
            ]
        );
        assert_eq!(
            change(|p| p["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "d"}))),
            ["spec.containers: Forbidden: pod updates may not add or remove containers"]
        );
        let refused = change(|p| p["spec"]["restartPolicy"] = "Never".into());
        assert_eq!(
            refused,
            [concat!(
                "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,",
                "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions ",
                "to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it ",
                "was previously negative)\n  restartPolicy: \"Always\" -> \"Never\"\n"
            )]
        );
        assert_eq!(change(|p| p["spec"]["nodeName"] = "n".into()).len(), 1);
    }

    #[test]
    fn a_status_keeps_its_class_and_its_ends() {
        let old = json!({
            "spec": {"restartPolicy": "Never"},
            "status": {"qosClass": "BestEffort", "containerStatuses": [
                {"name": "c", "state": {"terminated": {"exitCode": 1}}}
            ]}
        });
        let mut new = json!({"spec": {}, "metadata": {}, "status": {"phase": "Running"}});
        prepare_status(&mut new, &old);
        assert_eq!(new["status"]["qosClass"], "BestEffort");
        assert_eq!(new["spec"], old["spec"]);
        let mut back = old.clone();
        back["status"]["containerStatuses"][0]["state"] = json!({"running": {}});
        assert_eq!(
            validate_status(&back, &old).iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state"]
        );
    }
}
