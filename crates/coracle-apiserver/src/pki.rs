//! Keys and certificates of one cluster: a certificate authority made at first start, and what it issues.
//!
//! Everything lives in one directory as PEM files with mode 0600, written atomically. A leaf that has expired
//! (or soon will), names other hosts than asked for, or belongs to another authority is simply issued again: a
//! machine whose address or clock changed starts. The authority itself is never replaced silently, because
//! every kubeconfig in the world trusts it; when it cannot be used, the error names the file and says what to do.

mod account;
mod files;
mod fits;
mod request;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

pub use account::AccountKey;
pub(crate) use account::NotOurs;
pub use files::write_private;
pub use fits::{fits, validity_of};
pub use request::{BadRequest, OwnKey, PublicKey, certificate_fingerprint};

/// How long an authority lives.
const CA_LIFETIME: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);
/// How long a leaf lives.
const LEAF_LIFETIME: SignedDuration = SignedDuration::from_hours(365 * 24);
/// A leaf with less than this left is issued again when it is loaded.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Certificates begin a little in the past, for peers whose clock is behind.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);

/// Why keys and certificates cannot be used. Each message names the file and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file or directory operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else could read or replace a private key.
    #[error("{} {problem}; {remedy}", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// A file does not hold what it should.
    #[error("{} is not usable: {problem}; restore it from a backup, or remove the directory {} to start with new certificates", path.display(), path.parent().unwrap_or(Path::new("/")).display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The authority is no longer, or not yet, valid.
    #[error("{} is valid from {not_before} to {not_after}, but the clock says {now}; set the clock, or remove the directory {} to start with new certificates", path.display(), path.parent().unwrap_or(Path::new("/")).display())]
    NotValidNow {
        /// The file.
        path: PathBuf,
        /// Start of validity.
        not_before: Timestamp,
        /// End of validity.
        not_after: Timestamp,
        /// The time of the check.
        now: Timestamp,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate for {name}: {source}")]
    Issue {
        /// Whose certificate.
        name: String,
        /// What the library said.
        #[source]
        source: rcgen::Error,
    },
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// A TLS server.
    Server,
    /// A TLS client.
    Client,
}

/// A leaf certificate to be issued.
#[derive(Debug, Clone)]
pub struct CertificateRequest {
    /// Common name: for a client, the user name.
    pub common_name: String,
    /// Organization: for a client, its group.
    pub organization: Option<String>,
    /// What it is for.
    pub usage: Usage,
    /// Host names that a server answers to.
    pub dns_names: Vec<String>,
    /// Addresses that a server answers to.
    pub ip_addresses: Vec<IpAddr>,
}

impl CertificateRequest {
    /// A client certificate for `user`, a member of `group`.
    #[must_use]
    pub fn client(user: &str, group: Option<&str>) -> Self {
        CertificateRequest {
            common_name: user.to_owned(),
            organization: group.map(str::to_owned),
            usage: Usage::Client,
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
        }
    }

    /// The API server's serving certificate: the names that clients inside and outside the cluster use, the
    /// loopback addresses, the address of the `kubernetes` Service, and the given ones.
    #[must_use]
    pub fn api_server(service_ip: IpAddr, hosts: &[String], addresses: &[IpAddr]) -> Self {
        let mut dns_names: Vec<String> = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
        ]
        .map(str::to_owned)
        .to_vec();
        dns_names.extend(hosts.iter().cloned());
        let mut ip_addresses =
            vec![IpAddr::from([127, 0, 0, 1]), std::net::Ipv6Addr::LOCALHOST.into(), service_ip];
        ip_addresses.extend(addresses);
        CertificateRequest {
            common_name: "kube-apiserver".to_owned(),
            organization: None,
            usage: Usage::Server,
            dns_names,
            ip_addresses,
        }
    }

    /// The serving certificate of the kubelet of node `node`, reached at `addresses` or by its name.
    #[must_use]
    pub fn kubelet_server(node: &str, addresses: &[IpAddr]) -> Self {
        CertificateRequest {
            common_name: format!("system:node:{node}"),
            organization: Some("system:nodes".to_owned()),
            usage: Usage::Server,
            dns_names: vec![node.to_owned()],
            ip_addresses: addresses.to_vec(),
        }
    }

    /// The client certificate of the kubelet of node `node`.
    #[must_use]
    pub fn kubelet_client(node: &str) -> Self {
        Self::client(&format!("system:node:{node}"), Some("system:nodes"))
    }
}

/// A certificate with its private key.
#[derive(Clone)]
pub struct Credential {
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// The private key, PKCS#8 PEM.
    pub key_pem: String,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").finish_non_exhaustive()
    }
}

