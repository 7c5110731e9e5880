//! Rules of the Pod lifecycle that show in one decision: what is done next, or what one status says.

use coracle_cri::{ContainerState, PodSandboxState};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::*;
use crate::pod::backoff::{Backoff, INITIAL};
use crate::pod::history::Outcome;
use crate::pod::inputs::{Eviction, ImagePresence, TerminationCause};
use crate::pod::reasons::PodEvent;
use crate::pod::{PodAction, PodPlan, WaitingOn, plan};
use crate::probe::{ProbeResults, Verdict};

/// A Pod with a sandbox.
fn made(spec: Value) -> PodInputs {
    let mut i = inputs(pod(spec));
    i.sandboxes = vec![sandbox(0, PodSandboxState::Ready)];
    i
}

fn one() -> PodInputs {
    made(json!({"containers": [{"name": "c", "image": "x:1"}]}))
}

fn regular(i: &PodInputs) -> Vec<ContainerStatus> {
    status(i).container_statuses.unwrap()
}

fn reported(plan: &PodPlan) -> Vec<&PodEvent> {
    let events = plan.actions.iter().map(|action| match action {
        PodAction::Report(event) => Some(event),
        _ => None,
    });
    events.flatten().collect()
}

#[test]
fn a_container_that_is_made_and_does_not_run_pulls_its_pod_back_to_pending() {
    let mut i = made(json!({"containers": [{"name": "a", "image": "x:1"}, {"name": "b", "image": "x:1"}]}));
    let run = |i: &PodInputs, name: &str| container(i, name, 0, ContainerState::Running);
    i.containers = vec![run(&i, "a"), run(&i, "b")];
    assert_eq!(publish(&mut i).phase.as_deref(), Some("Running"));
    i.containers = vec![run(&i, "a"), container(&i, "b", 1, ContainerState::Created)];
    let back = status(&i);
    assert_eq!(back.phase.as_deref(), Some("Pending"));
    let waiting = back.container_statuses.unwrap()[1].state.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.unwrap_or_default(), "");
    // One of which nobody knows whether it runs is a waiting one too, unless it was seen to run.
    let mut i = one();
    i.containers = vec![container(&i, "c", 0, ContainerState::Unknown)];
    assert_eq!(regular(&i)[0].state.clone().unwrap().waiting.unwrap().reason.unwrap_or_default(), "");
}

#[test]
fn reason_and_message_stay_while_the_phase_does() {
    let mut i = one();
    i.containers = vec![container(&i, "c", 0, ContainerState::Running)];
    let mut shown = publish(&mut i);
    shown.reason = Some("Said".to_owned());
    shown.message = Some("by somebody".to_owned());
    Arc::make_mut(&mut i.pod).status = Some(shown.clone());
    i.published = shown;
    let next = status(&i);
    assert_eq!((next.reason.as_deref(), next.message.as_deref()), (Some("Said"), Some("by somebody")));
}

