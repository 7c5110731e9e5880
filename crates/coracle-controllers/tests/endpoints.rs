//! Endpoints and EndpointSlices: who is reached under a Service's name, on virtual time.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::Cluster;
use coracle_client::request::{self, PatchBody};
use coracle_client::{ObjectKey, Propagation};
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

const SETTLED: Duration = Duration::from_secs(5);

fn at(name: &str) -> ObjectKey {
    ObjectKey::namespaced("default", name)
}

fn service(name: &str, spec: Value) -> Value {
    let mut service = json!({"metadata": {"namespace": "default", "name": name}, "spec": {
        "selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}],
    }});
    for (field, value) in spec.as_object().unwrap() {
        service["spec"][field] = value.clone();
    }
    service
}

/// A Pod with an address that is ready, as node agents leave it.
async fn pod(cluster: &Cluster, app: &str, name: &str, ip: &str) {
    let pod = json!({
        "metadata": {"namespace": "default", "name": name, "labels": {"app": app}},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]},
    });
    cluster.create::<Pod>(pod).await;
    let status = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]});
    request::patch_status::<Pod>(&cluster.admin, &at(name), &PatchBody::Merge(json!({"status": status})))
        .await
        .unwrap();
    ready(cluster, name, true).await;
}

async fn ready(cluster: &Cluster, name: &str, is: bool) {
    let condition = json!({"type": "Ready", "status": if is { "True" } else { "False" }});
    let patch = PatchBody::Strategic(json!({"status": {"conditions": [condition]}}));
    request::patch_status::<Pod>(&cluster.admin, &at(name), &patch).await.unwrap();
}

/// As `ready | not ready`.
async fn endpoints(cluster: &Cluster, name: &str) -> String {
    let Some(endpoints) = cluster.get::<Endpoints>(&at(name)).await else { return "none".to_owned() };
    let subsets = endpoints.subsets.unwrap_or_default();
    let (mut ready, mut not_ready) = (Vec::new(), Vec::new());
    for subset in subsets {
        ready.extend(subset.addresses.unwrap_or_default().into_iter().map(|address| address.ip));
        not_ready
            .extend(subset.not_ready_addresses.unwrap_or_default().into_iter().map(|address| address.ip));
    }
    format!("{} | {}", ready.join(" "), not_ready.join(" "))
}

async fn slices(cluster: &Cluster, name: &str) -> Vec<EndpointSlice> {
    let mut slices = request::list::<EndpointSlice>(&cluster.admin, Some("default")).await.unwrap();
    slices.retain(|slice| {
        slice
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get("kubernetes.io/service-name"))
            .is_some_and(|s| s == name)
    });
    slices
}

/// Each endpoint with what holds of it: `r`eady, `s`erving, `t`erminating.
async fn seen(cluster: &Cluster, name: &str) -> String {
    let all = slices(cluster, name).await.into_iter().flat_map(|slice| slice.endpoints.unwrap_or_default());
    let mut all: Vec<String> = all
        .map(|endpoint| {
            let is = endpoint.conditions.unwrap_or_default();
            let mark =
                |is: Option<bool>, mark: &str| if is == Some(true) { mark.to_owned() } else { String::new() };
            let marks = [mark(is.ready, "r"), mark(is.serving, "s"), mark(is.terminating, "t")].concat();
            format!("{}:{marks}", endpoint.addresses.join(","))
        })
        .collect();
    all.sort();
    all.join(" ")
}

