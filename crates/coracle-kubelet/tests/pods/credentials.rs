//! Images that not everybody may have: the node agent against the real API server and store, with a scripted runtime,
//! on virtual time. That a real registry takes what is shown to it is shown on the image store.

use std::time::Duration;

use coracle_client::request;
use coracle_cri::scripted::{ImageScript, Login};
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};

use crate::cluster::Cluster;

const RUNNING: &str = "MODIFIED Running | c Running 0";
const PRIVATE: &str = "reg.org/team/app:1";
const DENIED: &str =
    "pull access denied, repository does not exist or may require authorization: authorization failed";

fn login(username: &str, password: &str) -> Value {
    json!({"username": username, "password": password})
}

/// A cluster whose node has an image only for `me` with the password `secret`.
async fn start() -> Cluster {
    let cluster = Cluster::start().await;
    let login = Login { username: "me".to_owned(), password: "secret".to_owned() };
    cluster.runtime.script(PRIVATE, ImageScript { login: Some(login), ..ImageScript::default() });
    cluster
}

async fn give(cluster: &Cluster, name: &str, auths: Value) {
    let secret: Secret = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default"}, "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": json!({ "auths": auths }).to_string()},
    }))
    .unwrap();
    request::create(&cluster.admin, &secret).await.unwrap();
}

fn with(secrets: &[&str], policy: &str) -> Value {
    let secrets: Vec<Value> = secrets.iter().map(|name| json!({ "name": name })).collect();
    json!({
        "imagePullSecrets": secrets,
        "containers": [{"name": "c", "image": PRIVATE, "imagePullPolicy": policy}],
    })
}

fn pulls(cluster: &Cluster) -> usize {
    cluster.runtime.calls().iter().filter(|call| call.starts_with("pull ")).count()
}

#[tokio::test(start_paused = true)]
async fn an_image_is_fetched_with_the_credentials_for_it_one_after_the_other() {
    let cluster = start().await;
    give(&cluster, "host", json!({"reg.org": login("other", "x"), "else.org": login("me", "secret")})).await;
    give(&cluster, "team", json!({"https://reg.org/v2/team": login("wrong", "y")})).await;
    cluster.run("denied", with(&["host", "team"], "IfNotPresent")).await;
    cluster.until_step("denied", "MODIFIED Pending | c ImagePullBackOff 0").await;
    assert_eq!(pulls(&cluster), 2, "each of the two that are for it");
    let events = cluster.events("denied").await.join("\n");
    let failed =
        format!("Warning Failed Failed to pull image \"{PRIVATE}\": {DENIED} (spec.containers{{c}})");
    assert!(events.contains(&failed), "{events}");

    give(&cluster, "right", json!({"*.org": login("me", "secret")})).await;
    cluster.run("p", with(&["host", "team", "right"], "IfNotPresent")).await;
    cluster.until_step("p", RUNNING).await;
    assert_eq!(pulls(&cluster), 5, "the shortest place is tried last");
}

#[tokio::test(start_paused = true)]
async fn secrets_that_are_missing_are_told_and_change_nothing_else() {
    let cluster = start().await;
    cluster.run("p", with(&["gone", "away"], "IfNotPresent")).await;
    cluster.until_step("p", "MODIFIED Pending | c ImagePullBackOff 0").await;
    let text = "Warning FailedToRetrieveImagePullSecret Unable to retrieve some image pull secrets (gone, away); \
                attempting to pull the image may not succeed.";
    let events = cluster.events("p").await.join("\n");
    assert!(events.contains(text), "{events}");
    // It is made, and the next attempt finds it.
    give(&cluster, "gone", json!({"reg.org": login("me", "secret")})).await;
    cluster.until_step("p", RUNNING).await;

    // Also of images that are here.
    cluster.image("app:1", ImageScript::default());
    let here =
        json!({"imagePullSecrets": [{"name": "nowhere"}], "containers": [{"name": "c", "image": "app:1"}]});
    cluster.run("q", here).await;
    cluster.until_step("q", RUNNING).await;
    let events = cluster.events("q").await.join("\n");
    assert!(events.contains("Unable to retrieve some image pull secrets (nowhere)"), "{events}");
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_holds_no_credentials_fails_the_pull() {
    let cluster = start().await;
    give(&cluster, "odd", json!({"reg.org": {"auth": "%"}})).await;
    cluster.run("p", with(&["odd"], "IfNotPresent")).await;
    cluster.until_step("p", "MODIFIED Pending | c ImagePullBackOff 0").await;
    let events = cluster.events("p").await.join("\n");
    let text = "the pull secret \"odd\" does not hold credentials: the auth field is no text in base64";
    assert!(events.contains(text), "{events}");
}

#[tokio::test(start_paused = true)]
async fn what_one_pod_has_fetched_is_not_there_for_others_without_credentials() {
    let mut cluster = start().await;
    give(&cluster, "mine", json!({"reg.org": login("me", "secret")})).await;
    give(&cluster, "copy", json!({"reg.org/team": login("me", "secret")})).await;
    give(&cluster, "false", json!({"reg.org": login("you", "guess")})).await;
    cluster.run("first", with(&["mine"], "IfNotPresent")).await;
    cluster.until_step("first", RUNNING).await;
    assert_eq!(pulls(&cluster), 1);

    for round in 0..2 {
        let name = |what: &str| format!("{what}-{round}");
        cluster.run(&name("never"), with(&["false"], "Never")).await;
        cluster.until_step(&name("never"), "MODIFIED Pending | c ErrImageNeverPull 0").await;
        let events = cluster.events(&name("never")).await.join("\n");
        let text = format!("Container image \"{PRIVATE}\" is not present with pull policy of Never");
        assert!(events.contains(&text), "{events}");
        cluster.run(&name("nothing"), with(&[], "IfNotPresent")).await;
        cluster.until_step(&name("nothing"), "MODIFIED Pending | c ImagePullBackOff 0").await;

        let before = pulls(&cluster);
        for secret in ["mine", "copy"] {
            cluster.run(&name(secret), with(&[secret], "Never")).await;
            cluster.until_step(&name(secret), RUNNING).await;
        }
        assert!(pulls(&cluster) - before <= 1, "only what is denied asks again");
        let events = cluster.events(&name("copy")).await.join("\n");
        assert!(events.contains("already present on machine and can be accessed by the pod"), "{events}");
        cluster.kill_agent().await;
        cluster.clock.sleep(Duration::from_secs(1)).await;
        cluster.start_agent();
    }
}
