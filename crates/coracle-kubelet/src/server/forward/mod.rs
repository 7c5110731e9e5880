//! Connections to ports of a Pod: SPDY/3.1 streams, either in a WebSocket (kubectl from 1.31 on) or on the bare
//! connection (older clients, and kubectl when something in between does not let WebSockets through). Other clients use
//! channels of a WebSocket.
//!
//! `frame` and `headers` are the protocol, without I/O. `transport` carries its bytes one way or the other; `streams`
//! pairs the streams of each connection. `channels` is the other way. `connection` joins either with the Pod's port.
//!
//! The client library that speaks this protocol neither sends nor heeds window updates, so the network's own
//! back-pressure is all there is: a program that does not read stalls the connections of its kubectl, no more.

mod channels;
mod connection;
mod frame;
mod headers;
mod streams;
mod transport;

use std::sync::Arc;
use std::time::Duration;

use coracle_api::field::go_quote;
use coracle_cri::{PodSandboxFilter, PodSandboxId, PodSandboxState};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Pod;

use super::routes::{Body, Shared, text};
use super::upgrade::{self, Refusal};
use crate::spec::LABEL_POD_UID;

/// The stream protocol.
const PROTOCOL: &str = "portforward.k8s.io";
/// The same in a WebSocket.
const TUNNELLED: &str = "SPDY/3.1+portforward.k8s.io";
/// Two channels for each port.
const CHANNELS: &str = "v4.channel.k8s.io";
/// How long a client may take for our goodbye.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

fn parse_port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("unable to parse {text:?} as a port"))
}

/// Answers a request for ports of a Pod; connections are made after the upgrade.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    namespace: &str,
    name: &str,
    uid: Option<&str>,
    request: Request<Incoming>,
) -> Response<Body> {
    let sandbox = match sandbox(shared, namespace, name, uid, &request).await {
        Ok(sandbox) => sandbox,
        Err(refusal) => return *refusal,
    };
    if upgrade::asks_for_spdy(request.headers()) {
        return match upgrade::spdy(request.headers(), &[PROTOCOL]) {
            Err(refusal) => *refusal,
            Ok(response) => {
                upgrade::after(shared, request, move |shared, upgraded| async move {
                    let (source, sink) = transport::bare(upgraded);
                    streams::serve(&shared, sandbox, source, sink).await;
                });
                response
            }
        };
    }
    let (protocol, response) = match upgrade::websocket(request.headers(), &[TUNNELLED, CHANNELS]) {
        Err(refusal) => return *refusal,
        Ok(agreed) => agreed,
    };
    let ports = match protocol {
        TUNNELLED => Vec::new(),
        _ => match channels::ports(request.uri().query().unwrap_or_default()) {
            Ok(ports) => ports,
            Err(message) => return text(StatusCode::BAD_REQUEST, message),
        },
    };
    upgrade::after(shared, request, move |shared, upgraded| async move {
        let (source, sink) = transport::tunnelled(upgrade::socket(upgraded).await);
        if ports.is_empty() {
            streams::serve(&shared, sandbox, source, sink).await;
        } else {
            channels::serve(&shared, sandbox, ports, source, sink).await;
        }
    });
    response
}

/// The sandbox whose ports are meant.
async fn sandbox(
    shared: &Shared,
    namespace: &str,
    name: &str,
    uid: Option<&str>,
    request: &Request<Incoming>,
) -> Result<PodSandboxId, Refusal> {
    let refuse = |status, message: String| Box::new(text(status, message));
    upgrade::check_method(request.method())?;
    let Some(pod) = shared.pods.pod(namespace, name) else {
        return Err(refuse(StatusCode::NOT_FOUND, "pod does not exist".to_owned()));
    };
    let not_found = || {
        let full = go_quote(&format!("{name}_{namespace}"));
        refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("pod not found ({full})"))
    };
    let own = pod.metadata.uid.as_deref().unwrap_or_default();
    if uid.is_some_and(|uid| uid != own) {
        return Err(not_found());
    }
    match newest_sandbox(shared, &pod).await {
        Ok(Some(sandbox)) => Ok(sandbox),
        Ok(None) => Err(not_found()),
        Err(error) => Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

async fn newest_sandbox(shared: &Shared, pod: &Pod) -> coracle_cri::CriResult<Option<PodSandboxId>> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let filter = PodSandboxFilter {
        state: Some(PodSandboxState::Ready),
        labels: [(LABEL_POD_UID.to_owned(), uid)].into(),
        ..PodSandboxFilter::default()
    };
    let found = shared.runtime.list_pod_sandboxes(&filter).await?;
    Ok(found.into_iter().max_by_key(|sandbox| sandbox.metadata.attempt).map(|sandbox| sandbox.id))
}

#[cfg(test)]
pub(super) mod testing;
