//! Priority classes, and what Pods get of them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::{World, pod};
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const CLASSES: &str = "/apis/scheduling.k8s.io/v1/priorityclasses";

fn class(name: &str, value: i64) -> Value {
    json!({
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": { "name": name }, "value": value,
    })
}

fn of_class(name: &str, class: &str) -> Value {
    let mut pod = pod(name);
    pod["spec"]["priorityClassName"] = class.into();
    pod
}

#[tokio::test(start_paused = true)]
async fn every_cluster_has_the_two_system_classes_and_they_come_back() {
    let world = World::new().await;
    let admin = world.admin();
    let node = admin.get(&format!("{CLASSES}/system-node-critical")).await.expect(200);
    assert_eq!(node["value"], 2_000_001_000);
    assert_eq!(node["preemptionPolicy"], "PreemptLowerPriority");
    assert_eq!(
        node["description"],
        "Used for system critical pods that must not be moved from their current node."
    );
    admin.delete(&format!("{CLASSES}/system-cluster-critical"), None).await.expect(200);
    let back = async {
        while admin.get(&format!("{CLASSES}/system-cluster-critical")).await.code != 200 {
            tokio::task::yield_now().await;
        }
    };
    back.await;
    let table = admin.get_as(CLASSES, "application/json;as=Table;v=v1;g=meta.k8s.io").await.expect(200);
    let names: Vec<_> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].clone()).collect();
    assert_eq!(names, ["Name", "Value", "Global-Default", "Age", "PreemptionPolicy"]);
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(
        [&cells[0], &cells[1], &cells[2], &cells[4]],
        [
            &json!("system-cluster-critical"),
            &json!(2_000_000_000),
            &json!(false),
            &json!("PreemptLowerPriority")
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_pod_gets_the_priority_of_its_class_or_is_refused() {
    let world = World::new().await;
    let admin = world.admin();
    let plain = admin.post(PODS, &pod("plain")).await.expect(201);
    assert_eq!((&plain["spec"]["priority"], plain["spec"].get("priorityClassName")), (&json!(0), None));
    let mut never = class("high", 1000);
    never["preemptionPolicy"] = "Never".into();
    admin.post(CLASSES, &never).await.expect(201);
    let made = admin.post(PODS, &of_class("a", "high")).await.expect(201);
    assert_eq!(
        (&made["spec"]["priority"], &made["spec"]["preemptionPolicy"]),
        (&json!(1000), &json!("Never"))
    );
    // What it has it keeps, whatever becomes of its class.
    admin.delete(&format!("{CLASSES}/high"), None).await.expect(200);
    let labelled = json!({"metadata": {"labels": {"a": "b"}}});
    let changed = admin.patch(&format!("{PODS}/a"), "merge", &labelled).await.expect(200);
    assert_eq!(changed["spec"]["priority"], 1000);
    let critical = admin.post(PODS, &of_class("c", "system-cluster-critical")).await.expect(201);
    assert_eq!(critical["spec"]["priority"], 2_000_000_000);

    assert_eq!(
        admin.post(PODS, &of_class("b", "high")).await.message(403),
        "pods \"b\" is forbidden: no PriorityClass with name high was found"
    );
    let mut said = of_class("d", "system-cluster-critical");
    said["spec"]["priority"] = 5.into();
    assert_eq!(
        admin.post(PODS, &said).await.message(403),
        "pods \"d\" is forbidden: the integer value of priority (5) must not be provided in pod spec; priority admission \
         controller computed 2000000000 from the given PriorityClass name"
    );
}

#[tokio::test(start_paused = true)]
async fn only_one_class_is_the_default_for_pods_that_name_none() {
    let world = World::new().await;
    let admin = world.admin();
    let mut usual = class("usual", 7);
    usual["globalDefault"] = true.into();
    admin.post(CLASSES, &usual).await.expect(201);
    let made = admin.post(PODS, &pod("p")).await.expect(201);
    assert_eq!((&made["spec"]["priorityClassName"], &made["spec"]["priority"]), (&json!("usual"), &json!(7)));
    let refused = |name: &str| {
        format!(
            "priorityclasses.scheduling.k8s.io \"{name}\" is forbidden: PriorityClass usual is already marked as default. \
             Only one default can exist"
        )
    };
    let mut second = class("second", 8);
    second["globalDefault"] = true.into();
    assert_eq!(admin.post(CLASSES, &second).await.message(403), refused("second"));
    admin.post(CLASSES, &class("second", 8)).await.expect(201);
    let marked = json!({"globalDefault": true});
    let path = format!("{CLASSES}/second");
    assert_eq!(admin.patch(&path, "merge", &marked).await.message(403), refused("second"));
    let described = json!({"description": "as ever"});
    admin.patch(&format!("{CLASSES}/usual"), "merge", &described).await.expect(200);
    admin.delete(&format!("{CLASSES}/usual"), None).await.expect(200);
    admin.patch(&path, "merge", &marked).await.expect(200);
    assert_eq!(admin.post(PODS, &pod("q")).await.expect(201)["spec"]["priority"], 8);
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_a_class_is_said() {
    let world = World::new().await;
    let admin = world.admin();
    assert_eq!(
        admin.post(CLASSES, &class("mine", 1_000_000_001)).await.message(422),
        "PriorityClass.scheduling.k8s.io \"mine\" is invalid: value: Forbidden: maximum allowed value of a user defined \
         priority is 1000000000"
    );
    assert_eq!(
        admin.post(CLASSES, &class("system-mine", 1)).await.message(422),
        "PriorityClass.scheduling.k8s.io \"system-mine\" is invalid: metadata.name: Forbidden: priority class names with \
         'system-' prefix are reserved for system use only. error: system-mine is not a known system priority class"
    );
    admin.post(CLASSES, &class("a", 1)).await.expect(201);
    assert_eq!(
        admin.patch(&format!("{CLASSES}/a"), "merge", &json!({"value": 2})).await.message(422),
        "PriorityClass.scheduling.k8s.io \"a\" is invalid: value: Forbidden: may not be changed in an update."
    );
}
