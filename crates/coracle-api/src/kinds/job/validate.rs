//! What is wrong with a Job, in upstream's words.

use serde_json::{Map, Value};

use super::policy;
use crate::field::{FieldError, Path};
use crate::kinds::pod::template;
use crate::kinds::workload;
use crate::names;
use crate::tree::{self, at, int_at, list_at, str_at, true_at};

/// Most Pods that an indexed Job may run at a time, and most indexes where each has its own count of failures.
const INDEXED_PODS_MAX: i64 = 100_000;

/// Fills in the defaults that a Job and a template of Jobs have in common.
pub(in crate::kinds) fn spec_defaults(spec: &mut Map<String, Value>) {
    if let Some(template) = spec.get_mut("template") {
        template::default(template);
    }
    let rules = spec.get_mut("podFailurePolicy").and_then(|policy| policy.get_mut("rules"));
    for rule in rules.and_then(Value::as_array_mut).into_iter().flatten() {
        let patterns = rule.get_mut("onPodConditions").and_then(Value::as_array_mut);
        for pattern in patterns.into_iter().flatten().filter_map(Value::as_object_mut) {
            tree::set_default(pattern, "status", "True");
        }
    }
}

pub(super) fn job(object: &Value) -> Vec<FieldError> {
    let path = Path::new("spec");
    let said = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = Vec::new();
    if said.get("selector").is_none() {
        errors.push(FieldError::required(&path.child("selector"), ""));
    }
    let template = said.get("template").unwrap_or(&Value::Null);
    errors.extend(workload::selects(said.get("selector"), template, &path.child("template")));
    errors.extend(spec(said, &path));
    errors
}

/// What is wrong with the spec of a Job, or of one to be made of a template, that stands at `path`.
pub(in crate::kinds) fn spec(spec: &Value, path: &Path) -> Vec<FieldError> {
    let numbers = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    let mut errors = workload::not_negative(spec, path, &numbers);
    errors.extend(indexed(spec, path));
    if let Some(manager) = at(spec, &["managedBy"]).and_then(Value::as_str) {
        let at = path.child("managedBy");
        if manager.len() > 63 {
            errors.push(FieldError::too_long(&at, 63));
        }
        errors.extend(domain_prefixed(manager).into_iter().map(|c| FieldError::invalid(&at, manager, c)));
    }
    if let Some(said) = spec.get("podFailurePolicy") {
        errors.extend(policy::failure(said, spec, &path.child("podFailurePolicy")));
    }
    if let Some(said) = spec.get("successPolicy") {
        if str_at(spec, &["completionMode"]) == "Indexed" {
            let completions = int_at(spec, &["completions"]).unwrap_or(0);
            errors.extend(policy::success(said, completions, &path.child("successPolicy")));
        } else {
            let why = "requires indexed completion mode";
            errors.push(FieldError::invalid(&path.child("successPolicy"), said.clone(), why));
        }
    }
    if let Some(replacement) = at(spec, &["podReplacementPolicy"]).and_then(Value::as_str) {
        let may: &[&str] = if spec.get("podFailurePolicy").is_some() {
            &["Failed"]
        } else {
            &["Failed", "TerminatingOrFailed"]
        };
        if !may.contains(&replacement) {
            let at = path.child("podReplacementPolicy");
            errors.push(FieldError::not_supported(&at, replacement, may));
        }
    }
    if !tree::is_empty(spec.get("scheduling")) {
        let why = "scheduling is not supported by Coracle yet";
        errors.push(FieldError::forbidden(&path.child("scheduling"), why));
    }
    let at = path.child("template");
    let Some(template) = spec.get("template") else {
        // What stands for it says nothing, and so has no containers either.
        errors.extend(template::validate(&Value::Null, &at));
        return errors;
    };
    errors.extend(template::validate(template, &at));
    let at = at.child("spec").child("restartPolicy");
    match str_at(template, &["spec", "restartPolicy"]) {
        // The default, so that it stands for nothing having been said.
        "Always" => errors.push(FieldError::required(&at, r#"valid values: "OnFailure", "Never""#)),
        policy @ ("OnFailure" | "Never") => {
            if policy != "Never" && spec.get("podFailurePolicy").is_some() {
                let why = r#"only "Never" is supported when podFailurePolicy is specified"#;
                errors.push(FieldError::invalid(&at, policy, why));
            }
            if policy != "Never" && spec.get("backoffLimitPerIndex").is_some() {
                let why = r#"only "Never" is supported when backoffLimitPerIndex is specified"#;
                errors.push(FieldError::invalid(&at, policy, why));
            }
        }
        other => errors.push(FieldError::not_supported(&at, other, &["OnFailure", "Never"])),
    }
    errors
}

/// What is wrong with how a Job counts.
fn indexed(spec: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mode = str_at(spec, &["completionMode"]);
    let number = |field: &str| int_at(spec, &[field]);
    let invalid = |field: &str, number: i64, why: &str| FieldError::invalid(&path.child(field), number, why);
    if !matches!(mode, "" | "NonIndexed" | "Indexed") {
        let at = path.child("completionMode");
        errors.push(FieldError::not_supported(&at, mode, &["NonIndexed", "Indexed"]));
    }
    if mode != "Indexed" {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            errors.extend(
                number(field).map(|number| invalid(field, number, "requires indexed completion mode")),
            );
        }
        return errors;
    }
    let Some(completions) = number("completions") else {
        let why = "when completion mode is Indexed";
        errors.push(FieldError::required(&path.child("completions"), why));
        return errors;
    };
    let limit = format!("must be less than or equal to {INDEXED_PODS_MAX} when completion mode is Indexed");
    errors.extend(
        number("parallelism")
            .filter(|number| *number > INDEXED_PODS_MAX)
            .map(|number| invalid("parallelism", number, &limit)),
    );
    let most = number("maxFailedIndexes");
    if let Some(most) = most {
        if number("backoffLimitPerIndex").is_none() {
            let at = path.child("backoffLimitPerIndex");
            errors.push(FieldError::required(&at, "when maxFailedIndexes is specified"));
        }
        if most > completions {
            let why = "must be less than or equal to completions";
            errors.push(invalid("maxFailedIndexes", most, why));
        }
    }
    if number("backoffLimitPerIndex").is_some() && completions > INDEXED_PODS_MAX {
        let at = path.child("maxFailedIndexes");
        match most {
            None => {
                let why = format!("must be specified when completions is above {INDEXED_PODS_MAX}");
                errors.push(FieldError::required(&at, why));
            }
            Some(most) if most > 10_000 => {
                let why = "must be less than or equal to 10000";
                errors.push(invalid("maxFailedIndexes", most, why));
            }
            Some(_) => {}
        }
        let why = "must be less than or equal to 10000 when completions are above 100000 and used with backoff limit \
                   per index";
        errors.extend(number("parallelism").filter(|n| *n > 10_000).map(|n| invalid("parallelism", n, why)));
    }
    errors
}

/// `example.com/controller`
fn domain_prefixed(value: &str) -> Vec<String> {
    let Some((domain, rest)) =
        value.split_once('/').filter(|(domain, rest)| !domain.is_empty() && !rest.is_empty())
    else {
        return vec!["must be a domain-prefixed path (such as \"acme.io/foo\")".to_owned()];
    };
    let mut complaints = names::dns1123_subdomain(domain);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:".contains(&byte);
    if !rest.bytes().all(plain) {
        complaints.push("invalid path".to_owned());
    }
    complaints
}

/// What is wrong with a change of a Job.
pub(super) fn update(new: &Value, old: &Value) -> Vec<FieldError> {
    let path = Path::new("spec");
    let (is, was) = (new.get("spec").unwrap_or(&Value::Null), old.get("spec").unwrap_or(&Value::Null));
    let mut errors = Vec::new();
    errors.extend(completions(is, was, &path));
    errors.extend(workload::unchanged(is, was, &path, "selector"));
    errors.extend(template_change(is, was, old, &path));
    for field in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]
    {
        errors.extend(workload::unchanged(is, was, &path, field));
    }
    errors
}

