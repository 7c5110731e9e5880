//! The built-in Pod network: a bridge on the host, a veth pair for each Pod, addresses from the node's range.

mod config;

pub use config::BridgeConfig;
