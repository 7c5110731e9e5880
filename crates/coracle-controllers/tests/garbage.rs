//! The garbage collector: owners that go, in each of the three ways, and owners that never were.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::Cluster;
use coracle_client::request;
use coracle_client::{ObjectKey, Propagation};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret};
use serde_json::{Value, json};

/// Longer than anything takes that no one holds up.
const SETTLED: Duration = Duration::from_secs(10);

fn at(name: &str) -> ObjectKey {
    ObjectKey::namespaced("default", name)
}

fn reference(owner: &ConfigMap) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "name": owner.metadata.name, "uid": owner.metadata.uid,
        "blockOwnerDeletion": true,
    })
}

async fn map(cluster: &Cluster, name: &str, owners: &[&ConfigMap]) -> ConfigMap {
    let owners: Vec<_> = owners.iter().map(|owner| reference(owner)).collect();
    let metadata = json!({"namespace": "default", "name": name, "ownerReferences": owners});
    cluster.create(json!({"metadata": metadata})).await
}

/// The ConfigMaps of a test, each with the names of its owners.
async fn maps(cluster: &Cluster) -> Vec<String> {
    let all = request::list::<ConfigMap>(&cluster.admin, Some("default")).await.unwrap();
    let mut shown = Vec::new();
    for map in all.into_iter().filter(|map| map.metadata.name.as_deref() != Some("kube-root-ca.crt")) {
        let owners = map.metadata.owner_references.unwrap_or_default();
        let owners: Vec<_> = owners.into_iter().map(|owner| owner.name).collect();
        shown.push(format!("{}<{}", map.metadata.name.unwrap(), owners.join(",")));
    }
    shown
}

#[tokio::test(start_paused = true)]
async fn what_an_owner_leaves_behind_goes_after_it() {
    let cluster = Cluster::start().await;
    let owner = map(&cluster, "owner", &[]).await;
    let other = map(&cluster, "other", &[]).await;
    let child = map(&cluster, "child", &[&owner]).await;
    map(&cluster, "grandchild", &[&child]).await;
    map(&cluster, "shared", &[&owner, &other]).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(maps(&cluster).await.len(), 5, "nothing goes while its owner is there");
    cluster.delete::<ConfigMap>(&at("owner"), None).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(maps(&cluster).await, ["other<", "shared<other"]);
}

