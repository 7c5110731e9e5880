//! One cluster in one process: what is made of what, in which order it starts, and in which it ends.
//!
//! Start: certificates ▸ store ▸ API server ▸ informers ▸ scheduler and controllers ▸ network, images, runtime ▸
//! node agent. End: the other way round. Containers belong to keepers and are not touched by either.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use coracle_apiserver::auth::UserInfo;
use coracle_apiserver::{ApiServer, KubeletClient, ServerTls};
use coracle_client::{Informer, ListOptions, in_process};
use coracle_clock::{Clock, Ids, Rng, select};
use coracle_controllers::{ControllerInputs, ControllersConfig};
use coracle_kubelet::{Kubelet, KubeletApi, KubeletConfig, Machine};
use coracle_net::bridge::{BridgeConfig, BridgeNetwork};
use coracle_runtime::{EmbeddedRuntime, RuntimeConfig};
use coracle_scheduler::{Profile, Scheduler, SchedulerInputs};
use coracle_store::embedded::EmbeddedStore;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, ServiceAccount};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::identity::{Host, Identities};
use super::{READY_LINE, open_images, progress};
use crate::cluster::{Cluster, Settings};

/// Who feeds the informers that components of this process share.
const INFORMERS: &str = "system:coracle-informers";

/// Prefix length of a node's share of the Pod network.
const NODE_PREFIX: u8 = 24;

/// The most Pods of a node: upstream's default.
const MAX_PODS: u32 = 110;

/// Runs everything until SIGTERM or SIGINT.
pub(super) async fn run(
    cluster: &Cluster,
    settings: &Settings,
    clock: Clock,
    mut rng: Rng,
) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let host = Host::this()?;
    let identities = Identities::prepare(cluster, settings, &host, clock.now())?;
    let server = start_server(cluster, settings, &host, &identities, &clock, &mut rng).await?;
    progress("API server is up");

    let listener =
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, settings.api_port)).await.with_context(|| {
            format!(
                "port {} is in use by another program: end it, or choose another --port",
                settings.api_port
            )
        })?;
    let tls = ServerTls::new(&identities.api_server, &identities.authority)?;
    let serving = {
        let (server, stop) = (Arc::clone(&server), stop.clone());
        tokio::spawn(async move { server.serve(listener, tls, stop).await })
    };

    let client = |user: &str| in_process(server.in_process(UserInfo::new(user, ["system:authenticated"])));
    let informers = Informers::start(&client(INFORMERS), &clock, &mut rng);
    let scheduling = {
        let inputs = SchedulerInputs { pods: informers.pods.clone(), nodes: informers.nodes.clone() };
        let scheduler = Scheduler::new(Profile::default());
        let (client, clock, rng) = (client("system:kube-scheduler"), clock.clone(), rng.fork("scheduler"));
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(async move { scheduler.run(client, inputs, clock, rng, stopped).await })
    };
    let controlling = {
        let config = ControllersConfig {
            cluster_cidr: settings.pod_cidr.parse().context("the Pod network's range")?,
            node_prefix: NODE_PREFIX,
            root_ca: identities.authority.certificate_pem().to_owned(),
        };
        let inputs = informers.for_controllers();
        let server = Arc::clone(&server);
        let client = move |identity: coracle_controllers::Identity| {
            in_process(
                server.in_process(UserInfo::service_account("kube-system", identity.service_account())),
            )
        };
        let (clock, rng) = (clock.clone(), rng.fork("controllers"));
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(coracle_controllers::run_all(config, client, inputs, clock, rng, stopped))
    };
    progress("scheduler and controllers are up");

    let node_client = in_process(server.in_process(UserInfo::node(&host.name)));
    let kubelet = start_node(cluster, settings, &host, &identities, node_client, &clock, &mut rng).await?;
    let node = {
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(async move {
            if let Err(error) = kubelet.run(stopped).await {
                tracing::error!(
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "the node agent cannot run"
                );
            }
        })
    };
    progress("node agent is up");

    wait_for_the_end(&informers.nodes, &host.name).await?;
    tracing::info!("ending");
    stop.cancel();
    for (what, task) in [("node agent", node), ("controllers", controlling), ("scheduler", scheduling)] {
        if let Err(error) = task.await {
            tracing::error!(what, %error, "ended badly");
        }
    }
    server.stop().await;
    serving.await.context("the API server's sockets ended badly")?;
    Ok(())
}

