//! A cluster in one process for the node agent: the real API server and store, a scripted runtime, virtual time.

mod asked;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use coracle_apiserver::auth::UserInfo;
use coracle_apiserver::{ApiServer, Body, Config, InProcess};
use coracle_client::request::{self, PatchBody};
use coracle_client::{Deletion, Informer, ListOptions, ObjectKey, in_process};
use coracle_clock::{Clock, Ids, Rng};
use coracle_cri::scripted::{Exit, ImageScript, RunScript, ScriptedRuntime};
use coracle_kubelet::{Kubelet, KubeletConfig, Machine, VolumeHost};
use coracle_store::embedded::{EmbeddedStore, Execution, Options};
use coracle_store::simfs::SimFs;
use coracle_store::{Op, Store as _, Txn};
use futures::{StreamExt as _, TryStreamExt as _};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::{Event, Node, Pod, ServiceAccount};
use kube::api::{WatchEvent, WatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tower::Service;

pub(crate) use asked::Asked;

pub(crate) const NODE: &str = "node-a";

/// A watch event: its type, the object, and when it came, in seconds since the start.
pub(crate) type Seen = (String, Value, f64);

pub(crate) struct Cluster {
    pub(crate) admin: Client,
    pub(crate) clock: Clock,
    pub(crate) runtime: ScriptedRuntime,
    pub(crate) asked: Asked,
    /// Upper bound of the restart back-off, in seconds.
    pub(crate) restart_backoff_max: i64,
    /// How many images are fetched at a time.
    pub(crate) max_parallel_image_pulls: usize,
    /// What names the boot of the machine.
    pub(crate) boot_id: String,
    pub(crate) node_ip: std::net::IpAddr,
    pub(crate) events: Informer<Event>,
    pub(crate) nodes: Informer<Node>,
    seen: Arc<Mutex<Vec<Seen>>>,
    news: Arc<Notify>,
    server: Arc<ApiServer>,
    store: Arc<EmbeddedStore>,
    agent: Option<JoinHandle<()>>,
    pub(crate) statuses: Statuses,
    directory: tempfile::TempDir,
}

/// What becomes of the statuses of Pods that the node agent writes.
#[derive(Clone, Default)]
pub(crate) struct Statuses {
    /// The server says that the Pod is gone, and the watch does not know it yet.
    pub(crate) gone: Arc<AtomicBool>,
    /// The server cannot write.
    pub(crate) failing: Arc<AtomicBool>,
    pub(crate) refused: Arc<AtomicUsize>,
}

impl Statuses {
    fn between(
        &self,
        server: InProcess,
    ) -> impl Service<
        http::Request<kube::client::Body>,
        Response = http::Response<Body>,
        Error = Infallible,
        Future: Send + 'static,
    > + Clone
    + Send
    + 'static {
        let statuses = self.clone();
        tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (statuses, mut server) = (statuses.clone(), server.clone());
            async move {
                let is_status =
                    request.method() == http::Method::PATCH && request.uri().path().contains("/pods/");
                let (reason, code) = if statuses.gone.load(Ordering::Relaxed) {
                    ("NotFound", 404)
                } else {
                    ("InternalError", 500)
                };
                if !is_status || code == 500 && !statuses.failing.load(Ordering::Relaxed) {
                    return server.call(request).await;
                }
                statuses.refused.fetch_add(1, Ordering::Relaxed);
                let status = json!({"kind": "Status", "status": "Failure", "reason": reason, "code": code});
                let body = http_body_util::Full::from(status.to_string());
                let body = body.map_err(|never| match never {}).boxed_unsync();
                Ok(http::Response::builder().status(code).body(body).unwrap())
            }
        })
    }
}

/// Where an object of this name is: all are in one namespace.
pub(crate) fn key(name: &str) -> ObjectKey {
    ObjectKey::namespaced("default", name)
}

/// A program that ends with this code after so many seconds.
pub(crate) fn exits(code: i32, after: u64) -> RunScript {
    let exit = Some(Exit { after: Duration::from_secs(after), code, oom_killed: false });
    RunScript { exit, ..RunScript::default() }
}

/// A condition of a Pod, which must be there.
pub(crate) fn condition<'a>(pod: &'a Value, kind: &str) -> &'a Value {
    let conditions = pod["status"]["conditions"].as_array().expect("conditions");
    conditions.iter().find(|c| c["type"] == kind).unwrap_or_else(|| panic!("no condition {kind}: {pod:#}"))
}

