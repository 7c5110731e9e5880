//! Whether a certificate is still what one would ask for now.

use jiff::Timestamp;
use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{CertificateRequest, Credential, RENEW_BEFORE, names, parse, validity, wanted_names};

/// From when to when the first certificate of `pem` is valid; `None` if it holds none.
#[must_use]
pub fn validity_of(pem: &str) -> Option<(Timestamp, Timestamp)> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    parse(&der).map(|certificate| validity(&certificate))
}

/// Whether `credential` is what `request` asks for, from the authority in `authority_pem`, and will be for long
/// enough: the last thirty days are not, unless the authority itself ends then.
#[must_use]
pub fn fits(
    authority_pem: &str,
    credential: &Credential,
    request: &CertificateRequest,
    now: Timestamp,
) -> bool {
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).ok();
    let (Some(leaf), Some(authority)) = (der(&credential.certificate_pem), der(authority_pem)) else {
        return false;
    };
    let (Some(leaf), Some(authority)) = (parse(&leaf), parse(&authority)) else { return false };
    let Ok(key) = KeyPair::from_pem(&credential.key_pem) else { return false };
    let (not_before, not_after) = validity(&leaf);
    let (_, authority_ends) = validity(&authority);
    let renew_at = not_after.saturating_sub(RENEW_BEFORE).unwrap_or(not_after);
    now >= not_before
        && (now < renew_at || not_after >= authority_ends)
        && now < not_after
        && leaf.verify_signature(Some(authority.public_key())).is_ok()
        && leaf.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
        && names(&leaf) == wanted_names(request)
}
