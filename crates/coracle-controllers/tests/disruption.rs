//! Budgets: what may be evicted follows what runs, on virtual time.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::Cluster;
use coracle_client::{ErrorExt as _, ObjectKey, request};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Error;
use serde_json::{Value, json};

const SETTLED: Duration = Duration::from_secs(30);

fn at(name: &str) -> ObjectKey {
    ObjectKey::namespaced("default", name)
}

fn deployment(name: &str, replicas: u32) -> Value {
    json!({
        "metadata": {"namespace": "default", "name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": "run"}]},
        }},
    })
}

fn budget(name: &str, app: &str, spec: Value) -> Value {
    let mut budget = json!({"metadata": {"namespace": "default", "name": name}, "spec": spec});
    budget["spec"]["selector"] = json!({"matchLabels": {"app": app}});
    budget
}

/// Allowed, current, desired, expected.
async fn counts(cluster: &Cluster, name: &str) -> [i32; 4] {
    let budget: PodDisruptionBudget = cluster.get(&at(name)).await.unwrap();
    let status = budget.status.unwrap();
    [status.disruptions_allowed, status.current_healthy, status.desired_healthy, status.expected_pods]
        .map(|count| count.unwrap_or(-1))
}

async fn evict(cluster: &Cluster, pod: &str) -> Result<Value, Error> {
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"namespace": "default", "name": pod},
    });
    request::create_subresource::<Pod, Value>(&cluster.admin, &at(pod), "eviction", &eviction).await
}

