//! What is started, killed and waited for, from raw observations: one line a situation.

use coracle_cri::{ContainerState, Image, PodSandboxState};
use serde_json::{Value, json};

use super::*;
use crate::pod::backoff::Backoff;
use crate::pod::inputs::{ImagePresence, Operation, OperationKey, TerminationCause};
use crate::pod::{PodAction, PodPlan, WaitingOn, plan, reasons};
use crate::probe::{ProbeResults, Verdict};

/// A Pod of a plain init container, a sidecar, another plain one, and an app.
fn base() -> Value {
    json!({
        "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
        "initContainers": [
            {"name": "i", "image": "x:1"}, {"name": "s", "image": "x:1", "restartPolicy": "Always"},
            {"name": "j", "image": "x:1"},
        ],
        "containers": [{"name": "app", "image": "x:1"}],
    })
}

/// The inputs for a Pod whose containers are in these states (`i=0 s=run j=created app=1`): a number is the code of an
/// end that has been seen. A name may come twice: the older instance first.
fn with(spec: Value, states: &str) -> PodInputs {
    let mut i = inputs(pod(spec));
    i.sandboxes = vec![sandbox(0, PodSandboxState::Ready)];
    for (name, state) in states.split_whitespace().map(|word| word.split_once('=').unwrap()) {
        let attempt = u32::try_from(i.instances(name).len()).unwrap();
        let made = match state {
            "run" => container(&i, name, attempt, ContainerState::Running),
            "created" => container(&i, name, attempt, ContainerState::Created),
            "unknown" => container(&i, name, attempt, ContainerState::Unknown),
            code => exited(&i, name, attempt, code.parse().unwrap(), at(-1)),
        };
        i.containers.push(made);
    }
    let present = ImagePresence::Present(Image { id: "sha256:1".into(), ..Image::default() });
    i.images = containers::all(i.spec()).map(|m| (m.name().to_owned(), present.clone())).collect();
    i.previous_status.start_time = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(-5)));
    publish(&mut i);
    i
}

fn told(plan: &PodPlan) -> String {
    let all: Vec<String> = plan.actions.iter().map(one).collect();
    all.join("; ")
}

fn one(action: &PodAction) -> String {
    match action {
        PodAction::StartContainer(start) => format!("start {} {}", start.container, start.attempt),
        PodAction::CreateSandbox { attempt } => format!("sandbox {attempt}"),
        PodAction::StopSandbox(id) => format!("stop sandbox {id}"),
        PodAction::AnnounceStop { event, .. } => format!("tell {}", event.message),
        PodAction::PreStop { id, grace, .. } => format!("hook {id} {}s", grace.as_secs()),
        PodAction::StopContainer { id, grace, pre_stop, restarts, .. } => {
            let hook = if *pre_stop { " after its hook" } else { "" };
            let again = if restarts.is_some() { " to start again" } else { "" };
            format!("stop {id} {}s{hook}{again}", grace.as_secs())
        }
        PodAction::RemoveContainer(id) => format!("remove {id}"),
        PodAction::BeginBackOff { container, .. } => format!("back off {container}"),
        PodAction::FailStart { container, reason, message, .. } => format!("{container} {reason}: {message}"),
        PodAction::Report(event) => format!("report {}", event.reason),
        PodAction::Cancel(key) => format!("cancel {key:?}"),
        other => format!("{other:?}"),
    }
}

#[track_caller]
fn check(spec: Value, states: &str, expected: &str) {
    assert_eq!(told(&plan(&with(spec, states))), expected, "{states}");
}

fn in_flight(i: &mut PodInputs, key: OperationKey, deadline: Option<Timestamp>) {
    i.operations.insert(key, Operation { since: i.now, deadline });
}

// === Starts ===

#[test]
fn init_containers_are_started_strictly_in_order() {
    for (states, expected) in [
        ("", "start i 0"),
        ("i=run", ""),
        ("i=0", "start s 0"),
        ("i=0 s=run", "start j 0"),
        ("i=0 s=run j=run", ""),
        ("i=0 s=run j=0", "start app 0"),
        ("i=0 s=run j=0 app=run", ""),
    ] {
        check(base(), states, expected);
    }
}

