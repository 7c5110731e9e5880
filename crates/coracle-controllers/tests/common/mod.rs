//! A cluster without nodes and scheduler in one process, on virtual time and simulated files, whose controllers can die
//! after any write and start again.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test crate uses a part")]

pub(crate) mod node;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use coracle_apiserver::auth::UserInfo;
use coracle_apiserver::{ApiServer, Config, InProcess};
use coracle_client::request::{self, PatchBody};
use coracle_client::{Deletion, Informer, Object, ObjectKey, Propagation, in_process};
use coracle_clock::{Clock, Ids, Rng};
use coracle_controllers::{ControllerInputs, ControllersConfig, Identity, run_all};
use coracle_store::embedded::{EmbeddedStore, Execution, Options};
use coracle_store::simfs::SimFs;
use http_body_util::{BodyExt as _, StreamBody};
use k8s_openapi::api::core::v1::{Event, Namespace};
use kube::Client;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// The writes that the controllers may still do before they die.
struct Life {
    left: AtomicU64,
    counted: &'static [&'static str],
    over: Notify,
}

/// A client's way to the API server that ends with the life of its process: after the last write nothing is answered.
#[derive(Clone)]
struct Mortal {
    inner: InProcess,
    life: Arc<Life>,
    /// No Pod can be deleted.
    pods_stay: Arc<AtomicBool>,
}

impl tower::Service<http::Request<kube::client::Body>> for Mortal {
    type Response = <InProcess as tower::Service<http::Request<kube::client::Body>>>::Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<kube::client::Body>) -> Self::Future {
        let life = self.life.clone();
        let path = request.uri().path();
        let counts = life.counted.is_empty() || life.counted.iter().any(|part| path.contains(part));
        let writes = request.method() != http::Method::GET && counts && !path.contains("/events");
        if life.left.load(Ordering::SeqCst) == 0 {
            return Box::pin(std::future::pending());
        }
        if self.pods_stay.load(Ordering::SeqCst)
            && request.method() == http::Method::DELETE
            && path.contains("/pods/")
        {
            let status = json!({"kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403,
                "message": "pods are kept"});
            let body = http_body_util::Full::from(status.to_string()).map_err(|never| match never {});
            let refused = http::Response::builder().status(403).body(body.boxed_unsync()).unwrap();
            return Box::pin(std::future::ready(Ok(refused)));
        }
        let last = writes && life.left.fetch_sub(1, Ordering::SeqCst) == 1;
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            if last {
                life.over.notify_one();
                std::future::pending::<()>().await;
            }
            answer
        })
    }
}

/// A client's way to the API server on which all that is told of Pods is late.
#[derive(Clone)]
struct Late {
    inner: InProcess,
    clock: Clock,
    by: Duration,
}

impl tower::Service<http::Request<kube::client::Body>> for Late {
    type Response = http::Response<coracle_apiserver::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<kube::client::Body>) -> Self::Future {
        let by = if request.uri().path().ends_with("/pods") { self.by } else { Duration::ZERO };
        let (clock, answer) = (self.clock.clone(), self.inner.call(request));
        Box::pin(async move {
            let (parts, body) = answer.await?.into_parts();
            let frames = futures::stream::unfold((body, clock), move |(mut body, clock)| async move {
                let frame = body.frame().await?;
                clock.sleep(by).await;
                Some((frame, (body, clock)))
            });
            let body = StreamBody::new(frames).boxed_unsync();
            Ok(http::Response::from_parts(parts, body))
        })
    }
}