async fn names(cluster: &Cluster) -> Vec<String> {
    let pods = request::list::<Pod>(&cluster.admin, Some("default")).await.unwrap();
    pods.into_iter().map(|pod| pod.metadata.name.unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn one_after_the_other_goes_and_comes_back_and_never_more_than_allowed() {
    let cluster = Cluster::start().await;
    cluster.run_nodes();
    cluster.create::<PodDisruptionBudget>(budget("b", "d", json!({"maxUnavailable": 1}))).await;
    cluster.create::<Deployment>(deployment("d", 3)).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(counts(&cluster, "b").await, [1, 3, 2, 3]);

    for pod in names(&cluster).await {
        // Who drains a node asks until it is granted.
        let mut refused = 0;
        while let Err(error) = evict(&cluster, &pod).await {
            assert_eq!(error.code(), Some(429), "{error}");
            refused += 1;
            assert!(refused < 60, "{pod} is never let go");
            cluster.clock.sleep(Duration::from_secs(1)).await;
        }
        let ready = request::list::<Pod>(&cluster.admin, Some("default")).await.unwrap();
        let ready = ready.iter().filter(|pod| {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.clone());
            let ready = conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
            ready && pod.metadata.deletion_timestamp.is_none()
        });
        assert!(ready.count() >= 2, "a budget holds at every moment");
    }
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(counts(&cluster, "b").await, [1, 3, 2, 3]);
    let status = cluster.get::<PodDisruptionBudget>(&at("b")).await.unwrap().status.unwrap();
    assert_eq!(status.disrupted_pods, None);
    let events = cluster.events("b").await;
    assert_eq!(events[0], ("NoPods".to_owned(), "No matching pods found".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_changes_and_the_status_follows() {
    let cluster = Cluster::start().await;
    cluster.run_nodes();
    cluster.create::<Deployment>(deployment("d", 4)).await;
    cluster.create::<PodDisruptionBudget>(budget("b", "d", json!({"minAvailable": "50%"}))).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(counts(&cluster, "b").await, [2, 4, 2, 4]);
    cluster.merge::<PodDisruptionBudget>(&at("b"), json!({"spec": {"minAvailable": 4}})).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(counts(&cluster, "b").await, [0, 4, 4, 4]);
    let pod = names(&cluster).await.remove(0);
    let refused = evict(&cluster, &pod).await.unwrap_err();
    assert_eq!(refused.code(), Some(429));
    cluster.merge::<Deployment>(&at("d"), json!({"spec": {"replicas": 6}})).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(counts(&cluster, "b").await, [2, 6, 4, 6]);
    // Pods that are relabelled are no longer the budget's.
    cluster.merge::<PodDisruptionBudget>(&at("b"), json!({"spec": {"minAvailable": 1}})).await;
    cluster.merge::<Pod>(&at(&pod), json!({"metadata": {"labels": {"app": "other"}}})).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(counts(&cluster, "b").await, [5, 6, 1, 6]);
}

#[tokio::test(start_paused = true)]
async fn pods_of_jobs_have_no_share() {
    let cluster = Cluster::start().await;
    cluster.run_nodes();
    let job = json!({
        "metadata": {"namespace": "default", "name": "j"},
        "spec": {"template": {"metadata": {"labels": {"app": "j"}}, "spec": {
            "restartPolicy": "Never", "containers": [{"name": "c", "image": "run"}]}}},
    });
    cluster.create::<k8s_openapi::api::batch::v1::Job>(job).await;
    cluster.create::<PodDisruptionBudget>(budget("b", "j", json!({"maxUnavailable": 1}))).await;
    cluster.clock.sleep(SETTLED).await;
    let status = cluster.get::<PodDisruptionBudget>(&at("b")).await.unwrap().status.unwrap();
    let condition = &status.conditions.unwrap()[0];
    let why = "jobs.batch does not implement the scale subresource";
    assert_eq!((condition.reason.as_str(), condition.message.as_str()), ("SyncFailed", why));
    let events = cluster.events("b").await;
    let told = format!("Failed to calculate the number of expected pods: {why}");
    assert!(events.contains(&("CalculateExpectedPodCountFailed".to_owned(), told)), "{events:?}");
    let refused = evict(&cluster, &names(&cluster).await[0]).await.unwrap_err();
    assert_eq!(refused.code(), Some(429));
}

#[tokio::test(start_paused = true)]
async fn an_eviction_that_nothing_came_of_is_taken_back_after_two_minutes() {
    let cluster = Cluster::start().await;
    cluster.run_nodes();
    cluster.create::<Deployment>(deployment("d", 2)).await;
    cluster.create::<PodDisruptionBudget>(budget("b", "d", json!({"minAvailable": 1}))).await;
    cluster.clock.sleep(SETTLED).await;
    let pod = names(&cluster).await.remove(0);
    // As a server leaves it that dies between the budget and the delete.
    let now = cluster.clock.now().to_string();
    let announced = json!({"status": {"conditions": [
        {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "lastTransitionTime": now},
        {"type": "Ready", "status": "True", "lastTransitionTime": now},
    ]}});
    let taken = json!({"status": {"disruptionsAllowed": 0, "disruptedPods": {pod.as_str(): now}}});
    let merge = request::PatchBody::Merge;
    request::patch_status::<Pod>(&cluster.admin, &at(&pod), &merge(announced)).await.unwrap();
    request::patch_status::<PodDisruptionBudget>(&cluster.admin, &at("b"), &merge(taken)).await.unwrap();
    cluster.clock.sleep(Duration::from_secs(110)).await;
    assert_eq!(counts(&cluster, "b").await, [0, 1, 1, 2]);
    cluster.clock.sleep(Duration::from_secs(15)).await;
    assert_eq!(counts(&cluster, "b").await, [1, 2, 1, 2]);
    let conditions = cluster.get::<Pod>(&at(&pod)).await.unwrap().status.unwrap().conditions.unwrap();
    let said = conditions.iter().find(|condition| condition.type_ == "DisruptionTarget").unwrap();
    assert_eq!(said.status, "False");
    let events = cluster.events(&pod).await;
    let told = "Pod was expected by PDB default/b to be deleted but it wasn't";
    assert!(events.contains(&("NotDeleted".to_owned(), told.to_owned())), "{events:?}");
}
