//! Bindings: the wish that a Pod gets a node. They are carried out, never stored.

use jiff::Timestamp;
use serde_json::Value;

use crate::catalogue::Strategy;
use crate::field::FieldError;
use crate::table::Column;

/// What is special about Bindings.
pub(crate) struct BindingStrategy;

impl Strategy for BindingStrategy {
    fn validate_create(&self, binding: &Value) -> Vec<FieldError> {
        super::pod::validate_binding(binding)
    }

    fn columns(&self) -> &'static [Column] {
        super::NAME_AND_AGE
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        super::name_and_age(object, now)
    }
}
