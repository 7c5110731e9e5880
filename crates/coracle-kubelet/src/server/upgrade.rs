//! Upgrades of a request to a stream: the handshakes of WebSocket and SPDY, and the task that the stream lives in.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use http::header::{CONNECTION, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::routes::{Body, Shared, text};

/// Larger messages than this end the session, as upstream.
const MESSAGE_MAX: usize = 32 << 20;

pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A request that cannot become a stream.
pub(super) type Refusal = Box<Response<Body>>;

fn refuse<T>(status: StatusCode, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Box::new(text(status, message.into())))
}

/// Streams begin with a GET or a POST.
pub(super) fn check_method(method: &Method) -> Result<(), Refusal> {
    if matches!(*method, Method::GET | Method::POST) {
        return Ok(());
    }
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, POST"));
    Err(Box::new(response))
}

/// What a client asks to have its connection made.
pub(super) fn asks_for_spdy(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    upgrade.to_ascii_lowercase().starts_with("spdy/")
}

/// The first of the client's protocols that is served: the client orders them by preference.
fn negotiate(headers: &HeaderMap, name: &HeaderName, served: &[&'static str]) -> Option<&'static str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    let mut asked = values.flat_map(|value| value.split(','));
    asked.find_map(|asked| served.iter().copied().find(|served| *served == asked.trim()))
}

fn listed(headers: &HeaderMap, name: &HeaderName) -> String {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.collect::<Vec<&str>>().join(" ")
}

/// Agrees on a WebSocket and one of the subprotocols served, or refuses.
pub(super) fn websocket(
    headers: &HeaderMap,
    served: &[&'static str],
) -> Result<(&'static str, Response<Body>), Refusal> {
    let lists = |name: HeaderName, token: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(token))
    };
    if asks_for_spdy(headers) {
        return refuse(
            StatusCode::BAD_REQUEST,
            format!(
                "unable to upgrade: SPDY is not supported, use a WebSocket with the subprotocol {}",
                served.join(" or ")
            ),
        );
    }
    if !lists(UPGRADE, "websocket") || !lists(CONNECTION, "upgrade") {
        return refuse(StatusCode::BAD_REQUEST, "Upgrade request required");
    }
    if !lists(header::SEC_WEBSOCKET_VERSION, "13") {
        let mut response = text(StatusCode::BAD_REQUEST, "missing or bad WebSocket Version");
        response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(Box::new(response));
    }
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
        return refuse(StatusCode::BAD_REQUEST, "mismatch challenge/response");
    };
    let Some(chosen) = negotiate(headers, &SEC_WEBSOCKET_PROTOCOL, served) else {
        let message = format!(
            "requested protocol(s) are not supported: [{}]; supports [{}]",
            listed(headers, &SEC_WEBSOCKET_PROTOCOL),
            served.join(" ")
        );
        return refuse(StatusCode::FORBIDDEN, message);
    };
    let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) else {
        return refuse(StatusCode::BAD_REQUEST, "mismatch challenge/response");
    };
    let mut response = switching("websocket");
    response.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(chosen));
    Ok((chosen, response))
}

/// Agrees on SPDY and one of the stream protocols served, or refuses in upstream's words.
pub(super) fn spdy(headers: &HeaderMap, served: &[&'static str]) -> Result<Response<Body>, Refusal> {
    let name = HeaderName::from_static("x-stream-protocol-version");
    let chosen = if headers.contains_key(&name) {
        let Some(chosen) = negotiate(headers, &name, served) else {
            let asked = listed(headers, &name);
            let message = format!(
                "unable to negotiate protocol: client supports [{asked}], server accepts [{}]",
                served.join(" ")
            );
            return refuse(StatusCode::FORBIDDEN, message);
        };
        chosen
    } else {
        // Clients from before there were versions speak the first.
        served.first().copied().unwrap_or_default()
    };
    let mut response = switching("SPDY/3.1");
    response.headers_mut().insert(name, HeaderValue::from_static(chosen));
    Ok(response)
}

fn switching(protocol: &'static str) -> Response<Body> {
    let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.clear();
    headers.insert(UPGRADE, HeaderValue::from_static(protocol));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response
}

/// Runs what follows the upgrade, in a task of its own that ends with the server.
pub(super) fn after<F>(
    shared: &Arc<Shared>,
    mut request: Request<Incoming>,
    session: impl FnOnce(Arc<Shared>, TokioIo<Upgraded>) -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let upgrade = hyper::upgrade::on(&mut request);
    let abort = shared.abort.clone();
    let for_session = Arc::clone(shared);
    shared.tasks.spawn(async move {
        let session = async move {
            match upgrade.await {
                Ok(upgraded) => session(for_session, TokioIo::new(upgraded)).await,
                Err(error) => tracing::debug!(%error, "the caller left before the upgrade"),
            }
        };
        let session = AssertUnwindSafe(abort.run_until_cancelled(session)).catch_unwind();
        if session.await.is_err() {
            tracing::error!("a session panicked");
        }
    });
}

/// A WebSocket over an upgraded connection.
pub(super) async fn socket(upgraded: TokioIo<Upgraded>) -> Socket {
    let config =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_MAX)).max_frame_size(Some(MESSAGE_MAX));
    WebSocketStream::from_raw_socket(upgraded, Role::Server, Some(config)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_orders_the_protocols() {
        let served = ["v4.channel.k8s.io", "v5.channel.k8s.io"];
        let negotiate = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(value));
            }
            negotiate(&headers, &SEC_WEBSOCKET_PROTOCOL, &served)
        };
        assert_eq!(negotiate(&["v5.channel.k8s.io,v4.channel.k8s.io"]), Some("v5.channel.k8s.io"));
        assert_eq!(negotiate(&["v4.channel.k8s.io", "v5.channel.k8s.io"]), Some("v4.channel.k8s.io"));
        assert_eq!(negotiate(&["channel.k8s.io, v4.channel.k8s.io"]), Some("v4.channel.k8s.io"));
        assert_eq!(negotiate(&["channel.k8s.io", "base64.channel.k8s.io"]), None);
        assert_eq!(negotiate(&[]), None);
    }
}
