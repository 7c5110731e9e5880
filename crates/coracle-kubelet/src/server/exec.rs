//! Running a command in a container: what is asked for, and the upgrade to a WebSocket.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use coracle_api::field::go_quote;
use coracle_cri::ExecRequest;
use futures::FutureExt;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use url::form_urlencoded;

use super::lookup;
use super::routes::{Body, Shared, text};
use super::session::{self, Streams};

/// Larger messages than this end the session, as upstream.
const MESSAGE_MAX: usize = 32 << 20;

/// The container that a request names.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) uid: Option<String>,
    pub(super) container: String,
}

/// The subprotocols served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subprotocol {
    /// Five channels.
    V4,
    /// Five channels that the client can close.
    V5,
}

impl Subprotocol {
    fn name(self) -> &'static str {
        match self {
            Subprotocol::V4 => "v4.channel.k8s.io",
            Subprotocol::V5 => "v5.channel.k8s.io",
        }
    }

    /// The first of the client's that is served: the client orders them by preference.
    fn negotiate(headers: &HeaderMap) -> Option<Self> {
        headers
            .get_all(header::SEC_WEBSOCKET_PROTOCOL)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .find_map(|name| [Subprotocol::V4, Subprotocol::V5].into_iter().find(|p| p.name() == name.trim()))
    }
}

/// Reads the command and its streams from a query.
fn parse(query: &str) -> Result<(Vec<String>, Streams), &'static str> {
    let pairs: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    // The kubelet's own names, and those of the API.
    let flag = |names: [&str; 2]| {
        pairs.iter().any(|(key, value)| names.contains(&key.as_str()) && (value == "1" || value == "true"))
    };
    let tty = flag(["tty", "tty"]);
    let streams = Streams {
        stdin: flag(["input", "stdin"]),
        stdout: flag(["output", "stdout"]),
        // A terminal has one output.
        stderr: flag(["error", "stderr"]) && !tty,
        tty,
    };
    if !streams.stdin && !streams.stdout && !streams.stderr {
        return Err("you must specify at least 1 of stdin, stdout, stderr");
    }
    let command: Vec<String> =
        pairs.iter().filter(|(key, _)| key == "command").map(|(_, value)| value.clone()).collect();
    if command.is_empty() {
        return Err("you must specify at least one command for the container");
    }
    Ok((command, streams))
}

/// Answers a request to run a command; the command itself runs after the upgrade, in a task of its own.
pub(super) fn answer(
    shared: &Arc<Shared>,
    target: &Target,
    mut request: Request<Incoming>,
) -> Response<Body> {
    if !matches!(*request.method(), Method::GET | Method::POST) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, POST"));
        return response;
    }
    let (command, streams) = match parse(request.uri().query().unwrap_or_default()) {
        Ok(parsed) => parsed,
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    let Some(pod) = shared.pods.pod(&target.namespace, &target.pod) else {
        return text(StatusCode::NOT_FOUND, "pod does not exist");
    };
    let is_this_pod = target.uid.as_ref().is_none_or(|uid| pod.metadata.uid.as_ref() == Some(uid));
    let container = lookup::running_container(&pod, &target.container).filter(|_| is_this_pod);
    let Some(container) = container else {
        // A 500 upstream as well: the runtime's list does not have it.
        let message = format!("container not found ({})", go_quote(&target.container));
        return text(StatusCode::INTERNAL_SERVER_ERROR, message);
    };
    let (subprotocol, response) = match handshake(request.headers()) {
        Ok(agreed) => agreed,
        Err(refusal) => return *refusal,
    };

    let upgrade = hyper::upgrade::on(&mut request);
    let request = ExecRequest { container, command, tty: streams.tty, stdin: streams.stdin };
    let session = {
        let shared = Arc::clone(shared);
        async move {
            let upgraded = match upgrade.await {
                Ok(upgraded) => TokioIo::new(upgraded),
                Err(error) => return tracing::debug!(%error, "the caller left before the upgrade"),
            };
            let config = WebSocketConfig::default()
                .max_message_size(Some(MESSAGE_MAX))
                .max_frame_size(Some(MESSAGE_MAX));
            let socket = WebSocketStream::from_raw_socket(upgraded, Role::Server, Some(config)).await;
            session::run(&shared, socket, subprotocol, streams, &request).await;
        }
    };
    let abort = shared.abort.clone();
    shared.tasks.spawn(async move {
        let session = AssertUnwindSafe(abort.run_until_cancelled(session)).catch_unwind();
        if session.await.is_err() {
            tracing::error!("a session panicked");
        }
    });
    response
}