#[test]
fn conditions_stand_in_upstreams_order_and_a_disruption_stays_as_it_was_told() {
    let rule = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [1]}}]);
    let mut i = made(json!({"containers": [
        {"name": "c", "image": "x:1", "restartPolicy": "Never", "restartPolicyRules": rule}]}));
    let foreign: PodCondition = serde_json::from_value(json!({"type": "a/b", "status": "True"})).unwrap();
    Arc::make_mut(&mut i.pod).status.as_mut().unwrap().conditions.as_mut().unwrap().push(foreign);
    i.eviction = Some(Eviction { reason: "Preempting", message: "first".to_owned() });
    let told = publish(&mut i);
    let order: Vec<_> = told.conditions.iter().flatten().map(|c| c.type_.as_str()).collect();
    assert_eq!(
        order,
        [
            "a/b",
            "DisruptionTarget",
            "PodReadyToStartContainers",
            "Initialized",
            "Ready",
            "ContainersReady",
            "PodScheduled",
            "AllContainersRestarting",
        ]
    );
    assert!(told.conditions.iter().flatten().all(|c| c.last_probe_time.is_none()));
    let own = told.conditions.iter().flatten().filter(|c| c.type_ != "a/b");
    assert!(own.clone().all(|c| c.observed_generation == i.pod.metadata.generation));
    assert!(i.pod.metadata.generation.is_some());
    Arc::make_mut(&mut i.pod).status = Some(told);
    i.eviction = Some(Eviction { reason: "Preempting", message: "second".to_owned() });
    let later = status(&i).conditions.unwrap();
    let targets: Vec<_> = later.iter().filter(|c| c.type_ == "DisruptionTarget").collect();
    assert_eq!(targets.len(), 1);
    let target = targets[0];
    assert_eq!((target.status.as_str(), target.message.as_deref()), ("True", Some("first")));
    assert_eq!(target.reason.as_deref(), Some("TerminationByKubelet"));
}

#[test]
fn a_pod_in_the_nodes_network_may_start_containers_without_an_address_of_its_own() {
    let ready = |host_network: bool| {
        let mut i = made(json!({"hostNetwork": host_network, "containers": [{"name": "c", "image": "x:1"}]}));
        i.sandboxes[0].ips.clear();
        let conditions = status(&i).conditions.unwrap();
        conditions.into_iter().find(|c| c.type_ == "PodReadyToStartContainers").unwrap().status
    };
    assert_eq!((ready(true).as_str(), ready(false).as_str()), ("True", "False"));
}

#[test]
fn an_init_container_of_which_nothing_is_left_has_completed_if_a_later_one_began() {
    let mut i = made(json!({"initContainers": [{"name": "i", "image": "x:1"}],
        "containers": [{"name": "c", "image": "x:1"}]}));
    i.containers = vec![container(&i, "c", 0, ContainerState::Running)];
    let computed = status(&i);
    let init = &computed.init_container_statuses.as_ref().unwrap()[0];
    let end = init.state.clone().unwrap().terminated.unwrap();
    assert_eq!((end.reason.as_deref(), end.exit_code, init.ready), (Some("Completed"), 0, true));
    assert_eq!(computed.phase.as_deref(), Some("Running"));
}

