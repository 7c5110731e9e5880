//! Single rules of the Pod lifecycle as a user sees them: the node agent against the real API server and store, with
//! a scripted runtime, on virtual time.

use std::time::Duration;

use coracle_client::Deletion;
use coracle_client::request::{self, PatchBody};
use coracle_cri::scripted::{ImageScript, OnStop, RunScript, Trouble};
use coracle_cri::{CriError, RuntimeService as _};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use crate::cluster::{Cluster, key};

fn one(image: &str) -> Value {
    json!({"containers": [{"name": "c", "image": image}]})
}

const RUNNING: &str = "MODIFIED Running | c Running 0";

#[tokio::test(start_paused = true)]
async fn trouble_with_a_sandbox_shows_in_events_and_not_in_the_status() {
    let cluster = Cluster::start().await;
    cluster.image("a:1", ImageScript::default());
    let trouble = || CriError::Internal("no veth".to_owned());
    cluster.runtime.fail_sandboxes(vec![trouble(), trouble(), trouble()]);
    cluster.run("p", one("a:1")).await;
    cluster.until_step("p", RUNNING).await;
    assert_eq!(cluster.steps("p")[2..], ["MODIFIED Pending | c ContainerCreating 0", RUNNING]);
    let events = cluster.events("p").await.join("\n");
    assert!(
        events.contains("Warning FailedCreatePodSandBox Failed to create pod sandbox: no veth"),
        "{events}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_does_not_answer_is_told_apart_from_an_image_that_is_not_there() {
    let cluster = Cluster::start().await;
    let failure = CriError::RegistryUnavailable("no route".to_owned());
    cluster.runtime.script("a:1", ImageScript { pull_failures: vec![failure], ..ImageScript::default() });
    cluster.run("p", one("a:1")).await;
    cluster.until_step("p", RUNNING).await;
    let steps = cluster.steps("p");
    assert_eq!(
        steps[3..5],
        ["MODIFIED Pending | c RegistryUnavailable 0", "MODIFIED Pending | c ImagePullBackOff 0"],
        "{steps:#?}"
    );
    let events = cluster.events("p").await.join("\n");
    assert!(events.contains("Warning Failed Error: RegistryUnavailable (spec.containers{c})"), "{events}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_made_anew_under_its_old_name_is_another_pod() {
    let cluster = Cluster::start().await;
    cluster.image("a:1", ImageScript::default());
    let first = cluster.run("p", one("a:1")).await.metadata.uid.unwrap();
    cluster.until_step("p", RUNNING).await;
    cluster.delete("p", &Deletion { grace_period_seconds: Some(0), ..Deletion::default() }).await;
    let second = cluster.run("p", one("a:1")).await.metadata.uid.unwrap();
    assert_ne!(first, second);
    cluster.clock.sleep(Duration::from_secs(10)).await;
    let pod = cluster.pod("p").await;
    assert_eq!(pod.status.unwrap().phase.as_deref(), Some("Running"));
    let sandboxes = cluster.runtime.list_pod_sandboxes(&Default::default()).await.unwrap();
    let owners: Vec<_> = sandboxes.iter().map(|s| (s.metadata.uid.clone(), s.metadata.attempt)).collect();
    assert_eq!(owners, [(second, 0)], "the old one's is gone, the new one has its own");
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_shows_on_that_container_alone_and_holds_back_no_other() {
    let cluster = Cluster::start().await;
    cluster.image("good:1", ImageScript::default());
    let fails = RunScript { create_error: Some("no room".to_owned()), ..RunScript::default() };
    cluster.image("bad:1", ImageScript { runs: vec![fails], ..ImageScript::default() });
    let spec =
        json!({"containers": [{"name": "bad", "image": "bad:1"}, {"name": "good", "image": "good:1"}]});
    cluster.run("p", spec).await;
    cluster.until_step("p", "MODIFIED Pending | bad CreateContainerError 0 | good Running 0").await;
    cluster.clock.sleep(Duration::from_secs(60)).await;
    let calls = cluster.runtime.calls();
    let count = |what: &str| calls.iter().filter(|call| *call == what).count();
    assert_eq!(
        (count("run sandbox p 0"), count("create good 0"), count("start good")),
        (1, 1, 1),
        "{calls:#?}"
    );
    let (_, pod, _) = cluster.history("p").pop().unwrap();
    assert_eq!(pod["status"]["containerStatuses"][1]["ready"], true);
    assert_eq!(pod["status"]["containerStatuses"][1]["restartCount"], 0);
}

#[tokio::test(start_paused = true)]
async fn images_are_pulled_one_after_the_other() {
    let cluster = Cluster::start().await;
    let pull_time = Duration::from_secs(10);
    for image in ["a:1", "b:1"] {
        cluster.runtime.script(image, ImageScript { pull_time, ..ImageScript::default() });
    }
    let begun = cluster.clock.elapsed();
    cluster.run("p", one("a:1")).await;
    cluster.run("q", one("b:1")).await;
    cluster.until_step("p", RUNNING).await;
    cluster.until_step("q", RUNNING).await;
    let took = (cluster.clock.elapsed() - begun).as_secs();
    assert!((20..23).contains(&took), "{took}");
    let events = [cluster.events("p").await, cluster.events("q").await].concat().join("\n");
    assert!(events.contains("in 10s (10s including waiting)"), "{events}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_was_refused_is_not_taken_when_there_is_room() {
    let cluster = Cluster::start().await;
    cluster.image("a:1", ImageScript::default());
    let asks = |cpu: &str| json!({"containers": [{"name": "c", "image": "a:1", "resources": {"requests": {"cpu": cpu}}}]});
    cluster.run("first", asks("3")).await;
    cluster.until_step("first", RUNNING).await;
    cluster.run("second", asks("2")).await;
    cluster.until_step("second", "MODIFIED OutOfcpu").await;
    cluster.delete("first", &Deletion::default()).await;
    cluster.clock.sleep(Duration::from_secs(120)).await;
    assert_eq!(cluster.history("first").last().unwrap().0, "DELETED");
    assert_eq!(cluster.steps("second").last().unwrap(), "MODIFIED OutOfcpu");
    assert!(!cluster.runtime.calls().contains(&"run sandbox second 0".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_container_has_a_link_to_its_log() {
    let cluster = Cluster::start().await;
    cluster.image("a:1", ImageScript::default());
    let uid = cluster.run("p", one("a:1")).await.metadata.uid.unwrap();
    cluster.until_step("p", RUNNING).await;
    let id = cluster.runtime.list_containers(&Default::default()).await.unwrap().remove(0).id;
    let link = cluster.path("logs/containers").join(format!("p_default_c-{id}.log"));
    let log = std::fs::read_link(&link).unwrap();
    assert!(log.ends_with(format!("default_p_{uid}/c/0.log")), "{}", log.display());
}

#[tokio::test(start_paused = true)]
async fn an_image_that_may_not_be_pulled_is_told_twice() {
    let cluster = Cluster::start().await;
    cluster
        .run("p", json!({"containers": [{"name": "c", "image": "absent:1", "imagePullPolicy": "Never"}]}))
        .await;
    cluster.until_step("p", "MODIFIED Pending | c ErrImageNeverPull 0").await;
    let events = cluster.events("p").await.join("\n");
    let text = "Container image \"absent:1\" is not present with pull policy of Never";
    assert!(events.contains(&format!("Warning ErrImageNeverPull {text} (spec.containers{{c}})")), "{events}");
    assert!(events.contains("Warning Failed Error: ErrImageNeverPull (spec.containers{c})"), "{events}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_a_finalizer_holds_ends_once_and_stays() {
    let cluster = Cluster::start().await;
    cluster.image("a:1", ImageScript::default());
    cluster.run("p", one("a:1")).await;
    cluster.until_step("p", RUNNING).await;
    let held = PatchBody::Merge(json!({"metadata": {"finalizers": ["example.com/hold"]}}));
    cluster.patch("p", &held).await;
    cluster.delete("p", &Deletion::default()).await;
    cluster.clock.sleep(Duration::from_secs(60)).await;
    let (calls, seen) = (cluster.runtime.calls().len(), cluster.history("p").len());
    cluster.clock.sleep(Duration::from_secs(600)).await;
    assert_eq!((cluster.runtime.calls().len(), cluster.history("p").len()), (calls, seen), "nothing loops");
    let stops = cluster.runtime.calls().into_iter().filter(|call| call.starts_with("stop c")).count();
    assert_eq!(stops, 1, "{:#?}", cluster.runtime.calls());
    let pod = cluster.pod("p").await;
    assert_eq!(pod.status.unwrap().phase.as_deref(), Some("Failed"));
    let free = PatchBody::Merge(json!({"metadata": {"finalizers": null}}));
    cluster.patch("p", &free).await;
    cluster.settle().await;
    assert_eq!(cluster.history("p").last().unwrap().0, "DELETED");
    assert!(cluster.runtime.list_pod_sandboxes(&Default::default()).await.unwrap().is_empty());
}

fn trouble(calls: &[&str]) -> Trouble {
    let calls = calls.iter().map(|call| (*call).to_owned()).collect();
    Trouble { calls, fails: Some(CriError::Internal("busy".to_owned())), ..Trouble::default() }
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_fails_is_told_and_tried_again() {
    let cluster = Cluster::start().await;
    cluster.image("a:1", ImageScript::default());
    cluster.run("p", one("a:1")).await;
    cluster.until_step("p", RUNNING).await;
    cluster.runtime.set_trouble(trouble(&["stop_container"]));
    cluster.delete("p", &Deletion::default()).await;
    let events = cluster.events("p").await.join("\n");
    assert!(events.contains("Warning FailedKillPod error killing pod: busy"), "{events}");
    assert_ne!(cluster.history("p").last().unwrap().0, "DELETED");
    cluster.runtime.set_trouble(Trouble::default());
    cluster.clock.sleep(Duration::from_secs(15)).await;
    assert_eq!(cluster.history("p").last().unwrap().0, "DELETED");
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_does_not_tell_is_told_of_and_asked_again() {
    let cluster = Cluster::start().await;
    cluster.image("a:1", ImageScript::default());
    cluster.run("p", one("a:1")).await;
    cluster.until_step("p", RUNNING).await;
    let looks = ["list_pod_sandboxes", "pod_sandbox_status", "list_containers", "container_status"];
    cluster.runtime.set_trouble(trouble(&looks));
    let touch = PatchBody::Merge(json!({"metadata": {"annotations": {"a": "b"}}}));
    cluster.patch("p", &touch).await;
    let events = cluster.events("p").await.join("\n");
    assert!(events.contains("Warning FailedSync error determining status: busy"), "{events}");
    cluster.runtime.set_trouble(Trouble::default());
    cluster.clock.sleep(Duration::from_secs(30)).await;
    cluster.delete("p", &Deletion::default()).await;
    cluster.clock.sleep(Duration::from_secs(5)).await;
    assert_eq!(cluster.history("p").last().unwrap().0, "DELETED");
    assert_eq!(cluster.runtime.calls().iter().filter(|call| *call == "start c").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_deaf_process_ends_at_the_deadline_also_after_a_hook_that_failed() {
    let cluster = Cluster::start().await;
    let answers = vec![crate::probing::answer(&["hook"], 0, 1)];
    let deaf = RunScript { answers, on_stop: OnStop::Ignores, ..RunScript::default() };
    cluster.image("a:1", ImageScript { runs: vec![deaf], ..ImageScript::default() });
    let mut spec = one("a:1");
    spec["terminationGracePeriodSeconds"] = json!(10);
    spec["containers"][0]["lifecycle"] = json!({"preStop": {"exec": {"command": ["hook"]}}});
    cluster.run("p", spec).await;
    cluster.until_step("p", RUNNING).await;
    let begun = cluster.clock.elapsed();
    cluster.delete("p", &Deletion::default()).await;
    while cluster.history("p").last().unwrap().0 != "DELETED" {
        cluster.clock.sleep(Duration::from_millis(50)).await;
        assert!((cluster.clock.elapsed() - begun).as_secs() < 20, "{:#?}", cluster.steps("p"));
    }
    let took = (cluster.clock.elapsed() - begun).as_secs_f64();
    assert!((10.0..10.5).contains(&took), "{took}");
    let events = cluster.events("p").await.join("\n");
    assert!(events.contains("Warning FailedPreStopHook PreStopHook failed"), "{events}");
}

#[tokio::test(start_paused = true)]
async fn variables_stay_as_they_were_at_the_start_of_their_container() {
    let cluster = Cluster::start().await;
    cluster.image("a:1", ImageScript::default());
    let map = json!({"metadata": {"name": "cm", "namespace": "default"}, "data": {"k": "old"}});
    request::create::<ConfigMap>(&cluster.admin, &serde_json::from_value(map).unwrap()).await.unwrap();
    let mut spec = one("a:1");
    spec["containers"][0]["env"] =
        json!([{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]);
    cluster.run("p", spec).await;
    cluster.until_step("p", RUNNING).await;
    let value = || cluster.runtime.environment("c").into_iter().find(|v| v.key == "A").unwrap().value;
    let change = PatchBody::Merge(json!({"data": {"k": "new"}}));
    request::patch::<ConfigMap>(&cluster.admin, &key("cm"), &change).await.unwrap();
    cluster.clock.sleep(Duration::from_secs(300)).await;
    assert_eq!(cluster.runtime.calls(), ["run sandbox p 0", "create c 0", "start c"]);
    assert_eq!(value(), "old");
    let running = cluster.runtime.list_containers(&Default::default()).await.unwrap().remove(0);
    cluster.runtime.crash(&running.id, 1);
    cluster.until_step("p", "MODIFIED Running | c Running 1").await;
    assert_eq!(value(), "new", "a new instance begins anew");
}

#[tokio::test(start_paused = true)]
async fn a_hosts_file_of_its_own_is_left_to_the_container() {
    let cluster = Cluster::start().await;
    cluster.image("a:1", ImageScript::default());
    let mut spec = one("a:1");
    spec["volumes"] = json!([{"name": "own", "emptyDir": {}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "own", "mountPath": "/etc/hosts"}]);
    cluster.run("p", spec).await;
    cluster.until_step("p", RUNNING).await;
    let container = cluster.runtime.list_containers(&Default::default()).await.unwrap().remove(0);
    let mounts = cluster.runtime.container_status(&container.id).await.unwrap().mounts;
    let hosts: Vec<_> = mounts.iter().filter(|m| m.container_path.ends_with("etc/hosts")).collect();
    assert_eq!(hosts.len(), 1, "{mounts:?}");
    assert!(hosts[0].host_path.ends_with("volumes/kubernetes.io~empty-dir/own"), "{mounts:?}");
}
