//! One module per controller: a pure `reconcile` and a thin loop.
//!
//! Each controller has an identity of its own, reads informers, writes requests, and does not know of the others.
//! A key that fails is tried again after its back-off; a loop that panics starts again. Start at [`run_all`].

pub mod cron_job;
pub mod deployment;
pub mod disruption;
pub mod endpoint_slice;
pub mod endpoints;
pub mod garbage;
mod interest;
pub mod job;
mod keyed;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod pod_gc;
pub mod replica_set;
pub mod root_ca;
pub mod service_account;
mod service_pods;
pub mod taint_eviction;
pub mod ttl;
mod workload;

use std::sync::{Mutex, PoisonError};

use coracle_client::{Informer, ListOptions, Object, supervise};
use coracle_clock::{Clock, Rng, select};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Client;

pub use node_ipam::{Cidr, ParseCidrError};

/// What the controllers have to be told.
#[derive(Debug, Clone)]
pub struct ControllersConfig {
    /// Where nodes get the addresses of their Pods from.
    pub cluster_cidr: Cidr,
    /// How large a node's share is: the prefix length of `spec.podCIDR`.
    pub node_prefix: u8,
    /// PEM of the authority that Pods are to trust when they talk to the API server.
    pub root_ca: String,
    /// How many ended Pods may stay; `None` lets all of them.
    pub ended_pods_max: Option<usize>,
}

/// What the controllers read: one copy a kind, which other components of the process may share.
#[derive(Clone)]
pub struct ControllerInputs {
    /// All namespaces.
    pub namespaces: Informer<Namespace>,
    /// All service accounts.
    pub service_accounts: Informer<ServiceAccount>,
    /// ConfigMaps; those named `kube-root-ca.crt` are enough.
    pub config_maps: Informer<ConfigMap>,
    /// All nodes.
    pub nodes: Informer<Node>,
    /// All Pods.
    pub pods: Informer<Pod>,
    /// The Leases of nodes.
    pub leases: Informer<Lease>,
    /// All ReplicaSets.
    pub replica_sets: Informer<ReplicaSet>,
    /// All Deployments.
    pub deployments: Informer<Deployment>,
    /// All Jobs.
    pub jobs: Informer<Job>,
    /// All CronJobs.
    pub cron_jobs: Informer<CronJob>,
    /// All PodDisruptionBudgets.
    pub budgets: Informer<PodDisruptionBudget>,
    /// All Services.
    pub services: Informer<Service>,
    /// All Endpoints.
    pub endpoints: Informer<Endpoints>,
    /// All EndpointSlices.
    pub endpoint_slices: Informer<EndpointSlice>,
}

impl ControllerInputs {
    /// Starts to follow everything that the controllers read. Whoever wires a cluster, real or simulated, calls this,
    /// so that a new kind is added in one place.
    #[must_use]
    pub fn start(client: &Client, clock: &Clock, rng: &mut Rng) -> Self {
        fn all<K: Object>(client: &Client, clock: &Clock, rng: &mut Rng) -> Informer<K> {
            Informer::start(client.clone(), ListOptions::default(), clock.clone(), rng.fork("informer"))
        }
        let root_cas = ListOptions {
            fields: Some("metadata.name=kube-root-ca.crt".to_owned()),
            ..ListOptions::default()
        };
        let of_nodes =
            ListOptions { namespace: Some("kube-node-lease".to_owned()), ..ListOptions::default() };
        ControllerInputs {
            namespaces: all(client, clock, rng),
            service_accounts: all(client, clock, rng),
            config_maps: Informer::start(client.clone(), root_cas, clock.clone(), rng.fork("informer")),
            nodes: all(client, clock, rng),
            pods: all(client, clock, rng),
            leases: Informer::start(client.clone(), of_nodes, clock.clone(), rng.fork("informer")),
            replica_sets: all(client, clock, rng),
            deployments: all(client, clock, rng),
            jobs: all(client, clock, rng),
            cron_jobs: all(client, clock, rng),
            budgets: all(client, clock, rng),
            services: all(client, clock, rng),
            endpoints: all(client, clock, rng),
            endpoint_slices: all(client, clock, rng),
        }
    }
}

/// A controller, as whom it acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// Empties namespaces that are being deleted.
    Namespace,
    /// Gives each namespace its default service account.
    ServiceAccount,
    /// Publishes the cluster's authority in each namespace.
    RootCa,
    /// Gives nodes their share of the Pod network.
    NodeIpam,
    /// Collects what has lost its owners.
    Garbage,
    /// Says of silent nodes that nobody knows how they are.
    NodeLifecycle,
    /// Takes Pods from nodes with taints that they do not tolerate.
    TaintEviction,
    /// Removes Pods that nobody else will.
    PodGc,
    /// Keeps as many Pods as ReplicaSets ask for.
    ReplicaSet,
    /// Rolls Deployments out.
    Deployment,
    /// Runs Jobs to their end.
    Job,
    /// Makes Jobs at their times.
    CronJob,
    /// Removes Jobs some time after their end.
    TtlAfterFinished,
    /// Says how many Pods of a budget may be evicted.
    Disruption,
    /// Says where the Pods of Services are reached.
    Endpoints,
    /// Says the same in slices.
    EndpointSlice,
    /// Shows Endpoints that were made by hand as slices.
    EndpointSliceMirroring,
}

