//! What carries the bytes of SPDY: binary messages of a WebSocket, or a connection as it is.

use std::io;

use bytes::{Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};

use crate::server::upgrade::Socket;

/// What is read at a time.
const READ_BYTES: usize = 32 * 1024;

/// Where bytes come from.
pub(super) trait Source: Send {
    /// The next bytes; `None` at the end of the connection.
    fn next(&mut self) -> impl Future<Output = io::Result<Option<Bytes>>> + Send;
}

/// Where bytes go.
pub(super) trait Sink: Send + 'static {
    /// Returns when they are on their way, which is when the client has room for them.
    fn send(&mut self, bytes: Bytes) -> impl Future<Output = io::Result<()>> + Send;
    /// Says goodbye.
    fn close(&mut self) -> impl Future<Output = ()> + Send;
}

pub(super) fn tunnelled(socket: Socket) -> (FromSocket, ToSocket) {
    let (sink, source) = socket.split();
    (FromSocket(source), ToSocket(sink))
}

pub(super) struct FromSocket(SplitStream<Socket>);
pub(super) struct ToSocket(SplitSink<Socket, Message>);

impl Source for FromSocket {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Binary(data))) => return Ok(Some(data)),
                Some(Ok(Message::Text(text))) => return Ok(Some(text.into())),
                // Pings are answered underneath, closes too.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Ok(None),
                Some(Err(error)) => return Err(io::Error::other(error)),
            }
        }
    }
}

impl Sink for ToSocket {
    async fn send(&mut self, bytes: Bytes) -> io::Result<()> {
        self.0.send(Message::Binary(bytes)).await.map_err(io::Error::other)
    }
    async fn close(&mut self) {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = self.0.send(Message::Close(Some(frame))).await;
    }
}

pub(super) fn bare(upgraded: TokioIo<Upgraded>) -> (FromConnection, ToConnection) {
    let (read, write) = tokio::io::split(upgraded);
    (FromConnection(read), ToConnection(write))
}

pub(super) struct FromConnection(ReadHalf<TokioIo<Upgraded>>);
pub(super) struct ToConnection(WriteHalf<TokioIo<Upgraded>>);

impl Source for FromConnection {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        let read = self.0.read_buf(&mut buffer).await?;
        Ok((read > 0).then(|| buffer.freeze()))
    }
}

impl Sink for ToConnection {
    async fn send(&mut self, bytes: Bytes) -> io::Result<()> {
        self.0.write_all(&bytes).await?;
        self.0.flush().await
    }
    async fn close(&mut self) {
        let _ = self.0.shutdown().await;
    }
}