#[tokio::test(start_paused = true)]
async fn readiness_and_the_end_of_a_pod_are_seen_leaving_and_returning() {
    let cluster = Cluster::start().await;
    cluster.create::<Service>(service("web", json!({}))).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(
        (endpoints(&cluster, "web").await.as_str(), seen(&cluster, "web").await.as_str()),
        (" | ", "")
    );
    let empty = slices(&cluster, "web").await;
    assert_eq!(empty.len(), 1, "that there are none is told");
    pod(&cluster, "web", "a", "10.0.0.1").await;
    pod(&cluster, "web", "b", "10.0.0.2").await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(endpoints(&cluster, "web").await, "10.0.0.1 10.0.0.2 | ");
    assert_eq!(seen(&cluster, "web").await, "10.0.0.1:rs 10.0.0.2:rs");
    ready(&cluster, "a", false).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(endpoints(&cluster, "web").await, "10.0.0.2 | 10.0.0.1");
    assert_eq!(seen(&cluster, "web").await, "10.0.0.1: 10.0.0.2:rs");
    ready(&cluster, "a", true).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(endpoints(&cluster, "web").await, "10.0.0.1 10.0.0.2 | ");
    // It goes, and serves for as long as it can.
    cluster.delete::<Pod>(&at("a"), Some(30)).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(endpoints(&cluster, "web").await, "10.0.0.2 | ");
    assert_eq!(seen(&cluster, "web").await, "10.0.0.1:st 10.0.0.2:rs");
    ready(&cluster, "a", false).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(seen(&cluster, "web").await, "10.0.0.1:t 10.0.0.2:rs");
    cluster.delete::<Pod>(&at("a"), Some(0)).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(seen(&cluster, "web").await, "10.0.0.2:rs");
    // One that is relabelled is nobody's.
    cluster.merge::<Pod>(&at("b"), json!({"metadata": {"labels": {"app": "other"}}})).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(
        (endpoints(&cluster, "web").await.as_str(), seen(&cluster, "web").await.as_str()),
        (" | ", "")
    );
    let slices = slices(&cluster, "web").await;
    assert_eq!(slices[0].metadata.name, empty[0].metadata.name, "the first slice was used throughout");

    cluster.delete_as::<Service>(&at("web"), Propagation::Background).await;
    cluster.clock.sleep(Duration::from_secs(30)).await;
    assert_eq!(endpoints(&cluster, "web").await, "none");
    assert_eq!(self::slices(&cluster, "web").await, []);
}

#[tokio::test(start_paused = true)]
async fn many_pods_take_several_slices_and_few_again_one() {
    let cluster = Cluster::start().await;
    cluster.create::<Service>(service("web", json!({}))).await;
    for n in 0..104 {
        pod(&cluster, "web", &format!("p{n}"), &format!("10.0.0.{}", n + 1)).await;
    }
    cluster.clock.sleep(SETTLED).await;
    let sizes = |slices: Vec<EndpointSlice>| {
        let mut sizes: Vec<usize> = slices.iter().map(|s| s.endpoints.as_ref().map_or(0, Vec::len)).collect();
        sizes.sort_unstable();
        sizes
    };
    assert_eq!(sizes(slices(&cluster, "web").await), [4, 100]);
    let one = &slices(&cluster, "web").await[0];
    let owner = &one.metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.name.as_str(), owner.controller), ("Service", "web", Some(true)));
    for n in 5..104 {
        cluster.delete::<Pod>(&at(&format!("p{n}")), Some(0)).await;
    }
    cluster.clock.sleep(SETTLED).await;
    let left: usize = sizes(slices(&cluster, "web").await).iter().sum();
    assert_eq!(left, 5);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_made_by_hand_is_left_alone_and_shown_as_slices() {
    let cluster = Cluster::start().await;
    cluster.create::<Service>(service("db", json!({"selector": null}))).await;
    let by_hand = json!({
        "metadata": {"namespace": "default", "name": "db", "labels": {"mine": "yes"}},
        "subsets": [{"addresses": [{"ip": "192.0.2.7"}], "notReadyAddresses": [{"ip": "192.0.2.8"}],
                     "ports": [{"port": 5432}]}],
    });
    cluster.create::<Endpoints>(by_hand).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(endpoints(&cluster, "db").await, "192.0.2.7 | 192.0.2.8");
    assert_eq!(seen(&cluster, "db").await, "192.0.2.7:r 192.0.2.8:");
    let slice = slices(&cluster, "db").await.remove(0);
    let labels = slice.metadata.labels.unwrap();
    assert_eq!(labels["endpointslice.kubernetes.io/managed-by"], "endpointslicemirroring-controller.k8s.io");
    assert_eq!(labels["mine"], "yes");
    let changed = json!({"subsets": [{"addresses": [{"ip": "192.0.2.9"}], "ports": [{"port": 5432}]}]});
    cluster.merge::<Endpoints>(&at("db"), changed).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(seen(&cluster, "db").await, "192.0.2.9:r");
    cluster.delete::<Endpoints>(&at("db"), None).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(slices(&cluster, "db").await, []);

    // A slice that somebody made themselves is theirs, also beside a Service that selects Pods.
    cluster.create::<Service>(service("web", json!({}))).await;
    let own = json!({
        "metadata": {"namespace": "default", "name": "own", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.1"]}], "ports": [],
    });
    cluster.create::<EndpointSlice>(own).await;
    pod(&cluster, "web", "a", "10.0.0.1").await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(seen(&cluster, "web").await, "10.0.0.1:rs 192.0.2.1:");
    // The API server's own endpoints stay what they are.
    let kubernetes = slices(&cluster, "kubernetes").await;
    assert_eq!(kubernetes.len(), 1);
    assert_eq!(kubernetes[0].metadata.name.as_deref(), Some("kubernetes"));
    assert_eq!(endpoints(&cluster, "kubernetes").await, "192.0.2.1 | ");
}

#[tokio::test(start_paused = true)]
async fn all_are_told_of_if_the_service_wants_that_and_a_named_port_is_each_pods_own() {
    let cluster = Cluster::start().await;
    let all = json!({"publishNotReadyAddresses": true, "clusterIP": "None",
                     "ports": [{"port": 80, "targetPort": "http"}]});
    cluster.create::<Service>(service("db", all)).await;
    let pod = |name: &str, port: u16| {
        json!({
            "metadata": {"namespace": "default", "name": name, "labels": {"app": "db"}},
            "spec": {"nodeName": "n", "hostname": name, "containers": [
                {"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": port}]}]},
        })
    };
    for (name, port, ip) in [("a", 8080, "10.0.0.1"), ("b", 9090, "10.0.0.2")] {
        cluster.create::<Pod>(pod(name, port)).await;
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
        request::patch_status::<Pod>(&cluster.admin, &at(name), &PatchBody::Merge(status)).await.unwrap();
    }
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(endpoints(&cluster, "db").await, "10.0.0.1 10.0.0.2 | ");
    assert_eq!(seen(&cluster, "db").await, "10.0.0.1:r 10.0.0.2:r");
    let found = slices(&cluster, "db").await;
    assert_eq!(found.len(), 2, "slices are of Pods with the same ports");
    let labels = found[0].metadata.labels.as_ref().unwrap();
    assert!(labels.contains_key("service.kubernetes.io/headless"));
    cluster.delete::<Pod>(&at("a"), Some(30)).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(endpoints(&cluster, "db").await, "10.0.0.1 10.0.0.2 | ");
    assert_eq!(seen(&cluster, "db").await, "10.0.0.1:rt 10.0.0.2:r");
}

