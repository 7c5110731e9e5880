//! One conversation with a registry over HTTP: who we are, where it sends us, and how long it may take.
//!
//! A registry is not trusted. What it says is bounded in size and time; where it sends us is judged: never from TLS to
//! plain HTTP, never to addresses that only this machine can reach, and credentials go to it and to the token server
//! that it names over TLS, nowhere else.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coracle_clock::Clock;
use coracle_cri::AuthConfig;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use url::{Host, Url};

use super::dial::{Connections, Transport, is_private, root_cause, speaks_plain_http, words};
use super::types::RegistryConfig;
use super::{ImageError, ImageResult};

/// Redirects that are followed, as Go's clients have it.
const REDIRECTS_MAX: usize = 10;
/// Times that a registry may ask us to come again, and how long it may keep us waiting each time.
const LATER_MAX: usize = 3;
const LATER_WAIT_MAX: Duration = Duration::from_secs(60);
const LATER_WAIT: Duration = Duration::from_secs(1);
/// Bytes of a token server's answer, and of a refusal.
const TOKEN_MAX: u64 = 1 << 20;
const REFUSAL_MAX: u64 = 64 << 10;
/// A body must bring as much in the time in which it may bring nothing.
const PROGRESS_BYTES: u64 = 64 << 10;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The registry has not got it.
    NotFound,
    /// We are not let in.
    Denied,
    /// The other side does not speak TLS.
    PlainHttp,
    /// Anything else, in words.
    Other(String),
}

type Outcome<T> = Result<T, Failure>;

/// Who we are for one pull.
enum Identity {
    Nobody,
    Bearer(HeaderValue),
    User { name: String, password: String },
}

/// One pull's conversation.
#[derive(Clone)]
pub(super) struct Exchange(Arc<Inner>);

