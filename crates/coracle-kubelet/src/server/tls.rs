//! Who calls: TLS with the cluster's authority, and what a client certificate says.

use std::io;
use std::sync::Arc;

use coracle_clock::Clock;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::time_provider::TimeProvider;
use rustls::{RootCertStore, crypto};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{ServerConfig, ServerError};

/// The API server's identity towards kubelets.
const API_SERVER: &str = "kube-apiserver-kubelet-client";
/// The group that may do everything.
const ADMINISTRATORS: &str = "system:masters";

/// A caller with a certificate of the cluster's authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) user: String,
    pub(super) groups: Vec<String>,
}

impl Caller {
    /// The common name is the user, the organizations are the groups.
    pub(super) fn from_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups =
            subject.iter_organization().filter_map(|name| name.as_str().ok()).map(str::to_owned).collect();
        Some(Caller { user, groups })
    }

    pub(super) fn is_allowed(&self) -> bool {
        self.user == API_SERVER || self.groups.iter().any(|group| group == ADMINISTRATORS)
    }
}

#[derive(Debug)]
struct ClockTime(Clock);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        let since_epoch = self.0.now().as_duration().try_into().ok()?;
        Some(UnixTime::since_unix_epoch(since_epoch))
    }
}

/// A client certificate is optional here, because health is open to all; one that is not of the authority ends
/// the handshake.
pub(super) fn acceptor(config: &ServerConfig, clock: &Clock) -> Result<TlsAcceptor, ServerError> {
    let provider = Arc::new(crypto::ring::default_provider());
    let unusable = |what: &'static str| {
        move |error: &dyn std::fmt::Display| ServerError::Credentials { what, problem: error.to_string() }
    };

    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(config.client_ca_pem.as_bytes()) {
        let certificate = certificate.map_err(|e| unusable("the client authority")(&e))?;
        roots.add(certificate).map_err(|e| unusable("the client authority")(&e))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|e| unusable("the client authority")(&e))?;

    let mut tls = rustls::ServerConfig::builder_with_details(provider, Arc::new(ClockTime(clock.clone())))
        .with_safe_default_protocol_versions()
        .map_err(|e| unusable("the TLS library")(&e))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(config.certificate.clone()));
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

/// Lets the kernel find out about peers that are gone without a word.
pub(super) fn keep_alive(stream: &tokio::net::TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, std::time::Duration::from_secs(30))?;
    sockopt::set_tcp_keepintvl(stream, std::time::Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    Ok(())
}
