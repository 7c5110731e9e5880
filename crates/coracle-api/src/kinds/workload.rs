//! What workloads have in common: a selector, a template whose Pods it selects, and numbers that count.

use serde_json::Value;

use super::pod::template;
use crate::field::{FieldError, Path};
use crate::metadata::validate_labels;
use crate::names;
use crate::selector::LabelSelector;
use crate::table::Column;
use crate::tree::{self, entries_at, int_at, list_at, str_at};

/// The last wide column of a workload.
pub(super) const SELECTOR: Column =
    Column::wide("Selector", "A label query over pods, in the form of a label selector.");

/// The cell of [`SELECTOR`].
pub(super) fn selector_cell(selector: Option<&Value>) -> Value {
    let text = selector.map(LabelSelector::from_object).and_then(Result::ok).unwrap_or_default().to_string();
    if text.is_empty() { "<none>".into() } else { text.into() }
}

/// Which of these fields of an object are negative.
pub(super) fn not_negative(object: &Value, path: &Path, fields: &[&str]) -> Vec<FieldError> {
    let negative = |field: &&str| int_at(object, &[field]).filter(|number| *number < 0);
    fields
        .iter()
        .filter_map(|field| {
            let why = "must be greater than or equal to 0";
            negative(field).map(|number| FieldError::invalid(&path.child(field), number, why))
        })
        .collect()
}

/// What is wrong with a number or a share of a whole.
pub(super) fn int_or_percent(value: &Value, path: &Path) -> Option<FieldError> {
    match value {
        Value::String(text) if percent(text).is_none() => {
            let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or \
                       '93%', regex used for validation is '[0-9]+%')";
            Some(FieldError::invalid(path, text.as_str(), why))
        }
        Value::Number(number) => number
            .as_i64()
            .filter(|number| *number < 0)
            .map(|number| FieldError::invalid(path, number, "must be greater than or equal to 0")),
        _ => None,
    }
}

/// What is wrong with a share that is more than the whole.
pub(super) fn at_most_all(value: &Value, path: &Path) -> Option<FieldError> {
    let much = value.as_str().and_then(percent).is_some_and(|percent| percent > 100);
    much.then(|| FieldError::invalid(path, value.clone(), "must not be greater than 100%"))
}

/// The number of a text like `25%`.
pub(super) fn percent(text: &str) -> Option<u32> {
    text.strip_suffix('%')?.parse().ok().filter(|_| text.starts_with(|c: char| c.is_ascii_digit()))
}

/// What is wrong with the form of a label selector.
pub(super) fn label_selector(selector: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = validate_labels(selector.get("matchLabels"), &path.child("matchLabels"));
    for (index, expression) in list_at(selector, &["matchExpressions"]).iter().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let values = list_at(expression, &["values"]);
        match str_at(expression, &["operator"]) {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
                &path.child("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
                &path.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(FieldError::invalid(
                &path.child("operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = str_at(expression, &["key"]);
        let complaints = names::qualified_name(key);
        errors.extend(complaints.into_iter().map(|c| FieldError::invalid(&path.child("key"), key, c)));
        for (index, value) in values.iter().enumerate() {
            let (value, path) = (value.as_str().unwrap_or_default(), path.child("values").index(index));
            errors
                .extend(names::label_value(value).into_iter().map(|c| FieldError::invalid(&path, value, c)));
        }
    }
    errors
}

/// Whether `selector` selects the Pods that `template` makes; an error if not. What is no selector is judged
/// elsewhere.
pub(super) fn selects(selector: Option<&Value>, template: &Value, path: &Path) -> Option<FieldError> {
    let selector = LabelSelector::from_object(selector?).ok()?;
    let labels = tree::at(template, &["metadata", "labels"]);
    if selector.matches_labels(|key| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str)) {
        return None;
    }
    Some(FieldError::invalid(
        &path.child("metadata").child("labels"),
        labels.cloned().unwrap_or_default(),
        "`selector` does not match template `labels`",
    ))
}

/// What is wrong with the selector and the template of a spec whose Pods are to run for ever.
pub(super) fn replicated(spec: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let at = path.child("selector");
    match spec.get("selector") {
        None => errors.push(FieldError::required(&at, "")),
        Some(selector) => {
            errors.extend(label_selector(selector, &at));
            let says_nothing = entries_at(selector, &["matchLabels"]).next().is_none()
                && list_at(selector, &["matchExpressions"]).is_empty();
            if says_nothing {
                let why = "empty selector is invalid for deployment";
                errors.push(FieldError::invalid(&at, selector.clone(), why));
            } else if LabelSelector::from_object(selector).is_err() {
                errors.push(FieldError::invalid(&at, selector.clone(), "invalid label selector"));
            }
        }
    }
    let at = path.child("template");
    let Some(template) = spec.get("template") else {
        errors.push(FieldError::required(&at, ""));
        return errors;
    };
    errors.extend(selects(spec.get("selector"), template, &at));
    errors.extend(template::validate(template, &at));
    let restart = str_at(template, &["spec", "restartPolicy"]);
    if restart != "Always" {
        let at = at.child("spec").child("restartPolicy");
        errors.push(FieldError::not_supported(&at, restart, &["Always"]));
    }
    if int_at(template, &["spec", "activeDeadlineSeconds"]).is_some() {
        let at = at.child("spec").child("activeDeadlineSeconds");
        errors.push(FieldError::forbidden(&at, "activeDeadlineSeconds in ReplicaSet is not Supported"));
    }
    errors
}

/// What is wrong with a field that must stay as it was.
pub(super) fn unchanged(new: &Value, old: &Value, path: &Path, field: &str) -> Option<FieldError> {
    (new.get(field) != old.get(field)).then(|| crate::metadata::immutable(&path.child(field), new.get(field)))
}

/// What is not wrong with a template and still worth knowing; an update that leaves it alone says nothing.
pub(super) fn template_warnings(object: &Value, old: Option<&Value>, pointer: &[&str]) -> Vec<String> {
    let template = tree::at(object, pointer);
    if old.is_some_and(|old| tree::at(old, pointer) == template) {
        return Vec::new();
    }
    let path = pointer[1..].iter().fold(Path::new(pointer[0]), |path, step| path.child(step));
    template.map(|template| template::warnings(template, &path)).unwrap_or_default()
}

/// The warning about a name that Pods inherit and that is no good host name.
pub(super) fn name_warning(object: &Value) -> Option<String> {
    let complaints = names::dns1123_label(crate::metadata::name(object));
    (!complaints.is_empty()).then(|| {
        format!(
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a \
             DNS label is recommended: [{}]",
            complaints.join(" ")
        )
    })
}
