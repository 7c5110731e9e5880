//! The node core: which Pods have a worker, which are refused, what is left over of Pods that are gone.
//!
//! Decisions that concern more than one Pod are made here, in one loop, before work reaches a worker.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coracle_client::{EventRecorder, Informer, ListOptions, ObjectKey, uid_of};
use coracle_clock::watch;
use coracle_clock::{Clock, Rng};
use coracle_cri::probe::ProbeNetwork;
use coracle_cri::{ContainerEvent, ImageService, PodSandboxFilter, RuntimeService};
use k8s_openapi::api::core::v1::{Node, Pod};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admission::{admit, has_ended};
use crate::context::Context;
use crate::credentials::records::Records;
use crate::handler::Handlers;
use crate::objects::Objects;
use crate::pod::inputs::{Eviction, Rejection};
use crate::preemption::{self, Admission};
use crate::probe::Probing;
use crate::server::{KubeletServer, ServerConfig};
use crate::supervised::{Ended, supervised};
use crate::worker::record::{self, Record};
use crate::worker::{Worker, WorkerHandle};
use crate::{KubeletApi, KubeletConfig, disk, execute, node};

/// Everything is looked at anew this often, should a hint have been lost.
const RESYNC: Duration = Duration::from_secs(600);
const RETRY: Duration = Duration::from_secs(1);
/// For a caller of the API to come to the point.
const API_HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// For what the API is asked for when the node agent ends.
const API_SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// The node agent.
pub struct Kubelet {
    config: KubeletConfig,
    client: kube::Client,
    runtime: Arc<dyn RuntimeService>,
    images: Arc<dyn ImageService>,
    clock: Clock,
    rng: Rng,
    /// The socket of the HTTPS API, once it listens.
    listener: Option<TcpListener>,
    /// How probes and hooks go over the network, if not from the node.
    probe_network: Option<Arc<dyn ProbeNetwork>>,
}

/// Why the node agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// A directory could not be made.
    #[error("cannot make the directory {path}")]
    Directory {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The runtime does not answer.
    #[error("the container runtime does not answer")]
    Runtime(#[source] coracle_cri::CriError),
    /// The address of the HTTPS API cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Kubelet {
    /// A node agent that drives `runtime` and `images` and talks to the API server through `client`.
    #[must_use]
    pub fn new(
        config: KubeletConfig,
        client: kube::Client,
        runtime: Arc<dyn RuntimeService>,
        images: Arc<dyn ImageService>,
        clock: Clock,
        rng: Rng,
    ) -> Self {
        Kubelet { config, client, runtime, images, clock, rng, listener: None, probe_network: None }
    }

    /// Lets probes and hooks that go over the network go another way than from the node's own network: that of a
    /// scripted runtime, whose Pods have no addresses that anybody could reach.
    #[must_use]
    pub fn with_probe_network(mut self, network: Arc<dyn ProbeNetwork>) -> Self {
        self.probe_network = Some(network);
        self
    }

    /// Listens on the address of the HTTPS API, before [`Kubelet::run`] serves it: so that whoever assembles a node
    /// knows in time that the address is taken.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn listen(&mut self) -> Result<(), KubeletError> {
        if let (Some(api), None) = (&self.config.api, &self.listener) {
            let listener = TcpListener::bind(api.listen).await;
            let failed = |source| KubeletError::Listen { address: api.listen, source };
            self.listener = Some(listener.map_err(failed)?);
        }
        Ok(())
    }

    /// Serves the HTTPS API on a socket that listens already.
    pub fn listen_on(&mut self, listener: TcpListener) {
        self.listener = Some(listener);
    }

    /// Works until `shutdown`. Containers go on running afterwards.
    ///
    /// # Errors
    /// Only what keeps the node agent from starting. What goes wrong later is retried.
    pub async fn run(mut self, shutdown: impl Future<Output = ()> + Send) -> Result<(), KubeletError> {
        self.listen().await?;
        let Kubelet { config, client, runtime, images, clock, mut rng, listener, probe_network } = self;
        for path in [&config.pods_dir, &config.pod_logs_dir, &config.container_logs_dir] {
            let directory = path.clone();
            let made = clock.blocking(move || std::fs::create_dir_all(directory)).await;
            made.map_err(|source| KubeletError::Directory { path: path.clone(), source })?;
        }
        let version = runtime.version().await.map_err(KubeletError::Runtime)?;
        let here = images.list_images().await.ok();
        let path = config.image_records_dir.clone();
        let image_records = clock.blocking(move || Records::open(&path, here.as_deref())).await;
        let image_records = image_records
            .map(Arc::new)
            .map_err(|source| KubeletError::Directory { path: config.image_records_dir.clone(), source })?;
        let recorder = EventRecorder::new(&client, "kubelet", &config.node_name, clock.clone());
        let by_field = |field: &str| ListOptions {
            fields: Some(format!("{field}={}", config.node_name)),
            ..ListOptions::default()
        };
        let pods =
            Informer::start(client.clone(), by_field("spec.nodeName"), clock.clone(), rng.fork("pods"));
        let nodes =
            Informer::start(client.clone(), by_field("metadata.name"), clock.clone(), rng.fork("nodes"));
        let services =
            Informer::start(client.clone(), ListOptions::default(), clock.clone(), rng.fork("services"));
        let objects = Objects::new(&client, &clock, &mut rng);
        let handlers = Handlers::new(runtime.clone(), probe_network, clock.clone());
        let node_rng = rng.fork("node");
        let probing = Probing::new(clock.elapsed(), rng.fork("probes"));
        let pulls = Semaphore::new(config.max_parallel_image_pulls.max(1));
        let context = Arc::new(Context {
            config,
            client,
            runtime,
            images,
            clock,
            recorder,
            pods,
            services,
            objects,
            image_records,
            nodes,
            runtime_name: version.runtime_name,
            network: watch::channel(Err("the network has not been looked at yet".to_owned())).0,
            pulls,
            statuses: Mutex::default(),
            handlers,
            probing,
        });
        let mut tasks = JoinSet::new();
        let ending = CancellationToken::new();
        let _end_on_return = ending.clone().drop_guard();
        let api_port = match (&context.config.api, listener) {
            (Some(api), Some(listener)) => {
                let failed = |source| KubeletError::Listen { address: api.listen, source };
                let port = listener.local_addr().map_err(failed)?.port();
                tasks.spawn(serve_api(context.clone(), api.clone(), listener, ending.clone()));
                Some(port)
            }
            _ => None,
        };
        tasks.spawn(node::keep_node(context.clone(), api_port, node_rng));
        tasks.spawn(node::keep_lease(context.clone()));
        let core = NodeCore {
            context,
            workers: BTreeMap::new(),
            running: JoinSet::new(),
            rejected: BTreeSet::new(),
            waiting: BTreeMap::new(),
            records: BTreeMap::new(),
        };
        coracle_clock::select! {
            () = shutdown => {}
            () = core.run() => {}
        }
        info!("the node agent stops; containers go on");
        // Tasks end with the sets that hold them.
        Ok(())
    }
}

