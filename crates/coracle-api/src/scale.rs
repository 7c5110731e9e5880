//! The subresource `scale`: how many replicas an object is to have, in one form for all kinds that have some.

use serde_json::{Map, Value, json};

use crate::catalogue::{self, Resource};
use crate::field::FieldError;
use crate::selector::LabelSelector;
use crate::tree::{self, int_at};

/// The row of Scale: what is sent to the subresource and answered by it.
#[must_use]
pub fn row() -> &'static Resource {
    let [scale, ..] = catalogue::carried();
    scale
}

/// The Scale of an object.
#[must_use]
pub fn of(object: &Value) -> Value {
    let mut kept = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = tree::at(object, &["metadata", field]) {
            kept.insert(field.to_owned(), value.clone());
        }
    }
    let mut spec = Map::new();
    if let Some(replicas) = int_at(object, &["spec", "replicas"]).filter(|replicas| *replicas != 0) {
        spec.insert("replicas".to_owned(), replicas.into());
    }
    let mut status = json!({ "replicas": int_at(object, &["status", "replicas"]).unwrap_or(0) });
    let selector = tree::at(object, &["spec", "selector"]).map(LabelSelector::from_object);
    if let Some(Ok(selector)) = selector {
        status["selector"] = selector.to_string().into();
    }
    json!({ "kind": "Scale", "apiVersion": row().api_version(), "metadata": kept, "spec": spec, "status": status })
}

/// The object with as many replicas as `scale` says, and with its preconditions: a Scale that names a revision or a
/// UID is about that state of that object.
///
/// # Errors
/// What is wrong with `scale`.
pub fn apply(object: &Value, scale: &Value) -> Result<Value, Vec<FieldError>> {
    let errors = row().strategy.validate_update(scale, object);
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut scaled = object.clone();
    if let Some(spec) = tree::object_in(&mut scaled, "spec") {
        spec.insert("replicas".to_owned(), int_at(scale, &["spec", "replicas"]).unwrap_or(0).into());
    }
    if let Some(meta) = tree::object_in(&mut scaled, "metadata") {
        for field in ["resourceVersion", "uid"] {
            let stated = tree::str_at(scale, &["metadata", field]);
            if stated.is_empty() {
                meta.shift_remove(field);
            } else {
                meta.insert(field.to_owned(), stated.into());
            }
        }
    }
    Ok(scaled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_shows_numbers_and_the_selector_and_changes_replicas_alone() {
        let object = json!({
            "kind": "Deployment", "metadata": {"name": "a", "uid": "u", "resourceVersion": "7", "labels": {"l": "1"}},
            "spec": {"replicas": 2, "paused": true, "selector": {
                "matchLabels": {"b": "1", "a": "2"}, "matchExpressions": [{"key": "c", "operator": "Exists"}]
            }},
            "status": {"replicas": 1},
        });
        let scale = of(&object);
        assert_eq!(
            scale,
            json!({
                "kind": "Scale", "apiVersion": "autoscaling/v1",
                "metadata": {"name": "a", "uid": "u", "resourceVersion": "7"},
                "spec": {"replicas": 2}, "status": {"replicas": 1, "selector": "a=2,b=1,c"},
            })
        );
        let mut expected = object.clone();
        expected["spec"]["replicas"] = 0.into();
        let none = json!({"metadata": {"name": "a", "uid": "u", "resourceVersion": "7"}, "spec": {}});
        assert_eq!(apply(&object, &none).unwrap(), expected);
        let errors = apply(&object, &json!({"spec": {"replicas": -1}})).unwrap_err();
        assert_eq!(
            errors[0].to_string(),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0"
        );
    }
}
