//! What a CronJob does next: forget old Jobs, start the one whose time has come, and say when the next one is due.

use std::cmp::Reverse;
use std::sync::Arc;

use coracle_api::cron::{Schedule, time_zone};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::job::end_of;
use crate::workload::controller_reference;
use crate::workload::status::time;

/// When a Job of ours was due.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed starts than this are told: a clock is wrong, or nobody was there for long.
const MANY: i64 = 100;

/// What is to be done, in this order.
#[derive(Debug)]
pub struct Plan {
    /// Jobs that are to go: too old to be remembered, or in the way.
    pub delete: Vec<Arc<Job>>,
    /// The Job whose time has come, and when that was.
    pub start: Option<(Box<Job>, Timestamp)>,
    /// What was seen; a Job that is started is added to it when it is there.
    pub status: CronJobStatus,
    /// Warning or not, reason, message.
    pub events: Vec<(bool, &'static str, String)>,
    /// When the next Job is due.
    pub wake_at: Option<Timestamp>,
}

/// Decides about the Jobs that a CronJob holds.
#[must_use]
pub fn reconcile(cron_job: &CronJob, held: &[Arc<Job>], now: Timestamp) -> Plan {
    let mut plan = Plan {
        delete: Vec::new(),
        start: None,
        status: cron_job.status.clone().unwrap_or_default(),
        events: Vec::new(),
        wake_at: None,
    };
    see(cron_job, held, &mut plan);
    if cron_job.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    forget(cron_job, held, &mut plan);
    if cron_job.spec.suspend == Some(true) {
        return plan;
    }
    let zone = match cron_job.spec.time_zone.as_deref().map(time_zone) {
        None => TimeZone::UTC,
        Some(Ok(zone)) => zone,
        Some(Err(why)) => {
            let zone = cron_job.spec.time_zone.as_deref().unwrap_or_default();
            plan.events.push((true, "UnknownTimeZone", format!("invalid timeZone: \"{zone}\": {why}")));
            return plan;
        }
    };
    let schedule = match Schedule::parse(&cron_job.spec.schedule) {
        Ok(schedule) => schedule,
        Err(why) => {
            let text = format!("unparseable schedule: \"{}\" : {why}", cron_job.spec.schedule);
            plan.events.push((true, "UnparseableSchedule", text));
            return plan;
        }
    };
    plan.wake_at = schedule.next(now, &zone);
    if let Some(due) = last_due(cron_job, &schedule, &zone, now, &mut plan) {
        start(cron_job, held, due, &zone, now, &mut plan);
    }
    plan
}

fn name_of(job: &Job) -> &str {
    job.metadata.name.as_deref().unwrap_or_default()
}

/// Whether a Job was started by the schedule, and not by hand from its template.
fn is_scheduled(job: &Job) -> bool {
    job.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(SCHEDULED))
}

fn is_uid(reference: &ObjectReference, job: &Job) -> bool {
    reference.uid.is_some() && reference.uid == job.metadata.uid
}

/// Which Jobs run, which have ended, and which are gone.
fn see(cron_job: &CronJob, held: &[Arc<Job>], plan: &mut Plan) {
    let listed = plan.status.active.take().unwrap_or_default();
    let mut active: Vec<ObjectReference> = Vec::new();
    for reference in &listed {
        if !held.iter().any(|job| is_uid(reference, job)) {
            let name = reference.name.as_deref().unwrap_or_default();
            plan.events.push((false, "MissingJob", format!("Active job went missing: {name}")));
        }
    }
    for job in held {
        let known = listed.iter().find(|reference| is_uid(reference, job));
        match (end_of(job), known) {
            (None, Some(reference)) => active.push(reference.clone()),
            // Its start was not written down: who started it died.
            (None, None) if is_scheduled(job) => active.push(reference_to(job)),
            (None, None) => {
                let text =
                    format!("Saw a job that the controller did not create or forgot: {}", name_of(job));
                plan.events.push((true, "UnexpectedJob", text));
            }
            (Some((kind, _)), known) => {
                if known.is_some() {
                    let text = format!("Saw completed job: {}, condition: {kind}", name_of(job));
                    plan.events.push((false, "SawCompletedJob", text));
                }
                let ended = job.status.as_ref().and_then(|status| status.completion_time.clone());
                let last = plan.status.last_successful_time.as_ref().map(|time| time.0);
                if kind == "Complete" && ended.as_ref().map(|time| time.0) > last {
                    plan.status.last_successful_time = ended;
                }
            }
        }
        let due = scheduled_at(cron_job, job).filter(|_| is_scheduled(job));
        if due > plan.status.last_schedule_time.as_ref().map(|time| time.0) {
            plan.status.last_schedule_time = due.map(time);
        }
    }
    plan.status.active = (!active.is_empty()).then_some(active);
}

