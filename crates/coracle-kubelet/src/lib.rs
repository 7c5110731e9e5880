//! The node agent: Pod workers, status, node status, the kubelet's HTTPS API.
//!
//! The decisions are in [`pod`] (one Pod), [`admission`] and [`preemption`] (the node) and [`spec`] (what the runtime is asked for): pure
//! functions over plain data. Around them, `kubelet` is the node core, `worker` the loop of one Pod, `execute` the
//! operations it starts, `disk` what it keeps on disk, `node` the Node object and its Lease (`node_events` tells of it), [`server`] the HTTPS API, [`logs`] what it reads.
//! The runtime is whatever implements the traits of `coracle-cri`.

pub mod admission;
mod config;
mod context;
mod credentials;
mod disk;
mod execute;
mod handler;
mod hooks;
mod kubelet;
pub mod logs;
mod machine;
mod node;
mod node_events;
mod objects;
pub mod pod;
pub mod preemption;
mod prepare;
pub mod probe;
pub mod server;
pub mod spec;
mod supervised;
mod sysctl;
mod termination;
mod volume;
mod worker;

pub use config::{KubeletApi, KubeletConfig};
pub use disk::remove_pod_directories;
pub use handler::HostNetwork;
pub use kubelet::{Kubelet, KubeletError};
pub use machine::Machine;
pub use node::{KUBELET_VERSION, NodeInputs, node_status};
pub use volume::VolumeHost;
