//! The scheduler against the real API server and store, in one process, on virtual time and simulated files.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coracle_apiserver::auth::UserInfo;
use coracle_apiserver::{ApiServer, Config};
use coracle_client::request::{self, PatchBody};
use coracle_client::{Deletion, Informer, ListOptions, Object, ObjectKey, in_process};
use coracle_clock::{Clock, Ids, Rng};
use coracle_scheduler::{Profile, Scheduler, SchedulerInputs};
use coracle_store::embedded::{EmbeddedStore, Execution, Options};
use coracle_store::simfs::SimFs;
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::Client;
use serde_json::{Value, json};
use tower::Service as _;

struct Cluster {
    admin: Client,
    clock: Clock,
    pods: Informer<Pod>,
    events: Informer<Event>,
    scheduler: Scheduler,
    /// No binding is taken.
    unbindable: Arc<AtomicBool>,
    _server: Arc<ApiServer>,
}

impl Cluster {
    async fn start() -> Self {
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
        let unbindable = Arc::new(AtomicBool::new(false));
        let (refuses, inner) =
            (unbindable.clone(), server.in_process(UserInfo::new("system:kube-scheduler", [])));
        let own = in_process(tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (refuses, mut inner) = (refuses.clone(), inner.clone());
            async move {
                if !refuses.load(Ordering::SeqCst) || !request.uri().path().ends_with("/binding") {
                    return inner.call(request).await;
                }
                let status = json!({"kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403,
                    "message": "pods \"p\" is forbidden: not now"});
                let body = http_body_util::Full::from(status.to_string()).map_err(|never| match never {});
                Ok(http::Response::builder().status(403).body(body.boxed_unsync()).unwrap())
            }
        }));
        let inputs = SchedulerInputs { pods: informer(&own, &clock), nodes: informer(&own, &clock) };
        let cluster = Cluster {
            pods: inputs.pods.clone(),
            events: informer(&admin, &clock),
            admin,
            clock: clock.clone(),
            scheduler: Scheduler::new(Profile::default()),
            unbindable,
            _server: server,
        };
        let scheduler = cluster.scheduler.clone();
        tokio::spawn(async move {
            scheduler.run(own, inputs, clock, Rng::seeded(3), std::future::pending()).await;
        });
        cluster
    }

    async fn add_node(&self, name: &str, allocatable: Value) {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        request::create(&self.admin, &node).await.unwrap();
        let status = json!({"status": {"capacity": allocatable, "allocatable": allocatable}});
        let key = ObjectKey::cluster(name);
        // Who sees that a node is Ready, and lets Pods onto it, is not here.
        let ready = json!({"spec": {"taints": null}});
        request::patch::<Node>(&self.admin, &key, &PatchBody::Merge(ready)).await.unwrap();
        request::patch_status::<Node>(&self.admin, &key, &PatchBody::Strategic(status)).await.unwrap();
    }

    async fn add_pod(&self, name: &str, cpu: &str) -> Pod {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": name},
            "spec": {"containers": [{
                "name": "c", "image": "busybox", "resources": {"requests": {"cpu": cpu}},
            }]},
        }))
        .unwrap();
        request::create(&self.admin, &pod).await.unwrap()
    }

    async fn until<K: Object>(&self, informer: &Informer<K>, what: &str, holds: impl Fn(&[Arc<K>]) -> bool) {
        let mut changes = informer.subscribe();
        let wait = async {
            while !holds(&informer.list()) {
                changes.changed().await.expect("the informer runs");
            }
        };
        let done = self.clock.timeout(Duration::from_secs(120), wait).await;
        assert!(done.is_some(), "{what}: {:#?}", informer.list());
    }

    async fn until_bound(&self, count: usize) {
        let bound = |pods: &[Arc<Pod>]| pods.iter().filter(|pod| node_of(pod).is_some()).count();
        self.until(&self.pods, &format!("{count} bound"), |pods| bound(pods) == count).await;
    }

    async fn until_event(&self, reason: &str, message: &str) {
        self.until(&self.events, message, |events| {
            events.iter().any(|event| {
                event.reason.as_deref() == Some(reason) && event.message.as_deref() == Some(message)
            })
        })
        .await;
    }
}

