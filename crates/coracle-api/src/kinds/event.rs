//! Events: one set of objects, served as `v1` and as `events.k8s.io/v1`, stored as `v1`.

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::catalogue::{Dependents, Strategy};
use crate::field::{FieldError, Path};
use crate::metadata;
use crate::names;
use crate::table::{Column, age_of};
use crate::tree::{at, int_at, is_empty, str_at};

/// What is special about Events of the core group.
pub(crate) struct CoreEventStrategy;

/// What is special about Events of the group `events.k8s.io`.
pub(crate) struct EventsEventStrategy;

static COLUMNS: &[Column] = &[
    Column::text("Last Seen", "The time at which the most recent occurrence of this event was recorded."),
    Column::text("Type", "Type of this event (Normal, Warning), new types could be added in the future"),
    Column::text(
        "Reason",
        "This should be a short, machine understandable string that gives the reason for the transition into \
         the object's current status.",
    ),
    Column::text("Object", "The object that this event is about."),
    Column::wide(
        "Subobject",
        "If referring to a piece of an object instead of an entire object, the path of that piece.",
    ),
    Column::wide(
        "Source",
        "The component reporting this event. Should be a short machine understandable string.",
    ),
    Column::text("Message", "A human-readable description of the status of this operation."),
    Column::wide("First Seen", "The time at which the event was first recorded."),
    Column::wide("Count", "The number of times this event has occurred."),
    Column { priority: 1, ..Column::NAME },
];

/// The names of a field in the stored form and in `events.k8s.io/v1`, where they differ.
const RENAMED: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

const LENGTH_MAX: usize = 128;
const NOTE_LENGTH_MAX: usize = 1024;

fn renamed(object: Value, api_version: &str, rename: impl Fn(&str) -> Option<&'static str>) -> Value {
    let Value::Object(map) = object else { return object };
    let mut out = Map::new();
    for (key, value) in map {
        let key = rename(&key).map_or(key, str::to_owned);
        out.insert(key, value);
    }
    if out.contains_key("apiVersion") {
        out.insert("apiVersion".into(), api_version.into());
    }
    Value::Object(out)
}

fn to_core(object: Value) -> Value {
    renamed(object, "v1", |key| RENAMED.iter().find(|(_, new)| *new == key).map(|(core, _)| *core))
}

fn to_events(object: Value) -> Value {
    renamed(object, "events.k8s.io/v1", |key| {
        RENAMED.iter().find(|(core, _)| *core == key).map(|(_, new)| *new)
    })
}

const CORE_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

const EVENTS_FIELDS: &[&str] = &[
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reason",
    "reportingController",
    "source",
    "type",
];

/// The values of [`CORE_FIELDS`], which are those of [`EVENTS_FIELDS`] too, of an Event in the stored form.
fn selectable(event: &Value, names: &'static [&'static str]) -> Vec<(&'static str, String)> {
    let about = |field: &str| str_at(event, &["involvedObject", field]);
    let source = match str_at(event, &["source", "component"]) {
        "" => str_at(event, &["reportingComponent"]),
        component => component,
    };
    let values = [
        about("kind"),
        about("namespace"),
        about("name"),
        about("uid"),
        about("apiVersion"),
        about("resourceVersion"),
        about("fieldPath"),
        str_at(event, &["reason"]),
        str_at(event, &["reportingComponent"]),
        source,
        str_at(event, &["type"]),
    ];
    names.iter().copied().zip(values.map(str::to_owned)).collect()
}

/// The cells of an Event in the stored form.
fn cells(event: &Value, now: Timestamp) -> Vec<Value> {
    let time = |path: &[&str]| at(event, path).filter(|v| !is_empty(Some(v)));
    let first = time(&["firstTimestamp"]).or_else(|| time(&["eventTime"]));
    let series = event.get("series");
    let last = if series.is_some() {
        time(&["series", "lastObservedTime"])
    } else {
        time(&["lastTimestamp"]).or(first)
    };
    let count = match series {
        Some(series) => int_at(series, &["count"]).unwrap_or(0),
        None => int_at(event, &["count"]).filter(|c| *c != 0).unwrap_or(1),
    };
    let kind = str_at(event, &["involvedObject", "kind"]).to_lowercase();
    let name = str_at(event, &["involvedObject", "name"]);
    let target = if name.is_empty() { kind } else { format!("{kind}/{name}") };
    let (component, host) = match str_at(event, &["source", "component"]) {
        "" => (str_at(event, &["reportingComponent"]), str_at(event, &["reportingInstance"])),
        component => (component, str_at(event, &["source", "host"])),
    };
    let source = if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") };
    vec![
        age_of(now, last).into(),
        str_at(event, &["type"]).into(),
        str_at(event, &["reason"]).into(),
        target.into(),
        str_at(event, &["involvedObject", "fieldPath"]).into(),
        source.into(),
        str_at(event, &["message"]).trim().into(),
        age_of(now, first).into(),
        count.into(),
        metadata::name(event).into(),
    ]
}

