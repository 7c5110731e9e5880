//! This machine as a node, of its own cluster or of another machine's: network ▸ images ▸ runtime ▸ node agent, and
//! the overlay to the other nodes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use coracle_api::join::ClusterNetwork;
use coracle_client::{Informer, LiveCertificate};
use coracle_clock::{Clock, Rng, select};
use coracle_kubelet::{Kubelet, KubeletApi, KubeletConfig, KubeletError, Machine, VolumeHost};
use coracle_net::bridge::{BridgeConfig, BridgeNetwork};
use coracle_net::overlay::{self, Overlay, OverlayConfig};
use coracle_runtime::{EmbeddedRuntime, LogLimit, Patience, RuntimeConfig};
use k8s_openapi::api::core::v1::Node;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::host::Host;
use super::{READY_LINE, open_images, progress};
use crate::cluster::Cluster;
use crate::lock::{Lock, Purpose};
use crate::settings::Settings;

/// The most Pods of a node: upstream's default.
const MAX_PODS: u32 = 110;

/// What a node needs of its cluster.
pub(super) struct Membership {
    /// As the node agent.
    pub(super) client: kube::Client,
    /// All nodes, for the overlay and for knowing when this one is Ready.
    pub(super) nodes: Informer<Node>,
    /// Where the node agent listens.
    pub(super) socket: TcpListener,
    /// What the node agent shows the API server.
    pub(super) serving: LiveCertificate,
    /// Who vouches for the API server, PEM.
    pub(super) authority_pem: String,
    /// What all nodes agree on.
    pub(super) network: ClusterNetwork,
}

/// The node's tasks. The end of any ends the process.
pub(super) struct Running {
    agent: JoinHandle<Result<(), KubeletError>>,
    overlay: Option<JoinHandle<()>>,
}

impl Running {
    /// Waits for their end, after the token was cancelled.
    pub(super) async fn ended(self) -> anyhow::Result<()> {
        if let Some(overlay) = self.overlay {
            overlay.await.context("the overlay ended badly")?;
        }
        self.agent.await.context("the node agent ended badly")?.context("the node agent cannot run")
    }
}

/// Starts this machine as a node.
pub(super) async fn start(
    cluster: &Cluster,
    settings: &Settings,
    host: &Host,
    membership: Membership,
    clock: &Clock,
    rng: &mut Rng,
    stop: &CancellationToken,
) -> anyhow::Result<Running> {
    let network = Arc::new(open_network(cluster, settings)?);
    let images = Arc::new(open_images(cluster)?);
    let runtime = EmbeddedRuntime::open(
        runtime_config(cluster),
        network,
        images.clone(),
        clock.clone(),
        rng.fork("runtime"),
    )
    .await
    .context("cannot open the container runtime")?;
    let config = KubeletConfig {
        node_name: host.name.clone(),
        hostname: host.name.clone(),
        node_ips: vec![host.address],
        node_labels: Default::default(),
        machine: Machine::inspect(&cluster.data),
        max_pods: MAX_PODS,
        api: Some(KubeletApi {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), settings.kubelet_port),
            certificate: membership.serving,
            client_ca_pem: membership.authority_pem,
        }),
        pods_dir: cluster.pod_directories(),
        image_records_dir: cluster.image_records(),
        volume_host: VolumeHost::Machine,
        pod_logs_dir: cluster.pod_logs(),
        container_logs_dir: cluster.container_logs(),
        // The runtime keeps everything below its own group already.
        cgroup_root: String::new(),
        resolv_conf: "/etc/resolv.conf".into(),
        hosts_file: "/etc/hosts".into(),
        cluster_dns: Vec::new(),
        cluster_domain: "cluster.local".to_owned(),
        restart_backoff_max: settings
            .max_restart_seconds
            .map_or(coracle_kubelet::pod::backoff::MAX, jiff::SignedDuration::from_secs),
        max_parallel_image_pulls: usize::from(settings.max_pulls.unwrap_or(1)),
    };
    let mut kubelet =
        Kubelet::new(config, membership.client, runtime, images, clock.clone(), rng.fork("kubelet"));
    let socket =
        tokio::net::TcpListener::from_std(membership.socket).context("cannot use the node agent's socket")?;
    kubelet.listen_on(socket);
    let agent = {
        let stop = stop.clone();
        tokio::spawn(async move {
            // However it ends, a panic included, the process does not go on without it.
            let _end_of_all = stop.clone().drop_guard();
            kubelet.run(stop.cancelled_owned()).await
        })
    };
    let overlay = overlay_of(settings, host, membership.network.vni).map(|overlay| {
        let (name, clock, stopped) = (host.name.clone(), clock.clone(), stop.clone().cancelled_owned());
        tokio::spawn(overlay::follow(overlay, membership.nodes, name, clock, stopped))
    });
    Ok(Running { agent, overlay })
}

/// Says when the node is Ready, then waits for a signal, or for `stop`.
pub(super) async fn wait_for_the_end(
    nodes: &Informer<Node>,
    name: &str,
    stop: &CancellationToken,
    lock: &mut Lock,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let ready = async {
        let mut changes = nodes.subscribe();
        while !nodes.get("", name).is_some_and(|node| is_ready(&node)) {
            if changes.changed().await.is_none() {
                return;
            }
        }
        if let Err(error) = lock.tell(Purpose::Running) {
            tracing::warn!(error = format!("{error:#}"), "cannot say that the cluster runs");
        }
        progress(READY_LINE);
        std::future::pending::<()>().await;
    };
    select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = stop.cancelled() => {}
        () = ready => {}
    }
    tracing::info!("ending");
    Ok(())
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Where the Pod network remembers who has which address.
pub(super) fn network_records(cluster: &Cluster) -> PathBuf {
    cluster.data.join("network")
}

/// The Pod network of this cluster on this machine.
pub(super) fn open_network(cluster: &Cluster, settings: &Settings) -> anyhow::Result<BridgeNetwork> {
    let mut config = BridgeConfig::new(&settings.bridge, network_records(cluster));
    config.nft_table = cluster.nft_table();
    let pods = settings.joined.as_ref().map_or(&settings.pod_cidr, |joined| &joined.network.pod_cidr);
    config.cluster_range = Some(pods.clone());
    BridgeNetwork::open(config).context("cannot set up the Pod network")
}

/// The way from this machine to the Pods of other nodes; none from a machine that no other one can reach.
pub(super) fn overlay_of(settings: &Settings, host: &Host, vni: u32) -> Option<Overlay> {
    match host.address {
        IpAddr::V4(address) if !address.is_loopback() => {
            let device = overlay_device(settings);
            Some(Overlay::new(OverlayConfig { device, vni, address }))
        }
        _ => None,
    }
}

/// Name of the overlay's device on this machine.
pub(super) fn overlay_device(settings: &Settings) -> String {
    format!("{}-vx", settings.bridge)
}

/// The container runtime of this cluster on this machine.
pub(super) fn runtime_config(cluster: &Cluster) -> RuntimeConfig {
    RuntimeConfig {
        data_dir: cluster.data.join("runtime"),
        run_dir: cluster.run.clone(),
        cgroup_root: cluster.cgroup_root().into(),
        log_limit: LogLimit::default(),
        patience: Patience::default(),
    }
}
