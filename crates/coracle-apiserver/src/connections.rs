//! Serving a socket: how many connections there may be, how long each may take for what, and which one gives way.
//!
//! Whoever holds a place without using it loses it: by time, and at once when somebody else needs it. Those who are
//! nobody go first, then those who have not asked for anything, then those who have been idle longest; a connection
//! with a request in flight is never taken away.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use coracle_clock::Clock;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::pki_types::UnixTime;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::auth::UserInfo;
use crate::body::Body;
use crate::outflow::{Outflow, Outflows};
use crate::server::{ApiServer, LongRunning};
use crate::tls::ServerTls;

/// How long requests in flight may take when the server ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// A pause after the system refused to accept a connection, which it does when it is out of descriptors, and when
/// there is no place to be had.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const MAX_STREAMS: u32 = 250;
/// Bytes of the head of a request. A command to run in a container is part of it.
const HEAD_BYTES: u32 = 64 * 1024;
/// Bytes that wait to be sent, for each stream.
const SEND_BYTES: usize = 64 * 1024;
/// How long an HTTP/2 connection may be silent before it is asked whether it is alive, and the time to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(15);
/// Connections at a time, however many descriptors there are.
const CONNECTIONS_MAX: usize = 16 * 1024;
/// Connections that have been told to go and have not gone.
const LEAVING_MAX: usize = 64;

/// What the clients of a socket may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Time for the TLS handshake.
    pub handshake: Duration,
    /// Time for the head of a request, and until the first.
    pub head: Duration,
    /// How long a client may take nothing of an answer that waits for it. Watches, logs and the like are not bound
    /// by it: whoever looks at a page of a log may look for long.
    pub stuck: Duration,
    /// Connections at a time.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(30),
            stuck: Duration::from_secs(60),
            connections: most_connections(),
        }
    }
}

/// How many connections there may be: half of the descriptors are for what the cluster is made of, above all the
/// store, which cannot write without them.
fn most_connections() -> usize {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let half = descriptors.and_then(|most| usize::try_from(most / 2).ok()).unwrap_or(CONNECTIONS_MAX);
    half.clamp(1, CONNECTIONS_MAX)
}

/// The order in which connections give way: whether it is known who it is, whether there was a request, and since
/// when nothing has changed.
type Rank = (bool, bool, u64);

/// What is known of a connection.
#[derive(Debug)]
pub(crate) struct Guest {
    clock: Clock,
    /// Milliseconds of the clock at which it became what it is.
    since: AtomicU64,
    known: AtomicBool,
    asked: AtomicBool,
    in_flight: AtomicUsize,
    /// How many of the requests in flight may take as long as they want.
    streaming: AtomicUsize,
    pub(crate) outflows: Outflows,
    leave: CancellationToken,
}

impl Guest {
    fn new(clock: &Clock) -> Self {
        let guest = Guest {
            clock: clock.clone(),
            since: AtomicU64::new(0),
            known: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            streaming: AtomicUsize::new(0),
            outflows: Outflows::new(clock.clone()),
            leave: CancellationToken::new(),
        };
        guest.changed();
        guest
    }

    fn changed(&self) {
        let now = u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since.store(now, Ordering::Relaxed);
    }

    /// `None` for one that does not give way.
    fn rank(&self) -> Option<Rank> {
        let idle = self.in_flight.load(Ordering::Relaxed) == 0 && !self.leave.is_cancelled();
        let (known, asked) = (self.known.load(Ordering::Relaxed), self.asked.load(Ordering::Relaxed));
        idle.then(|| (known, asked, self.since.load(Ordering::Relaxed)))
    }
}

/// A request in flight, until the last of its answer is sent.
#[derive(Debug)]
pub(crate) struct InFlight {
    guest: Arc<Guest>,
    streaming: bool,
}

impl InFlight {
    fn new(guest: &Arc<Guest>) -> Self {
        guest.asked.store(true, Ordering::Relaxed);
        guest.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { guest: Arc::clone(guest), streaming: false }
    }

