//! Nodes that go silent, come back, are tainted and are removed, and what becomes of their Pods when.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::Cluster;
use common::node::Agent;
use coracle_client::ObjectKey;
use coracle_client::request::{self, PatchBody};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, Node, Pod, Taint};
use serde_json::{Value, json};

fn at(second: i64) -> Timestamp {
    let start: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
    start.checked_add(jiff::SignedDuration::from_secs(second)).unwrap()
}

fn pod_key(name: &str) -> ObjectKey {
    ObjectKey::namespaced("default", name)
}

/// A Pod that runs on a node, as its agent has said.
async fn run_pod(cluster: &Cluster, name: &str, node: &str, tolerations: Value) {
    let pod = json!({
        "metadata": {"namespace": "default", "name": name},
        "spec": {"containers": [{"name": "c", "image": "busybox"}], "tolerations": tolerations},
    });
    cluster.create::<Pod>(pod).await;
    let binding: Binding = serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": name}, "target": {"kind": "Node", "name": node},
    }))
    .unwrap();
    let key = pod_key(name);
    request::create_subresource::<Pod, Value>(&cluster.admin, &key, "binding", &binding).await.unwrap();
    let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": cluster.clock.now()});
    let patch = PatchBody::Strategic(json!({"status": {"phase": "Running", "conditions": [ready]}}));
    request::patch_status::<Pod>(&cluster.admin, &key, &patch).await.unwrap();
}

async fn pod(cluster: &Cluster, name: &str) -> Pod {
    cluster.get(&pod_key(name)).await.unwrap()
}

/// Status, reason, and since when: in seconds after the start.
fn condition(conditions: &Value, kind: &str) -> (String, String, i64) {
    let condition = conditions.as_array().unwrap().iter().find(|condition| condition["type"] == kind);
    let condition = condition.unwrap_or_else(|| panic!("no {kind} in {conditions}"));
    let since: Timestamp = condition["lastTransitionTime"].as_str().unwrap().parse().unwrap();
    let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"), since.as_second() - at(0).as_second())
}

fn message(conditions: &Value, kind: &str) -> String {
    let found = conditions.as_array().unwrap().iter().find(|condition| condition["type"] == kind);
    found.unwrap()["message"].as_str().unwrap_or_default().to_owned()
}

fn pod_condition(pod: &Pod, kind: &str) -> (String, String, i64) {
    condition(&json!(pod.status.as_ref().unwrap().conditions), kind)
}

async fn taints(cluster: &Cluster, name: &str) -> Vec<String> {
    let node: Node = cluster.get(&ObjectKey::cluster(name)).await.unwrap();
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let show = |taint: Taint| {
        let key = taint.key.trim_start_matches("node.kubernetes.io/").to_owned();
        let since = taint.time_added.map(|time| time.0.as_second() - at(0).as_second());
        format!("{key}:{}@{}", taint.effect, since.map_or("-".to_owned(), |since| since.to_string()))
    };
    taints.into_iter().map(show).collect()
}

async fn until(cluster: &Cluster, second: u64) {
    let wait =
        Duration::from_secs(second).checked_sub(cluster.clock.elapsed()).expect("it is earlier than that");
    cluster.clock.sleep(wait).await;
}

