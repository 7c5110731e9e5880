//! Every verb and its rules, through the service, on the real store.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "verbs/deletion.rs"]
mod deletion;
#[path = "verbs/reading.rs"]
mod reading;

use std::time::Duration;

use bytes::Bytes;
use common::{MAPS, PODS, World, config_map, pod, revision};
use coracle_apiserver::auth::UserInfo;
use coracle_store::{ListRequest, Op, Revision, Store, Txn};
use serde_json::{Value, json};

#[tokio::test(start_paused = true)]
async fn a_new_cluster_has_its_namespaces_and_the_kubernetes_service() {
    let world = World::new().await;
    let admin = world.admin();
    let namespaces = admin.get("/api/v1/namespaces").await.expect(200);
    let names: Vec<_> =
        namespaces["items"].as_array().unwrap().iter().map(|n| &n["metadata"]["name"]).collect();
    assert_eq!(names, ["default", "kube-node-lease", "kube-public", "kube-system"]);
    assert_eq!(namespaces["items"][0].get("kind"), None, "items carry no type");
    let service = admin.get("/api/v1/namespaces/default/services/kubernetes").await.expect(200);
    assert_eq!(service["spec"]["clusterIP"], "10.43.0.1");
    let endpoints = admin.get("/api/v1/namespaces/default/endpoints/kubernetes").await.expect(200);
    assert_eq!(endpoints["subsets"][0]["addresses"][0]["ip"], "192.0.2.10");
}

#[tokio::test(start_paused = true)]
async fn what_every_cluster_has_comes_back() {
    let world = World::new().await;
    let admin = world.admin();
    let url = "/api/v1/namespaces/default/services";
    let mut watch = admin.watch(&format!("{url}?watch=1")).await;
    assert_eq!(watch.say().await, "ADDED kubernetes");
    admin.delete(&format!("{url}/kubernetes"), None).await.expect(200);
    assert_eq!(watch.say().await, "DELETED kubernetes");
    let again = watch.next().await.unwrap();
    assert_eq!(again["type"], "ADDED");
    assert_eq!(again["object"]["spec"]["clusterIP"], "10.43.0.1");
}