#[tokio::test(start_paused = true)]
async fn an_owner_deleted_in_the_foreground_goes_last() {
    let cluster = Cluster::start().await;
    let owner = map(&cluster, "owner", &[]).await;
    let child = map(&cluster, "child", &[&owner]).await;
    map(&cluster, "grandchild", &[&child]).await;
    let held = json!({"metadata": {"finalizers": ["example.com/hold"]}});
    cluster.merge::<ConfigMap>(&at("grandchild"), held).await;
    cluster.delete_as::<ConfigMap>(&at("owner"), Propagation::Foreground).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(maps(&cluster).await, ["child<owner", "grandchild<child", "owner<"]);
    for name in ["owner", "child"] {
        let waiting: ConfigMap = cluster.get(&at(name)).await.unwrap();
        assert_eq!(waiting.metadata.finalizers.unwrap(), ["foregroundDeletion"], "{name}");
    }
    let free = json!({"metadata": {"finalizers": null}});
    cluster.merge::<ConfigMap>(&at("grandchild"), free).await;
    let before = cluster.clock.elapsed();
    let gone = async {
        while !maps(&cluster).await.is_empty() {
            cluster.clock.sleep(Duration::from_millis(1)).await;
        }
    };
    cluster.clock.timeout(SETTLED, gone).await.unwrap();
    assert!(cluster.clock.elapsed() - before < Duration::from_millis(100), "each end is heard of");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_block_is_not_waited_for_and_goes_all_the_same() {
    let cluster = Cluster::start().await;
    let owner = map(&cluster, "owner", &[]).await;
    let mut loose = reference(&owner);
    loose["blockOwnerDeletion"] = false.into();
    let metadata = json!({
        "namespace": "default", "name": "loose", "ownerReferences": [loose], "finalizers": ["example.com/hold"],
    });
    cluster.create::<ConfigMap>(json!({"metadata": metadata})).await;
    cluster.delete_as::<ConfigMap>(&at("owner"), Propagation::Foreground).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(maps(&cluster).await, ["loose<owner"]);
    let loose: ConfigMap = cluster.get(&at("loose")).await.unwrap();
    assert!(loose.metadata.deletion_timestamp.is_some());
}

#[tokio::test(start_paused = true)]
async fn orphans_stay_and_name_no_owner() {
    let cluster = Cluster::start().await;
    let owner = map(&cluster, "owner", &[]).await;
    let other = map(&cluster, "other", &[]).await;
    map(&cluster, "child", &[&owner]).await;
    map(&cluster, "shared", &[&other, &owner]).await;
    cluster.delete_as::<ConfigMap>(&at("owner"), Propagation::Orphan).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(maps(&cluster).await, ["child<", "other<", "shared<other"]);
}

#[tokio::test(start_paused = true)]
async fn a_circle_goes_as_a_whole() {
    let cluster = Cluster::start().await;
    let a = map(&cluster, "a", &[]).await;
    let b = map(&cluster, "b", &[&a]).await;
    let patch = json!({"metadata": {"ownerReferences": [reference(&b)]}});
    cluster.merge::<ConfigMap>(&at("a"), patch).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(maps(&cluster).await, ["a<b", "b<a"]);
    cluster.delete_as::<ConfigMap>(&at("a"), Propagation::Foreground).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(maps(&cluster).await, [] as [&str; 0]);
}

#[tokio::test(start_paused = true)]
async fn three_running_pods_in_a_circle_go_with_their_grace() {
    let cluster = Cluster::start().await;
    cluster.run_nodes();
    let mut made = Vec::new();
    for name in ["p0", "p1", "p2"] {
        let pod = json!({
            "metadata": {"namespace": "default", "name": name},
            "spec": {"containers": [{"name": "c", "image": "run"}]},
        });
        made.push(cluster.create::<Pod>(pod).await);
    }
    for (i, pod) in made.iter().enumerate() {
        let owner = &made[(i + 2) % 3].metadata;
        let reference = json!({
            "apiVersion": "v1", "kind": "Pod", "name": owner.name, "uid": owner.uid,
            "controller": true, "blockOwnerDeletion": true,
        });
        let patch = json!({"metadata": {"ownerReferences": [reference]}});
        cluster.merge::<Pod>(&at(pod.metadata.name.as_deref().unwrap()), patch).await;
    }
    cluster.clock.sleep(SETTLED).await;
    cluster.delete_as::<Pod>(&at("p0"), Propagation::Foreground).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(request::list::<Pod>(&cluster.admin, None).await.unwrap().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_has_another_owner_outlives_one_that_waits() {
    let cluster = Cluster::start().await;
    let going = map(&cluster, "going", &[]).await;
    let staying = map(&cluster, "staying", &[]).await;
    map(&cluster, "own", &[&going]).await;
    map(&cluster, "shared", &[&going, &staying]).await;
    cluster.delete_as::<ConfigMap>(&at("going"), Propagation::Foreground).await;
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(maps(&cluster).await, ["shared<staying", "staying<"]);
}

#[tokio::test(start_paused = true)]
async fn owners_that_never_were_are_gone_and_owners_that_cannot_be_are_told_of() {
    let cluster = Cluster::start().await;
    let owner = map(&cluster, "owner", &[]).await;
    let mut other_uid = reference(&owner);
    other_uid["uid"] = "00000000-0000-0000-0000-000000000000".into();
    let mut absent = reference(&owner);
    absent["name"] = "absent".into();
    for (name, owner) in [("wrong-uid", other_uid), ("wrong-name", absent)] {
        let metadata = json!({"namespace": "default", "name": name, "ownerReferences": [owner]});
        cluster.create::<Secret>(json!({"metadata": metadata})).await;
    }
    let unknown = json!({"apiVersion": "example.com/v1", "kind": "Thing", "name": "t", "uid": "t"});
    let metadata = json!({"namespace": "default", "name": "unknown-kind", "ownerReferences": [unknown]});
    cluster.create::<Secret>(json!({"metadata": metadata})).await;
    cluster.create::<Namespace>(json!({"metadata": {"name": "a"}})).await;
    let metadata = json!({"namespace": "a", "name": "elsewhere", "ownerReferences": [reference(&owner)]});
    cluster.create::<Secret>(json!({"metadata": metadata})).await;
    let metadata = json!({"name": "node", "ownerReferences": [reference(&owner)]});
    cluster.create::<Node>(json!({"metadata": metadata})).await;
    cluster.clock.sleep(SETTLED).await;
    let secrets = request::list::<Secret>(&cluster.admin, None).await.unwrap();
    let left: Vec<_> = secrets.into_iter().map(|secret| secret.metadata.name.unwrap()).collect();
    assert_eq!(left, ["unknown-kind"], "nobody collects by an owner of a kind that nobody knows");
    assert!(cluster.get::<Node>(&ObjectKey::cluster("node")).await.is_some());
    let uid = owner.metadata.uid.unwrap();
    for (name, namespace) in [("elsewhere", "a"), ("node", "")] {
        let text = format!(
            "ownerRef [v1/ConfigMap, namespace: {namespace}, name: owner, uid: {uid}] does not exist in namespace \
             {namespace:?}"
        );
        let events = cluster.events(name).await;
        assert!(events.contains(&("OwnerRefInvalidNamespace".to_owned(), text)), "{events:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_happened_while_nobody_looked_is_made_good() {
    let mut cluster = Cluster::without_controllers().await;
    let owner = map(&cluster, "owner", &[]).await;
    map(&cluster, "child", &[&owner]).await;
    // The owner came and went, and came again under its name, before anybody looked.
    cluster.delete::<ConfigMap>(&at("owner"), None).await;
    map(&cluster, "owner", &[]).await;
    drop(cluster.run_controllers(u64::MAX));
    cluster.clock.sleep(SETTLED).await;
    assert_eq!(maps(&cluster).await, ["owner<"]);
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_dies_after_any_write_ends_where_another_does() {
    for writes in 1.. {
        let mut cluster = Cluster::without_controllers().await;
        cluster.counted = &["/configmaps"];
        let a = map(&cluster, "a", &[]).await;
        let b = map(&cluster, "b", &[]).await;
        let c = map(&cluster, "c", &[]).await;
        let below = map(&cluster, "a-1", &[&a]).await;
        map(&cluster, "a-2", &[&below]).await;
        map(&cluster, "b-1", &[&b]).await;
        map(&cluster, "b-2", &[&b, &c]).await;
        map(&cluster, "c-1", &[&c]).await;
        map(&cluster, "ab", &[&a, &b]).await;
        cluster.delete_as::<ConfigMap>(&at("a"), Propagation::Foreground).await;
        cluster.delete_as::<ConfigMap>(&at("b"), Propagation::Orphan).await;
        cluster.delete_as::<ConfigMap>(&at("c"), Propagation::Background).await;
        let died = cluster.survive(writes, 2 * SETTLED).await;
        let left = maps(&cluster).await;
        // What a foreground deletion and an orphaning both have a say in depends on who comes first.
        let left: Vec<_> = left.iter().filter(|map| !map.starts_with("ab<")).collect();
        assert_eq!(left, ["b-1<", "b-2<"], "after {writes} writes");
        if !died {
            assert!(writes > 5, "only {writes} writes");
            return;
        }
    }
}
