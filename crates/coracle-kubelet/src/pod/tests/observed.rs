//! Container states and conditions, from raw observations.

use coracle_cri::{ContainerState, PodSandboxState};
use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodStatus};
use serde_json::json;

use super::*;
use crate::pod::history::Outcome;
use crate::pod::inputs::{Operation, OperationKey, TerminationCause};
use crate::pod::{Publication, patch, publication, rebase};

fn base() -> PodInputs {
    let mut i = inputs(pod(json!({"containers": [{"name": "c", "image": "busybox:1"}]})));
    i.sandboxes = vec![sandbox(0, PodSandboxState::Ready)];
    i
}

fn first(status: &PodStatus) -> &ContainerStatus {
    &status.container_statuses.as_ref().unwrap()[0]
}

/// `waiting REASON`, `running` or `terminated REASON CODE`, then the same of the last state, then the count.
fn brief(status: &PodStatus) -> String {
    let one = |state: Option<&k8s_openapi::api::core::v1::ContainerState>| match state {
        Some(s) if s.running.is_some() => "running".to_owned(),
        Some(s) => match (&s.waiting, &s.terminated) {
            (Some(w), _) => format!("waiting {}", w.reason.as_deref().unwrap_or("-")),
            (_, Some(t)) => format!("terminated {} {}", t.reason.as_deref().unwrap_or("-"), t.exit_code),
            _ => "-".to_owned(),
        },
        None => "-".to_owned(),
    };
    let c = first(status);
    let phase = status.phase.as_deref().unwrap();
    format!("{phase}: {}, last {}, {}", one(c.state.as_ref()), one(c.last_state.as_ref()), c.restart_count)
}

fn find(status: &PodStatus, kind: &str) -> PodCondition {
    status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap().clone()
}

#[test]
fn container_states_follow_the_newest_instance_and_the_one_before() {
    let check = |change: &dyn Fn(&mut PodInputs), expected: &str| {
        let mut i = base();
        change(&mut i);
        assert_eq!(brief(&status(&i)), expected);
    };
    check(&|_| {}, "Pending: waiting ContainerCreating, last -, 0");
    check(
        &|i| i.containers = vec![container(i, "c", 0, ContainerState::Created)],
        "Pending: waiting -, last -, 0",
    );
    check(
        &|i| i.containers = vec![container(i, "c", 0, ContainerState::Running)],
        "Running: running, last -, 0",
    );
    check(
        &|i| i.containers = vec![exited(i, "c", 0, 0, at(5))],
        "Running: terminated Completed 0, last -, 0",
    );
    check(&|i| i.containers = vec![exited(i, "c", 0, 2, at(5))], "Running: terminated Error 2, last -, 0");
    check(
        &|i| i.containers = vec![exited(i, "c", 0, 2, at(5)), container(i, "c", 1, ContainerState::Running)],
        "Running: running, last terminated Error 2, 1",
    );
    check(
        &|i| {
            i.containers =
                vec![cri::ContainerStatus { reason: "OOMKilled".into(), ..exited(i, "c", 3, 137, at(5)) }];
        },
        "Running: terminated OOMKilled 137, last -, 3",
    );
}

#[test]
fn an_end_tells_what_the_runtime_and_the_container_say_and_when_it_began() {
    let ended = |message: &str, left: Option<&str>, started: bool| {
        let mut i = base();
        let mut c = cri::ContainerStatus { message: message.into(), ..exited(&i, "c", 0, 128, at(5)) };
        c.started_at = c.started_at.filter(|_| started);
        if let Some(left) = left {
            i.termination_messages.insert(c.container.id.clone(), left.to_owned());
        }
        i.containers = vec![c];
        let end = first(&status(&i)).state.clone().unwrap().terminated.unwrap();
        (end.message, end.started_at.unwrap().0)
    };
    let (begun, never) = (at(1), Timestamp::UNIX_EPOCH);
    assert_eq!(ended("", None, true), (None, begun));
    assert_eq!(ended("", Some("bye"), true), (Some("bye".into()), begun));
    assert_eq!(ended("exec: no such file", Some(""), false), (Some("exec: no such file".into()), never));
    assert_eq!(ended("killed", Some("bye"), true), (Some("killed: bye".into()), begun));
}

#[test]
fn the_last_state_is_written_out_also_if_there_is_none() {
    let written = serde_json::to_value(first(&status(&base()))).unwrap();
    assert_eq!(written["lastState"], json!({}));
}

#[test]
fn a_start_in_flight_shows_what_was_shown_before() {
    let mut i = base();
    let ready = std::mem::take(&mut i.sandboxes);
    publish(&mut i);
    i.sandboxes = ready;
    i.operations.insert(OperationKey::StartContainer("c".into()), Operation { since: at(0), deadline: None });
    i.containers = vec![container(&i, "c", 0, ContainerState::Created)];
    assert_eq!(brief(&status(&i)), "Pending: waiting ContainerCreating, last -, 0");
    assert_eq!(publication(&i, &status(&i), None), Publication::HoldUntil(at(1)), "only the address is new");
    i.now = at(1);
    assert_eq!(publication(&i, &status(&i), Some(at(0))), Publication::Now);
}

