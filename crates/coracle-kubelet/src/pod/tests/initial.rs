//! Statuses and conditions of Pods with init containers, sidecars and probes, from raw observations.

use coracle_cri::{ContainerState, PodSandboxState};
use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodStatus};
use serde_json::{Value, json};

use super::*;
use crate::pod::inputs::{TerminationCause, statuses};
use crate::probe::{ProbeResults, Verdict};

fn base() -> Value {
    json!({
        "initContainers": [
            {"name": "z", "image": "x:1"}, {"name": "s", "image": "x:1", "restartPolicy": "Always"},
            {"name": "a", "image": "x:1"},
        ],
        "containers": [{"name": "n", "image": "x:1"}, {"name": "m", "image": "x:1"}],
    })
}

fn with(spec: Value) -> PodInputs {
    let mut i = inputs(pod(spec));
    i.sandboxes = vec![sandbox(0, PodSandboxState::Ready)];
    i
}

fn run(i: &mut PodInputs, names: &[&str]) {
    for name in names {
        i.containers.push(container(i, name, 0, ContainerState::Running));
    }
}

fn ended(i: &mut PodInputs, name: &str, code: i32) {
    i.containers.push(exited(i, name, 0, code, at(5)));
}

fn of<'a>(status: &'a PodStatus, name: &str) -> &'a ContainerStatus {
    statuses(status).find(|c| c.name == name).unwrap()
}

fn state(status: &PodStatus, name: &str) -> String {
    let state = of(status, name).state.clone().unwrap();
    match (state.waiting, state.terminated) {
        (Some(waiting), _) => waiting.reason.unwrap_or_default(),
        (_, Some(end)) => format!("{} {}", end.reason.unwrap_or_default(), end.exit_code),
        _ => "running".to_owned(),
    }
}

fn condition(status: &PodStatus, kind: &str) -> (String, String, String) {
    let found = |c: &&PodCondition| c.type_ == kind;
    let c = status.conditions.iter().flatten().find(found).unwrap().clone();
    (c.status, c.reason.unwrap_or_default(), c.message.unwrap_or_default())
}

fn is(status: &str, reason: &str, message: &str) -> (String, String, String) {
    (status.to_owned(), reason.to_owned(), message.to_owned())
}

#[test]
fn statuses_of_init_containers_stand_as_declared_and_others_by_name() {
    let mut spec = base();
    spec["ephemeralContainers"] = json!([{"name": "y", "image": "x:1"}, {"name": "b", "image": "x:1"}]);
    let shown = status(&with(spec));
    let names = |list: &Option<Vec<ContainerStatus>>| -> Vec<String> {
        list.iter().flatten().map(|c| c.name.clone()).collect()
    };
    assert_eq!(names(&shown.init_container_statuses), ["z", "s", "a"]);
    assert_eq!(names(&shown.container_statuses), ["m", "n"]);
    assert_eq!(names(&shown.ephemeral_container_statuses), ["b", "y"]);
    assert!(statuses(&shown).all(|c| state(&shown, &c.name) == "PodInitializing"));
}

#[test]
fn a_plain_init_container_is_ready_when_it_has_done_its_work_and_a_sidecar_when_it_runs() {
    let mut i = with(base());
    ended(&mut i, "z", 0);
    run(&mut i, &["s", "a"]);
    let shown = status(&i);
    let brief = |name: &str| (of(&shown, name).ready, of(&shown, name).started);
    assert_eq!(brief("z"), (true, Some(false)));
    assert_eq!(brief("s"), (true, Some(true)));
    assert_eq!(brief("a"), (false, Some(true)));
    let mut i = with(base());
    ended(&mut i, "z", 1);
    assert!(!of(&status(&i), "z").ready, "it has not done its work");
}

#[test]
fn initialized_names_what_is_incomplete_and_is_never_taken_back() {
    let mut i = with(base());
    let initialized = |i: &mut PodInputs| condition(&publish(i), "Initialized");
    let no = |message: &str| is("False", "ContainersNotInitialized", message);
    assert_eq!(initialized(&mut i), no("containers with incomplete status: [z s a]"));
    ended(&mut i, "z", 0);
    run(&mut i, &["s"]);
    assert_eq!(initialized(&mut i), no("containers with incomplete status: [a]"));
    ended(&mut i, "a", 1);
    assert_eq!(initialized(&mut i), no("containers with incomplete status: [a]"));
    i.containers.pop();
    ended(&mut i, "a", 0);
    assert_eq!(initialized(&mut i), is("True", "", ""));
    // A sidecar that falls before any regular container has run takes it back, afterwards it does not.
    i.containers.retain(|c| c.container.name != "s");
    ended(&mut i, "s", 1);
    assert_eq!(initialized(&mut i), no("containers with incomplete status: [s]"));
    run(&mut i, &["n"]);
    assert_eq!(initialized(&mut i), is("True", "", ""));
    i.containers.retain(|c| c.container.name != "n");
    ended(&mut i, "n", 1);
    assert_eq!(initialized(&mut i), is("True", "", ""));
}

#[test]
fn ready_counts_regular_containers_and_sidecars() {
    let mut i = with(base());
    ended(&mut i, "z", 0);
    ended(&mut i, "a", 0);
    run(&mut i, &["n"]);
    let message = "containers with unready status: [s m]";
    for kind in ["ContainersReady", "Ready"] {
        assert_eq!(condition(&status(&i), kind), is("False", "ContainersNotReady", message));
    }
    run(&mut i, &["s", "m"]);
    for kind in ["ContainersReady", "Ready"] {
        assert_eq!(condition(&status(&i), kind), is("True", "", ""));
    }
}

