//! What is wrong with the environment of a container.

use serde_json::Value;

use super::invalid_each;
use super::volumes::no_backsteps;
use crate::field::{FieldError, Path};
use crate::names;
use crate::quantity::Quantity;
use crate::tree::{list_at, str_at};

/// What a variable may tell of its Pod.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// What a file may tell of its Pod.
pub(super) const VOLUME_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
/// Fields of a Pod that have a name but are told nowhere.
const OTHER_FIELDS: &[&str] = &["spec.restartPolicy", "spec.schedulerName", "status.phase"];
const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const UNITS: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// What is wrong with `env` and `envFrom` of the container at `path`.
pub(super) fn env(container: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, variable) in list_at(container, &["env"]).iter().enumerate() {
        let path = path.child("env").index(index);
        let name = str_at(variable, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        } else {
            errors.extend(invalid_each(&path.child("name"), name, names::env_var_name(name)));
        }
        if let Some(source) = variable.get("valueFrom") {
            let literal = str_at(variable, &["value"]);
            errors.extend(value_from(source, !literal.is_empty(), &path.child("valueFrom")));
        }
    }
    let list = path.child("envFrom");
    for (index, source) in list_at(container, &["envFrom"]).iter().enumerate() {
        errors.extend(env_from(source, &list.index(index), &list));
    }
    errors
}

fn env_from(source: &Value, path: &Path, list: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let prefix = str_at(source, &["prefix"]);
    if !prefix.is_empty() {
        errors.extend(invalid_each(&path.child("prefix"), prefix, names::env_var_name(prefix)));
    }
    let mut sources = 0;
    for field in ["configMapRef", "secretRef"] {
        let Some(said) = source.get(field) else { continue };
        sources += 1;
        let path = path.child(field).child("name");
        let name = str_at(said, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(&path, ""));
        } else {
            // A trailing dash passes, as if the name were to be completed.
            let complete = name.strip_suffix('-').map(|stem| format!("{stem}a"));
            let complaints = names::dns1123_subdomain(complete.as_deref().unwrap_or(name));
            errors.extend(invalid_each(&path, name, complaints));
        }
    }
    match sources {
        0 => {
            let why = "must specify one of: `configMapRef` or `secretRef`";
            errors.push(FieldError::invalid(list, "", why));
        }
        1 => {}
        _ => {
            let why = "may not have more than one field specified at a time";
            errors.push(FieldError::invalid(list, "", why));
        }
    }
    errors
}

fn value_from(source: &Value, has_value: bool, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut sources = 0;
    for field in ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"] {
        let Some(said) = source.get(field) else { continue };
        sources += 1;
        let path = path.child(field);
        errors.extend(match field {
            "fieldRef" => field_ref(said, ENV_FIELDS, &path),
            "resourceFieldRef" => resource_field_ref(said, false, &path),
            "fileKeyRef" => file_key(said, &path),
            _ => key(said, &path),
        });
    }
    if sources == 0 {
        let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or \
                   `fileKeyRef`";
        errors.push(FieldError::invalid(path, "", why));
    } else if has_value {
        errors.push(FieldError::invalid(path, "", "may not be specified when `value` is not empty"));
    } else if sources > 1 {
        errors.push(FieldError::invalid(path, "", "may not have more than one field specified at a time"));
    }
    errors
}

/// What is wrong with the name of a field of the Pod, of which `known` can be told here.
pub(super) fn field_ref(said: &Value, known: &[&str], path: &Path) -> Vec<FieldError> {
    let [version, name] = ["apiVersion", "fieldPath"].map(|field| str_at(said, &[field]));
    for (field, value) in [("apiVersion", version), ("fieldPath", name)] {
        if value.is_empty() {
            return vec![FieldError::required(&path.child(field), "")];
        }
    }
    let no_field = |why: String| {
        vec![FieldError::invalid(
            &path.child("fieldPath"),
            name,
            format!("error converting fieldPath: {why}"),
        )]
    };
    if version != "v1" {
        return no_field(format!("unsupported pod version: {version}"));
    }
    let subscripted = name.strip_suffix("']").and_then(|rest| rest.split_once("['"));
    if let Some((map, key)) = subscripted.filter(|(map, _)| !map.is_empty()) {
        let key = match map {
            "metadata.annotations" => key.to_lowercase(),
            "metadata.labels" => key.to_owned(),
            _ => return no_field(format!("field label does not support subscript: {name}")),
        };
        return invalid_each(path, &key, names::qualified_name(&key)).collect();
    }
    // The name that a node's field had once.
    let name = if name == "spec.host" { "spec.nodeName" } else { name };
    if ![ENV_FIELDS, VOLUME_FIELDS, OTHER_FIELDS].iter().any(|fields| fields.contains(&name)) {
        return no_field(format!("field label not supported: {name}"));
    }
    if known.contains(&name) {
        return Vec::new();
    }
    vec![FieldError::not_supported(&path.child("fieldPath"), name, known)]
}

