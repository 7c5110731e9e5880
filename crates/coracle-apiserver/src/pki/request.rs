//! Certificates for keys that somebody else has: a node makes its key itself and shows a request (PKCS#10).

use std::path::Path;

use jiff::Timestamp;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use sha2::{Digest as _, Sha256};

use super::{CertificateAuthority, CertificateRequest, PkiError, files, write_private};

/// A request for a certificate that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the certificate request cannot be used: {0}")]
pub struct BadRequest(#[from] rcgen::Error);

/// Somebody's public key, of which they have shown that they hold the private one.
#[derive(Debug)]
pub struct PublicKey(rcgen::PublicKey);

impl PublicKey {
    /// The key of a request in PEM. Its signature is verified; what it asks for is ignored.
    ///
    /// # Errors
    /// If it is no request, or not signed with its own key.
    pub fn of_request(pem: &str) -> Result<Self, BadRequest> {
        Ok(PublicKey(CertificateSigningRequestParams::from_pem(pem)?.public_key))
    }

    /// SHA-256 of the key in hexadecimal.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        hex(&self.0.subject_public_key_info())
    }
}

/// SHA-256 of the first certificate of `pem` in hexadecimal; `None` if it holds none.
#[must_use]
pub fn certificate_fingerprint(pem: &str) -> Option<String> {
    CertificateDer::from_pem_slice(pem.as_bytes()).ok().map(|der| hex(&der))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl CertificateAuthority {
    /// SHA-256 of the authority's certificate in hexadecimal: what join tokens name.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        hex(&self.certificate_der)
    }

    /// A number for the cluster's overlay that follows from the authority, so that two clusters on one network
    /// have different ones: 24 bits, not 0.
    #[must_use]
    pub fn overlay_number(&self) -> u32 {
        let digest = Sha256::digest(&self.certificate_der);
        u32::from_be_bytes([0, digest[0], digest[1], digest[2]]).max(1)
    }

    /// Signs a certificate for somebody else's key, PEM.
    ///
    /// # Errors
    /// [`PkiError::Issue`] if a name cannot stand in a certificate.
    pub fn certify(
        &self,
        request: &CertificateRequest,
        key: &PublicKey,
        now: Timestamp,
    ) -> Result<String, PkiError> {
        self.sign(request, &key.0, now)
            .map(|certificate| certificate.pem())
            .map_err(|source| PkiError::Issue { name: request.common_name.clone(), source })
    }
}

/// A key of one's own, and the request for certificates that goes with it.
pub struct OwnKey(KeyPair);

impl std::fmt::Debug for OwnKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnKey").finish_non_exhaustive()
    }
}

impl OwnKey {
    /// Loads the key in the file `path`, or makes one, with its directory.
    ///
    /// # Errors
    /// See [`PkiError`]; an existing key is never overwritten.
    pub fn load_or_create(path: &Path) -> Result<Self, PkiError> {
        if let Some(directory) = path.parent() {
            files::private_directory(directory)?;
        }
        if path.exists() {
            let problem = |error| PkiError::Damaged {
                path: path.to_path_buf(),
                problem: format!("it holds no private key ({error})"),
            };
            return Ok(OwnKey(KeyPair::from_pem(&files::read_private(path)?).map_err(problem)?));
        }
        let issue = |source| PkiError::Issue { name: "this machine's key".to_owned(), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(issue)?;
        write_private(path, key.serialize_pem().as_bytes())?;
        Ok(OwnKey(key))
    }

    /// The key, PKCS#8 PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// Asks for certificates for this key, PEM. Who they are for is not in it: the authority decides.
    ///
    /// # Errors
    /// [`PkiError::Issue`] if the library cannot sign with the key.
    pub fn request(&self) -> Result<String, PkiError> {
        let issue = |source| PkiError::Issue { name: "this machine's key".to_owned(), source };
        CertificateParams::default()
            .serialize_request(&self.0)
            .and_then(|request| request.pem())
            .map_err(issue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::UserInfo;

    #[test]
    fn a_node_gets_a_certificate_for_a_key_that_it_never_showed() {
        let dir = tempfile::tempdir().unwrap();
        let now = "2026-11-21T11:00:00Z".parse().unwrap();
        let authority = CertificateAuthority::load_or_create(&dir.path().join("pki"), now).unwrap();
        let path = dir.path().join("node/node.key");
        let own = OwnKey::load_or_create(&path).unwrap();
        assert_eq!(OwnKey::load_or_create(&path).unwrap().pem(), own.pem());
        let key = PublicKey::of_request(&own.request().unwrap()).unwrap();
        let pem = authority.certify(&CertificateRequest::kubelet_client("n1"), &key, now).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(UserInfo::from_certificate(&der), Some(UserInfo::node("n1")));
        assert_eq!(certificate_fingerprint(authority.certificate_pem()), Some(authority.fingerprint()));
        assert!((1..1 << 24).contains(&authority.overlay_number()));

        let mut broken = own.request().unwrap();
        broken.replace_range(100..101, if &broken[100..101] == "A" { "B" } else { "A" });
        assert!(PublicKey::of_request(&broken).is_err());
        assert!(PublicKey::of_request("nonsense").is_err());
    }
}
