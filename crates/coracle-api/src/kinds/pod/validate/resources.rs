//! What is wrong with the amounts that containers ask for.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Within, invalid_each};
use crate::field::{FieldError, Path};
use crate::names;
use crate::quantity::Quantity;
use crate::tree::{at, entries_at, list_at, str_at};

/// The resources that containers may name without a domain, beside huge pages.
const OF_CONTAINERS: &[&str] = &["cpu", "memory", "ephemeral-storage"];
/// The other resources without a domain that something in a cluster has.
const OF_OTHERS: &[&str] = &[
    "configmaps",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
    "storage",
];

fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Whether Kubernetes knows what the resource is.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether the resource is somebody else's, as the devices of a vendor.
fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

fn resource_name(name: &str, path: &Path) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = invalid_each(path, name, names::qualified_name(name)).collect();
    let of_container = OF_CONTAINERS.contains(&name) || is_huge_page(name);
    if !name.contains('/') {
        if errors.is_empty() && !of_container && !OF_OTHERS.contains(&name) {
            errors.push(FieldError::invalid(
                path,
                name,
                "must be a standard resource type or fully qualified",
            ));
        }
        if !of_container {
            errors.push(FieldError::invalid(path, name, "must be a standard resource for containers"));
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.push(FieldError::invalid(path, name, "doesn't follow extended resource name standard"));
    }
    errors
}

fn amount(value: &Value) -> Option<Quantity> {
    value.as_str()?.parse().ok()
}

/// What is wrong with an amount by itself.
fn entry(name: &str, quantity: Quantity, path: &Path) -> Vec<FieldError> {
    let mut errors = resource_name(name, path);
    let shown = quantity.to_string();
    if quantity.is_negative() {
        errors.push(FieldError::invalid(path, shown.clone(), "must be greater than or equal to 0"));
    }
    if is_extended(name) && !quantity.is_whole() {
        errors.push(FieldError::invalid(path, shown.clone(), "must be an integer"));
    }
    if is_huge_page(name) {
        let page = name.trim_start_matches("hugepages-").parse::<Quantity>().map_or(0, Quantity::value);
        if page <= 0 || quantity.value() < 0 || quantity.value() % page != 0 {
            let why = format!("{shown} is not positive integer multiple of {name}");
            errors.push(FieldError::invalid(path, shown, why));
        }
    }
    errors
}

/// What is wrong with the resources of a container.
pub(super) fn container_resources(
    resources: Option<&Value>,
    within: &Within<'_>,
    path: &Path,
) -> Vec<FieldError> {
    let Some(resources) = resources else { return Vec::new() };
    let mut errors = requirements(resources, path);
    errors.extend(claims(resources, within, &path.child("claims")));
    errors
}

/// What is wrong with what a Pod costs beyond its containers, which is judged as limits are.
pub(super) fn overhead(overhead: &Value, path: &Path) -> Vec<FieldError> {
    requirements(&serde_json::json!({ "limits": overhead }), path)
}

fn requirements(resources: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (limits, requests) = (path.child("limits"), path.child("requests"));
    for (name, value) in entries_at(resources, &["limits"]) {
        errors.extend(amount(value).map(|limit| entry(name, limit, &limits.key(name))).unwrap_or_default());
    }
    for (name, value) in entries_at(resources, &["requests"]) {
        let Some(request) = amount(value) else { continue };
        errors.extend(entry(name, request, &requests.key(name)));
        // Only what a node can lend out twice may be asked for without a limit.
        let overcommit = is_native(name) && !is_huge_page(name);
        let must = |what: &str, limit: Quantity| {
            let why = format!("must be {what} {name} limit of {limit}");
            FieldError::invalid(&requests, request.to_string(), why)
        };
        match at(resources, &["limits", name]).and_then(amount) {
            Some(limit) if !overcommit && request != limit => errors.push(must("equal to", limit)),
            Some(limit) if request > limit => errors.push(must("less than or equal to", limit)),
            None if !overcommit => {
                let why = "Limit must be set for non overcommitable resources";
                errors.push(FieldError::required(&limits, why));
            }
            _ => {}
        }
    }
    let all: BTreeSet<&str> = ["limits", "requests"]
        .iter()
        .flat_map(|list| entries_at(resources, &[list]))
        .map(|(name, _)| name.as_str())
        .collect();
    if all.iter().any(|name| is_huge_page(name)) && !all.contains("cpu") && !all.contains("memory") {
        errors.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
    errors
}

/// What is wrong with the claims that a container uses: the Pod must have them.
fn claims(resources: &Value, within: &Within<'_>, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let known: BTreeSet<&str> =
        list_at(within.spec, &["resourceClaims"]).iter().map(|claim| str_at(claim, &["name"])).collect();
    let mut seen = BTreeSet::new();
    for (index, claim) in list_at(resources, &["claims"]).iter().enumerate() {
        let path = path.index(index);
        let [name, request] = ["name", "request"].map(|field| str_at(claim, &[field]));
        if name.is_empty() {
            errors.push(FieldError::required(&path, ""));
            continue;
        }
        let key = if request.is_empty() { name.to_owned() } else { format!("{name}/{request}") };
        let part_of_it = |seen: &String| seen.split('/').next() == Some(name);
        if seen.contains(name) || (request.is_empty() && seen.iter().any(part_of_it)) {
            errors.push(FieldError::duplicate(&path, name));
        } else if !seen.insert(key.clone()) {
            errors.push(FieldError::duplicate(&path, key));
        }
        if !known.contains(name) {
            let mut error = FieldError::not_found(&path, name);
            error.detail = "must be one of the names in pod.spec.resourceClaims".to_owned();
            if known.is_empty() {
                error.detail.push_str(" which is empty");
            } else {
                let names: Vec<&str> = known.iter().copied().collect();
                error.detail.push_str(&format!(": {}", names.join(", ")));
            }
            errors.push(error);
        }
    }
    errors
}
