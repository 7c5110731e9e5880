//! Informers against the real API server and store, in one process, on virtual time and simulated files.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use coracle_apiserver::auth::UserInfo;
use coracle_apiserver::{ApiServer, Config};
use coracle_client::request::{self, PatchBody};
use coracle_client::{Deletion, ErrorExt as _, Informer, ListOptions, ObjectKey, in_process, revision_of};
use coracle_clock::{Clock, Ids, Rng};
use coracle_store::embedded::{EmbeddedStore, Execution, Options};
use coracle_store::simfs::SimFs;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use serde_json::{Value, json};

async fn server() -> (Arc<ApiServer>, Client, Clock) {
    let clock = Clock::starting_at("2030-01-01T00:00:00Z".parse().unwrap());
    let options = Options { execution: Execution::Tasks, ..Options::default() };
    let files = Arc::new(SimFs::new(Rng::seeded(1)));
    let (store, _) = EmbeddedStore::open(files, clock.clone(), options).unwrap();
    let config = Config {
        service_range: "10.96.0.0/16".parse().unwrap(),
        advertise: "192.0.2.1:6443".parse().unwrap(),
        kubelet: None,
        joining: None,
        account_key: coracle_apiserver::pki::AccountKey::unkept().unwrap().into(),
    };
    let ids = Arc::new(Ids::new(Rng::seeded(2)));
    let server = ApiServer::start(config, store, clock.clone(), ids).await.unwrap();
    let client = in_process(server.in_process(UserInfo::new("admin", ["system:masters"])));
    (server, client, clock)
}

fn config_map(name: &str, labels: &Value) -> ConfigMap {
    let metadata = json!({"namespace": "default", "name": name, "labels": labels});
    serde_json::from_value(json!({"metadata": metadata})).unwrap()
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::namespaced("default", name)
}

#[tokio::test(start_paused = true)]
async fn the_copy_follows_creations_changes_and_deletions_by_revision() {
    let (_server, client, clock) = server().await;
    for i in 0..1200 {
        request::create(&client, &config_map(&format!("m{i:04}"), &json!({}))).await.unwrap();
    }
    let informer: Informer<ConfigMap> =
        Informer::start(client.clone(), ListOptions::default(), clock.clone(), Rng::seeded(3));
    informer.synced().await;
    assert_eq!(informer.len(), 1200, "in pages");

    let patch = PatchBody::Merge(json!({"data": {"a": "b"}}));
    let patched = request::patch::<ConfigMap>(&client, &key("m0007"), &patch).await.unwrap();
    informer.reached(revision_of(&patched)).await;
    assert_eq!(informer.get("default", "m0007").as_deref().unwrap().data, patched.data);

    let uid = patched.metadata.uid.clone().unwrap();
    let wrong = request::delete::<ConfigMap>(&client, &key("m0008"), &Deletion::of(&uid)).await.unwrap_err();
    assert!(wrong.is_conflict(), "{wrong}");
    let mut changes = informer.subscribe();
    assert_eq!(changes.changed().await.unwrap().len(), 1200);
    request::delete::<ConfigMap>(&client, &key("m0007"), &Deletion::of(&uid)).await.unwrap();
    assert_eq!(changes.changed().await.unwrap().into_iter().collect::<Vec<_>>(), [key("m0007")]);
    assert!(informer.get("default", "m0007").is_none());
}

#[tokio::test(start_paused = true)]
async fn an_object_that_no_longer_matches_leaves_the_copy() {
    let (_server, client, clock) = server().await;
    request::create(&client, &config_map("m", &json!({"app": "a"}))).await.unwrap();
    let options = ListOptions { labels: Some("app=a".to_owned()), ..ListOptions::default() };
    let informer: Informer<ConfigMap> =
        Informer::start(client.clone(), options, clock.clone(), Rng::seeded(3));
    informer.synced().await;
    assert_eq!(informer.len(), 1);
    let patch = PatchBody::Merge(json!({"metadata": {"labels": {"app": "b"}}}));
    let patched = request::patch::<ConfigMap>(&client, &key("m"), &patch).await.unwrap();
    informer.reached(revision_of(&patched)).await;
    assert!(informer.is_empty());
}

#[tokio::test(start_paused = true)]
async fn hours_of_watches_that_end_and_resume_lose_nothing() {
    let (_server, client, clock) = server().await;
    let informer: Informer<ConfigMap> =
        Informer::start(client.clone(), ListOptions::default(), clock.clone(), Rng::seeded(3));
    informer.synced().await;
    for hour in 0..5 {
        clock.sleep(Duration::from_secs(3600)).await;
        let created = request::create(&client, &config_map(&format!("m{hour}"), &json!({}))).await.unwrap();
        let reached = clock.timeout(Duration::from_secs(5), informer.reached(revision_of(&created))).await;
        assert!(reached.is_some(), "hour {hour}");
    }
    assert_eq!(informer.len(), 5);
}
