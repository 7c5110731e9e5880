//! Questions about identities and rights: kinds that are sent, answered, and never stored.

use jiff::Timestamp;
use serde_json::Value;

use crate::catalogue::Strategy;
use crate::field::{FieldError, Path};
use crate::table::Column;
use crate::tree::{at, is_empty, list_at, str_at};

/// What is special about TokenReview, SelfSubjectReview and SelfSubjectRulesReview: nothing.
pub(crate) struct ReviewStrategy;

impl Strategy for ReviewStrategy {
    fn columns(&self) -> &'static [Column] {
        super::NAME_AND_AGE
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        super::name_and_age(object, now)
    }
}

/// What is special about the three kinds that ask whether somebody may do something.
pub(crate) enum AccessReviewStrategy {
    /// Whoever asks.
    Oneself,
    /// Somebody who is named.
    Named,
    /// Somebody who is named, within the namespace of the request.
    NamedInNamespace,
}

impl Strategy for AccessReviewStrategy {
    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = Path::new("spec");
        let spec = object.get("spec").unwrap_or(&Value::Null);
        let part = |name: &str| spec.get(name).filter(|value| value.is_object());
        let (resource, other) = (part("resourceAttributes"), part("nonResourceAttributes"));
        if let (Some(_), Some(other)) = (resource, other) {
            let why = "cannot be specified in combination with resourceAttributes";
            errors.push(FieldError::invalid(&path.child("nonResourceAttributes"), other.clone(), why));
        }
        if resource.is_none() && other.is_none() {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            errors.push(FieldError::invalid(&path.child("resourceAttributes"), Value::Null, why));
        }
        if !matches!(self, AccessReviewStrategy::Oneself)
            && is_empty(spec.get("user"))
            && is_empty(spec.get("groups"))
        {
            let why = "at least one of user or group must be specified";
            errors.push(FieldError::invalid(&path.child("user"), "", why));
        }
        if let Some(resource) = resource {
            let path = path.child("resourceAttributes");
            check_selector(resource, "fieldSelector", &["In", "NotIn"], &path, &mut errors);
            let operators = ["In", "NotIn", "Exists", "DoesNotExist"];
            check_selector(resource, "labelSelector", &operators, &path, &mut errors);
        }
        if matches!(self, AccessReviewStrategy::NamedInNamespace) {
            let namespace = str_at(object, &["metadata", "namespace"]);
            if let Some(resource) = resource
                && str_at(resource, &["namespace"]) != namespace
            {
                let said = str_at(resource, &["namespace"]);
                let path = path.child("resourceAttributes").child("namespace");
                errors.push(FieldError::invalid(&path, said, "must match metadata.namespace"));
            }
            if let Some(other) = other {
                let why = "disallowed on this kind of request";
                errors.push(FieldError::invalid(&path.child("nonResourceAttributes"), other.clone(), why));
            }
        }
        errors
    }

    fn columns(&self) -> &'static [Column] {
        super::NAME_AND_AGE
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        super::name_and_age(object, now)
    }
}

/// A selector is a text or a list of requirements, and not both.
fn check_selector(
    resource: &Value,
    field: &str,
    operators: &[&str],
    path: &Path,
    errors: &mut Vec<FieldError>,
) {
    let Some(selector) = resource.get(field).filter(|value| value.is_object()) else { return };
    let path = path.child(field);
    let (raw, requirements) = (str_at(selector, &["rawSelector"]), list_at(selector, &["requirements"]));
    if !raw.is_empty() && !requirements.is_empty() {
        let why = "may not specified at the same time as requirements";
        errors.push(FieldError::invalid(&path.child("rawSelector"), raw, why));
    }
    if raw.is_empty() && requirements.is_empty() {
        let why = format!("when specifying {field}, requirements or rawSelector is required");
        errors.push(FieldError::required(&path.child("requirements"), why));
    }
    for (index, requirement) in requirements.iter().enumerate() {
        let path = path.child("requirements").index(index);
        let (key, operator) = (str_at(requirement, &["key"]), str_at(requirement, &["operator"]));
        if key.is_empty() {
            errors.push(FieldError::required(&path.child("key"), "must be specified"));
        }
        let none = is_empty(at(requirement, &["values"]));
        match operator {
            "In" | "NotIn" if none => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(&path.child("values"), why));
            }
            "Exists" | "DoesNotExist" if !none => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(&path.child("values"), why));
            }
            operator if operators.contains(&operator) => {}
            operator => {
                errors.push(FieldError::invalid(
                    &path.child("operator"),
                    operator,
                    "not a valid selector operator",
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn complaints(strategy: &AccessReviewStrategy, object: &Value) -> String {
        let errors = strategy.validate_create(object);
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn a_question_about_rights_names_one_thing_and_who_it_is_about() {
        use AccessReviewStrategy::{Named, NamedInNamespace, Oneself};
        let pods = json!({ "namespace": "a", "verb": "get", "resource": "pods" });
        let path = json!({ "verb": "get", "path": "/x" });
        let none = "spec.resourceAttributes: Invalid value: \"null\": exactly one of nonResourceAttributes or \
                    resourceAttributes must be specified";
        let both = "spec.nonResourceAttributes: Invalid value: {\"verb\":\"get\",\"path\":\"/x\"}: cannot be \
                    specified in combination with resourceAttributes";
        let nobody = "spec.user: Invalid value: \"\": at least one of user or group must be specified";
        let elsewhere =
            "spec.resourceAttributes.namespace: Invalid value: \"a\": must match metadata.namespace";
        let selector =
            json!({ "resourceAttributes": { "fieldSelector": { "requirements": [{ "key": "k" }] } } });
        for (strategy, spec, expected) in [
            (Oneself, json!({ "resourceAttributes": pods }), ""),
            (Oneself, json!({}), none),
            (Oneself, json!({ "resourceAttributes": pods, "nonResourceAttributes": path }), both),
            (Named, json!({ "resourceAttributes": pods, "groups": ["g"] }), ""),
            (Named, json!({ "resourceAttributes": pods }), nobody),
            (NamedInNamespace, json!({ "resourceAttributes": pods, "user": "u" }), elsewhere),
            (
                Oneself,
                selector,
                "spec.resourceAttributes.fieldSelector.requirements[0].operator: Invalid value: \"\": not a valid \
                 selector operator",
            ),
        ] {
            assert_eq!(complaints(&strategy, &json!({ "spec": spec })), expected);
        }
    }
}
