//! The real world around a simulated cluster: sockets with TLS, a kubeconfig, keys pressed, Ctrl-C. All of it lives on a
//! thread of its own, in real time, and asks the player of the cluster for what concerns it.

use std::io::BufRead as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use coracle_api::status::Status;
use coracle_apiserver::auth::UserInfo;
use coracle_apiserver::kubeconfig::Kubeconfig;
use coracle_apiserver::pki::{CertificateAuthority, CertificateRequest};
use coracle_apiserver::{Answering, Body, ServerTls, serve_with};
use coracle_clock::{Clock, select};
use coracle_sim::scenario::time;
use coracle_sim::{Door, refusal};
use futures::FutureExt as _;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::cli::Speed;
use crate::output;

/// How far time goes when a line without a time is entered.
const A_BIT: Duration = Duration::from_secs(10);

/// What the player is asked for.
#[derive(Debug)]
pub(super) enum Wish {
    /// Time passes. Answered with the time since the start when it has.
    Advance(Duration, Option<oneshot::Sender<Value>>),
    /// What time it is.
    Time(oneshot::Sender<Value>),
    /// It is enough.
    Quit,
}

/// The thread, and how to reach it.
pub(super) struct Edge {
    pub(super) wishes: mpsc::UnboundedReceiver<Wish>,
    pub(super) kubeconfig: PathBuf,
    /// Removed when the cluster is.
    kubeconfig_is_ours: bool,
    handle: tokio::runtime::Handle,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Edge {
    /// Begins to serve.
    pub(super) fn open(door: Door, speed: Speed, wanted: Option<&Path>) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("coracle-sim-").tempdir()?;
        let clock = Clock::system();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let server = format!("https://{}", listener.local_addr()?);

        let pki = directory.path().join("pki");
        let authority = CertificateAuthority::load_or_create(&pki, clock.now())?;
        let service: IpAddr = Ipv4Addr::new(10, 96, 0, 1).into();
        let shown = authority.issue(&CertificateRequest::api_server(service, &[], &[]), clock.now())?;
        let admin = CertificateRequest::client("kubernetes-admin", Some("system:masters"));
        let admin = authority.issue(&admin, clock.now())?;
        let tls = ServerTls::new(&shown, &authority)?;
        let kubeconfig = wanted.map_or_else(|| directory.path().join("kubeconfig"), Path::to_owned);
        Kubeconfig {
            cluster: "coracle-sim",
            user: "kubernetes-admin",
            server: &server,
            authority_pem: authority.certificate_pem(),
            credential: &admin,
        }
        .write(&kubeconfig)
        .with_context(|| format!("cannot write {}", kubeconfig.display()))?;

        let (wish, wishes) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let handle = runtime.handle().clone();
        let thread = {
            let (wish, stop) = (wish.clone(), stop.clone());
            std::thread::Builder::new().name("edge".to_owned()).spawn(move || {
                runtime.block_on(live(listener, tls, clock, door, wish, speed, stop));
            })?
        };
        read_keys(wish)?;
        Ok(Edge {
            wishes,
            kubeconfig_is_ours: wanted.is_none(),
            kubeconfig,
            handle,
            stop,
            thread: Some(thread),
            _directory: directory,
        })
    }

    /// A moment of real time, in which clients can do something.
    pub(super) fn moment(&self, length: Duration) -> impl Future<Output = ()> + use<> {
        let passed = self.handle.spawn(async move { Clock::system().sleep(length).await });
        async move { drop(passed.await) }
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        if !self.kubeconfig_is_ours {
            drop(std::fs::remove_file(&self.kubeconfig));
        }
    }
}