struct Inner {
    connections: Connections,
    clock: Clock,
    /// Time without progress.
    idle: Duration,
    base: Url,
    loopback: bool,
    repository: String,
    identity: Identity,
    /// What lets us in, once the registry has asked for it.
    pass: Mutex<Option<HeaderValue>>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// A scheme and parameters, as in `Bearer realm="…",service="…"`.
struct Challenge {
    bearer: bool,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn parse(header: &str) -> Option<Challenge> {
        let (scheme, mut rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        let bearer = scheme.eq_ignore_ascii_case("bearer");
        if !bearer && !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let mut parameters = Vec::new();
        while let Some((name, after)) = rest.split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').map_or((after, ""), |(value, rest)| (value, rest)),
            };
            parameters.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
            rest = after.trim_start_matches([',', ' ']);
        }
        Some(Challenge { bearer, parameters })
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl Exchange {
    pub(super) fn new(
        connections: Connections,
        clock: Clock,
        config: &RegistryConfig,
        (registry, repository): (&str, &str),
        transport: Transport,
        auth: Option<&AuthConfig>,
    ) -> ImageResult<Self> {
        let scheme = if transport.tls { "https" } else { "http" };
        let invalid = |_| ImageError::Pull(format!("the registry {registry:?} is no host"));
        let base = Url::parse(&format!("{scheme}://{registry}/v2/")).map_err(invalid)?;
        let identity = match auth {
            Some(auth) if !auth.registry_token.is_empty() => {
                match secret(&format!("Bearer {}", auth.registry_token)) {
                    Some(pass) => Identity::Bearer(pass),
                    None => Identity::Nobody,
                }
            }
            Some(auth) if !auth.username.is_empty() => {
                Identity::User { name: auth.username.clone(), password: auth.password.clone() }
            }
            _ => Identity::Nobody,
        };
        let pass = match &identity {
            Identity::Bearer(pass) => Some(pass.clone()),
            _ => None,
        };
        Ok(Exchange(Arc::new(Inner {
            connections,
            clock,
            idle: config.idle_timeout,
            base,
            loopback: transport.loopback,
            repository: repository.to_owned(),
            identity,
            pass: Mutex::new(pass),
        })))
    }

    fn pass(&self) -> Option<HeaderValue> {
        self.0.pass.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The answer to a request for something of the repository, with status 200 or 206.
    pub(super) async fn get(&self, what: &str, of: &str, accept: &[&str], from: u64) -> Outcome<Response> {
        let path = format!("{}/{what}/{of}", self.0.repository);
        let url = self.0.base.join(&path).map_err(|error| Failure::Other(error.to_string()))?;
        let mut headers = HeaderMap::new();
        for kind in accept {
            headers.append(
                ACCEPT,
                HeaderValue::from_str(kind).unwrap_or_else(|_| HeaderValue::from_static("*/*")),
            );
        }
        if from > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={from}-"))
        {
            headers.insert(RANGE, range);
        }
        let (mut let_in, mut later) = (false, 0);
        loop {
            let response = self.follow(&url, &headers).await?;
            let status = response.status();
            match status {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                // Whom it does not let in with what it asked for itself is not let in.
                StatusCode::UNAUTHORIZED if !let_in => {
                    let_in = true;
                    self.authenticate(response.headers()).await?;
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(Failure::Denied),
                StatusCode::NOT_FOUND => return Err(Failure::NotFound),
                StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT if later < LATER_MAX => {
                    later += 1;
                    let seconds = response
                        .headers()
                        .get(RETRY_AFTER)
                        .and_then(|value| value.to_str().ok()?.parse().ok());
                    let wait = seconds.map_or(LATER_WAIT, Duration::from_secs);
                    if wait > LATER_WAIT_MAX {
                        return Err(self.refused(response).await);
                    }
                    self.0.clock.sleep(wait).await;
                }
                _ => return Err(self.refused(response).await),
            }
        }
    }

    /// Sends a request, and follows where it is sent on to.
    async fn follow(&self, first: &Url, headers: &HeaderMap) -> Outcome<Response> {
        let mut url = first.clone();
        for _ in 0..=REDIRECTS_MAX {
            let home = url.origin() == self.0.base.origin();
            let client = if home { &self.0.connections.named } else { &self.0.connections.elsewhere };
            let mut request = client.get(url.clone()).headers(headers.clone());
            if let Some(pass) = self.pass().filter(|_| home) {
                request = request.header(AUTHORIZATION, pass);
            }
            let response = self.send(request, &url).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let failed = |why: &str| Failure::Other(format!("failed to do request: Get \"{url}\": {why}"));
            let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
            let to =
                to.and_then(|to| url.join(to).ok()).ok_or_else(|| failed("redirect without a location"))?;
            if let Some(why) = self.unacceptable(&to) {
                return Err(failed(&format!("redirect to {to:?} refused: {why}", to = to.as_str())));
            }
            url = to;
        }
        Err(Failure::Other(format!(
            "failed to do request: Get \"{first}\": stopped after {REDIRECTS_MAX} redirects"
        )))
    }

    /// Why we do not go where the registry sends us.
    fn unacceptable(&self, to: &Url) -> Option<&'static str> {
        let base = &self.0.base;
        if to.origin() == base.origin() {
            return None;
        }
        if to.scheme() != "https" && (to.scheme() != "http" || base.scheme() == "https") {
            return Some("it leaves TLS");
        }
        let here = match to.host() {
            Some(Host::Ipv4(address)) => is_private(address.into()),
            Some(Host::Ipv6(address)) => is_private(address.into()),
            Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            None => true,
        };
        (here && !self.0.loopback).then_some("it is an address of this machine")
    }

    async fn send(&self, request: reqwest::RequestBuilder, url: &Url) -> Outcome<Response> {
        let failed = |why: String| Failure::Other(format!("failed to do request: Get \"{url}\": {why}"));
        let sent = self.0.clock.timeout(self.0.idle, request.send()).await;
        let sent = sent.ok_or_else(|| {
            failed(format!("net/http: timeout awaiting response headers ({:?})", self.0.idle))
        })?;
        sent.map_err(|error| {
            if speaks_plain_http(&error) {
                return Failure::PlainHttp;
            }
            failed(words(&error, url))
        })
    }

    /// Gets what the registry asks for.
    async fn authenticate(&self, headers: &HeaderMap) -> Outcome<()> {
        let challenges = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let challenge = challenges.filter_map(Challenge::parse).next().ok_or(Failure::Denied)?;
        let pass = match (&self.0.identity, challenge.bearer) {
            (Identity::Bearer(_), _) | (Identity::Nobody, false) => None,
            (Identity::User { name, password }, false) => basic(name, password),
            (identity, true) => Some(self.token(&challenge, identity).await?),
        };
        let pass = pass.ok_or(Failure::Denied)?;
        *self.0.pass.lock().unwrap_or_else(PoisonError::into_inner) = Some(pass);
        Ok(())
    }

    async fn token(&self, challenge: &Challenge, identity: &Identity) -> Outcome<HeaderValue> {
        let what = if matches!(identity, Identity::Nobody) { "anonymous" } else { "oauth" };
        let failed =
            |why: String| Failure::Other(format!("failed to authorize: failed to fetch {what} token: {why}"));
        let realm = challenge.get("realm").unwrap_or_default();
        let mut url = Url::parse(realm).map_err(|error| failed(format!("realm {realm:?}: {error}")))?;
        if let Some(why) = self.unacceptable(&url) {
            return Err(failed(format!("realm {realm:?} refused: {why}")));
        }
        if let Some(service) = challenge.get("service") {
            url.query_pairs_mut().append_pair("service", service);
        }
        url.query_pairs_mut().append_pair("scope", &format!("repository:{}:pull", self.0.repository));
        let home = url.origin() == self.0.base.origin();
        let client = if home { &self.0.connections.named } else { &self.0.connections.elsewhere };
        let mut request = client.get(url.clone());
        if let Identity::User { name, password } = identity
            && let Some(pass) = basic(name, password)
        {
            request = request.header(AUTHORIZATION, pass);
        }
        let said = |failure| match failure {
            Failure::Other(why) => failed(why),
            other => other,
        };
        let response = self.send(request, &url).await.map_err(said)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(Failure::Denied),
            // Credentials do not travel on: redirects of a token server are not followed.
            status => return Err(failed(format!("unexpected status from GET request to {url}: {status}"))),
        }
        let bytes = self.body(response, TOKEN_MAX).await.map_err(said)?;
        let token: Token = serde_json::from_slice(&bytes)
            .map_err(|error| failed(format!("unable to decode token response: {error}")))?;
        let token = token.token.or(token.access_token).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| {
            failed("authorization server did not include a token in the response".to_owned())
        })?;
        secret(&format!("Bearer {token}")).ok_or_else(|| failed("the token is no header".to_owned()))
    }

