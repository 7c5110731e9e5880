//! What a node agent that starts anew goes on with: what was decided and learned outlives the agent, also where neither the
//! runtime nor the API server tells of it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use coracle_client::Deletion;
use coracle_cri::RuntimeService as _;
use coracle_cri::scripted::{Answer, Exit, ImageScript, OnStop, RunScript};
use serde_json::{Value, json};

use super::{images, last, plain, runs, sidecar, started, starts_and_stops, until_gone};
use crate::cluster::Cluster;
use crate::probing::{answer, told};

const S: Duration = Duration::from_secs(1);

fn now() -> Deletion {
    Deletion { grace_period_seconds: Some(0), ..Deletion::default() }
}

/// Waits until the runtime has been asked for this so often.
async fn until_called(cluster: &Cluster, call: &str, times: usize) {
    let wait = async {
        while cluster.runtime.calls().iter().filter(|made| *made == call).count() < times {
            cluster.clock.sleep(S / 100).await;
        }
    };
    let done = cluster.clock.timeout(600 * S, wait).await;
    assert!(done.is_some(), "waited for {call}: {:#?}", cluster.runtime.calls());
}

/// Ends the node agent, waits, and starts another one.
async fn restart(cluster: &mut Cluster, away: Duration) {
    cluster.kill_agent().await;
    cluster.clock.sleep(away).await;
    cluster.start_agent();
}

fn hooked(mut container: Value, hook: &str, handler: Value) -> Value {
    container["lifecycle"] = json!({hook: handler});
    container
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_vanished_while_no_agent_ran_ends_with_its_hooks_and_in_its_order() {
    let mut cluster = started().await;
    let fails = RunScript { answers: vec![answer(&["bye"], 0, 1)], ..RunScript::default() };
    cluster.image("hooked:1", runs(vec![fails]));
    let bye = json!({"exec": {"command": ["bye"]}});
    let mut app = hooked(plain("app", "hooked:1"), "preStop", bye.clone());
    app["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    let spec = json!({"initContainers": [hooked(sidecar("s", "hooked:1"), "preStop", bye)], "containers": [app],
        "volumes": [{"name": "v", "emptyDir": {}}]});
    cluster.run("p", spec).await;
    cluster.until_step("p", "MODIFIED Running | init s Running 0 | app Running 0").await;
    cluster.kill_agent().await;
    cluster.delete("p", &now()).await;
    cluster.clock.sleep(S).await;
    cluster.start_agent();
    cluster.clock.sleep(10 * S).await;
    let ends: Vec<_> = starts_and_stops(&cluster).split_off(3);
    assert_eq!(ends[..3], ["stop app 2s", "stop s 2s", "stop sandbox p"]);
    let told = told(&cluster, "p").await;
    for name in ["spec.containers{app}", "spec.initContainers{s}"] {
        assert!(
            told.contains(&format!("Warning FailedPreStopHook PreStopHook failed ({name}) x1")),
            "{told:#?}"
        );
    }
    assert!(cluster.runtime.list_pod_sandboxes(&Default::default()).await.unwrap().is_empty());
    assert_eq!(std::fs::read_dir(cluster.path("pods")).unwrap().count(), 0, "nothing is left of it");
}

