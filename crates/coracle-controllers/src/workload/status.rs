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
    let (old, new) = (old.map(as_map).unwrap_or_default(), as_map(new));
    let mut changes = Map::new();
    for (field, value) in &new {
        if old.get(field) != Some(value) {
            changes.insert(field.clone(), value.clone());
        }
    }
    for field in old.keys().filter(|field| !new.contains_key(*field)) {
        changes.insert(field.clone(), Value::Null);
    }
    (!changes.is_empty()).then(|| json!({ "metadata": { "uid": uid }, "status": changes }))
}
