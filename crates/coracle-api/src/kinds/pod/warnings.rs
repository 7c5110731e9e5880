//! What is not wrong with a new Pod and still worth knowing, in upstream's words.

mod overlaps;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::validate::containers_with_paths;
use crate::field::{Path, go_quote};
use crate::names;
use crate::quantity::Quantity;
use crate::tree::{at, entries_at, int_at, list_at, str_at};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const NO_SELECTOR: &str = "a null labelSelector results in matching no pod";
const SECCOMP: &str = "seccomp.security.alpha.kubernetes.io/pod";
const CONTAINER_SECCOMP: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Annotations that mean nothing any more, and what does instead.
const ANNOTATIONS: &[(&str, &str)] = &[
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];
/// Kinds of volumes that are gone or going, as they are called.
const VOLUMES: &[(&str, &str, &str)] = &[
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// What is worth knowing of a new Pod.
pub(super) fn warnings(pod: &Value) -> Vec<String> {
    let mut out: Vec<String> = super::label_warning(crate::metadata::name(pod)).into_iter().collect();
    out.extend(of(pod, &Path::new("")));
    out
}

/// What is worth knowing of the Pod, or the template, that stands at `path`.
pub(super) fn of(object: &Value, path: &Path) -> Vec<String> {
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let spec_path = path.child("spec");
    let mut out = placement(spec, &spec_path);
    let annotations = path.child("metadata").child("annotations");
    let annotated = |key: &str| at(object, &["metadata", "annotations", key]).is_some();
    for (key, instead) in ANNOTATIONS.iter().filter(|(key, _)| annotated(key)) {
        out.push(format!("{}: {instead}", annotations.key(key)));
    }
    for (index, volume) in list_at(spec, &["volumes"]).iter().enumerate() {
        let path = spec_path.child("volumes").index(index);
        for (_, shown, fate) in VOLUMES.iter().filter(|(field, ..)| volume.get(*field).is_some()) {
            out.push(format!("{}: {fate}", path.child(shown)));
        }
    }
    out.extend(overlaps::of(list_at(spec, &["volumes"])));
    out.extend(duplicates(spec, &spec_path));
    for name in ["memory", "ephemeral-storage"] {
        out.extend(fractional(at(spec, &["overhead", name]), &spec_path.child("overhead").key(name)));
    }
    let seccomp = |key: &str| {
        format!(
            "{}: non-functional in v1.27+; use the \"seccompProfile\" field instead",
            annotations.key(key)
        )
    };
    if at(spec, &["securityContext", "seccompProfile"]).is_none() && annotated(SECCOMP) {
        out.push(seccomp(SECCOMP));
    }
    let armored = |said: &Value| at(said, &["securityContext", "appArmorProfile"]).is_some();
    let of_template = !path.as_str().is_empty();
    for (path, container) in containers_with_paths(spec, &spec_path) {
        let name = str_at(container, &["name"]);
        let key = format!("{CONTAINER_SECCOMP}{name}");
        if at(container, &["securityContext", "seccompProfile"]).is_none() && annotated(&key) {
            out.push(seccomp(&key));
        }
        let key = format!("{APP_ARMOR}{name}");
        if of_template && !armored(spec) && !armored(container) && annotated(&key) {
            let path = annotations.key(&key);
            out.push(format!("{path}: deprecated since v1.30; use the \"appArmorProfile\" field instead"));
        }
        for name in ["memory", "ephemeral-storage"] {
            for list in ["limits", "requests"] {
                let path = path.child("resources").child(list).key(name);
                out.extend(fractional(at(container, &["resources", list, name]), &path));
            }
        }
        out.extend(hidden_variables(container, &path));
    }
    out.extend(ports(spec, &spec_path));
    if int_at(spec, &["terminationGracePeriodSeconds"]).is_some_and(|grace| grace < 0) {
        out.push(format!(
            "{}: must be >= 0; negative values are invalid and will be treated as 1",
            spec_path.child("terminationGracePeriodSeconds")
        ));
    }
    out.extend(neighbours(spec, &spec_path));
    out.extend(addresses(spec, &spec_path));
    out
}

/// What became of a label of nodes.
fn deprecated_label(label: &str) -> Option<String> {
    let (since, instead) = match label {
        "beta.kubernetes.io/arch" => ("v1.14", "kubernetes.io/arch"),
        "beta.kubernetes.io/os" => ("v1.14", "kubernetes.io/os"),
        "failure-domain.beta.kubernetes.io/region" => ("v1.17", "topology.kubernetes.io/region"),
        "failure-domain.beta.kubernetes.io/zone" => ("v1.17", "topology.kubernetes.io/zone"),
        "beta.kubernetes.io/instance-type" => ("v1.17", "node.kubernetes.io/instance-type"),
        _ => return None,
    };
    Some(format!("deprecated since {since}; use \"{instead}\" instead"))
}

/// What is said about nodes.
fn placement(spec: &Value, path: &Path) -> Vec<String> {
    let mut out = Vec::new();
    for (label, _) in entries_at(spec, &["nodeSelector"]) {
        let path = path.child("nodeSelector").key(label);
        out.extend(deprecated_label(label).map(|fate| format!("{path}: {fate}")));
    }
    let at_path = path.child("affinity").child("nodeAffinity");
    let affinity = at(spec, &["affinity", "nodeAffinity"]).unwrap_or(&Value::Null);
    for (index, term) in list_at(affinity, &[REQUIRED, "nodeSelectorTerms"]).iter().enumerate() {
        let path = at_path.child(REQUIRED).child("nodeSelectorTerms").index(index);
        out.extend(node_selector_term(term, false, &path));
    }
    for (index, term) in list_at(affinity, &[PREFERRED]).iter().enumerate() {
        let path = at_path.child(PREFERRED).index(index).child("preference");
        out.extend(node_selector_term(term.get("preference").unwrap_or(&Value::Null), true, &path));
    }
    for (index, constraint) in list_at(spec, &["topologySpreadConstraints"]).iter().enumerate() {
        let path = path.child("topologySpreadConstraints").index(index);
        let key = str_at(constraint, &["topologyKey"]);
        let key_path = path.child("topologyKey");
        out.extend(deprecated_label(key).map(|fate| format!("{key_path}: {key} is {fate}")));
        if constraint.get("labelSelector").is_none() {
            out.push(format!("{}: {NO_SELECTOR}", path.child("labelSelector")));
        }
    }
    out
}

fn node_selector_term(term: &Value, judge_values: bool, path: &Path) -> Vec<String> {
    let mut out = Vec::new();
    for (index, wanted) in list_at(term, &["matchExpressions"]).iter().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let key = str_at(wanted, &["key"]);
        let key_path = path.child("key");
        out.extend(deprecated_label(key).map(|fate| format!("{key_path}: {key} is {fate}")));
        // Only of a preference: a requirement with such a value is wrong.
        for (index, value) in list_at(wanted, &["values"]).iter().enumerate().filter(|_| judge_values) {
            let (value, path) = (value.as_str().unwrap_or_default(), path.child("values").index(index));
            out.extend(names::label_value(value).iter().map(|c| format!("{path}: {value} is invalid, {c}")));
        }
    }
    out
}

