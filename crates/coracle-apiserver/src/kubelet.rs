//! Logs, exec, attach and port-forward: requests that the node agent of a Pod answers, passed on to it.
//!
//! The server authenticates and authorizes; then it is a pipe. Both ends of the connection to a node agent show
//! certificates of the cluster's authority, and the agent's must name the node that the Pod is bound to: one
//! node cannot answer for another.

mod query;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use coracle_api::Value;
use coracle_api::catalogue;
use coracle_api::metadata;
use coracle_api::status::{Reason, Status};
use http::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use url::form_urlencoded;

use crate::auth::UserInfo;
use crate::body::{Body, BoxError};
use crate::call::Call;
use crate::pki::{CertificateAuthority, Credential};
use crate::server::Core;
use crate::tls::{TlsError, single};
use query::{exec_query, log_query, stream_query};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a node agent may take to begin its answer: a machine that is frozen takes the connection, and no more.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const ERROR_TEXT_MAX: usize = 64 * 1024;

/// The server's client identity towards node agents.
#[derive(Clone)]
pub struct KubeletClient {
    connector: TlsConnector,
}

impl fmt::Debug for KubeletClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubeletClient").finish_non_exhaustive()
    }
}

impl KubeletClient {
    /// A client that shows `credential` and trusts node agents that `authority` vouches for.
    ///
    /// # Errors
    /// If the certificates are not usable.
    pub fn new(credential: &Credential, authority: &CertificateAuthority) -> Result<Self, TlsError> {
        Self::with_certificate(Arc::new(single(credential)?), authority)
    }

    /// A client that shows on each new connection what `certificate` says then.
    ///
    /// # Errors
    /// If the authority is not usable.
    pub fn with_certificate(
        certificate: Arc<dyn ResolvesClientCert>,
        authority: &CertificateAuthority,
    ) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_cert_resolver(certificate);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(KubeletClient { connector: TlsConnector::from(Arc::new(config)) })
    }
}

/// Where the agent of a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Agent {
    node: String,
    host: String,
    port: u16,
}

impl Agent {
    fn of(node: &Value) -> Option<Self> {
        let address = |kind: &str| {
            let addresses = node.pointer("/status/addresses").and_then(Value::as_array)?;
            let found = addresses.iter().find(|address| address["type"] == kind)?;
            found["address"].as_str().map(str::to_owned)
        };
        let port = node.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64)?;
        Some(Agent {
            node: metadata::name(node).to_owned(),
            host: address("InternalIP").or_else(|| address("Hostname"))?,
            port: u16::try_from(port).ok().filter(|port| *port != 0)?,
        })
    }
}

type Sender = hyper::client::conn::http1::SendRequest<Empty<bytes::Bytes>>;

impl KubeletClient {
    async fn connect(&self, agent: &Agent, core: &Core) -> Result<Sender, Status> {
        let unreachable = |why: String| {
            tracing::warn!(node = agent.node, why, "cannot reach the node agent");
            Status::internal(&format!(
                "error dialing the kubelet of node {:?} at {}:{}: {why}",
                agent.node, agent.host, agent.port
            ))
        };
        let work = async {
            let stream = TcpStream::connect((agent.host.trim_matches(['[', ']']), agent.port)).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(agent.host.clone()).map_err(std::io::Error::other)?;
            self.connector.connect(name, stream).await
        };
        let stream = core
            .clock
            .timeout(CONNECT_TIMEOUT, work)
            .await
            .ok_or_else(|| unreachable("timed out".to_owned()))?
            .map_err(|error| unreachable(error.to_string()))?;
        let shown = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| UserInfo::from_certificate(chain.first()?));
        let expected = format!("system:node:{}", agent.node);
        if shown.is_none_or(|user| user.name != expected) {
            return Err(unreachable(format!("its certificate is not that of {expected}")));
        }
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        // Ends with the answer's body or when the stream is upgraded, and at the latest with the server.
        let draining = core.draining.clone();
        core.streams.spawn(async move {
            if let Some(Err(error)) = draining.run_until_cancelled(connection.with_upgrades()).await {
                tracing::debug!(%error, "connection to a node agent ended");
            }
        });
        Ok(sender)
    }
}

/// The container that a request means.
fn container(pod: &Value, asked: &str) -> Result<String, Status> {
    let name = metadata::name(pod);
    let names = |field: &str| -> Vec<String> {
        let list = pod.pointer(&format!("/spec/{field}")).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|c| c["name"].as_str()).map(str::to_owned).collect()
    };
    let (containers, init) = (names("containers"), names("initContainers"));
    if !asked.is_empty() {
        let known = containers.iter().chain(&init).chain(&names("ephemeralContainers")).any(|c| c == asked);
        return if known {
            Ok(asked.to_owned())
        } else {
            Err(Status::bad_request(format!("container {asked} is not valid for pod {name}")))
        };
    }
    match containers.as_slice() {
        [one] if init.is_empty() => Ok(one.clone()),
        _ => {
            let mut why = format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                containers.join(" ")
            );
            if !init.is_empty() {
                why.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(Status::bad_request(why))
        }
    }
}

