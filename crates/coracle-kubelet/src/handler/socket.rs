//! Connections that handlers make from the node, and what users are told when they cannot be made.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// As much of what was received first is kept: enough to tell protocols apart and to quote a line.
const KEPT_BYTES: usize = 64;

/// A connection that leaves nothing behind when it is dropped.
///
/// The other side is told of the end and the socket is gone at once, so that no number of probes leaves sockets behind
/// that wait for two minutes. Who still writes is told that nobody reads any more.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    first: First,
}

/// The first bytes that a connection has received, shared with whoever has to explain why nothing came of it.
#[derive(Debug, Clone, Default)]
pub(super) struct First(Arc<Mutex<Vec<u8>>>);

impl First {
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, received: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = KEPT_BYTES.saturating_sub(kept.len());
        kept.extend_from_slice(&received[..received.len().min(room)]);
    }
}

impl Socket {
    /// Connects; what is received first is kept in `first`. The error is in the words that users know.
    pub(super) async fn connect(host: &str, port: u16, first: First) -> Result<Socket, String> {
        let addresses: Vec<SocketAddr> = match host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, port)],
            Err(_) => match tokio::net::lookup_host((host, port)).await {
                Ok(found) => found.collect(),
                Err(_) => Vec::new(),
            },
        };
        let mut failure = format!("dial tcp: lookup {host}: no such host");
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    // Small requests do not wait for more to come.
                    let _ = stream.set_nodelay(true);
                    return Ok(Socket { stream, first });
                }
                Err(why) => failure = format!("dial tcp {address}: {}: {}", step(&why), words(&why)),
            }
        }
        Err(failure)
    }

    /// Both ends, as errors of an open connection name them.
    pub(super) fn ends(&self) -> String {
        let text = |address: io::Result<SocketAddr>| address.map(|a| a.to_string()).unwrap_or_default();
        format!("{}->{}", text(self.stream.local_addr()), text(self.stream.peer_addr()))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // In this order the other side reads an end, not an error. One that is gone already needs neither.
        let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Write);
        let _ = rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
    }
}

/// The call that failed.
fn step(why: &io::Error) -> &'static str {
    match why.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => "socket",
        _ => "connect",
    }
}

/// An error of the system as upstream prints it: `connection refused`.
pub(super) fn words(why: &io::Error) -> String {
    let text = why.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let done = Pin::new(&mut self.stream).poll_read(cx, buf);
        if matches!(done, Poll::Ready(Ok(()))) {
            self.first.keep(&buf.filled()[before..]);
        }
        done
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