/// What is wrong with the name of an amount of a container's; a volume has to say which container.
pub(super) fn resource_field_ref(said: &Value, volume: bool, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let resource = str_at(said, &["resource"]);
    let huge = ["limits.hugepages-", "requests.hugepages-"].iter().any(|prefix| resource.starts_with(prefix));
    if volume && str_at(said, &["containerName"]).is_empty() {
        errors.push(FieldError::required(&path.child("containerName"), ""));
    } else if resource.is_empty() {
        errors.push(FieldError::required(&path.child("resource"), ""));
    } else if !RESOURCES.contains(&resource) && !huge {
        errors.push(FieldError::not_supported(&path.child("resource"), resource, RESOURCES));
    }
    let Ok(divisor) = str_at(said, &["divisor"]).parse::<Quantity>() else { return errors };
    if divisor.is_zero() {
        return errors;
    }
    let (units, what): (&[&str], _) = match resource.split_once('.').map_or("", |(_, name)| name) {
        "cpu" => (&["1m", "1"], "cpu"),
        "memory" => (UNITS, "memory"),
        "ephemeral-storage" => (UNITS, "local ephemeral storage"),
        _ if huge => (UNITS, "hugepages"),
        _ => return errors,
    };
    if !units.contains(&divisor.to_string().as_str()) {
        let listed = if what == "cpu" { "1m and 1".to_owned() } else { units.join(", ") };
        let why = format!("only divisor's values {listed} are supported with the {what} resource");
        errors.push(FieldError::invalid(&path.child("divisor"), resource, why));
    }
    errors
}

/// What is wrong with the name of a key of a ConfigMap or Secret.
fn key(said: &Value, path: &Path) -> Vec<FieldError> {
    let [name, key] = ["name", "key"].map(|field| str_at(said, &[field]));
    let mut errors: Vec<FieldError> =
        invalid_each(&path.child("name"), name, names::dns1123_subdomain(name)).collect();
    if key.is_empty() {
        errors.push(FieldError::required(&path.child("key"), ""));
    } else {
        errors.extend(invalid_each(&path.child("key"), key, names::config_key(key)));
    }
    errors
}

/// What is wrong with the name of a key of a file.
fn file_key(said: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["key", "volumeName", "path"] {
        let (value, path) = (str_at(said, &[field]), path.child(field));
        match field {
            _ if value.is_empty() => errors.push(FieldError::required(&path, "")),
            "key" => errors.extend(invalid_each(&path, value, names::env_var_name(value))),
            "volumeName" => errors.extend(invalid_each(&path, value, names::dns1123_label(value))),
            _ => errors.extend(no_backsteps(value, &path)),
        }
    }
    errors
}

/// What is wrong with the volumes that variables are read from: they must be the Pod's own directories.
pub(super) fn file_key_volumes(spec: &Value, container: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, variable) in list_at(container, &["env"]).iter().enumerate() {
        let Some(said) = crate::tree::at(variable, &["valueFrom", "fileKeyRef"]) else { continue };
        let name = str_at(said, &["volumeName"]);
        let path = path.child("env").index(index).child("valueFrom").child("fileKeyRef").child("volumeName");
        let volumes = list_at(spec, &["volumes"]);
        match volumes.iter().rev().find(|volume| str_at(volume, &["name"]) == name) {
            None => errors.push(FieldError::not_found(&path, name)),
            Some(volume) if volume.get("emptyDir").is_none() => {
                let why = "referenced volume must be of type emptyDir";
                errors.push(FieldError::invalid(&path, name, why));
            }
            Some(_) => {}
        }
    }
    errors
}
