//! Services.

use jiff::Timestamp;
use serde_json::Value;

use crate::catalogue::Strategy;
use crate::table::Column;

/// What is special about Services.
pub(crate) struct ServiceStrategy;

impl Strategy for ServiceStrategy {
    fn columns(&self) -> &'static [Column] {
        super::NAME_AND_AGE
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        super::name_and_age(object, now)
    }
}
