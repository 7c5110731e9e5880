//! The server: one service for callers inside the process and on the wire.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use coracle_api::catalogue::{self, Resource};
use coracle_api::status::Status;
use coracle_clock::watch;
use coracle_clock::{Clock, Ids};
use coracle_store::{Store, StoreError};
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::auth::{SYSTEM_MASTERS, UserInfo};
use crate::body::{Body, BoxError, full};
use crate::call::Call;
use crate::connections::Guests;
use crate::discovery::Discovery;
use crate::hub::{Hub, Prefix};
use crate::impersonate;
use crate::join::Joining;
use crate::kubelet::KubeletClient;
use crate::metrics::{Label, Metrics};
use crate::negotiate::{Format, Transforms};
use crate::pki::AccountKey;
use crate::placed::Placed;
use crate::policy::{self, Attributes};
use crate::request::{Query, Route, Verb, route, verb};
use crate::services::ServiceRange;

/// Every key of the store starts with this.
const ROOT: &str = "/registry/";

/// What a server needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses of Services.
    pub service_range: ServiceRange,
    /// Where this server is reached: the endpoint of the Service `kubernetes`, which has none while this is a
    /// loopback address.
    pub advertise: SocketAddr,
    /// How to reach the node agents; without it, logs and exec answer 503.
    pub kubelet: Option<KubeletClient>,
    /// How other machines become nodes; without it, none does.
    pub joining: Option<Joining>,
    /// Signs the tokens of service accounts, and knows them again.
    pub account_key: Arc<AccountKey>,
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be read.
    #[error("cannot read the store")]
    Store(#[from] StoreError),
    /// The objects that every cluster has could not be made.
    #[error("cannot create {what}: {status}")]
    Bootstrap {
        /// Which object.
        what: String,
        /// What the server answered itself.
        status: Status,
    },
}

/// Why a server can no longer work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerEnd {
    /// The store has stopped for good.
    #[error("the store has ended")]
    Store(#[source] StoreError),
    /// A part of the server is gone, and with it what it did.
    #[error("the {part} has panicked")]
    Panicked {
        /// Which.
        part: &'static str,
    },
}

/// What requests share.
pub(crate) struct Core {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) hub: Arc<Hub>,
    /// Where Pods are.
    pub(crate) placed: Placed,
    pub(crate) clock: Clock,
    pub(crate) ids: Arc<Ids>,
    pub(crate) config: Config,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) discovery: Discovery,
    /// Cancelled when the server ends: watches and streams end with it.
    pub(crate) draining: CancellationToken,
    pub(crate) ready: AtomicBool,
    /// Connections to node agents, and streams through them.
    pub(crate) streams: TaskTracker,
    /// Connections of clients.
    pub(crate) guests: Arc<Guests>,
}

/// Marks an answer that may take as long as its client wants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LongRunning;

/// The API server.
pub struct ApiServer {
    pub(crate) core: Arc<Core>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    ended: watch::Sender<Option<ServerEnd>>,
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiServer").field("config", &self.core.config).finish_non_exhaustive()
    }
}

/// The status for a store that failed.
pub(crate) fn store_failed(error: &StoreError) -> Status {
    match error {
        StoreError::NoSpace(_) => {
            tracing::error!(%error, "write refused");
            Status::too_many_requests("the store has no room for this write", 10)
        }
        StoreError::Compacted { requested, oldest } => {
            Status::expired(format!("too old resource version: {requested} ({oldest})"))
        }
        StoreError::Future { requested, current } => crate::read::too_large_revision(*requested, *current),
        StoreError::Lagging | StoreError::Unavailable(_) => {
            tracing::warn!(%error, "store unavailable");
            // Why is in the log: the client cannot do anything about it. The words are etcd's own.
            Status::unknown("etcdserver: request timed out")
        }
        StoreError::Invalid(_) => {
            tracing::error!(%error, "malformed request to the store");
            Status::internal("malformed request to the store")
        }
        StoreError::Stopped(_) => {
            tracing::error!(%error, "store stopped");
            Status::unavailable("the store has stopped")
        }
    }
}

