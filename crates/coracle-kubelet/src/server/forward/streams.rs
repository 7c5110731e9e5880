//! The streams of one client. Each connection to a port is a pair of them, joined by a request id: data, and errors.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_cri::PodSandboxId;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, FRAMES_IN_FLIGHT, PIECES_IN_FLIGHT};
use super::frame::{self, Frame, Parser, Reset};
use super::headers::{HeaderWriter, Headers};
use super::transport::{Sink, Source};
use super::{CLOSE_LIMIT, parse_port};
use crate::server::routes::Shared;

/// Streams that a client may have open: two for each connection.
const STREAMS_MAX: usize = 2048;
/// How long a client may take to open the second stream of a pair, as upstream.
const PAIR_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Error,
    Data,
}

/// What a client says about a new stream.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    kind: Kind,
    port: u16,
    request: String,
}

impl Wanted {
    fn parse(stream: u32, headers: &Headers) -> Result<Self, String> {
        let get = |name: &str| {
            headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).unwrap_or_default()
        };
        let port = match get("port") {
            "" => return Err("\"port\" header is required".to_owned()),
            text => parse_port(text)?,
        };
        let kind = match get("streamtype") {
            "" => return Err("\"streamType\" header is required".to_owned()),
            "error" => Kind::Error,
            "data" => Kind::Data,
            other => return Err(format!("invalid stream type {other:?}")),
        };
        let request = match get("requestid") {
            // Clients from before there were ids open the stream of data right after that of errors.
            "" => match kind {
                Kind::Error => stream.to_string(),
                Kind::Data => stream.saturating_sub(2).to_string(),
            },
            id => id.to_owned(),
        };
        Ok(Wanted { kind, port, request })
    }
}

/// A stream that is open in the client's direction.
struct Open {
    request: String,
    /// What comes, for a stream of data that has not ended.
    to_pod: Option<mpsc::Sender<Bytes>>,
    /// The client has broken it off.
    reset: CancellationToken,
}

/// A pair that is not complete yet.
struct Pair {
    since: Duration,
    error: Option<u32>,
    data: Option<(u32, mpsc::Receiver<Bytes>, CancellationToken)>,
}

struct Session<'a> {
    shared: &'a Shared,
    sandbox: PodSandboxId,
    headers: HeaderWriter,
    frames: mpsc::Sender<Bytes>,
    open: BTreeMap<u32, Open>,
    pairs: BTreeMap<String, Pair>,
    /// One task for each connection; they end with the session. Each gives back its streams.
    connections: JoinSet<[u32; 2]>,
}

/// Serves a client until it leaves, or says something that is not understood.
pub(super) async fn serve(
    shared: &Shared,
    sandbox: PodSandboxId,
    mut source: impl Source,
    mut sink: impl Sink,
) {
    let (frames, mut waiting) = mpsc::channel::<Bytes>(FRAMES_IN_FLIGHT);
    let mut session = Session {
        shared,
        sandbox,
        headers: HeaderWriter::default(),
        frames,
        open: BTreeMap::new(),
        pairs: BTreeMap::new(),
        connections: JoinSet::new(),
    };
    let write = async {
        while let Some(frame) = waiting.recv().await {
            if let Err(error) = sink.send(frame).await {
                tracing::debug!(%error, "a client that forwards ports has gone");
                return;
            }
        }
    };
    coracle_clock::select! {
        () = shared.shutdown.cancelled() => {}
        () = write => {}
        () = session.run(&mut source) => {}
    }
    drop(session);
    shared.clock.timeout(CLOSE_LIMIT, sink.close()).await;
}