/// Completions may change together with the parallelism of an indexed Job.
fn completions(is: &Value, was: &Value, path: &Path) -> Option<FieldError> {
    let changed = workload::unchanged(is, was, path, "completions")?;
    if str_at(is, &["completionMode"]) != "Indexed" {
        return Some(changed);
    }
    let number = |spec: &Value, field: &str| int_at(spec, &[field]);
    let together = number(is, "completions").is_some()
        && number(is, "completions") == number(is, "parallelism")
        && (number(was, "completions") == number(was, "parallelism")
            || number(was, "completions") != number(is, "completions"));
    if together {
        return None;
    }
    let why = format!(
        "can only be modified in tandem with {} when completion mode is Indexed",
        path.child("parallelism")
    );
    Some(FieldError::invalid(
        &path.child("completions"),
        is.get("completions").cloned().unwrap_or_default(),
        why,
    ))
}

/// Where Pods may go can change until the first was made.
fn template_change(is: &Value, was: &Value, old: &Value, path: &Path) -> Option<FieldError> {
    let changed = workload::unchanged(is, was, path, "template")?;
    let never_started = at(old, &["status", "startTime"]).is_none();
    if !(true_at(was, &["suspend"]) && never_started) {
        return Some(changed);
    }
    let mut kept = is.get("template").cloned().unwrap_or_default();
    let template = was.get("template").unwrap_or(&Value::Null);
    for field in ["nodeSelector", "tolerations"] {
        if let Some(spec) = kept.get_mut("spec") {
            tree::set_or_remove(spec, field, at(template, &["spec", field]).cloned());
        }
    }
    for field in ["labels", "annotations"] {
        if let Some(metadata) = kept.get_mut("metadata") {
            tree::set_or_remove(metadata, field, at(template, &["metadata", field]).cloned());
        }
    }
    (kept != *template).then_some(changed)
}

