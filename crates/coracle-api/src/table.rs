//! `meta.k8s.io/v1` Tables: what `kubectl get` prints.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::catalogue::Resource;

/// One column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// The heading.
    pub name: &'static str,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: &'static str,
    /// `name` for the column of names, else empty.
    pub format: &'static str,
    /// For machines that show columns.
    pub description: &'static str,
    /// 0 is always shown, 1 only in wide output.
    pub priority: i32,
}

impl Column {
    /// A column of text that is always shown.
    #[must_use]
    pub const fn text(name: &'static str, description: &'static str) -> Self {
        Column { name, kind: "string", format: "", description, priority: 0 }
    }

    /// A column of numbers that is always shown.
    #[must_use]
    pub const fn number(name: &'static str, description: &'static str) -> Self {
        Column { name, kind: "integer", format: "", description, priority: 0 }
    }

    /// A column of text that only wide output shows.
    #[must_use]
    pub const fn wide(name: &'static str, description: &'static str) -> Self {
        Column { name, kind: "string", format: "", description, priority: 1 }
    }

    /// The column of names, the first of nearly every table.
    pub const NAME: Column = Column {
        name: "Name",
        kind: "string",
        format: "name",
        description: "Name must be unique within a namespace. Is required when creating resources, although \
                      some resources may allow a client to request the generation of an appropriate name \
                      automatically. Name is primarily intended for creation idempotence and configuration \
                      definition. Cannot be updated. More info: \
                      https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names",
        priority: 0,
    };

    /// The column of ages.
    pub const AGE: Column = Column {
        name: "Age",
        kind: "string",
        format: "",
        description: "CreationTimestamp is a timestamp representing the server time when this object was \
                      created. It is not guaranteed to be set in happens-before order across separate \
                      operations. Clients may not set this value. It is represented in RFC3339 form and is \
                      in UTC.",
        priority: 0,
    };
}

/// What a row says of its object beyond its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowCondition {
    /// As `Completed`.
    pub kind: &'static str,
    /// As `True`.
    pub status: &'static str,
    /// As `Succeeded`.
    pub reason: &'static str,
    /// In words.
    pub message: &'static str,
}

/// How much of each object goes into its row (`includeObject`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata, as `PartialObjectMetadata`.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

/// The table of `objects`; `list_metadata` is the `metadata` of the list it stands for. The column
/// definitions are left out of the second and later tables of one watch.
#[must_use]
pub fn render(
    resource: &Resource,
    objects: &[&Value],
    include: IncludeObject,
    with_columns: bool,
    list_metadata: &Value,
    now: Timestamp,
) -> Value {
    let columns: Vec<Value> = if with_columns {
        resource
            .strategy
            .columns()
            .iter()
            .map(|column| {
                json!({
                    "name": column.name,
                    "type": column.kind,
                    "format": column.format,
                    "description": column.description,
                    "priority": column.priority,
                })
            })
            .collect()
    } else {
        Vec::new()
    };
    let rows: Vec<Value> = objects.iter().map(|object| row(resource, object, include, now)).collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": list_metadata,
        "columnDefinitions": if with_columns { Value::Array(columns) } else { Value::Null },
        "rows": rows,
    })
}

fn row(resource: &Resource, object: &Value, include: IncludeObject, now: Timestamp) -> Value {
    let mut out = json!({ "cells": resource.strategy.row(object, now) });
    let conditions: Vec<Value> = resource
        .strategy
        .row_conditions(object)
        .iter()
        .map(|c| json!({ "type": c.kind, "status": c.status, "reason": c.reason, "message": c.message }))
        .collect();
    if !conditions.is_empty() {
        out["conditions"] = conditions.into();
    }
    match include {
        // The field stays, empty, as upstream writes it.
        IncludeObject::None => out["object"] = Value::Null,
        IncludeObject::Metadata => {
            out["object"] = json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": object.get("metadata").cloned().unwrap_or_default(),
            });
        }
        IncludeObject::Object => out["object"] = object.clone(),
    }
    out
}

/// How long ago `then` was, as kubectl prints ages; a missing time is `<unknown>`.
#[must_use]
pub fn age(now: Timestamp, then: Option<Timestamp>) -> String {
    match then {
        None => "<unknown>".to_owned(),
        Some(then) => human_duration(now.as_second() - then.as_second()),
    }
}

/// The age of an object from a `metadata.creationTimestamp`-like text.
#[must_use]
pub fn age_of(now: Timestamp, then: Option<&Value>) -> String {
    age(now, then.and_then(Value::as_str).and_then(|text| text.parse().ok()))
}

/// A number of seconds in at most two units.
#[must_use]
pub fn human_duration(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    let two = |value: i64, unit: i64, name: &str, rest: i64, rest_name: &str| {
        let (whole, part) = (value / unit, value % unit / rest);
        if part == 0 { format!("{whole}{name}") } else { format!("{whole}{name}{part}{rest_name}") }
    };
    match seconds {
        // Clocks of two machines differ by a little.
        -1 => "0s".to_owned(),
        i64::MIN..=-2 => "<invalid>".to_owned(),
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => two(s, MINUTE, "m", 1, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => two(s, HOUR, "h", MINUTE, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => two(s, DAY, "d", HOUR, "h"),
        s if s < 2 * YEAR => format!("{}d", s / DAY),
        s if s < 8 * YEAR => two(s, YEAR, "y", DAY, "d"),
        s => format!("{}y", s / YEAR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_at_most_two_units() {
        let (minute, hour, day, year) = (60, 3600, 86400, 365 * 86400);
        for (seconds, text) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (2 * minute, "2m"),
            (2 * minute + 5, "2m5s"),
            (10 * minute + 5, "10m"),
            (179 * minute, "179m"),
            (3 * hour, "3h"),
            (3 * hour + 5 * minute, "3h5m"),
            (8 * hour + 5 * minute, "8h"),
            (47 * hour, "47h"),
            (2 * day, "2d"),
            (2 * day + 3 * hour, "2d3h"),
            (8 * day + hour, "8d"),
            (729 * day, "729d"),
            (2 * year + day, "2y1d"),
            (9 * year + day, "9y"),
        ] {
            assert_eq!(human_duration(seconds), text);
        }
        assert_eq!(age(Timestamp::UNIX_EPOCH, None), "<unknown>");
    }
}