/// Says when the node is Ready, then waits for a signal.
async fn wait_for_the_end(nodes: &Informer<Node>, name: &str) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let ready = async {
        let mut changes = nodes.subscribe();
        while !nodes.get("", name).is_some_and(|node| is_ready(&node)) {
            if changes.changed().await.is_none() {
                return;
            }
        }
        progress(READY_LINE);
        std::future::pending::<()>().await;
    };
    select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = ready => {}
    }
    Ok(())
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn start_server(
    cluster: &Cluster,
    settings: &Settings,
    host: &Host,
    identities: &Identities,
    clock: &Clock,
    rng: &mut Rng,
) -> anyhow::Result<Arc<ApiServer>> {
    let directory = cluster.data.join("store");
    let options = coracle_store::embedded::Options::default();
    let (store, recovery) = EmbeddedStore::open_dir(&directory, clock.clone(), options)
        .with_context(|| format!("cannot open the store in {}", directory.display()))?;
    tracing::info!(?recovery, "store is open");
    let config = coracle_apiserver::Config {
        service_range: settings.service_cidr.parse().context("the range of Services")?,
        advertise: SocketAddr::new(host.address, settings.api_port),
        kubelet: Some(KubeletClient::new(&identities.kubelet_client, &identities.authority)?),
    };
    let ids = Arc::new(Ids::new(rng.fork("ids")));
    ApiServer::start(config, store, clock.clone(), ids).await.context("cannot start the API server")
}

async fn start_node(
    cluster: &Cluster,
    settings: &Settings,
    host: &Host,
    identities: &Identities,
    client: kube::Client,
    clock: &Clock,
    rng: &mut Rng,
) -> anyhow::Result<Kubelet> {
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
            certificate_pem: identities.kubelet_server.certificate_pem.clone().into_bytes(),
            key_pem: identities.kubelet_server.key_pem.clone().into_bytes(),
            client_ca_pem: identities.authority.certificate_pem().as_bytes().to_vec(),
        }),
        pods_dir: cluster.pod_directories(),
        pod_logs_dir: cluster.pod_logs(),
        container_logs_dir: cluster.container_logs(),
        // The runtime keeps everything below its own group already.
        cgroup_root: String::new(),
        resolv_conf: "/etc/resolv.conf".into(),
        hosts_file: "/etc/hosts".into(),
        cluster_dns: Vec::new(),
        cluster_domain: "cluster.local".to_owned(),
        restart_backoff_max: jiff::SignedDuration::from_secs(300),
    };
    Ok(Kubelet::new(config, client, runtime, images, clock.clone(), rng.fork("kubelet")))
}

/// The Pod network of this cluster on this machine.
pub(super) fn open_network(cluster: &Cluster, settings: &Settings) -> anyhow::Result<BridgeNetwork> {
    let mut config = BridgeConfig::new(&settings.bridge, cluster.data.join("network"));
    config.nft_table = cluster.nft_table();
    BridgeNetwork::open(config).context("cannot set up the Pod network")
}

/// The container runtime of this cluster on this machine.
pub(super) fn runtime_config(cluster: &Cluster) -> RuntimeConfig {
    RuntimeConfig {
        data_dir: cluster.data.join("runtime"),
        run_dir: cluster.run.clone(),
        cgroup_root: cluster.cgroup_root().into(),
    }
}

/// One shared copy a kind for all components of this process.
struct Informers {
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    namespaces: Informer<Namespace>,
    service_accounts: Informer<ServiceAccount>,
    root_cas: Informer<ConfigMap>,
}

impl Informers {
    fn start(client: &kube::Client, clock: &Clock, rng: &mut Rng) -> Self {
        fn all<K: coracle_client::Object>(
            client: &kube::Client,
            options: ListOptions,
            clock: &Clock,
            rng: &mut Rng,
        ) -> Informer<K> {
            Informer::start(client.clone(), options, clock.clone(), rng.fork("informer"))
        }
        let any = ListOptions::default;
        let root_cas = ListOptions {
            fields: Some("metadata.name=kube-root-ca.crt".to_owned()),
            ..ListOptions::default()
        };
        Informers {
            pods: all(client, any(), clock, rng),
            nodes: all(client, any(), clock, rng),
            namespaces: all(client, any(), clock, rng),
            service_accounts: all(client, any(), clock, rng),
            root_cas: all(client, root_cas, clock, rng),
        }
    }

    fn for_controllers(&self) -> ControllerInputs {
        ControllerInputs {
            namespaces: self.namespaces.clone(),
            service_accounts: self.service_accounts.clone(),
            config_maps: self.root_cas.clone(),
            nodes: self.nodes.clone(),
            pods: self.pods.clone(),
        }
    }
}
