//! Tokens of service accounts and questions about identities and rights, over the real store.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::socket::Cluster;
use common::{Answer, Client, World, pod};
use coracle_apiserver::Body;
use coracle_apiserver::auth::UserInfo;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const TOKEN: &str = "/api/v1/namespaces/default/serviceaccounts/me/token";
const PODS: &str = "/api/v1/namespaces/default/pods";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const WHOAMI: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const RIGHTS: &str = "/apis/authorization.k8s.io/v1";

/// A cluster with the account `me` and the node `n1`.
async fn world() -> (World, Client) {
    let world = World::new().await;
    let admin = world.admin();
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "me" } });
    assert_eq!(admin.post(ACCOUNTS, &account).await.code, 201);
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } });
    assert_eq!(admin.post("/api/v1/nodes", &node).await.code, 201);
    (world, admin)
}

async fn bound_pod(admin: &Client, name: &str) -> Value {
    let mut pod = pod(name);
    pod["spec"]["serviceAccountName"] = "me".into();
    pod["spec"]["nodeName"] = "n1".into();
    let answer = admin.post(PODS, &pod).await;
    assert_eq!(answer.code, 201, "{}", answer.body);
    answer.body
}

fn bound_to(kind: &str, object: &Value) -> Value {
    let reference = json!({
        "kind": kind, "apiVersion": "v1",
        "name": object["metadata"]["name"], "uid": object["metadata"]["uid"],
    });
    json!({ "spec": { "boundObjectRef": reference, "expirationSeconds": 600 } })
}

fn token(answer: &Answer) -> String {
    assert_eq!(answer.code, 201, "{}", answer.body);
    answer.body["status"]["token"].as_str().unwrap().to_owned()
}

async fn review(admin: &Client, token: &str) -> Value {
    let review = json!({ "spec": { "token": token } });
    let answer = admin.post(REVIEWS, &review).await;
    assert_eq!(answer.code, 201, "{}", answer.body);
    answer.body["status"].clone()
}

