//! Talking to registries, on top of `oci-client`.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use coracle_clock::Clock;
use coracle_cri::AuthConfig;
use futures::StreamExt;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::AsyncWriteExt;

use super::config::DOCUMENT_MAX;
use super::digest::Digest;
use super::layers::mismatch;
use super::name::ImageName;
use super::types::RegistryConfig;
use super::{ImageError, ImageResult};

const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// What all pulls of a store share.
pub(super) struct Registries {
    config: RegistryConfig,
    turns: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// Clients without credentials. One with credentials is made for its pull alone, because a client remembers
    /// what it was let in with, and the next Pod may not have the same rights.
    anonymous: Mutex<BTreeMap<Transport, Client>>,
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registries").field("config", &self.config).finish_non_exhaustive()
    }
}

/// How to reach a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Transport {
    tls: bool,
    loopback: bool,
}

impl Registries {
    pub(super) fn new(config: &RegistryConfig) -> Self {
        // The process may have chosen already; any provider will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Registries { config: config.clone(), turns: Mutex::default(), anonymous: Mutex::default() }
    }

    /// A lock that the pulls of one name share.
    pub(super) fn turn(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(name).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(name.to_owned(), Arc::downgrade(&turn));
        turn
    }

    /// Asks the registry what the name stands for: the manifest or index, and a session to fetch the rest.
    pub(super) async fn resolve(
        &self,
        clock: &Clock,
        name: &ImageName,
        auth: Option<&AuthConfig>,
    ) -> ImageResult<(Session, Bytes)> {
        let loopback = is_loopback(name.registry());
        let plain = self.config.plain_http.iter().any(|registry| registry == name.registry());
        let transport = Transport { tls: !plain, loopback };
        let session = self.session(clock, name, auth, transport).await?;
        let outcome = session.fetch_manifest(name.reference()).await;
        let (session, outcome) = match outcome {
            Err(error) if loopback && transport.tls && speaks_plain_http(&error) => {
                let session = self.session(clock, name, auth, Transport { tls: false, loopback }).await?;
                let outcome = session.fetch_manifest(name.reference()).await;
                (session, outcome)
            }
            outcome => (session, outcome),
        };
        let bytes = outcome.map_err(|error| {
            let error = classify(&error, name, "manifests", &name.reference().to_string());
            let message = format!("failed to resolve reference \"{name}\": {error}");
            match error {
                ImageError::PullNotFound(_) => ImageError::PullNotFound(message),
                _ => ImageError::Pull(message),
            }
        })?;
        Ok((session, bytes))
    }

    async fn session(
        &self,
        clock: &Clock,
        name: &ImageName,
        auth: Option<&AuthConfig>,
        transport: Transport,
    ) -> ImageResult<Session> {
        let auth = registry_auth(auth);
        let cached = match auth {
            RegistryAuth::Anonymous => self.cached(transport),
            _ => None,
        };
        let client = match cached {
            Some(client) => client,
            None => {
                let config = self.config.clone();
                // Reading the system's certificates takes a while.
                let client = super::blocking(move || make_client(&config, transport)).await?;
                if auth == RegistryAuth::Anonymous {
                    let mut clients = self.anonymous.lock().unwrap_or_else(PoisonError::into_inner);
                    clients.insert(transport, client.clone());
                }
                client
            }
        };
        let idle = self.config.idle_timeout;
        Ok(Session { client, auth, clock: clock.clone(), name: name.clone(), idle })
    }

    fn cached(&self, transport: Transport) -> Option<Client> {
        self.anonymous.lock().unwrap_or_else(PoisonError::into_inner).get(&transport).cloned()
    }
}

/// One pull's connection to its registry.
#[derive(Clone)]
pub(super) struct Session {
    client: Client,
    auth: RegistryAuth,
    clock: Clock,
    name: ImageName,
    idle: std::time::Duration,
}

impl Session {
    async fn fetch_manifest(&self, reference: &Reference) -> Result<Bytes, OciDistributionError> {
        let (bytes, _) = self.client.pull_manifest_raw(reference, &self.auth, &MANIFEST_TYPES).await?;
        Ok(bytes)
    }

