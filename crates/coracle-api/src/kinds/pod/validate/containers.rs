//! What is wrong with the containers of a Pod: regular ones, those that run first, and those that are added later.

use std::collections::BTreeSet;

use serde_json::Value;

use super::handlers::handlers;
use super::mounts::mounts;
use super::resources::container_resources;
use super::{PULL_POLICIES, Whose, Within, env, invalid_each, not_supported_unless, one_of, security};
use crate::field::{FieldError, Path};
use crate::names;
use crate::tree::{self, int_at, list_at, str_at};

const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
const NO_SIDECAR: &str = "may not be set for init containers without restartPolicy=Always";
const EPHEMERAL: &str = "cannot be set for an Ephemeral Container";

/// What is wrong with `spec.containers`.
pub(super) fn regular(within: &Within<'_>, path: &Path) -> Vec<FieldError> {
    let containers = list_at(within.spec, &["containers"]);
    if containers.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    let mut errors = Vec::new();
    let (mut seen, mut host_ports) = (BTreeSet::new(), BTreeSet::new());
    let mut collisions = Vec::new();
    for (index, container) in containers.iter().enumerate() {
        let path = path.index(index);
        errors.extend(common(container, within, &path));
        let name = str_at(container, &["name"]);
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        errors.extend(handlers(container, within, &path));
        errors.extend(restart_rules(container, &path));
        collisions.extend(colliding_host_ports(container, &mut host_ports, &path));
    }
    errors.extend(collisions);
    errors
}

/// What is wrong with `spec.initContainers`.
pub(super) fn init(within: &Within<'_>, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = names_of(within.spec, "containers");
    for (index, container) in list_at(within.spec, &["initContainers"]).iter().enumerate() {
        let at = path.index(index);
        errors.extend(common(container, within, &at));
        errors.extend(restart_rules(container, &at));
        let name = str_at(container, &["name"]);
        if !name.is_empty() && !seen.insert(name) {
            errors.push(FieldError::duplicate(&at.child("name"), name));
        }
        // They run one after the other, so each is judged alone, and upstream calls each the first.
        errors.extend(colliding_host_ports(container, &mut BTreeSet::new(), &path.index(0)));
        let sidecar = str_at(container, &["restartPolicy"]) == "Always";
        if sidecar {
            errors.extend(handlers(container, within, &at));
            continue;
        }
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if container.get(field).is_some() {
                errors.push(FieldError::forbidden(&at.child(field), NO_SIDECAR));
            }
        }
        for (index, policy) in list_at(container, &["resizePolicy"]).iter().enumerate() {
            let said = str_at(policy, &["restartPolicy"]);
            if said == "RestartContainer" {
                let at = at.child("resizePolicy").index(index).child("restartPolicy");
                let why = "must not be set to 'RestartContainer' for non-sidecar initContainers";
                errors.push(FieldError::invalid(&at, said, why));
            }
        }
    }
    errors
}

/// What is wrong with `spec.ephemeralContainers`.
pub(super) fn ephemeral(within: &Within<'_>, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut others = names_of(within.spec, "containers");
    others.append(&mut names_of(within.spec, "initContainers"));
    let mut seen = others.clone();
    for (index, container) in list_at(within.spec, &["ephemeralContainers"]).iter().enumerate() {
        let path = path.index(index);
        errors.extend(common(container, within, &path));
        errors.extend(padded_image(container, &path));
        let name = str_at(container, &["name"]);
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        let target = str_at(container, &["targetContainerName"]);
        if !target.is_empty() && !others.contains(target) {
            errors.push(FieldError::not_found(&path.child("targetContainerName"), target));
        }
        for field in [
            "ports",
            "resources",
            "resizePolicy",
            "restartPolicy",
            "restartPolicyRules",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle",
        ] {
            if !tree::is_empty(container.get(field)) {
                errors.push(FieldError::forbidden(&path.child(field), EPHEMERAL));
            }
        }
        for (index, mount) in list_at(container, &["volumeMounts"]).iter().enumerate() {
            for field in ["subPath", "subPathExpr"] {
                if !str_at(mount, &[field]).is_empty() {
                    let path = path.child("volumeMounts").index(index).child(field);
                    errors.push(FieldError::forbidden(&path, EPHEMERAL));
                }
            }
        }
    }
    errors
}

fn names_of<'a>(spec: &'a Value, list: &str) -> BTreeSet<&'a str> {
    list_at(spec, &[list]).iter().map(|container| str_at(container, &["name"])).collect()
}

/// What is judged in the same way for every container.
fn common(container: &Value, within: &Within<'_>, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = str_at(container, &["name"]);
    if name.is_empty() {
        errors.push(FieldError::required(&path.child("name"), ""));
    } else {
        errors.extend(invalid_each(&path.child("name"), name, names::dns1123_label(name)));
    }
    errors.extend(missing_image(container, path));
    errors.extend(one_of(
        str_at(container, &["terminationMessagePolicy"]),
        &path.child("terminationMessagePolicy"),
        &["File", "FallbackToLogsOnError"],
    ));
    errors.extend(ports(list_at(container, &["ports"]), &path.child("ports")));
    errors.extend(env::env(container, path));
    errors.extend(mounts(container, within, path));
    let pull = str_at(container, &["imagePullPolicy"]);
    errors.extend(one_of(pull, &path.child("imagePullPolicy"), PULL_POLICIES));
    errors.extend(container_resources(container.get("resources"), within, &path.child("resources")));
    errors.extend(resize_policy(container, within, &path.child("resizePolicy")));
    let context = &path.child("securityContext");
    errors.extend(security::container(container.get("securityContext"), within.host_users, context));
    errors
}

