//! Machines become nodes: tokens that are right, wrong, spent and expired; names that are taken; renewal.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{Answer, Client, World};
use coracle_api::join::{
    Authority, ClusterNetwork, JoinAnswer, JoinRequest, KEY_ANNOTATION, Token, TokenRecord,
};
use coracle_apiserver::Joining;
use coracle_apiserver::auth::UserInfo;
use coracle_apiserver::pki::{CertificateAuthority, CertificateRequest, OwnKey, certificate_fingerprint};
use rustls::pki_types::{CertificateDer, pem::PemObject};

struct Cluster {
    world: World,
    authority: Arc<CertificateAuthority>,
    dir: tempfile::TempDir,
}

impl Cluster {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let now = "2030-01-01T12:00:00Z".parse().unwrap();
        let authority = Arc::new(CertificateAuthority::load_or_create(&dir.path().join("pki"), now).unwrap());
        let network =
            ClusterNetwork { pod_cidr: "10.42.0.0/16".into(), service_cidr: "10.43.0.0/16".into(), vni: 5 };
        let own = CertificateRequest::api_server([10, 43, 0, 1].into(), &[], &[[192, 0, 2, 10].into()]);
        let world = World::open_to_nodes(Joining { authority: Arc::clone(&authority), network, own }).await;
        Cluster { world, authority, dir }
    }

    /// A token that is kept in the cluster.
    async fn token(&self, letter: u8, reusable: bool) -> Token {
        let token = Token::from_random([letter; 22], &self.authority.fingerprint());
        let record = TokenRecord {
            id: token.id.clone(),
            secret: token.secret.clone(),
            expires: Some(self.world.clock.now() + jiff::SignedDuration::from_hours(24)),
            reusable,
            spent_by: None,
        };
        let made =
            self.world.admin().post("/api/v1/namespaces/kube-system/secrets", &record.to_secret()).await;
        made.expect(201);
        token
    }

    fn machine(&self, name: &str) -> OwnKey {
        OwnKey::load_or_create(&self.dir.path().join(name).join("node.key")).unwrap()
    }

    fn request(&self, token: &str, node: &str, key: &OwnKey) -> JoinRequest {
        JoinRequest {
            token: token.to_owned(),
            node: node.to_owned(),
            addresses: vec!["192.0.2.7".parse().unwrap()],
            certificate_request: key.request().unwrap(),
            time: self.world.clock.now(),
        }
    }

    async fn send(&self, client: &Client, path: &str, request: &JoinRequest) -> Answer {
        client.send("POST", path, &[], Bytes::from(serde_json::to_vec(request).unwrap())).await
    }

    async fn join(&self, token: &Token, node: &str, key: &OwnKey) -> Answer {
        let nobody = self.world.user(UserInfo::new("nobody", []));
        self.send(&nobody, "/coracle/v1/join", &self.request(&token.to_string(), node, key)).await
    }
}