    /// Fetches a manifest by its digest.
    pub(super) async fn manifest(&self, digest: &Digest, size: u64) -> ImageResult<Bytes> {
        let reference = self.name.reference().clone_with_digest(digest.to_string());
        let bytes = self
            .fetch_manifest(&reference)
            .await
            .map_err(|error| classify(&error, &self.name, "manifests", &digest.to_string()))?;
        if bytes.len() as u64 != size {
            return Err(mismatch(format!("size of manifest {digest}"), &size, &bytes.len()));
        }
        let actual = Digest::of(&bytes);
        if actual == *digest { Ok(bytes) } else { Err(mismatch("manifest".to_owned(), digest, &actual)) }
    }

    /// Fetches a small blob into memory.
    pub(super) async fn document(&self, digest: &Digest, size: u64) -> ImageResult<Vec<u8>> {
        if size > DOCUMENT_MAX {
            return Err(ImageError::Limit(format!("{digest} is larger than {DOCUMENT_MAX} bytes")));
        }
        let mut bytes = Vec::new();
        self.blob(digest, size, &mut bytes).await?;
        let actual = Digest::of(&bytes);
        if actual == *digest {
            Ok(bytes)
        } else {
            Err(mismatch("image configuration".to_owned(), digest, &actual))
        }
    }

    /// Streams a blob; never more than `size` bytes. Its digest is checked by the one who reads the result.
    pub(super) async fn blob(
        &self,
        digest: &Digest,
        size: u64,
        to: &mut (impl tokio::io::AsyncWrite + Unpin),
    ) -> ImageResult<()> {
        let text = digest.to_string();
        let failed = |what: String| ImageError::Pull(format!("failed to copy: {text}: {what}"));
        let open = self.client.pull_blob_stream(self.name.reference(), text.as_str());
        let mut stream = self
            .clock
            .timeout(self.idle, open)
            .await
            .ok_or_else(|| failed(format!("no answer within {:?}", self.idle)))?
            .map_err(|error| classify(&error, &self.name, "blobs", &text))?;
        let mut received: u64 = 0;
        loop {
            let chunk = self
                .clock
                .timeout(self.idle, stream.next())
                .await
                .ok_or_else(|| failed(format!("no data for {:?}", self.idle)))?;
            let Some(chunk) = chunk else { break };
            let chunk = chunk.map_err(|error| failed(root_cause(&error)))?;
            received += chunk.len() as u64;
            if received > size {
                return Err(mismatch(format!("size of blob {digest}"), &size, &"more"));
            }
            to.write_all(&chunk).await.map_err(|error| failed(error.to_string()))?;
        }
        to.flush().await.map_err(|error| failed(error.to_string()))?;
        if received == size {
            Ok(())
        } else {
            Err(mismatch(format!("size of blob {digest}"), &size, &received))
        }
    }
}

fn registry_auth(auth: Option<&AuthConfig>) -> RegistryAuth {
    match auth {
        Some(auth) if !auth.registry_token.is_empty() => RegistryAuth::Bearer(auth.registry_token.clone()),
        Some(auth) if !auth.username.is_empty() => {
            RegistryAuth::Basic(auth.username.clone(), auth.password.clone())
        }
        _ => RegistryAuth::Anonymous,
    }
}

fn make_client(config: &RegistryConfig, transport: Transport) -> ImageResult<Client> {
    let mut extra_root_certificates = Vec::new();
    for path in &config.extra_ca_files {
        let pem = std::fs::read(path).map_err(ImageError::io("cannot read", path))?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate
                .map_err(|error| ImageError::io("cannot read", path)(io::Error::other(error.to_string())))?;
            extra_root_certificates
                .push(Certificate { encoding: CertificateEncoding::Der, data: certificate.to_vec() });
        }
    }
    // A proxy cannot reach what is on this machine. Naming one with an exception for everything is how the
    // client is kept from looking for one in the environment.
    let proxy = transport.loopback.then(|| "http://127.0.0.1:9".to_owned());
    let config = ClientConfig {
        protocol: if transport.tls { ClientProtocol::Https } else { ClientProtocol::Http },
        extra_root_certificates,
        read_timeout: Some(config.idle_timeout),
        connect_timeout: Some(config.connect_timeout),
        user_agent: concat!("coracle/", env!("CARGO_PKG_VERSION")),
        https_proxy: proxy.clone(),
        no_proxy: proxy.is_some().then(|| "*".to_owned()),
        http_proxy: proxy,
        ..ClientConfig::default()
    };
    Client::try_from(config)
        .map_err(|error| ImageError::Pull(format!("cannot make a registry client: {}", root_cause(&error))))
}