impl Credential {
    /// The certificate in the form that rustls wants.
    ///
    /// # Errors
    /// If the text is not a PEM certificate.
    pub fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, rustls::pki_types::pem::Error> {
        CertificateDer::pem_slice_iter(self.certificate_pem.as_bytes()).collect()
    }

    /// The key in the form that rustls wants.
    ///
    /// # Errors
    /// If the text is not a PEM key.
    pub fn key(&self) -> Result<PrivateKeyDer<'static>, rustls::pki_types::pem::Error> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
    }
}

/// The cluster's certificate authority.
pub struct CertificateAuthority {
    certificate_pem: String,
    certificate_der: Vec<u8>,
    key: KeyPair,
    not_after: Timestamp,
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority").finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// Loads `ca.crt` and `ca.key` from `directory`, or makes both if neither exists.
    ///
    /// # Errors
    /// See [`PkiError`]; an existing authority is never overwritten.
    pub fn load_or_create(directory: &Path, now: Timestamp) -> Result<Self, PkiError> {
        files::private_directory(directory)?;
        let (certificate_path, key_path) = (directory.join("ca.crt"), directory.join("ca.key"));
        match (certificate_path.exists(), key_path.exists()) {
            (false, false) => Self::create(&certificate_path, &key_path, now),
            (true, true) => Self::load(&certificate_path, &key_path, now),
            // The key is written first, so that a certificate without its key means that somebody removed it, and a
            // key without its certificate that a first start was cut off, if nothing was signed with it.
            (false, true) if !directory.join("admin.crt").exists() => {
                Self::create(&certificate_path, &key_path, now)
            }
            (false, true) => Err(PkiError::Damaged {
                path: certificate_path,
                problem: "it is missing, while certificates that it signed are there".to_owned(),
            }),
            (true, false) => Err(PkiError::Damaged {
                path: key_path,
                problem: "it is missing, while ca.crt beside it exists".to_owned(),
            }),
        }
    }

    fn create(certificate_path: &Path, key_path: &Path, now: Timestamp) -> Result<Self, PkiError> {
        let issue = |source| PkiError::Issue { name: "the cluster's authority".to_owned(), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(issue)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "kubernetes");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = date(now.saturating_sub(BACKDATE).unwrap_or(now));
        params.not_after = date(now.saturating_add(CA_LIFETIME).unwrap_or(Timestamp::MAX));
        let certificate = params.self_signed(&key).map_err(issue)?;
        write_private(key_path, key.serialize_pem().as_bytes())?;
        write_private(certificate_path, certificate.pem().as_bytes())?;
        Self::load(certificate_path, key_path, now)
    }

