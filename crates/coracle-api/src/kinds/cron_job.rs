//! CronJobs.

use jiff::Timestamp;
use serde_json::Value;
use serde_json::json;

use super::pod::template;
use super::{job, workload};
use crate::catalogue::Strategy;
use crate::cron;
use crate::field::{FieldError, Path};
use crate::metadata::{self, validate_annotations, validate_labels};
use crate::table::Column;
use crate::tree::{self, at, list_at, object_in, str_at, true_at};

/// Longest name: what is left of a Job's after the time that is appended to it.
const NAME_MAX: usize = 63 - 11;

/// What is special about CronJobs.
pub(crate) struct CronJobStrategy;

static COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Schedule", "The schedule in Cron format, see https://en.wikipedia.org/wiki/Cron."),
    Column::text(
        "Timezone",
        "The time zone name for the given schedule, see https://en.wikipedia.org/wiki/List_of_tz_database_time_zones.",
    ),
    Column {
        name: "Suspend",
        kind: "boolean",
        format: "",
        description: "This flag tells the controller to suspend subsequent executions, it does not apply to already \
                      started executions.",
        priority: 0,
    },
    Column::number("Active", "A list of pointers to currently running jobs."),
    Column::text("Last Schedule", "Information when was the last time the job was successfully scheduled."),
    Column::AGE,
    template::CONTAINERS,
    template::IMAGES,
    workload::SELECTOR,
];

impl Strategy for CronJobStrategy {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object_in(object, "spec") else { return };
        tree::set_default(spec, "concurrencyPolicy", "Allow");
        tree::set_default(spec, "suspend", false);
        tree::set_default(spec, "successfulJobsHistoryLimit", 3);
        tree::set_default(spec, "failedJobsHistoryLimit", 1);
        if let Some(template) = spec.get_mut("jobTemplate")
            && let Some(spec) = object_in(template, "spec")
        {
            job::spec_defaults(spec);
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set_or_remove(object, "status", Some(json!({})));
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        tree::set_or_remove(new, "status", old.get("status").cloned());
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let name = metadata::name(object);
        if name.len() > NAME_MAX {
            let path = Path::new("metadata").child("name");
            errors.push(FieldError::invalid(&path, name, "must be no more than 52 characters"));
        }
        errors.extend(validate(object));
        errors
    }

    fn validate_update(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
        validate(new)
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = workload::template_warnings(object, old, &["spec", "jobTemplate", "spec", "template"]);
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
        let or_none = |text: &str| Value::from(if text.is_empty() { "<none>" } else { text });
        let job = at(object, &["spec", "jobTemplate", "spec"]);
        let [containers, images] = template::cells(job.and_then(|job| job.get("template")));
        vec![
            metadata::name(object).into(),
            str_at(object, &["spec", "schedule"]).into(),
            or_none(str_at(object, &["spec", "timeZone"])),
            (if true_at(object, &["spec", "suspend"]) { "True" } else { "False" }).into(),
            list_at(object, &["status", "active"]).len().into(),
            template::since(now, at(object, &["status", "lastScheduleTime"])),
            super::age(object, now),
            containers,
            images,
            workload::selector_cell(job.and_then(|job| job.get("selector"))),
        ]
    }
}

fn validate(object: &Value) -> Vec<FieldError> {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = schedule(spec, &path);
    let numbers = ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"];
    errors.extend(workload::not_negative(spec, &path, &numbers));
    let policies = ["Allow", "Forbid", "Replace"];
    match str_at(spec, &["concurrencyPolicy"]) {
        "" => errors.push(FieldError::required(&path.child("concurrencyPolicy"), "")),
        policy if policies.contains(&policy) => {}
        other => errors.push(FieldError::not_supported(&path.child("concurrencyPolicy"), other, &policies)),
    }
    let path = path.child("jobTemplate");
    let template = spec.get("jobTemplate").unwrap_or(&Value::Null);
    let meta = path.child("metadata");
    errors.extend(validate_labels(at(template, &["metadata", "labels"]), &meta.child("labels")));
    errors
        .extend(validate_annotations(at(template, &["metadata", "annotations"]), &meta.child("annotations")));
    let path = path.child("spec");
    let said = template.get("spec").unwrap_or(&Value::Null);
    if true_at(said, &["manualSelector"]) {
        let at = path.child("manualSelector");
        errors.push(FieldError::not_supported(&at, true, &["nil", "false"]));
    }
    errors.extend(job::validate_spec(said, &path));
    errors
}