#[tokio::test(start_paused = true)]
async fn what_is_stopped_to_start_again_does_so_though_the_agent_ends_meanwhile() {
    // The agent comes back while it still ends, and when it has ended well: OnFailure alone would leave it at that.
    for away in [S / 10, 10 * S] {
        let mut cluster = started().await;
        let sick = RunScript {
            answers: vec![answer(&["alive"], 0, 0), answer(&["alive"], 5, 1)],
            on_stop: OnStop::Exits { after: 4 * S, code: 0 },
            ..RunScript::default()
        };
        cluster.image("sick:1", runs(vec![sick, RunScript::default()]));
        let mut app = plain("app", "sick:1");
        app["livenessProbe"] =
            json!({"exec": {"command": ["alive"]}, "periodSeconds": 2, "failureThreshold": 2});
        cluster.run("p", json!({"restartPolicy": "OnFailure", "containers": [app]})).await;
        until_called(&cluster, "stop app 30s", 1).await;
        restart(&mut cluster, away).await;
        cluster.until_step("p", "MODIFIED Running | app Running 1").await;
        cluster.settle().await;
        let ended = &last(&cluster, "p")["status"]["containerStatuses"][0]["lastState"]["terminated"];
        assert_eq!(ended["exitCode"], 0, "{away:?}");
        let killing = told(&cluster, "p").await.into_iter().filter(|event| event.contains("Killing"));
        assert_eq!(
            killing.collect::<Vec<_>>(),
            [
                "Normal Killing Container app failed liveness probe, will be restarted (spec.containers{app}) x1"
            ]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_back_off_of_pulls_outlives_the_agent() {
    let mut cluster = started().await;
    let never = vec![coracle_cri::CriError::NotFound("no such image".to_owned())];
    let script = ImageScript { pull_failures: never, pull_never_succeeds: true, ..ImageScript::default() };
    cluster.runtime.script("absent:1", script);
    cluster.run("p", json!({"containers": [plain("app", "absent:1")]})).await;
    until_called(&cluster, "pull absent:1", 2).await;
    cluster.settle().await;
    assert_eq!(cluster.steps("p").last().unwrap(), "MODIFIED Pending | app ImagePullBackOff 0");
    let (shown, pulled) = (cluster.history("p").len(), cluster.clock.elapsed());
    restart(&mut cluster, 2 * S).await;
    cluster.clock.sleep(10 * S).await;
    assert_eq!(cluster.history("p").len(), shown, "{:#?}", cluster.steps("p"));
    until_called(&cluster, "pull absent:1", 3).await;
    let took = (cluster.clock.elapsed() - pulled).as_secs_f64();
    assert!((16.5..17.5).contains(&took), "twenty seconds after the second pull: {took}");
    cluster.settle().await;
    restart(&mut cluster, S).await;
    until_called(&cluster, "pull absent:1", 4).await;
    let took = (cluster.clock.elapsed() - pulled).as_secs_f64();
    assert!((56.0..58.0).contains(&took), "and forty after the third: {took}");
}

fn trigger(image: &str) -> Value {
    json!({"name": "trigger", "image": image, "restartPolicy": "Never", "restartPolicyRules": [
        {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]})
}

fn exits(code: i32, after: Duration) -> RunScript {
    RunScript { exit: Some(Exit { after, code, oom_killed: false }), ..RunScript::default() }
}

/// The API server is told of none of it: what was shown last is that everything runs.
#[tokio::test(start_paused = true)]
async fn starting_all_anew_outlives_an_agent_that_could_tell_nobody() {
    for kill_after in 9..=20 {
        let mut cluster = started().await;
        cluster.image("trigger:1", runs(vec![exits(42, 3 * S), RunScript::default()]));
        let spec = json!({"restartPolicy": "Never", "initContainers": [plain("i", "ok:1"), sidecar("s", "app:1")],
            "containers": [plain("app", "app:1"), trigger("trigger:1")]});
        cluster.run("p", spec).await;
        let all = |n: u32| {
            format!("init i Completed:0 {n} | init s Running {n} | app Running {n} | trigger Running {n}")
        };
        cluster.until_step("p", &format!("MODIFIED Running | {}", all(0))).await;
        cluster.statuses.gone.store(true, Ordering::Relaxed);
        assert!(cluster.until_calls(kill_after, 20 * S).await, "{kill_after}");
        cluster.kill_agent().await;
        cluster.statuses.gone.store(false, Ordering::Relaxed);
        cluster.clock.sleep(S / 10).await;
        cluster.start_agent();
        cluster.until_step("p", &format!("MODIFIED Running | {}", all(1))).await;
        let calls = cluster.runtime.calls();
        let starts: Vec<_> = calls.iter().filter(|call| call.starts_with("start")).collect();
        let order = ["start i", "start s", "start app", "start trigger"];
        assert_eq!(starts, [order, order].concat(), "killed after {kill_after}: {calls:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_back_off_of_starting_all_anew_outlives_the_agent() {
    let mut cluster = started().await;
    cluster.image("trigger:1", runs(vec![exits(42, S)]));
    cluster.run("p", json!({"containers": [trigger("trigger:1")]})).await;
    let begun = cluster.clock.elapsed();
    for n in 0..5 {
        until_called(&cluster, &format!("remove trigger {n}"), 1).await;
        // Nothing that carried the back-off is left.
        restart(&mut cluster, S / 10).await;
    }
    let took = (cluster.clock.elapsed() - begun).as_secs();
    assert!((74..80).contains(&took), "at once, then after 10 s, 20 s and 40 s: {took}");
}

#[tokio::test(start_paused = true)]
async fn a_start_whose_hook_had_not_ended_is_not_over_for_the_next_agent() {
    for code in [0, 5] {
        let mut cluster = started().await;
        let hook = Answer { takes: 7 * S, ..answer(&["hook"], 0, code) };
        cluster.image("hooked:1", runs(vec![RunScript { answers: vec![hook], ..RunScript::default() }]));
        let app = hooked(plain("app", "hooked:1"), "postStart", json!({"exec": {"command": ["hook"]}}));
        cluster.run("p", json!({"containers": [app, plain("next", "app:1")]})).await;
        until_called(&cluster, "start app", 1).await;
        restart(&mut cluster, 2 * S).await;
        cluster.clock.sleep(6 * S).await;
        assert_eq!(
            cluster.steps("p").last().unwrap(),
            "MODIFIED Pending | app ContainerCreating 0 | next ContainerCreating 0",
            "it is asked again from the beginning"
        );
        let shown = if code == 0 { "app Running 0" } else { "app PostStartHookError 0" };
        let wait = async {
            while !cluster.steps("p").iter().any(|step| step.contains(shown)) {
                cluster.clock.sleep(S / 10).await;
            }
        };
        assert!(cluster.clock.timeout(20 * S, wait).await.is_some(), "{:#?}", cluster.steps("p"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_grace_period_that_has_begun_goes_on() {
    let mut cluster = started().await;
    let spec = json!({"terminationGracePeriodSeconds": 20, "containers": [plain("app", "stubborn:1")]});
    cluster.run("p", spec).await;
    cluster.until_step("p", "MODIFIED Running | app Running 0").await;
    let begun = cluster.clock.elapsed();
    cluster.delete("p", &Deletion::default()).await;
    for _ in 0..3 {
        cluster.clock.sleep(5 * S).await;
        restart(&mut cluster, S).await;
    }
    until_gone(&cluster, "p").await;
    let took = (cluster.clock.elapsed() - begun).as_secs_f64();
    assert!((19.9..21.0).contains(&took), "{took}: {:#?}", cluster.runtime.calls());
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_ran_before_its_containers_turn_does_not_run_again() {
    let mut cluster = started().await;
    let fails = RunScript { answers: vec![answer(&["bye"], 0, 1)], ..RunScript::default() };
    cluster.image("hooked:1", runs(vec![fails]));
    let car = hooked(sidecar("s", "hooked:1"), "preStop", json!({"exec": {"command": ["bye"]}}));
    cluster.run("p", json!({"initContainers": [car], "containers": [plain("app", "slow:1")]})).await;
    cluster.until_step("p", "MODIFIED Running | init s Running 0 | app Running 0").await;
    cluster.delete("p", &Deletion::default()).await;
    cluster.clock.sleep(2 * S).await;
    restart(&mut cluster, S / 10).await;
    until_gone(&cluster, "p").await;
    let told = told(&cluster, "p").await;
    let hooks: Vec<_> = told.iter().filter(|event| event.contains("FailedPreStopHook")).collect();
    assert_eq!(hooks, ["Warning FailedPreStopHook PreStopHook failed (spec.initContainers{s}) x1"]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_and_a_preemption_outlive_an_agent_that_could_tell_nobody() {
    let mut cluster = Cluster::start().await;
    images(&cluster);
    let asks = |image: &str| json!({"containers": [{"name": "c", "image": image, "resources": {"requests": {"cpu": "3"}}}]});
    cluster.run("first", asks("slow:1")).await;
    cluster.until_step("first", "MODIFIED Running | c Running 0").await;
    cluster.statuses.gone.store(true, Ordering::Relaxed);
    cluster.run("second", asks("app:1")).await;
    cluster.clock.sleep(S).await;
    cluster.kill_agent().await;
    cluster.statuses.gone.store(false, Ordering::Relaxed);
    // There is room now, but it has been refused.
    cluster.delete("first", &now()).await;
    cluster.start_agent();
    cluster.until_step("second", "MODIFIED OutOfcpu").await;
    assert_eq!(
        told(&cluster, "second").await,
        [
            "Warning OutOfcpu Node didn't have enough resource: cpu, requested: 3000, used: 3000, capacity: 4000 (-) x1"
        ]
    );

    cluster.run("victim", asks("slow:1")).await;
    cluster.until_step("victim", "MODIFIED Running | c Running 0").await;
    cluster.statuses.gone.store(true, Ordering::Relaxed);
    cluster.run_critical("critical", asks("app:1")).await;
    cluster.clock.sleep(S).await;
    cluster.kill_agent().await;
    cluster.statuses.gone.store(false, Ordering::Relaxed);
    // Whom it was for is no more: what has begun to end ends even so.
    cluster.delete("critical", &now()).await;
    cluster.start_agent();
    cluster.until_step("victim", "MODIFIED Preempting | c Completed:0 0").await;
}