/// What is said twice.
fn duplicates(spec: &Value, path: &Path) -> Vec<String> {
    let mut out = Vec::new();
    for (list, field, what) in [("hostAliases", "ip", "ip"), ("imagePullSecrets", "name", "name")] {
        let mut seen = BTreeSet::new();
        for (index, element) in list_at(spec, &[list]).iter().enumerate() {
            let said = str_at(element, &[field]);
            if !seen.insert(said) {
                let path = path.child(list).index(index).child(field);
                out.push(format!("{path}: duplicate {what} {}", go_quote(said)));
            }
        }
    }
    for (index, secret) in list_at(spec, &["imagePullSecrets"]).iter().enumerate() {
        if str_at(secret, &["name"]).is_empty() {
            let path = path.child("imagePullSecrets").index(index).child("name");
            out.push(format!("{path}: invalid empty name \"\""));
        }
    }
    out
}

fn fractional(amount: Option<&Value>, path: &Path) -> Option<String> {
    let text = amount?.as_str()?;
    let quantity: Quantity = text.parse().ok()?;
    (!quantity.is_whole())
        .then(|| format!("{path}: fractional byte value {} is invalid, must be an integer", go_quote(text)))
}

fn hidden_variables(container: &Value, path: &Path) -> Vec<String> {
    let mut out = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, variable) in list_at(container, &["env"]).iter().enumerate() {
        let [name, value] = ["name", "value"].map(|field| str_at(variable, &[field]));
        if seen.insert(name) {
            continue;
        }
        // A value that builds on the earlier one hides nothing.
        let earlier = format!("$({name})");
        if variable.get("valueFrom").is_some() || value == earlier || !value.contains(&earlier) {
            out.push(format!(
                "{}: hides previous definition of {}, which may be dropped when using apply",
                path.child("env").index(index),
                go_quote(name)
            ));
        }
    }
    out
}

