//! One running command, or a container attached to, spoken to over a WebSocket.
//!
//! Every binary message begins with the number of its channel: 0 standard input, 1 standard output, 2 standard
//! error, 3 the result, 4 changes of the terminal's size. With subprotocol v5 the message `[255, n]` closes
//! channel n. There is no buffer in between: a program that does not read stalls the client, a client that does
//! not read stalls the program.
//!
//! The command ends with its client: when the connection closes or breaks, the runtime's session is dropped. An
//! attachment ends in the same way, and its container goes on.

use std::time::Duration;

use bytes::Bytes;
use coracle_cri::{AttachRequest, CriResult, ExecRequest, RuntimeService, StreamSession, TerminalSize};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};

use super::routes::Shared;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const RESULT: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// A quiet session is pinged this often. A connection whose other end is gone shows it then, even while input
/// that nobody reads keeps us from looking.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long the client may take to answer our close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Which streams a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Streams {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
}

impl Streams {
    /// The channel on which an empty message tells the client that it is connected.
    fn lowest_output(self) -> u8 {
        match self {
            Streams { stdout: true, .. } => STDOUT,
            Streams { stderr: true, .. } => STDERR,
            _ => RESULT,
        }
    }
}

/// What the streams belong to.
#[derive(Debug)]
pub(super) enum Work {
    Exec(ExecRequest),
    Attach(AttachRequest),
}

impl Work {
    async fn begin(&self, runtime: &dyn RuntimeService) -> CriResult<StreamSession> {
        match self {
            Work::Exec(request) => runtime.exec(request).await,
            Work::Attach(request) => runtime.attach(request).await,
        }
    }

    /// The `Status` that tells how it ended, in upstream's words.
    fn result(&self, exit: Option<CriResult<i32>>) -> Value {
        match (self, exit) {
            (Work::Exec(_), Some(Ok(0))) | (Work::Attach(_), Some(Ok(_))) => {
                json!({"metadata": {}, "status": "Success"})
            }
            (Work::Exec(request), Some(Ok(code))) => {
                let command = request.command.join(" ");
                json!({
                    "metadata": {},
                    "status": "Failure",
                    "message": format!(
                        "command terminated with non-zero exit code: error executing command [{command}], exit code \
                         {code}"
                    ),
                    "reason": "NonZeroExitCode",
                    "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
                })
            }
            (_, Some(Err(error))) => self.failure(&error.to_string()),
            (Work::Exec(_), None) => self.failure("the runtime lost the command"),
            (Work::Attach(_), None) => self.failure("the runtime lost the container"),
        }
    }

    fn failure(&self, error: &str) -> Value {
        let error = match self {
            Work::Exec(_) => format!("error executing command in container: {error}"),
            Work::Attach(_) => format!("error attaching to container: {error}"),
        };
        json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("Internal error occurred: {error}"),
            "reason": "InternalError",
            "details": {"causes": [{"message": error}]},
            "code": 500,
        })
    }
}

/// How a session came to its end.
enum End {
    /// The command ended, or could not be started.
    Result(Value),
    /// The client closed the connection, or it broke; the code is our answer if there can be one.
    ClientGone(Option<CloseCode>),
    /// The server is going away.
    Shutdown,
}

/// Runs the command, or attaches, and serves its streams until one of the two ends.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    shared: &Shared,
    socket: WebSocketStream<S>,
    closable: bool,
    streams: Streams,
    work: &Work,
) {
    let (mut sink, mut source) = socket.split();
    if sink.send(message(streams.lowest_output(), &[])).await.is_err() {
        return;
    }
    // The session lives in this block only: when it is left, the command ends.
    let end = match work.begin(shared.runtime.as_ref()).await {
        Err(error) => End::Result(work.failure(&error.to_string())),
        Ok(StreamSession { stdin, stdout, stderr, resize, exit }) => {
            let input = Input { stdin: stdin.filter(|_| streams.stdin), resize, closable };
            let mut output = Output { sink: &mut sink, stdout, stderr, exit, streams };
            coracle_clock::select! {
                () = shared.shutdown.cancelled() => End::Shutdown,
                end = output.pump(&shared.clock) => match end {
                    Ok(exit) => End::Result(work.result(exit)),
                    Err(_) => End::ClientGone(None),
                },
                code = input.pump(&mut source) => End::ClientGone(code),
            }
        }
    };
    let (code, reason) = match end {
        End::Result(result) => {
            if sink.send(message(RESULT, result.to_string().as_bytes())).await.is_err() {
                return;
            }
            (CloseCode::Normal, "")
        }
        End::ClientGone(Some(code)) => (code, ""),
        End::ClientGone(None) => return,
        End::Shutdown => (CloseCode::Away, "the node agent is shutting down"),
    };
    let close = async {
        let frame = CloseFrame { code, reason: reason.into() };
        if sink.send(Message::Close(Some(frame))).await.is_ok() {
            while let Some(Ok(_)) = source.next().await {}
        }
    };
    shared.clock.timeout(CLOSE_TIMEOUT, close).await;
}

