//! Tests against the real kernel. Each has a host of its own: a network namespace that nothing else is in, on a
//! thread that nothing else runs on. They need root and `nft`.

use std::net::{IpAddr, TcpListener};

use coracle_cri::{PodNetwork, PodNetworkRequest, PodSandboxId, PortMapping, Protocol};

use super::links::all_links;
use super::netlink::Netlink;
use super::{BridgeConfig, BridgeNetwork};
use crate::testing::{Namespace, on_a_host};

fn id(n: u32) -> PodSandboxId {
    PodSandboxId(format!("{n:064x}"))
}

fn request(n: u32, namespace: &Namespace, ports: &[PortMapping]) -> PodNetworkRequest {
    PodNetworkRequest {
        sandbox: id(n),
        netns: namespace.path(),
        pod_namespace: "default".into(),
        pod_name: format!("pod-{n}"),
        port_mappings: ports.to_vec(),
    }
}

fn tcp(host_port: u16, container_port: u16) -> PortMapping {
    PortMapping { protocol: Protocol::Tcp, container_port, host_port, host_ip: None }
}

fn config(dir: &tempfile::TempDir) -> BridgeConfig {
    BridgeConfig::new("cor-test", dir.path().join("net"))
}

async fn open(dir: &tempfile::TempDir) -> BridgeNetwork {
    let network = BridgeNetwork::open(config(dir)).unwrap();
    network.set_pod_cidr("10.77.0.0/24").await.unwrap();
    network
}

