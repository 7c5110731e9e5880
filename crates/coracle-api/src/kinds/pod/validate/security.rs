//! What is wrong with the security contexts of a Pod and its containers.

use std::collections::BTreeSet;

use serde_json::Value;

use super::volumes::descending;
use super::{Within, not_supported_unless};
use crate::field::{FieldError, Path};
use crate::names;
use crate::tree::{int_at, list_at, str_at, true_at};

const PROFILE_TYPES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];
const SYSCTL_BYTES_MAX: usize = 253;
const SYSCTL_FORMAT: &str = r"^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
/// What the kernel keeps apart for each network namespace, and for each namespace of interprocess communication.
const NETWORK_SYSCTLS: &str = "net.";
const IPC_SYSCTLS: &[&str] = &["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];

fn id(context: &Value, field: &str, path: &Path) -> Vec<FieldError> {
    let Some(id) = int_at(context, &[field]) else { return Vec::new() };
    let path = path.child(field);
    names::unix_id(id).into_iter().map(|c| FieldError::invalid(&path, id, c)).collect()
}

/// What is wrong with the security context of the Pod, which stands at `path` of the spec at `spec_path`.
pub(super) fn pod(within: &Within<'_>, spec_path: &Path) -> Vec<FieldError> {
    let path = spec_path.child("securityContext");
    let spec = within.spec;
    let Some(context) = spec.get("securityContext") else { return Vec::new() };
    let mut errors = Vec::new();
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        errors.extend(id(context, field, &path));
    }
    for (index, group) in list_at(context, &["supplementalGroups"]).iter().enumerate() {
        let (group, path) = (group.as_i64().unwrap_or(0), path.child("supplementalGroups").index(index));
        errors.extend(names::unix_id(group).into_iter().map(|c| FieldError::invalid(&path, group, c)));
    }
    // Upstream keeps the Pod's namespaces in its security context, and says so here.
    if true_at(spec, &["shareProcessNamespace"]) && true_at(spec, &["hostPID"]) {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(&path.child("shareProcessNamespace"), true, why));
    }
    errors.extend(sysctls(within, list_at(context, &["sysctls"]), &path.child("sysctls")));
    let word = |field: &str, known: &[&str]| {
        let said = context.get(field).and_then(Value::as_str)?;
        not_supported_unless(said, &path.child(field), known)
    };
    errors.extend(word("fsGroupChangePolicy", &["Always", "OnRootMismatch"]));
    errors.extend(seccomp(context, &path));
    errors.extend(app_armor(context, &path));
    errors.extend(word("supplementalGroupsPolicy", &["Merge", "Strict"]));
    errors.extend(word("seLinuxChangePolicy", &["MountOption", "Recursive"]));
    errors
}

fn sysctls(within: &Within<'_>, sysctls: &[Value], path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, sysctl) in sysctls.iter().enumerate() {
        let path = path.index(index).child("name");
        let name = str_at(sysctl, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(&path, ""));
        } else if !is_sysctl(name) {
            let why =
                format!("must have at most {SYSCTL_BYTES_MAX} characters and match regex {SYSCTL_FORMAT}");
            errors.push(FieldError::invalid(&path, name, why));
        } else if !seen.insert(name) {
            errors.push(FieldError::duplicate(&path, name));
        }
        let dotted = name.replace('/', ".");
        let of_network = dotted.starts_with(NETWORK_SYSCTLS);
        let of_ipc = IPC_SYSCTLS.iter().any(|prefix| dotted.starts_with(prefix));
        for (field, concerned) in [("hostNetwork", of_network), ("hostIPC", of_ipc)] {
            if concerned && true_at(within.spec, &[field]) {
                let why = format!("may not be specified when '{field}' is true");
                errors.push(FieldError::invalid(&path, name, why));
            }
        }
    }
    errors
}