fn schedule(spec: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let schedule = str_at(spec, &["schedule"]);
    let at_schedule = path.child("schedule");
    if schedule.is_empty() {
        errors.push(FieldError::required(&at_schedule, ""));
    } else if schedule.contains("TZ") {
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.push(FieldError::invalid(&at_schedule, schedule, why));
    } else if let Err(why) = cron::Schedule::parse(schedule) {
        errors.push(FieldError::invalid(&at_schedule, schedule, why));
    }
    let zone_path = path.child("timeZone");
    if let Some(zone) = at(spec, &["timeZone"]).and_then(Value::as_str) {
        let why = match zone {
            "" => Some("timeZone must be nil or non-empty string".to_owned()),
            _ if zone.eq_ignore_ascii_case("local") => {
                let why =
                    "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
                Some(why.to_owned())
            }
            _ => cron::time_zone(zone).err(),
        };
        errors.extend(why.map(|why| FieldError::invalid(&zone_path, zone, why)));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::find;

    fn made(spec: &Value) -> Value {
        let resource = find("batch", "v1", "cronjobs").unwrap();
        let mut object = json!({
            "metadata": {"name": "a", "namespace": "default"},
            "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": {"spec": {
                "restartPolicy": "OnFailure", "containers": [{"name": "c", "image": "i"}],
            }}}}},
        });
        for (field, value) in spec.as_object().into_iter().flatten() {
            object["spec"][field] = value.clone();
        }
        resource.default(&mut object);
        resource.prepare_for_create(&mut object);
        object
    }

    #[test]
    fn complaints_are_upstreams() {
        let table: [(Value, &[&str]); 8] = [
            (json!({"timeZone": "Europe/Berlin"}), &[]),
            (json!({"schedule": ""}), &["spec.schedule: Required value"]),
            (
                json!({"schedule": "* * *"}),
                &["spec.schedule: Invalid value: \"* * *\": expected exactly 5 fields, found 3: [* * *]"],
            ),
            (
                json!({"schedule": "TZ=UTC * * * * *"}),
                &[
                    "spec.schedule: Invalid value: \"TZ=UTC * * * * *\": cannot use TZ or CRON_TZ in schedule, use \
                   timeZone field instead",
                ],
            ),
            (
                json!({"timeZone": "Nowhere"}),
                &["spec.timeZone: Invalid value: \"Nowhere\": unknown time zone Nowhere"],
            ),
            (
                json!({"concurrencyPolicy": "X", "startingDeadlineSeconds": -1}),
                &[
                    "spec.startingDeadlineSeconds: Invalid value: -1: must be greater than or equal to 0",
                    "spec.concurrencyPolicy: Unsupported value: \"X\": supported values: \"Allow\", \"Forbid\", \
                     \"Replace\"",
                ],
            ),
            (
                json!({"jobTemplate": {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}}}),
                &[
                    "spec.jobTemplate.spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \
                   \"Never\"",
                ],
            ),
            (
                json!({"jobTemplate": {"spec": {"manualSelector": true, "template": {"spec": {
                    "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]
                }}}}}),
                &[
                    "spec.jobTemplate.spec.manualSelector: Unsupported value: true: supported values: \"nil\", \
                   \"false\"",
                ],
            ),
        ];
        for (spec, expected) in table {
            let errors: Vec<String> =
                CronJobStrategy.validate_create(&made(&spec)).iter().map(ToString::to_string).collect();
            assert_eq!(errors, expected, "{spec}");
        }
    }

    #[test]
    fn rows_read_as_upstreams() {
        let mut object = made(&json!({}));
        object["metadata"]["creationTimestamp"] = "2030-01-01T00:00:00Z".into();
        let now: Timestamp = "2030-01-01T00:02:05Z".parse().unwrap();
        let row = |object: &Value| CronJobStrategy.row(object, now);
        let cells = ["a", "* * * * *", "<none>", "False"].map(Value::from).to_vec();
        let rest = [0.into(), "<none>".into(), "2m5s".into(), "c".into(), "i".into(), "<none>".into()];
        assert_eq!(row(&object), [cells, rest.to_vec()].concat());
        object["status"] = json!({"active": [{}], "lastScheduleTime": "2030-01-01T00:02:00Z"});
        assert_eq!(row(&object)[4..6], [Value::from(1), "5s".into()]);
    }
}