#[test]
fn what_a_container_was_given_is_shown_while_it_runs() {
    let mut i = made(json!({"containers": [{"name": "c", "image": "x:1",
        "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "1"}}}]}));
    let mut running = container(&i, "c", 0, ContainerState::Running);
    running.user = Some(cri::ContainerUser { uid: 5, gid: 6, supplemental_groups: vec![7] });
    i.containers = vec![running];
    let shown = serde_json::to_value(&regular(&i)[0]).unwrap();
    assert_eq!(shown["allocatedResources"], json!({"cpu": "100m"}));
    assert_eq!(shown["resources"], json!({"limits": {"cpu": "1"}, "requests": {"cpu": "100m"}}));
    assert_eq!(shown["user"], json!({"linux": {"uid": 5, "gid": 6, "supplementalGroups": [7]}}));
}

#[test]
fn an_image_that_cannot_be_looked_at_is_told_as_such() {
    let mut i = one();
    i.images.insert("c".to_owned(), ImagePresence::InspectFailed("no answer".to_owned()));
    let decided = plan(&i);
    let Some(PodAction::FailStart { reason, message, events, .. }) = decided.actions.first() else {
        panic!("{decided:#?}")
    };
    assert_eq!(
        (*reason, message.as_str()),
        ("ImageInspectError", "Failed to inspect image \"x:1\": no answer")
    );
    let told: Vec<_> = events.iter().map(|e| (e.warning, e.reason, e.message.as_str())).collect();
    assert_eq!(
        told,
        [(true, "InspectFailed", message.as_str()), (true, "Failed", "Error: ImageInspectError")]
    );
}

#[test]
fn pauses_between_pulls_double_up_to_five_minutes_and_are_forgotten_with_the_image() {
    let mut history = History::default();
    let mut fail = |image: &str, reason: &str| {
        let (container, image) = ("c".to_owned(), image.to_owned());
        let (reason, message) = (reason.to_owned(), "why".to_owned());
        history.apply(&Outcome::StartFailed { container, image, reason, message }, at(0));
        let failure = history.containers["c"].failure.as_ref().unwrap();
        failure.retry_at.map(|next| next.duration_since(at(0)).as_secs())
    };
    let pauses: Vec<_> = (0..7).map(|_| fail("x:1", "ErrImagePull")).collect();
    assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300].map(Some));
    assert_eq!(fail("x:2", "RegistryUnavailable"), Some(10), "another image is another matter");
    assert_eq!(fail("Not Valid", "InvalidImageName"), None, "time does not mend a name");
}

#[test]
fn a_network_that_is_not_ready_is_told_once_and_is_nothing_to_pods_in_the_nodes_own() {
    let decided = |host_network: bool, reported_before: bool| {
        let mut i =
            inputs(pod(json!({"hostNetwork": host_network, "containers": [{"name": "c", "image": "x:1"}]})));
        i.node.network = Err("no plugin".to_owned());
        i.history.told.extend(reported_before.then_some("NetworkNotReady"));
        plan(&i)
    };
    let waits = decided(false, false);
    assert_eq!(waits.waiting_on, [WaitingOn::NetworkReady("no plugin".to_owned())]);
    let told = reported(&waits)[0];
    assert_eq!(
        (told.warning, told.reason, told.message.as_str()),
        (true, "NetworkNotReady", "network is not ready: no plugin")
    );
    assert_eq!(decided(false, true).actions, []);
    assert_eq!(decided(true, false).actions, [PodAction::CreateSandbox { attempt: 0 }]);
}

#[test]
fn a_pod_whose_containers_are_all_done_gets_no_new_sandbox() {
    for (policy, code, comes_back) in [
        ("Never", 0, false),
        ("Never", 1, false),
        ("OnFailure", 0, false),
        ("OnFailure", 1, true),
        ("Always", 0, true),
    ] {
        let mut i = made(json!({"restartPolicy": policy, "containers": [{"name": "c", "image": "x:1"}]}));
        i.containers = vec![exited(&i, "c", 0, code, at(0))];
        publish(&mut i);
        i.sandboxes[0].sandbox.state = PodSandboxState::NotReady;
        let decided = plan(&i);
        let made_anew = decided.lifecycle == Lifecycle::Syncing;
        assert_eq!(made_anew, comes_back, "{policy} {code}: {decided:#?}");
        let creates = |action: &PodAction| matches!(action, PodAction::CreateSandbox { .. });
        assert!(comes_back || !decided.actions.iter().any(creates));
    }
}

/// Message, grace in seconds, and whether it comes back, of the one stop that is decided.
fn killed(i: &PodInputs) -> Option<(String, u64, bool)> {
    let decided = plan(i);
    let message = decided.actions.iter().find_map(|action| match action {
        PodAction::AnnounceStop { event, .. } => {
            assert_eq!((event.warning, event.reason), (false, "Killing"));
            Some(event.message.clone())
        }
        _ => None,
    })?;
    decided.actions.iter().find_map(|action| match action {
        PodAction::StopContainer { grace, restarts, .. } => {
            Some((message.clone(), grace.as_secs(), restarts.is_some()))
        }
        _ => None,
    })
}

#[test]
fn a_container_is_killed_with_the_words_and_the_grace_of_what_is_wrong_with_it() {
    let probe =
        |grace: Option<i64>| json!({"tcpSocket": {"port": 1}, "terminationGracePeriodSeconds": grace});
    let with = |policy: &str, kind: &str, probes: Value| {
        let mut probed = probes;
        probed["name"] = "c".into();
        probed["image"] = "x:1".into();
        let spec = if kind == "sidecar" {
            probed["restartPolicy"] = "Always".into();
            json!({"initContainers": [probed], "containers": [{"name": "app", "image": "x:1"}]})
        } else {
            json!({"containers": [probed]})
        };
        let mut spec = spec;
        spec["restartPolicy"] = policy.into();
        spec["terminationGracePeriodSeconds"] = 20.into();
        let mut i = made(spec);
        i.containers = vec![container(&i, "c", 0, ContainerState::Running)];
        i
    };
    let found = |mut i: PodInputs, startup: Option<Verdict>, liveness: Option<Verdict>| {
        let id = i.containers[0].container.id.clone();
        i.probes.insert(id, ProbeResults { startup, liveness, readiness: Some(Failure) });
        killed(&i)
    };
    use Verdict::{Failure, Success, Unknown};
    let live = |grace| json!({"livenessProbe": probe(grace)});
    let start = |grace| json!({"startupProbe": probe(grace), "livenessProbe": probe(None)});
    let said = |text: &str, grace: u64, back: bool| Some((text.to_owned(), grace, back));
    assert_eq!(
        found(with("Always", "regular", live(None)), None, Some(Failure)),
        said("Container c failed liveness probe, will be restarted", 20, true)
    );
    assert_eq!(
        found(with("OnFailure", "regular", live(Some(7))), None, Some(Failure)),
        said("Container c failed liveness probe, will be restarted", 7, true)
    );
    assert_eq!(
        found(with("Never", "regular", live(None)), None, Some(Failure)),
        said("Container c failed liveness probe", 20, false)
    );
    assert_eq!(
        found(with("Always", "regular", start(Some(3))), Some(Failure), Some(Success)),
        said("Container c failed startup probe, will be restarted", 3, true)
    );
    assert_eq!(
        found(with("Never", "sidecar", live(None)), None, Some(Failure)),
        said("Init container c failed liveness probe", 20, true)
    );
    assert_eq!(
        found(with("Always", "sidecar", start(None)), Some(Failure), None),
        said("Init container c failed startup probe", 20, true)
    );
    let readiness = with("Always", "regular", json!({"readinessProbe": probe(None)}));
    assert_eq!(found(readiness, None, None), None, "who is not ready is left alone");
    assert_eq!(
        found(with("Always", "regular", start(None)), Some(Unknown), Some(Success)),
        None,
        "who has not started yet is waited for"
    );
    for (kind, text) in [
        ("regular", "Container c definition changed, will be restarted"),
        ("sidecar", "Init container c definition changed"),
    ] {
        let mut changed = with("Never", kind, json!({}));
        changed.containers[0].container.annotations.insert(ANNOTATION_HASH.to_owned(), "old".to_owned());
        assert_eq!(killed(&changed), said(text, 20, true));
    }
    let mut lost = with("Always", "regular", json!({}));
    lost.containers[0].container.state = ContainerState::Unknown;
    assert_eq!(
        killed(&lost),
        said("Container is in \"unknown\" state, try killing it before restart", 20, true)
    );
}

#[test]
fn a_changed_image_starts_with_a_back_off_of_its_own() {
    let mut i = one();
    let long = Backoff { delay: SignedDuration::from_secs(300), updated: at(0) };
    i.images.insert("c".to_owned(), ImagePresence::Present(cri::Image::default()));
    i.containers = vec![exited(&i, "c", 4, 1, at(0))];
    i.now = at(1);
    publish(&mut i);
    let same = definition_hash(&i.spec().containers[0]);
    i.history.container("c").restart_backoff = Some((same, long));
    let held = plan(&i);
    assert_eq!(held.wake_at, Some(at(300)), "{held:#?}");
    i.history.container("c").restart_backoff = Some(("another".to_owned(), long));
    let afresh = plan(&i);
    let Some(PodAction::StartContainer(start)) =
        afresh.actions.iter().find(|action| matches!(action, PodAction::StartContainer(_)))
    else {
        panic!("{afresh:#?}")
    };
    assert_eq!(start.backoff.map(|b| b.delay), Some(INITIAL));
}

#[test]
fn a_pod_that_backs_off_is_deleted_at_once() {
    let mut i = one();
    let hash = definition_hash(&i.spec().containers[0]);
    let long = Backoff { delay: SignedDuration::from_secs(300), updated: at(0) };
    i.history.container("c").restart_backoff = Some((hash, long));
    i.containers = vec![exited(&i, "c", 4, 1, at(0))];
    publish(&mut i);
    let metadata = &mut Arc::make_mut(&mut i.pod).metadata;
    metadata.deletion_timestamp = Some(Time(at(30)));
    metadata.deletion_grace_period_seconds = Some(30);
    let decided = plan(&i);
    assert!(matches!(decided.lifecycle, Lifecycle::Terminating { .. }));
    i.lifecycle = decided.lifecycle;
    assert!(plan(&i).actions.iter().any(|action| matches!(action, PodAction::StopSandbox(_))));
}

#[test]
fn the_grace_of_an_end_is_at_least_a_second_and_only_ever_shortened() {
    let mut i = one();
    i.containers = vec![container(&i, "c", 0, ContainerState::Running)];
    let deadline = |i: &PodInputs| match plan(i).lifecycle {
        Lifecycle::Terminating { deadline, cause: TerminationCause::Deleted, .. } => {
            deadline.duration_since(at(0)).as_secs()
        }
        other => panic!("{other:?}"),
    };
    let delete = |i: &mut PodInputs, grace: Option<i64>| {
        let metadata = &mut Arc::make_mut(&mut i.pod).metadata;
        metadata.deletion_timestamp = Some(Time(at(0)));
        metadata.deletion_grace_period_seconds = grace;
    };
    for (grace, expected) in [(None, 30), (Some(60), 60), (Some(5), 5), (Some(0), 1)] {
        let mut i = i.clone();
        delete(&mut i, grace);
        assert_eq!(deadline(&i), expected, "{grace:?}");
    }
    delete(&mut i, Some(20));
    i.lifecycle = plan(&i).lifecycle;
    i.now = at(2);
    for (grace, expected) in [(60, 20), (20, 20), (5, 7), (0, 3)] {
        let mut i = i.clone();
        delete(&mut i, Some(grace));
        assert_eq!(deadline(&i), expected, "{grace} after two seconds of 20");
    }
}

#[test]
fn ephemeral_containers_start_while_init_containers_run() {
    let mut i = made(json!({"initContainers": [{"name": "i", "image": "x:1"}],
        "containers": [{"name": "c", "image": "x:1"}], "ephemeralContainers": [{"name": "e", "image": "x:1"}]}));
    i.images.insert("e".to_owned(), ImagePresence::Present(cri::Image::default()));
    i.containers = vec![container(&i, "i", 0, ContainerState::Running)];
    let decided = plan(&i);
    let starts: Vec<_> = decided
        .actions
        .iter()
        .filter_map(|action| match action {
            PodAction::StartContainer(start) => Some(start.container.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(starts, ["e"], "{decided:#?}");
}

#[test]
fn hooks_run_before_a_stop_with_grace_and_a_sidecars_while_it_waits_for_its_turn() {
    let hook = json!({"preStop": {"sleep": {"seconds": 1}}});
    let mut i = made(json!({
        "terminationGracePeriodSeconds": 10,
        "initContainers": [{"name": "s", "image": "x:1", "restartPolicy": "Always", "lifecycle": hook}],
        "containers": [{"name": "a", "image": "x:1", "lifecycle": hook}, {"name": "b", "image": "x:1"}],
    }));
    i.containers = ["s", "a", "b"].map(|name| container(&i, name, 0, ContainerState::Running)).into();
    i.lifecycle =
        Lifecycle::Terminating { since: at(0), deadline: at(10), cause: TerminationCause::DeadlineExceeded };
    let seen: Vec<_> = plan(&i)
        .actions
        .iter()
        .filter_map(|action| match action {
            PodAction::PreStop { id, grace, .. } => Some(format!("hook {id} {}", grace.as_secs())),
            PodAction::StopContainer { id, pre_stop, grace, .. } => {
                Some(format!("stop {id} {} {pre_stop}", grace.as_secs()))
            }
            _ => None,
        })
        .collect();
    assert_eq!(seen, ["hook s0 10", "stop a0 10 true", "stop b0 10 false"]);
    // Without grace there is no hook, and everybody goes at once.
    i.now = at(10);
    let late = plan(&i).actions;
    assert!(late.iter().all(|action| !matches!(
        action,
        PodAction::PreStop { .. } | PodAction::StopContainer { pre_stop: true, .. }
    )));
    assert_eq!(late.iter().filter(|action| matches!(action, PodAction::StopContainer { .. })).count(), 3);
}

#[test]
fn sidecars_that_nobody_has_seen_and_such_that_have_ended() {
    let phase = |sidecar: Value, regular: Value| {
        let spec = json!({"restartPolicy": "Never", "initContainers": [{"name": "s", "restartPolicy": "Always"}],
            "containers": [{"name": "c"}]});
        let list = |name: &str, state: Value| -> Vec<ContainerStatus> {
            if state.is_null() {
                return Vec::new();
            }
            let mut one =
                json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0});
            one.as_object_mut().unwrap().extend(state.as_object().unwrap().clone());
            vec![serde_json::from_value(one).unwrap()]
        };
        let spec = serde_json::from_value(spec).unwrap();
        let (regular, sidecar) = (list("c", regular), list("s", sidecar));
        crate::pod::phase::phase(&spec, &regular, &sidecar, false, true).as_str()
    };
    let running = || json!({"state": {"running": {}}});
    let ended = || json!({"state": {"terminated": {"exitCode": 1}}});
    let again = || json!({"state": {"waiting": {}}, "lastState": {"terminated": {"exitCode": 1}}});
    assert_eq!(phase(Value::Null, running()), "Pending", "it is unknown");
    assert_eq!(phase(ended(), running()), "Running", "it does not count");
    assert_eq!(phase(again(), running()), "Running", "it does not count either");
    assert_eq!(phase(ended(), json!({"state": {"terminated": {"exitCode": 0}}})), "Succeeded");
}

const RESTARTS_ALL: &str = "RestartAllContainers";

fn restarts_all(codes: Value) -> Value {
    json!([{"action": RESTARTS_ALL, "exitCodes": {"operator": "In", "values": codes}}])
}

#[test]
fn a_pod_that_ended_starts_nothing_anew_and_says_how_it_ended() {
    for (code, reason) in [(0, "PodCompleted"), (1, "PodFailed")] {
        let mut i = made(json!({"restartPolicy": "Never", "containers": [
            {"name": "c", "image": "x:1", "restartPolicy": "Never", "restartPolicyRules": restarts_all(json!([42]))}]}));
        i.containers = vec![exited(&i, "c", 0, code, at(0))];
        i.lifecycle = Lifecycle::Terminated { cause: TerminationCause::Completed };
        let told = status(&i).conditions.unwrap();
        let told = told.iter().find(|c| c.type_ == "AllContainersRestarting").unwrap();
        assert_eq!((told.status.as_str(), told.reason.as_deref()), ("False", Some(reason)));
    }
}

#[test]
fn a_sidecar_with_a_startup_probe_is_passed_once_that_has_succeeded() {
    let probe = json!({"tcpSocket": {"port": 1}});
    let mut i = made(json!({
        "initContainers": [{"name": "s", "image": "x:1", "restartPolicy": "Always", "startupProbe": probe, "livenessProbe": probe}],
        "containers": [{"name": "c", "image": "x:1"}]}));
    i.images.insert("c".to_owned(), ImagePresence::Present(cri::Image::default()));
    i.containers = vec![container(&i, "s", 0, ContainerState::Running)];
    let id = i.containers[0].container.id.clone();
    for (startup, passed) in [(None, false), (Some(Verdict::Unknown), false), (Some(Verdict::Success), true)]
    {
        i.probes.insert(id.clone(), ProbeResults { startup, liveness: None, readiness: None });
        let starts = plan(&i).actions.iter().any(|action| matches!(action, PodAction::StartContainer(_)));
        assert_eq!(starts, passed, "{startup:?}");
        let shown = status(&i);
        assert_eq!(shown.init_container_statuses.unwrap()[0].started, Some(passed));
        let initialized = shown.conditions.unwrap().into_iter().find(|c| c.type_ == "Initialized").unwrap();
        assert_eq!(initialized.status, if passed { "True" } else { "False" });
    }
}

#[test]
fn an_end_has_all_that_is_known_of_it_and_one_that_nobody_saw_is_told_as_such() {
    let mut i = one();
    i.containers = vec![exited(&i, "c", 0, 143, at(5))];
    let end = regular(&i)[0].state.clone().unwrap().terminated.unwrap();
    assert_eq!((end.exit_code, end.reason.as_deref(), end.signal), (143, Some("Error"), None));
    assert_eq!((end.started_at.unwrap().0, end.finished_at.unwrap().0), (at(1), at(5)));
    assert_eq!(end.container_id.as_deref(), Some("coracle://c0"));

    // One that ran and vanished while its Pod is being deleted has not been restarted.
    let mut i = one();
    i.containers = vec![container(&i, "c", 2, ContainerState::Running)];
    publish(&mut i);
    i.containers.clear();
    Arc::make_mut(&mut i.pod).metadata.deletion_timestamp = Some(Time(at(30)));
    let lost = &regular(&i)[0];
    let end = lost.state.clone().unwrap().terminated.unwrap();
    let when_deleted =
        "The container could not be located when the pod was deleted.  The container used to be Running";
    assert_eq!((lost.restart_count, end.exit_code), (2, 137));
    assert_eq!(
        (end.reason.as_deref(), end.message.as_deref()),
        (Some("ContainerStatusUnknown"), Some(when_deleted))
    );

    // And one of which nothing was ever seen, at the very end.
    let mut i = one();
    i.lifecycle = Lifecycle::Terminated { cause: TerminationCause::Deleted };
    let end = regular(&i)[0].state.clone().unwrap().terminated.unwrap();
    let when_terminated = "The container could not be located when the pod was terminated";
    assert_eq!((end.exit_code, end.message.as_deref()), (137, Some(when_terminated)));
}

#[test]
fn ephemeral_containers_and_hooks_have_no_part_when_all_start_anew() {
    let hook = json!({"preStop": {"sleep": {"seconds": 1}}});
    let mut i = made(json!({
        "containers": [{"name": "a", "image": "x:1", "lifecycle": hook},
            {"name": "t", "image": "x:1", "restartPolicy": "Never", "restartPolicyRules": restarts_all(json!([42]))}],
        "ephemeralContainers": [{"name": "e", "image": "x:1"}]}));
    i.containers = vec![
        container(&i, "a", 0, ContainerState::Running),
        exited(&i, "t", 0, 42, at(0)),
        container(&i, "e", 0, ContainerState::Running),
    ];
    publish(&mut i);
    i.now = at(5);
    let touched: Vec<_> = plan(&i)
        .actions
        .iter()
        .map(|action| match action {
            PodAction::StopContainer { id, pre_stop, grace, .. } => format!("stop {id} {pre_stop} {grace:?}"),
            PodAction::RemoveContainer(id) => format!("remove {id}"),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(touched, ["stop a0 false 0ns"]);
    i.containers[0] = exited(&i, "a", 0, 137, at(5));
    let removed: Vec<_> = plan(&i)
        .actions
        .iter()
        .filter_map(|action| match action {
            PodAction::RemoveContainer(id) => Some(id.to_string()),
            _ => None,
        })
        .collect();
    assert_eq!(removed, ["a0"], "what gave rise to it goes last, and the ephemeral one not at all");
}

#[test]
fn each_refusal_of_a_node_has_its_reason_and_text() {
    let node = serde_json::from_value(json!({
        "metadata": {"name": "n"},
        "status": {"allocatable": {"cpu": "4", "memory": "1Gi", "ephemeral-storage": "10", "example.com/x": "1", "pods": "9"}}
    }))
    .unwrap();
    let refused = |mut spec: Value| {
        if spec.get("containers").is_none() {
            spec["containers"] = json!([{"name": "c"}]);
        }
        let rejection = crate::admission::admit(&pod(spec), &node, &[]).unwrap_err();
        (rejection.reason, rejection.message)
    };
    let asks = |resource: &str, amount: &str| json!({"containers": [{"name": "c", "resources": {"requests": {resource: amount}}}]});
    for (spec, reason, text) in [
        (
            asks("memory", "2Gi"),
            "OutOfmemory",
            "Node didn't have enough resource: memory, requested: 2147483648, used: 0, capacity: 1073741824",
        ),
        (
            asks("ephemeral-storage", "11"),
            "OutOfephemeral-storage",
            "Node didn't have enough resource: ephemeral-storage, requested: 11, used: 0, capacity: 10",
        ),
        (
            asks("example.com/x", "2"),
            "OutOfexample.com/x",
            "Node didn't have enough resource: example.com/x, requested: 2, used: 0, capacity: 1",
        ),
        (
            json!({"nodeName": "other"}),
            "NodeName",
            "Predicate NodeName failed: node(s) didn't match the requested node name",
        ),
        (
            json!({"os": {"name": "windows"}}),
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        ),
        (
            json!({"nodeSelector": {"kubernetes.io/os": "windows"}}),
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        ),
    ] {
        assert_eq!(refused(spec), (reason.to_owned(), text.to_owned()));
    }
}

#[test]
fn a_service_is_named_in_all_the_forms_of_old() {
    let service = serde_json::from_value(json!({
        "metadata": {"name": "my-web", "namespace": "ns"},
        "spec": {"clusterIP": "10.96.0.3", "ports": [
            {"name": "web-x", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]},
    }))
    .unwrap();
    let variables = crate::spec::services::service_variables(&pod(json!({"containers": []})), [&service]);
    let expected = [
        ("MY_WEB_PORT", "tcp://10.96.0.3:80"),
        ("MY_WEB_PORT_53_UDP", "udp://10.96.0.3:53"),
        ("MY_WEB_PORT_53_UDP_ADDR", "10.96.0.3"),
        ("MY_WEB_PORT_53_UDP_PORT", "53"),
        ("MY_WEB_PORT_53_UDP_PROTO", "udp"),
        ("MY_WEB_PORT_80_TCP", "tcp://10.96.0.3:80"),
        ("MY_WEB_PORT_80_TCP_ADDR", "10.96.0.3"),
        ("MY_WEB_PORT_80_TCP_PORT", "80"),
        ("MY_WEB_PORT_80_TCP_PROTO", "tcp"),
        ("MY_WEB_SERVICE_HOST", "10.96.0.3"),
        ("MY_WEB_SERVICE_PORT", "80"),
        ("MY_WEB_SERVICE_PORT_DNS", "53"),
        ("MY_WEB_SERVICE_PORT_WEB_X", "80"),
    ];
    let made: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(made, expected);
}
