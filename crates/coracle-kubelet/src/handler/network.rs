//! Handlers that go over the network, from the node.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use coracle_clock::Clock;
use coracle_cri::probe::{
    GrpcHealth, HttpAnswer, HttpError, HttpGet, ProbeNetwork, TcpConnect, join_host_port,
};
use jiff::SignedDuration;
use rustls::ClientConfig;

use super::grpc;
use super::http::{self, Progress};
use super::socket::{First, Socket};
use super::tls::client_config;
use crate::pod::reasons::go_duration;

/// Pause before somebody who does not speak gRPC is tried again.
const GRPC_RETRY: Duration = Duration::from_secs(1);

/// Asks from the network of the node. Proxies that the node is set up with are not used.
pub struct HostNetwork {
    clock: Clock,
    tls: OnceLock<Arc<ClientConfig>>,
}

impl HostNetwork {
    /// Nothing is opened before somebody is asked.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        HostNetwork { clock, tls: OnceLock::new() }
    }
}

#[async_trait]
impl ProbeNetwork for HostNetwork {
    async fn http_get(&self, request: &HttpGet) -> Result<HttpAnswer, HttpError> {
        let progress = Progress::default();
        let exchange = Box::pin(http::get(self.tls.get_or_init(client_config), request, &progress));
        match request.timeout {
            None => exchange.await,
            Some(limit) => {
                let done = self.clock.timeout(limit, exchange).await;
                done.unwrap_or_else(|| Err(progress.timed_out(request)))
            }
        }
    }

    async fn tcp_connect(&self, request: &TcpConnect) -> Result<(), String> {
        let address = join_host_port(&request.host, request.port);
        let connect = Socket::connect(&request.host, request.port, First::default());
        match self.clock.timeout(request.timeout, connect).await {
            Some(connected) => connected.map(drop),
            None => Err(format!("dial tcp {address}: i/o timeout")),
        }
    }

    async fn grpc_health(&self, request: &GrpcHealth) -> Result<(), String> {
        let within = go_duration(SignedDuration::try_from(request.timeout).unwrap_or(SignedDuration::MAX));
        let first = First::default();
        let call = async {
            loop {
                match grpc::check(request, &first).await {
                    Ok(()) => return Ok(()),
                    Err(grpc::Trouble::Answered(text)) => return Err(text),
                    Err(grpc::Trouble::NotConnected) => self.clock.sleep(GRPC_RETRY).await,
                }
            }
        };
        if let Some(done) = self.clock.timeout(request.timeout, call).await {
            return done;
        }
        if grpc::is_connected(&first) {
            return Err(format!("timeout: health rpc did not complete within {within}"));
        }
        let address = join_host_port(&request.host, request.port);
        Err(format!(
            "timeout: failed to connect service {address:?} within {within}: context deadline exceeded"
        ))
    }
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
