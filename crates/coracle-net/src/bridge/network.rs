//! The network as the runtime sees it.

use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use coracle_cri::{CriResult, PodNetwork, PodNetworkRequest, PodNetworkStatus, PodSandboxId};

use super::allocations::{Allocation, Allocations};
use super::config::BridgeConfig;
use super::error::NetError;
use super::links::{
    POD_INTERFACE, add_address, add_bridge, add_default_route, add_veth, all_links, default_mtu, delete,
    find_link, set_hairpin, set_up,
};
use super::netlink::{Netlink, Request};
use super::range::PodRange;
use super::rules::{Desired, apply, delete_script, is_loaded, script};

/// MTU where there is no default route to ask.
const DEFAULT_MTU: u32 = 1500;
/// The kernel's limit on the name of an interface.
const NAME_MAX: usize = 15;

/// A bridge network.
///
/// # Guarantees
/// - An address belongs to a sandbox from before its interface exists until after it is gone, across restarts.
/// - Every call can be repeated; a call that was cut off is completed by the same call.
/// - Calls for different sandboxes run side by side.
///
/// # Caveats
/// Packet rules of others that drop forwarded packets (Docker's `FORWARD` policy, for one) apply to Pods too.
#[derive(Debug, Clone)]
pub struct BridgeNetwork {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: BridgeConfig,
    state: Mutex<State>,
    /// Held while rules are computed and loaded, so that the last ones loaded are the newest.
    rules: Mutex<()>,
}

#[derive(Debug)]
struct State {
    allocations: Allocations,
    range: Option<PodRange>,
    /// Index and MTU of the bridge, once it is there.
    bridge: Option<(u32, u32)>,
}

impl BridgeNetwork {
    /// Opens the network's records. Nothing of the host is touched before the Pod range is set.
    pub fn open(config: BridgeConfig) -> Result<Self, NetError> {
        for name in [&config.bridge, &config.nft_table] {
            let fits = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
            let starts = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
            if !fits || !starts || (name == &config.bridge && name.len() > NAME_MAX) {
                return Err(NetError::Link {
                    action: format!("use the name {name:?}"),
                    source: std::io::ErrorKind::InvalidInput.into(),
                });
            }
        }
        let allocations = Allocations::open(&config.state_dir)?;
        let state = State { allocations, range: None, bridge: None };
        Ok(BridgeNetwork {
            shared: Arc::new(Shared { config, state: Mutex::new(state), rules: Mutex::new(()) }),
        })
    }

    /// Removes everything: interfaces, bridge, rules, records. For a cluster that is taken away.
    pub async fn purge(&self) -> CriResult<()> {
        self.blocking(|shared| shared.purge()).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, NetError> + Send + 'static,
    ) -> CriResult<T> {
        let shared = Arc::clone(&self.shared);
        let done = tokio::task::spawn_blocking(move || work(&shared)).await;
        Ok(done.unwrap_or_else(|error| Err(NetError::Unfinished(error.to_string())))?)
    }
}

#[async_trait]
impl PodNetwork for BridgeNetwork {
    async fn ready(&self) -> Result<(), String> {
        self.blocking(Shared::check).await.map_err(|error| error.to_string())
    }

    async fn set_pod_cidr(&self, pod_cidr: &str) -> CriResult<()> {
        let range = PodRange::parse(pod_cidr)?;
        self.blocking(move |shared| shared.set_range(range)).await
    }

    async fn setup(&self, request: &PodNetworkRequest) -> CriResult<PodNetworkStatus> {
        let request = request.clone();
        self.blocking(move |shared| shared.setup(&request)).await
    }

    async fn teardown(&self, sandbox: &PodSandboxId) -> CriResult<()> {
        let sandbox = sandbox.clone();
        self.blocking(move |shared| shared.teardown(&[sandbox])).await
    }