/// Serves logs and exec until the end. Without them the node still works, so that a failure is only told.
async fn serve_api(context: Arc<Context>, api: KubeletApi, listener: TcpListener, ending: CancellationToken) {
    let config = ServerConfig {
        certificate: api.certificate,
        client_ca_pem: api.client_ca_pem,
        pods_log_dir: context.config.pod_logs_dir.clone(),
        header_timeout: API_HEADER_TIMEOUT,
        shutdown_grace: API_SHUTDOWN_GRACE,
    };
    let (runtime, clock) = (context.runtime.clone(), context.clock.clone());
    let served = KubeletServer::serve(listener, config, runtime, context, clock, ending).await;
    if let Err(why) = served {
        error!(error = %why, "the kubelet's API does not work: no logs, no exec");
    }
}

struct NodeCore {
    context: Arc<Context>,
    /// By Pod UID.
    workers: BTreeMap<String, WorkerHandle>,
    running: JoinSet<Ended>,
    /// UIDs of Pods that this node has refused: they take up nothing.
    rejected: BTreeSet<String>,
    /// Critical Pods by UID, which get a worker when those that end for them have ended.
    waiting: BTreeMap<String, Arc<Pod>>,
    /// What an earlier worker has left of Pods that have none yet, by UID.
    records: BTreeMap<String, Record>,
}

/// What becomes of a Pod that has no worker yet.
enum Decision {
    Start,
    Refuse(Rejection),
    /// The room that it needs is being made.
    Wait,
}