impl Identity {
    /// All of them.
    pub const ALL: [Identity; 17] = [
        Identity::Namespace,
        Identity::ServiceAccount,
        Identity::RootCa,
        Identity::NodeIpam,
        Identity::Garbage,
        Identity::NodeLifecycle,
        Identity::TaintEviction,
        Identity::PodGc,
        Identity::ReplicaSet,
        Identity::Deployment,
        Identity::Job,
        Identity::CronJob,
        Identity::TtlAfterFinished,
        Identity::Disruption,
        Identity::Endpoints,
        Identity::EndpointSlice,
        Identity::EndpointSliceMirroring,
    ];

    /// The service account in `kube-system` that it acts as.
    #[must_use]
    pub fn service_account(self) -> &'static str {
        match self {
            Identity::Namespace => "namespace-controller",
            Identity::ServiceAccount => "service-account-controller",
            Identity::RootCa => "root-ca-cert-publisher",
            Identity::NodeIpam => "node-controller",
            Identity::Garbage => "generic-garbage-collector",
            Identity::NodeLifecycle => "node-lifecycle-controller",
            Identity::TaintEviction => "taint-eviction-controller",
            Identity::PodGc => "pod-garbage-collector",
            Identity::ReplicaSet => "replicaset-controller",
            Identity::Deployment => "deployment-controller",
            Identity::Job => "job-controller",
            Identity::CronJob => "cronjob-controller",
            Identity::TtlAfterFinished => "ttl-after-finished-controller",
            Identity::Disruption => "disruption-controller",
            Identity::Endpoints => "endpoint-controller",
            Identity::EndpointSlice => "endpointslice-controller",
            Identity::EndpointSliceMirroring => "endpointslicemirroring-controller",
        }
    }
}

/// The controllers that run.
struct Team<'a, C> {
    client: C,
    clock: &'a Clock,
    rng: Rng,
    running: Vec<BoxFuture<'a, ()>>,
}

impl<'a, C: Fn(Identity) -> Client> Team<'a, C> {
    /// Runs what `start` makes with the client of `identity`, again after each panic.
    fn add<W>(&mut self, identity: Identity, start: impl Fn(Client) -> W + Send + 'a)
    where
        W: Future<Output = ()> + Send + 'a,
    {
        let (own, restarts) = ((self.client)(identity), self.rng.fork("restarts"));
        let supervised =
            supervise(identity.service_account(), self.clock, restarts, move || start(own.clone()));
        self.running.push(supervised.boxed());
    }
}

/// A new stream of random numbers for each start of a controller.
struct Seeds(Mutex<Rng>);

impl Seeds {
    fn new(rng: Rng) -> Self {
        Seeds(Mutex::new(rng))
    }

    fn next(&self) -> Rng {
        // A poisoned generator is still a generator.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fork("start")
    }
}

/// Runs all controllers until `shutdown` is ready. `client` makes the client of each identity.
pub async fn run_all(
    config: ControllersConfig,
    client: impl Fn(Identity) -> Client,
    inputs: ControllerInputs,
    clock: Clock,
    mut rng: Rng,
    shutdown: impl Future<Output = ()>,
) {
    let garbage = Seeds::new(rng.fork("garbage"));
    let jobs = Seeds::new(rng.fork("jobs"));
    let replica_sets = Seeds::new(rng.fork("replica sets"));
    let shares = (config.cluster_cidr, config.node_prefix);
    let (all, time) = (|| inputs.clone(), || clock.clone());
    let mut team = Team { client, clock: &clock, rng, running: Vec::new() };
    team.add(Identity::Namespace, |own| namespace::run(own, all(), time()));
    team.add(Identity::ServiceAccount, |own| service_account::run(own, all(), time()));
    team.add(Identity::RootCa, |own| root_ca::run(own, all(), time(), config.root_ca.clone()));
    team.add(Identity::NodeIpam, |own| node_ipam::run(own, inputs.nodes.clone(), time(), shares));
    team.add(Identity::Garbage, |own| garbage::run(own, time(), garbage.next()));
    team.add(Identity::NodeLifecycle, |own| node_lifecycle::run(own, all(), time()));
    team.add(Identity::TaintEviction, |own| taint_eviction::run(own, all(), time()));
    team.add(Identity::PodGc, |own| pod_gc::run(own, all(), time(), config.ended_pods_max));
    team.add(Identity::ReplicaSet, |own| replica_set::run(own, all(), time(), replica_sets.next()));
    team.add(Identity::Deployment, |own| deployment::run(own, all(), time()));
    team.add(Identity::Job, |own| job::run(own, all(), time(), jobs.next()));
    team.add(Identity::TtlAfterFinished, |own| ttl::run(own, all(), time()));
    team.add(Identity::CronJob, |own| cron_job::run(own, all(), time()));
    team.add(Identity::Disruption, |own| disruption::run(own, all(), time()));
    team.add(Identity::Endpoints, |own| endpoints::run(own, all(), time()));
    team.add(Identity::EndpointSlice, |own| endpoint_slice::run(own, all(), time()));
    team.add(Identity::EndpointSliceMirroring, |own| endpoint_slice::run_mirror(own, all(), time()));
    let running = keyed::all(team.running);
    select! {
        () = shutdown => {}
        () = running => {}
    }
}
