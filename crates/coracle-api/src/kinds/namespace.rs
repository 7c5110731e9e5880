//! Namespaces.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::catalogue::Strategy;
use crate::field::{FieldError, Path};
use crate::metadata;
use crate::names;
use crate::table::Column;
use crate::tree::{self, list_at, object_in, str_at};

/// The label that every namespace carries, with its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The finalizer of the controller that empties namespaces.
const FINALIZER: &str = "kubernetes";

/// What is special about Namespaces.
pub(crate) struct NamespaceStrategy;

static COLUMNS: &[Column] =
    &[Column::NAME, Column::text("Status", "The status of the namespace"), Column::AGE];

impl Strategy for NamespaceStrategy {
    fn default(&self, object: &mut Value) {
        label(object);
        if let Some(status) = object_in(object, "status") {
            tree::set_default(status, "phase", "Active");
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        // A generated name is known by now.
        label(object);
        tree::set_or_remove(object, "status", Some(json!({ "phase": "Active" })));
        let Some(spec) = object_in(object, "spec") else { return };
        let finalizers = spec.entry("finalizers").or_insert_with(|| json!([]));
        if let Some(finalizers) = finalizers.as_array_mut()
            && !finalizers.iter().any(|f| f == FINALIZER)
        {
            finalizers.push(FINALIZER.into());
        }
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        label(new);
        // Finalizers change by /finalize alone.
        tree::set_or_remove(new, "spec", old.get("spec").cloned());
        tree::set_or_remove(new, "status", old.get("status").cloned());
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        finalizers(object)
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
        let phase = str_at(new, &["status", "phase"]);
        let path = Path::new("status").child("phase");
        match (metadata::is_deleting(new), phase) {
            (false, "Active") | (true, "Terminating") => Vec::new(),
            (false, phase) => vec![FieldError::invalid(
                &path,
                phase,
                "may only be 'Active' if `deletionTimestamp` is empty",
            )],
            (true, phase) => vec![FieldError::invalid(
                &path,
                phase,
                "may only be 'Terminating' if `deletionTimestamp` is not empty",
            )],
        }
    }

    fn validate_finalize(&self, new: &Value) -> Vec<FieldError> {
        finalizers(new)
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["status.phase"]
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("status.phase", str_at(object, &["status", "phase"]).to_owned())]
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            metadata::name(object).into(),
            str_at(object, &["status", "phase"]).into(),
            super::age(object, now),
        ]
    }
}

fn label(object: &mut Value) {
    let name = metadata::name(object).to_owned();
    if name.is_empty() {
        return;
    }
    if let Some(metadata) = object.get_mut("metadata")
        && let Some(labels) = object_in(metadata, "labels")
    {
        labels.insert(NAME_LABEL.into(), name.into());
    }
}

fn finalizers(object: &Value) -> Vec<FieldError> {
    let path = Path::new("spec").child("finalizers");
    let mut errors = Vec::new();
    for finalizer in list_at(object, &["spec", "finalizers"]) {
        let finalizer = finalizer.as_str().unwrap_or_default();
        errors.extend(
            names::qualified_name(finalizer).into_iter().map(|c| FieldError::invalid(&path, finalizer, c)),
        );
        if !finalizer.contains('/') && !matches!(finalizer, FINALIZER | "orphan" | "foregroundDeletion") {
            errors.push(FieldError::invalid(
                &path,
                finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::find;

    #[test]
    fn a_new_namespace_is_active_labelled_and_held() {
        let resource = find("", "v1", "namespaces").unwrap();
        let mut object = json!({"metadata": {"name": "a"}, "status": {"phase": "Terminating"}});
        resource.default(&mut object);
        resource.prepare_for_create(&mut object);
        assert_eq!(
            object,
            json!({
                "metadata": {"name": "a", "labels": {"kubernetes.io/metadata.name": "a"}},
                "status": {"phase": "Active"},
                "spec": {"finalizers": ["kubernetes"]},
            })
        );
        assert_eq!(resource.validate_create(&object), []);
        object["spec"]["finalizers"] = json!(["mine"]);
        assert_eq!(
            resource.strategy.validate_finalize(&object)[0].to_string(),
            "spec.finalizers: Invalid value: \"mine\": name is neither a standard finalizer name nor is it fully \
             qualified"
        );
        let bad = resource.validate_create(&json!({"metadata": {"name": "A.b"}}));
        assert_eq!(bad.len(), 1);
    }
}
