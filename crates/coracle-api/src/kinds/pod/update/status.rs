//! What an update of a Pod's status may say.

use serde_json::Value;

use crate::field::{FieldError, Path};
use crate::names;
use crate::tree::{self, at, int_at, is_empty, list_at, str_at};

/// The conditions that are named without a check.
const SYSTEM_CONDITIONS: &[&str] = &["PodScheduled", "Ready", "Initialized"];

/// The status of `new` on the Pod `old`, with what a status may never lose.
pub(in crate::kinds::pod) fn prepare_status(new: &mut Value, old: &Value) {
    tree::set_or_remove(new, "spec", old.get("spec").cloned());
    // Node agents of old wrote these back damaged.
    let owners = at(old, &["metadata", "ownerReferences"]).cloned();
    if let Some(metadata) = new.get_mut("metadata") {
        tree::set_or_remove(metadata, "ownerReferences", owners);
    }
    let Some(status) = new.get_mut("status") else { return };
    for field in ["qosClass", "observedGeneration"] {
        if says_nothing(status.get(field))
            && let Some(kept) = at(old, &["status", field])
        {
            tree::set_or_remove(status, field, Some(kept.clone()));
        }
    }
    keep_observed_generations(status, old);
}

fn says_nothing(value: Option<&Value>) -> bool {
    is_empty(value) || value.and_then(Value::as_i64) == Some(0)
}

/// Who writes conditions without knowing of generations does not take them away. Several conditions may have one type:
/// they are taken in their order.
fn keep_observed_generations(status: &mut Value, old: &Value) {
    let mut before: Vec<&Value> = list_at(old, &["status", "conditions"]).iter().collect();
    for condition in status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
        let kind = str_at(condition, &["type"]);
        let Some(index) = before.iter().position(|before| str_at(before, &["type"]) == kind) else {
            continue;
        };
        let before = before.remove(index);
        if says_nothing(condition.get("observedGeneration"))
            && let Some(kept) = before.get("observedGeneration")
        {
            tree::set_or_remove(condition, "observedGeneration", Some(kept.clone()));
        }
    }
}

/// What is wrong with an update of a Pod's status.
pub(in crate::kinds::pod) fn validate_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let path = Path::new("status");
    let mut errors = conditions(list_at(new, &["status", "conditions"]), &path.child("conditions"));
    errors.extend(nominated_node(new, old, &path));
    errors.extend(
        int_at(new, &["status", "observedGeneration"])
            .and_then(|generation| not_negative(generation, &path.child("observedGeneration"))),
    );
    let (is, was) = (str_at(new, &["status", "qosClass"]), str_at(old, &["status", "qosClass"]));
    if !was.is_empty() && is != was {
        errors.push(FieldError::invalid(&path.child("qosClass"), is, "field is immutable"));
    }
    for (statuses, containers) in [
        ("containerStatuses", "containers"),
        ("initContainerStatuses", "initContainers"),
        ("ephemeralContainerStatuses", "ephemeralContainers"),
    ] {
        errors.extend(ends_stay(new, old, statuses, containers));
    }
    errors.extend(addresses(new, old, "podIPs"));
    errors.extend(addresses(new, old, "hostIPs"));
    errors
}

fn not_negative(generation: i64, path: &Path) -> Option<FieldError> {
    let why = "must be a non-negative integer";
    (generation < 0).then(|| FieldError::invalid(path, generation, why))
}

fn conditions(conditions: &[Value], path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, condition) in conditions.iter().enumerate() {
        let path = path.index(index);
        let generation = int_at(condition, &["observedGeneration"]);
        errors.extend(generation.and_then(|said| not_negative(said, &path.child("observedGeneration"))));
        let kind = str_at(condition, &["type"]);
        if !SYSTEM_CONDITIONS.contains(&kind) {
            let path = path.child("Type");
            errors
                .extend(names::qualified_name(kind).into_iter().map(|c| FieldError::invalid(&path, kind, c)));
        }
    }
    errors
}

