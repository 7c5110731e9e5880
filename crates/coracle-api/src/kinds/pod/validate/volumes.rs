//! What is wrong with the volumes of a Pod.

use std::collections::BTreeSet;

use serde_json::Value;

use super::env;
use super::{PULL_POLICIES, Volumes, invalid_each, not_supported_unless, one_of};
use crate::field::{FieldError, Path};
use crate::names;
use crate::quantity::Quantity;
use crate::tree::{int_at, is_empty, list_at, str_at};

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
const KEY_TYPES: &[&str] = &["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];

/// A kind of volume.
struct Kind {
    field: &'static str,
    /// What the kind is called when it stands beside another one.
    surplus: &'static str,
    /// What the kind is called when something is wrong with it.
    path: &'static str,
    /// The fields that it must have, beside what is judged by its own function.
    required: &'static [&'static str],
}

const fn kind(field: &'static str, required: &'static [&'static str]) -> Kind {
    Kind { field, surplus: field, path: field, required }
}

/// In the order in which they are judged. Some names are not quite the fields': the words are upstream's.
const KINDS: &[Kind] = &[
    kind("emptyDir", &[]),
    kind("hostPath", &[]),
    kind("gitRepo", &["repository"]),
    Kind {
        field: "gcePersistentDisk",
        surplus: "gcePersistentDisk",
        path: "persistentDisk",
        required: &["pdName"],
    },
    kind("awsElasticBlockStore", &["volumeID"]),
    kind("secret", &["secretName"]),
    kind("nfs", &["server", "path"]),
    kind("iscsi", &["targetPortal", "iqn"]),
    kind("glusterfs", &["endpoints", "path"]),
    kind("flocker", &[]),
    kind("persistentVolumeClaim", &["claimName"]),
    kind("rbd", &["monitors", "image"]),
    kind("cinder", &["volumeID"]),
    Kind { field: "cephfs", surplus: "cephFS", path: "cephfs", required: &["monitors"] },
    kind("quobyte", &["registry", "volume"]),
    Kind { field: "downwardAPI", surplus: "downwarAPI", path: "downwardAPI", required: &[] },
    kind("fc", &[]),
    kind("flexVolume", &["driver"]),
    kind("configMap", &["name"]),
    kind("azureFile", &["secretName", "shareName"]),
    kind("vsphereVolume", &["volumePath"]),
    kind("photonPersistentDisk", &["pdID"]),
    kind("portworxVolume", &["volumeID"]),
    kind("azureDisk", &["diskName", "diskURI"]),
    kind("storageos", &["volumeName"]),
    kind("projected", &[]),
    kind("scaleIO", &["gateway", "system", "volumeName"]),
    kind("csi", &["driver"]),
    kind("ephemeral", &["volumeClaimTemplate"]),
    kind("image", &["reference"]),
];

/// The volumes of a spec that are right, and what is wrong with the others. A mount of a wrong one finds none.
pub(super) fn volumes<'a>(spec: &'a Value, path: &Path) -> (Volumes<'a>, Vec<FieldError>) {
    let mut right = Volumes::new();
    let mut errors = Vec::new();
    for (index, volume) in list_at(spec, &["volumes"]).iter().enumerate() {
        let path = path.index(index);
        let name = str_at(volume, &["name"]);
        let mut wrong = source(volume, &path);
        let name_path = path.child("name");
        if name.is_empty() {
            wrong.push(FieldError::required(&name_path, ""));
        } else {
            wrong.extend(invalid_each(&name_path, name, names::dns1123_label(name)));
        }
        if right.contains_key(name) {
            wrong.push(FieldError::duplicate(&name_path, name));
        }
        if wrong.is_empty() {
            right.insert(name, volume);
        }
        errors.extend(wrong);
    }
    (right, errors)
}

fn source(volume: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut found = false;
    for kind in KINDS {
        let Some(source) = volume.get(kind.field) else { continue };
        if found {
            let path = path.child(kind.surplus);
            errors.push(FieldError::forbidden(&path, "may not specify more than 1 volume type"));
            continue;
        }
        found = true;
        let path = path.child(kind.path);
        for field in kind.required.iter().filter(|field| is_empty(source.get(**field))) {
            errors.push(FieldError::required(&path.child(field), ""));
        }
        errors.extend(match kind.field {
            "emptyDir" => empty_dir(source, &path),
            "hostPath" => host_path(source, &path),
            "nfs" => absolute(str_at(source, &["path"]), &path.child("path")).into_iter().collect(),
            "configMap" | "secret" => {
                let mut errors: Vec<FieldError> = mode(source, "defaultMode", &path).into_iter().collect();
                errors.extend(keys(source, &path));
                errors
            }
            "downwardAPI" => {
                let mut errors: Vec<FieldError> = mode(source, "defaultMode", &path).into_iter().collect();
                errors.extend(list_at(source, &["items"]).iter().flat_map(|file| downward(file, &path)));
                errors
            }
            "projected" => projected(source, &path),
            "image" => one_of(str_at(source, &["pullPolicy"]), &path.child("pullPolicy"), PULL_POLICIES)
                .into_iter()
                .collect(),
            _ => Vec::new(),
        });
    }
    if !found {
        errors.push(FieldError::required(path, "must specify a volume type"));
    }
    errors
}

