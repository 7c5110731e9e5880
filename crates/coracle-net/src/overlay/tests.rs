//! Two hosts, a cable, and Pods on both. They need root, `nft` and the kernel's VXLAN.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use coracle_cri::{PodNetwork, PodNetworkRequest, PodSandboxId};

use super::{Overlay, OverlayConfig, Peer};
use crate::bridge::{BridgeConfig, BridgeNetwork};
use crate::testing::Namespace;

/// A node: its host, its Pods' network, its end of the overlay.
struct Machine {
    host: Namespace,
    range: String,
    pods: BridgeNetwork,
    overlay: Overlay,
    _dir: tempfile::TempDir,
}

impl Machine {
    fn new(number: u8, address: &str) -> Self {
        let host = Namespace::new();
        host.command("ip link set lo up");
        let dir = tempfile::tempdir().unwrap();
        let mut config = BridgeConfig::new("cor-test", dir.path().join("net"));
        config.cluster_range = Some("10.77.0.0/16".to_owned());
        let pods = BridgeNetwork::open(config).unwrap();
        let range = format!("10.77.{number}.0/24");
        host.block_on(|| async { pods.set_pod_cidr(&range).await.unwrap() });
        Machine { host, range, pods, overlay: overlay(address), _dir: dir }
    }

    fn pod(&self, number: u32) -> (Namespace, IpAddr) {
        let namespace = Namespace::new();
        let request = PodNetworkRequest {
            sandbox: PodSandboxId(format!("{number:064x}")),
            netns: namespace.path(),
            pod_namespace: "default".into(),
            pod_name: format!("pod-{number}"),
            port_mappings: Vec::new(),
        };
        let status = self.host.block_on(|| async { self.pods.setup(&request).await.unwrap() });
        (namespace, status.ips[0])
    }

    fn set_peers(&self, peers: &[Peer]) {
        self.host.block_on(|| async { self.overlay.set_peers(&self.range, peers).await.unwrap() });
    }

    fn routes(&self) -> String {
        self.host.command("ip -4 route | grep cor-vx || true")
    }
}

fn overlay(address: &str) -> Overlay {
    Overlay::new(OverlayConfig { device: "cor-vx".into(), vni: 77, address: address.parse().unwrap() })
}

fn peer(address: &str, range: &str) -> Peer {
    Peer { address: address.parse().unwrap(), range: range.to_owned() }
}

#[test]
fn pods_of_two_nodes_reach_each_other_under_their_own_addresses() {
    let (a, b) = (Machine::new(1, "192.0.2.1"), Machine::new(2, "192.0.2.2"));
    a.host.connect(("up0", "192.0.2.1/24"), &b.host, ("up1", "192.0.2.2/24"));
    let ((pod_a, ip_a), (pod_b, ip_b)) = (a.pod(1), b.pod(2));
    assert!(pod_a.ask(ip_b, 80).is_err());

    for _ in 0..2 {
        a.set_peers(&[peer("192.0.2.2", &b.range)]);
        b.set_peers(&[peer("192.0.2.1", &a.range)]);
    }
    for (from, own, to, ip) in [(&pod_a, ip_a, &pod_b, ip_b), (&pod_b, ip_b, &pod_a, ip_a)] {
        let server = to.serve(80);
        assert_eq!(from.ask(ip, 80).unwrap(), own.to_string(), "no masquerade between Pods");
        server.join().unwrap();
    }
    // The host itself, under its address in the overlay.
    let server = pod_b.serve(81);
    assert_eq!(a.host.ask(ip_b, 81).unwrap(), "10.77.1.0");
    server.join().unwrap();
    // Packets as large as a Pod's interface takes: the tunnel is narrower, and they arrive all the same.
    let listener = pod_b.run(|| TcpListener::bind("0.0.0.0:90").unwrap());
    let receiver = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut bytes).unwrap();
        bytes.len()
    });
    let address = SocketAddr::new(ip_b, 90);
    pod_a.run(move || TcpStream::connect(address).unwrap().write_all(&vec![7; 1 << 20]).unwrap());
    assert_eq!(receiver.join().unwrap(), 1 << 20);

    // Somebody removes the device: it comes back with the next look.
    a.host.command("ip link del cor-vx");
    a.set_peers(&[peer("192.0.2.2", &b.range)]);
    let server = pod_b.serve(82);
    pod_a.ask(ip_b, 82).unwrap();
    server.join().unwrap();
}

#[test]
fn nodes_come_and_go_and_change_their_addresses() {
    let a = Machine::new(1, "192.0.2.1");
    a.set_peers(&[]);
    assert!(!a.host.command("ip link").contains("cor-vx"), "nobody to reach, no device");
    a.set_peers(&[peer("192.0.2.2", "10.77.2.0/24"), peer("192.0.2.3", "10.77.3.0/24")]);
    let routes = a.routes();
    assert!(routes.contains("10.77.2.0/24") && routes.contains("10.77.3.0/24"), "{routes}");
    // One is replaced by a machine with another address, one goes.
    a.set_peers(&[peer("192.0.2.9", "10.77.2.0/24")]);
    assert!(!a.routes().contains("10.77.3.0/24"));
    let forwarding = a.host.command("bridge fdb show dev cor-vx");
    assert!(forwarding.contains("dst 192.0.2.9"), "{forwarding}");
    assert!(!forwarding.contains("dst 192.0.2.2") && !forwarding.contains("dst 192.0.2.3"), "{forwarding}");
    let neighbours = a.host.command("ip neigh show dev cor-vx");
    assert!(!neighbours.contains("10.77.3.0"), "{neighbours}");

    // This node's own address changed: the device is another one.
    let moved = Machine { overlay: overlay("192.0.2.5"), ..a };
    moved.set_peers(&[peer("192.0.2.9", "10.77.2.0/24")]);
    assert!(moved.host.command("ip -d link show cor-vx").contains("local 192.0.2.5"));
    for _ in 0..2 {
        moved.host.block_on(|| async { moved.overlay.purge().await.unwrap() });
    }
    assert!(!moved.host.command("ip link").contains("cor-vx"));
}
