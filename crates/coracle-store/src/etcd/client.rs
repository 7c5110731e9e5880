//! Calls to etcd: over whichever member answers, within a limit of time, and never twice if that could do harm.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use coracle_clock::Clock;
use futures::StreamExt;
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

use super::failure::Failure;
use super::proto::{WatchCreateRequest, WatchRequest, WatchResponse};
use super::{Limits, Target, Tls};

/// A member that has gone silent is noticed by a ping that is not answered. etcd allows one every 5 s.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_LIMIT: Duration = Duration::from_secs(5);
/// How long a member may take for a read before another is asked.
const READ_PATIENCE: Duration = Duration::from_secs(3);
const PAUSE_MIN: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_millis(400);

/// What may be done about a call that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It may be sent again: it changes nothing, or nothing more when done twice.
    Always,
    /// It may be sent again only if it certainly did not happen.
    UnlessDone,
}

/// Connections to the members of one etcd.
#[derive(Debug)]
pub(super) struct Client {
    members: Vec<Channel>,
    /// The member that is asked; it moves on when that does not answer.
    current: AtomicUsize,
    clock: Clock,
    limits: Limits,
}

impl Client {
    /// A client that connects when it is used.
    pub(super) fn new(
        target: &Target,
        tls: Option<&Tls>,
        limits: Limits,
        clock: Clock,
    ) -> Result<Self, tonic::transport::Error> {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let member = |address: &String| {
            let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))?
                .connect_timeout(limits.connect)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(PING_EVERY)
                .keep_alive_timeout(PING_LIMIT)
                .keep_alive_while_idle(true)
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(8 << 20);
            Ok(match tls {
                Some(tls) => endpoint.tls_config(tls_config(tls))?.connect_lazy(),
                None => endpoint.connect_lazy(),
            })
        };
        let members =
            target.endpoints().iter().map(member).collect::<Result<_, tonic::transport::Error>>()?;
        Ok(Client { members, current: AtomicUsize::new(0), clock, limits })
    }

    /// Calls `method` until there is an answer, there is none worth waiting for, or time is up.
    pub(super) async fn call<Q, A>(
        &self,
        method: &'static str,
        request: Q,
        repeat: Repeat,
    ) -> Result<A, Failure>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let begun = self.clock.elapsed();
        let spent = || self.clock.elapsed().saturating_sub(begun);
        let mut pause = PAUSE_MIN;
        loop {
            let (index, member) = self.member();
            let left = self.limits.request.saturating_sub(spent());
            let patience = match repeat {
                Repeat::Always if self.members.len() > 1 => left.min(READ_PATIENCE),
                _ => left,
            };
            let failure = match self.clock.timeout(patience, unary(member, method, request.clone())).await {
                Some(Ok(answer)) => return Ok(answer),
                Some(Err(failure)) => failure,
                None => Failure::Unknown("etcdserver: request timed out".to_owned()),
            };
            let limit = match &failure {
                // A connection that is refused is refused at once: there is nothing to wait for but a restart.
                Failure::Unconnected(_) => self.limits.connect,
                Failure::NotDone(_) => self.limits.request,
                Failure::Unknown(_) if repeat == Repeat::Always => self.limits.request,
                Failure::Unknown(_) => {
                    self.pass_over(index);
                    return Err(failure);
                }
                _ => return Err(failure),
            };
            self.pass_over(index);
            if spent() + pause >= limit {
                return Err(failure);
            }
            tracing::debug!(method, ?failure, "asking etcd again");
            self.clock.sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Opens a watch: what comes of it, over the member that is asked. It ends when that member has no leader.
    pub(super) async fn watch(
        &self,
        create: WatchCreateRequest,
    ) -> Result<Streaming<WatchResponse>, Failure> {
        let (index, member) = self.member();
        // The request's end would be the watch's.
        let requests = futures::stream::iter([WatchRequest { create: Some(create) }])
            .chain(futures::stream::pending::<WatchRequest>());
        let mut request = Request::new(requests);
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let open = async {
            let mut grpc = ready(member).await?;
            let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
            let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
            let answer = grpc.streaming(request, path, codec).await;
            answer.map(tonic::Response::into_inner).map_err(|status| Failure::of(&status))
        };
        let opened = self.clock.timeout(self.limits.request, open).await;
        let result =
            opened.unwrap_or_else(|| Err(Failure::Unknown("etcdserver: request timed out".to_owned())));
        if result.is_err() {
            self.pass_over(index);
        }
        result
    }

    fn member(&self) -> (usize, Channel) {
        let index = self.current.load(Ordering::Relaxed);
        (index, self.members[index].clone())
    }

    /// Asks another member from now on, unless somebody has moved on already.
    fn pass_over(&self, index: usize) {
        let next = (index + 1) % self.members.len();
        // Losing the race means that somebody else did it.
        let _ = self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Asks another member from now on.
    pub(super) fn pass_over_current(&self) {
        self.pass_over(self.current.load(Ordering::Relaxed));
    }
}

async fn ready(member: Channel) -> Result<Grpc<Channel>, Failure> {
    // A list is as large as it is: pages bound it, not the message.
    let mut grpc = Grpc::new(member).max_decoding_message_size(usize::MAX);
    // Nothing has been sent yet.
    grpc.ready().await.map_err(|error| Failure::Unconnected(error.to_string()))?;
    Ok(grpc)
}

async fn unary<Q, A>(member: Channel, method: &'static str, request: Q) -> Result<A, Failure>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let mut grpc = ready(member).await?;
    let path = PathAndQuery::from_static(method);
    let answer = grpc.unary(Request::new(request), path, ProstCodec::<Q, A>::default()).await;
    answer.map(tonic::Response::into_inner).map_err(|status| Failure::of(&status))
}

fn tls_config(tls: &Tls) -> ClientTlsConfig {
    let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca_pem));
    match &tls.client {
        Some((certificate, key)) => config.identity(Identity::from_pem(certificate, key)),
        None => config,
    }
}