pub(crate) struct Cluster {
    pub(crate) admin: Client,
    pub(crate) clock: Clock,
    pub(crate) inputs: ControllerInputs,
    /// Only writes to paths with one of these parts count against the controllers' lives; all, if there are none.
    pub(crate) counted: &'static [&'static str],
    server: Arc<ApiServer>,
    controllers: Option<JoinHandle<()>>,
    /// How late the controllers hear of Pods.
    pub(crate) late: Duration,
    /// The controllers can delete no Pod.
    pub(crate) pods_stay: Arc<AtomicBool>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let mut cluster = Self::without_controllers().await;
        drop(cluster.run_controllers(u64::MAX));
        cluster
    }

    pub(crate) async fn without_controllers() -> Self {
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
        let server = ApiServer::start(config, store, clock.clone(), ids).await.unwrap();
        let admin = in_process(server.in_process(UserInfo::new("admin", ["system:masters"])));
        let inputs = ControllerInputs::start(&admin, &clock, &mut Rng::seeded(9));
        Cluster {
            admin,
            clock,
            inputs,
            counted: &[],
            server,
            controllers: None,
            late: Duration::ZERO,
            pods_stay: Arc::default(),
        }
    }

    /// Starts what stands for scheduler and node agents.
    pub(crate) fn run_nodes(&self) {
        tokio::spawn(node::run(self.admin.clone(), self.clock.clone()));
    }

    /// Starts the controllers, as a process that dies after so many writes would. The answer waits for that.
    pub(crate) fn run_controllers(&mut self, writes: u64) -> impl Future<Output = ()> + use<> {
        self.stop_controllers();
        let life =
            Arc::new(Life { left: AtomicU64::new(writes), counted: self.counted, over: Notify::new() });
        let config = ControllersConfig {
            cluster_cidr: "10.244.0.0/22".parse().unwrap(),
            node_prefix: 24,
            root_ca: "PEM".to_owned(),
            ended_pods_max: Some(coracle_controllers::pod_gc::ENDED_MAX),
        };
        let (server, clock, mortal) = (self.server.clone(), self.clock.clone(), life.clone());
        let pods_stay = self.pods_stay.clone();
        let admin = UserInfo::new("admin", ["system:masters"]);
        let eyes = Late { inner: self.server.in_process(admin), clock: clock.clone(), by: self.late };
        let inputs = ControllerInputs::start(&in_process(eyes), &clock, &mut Rng::seeded(8));
        self.controllers = Some(tokio::spawn(async move {
            let client = |identity: Identity| {
                let user = UserInfo::service_account("kube-system", identity.service_account());
                let (inner, life, pods_stay) = (server.in_process(user), mortal.clone(), pods_stay.clone());
                in_process(Mortal { inner, life, pods_stay })
            };
            run_all(config, client, inputs, clock, Rng::seeded(3), std::future::pending()).await;
        }));
        async move { life.over.notified().await }
    }

    pub(crate) fn stop_controllers(&mut self) {
        if let Some(running) = self.controllers.take() {
            running.abort();
        }
    }

    /// Lets the controllers die after so many writes, starts them again, and waits until all is done. False if they had
    /// no reason to write so often.
    pub(crate) async fn survive(&mut self, writes: u64, long: Duration) -> bool {
        let over = self.run_controllers(writes);
        let died = self.clock.timeout(long, over).await.is_some();
        if died {
            drop(self.run_controllers(u64::MAX));
            self.clock.sleep(long).await;
        }
        died
    }

    pub(crate) async fn create<K: Object + Serialize>(&self, object: Value) -> K {
        request::create(&self.admin, &serde_json::from_value::<K>(object).unwrap()).await.unwrap()
    }

    pub(crate) async fn merge<K: Object>(&self, key: &ObjectKey, patch: Value) -> K {
        request::patch(&self.admin, key, &PatchBody::Merge(patch)).await.unwrap()
    }

    pub(crate) async fn get<K: Object>(&self, key: &ObjectKey) -> Option<K> {
        request::get(&self.admin, key).await.ok()
    }

    pub(crate) async fn delete<K: Object>(&self, key: &ObjectKey, grace: Option<u32>) {
        let how = Deletion { grace_period_seconds: grace, ..Deletion::default() };
        request::delete::<K>(&self.admin, key, &how).await.unwrap();
    }

    pub(crate) async fn delete_as<K: Object>(&self, key: &ObjectKey, propagation: Propagation) {
        let how = Deletion::default().propagating(propagation);
        request::delete::<K>(&self.admin, key, &how).await.unwrap();
    }

    /// The reasons and messages of all Events about an object of this name.
    pub(crate) async fn events(&self, name: &str) -> Vec<(String, String)> {
        let events = request::list::<Event>(&self.admin, None).await.unwrap();
        let about = events.into_iter().filter(|event| event.involved_object.name.as_deref() == Some(name));
        about.map(|event| (event.reason.unwrap_or_default(), event.message.unwrap_or_default())).collect()
    }

    pub(crate) async fn until<K: Object>(
        &self,
        informer: &Informer<K>,
        what: &str,
        holds: impl Fn() -> bool,
    ) {
        let mut changes = informer.subscribe();
        let wait = async {
            while !holds() {
                changes.changed().await.expect("the informer runs");
            }
        };
        let done = self.clock.timeout(Duration::from_secs(120), wait).await;
        assert!(done.is_some(), "{what}: {:#?}", informer.list());
    }

    pub(crate) async fn until_namespace(
        &self,
        name: &str,
        what: &str,
        holds: impl Fn(Option<Arc<Namespace>>) -> bool,
    ) {
        let namespaces = &self.inputs.namespaces;
        self.until(namespaces, what, || holds(namespaces.get("", name))).await;
    }
}
