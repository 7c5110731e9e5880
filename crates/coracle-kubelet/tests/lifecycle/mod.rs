//! Init containers, sidecars, rules of restart, order at the end, deadlines, gates and preemption, as a user sees them:
//! the node agent against the real API server and store, with a scripted runtime, on virtual time.

mod records;

use std::time::Duration;

use crate::cluster::{Cluster, condition, exits, key};
use coracle_client::Deletion;
use coracle_client::request::{self, PatchBody};
use coracle_cri::RuntimeService as _;
use coracle_cri::scripted::{ImageScript, OnStop, RunScript};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

fn runs(runs: Vec<RunScript>) -> ImageScript {
    ImageScript { runs, ..ImageScript::default() }
}

/// Images by what they do.
fn images(cluster: &Cluster) {
    cluster.image("app:1", ImageScript::default());
    cluster.image("ok:1", runs(vec![exits(0, 1)]));
    cluster.image("ok-later:1", runs(vec![exits(0, 30)]));
    cluster.image("bad:1", runs(vec![exits(1, 1)]));
    cluster.image("bad-once:1", runs(vec![exits(1, 1), exits(0, 1)]));
    let stubborn = RunScript { on_stop: OnStop::Ignores, ..RunScript::default() };
    cluster.image("stubborn:1", runs(vec![stubborn]));
    let slow = OnStop::Exits { after: Duration::from_secs(4), code: 0 };
    cluster.image("slow:1", runs(vec![RunScript { on_stop: slow, ..RunScript::default() }]));
}

async fn started() -> Cluster {
    let cluster = Cluster::start().await;
    images(&cluster);
    cluster
}

fn plain(name: &str, image: &str) -> Value {
    json!({"name": name, "image": image})
}

fn sidecar(name: &str, image: &str) -> Value {
    json!({"name": name, "image": image, "restartPolicy": "Always"})
}

fn last(cluster: &Cluster, name: &str) -> Value {
    cluster.history(name).pop().unwrap().1
}

/// What the runtime was asked for, without the making and removing of containers.
fn starts_and_stops(cluster: &Cluster) -> Vec<String> {
    let calls = cluster.runtime.calls();
    calls.into_iter().filter(|call| !call.starts_with("create") && !call.starts_with("remove")).collect()
}

async fn until_gone(cluster: &Cluster, name: &str) {
    let wait = async {
        while cluster.history(name).last().unwrap().0 != "DELETED" {
            cluster.clock.sleep(Duration::from_millis(50)).await;
        }
    };
    let done = cluster.clock.timeout(Duration::from_secs(600), wait).await;
    assert!(done.is_some(), "{:#?}", cluster.steps(name));
}

#[tokio::test(start_paused = true)]
async fn init_containers_run_in_order_and_each_step_is_seen() {
    let cluster = started().await;
    let spec = json!({
        "initContainers": [plain("z", "ok:1"), plain("b", "ok:1")], "containers": [plain("app", "app:1")],
    });
    cluster.run("p", spec).await;
    cluster
        .until_step("p", "MODIFIED Running | init z Completed:0 0 | init b Completed:0 0 | app Running 0")
        .await;
    assert_eq!(
        cluster.steps("p")[2..],
        [
            "MODIFIED Pending | init z PodInitializing 0 | init b PodInitializing 0 | app PodInitializing 0",
            "MODIFIED Pending | init z Running 0 | init b PodInitializing 0 | app PodInitializing 0",
            "MODIFIED Pending | init z Completed:0 0 | init b PodInitializing 0 | app PodInitializing 0",
            "MODIFIED Pending | init z Completed:0 0 | init b Running 0 | app PodInitializing 0",
            "MODIFIED Pending | init z Completed:0 0 | init b Completed:0 0 | app PodInitializing 0",
            "MODIFIED Running | init z Completed:0 0 | init b Completed:0 0 | app Running 0",
        ]
    );
    assert_eq!(starts_and_stops(&cluster), ["run sandbox p 0", "start z", "start b", "start app"]);
    let history = cluster.history("p");
    let first = &history[2].1;
    assert_eq!(condition(first, "Initialized")["status"], "False");
    assert_eq!(condition(first, "Initialized")["reason"], "ContainersNotInitialized");
    assert_eq!(condition(first, "Initialized")["message"], "containers with incomplete status: [z b]");
    assert_eq!(condition(first, "ContainersReady")["message"], "containers with unready status: [app]");
    let half = history
        .iter()
        .find(|(_, pod, _)| pod["status"]["initContainerStatuses"][0]["state"]["terminated"].is_object());
    let half = &half.unwrap().1;
    assert_eq!(condition(half, "Initialized")["message"], "containers with incomplete status: [b]");
    let init = &half["status"]["initContainerStatuses"][0];
    assert_eq!((&init["ready"], &init["started"]), (&json!(true), &json!(false)));
    let running = last(&cluster, "p");
    for kind in ["Initialized", "Ready", "ContainersReady", "PodReadyToStartContainers"] {
        assert_eq!(condition(&running, kind)["status"], "True", "{kind}");
    }
    let events = cluster.events("p").await.join("\n");
    assert!(events.contains("Normal Started Container started (spec.initContainers{z})"), "{events}");
    assert!(events.contains("Normal Started Container started (spec.containers{app})"), "{events}");
}