/// When a Job was due: its name says it to the minute.
fn scheduled_at(cron_job: &CronJob, job: &Job) -> Option<Timestamp> {
    let prefix = cron_job.metadata.name.as_deref().unwrap_or_default();
    let said = job.metadata.annotations.as_ref()?.get(SCHEDULED)?;
    name_of(job).strip_prefix(prefix)?;
    said.parse().ok()
}

fn reference_to(job: &Job) -> ObjectReference {
    coracle_client::reference(job)
}

/// Jobs beyond those that are remembered.
fn forget(cron_job: &CronJob, held: &[Arc<Job>], plan: &mut Plan) {
    for (kind, limit) in [
        ("Failed", cron_job.spec.failed_jobs_history_limit),
        ("Complete", cron_job.spec.successful_jobs_history_limit),
    ] {
        let Some(limit) = limit else { continue };
        let mut ended: Vec<&Arc<Job>> = held
            .iter()
            .filter(|job| job.metadata.deletion_timestamp.is_none())
            .filter(|job| end_of(job).is_some_and(|(how, _)| how == kind))
            .collect();
        // The newest first.
        let began = |job: &Job| {
            let start = job.status.as_ref().and_then(|status| status.start_time.as_ref().map(|time| time.0));
            (start, job.metadata.name.clone())
        };
        ended.sort_by_key(|job| Reverse(began(job)));
        plan.delete.extend(ended.into_iter().skip(usize::try_from(limit).unwrap_or(0)).cloned());
    }
}

/// The last time that has come and was not used yet.
fn last_due(
    cron_job: &CronJob,
    schedule: &Schedule,
    zone: &TimeZone,
    now: Timestamp,
    plan: &mut Plan,
) -> Option<Timestamp> {
    let created = cron_job.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let last = plan.status.last_schedule_time.as_ref().map(|time| time.0);
    let mut earliest = last.or(created)?;
    if let Some(seconds) = cron_job.spec.starting_deadline_seconds {
        let deadline = now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN);
        earliest = earliest.max(deadline);
    }
    let first = schedule.next(earliest, zone).filter(|first| *first <= now)?;
    let Some(second) = schedule.next(first, zone).filter(|second| *second <= now) else { return Some(first) };
    // Not every start that was missed is looked at: there may be years of them.
    let interval = (second.as_second() - first.as_second()).max(1);
    let missed = (now.as_second() - first.as_second()) / interval + 1;
    if missed > MANY {
        let text =
            "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.events.push((true, "TooManyMissedTimes", text.to_owned()));
    }
    let skip = SignedDuration::from_secs((missed - 2).max(0) * interval);
    let mut due = first
        .checked_add(skip)
        .ok()
        .filter(|at| missed > MANY && *at <= now)
        .map_or(second, |at| schedule.next(at, zone).filter(|at| *at <= now).unwrap_or(second));
    while let Some(next) = schedule.next(due, zone).filter(|next| *next <= now) {
        due = next;
    }
    Some(due)
}

