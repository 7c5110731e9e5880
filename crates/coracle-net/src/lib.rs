//! Pod network: bridge, veth, IPAM.

pub mod bridge;