fn is_sysctl(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= SYSCTL_BYTES_MAX
        && name.split(['.', '/']).all(|part| {
            let bytes = part.as_bytes();
            bytes.first().is_some_and(|&b| inner(b))
                && bytes.last().is_some_and(|&b| inner(b))
                && bytes.iter().all(|&b| inner(b) || matches!(b, b'-' | b'_'))
        })
}

/// What is wrong with the seccomp profile of a security context at `path`.
fn seccomp(context: &Value, path: &Path) -> Vec<FieldError> {
    let Some(profile) = context.get("seccompProfile") else { return Vec::new() };
    let path = path.child("seccompProfile");
    let mut errors = Vec::new();
    let kind = str_at(profile, &["type"]);
    if kind.is_empty() {
        let why = "type is required when seccompProfile is set";
        errors.push(FieldError::required(&path.child("type"), why));
    } else {
        errors.extend(not_supported_unless(kind, &path.child("type"), PROFILE_TYPES));
    }
    let path = path.child("localhostProfile");
    match profile.get("localhostProfile").and_then(Value::as_str) {
        None if kind == "Localhost" => {
            errors.push(FieldError::required(&path, "must be set when seccomp type is Localhost"));
        }
        Some(file) if kind == "Localhost" => errors.extend(descending(file, &path)),
        Some(_) => {
            let why = "can only be set when seccomp type is Localhost";
            errors.push(FieldError::invalid(&path, profile.clone(), why));
        }
        None => {}
    }
    errors
}

fn app_armor(context: &Value, path: &Path) -> Vec<FieldError> {
    let Some(profile) = context.get("appArmorProfile") else { return Vec::new() };
    let path = path.child("appArmorProfile");
    let kind = str_at(profile, &["type"]);
    let local = profile.get("localhostProfile").and_then(Value::as_str);
    let local_path = path.child("localhostProfile");
    let missing = || FieldError::required(&local_path, "must be set when AppArmor type is Localhost");
    match (kind, local) {
        ("Localhost", None) => vec![missing()],
        ("Localhost", Some(name)) if name != name.trim() => {
            vec![FieldError::invalid(&local_path, name, "must not be padded with whitespace")]
        }
        ("Localhost", Some("")) => vec![missing()],
        ("RuntimeDefault" | "Unconfined", Some(name)) => {
            vec![FieldError::invalid(&local_path, name, "can only be set when AppArmor type is Localhost")]
        }
        ("", _) => {
            vec![FieldError::required(&path.child("type"), "type is required when appArmorProfile is set")]
        }
        (kind, _) => not_supported_unless(kind, &path.child("type"), PROFILE_TYPES).into_iter().collect(),
    }
}

/// What is wrong with the security context of a container.
pub(super) fn container(context: Option<&Value>, host_users: bool, path: &Path) -> Vec<FieldError> {
    let Some(context) = context else { return Vec::new() };
    let mut errors = Vec::new();
    for field in ["runAsUser", "runAsGroup"] {
        errors.extend(id(context, field, path));
    }
    if let Some(said) = context.get("procMount").and_then(Value::as_str) {
        let path = path.child("procMount");
        errors.extend(not_supported_unless(said, &path, &["Default", "Unmasked"]));
        if said == "Unmasked" && host_users {
            errors.push(FieldError::invalid(&path, said, "`hostUsers` must be false to use `Unmasked`"));
        }
    }
    errors.extend(seccomp(context, path));
    if context.get("allowPrivilegeEscalation") == Some(&Value::Bool(false)) {
        let mut contradicts = |what: &str| {
            let why = format!("cannot set `allowPrivilegeEscalation` to false and {what}");
            errors.push(FieldError::invalid(path, context.clone(), why));
        };
        if true_at(context, &["privileged"]) {
            contradicts("`privileged` to true");
        }
        if list_at(context, &["capabilities", "add"]).iter().any(|c| c == "CAP_SYS_ADMIN") {
            contradicts("`capabilities.Add` CAP_SYS_ADMIN");
        }
    }
    errors.extend(app_armor(context, path));
    errors
}
