//! The Pod network, as the runtime sees it.

use std::net::IpAddr;
use std::path::PathBuf;

use async_trait::async_trait;

use crate::{CriResult, PodSandboxId, PortMapping};

/// What is needed to connect one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNetworkRequest {
    /// The sandbox; the network keys what it allocates by this.
    pub sandbox: PodSandboxId,
    /// The pinned network namespace to connect.
    pub netns: PathBuf,
    /// Namespace of the Pod, for logs and for a CNI plugin.
    pub pod_namespace: String,
    /// Name of the Pod, likewise.
    pub pod_name: String,
    /// Ports of the host that lead into the Pod.
    pub port_mappings: Vec<PortMapping>,
}

/// How a sandbox is connected. The first address is the Pod's primary one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodNetworkStatus {
    /// Addresses of the Pod, at most one for each family.
    pub ips: Vec<IpAddr>,
}

/// Connects sandboxes to the Pod network. Every method is idempotent: repeating a call after a crash between
/// doing and knowing gives the same result.
#[async_trait]
pub trait PodNetwork: Send + Sync {
    /// Whether sandboxes can be connected, and if not, why: the message of the `NetworkReady` condition.
    async fn ready(&self) -> Result<(), String>;
    /// Sets the range that Pods of this node get addresses from; addresses already given out stay.
    async fn set_pod_cidr(&self, pod_cidr: &str) -> CriResult<()>;
    /// Connects a sandbox, allocating its addresses; the same addresses again if it is already connected.
    async fn setup(&self, request: &PodNetworkRequest) -> CriResult<PodNetworkStatus>;
    /// Disconnects a sandbox and gives its addresses back; succeeds if there is nothing to do.
    async fn teardown(&self, sandbox: &PodSandboxId) -> CriResult<()>;
    /// Removes what belongs to sandboxes that are not in `live`: leftovers of a crash.
    async fn reconcile(&self, live: &[PodSandboxId]) -> CriResult<()>;
}