    fn streams(&mut self) {
        if !std::mem::replace(&mut self.streaming, true) {
            self.guest.streaming.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.streaming {
            self.guest.streaming.fetch_sub(1, Ordering::Relaxed);
        }
        self.guest.changed();
        self.guest.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All connections of the server.
#[derive(Debug, Default)]
pub(crate) struct Guests {
    seats: Mutex<(u64, BTreeMap<u64, Arc<Guest>>)>,
    turned_away: AtomicU64,
}

impl Guests {
    fn seats(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Arc<Guest>>)> {
        // Inserting and removing cannot panic half way.
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many connections there are.
    pub(crate) fn count(&self) -> usize {
        self.seats().1.len()
    }

    /// How many have given way to others.
    pub(crate) fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }

    fn sit(self: &Arc<Self>, clock: &Clock) -> Seat {
        let guest = Arc::new(Guest::new(clock));
        let (next, seats) = &mut *self.seats();
        *next += 1;
        seats.insert(*next, Arc::clone(&guest));
        Seat { number: *next, guests: Arc::clone(self), guest }
    }

    /// Some of those who give way, in order. Those who are known come one at a time: there may be others before
    /// them by then.
    fn first_to_leave(&self) -> VecDeque<(Rank, Arc<Guest>)> {
        let seats = self.seats();
        let mut idle: Vec<_> = seats.1.values().filter_map(|guest| Some((guest.rank()?, guest))).collect();
        idle.sort_unstable_by_key(|(rank, _)| *rank);
        let alike = |(rank, _): &(Rank, _)| !rank.0 && !rank.1;
        let many = idle.iter().take_while(|place| alike(place)).count().clamp(1, LEAVING_MAX);
        idle.into_iter().take(many).map(|(rank, guest)| (rank, Arc::clone(guest))).collect()
    }
}

struct Seat {
    number: u64,
    guests: Arc<Guests>,
    guest: Arc<Guest>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.guests.seats().1.remove(&self.number);
    }
}

/// Answers a request of a user; `None` is somebody who did not show who they are.
pub type Answering =
    Arc<dyn Fn(Request<Body>, Option<UserInfo>) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

impl ApiServer {
    /// Serves `listener` until `shutdown`; then requests in flight finish, and watches end.
    pub async fn serve(&self, listener: TcpListener, tls: ServerTls, shutdown: CancellationToken) {
        let core = Arc::clone(&self.core);
        let answering: Answering = Arc::new(move |request, user| Arc::clone(&core).handle(request, user));
        let stop = CancellationToken::new();
        let host =
            Host { clock: self.core.clock.clone(), guests: Arc::clone(&self.core.guests), answering, tls };
        let mut serving = std::pin::pin!(host.serve(listener, stop.clone()));
        coracle_clock::select! {
            () = shutdown.cancelled() => {}
            () = self.core.draining.cancelled() => {}
            () = serving.as_mut() => return,
        }
        // Watches would go on for half an hour: they end first, and with them their connections.
        self.core.draining.cancel();
        stop.cancel();
        serving.await;
    }
}

/// Serves `listener` until `shutdown` with the answers of `answering`; then requests in flight finish. The time is that
/// of connections, and of certificates.
pub async fn serve_with(
    listener: TcpListener,
    tls: ServerTls,
    clock: Clock,
    shutdown: CancellationToken,
    answering: Answering,
) {
    Host { clock, guests: Arc::default(), answering, tls }.serve(listener, shutdown).await;
}

/// What connections share.
#[derive(Clone)]
struct Host {
    clock: Clock,
    guests: Arc<Guests>,
    answering: Answering,
    tls: ServerTls,
}

impl Host {
    async fn serve(self, listener: TcpListener, shutdown: CancellationToken) {
        let mut connections = JoinSet::new();
        let closing = CancellationToken::new();
        let most = self.tls.limits.connections.max(1);
        let mut leavers: VecDeque<(Rank, Arc<Guest>)> = VecDeque::new();
        loop {
            let full = connections.len() >= most;
            while full && leavers.front().is_some_and(|(rank, guest)| guest.rank() != Some(*rank)) {
                leavers.pop_front();
            }
            if full && leavers.is_empty() {
                leavers = self.guests.first_to_leave();
            }
            let room = !full || (!leavers.is_empty() && connections.len() < most + LEAVING_MAX);
            coracle_clock::select! {
                () = shutdown.cancelled() => break,
                Some(ended) = connections.join_next(), if !connections.is_empty() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a connection ended badly");
                    }
                }
                // More wait in the queue of the system.
                accepted = listener.accept(), if room => match accepted {
                    Ok((stream, _)) => {
                        if let Some((_, guest)) = leavers.pop_front().filter(|_| full) {
                            self.guests.turned_away.fetch_add(1, Ordering::Relaxed);
                            guest.leave.cancel();
                        }
                        let seat = self.guests.sit(&self.clock);
                        connections.spawn(self.clone().connection(stream, closing.clone(), seat));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        self.clock.sleep(ACCEPT_PAUSE).await;
                    }
                },
                // One of them may have become idle.
                () = self.clock.sleep(ACCEPT_PAUSE), if !room => {}
            }
        }
        drop(listener);
        closing.cancel();
        let drained = async { while connections.join_next().await.is_some() {} };
        if self.clock.timeout(DRAIN_TIMEOUT, drained).await.is_none() {
            tracing::warn!("connections did not end in time and are cut");
            connections.shutdown().await;
        }
    }

