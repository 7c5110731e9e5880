//! Who is who: the certificates of one cluster, made at the first start and renewed when they no longer fit.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use coracle_apiserver::kubeconfig::Kubeconfig;
use coracle_apiserver::pki::{AccountKey, CertificateAuthority, CertificateRequest, Credential};
use coracle_client::LiveCertificate;
use jiff::Timestamp;

use super::host::Host;
use crate::cluster::Cluster;
use crate::settings::Settings;

/// Certificates that the daemon's parts use.
#[derive(Debug)]
pub(crate) struct Identities {
    pub(crate) authority: Arc<CertificateAuthority>,
    /// What the API server signs the tokens of service accounts with.
    pub(crate) account_key: Arc<AccountKey>,
    /// What the API server shows its clients.
    pub(crate) api_server: LiveCertificate,
    /// What the API server shows the node agent.
    pub(crate) kubelet_client: LiveCertificate,
    /// What the node agent shows the API server.
    pub(crate) kubelet_server: LiveCertificate,
    wanted: Wanted,
}

/// What there should be, and where.
#[derive(Debug)]
struct Wanted {
    directory: PathBuf,
    api_server: CertificateRequest,
    kubelet_server: CertificateRequest,
    kubeconfig: PathBuf,
    cluster: String,
    server: String,
}

/// Certificates as they are on disk.
struct Loaded {
    api_server: Credential,
    kubelet_client: Credential,
    kubelet_server: Credential,
}

impl Wanted {
    /// Loads or makes everything, and writes the administrator's kubeconfig.
    fn load(&self, authority: &CertificateAuthority, now: Timestamp) -> anyhow::Result<Loaded> {
        let leaf = |name: &str, request: &CertificateRequest| {
            authority.load_or_issue(&self.directory, name, request, now)
        };
        let kubelet_client = CertificateRequest::client("kube-apiserver-kubelet-client", None);
        let admin = leaf("admin", &CertificateRequest::client("kubernetes-admin", Some("system:masters")))?;
        let kubeconfig = Kubeconfig {
            cluster: &self.cluster,
            user: "kubernetes-admin",
            server: &self.server,
            authority_pem: authority.certificate_pem(),
            credential: &admin,
        };
        // Rewritten only when it differs, so that its time says when it last changed.
        if std::fs::read_to_string(&self.kubeconfig).ok().as_deref() != Some(kubeconfig.to_yaml().as_str()) {
            kubeconfig.write(&self.kubeconfig)?;
        }
        Ok(Loaded {
            api_server: leaf("apiserver", &self.api_server)?,
            kubelet_client: leaf("apiserver-kubelet-client", &kubelet_client)?,
            kubelet_server: leaf("kubelet", &self.kubelet_server)?,
        })
    }
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
        let account_key = AccountKey::load_or_create(&directory)?;
        let (mut names, mut addresses) = (vec![host.name.clone()], vec![host.address]);
        for name in &settings.tls_san {
            match name.parse() {
                Ok(address) => addresses.push(address),
                Err(_) => names.push(name.clone()),
            }
        }
        let service_ip = first_service_address(&settings.service_cidr)?;
        let wanted = Wanted {
            directory,
            api_server: CertificateRequest::api_server(service_ip, &names, &addresses),
            kubelet_server: CertificateRequest::kubelet_server(&host.name, &[host.address]),
            kubeconfig: cluster.kubeconfig(),
            cluster: cluster.name.clone(),
            server: format!("https://127.0.0.1:{}", settings.api_port),
        };
        let loaded = wanted.load(&authority, now)?;
        Ok(Identities {
            authority: Arc::new(authority),
            account_key: Arc::new(account_key),
            api_server: live(&loaded.api_server)?,
            kubelet_client: live(&loaded.kubelet_client)?,
            kubelet_server: live(&loaded.kubelet_server)?,
            wanted,
        })
    }

    /// What the API server's certificate says.
    pub(crate) fn api_server_names(&self) -> &CertificateRequest {
        &self.wanted.api_server
    }

    /// Makes anew what no longer fits, and puts it to use at once.
    pub(crate) fn renew(&self, now: Timestamp) -> anyhow::Result<()> {
        let loaded = self.wanted.load(&self.authority, now)?;
        for (live, new) in [
            (&self.api_server, loaded.api_server),
            (&self.kubelet_client, loaded.kubelet_client),
            (&self.kubelet_server, loaded.kubelet_server),
        ] {
            live.replace(&new.certificate_pem, &new.key_pem)?;
        }
        Ok(())
    }
}

pub(super) fn live(credential: &Credential) -> anyhow::Result<LiveCertificate> {
    Ok(LiveCertificate::new(&credential.certificate_pem, &credential.key_pem)?)
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
}