#[test]
fn a_plain_init_container_that_failed_is_tried_again_before_anything_after_it() {
    check(base(), "i=1", "start i 1");
    check(base(), "i=0 s=run j=1", "start j 1");
    let mut on_failure = base();
    on_failure["restartPolicy"] = json!("OnFailure");
    check(on_failure, "i=1", "start i 1");
}

#[test]
fn one_that_was_created_and_not_started_is_started() {
    check(base(), "i=created", "start i 0");
    check(base(), "i=0 s=run j=0 app=created", "start app 0");
}

#[test]
fn what_stands_before_one_that_has_begun_has_passed_even_if_the_runtime_forgot_it() {
    check(base(), "s=run j=run", "");
    check(base(), "j=0", "start s 0");
    check(base(), "s=run j=0", "start app 0");
}

#[test]
fn once_a_regular_container_is_there_plain_init_containers_never_run_again() {
    check(base(), "app=run s=run", "");
    check(base(), "app=created s=run", "start app 0");
    check(base(), "app=1 s=run", "start app 1");
}

#[test]
fn a_sidecar_is_kept_alive_at_every_stage_and_under_every_policy() {
    for policy in ["Always", "OnFailure", "Never"] {
        let mut spec = base();
        spec["restartPolicy"] = json!(policy);
        check(spec.clone(), "i=0 s=0 j=run", "start s 1");
        check(spec.clone(), "i=0 s=7 j=0 app=run", "start s 1");
    }
    // While the app waits for its own back-off, too.
    check(base(), "i=0 s=7 j=0 app=1", "start s 1");
}

#[test]
fn the_one_after_a_sidecar_waits_for_its_startup_probe_and_for_no_other() {
    let mut spec = base();
    spec["initContainers"][1]["startupProbe"] = json!({"tcpSocket": {"port": 1}});
    spec["initContainers"][1]["livenessProbe"] = json!({"tcpSocket": {"port": 1}});
    let mut i = with(spec, "i=0 s=run");
    let waits = plan(&i);
    assert_eq!(told(&waits), "");
    assert!(waits.waiting_on.contains(&WaitingOn::Startup { container: "s".into() }), "{waits:?}");
    let id = cri::ContainerId("s0".into());
    let startup = Some(Verdict::Success);
    i.probes.insert(id, ProbeResults { startup, liveness: Some(Verdict::Unknown), readiness: None });
    assert_eq!(told(&plan(&i)), "start j 0");
}

#[test]
fn in_a_new_sandbox_all_begins_anew() {
    let mut i = with(base(), "i=0 s=137 j=0 app=137");
    i.sandboxes = vec![sandbox(1, PodSandboxState::Ready), sandbox(0, PodSandboxState::NotReady)];
    assert_eq!(told(&plan(&i)), "start i 1");
}

#[test]
fn a_pod_whose_containers_are_all_done_gets_no_new_sandbox() {
    let mut spec = base();
    spec["restartPolicy"] = json!("OnFailure");
    let mut i = with(spec, "i=0 s=137 j=0 app=0");
    i.sandboxes = vec![sandbox(0, PodSandboxState::NotReady)];
    let done = plan(&i);
    assert_eq!(done.lifecycle, Lifecycle::Terminated { cause: TerminationCause::Completed });
    assert_eq!(told(&done), "");
    let mut i = with(base(), "i=0 s=137 j=0 app=0");
    i.sandboxes = vec![sandbox(0, PodSandboxState::NotReady)];
    assert_eq!(told(&plan(&i)), "report SandboxChanged; stop sandbox s0");
}

#[test]
fn a_plain_init_container_that_fails_for_good_ends_the_pod() {
    let mut spec = base();
    spec["restartPolicy"] = json!("Never");
    let ended = plan(&with(spec.clone(), "i=0 s=run j=1"));
    assert!(
        matches!(ended.lifecycle, Lifecycle::Terminating { cause: TerminationCause::Completed, .. }),
        "{ended:?}"
    );
    assert_eq!(told(&ended), "tell Stopping container s; stop s0 30s");
    // A rule of its own, or its own policy, is asked before the Pod's.
    spec["initContainers"][2]["restartPolicy"] = json!("OnFailure");
    check(spec, "i=0 s=run j=1", "start j 1");
}

