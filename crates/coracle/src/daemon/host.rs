//! Where this machine is.

use std::net::{IpAddr, Ipv4Addr};

use crate::cluster::Settings;

/// The name and the address under which this machine is a node.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
}

impl Host {
    /// This machine: the name that it got at the first start, and the address that was asked for, or the one that
    /// its default route leaves from now.
    pub(crate) fn this(settings: &Settings, address: Option<Ipv4Addr>) -> Self {
        let address = address.map_or_else(outward_address, IpAddr::V4);
        Host { name: settings.node_name.clone(), address }
    }
}

/// The source address of packets to the outside: nothing is sent. Loopback on a machine without a route.
fn outward_address() -> IpAddr {
    let route = || -> std::io::Result<IpAddr> {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // An address of the documentation range: only the routing table is asked.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    route().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}