#[test]
fn starts_one_after_the_other_hold_a_status_once_and_never_an_end() {
    let containers: Vec<_> = ["a", "b", "c"].map(|name| json!({"name": name, "image": "x:1"})).into();
    let mut i = inputs(pod(json!({"restartPolicy": "Always", "containers": containers})));
    i.sandboxes = vec![sandbox(0, PodSandboxState::Ready)];
    i.previous_status.start_time = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
    publish(&mut i);
    // `a` runs since the start of `b` began; then `c` begins.
    i.containers = vec![container(&i, "a", 0, ContainerState::Running)];
    let start = |name: &str, since| {
        [(OperationKey::StartContainer(name.into()), Operation { since, deadline: None })].into()
    };
    i.operations = start("b", at(1));
    i.now = at(1);
    assert_eq!(publication(&i, &status(&i), None), Publication::HoldUntil(at(2)));
    i.operations = start("c", at(2));
    i.now = at(2);
    assert_eq!(publication(&i, &status(&i), Some(at(1))), Publication::Now, "it was held long enough");

    i.containers = vec![exited(&i, "a", 0, 1, at(2))];
    assert_eq!(publication(&i, &status(&i), None), Publication::Now, "an end waits to be seen");
}

#[test]
fn what_was_never_started_is_not_the_newest_though_the_clock_went_back_after_it_was_made() {
    let mut i = base();
    let mut left = container(&i, "c", 3, ContainerState::Created);
    left.container.created_at = at(600);
    let mut runs = container(&i, "c", 3, ContainerState::Running);
    (runs.container.id, runs.container.created_at) = (cri::ContainerId("runs".to_owned()), at(300));
    i.containers = vec![left.clone(), runs.clone()];
    assert_eq!(i.newest("c"), Some(&runs));
    // Otherwise the same attempt would be made again, for ever.
    let ended = cri::ContainerStatus { finished_at: Some(at(303)), ..exited(&i, "c", 3, 0, at(303)) };
    i.containers = vec![left, ended];
    assert_eq!(i.next_attempt("c"), 4);
}

#[test]
fn a_container_that_the_runtime_has_forgotten_keeps_its_end_and_one_that_ran_is_lost() {
    let mut i = base();
    i.containers = vec![exited(&i, "c", 2, 3, at(5))];
    publish(&mut i);
    i.containers.clear();
    assert_eq!(brief(&status(&i)), "Running: terminated Error 3, last -, 2");
    assert_eq!(i.next_attempt("c"), 3);

    let mut i = base();
    i.containers = vec![container(&i, "c", 2, ContainerState::Running)];
    publish(&mut i);
    i.containers.clear();
    let lost = publish(&mut i);
    assert_eq!(
        brief(&lost),
        "Running: waiting ContainerCreating, last terminated ContainerStatusUnknown 137, 3"
    );
    let last = first(&lost).last_state.clone().unwrap().terminated.unwrap();
    assert!(
        last.message
            .unwrap()
            .starts_with("The container could not be located when the pod was deleted.  The")
    );
    // Counted once.
    assert_eq!(brief(&status(&i)), brief(&lost));
    assert_eq!(i.next_attempt("c"), 3);
}

#[test]
fn an_end_is_shown_before_its_back_off() {
    let mut i = base();
    let hash = definition_hash(&i.spec().containers[0]);
    i.history.container("c").restart_backoff =
        Some((hash, crate::pod::backoff::Backoff { delay: SignedDuration::from_secs(80), updated: at(0) }));
    i.containers = vec![exited(&i, "c", 1, 1, at(5))];
    i.now = at(5);
    assert_eq!(brief(&publish(&mut i)), "Running: terminated Error 1, last -, 1");
    let shown = publish(&mut i);
    assert_eq!(brief(&shown), "Running: waiting CrashLoopBackOff, last terminated Error 1, 1");
    let message = first(&shown).state.clone().unwrap().waiting.unwrap().message.unwrap();
    assert_eq!(message, "back-off 1m20s restarting failed container=c pod=p_ns(u)");
    assert_eq!(brief(&status(&i)), brief(&shown));
}

#[test]
fn a_failed_pull_is_shown_before_its_back_off() {
    let mut i = base();
    let failed = Outcome::StartFailed {
        container: "c".into(),
        image: "busybox:1".into(),
        reason: "ErrImagePull".into(),
        message: "no route".into(),
    };
    i.history.apply(&failed, at(0));
    assert_eq!(brief(&publish(&mut i)), "Pending: waiting ErrImagePull, last -, 0");
    i.history.container("c").failure.as_mut().unwrap().backing_off = true;
    let shown = status(&i);
    assert_eq!(brief(&shown), "Pending: waiting ImagePullBackOff, last -, 0");
    let message = first(&shown).state.clone().unwrap().waiting.unwrap().message.unwrap();
    assert_eq!(message, "Back-off pulling image \"busybox:1\": ErrImagePull: no route");
}