/// What a request that shows `token` is answered.
async fn show(world: &World, token: &str, path: &str) -> (u16, Value) {
    let request = Request::get(path).header("authorization", format!("Bearer {token}"));
    let body: Body = Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync();
    let response = world.server.answer(request.body(body).unwrap(), None).await;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

#[tokio::test(start_paused = true)]
async fn a_token_tells_who_its_account_is() {
    let (_world, admin) = world().await;
    let pod = bound_pod(&admin, "p").await;
    let node = admin.get("/api/v1/nodes/n1").await.body;
    let account = admin.get(&format!("{ACCOUNTS}/me")).await.body;
    let answer = admin.post(TOKEN, &bound_to("Pod", &pod)).await;
    let token = token(&answer);
    assert_eq!(answer.body["kind"], "TokenRequest");
    assert_eq!(answer.body["apiVersion"], "authentication.k8s.io/v1");
    assert_eq!(answer.body["metadata"]["name"], "me");
    assert_eq!(answer.body["spec"]["audiences"], json!(["https://kubernetes.default.svc.cluster.local"]));
    assert_eq!(answer.body["status"]["expirationTimestamp"], "2030-01-01T12:10:00Z");

    let status = review(&admin, &token).await;
    let mut user = status["user"].clone();
    let credential = user["extra"]["authentication.kubernetes.io/credential-id"].take();
    assert!(credential[0].as_str().unwrap().starts_with("JTI="), "{credential}");
    assert_eq!(status["authenticated"], true);
    assert_eq!(status["audiences"], json!(["https://kubernetes.default.svc.cluster.local"]));
    let expected = json!({
        "username": "system:serviceaccount:default:me",
        "uid": account["metadata"]["uid"],
        "groups": ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"],
        "extra": {
            "authentication.kubernetes.io/credential-id": null,
            "authentication.kubernetes.io/node-name": ["n1"],
            "authentication.kubernetes.io/node-uid": [node["metadata"]["uid"]],
            "authentication.kubernetes.io/pod-name": ["p"],
            "authentication.kubernetes.io/pod-uid": [pod["metadata"]["uid"]],
        },
    });
    assert_eq!(user, expected);
}

#[tokio::test(start_paused = true)]
async fn a_service_account_may_ask_about_itself_and_discover_and_no_more() {
    let (world, admin) = world().await;
    let token = token(&admin.post(TOKEN, &json!({})).await);
    for (path, code) in [
        ("/api/v1", 200),
        ("/apis", 200),
        ("/version", 200),
        ("/.well-known/openid-configuration", 200),
        ("/openid/v1/jwks", 200),
        ("/api/v1/namespaces/default/pods", 403),
        ("/api/v1/namespaces/default/secrets", 403),
        ("/metrics", 403),
    ] {
        assert_eq!(show(&world, &token, path).await.0, code, "{path}");
    }
    let (_, refusal) = show(&world, &token, PODS).await;
    assert_eq!(
        refusal["message"],
        "pods is forbidden: User \"system:serviceaccount:default:me\" cannot list resource \"pods\" in API group \"\" \
         in the namespace \"default\""
    );
    let (_, configuration) = show(&world, &token, "/.well-known/openid-configuration").await;
    assert_eq!(configuration["issuer"], "https://kubernetes.default.svc.cluster.local");
    assert_eq!(configuration["jwks_uri"], "https://192.0.2.10:6443/openid/v1/jwks");
    let (_, keys) = show(&world, &token, "/openid/v1/jwks").await;
    assert_eq!(keys["keys"][0]["alg"], "ES256");
}

#[tokio::test(start_paused = true)]
async fn a_wrong_token_is_401_wherever_it_is_shown() {
    let (world, admin) = world().await;
    let good = token(&admin.post(TOKEN, &json!({})).await);
    let (said, _) = good.rsplit_once('.').unwrap();
    for bad in ["x", "a.b.c", &format!("{said}.AAAA"), &format!("{good}AA")] {
        for path in ["/api/v1", PODS, "/healthz"] {
            let (code, status) = show(&world, bad, path).await;
            assert_eq!((code, &status["reason"]), (401, &json!("Unauthorized")), "{bad} {path}");
        }
    }
    let foreign = review(&admin, "x").await;
    assert_eq!(foreign, json!({ "user": {}, "error": "invalid bearer token" }));
    let unsigned = review(&admin, &format!("{said}.AAAA")).await;
    assert_eq!(
        unsigned["error"],
        "[invalid bearer token, go-jose/go-jose: error in cryptographic primitive]"
    );
    assert_eq!(admin.post(REVIEWS, &json!({ "spec": {} })).await.code, 400);
}

#[tokio::test(start_paused = true)]
async fn a_token_ends_with_its_time_its_account_and_what_it_is_bound_to() {
    let (world, admin) = world().await;
    let error = |status: Value| status["error"].as_str().unwrap_or_default().to_owned();
    let ends = "[invalid bearer token, service account token has been invalidated]";

    // The time.
    let timed = token(&admin.post(TOKEN, &json!({ "spec": { "expirationSeconds": 600 } })).await);
    world.clock.sleep(Duration::from_secs(659)).await;
    assert_eq!(show(&world, &timed, "/api").await.0, 200);
    world.clock.sleep(Duration::from_secs(2)).await;
    assert_eq!(show(&world, &timed, "/api").await.0, 401);
    assert_eq!(
        error(review(&admin, &timed).await),
        "[invalid bearer token, service account token has expired]"
    );

    // The Pod: while it ends, the token holds.
    let pod = bound_pod(&admin, "p").await;
    let bound = token(&admin.post(TOKEN, &bound_to("Pod", &pod)).await);
    assert_eq!(admin.delete(&format!("{PODS}/p"), None).await.code, 200);
    assert_eq!(show(&world, &bound, "/api").await.0, 200);
    world.clock.sleep(Duration::from_secs(30 + 59)).await;
    assert_eq!(show(&world, &bound, "/api").await.0, 200);
    world.clock.sleep(Duration::from_secs(2)).await;
    assert_eq!(error(review(&admin, &bound).await), ends);
    admin.delete(&format!("{PODS}/p?gracePeriodSeconds=0"), None).await;
    assert_eq!(error(review(&admin, &bound).await), ends);
    let again = bound_pod(&admin, "p").await;
    assert_eq!(
        error(review(&admin, &bound).await),
        format!(
            "[invalid bearer token, pod UID ({}) does not match service account pod ref claim ({})]",
            again["metadata"]["uid"].as_str().unwrap(),
            pod["metadata"]["uid"].as_str().unwrap(),
        )
    );

    // A Secret, and a Node.
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" } });
    let secret = admin.post("/api/v1/namespaces/default/secrets", &secret).await.body;
    let node = admin.get("/api/v1/nodes/n1").await.body;
    for (kind, object, path) in
        [("Secret", secret, "/api/v1/namespaces/default/secrets/s"), ("Node", node, "/api/v1/nodes/n1")]
    {
        let bound = token(&admin.post(TOKEN, &bound_to(kind, &object)).await);
        assert_eq!(show(&world, &bound, "/api").await.0, 200);
        assert_eq!(admin.delete(path, None).await.code, 200);
        assert_eq!(error(review(&admin, &bound).await), ends, "{kind}");
    }

    // The account: another one of its name is another one.
    let plain = token(&admin.post(TOKEN, &json!({})).await);
    assert_eq!(admin.delete(&format!("{ACCOUNTS}/me"), None).await.code, 200);
    assert_eq!(show(&world, &plain, "/api").await.0, 401);
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "me" } });
    admin.post(ACCOUNTS, &account).await;
    assert!(error(review(&admin, &plain).await).contains("does not match claim"));
}

