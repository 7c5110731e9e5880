//! How objects go, one by one and many at once.

use super::*;

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
