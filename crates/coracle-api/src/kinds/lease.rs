//! Leases.

use jiff::Timestamp;
use serde_json::Value;

use crate::catalogue::Strategy;
use crate::field::{FieldError, Path};
use crate::metadata;
use crate::table::Column;
use crate::tree::{at, int_at, str_at};

/// What is special about Leases.
pub(crate) struct LeaseStrategy;

static COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Holder", "holderIdentity contains the identity of the holder of a current lease."),
    Column::AGE,
];

impl Strategy for LeaseStrategy {
    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        validate(object)
    }

    fn validate_update(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
        validate(new)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            metadata::name(object).into(),
            str_at(object, &["spec", "holderIdentity"]).into(),
            super::age(object, now),
        ]
    }
}

fn validate(object: &Value) -> Vec<FieldError> {
    let spec = Path::new("spec");
    let mut errors = Vec::new();
    if let Some(seconds) = int_at(object, &["spec", "leaseDurationSeconds"]).filter(|s| *s <= 0) {
        let path = spec.child("leaseDurationSeconds");
        errors.push(FieldError::invalid(&path, seconds, "must be greater than 0"));
    }
    if let Some(count) = int_at(object, &["spec", "leaseTransitions"]).filter(|c| *c < 0) {
        let path = spec.child("leaseTransitions");
        errors.push(FieldError::invalid(&path, count, "must be greater than or equal to 0"));
    }
    if at(object, &["spec", "holderIdentity"]).and_then(Value::as_str) == Some("") {
        errors.push(FieldError::invalid(&spec.child("holderIdentity"), "", "must not be empty"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_and_counts_are_checked() {
        let errors = validate(&json!({"spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1}}));
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
                "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0"
            ]
        );
    }
}