#[test]
fn sidecars_do_not_keep_a_pod_whose_regular_containers_are_done() {
    let mut spec = base();
    spec["restartPolicy"] = json!("Never");
    check(spec, "i=0 s=run j=0 app=3", "tell Stopping container s; stop s0 30s");
}

#[test]
fn a_container_whose_turn_has_come_is_not_started_beside_another_start() {
    let mut i = with(base(), "i=0 s=7 j=0 app=1");
    in_flight(&mut i, OperationKey::StartContainer("s".into()), None);
    let waits = plan(&i);
    assert_eq!(told(&waits), "");
    assert!(waits.waiting_on.contains(&WaitingOn::ContainerStart { container: "s".into() }));
}

// === Back-off ===

#[test]
fn a_back_off_belongs_to_a_definition_and_holds_also_after_a_good_end() {
    let backoff = Backoff { delay: SignedDuration::from_secs(40), updated: at(-10) };
    let delayed = |i: &mut PodInputs| {
        let hash = definition_hash(&containers::find(i.spec(), "app").unwrap().container);
        i.history.container("app").restart_backoff = Some((hash, backoff));
        i.history.container("app").announced = Some(cri::ContainerId("app0".into()));
    };
    for code in ["0", "1"] {
        let mut i = with(base(), &format!("i=0 s=run j=0 app={code}"));
        delayed(&mut i);
        let waits = plan(&i);
        assert_eq!((told(&waits).as_str(), waits.wake_at), ("", Some(at(39))), "exit {code}");
    }
    // A new image starts afresh.
    let mut i = with(base(), "i=0 s=run j=0 app=1");
    delayed(&mut i);
    Arc::make_mut(&mut i.pod).spec.as_mut().unwrap().containers[0].image = Some("x:2".into());
    assert_eq!(told(&plan(&i)), "start app 1");
    // And nothing of it delays a deletion.
    let mut i = with(base(), "i=0 s=0 j=0 app=1");
    delayed(&mut i);
    i.object_gone = true;
    assert_eq!(told(&plan(&i)), "stop sandbox s0");
}

#[test]
fn init_containers_and_sidecars_back_off_like_all_others() {
    for (name, states) in [("i", "i=1"), ("s", "i=0 s=0")] {
        let mut i = with(base(), states);
        let hash = definition_hash(&containers::find(i.spec(), name).unwrap().container);
        let backoff = Backoff { delay: SignedDuration::from_secs(20), updated: at(-10) };
        i.history.container(name).restart_backoff = Some((hash, backoff));
        let waits = plan(&i);
        assert_eq!((told(&waits), waits.wake_at), (format!("back off {name}"), Some(at(19))));
    }
}

// === Ephemeral containers ===

fn ephemeral(target: &str) -> Value {
    let mut spec = base();
    spec["ephemeralContainers"] = json!([{"name": "e", "image": "x:1", "targetContainerName": target}]);
    spec
}

#[test]
fn an_ephemeral_container_is_started_also_where_init_containers_fail() {
    check(ephemeral(""), "i=run", "start e 0");
    check(ephemeral(""), "i=run e=run", "");
    let mut i = with(ephemeral(""), "i=1");
    i.history.container("i").announced = Some(cri::ContainerId("i0".into()));
    assert_eq!(told(&plan(&i)), "start e 0");
}

#[test]
fn an_ephemeral_container_is_never_started_again() {
    check(ephemeral(""), "i=run e=0", "");
    check(ephemeral(""), "i=run e=1", "");
    let mut i = with(ephemeral(""), "i=0 s=run j=0 app=run e=1");
    i.containers.retain(|c| c.container.name != "e");
    assert_eq!(told(&plan(&i)), "", "it ran, though the runtime has forgotten it");
    i.sandboxes = vec![sandbox(1, PodSandboxState::Ready), sandbox(0, PodSandboxState::NotReady)];
    i.containers.iter_mut().for_each(|c| c.container.state = ContainerState::Exited);
    assert_eq!(told(&plan(&i)), "start i 1", "nor in a new sandbox");
}

