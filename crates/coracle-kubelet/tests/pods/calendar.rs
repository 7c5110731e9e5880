//! The clock of the node is set while Pods start, run and end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use coracle_client::Deletion;
use coracle_cri::CriError;
use coracle_cri::scripted::{ImageScript, OnStop, RunScript};
use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::cluster::{Cluster, exits};
use crate::one;

const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// Waits until a watch shows the Pod so; returns for how long.
async fn until(cluster: &Cluster, name: &str, holds: impl Fn(&str, &Value) -> bool) -> Duration {
    let start = cluster.clock.elapsed();
    while !cluster.last(name).is_some_and(|(kind, pod, _)| holds(&kind, &pod)) {
        assert!(cluster.clock.elapsed() - start < Duration::from_secs(7200), "{:#?}", cluster.steps(name));
        cluster.clock.sleep(Duration::from_millis(100)).await;
    }
    cluster.clock.elapsed() - start
}

fn runs(_: &str, pod: &Value) -> bool {
    pod["status"]["phase"] == "Running"
}

#[tokio::test(start_paused = true)]
async fn a_status_that_could_not_be_written_is_written_soon_though_the_clock_goes_back() {
    let cluster = Cluster::start().await;
    cluster.image("once:1", ImageScript { runs: vec![exits(0, 3)], ..ImageScript::default() });
    let mut spec = one("once:1");
    spec["restartPolicy"] = "Never".into();
    cluster.run("p", spec).await;
    until(&cluster, "p", runs).await;
    cluster.statuses.failing.store(true, Ordering::Relaxed);
    cluster.clock.sleep(Duration::from_secs(5)).await;
    assert!(cluster.statuses.refused.load(Ordering::Relaxed) > 1, "it is tried again and again");
    cluster.clock.jump(-HOUR);
    cluster.statuses.failing.store(false, Ordering::Relaxed);
    let took = until(&cluster, "p", |_, pod| pod["status"]["phase"] == "Succeeded").await;
    assert!(took < Duration::from_secs(11), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_has_its_grace_and_no_more_though_the_clock_is_set() {
    for by in [HOUR, -HOUR] {
        let cluster = Cluster::start().await;
        let ignores = RunScript { on_stop: OnStop::Ignores, ..RunScript::default() };
        cluster.image("stubborn:1", ImageScript { runs: vec![ignores], ..ImageScript::default() });
        let mut spec = one("stubborn:1");
        spec["initContainers"] = json!([
            {"name": "side", "image": "stubborn:1", "restartPolicy": "Always"},
        ]);
        cluster.run("p", spec).await;
        until(&cluster, "p", runs).await;
        let deleted = cluster.clock.elapsed();
        cluster.delete("p", &Deletion { grace_period_seconds: Some(20), ..Deletion::default() }).await;
        cluster.clock.sleep(Duration::from_secs(5)).await;
        cluster.clock.jump(by);
        until(&cluster, "p", |kind, _| kind == "DELETED").await;
        let took = cluster.clock.elapsed() - deleted;
        // The sidecar has what the others leave of the grace, at least 2 s.
        assert!((20..=24).contains(&took.as_secs()), "{by:#}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pull_is_tried_again_when_its_delay_is_over_though_the_clock_goes_back() {
    let cluster = Cluster::start().await;
    let pull_failures = vec![CriError::NotFound("no such image".to_owned())];
    cluster.runtime.script("late:1", ImageScript { pull_failures, ..ImageScript::default() });
    cluster.run("p", one("late:1")).await;
    until(&cluster, "p", |_, pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ImagePullBackOff"
    })
    .await;
    cluster.clock.jump(-HOUR);
    let took = until(&cluster, "p", runs).await;
    assert!(took < Duration::from_secs(12), "{took:?}");
}