#[tokio::test(start_paused = true)]
async fn a_token_is_taken_by_its_audiences_alone() {
    let (world, admin) = world().await;
    let vault = token(&admin.post(TOKEN, &json!({ "spec": { "audiences": ["vault", "other"] } })).await);
    assert_eq!(show(&world, &vault, "/api").await.0, 401);
    let review = |audiences: Value| {
        let review = json!({ "spec": { "token": vault, "audiences": audiences } });
        let admin = admin.clone();
        async move { admin.post(REVIEWS, &review).await.body["status"].clone() }
    };
    let shared = review(json!(["x", "vault"])).await;
    assert_eq!((&shared["authenticated"], &shared["audiences"]), (&json!(true), &json!(["vault"])));
    assert_eq!(
        review(json!(["x"])).await["error"],
        "[invalid bearer token, token audiences [\"vault\" \"other\"] is invalid for the target audiences [\"x\"]]"
    );
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_had_is_refused_in_upstreams_words() {
    let (_world, admin) = world().await;
    let pod = bound_pod(&admin, "p").await;
    let mut other = pod.clone();
    other["metadata"]["uid"] = "another".into();
    let spec = |spec: Value| json!({ "spec": spec });
    for (path, body, code, message) in [
        (
            TOKEN,
            spec(json!({ "expirationSeconds": 599 })),
            422,
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 599: may not \
             specify a duration less than 10 minutes",
        ),
        (
            "/api/v1/namespaces/default/serviceaccounts/nobody/token",
            json!({}),
            404,
            "serviceaccounts \"nobody\" not found",
        ),
        (
            TOKEN,
            json!({ "metadata": { "name": "you" } }),
            422,
            "TokenRequest.authentication.k8s.io \"me\" is invalid: metadata.name: Invalid value: \"you\": must match \
             the service account name if specified",
        ),
        (
            TOKEN,
            spec(json!({ "boundObjectRef": { "kind": "ConfigMap", "apiVersion": "v1", "name": "x" } })),
            400,
            "cannot bind token for serviceaccount \"me\" to object of type /v1, Kind=ConfigMap",
        ),
        (
            TOKEN,
            spec(json!({ "boundObjectRef": { "kind": "Pod", "apiVersion": "v1", "name": "x" } })),
            404,
            "pods \"x\" not found",
        ),
        (
            TOKEN,
            bound_to("Pod", &other),
            409,
            "Operation cannot be fulfilled on Pod \"p\": the UID in the bound object reference (another) does not \
             match the UID in record. The object might have been deleted and then recreated",
        ),
        (
            "/api/v1/namespaces/default/serviceaccounts/you/token",
            bound_to("Pod", &pod),
            400,
            "cannot bind token for serviceaccount \"you\" to pod running with different serviceaccount name.",
        ),
    ] {
        if path.contains("/you/") {
            let account =
                json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "you" } });
            admin.post(ACCOUNTS, &account).await;
        }
        let answer = admin.post(path, &body).await;
        assert_eq!((answer.code, answer.body["message"].as_str().unwrap()), (code, message));
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_gets_tokens_for_its_own_pods_and_their_audiences_alone() {
    let (world, admin) = world().await;
    let mut wanting = pod("wanting");
    wanting["spec"]["serviceAccountName"] = "me".into();
    wanting["spec"]["nodeName"] = "n1".into();
    wanting["spec"]["automountServiceAccountToken"] = false.into();
    let source = |audience: Value| json!({ "serviceAccountToken": { "path": "t", "audience": audience } });
    wanting["spec"]["volumes"] =
        json!([{ "name": "v", "projected": { "sources": [source("vault".into())] } }]);
    let answer = admin.post(PODS, &wanting).await;
    assert_eq!(answer.code, 201, "{}", answer.body);
    let wanting = answer.body;
    let (own, other) = (world.user(UserInfo::node("n1")), world.user(UserInfo::node("n2")));
    let mut wish = bound_to("Pod", &wanting);
    let refusal =
        |answer: Answer| (answer.code, answer.body["message"].as_str().unwrap_or_default().to_owned());

    let (code, why) = refusal(other.post(TOKEN, &wish).await);
    assert_eq!(code, 403);
    assert!(why.ends_with("no relationship found between node 'n2' and this object"), "{why}");
    let (code, why) = refusal(own.post(TOKEN, &json!({})).await);
    assert_eq!(code, 403);
    assert_eq!(why, "serviceaccounts \"me\" is forbidden: node requested token not bound to a pod");
    let (code, why) = refusal(own.post(TOKEN, &wish).await);
    assert_eq!(code, 403);
    assert_eq!(why, "serviceaccounts \"me\" is forbidden: audience \"\" not found in pod spec volume");
    let mut anonymous = wish.clone();
    anonymous["spec"]["boundObjectRef"].as_object_mut().unwrap().shift_remove("uid");
    let (_, why) = refusal(own.post(TOKEN, &anonymous).await);
    assert!(why.ends_with("node requested token with a pod binding without a uid"), "{why}");
    wish["spec"]["audiences"] = json!(["vault"]);
    assert_eq!(own.post(TOKEN, &wish).await.code, 201);
    // Others want the token that they are given when nothing is said.
    let usual = bound_pod(&admin, "usual").await;
    assert_eq!(own.post(TOKEN, &bound_to("Pod", &usual)).await.code, 201);

    let elsewhere = {
        let mut pod = pod("elsewhere");
        pod["spec"]["serviceAccountName"] = "me".into();
        pod["spec"]["nodeName"] = "n2".into();
        admin.post(PODS, &pod).await.body
    };
    let (_, why) = refusal(own.post(TOKEN, &bound_to("Pod", &elsewhere)).await);
    assert!(why.ends_with("node requested token bound to a pod scheduled on a different node"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_runs_as_an_account_that_exists() {
    let (world, admin) = world().await;
    let mut stranger = pod("p");
    stranger["spec"]["serviceAccountName"] = "x".into();
    let answer = admin.post(PODS, &stranger).await;
    assert_eq!(
        (answer.code, &answer.body["message"]),
        (
            403,
            &json!(
                "pods \"p\" is forbidden: error looking up service account default/x: serviceaccount \"x\" not found"
            )
        )
    );
    let plain = admin.post(PODS, &pod("p")).await;
    assert_eq!(plain.code, 201, "{}", plain.body);
    let spec = &plain.body["spec"];
    assert_eq!(spec["serviceAccountName"], "default");
    let volume = spec["volumes"][0]["name"].as_str().unwrap();
    assert!(volume.starts_with("kube-api-access-") && volume.len() == 21, "{volume}");
    assert_eq!(
        spec["containers"][0]["volumeMounts"],
        json!([{ "name": volume, "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount" }])
    );

    // In a new namespace the account comes a moment later.
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "new" } });
    assert_eq!(admin.post("/api/v1/namespaces", &namespace).await.code, 201);
    let (later, clock) = (admin.clone(), world.clock.clone());
    let making = async move {
        clock.sleep(Duration::from_millis(700)).await;
        let account =
            json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
        later.post("/api/v1/namespaces/new/serviceaccounts", &account).await
    };
    let new = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" },
                      "spec": { "containers": [{ "name": "c", "image": "busybox" }] } });
    let (_, answer) = futures::join!(making, admin.post("/api/v1/namespaces/new/pods", &new));
    assert_eq!(answer.code, 201, "{}", answer.body);
}