/// Lets what is due at this moment happen.
async fn a_moment(cluster: &Cluster) {
    cluster.clock.sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_dead_node_leave_five_minutes_after_it_was_found_out() {
    let cluster = Cluster::start().await;
    let _a = Agent::start(&cluster.admin, &cluster.clock, "a").await;
    let b = Agent::start(&cluster.admin, &cluster.clock, "b").await;
    a_moment(&cluster).await;
    assert_eq!(taints(&cluster, "b").await, [] as [&str; 0], "a node that is Ready takes Pods");
    run_pod(&cluster, "p", "b", json!([])).await;
    run_pod(&cluster, "other", "a", json!([])).await;
    run_pod(&cluster, "daemon", "b", json!([{"operator": "Exists"}])).await;
    until(&cluster, 65).await;
    // The last renewal was at 60.
    b.die();
    until(&cluster, 109).await;
    assert_eq!(pod_condition(&pod(&cluster, "p").await, "Ready").0, "True");
    until(&cluster, 111).await;
    let node: Node = cluster.get(&ObjectKey::cluster("b")).await.unwrap();
    let conditions = json!(node.status.unwrap().conditions);
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        let expected = ("Unknown".to_owned(), "NodeStatusUnknown".to_owned(), 110);
        assert_eq!(condition(&conditions, kind), expected, "{kind}");
        assert_eq!(message(&conditions, kind), "Kubelet stopped posting node status.", "{kind}");
    }
    assert_eq!(taints(&cluster, "b").await, ["unreachable:NoSchedule@110", "unreachable:NoExecute@110"]);
    let unready = pod(&cluster, "p").await;
    assert_eq!(pod_condition(&unready, "Ready"), ("False".to_owned(), String::new(), 110));
    assert_eq!(unready.status.unwrap().phase.as_deref(), Some("Running"), "nobody knows better");
    let told = |events: Vec<(String, String)>, reason: &str, message: &str| {
        assert!(events.contains(&(reason.to_owned(), message.to_owned())), "{message} in {events:?}");
    };
    told(cluster.events("p").await, "NodeNotReady", "Node is not ready");
    told(cluster.events("b").await, "NodeNotReady", "Node b status is now: NodeNotReady");
    told(cluster.events("b").await, "RegisteredNode", "Node b event: Registered Node b in Controller");

    until(&cluster, 409).await;
    assert!(pod(&cluster, "p").await.metadata.deletion_timestamp.is_none());
    until(&cluster, 411).await;
    let leaving = pod(&cluster, "p").await;
    assert_eq!(leaving.metadata.deletion_timestamp.clone().unwrap().0, at(410 + 30), "with its own grace");
    let target = ("True".to_owned(), "DeletionByTaintManager".to_owned(), 410);
    assert_eq!(pod_condition(&leaving, "DisruptionTarget"), target);
    let conditions = json!(leaving.status.as_ref().unwrap().conditions);
    assert_eq!(message(&conditions, "DisruptionTarget"), "Taint manager: deleting due to NoExecute taint");
    told(cluster.events("p").await, "TaintManagerEviction", "Marking for deletion Pod default/p");
    // Nobody can confirm its end: it stays.
    until(&cluster, 2000).await;
    assert_eq!(pod(&cluster, "p").await.status.unwrap().phase.as_deref(), Some("Running"));
    for name in ["other", "daemon"] {
        assert!(pod(&cluster, name).await.metadata.deletion_timestamp.is_none(), "{name}");
    }
    assert_eq!(taints(&cluster, "a").await, [] as [&str; 0]);

    // An administrator knows that the machine is off.
    let taint =
        json!([{"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}]);
    let mut all = json!(cluster.get::<Node>(&ObjectKey::cluster("b")).await.unwrap().spec.unwrap().taints);
    all.as_array_mut().unwrap().extend(taint.as_array().unwrap().clone());
    cluster.merge::<Node>(&ObjectKey::cluster("b"), json!({"spec": {"taints": all}})).await;
    a_moment(&cluster).await;
    assert!(cluster.get::<Pod>(&pod_key("p")).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_back_in_time_keeps_its_pods() {
    let cluster = Cluster::start().await;
    let _a = Agent::start(&cluster.admin, &cluster.clock, "a").await;
    let b = Agent::start(&cluster.admin, &cluster.clock, "b").await;
    run_pod(&cluster, "p", "b", json!([])).await;
    until(&cluster, 5).await;
    b.die();
    until(&cluster, 340).await;
    assert_eq!(taints(&cluster, "b").await.len(), 2);
    let _b = Agent::start(&cluster.admin, &cluster.clock, "b").await;
    a_moment(&cluster).await;
    assert_eq!(taints(&cluster, "b").await, [] as [&str; 0]);
    until(&cluster, 1000).await;
    assert!(pod(&cluster, "p").await.metadata.deletion_timestamp.is_none());
    let events = cluster.events("p").await;
    let called_off = ("TaintManagerEviction".to_owned(), "Cancelling deletion of Pod default/p".to_owned());
    assert!(events.contains(&called_off), "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn the_only_node_keeps_its_pods_however_long_it_is_silent() {
    let cluster = Cluster::start().await;
    let a = Agent::start(&cluster.admin, &cluster.clock, "a").await;
    run_pod(&cluster, "p", "a", json!([])).await;
    until(&cluster, 5).await;
    a.die();
    until(&cluster, 3600).await;
    assert_eq!(taints(&cluster, "a").await, ["unreachable:NoSchedule@50"]);
    assert_eq!(pod_condition(&pod(&cluster, "p").await, "Ready").0, "False");
    assert!(pod(&cluster, "p").await.metadata.deletion_timestamp.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_slept_evicts_nobody() {
    let cluster = Cluster::start().await;
    let _a = Agent::start(&cluster.admin, &cluster.clock, "a").await;
    let _b = Agent::start(&cluster.admin, &cluster.clock, "b").await;
    let c = Agent::start(&cluster.admin, &cluster.clock, "c").await;
    run_pod(&cluster, "p", "b", json!([])).await;
    run_pod(&cluster, "lost", "c", json!([])).await;
    c.die();
    until(&cluster, 125).await;
    assert_eq!(taints(&cluster, "c").await.len(), 2);
    // All stand still for an hour: no timer fires, nobody is heard of, and then everything is late at once.
    tokio::time::advance(Duration::from_secs(3600)).await;
    until(&cluster, 3600 + 200).await;
    for name in ["a", "b"] {
        assert_eq!(taints(&cluster, name).await, [] as [&str; 0], "{name}");
        let node: Node = cluster.get(&ObjectKey::cluster(name)).await.unwrap();
        assert_eq!(condition(&json!(node.status.unwrap().conditions), "Ready").0, "True");
    }
    assert!(pod(&cluster, "p").await.metadata.deletion_timestamp.is_none());
    assert!(
        pod(&cluster, "lost").await.metadata.deletion_timestamp.is_none(),
        "an hour that nobody looked in"
    );
    until(&cluster, 3600 + 400).await;
    assert!(pod(&cluster, "lost").await.metadata.deletion_timestamp.is_some());
    assert!(pod(&cluster, "p").await.metadata.deletion_timestamp.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_taint_evicts_by_what_each_pod_tolerates() {
    let cluster = Cluster::start().await;
    let _a = Agent::start(&cluster.admin, &cluster.clock, "a").await;
    let tolerates = |seconds: Option<i64>| {
        let mut toleration = json!({"key": "k", "operator": "Exists", "effect": "NoExecute"});
        if let Some(seconds) = seconds {
            toleration["tolerationSeconds"] = seconds.into();
        }
        json!([toleration])
    };
    run_pod(&cluster, "at-once", "a", json!([])).await;
    run_pod(&cluster, "later", "a", tolerates(Some(60))).await;
    run_pod(&cluster, "called-off", "a", tolerates(Some(90))).await;
    run_pod(&cluster, "never", "a", tolerates(None)).await;
    until(&cluster, 10).await;
    let leaves = async |name: &str| {
        let at = pod(&cluster, name).await.metadata.deletion_timestamp?;
        // Each has 30 seconds of grace.
        Some(at.0.as_second() - self::at(30).as_second())
    };
    let key = ObjectKey::cluster("a");
    let taint = json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoExecute"}]}});
    cluster.merge::<Node>(&key, taint).await;
    until(&cluster, 20).await;
    run_pod(&cluster, "late-comer", "a", tolerates(Some(60))).await;
    until(&cluster, 95).await;
    assert_eq!(leaves("at-once").await, Some(10));
    assert_eq!(leaves("later").await, Some(70));
    assert_eq!(leaves("late-comer").await, Some(80), "its time begins with its own arrival");
    assert_eq!(leaves("called-off").await, None);
    cluster.merge::<Node>(&key, json!({"spec": {"taints": null}})).await;
    until(&cluster, 500).await;
    assert_eq!(leaves("called-off").await, None);
    assert_eq!(leaves("never").await, None);
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_node_that_was_removed_fail_and_go() {
    let cluster = Cluster::start().await;
    let a = Agent::start(&cluster.admin, &cluster.clock, "a").await;
    run_pod(&cluster, "p", "a", json!([])).await;
    let held = json!({"metadata": {"finalizers": ["example.com/hold"]}});
    cluster.merge::<Pod>(&pod_key("p"), held).await;
    until(&cluster, 5).await;
    a.die();
    cluster.delete::<Node>(&ObjectKey::cluster("a"), None).await;
    until(&cluster, 44).await;
    assert_eq!(pod(&cluster, "p").await.status.unwrap().phase.as_deref(), Some("Running"));
    until(&cluster, 46).await;
    let failed = pod(&cluster, "p").await;
    assert_eq!(
        pod_condition(&failed, "DisruptionTarget"),
        ("True".to_owned(), "DeletionByPodGC".to_owned(), 45)
    );
    assert_eq!(failed.status.unwrap().phase.as_deref(), Some("Failed"));
    assert_eq!(failed.metadata.deletion_grace_period_seconds, Some(0));
    let free = json!({"metadata": {"finalizers": null}});
    cluster.merge::<Pod>(&pod_key("p"), free).await;
    assert!(cluster.get::<Pod>(&pod_key("p")).await.is_none());
    let events = cluster.events("a").await;
    let removed = ("RemovingNode".to_owned(), "Node a event: Removing Node a from Controller".to_owned());
    assert!(events.contains(&removed), "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn a_new_node_takes_pods_once_it_is_ready_and_none_while_it_is_cordoned() {
    let cluster = Cluster::start().await;
    let node = json!({
        "metadata": {"name": "a"},
        "status": {"conditions": [{"type": "Ready", "status": "False", "lastHeartbeatTime": at(0)}]},
    });
    cluster.create::<Node>(node).await;
    a_moment(&cluster).await;
    assert_eq!(taints(&cluster, "a").await, ["not-ready:NoSchedule@-"]);
    let _a = Agent::start(&cluster.admin, &cluster.clock, "a").await;
    a_moment(&cluster).await;
    assert_eq!(taints(&cluster, "a").await, [] as [&str; 0]);
    let key = ObjectKey::cluster("a");
    cluster.merge::<Node>(&key, json!({"spec": {"unschedulable": true}})).await;
    a_moment(&cluster).await;
    assert_eq!(taints(&cluster, "a").await, ["unschedulable:NoSchedule@0"]);
    cluster.merge::<Node>(&key, json!({"spec": {"unschedulable": null}})).await;
    a_moment(&cluster).await;
    assert_eq!(taints(&cluster, "a").await, [] as [&str; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_came_and_went_while_nobody_looked_has_no_consequences() {
    let mut cluster = Cluster::without_controllers().await;
    let _a = Agent::start(&cluster.admin, &cluster.clock, "a").await;
    let b = Agent::start(&cluster.admin, &cluster.clock, "b").await;
    let key = ObjectKey::cluster("b");
    // Ready, as a controller of before has left it.
    cluster.merge::<Node>(&key, json!({"spec": {"taints": null}})).await;
    run_pod(&cluster, "p", "b", json!([])).await;
    b.die();
    until(&cluster, 600).await;
    let taint = json!({"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}});
    cluster.merge::<Node>(&key, taint).await;
    cluster.merge::<Node>(&key, json!({"spec": {"taints": null}})).await;
    let _b = Agent::start(&cluster.admin, &cluster.clock, "b").await;
    drop(cluster.run_controllers(u64::MAX));
    until(&cluster, 1200).await;
    assert_eq!(taints(&cluster, "b").await, [] as [&str; 0]);
    let stays = pod(&cluster, "p").await;
    assert_eq!(pod_condition(&stays, "Ready").0, "True");
    assert!(stays.metadata.deletion_timestamp.is_none());
}

#[tokio::test(start_paused = true)]
async fn controllers_that_die_after_any_write_end_where_others_do() {
    for writes in 1.. {
        let mut cluster = Cluster::without_controllers().await;
        cluster.counted = &["/nodes", "/pods"];
        let _a = Agent::start(&cluster.admin, &cluster.clock, "a").await;
        let b = Agent::start(&cluster.admin, &cluster.clock, "b").await;
        let c = Agent::start(&cluster.admin, &cluster.clock, "c").await;
        let soon = json!([{
            "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": 30,
        }]);
        for (name, node) in [("stays", "a"), ("leaves", "b"), ("gone", "c")] {
            run_pod(&cluster, name, node, soon.clone()).await;
        }
        b.die();
        c.die();
        cluster.delete::<Node>(&ObjectKey::cluster("c"), None).await;
        let died = cluster.survive(writes, Duration::from_secs(120)).await;
        let show = |taints: Vec<String>| {
            taints.iter().map(|taint| taint.split('@').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(show(taints(&cluster, "a").await), [] as [&str; 0], "after {writes}");
        let unreachable = ["unreachable:NoSchedule", "unreachable:NoExecute"];
        assert_eq!(show(taints(&cluster, "b").await), unreachable, "after {writes}");
        let leaving = pod(&cluster, "leaves").await;
        assert_eq!(pod_condition(&leaving, "Ready").0, "False");
        assert_eq!(pod_condition(&leaving, "DisruptionTarget").1, "DeletionByTaintManager");
        assert!(leaving.metadata.deletion_timestamp.is_some(), "after {writes}");
        assert!(cluster.get::<Pod>(&pod_key("gone")).await.is_none(), "after {writes}");
        let stays = pod(&cluster, "stays").await;
        assert_eq!(pod_condition(&stays, "Ready").0, "True");
        assert!(stays.metadata.deletion_timestamp.is_none());
        if !died {
            assert!(writes > 5, "only {writes} writes");
            return;
        }
    }
}
