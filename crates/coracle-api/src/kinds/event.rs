//! CoreEvents.

use jiff::Timestamp;
use serde_json::Value;

use crate::catalogue::Strategy;
use crate::table::Column;

/// What is special about CoreEvents.
pub(crate) struct CoreEventStrategy;

impl Strategy for CoreEventStrategy {
    fn columns(&self) -> &'static [Column] {
        super::NAME_AND_AGE
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        super::name_and_age(object, now)
    }
}
/// What is special about EventsEvents.
pub(crate) struct EventsEventStrategy;

impl Strategy for EventsEventStrategy {
    fn columns(&self) -> &'static [Column] {
        super::NAME_AND_AGE
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        super::name_and_age(object, now)
    }
}
