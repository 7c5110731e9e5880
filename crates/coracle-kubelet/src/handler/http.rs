//! HTTP GETs from the node: one exchange a connection, redirects on the same host followed.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use coracle_api::field::go_quote;
use coracle_cri::probe::{BODY_BYTES_MAX, HttpAnswer, HttpError, HttpGet, join_host_port};
use futures::future::Either;
use http::header::{CONNECTION, HOST, LOCATION, REFERER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use url::Url;

use super::socket::{First, Socket, words};

const REDIRECTS_MAX: usize = 10;

/// Whether the head of the last answer has been received: what is late, the head or the body, is said differently.
#[derive(Debug, Default)]
pub(super) struct Progress(AtomicBool);

impl Progress {
    fn await_head(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    fn head_received(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// What a request says whose time is up.
    pub(super) fn timed_out(&self, request: &HttpGet) -> HttpError {
        if self.0.load(Ordering::Relaxed) {
            let text =
                "context deadline exceeded (Client.Timeout or context cancellation while reading body)";
            HttpError::Unreadable(text.to_owned())
        } else {
            let text = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
            HttpError::NoAnswer(request.failed(text))
        }
    }
}

/// One step of a request that may be redirected.
struct Hop {
    request: HttpGet,
    /// What is asked for, if not the host that is connected to.
    host: Option<String>,
    headers: HeaderMap,
}

/// What came of one exchange.
struct Received {
    status: StatusCode,
    location: Option<String>,
    body: Vec<u8>,
}

/// Why nothing came of one.
enum Trouble {
    NoAnswer(String),
    PlainHttp,
    Unreadable(String),
}

/// Gets a page and follows redirects.
pub(super) async fn get(
    tls: &Arc<ClientConfig>,
    request: &HttpGet,
    progress: &Progress,
) -> Result<HttpAnswer, HttpError> {
    let mut hop = Hop::first(request)?;
    for turn in 0.. {
        progress.await_head();
        let received = hop.exchange(tls, progress).await.map_err(|trouble| match trouble {
            Trouble::NoAnswer(why) => HttpError::NoAnswer(hop.request.failed(&why)),
            Trouble::PlainHttp => {
                HttpError::PlainHttp(hop.request.failed("http: server gave HTTP response to HTTPS client"))
            }
            Trouble::Unreadable(why) => HttpError::Unreadable(why),
        })?;
        let next = match received.redirect() {
            Some(location) => hop.next(location)?.filter(|next| next.request.host == request.host),
            None => None,
        };
        match next {
            None => return Ok(HttpAnswer { status: received.status.as_u16(), body: received.body }),
            Some(_) if turn >= REDIRECTS_MAX - 1 => {
                let location = received.redirect().unwrap_or_default();
                let text = format!("Get {}: stopped after {REDIRECTS_MAX} redirects", go_quote(location));
                return Err(HttpError::NoAnswer(text));
            }
            Some(next) => hop = next,
        }
    }
    unreachable!("the loop counts further than any server redirects")
}

impl Received {
    /// Where the answer sends the client, if it does.
    fn redirect(&self) -> Option<&str> {
        let redirects = matches!(self.status.as_u16(), 301 | 302 | 303 | 307 | 308);
        self.location.as_deref().filter(|location| redirects && !location.is_empty())
    }
}

impl Hop {
    fn first(request: &HttpGet) -> Result<Self, HttpError> {
        let mut headers = HeaderMap::new();
        let mut host = None;
        for (name, value) in &request.headers {
            if name.eq_ignore_ascii_case("host") {
                // The first one counts.
                host.get_or_insert_with(|| value.clone());
                continue;
            }
            let refused = |what: &str, shown: &str| {
                HttpError::NoAnswer(request.failed(&format!("net/http: invalid header field {what} {shown}")))
            };
            let known =
                HeaderName::from_bytes(name.as_bytes()).map_err(|_| refused("name", &go_quote(name)))?;
            let value = HeaderValue::from_bytes(value.as_bytes())
                .map_err(|_| refused("value for", &go_quote(name)))?;
            headers.append(known, value);
        }
        Ok(Hop { request: request.clone(), host: host.filter(|host| !host.is_empty()), headers })
    }

    /// The request that a redirect to `location` asks for; `None` if it leads where nobody goes.
    fn next(&self, location: &str) -> Result<Option<Hop>, HttpError> {
        let unusable = |why: String| {
            let text = format!("failed to parse Location header {}: {why}", go_quote(location));
            HttpError::NoAnswer(self.request.failed(&text))
        };
        let here = self.request.url();
        let here = Url::parse(&here).map_err(|why| unusable(why.to_string()))?;
        let there = here.join(location).map_err(|why| unusable(why.to_string()))?;
        let (Some(host), Some(port)) = (there.host_str(), there.port_or_known_default()) else {
            return Ok(None);
        };
        let https = match there.scheme() {
            "http" => false,
            "https" => true,
            other => {
                let text = format!("unsupported protocol scheme {}", go_quote(other));
                return Err(HttpError::NoAnswer(format!("Get {}: {text}", go_quote(location))));
            }
        };
        let query = there.query().map(|query| format!("?{query}")).unwrap_or_default();
        let request = HttpGet {
            https,
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port,
            path: format!("{}{query}", there.path()),
            ..self.request.clone()
        };
        let mut headers = self.headers.clone();
        if (https || !self.request.https)
            && let Ok(from) = HeaderValue::from_str(here.as_str())
        {
            headers.insert(REFERER, from);
        }
        // A host that was asked for by name stays, as long as the redirect does not name another one.
        let host = self.host.clone().filter(|_| Url::parse(location).is_err());
        Ok(Some(Hop { request, host, headers }))
    }

    async fn exchange(&self, tls: &Arc<ClientConfig>, progress: &Progress) -> Result<Received, Trouble> {
        let HttpGet { https, host, port, .. } = &self.request;
        let first = First::default();
        let socket = Socket::connect(host, *port, first.clone()).await.map_err(Trouble::NoAnswer)?;
        let wire = Wire { first, ends: socket.ends() };
        if !https {
            return self.speak_http1(socket, &wire, progress).await;
        }
        let name =
            ServerName::try_from(host.clone()).map_err(|why| Trouble::NoAnswer(format!("tls: {why}")))?;
        let stream =
            TlsConnector::from(tls.clone()).connect(name, socket).await.map_err(|why| wire.tls(&why))?;
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            self.speak_http2(stream, &wire, progress).await
        } else {
            self.speak_http1(stream, &wire, progress).await
        }
    }

    fn authority(&self) -> String {
        self.host.clone().unwrap_or_else(|| join_host_port(&self.request.host, self.request.port))
    }

    async fn speak_http1<S>(&self, stream: S, wire: &Wire, progress: &Progress) -> Result<Received, Trouble>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = self.request.path.parse().map_err(|_| unusable_url())?;
        *request.headers_mut() = self.headers.clone();
        let authority = HeaderValue::from_str(&self.authority()).map_err(|_| unusable_url())?;
        request.headers_mut().insert(HOST, authority);
        request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        let mut http = http1::Builder::new();
        http.title_case_headers(true);
        let (mut sender, connection) =
            http.handshake(TokioIo::new(stream)).await.map_err(|why| wire.hyper(&why))?;
        let work = async {
            let response = sender.send_request(request).await.map_err(|why| wire.hyper(&why))?;
            progress.head_received();
            let (parts, mut body) = response.into_parts();
            let mut kept = Vec::new();
            while kept.len() < BODY_BYTES_MAX {
                match body.frame().await {
                    None => break,
                    Some(Ok(frame)) => keep(&mut kept, frame.data_ref().map_or(&[], |data| data)),
                    Some(Err(why)) => return Err(wire.body(&why)),
                }
            }
            Ok(received(&Response::from_parts(parts, ()), kept))
        };
        match futures::future::select(pin!(work), pin!(connection)).await {
            Either::Left((done, _)) => done,
            // The other side has closed; what it has sent is there to be read.
            Either::Right((_, work)) => work.await,
        }
    }

    async fn speak_http2<S>(&self, stream: S, wire: &Wire, progress: &Progress) -> Result<Received, Trouble>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut request = Request::new(());
        *request.method_mut() = Method::GET;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = Uri::builder()
            .scheme("https")
            .authority(self.authority())
            .path_and_query(self.request.path.as_str())
            .build()
            .map_err(|_| unusable_url())?;
        *request.headers_mut() = self.headers.clone();
        let (sender, connection) = h2::client::handshake(stream).await.map_err(|why| wire.http2(&why))?;
        let work = async {
            let mut sender = sender.ready().await.map_err(|why| wire.http2(&why))?;
            let (answer, _) = sender.send_request(request, true).map_err(|why| wire.http2(&why))?;
            let response = answer.await.map_err(|why| wire.http2(&why))?;
            progress.head_received();
            let (parts, mut body) = response.into_parts();
            let mut kept = Vec::new();
            while kept.len() < BODY_BYTES_MAX {
                match body.data().await {
                    None => break,
                    Some(Ok(data)) => {
                        keep(&mut kept, &data);
                        // The connection ends with the answer: a window that stays shut hurts nobody.
                        let _ = body.flow_control().release_capacity(data.len());
                    }
                    Some(Err(why)) => return Err(Trouble::Unreadable(format!("http2: {why}"))),
                }
            }
            Ok(received(&Response::from_parts(parts, ()), kept))
        };
        match futures::future::select(pin!(work), pin!(connection)).await {
            Either::Left((done, _)) => done,
            Either::Right((_, work)) => work.await,
        }
    }
}

