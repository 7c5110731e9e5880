//! Evictions and the budgets that measure them, over the real store.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::{Answer, Client, World, pod};
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";

async fn running(admin: &Client, name: &str, ready: bool) {
    let mut pod = pod(name);
    pod["metadata"]["labels"] = json!({ "app": "a" });
    pod["spec"]["nodeName"] = "n".into();
    assert_eq!(admin.post(PODS, &pod).await.code, 201);
    let ready = if ready { "True" } else { "False" };
    let status =
        json!({ "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": ready }] } });
    assert_eq!(admin.patch(&format!("{PODS}/{name}/status"), "merge", &status).await.code, 200);
}

/// A budget as the controller would leave it.
async fn budget(admin: &Client, name: &str, status: Value) {
    let budget = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": { "name": name },
        "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "a" } } },
    });
    assert_eq!(admin.post(BUDGETS, &budget).await.code, 201);
    let path = format!("{BUDGETS}/{name}/status");
    assert_eq!(admin.patch(&path, "merge", &json!({ "status": status })).await.code, 200);
}

fn eviction(name: &str, options: Value) -> Value {
    json!({
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": { "name": name, "namespace": "default" }, "deleteOptions": options,
    })
}

async fn evict(admin: &Client, name: &str, options: Value) -> Answer {
    admin.post(&format!("{PODS}/{name}/eviction"), &eviction(name, options)).await
}

#[tokio::test(start_paused = true)]
async fn an_eviction_says_why_and_deletes() {
    let world = World::new().await;
    let admin = world.admin();
    running(&admin, "p", true).await;
    let mut watch = admin.watch(&format!("{PODS}?watch=1")).await;
    assert_eq!(watch.say().await, "ADDED p");
    let answer = evict(&admin, "p", json!({ "gracePeriodSeconds": 7 })).await;
    assert_eq!((answer.code, &answer.body["status"]), (201, &json!("Success")), "{}", answer.body);
    let said = watch.next().await.unwrap();
    let condition = &said["object"]["status"]["conditions"][1];
    assert_eq!(
        (&condition["type"], &condition["reason"]),
        (&json!("DisruptionTarget"), &json!("EvictionByEvictionAPI"))
    );
    assert_eq!(said["object"]["metadata"].get("deletionTimestamp"), None);
    let marked = watch.next().await.unwrap();
    assert_eq!(marked["object"]["metadata"]["deletionGracePeriodSeconds"], 7);

    // A second one finds it going already, and shortens as any delete.
    assert_eq!(evict(&admin, "p", json!({ "gracePeriodSeconds": 0 })).await.code, 201);
    assert_eq!(admin.get(&format!("{PODS}/p")).await.code, 404);
    assert_eq!(evict(&admin, "p", json!({})).await.code, 404);
}

#[tokio::test(start_paused = true)]
async fn a_budget_is_spent_once_for_each_eviction() {
    let world = World::new().await;
    let admin = world.admin();
    for name in ["a", "b", "c"] {
        running(&admin, name, true).await;
    }
    let status =
        json!({ "observedGeneration": 1, "disruptionsAllowed": 2, "desiredHealthy": 1, "currentHealthy": 3 });
    budget(&admin, "b", status).await;
    assert_eq!(evict(&admin, "a", json!({ "dryRun": ["All"] })).await.code, 201);
    assert_eq!(admin.get(&format!("{BUDGETS}/b")).await.body["status"]["disruptionsAllowed"], 2);
    assert_eq!(admin.get(&format!("{PODS}/a")).await.body["metadata"].get("deletionTimestamp"), None);

    let together =
        futures::future::join_all(["a", "b", "c"].map(|name| evict(&admin, name, json!({})))).await;
    let mut codes: Vec<u16> = together.iter().map(|answer| answer.code).collect();
    codes.sort_unstable();
    assert_eq!(codes, [201, 201, 429]);
    let refused = together.iter().find(|answer| answer.code == 429).unwrap();
    assert_eq!(refused.body["reason"], "TooManyRequests");
    assert_eq!(refused.body["message"], "Cannot evict pod as it would violate the pod's disruption budget.");
    assert_eq!(
        refused.body["details"]["causes"],
        json!([{ "reason": "DisruptionBudget",
                 "message": "The disruption budget b needs 1 healthy pods and has 3 currently" }])
    );
    let left = admin.get(&format!("{BUDGETS}/b")).await.body["status"].clone();
    assert_eq!(
        (&left["disruptionsAllowed"], left["disruptedPods"].as_object().unwrap().len()),
        (&json!(0), 2)
    );
    assert_eq!(left["conditions"][0]["reason"], "InsufficientPods");
}

