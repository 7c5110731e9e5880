//! What a Pod goes through, as a watch shows it.

use std::time::Duration;

use coracle_clock::Clock;
use serde_json::Value;

use crate::support::{Cluster, IMAGE, condition};

/// A manifest of a Pod that runs a shell command.
pub(crate) fn pod(name: &str, restart_policy: &str, command: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  restartPolicy: {restart_policy}\n  \
         terminationGracePeriodSeconds: 5\n  containers:\n  - name: main\n    image: {IMAGE}\n    \
         command: [\"sh\", \"-c\", {command:?}]\n"
    )
}

fn waiting_reason(pod: &Value) -> &str {
    pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str().unwrap_or("")
}

fn event_reasons(cluster: &Cluster, pod: &str) -> Vec<String> {
    let selector = format!("involvedObject.name={pod}");
    let events = cluster.get(&["events", "--field-selector", &selector, "--sort-by", "{.lastTimestamp}"]);
    let items = events["items"].as_array().unwrap();
    items.iter().map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_four_steps_of_a_pod() {
    four_steps(&Cluster::start());
}

/// A Pod from its creation to its deletion, each step as a watch shows it.
pub(crate) fn four_steps(cluster: &Cluster) {
    let mut watch = cluster.watch(&["--watch-only", "pods"]);
    cluster.kubectl(&[
        "create",
        "-f",
        crate::support::root().join("examples/busybox.yaml").to_str().unwrap(),
    ]);

    let (kind, first) = watch.next("step 1");
    assert_eq!((kind.as_str(), &first["status"]["phase"]), ("ADDED", &"Pending".into()));
    assert_eq!(first["status"]["qosClass"], "BestEffort");
    assert!(first["spec"]["nodeName"].is_null(), "{first:#}");

    let (kind, second) = watch.next("step 2");
    assert_eq!(kind, "MODIFIED");
    assert_eq!(condition(&second, "PodScheduled")["status"], "True");
    assert!(second["spec"]["nodeName"].is_string());

    let (kind, third) = watch.next("step 3");
    assert_eq!((kind.as_str(), &third["status"]["phase"]), ("MODIFIED", &"Pending".into()));
    assert!(third["status"]["hostIP"].is_string() && third["status"]["startTime"].is_string(), "{third:#}");
    assert_eq!(condition(&third, "Initialized")["status"], "True");
    for kind in ["Ready", "ContainersReady"] {
        let ready = condition(&third, kind);
        assert_eq!((&ready["status"], &ready["reason"]), (&"False".into(), &"ContainersNotReady".into()));
        assert_eq!(ready["message"], "containers with unready status: [busybox]");
    }
    assert_eq!(waiting_reason(&third), "ContainerCreating");

    // A status is held back for a second while a start is in flight; a start that takes longer shows its address first.
    let clock = Clock::system();
    let (kind, fourth) = loop {
        let (kind, next) = watch.next("step 4");
        let early = next["status"]["phase"] == "Pending" && waiting_reason(&next) == "ContainerCreating";
        if !early {
            break (kind, next);
        }
        assert!(
            next["status"]["podIP"].is_string() && clock.elapsed() > Duration::from_millis(500),
            "{next:#}"
        );
    };
    assert_eq!((kind.as_str(), &fourth["status"]["phase"]), ("MODIFIED", &"Running".into()), "{fourth:#}");
    assert!(fourth["status"]["podIP"].is_string());
    assert_eq!(condition(&fourth, "Ready")["status"], "True");
    assert_eq!(condition(&fourth, "ContainersReady")["status"], "True");
    let container = &fourth["status"]["containerStatuses"][0];
    assert!(container["state"]["running"]["startedAt"].is_string(), "{container:#}");
    for field in ["image", "imageID", "containerID"] {
        assert!(container[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {container:#}");
    }
    assert!(container["containerID"].as_str().unwrap().starts_with("coracle://"));

    cluster.kubectl(&["delete", "pod", "busybox", "--now"]);
    watch.until("its deletion", |kind, _| kind == "DELETED");
}

#[test]
fn an_image_that_does_not_exist_goes_round_with_doubling_back_off() {
    let cluster = Cluster::start();
    let mut watch = cluster.watch(&["--watch-only", "pods"]);
    // Nothing listens on port 1 of the loopback interface.
    cluster.apply(&pod("bad", "Always", "true").replace(IMAGE, "127.0.0.1:1/none/such:1"));
    let mut round = Vec::new();
    while round.len() < 5 {
        let (_, seen) = watch.next("ErrImagePull and ImagePullBackOff in turn");
        let reason = waiting_reason(&seen).to_owned();
        if !reason.is_empty() && round.last() != Some(&reason) {
            round.push(reason);
        }
    }
    let expected =
        ["ContainerCreating", "ErrImagePull", "ImagePullBackOff", "ErrImagePull", "ImagePullBackOff"];
    assert_eq!(round, expected);
    let reasons = event_reasons(&cluster, "bad");
    for reason in ["Scheduled", "Pulling", "Failed", "BackOff"] {
        assert!(reasons.iter().any(|seen| seen == reason), "{reason} in {reasons:?}");
    }
}

#[test]
fn a_container_that_exits_is_restarted_with_back_off() {
    let cluster = Cluster::start();
    cluster.apply(&pod("crash", "Always", "echo run; exit 3"));
    let looping = cluster.wait("a crash loop", &["pod", "crash"], |pod| {
        waiting_reason(pod) == "CrashLoopBackOff"
            && pod["status"]["containerStatuses"][0]["restartCount"] == 1
    });
    assert_eq!(looping["status"]["phase"], "Running");
    let last = &looping["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&3.into(), &"Error".into()));
    let message = looping["status"]["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap();
    let uid = looping["metadata"]["uid"].as_str().unwrap();
    assert_eq!(message, format!("back-off 10s restarting failed container=main pod=crash_default({uid})"));
    assert_eq!(cluster.kubectl(&["logs", "crash", "--previous"]), "run\n");
    assert!(event_reasons(&cluster, "crash").contains(&"BackOff".to_owned()));
    cluster.wait("the second restart", &["pod", "crash"], |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"] == 2
    });
}

#[test]
fn a_pod_that_ends_is_succeeded_or_failed() {
    let cluster = Cluster::start();
    cluster.apply(&pod("good", "Never", "echo done"));
    cluster.apply(&pod("bad", "Never", "exit 7"));
    let good = cluster.wait("Succeeded", &["pod", "good"], |pod| pod["status"]["phase"] == "Succeeded");
    let terminated = &good["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&terminated["exitCode"], &terminated["reason"]), (&0.into(), &"Completed".into()));
    assert_eq!(condition(&good, "Ready")["reason"], "PodCompleted");
    let bad = cluster.wait("Failed", &["pod", "bad"], |pod| pod["status"]["phase"] == "Failed");
    let terminated = &bad["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&terminated["exitCode"], &terminated["reason"]), (&7.into(), &"Error".into()));
    assert_eq!(cluster.kubectl(&["logs", "good"]), "done\n");
    cluster.apply(&pod("again", "OnFailure", "exit 1"));
    cluster.wait("a restart on failure", &["pod", "again"], |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"] == 1
    });
}

#[test]
fn last_words_are_read_from_the_file_or_from_the_log() {
    let cluster = Cluster::start();
    cluster.apply(&pod("usual", "Never", "echo -n because > /dev/termination-log; exit 3"));
    let elsewhere = pod("elsewhere", "Never", "echo -n done > /var/why");
    cluster.apply(&(elsewhere + "    terminationMessagePath: var/why\n"));
    let logged = pod("logged", "Never", "echo so; exit 1");
    cluster.apply(&(logged + "    terminationMessagePolicy: FallbackToLogsOnError\n"));
    for (name, message) in [("usual", "because"), ("elsewhere", "done"), ("logged", "so\n")] {
        let ended = cluster.wait("its end", &["pod", name], |pod| {
            matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
        });
        let end = &ended["status"]["containerStatuses"][0]["state"]["terminated"];
        assert_eq!(end["message"], message, "{name}");
    }
}

#[test]
fn a_pod_that_fits_nowhere_is_unschedulable() {
    let cluster = Cluster::start();
    let manifest = pod("big", "Never", "true") + "    resources:\n      requests:\n        cpu: \"1000\"\n";
    cluster.apply(&manifest);
    let big = cluster.wait("PodScheduled=False", &["pod", "big"], |pod| {
        condition(pod, "PodScheduled")["reason"] == "Unschedulable"
    });
    let message = condition(&big, "PodScheduled")["message"].as_str().unwrap();
    assert!(message.starts_with("0/1 nodes are available: 1 Insufficient cpu."), "{message}");
    assert_eq!(big["status"]["phase"], "Pending");
    cluster.wait("FailedScheduling", &["events"], |event| {
        event["reason"] == "FailedScheduling" && event["message"] == message
    });
}

#[test]
fn deletion_waits_for_the_process_and_no_longer_than_its_grace() {
    let cluster = Cluster::start();
    cluster.apply(&pod("stubborn", "Always", "trap '' TERM; while true; do sleep 1; done"));
    cluster.wait("Running", &["pod", "stubborn"], |pod| pod["status"]["phase"] == "Running");
    cluster.kubectl(&["delete", "pod", "stubborn", "--wait=false"]);
    let mut watch = cluster.watch(&["pod", "stubborn"]);
    let ended = watch
        .until("its end", |_, pod| pod["status"]["containerStatuses"][0]["state"]["terminated"].is_object());
    assert_eq!(ended["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 137);
    watch.until("its deletion", |kind, _| kind == "DELETED");

    cluster.apply(&pod("forced", "Always", "trap '' TERM; while true; do sleep 1; done"));
    cluster.wait("Running", &["pod", "forced"], |pod| pod["status"]["phase"] == "Running");
    cluster.kubectl(&["delete", "pod", "forced", "--grace-period=0", "--force"]);
    let gone = cluster.kubectl_fails(&["get", "pod", "forced"], "");
    assert!(gone.contains("pods \"forced\" not found"), "{gone}");
}
