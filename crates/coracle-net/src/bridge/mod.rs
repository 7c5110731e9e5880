//! The built-in Pod network: a bridge on the host, a veth pair for each Pod, addresses from the node's range.
//!
//! [`BridgeNetwork`] is the shell; the arithmetic of ranges and the packet rules are functions of what is
//! desired. The network decides no policy and knows no API objects.

mod allocations;
mod config;
mod error;
pub(crate) mod links;
pub(crate) mod netlink;
mod network;
pub(crate) mod range;
pub(crate) mod rules;
#[cfg(test)]
mod tests;

pub use config::BridgeConfig;
pub use error::NetError;
pub use network::BridgeNetwork;