/// Whether a registry (`host` or `host:port`) is on this machine.
fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    host == "localhost"
        || host.ends_with(".localhost")
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// An error in the words that users of Kubernetes know.
fn classify(error: &OciDistributionError, name: &ImageName, what: &str, of: &str) -> ImageError {
    let denied = || {
        ImageError::Pull(
            "pull access denied, repository does not exist or may require authorization: authorization failed"
                .to_owned(),
        )
    };
    let not_found = || {
        let of = if what == "manifests" { name.to_string() } else { of.to_owned() };
        ImageError::PullNotFound(format!("{of}: not found"))
    };
    match error {
        OciDistributionError::ImageManifestNotFoundError(_)
        | OciDistributionError::ServerError { code: 404, .. } => not_found(),
        OciDistributionError::UnauthorizedError { .. }
        | OciDistributionError::AuthenticationFailure(_)
        | OciDistributionError::ServerError { code: 401 | 403, .. } => denied(),
        OciDistributionError::RegistryError { envelope, url } => {
            let is = |codes: &[OciErrorCode]| envelope.errors.iter().any(|error| codes.contains(&error.code));
            if is(&[
                OciErrorCode::ManifestUnknown,
                OciErrorCode::NameUnknown,
                OciErrorCode::NotFound,
                OciErrorCode::BlobUnknown,
                OciErrorCode::ManifestBlobUnknown,
            ]) {
                not_found()
            } else if is(&[OciErrorCode::Unauthorized, OciErrorCode::Denied]) {
                denied()
            } else {
                let said: Vec<String> = envelope
                    .errors
                    .iter()
                    .map(|error| format!("{}: {}", code_name(&error.code), error.message))
                    .collect();
                ImageError::Pull(format!("unexpected answer from GET request to {url}: {}", said.join("; ")))
            }
        }
        OciDistributionError::ServerError { code, url, .. } => {
            ImageError::Pull(format!("unexpected status from GET request to {url}: {code}"))
        }
        OciDistributionError::RequestError(error) => {
            let url = error.url().map(ToString::to_string).unwrap_or_else(|| name.registry().to_owned());
            let connecting = error.is_connect();
            ImageError::Pull(format!(
                "failed to do request: Get \"{url}\": {}",
                connect_words(error, connecting, name.registry())
            ))
        }
        other => ImageError::Pull(root_cause(other)),
    }
}

fn code_name(code: &OciErrorCode) -> String {
    serde_json::to_value(code).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Why a connection was not made, as a Go program says it: that is what people search for.
fn connect_words(error: &(dyn StdError + 'static), connecting: bool, registry: &str) -> String {
    let cause = root_cause(error);
    if !connecting {
        return cause;
    }
    let kind = chain(error).find_map(|e| e.downcast_ref::<io::Error>()).map(io::Error::kind);
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    match kind {
        Some(io::ErrorKind::ConnectionRefused) => format!("dial tcp {registry}: connect: connection refused"),
        Some(io::ErrorKind::NetworkUnreachable) => {
            format!("dial tcp {registry}: connect: network is unreachable")
        }
        Some(io::ErrorKind::HostUnreachable) => format!("dial tcp {registry}: connect: no route to host"),
        Some(io::ErrorKind::TimedOut) => format!("dial tcp {registry}: i/o timeout"),
        _ if chain(error).any(|e| e.to_string().contains("dns error")) => {
            format!("dial tcp: lookup {host}: {cause}")
        }
        _ => cause,
    }
}

/// Whether a TLS connection failed because the other side talks plain HTTP.
fn speaks_plain_http(error: &OciDistributionError) -> bool {
    chain(error).any(|error| {
        // I/O errors hide what they were made from, several deep.
        let mut io = error.downcast_ref::<io::Error>();
        let mut innermost = error;
        while let Some(inner) = io.and_then(io::Error::get_ref) {
            innermost = inner;
            io = innermost.downcast_ref::<io::Error>();
        }
        matches!(innermost.downcast_ref::<rustls::Error>(), Some(rustls::Error::InvalidMessage(_)))
    })
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

fn root_cause(error: &(dyn StdError + 'static)) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_told_by_name_and_address() {
        for yes in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in ["docker.io", "10.0.0.1:5000", "localhost.example.com", "127.0.0.1.nip.io"] {
            assert!(!is_loopback(no), "{no}");
        }
    }
}
