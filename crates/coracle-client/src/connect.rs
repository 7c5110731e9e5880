//! Clients: in process over a service, or over TLS.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use rustls::client::WantsClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme, WantsVerifier,
};
use tower::BoxError;

use crate::LiveCertificate;

/// A connection that said nothing for so long is asked whether it lives.
pub const PING_INTERVAL: Duration = Duration::from_secs(10);
/// And is given up after so long without an answer.
pub const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// For a connection to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A client whose requests are calls of `service`: no socket, no TLS, the same authorization as everyone.
///
/// Must be called within a Tokio runtime: requests go through a task.
pub fn in_process<S, B>(service: S) -> kube::Client
where
    S: tower::Service<http::Request<Body>, Response = http::Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    kube::Client::new(service, "default")
}

/// Where an API server is and how to prove who is who.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Its URL, as `https://127.0.0.1:6443`.
    pub server: String,
    /// PEM of the authority that signed its certificate.
    pub authority: String,
    /// The client's certificate; nobody in particular without.
    pub certificate: Option<LiveCertificate>,
}

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig does not parse, or what it refers to is missing.
    #[error("cannot use the kubeconfig")]
    Kubeconfig(#[source] KubeconfigError),
    /// The URL is none.
    #[error("{url:?} is not the URL of a server: it looks like https://192.0.2.1:6443")]
    Url {
        /// As given.
        url: String,
    },
    /// The certificates or the key cannot be used.
    #[error("cannot set up the connection")]
    Setup(#[source] Box<kube::Error>),
    /// The authority's certificate cannot be used.
    #[error("the authority's certificate cannot be used: {0}")]
    Authority(String),
}

/// A client over TLS. Does not connect yet: the first request does.
///
/// All requests share one connection. A server that does not answer for [`PING_INTERVAL`] and [`PING_TIMEOUT`], as
/// when the link is cut, fails them all, so that nobody waits for what will not come.
///
/// # Errors
/// If the URL or the authority's certificate cannot be used.
pub fn connect(options: &ConnectOptions) -> Result<kube::Client, ConnectError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(options.authority.as_bytes()) {
        let certificate = certificate.map_err(|error| ConnectError::Authority(error.to_string()))?;
        roots.add(certificate).map_err(|error| ConnectError::Authority(error.to_string()))?;
    }
    connect_with(&options.server, options.certificate.as_ref(), |config| config.with_root_certificates(roots))
}

/// A client that believes any server: only to ask what is then verified otherwise.
///
/// # Errors
/// If the URL cannot be used.
pub fn connect_unverified(server: &str) -> Result<kube::Client, ConnectError> {
    connect_with(server, None, |config| {
        config.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(ring::default_provider())))
    })
}

fn connect_with(
    server: &str,
    certificate: Option<&LiveCertificate>,
    believe: impl FnOnce(
        ConfigBuilder<ClientConfig, WantsVerifier>,
    ) -> ConfigBuilder<ClientConfig, WantsClientCert>,
) -> Result<kube::Client, ConnectError> {
    let url = server.parse::<http::Uri>().ok().filter(|url| url.scheme() == Some(&http::uri::Scheme::HTTPS));
    let url = url.ok_or_else(|| ConnectError::Url { url: server.to_owned() })?;
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ConnectError::Authority(error.to_string()))?;
    let builder = believe(builder);
    let tls = match certificate {
        Some(certificate) => builder.with_client_cert_resolver(Arc::new(certificate.clone())),
        None => builder.with_no_client_auth(),
    };
    let mut sockets = HttpConnector::new();
    sockets.enforce_http(false);
    sockets.set_nodelay(true);
    sockets.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only()
        .enable_http2()
        .wrap_connector(sockets);
    let service = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_only(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .build(connector);
    let config = kube::Config::new(url);
    let service = tower::ServiceBuilder::new().layer(config.base_uri_layer()).service(service);
    Ok(kube::Client::new(service, "default"))
}

/// Believes any certificate.
#[derive(Debug)]
struct Anyone(CryptoProvider);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A client for the current context of `kubeconfig` (YAML or JSON). Does not connect yet: the first request does.
pub async fn connect_with_kubeconfig(kubeconfig: &str) -> Result<kube::Client, ConnectError> {
    // Another provider that is already installed serves as well.
    let _ = ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).map_err(ConnectError::Kubeconfig)?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(ConnectError::Kubeconfig)?;
    // Retries are decided by the callers, on their clock and with their randomness.
    config.default_retry = false;
    kube::Client::try_from(config).map_err(|error| ConnectError::Setup(Box::new(error)))
}
