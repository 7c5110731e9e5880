//! How a status is written: only what differs, and never over another object of the same name.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::serde::Serialize;
use serde_json::{Map, Value, json};

/// A time as objects carry it: whole seconds.
pub(crate) fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// A merge patch that makes the status `old` of the object with this UID the status `new`; `None` if they are one.
pub(crate) fn patch<S: Serialize>(uid: Option<&str>, old: Option<&S>, new: &S) -> Option<Value> {
    let as_map = |status: &S| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let changes = difference(&old.map(as_map).unwrap_or_default(), &as_map(new));
    (!changes.is_empty()).then(|| json!({ "metadata": { "uid": uid }, "status": changes }))
}

/// A merge patch from one object to another. What is gone is null, at any depth: a merge alone removes nothing.
pub(crate) fn difference(old: &Map<String, Value>, new: &Map<String, Value>) -> Map<String, Value> {
    let mut changes = Map::new();
    for (field, value) in new {
        match (old.get(field), value) {
            (Some(was), is) if was == is => {}
            (Some(Value::Object(was)), Value::Object(is)) => {
                changes.insert(field.clone(), difference(was, is).into());
            }
            _ => {
                changes.insert(field.clone(), value.clone());
            }
        }
    }
    for field in old.keys().filter(|field| !new.contains_key(*field)) {
        changes.insert(field.clone(), Value::Null);
    }
    changes
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1::JobStatus;

    use super::*;

    #[test]
    fn what_is_gone_is_removed_at_any_depth() {
        let status = |value: Value| serde_json::from_value::<JobStatus>(value).unwrap();
        let old = status(json!({"active": 1, "failed": 1, "uncountedTerminatedPods": {"failed": ["a"]}}));
        let new = status(json!({"failed": 2, "uncountedTerminatedPods": {}}));
        let patch = patch(Some("u"), Some(&old), &new).unwrap();
        assert_eq!(
            patch,
            json!({
                "metadata": {"uid": "u"},
                "status": {"active": null, "failed": 2, "uncountedTerminatedPods": {"failed": null}},
            })
        );
        assert_eq!(super::patch(None, Some(&new), &new), None);
    }
}