#[tokio::test(start_paused = true)]
async fn death_after_any_write_and_a_late_view_leave_one_right_set() {
    for writes in 1.. {
        let mut cluster = Cluster::without_controllers().await;
        drop(cluster.run_controllers(u64::MAX));
        cluster.clock.sleep(SETTLED).await;
        cluster.stop_controllers();
        cluster.late = Duration::from_millis(200);
        for n in 0..3 {
            pod(&cluster, "web", &format!("p{n}"), &format!("10.0.0.{}", n + 1)).await;
        }
        cluster.create::<Service>(service("web", json!({}))).await;
        let died = cluster.survive(writes, Duration::from_secs(20)).await;
        assert_eq!(
            seen(&cluster, "web").await,
            "10.0.0.1:rs 10.0.0.2:rs 10.0.0.3:rs",
            "after {writes} writes"
        );
        assert_eq!(
            endpoints(&cluster, "web").await,
            "10.0.0.1 10.0.0.2 10.0.0.3 | ",
            "after {writes} writes"
        );
        assert_eq!(slices(&cluster, "web").await.len(), 1, "after {writes} writes");
        if !died {
            assert!(writes > 1, "two objects are written");
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_goes_takes_its_endpoints_along() {
    let cluster = Cluster::start().await;
    cluster.create::<Namespace>(json!({"metadata": {"name": "ns"}})).await;
    let mut service = service("web", json!({}));
    service["metadata"]["namespace"] = "ns".into();
    cluster.create::<Service>(service).await;
    cluster.clock.sleep(SETTLED).await;
    let of_namespace = || async {
        let slices = request::list::<EndpointSlice>(&cluster.admin, Some("ns")).await.unwrap().len();
        slices + request::list::<Endpoints>(&cluster.admin, Some("ns")).await.unwrap().len()
    };
    assert_eq!(of_namespace().await, 2);
    cluster.delete::<Namespace>(&ObjectKey::cluster("ns"), None).await;
    cluster.clock.sleep(Duration::from_secs(30)).await;
    assert!(cluster.get::<Namespace>(&ObjectKey::cluster("ns")).await.is_none());
    assert_eq!(of_namespace().await, 0);
}
