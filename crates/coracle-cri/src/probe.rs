//! What the node agent asks containers over the network: probes and hooks that are no commands.
//!
//! The real implementation connects from the node; the scripted one answers from the script of the container, so that
//! nothing of a virtual cluster reaches a socket. Failures are texts: they are shown to users as they are, in the words
//! of the HTTP client that upstream uses.

use std::fmt::Write as _;
use std::time::Duration;

use async_trait::async_trait;

use crate::ContainerId;

/// The most of an answer's body that anybody reads.
pub const BODY_BYTES_MAX: usize = 10 * 1024;

/// An HTTP GET.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpGet {
    /// On whose behalf; what is reached is said by `host` and `port` alone.
    pub container: ContainerId,
    /// Over TLS, with whatever certificate the other side shows.
    pub https: bool,
    /// Address or name.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path with its query, as it goes over the wire.
    pub path: String,
    /// Header lines; one named `Host` replaces the host that is asked for.
    pub headers: Vec<(String, String)>,
    /// How long it may take; without it, as long as the other side likes.
    pub timeout: Option<Duration>,
}

impl HttpGet {
    /// The URL.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}{}", join_host_port(&self.host, self.port), self.path)
    }

    /// A failure in the words that users know: `Get "URL": what`.
    #[must_use]
    pub fn failed(&self, what: &str) -> String {
        let mut text = format!("Get {:?}: ", self.url());
        // Writing to a string does not fail.
        let _ = text.write_str(what);
        text
    }
}

/// The answer to an HTTP GET, redirects on the same host followed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HttpAnswer {
    /// Status code.
    pub status: u16,
    /// At most [`BODY_BYTES_MAX`] of the body.
    pub body: Vec<u8>,
}

/// Why there is no answer to an HTTP GET.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Nobody answered.
    #[error("{0}")]
    NoAnswer(String),
    /// Somebody answered without TLS, who was asked with it.
    #[error("{0}")]
    PlainHttp(String),
    /// An answer began and did not come to its end.
    #[error("{0}")]
    Unreadable(String),
}

/// A connection that is opened and closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpConnect {
    /// On whose behalf.
    pub container: ContainerId,
    /// Address or name.
    pub host: String,
    /// Port.
    pub port: u16,
    /// How long it may take.
    pub timeout: Duration,
}

/// A call of the gRPC health service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcHealth {
    /// On whose behalf.
    pub container: ContainerId,
    /// Address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The service that is asked about; empty for the server as a whole.
    pub service: String,
    /// How long it may take.
    pub timeout: Duration,
}

/// Asks over the network.
///
/// Dropping a call ends it: nothing is left open.
#[async_trait]
pub trait ProbeNetwork: Send + Sync {
    /// Gets a page. Follows up to ten redirects that stay on the host.
    async fn http_get(&self, request: &HttpGet) -> Result<HttpAnswer, HttpError>;

    /// Opens a connection and closes it. The error is the text that users see.
    async fn tcp_connect(&self, request: &TcpConnect) -> Result<(), String>;

    /// Asks whether a service is serving. The error is the text that users see.
    async fn grpc_health(&self, request: &GrpcHealth) -> Result<(), String>;
}

/// Host and port as they are written together: IPv6 addresses in brackets.
#[must_use]
pub fn join_host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_addresses_of_both_kinds() {
        let mut get = HttpGet {
            container: ContainerId("c".to_owned()),
            https: false,
            host: "10.0.0.1".to_owned(),
            port: 80,
            path: "/x?y".to_owned(),
            headers: Vec::new(),
            timeout: None,
        };
        assert_eq!(get.failed("EOF"), "Get \"http://10.0.0.1:80/x?y\": EOF");
        (get.https, get.host) = (true, "fd00::1".to_owned());
        assert_eq!(get.url(), "https://[fd00::1]:80/x?y");
    }
}