#[tokio::test(start_paused = true)]
async fn what_disrupts_nothing_is_not_measured() {
    let world = World::new().await;
    let admin = world.admin();
    budget(&admin, "b", json!({ "observedGeneration": 1, "desiredHealthy": 1, "currentHealthy": 1 })).await;
    let mut pending = pod("pending");
    pending["metadata"]["labels"] = json!({ "app": "a" });
    admin.post(PODS, &pending).await;
    assert_eq!(evict(&admin, "pending", json!({})).await.code, 201);
    assert_eq!(admin.get(&format!("{PODS}/pending")).await.code, 404);
    // Enough others are healthy.
    running(&admin, "unready", false).await;
    assert_eq!(evict(&admin, "unready", json!({})).await.code, 201);
    running(&admin, "ready", true).await;
    assert_eq!(evict(&admin, "ready", json!({})).await.code, 429);
}

#[tokio::test(start_paused = true)]
async fn preconditions_and_names_are_checked() {
    let world = World::new().await;
    let admin = world.admin();
    running(&admin, "p", true).await;
    let other = admin.post(&format!("{PODS}/p/eviction"), &eviction("q", json!({}))).await;
    assert_eq!(
        (other.code, &other.body["message"]),
        (400, &json!("name in URL does not match name in Eviction object"))
    );
    let wrong = evict(&admin, "p", json!({ "preconditions": { "uid": "another" } })).await;
    assert_eq!(wrong.code, 409);
    let stale = evict(&admin, "p", json!({ "preconditions": { "resourceVersion": "1" } })).await;
    assert_eq!(stale.code, 409);
    let pod = admin.get(&format!("{PODS}/p")).await.body;
    let exact = json!({ "preconditions": {
        "uid": pod["metadata"]["uid"], "resourceVersion": pod["metadata"]["resourceVersion"] } });
    assert_eq!(evict(&admin, "p", exact).await.code, 201);
}

#[tokio::test(start_paused = true)]
async fn budgets_are_kept_shown_and_guarded() {
    let world = World::new().await;
    let admin = world.admin();
    budget(&admin, "b", json!({ "observedGeneration": 1, "disruptionsAllowed": 1 })).await;
    let table = admin.get_as(BUDGETS, "application/json;as=Table;v=v1;g=meta.k8s.io").await.body;
    let names: Vec<&Value> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|column| &column["name"]).collect();
    assert_eq!(names, ["Name", "Min Available", "Max Unavailable", "Allowed Disruptions", "Age"]);
    assert_eq!(table["rows"][0]["cells"], json!(["b", "1", "N/A", 1, "0s"]));
    let mut changed = admin.get(&format!("{BUDGETS}/b")).await.body;
    changed["metadata"].as_object_mut().unwrap().shift_remove("resourceVersion");
    changed["spec"]["minAvailable"] = 2.into();
    assert_eq!(
        admin.put(&format!("{BUDGETS}/b"), &changed).await.code,
        422,
        "it has to say which it changes"
    );
    let negative = json!({ "status": { "currentHealthy": -1 } });
    assert_eq!(admin.patch(&format!("{BUDGETS}/b/status"), "merge", &negative).await.code, 422);
}