impl Session<'_> {
    async fn run(&mut self, source: &mut impl Source) {
        let mut parser = Parser::new();
        loop {
            let look = self.next_look();
            coracle_clock::select! {
                Some(done) = self.connections.join_next() => {
                    for stream in done.unwrap_or_default() {
                        self.open.remove(&stream);
                    }
                }
                () = self.shared.clock.sleep(look.unwrap_or_default()), if look.is_some() => self.give_up().await,
                bytes = source.next() => {
                    match bytes {
                        Ok(Some(bytes)) => parser.feed(&bytes),
                        Ok(None) => return,
                        Err(error) => return tracing::debug!(%error, "a client that forwards ports has gone"),
                    }
                    loop {
                        match parser.next() {
                            Ok(None) => break,
                            Ok(Some(Frame::GoAway)) => return,
                            Ok(Some(frame)) => self.handle(frame).await,
                            Err(error) => return tracing::info!(%error, "a client does not speak SPDY/3.1"),
                        }
                    }
                }
            }
        }
    }

    /// How long until a pair has waited for too long.
    fn next_look(&self) -> Option<Duration> {
        let first = self.pairs.values().map(|pair| pair.since).min()?;
        Some((first + PAIR_LIMIT).saturating_sub(self.shared.clock.elapsed()))
    }

    /// Ends pairs that have waited for too long.
    async fn give_up(&mut self) {
        let now = self.shared.clock.elapsed();
        let late: Vec<String> = self
            .pairs
            .iter()
            .filter(|(_, pair)| now.saturating_sub(pair.since) >= PAIR_LIMIT)
            .map(|(request, _)| request.clone())
            .collect();
        for request in late {
            let Some(pair) = self.pairs.remove(&request) else { continue };
            if let Some(stream) = pair.error {
                let why = format!("(request={request}) timed out waiting for streams");
                self.say(frame::data(stream, why.as_bytes(), true)).await;
                self.open.remove(&stream);
            }
            if let Some((stream, ..)) = pair.data {
                self.say(frame::data(stream, &[], true)).await;
                self.open.remove(&stream);
            }
        }
    }

    /// A client that has gone is noticed elsewhere.
    async fn say(&self, frame: Bytes) {
        let _ = self.frames.send(frame).await;
    }

    async fn handle(&mut self, frame: Frame) {
        match frame {
            Frame::Open { stream, headers, fin } => self.begin(stream, &headers, fin).await,
            Frame::Data { stream, data, fin } => {
                let Some(open) = self.open.get_mut(&stream) else { return };
                if let Some(to_pod) = &open.to_pod
                    && !data.is_empty()
                {
                    // Waits for the Pod. One that has closed its side, or a stream broken off, wants no more.
                    let _ = to_pod.send(data).await;
                }
                if fin {
                    open.to_pod = None;
                }
            }
            Frame::Reset { stream } => {
                if let Some(open) = self.open.remove(&stream) {
                    open.reset.cancel();
                    // Of a pair that is not complete nothing is left to wait for.
                    self.pairs.remove(&open.request);
                }
            }
            Frame::Ping { id } => self.say(frame::pong(id)).await,
            Frame::GoAway => {}
        }
    }

    async fn begin(&mut self, stream: u32, headers: &Headers, fin: bool) {
        if self.open.len() >= STREAMS_MAX || self.open.contains_key(&stream) {
            return self.say(frame::reset(stream, Reset::Refused)).await;
        }
        let wanted = match Wanted::parse(stream, headers) {
            Ok(wanted) => wanted,
            Err(error) => {
                tracing::debug!(error, "a stream for a port is refused");
                return self.say(frame::reset(stream, Reset::Cancel)).await;
            }
        };
        let reply = frame::reply(stream, &mut self.headers);
        self.say(reply).await;

        let since = self.shared.clock.elapsed();
        let pair =
            self.pairs.entry(wanted.request.clone()).or_insert(Pair { since, error: None, data: None });
        let reset = CancellationToken::new();
        let mut to_pod = None;
        match wanted.kind {
            Kind::Error => pair.error = Some(stream),
            Kind::Data => {
                let (sender, receiver) = mpsc::channel(PIECES_IN_FLIGHT);
                to_pod = Some(sender).filter(|_| !fin);
                pair.data = Some((stream, receiver, reset.clone()));
            }
        }
        self.open.insert(stream, Open { request: wanted.request.clone(), to_pod, reset });
        if pair.error.is_some()
            && pair.data.is_some()
            && let Some(Pair { error: Some(error), data: Some((data, from_client, reset)), .. }) =
                self.pairs.remove(&wanted.request)
        {
            let connection = Connection {
                runtime: Arc::clone(&self.shared.runtime),
                clock: self.shared.clock.clone(),
                sandbox: self.sandbox.clone(),
                port: wanted.port,
                streams: [error, data],
                frame: frame::data,
                frames: self.frames.clone(),
            };
            self.connections.spawn(connection.run(from_client, reset));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_say_what_they_are_for() {
        let wanted = |stream, headers: &[(&str, &str)]| {
            let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            Wanted::parse(stream, &headers.collect())
        };
        let of = |kind, request: &str| Ok(Wanted { kind, port: 80, request: request.to_owned() });
        let port = ("port", "80");
        let table = [
            (wanted(1, &[port, ("streamtype", "error"), ("requestid", "7")]), of(Kind::Error, "7")),
            (wanted(3, &[port, ("streamtype", "data"), ("requestid", "7")]), of(Kind::Data, "7")),
            (wanted(1, &[port, ("streamtype", "error")]), of(Kind::Error, "1")),
            (wanted(3, &[port, ("streamtype", "data")]), of(Kind::Data, "1")),
            (wanted(1, &[("streamtype", "data")]), Err("\"port\" header is required".to_owned())),
            (wanted(1, &[port]), Err("\"streamType\" header is required".to_owned())),
            (wanted(1, &[port, ("streamtype", "x")]), Err("invalid stream type \"x\"".to_owned())),
            (
                wanted(1, &[("port", "70000"), ("streamtype", "data")]),
                Err("unable to parse \"70000\" as a port".to_owned()),
            ),
            (
                wanted(1, &[("port", "0"), ("streamtype", "data")]),
                Err("unable to parse \"0\" as a port".to_owned()),
            ),
        ];
        for (found, expected) in table {
            assert_eq!(found, expected);
        }
    }
}
