//! How a bridge network is set up.

use std::path::PathBuf;

/// One cluster's network on this host. Bridge, table and range must differ between clusters side by side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeConfig {
    /// Name of the bridge, at most 15 bytes.
    pub bridge: String,
    /// Name of the nftables table (families `ip` and `ip6`) that holds this network's rules, and nothing else.
    pub nft_table: String,
    /// Directory for the record of addresses given out. Made if missing.
    pub state_dir: PathBuf,
    /// Packets of Pods that leave the Pod network carry the host's address.
    pub masquerade: bool,
    /// Addresses of all Pods of the cluster, in CIDR form: packets to them keep their sender. This node's own
    /// range if `None`.
    pub cluster_range: Option<String>,
    /// MTU of the bridge and of the Pods' interfaces; that of the default route's interface if `None`.
    pub mtu: Option<u32>,
}

impl BridgeConfig {
    /// The usual configuration for a cluster: bridge and table carry `name`.
    #[must_use]
    pub fn new(name: impl Into<String>, state_dir: impl Into<PathBuf>) -> Self {
        let name = name.into();
        BridgeConfig {
            nft_table: name.clone(),
            bridge: name,
            state_dir: state_dir.into(),
            masquerade: true,
            cluster_range: None,
            mtu: None,
        }
    }
}