#[tokio::test(start_paused = true)]
async fn an_init_container_that_fails_is_tried_again_with_back_off_and_nothing_passes_it() {
    let cluster = started().await;
    let spec = json!({"initContainers": [plain("i", "bad:1"), plain("j", "ok:1")], "containers": [plain("app", "app:1")]});
    let pod = cluster.run("p", spec).await;
    cluster.clock.sleep(Duration::from_secs(20)).await;
    let rest = "init j PodInitializing 0 | app PodInitializing 0";
    assert_eq!(
        cluster.steps("p")[3..],
        [
            format!("MODIFIED Pending | init i Running 0 | {rest}"),
            format!("MODIFIED Pending | init i Error:1 0 | {rest}"),
            format!("MODIFIED Pending | init i Running 1 | {rest}"),
            format!("MODIFIED Pending | init i Error:1 1 | {rest}"),
            format!("MODIFIED Pending | init i CrashLoopBackOff 1 | {rest}"),
            format!("MODIFIED Pending | init i Running 2 | {rest}"),
            format!("MODIFIED Pending | init i Error:1 2 | {rest}"),
            format!("MODIFIED Pending | init i CrashLoopBackOff 2 | {rest}"),
        ]
    );
    let uid = pod.metadata.uid.unwrap();
    let message = &last(&cluster, "p")["status"]["initContainerStatuses"][0]["state"]["waiting"]["message"];
    assert_eq!(*message, format!("back-off 20s restarting failed container=i pod=p_default({uid})"));
    let events = cluster.events("p").await.join("\n");
    let text =
        format!("Back-off restarting failed container i in pod p_default({uid}) (spec.initContainers{{i}})");
    assert!(events.contains(&text), "{events}");
}

