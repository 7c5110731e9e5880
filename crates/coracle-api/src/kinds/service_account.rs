//! ServiceAccounts.

use jiff::Timestamp;
use serde_json::Value;

use crate::catalogue::Strategy;
use crate::metadata;
use crate::table::Column;
use crate::tree::list_at;

/// What is special about ServiceAccounts.
pub(crate) struct ServiceAccountStrategy;

static COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text(
        "Secrets",
        "Secrets is a list of the secrets in the same namespace that pods running using this ServiceAccount \
         are allowed to use.",
    ),
    Column::AGE,
];

impl Strategy for ServiceAccountStrategy {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let secrets = list_at(object, &["secrets"]).len();
        vec![metadata::name(object).into(), secrets.into(), super::age(object, now)]
    }
}