fn start(
    cron_job: &CronJob,
    held: &[Arc<Job>],
    due: Timestamp,
    zone: &TimeZone,
    now: Timestamp,
    plan: &mut Plan,
) {
    if let Some(seconds) = cron_job.spec.starting_deadline_seconds
        && due.checked_add(SignedDuration::from_secs(seconds)).is_ok_and(|deadline| deadline < now)
    {
        let at = due.to_zoned(zone.clone()).strftime("%a, %d %b %Y %H:%M:%S %z").to_string();
        plan.events.push((true, "MissSchedule", format!("Missed scheduled time to start a job: {at}")));
        return;
    }
    let job = make(cron_job, due, zone);
    let there = held.iter().any(|other| name_of(other) == name_of(&job));
    if there || plan.status.last_schedule_time.as_ref().is_some_and(|last| last.0 == due) {
        return;
    }
    let active = plan.status.active.clone().unwrap_or_default();
    match cron_job.spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let text = "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.events.push((false, "JobAlreadyActive", text.to_owned()));
            return;
        }
        Some("Replace") => {
            let running = held.iter().filter(|job| active.iter().any(|reference| is_uid(reference, job)));
            plan.delete.extend(running.cloned());
            plan.status.active = None;
        }
        _ => {}
    }
    plan.start = Some((Box::new(job), due));
}