#[tokio::test(start_paused = true)]
async fn create_answers_the_object_and_refuses_what_is_wrong() {
    let world = World::new().await;
    let admin = world.admin();
    let made = admin.post(MAPS, &config_map("a")).await.expect(201);
    assert_eq!(made["metadata"]["namespace"], "default");
    assert_eq!(made["metadata"]["creationTimestamp"], "2030-01-01T12:00:00Z");
    assert_eq!(made["metadata"]["uid"].as_str().unwrap().len(), 36);
    assert_eq!(admin.get(&format!("{MAPS}/a")).await.expect(200), made);

    let table: [(Value, u16, &str); 7] = [
        (config_map("a"), 409, r#"configmaps "a" already exists"#),
        (
            config_map("A_b"),
            422,
            r#"ConfigMap "A_b" is invalid: metadata.name: Invalid value: "A_b": a lowercase RFC 1123 subdomain"#,
        ),
        (json!({ "metadata": {} }), 422, "metadata.name: Required value: name or generateName is required"),
        (
            json!({ "apiVersion": "v2", "kind": "ConfigMap", "metadata": { "name": "b" } }),
            400,
            "the API version in the data (v2) does not match the expected API version (v1)",
        ),
        (json!({ "kind": "Pod", "metadata": { "name": "b" } }), 400, "cannot be handled as a ConfigMap"),
        (
            json!({ "metadata": { "name": "b", "namespace": "other" } }),
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            json!({ "metadata": { "name": "b", "resourceVersion": "7" } }),
            500,
            "resourceVersion should not be set on objects to be created",
        ),
    ];
    for (body, code, message) in table {
        let said = admin.post(MAPS, &body).await.message(code);
        assert!(said.contains(message), "{said}");
    }
    for (body, code) in [("{", 400), ("", 400), ("{\"a\":\"\u{fffd}", 400), ("[1]", 400)] {
        let answer = admin.send("POST", MAPS, &[], Bytes::from(body.to_owned())).await;
        assert_eq!(answer.code, code, "{body}");
        assert_eq!(answer.body["kind"], "Status");
    }
    let invalid_utf8 = admin.send("POST", MAPS, &[], Bytes::from_static(b"{\"\xff\":1}")).await;
    assert_eq!(invalid_utf8.code, 400);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(admin.send("POST", MAPS, &[], deep.into()).await.code, 400);
    let large = Bytes::from(vec![b' '; 3 * 1024 * 1024 + 1]);
    let said = admin.send("POST", MAPS, &[], large).await.message(413);
    assert_eq!(said, "Request entity too large: limit is 3145728");
    let typed = [("content-type", "text/plain")];
    assert_eq!(admin.send("POST", MAPS, &typed, Bytes::from_static(b"{}")).await.code, 415);
    let yaml = [("content-type", "application/yaml")];
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: y\ndata: {a: b}\n";
    assert_eq!(admin.send("POST", MAPS, &yaml, text.into()).await.expect(201)["data"]["a"], "b");
    let missing = admin.post("/api/v1/namespaces/nope/configmaps", &config_map("a")).await.message(404);
    assert_eq!(missing, r#"namespaces "nope" not found"#);
}

#[tokio::test(start_paused = true)]
async fn field_validation_drops_warns_or_refuses() {
    let world = World::new().await;
    let admin = world.admin();
    let body = r#"{"metadata":{"name":"a","nme":"x"},"data":{"a":"b"},"data":{"a":"c"}}"#;
    let strict =
        admin.send("POST", &format!("{MAPS}?fieldValidation=Strict"), &[], body.into()).await.message(400);
    assert!(
        strict.starts_with(
            r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error:"#
        ),
        "{strict}"
    );
    assert!(
        strict.contains(r#"unknown field "metadata.nme""#) && strict.contains(r#"duplicate field "data""#),
        "{strict}"
    );
    let warned = admin.send("POST", MAPS, &[], body.into()).await;
    let warnings: Vec<_> =
        warned.headers.get_all("warning").iter().map(|w| w.to_str().unwrap().to_owned()).collect();
    assert!(warnings.contains(&r#"299 - "unknown field \"metadata.nme\"""#.to_owned()), "{warnings:?}");
    assert_eq!(warned.expect(201)["metadata"].get("nme"), None);
    let ignored = admin.send("PUT", &format!("{MAPS}/a?fieldValidation=Ignore"), &[], body.into()).await;
    assert_eq!(ignored.headers.get("warning"), None);
    assert_eq!(admin.post(&format!("{MAPS}?fieldValidation=Maybe"), &config_map("b")).await.code, 422);
}

#[tokio::test(start_paused = true)]
async fn names_are_generated_until_one_is_free() {
    let world = World::new().await;
    let admin = world.admin();
    let body = json!({ "metadata": { "generateName": "x-" } });
    let first = admin.post(MAPS, &body).await.expect(201);
    let second = admin.post(MAPS, &body).await.expect(201);
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_owned();
    assert!(name(&first).starts_with("x-") && name(&first).len() == 7, "{first}");
    assert_ne!(name(&first), name(&second));
}

#[tokio::test(start_paused = true)]
async fn dry_runs_change_nothing() {
    let world = World::new().await;
    let admin = world.admin();
    let made = admin.post(&format!("{MAPS}?dryRun=All"), &config_map("a")).await.expect(201);
    assert_eq!(made["metadata"].get("resourceVersion"), None);
    admin.get(&format!("{MAPS}/a")).await.expect(404);
    admin.post(MAPS, &config_map("a")).await.expect(201);
    assert_eq!(admin.post(&format!("{MAPS}?dryRun=All"), &config_map("a")).await.code, 409);
    admin.delete(&format!("{MAPS}/a?dryRun=All"), None).await.expect(200);
    admin.patch(&format!("{MAPS}/a?dryRun=All"), "merge", &json!({ "data": { "k": "w" } })).await.expect(200);
    assert_eq!(admin.get(&format!("{MAPS}/a")).await.expect(200)["data"]["k"], "v");
    assert_eq!(admin.post(&format!("{MAPS}?dryRun=Some"), &config_map("b")).await.code, 422);
}

#[tokio::test(start_paused = true)]
async fn update_compares_the_revision_and_writes_only_what_changed() {
    let world = World::new().await;
    let admin = world.admin();
    let url = format!("{MAPS}/a");
    let made = admin.post(MAPS, &config_map("a")).await.expect(201);
    let mut next = made.clone();
    next["data"]["k"] = "w".into();
    let updated = admin.put(&url, &next).await.expect(200);
    assert!(revision(&updated) > revision(&made));
    let stale = admin.put(&url, &next).await;
    assert_eq!(stale.body["reason"], "Conflict");
    assert_eq!(
        stale.message(409),
        r#"Operation cannot be fulfilled on configmaps "a": the object has been modified; please apply your changes to the latest version and try again"#
    );
    assert_eq!(
        admin.put(&url, &updated).await.expect(200),
        updated,
        "an update without a change is no write"
    );
    let mut unconditional = config_map("a");
    unconditional["data"]["k"] = "u".into();
    let answer = admin.put(&url, &unconditional).await.expect(200);
    assert_eq!(answer["metadata"]["uid"], made["metadata"]["uid"]);
    let mut other = config_map("a");
    other["metadata"]["uid"] = "x".into();
    assert!(admin.put(&url, &other).await.message(409).contains("UID in precondition: x"));
    let wrong = admin.put(&url, &config_map("b")).await.message(400);
    assert_eq!(wrong, "the name of the object (b) does not match the name on the URL (a)");
    assert_eq!(
        admin.put(&format!("{MAPS}/z"), &config_map("z")).await.message(404),
        r#"configmaps "z" not found"#
    );
}

#[tokio::test(start_paused = true)]
async fn the_three_patches_apply_and_apply_is_refused() {
    let world = World::new().await;
    let admin = world.admin();
    let url = format!("{PODS}/p");
    admin.post(PODS, &pod("p")).await.expect(201);
    let labels = json!({ "metadata": { "labels": { "a": "b" } } });
    assert_eq!(admin.patch(&url, "merge", &labels).await.expect(200)["metadata"]["labels"]["a"], "b");
    let operations = json!([{ "op": "add", "path": "/metadata/labels/c", "value": "d" }]);
    assert_eq!(admin.patch(&url, "json", &operations).await.expect(200)["metadata"]["labels"]["c"], "d");
    let image = json!({ "spec": { "containers": [{ "name": "c", "image": "other" }] } });
    let patched = admin.patch(&url, "strategic-merge", &image).await.expect(200);
    assert_eq!(patched["spec"]["containers"].as_array().unwrap().len(), 1);
    assert_eq!(patched["spec"]["containers"][0]["image"], "other");
    assert_eq!(patched["metadata"]["generation"], 2);
    assert_eq!(admin.patch(&url, "apply", &labels).await.code, 415);
    let stale = json!({ "metadata": { "resourceVersion": "1", "labels": { "z": "z" } } });
    assert_eq!(admin.patch(&url, "merge", &stale).await.code, 409);
    assert_eq!(admin.patch(&url, "json", &json!([{ "op": "remove", "path": "/nope" }])).await.code, 422);
    assert_eq!(admin.patch(&url, "merge", &json!([1])).await.code, 400);
    assert_eq!(admin.patch(&format!("{PODS}/q"), "merge", &labels).await.code, 404);
    let status = json!({ "status": { "phase": "Running" }, "spec": { "nodeName": "ignored" } });
    let answer = admin.patch(&format!("{url}/status"), "merge", &status).await.expect(200);
    assert_eq!(answer["status"]["phase"], "Running");
    assert_eq!(answer["spec"].get("nodeName"), None);
}

#[tokio::test(start_paused = true)]
async fn concurrent_patches_all_arrive() {
    let world = World::new().await;
    let admin = world.admin();
    admin.post(MAPS, &config_map("a")).await.expect(201);
    let mut tasks = Vec::new();
    for i in 0..4 {
        let admin = admin.clone();
        tasks.push(tokio::spawn(async move {
            let patch = json!({ "data": { format!("k{i}"): "v" } });
            admin.patch(&format!("{MAPS}/a"), "merge", &patch).await.expect(200);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let data = admin.get(&format!("{MAPS}/a")).await.expect(200);
    assert_eq!(data["data"].as_object().unwrap().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn ephemeral_containers_come_by_a_path_that_changes_nothing_else() {
    let world = World::new().await;
    let admin = world.admin();
    admin.post(PODS, &pod("p")).await.expect(201);
    let url = format!("{PODS}/p/ephemeralcontainers");
    let mut seen = admin.get(&url).await.expect(200);
    assert_eq!(seen["kind"], "Pod");
    let image = seen["spec"]["containers"][0]["image"].clone();
    seen["spec"]["containers"][0]["image"] = "other".into();
    seen["metadata"]["labels"] = json!({"a": "b"});
    let after = admin.put(&url, &seen).await.expect(200);
    assert_eq!(after["spec"]["containers"][0]["image"], image);
    assert_eq!(after["metadata"].get("labels"), None);
    assert_eq!(after["metadata"]["resourceVersion"], seen["metadata"]["resourceVersion"]);
    // As `kubectl debug` sends it, but for the port.
    let mut debug = json!({"spec": {
        "$setElementOrder/ephemeralContainers": [{"name": "debugger-x"}],
        "ephemeralContainers": [{
            "name": "debugger-x", "image": "busybox", "resources": {}, "stdin": true, "tty": true,
            "terminationMessagePolicy": "File", "targetContainerName": "c", "ports": [{"containerPort": 1}]
        }]
    }});
    let refused = admin.patch(&url, "strategic-merge", &debug).await.message(422);
    assert!(
        refused.contains(
            "spec.ephemeralContainers[0].ports: Forbidden: cannot be set for an Ephemeral Container"
        ),
        "{refused}"
    );
    debug["spec"]["ephemeralContainers"][0].as_object_mut().unwrap().shift_remove("ports");
    let added = admin.patch(&url, "strategic-merge", &debug).await.expect(200);
    assert_eq!(added["metadata"]["generation"], 2);
    assert_eq!(
        added["spec"]["ephemeralContainers"],
        json!([{
            "name": "debugger-x", "image": "busybox", "resources": {}, "stdin": true, "tty": true,
            "terminationMessagePolicy": "File", "targetContainerName": "c", "imagePullPolicy": "Always",
            "terminationMessagePath": "/dev/termination-log"
        }])
    );
    // The object as it was read before no longer is.
    let late = admin.put(&url, &seen).await.message(409);
    assert!(late.contains("the object has been modified"), "{late}");
    let mut without = added.clone();
    without["spec"].as_object_mut().unwrap().shift_remove("ephemeralContainers");
    let refused = admin.put(&url, &without).await.message(422);
    assert!(refused.contains("existing ephemeral containers \"debugger-x\" may not be removed"), "{refused}");
    let refused = admin.put(&format!("{PODS}/p"), &without).await.message(422);
    assert!(refused.contains("pod updates may not change fields other than"), "{refused}");
    admin.post(&url, &seen).await.expect(405);
    let mut with_one = pod("q");
    with_one["spec"]["ephemeralContainers"] = json!([{"name": "e", "image": "i"}]);
    let refused = admin.post(PODS, &with_one).await.message(422);
    assert!(refused.contains("spec.ephemeralContainers: Forbidden: cannot be set on create"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_gated_pod_says_so_and_gets_no_node_before_its_gates_are_gone() {
    let world = World::new().await;
    let admin = world.admin();
    let mut gated = pod("p");
    gated["spec"]["schedulingGates"] = json!([{"name": "g"}]);
    let made = admin.post(PODS, &gated).await.expect(201);
    assert_eq!(
        made["status"]["conditions"],
        json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "lastProbeTime": null,
            "lastTransitionTime": "2030-01-01T12:00:00Z",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        }])
    );
    let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": "p" }, "target": { "kind": "Node", "name": "n1" } });
    let refused = admin.post(&format!("{PODS}/p/binding"), &binding).await.message(409);
    assert!(refused.contains("pod p has non-empty .spec.schedulingGates"), "{refused}");
    let open = json!({"spec": {"schedulingGates": null, "nodeSelector": {"a": "b"}}});
    let opened = admin.patch(&format!("{PODS}/p"), "merge", &open).await.expect(200);
    assert_eq!(opened["metadata"]["generation"], 2);
    assert_eq!(opened["spec"]["nodeSelector"], json!({"a": "b"}));
    admin.post(&format!("{PODS}/p/binding"), &binding).await.expect(201);
    let bound = admin.get(&format!("{PODS}/p")).await.expect(200);
    assert_eq!(bound["status"]["conditions"].as_array().unwrap().len(), 1);
    assert_eq!(bound["status"]["conditions"][0]["status"], "True");
    assert_eq!(bound["status"]["conditions"][0].get("reason"), None);
}

#[tokio::test(start_paused = true)]
async fn only_members_may_and_nodes_see_only_what_is_theirs() {
    let world = World::new().await;
    let (admin, node, stranger) =
        (world.admin(), world.user(UserInfo::node("n1")), world.user(UserInfo::new("jane", [])));
    let said = stranger.get(PODS).await.message(403);
    assert_eq!(
        said,
        r#"pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "default""#
    );
    let as_jane = admin.send("GET", PODS, &[("impersonate-user", "jane")], Bytes::new()).await;
    assert_eq!(as_jane.message(403), said, "an administrator who acts as somebody has their rights alone");
    stranger.get("/api").await.expect(200);
    stranger.get("/metrics").await.expect(403);

    let secret = |name: &str| json!({ "metadata": { "name": name }, "stringData": { "k": "v" } });
    let secrets = "/api/v1/namespaces/default/secrets";
    for name in ["used", "unused"] {
        admin.post(secrets, &secret(name)).await.expect(201);
    }
    // Written past the server, because no Pod may refer to a Secret yet.
    let mut mine = pod("mine");
    mine["metadata"] = json!({ "name": "mine", "namespace": "default", "uid": "u" });
    mine["spec"]["containers"][0]["env"] =
        json!([{ "name": "X", "valueFrom": { "secretKeyRef": { "name": "used", "key": "k" } } }]);
    let key = Bytes::from_static(b"/registry/pods/default/mine");
    let (head, rest) = (r#"{"apiVersion":"v1","kind":"Pod","metadata":"#, mine["metadata"].to_string());
    let value = format!("{head}{rest},\"spec\":{}}}", mine["spec"]).into();
    let txn = Txn { compares: Vec::new(), ops: vec![Op::Put { key, value }] };
    world.store.txn(txn).await.unwrap();
    admin.post(PODS, &pod("other")).await.expect(201);
    assert_eq!(node.get(&format!("{secrets}/used")).await.code, 403, "the Pod is not bound yet");
    for (name, to) in [("mine", "n1"), ("other", "n2")] {
        let binding = json!({ "metadata": { "name": name }, "target": { "name": to } });
        admin.post(&format!("{PODS}/{name}/binding"), &binding).await.expect(201);
    }
    node.get(&format!("{secrets}/used")).await.expect(200);
    let refused = node.get(&format!("{secrets}/unused")).await.message(403);
    assert!(refused.ends_with("no relationship found between node 'n1' and this object"), "{refused}");
    for (name, code) in [("used", 200), ("unused", 403)] {
        node.get(&format!("{secrets}?fieldSelector=metadata.name%3D{name}")).await.expect(code);
        let everywhere = node.get(&format!("/api/v1/secrets?fieldSelector=metadata.name%3D{name}")).await;
        let refused = everywhere.message(403);
        assert!(refused.ends_with("can only read namespaced object of this type"), "{refused}");
    }
    node.get(&format!("{PODS}/mine")).await.expect(200);
    node.get(&format!("{PODS}/other")).await.expect(403);
    let status = json!({ "status": { "phase": "Running" } });
    node.patch(&format!("{PODS}/mine/status"), "strategic-merge", &status).await.expect(200);
    node.patch(&format!("{PODS}/other/status"), "strategic-merge", &status).await.expect(403);
    assert_eq!(node.post("/api/v1/nodes", &json!({ "metadata": { "name": "n2" } })).await.code, 403);
    node.post("/api/v1/nodes", &json!({ "metadata": { "name": "n1" } })).await.expect(201);
}

#[tokio::test(start_paused = true)]
async fn services_get_addresses_that_nobody_else_has() {
    let world = World::new().await;
    let admin = world.admin();
    let url = "/api/v1/namespaces/default/services";
    let service = |name: &str| json!({ "metadata": { "name": name }, "spec": { "ports": [{ "port": 80 }] } });
    let first = admin.post(url, &service("a")).await.expect(201);
    let ip = first["spec"]["clusterIP"].as_str().unwrap().to_owned();
    assert!(ip.starts_with("10.43."), "{ip}");
    assert_eq!(first["spec"]["clusterIPs"], json!([ip]));
    let mut same = service("b");
    same["spec"]["clusterIP"] = ip.as_str().into();
    let taken = admin.post(url, &same).await.message(422);
    assert!(
        taken.contains(&format!("failed to allocate IP {ip}: provided IP is already allocated")),
        "{taken}"
    );
    same["spec"]["clusterIP"] = "10.99.0.1".into();
    assert!(
        admin
            .post(url, &same)
            .await
            .message(422)
            .contains("is not in the valid range. The range of valid IPs is 10.43.0.0/16")
    );
    let updated = admin.put(&format!("{url}/a"), &service("a")).await.expect(200);
    assert_eq!(updated["spec"]["clusterIP"], ip.as_str(), "an update that leaves it out keeps it");
    admin.delete(&format!("{url}/a"), None).await.expect(200);
    same["spec"]["clusterIP"] = ip.as_str().into();
    admin.post(url, &same).await.expect(201);
    let mut headless = service("h");
    headless["spec"]["clusterIP"] = "None".into();
    assert_eq!(admin.post(url, &headless).await.expect(201)["spec"]["clusterIPs"], json!(["None"]));
    let mut node_port = service("n");
    node_port["spec"]["type"] = "NodePort".into();
    let port_of = |service: &Value| service["spec"]["ports"][0]["nodePort"].as_i64().unwrap();
    let port = port_of(&admin.post(url, &node_port).await.expect(201));
    assert!((30000..=32767).contains(&port));
    let again = admin.put(&format!("{url}/n"), &node_port).await.expect(200);
    assert_eq!(port_of(&again), port, "an update that leaves it out keeps it");
    node_port["metadata"]["name"] = "m".into();
    node_port["spec"]["ports"][0]["nodePort"] = port.into();
    assert!(admin.post(url, &node_port).await.message(422).contains("provided port is already allocated"));
    node_port["spec"]["ports"][0]["nodePort"] = 80.into();
    assert!(
        admin.post(url, &node_port).await.message(422).contains("The range of valid ports is 30000-32767")
    );
    let balancer = json!({ "metadata": { "name": "l" }, "spec": {
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{ "port": 80 }] } });
    let balancer = admin.post(url, &balancer).await.expect(201);
    let check = balancer["spec"]["healthCheckNodePort"].as_i64().unwrap();
    assert!((30000..=32767).contains(&check) && check != port_of(&balancer));
    for name in ["b", "h", "l", "n"] {
        admin.delete(&format!("{url}/{name}"), None).await.expect(200);
    }
    let prefix = Bytes::from_static(b"/registry/ranges/");
    let left = world.store.list(&ListRequest { prefix, ..ListRequest::default() }).await.unwrap();
    let kubernetes = b"/registry/ranges/serviceips/10.43.0.1";
    assert!(left.items.iter().all(|kv| kv.key == kubernetes[..]), "nothing stays taken");
}

#[tokio::test(start_paused = true)]
async fn events_of_both_groups_are_one_and_expire_after_an_hour() {
    let world = World::new().await;
    let admin = world.admin();
    let event = json!({
        "metadata": { "name": "e" }, "reason": "Started", "type": "Normal", "message": "m",
        "involvedObject": { "kind": "Pod", "namespace": "default", "name": "p" },
        "firstTimestamp": "2030-01-01T12:00:00Z", "lastTimestamp": "2030-01-01T12:00:00Z", "count": 1,
    });
    admin.post("/api/v1/namespaces/default/events", &event).await.expect(201);
    let other = admin.get("/apis/events.k8s.io/v1/namespaces/default/events/e").await.expect(200);
    assert_eq!(other["apiVersion"], "events.k8s.io/v1");
    assert_eq!(other["note"], "m");
    let list = admin.get("/apis/events.k8s.io/v1/events").await.expect(200);
    assert_eq!(list["items"][0]["regarding"]["name"], "p");
    let mut watch = admin.watch("/apis/events.k8s.io/v1/events?watch=1").await;
    assert_eq!(watch.next().await.unwrap()["object"]["deprecatedCount"], 1);
    world.clock.sleep(Duration::from_secs(59 * 60)).await;
    admin.get("/api/v1/namespaces/default/events/e").await.expect(200);
    world.clock.sleep(Duration::from_secs(3 * 60)).await;
    admin.get("/api/v1/namespaces/default/events/e").await.expect(404);
}

#[tokio::test(start_paused = true)]
async fn a_restarted_server_knows_what_it_knew() {
    let files = coracle_store::simfs::SimFs::new(coracle_clock::Rng::seeded(7));
    let world = World::on(files.clone()).await;
    let made = world.admin().post(MAPS, &config_map("a")).await.expect(201);
    world.server.stop().await;
    drop(world);
    tokio::task::yield_now().await;
    let world = World::on(files).await;
    assert_eq!(world.admin().get(&format!("{MAPS}/a")).await.expect(200), made);
    assert!(world.store.revision().await.unwrap() >= Revision(revision(&made)));
}
