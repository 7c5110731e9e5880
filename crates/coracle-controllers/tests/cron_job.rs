//! CronJobs against the real API server: one Job for each time, however often the controllers die.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::Cluster;
use coracle_client::{ObjectKey, request};
use coracle_clock::Rng;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use serde_json::{Value, json};

fn cron_job(image: &str, spec: &Value) -> Value {
    let mut cron_job = json!({
        "metadata": {"namespace": "default", "name": "c"},
        "spec": {"schedule": "*/10 * * * *", "jobTemplate": {"spec": {"template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "c", "image": image}],
        }}}}},
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        cron_job["spec"][field] = value.clone();
    }
    cron_job
}

fn key() -> ObjectKey {
    ObjectKey::namespaced("default", "c")
}

async fn jobs(cluster: &Cluster) -> Vec<String> {
    let jobs = request::list::<Job>(&cluster.admin, Some("default")).await.unwrap();
    let mut names: Vec<String> = jobs.into_iter().map(|job| job.metadata.name.unwrap()).collect();
    names.sort();
    names
}

async fn status(cluster: &Cluster) -> Value {
    let cron_job: CronJob = cluster.get(&key()).await.unwrap();
    serde_json::to_value(cron_job.status).unwrap()
}

/// The name of the Job of the n-th ten minutes of the year.
fn name(tens: u32) -> String {
    format!("c-{}", 31_557_600 + tens * 10)
}

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

#[tokio::test(start_paused = true)]
async fn jobs_start_at_their_times_and_old_ones_are_forgotten() {
    let cluster = Cluster::start().await;
    cluster.run_nodes();
    cluster.create::<CronJob>(cron_job("exit-0", &json!({"successfulJobsHistoryLimit": 2}))).await;
    cluster.clock.sleep(minutes(9)).await;
    assert!(jobs(&cluster).await.is_empty());
    cluster.clock.sleep(minutes(2)).await;
    assert_eq!(jobs(&cluster).await, [name(1)]);
    let now = status(&cluster).await;
    assert_eq!(now["lastScheduleTime"], "2030-01-01T00:10:00Z");
    assert_eq!((now.get("active"), &now["lastSuccessfulTime"]), (None, &json!("2030-01-01T00:10:02Z")));
    cluster.clock.sleep(minutes(30)).await;
    assert_eq!(jobs(&cluster).await, [name(3), name(4)]);
    let events = cluster.events("c").await;
    for (reason, message) in [
        ("SuccessfulCreate", format!("Created job {}", name(1))),
        ("SawCompletedJob", format!("Saw completed job: {}, condition: Complete", name(1))),
        ("SuccessfulDelete", format!("Deleted job {}", name(1))),
    ] {
        assert!(events.contains(&(reason.to_owned(), message)), "{reason}: {events:?}");
    }
    cluster.merge::<CronJob>(&key(), json!({"spec": {"suspend": true}})).await;
    cluster.clock.sleep(minutes(60)).await;
    assert_eq!(jobs(&cluster).await, [name(3), name(4)]);
}

#[tokio::test(start_paused = true)]
async fn jobs_that_still_run_are_kept_replaced_or_joined() {
    for (policy, expected) in
        [("Forbid", vec![name(1)]), ("Replace", vec![name(3)]), ("Allow", vec![name(1), name(2), name(3)])]
    {
        let cluster = Cluster::start().await;
        cluster.run_nodes();
        cluster.create::<CronJob>(cron_job("run", &json!({"concurrencyPolicy": policy}))).await;
        cluster.clock.sleep(minutes(31)).await;
        assert_eq!(jobs(&cluster).await, expected, "{policy}");
        let now = status(&cluster).await;
        assert_eq!(now["active"].as_array().unwrap().len(), expected.len(), "{policy}");
        let told = cluster.events("c").await.iter().any(|(reason, _)| reason == "JobAlreadyActive");
        assert_eq!(told, policy == "Forbid");
    }
}

#[tokio::test(start_paused = true)]
async fn death_after_any_write_starts_nothing_twice() {
    for writes in 1.. {
        let mut cluster = Cluster::without_controllers().await;
        cluster.run_nodes();
        drop(cluster.run_controllers(u64::MAX));
        cluster.clock.sleep(minutes(9)).await;
        cluster.stop_controllers();
        cluster.create::<CronJob>(cron_job("run", &json!({"schedule": "10 * * * *"}))).await;
        let died = cluster.survive(writes, minutes(3)).await;
        assert_eq!(jobs(&cluster).await, [name(1)], "after {writes} writes");
        let now = status(&cluster).await;
        assert_eq!(now["active"].as_array().map(Vec::len), Some(1), "after {writes} writes");
        assert_eq!(now["lastScheduleTime"], "2030-01-01T00:10:00Z", "after {writes} writes");
        if !died {
            assert!(writes > 4, "only {writes}");
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_of_many_wishes_counts() {
    let cluster = Cluster::start().await;
    cluster.run_nodes();
    let mut rng = Rng::seeded(13);
    cluster.create::<CronJob>(cron_job("exit-0", &json!({}))).await;
    for _ in 0..30 {
        let policy = ["Allow", "Forbid", "Replace"][usize::try_from(rng.below(3)).unwrap()];
        let wish = json!({"spec": {
            "schedule": format!("*/{} * * * *", 1 + rng.below(20)), "suspend": rng.below(3) == 0,
            "concurrencyPolicy": policy, "startingDeadlineSeconds": 10 + rng.below(100),
        }});
        cluster.merge::<CronJob>(&key(), wish).await;
        cluster.clock.sleep(Duration::from_secs(rng.below(400))).await;
    }
    let last = json!({"spec": {"schedule": "0 * * * *", "suspend": false, "startingDeadlineSeconds": null}});
    cluster.merge::<CronJob>(&key(), last).await;
    cluster.clock.sleep(minutes(125)).await;
    let now = status(&cluster).await;
    assert!(now["lastScheduleTime"].as_str().unwrap().ends_with(":00:00Z"), "{now}");
    assert_eq!(jobs(&cluster).await.len(), 3, "as many as are remembered");
}