/// From the client to the command.
struct Input {
    stdin: Option<mpsc::Sender<Bytes>>,
    resize: Option<mpsc::Sender<TerminalSize>>,
    closable: bool,
}

impl Input {
    /// Passes messages on until the client is gone; the close code to answer with, if any.
    async fn pump<S: AsyncRead + AsyncWrite + Unpin>(
        mut self,
        source: &mut SplitStream<WebSocketStream<S>>,
    ) -> Option<CloseCode> {
        loop {
            let data: Bytes = match source.next().await {
                Some(Ok(Message::Binary(data))) => data,
                Some(Ok(Message::Text(text))) => text.into(),
                // Pings are answered underneath, closes too.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Ok(Message::Close(_))) | None => return None,
                Some(Err(Error::Capacity(_))) => return Some(CloseCode::Size),
                Some(Err(Error::Protocol(_))) => return Some(CloseCode::Protocol),
                Some(Err(Error::Utf8(_))) => return Some(CloseCode::Invalid),
                Some(Err(_)) => return None,
            };
            let Some((channel, data)) = data.split_first().map(|(channel, _)| (*channel, data.slice(1..)))
            else {
                continue;
            };
            match channel {
                STDIN => {
                    if let Some(stdin) = &self.stdin
                        && !data.is_empty()
                        && stdin.send(data).await.is_err()
                    {
                        // The program has closed its end.
                        self.stdin = None;
                    }
                }
                RESIZE => {
                    let sizes = serde_json::Deserializer::from_slice(&data).into_iter::<TerminalSize>();
                    for size in sizes.map_while(Result::ok) {
                        if let Some(resize) = &self.resize
                            && resize.send(size).await.is_err()
                        {
                            self.resize = None;
                        }
                    }
                }
                CLOSE if self.closable => match data.as_ref() {
                    [STDIN] => self.stdin = None,
                    [RESIZE] => self.resize = None,
                    _ => {}
                },
                _ => {}
            }
        }
    }
}

/// From the command to the client.
struct Output<'a, S> {
    sink: &'a mut SplitSink<WebSocketStream<S>, Message>,
    stdout: mpsc::Receiver<Bytes>,
    stderr: mpsc::Receiver<Bytes>,
    exit: tokio::sync::oneshot::Receiver<CriResult<i32>>,
    streams: Streams,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Output<'_, S> {
    /// Passes output on until the command has ended and all of it is sent.
    async fn pump(&mut self, clock: &coracle_clock::Clock) -> Result<Option<CriResult<i32>>, Error> {
        let (mut stdout_open, mut stderr_open) = (true, true);
        loop {
            coracle_clock::select! {
                exit = &mut self.exit => {
                    // What was written before the exit is in the channels now; what a process left behind
                    // writes later is not waited for.
                    for _ in 0..self.stdout.len() {
                        if let Ok(data) = self.stdout.try_recv() {
                            self.send(STDOUT, &data).await?;
                        }
                    }
                    for _ in 0..self.stderr.len() {
                        if let Ok(data) = self.stderr.try_recv() {
                            self.send(STDERR, &data).await?;
                        }
                    }
                    return Ok(exit.ok());
                }
                data = self.stdout.recv(), if stdout_open => match data {
                    Some(data) => {
                        self.send(STDOUT, &data).await?;
                        // A flood on one stream does not hold up the other.
                        if let Ok(data) = self.stderr.try_recv() {
                            self.send(STDERR, &data).await?;
                        }
                    }
                    None => stdout_open = false,
                },
                data = self.stderr.recv(), if stderr_open => match data {
                    Some(data) => self.send(STDERR, &data).await?,
                    None => stderr_open = false,
                },
                () = clock.sleep(PING_INTERVAL) => self.sink.send(Message::Ping(Bytes::new())).await?,
            }
        }
    }

    async fn send(&mut self, channel: u8, data: &[u8]) -> Result<(), Error> {
        let wanted = match channel {
            STDOUT => self.streams.stdout,
            _ => self.streams.stderr,
        };
        // Taken from the program all the same, which would stall otherwise.
        if wanted && !data.is_empty() { self.sink.send(message(channel, data)).await } else { Ok(()) }
    }
}

fn message(channel: u8, data: &[u8]) -> Message {
    let mut message = Vec::with_capacity(data.len() + 1);
    message.push(channel);
    message.extend_from_slice(data);
    Message::Binary(message.into())
}
