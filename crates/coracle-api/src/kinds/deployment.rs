//! Deployments.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::pod::template;
use super::workload;
use crate::catalogue::Strategy;
use crate::field::{FieldError, Path};
use crate::metadata;
use crate::table::Column;
use crate::tree::{self, at, int_at, object_in, set_default, str_at};

/// What is special about Deployments.
pub(crate) struct DeploymentStrategy;

static COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Ready", "Number of the pod with ready state"),
    Column::text(
        "Up-to-date",
        "Total number of non-terminating pods targeted by this deployment that have the desired template spec.",
    ),
    Column::text(
        "Available",
        "Total number of available non-terminating pods (ready for at least minReadySeconds) targeted by this \
         deployment.",
    ),
    Column::AGE,
    template::CONTAINERS,
    template::IMAGES,
    workload::SELECTOR,
];

/// Numbers of a status that count Pods.
const COUNTS: [&str; 6] = [
    "replicas",
    "updatedReplicas",
    "readyReplicas",
    "availableReplicas",
    "unavailableReplicas",
    "terminatingReplicas",
];

impl Strategy for DeploymentStrategy {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object_in(object, "spec") else { return };
        set_default(spec, "replicas", 1);
        set_default(spec, "revisionHistoryLimit", 10);
        set_default(spec, "progressDeadlineSeconds", 600);
        if let Some(strategy) = spec.entry("strategy").or_insert_with(|| json!({})).as_object_mut() {
            set_default(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                let rolling = strategy.entry("rollingUpdate").or_insert_with(|| json!({}));
                if let Some(rolling) = rolling.as_object_mut() {
                    set_default(rolling, "maxUnavailable", "25%");
                    set_default(rolling, "maxSurge", "25%");
                }
            }
        }
        if let Some(template) = spec.get_mut("template") {
            template::default(template);
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set_or_remove(object, "status", Some(json!({})));
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        tree::set_or_remove(new, "status", old.get("status").cloned());
        // Annotations go down to ReplicaSets, so that a change of them is work to be observed, too. A change of the
        // spec is counted for every kind.
        let annotations = |object: &Value| at(object, &["metadata", "annotations"]).cloned();
        if annotations(new) != annotations(old) && new.get("spec") == old.get("spec") {
            metadata::bump_generation(new);
        }
    }