impl ApiServer {
    /// Starts a server over `store` and makes what every cluster has: the namespaces `default`, `kube-system`,
    /// `kube-public` and `kube-node-lease`, and the Service `kubernetes` with its endpoint.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub async fn start(
        config: Config,
        store: Arc<dyn Store>,
        clock: Clock,
        ids: Arc<Ids>,
    ) -> Result<Arc<ApiServer>, StartError> {
        let prefix = |row: &Resource| (row.storage_prefix, row.strategy.indexed_field());
        let prefixes: BTreeMap<_, _> = catalogue::resources().iter().map(prefix).collect();
        let prefixes = prefixes.into_iter().map(|(prefix, indexed)| Prefix { prefix, indexed }).collect();
        let (hub, feeder) = Hub::start(Arc::clone(&store), clock.clone(), ROOT, prefixes).await?;
        let core = Arc::new(Core {
            store,
            hub,
            placed: Placed::default(),
            clock,
            ids,
            config,
            metrics: Arc::new(Metrics::default()),
            discovery: Discovery::new(),
            draining: CancellationToken::new(),
            ready: AtomicBool::new(false),
            streams: TaskTracker::new(),
            guests: Arc::default(),
        });
        let server = Arc::new(ApiServer { core, tasks: Mutex::default(), ended: watch::Sender::new(None) });
        let draining = server.core.draining.clone();
        server.start_task("watch hub", async move {
            coracle_clock::select! {
                () = draining.cancelled() => None,
                error = feeder => Some(ServerEnd::Store(error)),
            }
        });
        let expiry = crate::events::expire(Arc::clone(&server.core)).map(|()| None);
        server.start_task("expiry of Events", expiry);
        if let Err(error) = crate::bootstrap::run(&server.core).await {
            server.stop().await;
            return Err(error);
        }
        server.core.ready.store(true, Ordering::Release);
        let keeper = crate::bootstrap::keep(Arc::clone(&server.core)).map(|()| None);
        server.start_task("keeper of what every cluster has", keeper);
        Ok(server)
    }

    /// Starts a part of the server. What it says when it ends, or its panic, is the end of the server.
    fn start_task(&self, part: &'static str, work: impl Future<Output = Option<ServerEnd>> + Send + 'static) {
        let ended = self.ended.clone();
        let task = tokio::spawn(async move {
            let end = match AssertUnwindSafe(work).catch_unwind().await {
                Ok(end) => end,
                Err(_) => Some(ServerEnd::Panicked { part }),
            };
            if let Some(end) = end {
                tracing::error!(error = &end as &dyn std::error::Error, "the API server cannot go on");
                ended.send_if_modified(|first| first.replace(end.clone()).is_none());
            }
        });
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task);
    }

    /// Waits until the server can no longer work, and says why: nothing in this process can mend that, so that who
    /// started it ends the process and has it started anew. Pending for as long as the server works.
    pub async fn ended(&self) -> ServerEnd {
        let mut ended = self.ended.subscribe();
        let end = ended.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
        match end {
            Some(end) => end,
            // The sender is the server's own.
            None => std::future::pending().await,
        }
    }

    /// A caller inside the process, with this identity and the rights of this identity.
    #[must_use]
    pub fn in_process(&self, user: UserInfo) -> InProcess {
        InProcess { core: Arc::clone(&self.core), user }
    }

    /// Answers one request of `user`; `None` is somebody who did not show who they are. For who has sockets of their
    /// own; others use [`ApiServer::in_process`] or [`ApiServer::serve`].
    pub fn answer(
        &self,
        request: Request<Body>,
        user: Option<UserInfo>,
    ) -> BoxFuture<'static, Response<Body>> {
        Arc::clone(&self.core).handle(request, user)
    }

    /// Ends all watches and the server's own tasks; requests after that are refused by nobody, but the wiring
    /// has stopped asking.
    pub async fn stop(&self) {
        self.core.ready.store(false, Ordering::Release);
        self.core.draining.cancel();
        self.core.hub.close();
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task of the server ended badly");
            }
        }
        // They end with `draining`.
        self.core.streams.close();
        self.core.streams.wait().await;
    }
}

/// A caller inside the process: a `tower::Service` without a socket.
#[derive(Clone)]
pub struct InProcess {
    core: Arc<Core>,
    user: UserInfo,
}

