//! The controllers against the real API server and store, in one process, on virtual time and simulated files.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use coracle_apiserver::auth::UserInfo;
use coracle_apiserver::{ApiServer, Config};
use coracle_client::request::{self, PatchBody};
use coracle_client::{Deletion, Informer, ListOptions, Object, ObjectKey, in_process};
use coracle_clock::{Clock, Ids, Rng};
use coracle_controllers::{ControllerInputs, ControllersConfig, run_all};
use coracle_store::embedded::{EmbeddedStore, Execution, Options};
use coracle_store::simfs::SimFs;
use k8s_openapi::api::core::v1::{Binding, ConfigMap, Namespace, Node, Pod, ServiceAccount};
use kube::Client;
use serde::Serialize;
use serde_json::{Value, json};

struct Cluster {
    admin: Client,
    clock: Clock,
    inputs: ControllerInputs,
    _server: Arc<ApiServer>,
}

impl Cluster {
    async fn start() -> Self {
        let clock = Clock::starting_at("2030-01-01T00:00:00Z".parse().unwrap());
        let options = Options { execution: Execution::Tasks, ..Options::default() };
        let files = Arc::new(SimFs::new(Rng::seeded(1)));
        let (store, _) = EmbeddedStore::open(files, clock.clone(), options).unwrap();
        let config = Config {
            service_range: "10.96.0.0/16".parse().unwrap(),
            advertise: "192.0.2.1:6443".parse().unwrap(),
            kubelet: None,
            joining: None,
        };
        let ids = Arc::new(Ids::new(Rng::seeded(2)));
        let server = ApiServer::start(config, store, clock.clone(), ids).await.unwrap();
        let admin = in_process(server.in_process(UserInfo::new("admin", ["system:masters"])));
        let inputs = ControllerInputs {
            namespaces: informer(&admin, &clock, None),
            service_accounts: informer(&admin, &clock, None),
            config_maps: informer(&admin, &clock, Some("metadata.name=kube-root-ca.crt")),
            nodes: informer(&admin, &clock, None),
            pods: informer(&admin, &clock, None),
        };
        let cluster =
            Cluster { admin, clock: clock.clone(), inputs: inputs.clone(), _server: server.clone() };
        let config = ControllersConfig {
            cluster_cidr: "10.244.0.0/22".parse().unwrap(),
            node_prefix: 24,
            root_ca: "PEM".to_owned(),
        };
        tokio::spawn(async move {
            let client = |identity: coracle_controllers::Identity| {
                let user = UserInfo::service_account("kube-system", identity.service_account());
                in_process(server.in_process(user))
            };
            run_all(config, client, inputs, clock, Rng::seeded(3), std::future::pending()).await;
        });
        cluster
    }

    async fn create<K: Object + Serialize>(&self, object: Value) -> K {
        request::create(&self.admin, &serde_json::from_value::<K>(object).unwrap()).await.unwrap()
    }

    async fn delete<K: Object>(&self, key: &ObjectKey, grace: Option<u32>) {
        let how = Deletion { grace_period_seconds: grace, ..Deletion::default() };
        request::delete::<K>(&self.admin, key, &how).await.unwrap();
    }

    async fn until<K: Object>(&self, informer: &Informer<K>, what: &str, holds: impl Fn() -> bool) {
        let mut changes = informer.subscribe();
        let wait = async {
            while !holds() {
                changes.changed().await.expect("the informer runs");
            }
        };
        let done = self.clock.timeout(Duration::from_secs(120), wait).await;
        assert!(done.is_some(), "{what}: {:#?}", informer.list());
    }

    async fn until_namespace(&self, name: &str, what: &str, holds: impl Fn(Option<Arc<Namespace>>) -> bool) {
        let namespaces = &self.inputs.namespaces;
        self.until(namespaces, what, || holds(namespaces.get("", name))).await;
    }
}

fn informer<K: Object>(client: &Client, clock: &Clock, fields: Option<&str>) -> Informer<K> {
    let options = ListOptions { fields: fields.map(str::to_owned), ..ListOptions::default() };
    Informer::start(client.clone(), options, clock.clone(), Rng::seeded(9))
}

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
    let patch = PatchBody::Merge(json!({"metadata": {"finalizers": null}}));
    let key = ObjectKey::namespaced("a", "m");
    request::patch::<ConfigMap>(&cluster.admin, &key, &patch).await.unwrap();
    cluster.until_namespace("a", "gone", |namespace| namespace.is_none()).await;
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
