//! The way from the Pods of this node to the Pods of the others: one VXLAN device, and for each other node a
//! route to its Pod range, a neighbour and a forwarding entry.
//!
//! Nothing is learned and nothing is flooded: the link-layer address of a node's device follows from its Pod range
//! ([`crate::bridge`]'s rule), so that what the API says of the nodes is all that has to be known. A cluster of one
//! node has no device. VXLAN was taken over plain routes because it works over any network between the nodes.
//!
//! `peers` says who the others are, `device` holds the kernel's messages, [`Overlay`] brings the kernel to where it
//! should be, and [`follow`] keeps it there.

mod device;
mod peers;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coracle_client::Informer;
use coracle_clock::{Clock, select};
use coracle_cri::CriResult;
use k8s_openapi::api::core::v1::Node;

use crate::bridge::NetError;
use crate::bridge::links::{default_mtu, delete, find_link};
use crate::bridge::netlink::Netlink;
use crate::bridge::range::PodRange;

pub use peers::{Peer, peers};

/// UDP port of the tunnels: the one that flannel uses on Linux, so that firewalls may know it.
pub const PORT: u16 = 8472;

/// What a tunnel adds to a packet: outer IPv4, UDP and VXLAN headers, and the inner Ethernet header.
const OVERHEAD: u32 = 50;

/// MTU between nodes where there is no default route to ask.
const DEFAULT_MTU: u32 = 1500;

/// How often the kernel is compared with what should be, without a change: somebody may have removed something.
const RESYNC: Duration = Duration::from_secs(60);

/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// This node's end of the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayConfig {
    /// Name of the device, at most 15 bytes.
    pub device: String,
    /// Number of the overlay, the same on all nodes of a cluster and different for every cluster: 24 bits.
    pub vni: u32,
    /// Address of this node, under which the others reach it.
    pub address: Ipv4Addr,
}

/// The overlay on this node.
///
/// # Guarantees
/// Every call can be repeated and completes what an earlier one, of this process or another, left unfinished.
#[derive(Debug, Clone)]
pub struct Overlay {
    shared: Arc<(OverlayConfig, Mutex<()>)>,
}

impl Overlay {
    /// Touches nothing yet.
    #[must_use]
    pub fn new(config: OverlayConfig) -> Self {
        Overlay { shared: Arc::new((config, Mutex::new(()))) }
    }

    /// Leads packets for each peer's range to that peer, and to nobody else. Without peers there is no device.
    pub async fn set_peers(&self, own_range: &str, peers: &[Peer]) -> CriResult<()> {
        let own = PodRange::parse(own_range)?;
        let peers = peers.to_vec();
        self.blocking(move |config| reconcile(config, own, &peers)).await
    }

    /// Removes the device, and with it all routes and entries.
    pub async fn purge(&self) -> CriResult<()> {
        self.blocking(|config| remove(&mut Netlink::open()?, &config.device)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&OverlayConfig) -> Result<T, NetError> + Send + 'static,
    ) -> CriResult<T> {
        let shared = Arc::clone(&self.shared);
        let done = tokio::task::spawn_blocking(move || {
            let _one_at_a_time = shared.1.lock().unwrap_or_else(PoisonError::into_inner);
            work(&shared.0)
        });
        Ok(done.await.unwrap_or_else(|error| Err(NetError::Unfinished(error.to_string())))?)
    }
}

/// Keeps the overlay as the nodes of the cluster say, until `stop`. Whatever fails is tried again.
pub async fn follow(
    overlay: Overlay,
    nodes: Informer<Node>,
    own: String,
    clock: Clock,
    stop: impl Future<Output = ()> + Send,
) {
    let mut stop = std::pin::pin!(stop);
    let mut changes = nodes.subscribe();
    let mut wanted = None;
    loop {
        let seen = peers(&nodes.list(), &own);
        let stale = seen != wanted;
        wanted = seen;
        let mut pause = RESYNC;
        if let Some((range, others)) = &wanted {
            match overlay.set_peers(range, others).await {
                Ok(()) if stale => tracing::info!(peers = others.len(), "overlay set"),
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot set up the way to the Pods of other nodes");
                    pause = RETRY;
                }
            }
        }
        // A node's heartbeat changes nothing here; the first change that matters ends the wait.
        let changed = async {
            while changes.changed().await.is_some() {
                if peers(&nodes.list(), &own) != wanted {
                    return true;
                }
            }
            false
        };
        select! {
            () = stop.as_mut() => return,
            go_on = changed => if !go_on { return },
            () = clock.sleep(pause) => {}
        }
    }
}

fn reconcile(config: &OverlayConfig, own: PodRange, peers: &[Peer]) -> Result<(), NetError> {
    let mut netlink = Netlink::open()?;
    if peers.is_empty() {
        return remove(&mut netlink, &config.device);
    }
    let mut ranges = BTreeMap::new();
    for peer in peers {
        ranges.insert(device::network_address(&PodRange::parse(&peer.range)?)?, peer.clone());
    }
    let device = ensure_device(&mut netlink, config, &own)?;
    let mut requests = Vec::new();
    for peer in ranges.values() {
        requests.extend(device::way_to(device, &PodRange::parse(&peer.range)?, peer.address)?);
    }
    netlink.run(requests)?;
    let stale: Vec<_> = device::routes(&mut netlink, device)?
        .into_iter()
        .filter(|(network, prefix)| {
            !ranges
                .get(network)
                .is_some_and(|peer| PodRange::parse(&peer.range).is_ok_and(|range| range.prefix() == *prefix))
        })
        .collect();
    for (network, prefix) in stale {
        // One that is gone by itself is as good.
        for outcome in netlink.batch(device::no_way_to(device, network, prefix))? {
            if let Err(error) = outcome {
                tracing::debug!(%network, %error, "a way to a node that is gone");
            }
        }
    }
    Ok(())
}

/// The index of the device, made or made anew if it is not as it should be.
fn ensure_device(netlink: &mut Netlink, config: &OverlayConfig, own: &PodRange) -> Result<u32, NetError> {
    let mtu = default_mtu(netlink)?.unwrap_or(DEFAULT_MTU).saturating_sub(OVERHEAD);
    let wanted = device::Tunnel { vni: config.vni, local: config.address };
    let missing = || NetError::Link {
        action: format!("find interface {}", config.device),
        source: std::io::ErrorKind::NotFound.into(),
    };
    if device::tunnel(netlink, &config.device)?.is_some_and(|found| found != wanted) {
        // The node has another address than when the device was made.
        remove(netlink, &config.device)?;
    }
    if find_link(netlink, &config.device)?.is_none() {
        netlink.run(vec![device::add(&config.device, &wanted, own, mtu)?])?;
    }
    let link = find_link(netlink, &config.device)?.ok_or_else(missing)?;
    netlink.run(device::bring_up(&config.device, link.index, own)?)?;
    Ok(link.index)
}

fn remove(netlink: &mut Netlink, device: &str) -> Result<(), NetError> {
    if find_link(netlink, device)?.is_some() {
        netlink.run(vec![delete(device)])?;
    }
    Ok(())
}
