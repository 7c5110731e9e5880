//! Pod network: bridge, veth, IPAM.