fn ports(spec: &Value, path: &Path) -> Vec<String> {
    let mut out = Vec::new();
    let mut all: BTreeMap<(i64, &str), Vec<(Path, &Value)>> = BTreeMap::new();
    let host = |port: &Value| int_at(port, &["hostPort"]).unwrap_or(0);
    for (path, container) in containers_with_paths(spec, path) {
        for (index, port) in list_at(container, &["ports"]).iter().enumerate() {
            let path = path.child("ports").index(index);
            let [name, protocol, ip] = ["name", "protocol", "hostIP"].map(|field| str_at(port, &[field]));
            let number = int_at(port, &["containerPort"]).unwrap_or(0);
            if !ip.is_empty() && host(port) == 0 {
                out.push(format!(
                    "{path}: hostIP set without hostPort: {{Name:{name} HostPort:0 ContainerPort:{number} \
                     Protocol:{protocol} HostIP:{ip}}}"
                ));
            }
            let others = all.entry((number, protocol)).or_default();
            for (other_path, other) in others.iter() {
                let other_ip = str_at(other, &["hostIP"]);
                let how = if ip == other_ip && host(port) == host(other) {
                    "duplicate"
                } else if host(port) == 0 || host(other) == 0 {
                    "overlapping"
                } else if host(port) == host(other) && ip.is_empty() != other_ip.is_empty() {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                out.push(format!("{path}: {how} port definition with {other_path}"));
            }
            others.push((path, port));
        }
    }
    out.extend(port_names(spec, path));
    out
}

/// Names of ports that whoever looks for them finds at another container.
fn port_names(spec: &Value, path: &Path) -> Vec<String> {
    let mut out = Vec::new();
    let mut seen: BTreeMap<&str, Path> = BTreeMap::new();
    let sidecars = path.child("initContainers");
    for (path, container) in containers_with_paths(spec, path) {
        let runs_first = path.as_str().starts_with(sidecars.as_str());
        if runs_first && str_at(container, &["restartPolicy"]) != "Always" {
            continue;
        }
        for (index, port) in list_at(container, &["ports"]).iter().enumerate() {
            let (name, path) = (str_at(port, &["name"]), path.child("ports").index(index));
            if name.is_empty() {
                continue;
            }
            match seen.get(name) {
                Some(other) => out.push(format!(
                    "{path}: duplicate port name {} with {other}, services and probes that select ports by name \
                     will use {other}",
                    go_quote(name)
                )),
                None => {
                    seen.insert(name, path);
                }
            }
        }
    }
    out
}

fn neighbours(spec: &Value, path: &Path) -> Vec<String> {
    let mut out = Vec::new();
    for field in ["podAffinity", "podAntiAffinity"] {
        let Some(said) = at(spec, &["affinity", field]) else { continue };
        let path = path.child("affinity").child(field);
        for (index, term) in list_at(said, &[REQUIRED]).iter().enumerate() {
            if term.get("labelSelector").is_none() {
                let path = path.child(REQUIRED).index(index).child("labelSelector");
                out.push(format!("{path}: {NO_SELECTOR}"));
            }
        }
        for (index, term) in list_at(said, &[PREFERRED]).iter().enumerate() {
            if at(term, &["podAffinityTerm", "labelSelector"]).is_none() {
                let path = path.child(PREFERRED).index(index).child("podAffinityTerm").child("labelSelector");
                out.push(format!("{path}: {NO_SELECTOR}"));
            }
        }
    }
    out
}

/// Addresses that are written as nobody else writes them.
fn addresses(spec: &Value, path: &Path) -> Vec<String> {
    let servers = list_at(spec, &["dnsConfig", "nameservers"]).iter().enumerate().map(|(index, said)| {
        (path.child("dnsConfig").child("nameservers").index(index), said.as_str().unwrap_or_default())
    });
    let aliases = list_at(spec, &["hostAliases"])
        .iter()
        .enumerate()
        .map(|(index, alias)| (path.child("hostAliases").index(index).child("ip"), str_at(alias, &["ip"])));
    servers
        .chain(aliases)
        .filter_map(|(path, said)| {
            let address = said.parse::<std::net::Ipv6Addr>().ok()?.to_string();
            (address != said).then(|| {
                format!(
                    "{path}: IPv6 address {} should be in RFC 5952 canonical format ({})",
                    go_quote(said),
                    go_quote(&address)
                )
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