#[tokio::test(start_paused = true)]
async fn an_init_container_that_fails_for_good_fails_its_pod() {
    let cluster = started().await;
    let spec = json!({"restartPolicy": "Never", "initContainers": [sidecar("s", "app:1"), plain("i", "bad:1")],
        "containers": [plain("app", "app:1")]});
    cluster.run("p", spec).await;
    // The one that never had its turn goes on waiting, so that a user sees Init:Error.
    let step = "MODIFIED Failed | init s Error:143 0 | init i Error:1 0 | app PodInitializing 0";
    cluster.until_step("p", step).await;
    let failed = last(&cluster, "p");
    assert_eq!(condition(&failed, "Ready")["reason"], "PodFailed");
    assert_eq!(condition(&failed, "Initialized")["status"], "False");
    assert!(!cluster.runtime.calls().contains(&"start app".to_owned()));

    // A rule of its own brings it back, whatever the Pod's policy says.
    let mut ruled = plain("i", "bad-once:1");
    ruled["restartPolicy"] = json!("Never");
    ruled["restartPolicyRules"] =
        json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}]);
    let spec =
        json!({"restartPolicy": "Never", "initContainers": [ruled], "containers": [plain("app", "app:1")]});
    cluster.run("q", spec).await;
    cluster.until_step("q", "MODIFIED Running | init i Completed:0 1 | app Running 0").await;
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_starts_before_what_follows_and_comes_back_under_every_policy_while_the_app_crashes() {
    let cluster = started().await;
    for policy in ["Always", "OnFailure", "Never"] {
        let mut crashing = plain("app", "bad:1");
        crashing["restartPolicy"] = json!("Always");
        let spec = json!({"restartPolicy": policy, "initContainers": [sidecar("s", "app:1"), plain("i", "ok:1")],
            "containers": [crashing, plain("steady", "app:1")]});
        let name = policy.to_lowercase();
        cluster.run(&name, spec).await;
        let crashed = "init s Running 0 | init i Completed:0 0 | app CrashLoopBackOff 3 | steady Running 0";
        cluster.until_step(&name, &format!("MODIFIED Running | {crashed}")).await;
        let all = cluster.runtime.list_containers(&Default::default()).await.unwrap();
        let uid = last(&cluster, &name)["metadata"]["uid"].as_str().unwrap().to_owned();
        let own = |c: &&coracle_cri::Container| c.labels["io.kubernetes.pod.uid"] == uid;
        let running = all.iter().filter(own).find(|c| c.name == "s").unwrap();
        cluster.runtime.crash(&running.id, 7);
        cluster.settle().await;
        let now = last(&cluster, &name);
        let status = &now["status"]["initContainerStatuses"][0];
        assert_eq!((&status["restartCount"], &status["started"]), (&json!(1), &json!(true)), "{policy}");
        assert_eq!(status["lastState"]["terminated"]["exitCode"], 7);
        assert_eq!(now["status"]["phase"], "Running", "{policy}");
        cluster
            .until_step(
                &name,
                &format!(
                    "MODIFIED Running | {}",
                    crashed.replace("s Running 0 | i", "s Running 1 | i").replace("BackOff 3", "BackOff 4")
                ),
            )
            .await;
        // What was initialized stays so, and what has ended well does not run again.
        let restarted = cluster.history(&name);
        let flips = restarted.iter().filter(|(_, pod, _)| {
            pod["status"]["containerStatuses"][0]["state"]["running"].is_object()
                && condition(pod, "Initialized")["status"] != "True"
        });
        assert_eq!(flips.count(), 0);
        cluster.delete(&name, &Deletion { grace_period_seconds: Some(0), ..Deletion::default() }).await;
        cluster.settle().await;
    }
    let inits = cluster.runtime.calls().into_iter().filter(|call| call == "start i");
    assert_eq!(inits.count(), 3, "once for each Pod");
}

#[tokio::test(start_paused = true)]
async fn the_next_container_waits_for_a_sidecar_to_run_and_a_sidecar_that_ends_at_once_holds_back_the_rest() {
    let cluster = started().await;
    let spec = json!({"initContainers": [sidecar("s", "bad:1")], "containers": [plain("app", "app:1")]});
    cluster.run("p", spec).await;
    cluster.until_step("p", "MODIFIED Running | init s CrashLoopBackOff 2 | app Running 0").await;
    // It ran, so it has started: that is all that is asked of it.
    let calls = starts_and_stops(&cluster);
    assert_eq!(calls[..3], ["run sandbox p 0", "start s", "start app"]);

    let missing =
        json!({"name": "s", "image": "absent:1", "imagePullPolicy": "Never", "restartPolicy": "Always"});
    let spec = json!({"initContainers": [missing], "containers": [plain("app", "app:1")]});
    cluster.run("q", spec).await;
    cluster.until_step("q", "MODIFIED Pending | init s ErrImageNeverPull 0 | app PodInitializing 0").await;
    cluster.settle().await;
    let waiting = last(&cluster, "q");
    assert_eq!(condition(&waiting, "ContainersReady")["message"], "containers with unready status: [s app]");
}