    fn prepare_for_status_update(&self, new: &mut Value, old: &Value) {
        tree::set_or_remove(new, "spec", old.get("spec").cloned());
        let labels = at(old, &["metadata", "labels"]).cloned();
        if let Some(metadata) = new.get_mut("metadata") {
            tree::set_or_remove(metadata, "labels", labels);
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        validate(object)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = validate(new);
        let spec = |object: &Value| object.get("spec").cloned().unwrap_or_default();
        errors.extend(workload::unchanged(&spec(new), &spec(old), &Path::new("spec"), "selector"));
        errors
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let path = Path::new("status");
        let status = new.get("status").unwrap_or(&Value::Null);
        let mut errors = workload::not_negative(status, &path, &["observedGeneration", "collisionCount"]);
        errors.extend(workload::not_negative(status, &path, &COUNTS));
        let count = |field: &str| int_at(status, &[field]).unwrap_or(0);
        for (field, than) in [
            ("updatedReplicas", "replicas"),
            ("readyReplicas", "replicas"),
            ("availableReplicas", "replicas"),
            ("availableReplicas", "readyReplicas"),
        ] {
            if count(field) > count(than) {
                let why = format!("cannot be greater than status.{than}");
                errors.push(FieldError::invalid(&path.child(field), count(field), why));
            }
        }
        let collisions = |object: &Value| int_at(object, &["status", "collisionCount"]);
        if let Some(was) = collisions(old)
            && collisions(new).is_none_or(|is| is < was)
        {
            let is = collisions(new).unwrap_or(0);
            errors.push(FieldError::invalid(&path.child("collisionCount"), is, "cannot be decremented"));
        }
        errors
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = workload::template_warnings(object, old, &["spec", "template"]);
        if old.is_none() {
            out.extend(workload::name_warning(object));
        }
        out
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let count = |path: [&str; 2]| int_at(object, &path).unwrap_or(0);
        let [containers, images] = template::cells(at(object, &["spec", "template"]));
        vec![
            metadata::name(object).into(),
            format!("{}/{}", count(["status", "readyReplicas"]), count(["spec", "replicas"])).into(),
            count(["status", "updatedReplicas"]).into(),
            count(["status", "availableReplicas"]).into(),
            super::age(object, now),
            containers,
            images,
            workload::selector_cell(at(object, &["spec", "selector"])),
        ]
    }
}

fn validate(object: &Value) -> Vec<FieldError> {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = workload::not_negative(spec, &path, &["replicas"]);
    errors.extend(workload::replicated(spec, &path));
    let strategy = spec.get("strategy").unwrap_or(&Value::Null);
    errors.extend(judge_strategy(strategy, &path.child("strategy")));
    let numbers = ["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"];
    errors.extend(workload::not_negative(spec, &path, &numbers));
    let ready = int_at(spec, &["minReadySeconds"]).unwrap_or(0);
    if let Some(deadline) = int_at(spec, &["progressDeadlineSeconds"]).filter(|deadline| *deadline <= ready) {
        let at = path.child("progressDeadlineSeconds");
        errors.push(FieldError::invalid(&at, deadline, "must be greater than minReadySeconds"));
    }
    errors
}

fn judge_strategy(strategy: &Value, path: &Path) -> Vec<FieldError> {
    let rolling = strategy.get("rollingUpdate");
    let at = path.child("rollingUpdate");
    match str_at(strategy, &["type"]) {
        "Recreate" if rolling.is_some() => {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            vec![FieldError::forbidden(&at, why)]
        }
        "Recreate" => Vec::new(),
        "RollingUpdate" => match rolling {
            None => vec![FieldError::required(&at, "this should be defaulted and never be nil")],
            Some(rolling) => judge_rolling(rolling, &at),
        },
        _ => {
            vec![FieldError::not_supported(path, strategy.clone(), &["Recreate", "RollingUpdate"])]
        }
    }
}

fn judge_rolling(rolling: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["maxUnavailable", "maxSurge"] {
        let said = rolling.get(field);
        errors.extend(said.and_then(|said| workload::int_or_percent(said, &path.child(field))));
    }
    let zero = |field: &str| match rolling.get(field) {
        Some(Value::String(text)) => workload::percent(text) == Some(0),
        Some(Value::Number(number)) => number.as_i64() == Some(0),
        _ => false,
    };
    let unavailable = path.child("maxUnavailable");
    let said = rolling.get("maxUnavailable").cloned().unwrap_or_default();
    if zero("maxUnavailable") && zero("maxSurge") {
        errors.push(FieldError::invalid(&unavailable, said.clone(), "may not be 0 when `maxSurge` is 0"));
    }
    errors.extend(workload::at_most_all(&said, &unavailable));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::find;

    fn complaints(mutate: impl Fn(&mut Value)) -> Vec<String> {
        let resource = find("apps", "v1", "deployments").unwrap();
        let mut object = json!({
            "metadata": {"name": "a", "namespace": "default"},
            "spec": {
                "selector": {"matchLabels": {"app": "a"}},
                "template": {
                    "metadata": {"labels": {"app": "a"}},
                    "spec": {"containers": [{"name": "c", "image": "i"}]},
                },
            },
        });
        mutate(&mut object["spec"]);
        resource.default(&mut object);
        resource.prepare_for_create(&mut object);
        resource.validate_create(&object).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_are_what_is_stored() {
        let mut object = json!({"spec": {"template": {"spec": {"containers": [{
            "name": "c", "image": "i", "resources": {"limits": {"cpu": "1"}}
        }]}}}});
        DeploymentStrategy.default(&mut object);
        assert_eq!(
            object["spec"],
            json!({
                "replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
                "strategy": {
                    "type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}
                },
                "template": {"spec": {
                    "containers": [{
                        "name": "c", "image": "i", "resources": {"limits": {"cpu": "1"}},
                        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                        "imagePullPolicy": "Always",
                    }],
                    "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
                    "terminationGracePeriodSeconds": 30, "securityContext": {},
                }},
            })
        );
    }

    #[test]
    fn complaints_are_upstreams() {
        type Mutation = fn(&mut Value);
        let table: [(Mutation, &[&str]); 13] = [
            (|_| {}, &[]),
            (
                |spec| {
                    spec["selector"] = json!({"matchLabels": {"app": "b"}});
                },
                &[
                    "spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match template \
                   `labels`",
                ],
            ),
            (
                |spec| {
                    spec.as_object_mut().unwrap().shift_remove("selector");
                },
                &["spec.selector: Required value"],
            ),
            (
                |spec| spec["selector"] = json!({"matchExpressions": [{"key": "app", "operator": "In"}]}),
                &[
                    "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is \
                   'In' or 'NotIn'",
                    "spec.selector: Invalid value: {\"matchExpressions\":[{\"key\":\"app\",\"operator\":\"In\"}]}: \
                   invalid label selector",
                ],
            ),
            (
                |spec| spec["replicas"] = json!(-1),
                &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                |spec| spec["template"]["spec"]["restartPolicy"] = "Never".into(),
                &[
                    "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                ],
            ),
            (
                |spec| spec["template"]["spec"]["containers"][0]["name"] = "A".into(),
                &[
                    "spec.template.spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label must \
                   consist of lower case alphanumeric characters or '-', and must start and end with an \
                   alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
                   '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
                ],
            ),
            (
                |spec| spec["template"]["spec"]["hostUsers"] = false.into(),
                &["spec.template.spec.hostUsers: Forbidden: hostUsers false is not supported by Coracle yet"],
            ),
            (
                |spec| spec["strategy"] = json!({"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}),
                &[
                    "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
                ],
            ),
            (
                |spec| spec["strategy"] = json!({"type": "X"}),
                &["spec.strategy: Unsupported value: {\"type\":\"X\"}: supported values: \"Recreate\", \
                   \"RollingUpdate\""],
            ),
            (
                |spec| spec["strategy"] = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}),
                &[
                    "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` \
                   is 0",
                ],
            ),
            (
                |spec| spec["strategy"] = json!({"rollingUpdate": {"maxUnavailable": "120%"}}),
                &[
                    "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"120%\": must not be greater than \
                   100%",
                ],
            ),
            (
                |spec| {
                    spec["minReadySeconds"] = 10.into();
                    spec["progressDeadlineSeconds"] = 10.into();
                },
                &["spec.progressDeadlineSeconds: Invalid value: 10: must be greater than minReadySeconds"],
            ),
        ];
        for (mutate, expected) in table {
            assert_eq!(complaints(mutate), expected);
        }
    }

    #[test]
    fn annotations_and_specs_are_counted_once_and_a_status_keeps_labels() {
        let resource = find("apps", "v1", "deployments").unwrap();
        let old = json!({
            "metadata": {"name": "a", "generation": 3, "labels": {"l": "1"}}, "spec": {"replicas": 1},
        });
        let mut new = old.clone();
        new["metadata"]["annotations"] = json!({"k": "v"});
        resource.prepare_for_update(&mut new, &old);
        assert_eq!(new["metadata"]["generation"], 4);
        new["metadata"]["generation"] = 3.into();
        new["spec"]["replicas"] = 2.into();
        resource.prepare_for_update(&mut new, &old);
        assert_eq!(new["metadata"]["generation"], 4);
        let mut status = new.clone();
        status["metadata"]["labels"] = json!({});
        resource.prepare_for_status_update(&mut status, &old);
        assert_eq!(status["metadata"]["labels"], json!({"l": "1"}));
        assert_eq!(status["metadata"]["annotations"], json!({"k": "v"}));
        assert_eq!(status["metadata"]["generation"], 3);
    }
}