    /// A whole small answer.
    pub(super) async fn body(&self, mut response: Response, most: u64) -> Outcome<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut progress = self.progress();
        while let Some(chunk) = progress.chunk(&mut response).await? {
            if bytes.len() as u64 + chunk.len() as u64 > most {
                return Err(Failure::Other(format!(
                    "the answer of {} is larger than {most} bytes",
                    response.url()
                )));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    pub(super) fn progress(&self) -> Progress<'_> {
        Progress { clock: &self.0.clock, idle: self.0.idle, waited: Duration::ZERO, bytes: 0 }
    }

    /// An answer that nobody expects, with what the registry says of it.
    async fn refused(&self, response: Response) -> Failure {
        let (url, status) = (response.url().clone(), response.status());
        let said = self.body(response, REFUSAL_MAX).await.unwrap_or_default();
        let said: serde_json::Value = serde_json::from_slice(&said).unwrap_or_default();
        let errors = said["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
        let words = errors.iter().filter_map(|error| {
            let (code, message) = (error["code"].as_str()?, error["message"].as_str().unwrap_or_default());
            Some(format!(": {}: {}", printable(code), printable(message)))
        });
        let words: String = words.take(3).collect();
        Failure::Other(format!("unexpected status from GET request to {url}: {status}{words}"))
    }
}

/// Watches that a body comes fast enough. Only waiting for it counts: a disk that is slow is not the registry's doing.
pub(super) struct Progress<'a> {
    clock: &'a Clock,
    idle: Duration,
    waited: Duration,
    bytes: u64,
}

impl Progress<'_> {
    /// The next piece; `None` at the end.
    pub(super) async fn chunk(&mut self, response: &mut Response) -> Outcome<Option<bytes::Bytes>> {
        let begun = self.clock.elapsed();
        let left = self.idle.saturating_sub(self.waited);
        let chunk = self.clock.timeout(left, response.chunk()).await.ok_or_else(|| {
            Failure::Other(format!("less than {} KiB within {:?}", PROGRESS_BYTES >> 10, self.idle))
        })?;
        let chunk = chunk.map_err(|error| Failure::Other(root_cause(&error)))?;
        self.waited += self.clock.elapsed().saturating_sub(begun);
        self.bytes += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        if self.bytes >= PROGRESS_BYTES {
            (self.bytes, self.waited) = (0, Duration::ZERO);
        }
        Ok(chunk)
    }
}

/// What a stranger says, fit for a message.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn basic(name: &str, password: &str) -> Option<HeaderValue> {
    use base64::Engine;
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"));
    secret(&format!("Basic {pair}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let challenge =
            Challenge::parse(r#"Bearer realm="https://a/t?x=1,2",service=reg, scope="r:a:pull""#).unwrap();
        assert!(challenge.bearer);
        assert_eq!(challenge.get("realm"), Some("https://a/t?x=1,2"));
        assert_eq!((challenge.get("service"), challenge.get("scope")), (Some("reg"), Some("r:a:pull")));
        assert!(!Challenge::parse("basic realm=x").unwrap().bearer);
        assert!(Challenge::parse("Negotiate abc").is_none());
        assert!(Challenge::parse(r#"Bearer realm="open"#).is_none());
    }

    #[test]
    fn where_a_registry_may_send_us() {
        let exchange = |registry: &str, tls: bool, loopback: bool| {
            let (config, transport) = (RegistryConfig::default(), Transport { tls, loopback });
            let _ = rustls::crypto::ring::default_provider().install_default();
            let connections = Connections::new(&config, transport).unwrap();
            Exchange::new(connections, Clock::system(), &config, (registry, "a"), transport, None).unwrap()
        };
        let public = exchange("registry.example", true, false);
        let judged = |exchange: &Exchange, to: &str| exchange.unacceptable(&Url::parse(to).unwrap());
        for fine in ["https://cdn.example/x", "https://10.0.0.1/x", "https://registry.example/y"] {
            assert_eq!(judged(&public, fine), None, "{fine}");
        }
        for here in [
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://169.254.169.254/latest",
            "https://localhost/",
            "https://a.localhost:1/",
            "https://0.0.0.0/",
            "https://0x7f000001/",
            "https://2130706433/",
        ] {
            assert_eq!(judged(&public, here), Some("it is an address of this machine"), "{here}");
        }
        for open in
            ["http://cdn.example/", "http://registry.example/", "ftp://cdn.example/", "file:///etc/passwd"]
        {
            assert_eq!(judged(&public, open), Some("it leaves TLS"), "{open}");
        }
        let plain = exchange("registry.example", false, false);
        assert_eq!(judged(&plain, "http://cdn.example/"), None);
        assert_eq!(judged(&plain, "http://127.0.0.1/"), Some("it is an address of this machine"));
        let local = exchange("localhost:5000", false, true);
        assert_eq!(judged(&local, "http://127.0.0.1:5001/"), None);
    }
}
