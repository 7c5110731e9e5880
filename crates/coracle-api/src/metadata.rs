//! `ObjectMeta`: what holds for the metadata of every kind.

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::catalogue::NameCheck;
use crate::field::{FieldError, Path};
use crate::names;
use crate::tree;

/// Most bytes that the keys and values of all annotations of an object have together.
pub const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

/// The finalizers that deletion itself sets.
const DELETION_FINALIZERS: [&str; 2] = ["orphan", "foregroundDeletion"];

/// `metadata.name`; empty if there is none.
#[must_use]
pub fn name(object: &Value) -> &str {
    tree::str_at(object, &["metadata", "name"])
}

/// `metadata.namespace`; empty if there is none.
#[must_use]
pub fn namespace(object: &Value) -> &str {
    tree::str_at(object, &["metadata", "namespace"])
}

/// Whether the object is being deleted.
#[must_use]
pub fn is_deleting(object: &Value) -> bool {
    !tree::is_empty(tree::at(object, &["metadata", "deletionTimestamp"]))
}

/// Clears what a user may not say about a new object's metadata. Name, uid and creation time come from
/// outside, because chance and time do.
pub(crate) fn prepare_for_create(object: &mut Value, has_generation: bool) {
    let Some(metadata) = tree::object_in(object, "metadata") else { return };
    for field in
        ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion", "generation"]
    {
        metadata.shift_remove(field);
    }
    drop_empty(metadata);
    if has_generation {
        metadata.insert("generation".into(), 1.into());
    }
}

fn drop_empty(metadata: &mut Map<String, Value>) {
    metadata.retain(|_, value| !tree::is_empty(Some(value)));
}

/// Puts back what nobody may change by an update: what an update leaves out is taken from the old object,
/// what it may not set is restored, and what it contradicts is left for [`validate_update`] to refuse.
pub(crate) fn prepare_for_update(new: &mut Value, old: &Value) {
    let old_metadata = old.get("metadata").and_then(Value::as_object);
    let old_field = |field: &str| old_metadata.and_then(|m| m.get(field)).cloned();
    let Some(metadata) = tree::object_in(new, "metadata") else { return };
    metadata.shift_remove("selfLink");
    // Deletion is asked for by DELETE alone; the generation is counted here alone; the time of creation is a fact,
    // whatever a manifest that was once read from a server says.
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "generation", "creationTimestamp"] {
        restore(metadata, field, old_field(field));
    }
    for field in ["uid", "generateName"] {
        if tree::is_empty(metadata.get(field)) {
            restore(metadata, field, old_field(field));
        }
    }
    drop_empty(metadata);
}

fn restore(metadata: &mut Map<String, Value>, field: &str, value: Option<Value>) {
    match value {
        Some(value) => {
            metadata.insert(field.to_owned(), value);
        }
        None => {
            metadata.shift_remove(field);
        }
    }
}

/// Adds one to `metadata.generation` if the spec differs.
pub(crate) fn count_generation(new: &mut Value, old: &Value) {
    if new.get("spec") == old.get("spec") {
        return;
    }
    bump_generation(new);
}

/// Adds one to `metadata.generation`.
pub fn bump_generation(object: &mut Value) {
    if let Some(metadata) = tree::object_in(object, "metadata") {
        let generation = metadata.get("generation").and_then(Value::as_i64).unwrap_or(0);
        metadata.insert("generation".into(), (generation + 1).into());
    }
}

