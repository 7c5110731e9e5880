//! Rules of the Pod lifecycle that the API server holds, where no other test shows them.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::pod::{effective_requests, qos_class};

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({ "spec": spec })).unwrap()
}

fn sized(amounts: Value) -> Value {
    json!({"name": "c", "resources": {"limits": amounts, "requests": amounts}})
}

#[test]
fn the_class_counts_init_containers_and_what_the_pod_as_a_whole_asks_for_instead() {
    let full = || sized(json!({"cpu": "1", "memory": "1Gi"}));
    let bare = || json!({"name": "c"});
    let whole = json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "2", "memory": "1Gi"}});
    for (what, spec, class) in [
        ("all", json!({"containers": [full()], "initContainers": [full()]}), "Guaranteed"),
        (
            "an init container without",
            json!({"containers": [full()], "initContainers": [bare()]}),
            "Burstable",
        ),
        ("only an init container", json!({"containers": [bare()], "initContainers": [full()]}), "Burstable"),
        ("neither", json!({"containers": [bare()], "initContainers": [bare()]}), "BestEffort"),
        ("an ephemeral one", json!({"containers": [full()], "ephemeralContainers": [bare()]}), "Guaranteed"),
        ("the Pod", json!({"containers": [bare()], "resources": whole}), "Guaranteed"),
        (
            "the Pod a little",
            json!({"containers": [full()], "resources": {"requests": {"cpu": "1"}}}),
            "Burstable",
        ),
    ] {
        assert_eq!(qos_class(&pod(spec)).as_str(), class, "{what}");
    }
}

#[test]
fn overhead_is_added_and_what_the_pod_as_a_whole_asks_for_replaces_its_containers() {
    let asks = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
    for (spec, cpu) in [
        (json!({"containers": [asks("1")], "overhead": {"cpu": "250m"}}), "1250m"),
        (json!({"containers": [asks("1")], "initContainers": [asks("3")], "overhead": {"cpu": "1"}}), "4"),
        (json!({"containers": [asks("1")], "resources": {"requests": {"cpu": "2"}}}), "2"),
    ] {
        assert_eq!(effective_requests(&pod(spec))["cpu"].to_string(), cpu);
    }
}

#[test]
fn nobody_takes_back_a_deletion() {
    let resource = crate::catalogue::find("", "v1", "pods").unwrap();
    let old = json!({
        "metadata": {"name": "a", "deletionTimestamp": "2030-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30},
        "spec": {"containers": [{"name": "c", "image": "i:1"}]}, "status": {"phase": "Running"},
    });
    let mut cleared = old.clone();
    cleared["metadata"] = json!({"name": "a"});
    cleared["status"]["phase"] = "Failed".into();
    let (mut updated, mut status) = (cleared.clone(), cleared);
    resource.prepare_for_update(&mut updated, &old);
    resource.prepare_for_status_update(&mut status, &old);
    for kept in [updated, status] {
        assert_eq!(kept["metadata"]["deletionTimestamp"], "2030-01-01T00:00:30Z");
        assert_eq!(kept["metadata"]["deletionGracePeriodSeconds"], 30);
    }
}