impl Cluster {
    /// A cluster whose node is ready.
    pub(crate) async fn start() -> Self {
        let mut cluster = Self::without_agent().await;
        cluster.start_agent();
        cluster.give_pod_cidr().await;
        cluster.until_ready().await;
        cluster
    }

    pub(crate) async fn without_agent() -> Self {
        let clock = Clock::starting_at("2030-01-01T00:00:00Z".parse().unwrap());
        let options = Options { execution: Execution::Tasks, ..Options::default() };
        let files = Arc::new(SimFs::new(Rng::seeded(1)));
        let (store, _) = EmbeddedStore::open(files, clock.clone(), options).unwrap();
        let config = Config {
            service_range: "10.96.0.0/16".parse().unwrap(),
            advertise: "192.0.2.1:6443".parse().unwrap(),
            kubelet: None,
            joining: None,
            account_key: coracle_apiserver::pki::AccountKey::unkept().unwrap().into(),
        };
        let ids = Arc::new(Ids::new(Rng::seeded(2)));
        let server = ApiServer::start(config, store.clone(), clock.clone(), ids).await.unwrap();
        let admin = in_process(server.in_process(UserInfo::new("admin", ["system:masters"])));
        // Nobody publishes the cluster's authority here, which Pods with a token would wait for.
        let silent = PatchBody::Merge(json!({"automountServiceAccountToken": false}));
        let account = key("default");
        request::patch::<ServiceAccount>(&admin, &account, &silent).await.unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let news = Arc::new(Notify::new());
        tokio::spawn(record(admin.clone(), clock.clone(), seen.clone(), news.clone()));
        let informer =
            |rng| Informer::start(admin.clone(), ListOptions::default(), clock.clone(), Rng::seeded(rng));
        let runtime = ScriptedRuntime::new(clock.clone());
        Cluster {
            events: informer(5),
            nodes: Informer::start(admin.clone(), ListOptions::default(), clock.clone(), Rng::seeded(6)),
            asked: Asked::new(runtime.clone(), clock.clone()),
            restart_backoff_max: 300,
            max_parallel_image_pulls: 1,
            boot_id: "boot-1".to_owned(),
            node_ip: [192, 0, 2, 10].into(),
            runtime,
            admin,
            clock,
            seen,
            news,
            server,
            store,
            agent: None,
            statuses: Statuses::default(),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn start_agent(&mut self) {
        let directory = self.directory.path();
        let resolv_conf = directory.join("resolv.conf");
        std::fs::write(&resolv_conf, "nameserver 192.0.2.53\n").unwrap();
        let config = KubeletConfig {
            node_name: NODE.to_owned(),
            hostname: NODE.to_owned(),
            node_ips: vec![self.node_ip],
            node_labels: Default::default(),
            machine: Machine {
                cpus: 4,
                memory_bytes: 8 << 30,
                storage_bytes: 100 << 30,
                architecture: "amd64".to_owned(),
                boot_id: self.boot_id.clone(),
                ..Machine::default()
            },
            max_pods: 110,
            api: None,
            pods_dir: directory.join("pods"),
            image_records_dir: directory.join("images"),
            volume_host: VolumeHost::Below(directory.join("host")),
            pod_logs_dir: directory.join("logs/pods"),
            container_logs_dir: directory.join("logs/containers"),
            cgroup_root: "/coracle-test".to_owned(),
            resolv_conf,
            hosts_file: directory.join("hosts"),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            restart_backoff_max: jiff::SignedDuration::from_secs(self.restart_backoff_max),
            max_parallel_image_pulls: self.max_parallel_image_pulls,
        };
        let client = in_process(self.statuses.between(self.server.in_process(UserInfo::node(NODE))));
        let runtime = Arc::new(self.runtime.clone());
        let network = Arc::new(self.asked.clone());
        let kubelet =
            Kubelet::new(config, client, runtime.clone(), runtime, self.clock.clone(), Rng::seeded(3))
                .with_probe_network(network);
        self.agent = Some(tokio::spawn(async move { kubelet.run(std::future::pending()).await.unwrap() }));
    }

    /// Ends the node agent as `kill -9` would.
    pub(crate) async fn kill_agent(&mut self) {
        let agent = self.agent.take().unwrap();
        agent.abort();
        let _ = agent.await;
    }

    pub(crate) fn path(&self, relative: &str) -> std::path::PathBuf {
        self.directory.path().join(relative)
    }

    pub(crate) async fn give_pod_cidr(&self) {
        self.until_node("the node is registered", |_| true).await;
        let patch =
            PatchBody::Merge(json!({"spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]}}));
        request::patch::<Node>(&self.admin, &ObjectKey::cluster(NODE), &patch).await.unwrap();
    }

    pub(crate) async fn until_ready(&self) {
        let ready = |node: &Node| {
            let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
            conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
        };
        self.until_node("the node is ready", ready).await;
        while self.runtime.pod_cidr().is_none() {
            self.clock.sleep(Duration::from_millis(1)).await;
        }
    }

    pub(crate) async fn until_node(&self, what: &str, holds: impl Fn(&Node) -> bool) -> Arc<Node> {
        let mut changes = self.nodes.subscribe();
        let wait = async {
            loop {
                if let Some(node) = self.nodes.get("", NODE).filter(|node| holds(node)) {
                    return node;
                }
                changes.changed().await.expect("the informer runs");
            }
        };
        let found = self.clock.timeout(Duration::from_secs(60), wait).await;
        found.unwrap_or_else(|| panic!("{what}: {:#?}", self.nodes.list()))
    }

    /// Makes a Pod and binds it to the node.
    pub(crate) async fn run(&self, name: &str, spec: Value) -> Pod {
        let pod = self.make(name, spec).await;
        self.bind(name).await;
        pod
    }

    /// The same with a class that makes it critical.
    pub(crate) async fn run_critical(&self, name: &str, mut spec: Value) {
        spec["priorityClassName"] = json!("system-cluster-critical");
        self.run(name, spec).await;
    }

    /// Changes a stored object past the API server.
    pub(crate) async fn rewrite(&self, key: &str, from: &str, to: &str) {
        let key = Bytes::from(key.to_owned());
        let made = self.store.get(&key).await.unwrap().0.unwrap();
        let text = std::str::from_utf8(&made.value).unwrap();
        let value = text.replace(from, to);
        assert_ne!(value, text);
        let put = Op::Put { key, value: value.into() };
        self.store.txn(Txn { compares: Vec::new(), ops: vec![put] }).await.unwrap();
    }

    async fn make(&self, name: &str, spec: Value) -> Pod {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": name},
            "spec": spec,
        }))
        .unwrap();
        request::create(&self.admin, &pod).await.unwrap()
    }

    async fn bind(&self, name: &str) {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name, "namespace": "default"},
            "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
        });
        request::create_subresource::<Pod, Value>(&self.admin, &key(name), "binding", &binding)
            .await
            .unwrap();
    }

    pub(crate) async fn delete(&self, name: &str, how: &Deletion) {
        request::delete::<Pod>(&self.admin, &key(name), how).await.unwrap();
    }

    /// Changes a Pod.
    pub(crate) async fn patch(&self, name: &str, patch: &PatchBody) {
        request::patch::<Pod>(&self.admin, &key(name), patch).await.unwrap();
    }

    /// The Pod as the API server has it.
    pub(crate) async fn pod(&self, name: &str) -> Pod {
        request::get::<Pod>(&self.admin, &key(name)).await.unwrap()
    }

    /// Everything a watch has shown of a Pod.
    pub(crate) fn history(&self, name: &str) -> Vec<Seen> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|(_, pod, _)| pod["metadata"]["name"] == name).cloned().collect()
    }

    /// What a watch has shown last of a Pod.
    pub(crate) fn last(&self, name: &str) -> Option<Seen> {
        let seen = self.seen.lock().unwrap();
        seen.iter().rfind(|(_, pod, _)| pod["metadata"]["name"] == name).cloned()
    }

    /// One short line for each step that a watch has shown, repetitions left out.
    pub(crate) fn steps(&self, name: &str) -> Vec<String> {
        let mut steps: Vec<String> =
            self.history(name).iter().map(|(kind, pod, _)| describe(kind, pod)).collect();
        steps.dedup();
        steps
    }

    /// Waits until the last step is `step`, at most ten virtual minutes.
    pub(crate) async fn until_step(&self, name: &str, step: &str) {
        let wait = async {
            loop {
                let news = self.news.notified();
                if self.steps(name).last().is_some_and(|last| last == step) {
                    return;
                }
                news.await;
            }
        };
        let done = self.clock.timeout(Duration::from_secs(1200), wait).await;
        assert!(done.is_some(), "waited for {step:?}, saw {:#?}", self.steps(name));
    }

    /// Waits until nothing more happens for a while of virtual time.
    pub(crate) async fn settle(&self) {
        self.clock.sleep(Duration::from_secs(3)).await;
    }

    /// Waits until the runtime has been called so often, and returns before the caller hears the answer. False if that
    /// does not happen within `limit` of virtual time.
    pub(crate) async fn until_calls(&self, count: usize, limit: Duration) -> bool {
        let end = self.clock.elapsed() + limit;
        while self.clock.elapsed() < end {
            // Time stands still as long as somebody is ready to run.
            for _ in 0..50 {
                if self.runtime.calls().len() >= count {
                    return true;
                }
                tokio::task::yield_now().await;
            }
            self.clock.sleep(Duration::from_millis(5)).await;
        }
        false
    }

    /// Events about a Pod: `type reason message (fieldPath)`, in the order of their making.
    pub(crate) async fn events(&self, name: &str) -> Vec<String> {
        self.settle().await;
        let mut all: Vec<_> = self.events.list();
        all.retain(|e| e.involved_object.name.as_deref() == Some(name));
        all.sort_by_key(|e| e.metadata.resource_version.as_ref().and_then(|v| v.parse::<u64>().ok()));
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        all.iter()
            .map(|e| {
                let part =
                    e.involved_object.field_path.as_ref().map(|p| format!(" ({p})")).unwrap_or_default();
                format!("{} {} {}{part}", text(&e.type_), text(&e.reason), text(&e.message))
            })
            .collect()
    }

    pub(crate) fn image(&self, name: &str, script: ImageScript) {
        self.runtime.script(name, ImageScript { present: true, ..script });
    }
}

