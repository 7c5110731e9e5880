//! Deployments against the real API server, with the controllers that carry them: rollouts, rollbacks, death between
//! any two writes, and wishes that change faster than they can be fulfilled.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::Cluster;
use coracle_client::{ObjectKey, Propagation, request};
use coracle_clock::Rng;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

const SETTLED: Duration = Duration::from_secs(60);
/// Enough for two Pods.
const QUICK: Duration = Duration::from_secs(20);

fn deployment(image: &str, replicas: u32) -> Value {
    json!({
        "metadata": {"namespace": "default", "name": "d"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "d"}}, "template": template(image, "1")},
    })
}

fn template(image: &str, version: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": "d"}, "annotations": {"version": version}},
        "spec": {"containers": [{"name": "c", "image": image}]},
    })
}

fn key() -> ObjectKey {
    ObjectKey::namespaced("default", "d")
}

async fn status(cluster: &Cluster) -> Value {
    let deployment: Deployment = cluster.get(&key()).await.unwrap();
    serde_json::to_value(deployment.status).unwrap()
}

/// Each ReplicaSet as `version=replicas@revision`, by version.
async fn sets(cluster: &Cluster) -> Vec<String> {
    let sets = request::list::<ReplicaSet>(&cluster.admin, Some("default")).await.unwrap();
    let mut shown: Vec<String> = sets
        .iter()
        .map(|set| {
            let template = set.spec.template.as_ref().unwrap().metadata.as_ref().unwrap();
            let version = &template.annotations.as_ref().unwrap()["version"];
            let revision = &set.metadata.annotations.as_ref().unwrap()["deployment.kubernetes.io/revision"];
            format!("{version}={}@{revision}", set.spec.replicas.unwrap())
        })
        .collect();
    shown.sort();
    shown
}

async fn pods(cluster: &Cluster) -> Vec<Pod> {
    request::list::<Pod>(&cluster.admin, Some("default")).await.unwrap()
}

fn arrived(status: &Value, replicas: u32) -> bool {
    let all = ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"];
    let condition = |kind: &str| {
        let conditions = status["conditions"].as_array().unwrap();
        conditions.iter().find(|condition| condition["type"] == kind).unwrap()["reason"].clone()
    };
    all.iter().all(|field| status[field] == replicas)
        && condition("Progressing") == "NewReplicaSetAvailable"
        && condition("Available") == "MinimumReplicasAvailable"
}