fn make(cron_job: &CronJob, due: Timestamp, zone: &TimeZone) -> Job {
    let template = &cron_job.spec.job_template;
    let said = template.metadata.clone().unwrap_or_default();
    let name = cron_job.metadata.name.as_deref().unwrap_or_default();
    let mut annotations = said.annotations.unwrap_or_default();
    let zoned = due.to_zoned(zone.clone());
    let offset = if *zone == TimeZone::UTC { "Z".to_owned() } else { zoned.strftime("%:z").to_string() };
    annotations.insert(SCHEDULED.to_owned(), zoned.strftime("%Y-%m-%dT%H:%M:%S").to_string() + &offset);
    Job {
        metadata: ObjectMeta {
            namespace: cron_job.metadata.namespace.clone(),
            name: Some(format!("{name}-{}", due.as_second() / 60)),
            labels: said.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(cron_job)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// The status when a Job that was due has been started.
#[must_use]
pub fn started(mut status: CronJobStatus, job: &Job, due: Timestamp) -> CronJobStatus {
    status.active.get_or_insert_default().push(reference_to(job));
    status.last_schedule_time = Some(time(due));
    status
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn cron_job(spec: &Value, status: &Value) -> CronJob {
        let mut cron_job = json!({
            "metadata": {"name": "c", "namespace": "n", "uid": "u", "creationTimestamp": "2030-01-01T00:00:30Z"},
            "spec": {"schedule": "*/10 * * * *", "jobTemplate": {"metadata": {"labels": {"a": "b"}}}},
            "status": status,
        });
        for (field, value) in spec.as_object().into_iter().flatten() {
            cron_job["spec"][field] = value.clone();
        }
        serde_json::from_value(cron_job).unwrap()
    }

    fn job(name: &str, end: Option<&str>, start: &str) -> Arc<Job> {
        let conditions: Vec<Value> =
            end.map(|kind| json!({"type": kind, "status": "True"})).into_iter().collect();
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "uid": name, "annotations": {SCHEDULED: start}},
                "status": {"startTime": start, "completionTime": end.map(|_| start), "conditions": conditions},
            }))
            .unwrap(),
        )
    }

    fn active(names: &[&str]) -> Value {
        json!({"active": names.iter().map(|name| json!({"name": name, "uid": name})).collect::<Vec<_>>()})
    }

    fn plan(cron_job: &CronJob, held: &[Arc<Job>], now: &str) -> Plan {
        reconcile(cron_job, held, now.parse().unwrap())
    }

    fn due(plan: &Plan) -> Option<String> {
        plan.start.as_ref().map(|(_, due)| due.to_string())
    }

    fn reasons(plan: &Plan) -> Vec<&'static str> {
        plan.events.iter().map(|(_, reason, _)| *reason).collect()
    }

    #[test]
    fn a_job_starts_at_its_time_and_not_before() {
        let cron = cron_job(&json!({}), &json!({}));
        let early = plan(&cron, &[], "2030-01-01T00:05:00Z");
        assert_eq!(due(&early), None);
        assert_eq!(early.wake_at, Some("2030-01-01T00:10:00Z".parse().unwrap()));
        let on_time = plan(&cron, &[], "2030-01-01T00:10:00Z");
        let (made, _) = on_time.start.as_ref().unwrap();
        assert_eq!(made.metadata.name.as_deref(), Some("c-31557610"));
        let annotations = made.metadata.annotations.as_ref().unwrap();
        assert_eq!(annotations[SCHEDULED], "2030-01-01T00:10:00Z");
        assert_eq!(made.metadata.labels.as_ref().unwrap()["a"], "b");
        let last = json!({"lastScheduleTime": "2030-01-01T00:10:00Z"});
        assert_eq!(due(&plan(&cron_job(&json!({}), &last), &[], "2030-01-01T00:15:00Z")), None);
        let zoned = cron_job(&json!({"schedule": "0 9 * * *", "timeZone": "Europe/Berlin"}), &json!({}));
        let plan = plan(&zoned, &[], "2030-01-01T08:00:01Z");
        let annotations = plan.start.as_ref().unwrap().0.metadata.annotations.clone().unwrap();
        assert_eq!(annotations[SCHEDULED], "2030-01-01T09:00:00+01:00");
    }

    #[test]
    fn of_missed_times_the_last_counts_and_many_are_told() {
        let cron = cron_job(&json!({}), &json!({}));
        let few = plan(&cron, &[], "2030-01-01T01:05:00Z");
        assert_eq!((due(&few).as_deref(), reasons(&few)), (Some("2030-01-01T01:00:00Z"), vec![]));
        let many = plan(&cron, &[], "2030-01-03T00:05:00Z");
        assert_eq!(due(&many).as_deref(), Some("2030-01-03T00:00:00Z"));
        assert_eq!(reasons(&many), ["TooManyMissedTimes"]);
        let strict = cron_job(&json!({"startingDeadlineSeconds": 60}), &json!({}));
        let late = plan(&strict, &[], "2030-01-03T00:05:00Z");
        assert_eq!((due(&late), reasons(&late)), (None, vec![]));
        assert_eq!(due(&plan(&strict, &[], "2030-01-03T00:00:40Z")).as_deref(), Some("2030-01-03T00:00:00Z"));
        let suspended = cron_job(&json!({"suspend": true}), &json!({}));
        assert_eq!(due(&plan(&suspended, &[], "2030-01-03T00:05:00Z")), None);
    }

    #[test]
    fn policies_decide_about_jobs_that_still_run() {
        let running = [job("c-1", None, "2030-01-01T00:00:00Z")];
        let decide = |policy: &str| {
            let cron = cron_job(&json!({"concurrencyPolicy": policy}), &active(&["c-1"]));
            plan(&cron, &running, "2030-01-01T00:10:00Z")
        };
        let allow = decide("Allow");
        assert!(allow.start.is_some() && allow.delete.is_empty());
        assert_eq!(allow.status.active.unwrap().len(), 1);
        let forbid = decide("Forbid");
        assert!(forbid.start.is_none());
        assert_eq!(reasons(&forbid), ["JobAlreadyActive"]);
        let replace = decide("Replace");
        assert!(replace.start.is_some() && replace.status.active.is_none());
        assert_eq!(replace.delete.len(), 1);
    }

    #[test]
    fn ends_are_seen_and_old_ones_forgotten() {
        let limits = json!({"successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0});
        let cron = cron_job(&limits, &active(&["c-2", "gone"]));
        let held = [
            job("c-1", Some("Complete"), "2030-01-01T00:00:00Z"),
            job("c-2", Some("Complete"), "2030-01-01T00:01:00Z"),
            job("c-3", Some("Failed"), "2030-01-01T00:02:00Z"),
            job("c-4", None, "2030-01-01T00:03:00Z"),
        ];
        let plan = plan(&cron, &held, "2030-01-01T00:05:00Z");
        let deleted: Vec<&str> = plan.delete.iter().map(|job| name_of(job)).collect();
        assert_eq!(deleted, ["c-3", "c-1"]);
        assert_eq!(reasons(&plan), ["MissingJob", "SawCompletedJob"]);
        assert_eq!(plan.events[1].2, "Saw completed job: c-2, condition: Complete");
        let status = serde_json::to_value(&plan.status).unwrap();
        assert_eq!(status["lastSuccessfulTime"], "2030-01-01T00:01:00Z");
        assert_eq!(status["active"][0]["name"], "c-4", "its start was not written down");
        assert_eq!(status["active"].as_array().unwrap().len(), 1);
    }
}