async fn record(client: Client, clock: Clock, seen: Arc<Mutex<Vec<Seen>>>, news: Arc<Notify>) {
    let pods: Api<Pod> = Api::all(client);
    let stream = pods.watch(&WatchParams::default().timeout(290), "0").await.unwrap();
    let mut stream = stream.boxed();
    loop {
        match stream.try_next().await {
            Ok(Some(event)) => {
                let (kind, pod) = match event {
                    WatchEvent::Added(pod) => ("ADDED", pod),
                    WatchEvent::Modified(pod) => ("MODIFIED", pod),
                    WatchEvent::Deleted(pod) => ("DELETED", pod),
                    WatchEvent::Bookmark(_) | WatchEvent::Error(_) => continue,
                };
                let at = clock.elapsed().as_secs_f64();
                seen.lock().unwrap().push((kind.to_owned(), serde_json::to_value(pod).unwrap(), at));
                news.notify_waiters();
            }
            _ => {
                let last =
                    seen.lock().unwrap().last().map(|(_, pod, _)| pod["metadata"]["resourceVersion"].clone());
                let last = last.as_ref().and_then(Value::as_str).unwrap_or("0").to_owned();
                stream = pods.watch(&WatchParams::default().timeout(290), &last).await.unwrap().boxed();
            }
        }
    }
}