#[tokio::test(start_paused = true)]
async fn when_all_regular_containers_are_done_sidecars_are_stopped_and_their_exit_codes_do_not_count() {
    let cluster = started().await;
    for (name, image, phase) in [("good", "ok:1", "Succeeded"), ("ill", "bad:1", "Failed")] {
        let spec = json!({"restartPolicy": "Never", "initContainers": [sidecar("s", "app:1")],
            "containers": [plain("app", image)]});
        cluster.run(name, spec).await;
        let app = if name == "good" { "Completed:0" } else { "Error:1" };
        cluster.until_step(name, &format!("MODIFIED {phase} | init s Error:143 0 | app {app} 0")).await;
        // As long as a sidecar runs the Pod is not said to be over.
        for (_, pod, _) in cluster.history(name) {
            let sidecar = &pod["status"]["initContainerStatuses"][0]["state"];
            assert!(!(sidecar["running"].is_object() && pod["status"]["phase"] == phase), "{pod:#}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_end_sidecars_are_stopped_last_in_reverse_order() {
    let cluster = started().await;
    let spec = json!({"initContainers": [sidecar("s1", "app:1"), sidecar("s2", "slow:1")],
        "containers": [plain("a", "app:1"), plain("b", "slow:1")]});
    cluster.run("p", spec).await;
    cluster
        .until_step(
            "p",
            "MODIFIED Running | init s1 Running 0 | init s2 Running 0 | a Running 0 | b Running 0",
        )
        .await;
    let before = cluster.clock.elapsed();
    cluster.delete("p", &Deletion::default()).await;
    until_gone(&cluster, "p").await;
    let calls = starts_and_stops(&cluster);
    // Regular ones at once; the last sidecar when they are gone, with what is left of the grace.
    assert_eq!(calls[5..10], ["stop a 30s", "stop b 30s", "stop s2 26s", "stop s1 22s", "stop sandbox p"]);
    assert_eq!((cluster.clock.elapsed() - before).as_secs(), 8);
    let events = cluster.events("p").await;
    let told: Vec<_> = events.iter().filter(|e| e.contains("Killing")).collect();
    assert_eq!(told.len(), 4, "{told:#?}");
    assert!(told[0].contains("Stopping container s1 (spec.initContainers{s1})"), "{told:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_waits_no_longer_than_the_grace_period() {
    let cluster = started().await;
    let spec = json!({"terminationGracePeriodSeconds": 5, "initContainers": [sidecar("s", "app:1")],
        "containers": [plain("app", "stubborn:1")]});
    cluster.run("p", spec).await;
    cluster.until_step("p", "MODIFIED Running | init s Running 0 | app Running 0").await;
    let before = cluster.clock.elapsed();
    cluster.delete("p", &Deletion::default()).await;
    until_gone(&cluster, "p").await;
    assert_eq!((cluster.clock.elapsed() - before).as_secs(), 5, "{:#?}", cluster.runtime.calls());
    // Used up is used up, but two seconds are for everybody.
    let stops: Vec<_> = starts_and_stops(&cluster).split_off(3);
    assert_eq!(stops[0], "stop app 5s");
    assert!(
        ["stop s 2s", "stop s 0s"].contains(&stops[1].as_str()) || stops[1].starts_with("stop s"),
        "{stops:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn rules_of_a_container_decide_before_its_policy() {
    let cluster = started().await;
    let ruled = |image: &str, operator: &str, values: Value| {
        json!({"name": "c", "image": image, "restartPolicy": "Never", "restartPolicyRules": [
            {"action": "Restart", "exitCodes": {"operator": operator, "values": values}}]})
    };
    let run = async |name: &str, container: Value| {
        cluster.run(name, json!({"restartPolicy": "OnFailure", "containers": [container]})).await;
    };
    run("listed", ruled("bad-once:1", "In", json!([1, 3]))).await;
    cluster.until_step("listed", "MODIFIED Succeeded | c Completed:0 1").await;
    run("unlisted", ruled("bad-once:1", "In", json!([3]))).await;
    cluster.until_step("unlisted", "MODIFIED Failed | c Error:1 0").await;
    run("not-in", ruled("bad-once:1", "NotIn", json!([0]))).await;
    cluster.until_step("not-in", "MODIFIED Succeeded | c Completed:0 1").await;
    // Without rules the container's own policy stands above the Pod's.
    let mut own = plain("c", "ok:1");
    own["restartPolicy"] = json!("Always");
    run("own", own).await;
    cluster.until_step("own", "MODIFIED Running | c CrashLoopBackOff 1").await;
}

#[tokio::test(start_paused = true)]
async fn a_rule_starts_all_containers_anew_in_the_same_sandbox() {
    let cluster = started().await;
    cluster.image("trigger:1", runs(vec![exits(42, 30), RunScript::default()]));
    let trigger = json!({"name": "trigger", "image": "trigger:1", "restartPolicy": "Never", "restartPolicyRules": [
        {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]});
    let spec = json!({"restartPolicy": "Never", "initContainers": [plain("i", "ok:1"), sidecar("s", "app:1")],
        "containers": [plain("app", "stubborn:1"), trigger]});
    cluster.run("p", spec).await;
    let running = |n: u32| {
        format!(
            "MODIFIED Running | init i Completed:0 {n} | init s Running {n} | app Running {n} | trigger Running {n}"
        )
    };
    cluster.until_step("p", &running(0)).await;
    let began = last(&cluster, "p");
    assert_eq!(condition(&began, "AllContainersRestarting")["status"], "False");
    cluster.until_step("p", &running(1)).await;
    let history = cluster.history("p");
    let told = history.iter().filter(|(_, pod, _)| {
        pod["status"]["conditions"].as_array().is_some_and(|all| {
            all.iter().any(|c| c["type"] == "AllContainersRestarting" && c["status"] == "True")
        })
    });
    let told: Vec<_> = told.map(|(_, pod, _)| condition(pod, "AllContainersRestarting").clone()).collect();
    assert!(!told.is_empty(), "{:#?}", cluster.steps("p"));
    assert_eq!(told[0]["reason"], "RestartAllContainersStarted");
    assert_eq!(told[0]["message"], "container exited with restart policy rule");
    let after = last(&cluster, "p");
    assert_eq!(condition(&after, "AllContainersRestarting")["status"], "False");
    assert_eq!(after["status"]["podIP"], began["status"]["podIP"]);
    let state = |list: &str, n: usize| after["status"][list][n]["lastState"]["terminated"].clone();
    assert_eq!(state("containerStatuses", 1)["exitCode"], 42, "how it ended is kept");
    let killed = state("containerStatuses", 0);
    assert_eq!((&killed["reason"], &killed["exitCode"]), (&json!("RestartingAllContainers"), &json!(137)));
    assert_eq!(killed["message"], "The container is removed because RestartAllContainers in place");
    // Removed containers wait for this reason, and what was initialized stays so.
    let waits = history.iter().any(|(_, pod, _)| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "RestartingAllContainers"
    });
    assert!(waits, "{:#?}", cluster.steps("p"));
    let from = history.iter().position(|(_, pod, _)| pod["status"]["phase"] == "Running").unwrap();
    for (_, pod, _) in &history[from..] {
        assert_eq!(condition(pod, "Initialized")["status"], "True");
    }
    let calls = starts_and_stops(&cluster);
    assert_eq!(calls[..5], ["run sandbox p 0", "start i", "start s", "start app", "start trigger"]);
    let mut stops = calls[5..7].to_vec();
    stops.sort();
    assert_eq!(stops, ["stop app 0s", "stop s 0s"], "no grace, no order");
    assert_eq!(calls[7..], ["start i", "start s", "start app", "start trigger"]);
}

#[tokio::test(start_paused = true)]
async fn a_rule_that_starts_all_anew_again_and_again_is_slowed_by_the_back_off() {
    let cluster = started().await;
    cluster.image("trigger:1", runs(vec![exits(42, 1)]));
    let trigger = json!({"name": "c", "image": "trigger:1", "restartPolicy": "Never", "restartPolicyRules": [
        {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]});
    cluster.run("p", json!({"containers": [trigger]})).await;
    cluster.clock.sleep(Duration::from_secs(60)).await;
    let starts = cluster.runtime.calls().into_iter().filter(|call| call == "start c").count();
    assert_eq!(starts, 4, "at once, then after 10 s, 20 s and 40 s: {:#?}", cluster.steps("p"));
}

#[tokio::test(start_paused = true)]
async fn in_a_new_sandbox_everything_begins_with_the_first_init_container() {
    let cluster = started().await;
    let spec = json!({"initContainers": [plain("i", "ok:1"), sidecar("s", "app:1")], "containers": [plain("app", "app:1")]});
    cluster.run("p", spec).await;
    cluster
        .until_step("p", "MODIFIED Running | init i Completed:0 0 | init s Running 0 | app Running 0")
        .await;
    let sandbox = cluster.runtime.list_pod_sandboxes(&Default::default()).await.unwrap().remove(0);
    cluster.runtime.lose_sandbox(&sandbox.id);
    cluster
        .until_step("p", "MODIFIED Running | init i Completed:0 1 | init s Running 1 | app Running 1")
        .await;
    let calls = starts_and_stops(&cluster);
    let at = calls.iter().position(|call| call == "run sandbox p 1").unwrap();
    assert_eq!(calls[at + 1..], ["start i", "start s", "start app"]);
}

#[tokio::test(start_paused = true)]
async fn a_node_agent_killed_between_any_two_steps_repeats_and_skips_no_init_container() {
    let starts = ["start i", "start s", "start j", "start app"];
    // A sandbox, and four containers created and started.
    for kill_after in 0..=9 {
        let mut cluster = started().await;
        let spec = json!({"initContainers": [plain("i", "ok:1"), sidecar("s", "app:1"), plain("j", "ok:1")],
            "containers": [plain("app", "app:1")]});
        cluster.run("p", spec).await;
        assert!(cluster.until_calls(kill_after, Duration::from_secs(10)).await);
        cluster.kill_agent().await;
        cluster.clock.sleep(Duration::from_millis(300)).await;
        cluster.start_agent();
        let up = "MODIFIED Running | init i Completed:0 0 | init s Running 0 | init j Completed:0 0 | app Running 0";
        cluster.until_step("p", up).await;
        let calls = cluster.runtime.calls();
        let started: Vec<_> = calls.iter().filter(|call| call.starts_with("start")).collect();
        assert_eq!(started, starts, "killed after {kill_after}");
        assert_eq!(calls.len(), 9, "nothing is made twice: {calls:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_the_agent_keeps_ready_and_started() {
    let mut cluster = started().await;
    let spec = json!({"initContainers": [sidecar("s", "app:1")], "containers": [plain("app", "app:1")]});
    cluster.run("p", spec).await;
    cluster.until_step("p", "MODIFIED Running | init s Running 0 | app Running 0").await;
    cluster.settle().await;
    let before = cluster.history("p").len();
    for _ in 0..3 {
        cluster.kill_agent().await;
        cluster.start_agent();
        cluster.clock.sleep(Duration::from_secs(5)).await;
    }
    assert_eq!(cluster.history("p").len(), before, "{:#?}", cluster.steps("p"));
}

#[tokio::test(start_paused = true)]
async fn a_pod_ends_at_its_deadline_which_may_be_brought_forward() {
    let cluster = started().await;
    let spec = json!({"activeDeadlineSeconds": 60, "terminationGracePeriodSeconds": 3,
        "containers": [plain("app", "stubborn:1")]});
    cluster.run("p", spec).await;
    cluster.until_step("p", "MODIFIED Running | app Running 0").await;
    let begun = cluster.clock.elapsed();
    let patch = PatchBody::Merge(json!({"spec": {"activeDeadlineSeconds": 20}}));
    cluster.patch("p", &patch).await;
    cluster.until_step("p", "MODIFIED DeadlineExceeded | app Error:137 0").await;
    let took = (cluster.clock.elapsed() - begun).as_secs_f64();
    assert!((22.5..24.0).contains(&took), "{took}");
    let failed = last(&cluster, "p");
    assert_eq!(failed["status"]["phase"], "Failed");
    assert_eq!(failed["status"]["message"], "Pod was active on the node longer than the specified deadline");
    assert_eq!(failed["status"]["observedGeneration"], failed["metadata"]["generation"]);
    let events = cluster.events("p").await.join("\n");
    assert!(
        events.contains(
            "Normal DeadlineExceeded Pod was active on the node longer than the specified deadline"
        ),
        "{events}"
    );
}

#[tokio::test(start_paused = true)]
async fn readiness_gates_hold_back_ready_until_somebody_opens_them() {
    let cluster = started().await;
    let spec = json!({"readinessGates": [{"conditionType": "example.com/gate"}], "containers": [plain("app", "app:1")]});
    cluster.run("p", spec).await;
    cluster.until_step("p", "MODIFIED Running | app Running 0").await;
    let shut = last(&cluster, "p");
    assert_eq!(condition(&shut, "ContainersReady")["status"], "True");
    assert_eq!(condition(&shut, "Ready")["reason"], "ReadinessGatesNotReady");
    assert_eq!(
        condition(&shut, "Ready")["message"],
        "corresponding condition of pod readiness gate \"example.com/gate\" does not exist."
    );
    let key = key("p");
    for (status, ready) in [("False", "False"), ("True", "True"), ("False", "False")] {
        let gate = json!({"type": "example.com/gate", "status": status});
        let patch = PatchBody::Strategic(json!({"status": {"conditions": [gate]}}));
        request::patch_status::<Pod>(&cluster.admin, &key, &patch).await.unwrap();
        cluster.settle().await;
        let now = last(&cluster, "p");
        assert_eq!(condition(&now, "Ready")["status"], ready);
        assert_eq!(condition(&now, "example.com/gate")["status"], status, "it stays as its owner wrote it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_critical_pod_pushes_others_off_a_full_node() {
    let cluster = started().await;
    let asks = |cpu: &str| json!({"containers": [{"name": "c", "image": "slow:1", "resources": {"requests": {"cpu": cpu}}}]});
    cluster.run("small", asks("1")).await;
    cluster.run("large", asks("2")).await;
    cluster.until_step("small", "MODIFIED Running | c Running 0").await;
    cluster.until_step("large", "MODIFIED Running | c Running 0").await;
    cluster.run_critical("critical", asks("3")).await;
    cluster.until_step("large", "MODIFIED Preempting | c Completed:0 0").await;
    cluster.until_step("critical", "MODIFIED Running | c Running 0").await;
    assert_eq!(cluster.steps("small").last().unwrap(), "MODIFIED Running | c Running 0", "one was enough");
    let ended = last(&cluster, "large");
    assert_eq!(ended["status"]["phase"], "Failed");
    assert_eq!(ended["status"]["message"], "Preempted in order to admit critical pod");
    let target = condition(&ended, "DisruptionTarget");
    assert_eq!((&target["status"], &target["reason"]), (&json!("True"), &json!("TerminationByKubelet")));
    assert_eq!(target["message"], "Preempted in order to admit critical pod");
    let events = cluster.events("large").await.join("\n");
    assert!(events.contains("Warning Preempting Preempted in order to admit critical pod"), "{events}");
    // Its room is taken before the critical Pod begins.
    let calls = cluster.runtime.calls();
    let at = |what: &str| {
        calls.iter().position(|call| call == what).unwrap_or_else(|| panic!("{what}: {calls:#?}"))
    };
    assert!(at("stop sandbox large") < at("run sandbox critical 0"));
}

#[tokio::test(start_paused = true)]
async fn a_preemption_goes_on_when_the_agent_starts_anew() {
    let mut cluster = started().await;
    let asks =
        json!({"containers": [{"name": "c", "image": "slow:1", "resources": {"requests": {"cpu": "3"}}}]});
    cluster.run("victim", asks.clone()).await;
    cluster.until_step("victim", "MODIFIED Running | c Running 0").await;
    cluster.run_critical("critical", asks).await;
    cluster.clock.sleep(Duration::from_secs(1)).await;
    cluster.kill_agent().await;
    cluster.start_agent();
    cluster.until_step("victim", "MODIFIED Preempting | c Completed:0 0").await;
    cluster.until_step("critical", "MODIFIED Running | c Running 0").await;
}

#[tokio::test(start_paused = true)]
async fn an_ephemeral_container_is_started_once_and_is_nothing_to_the_pods_fate() {
    let cluster = started().await;
    let spec = json!({"restartPolicy": "Never", "initContainers": [plain("i", "ok:1")], "containers": [plain("app", "ok-later:1")]});
    cluster.run("p", spec).await;
    cluster.until_step("p", "MODIFIED Running | init i Completed:0 0 | app Running 0").await;
    let key = key("p");
    let add = async |containers: Value| {
        let patch = PatchBody::Strategic(json!({"spec": {"ephemeralContainers": containers}}));
        request::patch_subresource::<Pod>(&cluster.admin, &key, "ephemeralcontainers", &patch).await.unwrap();
    };
    let mut second = plain("b", "bad:1");
    second["targetContainerName"] = json!("app");
    add(json!([plain("z", "app:1"), second])).await;
    let app = "MODIFIED Running | init i Completed:0 0 | app Running 0";
    cluster.until_step("p", &format!("{app} | ephemeral b Error:1 0 | ephemeral z Running 0")).await;
    let now = last(&cluster, "p");
    assert_eq!(condition(&now, "Ready")["status"], "True");
    assert_eq!(now["status"]["observedGeneration"], now["metadata"]["generation"]);
    let status = &now["status"]["ephemeralContainerStatuses"][1];
    assert_eq!((&status["ready"], status.get("started")), (&json!(false), None));
    cluster.until_step("p", "MODIFIED Succeeded | init i Completed:0 0 | app Completed:0 0 | ephemeral b Error:1 0 | ephemeral z Error:143 0").await;
    let starts: Vec<_> =
        cluster.runtime.calls().into_iter().filter(|call| call.starts_with("start")).collect();
    assert_eq!(starts, ["start i", "start app", "start z", "start b"], "none of them twice");
    let events = cluster.events("p").await.join("\n");
    assert!(events.contains("Container started (spec.ephemeralContainers{z})"), "{events}");
}

#[tokio::test(start_paused = true)]
async fn the_node_may_restart_sooner_than_after_ten_seconds() {
    let mut cluster = Cluster::without_agent().await;
    images(&cluster);
    cluster.restart_backoff_max = 4;
    cluster.start_agent();
    cluster.give_pod_cidr().await;
    cluster.until_ready().await;
    cluster.run("p", json!({"containers": [plain("c", "bad:1")]})).await;
    cluster.until_step("p", "MODIFIED Running | c CrashLoopBackOff 4").await;
    let history = cluster.history("p");
    let message = &history.last().unwrap().1["status"]["containerStatuses"][0]["state"]["waiting"]["message"];
    assert!(message.as_str().unwrap().starts_with("back-off 4s "), "{message}");
    let starts = history
        .iter()
        .filter(|(_, pod, _)| pod["status"]["containerStatuses"][0]["state"]["running"].is_object());
    let starts: Vec<f64> = starts.map(|(_, _, at)| *at).collect();
    let gaps: Vec<u64> = starts.windows(2).map(|pair| (pair[1] - pair[0]).round() as u64).collect();
    assert_eq!(gaps, [1, 5, 5, 5]);
}

#[tokio::test(start_paused = true)]
async fn five_hundred_changes_of_a_spec_end_with_the_last_one_observed() {
    let cluster = started().await;
    cluster.run("p", json!({"activeDeadlineSeconds": 100_000, "containers": [plain("app", "app:1")]})).await;
    cluster.until_step("p", "MODIFIED Running | app Running 0").await;
    for n in 1..=500 {
        let patch = PatchBody::Merge(json!({"spec": {"activeDeadlineSeconds": 100_000 - n}}));
        cluster.patch("p", &patch).await;
    }
    cluster.settle().await;
    let now = last(&cluster, "p");
    assert_eq!(now["metadata"]["generation"], json!(502), "one for the binding");
    assert_eq!(now["status"]["observedGeneration"], now["metadata"]["generation"]);
    assert_eq!(condition(&now, "Ready")["observedGeneration"], now["metadata"]["generation"]);
    assert_eq!(starts_and_stops(&cluster), ["run sandbox p 0", "start app"]);
}

#[tokio::test(start_paused = true)]
async fn a_node_agent_killed_while_all_containers_start_anew_goes_on_with_it() {
    // Nine calls until it runs; then two stops, four removals, and all anew.
    for kill_after in 9..=20 {
        let mut cluster = started().await;
        cluster.image("trigger:1", runs(vec![exits(42, 3), RunScript::default()]));
        let trigger = json!({"name": "trigger", "image": "trigger:1", "restartPolicy": "Never", "restartPolicyRules": [
            {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]});
        let spec = json!({"restartPolicy": "Never", "initContainers": [plain("i", "ok:1"), sidecar("s", "app:1")],
            "containers": [plain("app", "app:1"), trigger]});
        cluster.run("p", spec).await;
        assert!(cluster.until_calls(kill_after, Duration::from_secs(10)).await);
        cluster.kill_agent().await;
        cluster.clock.sleep(Duration::from_millis(100)).await;
        cluster.start_agent();
        let up = "init i Completed:0 1 | init s Running 1 | app Running 1 | trigger Running 1";
        cluster.until_step("p", &format!("MODIFIED Running | {up}")).await;
        let calls = cluster.runtime.calls();
        let starts: Vec<_> = calls.iter().filter(|call| call.starts_with("start")).collect();
        let order = ["start i", "start s", "start app", "start trigger"];
        assert_eq!(starts, [order, order].concat(), "killed after {kill_after}: {calls:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_agent_killed_while_a_pod_ends_keeps_the_order_of_sidecars() {
    for wait in [1, 1000, 4001, 6000] {
        let mut cluster = started().await;
        let spec = json!({"initContainers": [sidecar("s1", "app:1"), sidecar("s2", "slow:1")],
            "containers": [plain("a", "slow:1")]});
        cluster.run("p", spec).await;
        cluster
            .until_step("p", "MODIFIED Running | init s1 Running 0 | init s2 Running 0 | a Running 0")
            .await;
        cluster.delete("p", &Deletion::default()).await;
        cluster.clock.sleep(Duration::from_millis(wait)).await;
        cluster.kill_agent().await;
        cluster.clock.sleep(Duration::from_millis(100)).await;
        cluster.start_agent();
        until_gone(&cluster, "p").await;
        let (_, pod, _) = cluster.history("p").pop().unwrap();
        let finished = |list: &str, n: usize| {
            pod["status"][list][n]["state"]["terminated"]["finishedAt"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let ends = [
            finished("containerStatuses", 0),
            finished("initContainerStatuses", 1),
            finished("initContainerStatuses", 0),
        ];
        assert!(ends[0] <= ends[1] && ends[1] <= ends[2] && !ends[0].is_empty(), "{wait}: {ends:?}");
        assert!(cluster.runtime.list_pod_sandboxes(&Default::default()).await.unwrap().is_empty());
    }
}
