//! The controllers against the real API server and store, in one process, on virtual time and simulated files.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use common::Cluster;
use coracle_client::ObjectKey;
use coracle_client::request::{self, PatchBody};
use coracle_controllers::ControllerInputs;
use k8s_openapi::api::core::v1::{Binding, ConfigMap, Namespace, Node, Pod, ServiceAccount};
use serde_json::{Value, json};

fn condition(namespace: &Namespace, type_: &str) -> Option<(String, String)> {
    let conditions = namespace.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|condition| condition.type_ == type_)?;
    Some((condition.status.clone(), condition.message.clone().unwrap_or_default()))
}

#[tokio::test(start_paused = true)]
async fn every_namespace_has_its_account_and_the_authority_and_gets_them_back() {
    let cluster = Cluster::start().await;
    let ControllerInputs { service_accounts, config_maps, .. } = &cluster.inputs;
    cluster.create::<Namespace>(json!({"metadata": {"name": "a"}})).await;
    let all = ["a", "default", "kube-node-lease", "kube-public", "kube-system"];
    let everywhere = || all.iter().all(|ns| service_accounts.get(ns, "default").is_some());
    cluster.until(service_accounts, "accounts", everywhere).await;
    let published = || {
        let right = |map: Arc<ConfigMap>| {
            map.data.as_ref().is_some_and(|data| data["ca.crt"] == "PEM" && data.len() == 1)
        };
        all.iter().all(|ns| config_maps.get(ns, "kube-root-ca.crt").is_some_and(right))
    };
    cluster.until(config_maps, "authority", published).await;

    let old = service_accounts.get("a", "default").unwrap().metadata.uid.clone();
    cluster.delete::<ServiceAccount>(&ObjectKey::namespaced("a", "default"), None).await;
    let recreated = || service_accounts.get("a", "default").is_some_and(|new| new.metadata.uid != old);
    cluster.until(service_accounts, "the account is back", recreated).await;

    let key = ObjectKey::namespaced("a", "kube-root-ca.crt");
    let patch = PatchBody::Merge(json!({"data": {"ca.crt": "other", "more": "x"}}));
    let changed = request::patch::<ConfigMap>(&cluster.admin, &key, &patch).await.unwrap();
    config_maps.reached(coracle_client::revision_of(&changed)).await;
    cluster.until(config_maps, "repaired", published).await;
}