fn keep(kept: &mut Vec<u8>, data: &[u8]) {
    kept.extend_from_slice(&data[..data.len().min(BODY_BYTES_MAX - kept.len())]);
}

fn received(head: &Response<()>, body: Vec<u8>) -> Received {
    let location =
        head.headers().get(LOCATION).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    Received { status: head.status(), location, body }
}

fn unusable_url() -> Trouble {
    Trouble::NoAnswer("net/http: invalid request :path".to_owned())
}

/// What is known of a connection when something goes wrong on it.
struct Wire {
    first: First,
    ends: String,
}

impl Wire {
    fn io(&self, why: &io::Error) -> String {
        match why.kind() {
            io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
            io::ErrorKind::BrokenPipe => format!("write tcp {}: write: {}", self.ends, words(why)),
            _ => format!("read tcp {}: read: {}", self.ends, words(why)),
        }
    }

    fn tls(&self, why: &io::Error) -> Trouble {
        if self.first.bytes().starts_with(b"HTTP/") {
            return Trouble::PlainHttp;
        }
        let inner = why.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        Trouble::NoAnswer(match inner {
            Some(rustls::Error::InvalidMessage(_)) => {
                "tls: first record does not look like a TLS handshake".to_owned()
            }
            Some(rustls::Error::AlertReceived(alert)) => format!("remote error: tls: {alert:?}"),
            Some(other) => format!("tls: {other}"),
            None => self.io(why),
        })
    }