    async fn reconcile(&self, live: &[PodSandboxId]) -> CriResult<()> {
        let live = live.to_vec();
        self.blocking(move |shared| shared.reconcile(&live)).await
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete in itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_range(&self, range: PodRange) -> Result<(), NetError> {
        if !range.gateway().is_ipv4() {
            return Err(NetError::range(&range.to_string(), "the bridge network speaks IPv4"));
        }
        let known = {
            let state = self.state();
            state.range == Some(range) && state.bridge.is_some()
        };
        if known && self.check().is_ok() {
            return Ok(());
        }
        self.ensure_bridge(&range)?;
        self.state().range = Some(range);
        self.load_rules()
    }

    /// Whether the bridge is there and up, and the rules are there. What somebody removed is made again.
    fn check(&self) -> Result<(), NetError> {
        let range = self.state().range.ok_or(NetError::NoRange)?;
        let bridge = find_link(&mut Netlink::open()?, &self.config.bridge)?;
        let known = self.state().bridge;
        if !bridge.is_some_and(|link| link.up && known == Some((link.index, link.mtu))) {
            self.ensure_bridge(&range)?;
        }
        if !is_loaded(&self.config.nft_table)? {
            tracing::warn!(table = self.config.nft_table, "somebody has removed the packet rules");
            self.load_rules()?;
        }
        Ok(())
    }

    fn ensure_bridge(&self, range: &PodRange) -> Result<(), NetError> {
        let name = &self.config.bridge;
        let mut netlink = Netlink::open()?;
        if find_link(&mut netlink, name)?.is_none() {
            let mtu = match self.config.mtu {
                Some(mtu) => mtu,
                None => default_mtu(&mut netlink)?.unwrap_or(DEFAULT_MTU),
            };
            netlink.run(vec![add_bridge(name, range, mtu)])?;
        }
        let missing = || NetError::Link {
            action: format!("find bridge {name}"),
            source: std::io::ErrorKind::NotFound.into(),
        };
        let link = find_link(&mut netlink, name)?.ok_or_else(missing)?;
        netlink.run(vec![set_up(name), add_address(link.index, range.gateway(), range.prefix())])?;
        set_sysctl("net/ipv4/ip_forward", "1")?;
        self.state().bridge = Some((link.index, link.mtu));
        Ok(())
    }

    fn load_rules(&self) -> Result<(), NetError> {
        let _order = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let (range, ports) = {
            let state = self.state();
            let ports: Vec<_> = state
                .allocations
                .iter()
                .flat_map(|(_, allocation)| allocation.ports.iter().map(|port| (allocation.ip, port.clone())))
                .filter(|(_, port)| port.host_port != 0)
                .collect();
            (state.range, ports)
        };
        let Some(range) = range else { return Ok(()) };
        if !ports.is_empty() {
            // For host ports on the host's own loopback addresses.
            set_sysctl(&format!("net/ipv4/conf/{}/route_localnet", self.config.bridge), "1")?;
        }
        let cluster = self.config.cluster_range.as_deref().map(PodRange::parse).transpose()?;
        let desired = Desired {
            table: &self.config.nft_table,
            bridge: &self.config.bridge,
            range: &range,
            masquerade: self.config.masquerade,
            cluster: cluster.as_ref().unwrap_or(&range),
            ports,
        };
        apply(&script(&desired))
    }

    fn setup(&self, request: &PodNetworkRequest) -> Result<PodNetworkStatus, NetError> {
        let (allocation, range, bridge, mtu) = {
            let mut state = self.state();
            let range = state.range.ok_or(NetError::NoRange)?;
            let (bridge, mtu) = state.bridge.ok_or(NetError::NoRange)?;
            let pod = format!("{}/{}", request.pod_namespace, request.pod_name);
            check_id(&request.sandbox)?;
            let allocation =
                state.allocations.allocate(&request.sandbox, &range, &request.port_mappings, pod)?;
            (allocation, range, bridge, mtu)
        };
        self.connect(&request.sandbox, &request.netns, &allocation, &range, (bridge, mtu))?;
        if has_host_ports(&allocation) {
            self.load_rules()?;
        }
        Ok(PodNetworkStatus { ips: vec![allocation.ip] })
    }

    /// Brings the sandbox's namespace to where it should be, from wherever it is.
    fn connect(
        &self,
        sandbox: &PodSandboxId,
        netns: &Path,
        allocation: &Allocation,
        range: &PodRange,
        (bridge, mtu): (u32, u32),
    ) -> Result<(), NetError> {
        let (mut pod, namespace) = Netlink::open_in(netns)?;
        let interface = match find_link(&mut pod, POD_INTERFACE)? {
            Some(link) => link.index,
            None => {
                let name = veth_name(&self.config.bridge, sandbox);
                let add = || add_veth(&name, bridge, namespace.as_raw_fd(), allocation.ip, mtu);
                let mut host = Netlink::open()?;
                match host.run(vec![add(), set_hairpin(&name)]) {
                    Err(NetError::Link { source, .. })
                        if source.raw_os_error() == Some(rustix::io::Errno::EXIST.raw_os_error()) =>
                    {
                        // Left over, with its other end in some other namespace.
                        host.run(vec![delete(&name), add(), set_hairpin(&name)])?;
                    }
                    outcome => outcome?,
                }
                let missing = || NetError::Link {
                    action: format!("find {POD_INTERFACE} in the Pod"),
                    source: std::io::ErrorKind::NotFound.into(),
                };
                find_link(&mut pod, POD_INTERFACE)?.ok_or_else(missing)?.index
            }
        };
        pod.run(vec![
            set_up("lo"),
            set_up(POD_INTERFACE),
            add_address(interface, allocation.ip, range_prefix(range, allocation.ip)),
            add_default_route(interface, range.gateway()),
        ])
    }

    fn teardown(&self, sandboxes: &[PodSandboxId]) -> Result<(), NetError> {
        let known: Vec<(PodSandboxId, Allocation)> = {
            let state = self.state();
            sandboxes.iter().filter_map(|id| Some((id.clone(), state.allocations.get(id)?.clone()))).collect()
        };
        if known.is_empty() {
            return Ok(());
        }
        if known.iter().any(|(_, allocation)| has_host_ports(allocation)) {
            // Before the address can go to another Pod.
            for (id, _) in &known {
                self.state().allocations.close_ports(id);
            }
            self.load_rules()?;
        }
        let names: Vec<String> = known.iter().map(|(id, _)| veth_name(&self.config.bridge, id)).collect();
        delete_links(&mut Netlink::open()?, &names)?;
        let mut state = self.state();
        for (id, _) in &known {
            state.allocations.release(id)?;
        }
        Ok(())
    }

    fn reconcile(&self, live: &[PodSandboxId]) -> Result<(), NetError> {
        let (dead, kept): (Vec<_>, Vec<_>) = {
            let state = self.state();
            state.allocations.iter().map(|(id, _)| id.clone()).partition(|id| !live.contains(id))
        };
        self.teardown(&dead)?;
        // Interfaces without a record: the machine went down between the two, or the record was lost.
        let known: Vec<String> = kept.iter().map(|id| veth_name(&self.config.bridge, id)).collect();
        let mut host = Netlink::open()?;
        let mut stray = self.ports(&mut host)?;
        stray.retain(|name| !known.contains(name));
        delete_links(&mut host, &stray)
    }

    /// Names of this network's interfaces on its bridge.
    fn ports(&self, host: &mut Netlink) -> Result<Vec<String>, NetError> {
        let Some(bridge) = find_link(host, &self.config.bridge)? else { return Ok(Vec::new()) };
        Ok(all_links(host)?
            .into_iter()
            .filter(|link| link.controller == Some(bridge.index) && link.name.starts_with(VETH_PREFIX))
            .map(|link| link.name)
            .collect())
    }

    fn purge(&self) -> Result<(), NetError> {
        let mut host = Netlink::open()?;
        let mut names = self.ports(&mut host)?;
        names.push(self.config.bridge.clone());
        delete_links(&mut host, &names)?;
        apply(&delete_script(&self.config.nft_table))?;
        let dir = &self.config.state_dir;
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(NetError::file("cannot remove", dir)(error));
            }
            _ => {}
        }
        let allocations = Allocations::empty(dir);
        *self.state() = State { allocations, range: None, bridge: None };
        Ok(())
    }
}

