//! The template of Pods within a workload: completed and judged as the Pods that will be made of it.

use jiff::Timestamp;
use serde_json::Value;

use super::validate::{self, Whose};
use super::{defaults, supported, warnings as warn};
use crate::field::{FieldError, Path};
use crate::metadata::{validate_annotations, validate_labels};
use crate::table::Column;
use crate::tree::{self, list_at, object_in, str_at};

/// The wide columns that every workload has.
pub(in crate::kinds) const CONTAINERS: Column =
    Column::wide("Containers", "Names of each container in the template.");
pub(in crate::kinds) const IMAGES: Column =
    Column::wide("Images", "Images referenced by each container in the template.");

/// Fills in the documented defaults of a template.
pub(in crate::kinds) fn default(template: &mut Value) {
    if let Some(spec) = object_in(template, "spec") {
        defaults::apply_to_spec(spec);
    }
}

/// What is wrong with a template: its metadata, its Pods, and what of them this release does not honour.
pub(in crate::kinds) fn validate(template: &Value, path: &Path) -> Vec<FieldError> {
    let metadata = path.child("metadata");
    let mut errors = validate_labels(tree::at(template, &["metadata", "labels"]), &metadata.child("labels"));
    errors.extend(validate_annotations(
        tree::at(template, &["metadata", "annotations"]),
        &metadata.child("annotations"),
    ));
    let spec = template.get("spec").unwrap_or(&Value::Null);
    errors.extend(validate::spec(spec, &path.child("spec"), Whose::Template));
    if !tree::is_empty(spec.get("ephemeralContainers")) {
        let path = path.child("spec").child("ephemeralContainers");
        errors.push(FieldError::forbidden(&path, "ephemeral containers not allowed in pod template"));
    }
    errors.extend(supported::refuse_spec(spec, &path.child("spec")));
    errors
}

/// What is worth knowing of a template although nothing is wrong.
pub(in crate::kinds) fn warnings(template: &Value, path: &Path) -> Vec<String> {
    warn::of(template, path)
}

/// The cells of [`CONTAINERS`] and [`IMAGES`].
pub(in crate::kinds) fn cells(template: Option<&Value>) -> [Value; 2] {
    ["name", "image"].map(|field| {
        let containers = template.map_or(&[][..], |template| list_at(template, &["spec", "containers"]));
        let texts: Vec<&str> = containers.iter().map(|container| str_at(container, &[field])).collect();
        texts.join(",").into()
    })
}

/// How long ago a time of a status was, or `<none>`.
pub(in crate::kinds) fn since(now: Timestamp, then: Option<&Value>) -> Value {
    match then {
        Some(_) => crate::table::age_of(now, then).into(),
        None => "<none>".into(),
    }
}