#[test]
fn an_ephemeral_container_sees_the_processes_of_its_target_or_is_not_started() {
    let started = plan(&with(ephemeral("app"), "i=0 s=run j=0 app=run"));
    let PodAction::StartContainer(start) = &started.actions[0] else { panic!("{started:?}") };
    assert_eq!(start.target, Some(cri::ContainerId("app0".into())));
    let expected = "e CreateContainerConfigError: unable to find target container app; start i 0";
    check(ephemeral("app"), "", expected);
}

// === Containers that are killed ===

/// Kills one container of a Pod in which all run; the policy is the Pod's.
#[track_caller]
fn check_kill(policy: &str, change: impl Fn(&mut PodInputs), expected: &str) {
    let mut spec = base();
    spec["restartPolicy"] = json!(policy);
    spec["initContainers"][1]["startupProbe"] =
        json!({"tcpSocket": {"port": 1}, "terminationGracePeriodSeconds": 3});
    spec["initContainers"][1]["livenessProbe"] = json!({"tcpSocket": {"port": 1}});
    spec["containers"][0]["startupProbe"] = json!({"tcpSocket": {"port": 1}});
    spec["containers"][0]["livenessProbe"] =
        json!({"tcpSocket": {"port": 1}, "terminationGracePeriodSeconds": 7});
    spec["containers"][0]["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 1}}});
    let mut i = with(spec, "i=0 s=run j=0 app=run");
    change(&mut i);
    assert_eq!(told(&plan(&i)), expected);
}

fn found(i: &mut PodInputs, id: &str, startup: Verdict, liveness: Verdict) {
    let results = ProbeResults { startup: Some(startup), liveness: Some(liveness), readiness: None };
    i.probes.insert(cri::ContainerId(id.into()), results);
}

fn state(i: &mut PodInputs, name: &str, state: ContainerState) {
    i.containers.iter_mut().filter(|c| c.container.name == name).for_each(|c| c.container.state = state);
}

#[test]
fn a_failed_probe_kills_with_its_own_grace_and_says_what_comes_next() {
    use Verdict::{Failure, Success, Unknown};
    let app = |startup, liveness| move |i: &mut PodInputs| found(i, "app0", startup, liveness);
    let sidecar = |startup, liveness| move |i: &mut PodInputs| found(i, "s0", startup, liveness);
    check_kill("Always", app(Success, Success), "");
    check_kill("Always", app(Unknown, Success), "");
    check_kill(
        "Always",
        app(Success, Failure),
        "tell Container app failed liveness probe, will be restarted; stop app0 7s after its hook to start again",
    );
    check_kill(
        "OnFailure",
        app(Failure, Success),
        "tell Container app failed startup probe, will be restarted; stop app0 30s after its hook to start again",
    );
    check_kill(
        "Never",
        app(Success, Failure),
        "tell Container app failed liveness probe; stop app0 7s after its hook",
    );
    check_kill(
        "Never",
        sidecar(Failure, Success),
        "tell Init container s failed startup probe; stop s0 3s to start again",
    );
    check_kill(
        "Never",
        sidecar(Success, Failure),
        "tell Init container s failed liveness probe; stop s0 30s to start again",
    );
}

#[test]
fn a_changed_definition_kills_what_can_be_restarted_and_nothing_else() {
    let image = |name: &'static str| {
        move |i: &mut PodInputs| {
            let spec = Arc::make_mut(&mut i.pod).spec.as_mut().unwrap();
            let all = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
            all.filter(|c| c.name == name).for_each(|c| c.image = Some("x:2".into()));
        }
    };
    check_kill(
        "Never",
        image("app"),
        "tell Container app definition changed, will be restarted; stop app0 30s after its hook to start again",
    );
    check_kill("Never", image("s"), "tell Init container s definition changed; stop s0 30s to start again");
    check_kill("Never", image("i"), "");
    let mut i = with(base(), "i=0 s=run j=run");
    image("j")(&mut i);
    assert_eq!(told(&plan(&i)), "");
}

#[test]
fn a_container_in_an_unknown_state_is_killed_before_it_is_started_again() {
    let unknown = |name: &'static str| move |i: &mut PodInputs| state(i, name, ContainerState::Unknown);
    check_kill(
        "Always",
        unknown("app"),
        "tell Container is in \"unknown\" state, try killing it before restart; stop app0 30s after its hook to start again",
    );
    check_kill(
        "Always",
        unknown("s"),
        "tell Init container is in \"unknown\" state, try killing it before restart; stop s0 30s to start again",
    );
}