/// What every Event must say, in either form.
fn validate_any(event: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let namespace = metadata::namespace(event);
    let about = str_at(event, &["involvedObject", "namespace"]);
    let mismatch = |errors: &mut Vec<FieldError>| {
        let path = Path::new("involvedObject").child("namespace");
        errors.push(FieldError::invalid(&path, about, "does not match event.namespace"));
    };
    if is_empty(event.get("eventTime")) {
        let agrees = if about.is_empty() { namespace == "default" } else { namespace == about };
        if !agrees {
            mismatch(&mut errors);
        }
        return errors;
    }
    // Who sets eventTime speaks the newer form and keeps its rules.
    if about.is_empty() && namespace != "default" && namespace != "kube-system" {
        mismatch(&mut errors);
    }
    let controller = str_at(event, &["reportingComponent"]);
    let path = Path::new("reportingController");
    if controller.is_empty() {
        errors.push(FieldError::required(&path, ""));
    }
    errors.extend(
        names::qualified_name(controller).into_iter().map(|c| FieldError::invalid(&path, controller, c)),
    );
    for field in ["reportingInstance", "action", "reason"] {
        let value = str_at(event, &[field]);
        let path = Path::new(field);
        if value.is_empty() {
            errors.push(FieldError::required(&path, ""));
        }
        if value.len() > LENGTH_MAX {
            errors.push(FieldError::invalid(&path, "", format!("can have at most {LENGTH_MAX} characters")));
        }
    }
    if str_at(event, &["message"]).len() > NOTE_LENGTH_MAX {
        let path = Path::new("message");
        errors.push(FieldError::invalid(&path, "", format!("can have at most {NOTE_LENGTH_MAX} characters")));
    }
    errors
}

fn validate_series(event: &Value) -> Vec<FieldError> {
    let Some(series) = event.get("series") else { return Vec::new() };
    let path = Path::new("series");
    let mut errors = Vec::new();
    if int_at(series, &["count"]).unwrap_or(0) < 2 {
        errors.push(FieldError::invalid(&path.child("count"), "", "should be at least 2"));
    }
    if is_empty(series.get("lastObservedTime")) {
        errors.push(FieldError::required(&path.child("lastObservedTime"), ""));
    }
    errors
}

/// Writes out what upstream writes out although it says nothing.
fn write_out(event: &mut Value, source: &str, times: [&str; 3]) {
    let Some(map) = event.as_object_mut() else { return };
    for time in times {
        map.entry(time).or_insert(Value::Null);
    }
    map.entry(source).or_insert_with(|| Value::Object(Map::new()));
}

impl Strategy for CoreEventStrategy {
    fn dependents(&self) -> Dependents {
        Dependents::None
    }

    fn default(&self, event: &mut Value) {
        write_out(event, "source", ["eventTime", "firstTimestamp", "lastTimestamp"]);
    }

    fn validate_create(&self, event: &Value) -> Vec<FieldError> {
        validate_any(event)
    }

    fn validate_update(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
        validate_any(new)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        CORE_FIELDS
    }

    fn selectable_fields(&self, event: &Value) -> Vec<(&'static str, String)> {
        selectable(event, CORE_FIELDS)
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn row(&self, event: &Value, now: Timestamp) -> Vec<Value> {
        cells(event, now)
    }
}

impl Strategy for EventsEventStrategy {
    fn dependents(&self) -> Dependents {
        Dependents::None
    }

    fn default(&self, event: &mut Value) {
        let times = ["eventTime", "deprecatedFirstTimestamp", "deprecatedLastTimestamp"];
        write_out(event, "deprecatedSource", times);
    }

