//! What users see of lifecycle hooks.

use coracle_client::Deletion;
use coracle_cri::scripted::{Exit, ImageScript, OnStop, RunScript};
use serde_json::{Value, json};

use super::{S, answer, told};
use crate::cluster::Cluster;

fn spec(lifecycle: Value) -> Value {
    let container = json!({"name": "app", "image": "app:1", "lifecycle": lifecycle});
    json!({"containers": [container], "terminationGracePeriodSeconds": 10})
}

fn image(cluster: &Cluster, run: RunScript) {
    cluster.image("app:1", ImageScript { runs: vec![run], ..ImageScript::default() });
}

/// When each call came that ended something: what the runtime was told, in whole seconds since the deletion.
async fn deleted(cluster: &Cluster, how: &Deletion) -> f64 {
    cluster.delete("p", how).await;
    let begun = cluster.clock.elapsed().as_secs_f64();
    let wait = async {
        while cluster.last("p").is_none_or(|(kind, _, _)| kind != "DELETED") {
            cluster.clock.sleep(S / 100).await;
        }
    };
    assert!(cluster.clock.timeout(100 * S, wait).await.is_some(), "{:#?}", cluster.steps("p"));
    cluster.last("p").unwrap().2 - begun
}

#[tokio::test(start_paused = true)]
async fn a_start_is_not_over_before_its_hook() {
    let cluster = Cluster::start().await;
    let mut hook = answer(&["sh", "-c", "echo $(HOME)"], 0, 0);
    hook.takes = 7 * S;
    image(&cluster, RunScript { answers: vec![hook], ..RunScript::default() });
    // Commands of hooks are run as they are.
    let mut pod = spec(json!({"postStart": {"exec": {"command": ["sh", "-c", "echo $(HOME)"]}}}));
    pod["containers"][0]["env"] = json!([{"name": "HOME", "value": "/root"}]);
    let probe = json!({"tcpSocket": {"port": 1}, "periodSeconds": 1, "failureThreshold": 1});
    pod["containers"][0]["livenessProbe"] = probe;
    pod["containers"].as_array_mut().unwrap().push(json!({"name": "next", "image": "app:1"}));
    cluster.run("p", pod).await;
    cluster.until_step("p", "MODIFIED Pending | app ContainerCreating 0 | next ContainerCreating 0").await;
    cluster.clock.sleep(5 * S).await;
    assert_eq!(cluster.runtime.calls(), ["run sandbox p 0", "create app 0", "start app"]);
    assert_eq!(cluster.asked.since(0.0, 1).len(), 0, "it has not started yet");
    cluster.until_step("p", "MODIFIED Running | app Running 0 | next Running 0").await;
    assert_eq!(cluster.runtime.calls()[3..], ["create next 0", "start next"]);
    let steps = cluster.steps("p");
    assert!(!steps.iter().any(|step| step.contains("app Running 0 | next ContainerCreating")), "{steps:#?}");
    assert_eq!(told(&cluster, "p").await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_failing_post_start_hook_kills_the_container_and_it_is_restarted_with_back_off() {
    let cluster = Cluster::start().await;
    let mut hook = answer(&["hook", "x"], 0, 5);
    (hook.stdout, hook.stderr) = ("out\n".to_owned(), "no\n".to_owned());
    image(&cluster, RunScript { answers: vec![hook], ..RunScript::default() });
    let pod = cluster.run("p", spec(json!({"postStart": {"exec": {"command": ["hook", "x"]}}}))).await;
    cluster.until_step("p", "MODIFIED Running | app CrashLoopBackOff 1").await;
    let steps = cluster.steps("p");
    assert_eq!(
        steps[2..],
        [
            "MODIFIED Pending | app ContainerCreating 0",
            "MODIFIED Running | app PostStartHookError 0",
            "MODIFIED Running | app PostStartHookError 1",
            "MODIFIED Running | app CrashLoopBackOff 1",
        ]
    );
    let history = cluster.history("p");
    let shown = history.iter().map(|(_, pod, _)| &pod["status"]["containerStatuses"][0]);
    let failed = shown.clone().find(|c| c["state"]["waiting"]["reason"] == "PostStartHookError").unwrap();
    let uid = pod.metadata.uid.clone().unwrap();
    assert_eq!(
        failed["state"]["waiting"]["message"],
        format!(
            "Exec lifecycle hook ([hook x]) for Container \"app\" in Pod \"p_default({uid})\" failed - error: command \
             'hook x' exited with 5: no\n, message: \"out\\nno\\n\""
        )
    );
    assert_eq!(failed["lastState"]["terminated"]["exitCode"], 143);
    let told = told(&cluster, "p").await;
    assert_eq!(
        told[..2],
        [
            "Warning FailedPostStartHook PostStartHook failed (spec.containers{app}) x2",
            "Normal Killing FailedPostStartHook (spec.containers{app}) x2",
        ]
    );
    assert!(
        told[2].starts_with("Warning BackOff Back-off restarting failed container app in pod p_"),
        "{told:?}"
    );
    assert_eq!(told.len(), 3, "no secrets of servers in events: {told:?}");
}

#[tokio::test(start_paused = true)]
async fn while_a_restart_waits_for_its_hook_what_was_before_is_shown() {
    let cluster = Cluster::start().await;
    let mut hook = answer(&["hook"], 0, 5);
    hook.takes = 2 * S;
    image(&cluster, RunScript { answers: vec![hook], ..RunScript::default() });
    cluster.run("p", spec(json!({"postStart": {"exec": {"command": ["hook"]}}}))).await;
    cluster.until_step("p", "MODIFIED Running | app CrashLoopBackOff 2").await;
    assert_eq!(
        cluster.steps("p")[2..],
        [
            "MODIFIED Pending | app ContainerCreating 0",
            "MODIFIED Running | app PostStartHookError 0",
            "MODIFIED Running | app PostStartHookError 1",
            "MODIFIED Running | app CrashLoopBackOff 1",
            "MODIFIED Running | app PostStartHookError 2",
            "MODIFIED Running | app CrashLoopBackOff 2",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_hook_of_the_kind_that_nobody_runs_fails() {
    let cluster = Cluster::start().await;
    image(&cluster, RunScript::default());
    cluster.run("p", spec(json!({"postStart": {"tcpSocket": {"port": 80}}}))).await;
    cluster.until_step("p", "MODIFIED Running | app PostStartHookError 0").await;
    let history = cluster.history("p");
    let waiting = &history.last().unwrap().1["status"]["containerStatuses"][0]["state"]["waiting"];
    let message = waiting["message"].as_str().unwrap();
    assert!(message.starts_with("Cannot run handler: invalid handler: &LifecycleHandler{"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_post_start_hook_that_hangs_ends_with_its_pod() {
    let cluster = Cluster::start().await;
    image(&cluster, RunScript::default());
    cluster.run("p", spec(json!({"postStart": {"sleep": {"seconds": 10}}}))).await;
    cluster.until_step("p", "MODIFIED Pending | app ContainerCreating 0").await;
    cluster.clock.sleep(2 * S).await;
    let took = deleted(&cluster, &Deletion::default()).await;
    assert!(took < 1.0, "{took}");
    assert_eq!(cluster.runtime.calls()[3..5], ["stop app 10s", "stop sandbox p"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_pre_stop_hook_takes_is_taken_from_the_grace() {
    let cluster = Cluster::start().await;
    image(&cluster, RunScript { on_stop: OnStop::Ignores, ..RunScript::default() });
    cluster.run("p", spec(json!({"preStop": {"sleep": {"seconds": 4}}}))).await;
    cluster.until_step("p", "MODIFIED Running | app Running 0").await;
    let took = deleted(&cluster, &Deletion::default()).await;
    assert!((10.0..10.5).contains(&took), "{took}");
    assert_eq!(cluster.runtime.calls()[3], "stop app 6s");
    assert_eq!(
        told(&cluster, "p").await,
        ["Normal Killing Stopping container app (spec.containers{app}) x1"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_pre_stop_hook_that_hangs_ends_with_the_grace_and_the_program_has_two_seconds_more() {
    let cluster = Cluster::start().await;
    let mut hook = answer(&["hang"], 0, 0);
    hook.takes = 10_000 * S;
    let run = RunScript { answers: vec![hook], on_stop: OnStop::Ignores, ..RunScript::default() };
    image(&cluster, run);
    cluster.run("p", spec(json!({"preStop": {"exec": {"command": ["hang"]}}}))).await;
    cluster.until_step("p", "MODIFIED Running | app Running 0").await;
    let took = deleted(&cluster, &Deletion::default()).await;
    assert!((12.0..12.5).contains(&took), "{took}");
    assert_eq!(cluster.runtime.calls()[3], "stop app 2s");
}

#[tokio::test(start_paused = true)]
async fn a_failing_pre_stop_hook_is_told_of_and_the_stop_goes_on() {
    let cluster = Cluster::start().await;
    image(&cluster, RunScript { answers: vec![answer(&["hook"], 0, 1)], ..RunScript::default() });
    cluster.run("p", spec(json!({"preStop": {"exec": {"command": ["hook"]}}}))).await;
    cluster.until_step("p", "MODIFIED Running | app Running 0").await;
    let took = deleted(&cluster, &Deletion::default()).await;
    assert!(took < 1.0, "{took}");
    assert_eq!(
        told(&cluster, "p").await,
        [
            "Normal Killing Stopping container app (spec.containers{app}) x1",
            "Warning FailedPreStopHook PreStopHook failed (spec.containers{app}) x1",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_pre_stop_hook_also_precedes_the_kill_for_a_failed_probe() {
    let cluster = Cluster::start().await;
    image(&cluster, RunScript { answers: vec![answer(&["tcpSocket", "1"], 0, 1)], ..RunScript::default() });
    let mut pod = spec(json!({"preStop": {"sleep": {"seconds": 3}}}));
    let probe = json!({"tcpSocket": {"port": 1}, "failureThreshold": 1, "terminationGracePeriodSeconds": 8});
    pod["containers"][0]["livenessProbe"] = probe;
    cluster.run("p", pod).await;
    cluster.until_step("p", "MODIFIED Running | app Running 1").await;
    assert_eq!(cluster.runtime.calls()[3], "stop app 5s");
}

#[tokio::test(start_paused = true)]
async fn no_hook_runs_in_what_has_ended_by_itself() {
    let cluster = Cluster::start().await;
    let exit = Some(Exit { after: 5 * S, code: 0, oom_killed: false });
    image(&cluster, RunScript { exit, answers: vec![answer(&["hook"], 0, 1)], ..RunScript::default() });
    let mut pod = spec(json!({"preStop": {"exec": {"command": ["hook"]}}}));
    pod["restartPolicy"] = json!("Never");
    cluster.run("p", pod).await;
    cluster.until_step("p", "MODIFIED Succeeded | app Completed:0 0").await;
    let took = deleted(&cluster, &Deletion::default()).await;
    assert!(took < 1.0, "{took}");
    assert_eq!(told(&cluster, "p").await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_shorter_grace_also_shortens_the_hook() {
    let cluster = Cluster::start().await;
    image(&cluster, RunScript { on_stop: OnStop::Ignores, ..RunScript::default() });
    let mut pod = spec(json!({"preStop": {"sleep": {"seconds": 500}}}));
    pod["terminationGracePeriodSeconds"] = json!(600);
    cluster.run("p", pod).await;
    cluster.until_step("p", "MODIFIED Running | app Running 0").await;
    cluster.delete("p", &Deletion::default()).await;
    cluster.clock.sleep(20 * S).await;
    let took = deleted(&cluster, &Deletion::default().grace(5)).await;
    // The new grace counts from the first deletion and is over: a second for the hook, and the two that are the least.
    assert!((3.0..3.5).contains(&took), "{took}");
}
