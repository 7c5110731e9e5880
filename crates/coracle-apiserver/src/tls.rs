//! TLS of a socket: the server's certificate, and the identity of each connection.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};

use crate::auth::UserInfo;
use crate::connections::Limits;
use crate::pki::{CertificateAuthority, Credential};

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

/// What a socket needs: the server's certificate, the authority whose clients are believed, and what clients may
/// take.
#[derive(Clone)]
pub struct ServerTls {
    pub(crate) config: Arc<rustls::ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
    pub(crate) limits: Limits,
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
        Ok(ServerTls { config: Arc::new(config), verifier, limits: Limits::default() })
    }

    /// The same with other limits.
    #[must_use]
    pub fn limited(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Whose connection this is; `None` if the client shows no certificate, or one that is not believed.
    pub(crate) fn identify(&self, chain: Option<&[CertificateDer<'_>]>, now: UnixTime) -> Option<UserInfo> {
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