/// The answer to the WebSocket handshake, or the refusal.
fn handshake(headers: &HeaderMap) -> Result<(Subprotocol, Response<Body>), Box<Response<Body>>> {
    let refuse = |status, message: String| Err(Box::new(text(status, message)));
    let lists = |name: header::HeaderName, token: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(token))
    };
    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if upgrade.to_ascii_lowercase().starts_with("spdy/") {
        let message = format!(
            "unable to upgrade: {upgrade} is not supported, use a WebSocket with the subprotocol \
             v5.channel.k8s.io or v4.channel.k8s.io"
        );
        return refuse(StatusCode::BAD_REQUEST, message);
    }
    if !lists(header::UPGRADE, "websocket") || !lists(header::CONNECTION, "upgrade") {
        return refuse(StatusCode::BAD_REQUEST, "Upgrade request required".to_owned());
    }
    if !lists(header::SEC_WEBSOCKET_VERSION, "13") {
        let mut response = text(StatusCode::BAD_REQUEST, "missing or bad WebSocket Version");
        response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(Box::new(response));
    }
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
        return refuse(StatusCode::BAD_REQUEST, "mismatch challenge/response".to_owned());
    };
    let Some(subprotocol) = Subprotocol::negotiate(headers) else {
        let asked = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
        let asked: Vec<&str> = asked.filter_map(|value| value.to_str().ok()).collect();
        let message = format!(
            "requested protocol(s) are not supported: [{}]; supports [v5.channel.k8s.io v4.channel.k8s.io]",
            asked.join(" ")
        );
        return refuse(StatusCode::FORBIDDEN, message);
    };
    let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) else {
        return refuse(StatusCode::BAD_REQUEST, "mismatch challenge/response".to_owned());
    };
    let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.clear();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol.name()));
    Ok((subprotocol, response))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_have_the_kubelets_names_and_the_apis() {
        let table = [
            ("command=a&output=1", Ok((true, true, false, false))),
            ("command=a&input=1&output=1&error=1", Ok((false, true, true, true))),
            ("command=a&stdin=true&stdout=true&stderr=true", Ok((false, true, true, true))),
            ("command=a&input=1&output=1&error=1&tty=1", Ok((false, true, false, true))),
            ("command=a&stdin=false&stdout=0", Err("you must specify at least 1 of stdin, stdout, stderr")),
            ("command=a", Err("you must specify at least 1 of stdin, stdout, stderr")),
            ("output=1", Err("you must specify at least one command for the container")),
        ];
        for (query, expected) in table {
            let parsed = parse(query).map(|(_, s)| (!s.stdin, s.stdout, s.stderr, s.stdin));
            assert_eq!(parsed, expected, "{query}");
        }
        let (command, _) = parse("command=sh&command=-c&output=1&command=echo+%22a+b%22").unwrap();
        assert_eq!(command, ["sh", "-c", "echo \"a b\""]);
    }

    #[test]
    fn the_client_orders_the_subprotocols() {
        let negotiate = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(value));
            }
            Subprotocol::negotiate(&headers)
        };
        assert_eq!(negotiate(&["v5.channel.k8s.io,v4.channel.k8s.io"]), Some(Subprotocol::V5));
        assert_eq!(negotiate(&["v4.channel.k8s.io", "v5.channel.k8s.io"]), Some(Subprotocol::V4));
        assert_eq!(negotiate(&["channel.k8s.io, v4.channel.k8s.io"]), Some(Subprotocol::V4));
        assert_eq!(negotiate(&["channel.k8s.io", "base64.channel.k8s.io"]), None);
        assert_eq!(negotiate(&[]), None);
    }
}