    fn load(certificate_path: &Path, key_path: &Path, now: Timestamp) -> Result<Self, PkiError> {
        let certificate_pem = files::read_private(certificate_path)?;
        let key_pem = files::read_private(key_path)?;
        let damaged = |path: &Path, problem: String| PkiError::Damaged { path: path.to_path_buf(), problem };
        let key = KeyPair::from_pem(&key_pem)
            .map_err(|error| damaged(key_path, format!("it holds no private key ({error})")))?;
        let certificate_der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|error| damaged(certificate_path, format!("it holds no certificate ({error})")))?
            .to_vec();
        let parsed = parse(&certificate_der)
            .ok_or_else(|| damaged(certificate_path, "it holds no X.509 certificate".to_owned()))?;
        if !parsed.is_ca() {
            return Err(damaged(certificate_path, "it is not the certificate of an authority".to_owned()));
        }
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(damaged(certificate_path, format!("it does not belong to {}", key_path.display())));
        }
        let (not_before, not_after) = validity(&parsed);
        if now < not_before || now >= not_after {
            return Err(PkiError::NotValidNow {
                path: certificate_path.to_path_buf(),
                not_before,
                not_after,
                now,
            });
        }
        Ok(CertificateAuthority { certificate_pem, certificate_der, key, not_after })
    }

    /// The authority's certificate, PEM: what clients trust.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The authority's certificate in the form that rustls wants.
    #[must_use]
    pub fn certificate(&self) -> CertificateDer<'static> {
        CertificateDer::from(self.certificate_der.clone())
    }

    /// Issues a certificate with a new key.
    ///
    /// # Errors
    /// [`PkiError::Issue`] if a name cannot stand in a certificate.
    pub fn issue(&self, request: &CertificateRequest, now: Timestamp) -> Result<Credential, PkiError> {
        let issue = || {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let certificate = self.sign(request, &key, now)?;
            Ok(Credential { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
        };
        issue().map_err(|source| PkiError::Issue { name: request.common_name.clone(), source })
    }

    fn sign(
        &self,
        request: &CertificateRequest,
        key: &impl PublicKeyData,
        now: Timestamp,
    ) -> Result<Certificate, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(organization) = &request.organization {
            params.distinguished_name.push(DnType::OrganizationName, organization.as_str());
        }
        params.distinguished_name.push(DnType::CommonName, request.common_name.as_str());
        for name in &request.dns_names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.subject_alt_names.extend(request.ip_addresses.iter().map(|ip| SanType::IpAddress(*ip)));
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match request.usage {
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.not_before = date(now.saturating_sub(BACKDATE).unwrap_or(now));
        params.not_after =
            date(now.saturating_add(LEAF_LIFETIME).unwrap_or(Timestamp::MAX).min(self.not_after));
        let issuer = Issuer::from_ca_cert_pem(&self.certificate_pem, &self.key)?;
        params.signed_by(key, &issuer)
    }

    /// Loads `NAME.crt` and `NAME.key` from `directory` if they still are what `request` asks for, and issues
    /// and writes them anew otherwise.
    ///
    /// # Errors
    /// See [`PkiError`].
    pub fn load_or_issue(
        &self,
        directory: &Path,
        name: &str,
        request: &CertificateRequest,
        now: Timestamp,
    ) -> Result<Credential, PkiError> {
        files::private_directory(directory)?;
        let (certificate_path, key_path) =
            (directory.join(format!("{name}.crt")), directory.join(format!("{name}.key")));
        if certificate_path.exists() && key_path.exists() {
            let credential = Credential {
                certificate_pem: files::read_private(&certificate_path)?,
                key_pem: files::read_private(&key_path)?,
            };
            if fits(&self.certificate_pem, &credential, request, now) {
                return Ok(credential);
            }
        }
        let credential = self.issue(request, now)?;
        // Key first: a stop in between leaves a pair that does not match, which is issued again.
        write_private(&key_path, credential.key_pem.as_bytes())?;
        write_private(&certificate_path, credential.certificate_pem.as_bytes())?;
        Ok(credential)
    }
}

/// What a certificate says about its owner, in one comparable form.
fn names(leaf: &X509Certificate<'_>) -> Vec<String> {
    let subject = leaf.subject();
    let mut names: Vec<String> = Vec::new();
    names.extend(subject.iter_common_name().filter_map(|n| n.as_str().ok()).map(|n| format!("cn:{n}")));
    names.extend(subject.iter_organization().filter_map(|n| n.as_str().ok()).map(|n| format!("o:{n}")));
    if let Ok(Some(san)) = leaf.subject_alternative_name() {
        for name in &san.value.general_names {
            match name {
                GeneralName::DNSName(dns) => names.push(format!("dns:{dns}")),
                GeneralName::IPAddress(bytes) => names.push(format!("ip:{bytes:?}")),
                other => names.push(format!("other:{other}")),
            }
        }
    }
    if let Ok(Some(usage)) = leaf.extended_key_usage() {
        names.push(format!("usage:{}{}", usage.value.server_auth, usage.value.client_auth));
    }
    names.sort();
    names.dedup();
    names
}

fn wanted_names(request: &CertificateRequest) -> Vec<String> {
    let mut names = vec![format!("cn:{}", request.common_name)];
    names.extend(request.organization.iter().map(|o| format!("o:{o}")));
    names.extend(request.dns_names.iter().map(|dns| format!("dns:{dns}")));
    names.extend(request.ip_addresses.iter().map(|ip| match ip {
        IpAddr::V4(ip) => format!("ip:{:?}", ip.octets()),
        IpAddr::V6(ip) => format!("ip:{:?}", ip.octets()),
    }));
    names.push(match request.usage {
        Usage::Server => "usage:truefalse".to_owned(),
        Usage::Client => "usage:falsetrue".to_owned(),
    });
    names.sort();
    names.dedup();
    names
}

fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate)
}

fn validity(certificate: &X509Certificate<'_>) -> (Timestamp, Timestamp) {
    let at = |seconds| Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
    let validity = certificate.validity();
    (at(validity.not_before.timestamp()), at(validity.not_after.timestamp()))
}

