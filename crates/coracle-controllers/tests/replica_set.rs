//! ReplicaSets: as many Pods as are asked for, whatever happens to whom and when.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::Cluster;
use coracle_client::{Informer, ObjectKey, Propagation, request};
use coracle_clock::Rng;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

const SETTLED: Duration = Duration::from_secs(30);

fn replica_set(name: &str, replicas: u32) -> Value {
    json!({
        "metadata": {"namespace": "default", "name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": "run"}]},
        }},
    })
}

fn at(name: &str) -> ObjectKey {
    ObjectKey::namespaced("default", name)
}

async fn pods(cluster: &Cluster) -> Vec<Pod> {
    request::list::<Pod>(&cluster.admin, Some("default")).await.unwrap()
}

async fn status(cluster: &Cluster, name: &str) -> Value {
    let set: ReplicaSet = cluster.get(&at(name)).await.unwrap();
    serde_json::to_value(set.status).unwrap()
}

/// The most Pods that were ever there and not on their way out, as a reader of the API sees them.
fn most_ever(pods: Informer<Pod>) -> Arc<AtomicUsize> {
    let most = Arc::new(AtomicUsize::new(0));
    let (seen, mut changes) = (most.clone(), pods.subscribe());
    tokio::spawn(async move {
        while changes.changed().await.is_some() {
            let active = pods.list().iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).count();
            seen.fetch_max(active, Ordering::SeqCst);
        }
    });
    most
}

