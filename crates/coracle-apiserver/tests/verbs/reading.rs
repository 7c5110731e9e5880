//! What is read, in which form and as of when, and what cannot be.

use super::*;

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