#[test]
fn conditions_move_only_when_their_status_does() {
    let mut i = base();
    i.sandboxes.clear();
    let pending = publish(&mut i);
    let order: Vec<_> = pending.conditions.iter().flatten().map(|c| c.type_.as_str()).collect();
    assert_eq!(
        order,
        ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]
    );
    assert_eq!(find(&pending, "PodReadyToStartContainers").status, "False");
    assert_eq!(
        find(&pending, "PodScheduled").last_transition_time.unwrap().0,
        "2030-01-01T00:00:00Z".parse().unwrap()
    );
    assert_eq!(find(&pending, "Ready").observed_generation, Some(2));

    i.now = at(10);
    i.sandboxes = vec![sandbox(0, PodSandboxState::Ready)];
    i.containers = vec![container(&i, "c", 0, ContainerState::Running)];
    let running = publish(&mut i);
    assert_eq!(find(&running, "Ready").status, "True");
    assert_eq!(find(&running, "Ready").message, None);
    assert_eq!(find(&running, "Ready").last_transition_time.unwrap().0, at(10));
    assert_eq!(find(&running, "Initialized").last_transition_time.unwrap().0, at(0));
}

#[test]
fn foreign_conditions_and_fields_stay_and_readiness_gates_count() {
    let mut pod = pod(json!({"containers": [{"name": "c", "image": "x:1"}],
        "readinessGates": [{"conditionType": "a/b"}, {"conditionType": "c/d"}]}));
    let current = pod.status.as_mut().unwrap();
    current.nominated_node_name = Some("n".into());
    let foreign: PodCondition = serde_json::from_value(json!({"type": "a/b", "status": "False"})).unwrap();
    current.conditions.as_mut().unwrap().insert(0, foreign);
    let mut i = inputs(pod);
    i.sandboxes = vec![sandbox(0, PodSandboxState::Ready)];
    i.containers = vec![container(&i, "c", 0, ContainerState::Running)];
    let computed = status(&i);
    assert_eq!(computed.nominated_node_name.as_deref(), Some("n"));
    assert_eq!(computed.qos_class.as_deref(), Some("BestEffort"));
    assert_eq!(find(&computed, "a/b").status, "False");
    assert_eq!(find(&computed, "ContainersReady").status, "True");
    let ready = find(&computed, "Ready");
    assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("False", Some("ReadinessGatesNotReady")));
    assert_eq!(
        ready.message.as_deref(),
        Some(
            "the status of pod readiness gate \"a/b\" is not \"True\", but False, \
             corresponding condition of pod readiness gate \"c/d\" does not exist."
        )
    );
}

#[test]
fn a_pod_that_ends_is_over_whatever_its_containers_tell() {
    let mut i = base();
    i.lifecycle = Lifecycle::Terminated { cause: TerminationCause::Deleted };
    assert_eq!(brief(&status(&i)), "Failed: terminated ContainerStatusUnknown 137, last -, 0");
    i.containers = vec![exited(&i, "c", 0, 0, at(5))];
    let ended = status(&i);
    assert_eq!(brief(&ended), "Succeeded: terminated Completed 0, last -, 0");
    assert_eq!(find(&ended, "ContainersReady").reason.as_deref(), Some("PodCompleted"));
    i.lifecycle = Lifecycle::Terminated { cause: TerminationCause::DeadlineExceeded };
    let ended = status(&i);
    assert_eq!(ended.phase.as_deref(), Some("Failed"));
    assert_eq!(ended.reason.as_deref(), Some("DeadlineExceeded"));
    assert_eq!(
        ended.message.as_deref(),
        Some("Pod was active on the node longer than the specified deadline")
    );
}

#[test]
fn a_patch_names_only_what_changed_and_a_rebase_keeps_what_others_wrote() {
    let mut i = base();
    let computed = status(&i);
    let change = patch("u", "5", &i.published, &computed).unwrap();
    assert_eq!(change["metadata"], json!({"uid": "u", "resourceVersion": "5"}));
    assert_eq!(change["status"].get("qosClass"), None);
    assert_eq!(change["status"]["hostIP"], "192.0.2.1");
    assert_eq!(patch("u", "5", &computed, &computed), None);

    let foreign: PodCondition = serde_json::from_value(json!({"type": "x/y", "status": "True"})).unwrap();
    let mut fresh = i.published.clone();
    fresh.conditions.as_mut().unwrap().push(foreign);
    let rebased = rebase(&computed, &fresh);
    assert_eq!(find(&rebased, "x/y").status, "True");
    assert_eq!(find(&rebased, "Ready").status, "False");
    fresh.phase = Some("Failed".into());
    fresh.reason = Some("Evicted".into());
    let rebased = rebase(&computed, &fresh);
    assert_eq!((rebased.phase.as_deref(), rebased.reason.as_deref()), (Some("Failed"), Some("Evicted")));
    i.published = fresh;
    assert_eq!(status(&i).phase.as_deref(), Some("Failed"), "a phase that ended is never left");
}