#[test]
fn no_hook_runs_where_there_is_no_grace() {
    check_kill(
        "Always",
        |i| {
            let spec = Arc::make_mut(&mut i.pod).spec.as_mut().unwrap();
            spec.termination_grace_period_seconds = Some(0);
            found(i, "app0", Verdict::Failure, Verdict::Success);
        },
        "tell Container app failed startup probe, will be restarted; stop app0 2s to start again",
    );
}

#[test]
fn what_a_probe_has_killed_comes_back_whatever_its_exit_code() {
    let mut spec = base();
    spec["restartPolicy"] = json!("OnFailure");
    let mut i = with(spec, "i=0 s=run j=0 app=0");
    assert_ne!(plan(&i).lifecycle, Lifecycle::Syncing, "an end of its own is one");
    i.history.container("app").must_restart.insert(cri::ContainerId("app0".into()), i.now);
    assert_eq!(told(&plan(&i)), "start app 1");
}

/// The API server takes no status after the end of a container that its policy leaves ended.
#[test]
fn what_comes_back_against_its_policy_is_not_shown_as_ended() {
    let mut spec = base();
    spec["restartPolicy"] = json!("OnFailure");
    let mut i = with(spec, "i=0 s=run j=0 app=0");
    let app = |i: &PodInputs| {
        let status = status(i);
        status.container_statuses.unwrap().into_iter().find(|c| c.name == "app").unwrap()
    };
    assert!(app(&i).state.unwrap().terminated.is_some());
    i.history.container("app").must_restart.insert(cri::ContainerId("app0".into()), i.now);
    let shown = app(&i);
    assert_eq!(shown.state.unwrap().waiting.unwrap().reason.as_deref(), Some("ContainerCreating"));
    assert_eq!(shown.last_state.unwrap().terminated.unwrap().exit_code, 0);
}

// === The end ===

fn deleted(i: &mut PodInputs, grace: i64) {
    let metadata = &mut Arc::make_mut(&mut i.pod).metadata;
    let deadline = i.now + SignedDuration::from_secs(grace);
    metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(deadline));
    metadata.deletion_grace_period_seconds = Some(grace);
}

/// Plans, and takes the lifecycle and what was told as carried out.
fn turn(i: &mut PodInputs) -> String {
    let plan = plan(i);
    for action in &plan.actions {
        match action {
            PodAction::AnnounceStop { id, .. } => {
                i.history.announced_stops.insert(id.clone());
            }
            PodAction::PreStop { id, deadline, .. } => {
                in_flight(i, OperationKey::PreStop(id.clone()), Some(*deadline));
            }
            PodAction::StopContainer { id, deadline, .. } => {
                in_flight(i, OperationKey::StopContainer(id.clone()), Some(*deadline));
            }
            PodAction::Cancel(key) => {
                i.operations.remove(key);
            }
            _ => {}
        }
    }
    let told = told(&plan);
    i.lifecycle = plan.lifecycle;
    told
}

fn end(i: &mut PodInputs, name: &str) {
    state(i, name, ContainerState::Exited);
    let ids: Vec<_> = i.instances(name).iter().map(|c| c.container.id.clone()).collect();
    ids.into_iter().for_each(|id| {
        i.operations.remove(&OperationKey::StopContainer(id));
    });
}