/// What is wrong with a change of a Job's status.
pub(super) fn status(new: &Value, old: &Value) -> Vec<FieldError> {
    let path = Path::new("status");
    let is = new.get("status").unwrap_or(&Value::Null);
    let counts = ["active", "succeeded", "failed", "ready", "terminating"];
    let mut errors = workload::not_negative(is, &path, &counts);
    let has = |object: &Value, kind: &str| {
        list_at(object, &["status", "conditions"])
            .iter()
            .any(|condition| str_at(condition, &["type"]) == kind && str_at(condition, &["status"]) == "True")
    };
    let conditions = path.child("conditions");
    for kind in ["Complete", "Failed"] {
        if has(old, kind) && !has(new, kind) {
            let value = at(new, &["status", "conditions"]).cloned().unwrap_or_default();
            let why = format!("cannot disable the terminal {kind}=True condition");
            errors.push(FieldError::invalid(&conditions, value, why));
        }
    }
    if has(new, "Complete") && has(new, "Failed") {
        let value = at(new, &["status", "conditions"]).cloned().unwrap_or_default();
        let why = "cannot set Complete=True and Failed=true conditions";
        errors.push(FieldError::invalid(&conditions, value, why));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::job as made;
    use super::*;

    fn complaints(spec: &Value) -> Vec<String> {
        job(&made(spec)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn complaints_are_upstreams() {
        let pod = |policy: &str| json!({"spec": {"restartPolicy": policy, "containers": [{"name": "c", "image": "i"}]}});
        let table: [(Value, &[&str]); 12] = [
            (json!({}), &[]),
            (
                json!({"template": pod("")}),
                &[r#"spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never""#],
            ),
            (
                json!({"parallelism": -1, "backoffLimit": -2}),
                &[
                    "spec.parallelism: Invalid value: -1: must be greater than or equal to 0",
                    "spec.backoffLimit: Invalid value: -2: must be greater than or equal to 0",
                ],
            ),
            (
                json!({"completionMode": "Indexed", "parallelism": 1}),
                &["spec.completions: Required value: when completion mode is Indexed"],
            ),
            (
                json!({"completionMode": "X"}),
                &[
                    r#"spec.completionMode: Unsupported value: "X": supported values: "NonIndexed", "Indexed""#,
                ],
            ),
            (
                json!({"backoffLimitPerIndex": 1}),
                &["spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode"],
            ),
            (
                json!({"completionMode": "Indexed", "completions": 2, "maxFailedIndexes": 3}),
                &[
                    "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
                    "spec.maxFailedIndexes: Invalid value: 3: must be less than or equal to completions",
                ],
            ),
            (
                json!({"podReplacementPolicy": "X"}),
                &[
                    r#"spec.podReplacementPolicy: Unsupported value: "X": supported values: "Failed", "TerminatingOrFailed""#,
                ],
            ),
            (
                json!({"managedBy": "me"}),
                &[
                    r#"spec.managedBy: Invalid value: "me": must be a domain-prefixed path (such as "acme.io/foo")"#,
                ],
            ),
            (
                json!({"successPolicy": {"rules": [{"succeededCount": 1}]}}),
                &[
                    r#"spec.successPolicy: Invalid value: {"rules":[{"succeededCount":1}]}: requires indexed completion mode"#,
                ],
            ),
            (
                json!({"scheduling": {"schedulingPolicy": {"basic": {"x": 1}}}}),
                &["spec.scheduling: Forbidden: scheduling is not supported by Coracle yet"],
            ),
            (
                json!({"template": pod("OnFailure"), "podFailurePolicy": {"rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
                ]}}),
                &[
                    r#"spec.template.spec.restartPolicy: Invalid value: "OnFailure": only "Never" is supported when podFailurePolicy is specified"#,
                ],
            ),
        ];
        for (spec, expected) in table {
            assert_eq!(complaints(&spec), expected, "{spec}");
        }
    }

    #[test]
    fn little_may_change() {
        let old = made(&json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2}));
        let change = |mutate: &dyn Fn(&mut Value), old: &Value| -> Vec<String> {
            let mut new = old.clone();
            mutate(&mut new);
            update(&new, old).iter().map(|error| error.field.to_string()).collect()
        };
        assert_eq!(change(&|job| job["spec"]["parallelism"] = 1.into(), &old), Vec::<String>::new());
        assert_eq!(change(&|job| job["spec"]["completions"] = 3.into(), &old), ["spec.completions"]);
        let both = |job: &mut Value| {
            job["spec"]["completions"] = 3.into();
            job["spec"]["parallelism"] = 3.into();
        };
        assert_eq!(change(&both, &old), Vec::<String>::new());
        assert_eq!(change(&|job| job["spec"]["selector"] = json!({}), &old), ["spec.selector"]);
        let place = |job: &mut Value| job["spec"]["template"]["spec"]["nodeSelector"] = json!({"a": "b"});
        assert_eq!(change(&place, &old), ["spec.template"]);
        let mut suspended = old;
        suspended["spec"]["suspend"] = true.into();
        assert_eq!(change(&place, &suspended), Vec::<String>::new());
        suspended["status"] = json!({"startTime": "2030-01-01T00:00:00Z"});
        assert_eq!(change(&place, &suspended), ["spec.template"]);
    }
}
