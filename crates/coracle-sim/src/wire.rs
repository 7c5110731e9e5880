//! The way from a client to the API server, which can be cut and slowed.
//!
//! The server may go away at any time: then what is under way fails as a connection does, and what is asked is refused.
//! A cut is silence: what is under way hangs until the way is clear again, or is given up as a real connection is.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use coracle_apiserver::auth::UserInfo;
use coracle_apiserver::{ApiServer, Body, BoxError};
use coracle_client::{PING_INTERVAL, PING_TIMEOUT};
use coracle_clock::{Clock, select, watch};
use futures::StreamExt as _;
use http::{Method, Request, Response, Uri};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use tokio_util::sync::CancellationToken;

use crate::acknowledged::Acknowledged;
use crate::rush::Rush;

/// After this long without an answer a connection is dead.
const GIVE_UP: Duration = PING_INTERVAL.saturating_add(PING_TIMEOUT);

/// Why a request failed on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// Nobody listens.
    #[error("connect: connection refused")]
    Refused,
    /// The server ended before it answered; what was asked may have been done or not.
    #[error("read: connection reset by peer")]
    Reset,
    /// Nobody answers; what was asked may have been done or not.
    #[error("i/o timeout")]
    TimedOut,
}

/// Where the server is, if there is one.
#[derive(Clone)]
pub(crate) struct Address(Arc<Mutex<Option<Up>>>);

#[derive(Clone)]
struct Up {
    server: Arc<ApiServer>,
    gone: CancellationToken,
}

impl Address {
    pub(crate) fn new() -> Self {
        Address(Arc::new(Mutex::new(None)))
    }

    pub(crate) fn come_up(&self, server: Arc<ApiServer>) {
        *self.slot() = Some(Up { server, gone: CancellationToken::new() });
    }

    /// Breaks every connection.
    pub(crate) fn go_down(&self) {
        if let Some(up) = self.slot().take() {
            up.gone.cancel();
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.slot().is_some()
    }

    /// The server, if it is up.
    pub(crate) fn server(&self) -> Option<Arc<ApiServer>> {
        self.slot().as_ref().map(|up| Arc::clone(&up.server))
    }

    fn slot(&self) -> MutexGuard<'_, Option<Up>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is wrong with a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Trouble {
    /// Nothing gets through.
    pub(crate) cut: bool,
    /// Each direction takes this long.
    pub(crate) delay: Duration,
    /// What watches tell takes so much longer.
    pub(crate) lag: Lag,
}

/// How much later watches tell what they tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Lag {
    pub(crate) by: Duration,
    /// Those of which kind, by its plural; all, if nothing is said.
    pub(crate) of: Option<&'static str>,
}

impl Lag {
    fn of(self, path: &str) -> Duration {
        let concerned = self.of.is_none_or(|plural| path.rsplit('/').next() == Some(plural));
        if concerned { self.by } else { Duration::ZERO }
    }
}

/// One way to the server. Clones are the same way.
#[derive(Clone)]
pub(crate) struct Wire {
    address: Address,
    clock: Clock,
    trouble: Arc<watch::Sender<Trouble>>,
    acknowledged: Acknowledged,
    rush: Rush,
}