#[test]
fn started_and_ready_follow_the_probes_and_without_results_stay_as_they_were() {
    let mut spec = base();
    spec["initContainers"] = json!([]);
    for probe in ["startupProbe", "readinessProbe"] {
        spec["containers"][0][probe] = json!({"tcpSocket": {"port": 1}});
    }
    let mut i = with(spec);
    run(&mut i, &["n", "m"]);
    let brief = |i: &PodInputs| (of(&status(i), "n").started, of(&status(i), "n").ready);
    assert_eq!(brief(&i), (Some(false), false));
    assert_eq!(condition(&status(&i), "Ready").2, "containers with unready status: [n]");
    use Verdict::{Failure, Success, Unknown};
    for (startup, readiness, expected) in [
        (Unknown, Success, (Some(false), false)),
        (Failure, Success, (Some(false), false)),
        (Success, Failure, (Some(true), false)),
        (Success, Success, (Some(true), true)),
    ] {
        let results = ProbeResults { startup: Some(startup), liveness: None, readiness: Some(readiness) };
        i.probes.insert(cri::ContainerId("n0".into()), results);
        assert_eq!(brief(&i), expected, "{startup:?} {readiness:?}");
    }
    publish(&mut i);
    i.probes.clear();
    assert_eq!(brief(&i), (Some(true), true), "a node agent that starts anew changes nothing");
    i.containers.retain(|c| c.container.name != "n");
    i.containers.push(container(&i, "n", 1, ContainerState::Running));
    assert_eq!(brief(&i), (Some(false), false), "another instance is another matter");
}

#[test]
fn a_plain_init_container_of_which_nothing_is_left_has_ended_well_if_the_pod_came_further() {
    let mut i = with(base());
    run(&mut i, &["s"]);
    assert_eq!(state(&status(&i), "z"), "PodInitializing");
    run(&mut i, &["n"]);
    let shown = status(&i);
    assert_eq!((state(&shown, "z"), state(&shown, "a")), ("Completed 0".into(), "Completed 0".into()));
    let end = of(&shown, "z").state.clone().unwrap().terminated.unwrap();
    assert_eq!(
        end.message.unwrap(),
        "Unable to get init container status from container runtime and pod has been initialized, treat it as exited \
         normally"
    );
    // What was shown of it counts more.
    let mut i = with(base());
    ended(&mut i, "z", 0);
    publish(&mut i);
    i.containers.clear();
    run(&mut i, &["n"]);
    assert_eq!(of(&status(&i), "z").container_id.as_deref(), Some("coracle://z0"));
    assert!(of(&status(&i), "z").ready);
}

#[test]
fn the_phase_of_an_end_is_not_shown_while_something_may_still_run() {
    let mut spec = base();
    spec["restartPolicy"] = json!("Never");
    let mut i = with(spec);
    ended(&mut i, "z", 0);
    run(&mut i, &["s"]);
    assert_eq!(publish(&mut i).phase.as_deref(), Some("Pending"));
    ended(&mut i, "a", 1);
    let failed = publish(&mut i);
    assert_eq!(failed.phase.as_deref(), Some("Pending"));
    assert_eq!(condition(&failed, "Ready"), is("False", "PodFailed", ""));
    i.containers.retain(|c| c.container.name != "s");
    ended(&mut i, "s", 143);
    i.lifecycle = Lifecycle::Terminated { cause: TerminationCause::Completed };
    assert_eq!(publish(&mut i).phase.as_deref(), Some("Failed"));
}

#[test]
fn at_the_end_what_had_begun_and_was_not_seen_to_end_is_unknown_and_the_rest_goes_on_waiting() {
    let over = |i: &mut PodInputs| {
        i.lifecycle = Lifecycle::Terminated { cause: TerminationCause::Deleted };
        let shown = status(i);
        ["z", "s", "a", "n"].map(|name| state(&shown, name))
    };
    let unknown = "ContainerStatusUnknown 137";
    // Nothing has begun: the first one counts as tried.
    assert_eq!(over(&mut with(base())), [unknown, "PodInitializing", "PodInitializing", "PodInitializing"]);
    let mut i = with(base());
    ended(&mut i, "z", 0);
    ended(&mut i, "s", 143);
    assert_eq!(over(&mut i), ["Completed 0", "Error 143", "PodInitializing", "PodInitializing"]);
    // All init containers have passed: regular ones count, too.
    ended(&mut i, "a", 0);
    assert_eq!(over(&mut i), ["Completed 0", "Error 143", "Completed 0", unknown]);
    let message = "The container could not be located when the pod was terminated";
    let end = of(&status(&i), "n").state.clone().unwrap().terminated.unwrap();
    assert_eq!(end.message.as_deref(), Some(message));
}

#[test]
fn a_container_that_vanished_is_lost_and_counted_unless_the_pod_is_being_deleted() {
    let mut i = with(base());
    ended(&mut i, "z", 0);
    run(&mut i, &["s", "n"]);
    publish(&mut i);
    i.containers.retain(|c| c.container.name != "s");
    let lost = status(&i);
    assert_eq!(of(&lost, "s").restart_count, 1);
    let last = of(&lost, "s").last_state.clone().unwrap().terminated.unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
    let metadata = &mut Arc::make_mut(&mut i.pod).metadata;
    metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(9)));
    let lost = status(&i);
    assert_eq!((state(&lost, "s").as_str(), of(&lost, "s").restart_count), ("ContainerStatusUnknown 137", 0));
}