fn with_hooks() -> Value {
    let mut spec = base();
    for (list, n) in [("initContainers", 1), ("containers", 0)] {
        spec[list][n]["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 1}}});
    }
    spec
}

#[test]
fn all_are_told_at_once_and_the_hook_of_a_sidecar_runs_before_its_turn() {
    let mut i = with(with_hooks(), "i=0 s=run j=0 app=run");
    deleted(&mut i, 20);
    assert_eq!(
        turn(&mut i),
        "tell Stopping container s; hook s0 20s; tell Stopping container app; stop app0 20s after its hook"
    );
    assert_eq!(turn(&mut i), "", "once");
    // Its hook is over, and its turn has not come.
    i.now = at(4);
    i.operations.remove(&OperationKey::PreStop(cri::ContainerId("s0".into())));
    i.history.apply(&crate::pod::history::Outcome::PreStopped(cri::ContainerId("s0".into())), i.now);
    let waits = plan(&i);
    assert_eq!((told(&waits).as_str(), waits.wake_at), ("", Some(at(20))));
    i.now = at(6);
    end(&mut i, "app");
    assert_eq!(turn(&mut i), "stop s0 14s", "its time is taken from the grace");
}

#[test]
fn a_hook_that_outlasts_the_grace_is_given_up_and_two_seconds_are_left_for_the_signal() {
    let mut i = with(with_hooks(), "i=0 s=run j=0 app=run");
    deleted(&mut i, 20);
    turn(&mut i);
    i.now = at(6);
    end(&mut i, "app");
    assert_eq!(turn(&mut i), "", "the hook still runs");
    i.now = at(20);
    assert_eq!(turn(&mut i), "cancel PreStop(ContainerId(\"s0\")); stop s0 2s");
}

#[test]
fn sidecars_end_after_all_regular_containers_and_after_those_declared_later() {
    let spec = json!({
        "initContainers": [
            {"name": "s1", "image": "x:1", "restartPolicy": "Always"},
            {"name": "i", "image": "x:1"},
            {"name": "s2", "image": "x:1", "restartPolicy": "Always"},
        ],
        "containers": [{"name": "a", "image": "x:1"}, {"name": "b", "image": "x:1"}],
        "ephemeralContainers": [{"name": "e", "image": "x:1"}],
    });
    let mut i = with(spec, "s1=run i=0 s2=run a=run b=run e=run");
    i.history.announced_stops = i.containers.iter().map(|c| c.container.id.clone()).collect();
    deleted(&mut i, 30);
    assert_eq!(turn(&mut i), "stop a0 30s; stop b0 30s; stop e0 30s");
    end(&mut i, "a");
    end(&mut i, "e");
    assert_eq!(turn(&mut i), "", "all of them");
    end(&mut i, "b");
    assert_eq!(turn(&mut i), "stop s20 30s");
    end(&mut i, "s2");
    assert_eq!(turn(&mut i), "stop s10 30s");
    end(&mut i, "s1");
    assert_eq!(turn(&mut i), "stop sandbox s0");
}

#[test]
fn when_the_grace_is_used_up_nobody_waits_any_longer() {
    let mut i = with(base(), "i=0 s=run j=0 app=run");
    i.history.announced_stops = i.containers.iter().map(|c| c.container.id.clone()).collect();
    deleted(&mut i, 5);
    assert_eq!(turn(&mut i), "stop app0 5s");
    i.now = at(5);
    assert_eq!(turn(&mut i), "stop s0 2s");
}

#[test]
fn during_initialization_a_sidecar_is_stopped_beside_the_init_container() {
    let mut i = with(base(), "i=0 s=run j=run");
    i.history.announced_stops = i.containers.iter().map(|c| c.container.id.clone()).collect();
    deleted(&mut i, 5);
    assert_eq!(turn(&mut i), "stop s0 5s; stop j0 5s");
}

#[test]
fn a_shorter_grace_that_comes_later_takes_the_place_of_the_first() {
    let mut i = with(json!({"containers": [{"name": "app", "image": "x:1"}]}), "app=run");
    deleted(&mut i, 30);
    assert_eq!(turn(&mut i), "tell Stopping container app; stop app0 30s");
    i.now = at(10);
    deleted(&mut i, 40);
    assert_eq!(turn(&mut i), "", "it cannot be made longer");
    deleted(&mut i, 4);
    assert_eq!(turn(&mut i), "stop app0 4s");
    i.now = at(11);
    i.object_gone = true;
    assert_eq!(turn(&mut i), "stop app0 2s", "forced: a second, and two are the least");
}

#[test]
fn the_node_ends_a_pod_with_its_own_grace() {
    let mut i = with(base(), "i=0 s=run j=0 app=run");
    let reason = reasons::PREEMPTING;
    i.eviction = Some(crate::pod::Eviction { reason, message: reasons::PREEMPTING_MESSAGE.into() });
    assert_eq!(
        turn(&mut i),
        "report Preempting; tell Stopping container s; tell Stopping container app; stop app0 30s"
    );
    let shown = status(&i);
    let target = shown.conditions.iter().flatten().find(|c| c.type_ == "DisruptionTarget").unwrap();
    assert_eq!((target.status.as_str(), target.reason.as_deref()), ("True", Some("TerminationByKubelet")));
    assert_eq!(shown.phase.as_deref(), Some("Running"), "it is not over yet");
}

// === All anew ===

fn ruled() -> Value {
    let mut spec = base();
    spec["restartPolicy"] = json!("Never");
    spec["containers"] = json!([{"name": "app", "image": "x:1"}, {"name": "trigger", "image": "x:1",
        "restartPolicy": "Never", "restartPolicyRules": [
            {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]}]);
    spec["ephemeralContainers"] = json!([{"name": "e", "image": "x:1"}]);
    spec
}

#[test]
fn all_containers_are_removed_once_the_condition_that_tells_of_it_is_seen() {
    let mut i = with(ruled(), "i=0 s=run j=0 app=run trigger=run e=run");
    state(&mut i, "trigger", ContainerState::Exited);
    for c in i.containers.iter_mut().filter(|c| c.container.name == "trigger") {
        (c.exit_code, c.finished_at) = (Some(42), Some(at(0)));
    }
    let first = plan(&i);
    assert_eq!((told(&first).as_str(), first.wake_at), ("", Some(at(2))));
    assert_eq!(first.waiting_on, [WaitingOn::StatusPublished]);
    publish(&mut i);
    assert_eq!(told(&plan(&i)), "stop s0 0s; stop app0 0s", "without order, hooks or grace");
    for name in ["s", "app"] {
        state(&mut i, name, ContainerState::Exited);
        i.containers.iter_mut().filter(|c| c.container.name == name).for_each(|c| c.exit_code = Some(137));
    }
    publish(&mut i);
    assert_eq!(
        told(&plan(&i)),
        "remove i0; remove s0; remove j0; remove app0",
        "what gave rise to it goes last"
    );
    i.containers.retain(|c| ["trigger", "e"].contains(&c.container.name.as_str()));
    publish(&mut i);
    assert_eq!(told(&plan(&i)), "remove trigger0");
    i.containers.retain(|c| c.container.name == "e");
    assert_eq!(told(&plan(&i)), "start i 1", "in the same sandbox, from the first one on");
    let shown = publish(&mut i);
    let restarting =
        shown.conditions.iter().flatten().find(|c| c.type_ == "AllContainersRestarting").unwrap();
    assert_eq!(restarting.status, "False");
    let regular = shown.container_statuses.unwrap();
    let waiting = |n: usize| regular[n].state.clone().unwrap().waiting.unwrap().reason.unwrap();
    assert_eq!((waiting(0), waiting(1)), (waiting(1), "RestartingAllContainers".to_owned()));
    let last = |n: usize| regular[n].last_state.clone().unwrap().terminated.unwrap();
    assert_eq!((last(0).exit_code, last(0).reason.as_deref()), (137, Some("RestartingAllContainers")));
    assert_eq!((last(1).exit_code, last(1).reason.as_deref()), (42, Some("Error")));
    assert_eq!((regular[0].restart_count, regular[1].restart_count), (1, 1));
}

#[test]
fn a_node_agent_that_starts_anew_goes_on_with_the_removal() {
    let mut i = with(ruled(), "i=0 s=137 j=0 app=137 trigger=42 e=run");
    publish(&mut i);
    // The trigger is gone and what is left does not tell: the condition does.
    i.containers.retain(|c| ["app", "e"].contains(&c.container.name.as_str()));
    i.history = History::default();
    assert_eq!(told(&plan(&i)), "remove app0");
    i.containers.retain(|c| c.container.name == "e");
    assert_eq!(told(&plan(&i)), "start i 1");
}

#[test]
fn other_rules_and_codes_restart_one_container_alone() {
    let mut spec = ruled();
    spec["containers"][1]["restartPolicyRules"][0]["action"] = json!("Restart");
    check(spec, "i=0 s=run j=0 app=run trigger=42 e=run", "start trigger 1");
    check(ruled(), "i=0 s=run j=0 app=run trigger=3 e=run", "");
}
