//! ReplicaSets.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::pod::template;
use super::workload;
use crate::catalogue::Strategy;
use crate::field::{FieldError, Path};
use crate::metadata;
use crate::table::Column;
use crate::tree::{self, at, int_at, object_in};

/// What is special about ReplicaSets.
pub(crate) struct ReplicaSetStrategy;

static COLUMNS: &[Column] = &[
    Column::NAME,
    Column::number("Desired", "Replicas is the number of desired pods."),
    Column::number("Current", "Replicas is the most recently observed number of non-terminating pods."),
    Column::number(
        "Ready",
        "The number of non-terminating pods targeted by this ReplicaSet with a Ready Condition.",
    ),
    Column::AGE,
    template::CONTAINERS,
    template::IMAGES,
    workload::SELECTOR,
];

/// Numbers of a status that count Pods.
const COUNTS: [&str; 5] =
    ["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "terminatingReplicas"];

impl Strategy for ReplicaSetStrategy {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object_in(object, "spec") else { return };
        tree::set_default(spec, "replicas", 1);
        if let Some(template) = spec.get_mut("template") {
            template::default(template);
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set_or_remove(object, "status", Some(json!({ "replicas": 0 })));
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        tree::set_or_remove(new, "status", old.get("status").cloned());
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        validate(object)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = validate(new);
        let spec = |object: &Value| object.get("spec").cloned().unwrap_or_default();
        errors.extend(workload::unchanged(&spec(new), &spec(old), &Path::new("spec"), "selector"));
        errors
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
        let path = Path::new("status");
        let status = new.get("status").unwrap_or(&Value::Null);
        let mut errors = workload::not_negative(status, &path, &COUNTS);
        errors.extend(workload::not_negative(status, &path, &["observedGeneration"]));
        let count = |field: &str| int_at(status, &[field]).unwrap_or(0);
        for (field, than) in [
            ("fullyLabeledReplicas", "replicas"),
            ("readyReplicas", "replicas"),
            ("availableReplicas", "replicas"),
            ("availableReplicas", "readyReplicas"),
        ] {
            if count(field) > count(than) {
                let why = format!("cannot be greater than {than}");
                errors.push(FieldError::invalid(&path.child(field), count(field), why));
            }
        }
        errors
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = workload::template_warnings(object, old, &["spec", "template"]);
        if old.is_none() {
            out.extend(workload::name_warning(object));
        }
        out
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["status.replicas"]
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let replicas = int_at(object, &["status", "replicas"]).unwrap_or(0);
        vec![("status.replicas", replicas.to_string())]
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let count = |path: [&str; 2]| Value::from(int_at(object, &path).unwrap_or(0));
        let [containers, images] = template::cells(at(object, &["spec", "template"]));
        vec![
            metadata::name(object).into(),
            count(["spec", "replicas"]),
            count(["status", "replicas"]),
            count(["status", "readyReplicas"]),
            super::age(object, now),
            containers,
            images,
            workload::selector_cell(at(object, &["spec", "selector"])),
        ]
    }
}

fn validate(object: &Value) -> Vec<FieldError> {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = workload::not_negative(spec, &path, &["replicas", "minReadySeconds"]);
    errors.extend(workload::replicated(spec, &path));
    errors
}