impl Core {
    async fn agent(&self, node: &str) -> Result<(Agent, KubeletClient), Status> {
        let client =
            self.config.kubelet.clone().ok_or_else(|| {
                Status::unavailable("this server has no client certificate for node agents")
            })?;
        let row = catalogue::find("", "v1", "nodes").ok_or_else(Status::unknown_resource)?;
        let key = bytes::Bytes::from(row.storage_key("", node));
        let (found, _) = self.store.get(&key).await.map_err(|error| crate::server::store_failed(&error))?;
        let kv = found.ok_or_else(|| Status::not_found("", "nodes", node))?;
        let agent = Agent::of(&self.served(row, &kv)?)
            .ok_or_else(|| Status::internal(&format!("node {node:?} has no address of its kubelet yet")))?;
        Ok((agent, client))
    }

    /// The head of a node agent's answer.
    async fn head(
        &self,
        agent: &Agent,
        answer: impl Future<Output = Result<Response<Incoming>, hyper::Error>>,
    ) -> Result<Response<Incoming>, Status> {
        let answer = self.clock.timeout(ANSWER_TIMEOUT, answer).await.ok_or_else(|| {
            tracing::warn!(node = agent.node, "the node agent does not answer");
            Status::internal(&format!("the kubelet of node {:?} does not answer", agent.node))
        })?;
        answer.map_err(|error| broken(agent, &error))
    }

    /// What a node agent says to its refusal.
    async fn error_text(&self, response: Response<Incoming>) -> String {
        let text = Limited::new(response.into_body(), ERROR_TEXT_MAX).collect();
        match self.clock.timeout(ANSWER_TIMEOUT, text).await {
            Some(Ok(collected)) => String::from_utf8_lossy(&collected.to_bytes()).trim_end().to_owned(),
            Some(Err(_)) | None => String::new(),
        }
    }

    /// `GET pods/NAME/log`.
    pub(crate) async fn log(&self, call: &Call) -> Result<Response<Body>, Status> {
        let query = log_query(call)?;
        let (pod, _) = self.current(call).await?.ok_or_else(|| call.not_found())?;
        let container = container(&pod, call.query.get("container"))?;
        let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
        if node.is_empty() {
            // There is nothing yet, and that is no error.
            return Ok(crate::server::plain(StatusCode::OK, ""));
        }
        let (agent, client) = self.agent(node).await?;
        let path = format!(
            "/containerLogs/{}/{}/{container}?{query}",
            metadata::namespace(&pod),
            metadata::name(&pod)
        );
        let mut sender = client.connect(&agent, self).await?;
        let request = agent_request(Method::GET, &agent, &path, HeaderMap::new())?;
        let response = self.head(&agent, sender.send_request(request)).await?;
        if !response.status().is_success() {
            return Err(refusal(call, response.status(), self.error_text(response).await));
        }
        let (parts, body) = response.into_parts();
        let mut answer = Response::new(until(self.draining.clone(), body));
        let plain = HeaderValue::from_static("text/plain");
        let kind = parts.headers.get(CONTENT_TYPE).cloned().unwrap_or(plain);
        answer.headers_mut().insert(CONTENT_TYPE, kind);
        answer
            .headers_mut()
            .insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        Ok(answer)
    }

    /// `pods/NAME/exec`, `attach` and `portforward`: a stream whose far end is the node agent's.
    pub(crate) async fn stream(&self, call: &Call, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (pod, _) = self.current(call).await?.ok_or_else(|| call.not_found())?;
        let (namespace, name) = (metadata::namespace(&pod), metadata::name(&pod));
        let of_container = || {
            let asked = call.query.get("container");
            let default = pod
                .pointer("/metadata/annotations/kubectl.kubernetes.io~1default-container")
                .and_then(Value::as_str)
                .unwrap_or_default();
            container(&pod, if asked.is_empty() { default } else { asked })
        };
        let path = match call.subresource.map(|sub| sub.name) {
            Some("portforward") => {
                let mut query = form_urlencoded::Serializer::new(String::new());
                for port in call.query.all("ports") {
                    query.append_pair("port", port);
                }
                format!("/portForward/{namespace}/{name}?{}", query.finish())
            }
            Some("attach") => {
                let query = stream_query(call)?.finish();
                format!("/attach/{namespace}/{name}/{}?{query}", of_container()?)
            }
            _ => {
                let query = exec_query(call)?;
                format!("/exec/{namespace}/{name}/{}?{query}", of_container()?)
            }
        };
        let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
        if node.is_empty() {
            return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
        }
        let headers = upgrade_headers(request.headers())?;
        let (agent, client) = self.agent(node).await?;
        let mut sender = client.connect(&agent, self).await?;
        let onward = agent_request(Method::GET, &agent, &path, headers)?;
        let response = self.head(&agent, sender.send_request(onward)).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(refused_upgrade(response.status(), self.error_text(response).await));
        }
        let mut answer = Response::new(crate::body::full(Vec::new()));
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        for (name, value) in response.headers() {
            if name == CONNECTION || name == UPGRADE || is_of_upgrade(name) {
                answer.headers_mut().append(name.clone(), value.clone());
            }
        }
        let draining = self.draining.clone();
        // Lives as long as both connections do.
        self.streams.spawn(async move {
            let joined = async {
                let (near, far) =
                    futures::future::try_join(hyper::upgrade::on(request), hyper::upgrade::on(response))
                        .await?;
                let (mut near, mut far) = (TokioIo::new(near), TokioIo::new(far));
                tokio::io::copy_bidirectional(&mut near, &mut far).await?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
            };
            coracle_clock::select! {
                () = draining.cancelled() => {}
                ended = joined => if let Err(error) = ended {
                    tracing::debug!(error, "a stream ended");
                },
            }
        });
        Ok(answer)
    }
}

