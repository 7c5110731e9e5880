//! Every verb and its rules, through the service, on the real store.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

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
async fn deletion_answers_marks_and_waits_as_upstream() {
    let world = World::new().await;
    let admin = world.admin();
    let made = admin.post(MAPS, &config_map("a")).await.expect(201);
    let wrong = json!({ "preconditions": { "uid": "x" } });
    assert!(
        admin
            .delete(&format!("{MAPS}/a"), Some(&wrong))
            .await
            .message(409)
            .contains("does not match the UID in record")
    );
    let both = json!({ "propagationPolicy": "Foreground", "orphanDependents": true });
    let message = admin.delete(&format!("{MAPS}/a"), Some(&both)).await.message(422);
    assert!(message.contains("orphanDependents and deletionPropagation cannot be both set"), "{message}");
    let unknown = json!({ "propagationPolicy": "Cascade" });
    let message = admin.delete(&format!("{MAPS}/a"), Some(&unknown)).await.message(422);
    assert!(message.contains("propagationPolicy: Unsupported value: \"Cascade\""), "{message}");
    let status = admin
        .delete(&format!("{MAPS}/a"), Some(&json!({ "propagationPolicy": "Background" })))
        .await
        .expect(200);
    assert_eq!(status["status"], "Success");
    assert_eq!(
        status["details"],
        json!({ "name": "a", "kind": "configmaps", "uid": made["metadata"]["uid"] })
    );
    admin.delete(&format!("{MAPS}/a"), None).await.expect(404);

    let mut held = config_map("held");
    held["metadata"]["finalizers"] = json!(["example.com/x"]);
    admin.post(MAPS, &held).await.expect(201);
    let marked = admin.delete(&format!("{MAPS}/held"), None).await.expect(200);
    assert_eq!(marked["metadata"]["deletionTimestamp"], "2030-01-01T12:00:00Z");
    let again = admin.delete(&format!("{MAPS}/held"), None).await.expect(200);
    assert_eq!(revision(&again), revision(&marked), "a second delete is no write");
    let free = json!({ "metadata": { "finalizers": null } });
    admin.patch(&format!("{MAPS}/held"), "merge", &free).await.expect(200);
    admin.get(&format!("{MAPS}/held")).await.expect(404);
}

#[tokio::test(start_paused = true)]
async fn what_becomes_of_dependents_is_kept_as_a_finalizer() {
    let world = World::new().await;
    let admin = world.admin();
    for (options, code, finalizers) in [
        (json!({ "propagationPolicy": "Foreground" }), 200, json!(["foregroundDeletion"])),
        (json!({ "propagationPolicy": "Orphan" }), 200, json!(["orphan"])),
        (json!({ "orphanDependents": true }), 200, json!(["orphan"])),
    ] {
        admin.post(MAPS, &config_map("a")).await.expect(201);
        let url = format!("{MAPS}/a");
        let marked = admin.delete(&url, Some(&options)).await.expect(code);
        assert_eq!(marked["metadata"]["finalizers"], finalizers, "{options}");
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 0);
        let again = admin.delete(&url, None).await.expect(200);
        assert_eq!(revision(&again), revision(&marked), "what was asked for stays");
        admin.patch(&url, "merge", &json!({ "metadata": { "finalizers": null } })).await.expect(200);
        admin.get(&url).await.expect(404);
    }
    let mut held = config_map("held");
    held["metadata"]["finalizers"] = json!(["example.com/x"]);
    admin.post(MAPS, &held).await.expect(201);
    admin.delete(&format!("{MAPS}/held"), Some(&json!({ "orphanDependents": false }))).await.expect(202);
    admin.delete(&format!("{MAPS}?propagationPolicy=Orphan"), None).await.expect(200);
    let both = admin.get(&format!("{MAPS}/held")).await.expect(200);
    assert_eq!(both["metadata"]["finalizers"], json!(["example.com/x", "orphan"]));
}

