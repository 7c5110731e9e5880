//! Where this machine is.

use std::net::{IpAddr, Ipv4Addr};

use crate::settings::Settings;

/// The name and the address under which this machine is a node.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
}

impl Host {
    /// This machine: the name that it got at the first start, and the address that somebody said, or the one that
    /// its default route leaves from now. An address that this machine has not is told: it may be one that leads here
    /// from elsewhere, or one that it had once.
    pub(crate) fn this(settings: &Settings) -> Self {
        let address = settings.address.map_or_else(outward_address, IpAddr::V4);
        if std::net::UdpSocket::bind((address, 0)).is_err() {
            let problem = format!(
                "{address} (--address) is no address of this machine: if that has changed, give the new one, or \
                 --address 0.0.0.0 for that of the default route"
            );
            super::progress(&format!("warning: {problem}"));
            tracing::warn!(problem, "address");
        }
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