fn empty_dir(source: &Value, path: &Path) -> Vec<FieldError> {
    let limit = str_at(source, &["sizeLimit"]).parse::<Quantity>();
    let negative = limit.is_ok_and(|limit| limit.is_negative());
    let wrong = || {
        FieldError::forbidden(&path.child("sizeLimit"), "SizeLimit field must be a valid resource quantity")
    };
    negative.then(wrong).into_iter().collect()
}

fn host_path(source: &Value, path: &Path) -> Vec<FieldError> {
    let said = str_at(source, &["path"]);
    if said.is_empty() {
        return vec![FieldError::required(&path.child("path"), "")];
    }
    let mut errors: Vec<FieldError> = no_backsteps(said, &path.child("path")).into_iter().collect();
    errors.extend(not_supported_unless(str_at(source, &["type"]), &path.child("type"), HOST_PATH_TYPES));
    errors
}

fn mode(source: &Value, field: &str, path: &Path) -> Option<FieldError> {
    let mode = int_at(source, &[field]).filter(|mode| !(0..=0o777).contains(mode))?;
    Some(FieldError::invalid(&path.child(field), mode, MODE))
}

/// What is wrong with the keys of a ConfigMap or Secret that are to become files.
fn keys(source: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, item) in list_at(source, &["items"]).iter().enumerate() {
        let path = path.child("items").index(index);
        for field in ["key", "path"] {
            if str_at(item, &[field]).is_empty() {
                errors.push(FieldError::required(&path.child(field), ""));
            }
        }
        errors.extend(file(str_at(item, &["path"]), &path.child("path")));
        errors.extend(mode(item, "mode", &path));
    }
    errors
}

/// What is wrong with a file that tells of the Pod.
fn downward(said: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = str_at(said, &["path"]);
    if name.is_empty() {
        errors.push(FieldError::required(&path.child("path"), ""));
    }
    errors.extend(file(name, &path.child("path")));
    match (said.get("fieldRef"), said.get("resourceFieldRef")) {
        (Some(field), resource) => {
            errors.extend(env::field_ref(field, env::VOLUME_FIELDS, &path.child("fieldRef")));
            if resource.is_some() {
                let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(path, "resource", why));
            }
        }
        (None, Some(resource)) => {
            errors.extend(env::resource_field_ref(resource, true, &path.child("resourceFieldRef")));
        }
        (None, None) => {
            errors.push(FieldError::required(path, "one of fieldRef and resourceFieldRef is required"));
        }
    }
    errors.extend(mode(said, "mode", path));
    errors
}

fn projected(source: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = mode(source, "defaultMode", path).into_iter().collect();
    let mut paths = BTreeSet::new();
    for (index, source) in list_at(source, &["sources"]).iter().enumerate() {
        let at = path.child("sources").index(index);
        for field in ["secret", "configMap"] {
            let Some(said) = source.get(field) else { continue };
            let name = str_at(said, &["name"]);
            if name.is_empty() {
                errors.push(FieldError::required(&at.child(field).child("name"), ""));
            }
            errors.extend(keys(said, &at.child(field)));
            let items = list_at(said, &["items"]).iter().map(|item| (str_at(item, &["path"]), name));
            errors.extend(items.filter_map(|(file, shown)| taken(&mut paths, file, shown, path)));
        }
        if let Some(said) = source.get("downwardAPI") {
            for item in list_at(said, &["items"]) {
                errors.extend(downward(item, &at.child("downwardAPI")));
                let file = str_at(item, &["path"]);
                errors.extend(taken(&mut paths, file, file, path));
            }
        }
        if let Some(said) = source.get("serviceAccountToken") {
            errors.extend(token(said, path, &at.child("serviceAccountToken")));
        }
        if let Some(said) = source.get("clusterTrustBundle") {
            let at = at.child("clusterTrustBundle");
            errors.extend(trust_bundle(said, &at));
            let file = str_at(said, &["path"]);
            errors.extend(taken(&mut paths, file, file, path));
        }
        if let Some(said) = source.get("podCertificate") {
            let at = at.child("podCertificate");
            errors.extend(certificate(said, &at));
            for field in ["credentialBundlePath", "keyPath", "certificateChainPath"] {
                let file = str_at(said, &[field]);
                errors.extend(taken(&mut paths, file, file, path));
            }
        }
        if source.as_object().is_some_and(|sources| sources.len() > 1) {
            errors.push(FieldError::forbidden(&at, "may not specify more than 1 volume type per source"));
        }
    }
    errors
}