impl Wire {
    pub(crate) fn new(address: Address, clock: Clock, acknowledged: Acknowledged, rush: Rush) -> Self {
        let trouble = Arc::new(watch::Sender::new(Trouble::default()));
        Wire { address, clock, trouble, acknowledged, rush }
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut Trouble)) {
        self.trouble.send_modify(change);
    }

    pub(crate) fn trouble(&self) -> Trouble {
        *self.trouble.borrow()
    }

    /// A caller with this identity.
    pub(crate) fn caller(&self, user: UserInfo) -> Caller {
        Caller { wire: self.clone(), user }
    }

    /// Waits until the way is clear, and its delay; gives up after a while.
    async fn pass(&self) -> Result<(), Unreachable> {
        let Trouble { cut, delay, .. } = self.trouble();
        if cut {
            let mut trouble = self.trouble.subscribe();
            let clear = async { drop(trouble.wait_for(|trouble| !trouble.cut).await) };
            self.clock.timeout(GIVE_UP, clear).await.ok_or(Unreachable::TimedOut)?;
        }
        if !delay.is_zero() {
            self.clock.sleep(delay).await;
        }
        Ok(())
    }

    async fn call(
        self,
        request: Request<kube::client::Body>,
        user: UserInfo,
    ) -> Result<Response<Body>, Unreachable> {
        let uri = request.uri().clone();
        let (method, path) = (request.method().as_str(), uri.path());
        if !self.rush.count(self.clock.elapsed(), &user.name, method, path) {
            return std::future::pending().await;
        }
        self.pass().await?;
        let up = self.address.slot().clone().ok_or(Unreachable::Refused)?;
        let changes =
            matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH | Method::DELETE);
        let mut server = up.server.in_process(user);
        let answer = async {
            let Ok(response) = tower::Service::call(&mut server, request).await;
            let (head, body) = response.into_parts();
            // An answer in one piece is looked at and handed on; a watch has no length.
            if http_body::Body::size_hint(&body).exact().is_none() {
                return (head, Err(body));
            }
            let whole = body.collect().await.map(http_body_util::Collected::to_bytes);
            (head, Ok(whole.unwrap_or_default()))
        };
        let (head, body) = select! {
            () = up.gone.cancelled() => return Err(Unreachable::Reset),
            answer = answer => answer,
        };
        self.pass().await?;
        if up.gone.is_cancelled() {
            return Err(Unreachable::Reset);
        }
        let body = match body {
            Ok(bytes) => {
                if changes && head.status.is_success() {
                    self.acknowledged.take_note(&bytes);
                }
                Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
            }
            Err(stream) => self.carry(stream, up.gone, uri),
        };
        Ok(Response::from_parts(head, body))
    }

    /// Carries a long answer, piece by piece.
    fn carry(self, body: Body, gone: CancellationToken, of: Uri) -> Body {
        let state = Carried { wire: self, of, body: Some(body), gone, under_way: VecDeque::new() };
        let frames = futures::stream::unfold(state, |mut state| async move {
            let next = state.next().await?;
            Some((next, state))
        });
        http_body_util::BodyExt::boxed_unsync(StreamBody::new(frames.boxed()))
    }
}

/// A long answer on its way.
struct Carried {
    wire: Wire,
    /// What was asked for.
    of: Uri,
    /// `None` when it has ended.
    body: Option<Body>,
    gone: CancellationToken,
    /// What has been sent, and when it arrives.
    under_way: VecDeque<(Duration, Frame<Bytes>)>,
}

impl Carried {
    async fn next(&mut self) -> Option<Result<Frame<Bytes>, BoxError>> {
        loop {
            if self.gone.is_cancelled() {
                return self.fail(Unreachable::Reset);
            }
            if self.wire.trouble().cut && self.wire.pass().await.is_err() {
                return self.fail(Unreachable::TimedOut);
            }
            let now = self.wire.clock.elapsed();
            let arrives = self.under_way.front().map(|(due, _)| due.saturating_sub(now));
            if arrives.is_some_and(|pause| pause.is_zero()) {
                return self.under_way.pop_front().map(|(_, frame)| Ok(frame));
            }
            if self.body.is_none() && arrives.is_none() {
                return None;
            }
            let mut trouble = self.wire.trouble.subscribe();
            let (body, clock) = (&mut self.body, &self.wire.clock);
            let arrival = async {
                match arrives {
                    Some(pause) => clock.sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            let sent = async {
                match body {
                    Some(body) => body.frame().await,
                    None => std::future::pending().await,
                }
            };
            let frame = select! {
                () = self.gone.cancelled() => continue,
                _ = trouble.changed() => continue,
                () = arrival => continue,
                frame = sent => frame,
            };
            match frame {
                Some(Ok(frame)) => {
                    let Trouble { delay, lag, .. } = self.wire.trouble();
                    let due = self.wire.clock.elapsed() + delay + lag.of(self.of.path());
                    self.under_way.push_back((due, frame));
                }
                Some(Err(error)) => {
                    self.body = None;
                    return Some(Err(error));
                }
                None => self.body = None,
            }
        }
    }

    /// Breaks off; after that the stream is over.
    fn fail(&mut self, why: Unreachable) -> Option<Result<Frame<Bytes>, BoxError>> {
        self.under_way.clear();
        self.body.take().map(|_| Err(why.into()))
    }
}

/// A client's end of the way.
#[derive(Clone)]
pub(crate) struct Caller {
    wire: Wire,
    user: UserInfo,
}

impl tower::Service<Request<kube::client::Body>> for Caller {
    type Response = Response<Body>;
    type Error = Unreachable;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Unreachable>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unreachable>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        Box::pin(self.wire.clone().call(request, self.user.clone()))
    }
}
