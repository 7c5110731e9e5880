//! Jobs told by their Pods, without a cluster.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{Birth, Ends, FINALIZER, Plan, make, reconcile};

const START: &str = "2030-01-01T00:00:00Z";

/// A Job and its Pods, with a controller that never dies and node agents that do as they are told.
struct World {
    job: Job,
    pods: Vec<Pod>,
    now: Timestamp,
    /// How far the nodes' clock is ahead.
    ahead: SignedDuration,
    ends: Ends,
    serial: usize,
    events: Vec<String>,
}

impl World {
    fn new(spec: &Value) -> Self {
        let mut job = json!({
            "metadata": {"name": "j", "namespace": "n", "uid": "u"},
            "spec": {
                "parallelism": 1, "completions": 1, "backoffLimit": 6, "completionMode": "NonIndexed",
                "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}},
            },
        });
        for (field, value) in spec.as_object().into_iter().flatten() {
            job["spec"][field] = value.clone();
        }
        if spec["completions"] == "none" {
            job["spec"].as_object_mut().unwrap().remove("completions");
        }
        World {
            job: serde_json::from_value(job).unwrap(),
            pods: Vec::new(),
            now: START.parse().unwrap(),
            ahead: SignedDuration::ZERO,
            ends: Ends::default(),
            serial: 0,
            events: Vec::new(),
        }
    }

    fn plan(&mut self) -> Plan {
        let held: Vec<Arc<Pod>> = self.pods.iter().cloned().map(Arc::new).collect();
        self.ends.note(&held, self.now);
        reconcile(&self.job, &held, &self.ends, self.now)
    }

    /// Looks until nothing is left to be done now; when it wants to look again.
    fn settle(&mut self) -> Option<Timestamp> {
        for _ in 0..50 {
            let plan = self.plan();
            let idle = plan.unhold.is_empty() && plan.delete.is_empty() && plan.create.is_empty();
            if idle && self.job.status.as_ref() == Some(&plan.status) {
                return plan.wake_at;
            }
            self.carry_out(plan);
        }
        panic!("it never settles: {:#?}", self.job.status);
    }

    fn carry_out(&mut self, plan: Plan) {
        self.job.status = Some(plan.status);
        self.events.extend(plan.events.into_iter().map(|(_, reason, _)| reason));
        for pod in plan.unhold {
            self.change(&pod, |pod| pod.metadata.finalizers = None);
        }
        for pod in plan.delete {
            let now = self.now;
            self.change(&pod, |pod| {
                pod.metadata.deletion_timestamp = Some(crate::workload::status::time(now));
            });
        }
        for birth in plan.create {
            self.serial += 1;
            let mut pod = make(&self.job, &birth);
            let name = format!("p{}", self.serial);
            pod.metadata.name = Some(name.clone());
            pod.metadata.uid = Some(name);
            pod.metadata.creation_timestamp = Some(crate::workload::status::time(self.now));
            self.pods.push(pod);
        }
    }

    fn change(&mut self, pod: &Pod, change: impl FnOnce(&mut Pod)) {
        let uid = &pod.metadata.uid;
        change(self.pods.iter_mut().find(|pod| pod.metadata.uid == *uid).unwrap());
    }

    /// A Pod ends with this code.
    fn end(&mut self, name: &str, code: i32) {
        let status = json!({
            "phase": if code == 0 { "Succeeded" } else { "Failed" },
            "containerStatuses": [{
                "name": "c", "image": "i", "imageID": "i", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": code, "finishedAt": (self.now + self.ahead).to_string()}},
            }],
        });
        let pod = self.pods.iter_mut().find(|pod| pod.metadata.name.as_deref() == Some(name)).unwrap();
        pod.status = Some(serde_json::from_value(status).unwrap());
    }

    /// What has been deleted goes.
    fn collect(&mut self) {
        self.pods
            .retain(|pod| pod.metadata.deletion_timestamp.is_none() || pod.metadata.finalizers.is_some());
    }

    fn later(&mut self, seconds: i64) {
        self.now = self.now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
    }

    fn active(&self) -> Vec<String> {
        let held: Vec<&Pod> = self.pods.iter().filter(|pod| crate::workload::pods::is_active(pod)).collect();
        held.iter().map(|pod| pod.metadata.name.clone().unwrap()).collect()
    }

    fn status(&self, field: &str) -> Value {
        serde_json::to_value(&self.job.status).unwrap()[field].clone()
    }

