//! The messages: bridge, veth pair, addresses, routes.

use std::net::IpAddr;
use std::os::fd::RawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::NetError;
use super::netlink::{Netlink, Request};
use super::range::{PodRange, link_address};

/// Name of the interface inside a Pod.
pub(crate) const POD_INTERFACE: &str = "eth0";

/// An interface, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
    pub(crate) mtu: u32,
    pub(crate) controller: Option<u32>,
}

impl Link {
    fn from_message(message: &LinkMessage) -> Link {
        let mut link = Link {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            ..Link::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                _ => {}
            }
        }
        link
    }
}

pub(crate) fn find_link(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, NetError> {
    let found = netlink.get(RouteNetlinkMessage::GetLink(named(name)))?;
    Ok(found.as_ref().and_then(as_link))
}

pub(crate) fn all_links(netlink: &mut Netlink) -> Result<Vec<Link>, NetError> {
    let found = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(found.iter().filter_map(as_link).collect())
}

fn as_link(message: &RouteNetlinkMessage) -> Option<Link> {
    match message {
        RouteNetlinkMessage::NewLink(link) => Some(Link::from_message(link)),
        _ => None,
    }
}

/// MTU of the interface that the default route leaves by.
pub(crate) fn default_mtu(netlink: &mut Netlink) -> Result<Option<u32>, NetError> {
    let mut wanted = RouteMessage::default();
    wanted.header.address_family = AddressFamily::Inet;
    let routes = netlink.dump(RouteNetlinkMessage::GetRoute(wanted))?;
    let interface = routes.iter().find_map(|message| match message {
        RouteNetlinkMessage::NewRoute(route)
            if route.header.destination_prefix_length == 0
                && route.header.table == RouteHeader::RT_TABLE_MAIN =>
        {
            route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            })
        }
        _ => None,
    });
    let Some(index) = interface else { return Ok(None) };
    Ok(all_links(netlink)?.into_iter().find(|link| link.index == index).map(|link| link.mtu))
}

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn up(mut message: LinkMessage) -> LinkMessage {
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
    message
}

/// Makes the bridge. Its address is fixed: the kernel's choice would change with every port.
pub(crate) fn add_bridge(name: &str, range: &PodRange, mtu: u32) -> Request {
    let mut message = up(named(name));
    message.attributes.push(LinkAttribute::Mtu(mtu));
    message.attributes.push(LinkAttribute::Address(link_address(range.gateway()).to_vec()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
    Request {
        what: format!("add bridge {name}"),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        message: RouteNetlinkMessage::NewLink(message),
    }
}

pub(crate) fn set_up(name: &str) -> Request {
    Request {
        what: format!("bring up {name}"),
        flags: 0,
        message: RouteNetlinkMessage::NewLink(up(named(name))),
    }
}

pub(crate) fn delete(name: &str) -> Request {
    Request {
        what: format!("delete interface {name}"),
        flags: 0,
        message: RouteNetlinkMessage::DelLink(named(name)),
    }
}

/// A veth pair: one end `name` on the host, up, at the bridge; the other one in the Pod's namespace.
pub(crate) fn add_veth(name: &str, bridge: u32, pod_namespace: RawFd, ip: IpAddr, mtu: u32) -> Request {
    let mut peer = named(POD_INTERFACE);
    peer.attributes.push(LinkAttribute::Mtu(mtu));
    peer.attributes.push(LinkAttribute::Address(link_address(ip).to_vec()));
    peer.attributes.push(LinkAttribute::NetNsFd(pod_namespace));
    let mut message = up(named(name));
    message.attributes.push(LinkAttribute::Mtu(mtu));
    message.attributes.push(LinkAttribute::Controller(bridge));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    Request {
        what: format!("add interface {name}"),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        message: RouteNetlinkMessage::NewLink(message),
    }
}

/// Lets the bridge send a packet back to where it came from: a Pod may reach itself by way of a host port, and
/// where `br_netfilter` is loaded the translation happens in the bridge.
pub(crate) fn set_hairpin(name: &str) -> Request {
    let mut message = named(name);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
    ]));
    Request {
        what: format!("set hairpin mode of {name}"),
        flags: 0,
        message: RouteNetlinkMessage::NewLink(message),
    }
}

/// Gives an interface an address; no error if it has it.
pub(crate) fn add_address(interface: u32, ip: IpAddr, prefix: u8) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = family(ip);
    message.header.prefix_len = prefix;
    message.header.index = interface;
    message.attributes.push(AddressAttribute::Local(ip));
    message.attributes.push(AddressAttribute::Address(ip));
    Request {
        what: format!("add address {ip}/{prefix}"),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
        message: RouteNetlinkMessage::NewAddress(message),
    }
}

/// Everything goes by way of `gateway`; no error if it does already.
pub(crate) fn add_default_route(interface: u32, gateway: IpAddr) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Gateway(match gateway {
        IpAddr::V4(gateway) => RouteAddress::Inet(gateway),
        IpAddr::V6(gateway) => RouteAddress::Inet6(gateway),
    }));
    message.attributes.push(RouteAttribute::Oif(interface));
    Request {
        what: format!("add the default route via {gateway}"),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
        message: RouteNetlinkMessage::NewRoute(message),
    }
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