fn date(at: Timestamp) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(at.as_second()).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn now() -> Timestamp {
        "2026-11-21T11:00:00Z".parse().unwrap()
    }

    fn days(n: i64) -> SignedDuration {
        SignedDuration::from_hours(24 * n)
    }

    #[test]
    fn an_authority_is_made_once_and_loaded_again() {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        let first = CertificateAuthority::load_or_create(&pki, now()).unwrap();
        let again = CertificateAuthority::load_or_create(&pki, now() + days(1)).unwrap();
        assert_eq!(first.certificate_pem(), again.certificate_pem());
        for name in ["ca.crt", "ca.key"] {
            let mode = std::fs::metadata(pki.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn errors_name_the_file_and_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        CertificateAuthority::load_or_create(&pki, now()).unwrap();

        let late = CertificateAuthority::load_or_create(&pki, now() + days(365 * 11)).unwrap_err();
        assert!(late.to_string().contains("ca.crt is valid from 2026-11-21T10:55:00Z to"), "{late}");

        std::fs::set_permissions(pki.join("ca.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
        let open = CertificateAuthority::load_or_create(&pki, now()).unwrap_err();
        assert!(open.to_string().contains("ca.key"), "{open}");
        assert!(open.to_string().contains("chmod 600"), "{open}");
        std::fs::set_permissions(pki.join("ca.key"), std::fs::Permissions::from_mode(0o600)).unwrap();

        let other = tempfile::tempdir().unwrap();
        CertificateAuthority::load_or_create(&other.path().join("pki"), now()).unwrap();
        std::fs::copy(other.path().join("pki/ca.key"), pki.join("ca.key")).unwrap();
        let mixed = CertificateAuthority::load_or_create(&pki, now()).unwrap_err();
        assert!(mixed.to_string().contains("does not belong to"), "{mixed}");

        std::fs::write(pki.join("ca.key"), "nonsense").unwrap();
        let damaged = CertificateAuthority::load_or_create(&pki, now()).unwrap_err();
        assert!(damaged.to_string().contains("it holds no private key"), "{damaged}");

        std::fs::write(pki.join("ca.key"), [0; 200]).unwrap();
        let zeros = CertificateAuthority::load_or_create(&pki, now()).unwrap_err();
        assert!(zeros.to_string().contains("it holds no private key"), "{zeros}");
        std::fs::write(pki.join("ca.key"), b"\xff\xfe").unwrap();
        let no_text = CertificateAuthority::load_or_create(&pki, now()).unwrap_err();
        assert!(no_text.to_string().contains("it holds no private key"), "{no_text}");

        std::fs::remove_file(pki.join("ca.key")).unwrap();
        let missing = CertificateAuthority::load_or_create(&pki, now()).unwrap_err();
        assert!(missing.to_string().contains("it is missing"), "{missing}");

        std::fs::rename(pki.join("ca.crt"), pki.join("ca.key")).unwrap();
        std::fs::write(pki.join("admin.crt"), "").unwrap();
        let lost = CertificateAuthority::load_or_create(&pki, now()).unwrap_err();
        assert!(lost.to_string().contains("it is missing, while certificates that it signed"), "{lost}");
    }

    #[test]
    fn a_leaf_that_is_damaged_is_issued_again() {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        let authority = CertificateAuthority::load_or_create(&pki, now()).unwrap();
        let request = CertificateRequest::kubelet_client("n1");
        for name in ["node.crt", "node.key"] {
            for damage in [&b""[..], &[0; 300], b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\n"] {
                let before = authority.load_or_issue(&pki, "node", &request, now()).unwrap();
                std::fs::write(pki.join(name), damage).unwrap();
                let after = authority.load_or_issue(&pki, "node", &request, now()).unwrap();
                assert_ne!(before.certificate_pem, after.certificate_pem);
                assert!(fits(authority.certificate_pem(), &after, &request, now()));
            }
        }
    }

    #[test]
    fn a_leaf_is_kept_while_it_fits_and_issued_again_when_not() {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        let ca = CertificateAuthority::load_or_create(&pki, now()).unwrap();
        let service = IpAddr::from([10, 43, 0, 1]);
        let request = CertificateRequest::api_server(service, &[], &[IpAddr::from([192, 0, 2, 1])]);
        let first = ca.load_or_issue(&pki, "apiserver", &request, now()).unwrap();
        let kept = ca.load_or_issue(&pki, "apiserver", &request, now() + days(300)).unwrap();
        assert_eq!(first.certificate_pem, kept.certificate_pem, "a valid certificate is kept");

        let moved = CertificateRequest::api_server(service, &[], &[IpAddr::from([192, 0, 2, 2])]);
        let second = ca.load_or_issue(&pki, "apiserver", &moved, now()).unwrap();
        assert_ne!(first.certificate_pem, second.certificate_pem, "a new address needs a new certificate");
        let third = ca.load_or_issue(&pki, "apiserver", &moved, now() + days(350)).unwrap();
        assert_ne!(second.certificate_pem, third.certificate_pem, "renewed before it expires");

        std::fs::remove_file(pki.join("ca.crt")).unwrap();
        std::fs::remove_file(pki.join("ca.key")).unwrap();
        let new_ca = CertificateAuthority::load_or_create(&pki, now() + days(350)).unwrap();
        let fourth = new_ca.load_or_issue(&pki, "apiserver", &moved, now() + days(350)).unwrap();
        assert_ne!(third.certificate_pem, fourth.certificate_pem, "another authority's leaf is replaced");
    }
}
