//! Secrets.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;

use super::config_map::{DATA_BYTES_MAX, decoded_bytes, immutable};
use crate::catalogue::Strategy;
use crate::field::{FieldError, Path};
use crate::metadata;
use crate::names;
use crate::table::Column;
use crate::tree::{at, entries_at, object_in, set_default, str_at};

/// What is special about Secrets.
pub(crate) struct SecretStrategy;

static COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Type", "Used to facilitate programmatic handling of secret data."),
    Column::text("Data", "Data contains the secret data."),
    Column::AGE,
];

impl Strategy for SecretStrategy {
    fn default(&self, object: &mut Value) {
        let Some(map) = object.as_object_mut() else { return };
        // Text written in the clear becomes data, and wins over it.
        if let Some(Value::Object(clear)) = map.shift_remove("stringData")
            && let Some(data) = object_in(object, "data")
        {
            for (key, value) in clear {
                data.insert(key, STANDARD.encode(value.as_str().unwrap_or_default()).into());
            }
        }
        if let Some(map) = object.as_object_mut() {
            set_default(map, "type", "Opaque");
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        validate(object)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if new.get("type") != old.get("type") {
            errors.push(metadata::immutable(&Path::new("type"), new.get("type")));
        }
        errors.extend(immutable(new, old, &["data"]));
        errors.extend(validate(new));
        errors
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["type"]
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("type", str_at(object, &["type"]).to_owned())]
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            metadata::name(object).into(),
            str_at(object, &["type"]).into(),
            entries_at(object, &["data"]).count().into(),
            super::age(object, now),
        ]
    }
}

fn validate(object: &Value) -> Vec<FieldError> {
    let data = Path::new("data");
    let mut errors = Vec::new();
    let mut total = 0;
    for (key, value) in entries_at(object, &["data"]) {
        let path = data.key(key);
        errors
            .extend(names::config_key(key).into_iter().map(|c| FieldError::invalid(&path, key.as_str(), c)));
        total += value.as_str().map_or(0, decoded_bytes);
    }
    if total > DATA_BYTES_MAX {
        errors.push(FieldError::too_long(&data, DATA_BYTES_MAX));
    }
    let has = |key: &str| at(object, &["data", key]).is_some();
    let require = |errors: &mut Vec<FieldError>, key: &str| {
        if !has(key) {
            errors.push(FieldError::required(&data.key(key), ""));
        }
    };
    let require_json = |errors: &mut Vec<FieldError>, key: &str| match at(object, &["data", key]) {
        None => errors.push(FieldError::required(&data.key(key), "")),
        Some(value) => {
            let text = STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default();
            if let Err(error) = serde_json::from_slice::<Value>(&text) {
                let what = "<secret contents redacted>";
                errors.push(FieldError::invalid(&data.key(key), what, error.to_string()));
            }
        }
    };
    match str_at(object, &["type"]) {
        "kubernetes.io/service-account-token" => {
            let annotation = "kubernetes.io/service-account.name";
            if str_at(object, &["metadata", "annotations", annotation]).is_empty() {
                let path = Path::new("metadata").child("annotations").key(annotation);
                errors.push(FieldError::required(&path, ""));
            }
        }
        "kubernetes.io/dockercfg" => require_json(&mut errors, ".dockercfg"),
        "kubernetes.io/dockerconfigjson" => require_json(&mut errors, ".dockerconfigjson"),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            require(&mut errors, "username");
            require(&mut errors, "password");
        }
        "kubernetes.io/ssh-auth" => require(&mut errors, "ssh-privatekey"),
        "kubernetes.io/tls" => {
            require(&mut errors, "tls.crt");
            require(&mut errors, "tls.key");
        }
        _ => {}
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn text_in_the_clear_becomes_data() {
        let mut secret = json!({"data": {"a": "MQ==", "b": "MQ=="}, "stringData": {"a": "2"}});
        SecretStrategy.default(&mut secret);
        assert_eq!(secret, json!({"data": {"a": "Mg==", "b": "MQ=="}, "type": "Opaque"}));
    }

    #[test]
    fn types_ask_for_their_keys() {
        let tls = json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}});
        assert_eq!(texts(&validate(&tls)), ["data[tls.key]: Required value"]);
        let docker = json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "eA=="}});
        assert!(
            texts(&validate(&docker))[0]
                .starts_with("data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": ")
        );
        let opaque = json!({"type": "Opaque"});
        assert_eq!(
            texts(&SecretStrategy.validate_update(&json!({"type": "other"}), &opaque)),
            ["type: Invalid value: \"other\": field is immutable"]
        );
    }
}
