//! Jobs against the real API server: counted once each, whatever dies when.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::Cluster;
use coracle_client::{ObjectKey, Propagation, request};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

const SETTLED: Duration = Duration::from_secs(60);

fn job(image: &str, spec: &Value) -> Value {
    let mut job = json!({
        "metadata": {"namespace": "default", "name": "j"},
        "spec": {"template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "c", "image": image}],
        }}},
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        job["spec"][field] = value.clone();
    }
    job
}

fn key() -> ObjectKey {
    ObjectKey::namespaced("default", "j")
}

async fn status(cluster: &Cluster) -> Value {
    let job: Job = cluster.get(&key()).await.unwrap();
    serde_json::to_value(job.status).unwrap()
}

fn last_condition(status: &Value) -> (&str, &str) {
    let condition = status["conditions"].as_array().and_then(|list| list.last());
    let text = |field: &str| condition.and_then(|it| it[field].as_str()).unwrap_or_default();
    (text("type"), text("reason"))
}

async fn pods(cluster: &Cluster) -> Vec<Pod> {
    request::list::<Pod>(&cluster.admin, Some("default")).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_job_completes_and_tells_so() {
    let cluster = Cluster::start().await;
    cluster.run_nodes();
    cluster.create::<Job>(job("exit-0", &json!({"completions": 4, "parallelism": 2}))).await;
    cluster.clock.sleep(SETTLED).await;
    let now = status(&cluster).await;
    assert_eq!(last_condition(&now), ("Complete", "CompletionsReached"));
    assert_eq!((&now["succeeded"], &now["ready"], &now["terminating"]), (&json!(4), &json!(0), &json!(0)));
    assert_eq!((now.get("active"), now.get("failed")), (None, None));
    let pods = pods(&cluster).await;
    assert_eq!(pods.len(), 4);
    assert!(pods.iter().all(|pod| pod.metadata.finalizers.is_none()));
    let reasons: Vec<String> = cluster.events("j").await.into_iter().map(|(reason, _)| reason).collect();
    assert_eq!(reasons.iter().filter(|reason| *reason == "SuccessfulCreate").count(), 4, "{reasons:?}");
    assert!(reasons.contains(&"Completed".to_owned()), "{reasons:?}");
}

#[tokio::test(start_paused = true)]
async fn failures_are_tried_again_after_ever_longer_waits() {
    let cluster = Cluster::start().await;
    cluster.run_nodes();
    let began = cluster.clock.now();
    cluster.create::<Job>(job("exit-1", &json!({"backoffLimit": 3}))).await;
    cluster.clock.sleep(Duration::from_secs(200)).await;
    let now = status(&cluster).await;
    assert_eq!(last_condition(&now), ("Failed", "BackoffLimitExceeded"));
    assert_eq!(now["failed"], 4);
    let mut births: Vec<i64> = pods(&cluster)
        .await
        .iter()
        .map(|pod| pod.metadata.creation_timestamp.as_ref().unwrap().0.as_second() - began.as_second())
        .collect();
    births.sort_unstable();
    // Each takes two seconds to start and end; the waits are 10, 20 and 40 seconds from there.
    assert_eq!(births, [0, 12, 34, 76]);
}

#[tokio::test(start_paused = true)]
async fn indexes_deadlines_and_times_to_live_hold() {
    let cluster = Cluster::start().await;
    cluster.run_nodes();
    let indexed = json!({
        "completionMode": "Indexed", "completions": 6, "parallelism": 3, "backoffLimitPerIndex": 0,
        "ttlSecondsAfterFinished": 100,
    });
    cluster.create::<Job>(job("odd-fails", &indexed)).await;
    cluster.clock.sleep(SETTLED).await;
    let now = status(&cluster).await;
    assert_eq!((&now["completedIndexes"], &now["failedIndexes"]), (&json!("0,2,4"), &json!("1,3,5")));
    assert_eq!(last_condition(&now), ("Failed", "FailedIndexes"));
    cluster.clock.sleep(Duration::from_secs(110)).await;
    assert!(cluster.get::<Job>(&key()).await.is_none(), "its time is over");
    cluster.clock.sleep(SETTLED).await;
    assert!(pods(&cluster).await.is_empty());

    cluster.create::<Job>(job("run", &json!({"activeDeadlineSeconds": 30}))).await;
    cluster.clock.sleep(Duration::from_secs(20)).await;
    assert_eq!(status(&cluster).await["ready"], 1);
    cluster.clock.sleep(Duration::from_secs(20)).await;
    assert_eq!(last_condition(&status(&cluster).await), ("Failed", "DeadlineExceeded"));
    assert!(pods(&cluster).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_suspended_job_waits_and_a_deleted_one_lets_its_pods_go() {
    let cluster = Cluster::start().await;
    cluster.run_nodes();
    cluster.create::<Job>(job("run", &json!({"suspend": true, "parallelism": 2, "completions": 2}))).await;
    cluster.clock.sleep(SETTLED).await;
    assert!(pods(&cluster).await.is_empty());
    cluster.merge::<Job>(&key(), json!({"spec": {"suspend": false}})).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(status(&cluster).await["ready"], 2);
    cluster.delete_as::<Job>(&key(), Propagation::Background).await;
    cluster.clock.sleep(SETTLED).await;
    assert!(pods(&cluster).await.is_empty(), "no finalizer keeps them");
}

#[tokio::test(start_paused = true)]
async fn death_after_any_write_counts_nothing_twice() {
    for writes in 1.. {
        let mut cluster = Cluster::without_controllers().await;
        cluster.run_nodes();
        drop(cluster.run_controllers(u64::MAX));
        cluster.clock.sleep(SETTLED).await;
        cluster.stop_controllers();
        cluster.create::<Job>(job("exit-0", &json!({"completions": 3, "parallelism": 2}))).await;
        let died = cluster.survive(writes, SETTLED).await;
        let now = status(&cluster).await;
        assert_eq!(last_condition(&now), ("Complete", "CompletionsReached"), "after {writes} writes");
        assert_eq!(now["succeeded"], 3, "after {writes} writes");
        let pods = pods(&cluster).await;
        assert_eq!(pods.len(), 3, "after {writes} writes");
        assert!(pods.iter().all(|pod| pod.metadata.finalizers.is_none()), "after {writes} writes");
        if !died {
            assert!(writes > 10, "only {writes}");
            break;
        }
    }
}
