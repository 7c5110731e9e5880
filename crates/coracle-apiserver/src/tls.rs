//! Serving on a socket: TLS, HTTP/1.1 and HTTP/2, and the identity of each connection.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coracle_clock::Clock;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::auth::UserInfo;
use crate::body::Body;
use crate::pki::{CertificateAuthority, Credential};
use crate::server::ApiServer;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to send the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long requests in flight may take when the server ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// A pause after the system refused to accept a connection, which it does when it is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const MAX_STREAMS: u32 = 250;
/// How long an HTTP/2 connection may be silent before it is asked whether it is alive, and the time to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(15);
/// Connections at a time, however many descriptors there are.
const CONNECTIONS_MAX: usize = 16 * 1024;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or key is not usable.
    #[error("a certificate or key is not usable: {0}")]
    Rustls(#[from] rustls::Error),
    /// A certificate or key is not PEM.
    #[error("a certificate or key is not PEM: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// The authority is not usable.
    #[error("the authority is not usable: {0}")]
    Authority(#[from] rustls::server::VerifierBuilderError),
}

/// What a socket needs: the server's certificate, and the authority whose clients are believed.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<rustls::ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

impl ServerTls {
    /// A server that shows `credential` and believes clients of `authority`.
    ///
    /// # Errors
    /// If the certificates are not usable.
    pub fn new(credential: &Credential, authority: &CertificateAuthority) -> Result<Self, TlsError> {
        Self::with_certificate(Arc::new(single(credential)?), authority)
    }

    /// A server that shows each new connection what `certificate` says then.
    ///
    /// # Errors
    /// If the authority is not usable.
    pub fn with_certificate(
        certificate: Arc<dyn ResolvesServerCert>,
        authority: &CertificateAuthority,
    ) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(Lenient(Arc::clone(&verifier))))
            .with_cert_resolver(certificate);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(ServerTls { config: Arc::new(config), verifier })
    }

    /// Whose connection this is; `None` if the client shows no certificate, or one that is not believed.
    fn identify(&self, chain: Option<&[CertificateDer<'_>]>, now: UnixTime) -> Option<UserInfo> {
        let (leaf, intermediates) = chain?.split_first()?;
        match self.verifier.verify_client_cert(leaf, intermediates, now) {
            Ok(_) => UserInfo::from_certificate(leaf),
            Err(error) => {
                tracing::debug!(%error, "client certificate not believed");
                None
            }
        }
    }
}

/// A certificate that never changes.
pub(crate) fn single(credential: &Credential) -> Result<SingleCertAndKey, TlsError> {
    let provider = rustls::crypto::ring::default_provider();
    let certified = CertifiedKey::from_der(credential.certificates()?, credential.key()?, &provider)?;
    Ok(SingleCertAndKey::from(certified))
}

/// Lets every client finish the handshake: whether its certificate is believed is a question of authentication,
/// which answers 401 instead of breaking off. That the client holds the key of what it shows is verified here.
#[derive(Debug)]
struct Lenient(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Lenient {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Answers a request of a user; `None` is somebody who did not show who they are.
pub type Answering =
    Arc<dyn Fn(Request<Body>, Option<UserInfo>) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

impl ApiServer {
    /// Serves `listener` until `shutdown`; then requests in flight finish, and watches end.
    pub async fn serve(&self, listener: TcpListener, tls: ServerTls, shutdown: CancellationToken) {
        let core = Arc::clone(&self.core);
        let answering: Answering = Arc::new(move |request, user| Arc::clone(&core).handle(request, user));
        let stop = CancellationToken::new();
        let mut serving =
            std::pin::pin!(serve_with(listener, tls, self.core.clock.clone(), stop.clone(), answering));
        coracle_clock::select! {
            () = shutdown.cancelled() => {}
            () = self.core.draining.cancelled() => {}
            () = serving.as_mut() => return,
        }
        // Watches would go on for half an hour: they end first, and with them their connections.
        self.core.draining.cancel();
        stop.cancel();
        serving.await;
    }
}

/// Serves `listener` until `shutdown` with the answers of `answering`; then requests in flight finish. The time is that
/// of connections, and of certificates.
pub async fn serve_with(
    listener: TcpListener,
    tls: ServerTls,
    clock: Clock,
    shutdown: CancellationToken,
    answering: Answering,
) {
    let mut connections = JoinSet::new();
    let closing = CancellationToken::new();
    let most = most_connections();
    loop {
        coracle_clock::select! {
            () = shutdown.cancelled() => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection ended badly");
                }
            }
            // More wait in the queue of the system.
            accepted = listener.accept(), if connections.len() < most => match accepted {
                Ok((stream, _)) => {
                    let (answering, tls, closing) = (Arc::clone(&answering), tls.clone(), closing.clone());
                    connections.spawn(connection(answering, clock.clone(), stream, tls, closing));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    clock.sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    closing.cancel();
    let drained = async { while connections.join_next().await.is_some() {} };
    if clock.timeout(DRAIN_TIMEOUT, drained).await.is_none() {
        tracing::warn!("connections did not end in time and are cut");
        connections.shutdown().await;
    }
}

/// How many connections there may be: half of the descriptors are for what the cluster is made of, above all the
/// store, which cannot write without them.
fn most_connections() -> usize {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let half = descriptors.and_then(|most| usize::try_from(most / 2).ok()).unwrap_or(CONNECTIONS_MAX);
    half.clamp(1, CONNECTIONS_MAX)
}

async fn connection(
    answering: Answering,
    clock: Clock,
    stream: TcpStream,
    tls: ServerTls,
    closing: CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "connection without TCP_NODELAY");
    }
    let handshake = TlsAcceptor::from(Arc::clone(&tls.config)).accept(stream);
    let stream = coracle_clock::select! {
        () = closing.cancelled() => return,
        outcome = clock.timeout(HANDSHAKE_TIMEOUT, handshake) => match outcome {
            Some(Ok(stream)) => stream,
            Some(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
            None => return tracing::debug!("TLS handshake timed out"),
        },
    };
    let seconds = u64::try_from(clock.now().as_second()).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let user = tls.identify(stream.get_ref().1.peer_certificates(), now);
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let asked = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&asked);
    let service = service_fn(move |request: Request<Incoming>| {
        seen.store(true, Ordering::Relaxed);
        let answer = answering(request.map(|body| body.map_err(Into::into).boxed_unsync()), user.clone());
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // What was agreed on in the handshake is what is spoken: nothing is guessed from the first bytes.
    builder = if http2 { builder.http2_only() } else { builder.http1_only() };
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_ANSWER);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // Who has not asked for anything by then only holds a place.
    let silent = async {
        clock.sleep(HEADER_TIMEOUT).await;
        if asked.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    let ended = coracle_clock::select! {
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        }
        ended = connection.as_mut() => ended,
        () = silent => return tracing::debug!("connection without a request"),
    };
    if let Err(error) = ended {
        tracing::debug!(error, "connection ended");
    }
}
