//! What is wrong with the policies of a Job: which failures count, and when it has succeeded.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::field::{FieldError, Path};
use crate::names;
use crate::tree::{at, int_at, list_at, str_at};

const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
const PATTERNS_MAX: usize = 20;

pub(super) fn failure(policy: &Value, spec: &Value, path: &Path) -> Vec<FieldError> {
    let path = path.child("rules");
    let rules = list_at(policy, &["rules"]);
    let mut errors = Vec::new();
    if rules.len() > RULES_MAX {
        errors.push(FieldError::too_many(&path, rules.len(), RULES_MAX));
    }
    let containers: BTreeSet<&str> = ["containers", "initContainers"]
        .into_iter()
        .flat_map(|list| list_at(spec, &["template", "spec", list]))
        .map(|container| str_at(container, &["name"]))
        .collect();
    let per_index = int_at(spec, &["backoffLimitPerIndex"]).is_some();
    for (index, rule) in rules.iter().enumerate() {
        errors.extend(failure_rule(rule, per_index, &containers, &path.index(index)));
    }
    errors
}

fn failure_rule(rule: &Value, per_index: bool, containers: &BTreeSet<&str>, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let at = path.child("action");
    let actions = ["Count", "FailIndex", "FailJob", "Ignore"];
    match str_at(rule, &["action"]) {
        "" => errors.push(FieldError::required(
            &at,
            "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]",
        )),
        "FailIndex" if !per_index => {
            let why = "requires the backoffLimitPerIndex to be set";
            errors.push(FieldError::invalid(&at, "FailIndex", why));
        }
        action if actions.contains(&action) => {}
        action => errors.push(FieldError::not_supported(&at, action, &actions)),
    }
    let (codes, conditions) = (rule.get("onExitCodes"), list_at(rule, &["onPodConditions"]));
    match codes {
        Some(_) if !conditions.is_empty() => {
            let why = "specifying both OnExitCodes and OnPodConditions is not supported";
            errors.push(FieldError::invalid(path, rule.clone(), why));
        }
        None if conditions.is_empty() => {
            let why = "specifying one of OnExitCodes and OnPodConditions is required";
            errors.push(FieldError::invalid(path, rule.clone(), why));
        }
        Some(codes) => errors.extend(exit_codes(codes, containers, &path.child("onExitCodes"))),
        None => errors.extend(pod_conditions(conditions, &path.child("onPodConditions"))),
    }
    errors
}

fn exit_codes(requirement: &Value, containers: &BTreeSet<&str>, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(name) = at(requirement, &["containerName"]).and_then(Value::as_str)
        && !containers.contains(name)
    {
        let why = "must be one of the container or initContainer names in the pod template";
        errors.push(FieldError::invalid(&path.child("containerName"), name, why));
    }
    let operator = str_at(requirement, &["operator"]);
    let at = path.child("operator");
    match operator {
        "" => errors.push(FieldError::required(&at, "valid values: [\"In\" \"NotIn\"]")),
        "In" | "NotIn" => {}
        other => errors.push(FieldError::not_supported(&at, other, &["In", "NotIn"])),
    }
    let values: Vec<i64> = list_at(requirement, &["values"]).iter().filter_map(Value::as_i64).collect();
    let path = path.child("values");
    if values.is_empty() {
        let why = "at least one value is required";
        errors.push(FieldError::invalid(&path, Value::Array(Vec::new()), why));
    } else if values.len() > EXIT_CODES_MAX {
        errors.push(FieldError::too_many(&path, values.len(), EXIT_CODES_MAX));
    }
    let mut seen = BTreeSet::new();
    for (index, value) in values.iter().enumerate() {
        if *value == 0 && operator == "In" {
            let why = "must not be 0 for the In operator";
            errors.push(FieldError::invalid(&path.index(index), *value, why));
        }
        if !seen.insert(value) {
            errors.push(FieldError::duplicate(&path.index(index), *value));
        }
    }
    if !values.is_sorted() {
        errors.push(FieldError::invalid(&path, values, "must be ordered"));
    }
    errors
}

fn pod_conditions(patterns: &[Value], path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if patterns.len() > PATTERNS_MAX {
        errors.push(FieldError::too_many(path, patterns.len(), PATTERNS_MAX));
    }
    for (index, pattern) in patterns.iter().enumerate() {
        let path = path.index(index);
        let kind = str_at(pattern, &["type"]);
        let complaints = names::qualified_name(kind);
        errors.extend(complaints.into_iter().map(|c| FieldError::invalid(&path.child("type"), kind, c)));
        match str_at(pattern, &["status"]) {
            "True" | "False" | "Unknown" => {}
            "" => {
                let why = "valid values: [\"False\" \"True\" \"Unknown\"]";
                errors.push(FieldError::required(&path.child("status"), why));
            }
            other => {
                let may = ["False", "True", "Unknown"];
                errors.push(FieldError::not_supported(&path.child("status"), other, &may));
            }
        }
    }
    errors
}

