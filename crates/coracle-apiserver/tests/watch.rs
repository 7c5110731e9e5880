//! The rules of watches, through the service, on the real store.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::time::Duration;

use common::{MAPS, PODS, Watch, World, config_map, pod, revision};
use coracle_store::Store;
use serde_json::{Value, json};

fn labelled(name: &str, app: &str) -> Value {
    let mut map = config_map(name);
    map["metadata"]["labels"] = json!({ "app": app });
    map
}

async fn says(watch: &mut Watch, expected: &[&str]) {
    for line in expected {
        assert_eq!(watch.say().await, *line);
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_revision_a_watch_begins_with_what_there_is() {
    let world = World::new().await;
    let admin = world.admin();
    admin.post(MAPS, &config_map("a")).await.expect(201);
    for version in ["", "&resourceVersion=0"] {
        let mut watch = admin.watch(&format!("{MAPS}?watch=1{version}")).await;
        says(&mut watch, &["ADDED a"]).await;
        let name = format!("b{}", version.len());
        admin.post(MAPS, &config_map(&name)).await.expect(201);
        assert_eq!(watch.say().await, format!("ADDED {name}"));
        admin.delete(&format!("{MAPS}/{name}"), None).await.expect(200);
        assert_eq!(watch.say().await, format!("DELETED {name}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_resumes_after_its_revision_without_gap_or_repetition() {
    let world = World::new().await;
    let admin = world.admin();
    let first = admin.post(MAPS, &config_map("a")).await.expect(201);
    let second = admin.post(MAPS, &config_map("b")).await.expect(201);
    admin.patch(&format!("{MAPS}/a"), "merge", &json!({ "data": { "k": "w" } })).await.expect(200);
    admin.delete(&format!("{MAPS}/b"), None).await.expect(200);
    let url = |object: &Value| format!("{MAPS}?watch=true&resourceVersion={}", revision(object));
    says(&mut admin.watch(&url(&first)).await, &["ADDED b", "MODIFIED a", "DELETED b"]).await;
    says(&mut admin.watch(&url(&second)).await, &["MODIFIED a", "DELETED b"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_deletion_shows_the_last_state_at_the_revision_of_the_deletion() {
    let world = World::new().await;
    let admin = world.admin();
    let made = admin.post(MAPS, &config_map("a")).await.expect(201);
    let mut watch = admin.watch(&format!("{MAPS}?watch=1&resourceVersion={}", revision(&made))).await;
    admin.delete(&format!("{MAPS}/a"), None).await.expect(200);
    let event = watch.next().await.unwrap();
    assert_eq!(event["object"]["data"], made["data"]);
    assert_eq!(revision(&event["object"]), world.store.revision().await.unwrap().0);
}

#[tokio::test(start_paused = true)]
async fn selectors_turn_changes_into_arrivals_and_departures() {
    let world = World::new().await;
    let admin = world.admin();
    let mut watch = admin.watch(&format!("{MAPS}?watch=1&labelSelector=app%3Dx")).await;
    admin.post(MAPS, &labelled("a", "y")).await.expect(201);
    admin.put(&format!("{MAPS}/a"), &labelled("a", "x")).await.expect(200);
    admin.patch(&format!("{MAPS}/a"), "merge", &json!({ "data": { "k": "w" } })).await.expect(200);
    admin.put(&format!("{MAPS}/a"), &labelled("a", "z")).await.expect(200);
    admin.delete(&format!("{MAPS}/a"), None).await.expect(200);
    admin.post(MAPS, &labelled("end", "x")).await.expect(201);
    let mut seen = Vec::new();
    for _ in 0..4 {
        let event = watch.next().await.unwrap();
        let label = event["object"]["metadata"]["labels"]["app"].as_str().unwrap().to_owned();
        seen.push((event["type"].as_str().unwrap().to_owned(), label));
    }
    let expected = [("ADDED", "x"), ("MODIFIED", "x"), ("DELETED", "x"), ("ADDED", "x")];
    assert_eq!(seen, expected.map(|(kind, label)| (kind.to_owned(), label.to_owned())));
}

#[tokio::test(start_paused = true)]
async fn field_selectors_and_namespaces_narrow_a_watch() {
    let world = World::new().await;
    let admin = world.admin();
    let mut bound = admin.watch("/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn1").await;
    let mut named = admin.watch(&format!("{MAPS}?watch=1&fieldSelector=metadata.name%3Db")).await;
    let mut elsewhere = admin.watch("/api/v1/namespaces/kube-public/configmaps?watch=1").await;
    admin.post(PODS, &pod("p")).await.expect(201);
    let binding = json!({ "metadata": { "name": "p" }, "target": { "name": "n1" } });
    admin.post(&format!("{PODS}/p/binding"), &binding).await.expect(201);
    assert_eq!(bound.say().await, "ADDED p", "it appears when it is bound");
    for name in ["a", "b"] {
        admin.post(MAPS, &config_map(name)).await.expect(201);
    }
    assert_eq!(named.say().await, "ADDED b");
    admin.post("/api/v1/namespaces/kube-public/configmaps", &config_map("c")).await.expect(201);
    assert_eq!(elsewhere.say().await, "ADDED c");
}

#[tokio::test(start_paused = true)]
async fn initial_events_end_with_a_marked_bookmark() {
    let world = World::new().await;
    let admin = world.admin();
    let made = admin.post(MAPS, &config_map("a")).await.expect(201);
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    for version in ["", "&resourceVersion=0", &format!("&resourceVersion={}", revision(&made))] {
        let mut watch = admin.watch(&format!("{MAPS}?{query}{version}")).await;
        says(&mut watch, &["ADDED a"]).await;
        let bookmark = watch.next().await.unwrap();
        assert_eq!(bookmark["type"], "BOOKMARK");
        assert_eq!(bookmark["object"]["kind"], "ConfigMap");
        assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
        assert!(revision(&bookmark["object"]) >= revision(&made));
    }
    let mut none = admin
        .watch(&format!("{MAPS}?watch=1&sendInitialEvents=false&resourceVersionMatch=NotOlderThan"))
        .await;
    admin.post(MAPS, &config_map("b")).await.expect(201);
    assert_eq!(none.say().await, "ADDED b");
    for bad in ["sendInitialEvents=true", "resourceVersionMatch=NotOlderThan", "resourceVersion=x"] {
        assert_eq!(admin.get(&format!("{MAPS}?watch=1&{bad}")).await.code, 422, "{bad}");
    }
}

#[tokio::test(start_paused = true)]
async fn bookmarks_follow_the_whole_store_and_never_lead_events() {
    let world = World::new().await;
    let admin = world.admin();
    let mut watch = admin.watch(&format!("{MAPS}?watch=1&allowWatchBookmarks=true&timeoutSeconds=150")).await;
    let mut quiet = admin.watch(&format!("{MAPS}?watch=1&timeoutSeconds=150")).await;
    admin.post(MAPS, &config_map("a")).await.expect(201);
    admin.post(PODS, &pod("p")).await.expect(201);
    says(&mut watch, &["ADDED a"]).await;
    let bookmark = watch.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(
        revision(&bookmark["object"]),
        world.store.revision().await.unwrap().0,
        "another kind's write counts"
    );
    assert_eq!(watch.say().await, "end", "nothing new, no second bookmark, and the time is up");
    assert_eq!(world.clock.elapsed(), Duration::from_secs(150));
    says(&mut quiet, &["ADDED a", "end"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_is_compacted_is_gone() {
    let world = World::new().await;
    let admin = world.admin();
    let first = admin.post(MAPS, &config_map("a")).await.expect(201);
    for i in 0..5 {
        admin.post(MAPS, &config_map(&format!("b{i}"))).await.expect(201);
    }
    world.server.stop().await;
    let World { store, clock, .. } = world;
    store.compact(store.revision().await.unwrap()).await.unwrap();
    // A server that starts now has none of the history in its rings.
    let config = coracle_apiserver::Config {
        service_range: coracle_apiserver::ServiceRange::default(),
        advertise: "192.0.2.10:6443".parse().unwrap(),
        kubelet: None,
        joining: None,
        account_key: coracle_apiserver::pki::AccountKey::unkept().unwrap().into(),
    };
    let ids = std::sync::Arc::new(coracle_clock::Ids::new(coracle_clock::Rng::seeded(3)));
    let engine: std::sync::Arc<dyn Store> = store.clone();
    let server = coracle_apiserver::ApiServer::start(config, engine, clock.clone(), ids).await.unwrap();
    let world = World { server, store, clock };
    let mut watch =
        world.admin().watch(&format!("{MAPS}?watch=1&resourceVersion={}", revision(&first))).await;
    let event = watch.next().await.unwrap();
    assert_eq!(event["type"], "ERROR");
    assert_eq!(event["object"]["reason"], "Expired");
    assert_eq!(event["object"]["code"], 410);
    assert!(
        event["object"]["message"].as_str().unwrap().starts_with("too old resource version: "),
        "{event}"
    );
    assert_eq!(watch.say().await, "end");
}

#[tokio::test(start_paused = true)]
async fn history_from_before_the_start_is_replayed() {
    let files = coracle_store::simfs::SimFs::new(coracle_clock::Rng::seeded(7));
    let world = World::on(files.clone()).await;
    let first = world.admin().post(MAPS, &config_map("a")).await.expect(201);
    world.admin().post(MAPS, &config_map("b")).await.expect(201);
    world.server.stop().await;
    drop(world);
    tokio::task::yield_now().await;
    let world = World::on(files).await;
    let admin = world.admin();
    let mut watch = admin.watch(&format!("{MAPS}?watch=1&resourceVersion={}", revision(&first))).await;
    says(&mut watch, &["ADDED b"]).await;
    admin.post(MAPS, &config_map("c")).await.expect(201);
    admin.post(MAPS, &config_map("d")).await.expect(201);
    says(&mut watch, &["ADDED c", "ADDED d"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_does_not_keep_up_is_told_and_delays_nobody() {
    let world = World::new().await;
    let admin = world.admin();
    let mut slow = admin.watch(&format!("{MAPS}?watch=1")).await;
    let mut last = 0;
    for i in 0..1500 {
        for name in ["a", "b", "c"] {
            let map = json!({ "metadata": { "name": name }, "data": { "i": i.to_string() } });
            last = match i {
                0 => revision(&admin.post(MAPS, &map).await.expect(201)),
                _ => revision(&admin.put(&format!("{MAPS}/{name}"), &map).await.expect(200)),
            };
        }
    }
    let event = slow.next().await.unwrap();
    assert_eq!(event["type"], "ERROR", "4500 changes do not fit the ring: {event}");
    assert_eq!(event["object"]["code"], 410);
    assert_eq!(slow.say().await, "end");
    let mut fresh = admin.watch(&format!("{MAPS}?watch=1&resourceVersion={}", last - 2)).await;
    says(&mut fresh, &["MODIFIED b", "MODIFIED c"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_hundred_watchers_see_the_same() {
    let world = World::new().await;
    let admin = world.admin();
    let mut watches = Vec::new();
    for _ in 0..100 {
        watches.push(admin.watch(&format!("{MAPS}?watch=1")).await);
    }
    for i in 0..20 {
        admin.post(MAPS, &config_map(&format!("m{i:02}"))).await.expect(201);
    }
    for watch in &mut watches {
        for i in 0..20 {
            assert_eq!(watch.say().await, format!("ADDED m{i:02}"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn tables_and_metadata_can_be_watched() {
    let world = World::new().await;
    let admin = world.admin();
    admin.post(PODS, &pod("p")).await.expect(201);
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let mut watch = admin.watch_as(&format!("{PODS}?watch=1"), table).await;
    let first = watch.next().await.unwrap();
    assert_eq!(first["object"]["kind"], "Table");
    assert_eq!(first["object"]["rows"][0]["cells"][0], "p");
    assert!(first["object"]["columnDefinitions"].is_array());
    admin.delete(&format!("{PODS}/p"), None).await.expect(200);
    let second = watch.next().await.unwrap();
    assert_eq!(second["type"], "DELETED");
    assert!(second["object"]["columnDefinitions"].is_null(), "columns are sent once");
    let partial = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
    let mut watch = admin.watch_as(&format!("{PODS}?watch=1"), partial).await;
    admin.post(PODS, &pod("q")).await.expect(201);
    let event = watch.next().await.unwrap();
    assert_eq!(event["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(event["object"].get("spec"), None);
}

#[tokio::test(start_paused = true)]
async fn watches_end_with_the_server() {
    let world = World::new().await;
    let mut watch = world.admin().watch(&format!("{MAPS}?watch=1")).await;
    let server = world.server.clone();
    let ending = tokio::spawn(async move { server.stop().await });
    assert_eq!(watch.say().await, "end");
    ending.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_watch_cannot_do_is_said_before_it_begins() {
    let world = World::new().await;
    let admin = world.admin();
    let initial = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let future = admin.get(&format!("{MAPS}?{initial}&resourceVersion=1000000")).await;
    assert!(future.message(504).contains("Too large resource version: 1000000, current: "));
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let answer = admin.get_as(&format!("{MAPS}?watch=1&includeObject=Nothing"), table).await;
    assert!(answer.message(422).contains("includeObject: Unsupported value: \"Nothing\""));
}

/// The value of a counter without labels.
async fn metric(world: &World, name: &str) -> u64 {
    let text = world.admin().get("/metrics").await.bytes;
    let text = String::from_utf8(text.to_vec()).unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_pods_event_costs_nothing_to_agents_of_other_nodes_and_one_look_for_all_selectors() {
    let world = World::new().await;
    let admin = world.admin();
    let mut agents = Vec::new();
    let (told, mut tell) = tokio::sync::mpsc::unbounded_channel();
    for index in 0..1000 {
        let url = format!("/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn{index}");
        let (mut watch, told) = (admin.watch(&url).await, told.clone());
        agents.push(tokio::spawn(async move {
            loop {
                told.send((index, watch.say().await)).unwrap();
            }
        }));
    }
    let mut next = async || tell.recv().await.unwrap();
    let woken = metric(&world, "coracle_watch_wakeups_total").await;
    admin.post(PODS, &pod("p")).await.expect(201);
    let binding = json!({ "metadata": { "name": "p" }, "target": { "name": "n7" } });
    admin.post(&format!("{PODS}/p/binding"), &binding).await.expect(201);
    assert_eq!(next().await, (7, "ADDED p".to_owned()));
    let label = json!({ "metadata": { "labels": { "app": "x" } } });
    admin.patch(&format!("{PODS}/p"), "merge", &label).await.expect(200);
    assert_eq!(next().await, (7, "MODIFIED p".to_owned()));
    // Those of the server's own parts are among the woken.
    assert!(metric(&world, "coracle_watch_wakeups_total").await - woken < 20);
    assert_eq!(metric(&world, "coracle_watch_decodes_total").await, 0);

    let (told, mut tell) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..1000 {
        let url = format!("{PODS}?watch=1&labelSelector=app%3Dx&fieldSelector=status.phase%3DPending");
        let (mut watch, told) = (admin.watch(&url).await, told.clone());
        agents.push(tokio::spawn(async move {
            loop {
                told.send(watch.say().await).unwrap();
            }
        }));
    }
    for _ in 0..1000 {
        assert_eq!(tell.recv().await.unwrap(), "ADDED p");
    }
    admin
        .patch(&format!("{PODS}/p"), "merge", &json!({ "metadata": { "labels": { "b": "c" } } }))
        .await
        .expect(200);
    for _ in 0..1000 {
        assert_eq!(tell.recv().await.unwrap(), "MODIFIED p");
    }
    assert_eq!(
        metric(&world, "coracle_watch_decodes_total").await,
        2,
        "the old and the new object, once for all"
    );
    agents.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn names_and_namespaces_in_selectors_are_those_of_the_key() {
    let world = World::new().await;
    let admin = world.admin();
    let public = "/api/v1/namespaces/kube-public/configmaps";
    for (selector, expected) in [
        ("metadata.name%3Da", &["ADDED a", "ADDED a"][..]),
        ("metadata.name%3Da,metadata.namespace%3Dkube-public", &["ADDED a"]),
        ("metadata.namespace%3Dkube-public", &["ADDED a", "ADDED ab"]),
        ("metadata.namespace%3Dkube-public,metadata.name!%3Da", &["ADDED ab"]),
        ("metadata.name%3Da,metadata.name%3Dab", &[]),
    ] {
        let url = format!("/api/v1/configmaps?fieldSelector={selector}");
        let mut watch = admin.watch(&format!("{url}&watch=1&timeoutSeconds=10")).await;
        for url in [MAPS, public] {
            for name in ["a", "ab"] {
                admin.post(url, &config_map(name)).await.expect(201);
            }
        }
        let listed = admin.get(&url).await.expect(200);
        assert_eq!(listed["items"].as_array().unwrap().len(), expected.len(), "{selector}");
        let mut fresh = admin.watch(&format!("{url}&watch=1&timeoutSeconds=10")).await;
        for watch in [&mut watch, &mut fresh] {
            says(watch, expected).await;
            assert_eq!(watch.say().await, "end", "{selector}");
        }
        for url in [MAPS, public] {
            for name in ["a", "ab"] {
                admin.delete(&format!("{url}/{name}"), None).await.expect(200);
            }
        }
    }
    admin.post(MAPS, &config_map("a")).await.expect(201);
    let other = format!("{MAPS}?fieldSelector=metadata.name%3Da,metadata.namespace%3Dkube-public");
    assert_eq!(admin.get(&other).await.expect(200)["items"], json!([]));
}
