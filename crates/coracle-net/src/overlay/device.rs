//! The messages: the VXLAN device, and the three entries that lead to another node.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::PORT;
use crate::bridge::NetError;
use crate::bridge::links::{add_address, set_up};
use crate::bridge::netlink::{Netlink, Request};
use crate::bridge::range::{PodRange, link_address};

/// What makes a tunnel the one that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tunnel {
    pub(super) vni: u32,
    pub(super) local: Ipv4Addr,
}

/// The first address of a range, which no Pod and no bridge has: the one of its node in the overlay.
pub(super) fn network_address(range: &PodRange) -> Result<Ipv4Addr, NetError> {
    match range.network() {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => Err(NetError::range(&range.to_string(), "the overlay speaks IPv4")),
    }
}

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

/// Makes the device. Its link-layer address follows from the node's range.
pub(super) fn add(name: &str, tunnel: &Tunnel, own: &PodRange, mtu: u32) -> Result<Request, NetError> {
    let mut message = named(name);
    message.attributes.push(LinkAttribute::Mtu(mtu));
    let address = link_address(network_address(own)?.into());
    message.attributes.push(LinkAttribute::Address(address.to_vec()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vxlan),
        LinkInfo::Data(InfoData::Vxlan(vec![
            InfoVxlan::Id(tunnel.vni),
            InfoVxlan::Local(tunnel.local),
            InfoVxlan::Learning(false),
            InfoVxlan::Port(PORT),
        ])),
    ]));
    Ok(Request {
        what: format!("add interface {name}: is the kernel module vxlan there?"),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        message: RouteNetlinkMessage::NewLink(message),
    })
}

/// The device's address, without a range behind it, and the device up.
pub(super) fn bring_up(name: &str, device: u32, own: &PodRange) -> Result<Vec<Request>, NetError> {
    Ok(vec![add_address(device, network_address(own)?.into(), 32), set_up(name)])
}

/// The tunnel that a device of this name is; `None` if there is none of this name.
pub(super) fn tunnel(netlink: &mut Netlink, name: &str) -> Result<Option<Tunnel>, NetError> {
    let found = netlink.get(RouteNetlinkMessage::GetLink(named(name)))?;
    let Some(RouteNetlinkMessage::NewLink(link)) = found else { return Ok(None) };
    let mut tunnel = Tunnel { vni: 0, local: Ipv4Addr::UNSPECIFIED };
    let infos = link.attributes.into_iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    for info in infos.flatten() {
        if let LinkInfo::Data(InfoData::Vxlan(data)) = info {
            for entry in data {
                match entry {
                    InfoVxlan::Id(vni) => tunnel.vni = vni,
                    InfoVxlan::Local(local) => tunnel.local = local,
                    _ => {}
                }
            }
        }
    }
    Ok(Some(tunnel))
}

/// The route to a node's range, the link-layer address behind it, and the node behind that.
pub(super) fn way_to(device: u32, range: &PodRange, node: Ipv4Addr) -> Result<Vec<Request>, NetError> {
    let network = network_address(range)?;
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    Ok(vec![
        Request {
            what: format!("add the forwarding entry for {node}"),
            flags,
            message: RouteNetlinkMessage::NewNeighbour(forwarding(device, network, node)),
        },
        Request {
            what: format!("add the neighbour {network}"),
            flags,
            message: RouteNetlinkMessage::NewNeighbour(neighbour(device, network)),
        },
        Request {
            what: format!("add the route to {range}"),
            flags,
            message: RouteNetlinkMessage::NewRoute(route(device, network, range.prefix())),
        },
    ])
}

/// The opposite of [`way_to`].
pub(super) fn no_way_to(device: u32, network: Ipv4Addr, prefix: u8) -> Vec<Request> {
    let request = |message| Request { what: format!("remove the way to {network}"), flags: 0, message };
    vec![
        request(RouteNetlinkMessage::DelRoute(route(device, network, prefix))),
        request(RouteNetlinkMessage::DelNeighbour(neighbour(device, network))),
        request(RouteNetlinkMessage::DelNeighbour(forwarding(device, network, Ipv4Addr::UNSPECIFIED))),
    ]
}

fn forwarding(device: u32, network: Ipv4Addr, node: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = device;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(link_address(network.into()).to_vec()));
    if !node.is_unspecified() {
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(node)));
    }
    message
}

fn neighbour(device: u32, network: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = device;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(network)));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(link_address(network.into()).to_vec()));
    message
}

fn route(device: u32, network: Ipv4Addr, prefix: u8) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = prefix;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    // The gateway is on no network of the device: it is there all the same.
    message.header.flags = RouteFlags::Onlink;
    message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(network)));
    message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(network)));
    message.attributes.push(RouteAttribute::Oif(device));
    message
}

/// The ranges that lead into the device.
pub(super) fn routes(netlink: &mut Netlink, device: u32) -> Result<Vec<(Ipv4Addr, u8)>, NetError> {
    let mut wanted = RouteMessage::default();
    wanted.header.address_family = AddressFamily::Inet;
    let found = netlink.dump(RouteNetlinkMessage::GetRoute(wanted))?;
    let range = |message: &RouteNetlinkMessage| {
        let RouteNetlinkMessage::NewRoute(route) = message else { return None };
        let by_device = route.attributes.contains(&RouteAttribute::Oif(device));
        let in_main = route.header.table == RouteHeader::RT_TABLE_MAIN;
        let destination = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
            _ => None,
        })?;
        (by_device && in_main).then_some((destination, route.header.destination_prefix_length))
    };
    Ok(found.iter().filter_map(range).collect())
}
