//! A server on a socket, and clients of it.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use coracle_apiserver::auth::{SYSTEM_MASTERS, UserInfo};
use coracle_apiserver::pki::{CertificateAuthority, CertificateRequest, Credential};
use coracle_apiserver::{ApiServer, Config, KubeletClient, Limits, ServerTls, ServiceRange};
use coracle_clock::{Clock, Ids, Rng};
use coracle_store::embedded::{EmbeddedStore, Execution, Options};
use coracle_store::simfs::SimFs;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::Client;

/// A server on a loopback port with an authority of its own.
pub struct Cluster {
    pub authority: CertificateAuthority,
    pub address: SocketAddr,
    pub server: Arc<ApiServer>,
    pub clock: Clock,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Cluster {
    pub async fn new() -> Self {
        Self::limited(Limits::default()).await
    }

    pub async fn limited(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let pki = directory.path().join("pki");
        let authority = CertificateAuthority::load_or_create(&pki, clock.now()).unwrap();
        let range = ServiceRange::default();
        let request = CertificateRequest::api_server(range.first().into(), &[], &[]);
        let serving = authority.issue(&request, clock.now()).unwrap();
        let towards = CertificateRequest::client("kube-apiserver-kubelet-client", None);
        let towards = authority.issue(&towards, clock.now()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let options = Options { execution: Execution::Tasks, ..Options::default() };
        let files = Arc::new(SimFs::new(Rng::seeded(1)));
        let (store, _) = EmbeddedStore::open(files, clock.clone(), options).unwrap();
        let config = Config {
            service_range: range,
            advertise: address,
            kubelet: Some(KubeletClient::new(&towards, &authority).unwrap()),
            joining: None,
            account_key: coracle_apiserver::pki::AccountKey::unkept().unwrap().into(),
        };
        let ids = Arc::new(Ids::new(Rng::seeded(2)));
        let server = ApiServer::start(config, store, clock.clone(), ids).await.unwrap();
        let tls = ServerTls::new(&serving, &authority).unwrap().limited(limits);
        let shutdown = CancellationToken::new();
        let (serve, signal) = (Arc::clone(&server), shutdown.clone());
        let serving = tokio::spawn(async move { serve.serve(listener, tls, signal).await });
        Cluster { authority, address, server, clock, shutdown, serving, _directory: directory }
    }

    pub fn admin(&self) -> Credential {
        let request = CertificateRequest::client("kubernetes-admin", Some(SYSTEM_MASTERS));
        self.authority.issue(&request, self.clock.now()).unwrap()
    }

    pub async fn connect(&self, credential: Option<&Credential>, protocol: &str) -> TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.authority.certificate()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match credential {
            Some(credential) => builder
                .with_client_auth_cert(credential.certificates().unwrap(), credential.key().unwrap())
                .unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    pub async fn get(&self, credential: Option<&Credential>, protocol: &str, path: &str) -> (u16, Bytes) {
        let io = TokioIo::new(self.connect(credential, protocol).await);
        let request = Request::get(format!("https://localhost{path}")).header("host", "localhost");
        let request = request.body(Full::<Bytes>::default()).unwrap();
        let response = if protocol == "h2" {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap()
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap()
        };
        let code = response.status().as_u16();
        (code, response.into_body().collect().await.unwrap().to_bytes())
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        self.serving.await.unwrap();
        self.server.stop().await;
    }

    pub fn in_process(&self) -> Client {
        Client::new(self.server.in_process(UserInfo::new("kubernetes-admin", [SYSTEM_MASTERS])))
    }
}
