//! Whether this machine can have a Pod network at all: everything that one needs is made once, in a network
//! namespace of its own, which takes all of it along when it goes.

use std::net::{IpAddr, Ipv4Addr};

use coracle_cri::{PortMapping, Protocol};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};

use crate::bridge::netlink::{Netlink, Request};
use crate::bridge::range::PodRange;
use crate::bridge::rules::{Desired, apply, script};
use crate::overlay::PORT;

/// What works, and why the rest does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Bridges.
    pub bridge: Result<(), String>,
    /// Pairs of virtual links.
    pub veth: Result<(), String>,
    /// Devices of the overlay between nodes.
    pub vxlan: Result<(), String>,
    /// The packet rules of a Pod network, host ports and masquerading included, set by `nft`.
    pub rules: Result<(), String>,
}

/// Tries it. Costs some milliseconds, most of them `nft`'s.
///
/// # Errors
/// If there can be no network namespace, for want of rights or of the kernel's support.
pub fn probe() -> Result<Probe, String> {
    std::thread::Builder::new()
        .name("probe".to_owned())
        .spawn(probe_here)
        .map_err(|error| error.to_string())?
        .join()
        .unwrap_or_else(|_| Err("panic in a network namespace".to_owned()))
}

/// Moves the calling thread, which ends after this, to a network namespace of its own.
fn probe_here() -> Result<Probe, String> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).map_err(|error| error.to_string())?;
    let mut netlink = Netlink::open().map_err(|error| error.to_string())?;
    let links = vec![
        link("probe-bridge", vec![LinkInfo::Kind(InfoKind::Bridge)]),
        link("probe-veth", vec![LinkInfo::Kind(InfoKind::Veth)]),
        link(
            "probe-vxlan",
            vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(vec![InfoVxlan::Id(1), InfoVxlan::Port(PORT)])),
            ],
        ),
    ];
    let outcomes = netlink.batch(links).map_err(|error| error.to_string())?;
    let mut outcomes = outcomes.into_iter().map(|outcome| outcome.map_err(|error| error.to_string()));
    let mut next = || outcomes.next().unwrap_or_else(|| Err("the kernel did not answer".to_owned()));
    Ok(Probe { bridge: next(), veth: next(), vxlan: next(), rules: probe_rules() })
}

fn link(name: &str, info: Vec<LinkInfo>) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::LinkInfo(info));
    Request {
        what: format!("add interface {name}"),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        message: RouteNetlinkMessage::NewLink(message),
    }
}

fn probe_rules() -> Result<(), String> {
    let range = PodRange::parse("10.42.0.0/24").map_err(|error| error.to_string())?;
    let port = PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port: 80, host_ip: None };
    let rules = script(&Desired {
        table: "probe",
        bridge: "probe-bridge",
        range: &range,
        masquerade: true,
        cluster: &range,
        ports: vec![(IpAddr::V4(Ipv4Addr::new(10, 42, 0, 2)), port)],
    });
    apply(&rules).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_runs_these_tests_has_everything() {
        let all = Probe { bridge: Ok(()), veth: Ok(()), vxlan: Ok(()), rules: Ok(()) };
        assert_eq!(probe(), Ok(all));
        assert!(
            !std::path::Path::new("/sys/class/net/probe-bridge").exists(),
            "nothing of it is seen outside"
        );
    }
}