#[tokio::test(start_paused = true)]
async fn an_empty_namespace_goes_at_once() {
    let cluster = Cluster::start().await;
    cluster.create::<Namespace>(json!({"metadata": {"name": "a"}})).await;
    cluster.create::<ConfigMap>(json!({"metadata": {"namespace": "a", "name": "m"}})).await;
    cluster.delete::<Namespace>(&ObjectKey::cluster("a"), None).await;
    let before = cluster.clock.elapsed();
    cluster.until_namespace("a", "gone", |namespace| namespace.is_none()).await;
    assert_eq!(cluster.clock.elapsed(), before, "nothing waits for time to pass");
    assert!(request::list::<ConfigMap>(&cluster.admin, Some("a")).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn pods_keep_what_they_need_until_they_have_ended() {
    let cluster = Cluster::start().await;
    cluster.create::<Namespace>(json!({"metadata": {"name": "a"}})).await;
    cluster.create::<Node>(json!({"metadata": {"name": "n"}})).await;
    cluster.create::<ConfigMap>(json!({"metadata": {"namespace": "a", "name": "m"}})).await;
    let accounts = &cluster.inputs.service_accounts;
    cluster.until(accounts, "account", || accounts.get("a", "default").is_some()).await;
    let pod = json!({
        "metadata": {"namespace": "a", "name": "p"},
        "spec": {"containers": [{"name": "c", "image": "busybox"}]},
    });
    cluster.create::<Pod>(pod).await;
    let key = ObjectKey::namespaced("a", "p");
    let binding: Binding = serde_json::from_value(json!({
        "metadata": {"namespace": "a", "name": "p"}, "target": {"kind": "Node", "name": "n"},
    }))
    .unwrap();
    request::create_subresource::<Pod, Value>(&cluster.admin, &key, "binding", &binding).await.unwrap();

    cluster.delete::<Namespace>(&ObjectKey::cluster("a"), None).await;
    let remaining =
        ("True".to_owned(), "Some resources are remaining: pods. has 1 resource instances".to_owned());
    cluster
        .until_namespace("a", "pods remain", |namespace| {
            namespace.and_then(|namespace| condition(&namespace, "NamespaceContentRemaining")).as_ref()
                == Some(&remaining)
        })
        .await;
    cluster.clock.sleep(Duration::from_secs(10)).await;
    let pods = request::list::<Pod>(&cluster.admin, Some("a")).await.unwrap();
    assert_eq!(pods[0].metadata.deletion_grace_period_seconds, Some(30), "with the grace it asked for");
    assert!(request::get::<ConfigMap>(&cluster.admin, &ObjectKey::namespaced("a", "m")).await.is_ok());

    cluster.delete::<Pod>(&key, Some(0)).await;
    let before = cluster.clock.elapsed();
    cluster.until_namespace("a", "gone", |namespace| namespace.is_none()).await;
    assert_eq!(cluster.clock.elapsed(), before, "the Pod's end is heard of");
}

#[tokio::test(start_paused = true)]
async fn a_finalizer_of_others_holds_the_namespace_and_is_named() {
    let cluster = Cluster::start().await;
    cluster.create::<Namespace>(json!({"metadata": {"name": "a"}})).await;
    let map = json!({"metadata": {"namespace": "a", "name": "m", "finalizers": ["example.com/hold"]}});
    cluster.create::<ConfigMap>(map).await;
    cluster.delete::<Namespace>(&ObjectKey::cluster("a"), None).await;
    let named = (
        "True".to_owned(),
        "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
            .to_owned(),
    );
    cluster
        .until_namespace("a", "held", |namespace| {
            namespace.and_then(|namespace| condition(&namespace, "NamespaceFinalizersRemaining")).as_ref()
                == Some(&named)
        })
        .await;
    cluster.clock.sleep(Duration::from_secs(3600)).await;
    let patch = PatchBody::Merge(json!({"metadata": {"finalizers": null}}));
    let key = ObjectKey::namespaced("a", "m");
    request::patch::<ConfigMap>(&cluster.admin, &key, &patch).await.unwrap();
    let before = cluster.clock.elapsed();
    cluster.until_namespace("a", "gone", |namespace| namespace.is_none()).await;
    assert!(cluster.clock.elapsed() - before <= Duration::from_secs(8), "however long it was held");
}

#[tokio::test(start_paused = true)]
async fn nodes_get_shares_of_their_own_and_a_share_is_given_again() {
    let cluster = Cluster::start().await;
    let nodes = &cluster.inputs.nodes;
    for name in ["a", "b", "c", "d", "e"] {
        cluster.create::<Node>(json!({"metadata": {"name": name}})).await;
    }
    let share = |name: &str| {
        let node = nodes.get("", name)?;
        let spec = node.spec.as_ref()?;
        assert_eq!(spec.pod_cidrs.as_ref().map(|all| all.len()), spec.pod_cidr.as_ref().map(|_| 1));
        spec.pod_cidr.clone()
    };
    let given = || ["a", "b", "c", "d", "e"].into_iter().filter_map(share).collect::<BTreeSet<_>>();
    let all: BTreeSet<_> = (0..4).map(|i| format!("10.244.{i}.0/24")).collect();
    cluster.until(nodes, "all shares are given", || given() == all).await;
    let without = ["a", "b", "c", "d", "e"].into_iter().find(|name| share(name).is_none()).unwrap();
    let other = if without == "a" { "b" } else { "a" };
    cluster.delete::<Node>(&ObjectKey::cluster(other), None).await;
    cluster.until(nodes, "the free share is given", || share(without).is_some() && given() == all).await;
}