impl NodeCore {
    async fn run(mut self) {
        let context = self.context.clone();
        let mut runtime_events = self.runtime_events().await;
        context.services.synced().await;
        context.pods.synced().await;
        // Admission looks at the Node: nothing is decided before it is there.
        let mut node_changes = context.nodes.subscribe();
        while self.node().is_none() {
            if node_changes.changed().await.is_none() {
                return;
            }
        }
        self.read_records().await;
        self.remove_orphans().await;
        let mut pod_changes = context.pods.subscribe();
        let mut network = context.network.subscribe();
        let mut next_resync = context.clock.elapsed() + RESYNC;
        loop {
            let until_resync = next_resync.saturating_sub(context.clock.elapsed());
            coracle_clock::select! {
                () = context.clock.sleep(until_resync) => {
                    next_resync = context.clock.elapsed() + RESYNC;
                    self.remove_orphans().await;
                    self.wake_all();
                }
                Some(ended) = self.running.join_next() => self.worker_ended(ended).await,
                Ok(()) = network.changed() => self.wake_all(),
                changed = pod_changes.changed() => match changed {
                    Some(keys) => self.pods_changed(&keys),
                    None => return,
                },
                event = runtime_events.recv() => match event {
                    Some(event) => self.runtime_changed(&event),
                    None => {
                        runtime_events = self.runtime_events().await;
                        self.wake_all();
                    }
                }
            }
        }
    }

    /// Reads what an earlier node agent has left of Pods.
    async fn read_records(&mut self) {
        let pods_dir = self.context.config.pods_dir.clone();
        let read = move || {
            let uids = disk::pods(&pods_dir).into_iter();
            uids.filter_map(|uid| Some((uid.clone(), record::read(&pods_dir.join(uid))?))).collect()
        };
        self.records = self.context.clock.blocking(read).await;
    }

    async fn runtime_events(&self) -> mpsc::Receiver<ContainerEvent> {
        loop {
            match self.context.runtime.container_events().await {
                Ok(events) => return events,
                Err(why) => warn!(error = %why, "the runtime does not tell of events"),
            }
            self.context.clock.sleep(RETRY).await;
        }
    }

    fn node(&self) -> Option<Arc<Node>> {
        self.context.nodes.get("", &self.context.config.node_name)
    }

    fn wake_all(&self) {
        self.workers.values().for_each(WorkerHandle::look_again);
    }

    fn runtime_changed(&self, event: &ContainerEvent) {
        if let Some(worker) = self.workers.get(&event.pod_uid) {
            worker.look_again();
        }
    }

