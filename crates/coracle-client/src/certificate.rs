//! A certificate that can be replaced while it is in use: renewal drops no connection and needs no restart.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// A certificate with its key, of a client or a server. Clones are one: a replacement is seen by all of them, and
/// used by every connection that begins after it.
#[derive(Clone)]
pub struct LiveCertificate(Arc<RwLock<Arc<CertifiedKey>>>);

/// A certificate or a key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadCertificate {
    /// It is not PEM.
    #[error("a certificate or key is not PEM: {0}")]
    Pem(#[from] pem::Error),
    /// It is not usable.
    #[error("a certificate or key is not usable: {0}")]
    Unusable(#[from] rustls::Error),
}

impl LiveCertificate {
    /// The certificate and the key in PEM.
    ///
    /// # Errors
    /// If they do not parse, or do not belong together.
    pub fn new(certificate_pem: &str, key_pem: &str) -> Result<Self, BadCertificate> {
        Ok(LiveCertificate(Arc::new(RwLock::new(certified(certificate_pem, key_pem)?))))
    }

    /// Puts another one in its place.
    ///
    /// # Errors
    /// If the new one cannot be used; the old one stays.
    pub fn replace(&self, certificate_pem: &str, key_pem: &str) -> Result<(), BadCertificate> {
        let new = certified(certificate_pem, key_pem)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn certified(certificate_pem: &str, key_pem: &str) -> Result<Arc<CertifiedKey>, BadCertificate> {
    let chain = CertificateDer::pem_slice_iter(certificate_pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())?;
    let certified = CertifiedKey::from_der(chain, key, &ring::default_provider())?;
    certified.keys_match()?;
    Ok(Arc::new(certified))
}

impl fmt::Debug for LiveCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveCertificate").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for LiveCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl ResolvesClientCert for LiveCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
