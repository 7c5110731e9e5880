//! What is wrong with the places at which a container has volumes.
//!
//! Some complaints name the list and not its element: the paths are upstream's.

use std::collections::BTreeSet;

use serde_json::Value;

use super::volumes::{descending, no_backsteps};
use super::{Within, not_supported_unless};
use crate::field::{FieldError, Path};
use crate::tree::{list_at, str_at, true_at};

/// What is wrong with the mounts and the devices of the container at `path`.
pub(super) fn mounts(container: &Value, within: &Within<'_>, path: &Path) -> Vec<FieldError> {
    let (mounts, devices) = (list_at(container, &["volumeMounts"]), list_at(container, &["volumeDevices"]));
    let mut errors = Vec::new();
    let list = path.child("volumeMounts");
    let mut places = BTreeSet::new();
    for (index, mount) in mounts.iter().enumerate() {
        let path = list.index(index);
        let [name, place] = ["name", "mountPath"].map(|field| str_at(mount, &[field]));
        if name.is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        }
        if !within.volumes.contains_key(name) {
            errors.push(FieldError::not_found(&path.child("name"), name));
        }
        if place.is_empty() {
            errors.push(FieldError::required(&path.child("mountPath"), ""));
        }
        if !places.insert(place) {
            errors.push(FieldError::invalid(&path.child("mountPath"), place, "must be unique"));
        }
        if devices.iter().any(|device| str_at(device, &["name"]) == name) {
            let why = "must not already exist in volumeDevices";
            errors.push(FieldError::invalid(&path.child("name"), name, why));
        }
        if devices.iter().any(|device| str_at(device, &["devicePath"]) == place) {
            let why = "must not already exist as a path in volumeDevices";
            errors.push(FieldError::invalid(&path.child("mountPath"), place, why));
        }
        errors.extend(sub_path(mount, &path, &list));
        errors.extend(propagation(mount, container, &list));
        errors.extend(recursively_read_only(mount, &list));
    }
    errors.extend(volume_devices(devices, mounts, within, &path.child("volumeDevices")));
    errors
}

fn sub_path(mount: &Value, path: &Path, list: &Path) -> Vec<FieldError> {
    let [said, expression] = ["subPath", "subPathExpr"].map(|field| str_at(mount, &[field]));
    let mut errors = Vec::new();
    if !said.is_empty() {
        errors.extend(descending(said, &list.child("subPath")));
    }
    if !expression.is_empty() {
        if !said.is_empty() {
            let why = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(&path.child("subPathExpr"), expression, why));
        }
        errors.extend(descending(expression, &list.child("subPathExpr")));
    }
    errors
}

fn propagation(mount: &Value, container: &Value, list: &Path) -> Vec<FieldError> {
    let Some(said) = mount.get("mountPropagation").and_then(Value::as_str) else { return Vec::new() };
    let path = list.child("mountPropagation");
    let mut errors: Vec<FieldError> =
        not_supported_unless(said, &path, &["Bidirectional", "HostToContainer", "None"])
            .into_iter()
            .collect();
    if said == "Bidirectional" && !true_at(container, &["securityContext", "privileged"]) {
        let why = "Bidirectional mount propagation is available only to privileged containers";
        errors.push(FieldError::forbidden(&path, why));
    }
    errors
}

fn recursively_read_only(mount: &Value, list: &Path) -> Vec<FieldError> {
    let Some(said) = mount.get("recursiveReadOnly").and_then(Value::as_str) else { return Vec::new() };
    let path = list.child("recursiveReadOnly");
    let mut errors = Vec::new();
    match said {
        "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if !true_at(mount, &["readOnly"]) {
                errors.push(FieldError::forbidden(&path, "may only be specified when readOnly is true"));
            }
            if !matches!(str_at(mount, &["mountPropagation"]), "" | "None") {
                let why = "may only be specified when mountPropagation is None or not specified";
                errors.push(FieldError::forbidden(&path, why));
            }
        }
        other => {
            errors.push(FieldError::not_supported(&path, other, &["Disabled", "Enabled", "IfPossible"]));
        }
    }
    errors
}

fn volume_devices(devices: &[Value], mounts: &[Value], within: &Within<'_>, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (mut names, mut places) = (BTreeSet::new(), BTreeSet::new());
    for (index, device) in devices.iter().enumerate() {
        let path = path.index(index);
        let (name_path, place_path) = (path.child("name"), path.child("devicePath"));
        let [name, place] = ["name", "devicePath"].map(|field| str_at(device, &[field]));
        if name.is_empty() {
            errors.push(FieldError::required(&name_path, ""));
        }
        if names.contains(name) {
            errors.push(FieldError::invalid(&name_path, name, "must be unique"));
        }
        match within.volumes.get(name) {
            None => errors.push(FieldError::not_found(&name_path, name)),
            Some(volume)
                if volume.get("persistentVolumeClaim").is_none() && volume.get("ephemeral").is_none() =>
            {
                let why =
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.push(FieldError::invalid(&name_path, name, why));
            }
            Some(_) => {}
        }
        if place.is_empty() {
            errors.push(FieldError::required(&place_path, ""));
        }
        if places.contains(place) {
            errors.push(FieldError::invalid(&place_path, place, "must be unique"));
        }
        if no_backsteps(place, &place_path).is_some() {
            errors.push(FieldError::invalid(&place_path, place, "can not contain backsteps ('..')"));
        } else {
            places.insert(place);
        }
        if mounts.iter().any(|mount| str_at(mount, &["name"]) == name) {
            let why = "must not already exist in volumeMounts";
            errors.push(FieldError::invalid(&name_path, name, why));
        }
        if mounts.iter().any(|mount| str_at(mount, &["mountPath"]) == place) {
            let why = "must not already exist as a path in volumeMounts";
            errors.push(FieldError::invalid(&place_path, place, why));
        }
        if !name.is_empty() {
            names.insert(name);
        }
    }
    errors
}