    async fn connection(self, stream: TcpStream, closing: CancellationToken, seat: Seat) {
        let gone = seat.guest.leave.clone();
        coracle_clock::select! {
            () = gone.cancelled() => tracing::debug!("a connection gives way to another"),
            () = self.converse(stream, closing, Arc::clone(&seat.guest)) => {}
        }
    }

    async fn converse(&self, stream: TcpStream, closing: CancellationToken, guest: Arc<Guest>) {
        let limits = &self.tls.limits;
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%error, "a connection without its options");
        }
        let stream = Patient { stream, guest: Arc::clone(&guest), most: limits.stuck, waiting: None };
        let handshake = TlsAcceptor::from(Arc::clone(&self.tls.config)).accept(stream);
        let stream = coracle_clock::select! {
            () = closing.cancelled() => return,
            outcome = self.clock.timeout(limits.handshake, handshake) => match outcome {
                Some(Ok(stream)) => stream,
                Some(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
                None => return tracing::debug!("TLS handshake timed out"),
            },
        };
        let seconds = u64::try_from(self.clock.now().as_second()).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let user = self.tls.identify(stream.get_ref().1.peer_certificates(), now);
        guest.known.store(user.is_some(), Ordering::Relaxed);
        guest.changed();
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let (answering, visitor) = (Arc::clone(&self.answering), Arc::clone(&guest));
        let service = service_fn(move |request: Request<Incoming>| {
            let mut in_flight = InFlight::new(&visitor);
            let answer = answering(request.map(|body| body.map_err(Into::into).boxed_unsync()), user.clone());
            async move {
                let response = answer.await;
                if response.extensions().get::<LongRunning>().is_some() {
                    in_flight.streams();
                }
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    // From here on the socket is a stream, for as long as there is one.
                    in_flight.guest.streaming.fetch_add(1, Ordering::Relaxed);
                }
                let watched = (!in_flight.streaming).then(|| in_flight.guest.outflows.clone());
                Ok::<_, Infallible>(response.map(|body| Outflow::new(body, watched, in_flight)))
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // What was agreed on in the handshake is what is spoken: nothing is guessed from the first bytes.
        builder = if http2 { builder.http2_only() } else { builder.http1_only() };
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(HEAD_BYTES as usize);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(HEAD_BYTES)
            .max_send_buf_size(SEND_BYTES)
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_ANSWER);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        // Who has not asked for anything by then only holds a place.
        let silent = async {
            self.clock.sleep(limits.head).await;
            if guest.asked.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let ended = coracle_clock::select! {
            () = closing.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.as_mut().await
            }
            ended = connection.as_mut() => ended,
            () = silent => return tracing::debug!("connection without a request"),
            () = guest.outflows.stuck(limits.stuck) => return tracing::debug!("a client does not take its answer"),
        };
        if let Err(error) = ended {
            tracing::debug!(error, "connection ended");
        }
    }
}

/// Lets the kernel find out about peers that are gone without a word.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEP_ALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE_ANSWER)?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    Ok(())
}

/// A socket that ends when its peer takes nothing for too long of what is to be sent.
struct Patient {
    stream: TcpStream,
    guest: Arc<Guest>,
    most: Duration,
    waiting: Option<BoxFuture<'static, ()>>,
}

impl Patient {
    fn judge<T>(&mut self, context: &mut Context<'_>, sent: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if sent.is_ready() {
            self.waiting = None;
            return sent;
        }
        loop {
            let (clock, most) = (&self.guest.clock, self.most);
            let waiting = self.waiting.get_or_insert_with(|| {
                let clock = clock.clone();
                Box::pin(async move { clock.sleep(most).await })
            });
            if waiting.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            self.waiting = None;
            if self.guest.streaming.load(Ordering::Relaxed) == 0 {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(context, sent)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.judge(context, sent)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(context, sent)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