/// Marks an object as being deleted, to go within `grace_seconds`, or shortens the time it still has.
///
/// The time of deletion never moves into the past: who asks for less than has passed already gets one second.
pub fn mark_deleted(object: &mut Value, grace_seconds: i64, now: Timestamp) {
    let earlier: Option<(Timestamp, i64)> = tree::at(object, &["metadata", "deletionTimestamp"])
        .and_then(Value::as_str)
        .and_then(|text| text.parse().ok())
        .map(|at| (at, tree::int_at(object, &["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0)));
    let mut grace = grace_seconds;
    let at = match earlier {
        None => {
            bump_generation_if_counted(object);
            plus_seconds(now, grace)
        }
        Some((at, earlier_grace)) => {
            let moved = plus_seconds(at, grace - earlier_grace);
            if moved < now && grace > 0 {
                grace = 1;
            }
            moved.max(now)
        }
    };
    let Some(metadata) = tree::object_in(object, "metadata") else { return };
    metadata.insert("deletionTimestamp".into(), rfc3339(at).into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
}

fn bump_generation_if_counted(object: &mut Value) {
    if tree::int_at(object, &["metadata", "generation"]).is_some_and(|generation| generation > 0) {
        bump_generation(object);
    }
}

fn plus_seconds(at: Timestamp, seconds: i64) -> Timestamp {
    at.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

/// A time as it stands in metadata: UTC, whole seconds.
#[must_use]
pub fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time with microseconds, as Leases and Events have them.
#[must_use]
pub fn rfc3339_micro(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// What is wrong with the metadata of a new object.
#[must_use]
pub fn validate(object: &Value, namespaced: bool, name_check: NameCheck) -> Vec<FieldError> {
    let path = Path::new("metadata");
    let mut errors = Vec::new();
    let generate_name = tree::str_at(object, &["metadata", "generateName"]);
    if !generate_name.is_empty() {
        let field = path.child("generateName");
        errors.extend(
            name_check(&mask_trailing_dash(generate_name))
                .into_iter()
                .map(|complaint| FieldError::invalid(&field, generate_name, complaint)),
        );
    }
    let field = path.child("name");
    let name = name(object);
    if name.is_empty() {
        errors.push(FieldError::required(&field, "name or generateName is required"));
    } else {
        errors.extend(
            name_check(name).into_iter().map(|complaint| FieldError::invalid(&field, name, complaint)),
        );
    }
    let field = path.child("namespace");
    let namespace = namespace(object);
    if namespaced {
        if namespace.is_empty() {
            errors.push(FieldError::required(&field, ""));
        } else {
            errors.extend(
                names::dns1123_label(namespace)
                    .into_iter()
                    .map(|complaint| FieldError::invalid(&field, namespace, complaint)),
            );
        }
    } else if !namespace.is_empty() {
        errors.push(FieldError::forbidden(&field, "not allowed on this type"));
    }
    let generation = tree::int_at(object, &["metadata", "generation"]).unwrap_or(0);
    if generation < 0 {
        errors.push(FieldError::invalid(
            &path.child("generation"),
            generation,
            "must be greater than or equal to 0",
        ));
    }
    errors.extend(validate_maps(object));
    errors.extend(validate_references(object));
    errors
}

/// The prefix of a generated name must be good for a name, so its last dash is read as a letter.
fn mask_trailing_dash(prefix: &str) -> String {
    match prefix.strip_suffix('-') {
        Some(stem) if !stem.is_empty() => format!("{stem}a"),
        _ => prefix.to_owned(),
    }
}

fn validate_maps(object: &Value) -> Vec<FieldError> {
    let path = Path::new("metadata");
    let mut errors = validate_labels(tree::at(object, &["metadata", "labels"]), &path.child("labels"));
    errors.extend(validate_annotations(
        tree::at(object, &["metadata", "annotations"]),
        &path.child("annotations"),
    ));
    errors
}

/// What is wrong with a map of labels.
#[must_use]
pub fn validate_labels(labels: Option<&Value>, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        errors.extend(
            names::qualified_name(key).into_iter().map(|c| FieldError::invalid(path, key.as_str(), c)),
        );
        let value = value.as_str().unwrap_or_default();
        errors.extend(names::label_value(value).into_iter().map(|c| FieldError::invalid(path, value, c)));
    }
    errors
}

/// What is wrong with a map of annotations.
pub(crate) fn validate_annotations(annotations: Option<&Value>, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut total = 0;
    for (key, value) in annotations.and_then(Value::as_object).into_iter().flatten() {
        // The syntax is checked as if in lower case; the key itself may have capitals in its domain.
        errors.extend(
            names::qualified_name(&key.to_lowercase())
                .into_iter()
                .map(|c| FieldError::invalid(path, key.as_str(), c)),
        );
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > ANNOTATIONS_BYTES_MAX {
        errors.push(FieldError::too_long(path, ANNOTATIONS_BYTES_MAX));
    }
    errors
}

fn validate_references(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("metadata").child("ownerReferences");
    let mut controller: Option<String> = None;
    for (index, owner) in tree::list_at(object, &["metadata", "ownerReferences"]).iter().enumerate() {
        let path = path.index(index);
        let api_version = tree::str_at(owner, &["apiVersion"]);
        let version = api_version.rsplit('/').next().unwrap_or_default();
        if version.is_empty() {
            errors.push(FieldError::invalid(
                &path.child("apiVersion"),
                api_version,
                "version must not be empty",
            ));
        }
        for field in ["kind", "name", "uid"] {
            let value = tree::str_at(owner, &[field]);
            if value.is_empty() {
                errors.push(FieldError::invalid(&path.child(field), value, "must not be empty"));
            }
        }
        if api_version == "v1" && tree::str_at(owner, &["kind"]) == "Event" {
            errors.push(FieldError::invalid(
                &path,
                owner.clone(),
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if tree::true_at(owner, &["controller"]) {
            let this = tree::str_at(owner, &["name"]).to_owned();
            match &controller {
                Some(other) => errors.push(FieldError::invalid(
                    &Path::new("metadata").child("ownerReferences"),
                    tree::at(object, &["metadata", "ownerReferences"]).cloned().unwrap_or_default(),
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for \
                         {other} and {this}"
                    ),
                )),
                None => controller = Some(this),
            }
        }
    }
    errors.extend(validate_finalizers(object));
    errors
}

fn validate_finalizers(object: &Value) -> Vec<FieldError> {
    let path = Path::new("metadata").child("finalizers");
    let mut errors = Vec::new();
    let finalizers = tree::list_at(object, &["metadata", "finalizers"]);
    for finalizer in finalizers {
        let finalizer = finalizer.as_str().unwrap_or_default();
        errors.extend(
            names::qualified_name(finalizer).into_iter().map(|c| FieldError::invalid(&path, finalizer, c)),
        );
    }
    if DELETION_FINALIZERS.iter().all(|f| finalizers.iter().any(|g| g == f)) {
        errors.push(FieldError::invalid(
            &path,
            Value::from(finalizers.to_vec()),
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
    errors
}

/// What is wrong with a change of metadata.
#[must_use]
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let path = Path::new("metadata");
    let mut errors = Vec::new();
    if is_deleting(old) {
        let had = tree::list_at(old, &["metadata", "finalizers"]);
        let added: Vec<&str> = tree::list_at(new, &["metadata", "finalizers"])
            .iter()
            .filter(|f| !had.contains(f))
            .filter_map(Value::as_str)
            .collect();
        if !added.is_empty() {
            errors.push(FieldError::forbidden(
                &path.child("finalizers"),
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers \
                     []string{{{}}}",
                    added.iter().map(|f| crate::field::go_quote(f)).collect::<Vec<_>>().join(", ")
                ),
            ));
        }
    }
    for field in ["name", "namespace", "uid", "creationTimestamp"] {
        let (was, is) = (tree::at(old, &["metadata", field]), tree::at(new, &["metadata", field]));
        if was.filter(|v| !tree::is_empty(Some(v))) != is.filter(|v| !tree::is_empty(Some(v))) {
            errors.push(immutable(&path.child(field), is));
        }
    }
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        let (was, is) = (tree::at(old, &["metadata", field]), tree::at(new, &["metadata", field]));
        if was != is {
            errors.push(immutable(&path.child(field), is));
        }
    }
    errors.extend(validate_maps(new));
    errors.extend(validate_references(new));
    errors
}

/// `field is immutable`, with the new value.
#[must_use]
pub fn immutable(path: &Path, value: Option<&Value>) -> FieldError {
    FieldError::invalid(path, value.cloned().unwrap_or_default(), "field is immutable")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_update_keeps_what_is_not_its_own_to_say() {
        let old = json!({"metadata": {
            "name": "a", "uid": "u", "creationTimestamp": "2030-01-01T00:00:00Z", "generation": 3,
        }});
        // A manifest that was read from a server once, and is applied to an object that was made anew.
        let mut new = json!({"metadata": {
            "name": "a", "creationTimestamp": "2029-01-01T00:00:00Z", "generation": 9,
            "deletionTimestamp": "2029-01-01T00:00:00Z", "labels": {"k": "v"},
        }});
        prepare_for_update(&mut new, &old);
        assert_eq!(validate_update(&new, &old), []);
        assert_eq!(
            new["metadata"],
            json!({
                "name": "a", "uid": "u", "creationTimestamp": "2030-01-01T00:00:00Z", "generation": 3,
                "labels": {"k": "v"},
            })
        );
        new["metadata"]["uid"] = "other".into();
        let errors: Vec<String> = validate_update(&new, &old).iter().map(ToString::to_string).collect();
        assert_eq!(errors, ["metadata.uid: Invalid value: \"other\": field is immutable"]);
    }
}
