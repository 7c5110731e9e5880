//! What a volume says when its author said nothing.

use serde_json::{Map, Value, json};

use super::super::default_pull_policy;
use super::{drop_zeros, elements, part};
use crate::tree::set_default;

/// `rw-r--r--`.
const MODE: i64 = 0o644;
/// How long a token is good for.
const TOKEN_SECONDS: i64 = 3600;

/// Fills in the defaults of a volume. One that says nothing of what it is is an empty directory.
pub(super) fn apply(volume: &mut Map<String, Value>) {
    if volume.keys().all(|field| field == "name") {
        volume.insert("emptyDir".into(), json!({}));
    }
    if let Some(directory) = part(volume, "emptyDir") {
        drop_zeros(directory, &["medium"]);
    }
    for field in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(source) = part(volume, field) {
            set_default(source, "defaultMode", MODE);
        }
    }
    if let Some(path) = part(volume, "hostPath") {
        set_default(path, "type", "");
    }
    if let Some(claim) = part(volume, "persistentVolumeClaim") {
        drop_zeros(claim, &["readOnly"]);
    }
    if let Some(image) = part(volume, "image") {
        let reference = image.get("reference").and_then(Value::as_str).unwrap_or_default();
        let policy = default_pull_policy(reference).to_owned();
        set_default(image, "pullPolicy", policy);
    }
    if let Some(downward) = part(volume, "downwardAPI") {
        for file in elements(downward, "items") {
            sources_of_pod(file);
        }
    }
    let Some(projected) = part(volume, "projected") else { return };
    for source in elements(projected, "sources") {
        if let Some(token) = part(source, "serviceAccountToken") {
            set_default(token, "expirationSeconds", TOKEN_SECONDS);
            drop_zeros(token, &["audience"]);
        }
        if let Some(downward) = part(source, "downwardAPI") {
            for file in elements(downward, "items") {
                sources_of_pod(file);
            }
        }
    }
}

/// Fills in the defaults of what tells of the Pod, in a file or in a variable.
pub(super) fn sources_of_pod(source: &mut Map<String, Value>) {
    if let Some(field) = part(source, "fieldRef") {
        set_default(field, "apiVersion", "v1");
    }
    if let Some(resource) = part(source, "resourceFieldRef") {
        // The unit is written out although zero says that it is one.
        set_default(resource, "divisor", "0");
        drop_zeros(resource, &["containerName"]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_stored_with_all_that_clients_read() {
        let field = json!({"path": "n", "fieldRef": {"fieldPath": "metadata.name"}});
        let whole = json!({"path": "n", "fieldRef": {"fieldPath": "metadata.name", "apiVersion": "v1"}});
        let amount =
            json!({"path": "c", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu"}});
        let counted = json!({"path": "c", "resourceFieldRef": {
            "containerName": "c", "resource": "limits.cpu", "divisor": "0"
        }});
        for (name, said, stored) in [
            ("nothing said", json!({}), json!({"emptyDir": {}})),
            ("memory", json!({"emptyDir": {"medium": "Memory"}}), json!({"emptyDir": {"medium": "Memory"}})),
            ("any medium", json!({"emptyDir": {"medium": ""}}), json!({"emptyDir": {}})),
            ("host", json!({"hostPath": {"path": "/x"}}), json!({"hostPath": {"path": "/x", "type": ""}})),
            (
                "host file",
                json!({"hostPath": {"path": "/x", "type": "File"}}),
                json!({"hostPath": {"path": "/x", "type": "File"}}),
            ),
            (
                "config map",
                json!({"configMap": {"name": "m", "items": [{"key": "k", "path": "p"}]}}),
                json!({"configMap": {"name": "m", "items": [{"key": "k", "path": "p"}], "defaultMode": 420}}),
            ),
            (
                "secret for nobody",
                json!({"secret": {"secretName": "s", "defaultMode": 0}}),
                json!({"secret": {"secretName": "s", "defaultMode": 0}}),
            ),
            (
                "downward",
                json!({"downwardAPI": {"items": [field, amount]}}),
                json!({"downwardAPI": {"items": [whole, counted], "defaultMode": 420}}),
            ),
            (
                "projected",
                json!({"projected": {"sources": [
                    {"serviceAccountToken": {"path": "t", "audience": ""}},
                    {"serviceAccountToken": {"path": "u", "expirationSeconds": 600}},
                    {"downwardAPI": {"items": [field]}}, {"configMap": {"name": "m"}}
                ]}}),
                json!({"projected": {"sources": [
                    {"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}},
                    {"serviceAccountToken": {"path": "u", "expirationSeconds": 600}},
                    {"downwardAPI": {"items": [whole]}}, {"configMap": {"name": "m"}}
                ], "defaultMode": 420}}),
            ),
            (
                "image",
                json!({"image": {"reference": "i"}}),
                json!({"image": {"reference": "i", "pullPolicy": "Always"}}),
            ),
            (
                "claim",
                json!({"persistentVolumeClaim": {"claimName": "c", "readOnly": false}}),
                json!({"persistentVolumeClaim": {"claimName": "c"}}),
            ),
        ] {
            let Value::Object(mut volume) = said else { panic!("a volume is an object") };
            volume.insert("name".into(), "v".into());
            apply(&mut volume);
            volume.shift_remove("name");
            assert_eq!(Value::Object(volume), stored, "{name}");
        }
    }
}