    fn validate_create(&self, event: &Value) -> Vec<FieldError> {
        let event = to_core(event.clone());
        let mut errors = validate_any(&event);
        errors.extend(validate_series(&event));
        if is_empty(event.get("eventTime")) {
            errors.push(FieldError::required(&Path::new("eventTime"), ""));
        }
        let kind = str_at(&event, &["type"]);
        if !matches!(kind, "Normal" | "Warning") {
            errors.push(FieldError::invalid(&Path::new("type"), "", format!("has invalid value: {kind}")));
        }
        for field in ["firstTimestamp", "lastTimestamp", "count", "source"] {
            let set = match event.get(field) {
                Some(Value::Number(count)) => count.as_i64() != Some(0),
                value => !is_empty(value),
            };
            if set {
                errors.push(FieldError::invalid(&Path::new(field), "", "needs to be unset"));
            }
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let (new, old) = (to_core(new.clone()), to_core(old.clone()));
        let mut errors = validate_any(&new);
        if new.get("series") != old.get("series") {
            errors.extend(validate_series(&new));
        }
        for (field, name) in [
            ("involvedObject", "involvedObject"),
            ("reason", "reason"),
            ("message", "message"),
            ("source", "source"),
            ("firstTimestamp", "firstTimestamp"),
            ("lastTimestamp", "lastTimestamp"),
            ("count", "count"),
            ("type", "type"),
            ("eventTime", "eventTime"),
            ("action", "action"),
            ("related", "related"),
            ("reportingComponent", "reportingController"),
            ("reportingInstance", "reportingInstance"),
        ] {
            let changed =
                new.get(field) != old.get(field) && !(is_empty(new.get(field)) && is_empty(old.get(field)));
            if changed {
                errors.push(metadata::immutable(&Path::new(name), new.get(field)));
            }
        }
        errors
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        EVENTS_FIELDS
    }

    fn selectable_fields(&self, event: &Value) -> Vec<(&'static str, String)> {
        selectable(&to_core(event.clone()), EVENTS_FIELDS)
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn row(&self, event: &Value, now: Timestamp) -> Vec<Value> {
        cells(&to_core(event.clone()), now)
    }

    fn to_storage(&self, event: Value) -> Value {
        to_core(event)
    }

    fn from_storage(&self, event: Value) -> Value {
        to_events(event)
    }

    fn stored_as_served(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn core() -> Value {
        json!({
            "kind": "Event", "apiVersion": "v1", "metadata": {"name": "e", "namespace": "default"},
            "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default", "fieldPath": "spec.containers{c}"},
            "reason": "Started", "message": "Container started\n", "type": "Normal", "count": 2,
            "source": {"component": "kubelet", "host": "n"},
            "firstTimestamp": "2020-01-01T00:00:00Z", "lastTimestamp": "2020-01-01T00:00:50Z",
        })
    }

    #[test]
    fn both_forms_say_the_same() {
        let event = to_events(core());
        assert_eq!(event["apiVersion"], "events.k8s.io/v1");
        assert_eq!(event["regarding"]["name"], "p");
        assert_eq!(event["note"], "Container started\n");
        assert_eq!(event["deprecatedCount"], 2);
        assert_eq!(to_core(event.clone()), core());
        let now = "2020-01-01T00:01:00Z".parse().unwrap();
        assert_eq!(EventsEventStrategy.row(&event, now), CoreEventStrategy.row(&core(), now));
    }

    #[test]
    fn the_table_is_upstreams() {
        let cells = cells(&core(), "2020-01-01T00:01:00Z".parse().unwrap());
        assert_eq!(
            json!(cells),
            json!([
                "10s",
                "Normal",
                "Started",
                "pod/p",
                "spec.containers{c}",
                "kubelet, n",
                "Container started",
                "60s",
                2,
                "e"
            ])
        );
    }

    #[test]
    fn namespaces_agree_and_the_newer_form_is_strict() {
        let mut event = core();
        assert_eq!(CoreEventStrategy.validate_create(&event), []);
        event["involvedObject"]["namespace"] = "other".into();
        assert_eq!(
            CoreEventStrategy.validate_create(&event)[0].to_string(),
            "involvedObject.namespace: Invalid value: \"other\": does not match event.namespace"
        );
        let new = json!({
            "metadata": {"name": "e", "namespace": "default"}, "eventTime": "2020-01-01T00:00:00Z",
            "regarding": {"kind": "Pod", "namespace": "default"}, "type": "Normal", "action": "a",
            "reason": "r", "reportingController": "c", "reportingInstance": "i",
        });
        assert_eq!(EventsEventStrategy.validate_create(&new), []);
        let mut changed = new.clone();
        changed["note"] = "x".into();
        assert_eq!(
            EventsEventStrategy.validate_update(&changed, &new)[0].to_string(),
            "message: Invalid value: \"x\": field is immutable"
        );
    }
}
