//! Jobs.

mod policy;
mod validate;

use jiff::Timestamp;
use serde_json::{Value, json};

pub(super) use validate::{spec as validate_spec, spec_defaults};

use super::pod::template;
use super::workload;
use crate::catalogue::{Dependents, Strategy};
use crate::field::{FieldError, Path};
use crate::metadata;
use crate::table::{Column, human_duration};
use crate::tree::{self, at, int_at, list_at, object_in, str_at, true_at};

/// The labels that tie Pods to the Job that made them, by its UID and by its name: the current ones and those of old.
const UID_LABELS: [&str; 2] = ["batch.kubernetes.io/controller-uid", "controller-uid"];
const NAME_LABELS: [&str; 2] = ["batch.kubernetes.io/job-name", "job-name"];

/// What is special about Jobs.
pub(crate) struct JobStrategy;

static COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Status", "Status of the job."),
    Column::text("Completions", "Completions specifies the desired number of successfully finished pods."),
    Column::text("Duration", "Time required to complete the job."),
    Column::AGE,
    template::CONTAINERS,
    template::IMAGES,
    workload::SELECTOR,
];

impl Strategy for JobStrategy {
    fn dependents(&self) -> Dependents {
        Dependents::Orphan {
            warning: "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to \
                      remove them or set propagationPolicy=Orphan to suppress this warning",
        }
    }

    fn default(&self, object: &mut Value) {
        let Some(spec) = object_in(object, "spec") else { return };
        // One Pod, once; but who says how many run at a time leaves open how many are to end well.
        let neither = !spec.contains_key("completions") && !spec.contains_key("parallelism");
        if neither {
            spec.insert("completions".into(), 1.into());
        }
        tree::set_default(spec, "parallelism", 1);
        let limit = if spec.contains_key("backoffLimitPerIndex") { i32::MAX } else { 6 };
        tree::set_default(spec, "backoffLimit", limit);
        tree::set_default(spec, "completionMode", "NonIndexed");
        tree::set_default(spec, "suspend", false);
        tree::set_default(spec, "manualSelector", false);
        let replacement =
            if spec.contains_key("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
        tree::set_default(spec, "podReplacementPolicy", replacement);
        spec_defaults(spec);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set_or_remove(object, "status", Some(json!({})));
        if !true_at(object, &["spec", "manualSelector"]) {
            generate_selector(object);
        }
        if tree::is_empty(at(object, &["metadata", "labels"])) {
            let labels = at(object, &["spec", "template", "metadata", "labels"]).cloned();
            if let Some(metadata) = object.get_mut("metadata") {
                tree::set_or_remove(metadata, "labels", labels);
            }
        }
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        tree::set_or_remove(new, "status", old.get("status").cloned());
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = generated_selector(object);
        errors.extend(validate::job(object));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = validate::job(new);
        errors.extend(validate::update(new, old));
        errors
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        validate::status(new, old)
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

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["status.successful"]
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let succeeded = int_at(object, &["status", "succeeded"]).unwrap_or(0);
        vec![("status.successful", succeeded.to_string())]
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let [containers, images] = template::cells(at(object, &["spec", "template"]));
        vec![
            metadata::name(object).into(),
            status_word(object).into(),
            completions(object).into(),
            duration(object, now).into(),
            super::age(object, now),
            containers,
            images,
            workload::selector_cell(at(object, &["spec", "selector"])),
        ]
    }
}

/// The labels that the Pods of a Job carry.
fn own_labels(object: &Value) -> impl Iterator<Item = (&'static str, String)> {
    let uid = str_at(object, &["metadata", "uid"]).to_owned();
    let name = metadata::name(object).to_owned();
    let uids = UID_LABELS.into_iter().map(move |label| (label, uid.clone()));
    uids.chain(NAME_LABELS.into_iter().map(move |label| (label, name.clone())))
}

/// Gives the Job a selector that selects its own Pods and no others, and its Pods the labels for it.
fn generate_selector(object: &mut Value) {
    let labels: Vec<_> = own_labels(object).collect();
    let uid = str_at(object, &["metadata", "uid"]).to_owned();
    let Some(spec) = object.get_mut("spec") else { return };
    if let Some(template) = spec.get_mut("template")
        && object_in(template, "metadata").is_some()
        && let Some(written) = template.get_mut("metadata").and_then(|metadata| object_in(metadata, "labels"))
    {
        for (label, value) in labels {
            tree::set_default(written, label, value);
        }
    }
    if object_in(spec, "selector").is_some()
        && let Some(matched) =
            spec.get_mut("selector").and_then(|selector| object_in(selector, "matchLabels"))
    {
        tree::set_default(matched, UID_LABELS[0], uid);
    }
}

/// What is wrong with a selector that was to be generated and is not.
fn generated_selector(object: &Value) -> Vec<FieldError> {
    if true_at(object, &["spec", "manualSelector"]) {
        return Vec::new();
    }
    let mut errors = Vec::new();
    let path = Path::new("spec").child("template").child("metadata").child("labels");
    for (label, expected) in own_labels(object) {
        let is = str_at(object, &["spec", "template", "metadata", "labels", label]);
        if is != expected {
            let why = format!("must be '{expected}'");
            errors.push(FieldError::invalid(&path.key(label), is, why));
        }
    }
    let expected = json!({"matchLabels": {UID_LABELS[0]: str_at(object, &["metadata", "uid"])}});
    let selector = at(object, &["spec", "selector"]).cloned().unwrap_or_default();
    if selector != expected {
        let path = Path::new("spec").child("selector");
        errors.push(FieldError::invalid(&path, selector, "`selector` not auto-generated"));
    }
    errors
}

fn status_word(object: &Value) -> &'static str {
    let has = |kind: &str| {
        list_at(object, &["status", "conditions"])
            .iter()
            .any(|condition| str_at(condition, &["type"]) == kind && str_at(condition, &["status"]) == "True")
    };
    let ended = ["Complete", "Failed"].into_iter().find(|kind| has(kind));
    let deleted = metadata::is_deleting(object).then_some("Terminating");
    let on_the_way =
        || ["Suspended", "FailureTarget", "SuccessCriteriaMet"].into_iter().find(|kind| has(kind));
    ended.or(deleted).or_else(on_the_way).unwrap_or("Running")
}