/// `TYPE PHASE REASON?: container STATE restarts`, init containers first.
fn describe(kind: &str, pod: &Value) -> String {
    let status = &pod["status"];
    let node = if pod["spec"]["nodeName"].is_string() { "" } else { " unbound" };
    let terminating = if pod["metadata"]["deletionTimestamp"].is_string() { " terminating" } else { "" };
    let phase = status["reason"].as_str().or(status["phase"].as_str()).unwrap_or("?");
    let mut text = format!("{kind} {phase}{node}{terminating}");
    let init = status["initContainerStatuses"].as_array().into_iter().flatten().map(|c| ("init ", c));
    let regular = status["containerStatuses"].as_array().into_iter().flatten().map(|c| ("", c));
    let ephemeral = status["ephemeralContainerStatuses"].as_array().into_iter().flatten();
    for (kind, container) in init.chain(regular).chain(ephemeral.map(|c| ("ephemeral ", c))) {
        let state = &container["state"];
        let shown = if state["running"].is_object() {
            "Running".to_owned()
        } else if let Some(terminated) = state["terminated"].as_object() {
            format!("{}:{}", terminated["reason"].as_str().unwrap_or("?"), terminated["exitCode"])
        } else {
            state["waiting"]["reason"].as_str().unwrap_or("-").to_owned()
        };
        text += &format!(
            " | {kind}{} {shown} {}",
            container["name"].as_str().unwrap_or("?"),
            container["restartCount"]
        );
    }
    text
}
