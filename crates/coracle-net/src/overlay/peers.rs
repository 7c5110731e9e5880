//! Who the other nodes are, from their Node objects alone.

use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

/// Another node: where it is, and whose Pods it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its address on the network between the nodes.
    pub address: Ipv4Addr,
    /// Its Pods' addresses, in CIDR form.
    pub range: String,
}

/// This node's Pod range, and the other nodes that have one and an address. `None` while this node has no range.
#[must_use]
pub fn peers(nodes: &[Arc<Node>], own: &str) -> Option<(String, Vec<Peer>)> {
    let mut range = None;
    let mut peers = Vec::new();
    for node in nodes {
        let Some(cidr) = node.spec.as_ref().and_then(|spec| spec.pod_cidr.as_deref()) else { continue };
        if node.metadata.name.as_deref() == Some(own) {
            range = Some(cidr.to_owned());
        } else if let Some(address) = internal_address(node) {
            peers.push(Peer { address, range: cidr.to_owned() });
        }
    }
    range.map(|range| (range, peers))
}

fn internal_address(node: &Node) -> Option<Ipv4Addr> {
    let addresses = node.status.as_ref()?.addresses.as_deref()?;
    let internal = addresses.iter().filter(|address| address.type_ == "InternalIP");
    internal.filter_map(|address| address.address.parse::<Ipv4Addr>().ok()).find(|ip| !ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, range: Option<&str>, addresses: &[(&str, &str)]) -> Arc<Node> {
        let addresses: Vec<_> =
            addresses.iter().map(|(kind, address)| json!({ "type": kind, "address": address })).collect();
        Arc::new(
            serde_json::from_value(json!({
                "metadata": { "name": name },
                "spec": { "podCIDR": range },
                "status": { "addresses": addresses },
            }))
            .unwrap(),
        )
    }

    #[test]
    fn a_peer_has_a_range_and_an_address_that_others_can_reach() {
        let nodes = [
            node("a", Some("10.42.0.0/24"), &[("InternalIP", "192.0.2.1")]),
            node("b", Some("10.42.1.0/24"), &[("Hostname", "b"), ("InternalIP", "192.0.2.2")]),
            node("six", Some("10.42.2.0/24"), &[("InternalIP", "fd00::1"), ("InternalIP", "192.0.2.3")]),
            node("new", None, &[("InternalIP", "192.0.2.4")]),
            node("lost", Some("10.42.3.0/24"), &[]),
            node("alone", Some("10.42.4.0/24"), &[("InternalIP", "127.0.0.1")]),
        ];
        let (range, others) = peers(&nodes, "a").unwrap();
        assert_eq!(range, "10.42.0.0/24");
        let found: Vec<_> =
            others.iter().map(|peer| (peer.address.to_string(), peer.range.as_str())).collect();
        assert_eq!(
            found,
            [("192.0.2.2".to_owned(), "10.42.1.0/24"), ("192.0.2.3".to_owned(), "10.42.2.0/24")]
        );
        assert_eq!(peers(&nodes, "new"), None, "a node without a range has no Pods to connect");
    }
}
