//! One cluster in one process: what is made of what, in which order it starts, and in which it ends.
//!
//! Start: ports ▸ store ▸ certificates ▸ API server ▸ informers ▸ scheduler and controllers ▸ network, images, runtime ▸
//! node agent. End: the other way round. Containers belong to keepers and are not touched by either.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use coracle_api::join::ClusterNetwork;
use coracle_apiserver::auth::UserInfo;
use coracle_apiserver::{ApiServer, Joining, KubeletClient, NODE_NETWORK, ServerTls};
use coracle_client::{Informer, ListOptions, in_process};
use coracle_clock::{Clock, Ids, Rng, select};
use coracle_controllers::{ControllerInputs, ControllersConfig};
use coracle_scheduler::{Profile, Scheduler, SchedulerInputs};
use coracle_store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::host::Host;
use super::identity::Identities;
use super::node::{self, Membership};
use super::sockets::Sockets;
use super::{progress, renewal};
use crate::cluster::Cluster;
use crate::lock::Lock;
use crate::settings::Settings;

/// Who feeds the informers that components of this process share.
const INFORMERS: &str = "system:coracle-informers";

/// Prefix length of a node's share of the Pod network.
const NODE_PREFIX: u8 = 24;

/// Runs everything until SIGTERM or SIGINT.
pub(super) async fn run(
    cluster: &Cluster,
    settings: &Settings,
    host: &Host,
    sockets: Sockets,
    lock: &mut Lock,
    clock: Clock,
    mut rng: Rng,
) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    // Before the authority is made, whose certificate says from then on that there are objects.
    let store = super::store::embedded(cluster, settings, &clock)?;
    let identities = Identities::prepare(cluster, settings, host, clock.now())?;
    let network = ClusterNetwork {
        pod_cidr: settings.pod_cidr.clone(),
        service_cidr: settings.service_cidr.clone(),
        vni: identities.authority.overlay_number(),
    };
    let store = match store {
        Some(store) => store,
        None => {
            let authority = identities.authority.certificate_pem();
            super::store::in_etcd(cluster, settings, &host.name, authority, &clock).await?
        }
    };
    let listener = sockets.api.context("the API server has a socket")?;
    let listener = TcpListener::from_std(listener).context("cannot use the API server's socket")?;
    let server = start_server(store, settings, host, &identities, &network, &clock, &mut rng).await?;
    progress("API server is up");
    let tls = ServerTls::with_certificate(Arc::new(identities.api_server.clone()), &identities.authority)?;
    let serving = {
        let (server, stop) = (Arc::clone(&server), stop.clone());
        tokio::spawn(async move { server.serve(listener, tls, stop).await })
    };

    let client = |user: &str| in_process(server.in_process(UserInfo::new(user, ["system:authenticated"])));
    let informers = ControllerInputs::start(&client(INFORMERS), &clock, &mut rng);
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
            ended_pods_max: settings.ended_pods_max(),
        };
        let inputs = informers.clone();
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

    let all_nodes =
        Informer::start(client(NODE_NETWORK), ListOptions::default(), clock.clone(), rng.fork("overlay"));
    let membership = Membership {
        socket: sockets.node_agent,
        client: in_process(server.in_process(UserInfo::node(&host.name))),
        nodes: all_nodes,
        serving: identities.kubelet_server.clone(),
        authority_pem: identities.authority.certificate_pem().to_owned(),
        network,
    };
    let node = node::start(cluster, settings, host, membership, &clock, &mut rng, &stop).await?;
    lock.begin();
    progress("node agent is up");
    let renewing = {
        let (clock, stop) = (clock.clone(), stop.clone());
        tokio::spawn(async move {
            renewal::keep(clock.clone(), stop, || std::future::ready(identities.renew(clock.now()))).await;
        })
    };

    let outcome = select! {
        waited = node::wait_for_the_end(&informers.nodes, &host.name, &stop, lock) => waited,
        end = server.ended() => Err(anyhow::Error::from(end).context("the API server cannot go on")),
    };
    stop.cancel();
    let node = node.ended().await;
    for (what, task) in [("controllers", controlling), ("scheduler", scheduling), ("renewal", renewing)] {
        if let Err(error) = task.await {
            tracing::error!(what, %error, "ended badly");
        }
    }
    server.stop().await;
    serving.await.context("the API server's sockets ended badly")?;
    outcome.and(node)
}

async fn start_server(
    store: Arc<dyn Store>,
    settings: &Settings,
    host: &Host,
    identities: &Identities,
    network: &ClusterNetwork,
    clock: &Clock,
    rng: &mut Rng,
) -> anyhow::Result<Arc<ApiServer>> {
    let towards_nodes = Arc::new(identities.kubelet_client.clone());
    let config = coracle_apiserver::Config {
        service_range: settings.service_cidr.parse().context("the range of Services")?,
        advertise: SocketAddr::new(host.address, settings.api_port),
        kubelet: Some(KubeletClient::with_certificate(towards_nodes, &identities.authority)?),
        joining: Some(Joining {
            authority: Arc::clone(&identities.authority),
            network: network.clone(),
            own: identities.api_server_names().clone(),
        }),
        account_key: Arc::clone(&identities.account_key),
    };
    let ids = Arc::new(Ids::new(rng.fork("ids")));
    ApiServer::start(config, store, clock.clone(), ids).await.context("cannot start the API server")
}