#[tokio::test(start_paused = true)]
async fn pods_are_made_replaced_scaled_adopted_and_released() {
    let cluster = Cluster::start().await;
    cluster.run_nodes();
    let most = most_ever(cluster.inputs.pods.clone());
    cluster.create::<ReplicaSet>(replica_set("r", 3)).await;
    cluster.clock.sleep(SETTLED).await;
    let made = pods(&cluster).await;
    assert_eq!(made.len(), 3);
    for pod in &made {
        let meta = &pod.metadata;
        assert_eq!(meta.generate_name.as_deref(), Some("r-"));
        assert_eq!(meta.name.as_deref().map(str::len), Some(7));
        let owner = &meta.owner_references.as_ref().unwrap()[0];
        assert_eq!(
            (owner.kind.as_str(), owner.controller, owner.block_owner_deletion),
            ("ReplicaSet", Some(true), Some(true))
        );
    }
    let counted = json!({
        "replicas": 3, "fullyLabeledReplicas": 3, "readyReplicas": 3, "availableReplicas": 3,
        "terminatingReplicas": 0, "observedGeneration": 1,
    });
    assert_eq!(status(&cluster, "r").await, counted);
    let events = cluster.events("r").await;
    let created = format!("Created pod: {}", made[0].metadata.name.as_deref().unwrap());
    assert!(events.contains(&("SuccessfulCreate".to_owned(), created)), "{events:?}");

    // One goes: another comes. One is relabelled: it is let go, and another comes.
    cluster.delete::<Pod>(&at(made[0].metadata.name.as_deref().unwrap()), None).await;
    let stray = at(made[1].metadata.name.as_deref().unwrap());
    cluster.merge::<Pod>(&stray, json!({"metadata": {"labels": {"app": "other"}}})).await;
    cluster.clock.sleep(SETTLED).await;
    let all = pods(&cluster).await;
    assert_eq!(all.len(), 4);
    let released: Pod = cluster.get(&stray).await.unwrap();
    assert_eq!(released.metadata.owner_references.unwrap_or_default(), []);
    // It comes back, and is one too many.
    cluster.merge::<Pod>(&stray, json!({"metadata": {"labels": {"app": "r"}}})).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(pods(&cluster).await.len(), 3);
    assert_eq!(most.load(Ordering::SeqCst), 4, "three, and the one that was relabelled");

    cluster.merge::<ReplicaSet>(&at("r"), json!({"spec": {"replicas": 1}})).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(pods(&cluster).await.len(), 1);
    let events = cluster.events("r").await;
    assert!(events.iter().any(|(reason, _)| reason == "SuccessfulDelete"), "{events:?}");
    cluster.delete_as::<ReplicaSet>(&at("r"), Propagation::Background).await;
    cluster.clock.sleep(SETTLED).await;
    assert!(pods(&cluster).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn readiness_has_to_last() {
    let cluster = Cluster::start().await;
    cluster.run_nodes();
    let mut set = replica_set("r", 2);
    set["spec"]["minReadySeconds"] = 20.into();
    cluster.create::<ReplicaSet>(set).await;
    cluster.clock.sleep(Duration::from_secs(15)).await;
    assert_eq!(status(&cluster, "r").await.get("availableReplicas"), None);
    cluster.clock.sleep(Duration::from_secs(10)).await;
    assert_eq!(status(&cluster, "r").await["availableReplicas"], 2);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_made_is_told() {
    let cluster = Cluster::start().await;
    let mut set = replica_set("r", 2);
    // Judged when a Pod is made: a finalizer that a template may name and an object may not have.
    set["spec"]["template"]["metadata"]["finalizers"] = json!(["no such finalizer"]);
    cluster.create::<ReplicaSet>(set).await;
    cluster.clock.sleep(SETTLED).await;
    let status = status(&cluster, "r").await;
    let condition = &status["conditions"][0];
    assert_eq!(
        (&condition["type"], &condition["reason"]),
        (&json!("ReplicaFailure"), &json!("FailedCreate"))
    );
    let (reason, message) = cluster.events("r").await.remove(0);
    assert_eq!(reason, "FailedCreate");
    assert!(message.starts_with("Error creating: Pod \"r-"), "{message}");
    assert_eq!(status["replicas"], 0);
}

#[tokio::test(start_paused = true)]
async fn death_after_any_write_leaves_as_many_as_asked_for() {
    for writes in 1.. {
        let mut cluster = Cluster::without_controllers().await;
        cluster.run_nodes();
        // What every namespace gets is not what this is about.
        drop(cluster.run_controllers(u64::MAX));
        cluster.clock.sleep(SETTLED).await;
        cluster.stop_controllers();
        let most = most_ever(cluster.inputs.pods.clone());
        cluster.create::<ReplicaSet>(replica_set("r", 5)).await;
        let died = cluster.survive(writes, SETTLED).await;
        assert_eq!(most.load(Ordering::SeqCst), 5, "after {writes} writes");
        assert_eq!(status(&cluster, "r").await["availableReplicas"], 5, "after {writes} writes");
        if !died {
            assert!(writes > 6, "five Pods and a status are written: {writes}");
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_view_of_pods_makes_nothing_twice() {
    let mut cluster = Cluster::without_controllers().await;
    cluster.run_nodes();
    cluster.late = Duration::from_millis(300);
    drop(cluster.run_controllers(u64::MAX));
    cluster.clock.sleep(SETTLED).await;
    let most = most_ever(cluster.inputs.pods.clone());
    cluster.create::<ReplicaSet>(replica_set("r", 3)).await;
    // Each change has it looked at again, while its Pods have not been heard of.
    for change in 0..40 {
        let label = json!({"metadata": {"labels": {"change": change.to_string()}}});
        cluster.merge::<ReplicaSet>(&at("r"), label).await;
        cluster.clock.sleep(Duration::from_millis(20)).await;
    }
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(most.load(Ordering::SeqCst), 3);
    assert_eq!(status(&cluster, "r").await["availableReplicas"], 3);
}

#[tokio::test(start_paused = true)]
async fn the_last_of_many_wishes_counts() {
    let cluster = Cluster::start().await;
    cluster.run_nodes();
    let mut rng = Rng::seeded(11);
    cluster.create::<ReplicaSet>(replica_set("r", 1)).await;
    let mut last = 1;
    for _ in 0..60 {
        last = rng.below(7);
        cluster.merge::<ReplicaSet>(&at("r"), json!({"spec": {"replicas": last}})).await;
        cluster.clock.sleep(Duration::from_millis(rng.below(1500))).await;
    }
    cluster.clock.sleep(SETTLED).await;
    let alive = pods(&cluster).await.len();
    assert_eq!(alive as u64, last);
    assert_eq!(status(&cluster, "r").await["replicas"], last);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_deleted_is_told() {
    let cluster = Cluster::start().await;
    cluster.run_nodes();
    cluster.create::<ReplicaSet>(replica_set("r", 2)).await;
    cluster.clock.sleep(SETTLED).await;
    cluster.pods_stay.store(true, Ordering::SeqCst);
    cluster.merge::<ReplicaSet>(&at("r"), json!({"spec": {"replicas": 1}})).await;
    cluster.clock.sleep(SETTLED).await;
    let told = ("FailedDelete".to_owned(), "Error deleting: pods are kept".to_owned());
    let events = cluster.events("r").await;
    assert!(events.contains(&told), "{events:?}");
    let failed = status(&cluster, "r").await;
    let condition = &failed["conditions"][0];
    assert_eq!(
        (&condition["type"], &condition["reason"]),
        (&json!("ReplicaFailure"), &json!("FailedDelete"))
    );
    assert_eq!(pods(&cluster).await.len(), 2);
    cluster.pods_stay.store(false, Ordering::SeqCst);
    cluster.clock.sleep(2 * SETTLED).await;
    assert_eq!(pods(&cluster).await.len(), 1);
    assert_eq!(status(&cluster, "r").await.get("conditions"), None);
}
