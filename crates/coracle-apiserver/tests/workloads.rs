//! Workload kinds through the service: scale, patches of templates, generated selectors, schemas.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use bytes::Bytes;
use common::{World, revision};
use serde_json::{Value, json};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const JOBS: &str = "/apis/batch/v1/namespaces/default/jobs";

fn deployment() -> Value {
    json!({
        "metadata": {"name": "web"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "i:1"}, {"name": "d", "image": "j:1"}]},
        }},
    })
}

#[tokio::test(start_paused = true)]
async fn a_scale_is_read_replaced_and_patched() {
    let world = World::new().await;
    let admin = world.admin();
    let made = admin.post(DEPLOYMENTS, &deployment()).await.expect(201);
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(made["status"], json!({}));
    let url = format!("{DEPLOYMENTS}/web/scale");
    let scale = admin.get(&url).await.expect(200);
    assert_eq!(scale["kind"], "Scale");
    assert_eq!(scale["spec"], json!({"replicas": 3}));
    assert_eq!(scale["status"], json!({"replicas": 0, "selector": "app=web"}));
    assert_eq!(revision(&scale), revision(&made));

    let mut wanted = scale.clone();
    wanted["spec"]["replicas"] = 5.into();
    let answer = admin.put(&url, &wanted).await.expect(200);
    assert_eq!((&answer["kind"], &answer["spec"]), (&json!("Scale"), &json!({"replicas": 5})));
    let now = admin.get(&format!("{DEPLOYMENTS}/web")).await.expect(200);
    assert_eq!((&now["spec"]["replicas"], &now["metadata"]["generation"]), (&json!(5), &json!(2)));
    // The same again is about a state that is gone.
    let said = admin.put(&url, &wanted).await.message(409);
    assert!(said.starts_with("Operation cannot be fulfilled on deployments.apps \"web\""), "{said}");

    let answer = admin.patch(&url, "merge", &json!({"spec": {"replicas": 0}})).await.expect(200);
    assert_eq!(answer["spec"], json!({}));
    let said = admin.patch(&url, "merge", &json!({"spec": {"replicas": -1}})).await.message(422);
    assert_eq!(
        said,
        "Scale.autoscaling \"web\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"
    );
    let table = admin.get_as(&url, "application/json;as=Table;v=v1;g=meta.k8s.io").await.expect(200);
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(cells[..3], [json!("web"), json!(0), json!(0)]);
    assert_eq!(admin.delete(&url, None).await.code, 405);
}

#[tokio::test(start_paused = true)]
async fn templates_merge_by_container_and_strategies_are_replaced() {
    let world = World::new().await;
    let admin = world.admin();
    admin.post(DEPLOYMENTS, &deployment()).await.expect(201);
    let url = format!("{DEPLOYMENTS}/web");
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "d", "image": "j:2"}]}}}});
    let patched = admin.patch(&url, "strategic-merge", &patch).await.expect(200);
    let images: Vec<&Value> = patched["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|container| &container["image"])
        .collect();
    assert_eq!(images, ["i:1", "j:2"]);
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    let patched = admin.patch(&url, "strategic-merge", &patch).await.expect(200);
    assert_eq!(patched["spec"]["strategy"], json!({"type": "Recreate"}));
    let patch = json!({"spec": {"selector": {"matchLabels": {"app": "other"}}}});
    let said = admin.patch(&url, "merge", &patch).await.message(422);
    let expected = "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"other\"}}: field is immutable";
    assert!(said.contains(expected), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_job_is_selected_by_its_uid() {
    let world = World::new().await;
    let admin = world.admin();
    let job = json!({
        "metadata": {"generateName": "once-"},
        "spec": {"template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}],
        }}},
    });
    let made = admin.post(JOBS, &job).await.expect(201);
    let (uid, name) = (&made["metadata"]["uid"], &made["metadata"]["name"]);
    assert_eq!(&made["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], uid);
    assert_eq!(&made["spec"]["template"]["metadata"]["labels"]["job-name"], name);
    assert_eq!(made["metadata"]["labels"], made["spec"]["template"]["metadata"]["labels"]);
}

#[tokio::test(start_paused = true)]
async fn bodies_in_protobuf_are_read() {
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }
    let world = World::new().await;
    let admin = world.admin();
    admin.post(DEPLOYMENTS, &deployment()).await.expect(201);
    let meta = [field(1, b"autoscaling/v1"), field(2, b"Scale")].concat();
    let raw = [field(1, &field(1, b"web")), field(2, &[8, 7])].concat();
    let body = [b"k8s\0".to_vec(), field(1, &meta), field(2, &raw)].concat();
    let kind = [("content-type", "application/vnd.kubernetes.protobuf")];
    let url = format!("{DEPLOYMENTS}/web/scale");
    let answer = admin.send("PUT", &url, &kind, Bytes::from(body)).await.expect(200);
    assert_eq!(answer["spec"]["replicas"], 7);
}

#[tokio::test(start_paused = true)]
async fn groups_and_schemas_are_told() {
    let world = World::new().await;
    let admin = world.admin();
    let list = admin.get("/apis/apps/v1").await.expect(200);
    let names: Vec<&Value> =
        list["resources"].as_array().unwrap().iter().map(|resource| &resource["name"]).collect();
    assert_eq!(
        names,
        [
            "deployments",
            "deployments/scale",
            "deployments/status",
            "replicasets",
            "replicasets/scale",
            "replicasets/status"
        ]
    );
    let scale = &list["resources"][1];
    assert_eq!((&scale["group"], &scale["version"]), (&json!("autoscaling"), &json!("v1")));
    let groups = admin.get("/apis").await.expect(200);
    let names: Vec<&Value> =
        groups["groups"].as_array().unwrap().iter().map(|group| &group["name"]).collect();
    assert_eq!(
        names,
        [
            "apps",
            "events.k8s.io",
            "authentication.k8s.io",
            "authorization.k8s.io",
            "batch",
            "policy",
            "scheduling.k8s.io",
            "apiextensions.k8s.io",
            "coordination.k8s.io",
            "discovery.k8s.io"
        ]
    );
    let document = admin.get("/openapi/v3/apis/apps/v1").await.expect(200);
    let put = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["put"];
    let schema = &put["requestBody"]["content"]["application/json"]["schema"]["$ref"];
    assert_eq!(schema, "#/components/schemas/io.k8s.api.autoscaling.v1.Scale");
    assert!(document["components"]["schemas"].get("io.k8s.api.autoscaling.v1.ScaleSpec").is_some());
}
