//! What is wrong with a Pod, in upstream's words.
//!
//! Each part of a spec has its file; this one puts them together, in the order in which upstream complains. What is
//! well-formed but not built is not judged here but in [`super::supported`].

mod containers;
mod env;
mod handlers;
mod mounts;
mod network;
mod resources;
mod scheduling;
mod security;
mod volumes;

use std::collections::BTreeMap;

use serde_json::Value;

pub(super) use containers::image;
pub(super) use scheduling::tolerations;

use crate::field::{FieldError, Path};
use crate::metadata::validate_labels;
use crate::names;
use crate::tree::{at, int_at, is_empty, list_at, str_at, true_at};

const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];

/// Most seconds that a Pod may be given.
pub(super) const DEADLINE_MAX: i64 = i32::MAX as i64;

/// The volumes of a spec by name.
type Volumes<'a> = BTreeMap<&'a str, &'a Value>;

/// Whose spec is judged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// A Pod's.
    Pod,
    /// That of Pods to be made of it.
    Template,
}

/// What the checks of one part have to know of the whole.
struct Within<'a> {
    spec: &'a Value,
    whose: Whose,
    volumes: Volumes<'a>,
    /// How long the Pod may take to end.
    grace: Option<i64>,
    /// Name of the system that the Pod asks for; empty if it does not say.
    os: &'a str,
    /// Whether the Pod's users are the node's.
    host_users: bool,
}

fn one_of(value: &str, path: &Path, supported: &[&str]) -> Option<FieldError> {
    if value.is_empty() {
        Some(FieldError::required(path, ""))
    } else {
        not_supported_unless(value, path, supported)
    }
}

fn not_supported_unless(value: &str, path: &Path, supported: &[&str]) -> Option<FieldError> {
    (!supported.contains(&value)).then(|| FieldError::not_supported(path, value, supported))
}

fn invalid_each(path: &Path, value: &str, complaints: Vec<String>) -> impl Iterator<Item = FieldError> {
    complaints.into_iter().map(move |c| FieldError::invalid(path, value, c))
}

/// What is wrong with a Pod that is to be made.
pub(super) fn new_pod(object: &Value) -> Vec<FieldError> {
    let mut errors = pod(object);
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    if !is_empty(spec.get("ephemeralContainers")) {
        errors.push(FieldError::forbidden(&path.child("ephemeralContainers"), "cannot be set on create"));
    }
    if !str_at(spec, &["nodeName"]).is_empty() && !is_empty(spec.get("schedulingGates")) {
        let why = "cannot be set until all schedulingGates have been cleared";
        errors.push(FieldError::forbidden(&path.child("nodeName"), why));
    }
    errors
}

/// What is wrong with a Pod, new or changed.
pub(super) fn pod(object: &Value) -> Vec<FieldError> {
    let path = Path::new("spec");
    let said = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = annotations(object, said);
    errors.extend(spec(said, &path, Whose::Pod));
    // What admission has set by now; a template leaves it open.
    if str_at(said, &["preemptionPolicy"]).is_empty() {
        errors.push(FieldError::required(&path.child("preemptionPolicy"), ""));
    }
    errors
}

/// What is wrong with the annotations that mean something of a Pod.
fn annotations(object: &Value, spec: &Value) -> Vec<FieldError> {
    let path = Path::new("metadata").child("annotations");
    let said = |key: &str| at(object, &["metadata", "annotations", key]).and_then(Value::as_str);
    let mut errors = Vec::new();
    if let Some(mirrored) = said(super::MIRROR).filter(|_| str_at(spec, &["nodeName"]).is_empty()) {
        let why = "must set spec.nodeName if mirror pod annotation is set";
        errors.push(FieldError::invalid(&path.key(super::MIRROR), mirrored, why));
    }
    if let Some(cost) = said(DELETION_COST).filter(|cost| !is_number(cost)) {
        errors.push(FieldError::invalid(&path.key(DELETION_COST), cost, "must be a 32bit integer"));
    }
    errors
}

/// Which Pods a ReplicaSet gives up first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Whether a text is an integer as it is usually written.
fn is_number(text: &str) -> bool {
    text.parse::<i32>().is_ok_and(|number| number.to_string() == text)
}