#[tokio::test(start_paused = true)]
async fn a_deployment_rolls_out_back_and_away() {
    let cluster = Cluster::start().await;
    cluster.run_nodes();
    cluster.create::<Deployment>(deployment("run", 3)).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(sets(&cluster).await, ["1=3@1"]);
    let now = status(&cluster).await;
    assert!(arrived(&now, 3), "{now:#}");
    assert_eq!(now["observedGeneration"], 1);
    let deployment: Deployment = cluster.get(&key()).await.unwrap();
    assert_eq!(deployment.metadata.annotations.unwrap()["deployment.kubernetes.io/revision"], "1");
    let events = cluster.events("d").await;
    let (reason, message) = &events[0];
    assert_eq!(reason, "ScalingReplicaSet");
    assert!(
        message.starts_with("Scaled up replica set d-") && message.ends_with(" from 0 to 3"),
        "{message}"
    );

    cluster.merge::<Deployment>(&key(), json!({"spec": {"template": template("run", "2")}})).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(sets(&cluster).await, ["1=0@1", "2=3@2"]);
    assert!(arrived(&status(&cluster).await, 3));
    cluster
        .merge::<Deployment>(&key(), json!({"spec": {"template": template("run", "1"), "replicas": 2}}))
        .await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(sets(&cluster).await, ["1=2@3", "2=0@2"]);
    assert!(arrived(&status(&cluster).await, 2));

    cluster.merge::<Deployment>(&key(), json!({"spec": {"template": template("stuck", "4")}})).await;
    cluster.clock.sleep(Duration::from_secs(620)).await;
    let now = status(&cluster).await;
    let progressing = now["conditions"].as_array().unwrap().iter().find(|it| it["type"] == "Progressing");
    assert_eq!(progressing.unwrap()["reason"], "ProgressDeadlineExceeded");
    assert_eq!(now["availableReplicas"], 2, "the old ones stay");

    cluster.delete_as::<Deployment>(&key(), Propagation::Foreground).await;
    cluster.clock.sleep(SETTLED).await;
    assert!(cluster.get::<Deployment>(&key()).await.is_none());
    assert!(pods(&cluster).await.is_empty() && sets(&cluster).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn recreation_never_mixes_versions() {
    let cluster = Cluster::start().await;
    cluster.run_nodes();
    let mut wanted = deployment("run", 3);
    wanted["spec"]["strategy"] = json!({"type": "Recreate"});
    cluster.create::<Deployment>(wanted).await;
    cluster.clock.sleep(SETTLED).await;
    cluster.merge::<Deployment>(&key(), json!({"spec": {"template": template("run", "2")}})).await;
    for _ in 0..100 {
        cluster.clock.sleep(Duration::from_millis(100)).await;
        let mut versions: Vec<String> = pods(&cluster)
            .await
            .iter()
            .map(|pod| pod.metadata.annotations.as_ref().unwrap()["version"].clone())
            .collect();
        versions.dedup();
        assert!(versions.len() <= 1, "{versions:?}");
    }
    assert_eq!(sets(&cluster).await, ["1=0@1", "2=3@2"]);
}

#[tokio::test(start_paused = true)]
async fn death_after_any_write_ends_in_the_same_state() {
    for writes in 1.. {
        let mut cluster = Cluster::without_controllers().await;
        cluster.run_nodes();
        drop(cluster.run_controllers(u64::MAX));
        cluster.create::<Deployment>(deployment("run", 1)).await;
        cluster.clock.sleep(QUICK).await;
        cluster.stop_controllers();
        cluster
            .merge::<Deployment>(&key(), json!({"spec": {"template": template("run", "2"), "replicas": 1}}))
            .await;
        let died = cluster.survive(writes, QUICK).await;
        assert_eq!(sets(&cluster).await, ["1=0@1", "2=1@2"], "after {writes} writes");
        let now = status(&cluster).await;
        assert!(arrived(&now, 1), "after {writes} writes: {now:#}");
        assert_eq!(pods(&cluster).await.len(), 1, "after {writes} writes");
        if !died {
            assert!(writes > 8, "only {writes}");
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_of_many_wishes_counts() {
    let cluster = Cluster::start().await;
    cluster.run_nodes();
    let mut rng = Rng::seeded(12);
    cluster.create::<Deployment>(deployment("run", 1)).await;
    for _ in 0..40 {
        let image = if rng.below(4) == 0 { "stuck" } else { "run" };
        let strategy = match rng.below(3) {
            0 => json!({"type": "Recreate", "rollingUpdate": null}),
            1 => json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}),
            _ => json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "50%", "maxUnavailable": 0}}),
        };
        let wish = json!({"spec": {
            "replicas": rng.below(6), "template": template(image, &rng.below(5).to_string()),
            "paused": rng.below(4) == 0, "minReadySeconds": rng.below(3), "strategy": strategy,
            "revisionHistoryLimit": rng.below(3),
        }});
        cluster.merge::<Deployment>(&key(), wish).await;
        cluster.clock.sleep(Duration::from_millis(rng.below(5000))).await;
    }
    let last = json!({"spec": {
        "replicas": 4, "template": template("run", "last"), "paused": false, "revisionHistoryLimit": 0,
    }});
    cluster.merge::<Deployment>(&key(), last).await;
    cluster.clock.sleep(2 * SETTLED).await;
    let now = status(&cluster).await;
    assert!(arrived(&now, 4), "{now:#}");
    let sets = sets(&cluster).await;
    assert!(sets.len() == 1 && sets[0].starts_with("last=4@"), "{sets:?}");
    assert_eq!(pods(&cluster).await.len(), 4);
}