const VETH_PREFIX: &str = "veth";

/// Name of a sandbox's interface on the host: always the same, and different for each cluster.
fn veth_name(bridge: &str, sandbox: &PodSandboxId) -> String {
    // FNV-1a: stable across versions of everything, and eleven digits of it are all that a name has room for.
    let hash =
        bridge.bytes().chain([0]).chain(sandbox.0.bytes()).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("{VETH_PREFIX}{:011x}", hash >> 20)
}

fn delete_links(host: &mut Netlink, names: &[String]) -> Result<(), NetError> {
    let requests: Vec<Request> = names.iter().map(|name| delete(name)).collect();
    for (name, outcome) in names.iter().zip(host.batch(requests)?) {
        match outcome {
            Err(source) if source.raw_os_error() != Some(rustix::io::Errno::NODEV.raw_os_error()) => {
                return Err(NetError::Link { action: format!("delete interface {name}"), source });
            }
            _ => {}
        }
    }
    Ok(())
}

fn has_host_ports(allocation: &Allocation) -> bool {
    allocation.ports.iter().any(|port| port.host_port != 0)
}

/// Prefix length for an address: one that is left from an earlier range reaches others by the gateway only.
fn range_prefix(range: &PodRange, ip: IpAddr) -> u8 {
    if range.contains(ip) { range.prefix() } else { 32 }
}

/// A sandbox id becomes the name of a file.
fn check_id(sandbox: &PodSandboxId) -> Result<(), NetError> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if !sandbox.0.is_empty() && sandbox.0.len() <= 128 && sandbox.0.bytes().all(fits) {
        return Ok(());
    }
    Err(NetError::Link {
        action: format!("connect sandbox {:?}", sandbox.0),
        source: std::io::ErrorKind::InvalidInput.into(),
    })
}

fn set_sysctl(name: &str, value: &str) -> Result<(), NetError> {
    let path = PathBuf::from("/proc/sys").join(name);
    let current = std::fs::read_to_string(&path).map_err(NetError::file("cannot read", &path))?;
    if current.trim() == value {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(NetError::file("cannot write", &path))
}