/// Notes a file of a projected volume; an error if there is one at that path already.
fn taken<'a>(paths: &mut BTreeSet<&'a str>, file: &'a str, shown: &str, path: &Path) -> Option<FieldError> {
    let twice = !file.is_empty() && !paths.insert(file);
    twice.then(|| FieldError::invalid(path, shown, "conflicting duplicate paths"))
}

/// The path of a token's file is, as upstream has it, a field of the volume at `volume`.
fn token(token: &Value, volume: &Path, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let seconds = int_at(token, &["expirationSeconds"]).unwrap_or(0);
    let path = path.child("expirationSeconds");
    if seconds < 600 {
        errors.push(FieldError::invalid(&path, seconds, "may not specify a duration less than 10 minutes"));
    }
    if seconds > 1 << 32 {
        let why = "may not specify a duration larger than 2^32 seconds";
        errors.push(FieldError::invalid(&path, seconds, why));
    }
    let name = str_at(token, &["path"]);
    let path = volume.child("path");
    if name.is_empty() {
        errors.push(FieldError::required(&path, ""));
    } else {
        errors.extend(file(name, &path));
    }
    errors
}

fn trust_bundle(bundle: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match (bundle.get("name"), bundle.get("signerName")) {
        (Some(_), Some(_)) => {
            let why = "only one of name and signerName may be used";
            errors.push(FieldError::invalid(path, bundle.clone(), why));
        }
        (Some(name), None) if is_empty(Some(name)) => {
            errors.push(FieldError::required(&path.child("name"), "must be a valid object name"));
        }
        (None, Some(signer)) if is_empty(Some(signer)) => {
            errors.push(FieldError::required(&path.child("signerName"), "must be a valid signer name"));
        }
        (None, None) => {
            errors.push(FieldError::required(path, "either name or signerName must be specified"));
        }
        _ => {}
    }
    let name = str_at(bundle, &["path"]);
    if name.is_empty() {
        errors.push(FieldError::required(&path.child("path"), ""));
    }
    errors.extend(file(name, &path.child("path")));
    errors
}

fn certificate(certificate: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let key_type = str_at(certificate, &["keyType"]);
    errors.extend(not_supported_unless(key_type, &path.child("keyType"), KEY_TYPES));
    if let Some(seconds) = int_at(certificate, &["maxExpirationSeconds"]).filter(|seconds| *seconds < 3600) {
        let why = "if provided, maxExpirationSeconds must be >= 3600";
        errors.push(FieldError::invalid(&path.child("maxExpirationSeconds"), seconds, why));
    }
    let fields = ["credentialBundlePath", "keyPath", "certificateChainPath"];
    for field in fields {
        errors.extend(file(str_at(certificate, &[field]), &path.child(field)));
    }
    if fields.iter().all(|field| str_at(certificate, &[field]).is_empty()) {
        let why = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        errors.push(FieldError::required(path, why));
    }
    errors
}

fn absolute(said: &str, path: &Path) -> Option<FieldError> {
    (!said.starts_with('/')).then(|| FieldError::invalid(path, said, "must be an absolute path"))
}

/// What is wrong with a path that must not lead upwards.
pub(super) fn no_backsteps(said: &str, path: &Path) -> Option<FieldError> {
    said.split('/').any(|part| part == "..").then(|| FieldError::invalid(path, said, "must not contain '..'"))
}

/// What is wrong with a path that must lead downwards from where it is used.
pub(super) fn descending(said: &str, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if said.starts_with('/') {
        errors.push(FieldError::invalid(path, said, "must be a relative path"));
    }
    errors.extend(no_backsteps(said, path));
    errors
}

/// What is wrong with the path of a file in a volume. Names that begin with two dots are the node agent's own.
fn file(said: &str, path: &Path) -> Vec<FieldError> {
    let mut errors = descending(said, path);
    // `..` alone is complained about twice upstream.
    if said.starts_with("..") && !said.starts_with("../") {
        errors.push(FieldError::invalid(path, said, "must not start with '..'"));
    }
    errors
}