fn informer<K: Object>(client: &Client, clock: &Clock) -> Informer<K> {
    Informer::start(client.clone(), ListOptions::default(), clock.clone(), Rng::seeded(9))
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref())
}

fn condition(pod: &Pod) -> Option<(String, String, String)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|condition| condition.type_ == "PodScheduled")?;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    Some((condition.status.clone(), text(&condition.reason), text(&condition.message)))
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_bound_at_once_and_the_event_says_so() {
    let cluster = Cluster::start().await;
    cluster.add_node("a", json!({"cpu": "4", "memory": "8Gi", "pods": "110"})).await;
    cluster.add_pod("p", "1").await;
    let before = cluster.clock.elapsed();
    cluster.until_bound(1).await;
    assert_eq!(cluster.clock.elapsed(), before, "nothing waits for time to pass");
    let pod = cluster.pods.get("default", "p").unwrap();
    assert_eq!(condition(&pod).unwrap().0, "True");
    cluster.until_event("Scheduled", "Successfully assigned default/p to a").await;
    let event = &cluster.events.list()[0];
    assert_eq!(event.source.as_ref().unwrap().component.as_deref(), Some("default-scheduler"));
    assert_eq!(event.reporting_component.as_deref(), Some("default-scheduler"));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_fits_nowhere_says_why_and_is_bound_when_room_is_made() {
    const NO_ROOM: &str = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: \
                           1 No preemption victims found for incoming pod.";
    let cluster = Cluster::start().await;
    cluster.add_node("a", json!({"cpu": "2", "memory": "8Gi", "pods": "110"})).await;
    let first = cluster.add_pod("first", "2").await;
    cluster.until_bound(1).await;
    let second = cluster.add_pod("second", "2").await;
    cluster.until_event("FailedScheduling", NO_ROOM).await;
    let unschedulable = ("False".to_owned(), "Unschedulable".to_owned(), NO_ROOM.to_owned());
    cluster
        .until(&cluster.pods, "condition", |pods| {
            pods.iter().any(|pod| condition(pod).as_ref() == Some(&unschedulable))
        })
        .await;
    cluster.clock.sleep(Duration::from_secs(60)).await;
    let waiting = cluster.scheduler.waiting_on(second.metadata.uid.as_deref().unwrap()).unwrap();
    assert_eq!(waiting.attempts, 1, "its own status write did not bring it back");
    assert_eq!(waiting.reason.unwrap().message, NO_ROOM);

    let now = Deletion::of(first.metadata.uid.unwrap()).grace(0);
    request::delete::<Pod>(&cluster.admin, &ObjectKey::namespaced("default", "first"), &now).await.unwrap();
    cluster.until_bound(1).await;
    assert_eq!(node_of(&cluster.pods.get("default", "second").unwrap()), Some("a"));
}

#[tokio::test(start_paused = true)]
async fn without_nodes_a_pod_waits_for_one() {
    let cluster = Cluster::start().await;
    cluster.add_pod("p", "1").await;
    cluster.until_event("FailedScheduling", "no nodes available to schedule pods").await;
    cluster.add_node("a", json!({"cpu": "2", "memory": "8Gi", "pods": "110"})).await;
    cluster.until_bound(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_being_deleted_gets_no_node_and_is_told_so() {
    let cluster = Cluster::start().await;
    let pod = cluster.add_pod("p", "1").await;
    cluster.until_event("FailedScheduling", "no nodes available to schedule pods").await;
    let key = ObjectKey::namespaced("default", "p");
    let held = PatchBody::Merge(json!({"metadata": {"finalizers": ["example.com/hold"]}}));
    request::patch::<Pod>(&cluster.admin, &key, &held).await.unwrap();
    request::delete::<Pod>(&cluster.admin, &key, &Deletion::of(pod.metadata.uid.unwrap())).await.unwrap();
    cluster.until_event("FailedScheduling", "skip schedule deleting pod: default/p").await;
    cluster.add_node("a", json!({"cpu": "2", "memory": "8Gi", "pods": "110"})).await;
    cluster.clock.sleep(Duration::from_secs(600)).await;
    assert_eq!(node_of(&cluster.pods.get("default", "p").unwrap()), None);
    let told =
        cluster.events.list().into_iter().filter(|event| event.message.as_deref().unwrap().contains("skip"));
    assert_eq!(told.map(|event| event.count).collect::<Vec<_>>(), [Some(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_burst_never_overfills_a_node() {
    let cluster = Cluster::start().await;
    for node in ["a", "b"] {
        cluster.add_node(node, json!({"cpu": "4", "memory": "8Gi", "pods": "110"})).await;
    }
    for i in 0..100 {
        cluster.add_pod(&format!("p{i}"), "100m").await;
    }
    cluster.until_bound(80).await;
    cluster.clock.sleep(Duration::from_secs(30)).await;
    let mut by_node = BTreeMap::new();
    for pod in cluster.pods.list() {
        *by_node.entry(node_of(&pod).map(str::to_owned)).or_insert(0) += 1;
    }
    let expected = [(None, 20), (Some("a".to_owned()), 40), (Some("b".to_owned()), 40)];
    assert_eq!(by_node, BTreeMap::from(expected));
}

#[tokio::test(start_paused = true)]
async fn a_binding_that_is_refused_is_told_and_tried_again() {
    let cluster = Cluster::start().await;
    cluster.add_node("a", json!({"cpu": "4", "memory": "8Gi", "pods": "110"})).await;
    cluster.unbindable.store(true, Ordering::SeqCst);
    cluster.add_pod("p", "1").await;
    let why = "running Bind plugin \"DefaultBinder\": pods \"p\" is forbidden: not now";
    let failed = ("False".to_owned(), "SchedulerError".to_owned());
    let shown = |pods: &[Arc<Pod>]| {
        let told = pods.iter().filter_map(|pod| condition(pod));
        told.map(|(status, reason, message)| ((status, reason), message)).collect::<Vec<_>>()
    };
    cluster
        .until(&cluster.pods, "the condition", |pods| {
            shown(pods).iter().any(|(told, message)| *told == failed && message == why)
        })
        .await;
    cluster
        .until(&cluster.events, "the event", |events| {
            events.iter().any(|event| {
                event.reason.as_deref() == Some("FailedScheduling") && event.message.as_deref() == Some(why)
            })
        })
        .await;
    cluster.unbindable.store(false, Ordering::SeqCst);
    cluster.until_bound(1).await;
    assert_eq!(condition(&cluster.pods.get("default", "p").unwrap()).unwrap().0, "True");
}

#[tokio::test(start_paused = true)]
async fn of_those_that_wait_for_room_the_one_that_matters_most_gets_it() {
    let cluster = Cluster::start().await;
    cluster.add_node("a", json!({"cpu": "2", "memory": "8Gi", "pods": "110"})).await;
    let first = cluster.add_pod("first", "2").await;
    cluster.until_bound(1).await;
    let class = json!({"metadata": {"name": "high"}, "value": 1000});
    let class: k8s_openapi::api::scheduling::v1::PriorityClass = serde_json::from_value(class).unwrap();
    request::create(&cluster.admin, &class).await.unwrap();
    cluster.add_pod("early", "2").await;
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": "late"},
        "spec": {"priorityClassName": "high", "containers": [
            {"name": "c", "image": "busybox", "resources": {"requests": {"cpu": "2"}}}]},
    }))
    .unwrap();
    request::create(&cluster.admin, &pod).await.unwrap();
    cluster
        .until(&cluster.pods, "both wait", |pods| {
            pods.iter().filter(|pod| condition(pod).is_some_and(|c| c.1 == "Unschedulable")).count() == 2
        })
        .await;
    let now = Deletion::of(first.metadata.uid.unwrap()).grace(0);
    request::delete::<Pod>(&cluster.admin, &ObjectKey::namespaced("default", "first"), &now).await.unwrap();
    cluster.until_bound(1).await;
    assert_eq!(node_of(&cluster.pods.get("default", "late").unwrap()), Some("a"));
}