#[tokio::test(start_paused = true)]
async fn everybody_may_ask_who_they_are_and_what_they_may_do() {
    let (world, admin) = world().await;
    let jane = world.user(UserInfo::new("jane", ["developers"]));
    let me = jane.post(WHOAMI, &json!({})).await;
    assert_eq!(me.code, 201);
    assert_eq!(
        me.body["status"]["userInfo"],
        json!({ "username": "jane", "groups": ["developers", "system:authenticated"] })
    );
    let may = |client: &Client, attributes: Value| {
        let (client, body) = (client.clone(), json!({ "spec": { "resourceAttributes": attributes } }));
        async move {
            let answer = client.post(&format!("{RIGHTS}/selfsubjectaccessreviews"), &body).await;
            assert_eq!(answer.code, 201, "{}", answer.body);
            answer.body["status"].clone()
        }
    };
    let pods = json!({ "namespace": "default", "verb": "list", "resource": "pods" });
    assert_eq!(may(&admin, pods.clone()).await, json!({ "allowed": true }));
    assert_eq!(may(&jane, pods.clone()).await, json!({ "allowed": false }));
    let odd = json!({ "verb": "impersonate", "resource": "users" });
    assert_eq!(may(&admin, odd.clone()).await["allowed"], true);
    assert_eq!(may(&jane, odd).await["allowed"], false);
    let node = world.user(UserInfo::node("n1"));
    assert_eq!(
        may(&node, pods).await,
        json!({ "allowed": false, "reason": "can only list/watch pods with spec.nodeName field selector" })
    );
    let own = json!({
        "verb": "list", "resource": "pods", "namespace": "default",
        "fieldSelector": { "requirements": [{ "key": "spec.nodeName", "operator": "In", "values": ["n1"] }] },
    });
    assert_eq!(may(&node, own).await["allowed"], true);

    // About others only administrators may ask.
    let other = json!({ "spec": {
        "user": "system:serviceaccount:default:me", "groups": ["system:authenticated"],
        "nonResourceAttributes": { "path": "/api", "verb": "get" },
    } });
    let path = format!("{RIGHTS}/subjectaccessreviews");
    assert_eq!(jane.post(&path, &other).await.code, 403);
    assert_eq!(admin.post(&path, &other).await.body["status"]["allowed"], true);
    let rules = json!({ "spec": { "namespace": "default" } });
    let answer = admin.post(&format!("{RIGHTS}/selfsubjectrulesreviews"), &rules).await;
    assert_eq!(answer.body["status"]["resourceRules"][0]["verbs"], json!(["*"]));
    let none = admin.post(&format!("{RIGHTS}/selfsubjectrulesreviews"), &json!({})).await;
    assert_eq!(none.code, 400);
}

#[tokio::test]
async fn a_token_is_shown_over_the_wire() {
    let cluster = Cluster::new().await;
    let admin = cluster.in_process();
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "me" } });
    assert_eq!(admin.post(ACCOUNTS, &account).await.code, 201);
    let token = token(&admin.post(TOKEN, &json!({})).await);
    for (shown, code) in [(token.as_str(), 200), ("nonsense", 401)] {
        let stream = cluster.connect(None, "http/1.1").await;
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get("/api/v1").header("host", "localhost");
        let request = request.header("authorization", format!("Bearer {shown}"));
        let response = sender.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
        assert_eq!(response.status().as_u16(), code);
    }
    cluster.stop().await;
}
