//! Who is who: the certificates of one cluster, made at the first start and renewed when they no longer fit.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context;
use coracle_apiserver::kubeconfig::Kubeconfig;
use coracle_apiserver::pki::{CertificateAuthority, CertificateRequest, Credential};
use jiff::Timestamp;

use crate::cluster::{Cluster, Settings};

/// Certificates that the daemon's parts use.
#[derive(Debug)]
pub(crate) struct Identities {
    pub(crate) authority: CertificateAuthority,
    /// What the API server shows its clients.
    pub(crate) api_server: Credential,
    /// What the API server shows the node agent.
    pub(crate) kubelet_client: Credential,
    /// What the node agent shows the API server.
    pub(crate) kubelet_server: Credential,
}

/// The name and the address under which this machine is a node.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
}

impl Host {
    /// This machine: its host name in lower case, and the address that its default route leaves from.
    pub(crate) fn this() -> anyhow::Result<Self> {
        let name = nix::unistd::gethostname().context("cannot read the host name")?;
        let name = name.to_string_lossy().to_lowercase();
        let name: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '-' })
            .collect();
        let name = name.trim_matches(['-', '.']).to_owned();
        Ok(Host { name: if name.is_empty() { "node".to_owned() } else { name }, address: outward_address() })
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

impl Identities {
    /// Loads or makes everything, and writes the administrator's kubeconfig.
    pub(crate) fn prepare(
        cluster: &Cluster,
        settings: &Settings,
        host: &Host,
        now: Timestamp,
    ) -> anyhow::Result<Self> {
        let directory = cluster.pki();
        let authority = CertificateAuthority::load_or_create(&directory, now)?;
        let service_ip = first_service_address(&settings.service_cidr)?;
        let leaf = |name: &str, request: &CertificateRequest| {
            authority.load_or_issue(&directory, name, request, now)
        };
        let hosts = [host.name.clone()];
        let api_server =
            leaf("apiserver", &CertificateRequest::api_server(service_ip, &hosts, &[host.address]))?;
        let kubelet_client = leaf(
            "apiserver-kubelet-client",
            &CertificateRequest::client("kube-apiserver-kubelet-client", None),
        )?;
        let kubelet_server =
            leaf("kubelet", &CertificateRequest::kubelet_server(&host.name, &[host.address]))?;
        let admin = leaf("admin", &CertificateRequest::client("kubernetes-admin", Some("system:masters")))?;
        let kubeconfig = Kubeconfig {
            cluster: &cluster.name,
            user: "kubernetes-admin",
            server: &format!("https://127.0.0.1:{}", settings.api_port),
            authority_pem: authority.certificate_pem(),
            credential: &admin,
        };
        let path = cluster.kubeconfig();
        // Rewritten only when it differs, so that its time says when it last changed.
        if std::fs::read_to_string(&path).ok().as_deref() != Some(kubeconfig.to_yaml().as_str()) {
            kubeconfig.write(&path)?;
        }
        Ok(Identities { authority, api_server, kubelet_client, kubelet_server })
    }
}

/// The address of the `kubernetes` Service: the first of the range.
pub(crate) fn first_service_address(cidr: &str) -> anyhow::Result<IpAddr> {
    let network: Ipv4Addr = cidr
        .split_once('/')
        .and_then(|(address, _)| address.parse().ok())
        .with_context(|| format!("{cidr} is not an address range"))?;
    Ok(IpAddr::V4(Ipv4Addr::from_bits(network.to_bits() + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubernetes_service_has_the_first_address() {
        assert_eq!(first_service_address("10.43.0.0/16").unwrap(), IpAddr::from([10, 43, 0, 1]));
        assert!(first_service_address("x").is_err());
    }

    #[test]
    fn this_machine_has_a_name_that_a_node_can_have() {
        let host = Host::this().unwrap();
        assert!(!host.name.is_empty() && host.name == host.name.to_lowercase());
    }
}