fn missing_image(container: &Value, path: &Path) -> Option<FieldError> {
    str_at(container, &["image"]).is_empty().then(|| FieldError::required(&path.child("image"), ""))
}

/// Templates that were made before this was judged live on.
fn padded_image(container: &Value, path: &Path) -> Option<FieldError> {
    let image = str_at(container, &["image"]);
    let why = "must not have leading or trailing whitespace";
    (image != image.trim()).then(|| FieldError::invalid(&path.child("image"), image, why))
}

/// What is wrong with the image of the container of a Pod at `path`.
pub(in crate::kinds::pod) fn image(container: &Value, path: &Path) -> Option<FieldError> {
    missing_image(container, path).or_else(|| padded_image(container, path))
}

/// What is wrong with the images of a Pod beyond what is wrong with them in a template.
pub(super) fn padded_images(within: &Within<'_>, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if within.whose == Whose::Pod {
        for field in ["containers", "initContainers"] {
            let containers = list_at(within.spec, &[field]).iter().enumerate();
            let path = path.child(field);
            errors.extend(containers.filter_map(|(index, said)| padded_image(said, &path.index(index))));
        }
    }
    errors
}

fn ports(ports: &[Value], path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = str_at(port, &["name"]);
        if !name.is_empty() {
            let complaints = names::port_name(name);
            if complaints.is_empty() && !seen.insert(name) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
            errors.extend(invalid_each(&path.child("name"), name, complaints));
        }
        for (field, required) in [("containerPort", true), ("hostPort", false)] {
            let (number, path) = (int_at(port, &[field]).unwrap_or(0), path.child(field));
            if number != 0 {
                let complaints = names::port_number(number);
                errors.extend(complaints.into_iter().map(|c| FieldError::invalid(&path, number, c)));
            } else if required {
                errors.push(FieldError::required(&path, ""));
            }
        }
        errors.extend(one_of(str_at(port, &["protocol"]), &path.child("protocol"), &["SCTP", "TCP", "UDP"]));
    }
    errors
}

/// The host ports of a container that are taken already; notes the others.
fn colliding_host_ports(container: &Value, taken: &mut BTreeSet<String>, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, port) in list_at(container, &["ports"]).iter().enumerate() {
        let Some(number) = int_at(port, &["hostPort"]).filter(|number| *number != 0) else { continue };
        let [protocol, ip] = ["protocol", "hostIP"].map(|field| str_at(port, &[field]));
        let endpoint = format!("{protocol}/{ip}/{number}");
        if !taken.insert(endpoint.clone()) {
            let path = path.child("ports").index(index).child("hostPort");
            errors.push(FieldError::duplicate(&path, endpoint));
        }
    }
    errors
}

/// What is wrong with when a container is to be restarted, by its own word.
fn restart_rules(container: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let rules = list_at(container, &["restartPolicyRules"]);
    let policy = path.child("restartPolicy");
    match container.get("restartPolicy").and_then(Value::as_str) {
        None if rules.is_empty() => return errors,
        None => {
            errors.push(FieldError::required(
                &policy,
                "must specify restartPolicy when restart rules are used",
            ));
        }
        Some(said) => errors.extend(not_supported_unless(said, &policy, &["Always", "Never", "OnFailure"])),
    }
    let path = path.child("restartPolicyRules");
    if rules.len() > RULES_MAX {
        errors.push(FieldError::too_many(&path, rules.len(), RULES_MAX));
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = path.index(index);
        let action = str_at(rule, &["action"]);
        errors.extend(not_supported_unless(
            action,
            &path.child("action"),
            &["Restart", "RestartAllContainers"],
        ));
        let path = path.child("exitCodes");
        let Some(codes) = rule.get("exitCodes") else {
            errors.push(FieldError::required(&path, "must be specified"));
            continue;
        };
        let operator = str_at(codes, &["operator"]);
        errors.extend(not_supported_unless(operator, &path.child("operator"), &["In", "NotIn"]));
        let values = list_at(codes, &["values"]).len();
        if values > EXIT_CODES_MAX {
            errors.push(FieldError::too_many(&path.child("values"), values, EXIT_CODES_MAX));
        }
    }
    errors
}

/// All but the doubled ones are complained about at the list: the paths are upstream's.
fn resize_policy(container: &Value, within: &Within<'_>, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, policy) in list_at(container, &["resizePolicy"]).iter().enumerate() {
        let [resource, restart] = ["resourceName", "restartPolicy"].map(|field| str_at(policy, &[field]));
        if !seen.insert(resource) {
            errors.push(FieldError::duplicate(&path.index(index), resource));
        }
        errors.extend(one_of(resource, path, &["cpu", "memory"]));
        errors.extend(one_of(restart, path, &["NotRequired", "RestartContainer"]));
        if str_at(within.spec, &["restartPolicy"]) == "Never" && restart != "NotRequired" {
            let why = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            errors.push(FieldError::invalid(path, restart, why));
        }
    }
    errors
}
