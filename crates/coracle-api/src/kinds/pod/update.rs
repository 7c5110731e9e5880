//! What an update of a Pod may change: very little of its spec, and nothing that went for good in its status.

mod status;

use std::collections::BTreeSet;

use serde_json::Value;

pub(super) use status::{prepare_status, validate_status};

use super::{supported, validate};
use crate::field::{FieldError, Path, go_quote};
use crate::tree::{self, at, entries_at, int_at, is_empty, list_at, str_at};

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
                         `spec.tolerations` (only additions to existing tolerations),\
                         `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
/// Lines shown around a difference.
const CONTEXT_LINES: usize = 3;

/// What is wrong with an update of a Pod's spec.
pub(super) fn validate(new: &Value, old: &Value) -> Vec<FieldError> {
    let path = Path::new("spec");
    let (Some(new_spec), Some(old_spec)) = (new.get("spec"), old.get("spec")) else {
        return vec![FieldError::required(&path, "")];
    };
    let mut errors = validate::pod(new);
    errors.extend(mirror(new, old));
    errors.extend(newly_refused(new, old));
    for field in ["containers", "initContainers"] {
        let (path, containers) = (path.child(field), list_at(new_spec, &[field]));
        if containers.len() != list_at(old_spec, &[field]).len() {
            errors.push(FieldError::forbidden(&path, "pod updates may not add or remove containers"));
            return errors;
        }
        let images = containers.iter().enumerate();
        errors.extend(images.filter_map(|(index, said)| validate::image(said, &path.index(index))));
    }
    if let Some((error, hopeless)) = deadline(new_spec, old_spec, &path) {
        errors.push(error);
        if hopeless {
            return errors;
        }
    }
    errors.extend(tolerations(new_spec, old_spec, &path));
    errors.extend(gates(new_spec, old_spec, &path));
    if new_spec == old_spec {
        return errors;
    }
    // What may change is checked by itself and then made equal; the rest must be equal.
    let mut rest = new_spec.clone();
    let restore = |rest: &mut Value, field: &str| {
        tree::set_or_remove(rest, field, old_spec.get(field).cloned());
    };
    for field in ["containers", "initContainers"] {
        let containers = rest.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten();
        for (container, old) in containers.zip(list_at(old_spec, &[field])) {
            tree::set_or_remove(container, "image", old.get("image").cloned());
        }
    }
    for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        restore(&mut rest, field);
    }
    let grace = |spec: &Value| int_at(spec, &["terminationGracePeriodSeconds"]);
    if grace(old_spec).is_some_and(|grace| grace < 0) && grace(new_spec) == Some(1) {
        restore(&mut rest, "terminationGracePeriodSeconds");
    }
    if !is_empty(old_spec.get("schedulingGates")) {
        errors.extend(place_of_gated(new_spec, old_spec, &path));
        restore(&mut rest, "nodeSelector");
        restore_node_affinity(&mut rest, old_spec);
    }
    if rest != *old_spec {
        let why = format!(
            "pod updates may not change fields other than {UPDATABLE}\n{}",
            difference(old_spec, &rest)
        );
        errors.push(FieldError::forbidden(&path, why));
    }
    errors
}

/// What an update says for the first time must be honoured, as in a new Pod.
fn newly_refused(new: &Value, old: &Value) -> Vec<FieldError> {
    let before = supported::refuse(old);
    supported::refuse(new).into_iter().filter(|refusal| !before.contains(refusal)).collect()
}

/// A Pod that stands for one that a node runs stays one, and no other becomes one.
fn mirror(new: &Value, old: &Value) -> Option<FieldError> {
    let said = |pod| at(pod, &["metadata", "annotations", super::MIRROR]);
    let path = Path::new("metadata").child("annotations").key(super::MIRROR);
    match (said(old), said(new)) {
        (before, after) if before == after => None,
        (Some(_), _) => Some(FieldError::forbidden(&path, "may not remove or update mirror pod annotation")),
        (None, _) => Some(FieldError::forbidden(&path, "may not add mirror pod annotation")),
    }
}

/// Deadlines only shrink. Says too whether one is so wrong that nothing else is worth saying.
fn deadline(new: &Value, old: &Value, path: &Path) -> Option<(FieldError, bool)> {
    let path = path.child("activeDeadlineSeconds");
    let deadline = |spec| int_at(spec, &["activeDeadlineSeconds"]);
    match (deadline(new), deadline(old)) {
        (Some(seconds), _) if !(0..=validate::DEADLINE_MAX).contains(&seconds) => {
            let why = crate::names::not_in_range(0, validate::DEADLINE_MAX);
            Some((FieldError::invalid(&path, seconds, why), true))
        }
        (Some(new), Some(old)) if new > old => {
            Some((FieldError::invalid(&path, new, "must be less than or equal to previous value"), true))
        }
        (None, Some(_)) => {
            let why = "must not update from a positive integer to nil value";
            Some((FieldError::invalid(&path, Value::Null, why), false))
        }
        _ => None,
    }
}

fn tolerations(new: &Value, old: &Value, path: &Path) -> Vec<FieldError> {
    let path = path.child("tolerations");
    let (new, old) = (list_at(new, &["tolerations"]), list_at(old, &["tolerations"]));
    let bare = |toleration: &Value| {
        let mut bare = toleration.clone();
        tree::set_or_remove(&mut bare, "tolerationSeconds", None);
        bare
    };
    let kept = old.iter().all(|toleration| new.iter().any(|other| bare(other) == bare(toleration)));
    if kept {
        return validate::tolerations(new, &path);
    }
    let why = "existing toleration can not be modified except its tolerationSeconds";
    vec![FieldError::forbidden(&path, why)]
}

/// Gates are only ever removed.
fn gates(new: &Value, old: &Value, path: &Path) -> Vec<FieldError> {
    let path = path.child("schedulingGates");
    let names = |spec| list_at(spec, &["schedulingGates"]).iter().map(|gate| str_at(gate, &["name"]));
    let before: BTreeSet<&str> = names(old).collect();
    names(new)
        .enumerate()
        .filter(|(_, name)| !before.contains(name))
        .map(|(index, name)| {
            let why = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            FieldError::forbidden(&path.index(index).child("name"), why)
        })
        .collect()
}

/// A Pod behind a gate may be sent to fewer nodes, not to others.
fn place_of_gated(new: &Value, old: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let selector = new.get("nodeSelector").cloned().unwrap_or_default();
    if entries_at(old, &["nodeSelector"]).any(|(key, value)| selector.get(key) != Some(value)) {
        let why = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        errors.push(FieldError::invalid(&path.child("nodeSelector"), selector, why));
    }
    let terms = |spec| list_at(spec, &["affinity", "nodeAffinity", REQUIRED, "nodeSelectorTerms"]);
    let (new, old) = (terms(new), terms(old));
    let path = path.child("affinity").child("nodeAffinity").child(REQUIRED).child("nodeSelectorTerms");
    if !old.is_empty() && old.len() != new.len() {
        let why = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        errors.push(FieldError::invalid(&path, new.to_vec(), why));
        return errors;
    }
    for (index, (new, old)) in new.iter().zip(old).enumerate() {
        let only_added = ["matchExpressions", "matchFields"]
            .iter()
            .all(|field| list_at(new, &[field]).starts_with(list_at(old, &[field])));
        let said_nothing =
            |term| ["matchExpressions", "matchFields"].iter().all(|field| list_at(term, &[field]).is_empty());
        // A term that says nothing matches nothing; one that says something would match more.
        if !only_added || (said_nothing(old) && !said_nothing(new)) {
            let why = "only additions are allowed (no mutations or deletions)";
            errors.push(FieldError::invalid(&path.index(index), new.clone(), why));
        }
    }
    errors
}

fn restore_node_affinity(rest: &mut Value, old: &Value) {
    let before = at(old, &["affinity", "nodeAffinity"]).cloned();
    if before.is_none() && rest.get("affinity").is_none() {
        return;
    }
    if let Some(affinity) = tree::object_in(rest, "affinity") {
        match before {
            Some(before) => affinity.insert("nodeAffinity".to_owned(), before),
            None => affinity.shift_remove("nodeAffinity"),
        };
        if affinity.is_empty() && old.get("affinity").is_none() {
            tree::set_or_remove(rest, "affinity", None);
        }
    }
}

/// What differs between two values, line by line.
fn difference(old: &Value, new: &Value) -> String {
    let (old, new) = (pretty(old), pretty(new));
    similar::TextDiff::from_lines(&old, &new).unified_diff().context_radius(CONTEXT_LINES).to_string()
}

/// The lines of a value in the order of its fields' names, so that equal values have equal lines.
fn pretty(value: &Value) -> String {
    let mut value = value.clone();
    value.sort_all_objects();
    let mut text = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, format);
    // A value in memory is written without a fault.
    if serde::Serialize::serialize(&value, &mut serializer).is_ok() {
        text.push(b'\n');
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The Pod `old` with the ephemeral containers of `new`, which is all that their subresource may change.
pub(super) fn prepare_ephemeral_containers(new: &mut Value, old: &Value) {
    let added = at(new, &["spec", "ephemeralContainers"]).cloned();
    let version = at(new, &["metadata", "resourceVersion"]).cloned();
    *new = old.clone();
    for (part, field, value) in
        [("spec", "ephemeralContainers", added), ("metadata", "resourceVersion", version)]
    {
        if let Some(part) = new.get_mut(part) {
            tree::set_or_remove(part, field, value);
        }
    }
}

/// What is wrong with an update of the ephemeral containers: they are only ever added.
pub(super) fn validate_ephemeral_containers(new: &Value, old: &Value) -> Vec<FieldError> {
    if at(old, &["metadata", "annotations", super::MIRROR]).is_some() {
        return vec![FieldError::forbidden(
            &Path::new(""),
            "static pods do not support ephemeral containers",
        )];
    }
    let mut errors = validate::pod(new);
    errors.extend(newly_refused(new, old));
    let path = Path::new("spec").child("ephemeralContainers");
    let containers = |pod| list_at(pod, &["spec", "ephemeralContainers"]);
    for old in containers(old) {
        let name = str_at(old, &["name"]);
        let same_name = |new: &&Value| str_at(new, &["name"]) == name;
        let why = match containers(new).iter().rev().find(same_name) {
            Some(new) if new == old => continue,
            Some(new) => format!("may not be changed\n{}", difference(old, new)),
            None => "may not be removed\n".to_owned(),
        };
        let why = format!("existing ephemeral containers {} {why}", go_quote(name));
        errors.push(FieldError::forbidden(&path, why));
    }
    errors
}

#[cfg(test)]
mod tests;
