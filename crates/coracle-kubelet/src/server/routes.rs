//! From a request to a response: authorization, routes, and the endpoints that are not streams.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_api::field::go_quote;
use coracle_clock::Clock;
use coracle_cri::{ContainerId, ContainerState, RuntimeService};
use futures::FutureExt;
use futures::stream;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::tls::Caller;
use super::{PodSource, exec, forward, lookup};
use crate::logs::{LogError, LogOptions, LogOptionsError, LogReader, LogWatcher, pod_log_directory};

/// How often a follower looks whether its container still runs, should the runtime's hint have been lost.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

pub(super) type Body = UnsyncBoxBody<Bytes, LogError>;

/// What every request needs.
pub(super) struct Shared {
    pub(super) runtime: Arc<dyn RuntimeService>,
    pub(super) pods: Arc<dyn PodSource>,
    pub(super) clock: Clock,
    pub(super) pods_log_dir: std::path::PathBuf,
    pub(super) watcher: Arc<LogWatcher>,
    /// The server is going away: finish.
    pub(super) shutdown: CancellationToken,
    /// The grace is over: stop.
    pub(super) abort: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// Answers a request; a panic on the way is a 500 and harms nobody else.
pub(super) async fn answer(
    shared: Arc<Shared>,
    caller: Option<Arc<Caller>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let answer = AssertUnwindSafe(route(&shared, caller.as_deref(), request)).catch_unwind().await;
    Ok(answer.unwrap_or_else(|_| {
        tracing::error!(%method, path, "a request panicked");
        text(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
    }))
}

async fn route(shared: &Arc<Shared>, caller: Option<&Caller>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().trim_end_matches('/').to_owned();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let get = request.method() == Method::GET;

    if segments == ["healthz"] {
        return if get { text(StatusCode::OK, "ok") } else { only_get() };
    }
    let Some(caller) = caller else {
        return text(StatusCode::UNAUTHORIZED, "Unauthorized");
    };
    if !caller.is_allowed() {
        tracing::info!(user = caller.user, method = %request.method(), path, "request forbidden");
        return forbidden(caller, request.method(), segments.first().copied());
    }

    match segments.as_slice() {
        ["pods"] if get => pod_list(&shared.pods.pods()),
        ["containerLogs", namespace, pod, container] if get => {
            let query = request.uri().query().unwrap_or_default();
            container_logs(shared, namespace, pod, container, query).await
        }
        ["pods"] | ["containerLogs", _, _, _] => only_get(),
        [kind @ ("exec" | "attach"), namespace, pod, uid @ .., container] if uid.len() <= 1 => {
            let target = exec::Target {
                namespace: (*namespace).to_owned(),
                pod: (*pod).to_owned(),
                uid: uid.first().map(|uid| (*uid).to_owned()),
                container: (*container).to_owned(),
            };
            match *kind {
                "exec" => exec::exec(shared, &target, request),
                _ => exec::attach(shared, &target, request).await,
            }
        }
        ["portForward", namespace, pod, uid @ ..] if uid.len() <= 1 => {
            let (namespace, pod, uid) =
                ((*namespace).to_owned(), (*pod).to_owned(), uid.first().map(|uid| (*uid).to_owned()));
            forward::answer(shared, &namespace, &pod, uid.as_deref(), request).await
        }
        _ => text(StatusCode::NOT_FOUND, "404: Page Not Found"),
    }
}

fn forbidden(caller: &Caller, method: &Method, endpoint: Option<&str>) -> Response<Body> {
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    let subresources = match endpoint {
        Some("pods") => "[pods proxy]",
        _ => "[proxy]",
    };
    let user = &caller.user;
    let message =
        format!("Forbidden (user={user}, verb={verb}, resource=nodes, subresource(s)={subresources})\n");
    text(StatusCode::FORBIDDEN, message)
}

pub(super) fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(text.into()).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

fn only_get() -> Response<Body> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
    response
}

fn pod_list(pods: &[Arc<Pod>]) -> Response<Body> {
    let items: Result<Vec<Value>, _> = pods
        .iter()
        .map(|pod| {
            serde_json::to_value(pod.as_ref()).map(|mut item| {
                // The list says it once.
                if let Value::Object(fields) = &mut item {
                    fields.shift_remove("apiVersion");
                    fields.shift_remove("kind");
                }
                item
            })
        })
        .collect();
    let list = items.and_then(|items| {
        serde_json::to_vec(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
    });
    match list {
        Ok(list) => {
            let mut response = text(StatusCode::OK, list);
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

async fn container_logs(
    shared: &Arc<Shared>,
    namespace: &str,
    name: &str,
    container: &str,
    query: &str,
) -> Response<Body> {
    let options = match LogOptions::parse(query, shared.clock.now()) {
        Ok(options) => options,
        Err(error @ LogOptionsError::Undecodable { .. }) => {
            return text(StatusCode::BAD_REQUEST, error.to_string());
        }
        Err(error @ LogOptionsError::Invalid(_)) => {
            return text(StatusCode::UNPROCESSABLE_ENTITY, error.to_string());
        }
    };
    let Some(pod) = shared.pods.pod(namespace, name) else {
        return text(StatusCode::NOT_FOUND, format!("pod {} does not exist", go_quote(name)));
    };
    if !lookup::has_container(&pod, container) {
        let (container, pod) = (go_quote(container), go_quote(name));
        return text(StatusCode::NOT_FOUND, format!("container {container} not found in pod {pod}"));
    }
    match open_log(shared, &pod, container, &options).await {
        Err(message) => text(StatusCode::BAD_REQUEST, message),
        Ok(reader) => {
            let chunks = stream::unfold(reader, |mut reader| async move {
                let chunk = reader.next_chunk().await?;
                if let Err(error) = &chunk {
                    tracing::warn!(%error, "reading a log ended early");
                }
                Some((chunk.map(Frame::data), reader))
            });
            let mut response = Response::new(StreamBody::new(chunks).boxed_unsync());
            let plain = HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, plain);
            response
        }
    }
}

/// Opens the log that is meant, or says in upstream's words why not.
async fn open_log(
    shared: &Arc<Shared>,
    pod: &Pod,
    container: &str,
    options: &LogOptions,
) -> Result<LogReader, String> {
    let id = lookup::log_container(pod, container, options.previous).map_err(|error| error.to_string())?;
    let status = match shared.runtime.container_status(&id).await {
        Ok(status) => status,
        Err(error) => {
            tracing::debug!(container = %id, %error, "no status of a container whose log was asked for");
            let scheme = shared.runtime.version().await.map(|v| v.runtime_name).unwrap_or_default();
            return Err(format!("unable to retrieve container logs for {scheme}://{id}"));
        }
    };
    let metadata = &pod.metadata;
    let directory = pod_log_directory(
        &shared.pods_log_dir,
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default(),
        metadata.uid.as_deref().unwrap_or_default(),
    );
    if !status.log_path.starts_with(&directory) {
        return Err(LogError::Outside { path: status.log_path }.to_string());
    }
    let shutdown = shared.shutdown.clone();
    let ended = if status.container.state == ContainerState::Running {
        let ended = container_ended(Arc::clone(&shared.runtime), id, shared.clock.clone());
        async move {
            shutdown.run_until_cancelled(ended).await;
        }
        .boxed()
    } else {
        std::future::ready(()).boxed()
    };
    LogReader::open(&shared.pods_log_dir, &status.log_path, options, &shared.watcher, ended)
        .await
        .map_err(|error| error.to_string())
}

/// Waits until a container no longer runs.
async fn container_ended(runtime: Arc<dyn RuntimeService>, id: ContainerId, clock: Clock) {
    loop {
        // Hints from now on, so that nothing falls between them and the look.
        let mut events = runtime.container_events().await.ok();
        loop {
            match runtime.container_status(&id).await {
                Ok(status) if status.container.state == ContainerState::Running => {}
                Ok(_) | Err(coracle_cri::CriError::NotFound(_)) => return,
                Err(error) => tracing::debug!(container = %id, %error, "cannot see whether it runs"),
            }
            let Some(hints) = &mut events else {
                clock.sleep(LOOK_AGAIN).await;
                break;
            };
            let hint = async {
                while let Some(event) = hints.recv().await {
                    if event.container.as_ref().is_none_or(|about| *about == id) {
                        return true;
                    }
                }
                false
            };
            if clock.timeout(LOOK_AGAIN, hint).await == Some(false) {
                break;
            }
        }
    }
}
