//! Scale, the kind of the subresource `scale`.

use jiff::Timestamp;
use serde_json::Value;

use crate::catalogue::Strategy;
use crate::field::{FieldError, Path};
use crate::metadata;
use crate::table::Column;
use crate::tree::int_at;

/// What is special about Scales.
pub(crate) struct ScaleStrategy;

static COLUMNS: &[Column] = &[
    Column::NAME,
    Column::number("Desired", "replicas is the desired number of instances for the scaled object."),
    Column::number("Available", "replicas is the actual number of observed instances of the scaled object."),
    Column::AGE,
];

impl Strategy for ScaleStrategy {
    fn validate_update(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
        super::workload::not_negative(
            new.get("spec").unwrap_or(&Value::Null),
            &Path::new("spec"),
            &["replicas"],
        )
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let replicas = |part: &str| Value::from(int_at(object, &[part, "replicas"]).unwrap_or(0));
        vec![metadata::name(object).into(), replicas("spec"), replicas("status"), super::age(object, now)]
    }
}
