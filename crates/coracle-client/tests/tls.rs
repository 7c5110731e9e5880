//! The client over TLS against the real API server: who it is, whom it believes, and certificates that change.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use coracle_apiserver::pki::{CertificateAuthority, CertificateRequest};
use coracle_apiserver::{ApiServer, Config, ServerTls};
use coracle_client::{ConnectOptions, ErrorExt as _, LiveCertificate, connect, connect_unverified, request};
use coracle_clock::{Clock, Ids, Rng};
use coracle_store::embedded::{EmbeddedStore, Execution, Options};
use coracle_store::simfs::SimFs;
use k8s_openapi::api::core::v1::Node;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

struct World {
    authority: CertificateAuthority,
    url: String,
    clock: Clock,
    _ending: tokio_util::sync::DropGuard,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let authority = CertificateAuthority::load_or_create(&dir.path().join("pki"), clock.now()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = Options { execution: Execution::Tasks, ..Options::default() };
        let files = Arc::new(SimFs::new(Rng::seeded(1)));
        let (store, _) = EmbeddedStore::open(files, clock.clone(), options).unwrap();
        let config = Config {
            service_range: "10.96.0.0/16".parse().unwrap(),
            advertise: listener.local_addr().unwrap(),
            kubelet: None,
            joining: None,
            account_key: coracle_apiserver::pki::AccountKey::unkept().unwrap().into(),
        };
        let server =
            ApiServer::start(config, store, clock.clone(), Arc::new(Ids::new(Rng::seeded(2)))).await.unwrap();
        let request = CertificateRequest::api_server("10.96.0.1".parse().unwrap(), &[], &[]);
        let serving = authority.issue(&request, clock.now()).unwrap();
        let tls = ServerTls::new(&serving, &authority).unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let ending = CancellationToken::new();
        let guard = ending.clone().drop_guard();
        tokio::spawn(async move { server.serve(listener, tls, ending).await });
        World { authority, url, clock, _ending: guard }
    }

    fn certificate(&self, node: &str) -> (String, String) {
        let request = CertificateRequest::kubelet_client(node);
        let credential = self.authority.issue(&request, self.clock.now()).unwrap();
        (credential.certificate_pem, credential.key_pem)
    }

    fn options(&self, certificate: Option<LiveCertificate>) -> ConnectOptions {
        let authority = self.authority.certificate_pem().to_owned();
        ConnectOptions { server: self.url.clone(), authority, certificate }
    }
}

async fn get_node(client: &kube::Client, name: &str) -> Option<u16> {
    request::get::<Node>(client, &coracle_client::ObjectKey::namespaced("", name)).await.unwrap_err().code()
}

#[tokio::test]
async fn a_replaced_certificate_is_who_the_next_connection_is() {
    let world = World::new().await;
    let (first, first_key) = world.certificate("n1");
    let (second, second_key) = world.certificate("n2");
    let live = LiveCertificate::new(&first, &first_key).unwrap();
    let client = connect(&world.options(Some(live.clone()))).unwrap();
    assert_eq!(get_node(&client, "n1").await, Some(404));
    assert_eq!(get_node(&client, "n2").await, Some(403));

    assert!(live.replace(&second, &first_key).is_err(), "they do not belong together");
    live.replace(&second, &second_key).unwrap();
    assert_eq!(get_node(&client, "n1").await, Some(404), "the connection goes on as who it was");
    let next = connect(&world.options(Some(live))).unwrap();
    assert_eq!(get_node(&next, "n2").await, Some(404));
}

#[tokio::test]
async fn only_the_right_server_is_believed() {
    let world = World::new().await;
    assert_eq!(get_node(&connect(&world.options(None)).unwrap(), "n1").await, Some(401));
    assert_eq!(get_node(&connect_unverified(&world.url).unwrap(), "n1").await, Some(401));
    let other = World::new().await;
    let wrong =
        ConnectOptions { authority: other.authority.certificate_pem().to_owned(), ..world.options(None) };
    assert_eq!(get_node(&connect(&wrong).unwrap(), "n1").await, None);
    for url in ["", "http://127.0.0.1:1", "127.0.0.1:6443", "nonsense"] {
        assert!(connect_unverified(url).err().unwrap().to_string().contains("is not the URL"), "{url}");
    }
}