fn owner(pem: &str) -> UserInfo {
    UserInfo::from_certificate(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_token_makes_one_machine_a_node() {
    let cluster = Cluster::new().await;
    let nobody = cluster.world.user(UserInfo::new("nobody", []));
    let known: Authority =
        serde_json::from_value(nobody.get("/coracle/v1/authority").await.expect(200)).unwrap();
    assert_eq!(certificate_fingerprint(&known.certificate), Some(cluster.authority.fingerprint()));

    let (token, first, second) = (cluster.token(1, false).await, cluster.machine("a"), cluster.machine("b"));
    let answer: JoinAnswer =
        serde_json::from_value(cluster.join(&token, "n1", &first).await.expect(200)).unwrap();
    assert_eq!(owner(&answer.node_certificate), UserInfo::node("n1"));
    assert_eq!(owner(&answer.serving_certificate), UserInfo::node("n1"));
    assert_eq!(owner(&answer.network_certificate).name, "system:kube-proxy");
    assert_eq!(answer.network.vni, 5);
    let node = cluster.world.admin().get("/api/v1/nodes/n1").await.expect(200);
    assert!(node["metadata"]["annotations"][KEY_ANNOTATION].is_string());

    // The answer got lost: the same machine asks again.
    cluster.join(&token, "n1", &first).await.expect(200);
    let spent = cluster.join(&token, "n2", &second).await.message(401);
    assert!(spent.starts_with("the join token was already used by node \"n1\""), "{spent}");
    cluster.world.admin().get("/api/v1/nodes/n2").await.expect(404);
}

#[tokio::test(start_paused = true)]
async fn two_machines_cannot_be_one_node() {
    let cluster = Cluster::new().await;
    let (token, first, second) = (cluster.token(1, true).await, cluster.machine("a"), cluster.machine("b"));
    cluster.join(&token, "n1", &first).await.expect(200);
    let taken = cluster.join(&token, "n1", &second).await.message(409);
    assert!(
        taken.contains("another machine has joined as node \"n1\"")
            && taken.contains("kubectl delete node n1")
    );
    cluster.join(&token, "n2", &second).await.expect(200);
    // The first one is replaced; it does not come back by renewing.
    cluster.world.admin().send("DELETE", "/api/v1/nodes/n1", &[], Bytes::new()).await.expect(200);
    let agent = cluster.world.user(UserInfo::node("n1"));
    let deleted = cluster.send(&agent, "/coracle/v1/renew", &cluster.request("", "n1", &first)).await;
    let message = deleted.message(403);
    assert!(message.contains("it was deleted from this cluster"), "{message}");
    let node = serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    let message = agent.post("/api/v1/nodes", &node).await.message(403);
    assert!(message.contains("it was deleted from this cluster"), "{message}");
    cluster.join(&token, "n1", &second).await.expect(200);
    let agent = cluster.world.user(UserInfo::node("n1"));
    cluster.send(&agent, "/coracle/v1/renew", &cluster.request("", "n1", &first)).await.expect(409);
    cluster.send(&agent, "/coracle/v1/renew", &cluster.request("", "n1", &second)).await.expect(200);
    let other = cluster.world.user(UserInfo::node("n2"));
    cluster.send(&other, "/coracle/v1/renew", &cluster.request("", "n1", &second)).await.expect(403);
}

#[tokio::test(start_paused = true)]
async fn tokens_that_do_not_work_say_why() {
    let cluster = Cluster::new().await;
    let (token, key) = (cluster.token(1, false).await, cluster.machine("a"));
    let guessed = Token { secret: "a".repeat(16), ..token.clone() };
    let unknown = Token { id: "zzzzzz".into(), ..token.clone() };
    for wrong in [guessed, unknown] {
        let message = cluster.join(&wrong, "n1", &key).await.message(401);
        assert!(message.starts_with("the join token is not one of this cluster's"), "{message}");
    }
    let message = cluster.join(&token, "Node_1", &key).await.message(400);
    assert!(message.starts_with("\"Node_1\" cannot be the name of a node"), "{message}");
    let nobody = cluster.world.user(UserInfo::new("nobody", []));
    let mut late = cluster.request(&token.to_string(), "n1", &key);
    late.time -= jiff::SignedDuration::from_hours(1);
    let message = cluster.send(&nobody, "/coracle/v1/join", &late).await.message(400);
    assert!(message.starts_with("this machine's clock is 60 minutes behind the server's"), "{message}");
    let mut forged = cluster.request(&token.to_string(), "n1", &key);
    forged.certificate_request = "nonsense".into();
    cluster.send(&nobody, "/coracle/v1/join", &forged).await.expect(400);
    nobody.send("POST", "/coracle/v1/join", &[], Bytes::from_static(b"{")).await.expect(400);
    nobody.get("/coracle/v1/join").await.expect(405);
    nobody.get("/coracle/v1/other").await.expect(404);

    tokio::time::advance(Duration::from_secs(24 * 3600)).await;
    let message = cluster.join(&token, "n1", &key).await.message(401);
    assert!(message.starts_with("the join token expired at 2030-01-02T12:00:00Z"), "{message}");
    // A node cannot read the tokens by which others join.
    let path = format!("/api/v1/namespaces/kube-system/secrets/{}", token.secret_name());
    cluster.world.user(UserInfo::node("n1")).get(&path).await.expect(403);
}

#[tokio::test(start_paused = true)]
async fn no_node_gets_a_certificate_that_passes_for_the_server() {
    let cluster = Cluster::new().await;
    let (token, key) = (cluster.token(1, false).await, cluster.machine("a"));
    let nobody = cluster.world.user(UserInfo::new("nobody", []));
    for name in ["kubernetes", "kubernetes.default.svc", "localhost"] {
        let message = cluster.join(&token, name, &key).await.message(400);
        assert!(message.contains("is a name of the API server"), "{message}");
    }
    for address in ["127.0.0.1", "10.43.0.1", "192.0.2.10"] {
        let mut asked = cluster.request(&token.to_string(), "n1", &key);
        asked.addresses.push(address.parse().unwrap());
        let message = cluster.send(&nobody, "/coracle/v1/join", &asked).await.message(400);
        assert!(message.contains("is an address of the API server"), "{message}");
    }
    // Nothing was spent on it, and a node cannot get there by renewing.
    cluster.join(&token, "n1", &key).await.expect(200);
    let agent = cluster.world.user(UserInfo::node("n1"));
    let mut asked = cluster.request("", "n1", &key);
    asked.addresses = vec!["10.43.0.1".parse().unwrap()];
    cluster.send(&agent, "/coracle/v1/renew", &asked).await.expect(400);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_takes_nobody_in_has_no_door() {
    let world = World::new().await;
    world.admin().get("/coracle/v1/authority").await.expect(404);
}
