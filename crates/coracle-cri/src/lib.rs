//! The runtime contract, in the words of the Kubernetes Container Runtime Interface (`runtime.v1`).
//!
//! The node agent drives whatever implements [`RuntimeService`] and [`ImageService`]: the embedded engine, a
//! scripted one, or a foreign runtime. This crate knows neither Pods' API objects nor any implementation.
//!
//! Differences from the gRPC form are few and deliberate: streams (exec, attach, port-forward) are handed over
//! as byte channels instead of URLs, timestamps are [`jiff::Timestamp`], and identities are the ids that the
//! runtime gave out.

mod error;
mod image;
mod network;
pub mod probe;
mod runtime;
pub mod scripted;
mod stream;
pub mod suite;

pub use error::{CriError, CriResult};
pub use image::{AuthConfig, FilesystemUsage, Image, ImageRunConfig, ImageService, ImageSpec, PullProgress};
pub use network::{PodNetwork, PodNetworkRequest, PodNetworkStatus};
pub use runtime::{
    Container, ContainerConfig, ContainerEvent, ContainerEventKind, ContainerFilter, ContainerId,
    ContainerState, ContainerStatus, ContainerUser, DnsConfig, EnvVar, ExecSyncResult, ImageContent,
    LinuxContainerResources, Mount, MountPropagation, NamespaceMode, NamespaceOptions, PodSandbox,
    PodSandboxConfig, PodSandboxFilter, PodSandboxId, PodSandboxMetadata, PodSandboxState, PodSandboxStatus,
    PortMapping, Protocol, RuntimeCondition, RuntimeService, RuntimeStatus, SandboxResources,
    SecurityContext, Version,
};
pub use stream::{AttachRequest, Duplex, ExecRequest, PortStream, StreamSession, TerminalSize};
