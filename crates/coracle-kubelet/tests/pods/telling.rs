//! What a user is told when the node, its runtime or its disk are not as they should be.

use std::time::Duration;

use coracle_client::request::{self, PatchBody};
use coracle_client::{Deletion, ObjectKey};
use coracle_cri::CriError;
use coracle_cri::scripted::{ImageScript, OnStop, RunScript, Trouble};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node};
use serde_json::{Value, json};

use crate::cluster::{Cluster, NODE};

const RUNNING: &str = "MODIFIED Running | c Running 0";

fn one(image: &str) -> Value {
    json!({"containers": [{"name": "c", "image": image}]})
}

async fn with_image() -> Cluster {
    let cluster = Cluster::start().await;
    cluster.image("a:1", ImageScript::default());
    cluster
}

fn failing(call: &str, why: CriError) -> Trouble {
    Trouble { calls: vec![call.to_owned()], fails: Some(why), ..Trouble::default() }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_was_booted_anew_is_told_of_on_its_node() {
    let mut cluster = with_image().await;
    let rebooted = async |cluster: &Cluster| {
        cluster.settle().await;
        let events: Vec<std::sync::Arc<Event>> = cluster.events.list();
        let text = |event: &Event| {
            let field = |field: &Option<String>| field.clone().unwrap_or_default();
            format!("{} {} {}", field(&event.type_), field(&event.reason), field(&event.message))
        };
        events.iter().map(|event| text(event)).filter(|text| text.contains("Rebooted")).collect::<Vec<_>>()
    };
    cluster.kill_agent().await;
    cluster.start_agent();
    assert_eq!(rebooted(&cluster).await, Vec::<String>::new(), "only the agent was");
    cluster.kill_agent().await;
    cluster.boot_id = "boot-2".to_owned();
    cluster.start_agent();
    cluster
        .until_node("the new boot", |node| {
            node.status
                .as_ref()
                .and_then(|s| s.node_info.as_ref())
                .is_some_and(|info| info.boot_id == "boot-2")
        })
        .await;
    assert_eq!(rebooted(&cluster).await, ["Warning Rebooted Node node-a has been rebooted, boot id: boot-2"]);
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_does_not_kill_in_time_is_told_of_once() {
    let cluster = Cluster::start().await;
    let stubborn = RunScript { on_stop: OnStop::Ignores, ..RunScript::default() };
    cluster.image("a:1", ImageScript { runs: vec![stubborn], ..ImageScript::default() });
    let mut spec = one("a:1");
    spec["terminationGracePeriodSeconds"] = json!(20);
    cluster.run("p", spec).await;
    cluster.until_step("p", RUNNING).await;
    let slow = Duration::from_secs(40);
    cluster.runtime.set_trouble(Trouble {
        calls: vec!["stop_container".to_owned()],
        slow,
        ..Trouble::default()
    });
    cluster.delete("p", &Deletion::default()).await;
    cluster.clock.sleep(Duration::from_secs(29)).await;
    let told = async || {
        let events = crate::probing::told(&cluster, "p").await;
        events.into_iter().filter(|event| event.contains("ExceededGracePeriod")).collect::<Vec<_>>()
    };
    let early = cluster.events.list().iter().any(|e| e.reason.as_deref() == Some("ExceededGracePeriod"));
    assert!(!early, "half the grace more it has");
    let text = "Warning ExceededGracePeriod Container runtime did not kill the pod within specified grace period. (-) x1";
    assert_eq!(told().await, [text]);
    // It is looked at again, and nothing new is to be said.
    let patch = PatchBody::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
    cluster.patch("p", &patch).await;
    cluster.clock.sleep(Duration::from_secs(60)).await;
    assert_eq!(told().await, [text]);
    assert_eq!(cluster.history("p").last().unwrap().0, "DELETED");
}

#[tokio::test(start_paused = true)]
async fn what_keeps_a_pod_from_its_sandbox_is_told_by_its_name() {
    let cluster = with_image().await;
    for (name, call, why, text) in [
        (
            "status",
            "pod_sandbox_status",
            CriError::Internal("no answer".to_owned()),
            "Warning FailedPodSandBoxStatus Unable to get pod sandbox status: no answer".to_owned(),
        ),
        (
            "group",
            "run_pod_sandbox",
            CriError::Cgroup("no space left".to_owned()),
            "Warning FailedCreatePodContainer unable to ensure pod container exists: failed to create container for \
             [coracle-test kubepods besteffort podUID] : no space left"
                .to_owned(),
        ),
        (
            "sandbox",
            "run_pod_sandbox",
            CriError::Internal("no".to_owned()),
            "Warning FailedCreatePodSandBox Failed to create pod sandbox: no".to_owned(),
        ),
    ] {
        cluster.runtime.set_trouble(failing(call, why));
        let uid = cluster.run(name, one("a:1")).await.metadata.uid.unwrap();
        cluster.clock.sleep(Duration::from_secs(5)).await;
        let events = cluster.events(name).await;
        assert!(events.contains(&text.replace("UID", &uid)), "{events:#?}");
        let shown = cluster.steps(name).pop().unwrap();
        assert_eq!(shown, "MODIFIED Pending | c ContainerCreating 0");
        cluster.runtime.set_trouble(Trouble::default());
        cluster.until_step(name, RUNNING).await;
    }
}

#[tokio::test(start_paused = true)]
async fn directories_that_cannot_be_made_are_told_of_and_made_later() {
    let cluster = with_image().await;
    let volumes = json!({"containers": [{"name": "c", "image": "a:1",
        "volumeMounts": [{"name": "v", "mountPath": "/v"}]}], "volumes": [{"name": "v", "emptyDir": {}}]});
    // A file stands where all Pods' directories are to be.
    let pods = cluster.path("pods");
    std::fs::remove_dir(&pods).unwrap();
    std::fs::write(&pods, "").unwrap();
    for (name, spec) in [("plain", one("a:1")), ("volumes", volumes)] {
        let uid = cluster.run(name, spec).await.metadata.uid.unwrap();
        cluster.clock.sleep(Duration::from_secs(5)).await;
        let events = cluster.events(name).await;
        let text =
            format!("Warning Failed error making pod data directories: mkdir {}", pods.join(uid).display());
        assert!(events.iter().any(|event| event.starts_with(&text)), "{events:#?}");
        assert!(!events.iter().any(|event| event.contains("FailedMount")), "{events:#?}");
    }
    std::fs::remove_file(&pods).unwrap();
    cluster.until_step("plain", RUNNING).await;
    cluster.until_step("volumes", RUNNING).await;
}

#[tokio::test(start_paused = true)]
async fn a_log_directory_that_cannot_be_made_shows_on_the_container() {
    let cluster = Cluster::start().await;
    let pull_time = Duration::from_secs(10);
    cluster.runtime.script("a:1", ImageScript { pull_time, ..ImageScript::default() });
    let uid = cluster.run("p", one("a:1")).await.metadata.uid.unwrap();
    cluster.clock.sleep(Duration::from_secs(5)).await;
    let directory = cluster.path(&format!("logs/pods/default_p_{uid}/c"));
    std::fs::write(&directory, "").unwrap();
    cluster.until_step("p", "MODIFIED Pending | c CreateContainerConfigError 0").await;
    let (_, pod, _) = cluster.last("p").unwrap();
    let message = pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap();
    let begin =
        format!("create container log directory for container c failed: mkdir {}", directory.display());
    assert!(message.starts_with(&begin), "{message}");
    std::fs::remove_file(&directory).unwrap();
    cluster.until_step("p", RUNNING).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_address_is_of_another_family_than_before_is_told_of_once() {
    let mut cluster = with_image().await;
    cluster.run("p", one("a:1")).await;
    cluster.until_step("p", RUNNING).await;
    cluster.kill_agent().await;
    cluster.node_ip = "2001:db8::7".parse().unwrap();
    cluster.start_agent();
    let text = "Warning HostIPsIPFamilyMismatch Kubelet detected an IPv4 node IP (192.0.2.10), but the cloud provider \
                selected an IPv6 node IP (2001:db8::7); pass an explicit `--node-ip` to kubelet to fix this.";
    let told = cluster.events("p").await;
    assert_eq!(told.iter().filter(|event| *event == text).count(), 1, "{told:#?}");
    assert_eq!(cluster.last("p").unwrap().1["status"]["hostIP"], "2001:db8::7");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_comes_while_the_node_has_no_object_is_refused() {
    let cluster = with_image().await;
    request::delete::<Node>(&cluster.admin, &ObjectKey::cluster(NODE), &Deletion::default()).await.unwrap();
    cluster.clock.sleep(Duration::from_millis(1)).await;
    cluster.run("p", one("a:1")).await;
    cluster.until_step("p", "MODIFIED InvalidNodeInfo").await;
    let (_, pod, _) = cluster.last("p").unwrap();
    assert_eq!(pod["status"]["phase"], "Failed");
    assert_eq!(pod["status"]["message"], "Pod was rejected: Kubelet cannot get node info.");
    assert_eq!(cluster.events("p").await, ["Warning InvalidNodeInfo Kubelet cannot get node info."]);
}

#[tokio::test(start_paused = true)]
async fn keys_that_cannot_be_variables_are_left_out_and_told() {
    let cluster = with_image().await;
    let map: ConfigMap = serde_json::from_value(json!({
        "metadata": {"name": "m", "namespace": "default"}, "data": {"GOOD": "1", "BAD": "2"},
    }))
    .unwrap();
    request::create(&cluster.admin, &map).await.unwrap();
    // The API server takes no such key; one of another make may have.
    cluster.rewrite("/registry/configmaps/default/m", "\"BAD\"", "\"B=D\"").await;
    let mut spec = one("a:1");
    spec["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "m"}}]);
    cluster.run("p", spec).await;
    cluster.until_step("p", RUNNING).await;
    let events = cluster.events("p").await;
    let text = "Warning InvalidEnvironmentVariableNames Keys [B=D] from the EnvFrom configMap default/m were skipped since \
                they are considered invalid environment variable names.";
    assert!(events.contains(&text.to_owned()), "{events:#?}");
    let variables = cluster.runtime.environment("c");
    assert!(variables.iter().any(|v| v.key == "GOOD") && !variables.iter().any(|v| v.key.starts_with('B')));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_set_so_fetches_several_images_at_a_time() {
    let mut cluster = Cluster::without_agent().await;
    cluster.max_parallel_image_pulls = 2;
    cluster.start_agent();
    cluster.give_pod_cidr().await;
    cluster.until_ready().await;
    let pull_time = Duration::from_secs(10);
    for name in ["a", "b", "d"] {
        cluster.runtime.script(&format!("{name}:1"), ImageScript { pull_time, ..ImageScript::default() });
        cluster.run(name, one(&format!("{name}:1"))).await;
    }
    let begun = cluster.clock.elapsed();
    for (name, seconds) in [("a", 10..12), ("b", 10..12), ("d", 20..22)] {
        cluster.until_step(name, RUNNING).await;
        let took = (cluster.clock.elapsed() - begun).as_secs();
        assert!(seconds.contains(&took), "{name}: {took}");
    }
}