/// Serves until it is told to stop.
async fn live(
    listener: TcpListener,
    tls: ServerTls,
    clock: Clock,
    door: Door,
    wish: mpsc::UnboundedSender<Wish>,
    speed: Speed,
    stop: CancellationToken,
) {
    let interrupted = {
        let wish = wish.clone();
        async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                let _ = wish.send(Wish::Quit);
            }
            std::future::pending::<()>().await;
        }
    };
    let beat = {
        let (clock, wish) = (clock.clone(), wish.clone());
        async move {
            let Speed::Times(times) = speed else { return std::future::pending().await };
            loop {
                let (done, passed) = oneshot::channel();
                let by = super::BEAT.saturating_mul(times);
                if wish.send(Wish::Advance(by, Some(done))).is_err() {
                    return;
                }
                // One after the other: time does not run ahead of what it asks of the machine.
                clock.sleep(super::BEAT).await;
                drop(passed.await);
            }
        }
    };
    let answering: Answering = Arc::new(move |request, user| route(request, user, &door, &wish));
    select! {
        () = serve_with(listener, tls, clock, stop, answering) => {}
        () = interrupted => {}
        () = beat => {}
    }
}

/// What concerns time is the player's, all else the cluster's.
fn route(
    request: Request<Body>,
    user: Option<UserInfo>,
    door: &Door,
    wish: &mpsc::UnboundedSender<Wish>,
) -> futures::future::BoxFuture<'static, Response<Body>> {
    let path = request.uri().path();
    if !matches!(path, "/coracle/v1/advance" | "/coracle/v1/time") {
        return door.answer(request, user);
    }
    let asked = about_time(&request, user.as_ref());
    let wish = wish.clone();
    async move {
        let by = match asked {
            Ok(by) => by,
            Err(status) => return refusal(&status),
        };
        let (done, answer) = oneshot::channel();
        let sent = wish.send(match by {
            Some(by) => Wish::Advance(by, Some(done)),
            None => Wish::Time(done),
        });
        match (sent, answer.await) {
            (Ok(()), Ok(answer)) => json_body(&answer),
            _ => refusal(&Status::unavailable("the scenario is over")),
        }
    }
    .boxed()
}

/// How far time is to go; `None` if somebody only wants to know it.
fn about_time(request: &Request<Body>, user: Option<&UserInfo>) -> Result<Option<Duration>, Status> {
    let Some(user) = user else { return Err(Status::unauthorized()) };
    if !user.is_in("system:masters") {
        return Err(Status::forbidden("", "", "", "only administrators move time"));
    }
    match (request.uri().path(), request.method()) {
        ("/coracle/v1/time", &Method::GET) => Ok(None),
        ("/coracle/v1/advance", &Method::POST) => {
            let query = request.uri().query().unwrap_or_default();
            let by = query.split('&').find_map(|part| part.strip_prefix("by="));
            let by = by.ok_or_else(|| Status::bad_request("say how far, as in advance?by=10m"))?;
            time::parse(by).map(Some).map_err(Status::bad_request)
        }
        (_, method) => Err(Status::method_not_allowed("", "", method.as_str())),
    }
}

fn json_body(value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(format!("{value}\n")));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}

/// What time it is, for clients.
pub(super) fn time_json(elapsed: Duration, now: jiff::Timestamp) -> Value {
    json!({"elapsed": time::show(elapsed), "elapsedSeconds": elapsed.as_secs_f64(), "now": now.to_string()})
}

/// Reads lines from standard input: a time to let pass, nothing for a bit of it, or q.
///
/// The thread is left to itself at the end: it waits for a key that may never come.
fn read_keys(wish: mpsc::UnboundedSender<Wish>) -> std::io::Result<()> {
    let read = move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            let sent = match line.trim() {
                "" => wish.send(Wish::Advance(A_BIT, None)),
                "q" | "quit" | "exit" => wish.send(Wish::Quit),
                by => match time::parse(by) {
                    Ok(by) => wish.send(Wish::Advance(by, None)),
                    Err(reason) => {
                        output::note(format_args!("{reason}; Enter alone is 10s, q ends it"));
                        Ok(())
                    }
                },
            };
            if sent.is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("keys".to_owned()).spawn(read).map(drop)
}
