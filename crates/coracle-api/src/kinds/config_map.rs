//! ConfigMaps.

use jiff::Timestamp;
use serde_json::Value;

use crate::catalogue::Strategy;
use crate::field::{FieldError, Path};
use crate::metadata;
use crate::names;
use crate::table::Column;
use crate::tree::{at, entries_at, true_at};

/// Most bytes of the data of a ConfigMap or Secret.
pub(crate) const DATA_BYTES_MAX: usize = 1024 * 1024;

/// What is special about ConfigMaps.
pub(crate) struct ConfigMapStrategy;

static COLUMNS: &[Column] =
    &[Column::NAME, Column::text("Data", "Data contains the configuration data."), Column::AGE];

impl Strategy for ConfigMapStrategy {
    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        validate(object)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = immutable(new, old, &["data", "binaryData"]);
        errors.extend(validate(new));
        errors
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let count = entries_at(object, &["data"]).count() + entries_at(object, &["binaryData"]).count();
        vec![metadata::name(object).into(), count.into(), super::age(object, now)]
    }
}

/// What an object with `immutable: true` may no longer change.
pub(crate) fn immutable(new: &Value, old: &Value, fields: &[&str]) -> Vec<FieldError> {
    if !true_at(old, &["immutable"]) {
        return Vec::new();
    }
    let forbidden =
        |field: &str| FieldError::forbidden(&Path::new(field), "field is immutable when `immutable` is set");
    let mut errors = Vec::new();
    if !true_at(new, &["immutable"]) {
        errors.push(forbidden("immutable"));
    }
    errors.extend(fields.iter().filter(|f| new.get(**f) != old.get(**f)).map(|f| forbidden(f)));
    errors
}

/// The number of bytes that base64 text stands for.
pub(crate) fn decoded_bytes(text: &str) -> usize {
    text.trim_end_matches('=').len() * 3 / 4
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut total = 0;
    for (key, value) in entries_at(object, &["data"]) {
        let path = Path::new("data").key(key);
        errors
            .extend(names::config_key(key).into_iter().map(|c| FieldError::invalid(&path, key.as_str(), c)));
        if at(object, &["binaryData", key]).is_some() {
            errors.push(FieldError::invalid(&path, key.as_str(), "duplicate of key present in binaryData"));
        }
        total += value.as_str().map_or(0, str::len);
    }
    for (key, value) in entries_at(object, &["binaryData"]) {
        let path = Path::new("binaryData").key(key);
        errors
            .extend(names::config_key(key).into_iter().map(|c| FieldError::invalid(&path, key.as_str(), c)));
        total += value.as_str().map_or(0, decoded_bytes);
    }
    if total > DATA_BYTES_MAX {
        // Upstream names no field here.
        errors.push(FieldError::too_long(&Path::new("[]"), DATA_BYTES_MAX));
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
    fn keys_are_file_names() {
        let errors =
            validate(&json!({"data": {"ok.txt": "", "not ok": "", "x": ""}, "binaryData": {"x": ""}}));
        assert_eq!(
            texts(&errors),
            [
                "data[not ok]: Invalid value: \"not ok\": a valid config key must consist of alphanumeric \
                 characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for \
                 validation is '[-._a-zA-Z0-9]+')",
                "data[x]: Invalid value: \"x\": duplicate of key present in binaryData",
            ]
        );
        let big = json!({"data": {"x": "x".repeat(DATA_BYTES_MAX + 1)}});
        assert_eq!(texts(&validate(&big)), ["[]: Too long: may not be more than 1048576 bytes"]);
    }

    #[test]
    fn an_immutable_one_stays_as_it_is() {
        let old = json!({"immutable": true, "data": {"a": "1"}});
        assert_eq!(
            texts(&ConfigMapStrategy.validate_update(&json!({"data": {"a": "2"}}), &old)),
            [
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set"
            ]
        );
        assert_eq!(texts(&ConfigMapStrategy.validate_update(&old, &old)), Vec::<String>::new());
    }
}
