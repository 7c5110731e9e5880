//! The node agent: Pod workers, status, node status, the kubelet's HTTPS API.

pub mod logs;
pub mod server;