    fn conditions(&self) -> Vec<(String, String)> {
        let conditions = self.job.status.as_ref().unwrap().conditions.clone().unwrap_or_default();
        conditions
            .into_iter()
            .filter(|condition| condition.status == "True")
            .map(|condition| (condition.type_, condition.reason.unwrap()))
            .collect()
    }
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

#[test]
fn one_pod_ends_well_and_the_job_is_complete() {
    let mut world = World::new(&json!({}));
    world.settle();
    assert_eq!(world.active(), ["p1"]);
    assert_eq!(world.pods[0].metadata.finalizers.as_deref(), Some(&[FINALIZER.to_owned()][..]));
    assert_eq!((world.status("active"), world.status("startTime")), (json!(1), json!(START)));
    world.later(5);
    world.end("p1", 0);
    world.settle();
    assert_eq!(
        world.conditions(),
        pairs(&[("SuccessCriteriaMet", "CompletionsReached"), ("Complete", "CompletionsReached")])
    );
    assert_eq!(world.status("succeeded"), 1);
    assert_eq!(world.status("completionTime"), "2030-01-01T00:00:05Z");
    assert_eq!(world.status("uncountedTerminatedPods"), json!({}));
    assert_eq!(world.pods[0].metadata.finalizers, None);
    assert_eq!(world.events, ["Completed"]);
}

#[test]
fn failures_wait_twice_as_long_each_time_until_there_are_too_many() {
    let mut world = World::new(&json!({"backoffLimit": 3}));
    world.settle();
    let mut waits = Vec::new();
    for failure in 1..=4 {
        world.end(&format!("p{failure}"), 1);
        if let Some(at) = world.settle() {
            waits.push(at.as_second() - world.now.as_second());
            world.now = at;
            world.settle();
        }
    }
    assert_eq!(waits, [10, 20, 40]);
    assert_eq!(
        world.conditions(),
        pairs(&[("FailureTarget", "BackoffLimitExceeded"), ("Failed", "BackoffLimitExceeded")])
    );
    assert_eq!(world.status("failed"), 4);
    assert_eq!(world.events, ["BackoffLimitExceeded"]);
}

#[test]
fn a_node_whose_clock_is_ahead_does_not_make_the_wait_longer() {
    let mut world = World::new(&json!({"backoffLimit": 3}));
    world.ahead = SignedDuration::from_mins(16);
    world.settle();
    let mut waits = Vec::new();
    for failure in 1..=3 {
        world.end(&format!("p{failure}"), 1);
        let began = world.now;
        let at = world.settle().unwrap();
        waits.push(at.as_second() - began.as_second());
        // What happens meanwhile does not begin the wait anew.
        world.later(5);
        assert_eq!(world.settle(), Some(at));
        world.now = at;
        world.settle();
    }
    assert_eq!(waits, [10, 20, 40]);
}

#[test]
fn as_many_run_as_may_and_as_are_missing() {
    let mut world = World::new(&json!({"parallelism": 3, "completions": 4}));
    world.settle();
    assert_eq!(world.active().len(), 3);
    world.end("p1", 0);
    world.end("p2", 0);
    world.settle();
    assert_eq!(world.active(), ["p3", "p4"], "two are missing, two run");
    world.job.spec.as_mut().unwrap().parallelism = Some(1);
    world.settle();
    assert_eq!(world.active().len(), 1);
    // Nobody starts in a queue that somebody found empty.
    let mut world = World::new(&json!({"parallelism": 2, "completions": "none"}));
    world.settle();
    world.end("p1", 0);
    world.settle();
    assert_eq!(world.active(), ["p2"]);
    world.end("p2", 0);
    world.settle();
    assert_eq!(world.conditions().last().unwrap().0, "Complete");
}

#[test]
fn a_deadline_ends_all_pods_and_the_job_after_them() {
    let mut world = World::new(&json!({"activeDeadlineSeconds": 60}));
    assert_eq!(world.settle().map(|at| at.as_second() - world.now.as_second()), Some(60));
    world.later(60);
    world.settle();
    assert_eq!(world.conditions(), pairs(&[("FailureTarget", "DeadlineExceeded")]), "one is still there");
    world.collect();
    world.settle();
    assert_eq!(world.conditions().last(), pairs(&[("Failed", "DeadlineExceeded")]).first());
}

#[test]
fn a_suspended_job_has_no_pods_and_starts_anew() {
    let mut world = World::new(&json!({"suspend": true}));
    world.settle();
    assert!(world.active().is_empty());
    assert_eq!(world.conditions(), pairs(&[("Suspended", "JobSuspended")]));
    assert_eq!(world.status("startTime"), Value::Null);
    world.later(100);
    world.job.spec.as_mut().unwrap().suspend = Some(false);
    world.settle();
    assert_eq!(world.active(), ["p1"]);
    assert_eq!(world.status("startTime"), "2030-01-01T00:01:40Z");
    world.job.spec.as_mut().unwrap().suspend = Some(true);
    world.settle();
    assert!(world.active().is_empty());
    assert_eq!(world.events, ["Suspended", "Resumed", "Suspended"]);
}

#[test]
fn pods_that_are_going_are_replaced_at_once_or_when_they_have_ended() {
    for (policy, while_going) in [("TerminatingOrFailed", 1), ("Failed", 0)] {
        let mut world = World::new(&json!({"podReplacementPolicy": policy}));
        world.settle();
        world.pods[0].metadata.deletion_timestamp = Some(crate::workload::status::time(world.now));
        world.settle();
        world.later(11);
        world.settle();
        assert_eq!(world.active().len(), while_going, "{policy}");
        world.end("p1", 1);
        world.settle();
        world.later(11);
        world.settle();
        assert_eq!(world.active(), ["p2"], "{policy}");
        assert_eq!(world.job.status.as_ref().unwrap().failed, Some(1), "{policy}");
    }
}

#[test]
fn indexes_are_run_once_each() {
    let mut world = World::new(&json!({"completionMode": "Indexed", "completions": 5, "parallelism": 3}));
    world.settle();
    let second = &world.pods[1];
    assert_eq!(second.metadata.generate_name.as_deref(), Some("j-1-"));
    let spec = second.spec.as_ref().unwrap();
    assert_eq!(spec.hostname.as_deref(), Some("j-1"));
    let variable = &spec.containers[0].env.as_ref().unwrap()[0];
    assert_eq!((variable.name.as_str(), variable.value.as_deref()), ("JOB_COMPLETION_INDEX", None));
    let field = variable.value_from.as_ref().unwrap().field_ref.as_ref().unwrap();
    assert_eq!(field.field_path, "metadata.labels['batch.kubernetes.io/job-completion-index']");
    assert_eq!(second.metadata.labels.as_ref().unwrap()["batch.kubernetes.io/job-completion-index"], "1");
    world.end("p1", 0);
    world.end("p3", 0);
    world.settle();
    assert_eq!(world.status("completedIndexes"), "0,2");
    assert_eq!(world.active(), ["p2", "p4", "p5"]);
    world.end("p2", 1);
    world.settle();
    world.later(10);
    world.settle();
    assert_eq!(
        world.pods.last().unwrap().metadata.annotations.as_ref().unwrap()["batch.kubernetes.io/job-completion-index"],
        "1"
    );
    for pod in ["p4", "p5", "p6"] {
        world.end(pod, 0);
    }
    world.settle();
    assert_eq!(world.status("completedIndexes"), "0-4");
    assert_eq!((world.status("succeeded"), world.status("failed")), (json!(5), json!(1)));
    assert_eq!(world.conditions().last().unwrap().0, "Complete");
}

#[test]
fn each_index_may_fail_so_often() {
    let mut world = World::new(&json!({
        "completionMode": "Indexed", "completions": 2, "parallelism": 2, "backoffLimitPerIndex": 1,
        "backoffLimit": i32::MAX,
    }));
    world.settle();
    world.end("p1", 0);
    world.end("p2", 1);
    let wake = world.settle().unwrap();
    assert_eq!(world.pods[1].metadata.finalizers.as_ref().map(Vec::len), Some(1), "it remembers the failure");
    world.now = wake;
    world.settle();
    assert_eq!(world.pods[1].metadata.finalizers, None, "its successor does");
    assert_eq!(world.plan().create, Vec::<Birth>::new());
    world.end("p3", 1);
    world.settle();
    assert_eq!(world.status("failedIndexes"), "1");
    assert_eq!(world.status("completedIndexes"), "0");
    assert_eq!(world.status("failed"), 2);
    assert_eq!(world.conditions(), pairs(&[("FailureTarget", "FailedIndexes"), ("Failed", "FailedIndexes")]));
}

#[test]
fn policies_decide_what_a_failure_is_worth() {
    let policy = json!({"rules": [
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [3]}},
        {"action": "FailJob", "onExitCodes": {"containerName": "c", "operator": "In", "values": [42]}},
    ]});
    let mut world =
        World::new(&json!({"podFailurePolicy": policy, "backoffLimit": 0, "podReplacementPolicy": "Failed"}));
    world.settle();
    world.end("p1", 3);
    world.settle();
    world.later(10);
    world.settle();
    assert_eq!((world.active(), world.status("failed")), (vec!["p2".to_owned()], Value::Null));
    world.end("p2", 42);
    world.settle();
    let failed = &world.job.status.as_ref().unwrap().conditions.as_ref().unwrap()[1];
    assert_eq!(failed.reason.as_deref(), Some("PodFailurePolicy"));
    assert_eq!(
        failed.message.as_deref(),
        Some("Container c for pod n/p2 failed with exit code 42 matching FailJob rule at index 1")
    );
}

#[test]
fn enough_is_enough_by_the_policy_of_success() {
    let mut world = World::new(&json!({
        "completionMode": "Indexed", "completions": 3, "parallelism": 3,
        "successPolicy": {"rules": [{"succeededIndexes": "0-1", "succeededCount": 1}]},
    }));
    world.settle();
    world.end("p2", 0);
    world.settle();
    assert!(world.active().is_empty());
    world.collect();
    world.settle();
    assert_eq!(
        world.conditions(),
        pairs(&[("SuccessCriteriaMet", "SuccessPolicy"), ("Complete", "SuccessPolicy")])
    );
}