impl InProcess {
    /// The server itself.
    pub(crate) fn own(core: &Arc<Core>) -> Self {
        let user = UserInfo::new("system:apiserver", [SYSTEM_MASTERS]);
        InProcess { core: Arc::clone(core), user }
    }
}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcess").field("user", &self.user.name).finish_non_exhaustive()
    }
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let core = Arc::clone(&self.core);
        let user = self.user.clone();
        let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
        Box::pin(core.handle(request, Some(user)).map(Ok))
    }
}

/// What is known of a request before it is handled, for metrics and logs.
struct Seen {
    label: Label,
    long_running: bool,
}

impl Core {
    /// Answers one request of `user`; `None` is somebody who did not show who they are.
    pub(crate) fn handle(
        self: Arc<Self>,
        request: Request<Body>,
        user: Option<UserInfo>,
    ) -> BoxFuture<'static, Response<Body>> {
        Box::pin(self.answer_request(request, user))
    }

    async fn answer_request(
        self: Arc<Self>,
        request: Request<Body>,
        user: Option<UserInfo>,
    ) -> Response<Body> {
        let begun = self.clock.elapsed();
        let query = Query::parse(request.uri().query());
        let format =
            Format::negotiate(request.headers(), &query, Transforms::None).unwrap_or_else(|_| Format::json());
        let user = match self.asking(user, request.headers()).await {
            Ok(user) => user,
            Err(status) => return format.status(&status),
        };
        let routed = route(request.uri().path());
        let seen = see(&request, &query, routed.as_ref().ok());
        let span = tracing::debug_span!(
            "request",
            method = %request.method(), path = request.uri().path(),
            user = user.as_ref().map_or("", |user| user.name.as_str()),
        );
        let head_only = request.method() == http::Method::HEAD;
        let core = Arc::clone(&self);
        let work = async move {
            match routed? {
                Route::Resource(path) => core.resource(request, path, query, user).await,
                Route::Path(segments) if segments.first().is_some_and(|first| first == "coracle") => {
                    let rest: Vec<&str> = segments.iter().skip(1).map(String::as_str).collect();
                    match rest[..] {
                        ["v1", "backup"] => Box::pin(core.backup(request.method(), user)).await,
                        _ => Box::pin(core.joining(request, &rest, user)).await,
                    }
                }
                Route::Path(segments) => {
                    let (parts, _) = request.into_parts();
                    Box::pin(core.path(&parts, &segments, &query, user)).await
                }
            }
        };
        // A request that panics is that request's problem: nothing shared is left half changed, because writes
        // are single transactions.
        let outcome = AssertUnwindSafe(work).catch_unwind().instrument(span.clone()).await;
        let mut response = match outcome {
            Ok(Ok(response)) => response,
            Ok(Err(status)) => format.status(&status),
            Err(_) => {
                self.metrics.panicked();
                tracing::error!(parent: &span, "a request panicked");
                let why = "This request caused apiserver to panic. Look in the logs for details.";
                format.status(&Status::internal(why))
            }
        };
        if head_only {
            response = without_body(response);
        }
        let code = response.status().as_u16();
        let took = self.clock.elapsed().saturating_sub(begun);
        tracing::debug!(parent: &span, code, took = ?took, "answered");
        self.metrics.request(seen.label, code, (!seen.long_running).then_some(took));
        if seen.long_running {
            response.extensions_mut().insert(LongRunning);
        }
        response
    }

    /// Who asks, and as whom: a certificate goes before a token, and either may ask to act as somebody else.
    async fn asking(&self, user: Option<UserInfo>, headers: &HeaderMap) -> Result<Option<UserInfo>, Status> {
        let user = match user {
            Some(user) => Some(user),
            None => self.bearer_of(headers).await?,
        };
        impersonate::acting(user, headers)
    }

    async fn resource(
        self: &Arc<Self>,
        request: Request<Body>,
        path: crate::request::ResourcePath,
        query: Query,
        user: Option<UserInfo>,
    ) -> Result<Response<Body>, Status> {
        let user = user.ok_or_else(Status::unauthorized)?;
        let verb = verb(request.method(), path.name.is_some(), &query).ok_or_else(|| {
            Status::method_not_allowed(&path.group, &path.resource, request.method().as_str())
        })?;
        let field_selector = query.get("fieldSelector").to_owned();
        for verb in policy::asks_for(verb, &path) {
            let attributes = Attributes { user: &user, verb, path: &path, field_selector: &field_selector };
            policy::authorize(&attributes)?;
            if let Some(node) = user.node_name() {
                self.authorize_node(node, &attributes).await?;
            }
        }
        let headers = request.headers().clone();
        let call = Call::resolve(&path, request.method(), query, headers, user)?;
        let deprecation = call.row.strategy.deprecation();
        let mut response = self.serve_resource(call, request).await?;
        if let Some(deprecation) = deprecation {
            add_warnings(response.headers_mut(), &[deprecation.to_owned()]);
        }
        Ok(response)
    }

    async fn serve_resource(
        self: &Arc<Self>,
        call: Call,
        request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        // What is rare and large is boxed: every request has room for what is left.
        match (call.subresource.map(|sub| sub.name), call.verb) {
            (Some("log"), _) => Box::pin(self.log(&call)).await,
            (Some("exec" | "attach" | "portforward"), _) => Box::pin(self.stream(&call, request)).await,
            (Some("scale"), _) => Box::pin(self.scale(&call, request.into_body())).await,
            (Some("eviction"), _) => Box::pin(self.evict(&call, request.into_body())).await,
            (Some("token"), _) => self.create_token(&call, request.into_body()).await,
            (Some("binding"), _) => self.bind(&call, request.into_body()).await,
            (None, Verb::Create) if call.row.kind == "Binding" => self.bind(&call, request.into_body()).await,
            (None, Verb::Create) if crate::reviews::is_question(call.row) => {
                self.review(&call, request.into_body()).await
            }
            (None, Verb::List) => self.list(&call).await,
            (None, Verb::Watch) => self.watch(call).await,
            (_, Verb::Get) => self.get(&call).await,
            (None, Verb::Create) => self.create(&call, request.into_body()).await,
            (_, Verb::Update) => self.update(&call, request.into_body()).await,
            (_, Verb::Patch) => self.patch(&call, request.into_body()).await,
            (None, Verb::Delete) => self.delete(&call, request.into_body()).await,
            (None, Verb::DeleteCollection) => {
                Box::pin(self.delete_collection(&call, request.into_body())).await
            }
            (Some(_), verb) => {
                Err(Status::method_not_allowed(call.row.group, call.row.plural, verb.as_str()))
            }
        }
    }
}

