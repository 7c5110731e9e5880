//! What is wrong with what a Pod says about its node and about its neighbours.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{invalid_each, not_supported_unless};
use crate::field::{FieldError, Path};
use crate::kinds::workload::label_selector;
use crate::names;
use crate::tree::{at, entries_at, int_at, list_at, str_at};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// What is wrong with a list of tolerations.
pub(in crate::kinds::pod) fn tolerations(tolerations: &[Value], path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, toleration) in tolerations.iter().enumerate() {
        let path = path.index(index);
        let [key, operator, value, effect] =
            ["key", "operator", "value", "effect"].map(|field| str_at(toleration, &[field]));
        let at = path.child("operator");
        if !key.is_empty() {
            errors.extend(invalid_each(&path.child("key"), key, names::qualified_name(key)));
        }
        if key.is_empty() && operator != "Exists" {
            let why =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(&at, operator, why));
        }
        if toleration.get("tolerationSeconds").is_some() && effect != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(&path.child("effect"), effect, why));
        }
        match operator {
            "" | "Equal" => {
                let complaints = names::label_value(value);
                if !complaints.is_empty() {
                    errors.push(FieldError::invalid(&at, value, complaints.join(";")));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    let why = "value must be empty when `operator` is 'Exists'";
                    errors.push(FieldError::invalid(&at, value, why));
                }
            }
            // Comparing numbers is behind a switch that is off upstream too.
            "Lt" | "Gt" => {
                errors.push(FieldError::not_supported(&at, operator, &["Equal", "Exists", "Lt", "Gt"]));
            }
            other => errors.push(FieldError::not_supported(&at, other, &["Equal", "Exists"])),
        }
        if !effect.is_empty() {
            errors.extend(not_supported_unless(effect, &path.child("effect"), EFFECTS));
        }
    }
    errors
}

/// What is wrong with names that must be qualified ones, each with its path.
fn qualified<'a>(names: impl Iterator<Item = (&'a str, Path)>) -> Vec<FieldError> {
    names
        .flat_map(|(name, path)| {
            names::qualified_name(name).into_iter().map(move |c| FieldError::invalid(&path, name, c))
        })
        .collect()
}

/// What is wrong with the conditions that a Pod waits for before it is ready.
pub(super) fn readiness_gates(spec: &Value, path: &Path) -> Vec<FieldError> {
    let path = path.child("readinessGates");
    let gates = list_at(spec, &["readinessGates"]).iter().enumerate();
    qualified(gates.map(|(i, gate)| (str_at(gate, &["conditionType"]), path.index(i).child("conditionType"))))
}

/// What is wrong with what keeps a Pod from being scheduled.
pub(super) fn scheduling_gates(spec: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, gate) in list_at(spec, &["schedulingGates"]).iter().enumerate() {
        let path = path.child("schedulingGates").index(index);
        let name = str_at(gate, &["name"]);
        errors.extend(invalid_each(&path, name, names::qualified_name(name)));
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(&path, name));
        }
    }
    errors
}

/// What is wrong with `affinity`.
pub(super) fn affinity(spec: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = path.child("affinity");
    if let Some(node) = at(spec, &["affinity", "nodeAffinity"]) {
        let path = path.child("nodeAffinity");
        if let Some(selector) = node.get(REQUIRED) {
            let path = path.child(REQUIRED).child("nodeSelectorTerms");
            let terms = list_at(selector, &["nodeSelectorTerms"]);
            if terms.is_empty() {
                errors.push(FieldError::required(&path, "must have at least one node selector term"));
            }
            for (index, term) in terms.iter().enumerate() {
                errors.extend(node_selector_term(term, true, &path.index(index)));
            }
        }
        for (index, term) in list_at(node, &[PREFERRED]).iter().enumerate() {
            let path = path.child(PREFERRED).index(index);
            errors.extend(weight(term, &path));
            let preference = term.get("preference").unwrap_or(&Value::Null);
            // A preference that no node meets harms nobody.
            errors.extend(node_selector_term(preference, false, &path.child("preference")));
        }
    }
    for field in ["podAffinity", "podAntiAffinity"] {
        let Some(said) = at(spec, &["affinity", field]) else { continue };
        let path = path.child(field);
        for (index, term) in list_at(said, &[REQUIRED]).iter().enumerate() {
            errors.extend(pod_affinity_term(term, &path.child(REQUIRED).index(index)));
        }
        for (index, weighted) in list_at(said, &[PREFERRED]).iter().enumerate() {
            let path = path.child(PREFERRED).index(index);
            errors.extend(weight(weighted, &path));
            let term = weighted.get("podAffinityTerm").unwrap_or(&Value::Null);
            errors.extend(pod_affinity_term(term, &path.child("podAffinityTerm")));
        }
    }
    errors
}

fn weight(term: &Value, path: &Path) -> Option<FieldError> {
    let weight = int_at(term, &["weight"]).unwrap_or(0);
    let wrong = || FieldError::invalid(&path.child("weight"), weight, "must be in the range 1-100");
    (!(1..=100).contains(&weight)).then(wrong)
}