/// A body that ends when the server does: a log that is followed would go on for ever.
fn until(draining: CancellationToken, body: Incoming) -> Body {
    let frames = futures::stream::unfold((body, draining), |(mut body, draining)| async move {
        let frame = coracle_clock::select! {
            () = draining.cancelled() => return None,
            frame = body.frame() => frame?,
        };
        Some((frame.map_err(BoxError::from), (body, draining)))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn upgrade_headers(headers: &HeaderMap) -> Result<HeaderMap, Status> {
    let upgrade = headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if upgrade.is_empty() {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let mut onward = HeaderMap::new();
    onward.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    // Which protocols there are is the node agent's to say. kubectl tries SPDY after a refused WebSocket, and shows
    // what it is told then.
    for (name, value) in headers.iter().filter(|(name, _)| *name == UPGRADE || is_of_upgrade(name)) {
        onward.append(name.clone(), value.clone());
    }
    Ok(onward)
}

fn is_of_upgrade(name: &http::HeaderName) -> bool {
    name.as_str().starts_with("sec-websocket-") || name == "x-stream-protocol-version"
}

/// A node agent's refusal of an upgrade: upstream passes it on as it is, and clients show its text.
fn refused_upgrade(code: StatusCode, text: String) -> Response<Body> {
    let mut answer = Response::new(crate::body::full(text));
    *answer.status_mut() =
        if code.is_client_error() || code.is_server_error() { code } else { StatusCode::BAD_GATEWAY };
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

fn agent_request(
    method: Method,
    agent: &Agent,
    path: &str,
    headers: HeaderMap,
) -> Result<Request<Empty<bytes::Bytes>>, Status> {
    let mut request = Request::new(Empty::new());
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().map_err(|_| Status::bad_request("the request does not make a URL"))?;
    *request.headers_mut() = headers;
    let host = format!("{}:{}", agent.host, agent.port);
    let host =
        HeaderValue::from_str(&host).map_err(|_| Status::internal("the node has no usable address"))?;
    request.headers_mut().insert(HOST, host);
    Ok(request)
}

fn broken(agent: &Agent, error: &hyper::Error) -> Status {
    tracing::warn!(node = agent.node, %error, "the node agent broke off");
    Status::internal(&format!("the kubelet of node {:?} broke off the connection", agent.node))
}

/// What a node agent's refusal means to the client.
fn refusal(call: &Call, code: StatusCode, text: String) -> Status {
    match code.as_u16() {
        400 => Status::bad_request(text),
        500 => Status::internal(&text),
        code => {
            let mut status = Status::not_found(call.row.group, call.row.plural, &call.name);
            status.code = if (400..600).contains(&code) { code } else { 500 };
            if code != 404 {
                status.reason = Reason::Unknown;
            }
            status.message = if text.is_empty() {
                "the server could not find the requested resource".to_owned()
            } else {
                text
            };
            status
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn containers_are_chosen_as_upstream_does() {
        let one = json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "a" }] } });
        let two = json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "a" }, { "name": "b" }] } });
        assert_eq!(container(&one, "").unwrap(), "a");
        assert_eq!(container(&two, "b").unwrap(), "b");
        let message = |pod, asked| container(pod, asked).unwrap_err().message;
        assert_eq!(message(&two, ""), "a container name must be specified for pod p, choose one of: [a b]");
        assert_eq!(message(&two, "x"), "container x is not valid for pod p");
    }

    #[test]
    fn an_agent_is_reached_by_its_internal_address() {
        let node = json!({ "metadata": { "name": "n" }, "status": {
            "addresses": [{ "type": "Hostname", "address": "n" }, { "type": "InternalIP", "address": "192.0.2.1" }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": 10250 } } } });
        let agent = Agent { node: "n".into(), host: "192.0.2.1".into(), port: 10250 };
        assert_eq!(Agent::of(&node), Some(agent));
        assert_eq!(Agent::of(&json!({})), None);
    }
}