fn completions(object: &Value) -> String {
    let succeeded = int_at(object, &["status", "succeeded"]).unwrap_or(0);
    let parallelism = int_at(object, &["spec", "parallelism"]).unwrap_or(0);
    match int_at(object, &["spec", "completions"]) {
        Some(completions) => format!("{succeeded}/{completions}"),
        None if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        None => format!("{succeeded}/1"),
    }
}

fn duration(object: &Value, now: Timestamp) -> String {
    let time = |field: &str| -> Option<Timestamp> { str_at(object, &["status", field]).parse().ok() };
    let Some(start) = time("startTime") else { return String::new() };
    let end = time("completionTime").unwrap_or(now);
    human_duration(end.as_second() - start.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::find;

    pub(super) fn job(spec: &Value) -> Value {
        let resource = find("batch", "v1", "jobs").unwrap();
        let mut object = json!({
            "metadata": {"name": "a", "namespace": "default", "uid": "u"},
            "spec": {"template": {"spec": {
                "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}],
            }}},
        });
        for (field, value) in spec.as_object().into_iter().flatten() {
            object["spec"][field] = value.clone();
        }
        resource.default(&mut object);
        resource.prepare_for_create(&mut object);
        object
    }

    #[test]
    fn a_job_gets_its_selector_and_says_what_it_means() {
        let object = job(&json!({}));
        let labels = json!({
            "batch.kubernetes.io/controller-uid": "u", "controller-uid": "u",
            "batch.kubernetes.io/job-name": "a", "job-name": "a",
        });
        assert_eq!(object["metadata"]["labels"], labels);
        assert_eq!(object["spec"]["template"]["metadata"]["labels"], labels);
        let spec = object["spec"].as_object().unwrap();
        for (field, value) in [
            ("selector", json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}})),
            ("completions", json!(1)),
            ("parallelism", json!(1)),
            ("backoffLimit", json!(6)),
            ("completionMode", json!("NonIndexed")),
            ("suspend", json!(false)),
            ("manualSelector", json!(false)),
            ("podReplacementPolicy", json!("TerminatingOrFailed")),
        ] {
            assert_eq!(spec[field], value, "{field}");
        }
        assert_eq!(object["status"], json!({}));
        assert_eq!(find("batch", "v1", "jobs").unwrap().validate_create(&object), []);
        let object = job(&json!({"parallelism": 3}));
        assert_eq!(object["spec"].get("completions"), None, "a work queue");
    }

    #[test]
    fn selectors_of_others_are_refused() {
        let object = job(&json!({"selector": {"matchLabels": {"app": "x"}}}));
        let errors: Vec<String> =
            JobStrategy.validate_create(&object).iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"x\",\"batch.kubernetes.io/controller-uid\":\
                 \"u\"}}: `selector` not auto-generated",
                "spec.template.metadata.labels: Invalid value: {\"batch.kubernetes.io/controller-uid\":\"u\",\
                 \"controller-uid\":\"u\",\"batch.kubernetes.io/job-name\":\"a\",\"job-name\":\"a\"}: `selector` does \
                 not match template `labels`",
            ]
        );
    }

    #[test]
    fn rows_read_as_upstreams() {
        let now: Timestamp = "2030-01-01T00:02:05Z".parse().unwrap();
        let mut object = job(&json!({"completions": 3}));
        object["status"] = json!({"succeeded": 1, "startTime": "2030-01-01T00:00:05Z"});
        let cells = JobStrategy.row(&object, now);
        assert_eq!(cells[1..4], ["Running", "1/3", "2m"].map(Value::from));
        object["status"]["completionTime"] = "2030-01-01T00:00:10Z".into();
        object["status"]["conditions"] = json!([{"type": "Complete", "status": "True"}]);
        let cells = JobStrategy.row(&object, now);
        assert_eq!(cells[1..4], ["Complete", "1/3", "5s"].map(Value::from));
        let queue = job(&json!({"parallelism": 2}));
        assert_eq!(JobStrategy.row(&queue, now)[1..4], ["Running", "0/1 of 2", ""].map(Value::from));
    }
}
