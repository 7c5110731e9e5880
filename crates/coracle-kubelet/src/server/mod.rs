//! The kubelet's HTTPS API: health, the node's Pods, container logs, commands in containers, and their ports.
//!
//! Only the API server and cluster administrators may call it, known by their client certificates; health is
//! open. `serve` accepts connections, `tls` says who calls, `routes` answers. `lookup` decides which container a
//! request means, from nothing but the Pod and its status. `exec` and `forward` say what becomes a stream, `upgrade`
//! agrees on one with the client; `session` carries the streams of one command or attachment, `forward` connections
//! to ports.
//!
//! HTTP/1.1 only: the API server splices upgraded connections, which HTTP/2 has no use for.

mod exec;
mod forward;
mod lookup;
mod routes;
mod serve;
mod session;
#[cfg(test)]
mod tests;
mod tls;
mod upgrade;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_client::LiveCertificate;
use k8s_openapi::api::core::v1::Pod;

pub use lookup::{LookupError, has_container, log_container, running_container};
pub use serve::{KubeletServer, ServerError};

/// Where the server learns of the node's Pods.
pub trait PodSource: Send + Sync {
    /// The Pods of this node, each with its current status: as the node agent sees it, not as the API server was
    /// last told.
    fn pods(&self) -> Vec<Arc<Pod>>;

    /// One of them.
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods().into_iter().find(|pod| {
            pod.metadata.namespace.as_deref() == Some(namespace) && pod.metadata.name.as_deref() == Some(name)
        })
    }
}

/// How to serve.
#[derive(Clone)]
pub struct ServerConfig {
    /// The serving certificate, and what leads from it to the authority.
    pub certificate: LiveCertificate,
    /// The authority that signed the callers' certificates, PEM.
    pub client_ca_pem: String,
    /// The directory of all Pods' logs. No log outside of it is read.
    pub pods_log_dir: PathBuf,
    /// How long a caller may take for the TLS handshake, and again for the head of each request.
    pub header_timeout: Duration,
    /// How long open requests may go on after the shutdown began.
    pub shutdown_grace: Duration,
}

impl std::fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerConfig")
            .field("pods_log_dir", &self.pods_log_dir)
            .field("header_timeout", &self.header_timeout)
            .field("shutdown_grace", &self.shutdown_grace)
            .finish_non_exhaustive()
    }
}