    fn hyper(&self, why: &hyper::Error) -> Trouble {
        if let Some(inner) = source(why) {
            return Trouble::NoAnswer(self.io(inner));
        }
        Trouble::NoAnswer(if why.is_parse_too_large() {
            "net/http: HTTP/1.x transport connection broken: net/http: server response headers are too long; aborted"
                .to_owned()
        } else if why.is_parse() {
            let first = self.first.bytes();
            let line = first.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
            let quoted = go_quote(&line);
            format!("net/http: HTTP/1.x transport connection broken: malformed HTTP response {quoted}")
        } else {
            // Closed before an answer, or in the middle of one.
            "EOF".to_owned()
        })
    }

    fn body(&self, why: &hyper::Error) -> Trouble {
        Trouble::Unreadable(match source(why) {
            Some(inner) if inner.kind() != io::ErrorKind::UnexpectedEof => self.io(inner),
            _ => "unexpected EOF".to_owned(),
        })
    }

    fn http2(&self, why: &h2::Error) -> Trouble {
        Trouble::NoAnswer(match why.get_io() {
            Some(inner) => self.io(inner),
            None => format!("http2: {why}"),
        })
    }
}

fn source(why: &hyper::Error) -> Option<&io::Error> {
    std::error::Error::source(why).and_then(|inner| inner.downcast_ref::<io::Error>())
}
