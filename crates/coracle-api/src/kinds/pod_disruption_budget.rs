//! PodDisruptionBudgets, and Evictions, which are measured by them.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::workload;
use crate::catalogue::Strategy;
use crate::field::{FieldError, Path};
use crate::metadata;
use crate::table::Column;
use crate::tree::{self, int_at, str_at};

/// What is special about PodDisruptionBudgets.
pub(crate) struct PodDisruptionBudgetStrategy;

static COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Min Available", "The minimum number of pods that must be available."),
    Column::text("Max Unavailable", "The maximum number of pods that may be unavailable."),
    Column::number("Allowed Disruptions", "Calculated number of pods that may be disrupted at this time."),
    Column::AGE,
];

impl Strategy for PodDisruptionBudgetStrategy {
    fn prepare_for_create(&self, object: &mut Value) {
        let status = json!({
            "disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0,
        });
        tree::set_or_remove(object, "status", Some(status));
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        tree::set_or_remove(new, "status", old.get("status").cloned());
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        validate(object)
    }

    fn validate_update(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
        validate(new)
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
        let counts = ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];
        let status = new.get("status").unwrap_or(&Value::Null);
        workload::not_negative(status, &Path::new("status"), &counts)
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let said = |field: &str| match tree::at(object, &["spec", field]) {
            None | Some(Value::Null) => "N/A".into(),
            Some(Value::String(text)) => text.as_str().into(),
            Some(number) => number.to_string().into(),
        };
        vec![
            metadata::name(object).into(),
            said("minAvailable"),
            said("maxUnavailable"),
            int_at(object, &["status", "disruptionsAllowed"]).unwrap_or(0).into(),
            super::age(object, now),
        ]
    }
}

fn validate(object: &Value) -> Vec<FieldError> {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let said = |field: &str| spec.get(field).filter(|value| !value.is_null());
    let mut errors = Vec::new();
    if said("minAvailable").is_some() && said("maxUnavailable").is_some() {
        let why = "minAvailable and maxUnavailable cannot be both set";
        errors.push(FieldError::invalid(&path, spec.clone(), why));
    }
    for field in ["minAvailable", "maxUnavailable"] {
        if let Some(value) = said(field) {
            let path = path.child(field);
            errors.extend(workload::int_or_percent(value, &path));
            errors.extend(workload::at_most_all(value, &path));
        }
    }
    if let Some(selector) = said("selector") {
        errors.extend(workload::label_selector(selector, &path.child("selector")));
    }
    if said("unhealthyPodEvictionPolicy").is_some() {
        let (known, policy) =
            (["AlwaysAllow", "IfHealthyBudget"], str_at(spec, &["unhealthyPodEvictionPolicy"]));
        if !known.contains(&policy) {
            let path = path.child("unhealthyPodEvictionPolicy");
            errors.push(FieldError::not_supported(&path, policy, &known));
        }
    }
    errors
}

/// What is special about Evictions: they are carried out, never stored.
pub(crate) struct EvictionStrategy;

impl Strategy for EvictionStrategy {
    fn columns(&self) -> &'static [Column] {
        super::NAME_AND_AGE
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        super::name_and_age(object, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue;

    fn complaints(spec: &Value) -> String {
        let errors = validate(&json!({ "spec": spec }));
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn a_budget_is_one_number_or_share_for_pods_that_are_selected() {
        let percent = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or \
                       '93%', regex used for validation is '[0-9]+%')";
        for (spec, expected) in [
            (json!({}), String::new()),
            (json!({ "minAvailable": 0, "selector": {} }), String::new()),
            (json!({ "maxUnavailable": "100%" }), String::new()),
            (
                json!({ "minAvailable": 1, "maxUnavailable": 1 }),
                "spec: Invalid value: {\"minAvailable\":1,\"maxUnavailable\":1}: minAvailable and maxUnavailable \
                 cannot be both set"
                    .to_owned(),
            ),
            (
                json!({ "minAvailable": -1 }),
                "spec.minAvailable: Invalid value: -1: must be greater than or equal to 0".to_owned(),
            ),
            (
                json!({ "maxUnavailable": "half" }),
                format!("spec.maxUnavailable: Invalid value: \"half\": {percent}"),
            ),
            (
                json!({ "maxUnavailable": "101%" }),
                "spec.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%".to_owned(),
            ),
            (
                json!({ "unhealthyPodEvictionPolicy": "Never" }),
                "spec.unhealthyPodEvictionPolicy: Unsupported value: \"Never\": supported values: \"AlwaysAllow\", \
                 \"IfHealthyBudget\""
                    .to_owned(),
            ),
            (
                json!({ "selector": { "matchExpressions": [{ "key": "a", "operator": "In" }] } }),
                "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' \
                 or 'NotIn'"
                    .to_owned(),
            ),
        ] {
            assert_eq!(complaints(&spec), expected, "{spec}");
        }
    }

    #[test]
    fn a_budget_is_made_with_an_empty_status_and_counts_its_changes() {
        let row = catalogue::find("policy", "v1", "poddisruptionbudgets").unwrap();
        let mut old =
            json!({ "metadata": { "name": "b" }, "spec": { "minAvailable": 1 }, "status": { "x": 1 } });
        row.prepare_for_create(&mut old);
        assert_eq!(old["metadata"]["generation"], 1);
        assert_eq!(old["status"]["disruptionsAllowed"], 0);
        assert_eq!(old["status"].get("x"), None);
        let mut new = old.clone();
        new["spec"]["minAvailable"] = "50%".into();
        new["status"] = json!({});
        row.prepare_for_update(&mut new, &old);
        assert_eq!((&new["metadata"]["generation"], &new["status"]), (&json!(2), &old["status"]));
        let now = "2030-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(row.strategy.row(&new, now)[1..4], [json!("50%"), json!("N/A"), json!(0)]);
    }
}