    async fn worker_ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let ended = match ended {
            Ok(ended) => ended,
            // Panics are caught: what is left is the end of the runtime.
            Err(why) => {
                warn!(error = %why, "a pod's worker was cancelled");
                return;
            }
        };
        self.workers.remove(&ended.uid);
        self.rejected.remove(&ended.uid);
        if !ended.panicked {
            self.context.statuses().remove(&ended.uid);
            return;
        }
        // A worker holds no truth: the next one finds everything again.
        let directory = self.context.config.pods_dir.join(&ended.uid);
        let record = self.context.clock.blocking(move || record::read(&directory)).await;
        self.records.extend(record.map(|record| (ended.uid.clone(), record)));
        match self.context.pods.list().into_iter().find(|pod| uid_of(&**pod) == ended.uid) {
            Some(pod) => self.start_worker(pod),
            None => self.remove_orphans().await,
        }
    }

    fn pods_changed(&mut self, keys: &BTreeSet<ObjectKey>) {
        for worker in self.workers.values().filter(|worker| keys.contains(&worker.key)) {
            worker.look_again();
        }
        let mut new: Vec<_> = keys
            .iter()
            .filter_map(|key| self.context.pods.get_key(key))
            .filter(|pod| !self.workers.contains_key(uid_of(&**pod)))
            .collect();
        // Who came first is served first.
        new.sort_by_key(|pod| {
            let meta = &pod.metadata;
            let started = pod.status.as_ref().is_some_and(|s| s.start_time.is_some());
            (!started, meta.creation_timestamp.clone(), meta.namespace.clone(), meta.name.clone())
        });
        for pod in new {
            self.start_worker(pod);
        }
        self.retry_waiting();
    }

    /// Room may have become free for those that wait for it.
    fn retry_waiting(&mut self) {
        for (uid, known) in std::mem::take(&mut self.waiting) {
            let meta = &known.metadata;
            let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
            let now = self.context.pods.get(namespace.unwrap_or_default(), name.unwrap_or_default());
            if let Some(pod) = now.filter(|pod| uid_of(&**pod) == uid) {
                self.start_worker(pod);
            }
        }
    }

    fn start_worker(&mut self, pod: Arc<Pod>) {
        let uid = uid_of(&*pod).to_owned();
        if self.workers.contains_key(&uid) {
            return;
        }
        self.waiting.remove(&uid);
        let rejection = match self.decide_admission(&pod) {
            Decision::Start => None,
            Decision::Refuse(rejection) => Some(rejection),
            Decision::Wait => {
                self.waiting.insert(uid, pod);
                return;
            }
        };
        if let Some(rejection) = &rejection {
            info!(pod = ?pod.metadata.name, reason = %rejection.reason, "refused a pod");
            self.rejected.insert(uid);
        }
        self.spawn_worker(pod, rejection);
    }

    fn spawn_worker(&mut self, pod: Arc<Pod>, rejection: Option<Rejection>) {
        let uid = uid_of(&*pod).to_owned();
        let record = self.records.remove(&uid);
        // Boxed, because a future has room for what moves into it twice over.
        let worker = Box::new(Worker::new(self.context.clone(), pod, rejection, record));
        self.workers.insert(uid.clone(), worker.handle());
        self.running.spawn(supervised(uid, self.context.clock.clone(), worker.run()));
    }

    /// A Pod that has been started or is on its way out has been admitted before.
    fn decide_admission(&self, pod: &Pod) -> Decision {
        let started = pod.status.as_ref().is_some_and(|s| s.start_time.is_some());
        if started || has_ended(pod) || pod.metadata.deletion_timestamp.is_some() {
            return Decision::Start;
        }
        // What has been decided stays so.
        if let Some(record) = self.records.get(uid_of(pod)) {
            return record.memo.rejection.clone().map_or(Decision::Start, Decision::Refuse);
        }
        let Some(node) = self.node() else {
            let message = "Kubelet cannot get node info.".to_owned();
            return Decision::Refuse(Rejection { reason: "InvalidNodeInfo".to_owned(), message });
        };
        let all = self.context.pods.list();
        // Room that is being made is taken.
        let here = |uid: &str| {
            (self.workers.contains_key(uid) && !self.rejected.contains(uid)) || self.waiting.contains_key(uid)
        };
        let admitted: Vec<&Pod> =
            all.iter().map(AsRef::as_ref).filter(|other| here(uid_of(*other)) && !has_ended(other)).collect();
        if admit(pod, &node, &admitted).is_ok() {
            return Decision::Start;
        }
        let stays = |other: &&&Pod| !self.workers.get(uid_of(**other)).is_some_and(WorkerHandle::is_evicted);
        let staying: Vec<&Pod> = admitted.iter().filter(stays).copied().collect();
        // A Pod that may push others off goes on where it had begun; for others what still runs takes up room.
        let beside = if preemption::is_critical(pod) { &staying } else { &admitted };
        match preemption::decide(pod, &node, beside) {
            Admission::Admit => Decision::Wait,
            Admission::Reject(rejection) => Decision::Refuse(rejection),
            Admission::Preempt(victims) => {
                for victim in victims {
                    info!(pod = ?victim.metadata.name, critical = ?pod.metadata.name, "preempts a pod");
                    self.evict(uid_of(victim));
                }
                Decision::Wait
            }
        }
    }

    fn evict(&self, uid: &str) {
        if let Some(worker) = self.workers.get(uid) {
            worker.evict(Eviction::preemption());
        }
    }

    /// Starts to remove what the runtime holds of Pods that neither the API server nor a worker knows.
    async fn remove_orphans(&mut self) {
        let sandboxes = match self.context.runtime.list_pod_sandboxes(&PodSandboxFilter::default()).await {
            Ok(sandboxes) => sandboxes,
            Err(why) => {
                warn!(error = %why, "cannot list sandboxes");
                return;
            }
        };
        let known: BTreeSet<String> =
            self.context.pods.list().iter().map(|pod| uid_of(&**pod).to_owned()).collect();
        let pods_dir = self.context.config.pods_dir.clone();
        let on_disk = self.context.clock.blocking(move || disk::pods(&pods_dir)).await;
        for uid in on_disk {
            let runs = sandboxes.iter().any(|sandbox| sandbox.metadata.uid == uid);
            if !runs && !known.contains(&uid) && !self.workers.contains_key(&uid) {
                let (context, clock) = (self.context.clone(), self.context.clock.clone());
                let work = execute::remove_forgotten(context, uid.clone());
                self.running.spawn(supervised(uid, clock, work));
            }
        }
        for sandbox in sandboxes {
            let uid = &sandbox.metadata.uid;
            if known.contains(uid) || self.workers.contains_key(uid) {
                continue;
            }
            if let Some(record) = self.records.get(uid).filter(|record| uid_of(&record.pod) == *uid) {
                // Its end is as orderly as if the agent had seen the object go.
                let pod = Arc::new(record.pod.clone());
                self.spawn_worker(pod, None);
            } else {
                let (context, uid) = (self.context.clone(), uid.clone());
                let clock = context.clock.clone();
                self.running.spawn(supervised(uid, clock, execute::remove_orphan(context, sandbox)));
            }
        }
    }
}