#[tokio::test(start_paused = true)]
async fn a_bound_pod_is_deleted_in_two_steps() {
    let world = World::new().await;
    let admin = world.admin();
    admin.post(PODS, &pod("p")).await.expect(201);
    let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": "p" }, "target": { "kind": "Node", "name": "n1" } });
    assert_eq!(admin.post(&format!("{PODS}/p/binding"), &binding).await.expect(201)["status"], "Success");
    let twice = admin.post(&format!("{PODS}/p/binding"), &binding).await.message(409);
    assert_eq!(
        twice,
        r#"Operation cannot be fulfilled on pods/binding "p": pod p is already assigned to node "n1""#
    );
    let bound = admin.get(&format!("{PODS}/p")).await.expect(200);
    assert_eq!(bound["spec"]["nodeName"], "n1");
    let marked = admin.delete(&format!("{PODS}/p"), None).await.expect(200);
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(marked["metadata"]["deletionTimestamp"], "2030-01-01T12:00:30Z");
    let other_node = world.user(UserInfo::node("n2"));
    let zero = json!({ "gracePeriodSeconds": 0, "preconditions": { "uid": bound["metadata"]["uid"] } });
    let refused = other_node.delete(&format!("{PODS}/p"), Some(&zero)).await.message(403);
    assert!(
        refused.contains(r#"node "n2" can only delete pods with spec.nodeName set to itself"#),
        "{refused}"
    );
    let node = world.user(UserInfo::node("n1"));
    assert_eq!(node.delete(&format!("{PODS}/p"), Some(&zero)).await.expect(200)["kind"], "Pod");
    admin.get(&format!("{PODS}/p")).await.expect(404);
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
async fn a_namespace_goes_when_its_finalizer_does_and_takes_nothing_new() {
    let world = World::new().await;
    let admin = world.admin();
    admin
        .post(
            "/api/v1/namespaces",
            &json!({ "metadata": { "name": "a" }, "spec": { "finalizers": ["kubernetes"] } }),
        )
        .await
        .expect(201);
    for name in ["default", "kube-system", "kube-public"] {
        let said = admin.delete(&format!("/api/v1/namespaces/{name}"), None).await.message(403);
        assert_eq!(said, format!(r#"namespaces "{name}" is forbidden: this namespace may not be deleted"#));
    }
    let url = "/api/v1/namespaces/a";
    let marked = admin.delete(url, None).await.expect(200);
    assert_eq!(marked["status"]["phase"], "Terminating");
    let refused = admin.post("/api/v1/namespaces/a/configmaps", &config_map("x")).await;
    assert_eq!(refused.body["details"]["causes"][0]["reason"], "NamespaceTerminating");
    assert_eq!(
        refused.message(403),
        r#"configmaps "x" is forbidden: unable to create new content in namespace a because it is being terminated"#
    );
    let mut finalized = marked.clone();
    finalized["spec"]["finalizers"] = json!([]);
    admin.put(&format!("{url}/finalize"), &finalized).await.expect(200);
    admin.get(url).await.expect(404);
}

#[tokio::test(start_paused = true)]
async fn collections_are_deleted_by_selector() {
    let world = World::new().await;
    let admin = world.admin();
    for (name, app) in [("a", "x"), ("b", "y"), ("c", "x")] {
        let mut map = config_map(name);
        map["metadata"]["labels"] = json!({ "app": app });
        admin.post(MAPS, &map).await.expect(201);
    }
    let gone = admin.delete(&format!("{MAPS}?labelSelector=app%3Dx"), None).await.expect(200);
    assert_eq!(gone["items"].as_array().unwrap().len(), 2);
    let left = admin.get(MAPS).await.expect(200);
    assert_eq!(left["items"][0]["metadata"]["name"], "b");
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn lists_come_in_consistent_pages() {
    let world = World::new().await;
    let admin = world.admin();
    for i in 0..5 {
        admin.post(MAPS, &config_map(&format!("m{i}"))).await.expect(201);
    }
    let first = admin.get(&format!("{MAPS}?limit=2")).await.expect(200);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    let token = first["metadata"]["continue"].as_str().unwrap();
    admin.post(MAPS, &config_map("m00")).await.expect(201);
    admin.delete(&format!("{MAPS}/m4"), None).await.expect(200);
    let second = admin.get(&format!("{MAPS}?limit=2&continue={token}")).await.expect(200);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let token = second["metadata"]["continue"].as_str().unwrap().to_owned();
    let third = admin.get(&format!("{MAPS}?limit=2&continue={token}")).await.expect(200);
    assert_eq!(third["metadata"].get("continue"), None);
    let names: Vec<_> = [&first, &second, &third]
        .iter()
        .flat_map(|page| page["items"].as_array().unwrap())
        .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["m0", "m1", "m2", "m3", "m4"]);

    let nowhere = admin.get(&format!("{MAPS}?continue=nonsense")).await.message(400);
    assert!(nowhere.starts_with("invalid continue token"), "{nowhere}");
    let both = admin.get(&format!("{MAPS}?continue={token}&resourceVersion=1")).await.message(400);
    assert_eq!(both, "specifying resource version is not allowed when using continue");
    let filtered = admin.get(&format!("{MAPS}?limit=1&fieldSelector=metadata.name%3Dm2")).await.expect(200);
    assert_eq!(filtered["items"].as_array().unwrap().len(), 1);
    assert_eq!(filtered["metadata"].get("remainingItemCount"), None);

    let now = world.store.revision().await.unwrap();
    world.store.compact(now).await.unwrap();
    let expired = admin.get(&format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!(expired.body["reason"], "Expired");
    assert!(
        expired.body["message"].as_str().unwrap().starts_with("The provided continue parameter is too old")
    );
    let inconsistent = expired.body["metadata"]["continue"].as_str().unwrap().to_owned();
    assert_eq!(expired.code, 410);
    let rest = admin.get(&format!("{MAPS}?limit=2&continue={inconsistent}")).await.expect(200);
    assert_eq!(rest["metadata"]["resourceVersion"], now.to_string());
}

#[tokio::test(start_paused = true)]
async fn resource_versions_of_reads_follow_the_rules() {
    let world = World::new().await;
    let admin = world.admin();
    let first = admin.post(MAPS, &config_map("a")).await.expect(201);
    admin.post(MAPS, &config_map("b")).await.expect(201);
    let at = revision(&first);
    let count = |list: Value| list["items"].as_array().unwrap().len();
    assert_eq!(count(admin.get(&format!("{MAPS}?resourceVersion=0")).await.expect(200)), 2);
    assert_eq!(count(admin.get(&format!("{MAPS}?resourceVersion={at}")).await.expect(200)), 2);
    assert_eq!(
        count(
            admin
                .get(&format!("{MAPS}?resourceVersion={at}&resourceVersionMatch=NotOlderThan"))
                .await
                .expect(200)
        ),
        2
    );
    let exact =
        admin.get(&format!("{MAPS}?resourceVersion={at}&resourceVersionMatch=Exact")).await.expect(200);
    assert_eq!(exact["metadata"]["resourceVersion"], at.to_string());
    assert_eq!(count(exact), 1);
    for bad in [
        "resourceVersionMatch=Exact",
        "resourceVersion=0&resourceVersionMatch=Exact",
        "resourceVersion=1&resourceVersionMatch=Some",
        "sendInitialEvents=true",
        "resourceVersion=x",
    ] {
        assert_eq!(admin.get(&format!("{MAPS}?{bad}")).await.code, 422, "{bad}");
    }
    let future = admin.get(&format!("{MAPS}?resourceVersion=99999")).await;
    assert_eq!(future.body["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    assert!(future.message(504).contains("Too large resource version: 99999, current: "));
    assert_eq!(admin.get(&format!("{MAPS}/a?resourceVersion=99999")).await.code, 504);
    let now = world.store.revision().await.unwrap();
    world.store.compact(now).await.unwrap();
    assert_eq!(admin.get(&format!("{MAPS}?resourceVersion=1&resourceVersionMatch=Exact")).await.code, 410);
}

#[tokio::test(start_paused = true)]
async fn answers_come_in_the_shape_that_was_asked_for() {
    let world = World::new().await;
    let admin = world.admin();
    admin.post(PODS, &pod("p")).await.expect(201);
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let list = admin.get_as(PODS, table).await.expect(200);
    assert_eq!(list["kind"], "Table");
    assert_eq!(list["rows"][0]["cells"][0], "p");
    assert_eq!(list["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let one = admin.get_as(&format!("{PODS}/p?includeObject=Object"), table).await.expect(200);
    assert_eq!(one["rows"][0]["object"]["kind"], "Pod");
    let partial = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let list = admin.get_as(PODS, partial).await.expect(200);
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!(list["items"][0].get("spec"), None);
    let yaml = admin.get_as(&format!("{PODS}/p"), "application/yaml").await;
    assert!(yaml.bytes.starts_with(b"apiVersion: v1\nkind: Pod\n"), "{:?}", yaml.bytes);
    assert_eq!(admin.get_as(PODS, "application/vnd.kubernetes.protobuf").await.code, 406);
    assert_eq!(admin.get_as(PODS, "application/vnd.kubernetes.protobuf, */*").await.code, 200);
    let pretty = admin.get(&format!("{PODS}/p?pretty=true")).await;
    assert!(pretty.bytes.starts_with(b"{\n  \""));
}

#[tokio::test(start_paused = true)]
async fn paths_and_methods_that_lead_nowhere() {
    let world = World::new().await;
    let admin = world.admin();
    for (method, url, code) in [
        ("GET", "/api/v1/foos", 404),
        ("GET", "/apis/apps/v1/statefulsets", 404),
        ("GET", "/api/v2", 404),
        ("GET", "/nope", 404),
        ("GET", "/api/v1/namespaces/default/nodes", 404),
        ("GET", "/api/v1/nodes/n/proxy", 404),
        ("GET", "/api/v1/pods/p", 404),
        ("POST", "/api/v1/pods", 405),
        ("DELETE", "/api/v1/namespaces", 405),
        ("PUT", "/api/v1/namespaces/default/configmaps", 405),
        ("POST", "/version", 405),
        ("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", 405),
        ("BREW", "/api/v1/nodes", 405),
    ] {
        let answer = admin.send(method, url, &[], Bytes::new()).await;
        assert_eq!(
            (answer.code, answer.body["kind"].as_str()),
            (code, Some("Status")),
            "{method} {url}: {}",
            answer.body
        );
    }
    // Without this list kubectl does not get as far as saying that it does not know a kind.
    let none = admin.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").await.expect(200);
    assert_eq!((&none["kind"], &none["items"]), (&"CustomResourceDefinitionList".into(), &json!([])));
    let head = admin.send("HEAD", "/api/v1", &[], Bytes::new()).await;
    assert_eq!((head.code, head.bytes.len()), (200, 0));
    let bad = admin.get(&format!("{MAPS}?labelSelector=a+b+c")).await;
    assert_eq!(bad.code, 400);
    let unknown_field = admin.get(&format!("{MAPS}?fieldSelector=spec.foo%3Dx")).await;
    assert_eq!(unknown_field.code, 400);
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
async fn discovery_names_everything_and_is_not_sent_twice() {
    let world = World::new().await;
    let admin = world.admin();
    let v1 = admin.get("/api/v1").await.expect(200);
    let names: Vec<_> =
        v1["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"pods") && names.contains(&"pods/log") && names.contains(&"namespaces/finalize"));
    assert_eq!(admin.get("/apis").await.expect(200)["groups"][0]["preferredVersion"]["version"], "v1");
    admin.get("/apis/coordination.k8s.io").await.expect(200);
    for version in ["v2", "v2beta1"] {
        let accept = format!(
            "application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList,application/json"
        );
        let answer = admin.get_as("/api", &accept).await;
        let kind = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        assert_eq!(answer.headers["content-type"], kind.as_str());
        assert_eq!(answer.body["items"][0]["versions"][0]["version"], "v1");
        let etag = answer.headers["etag"].to_str().unwrap().to_owned();
        let again =
            admin.send("GET", "/api", &[("accept", &accept), ("if-none-match", &etag)], Bytes::new()).await;
        assert_eq!(again.code, 304);
        assert!(again.bytes.is_empty());
    }
    assert_eq!(admin.get("/version").await.expect(200)["minor"], "37");
    let index = admin.get("/openapi/v3").await.expect(200);
    let url = index["paths"]["api/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    let document = admin.get(&url).await;
    assert_eq!(document.headers["cache-control"], "public, immutable");
    assert!(document.expect(200)["components"]["schemas"]["io.k8s.api.core.v1.Pod"].is_object());
    assert_eq!(admin.get("/openapi/v2").await.expect(200)["swagger"], "2.0");
    // What kubectl asks for when it has to find out about kinds that it does not know.
    let protobuf = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let document = admin.get_as("/openapi/v2", protobuf).await;
    // The type that is asked for has a character that types cannot have: it could not be answered.
    let answered = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    assert_eq!((document.code, &document.headers["content-type"]), (200, &answered.parse().unwrap()));
    assert!(document.bytes.starts_with(b"\x0a\x032.0"));
    assert_eq!(admin.get_as("/openapi/v3", protobuf).await.code, 406);
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

#[tokio::test(start_paused = true)]
async fn a_collection_is_deleted_in_pages_if_asked_to() {
    let world = World::new().await;
    let admin = world.admin();
    for name in ["a", "b", "c"] {
        admin.post(MAPS, &config_map(name)).await.expect(201);
    }
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap().iter();
        items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let first = admin.delete(&format!("{MAPS}?limit=2"), None).await.expect(200);
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(names(&admin.get(MAPS).await.expect(200)), ["c"]);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let rest = admin.delete(&format!("{MAPS}?limit=2&continue={token}"), None).await.expect(200);
    assert_eq!(names(&rest), ["c"]);
    let future = admin.delete(&format!("{MAPS}?resourceVersion=1000000"), None).await;
    assert_eq!(future.code, 504);
}
