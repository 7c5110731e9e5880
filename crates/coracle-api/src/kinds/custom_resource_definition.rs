//! CustomResourceDefinitions, of which there are none until they are built: they can be listed, and no more.

use jiff::Timestamp;
use serde_json::Value;

use crate::catalogue::Strategy;
use crate::metadata;
use crate::table::Column;
use crate::tree;

/// What is special about CustomResourceDefinitions.
pub(crate) struct CustomResourceDefinitionStrategy;

static COLUMNS: &[Column] = &[Column::NAME, Column { name: "Created At", kind: "date", ..Column::AGE }];

impl Strategy for CustomResourceDefinitionStrategy {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn row(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        let created = tree::str_at(object, &["metadata", "creationTimestamp"]);
        vec![metadata::name(object).into(), created.into()]
    }
}
