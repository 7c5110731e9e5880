//! How a node agent is set up.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use coracle_client::LiveCertificate;
use jiff::SignedDuration;

use crate::logs::pod_log_directory;
use crate::machine::Machine;
use crate::volume::VolumeHost;

/// The settings of one node agent. Every path comes from here.
#[derive(Debug, Clone)]
pub struct KubeletConfig {
    /// Name of the Node.
    pub node_name: String,
    /// Host name of the machine: the label `kubernetes.io/hostname`, the Hostname address, and what Pods on the
    /// node's network see.
    pub hostname: String,
    /// Addresses of the node, the primary one first.
    pub node_ips: Vec<IpAddr>,
    /// Labels to register with, beside the usual ones.
    pub node_labels: BTreeMap<String, String>,
    /// The machine, as [`Machine::inspect`] found it.
    pub machine: Machine,
    /// The most Pods to admit.
    pub max_pods: u32,
    /// The HTTPS API; without it there are no logs and no exec.
    pub api: Option<KubeletApi>,
    /// Where each Pod has a directory of its own, for its volumes, its hosts file and termination messages.
    pub pods_dir: PathBuf,
    /// Where it is written down with which credentials images were fetched.
    pub image_records_dir: PathBuf,
    /// On what machine volumes are.
    pub volume_host: VolumeHost,
    /// Where containers' logs go: `NAMESPACE_NAME_UID/CONTAINER/N.log`.
    pub pod_logs_dir: PathBuf,
    /// Where a link to each container's log goes: `NAME_NAMESPACE_CONTAINER-ID.log`.
    pub container_logs_dir: PathBuf,
    /// Under which `kubepods` is made in each cgroup hierarchy, for example `/coracle-a`; empty for the root.
    pub cgroup_root: String,
    /// The node's `resolv.conf`.
    pub resolv_conf: PathBuf,
    /// The node's hosts file, which Pods on the node's network see.
    pub hosts_file: PathBuf,
    /// Addresses of the cluster's DNS service, if it has one.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// Upper bound of the restart back-off (`crashLoopBackOff.maxContainerRestartPeriod`).
    pub restart_backoff_max: SignedDuration,
    /// How many images are fetched at a time (`maxParallelImagePulls`); 1 is one after the other.
    pub max_parallel_image_pulls: usize,
}

/// Where and how the kubelet's HTTPS API listens.
#[derive(Clone)]
pub struct KubeletApi {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Server certificate, with the node's addresses.
    pub certificate: LiveCertificate,
    /// The authority that signs client certificates, in PEM.
    pub client_ca_pem: String,
}

impl std::fmt::Debug for KubeletApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeletApi").field("listen", &self.listen).finish_non_exhaustive()
    }
}

impl KubeletConfig {
    /// The directory of a Pod's logs.
    pub(crate) fn pod_log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        pod_log_directory(&self.pod_logs_dir, namespace, name, uid)
    }

    /// The link to a container's log.
    pub(crate) fn container_log_link(
        &self,
        namespace: &str,
        name: &str,
        container: &str,
        id: &str,
    ) -> PathBuf {
        self.container_logs_dir.join(format!("{name}_{namespace}_{container}-{id}.log"))
    }
}