fn nominated_node(new: &Value, old: &Value, path: &Path) -> Vec<FieldError> {
    let path = path.child("nominatedNodeName");
    let nominated = str_at(new, &["status", "nominatedNodeName"]);
    if nominated.is_empty() || nominated == str_at(old, &["status", "nominatedNodeName"]) {
        return Vec::new();
    }
    let complaints = names::dns1123_subdomain(nominated);
    let mut errors: Vec<FieldError> =
        complaints.into_iter().map(|c| FieldError::invalid(&path, nominated, c)).collect();
    if !str_at(old, &["spec", "nodeName"]).is_empty() {
        errors.push(FieldError::forbidden(&path, "may not be set on pods that are already bound to a node"));
    }
    errors
}

/// A container that ended for good does not come back.
fn ends_stay(new: &Value, old: &Value, statuses: &str, containers: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = old.get("spec").unwrap_or(&Value::Null);
    if containers != "ephemeralContainers" && all_may_restart(spec) {
        return errors;
    }
    for (index, before) in list_at(old, &["status", statuses]).iter().enumerate() {
        let Some(terminated) = at(before, &["state", "terminated"]) else { continue };
        let name = str_at(before, &["name"]);
        let named = |value: &&Value| str_at(value, &["name"]) == name;
        let is = list_at(new, &["status", statuses]).iter().find(named);
        if is.is_none_or(|is| at(is, &["state", "terminated"]).is_some()) {
            continue;
        }
        let code = int_at(terminated, &["exitCode"]).unwrap_or(0);
        let container = list_at(spec, &[containers]).iter().find(named);
        // What was added later is never restarted.
        let restarts = containers != "ephemeralContainers"
            && container.is_some_and(|container| may_restart(container, spec, code));
        if !restarts {
            errors.push(FieldError::forbidden(
                &Path::new("status").child(statuses).index(index).child("state"),
                "may not be transitioned to non-terminated state",
            ));
        }
    }
    errors
}

/// Whether the end of one container may restart all of them.
fn all_may_restart(spec: &Value) -> bool {
    let containers = ["containers", "initContainers"].into_iter().flat_map(|field| list_at(spec, &[field]));
    containers
        .flat_map(|container| list_at(container, &["restartPolicyRules"]))
        .any(|rule| str_at(rule, &["action"]) == "RestartAllContainers")
}

/// Whether a container that ended with this code starts again: by its own rules, by its own policy, or by the Pod's.
fn may_restart(container: &Value, spec: &Value, code: i64) -> bool {
    let by_policy = |policy: &str| match policy {
        "Always" => true,
        "OnFailure" => code != 0,
        _ => false,
    };
    match str_at(container, &["restartPolicy"]) {
        "" => by_policy(str_at(spec, &["restartPolicy"])),
        own => {
            let ruled = list_at(container, &["restartPolicyRules"]).iter().any(|rule| applies(rule, code));
            ruled || by_policy(own)
        }
    }
}

/// Every action of a rule restarts.
fn applies(rule: &Value, code: i64) -> bool {
    let listed = list_at(rule, &["exitCodes", "values"]).iter().any(|value| value.as_i64() == Some(code));
    match str_at(rule, &["exitCodes", "operator"]) {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    }
}

/// What is wrong with the addresses of the Pod or of its node: one of each family at most.
fn addresses(new: &Value, old: &Value, field: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("status").child(field);
    let texts = |pod| -> Vec<&str> {
        list_at(pod, &["status", field]).iter().map(|ip| str_at(ip, &["ip"])).collect()
    };
    let (ips, before) = (texts(new), texts(old));
    if let Some(first) = ips.first().filter(|_| field == "hostIPs")
        && *first != str_at(new, &["status", "hostIP"])
    {
        let path = path.index(0).child("ip");
        errors.push(FieldError::invalid(&path, *first, "must be equal to `hostIP`"));
    }
    for (index, ip) in ips.iter().enumerate().filter(|(_, ip)| !before.contains(ip)) {
        errors.extend(names::ip(ip).into_iter().map(|c| FieldError::invalid(&path.index(index), *ip, c)));
    }
    let of_sixth = ips.iter().filter(|ip| ip.contains(':')).count();
    if of_sixth > 1 || ips.len() - of_sixth > 1 {
        let said = at(new, &["status", field]).cloned().unwrap_or_default();
        let why = "may specify no more than one IP for each IP family";
        errors.push(FieldError::invalid(&path, said, why));
    }
    errors
}