fn links() -> Vec<String> {
    let mut names: Vec<String> =
        all_links(&mut Netlink::open().unwrap()).unwrap().into_iter().map(|link| link.name).collect();
    names.sort();
    // What a kernel may bring along in every namespace.
    names.retain(|name| name.starts_with("veth") || name.starts_with("cor-"));
    names
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn pods_reach_each_other_and_the_host_reaches_them() {
    on_a_host(|| async {
        let dir = tempfile::tempdir().unwrap();
        let network = BridgeNetwork::open(config(&dir)).unwrap();
        assert_eq!(network.ready().await, Err("the node has no Pod range yet".to_owned()));
        network.set_pod_cidr("10.77.0.0/24").await.unwrap();
        assert_eq!(network.ready().await, Ok(()));

        let (host, a, b) = (Namespace::current(), Namespace::new(), Namespace::new());
        let status_a = network.setup(&request(1, &a, &[])).await.unwrap();
        let status_b = network.setup(&request(2, &b, &[])).await.unwrap();
        assert_eq!((status_a.ips[0], status_b.ips[0]), (ip("10.77.0.2"), ip("10.77.0.3")));
        let server = b.serve(80);
        assert_eq!(a.ask(status_b.ips[0], 80).unwrap(), "10.77.0.2");
        server.join().unwrap();
        let server = b.serve(81);
        assert_eq!(host.ask(status_b.ips[0], 81).unwrap(), "10.77.0.1");
        server.join().unwrap();
        // Its own loopback works, too.
        let server = a.serve(82);
        assert_eq!(a.ask(ip("127.0.0.1"), 82).unwrap(), "127.0.0.1");
        server.join().unwrap();
        assert!(a.command("ip -o link show eth0").contains("0a:58:0a:4d:00:02"));

        // Again: the same addresses, nothing new.
        assert_eq!(network.setup(&request(1, &a, &[])).await.unwrap(), status_a);
        assert_eq!(links().len(), 3);
        // The bridge is made again if someone removes it.
        host.command("ip link del cor-test");
        assert_eq!(network.ready().await, Ok(()));

        network.teardown(&id(1)).await.unwrap();
        network.teardown(&id(1)).await.unwrap();
        network.teardown(&id(2)).await.unwrap();
        assert_eq!(links(), ["cor-test"]);
        network.purge().await.unwrap();
        network.purge().await.unwrap();
        assert!(links().is_empty() && host.command("nft list tables").is_empty());
        assert!(!dir.path().join("net").exists());
    });
}

#[test]
fn pods_go_out_under_the_address_of_the_host() {
    on_a_host(|| async {
        let dir = tempfile::tempdir().unwrap();
        let network = open(&dir).await;
        let (host, outside, pod) = (Namespace::current(), Namespace::new(), Namespace::new());
        host.connect(("up0", "192.0.2.1/24"), &outside, ("down0", "192.0.2.2/24"));
        network.setup(&request(1, &pod, &[])).await.unwrap();
        let server = outside.serve(80);
        assert_eq!(pod.ask(ip("192.0.2.2"), 80).unwrap(), "192.0.2.1");
        server.join().unwrap();
    });
}

#[test]
fn rules_that_somebody_flushed_come_back() {
    on_a_host(|| async {
        let dir = tempfile::tempdir().unwrap();
        let network = open(&dir).await;
        let host = Namespace::current();
        let table = config(&dir).nft_table;
        let rules = host.command(&format!("nft list table ip {table}"));
        assert!(rules.contains("masquerade"), "{rules}");
        host.command("nft flush ruleset");
        assert_eq!(network.ready().await, Ok(()));
        assert_eq!(host.command(&format!("nft list table ip {table}")), rules);
    });
}

#[test]
fn host_ports_lead_into_pods_and_go_with_them() {
    on_a_host(|| async {
        let dir = tempfile::tempdir().unwrap();
        let network = open(&dir).await;
        let (host, a, b) = (Namespace::current(), Namespace::new(), Namespace::new());
        let on_one = PortMapping { host_ip: Some(ip("10.77.0.1")), ..tcp(8081, 80) };
        network.setup(&request(1, &a, &[tcp(8080, 80), on_one])).await.unwrap();
        network.setup(&request(2, &b, &[])).await.unwrap();
        let server = a.serve(80);
        host.ask(ip("10.77.0.1"), 8081).unwrap();
        server.join().unwrap();
        assert!(host.ask(ip("127.0.0.1"), 8081).is_err(), "it is only for the address that was asked for");
        for (who, from, to) in [
            ("the host", &host, "10.77.0.1"),
            ("the host by loopback", &host, "127.0.0.1"),
            ("another Pod", &b, "10.77.0.1"),
            ("the Pod itself", &a, "10.77.0.1"),
        ] {
            let server = a.serve(80);
            from.ask(ip(to), 8080).unwrap_or_else(|error| panic!("{who}: {error}"));
            server.join().unwrap();
        }
        // What the host has on its loopback addresses is not for Pods, although host ports need route_localnet: not
        // even for one that sends such packets out.
        let secret = TcpListener::bind("127.0.0.1:9999").unwrap();
        secret.set_nonblocking(true).unwrap();
        b.run(|| std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap());
        b.command("ip addr del 127.0.0.1/8 dev lo");
        b.command("ip route add 127.0.0.1/32 via 10.77.0.1 dev eth0 src 10.77.0.3");
        let dropped = || {
            let rules = host.command("nft list chain ip cor-test guard");
            !rules.contains("counter packets 0 ")
        };
        assert!(!dropped());
        let attack = b.run(|| {
            let socket = std::net::UdpSocket::bind("10.77.0.3:0").unwrap();
            socket.send_to(b"x", "127.0.0.1:9999")
        });
        attack.unwrap();
        assert!(dropped());
        assert!(secret.accept().is_err());
        network.teardown(&id(1)).await.unwrap();
        assert!(!host.command("nft list table ip cor-test").contains("dnat"));
        assert!(host.ask(ip("10.77.0.1"), 8080).is_err());
    });
}

#[test]
fn a_restart_keeps_what_lives_and_frees_what_does_not() {
    on_a_host(|| async {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (Namespace::new(), Namespace::new());
        {
            let network = open(&dir).await;
            network.setup(&request(1, &a, &[])).await.unwrap();
            network.setup(&request(2, &b, &[tcp(8080, 80)])).await.unwrap();
        }
        let network = open(&dir).await;
        let server = a.serve(80);
        assert_eq!(b.ask(ip("10.77.0.2"), 80).unwrap(), "10.77.0.3");
        server.join().unwrap();
        assert_eq!(links().len(), 3);
        network.reconcile(&[id(1)]).await.unwrap();
        assert_eq!(links().len(), 2);
        // The record of an interface was lost: the interface goes, the record's address can be given out.
        std::fs::remove_file(dir.path().join("net/addresses").join(id(1).0)).unwrap();
        let network = open(&dir).await;
        network.reconcile(&[id(1)]).await.unwrap();
        assert_eq!(links(), ["cor-test"]);
        let c = Namespace::new();
        assert_eq!(network.setup(&request(3, &c, &[])).await.unwrap().ips, [ip("10.77.0.2")]);
    });
}

#[test]
fn an_interface_left_in_a_dead_namespace_is_replaced() {
    on_a_host(|| async {
        let dir = tempfile::tempdir().unwrap();
        let network = open(&dir).await;
        let (old, new) = (Namespace::new(), Namespace::new());
        network.setup(&request(1, &old, &[])).await.unwrap();
        // The same sandbox, after its namespace was made anew.
        let status = network.setup(&request(1, &new, &[])).await.unwrap();
        assert_eq!(status.ips, [ip("10.77.0.2")]);
        let server = new.serve(80);
        assert!(Namespace::current().ask(ip("10.77.0.2"), 80).is_ok());
        server.join().unwrap();
        assert_eq!(links().len(), 2);
    });
}

#[test]
fn bad_input_is_refused() {
    on_a_host(|| async {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", "much-too-long-a-name", "a b", "a\"; drop", "0a"] {
            let config = BridgeConfig { bridge: name.to_owned(), ..config(&dir) };
            assert!(BridgeNetwork::open(config).is_err(), "{name:?}");
        }
        let network = BridgeNetwork::open(config(&dir)).unwrap();
        for range in ["", "10.0.0.0", "fd00::/64", "10.0.0.0/33"] {
            assert!(network.set_pod_cidr(range).await.is_err(), "{range:?}");
        }
        network.set_pod_cidr("10.77.0.0/29").await.unwrap();
        let missing =
            PodNetworkRequest { netns: dir.path().join("missing"), ..request(1, &Namespace::new(), &[]) };
        let error = network.setup(&missing).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot open network namespace"), "{error}");
        let escape =
            PodNetworkRequest { sandbox: PodSandboxId("../x".into()), ..request(1, &Namespace::new(), &[]) };
        assert!(network.setup(&escape).await.is_err());
        // Five addresses, one of which the failed call still holds: it will be asked again.
        let pods: Vec<Namespace> = (0..5).map(|_| Namespace::new()).collect();
        for (n, pod) in (2..).zip(&pods[..4]) {
            network.setup(&request(n, pod, &[])).await.unwrap();
        }
        let error = network.setup(&request(6, &pods[4], &[])).await.unwrap_err().to_string();
        assert_eq!(error, "no addresses left in Pod range 10.77.0.0/29");
        network.teardown(&id(1)).await.unwrap();
        network.setup(&request(6, &pods[4], &[])).await.unwrap();
    });
}

#[test]
fn many_pods_at_once_get_different_addresses() {
    on_a_host(|| async {
        let dir = tempfile::tempdir().unwrap();
        let network = open(&dir).await;
        let pods: Vec<Namespace> = (0..20).map(|_| Namespace::new()).collect();
        let tasks: Vec<_> = (0..)
            .zip(&pods)
            .map(|(n, pod)| {
                let (network, request) = (network.clone(), request(n, pod, &[]));
                tokio::spawn(async move { network.setup(&request).await.unwrap().ips[0] })
            })
            .collect();
        let mut addresses = Vec::new();
        for task in tasks {
            addresses.push(task.await.unwrap());
        }
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 20);
        network.reconcile(&[]).await.unwrap();
        assert_eq!(links(), ["cor-test"]);
    });
}
