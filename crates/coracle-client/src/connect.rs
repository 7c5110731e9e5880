//! Clients: in process over a service, or over TLS.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use serde_json::json;
use tower::BoxError;

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
#[derive(Clone)]
pub struct ConnectOptions {
    /// Its URL, as `https://127.0.0.1:6443`.
    pub server: String,
    /// PEM of the authority that signed its certificate.
    pub ca: Vec<u8>,
    /// PEM of the client's certificate.
    pub cert: Vec<u8>,
    /// PEM of the client's key.
    pub key: Vec<u8>,
}

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig does not parse, or what it refers to is missing.
    #[error("cannot use the kubeconfig")]
    Kubeconfig(#[source] KubeconfigError),
    /// The certificates or the key cannot be used.
    #[error("cannot set up the connection")]
    Setup(#[source] Box<kube::Error>),
}

/// A client over TLS with a client certificate. Does not connect yet: the first request does.
pub async fn connect(options: &ConnectOptions) -> Result<kube::Client, ConnectError> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {
            "server": options.server,
            "certificate-authority-data": STANDARD.encode(&options.ca),
        }}],
        "users": [{"name": "u", "user": {
            "client-certificate-data": STANDARD.encode(&options.cert),
            "client-key-data": STANDARD.encode(&options.key),
        }}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    });
    connect_with_kubeconfig(&config.to_string()).await
}

/// A client for the current context of `kubeconfig` (YAML or JSON). Does not connect yet: the first request does.
pub async fn connect_with_kubeconfig(kubeconfig: &str) -> Result<kube::Client, ConnectError> {
    // Another provider that is already installed serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).map_err(ConnectError::Kubeconfig)?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(ConnectError::Kubeconfig)?;
    // Retries are decided by the callers, on their clock and with their randomness.
    config.default_retry = false;
    kube::Client::try_from(config).map_err(|error| ConnectError::Setup(Box::new(error)))
}
