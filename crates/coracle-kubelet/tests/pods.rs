//! What a user sees of a Pod: the node agent against the real API server and store, with a scripted runtime, on
//! virtual time.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "pods/calendar.rs"]
mod calendar;
mod cluster;
#[path = "pods/credentials.rs"]
mod credentials;
mod lifecycle;
mod probing;
#[path = "pods/rules.rs"]
mod rules;
#[path = "pods/telling.rs"]
mod telling;
#[path = "pods/volumes.rs"]
mod volumes;

use std::time::Duration;

use cluster::{Cluster, NODE, condition, exits};
use coracle_client::Deletion;
use coracle_client::request::PatchBody;
use coracle_cri::scripted::{ImageScript, OnStop, RunScript};
use coracle_cri::{
    ContainerState, CriError, PodSandboxConfig, PodSandboxFilter, PodSandboxMetadata, RuntimeService as _,
};
use serde_json::{Value, json};

fn one(image: &str) -> Value {
    json!({"containers": [{"name": "busybox", "image": image}]})
}

#[tokio::test(start_paused = true)]
async fn a_pod_comes_up_in_four_steps() {
    let cluster = Cluster::start().await;
    cluster.image("busybox:1.37", ImageScript::default());
    cluster.run("p", one("busybox:1.37")).await;
    cluster.until_step("p", "MODIFIED Running | busybox Running 0").await;
    cluster.settle().await;
    let history = cluster.history("p");
    assert_eq!(history.len(), 4, "{:#?}", cluster.steps("p"));
    assert_eq!(
        cluster.steps("p"),
        [
            "ADDED Pending unbound",
            "MODIFIED Pending",
            "MODIFIED Pending | busybox ContainerCreating 0",
            "MODIFIED Running | busybox Running 0",
        ]
    );

    let pending = &history[2].1;
    assert_eq!(pending["status"]["hostIP"], "192.0.2.10");
    assert_eq!(pending["status"]["hostIPs"], json!([{"ip": "192.0.2.10"}]));
    assert_eq!(pending["status"]["qosClass"], "BestEffort");
    assert!(pending["status"]["startTime"].is_string());
    assert!(pending["status"].get("podIP").is_none());
    for (kind, status) in
        [("PodReadyToStartContainers", "False"), ("Initialized", "True"), ("PodScheduled", "True")]
    {
        assert_eq!(condition(pending, kind)["status"], status, "{kind}");
    }
    for kind in ["Ready", "ContainersReady"] {
        let condition = condition(pending, kind);
        assert_eq!(condition["status"], "False");
        assert_eq!(condition["reason"], "ContainersNotReady");
        assert_eq!(condition["message"], "containers with unready status: [busybox]");
    }

    let running = &history[3].1;
    assert_eq!(running["status"]["podIP"], "10.244.0.1");
    assert_eq!(running["status"]["podIPs"], json!([{"ip": "10.244.0.1"}]));
    for kind in ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"] {
        assert_eq!(condition(running, kind)["status"], "True", "{kind}");
        assert_eq!(condition(running, kind)["observedGeneration"], running["metadata"]["generation"]);
    }
    let container = &running["status"]["containerStatuses"][0];
    assert!(container["state"]["running"]["startedAt"].is_string());
    assert_eq!((&container["started"], &container["ready"]), (&json!(true), &json!(true)));
    assert_eq!(container["image"], "busybox:1.37");
    assert!(container["imageID"].as_str().unwrap().starts_with("sha256:"));
    assert!(container["containerID"].as_str().unwrap().starts_with("coracle://"));
    assert_eq!(
        cluster.events("p").await,
        [
            "Warning MissingClusterDNS pod: \"p_default(UID)\". kubelet does not have ClusterDNS IP configured and cannot \
             create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" policy."
                .replace("UID", running["metadata"]["uid"].as_str().unwrap()),
            "Normal Pulled Container image \"busybox:1.37\" already present on machine and can be accessed by the pod \
             (spec.containers{busybox})"
                .to_owned(),
            "Normal Created Container created (spec.containers{busybox})".to_owned(),
            "Normal Started Container started (spec.containers{busybox})".to_owned(),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn containers_start_one_after_the_other_and_show_together() {
    let cluster = Cluster::start().await;
    cluster.image("a:1", ImageScript::default());
    let spec = json!({"containers": [{"name": "z", "image": "a:1"}, {"name": "b", "image": "a:1"}]});
    cluster.run("p", spec).await;
    cluster.until_step("p", "MODIFIED Running | b Running 0 | z Running 0").await;
    assert_eq!(cluster.history("p").len(), 4, "{:#?}", cluster.steps("p"));
    let calls = cluster.runtime.calls();
    assert_eq!(calls, ["run sandbox p 0", "create z 0", "start z", "create b 0", "start b"]);
}

#[tokio::test(start_paused = true)]
async fn a_missing_image_goes_round_with_doubling_pauses_and_each_step_is_seen() {
    let cluster = Cluster::start().await;
    let failure = CriError::NotFound("no such image".to_owned());
    cluster.runtime.script(
        "gone:1",
        ImageScript {
            pull_time: Duration::from_secs(1),
            pull_failures: vec![failure],
            pull_never_succeeds: true,
            ..ImageScript::default()
        },
    );
    cluster.run("p", one("gone:1")).await;
    cluster.clock.sleep(Duration::from_secs(100)).await;
    let steps = cluster.steps("p");
    let mut expected =
        vec!["ADDED Pending unbound", "MODIFIED Pending", "MODIFIED Pending | busybox ContainerCreating 0"];
    for _ in 0..4 {
        expected.push("MODIFIED Pending | busybox ErrImagePull 0");
        expected.push("MODIFIED Pending | busybox ImagePullBackOff 0");
    }
    assert_eq!(steps, expected);
    let history = cluster.history("p");
    let waiting = |reason: &str| -> Vec<(f64, String)> {
        let state = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
        let found = history.iter().filter(|(_, pod, _)| state(pod)["reason"] == reason);
        found.map(|(_, pod, at)| (*at, state(pod)["message"].as_str().unwrap().to_owned())).collect()
    };
    let failed = waiting("ErrImagePull");
    let gaps: Vec<u64> = failed.windows(2).map(|pair| (pair[1].0 - pair[0].0).round() as u64).collect();
    assert_eq!(gaps, [11, 21, 41], "a pull takes a second, and the pauses double");
    assert_eq!(failed[0].1, "no such image");
    assert_eq!(
        waiting("ImagePullBackOff")[0].1,
        "Back-off pulling image \"gone:1\": ErrImagePull: no such image"
    );
    let events = cluster.events("p").await.join("\n");
    for text in [
        "Normal Pulling Pulling image \"gone:1\" (spec.containers{busybox})",
        "Warning Failed Failed to pull image \"gone:1\": no such image (spec.containers{busybox})",
        "Warning Failed Error: ErrImagePull (spec.containers{busybox})",
        "Normal BackOff Back-off pulling image \"gone:1\" (spec.containers{busybox})",
        "Warning Failed Error: ImagePullBackOff (spec.containers{busybox})",
    ] {
        assert!(events.contains(text), "{text} in {events}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_absent_image_is_pulled_and_the_event_says_how_long_it_took() {
    let cluster = Cluster::start().await;
    let pull_time = Duration::from_millis(1200);
    cluster.runtime.script("web:2", ImageScript { pull_time, ..ImageScript::default() });
    cluster.run("p", one("web:2")).await;
    cluster.until_step("p", "MODIFIED Running | busybox Running 0").await;
    let events = cluster.events("p").await.join("\n");
    let text =
        "Successfully pulled image \"web:2\" in 1.2s (1.2s including waiting). Image size: 1024 bytes.";
    assert!(events.contains(text), "{events}");
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_backs_off_and_every_exit_is_seen() {
    let cluster = Cluster::start().await;
    cluster.image("crash:1", ImageScript { runs: vec![exits(1, 1)], ..ImageScript::default() });
    let pod = cluster.run("p", one("crash:1")).await;
    cluster.clock.sleep(Duration::from_secs(60)).await;
    let steps = cluster.steps("p");
    assert_eq!(
        steps[3..],
        [
            "MODIFIED Running | busybox Running 0",
            "MODIFIED Running | busybox Error:1 0",
            "MODIFIED Running | busybox Running 1",
            "MODIFIED Running | busybox Error:1 1",
            "MODIFIED Running | busybox CrashLoopBackOff 1",
            "MODIFIED Running | busybox Running 2",
            "MODIFIED Running | busybox Error:1 2",
            "MODIFIED Running | busybox CrashLoopBackOff 2",
            "MODIFIED Running | busybox Running 3",
            "MODIFIED Running | busybox Error:1 3",
            "MODIFIED Running | busybox CrashLoopBackOff 3",
        ]
    );
    let history = cluster.history("p");
    let last = &history.last().unwrap().1;
    let uid = pod.metadata.uid.unwrap();
    let container = &last["status"]["containerStatuses"][0];
    assert_eq!(
        container["state"]["waiting"]["message"],
        format!("back-off 40s restarting failed container=busybox pod=p_default({uid})")
    );
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(condition(last, "Ready")["status"], "False");
    let starts: Vec<f64> = history
        .iter()
        .filter(|(_, pod, _)| pod["status"]["containerStatuses"][0]["state"]["running"].is_object())
        .map(|(_, _, at)| *at)
        .collect();
    let gaps: Vec<u64> = starts.windows(2).map(|pair| (pair[1] - pair[0]).round() as u64).collect();
    assert_eq!(gaps, [1, 11, 21], "the first restart is immediate, then 10 s, 20 s");
    let events = cluster.events("p").await.join("\n");
    let text =
        format!("Warning BackOff Back-off restarting failed container busybox in pod p_default({uid})");
    assert!(events.contains(&text), "{events}");
    // One dead container is kept beside the newest.
    let left = cluster.runtime.list_containers(&Default::default()).await.unwrap();
    assert_eq!(left.len(), 2, "{left:#?}");
}

#[tokio::test(start_paused = true)]
async fn pods_end_as_their_containers_do() {
    let cluster = Cluster::start().await;
    cluster.image("ok:1", ImageScript { runs: vec![exits(0, 1)], ..ImageScript::default() });
    cluster.image("bad:1", ImageScript { runs: vec![exits(3, 1), exits(0, 1)], ..ImageScript::default() });
    let spec = |image: &str, policy: &str| json!({"restartPolicy": policy, "containers": [{"name": "c", "image": image}]});
    cluster.run("ok", spec("ok:1", "Never")).await;
    cluster.run("bad", spec("bad:1", "Never")).await;
    cluster.run("again", spec("bad:1", "OnFailure")).await;
    cluster.until_step("ok", "MODIFIED Succeeded | c Completed:0 0").await;
    cluster.until_step("bad", "MODIFIED Failed | c Error:3 0").await;
    cluster.until_step("again", "MODIFIED Succeeded | c Completed:0 1").await;
    cluster.settle().await;
    assert_eq!(cluster.history("ok").len(), 5, "{:#?}", cluster.steps("ok"));
    let (_, pod, _) = cluster.history("ok").pop().unwrap();
    assert_eq!(condition(&pod, "Ready")["reason"], "PodCompleted");
    assert_eq!(condition(&pod, "Initialized")["reason"], "PodCompleted");
    assert_eq!(condition(&pod, "PodReadyToStartContainers")["status"], "False");
    assert_eq!(pod["status"]["podIP"], "10.244.0.1", "the address stays");
    let (_, pod, _) = cluster.history("bad").pop().unwrap();
    assert_eq!(condition(&pod, "ContainersReady")["reason"], "PodFailed");
    // The container is kept for its log until somebody deletes the Pod.
    assert_eq!(cluster.runtime.list_containers(&Default::default()).await.unwrap().len(), 4);
    cluster.delete("ok", &Deletion::default()).await;
    cluster.settle().await;
    assert_eq!(cluster.history("ok").last().unwrap().0, "DELETED");
    assert_eq!(cluster.runtime.list_containers(&Default::default()).await.unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_ends_on_the_signal_is_gone_without_waiting_for_time() {
    let cluster = Cluster::start().await;
    cluster.image("busybox:1", ImageScript::default());
    cluster.run("p", one("busybox:1")).await;
    cluster.until_step("p", "MODIFIED Running | busybox Running 0").await;
    let before = cluster.clock.elapsed();
    cluster.delete("p", &Deletion::default()).await;
    while cluster.history("p").last().unwrap().0 != "DELETED" {
        tokio::task::yield_now().await;
        assert!(cluster.clock.elapsed() - before < Duration::from_millis(100), "{:#?}", cluster.steps("p"));
    }
    let (_, last, _) = cluster.history("p").pop().unwrap();
    assert_eq!(last["status"]["phase"], "Failed");
    assert_eq!(last["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 143);
    assert_eq!(last["status"]["containerStatuses"][0]["restartCount"], 0);
    let events = cluster.events("p").await.join("\n");
    assert!(
        events.contains("Normal Killing Stopping container busybox (spec.containers{busybox})"),
        "{events}"
    );
    // Nothing is left: no sandbox, no directories, no links.
    assert!(cluster.runtime.list_pod_sandboxes(&Default::default()).await.unwrap().is_empty());
    for directory in ["pods", "logs/pods", "logs/containers"] {
        assert_eq!(std::fs::read_dir(cluster.path(directory)).unwrap().count(), 0, "{directory}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_ignores_the_signal_dies_at_the_end_of_its_grace_which_may_be_shortened() {
    let cluster = Cluster::start().await;
    let stubborn = RunScript { on_stop: OnStop::Ignores, ..RunScript::default() };
    cluster.image("busybox:1", ImageScript { runs: vec![stubborn], ..ImageScript::default() });
    for (name, grace, shorten, expected) in [
        ("long", None, None, 30),
        ("short", Some(5), None, 5),
        ("now", Some(1), None, 2),
        ("cut", None, Some(3), 13),
    ] {
        cluster.run(name, one("busybox:1")).await;
        cluster.until_step(name, "MODIFIED Running | busybox Running 0").await;
        let before = cluster.clock.elapsed();
        let how = |grace: Option<u32>| Deletion { grace_period_seconds: grace, ..Deletion::default() };
        cluster.delete(name, &how(grace)).await;
        if shorten.is_some() {
            cluster.clock.sleep(Duration::from_secs(10)).await;
            cluster.delete(name, &how(shorten)).await;
        }
        while cluster.history(name).last().unwrap().0 != "DELETED" {
            cluster.clock.sleep(Duration::from_millis(50)).await;
            assert!(
                cluster.clock.elapsed() - before < Duration::from_secs(40),
                "{name} goes: {:#?}",
                cluster.steps(name)
            );
        }
        let took = (cluster.clock.elapsed() - before).as_secs_f64().round();
        assert!((took - f64::from(expected)).abs() <= 1.0, "{name} took {took} s");
        let (_, last, _) = cluster.history(name).pop().unwrap();
        assert_eq!(last["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 137, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_force_deleted_pod_is_still_killed_on_the_node() {
    let cluster = Cluster::start().await;
    let stubborn = RunScript { on_stop: OnStop::Ignores, ..RunScript::default() };
    cluster.image("busybox:1", ImageScript { runs: vec![stubborn], ..ImageScript::default() });
    cluster.run("p", one("busybox:1")).await;
    cluster.until_step("p", "MODIFIED Running | busybox Running 0").await;
    cluster.delete("p", &Deletion { grace_period_seconds: Some(0), ..Deletion::default() }).await;
    cluster.clock.sleep(Duration::from_secs(1)).await;
    assert_eq!(cluster.history("p").last().unwrap().0, "DELETED");
    cluster.clock.sleep(Duration::from_secs(3)).await;
    assert!(cluster.runtime.list_pod_sandboxes(&Default::default()).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_the_agent_restarts_nothing_and_keeps_the_back_off() {
    let mut cluster = Cluster::start().await;
    cluster.image("crash:1", ImageScript { runs: vec![exits(1, 1)], ..ImageScript::default() });
    cluster.image("busybox:1", ImageScript::default());
    cluster.run("steady", one("busybox:1")).await;
    cluster.run("loop", one("crash:1")).await;
    cluster.until_step("loop", "MODIFIED Running | busybox CrashLoopBackOff 2").await;
    let (steady, looping) = (cluster.history("steady").len(), cluster.history("loop").len());
    cluster.kill_agent().await;
    cluster.start_agent();
    cluster.clock.sleep(Duration::from_secs(5)).await;
    assert_eq!(cluster.history("steady").len(), steady, "{:#?}", cluster.steps("steady"));
    assert_eq!(cluster.history("loop").len(), looping, "{:#?}", cluster.steps("loop"));
    cluster.until_step("loop", "MODIFIED Running | busybox CrashLoopBackOff 3").await;
    let (_, pod, _) = cluster.history("loop").pop().unwrap();
    let message = pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"].clone();
    assert!(message.as_str().unwrap().starts_with("back-off 40s "), "{message}");
}

#[tokio::test(start_paused = true)]
async fn pods_deleted_while_the_agent_was_away_are_removed() {
    let mut cluster = Cluster::start().await;
    cluster.image("busybox:1", ImageScript::default());
    cluster.run("forced", one("busybox:1")).await;
    cluster.run("asked", one("busybox:1")).await;
    cluster.until_step("forced", "MODIFIED Running | busybox Running 0").await;
    cluster.until_step("asked", "MODIFIED Running | busybox Running 0").await;
    cluster.kill_agent().await;
    cluster.delete("forced", &Deletion { grace_period_seconds: Some(0), ..Deletion::default() }).await;
    cluster.delete("asked", &Deletion::default()).await;
    cluster.start_agent();
    cluster.clock.sleep(Duration::from_secs(5)).await;
    assert_eq!(cluster.history("asked").last().unwrap().0, "DELETED");
    assert!(cluster.runtime.list_pod_sandboxes(&Default::default()).await.unwrap().is_empty());
    assert_eq!(std::fs::read_dir(cluster.path("logs/pods")).unwrap().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn starts_that_cannot_be_are_told_with_their_reasons() {
    let cluster = Cluster::start().await;
    let run = |run: RunScript| ImageScript { runs: vec![run], ..ImageScript::default() };
    let error = |text: &str| Some(text.to_owned());
    cluster.image("create:1", run(RunScript { create_error: error("no room"), ..RunScript::default() }));
    cluster.image(
        "start:1",
        run(RunScript { start_error: error("exec: \"/x\": not found"), ..RunScript::default() }),
    );
    let never = |image: &str| json!({"containers": [{"name": "busybox", "image": image, "imagePullPolicy": "Never"}]});
    cluster.run("never", never("absent:1")).await;
    cluster.run("invalid", one("Not Valid")).await;
    cluster.run("create", one("create:1")).await;
    cluster.run("start", one("start:1")).await;
    let mut once = one("start:1");
    once["restartPolicy"] = json!("Never");
    cluster.run("once", once).await;
    cluster.image("root:1", ImageScript::default());
    let mut not_root = one("root:1");
    not_root["securityContext"] = json!({"runAsNonRoot": true});
    cluster.run("root", not_root.clone()).await;
    not_root["securityContext"]["runAsUser"] = json!(1000);
    cluster.run("user", not_root).await;
    cluster.settle().await;
    let waiting = |name: &str| {
        let (_, pod, _) = cluster.history(name).pop().unwrap();
        pod["status"]["containerStatuses"][0]["state"]["waiting"].clone()
    };
    assert_eq!(waiting("never")["reason"], "ErrImageNeverPull");
    assert_eq!(
        waiting("never")["message"],
        "Container image \"absent:1\" is not present with pull policy of Never"
    );
    assert_eq!(waiting("invalid")["reason"], "InvalidImageName");
    assert_eq!(waiting("create"), json!({"reason": "CreateContainerError", "message": "no room"}));
    let (_, root, _) = cluster.history("root").pop().unwrap();
    let uid = root["metadata"]["uid"].as_str().unwrap();
    let why = format!(
        "container has runAsNonRoot and image will run as root (pod: \"root_default({uid})\", container: busybox)"
    );
    assert_eq!(waiting("root"), json!({"reason": "CreateContainerConfigError", "message": why}));
    assert_eq!(root["status"]["phase"], "Pending");
    let events = cluster.events("root").await.join("\n");
    assert!(
        events.contains(&format!("Warning Failed Error: {why} (spec.containers{{busybox}})")),
        "{events}"
    );
    assert_eq!(cluster.steps("user").last().unwrap(), "MODIFIED Running | busybox Running 0");
    let steps = cluster.steps("start");
    assert_eq!(
        steps[3..],
        [
            "MODIFIED Running | busybox RunContainerError 0",
            "MODIFIED Running | busybox RunContainerError 1",
            "MODIFIED Running | busybox CrashLoopBackOff 1"
        ]
    );
    let (_, pod, _) = cluster.history("start").pop().unwrap();
    let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((&last["reason"], &last["exitCode"]), (&json!("StartError"), &json!(128)));
    assert_eq!(cluster.steps("once").last().unwrap(), "MODIFIED Failed | busybox StartError:128 0");
    let events = cluster.events("start").await.join("\n");
    assert!(
        events.contains("Warning Failed Error: exec: \"/x\": not found (spec.containers{busybox})"),
        "{events}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_sandbox_is_made_anew_and_the_containers_start_again() {
    let cluster = Cluster::start().await;
    cluster.image("busybox:1", ImageScript::default());
    cluster.run("p", one("busybox:1")).await;
    cluster.until_step("p", "MODIFIED Running | busybox Running 0").await;
    let sandbox = cluster.runtime.list_pod_sandboxes(&Default::default()).await.unwrap().remove(0);
    cluster.runtime.lose_sandbox(&sandbox.id);
    cluster.until_step("p", "MODIFIED Running | busybox Running 1").await;
    let (_, pod, _) = cluster.history("p").pop().unwrap();
    assert_eq!(pod["status"]["podIP"], "10.244.0.2");
    let events = cluster.events("p").await.join("\n");
    assert!(
        events.contains("Normal SandboxChanged Pod sandbox changed, it will be killed and re-created."),
        "{events}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_changed_image_restarts_the_container_at_once() {
    let cluster = Cluster::start().await;
    cluster.image("busybox:1", ImageScript::default());
    cluster.image("busybox:2", ImageScript::default());
    cluster.run("p", one("busybox:1")).await;
    cluster.until_step("p", "MODIFIED Running | busybox Running 0").await;
    let patch = json!({"spec": {"containers": [{"name": "busybox", "image": "busybox:2"}]}});
    cluster.patch("p", &PatchBody::Strategic(patch)).await;
    cluster.until_step("p", "MODIFIED Running | busybox Running 1").await;
    let (_, pod, _) = cluster.history("p").pop().unwrap();
    assert_eq!(pod["status"]["containerStatuses"][0]["image"], "busybox:2");
    assert_eq!(pod["status"]["observedGeneration"], pod["metadata"]["generation"]);
    let events = cluster.events("p").await.join("\n");
    assert!(events.contains("Container busybox definition changed, will be restarted"), "{events}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_does_not_fit_is_refused() {
    let cluster = Cluster::start().await;
    cluster.image("busybox:1", ImageScript::default());
    let spec =
        json!({"containers": [{"name": "c", "image": "busybox:1", "resources": {"requests": {"cpu": "5"}}}]});
    cluster.run("big", spec).await;
    cluster.until_step("big", "MODIFIED OutOfcpu").await;
    let (_, pod, _) = cluster.history("big").pop().unwrap();
    let text = "Node didn't have enough resource: cpu, requested: 5000, used: 0, capacity: 4000";
    assert_eq!(pod["status"]["phase"], "Failed");
    assert_eq!(pod["status"]["message"], format!("Pod was rejected: {text}"));
    assert!(pod["status"]["startTime"].is_string());
    assert_eq!(cluster.events("big").await, [format!("Warning OutOfcpu {text}")]);
    cluster.delete("big", &Deletion::default()).await;
    cluster.settle().await;
    assert_eq!(cluster.history("big").last().unwrap().0, "DELETED");
}

#[tokio::test(start_paused = true)]
async fn a_kernel_parameter_that_is_not_safe_is_refused_by_the_node() {
    let cluster = Cluster::start().await;
    cluster.image("a:1", ImageScript::default());
    let with = |name: &str| {
        let sysctls = json!([{"name": name, "value": "1"}]);
        json!({"containers": [{"name": "c", "image": "a:1"}], "securityContext": {"sysctls": sysctls}})
    };
    cluster.run("safe", with("net.ipv4.tcp_syncookies")).await;
    cluster.run("unsafe", with("kernel.msgmax")).await;
    cluster.until_step("unsafe", "MODIFIED SysctlForbidden").await;
    let (_, pod, _) = cluster.history("unsafe").pop().unwrap();
    let text = "forbidden sysctl: \"kernel.msgmax\" not allowlisted";
    assert_eq!(pod["status"]["phase"], "Failed");
    assert_eq!(pod["status"]["message"], format!("Pod was rejected: {text}"));
    assert_eq!(cluster.events("unsafe").await, [format!("Warning SysctlForbidden {text}")]);
    cluster.until_step("safe", "MODIFIED Running | c Running 0").await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_cannot_be_made_is_told_and_tried_again() {
    let cluster = Cluster::start().await;
    cluster.image("busybox:1", ImageScript::default());
    cluster.runtime.fail_sandboxes(vec![CriError::Internal("no veth".to_owned())]);
    cluster.run("p", one("busybox:1")).await;
    cluster.until_step("p", "MODIFIED Running | busybox Running 0").await;
    let events = cluster.events("p").await.join("\n");
    assert!(
        events.contains("Warning FailedCreatePodSandBox Failed to create pod sandbox: no veth"),
        "{events}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_node_is_ready_as_soon_as_it_has_its_range_of_addresses() {
    let mut cluster = Cluster::without_agent().await;
    cluster.runtime.set_network(Err("no podCIDR yet".to_owned()));
    cluster.start_agent();
    let ready = |node: &k8s_openapi::api::core::v1::Node| {
        let conditions = node.status.as_ref()?.conditions.as_ref()?;
        let ready = conditions.iter().find(|c| c.type_ == "Ready")?.clone();
        Some((ready.status, ready.reason.unwrap_or_default(), ready.message.unwrap_or_default()))
    };
    let node = cluster.until_node("not ready", |node| ready(node).is_some()).await;
    let message = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
                   message:no podCIDR yet";
    assert_eq!(ready(&node).unwrap(), ("False".into(), "KubeletNotReady".into(), message.into()));
    assert_eq!(node.metadata.labels.as_ref().unwrap()["kubernetes.io/hostname"], NODE);
    let status = node.status.as_ref().unwrap();
    assert_eq!(status.capacity.as_ref().unwrap()["pods"].0, "110");
    assert_eq!(status.node_info.as_ref().unwrap().container_runtime_version, "coracle://0.0.0");
    assert!(status.node_info.as_ref().unwrap().kubelet_version.starts_with("v1.37.0+coracle."));

    cluster.runtime.set_network(Ok(()));
    cluster.give_pod_cidr().await;
    let posted = |node: &k8s_openapi::api::core::v1::Node| {
        ready(node) == Some(("True".into(), "KubeletReady".into(), "kubelet is posting ready status".into()))
    };
    cluster.until_node("ready", posted).await;
    assert_eq!(cluster.runtime.pod_cidr().as_deref(), Some("10.244.0.0/24"));
    cluster.settle().await;
    let told = |reason: &str| format!("Normal {reason} Node {NODE} status is now: {reason}");
    let mut expected = vec!["Normal Starting Starting kubelet.".to_owned()];
    expected.extend(
        ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID", "NodeReady"].map(told),
    );
    assert_eq!(cluster.events(NODE).await, expected);

    let leases: kube::Api<k8s_openapi::api::coordination::v1::Lease> =
        kube::Api::namespaced(cluster.admin.clone(), "kube-node-lease");
    cluster.clock.sleep(Duration::from_secs(1)).await;
    let first = leases.get(NODE).await.unwrap();
    let spec = first.spec.clone().unwrap();
    assert_eq!((spec.lease_duration_seconds, spec.holder_identity.as_deref()), (Some(40), Some(NODE)));
    assert_eq!(first.metadata.owner_references.as_ref().unwrap()[0].kind, "Node");
    cluster.clock.sleep(Duration::from_secs(10)).await;
    assert!(leases.get(NODE).await.unwrap().spec.unwrap().renew_time > spec.renew_time);

    // Of a node on which nothing happens the Lease alone is heard for five minutes.
    let heard = async || {
        let node = cluster.until_node("there", |_| true).await;
        let conditions = node.status.as_ref().unwrap().conditions.clone().unwrap();
        conditions[0].last_heartbeat_time.clone().unwrap().0
    };
    let last = heard().await;
    let quiet = Duration::try_from(cluster.clock.now().duration_since(last)).unwrap();
    cluster.clock.sleep(Duration::from_secs(297) - quiet).await;
    assert_eq!(heard().await, last);
    cluster.clock.sleep(Duration::from_secs(5)).await;
    assert!(heard().await > last);
}

#[tokio::test(start_paused = true)]
async fn an_exit_from_outside_is_seen_without_any_api_event() {
    let cluster = Cluster::start().await;
    cluster.image("busybox:1", ImageScript::default());
    cluster.run("p", one("busybox:1")).await;
    cluster.until_step("p", "MODIFIED Running | busybox Running 0").await;
    let running = cluster.runtime.list_containers(&Default::default()).await.unwrap();
    assert_eq!(running[0].state, ContainerState::Running);
    cluster.runtime.crash(&running[0].id, 139);
    cluster.until_step("p", "MODIFIED Running | busybox Running 1").await;
    let (_, pod, _) = cluster.history("p").pop().unwrap();
    assert_eq!(pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 139);
}

#[tokio::test(start_paused = true)]
async fn what_was_missed_is_found_also_on_a_node_that_is_never_quiet() {
    let cluster = Cluster::start().await;
    cluster.image("a:1", ImageScript::default());
    cluster.run("p", one("a:1")).await;
    cluster.until_step("p", "MODIFIED Running | busybox Running 0").await;
    let orphan = PodSandboxConfig {
        metadata: PodSandboxMetadata {
            name: "lost".to_owned(),
            namespace: "default".to_owned(),
            uid: "of-nobody".to_owned(),
            attempt: 0,
        },
        ..PodSandboxConfig::default()
    };
    cluster.runtime.run_pod_sandbox(&orphan).await.unwrap();
    let sandboxes =
        async || cluster.runtime.list_pod_sandboxes(&PodSandboxFilter::default()).await.unwrap().len();
    for minute in 0..30 {
        let patch = json!({"metadata": {"annotations": {"minute": minute.to_string()}}});
        cluster.patch("p", &PatchBody::Merge(patch)).await;
        cluster.clock.sleep(Duration::from_secs(60)).await;
    }
    assert_eq!(sandboxes().await, 1, "{:?}", cluster.runtime.calls());
}

#[tokio::test(start_paused = true)]
async fn a_grace_of_ages_does_not_keep_a_pod_from_ending() {
    let cluster = Cluster::start().await;
    cluster.image("a:1", ImageScript::default());
    let mut spec = one("a:1");
    spec["terminationGracePeriodSeconds"] = json!(i64::MAX);
    cluster.run("p", spec).await;
    cluster.until_step("p", "MODIFIED Running | busybox Running 0").await;
    cluster.delete("p", &Deletion::default()).await;
    let wait = async {
        while !cluster.steps("p").last().is_some_and(|step| step.starts_with("DELETED")) {
            cluster.clock.sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(cluster.clock.timeout(Duration::from_secs(5), wait).await.is_some(), "{:#?}", cluster.steps("p"));
}

#[tokio::test(start_paused = true)]
async fn a_status_of_a_pod_that_is_gone_is_written_once() {
    let cluster = Cluster::start().await;
    cluster.image("a:1", ImageScript { runs: vec![exits(1, 5)], ..ImageScript::default() });
    cluster.run("p", one("a:1")).await;
    cluster.until_step("p", "MODIFIED Running | busybox Running 0").await;
    cluster.statuses.gone.store(true, std::sync::atomic::Ordering::Relaxed);
    cluster.clock.sleep(Duration::from_secs(30)).await;
    assert_eq!(cluster.statuses.refused.load(std::sync::atomic::Ordering::Relaxed), 1);
}