/// What is wrong with the spec of a Pod, or of one to be made of a template, that stands at `path`.
pub(super) fn spec(spec: &Value, path: &Path, whose: Whose) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let grace = int_at(spec, &["terminationGracePeriodSeconds"]);
    if grace.is_none() {
        errors.push(FieldError::required(&path.child("terminationGracePeriodSeconds"), ""));
    }
    let (volumes, wrong) = volumes::volumes(spec, &path.child("volumes"));
    errors.extend(wrong);
    let host_users = spec.get("hostUsers") != Some(&Value::Bool(false));
    let os = str_at(spec, &["os", "name"]);
    let within = Within { spec, whose, volumes, grace, os, host_users };
    errors.extend(containers::regular(&within, &path.child("containers")));
    errors.extend(containers::init(&within, &path.child("initContainers")));
    errors.extend(containers::ephemeral(&within, &path.child("ephemeralContainers")));
    errors.extend(network::host_network(&within, path));
    errors.extend(one_of(
        str_at(spec, &["restartPolicy"]),
        &path.child("restartPolicy"),
        &["Always", "OnFailure", "Never"],
    ));
    errors.extend(network::dns_policy(spec, path));
    errors.extend(validate_labels(spec.get("nodeSelector"), &path.child("nodeSelector")));
    errors.extend(security::pod(&within, path));
    errors.extend(scheduling::affinity(spec, path));
    errors.extend(network::dns_config(spec, path));
    errors.extend(scheduling::readiness_gates(spec, path));
    errors.extend(scheduling::scheduling_gates(spec, path));
    errors.extend(scheduling::topology_spread(spec, path));
    errors.extend(own_users(&within, path));
    errors.extend(network::hostname_override(spec, path));
    errors.extend(names_in(spec, path, &[("serviceAccountName", names::dns1123_subdomain)]));
    errors.extend(names_in(spec, path, &[("nodeName", names::dns1123_subdomain)]));
    let seconds = int_at(spec, &["activeDeadlineSeconds"]);
    if let Some(seconds) = seconds.filter(|seconds| !(1..=DEADLINE_MAX).contains(seconds)) {
        let why = names::not_in_range(1, DEADLINE_MAX);
        errors.push(FieldError::invalid(&path.child("activeDeadlineSeconds"), seconds, why));
    }
    let labels: [NameRule; 2] = [("hostname", names::dns1123_label), ("subdomain", names::dns1123_label)];
    errors.extend(names_in(spec, path, &labels));
    errors.extend(tolerations(list_at(spec, &["tolerations"]), &path.child("tolerations")));
    errors.extend(network::host_aliases(spec, path));
    let classes: [NameRule; 2] =
        [("priorityClassName", names::dns1123_subdomain), ("runtimeClassName", names::dns1123_subdomain)];
    errors.extend(names_in(spec, path, &classes));
    if let Some(preemption) = spec.get("preemptionPolicy").and_then(Value::as_str) {
        let known = &["PreemptLowerPriority", "Never"];
        errors.extend(one_of(preemption, &path.child("preemptionPolicy"), known));
    }
    if let Some(overhead) = spec.get("overhead") {
        errors.extend(resources::overhead(overhead, &path.child("overhead")));
    }
    errors.extend(system(&within, path));
    for (path, container) in containers_with_paths(spec, path) {
        errors.extend(env::file_key_volumes(spec, container, &path));
    }
    errors.extend(containers::padded_images(&within, path));
    errors
}

/// A field that is a name, and what is wrong with its values.
type NameRule = (&'static str, fn(&str) -> Vec<String>);

/// What is wrong with fields that are names or are left out.
fn names_in(spec: &Value, path: &Path, rules: &[NameRule]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (field, check) in rules {
        let value = str_at(spec, &[field]);
        if !value.is_empty() {
            errors.extend(invalid_each(&path.child(field), value, check(value)));
        }
    }
    errors
}

/// All containers with their paths: those that run first, the regular ones, those that were added.
pub(super) fn containers_with_paths<'a>(
    spec: &'a Value,
    path: &Path,
) -> impl Iterator<Item = (Path, &'a Value)> {
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    lists.into_iter().flat_map(move |field| {
        let path = path.child(field);
        list_at(spec, &[field]).iter().enumerate().map(move |(index, said)| (path.index(index), said))
    })
}

/// What is wrong with a Pod whose users are not the node's. The names of two fields are not quite theirs upstream.
fn own_users(within: &Within<'_>, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if within.host_users {
        return errors;
    }
    let why = "when `hostUsers` is false";
    for (field, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if true_at(within.spec, &[field]) {
            errors.push(FieldError::forbidden(&path.child(shown), why));
        }
    }
    for (path, container) in containers_with_paths(within.spec, path) {
        if !is_empty(container.get("volumeDevices")) {
            errors.push(FieldError::forbidden(&path.child("volumeDevices"), why));
        }
    }
    errors
}

/// What is wrong with the system that a Pod asks for, and with what it asks of it.
fn system(within: &Within<'_>, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if within.spec.get("os").is_none() {
        return errors;
    }
    match within.os {
        "" => errors.push(FieldError::required(&path.child("os").child("name"), "")),
        "linux" => {
            let why = "windows options cannot be set for a linux pod";
            let contexts = std::iter::once((path.clone(), within.spec))
                .chain(containers_with_paths(within.spec, path))
                .filter(|(_, said)| at(said, &["securityContext", "windowsOptions"]).is_some());
            errors.extend(contexts.map(|(path, _)| {
                FieldError::forbidden(&path.child("securityContext").child("windowsOptions"), why)
            }));
        }
        // What a Pod for that system may not say is not judged: no node runs it.
        "windows" => {}
        other => {
            errors.push(FieldError::not_supported(&path.child("os"), other, &["linux", "windows"]));
        }
    }
    errors
}

#[cfg(test)]
mod tests;