/// The answer to a HEAD request: everything but the body, whose length is still told.
fn without_body(mut response: Response<Body>) -> Response<Body> {
    let length = http_body::Body::size_hint(response.body()).exact();
    *response.body_mut() = full(Bytes::new());
    if let Some(length) = length {
        response.headers_mut().insert(http::header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
}

fn see(request: &Request<Body>, query: &Query, routed: Option<&Route>) -> Seen {
    let Some(Route::Resource(path)) = routed else {
        return Seen { label: Label::OTHER, long_running: false };
    };
    let (Some(row), Some(verb)) = (
        catalogue::find(&path.group, &path.version, &path.resource),
        verb(request.method(), path.name.is_some(), query),
    ) else {
        return Seen { label: Label::OTHER, long_running: false };
    };
    let subresource =
        path.subresource.as_ref().and_then(|name| row.subresource(name)).map_or("", |sub| sub.name);
    Seen {
        label: Label {
            verb: verb.as_str(),
            group: row.group,
            version: row.version,
            resource: row.plural,
            subresource,
        },
        long_running: verb == Verb::Watch || matches!(subresource, "log" | "exec" | "attach" | "portforward"),
    }
}

/// Adds `Warning` headers, as `299 - "text"`.
pub(crate) fn add_warnings(headers: &mut HeaderMap, warnings: &[String]) {
    for warning in warnings {
        let mut text = String::with_capacity(warning.len() + 10);
        text.push_str("299 - \"");
        for character in warning.chars() {
            match character {
                '"' | '\\' => text.extend(['\\', character]),
                control if control.is_control() => text.push(' '),
                other => text.push(other),
            }
        }
        text.push('"');
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            headers.append(http::header::WARNING, value);
        }
    }
}

/// An answer of plain text.
pub(crate) fn plain(code: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(full(text.into()));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}
