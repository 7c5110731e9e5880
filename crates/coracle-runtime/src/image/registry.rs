//! Talking to registries: what a name stands for, and the blobs behind it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use coracle_clock::Clock;
use coracle_cri::AuthConfig;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE};
use reqwest::{Response, StatusCode};
use tokio::io::AsyncWriteExt;

use super::config::DOCUMENT_MAX;
use super::dial::{Connections, Transport};
use super::digest::Digest;
use super::exchange::{Exchange, Failure};
use super::layers::mismatch;
use super::name::ImageName;
use super::types::RegistryConfig;
use super::{ImageError, ImageResult};

/// How often a blob whose connection was cut is asked for again, from where it was cut.
const RESUMES_MAX: usize = 3;

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
    /// Credentials are not part of them: the next Pod may not have the same rights.
    connections: Mutex<BTreeMap<Transport, Connections>>,
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registries").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Registries {
    pub(super) fn new(config: &RegistryConfig) -> Self {
        // The process may have chosen already; any provider will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Registries { config: config.clone(), turns: Mutex::default(), connections: Mutex::default() }
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
    ) -> ImageResult<(Session, Vec<u8>)> {
        let loopback = is_loopback(name.registry());
        let plain = self.config.plain_http.iter().any(|registry| registry == name.registry());
        let reference = name.reference().digest().or(name.reference().tag()).unwrap_or("latest").to_owned();
        let transport = Transport { tls: !plain, loopback };
        let session = self.session(clock, name, auth, transport).await?;
        let outcome = session.fetch_manifest(&reference).await;
        let (session, outcome) = match outcome {
            Err(Failure::PlainHttp) if loopback && transport.tls => {
                let session = self.session(clock, name, auth, Transport { tls: false, loopback }).await?;
                let outcome = session.fetch_manifest(&reference).await;
                (session, outcome)
            }
            outcome => (session, outcome),
        };
        let bytes = outcome.map_err(|failure| {
            let error = session.words(failure, &name.to_string());
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
        let known = |registries: &Self| {
            registries.connections.lock().unwrap_or_else(PoisonError::into_inner).get(&transport).cloned()
        };
        let connections = match known(self) {
            Some(connections) => connections,
            None => {
                let config = self.config.clone();
                let made = super::blocking(move || Connections::new(&config, transport)).await?;
                let mut all = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
                all.entry(transport).or_insert(made).clone()
            }
        };
        let from = (name.registry(), name.reference().repository());
        let exchange = Exchange::new(connections, clock.clone(), &self.config, from, transport, auth)?;
        Ok(Session { exchange, name: name.clone() })
    }
}

/// One pull's conversation with its registry.
#[derive(Clone)]
pub(super) struct Session {
    exchange: Exchange,
    name: ImageName,
}

impl Session {
    async fn fetch_manifest(&self, reference: &str) -> Result<Vec<u8>, Failure> {
        let response = self.exchange.get("manifests", reference, &MANIFEST_TYPES, 0).await?;
        let kind =
            response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if kind.starts_with("text/html") {
            // What answers is no registry: a portal that wants a login, or a proxy.
            return Err(Failure::Other(format!(
                "unexpected media type {kind} from GET request to {}",
                response.url()
            )));
        }
        self.exchange.body(response, DOCUMENT_MAX).await
    }

    /// Fetches a manifest by its digest.
    pub(super) async fn manifest(&self, digest: &Digest, size: u64) -> ImageResult<Vec<u8>> {
        let outcome = self.fetch_manifest(&digest.to_string()).await;
        let bytes = outcome.map_err(|failure| self.words(failure, &self.name.to_string()))?;
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

    /// Streams a blob; never more than `size` bytes. Its digest is checked by the one who reads the result. What a
    /// connection that was cut has brought is kept, and the rest asked for again.
    pub(super) async fn blob(
        &self,
        digest: &Digest,
        size: u64,
        to: &mut (impl tokio::io::AsyncWrite + Unpin),
    ) -> ImageResult<()> {
        let text = digest.to_string();
        let failed = |what: String| ImageError::Pull(format!("failed to copy: {text}: {what}"));
        let (mut received, mut resumes) = (0, 0);
        loop {
            let before = received;
            let response = match self.exchange.get("blobs", &text, &["*/*"], received).await {
                Ok(response) => response,
                Err(Failure::Other(why)) => return Err(failed(why)),
                Err(failure) => return Err(self.words(failure, &text)),
            };
            match self.receive(response, digest, size, &mut received, to).await {
                Ok(()) if received == size => break,
                Ok(()) => {}
                Err(Cut::Ended(error)) => return Err(error),
                // A connection that brings nothing new is not worth another.
                Err(Cut::Failed(why)) if resumes == RESUMES_MAX || received == before => {
                    return Err(failed(why));
                }
                Err(Cut::Failed(why)) => {
                    tracing::debug!(digest = text, received, why, "a download was cut and goes on");
                    resumes += 1;
                    continue;
                }
            }
            return Err(mismatch(format!("size of blob {digest}"), &size, &received));
        }
        to.flush().await.map_err(|error| failed(error.to_string()))
    }

    async fn receive(
        &self,
        mut response: Response,
        digest: &Digest,
        size: u64,
        received: &mut u64,
        to: &mut (impl tokio::io::AsyncWrite + Unpin),
    ) -> Result<(), Cut> {
        let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        let mut skip = match response.status() {
            StatusCode::PARTIAL_CONTENT
                if range.is_some_and(|range| range.starts_with(&format!("bytes {received}-"))) =>
            {
                0
            }
            // It begins at the beginning: what is here already is passed over.
            StatusCode::OK => *received,
            _ => return Err(Cut::Failed(format!("the answer is not what was asked for: {range:?}"))),
        };
        if let Some(length) = response.content_length().filter(|length| *length > size) {
            return Err(Cut::Ended(mismatch(format!("size of blob {digest}"), &size, &length)));
        }
        let mut progress = self.exchange.progress();
        loop {
            let chunk = progress.chunk(&mut response).await.map_err(|failure| match failure {
                Failure::Other(why) => Cut::Failed(why),
                _ => Cut::Failed("the connection broke".to_owned()),
            })?;
            let Some(mut chunk) = chunk else { return Ok(()) };
            let passed = skip.min(chunk.len() as u64);
            skip -= passed;
            let chunk = chunk.split_off(usize::try_from(passed).unwrap_or(chunk.len()));
            *received += chunk.len() as u64;
            if *received > size {
                return Err(Cut::Ended(mismatch(format!("size of blob {digest}"), &size, &"more")));
            }
            let written = to.write_all(&chunk).await;
            written.map_err(|error| {
                Cut::Ended(ImageError::Pull(format!("failed to copy: {digest}: {error}")))
            })?;
        }
    }

    /// A failure in the words that users of Kubernetes know.
    fn words(&self, failure: Failure, of: &str) -> ImageError {
        match failure {
            Failure::NotFound => ImageError::PullNotFound(format!("{of}: not found")),
            Failure::Denied => ImageError::Pull(
                "pull access denied, repository does not exist or may require authorization: authorization failed"
                    .to_owned(),
            ),
            Failure::PlainHttp => {
                ImageError::Pull(format!("the registry {} does not speak TLS", self.name.registry()))
            }
            Failure::Other(why) => ImageError::Pull(why),
        }
    }
}

/// Why a body did not come to its end.
enum Cut {
    /// The connection failed: another may bring the rest.
    Failed(String),
    /// Nothing that comes can be right any more.
    Ended(ImageError),
}

/// Whether a registry (`host` or `host:port`) is on this machine.
fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    host == "localhost"
        || host.ends_with(".localhost")
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
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