fn node_selector_term(term: &Value, judge_values: bool, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, wanted) in list_at(term, &["matchExpressions"]).iter().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let values = list_at(wanted, &["values"]);
        let values_path = path.child("values");
        match str_at(wanted, &["operator"]) {
            "In" | "NotIn" if values.is_empty() => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(&values_path, why));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(&values_path, why));
            }
            "Gt" | "Lt" if values.len() != 1 => {
                let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errors.push(FieldError::required(&values_path, why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => errors.push(no_operator(other, &path)),
        }
        let key = str_at(wanted, &["key"]);
        errors.extend(invalid_each(&path.child("key"), key, names::qualified_name(key)));
        for (index, value) in values.iter().enumerate().filter(|_| judge_values) {
            let value = value.as_str().unwrap_or_default();
            errors.extend(invalid_each(&values_path.index(index), value, names::label_value(value)));
        }
    }
    for (index, wanted) in list_at(term, &["matchFields"]).iter().enumerate() {
        let path = path.child("matchFields").index(index);
        let values = list_at(wanted, &["values"]);
        match str_at(wanted, &["operator"]) {
            "In" | "NotIn" if values.len() == 1 => {}
            "In" | "NotIn" => {
                let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errors.push(FieldError::required(&path.child("values"), why));
            }
            other => errors.push(no_operator(other, &path)),
        }
        let key = str_at(wanted, &["key"]);
        if key != "metadata.name" {
            errors.push(FieldError::invalid(&path.child("key"), key, "not a valid field selector key"));
            continue;
        }
        for (index, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            let path = path.child("values").index(index);
            errors.extend(invalid_each(&path, value, names::dns1123_subdomain(value)));
        }
    }
    errors
}

fn no_operator(said: &str, path: &Path) -> FieldError {
    FieldError::invalid(&path.child("operator"), said, "not a valid selector operator")
}

fn pod_affinity_term(term: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["labelSelector", "namespaceSelector"] {
        if let Some(selector) = term.get(field) {
            errors.extend(label_selector(selector, &path.child(field)));
        }
    }
    for name in list_at(term, &["namespaces"]) {
        let name = name.as_str().unwrap_or_default();
        errors.extend(invalid_each(&path.child("namespace"), name, names::dns1123_label(name)));
    }
    errors.extend(label_keys(term, path));
    let (key, path) = (str_at(term, &["topologyKey"]), path.child("topologyKey"));
    if key.is_empty() {
        errors.push(FieldError::required(&path, "can not be empty"));
    }
    errors.extend(invalid_each(&path, key, names::qualified_name(key)));
    errors
}

/// What is wrong with the labels whose own values a Pod is compared by.
fn label_keys(term: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let (keys, path) = (list_at(term, &[field]), path.child(field));
        if !keys.is_empty() && term.get("labelSelector").is_none() {
            let why = "must not be specified when labelSelector is not set";
            errors.push(FieldError::forbidden(&path, why));
            continue;
        }
        let keys = keys.iter().enumerate();
        errors.extend(qualified(keys.map(|(i, key)| (key.as_str().unwrap_or_default(), path.index(i)))));
    }
    let keys = list_at(term, &["matchLabelKeys"]);
    let mut selected: BTreeSet<&str> =
        entries_at(term, &["labelSelector", "matchLabels"]).map(|(key, _)| key.as_str()).collect();
    for expression in list_at(term, &["labelSelector", "matchExpressions"]) {
        let key = str_at(expression, &["key"]);
        let index = keys.iter().rposition(|listed| listed == key);
        if let Some(index) = index.filter(|_| selected.contains(key)) {
            let why = "exists in both matchLabelKeys and labelSelector";
            errors.push(FieldError::invalid(&path.index(index), key, why));
        }
        selected.insert(key);
    }
    let others = list_at(term, &["mismatchLabelKeys"]);
    for (index, key) in keys.iter().enumerate().filter(|(_, key)| others.contains(key)) {
        let why = "exists in both matchLabelKeys and mismatchLabelKeys";
        errors.push(FieldError::invalid(&path.child("matchLabelKeys").index(index), key.clone(), why));
    }
    errors
}

/// What is wrong with how Pods are to be spread.
pub(super) fn topology_spread(spec: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let constraints = list_at(spec, &["topologySpreadConstraints"]);
    for (index, constraint) in constraints.iter().enumerate() {
        let path = path.child("topologySpreadConstraints").index(index);
        let positive = |field: &str, value: i64| {
            (value <= 0).then(|| FieldError::invalid(&path.child(field), value, "must be greater than zero"))
        };
        errors.extend(positive("maxSkew", int_at(constraint, &["maxSkew"]).unwrap_or(0)));
        let [key, action] = ["topologyKey", "whenUnsatisfiable"].map(|field| str_at(constraint, &[field]));
        if key.is_empty() {
            errors.push(FieldError::required(&path.child("topologyKey"), "can not be empty"));
        }
        let known = &["DoNotSchedule", "ScheduleAnyway"];
        errors.extend(not_supported_unless(action, &path.child("whenUnsatisfiable"), known));
        let same = |other: &Value| {
            str_at(other, &["topologyKey"]) == key && str_at(other, &["whenUnsatisfiable"]) == action
        };
        if constraints[index + 1..].iter().any(same) {
            let path = path.child("{topologyKey, whenUnsatisfiable}");
            errors.push(FieldError::duplicate(&path, format!("{{{key}, {action}}}")));
        }
        if let Some(domains) = int_at(constraint, &["minDomains"]) {
            errors.extend(positive("minDomains", domains));
            if action != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errors.push(FieldError::invalid(&path.child("minDomains"), domains, why));
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            if let Some(policy) = constraint.get(field).and_then(Value::as_str) {
                errors.extend(not_supported_unless(policy, &path.child(field), &["Honor", "Ignore"]));
            }
        }
        errors.extend(label_keys(constraint, &path));
        if let Some(selector) = constraint.get("labelSelector") {
            errors.extend(label_selector(selector, &path.child("labelSelector")));
        }
    }
    errors
}