pub(super) fn success(policy: &Value, completions: i64, path: &Path) -> Vec<FieldError> {
    let path = path.child("rules");
    let rules = list_at(policy, &["rules"]);
    let mut errors = Vec::new();
    if rules.is_empty() {
        errors.push(FieldError::required(
            &path,
            "at least one rules must be specified when the successPolicy is specified",
        ));
    }
    if rules.len() > RULES_MAX {
        errors.push(FieldError::too_many(&path, rules.len(), RULES_MAX));
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = path.index(index);
        let count = int_at(rule, &["succeededCount"]);
        let indexes = at(rule, &["succeededIndexes"]).and_then(Value::as_str);
        if count.is_none() && indexes.is_none() {
            let why = "at least one of succeededCount or succeededIndexes must be specified";
            errors.push(FieldError::required(&path, why));
        }
        let mut most = completions;
        if let Some(text) = indexes {
            match crate::job::Indexes::parse(text, completions) {
                Ok(indexes) => most = indexes.len(),
                Err(why) => {
                    let why = format!("error parsing succeededIndexes: {why}");
                    errors.push(FieldError::invalid(&path.child("succeededIndexes"), text, why));
                }
            }
        }
        if let Some(count) = count {
            let at = path.child("succeededCount");
            if count < 0 {
                errors.push(FieldError::invalid(&at, count, "must be greater than or equal to 0"));
            } else if count > most {
                let why = if indexes.is_some() {
                    format!(
                        "must be less than or equal to {most} (the number of indexes in the specified succeededIndexes field)"
                    )
                } else {
                    format!("must be less than or equal to {most} (the number of specified completions)")
                };
                errors.push(FieldError::invalid(&at, count, why));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn complaints_about_failures_are_upstreams() {
        let spec = json!({"template": {"spec": {"containers": [{"name": "c"}]}}});
        let path = Path::new("p");
        let codes = |codes: Value| json!({"rules": [{"action": "FailJob", "onExitCodes": codes}]});
        let good = codes(json!({"operator": "In", "values": [1, 2], "containerName": "c"}));
        assert_eq!(failure(&good, &spec, &path), []);
        for (policy, expected) in [
            (
                codes(json!({"operator": "In", "values": [2, 0, 2], "containerName": "d"})),
                vec![
                    "p.rules[0].onExitCodes.containerName: Invalid value: \"d\": must be one of the container or \
                     initContainer names in the pod template",
                    "p.rules[0].onExitCodes.values[1]: Invalid value: 0: must not be 0 for the In operator",
                    "p.rules[0].onExitCodes.values[2]: Duplicate value: 2",
                    "p.rules[0].onExitCodes.values: Invalid value: [2,0,2]: must be ordered",
                ],
            ),
            (
                json!({"rules": [{"action": "FailIndex", "onPodConditions": [{"type": "X", "status": "Y"}]}]}),
                vec![
                    "p.rules[0].action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set",
                    "p.rules[0].onPodConditions[0].status: Unsupported value: \"Y\": supported values: \"False\", \
                     \"True\", \"Unknown\"",
                ],
            ),
            (
                json!({"rules": [{"action": "Ignore"}]}),
                vec![
                    "p.rules[0]: Invalid value: {\"action\":\"Ignore\"}: specifying one of OnExitCodes and \
                     OnPodConditions is required",
                ],
            ),
        ] {
            assert_eq!(texts(&failure(&policy, &spec, &path)), expected);
        }
    }

    #[test]
    fn complaints_about_success_are_upstreams() {
        let path = Path::new("p");
        let rule = |rule: Value| json!({ "rules": [rule] });
        assert_eq!(success(&rule(json!({"succeededIndexes": "0-2", "succeededCount": 3})), 5, &path), []);
        for (policy, expected) in [
            (
                rule(json!({"succeededIndexes": "0-2", "succeededCount": 4})),
                "p.rules[0].succeededCount: Invalid value: 4: must be less than or equal to 3 (the number of indexes \
                 in the specified succeededIndexes field)",
            ),
            (
                rule(json!({"succeededIndexes": "0-5"})),
                "p.rules[0].succeededIndexes: Invalid value: \"0-5\": error parsing succeededIndexes: too large \
                 index: \"5\"",
            ),
            (
                rule(json!({})),
                "p.rules[0]: Required value: at least one of succeededCount or succeededIndexes must be specified",
            ),
        ] {
            assert_eq!(texts(&success(&policy, 5, &path)), [expected]);
        }
    }
}
