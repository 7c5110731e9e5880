//! Informers against scripted servers: what they list, where they resume, and how slow subscribers catch up.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tower::BoxError;

use super::*;

/// The code of an answer that is a panic on the way.
const PANIC: u16 = 0;

/// A server that gives prepared answers, one per request, and then never answers again.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    answers: VecDeque<Answer>,
    requests: Vec<String>,
}

struct Answer {
    code: u16,
    body: mpsc::UnboundedReceiver<Bytes>,
}

/// The open end of an answer.
struct Stream(mpsc::UnboundedSender<Bytes>);

impl Stream {
    fn send(&self, line: &Value) {
        self.0.send(Bytes::from(format!("{line}\n"))).unwrap();
    }

    fn event(&self, kind: &str, object: &Value) {
        self.send(&json!({"type": kind, "object": object}));
    }
}

impl Server {
    fn stream(&self, code: u16) -> Stream {
        let (sender, body) = mpsc::unbounded_channel();
        self.0.lock().unwrap().answers.push_back(Answer { code, body });
        Stream(sender)
    }

    fn json(&self, code: u16, value: &Value) {
        self.stream(code).send(value);
    }

    fn list(&self, revision: u64, items: &[Value]) {
        self.json(
            200,
            &json!({
                "kind": "ConfigMapList", "apiVersion": "v1",
                "metadata": {"resourceVersion": revision.to_string()}, "items": items,
            }),
        );
    }

    fn requests(&self) -> Vec<String> {
        self.0.lock().unwrap().requests.clone()
    }

    fn client(&self) -> kube::Client {
        let server = self.clone();
        crate::in_process(tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let answer = {
                let mut script = server.0.lock().unwrap();
                script.requests.push(request.uri().to_string());
                script.answers.pop_front()
            };
            async move {
                let Some(Answer { code, mut body }) = answer else { return std::future::pending().await };
                assert_ne!(code, PANIC, "as asked");
                let frames = futures::stream::poll_fn(move |context| {
                    body.poll_recv(context)
                        .map(|bytes| bytes.map(|bytes| Ok::<_, BoxError>(http_body::Frame::data(bytes))))
                });
                let body: UnsyncBoxBody<Bytes, BoxError> = UnsyncBoxBody::new(StreamBody::new(frames));
                Ok::<_, BoxError>(http::Response::builder().status(code).body(body)?)
            }
        }))
    }

    fn informer(&self) -> (Informer<ConfigMap>, Clock) {
        let clock = Clock::starting_at(Timestamp::UNIX_EPOCH);
        (Informer::start(self.client(), ListOptions::default(), clock.clone(), Rng::seeded(1)), clock)
    }
}

fn config_map(name: &str, revision: u64) -> Value {
    json!({
        "metadata": {
            "namespace": "default", "name": name, "resourceVersion": revision.to_string(),
            "managedFields": [{"manager": "kubectl"}],
        },
    })
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason})
}

fn names(keys: Option<BTreeSet<ObjectKey>>) -> Vec<String> {
    keys.expect("the informer runs").into_iter().map(|key| key.name).collect()
}

#[tokio::test(start_paused = true)]
async fn a_list_and_then_changes_are_heard_in_the_copy_and_by_subscribers() {
    let server = Server::default();
    server.list(5, &[config_map("b", 3), config_map("a", 4)]);
    let watch = server.stream(200);
    let (informer, _) = server.informer();
    let mut subscription = informer.subscribe();
    assert_eq!(names(subscription.changed().await), ["a", "b"]);
    assert_eq!(informer.revision(), 5);
    assert!(informer.get("default", "a").unwrap().metadata.managed_fields.is_none());

    watch.event("MODIFIED", &config_map("b", 6));
    assert_eq!(names(subscription.changed().await), ["b"]);
    assert_eq!(informer.revision(), 6);
    watch.event("DELETED", &config_map("a", 7));
    assert_eq!(names(subscription.changed().await), ["a"]);
    assert!(informer.get("default", "a").is_none());
    watch.event("BOOKMARK", &json!({
        "kind": "ConfigMap", "apiVersion": "v1", "metadata": {"resourceVersion": "19", "creationTimestamp": null},
    }));
    informer.reached(19).await;
    assert!(subscription.pending().is_empty());
    assert!(server.requests()[1].contains("resourceVersion=5"), "{:?}", server.requests());

    drop(informer);
    assert!(subscription.changed().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_panic_on_the_way_begins_with_a_list_again() {
    let server = Server::default();
    server.list(5, &[config_map("a", 4)]);
    drop(server.stream(PANIC));
    server.list(7, &[config_map("b", 6)]);
    let (informer, clock) = server.informer();
    let reached = clock.timeout(Duration::from_secs(10), informer.reached(7)).await;
    assert!(reached.is_some(), "the copy stands still: {:?}", server.requests());
    assert!(informer.get("default", "a").is_none());
    assert!(informer.get("default", "b").is_some());
}

#[tokio::test(start_paused = true)]
async fn pages_are_put_together() {
    let server = Server::default();
    server.json(
        200,
        &json!({
            "metadata": {"resourceVersion": "5", "continue": "more"}, "items": [config_map("a", 1)],
        }),
    );
    server.list(5, &[config_map("b", 2)]);
    let (informer, _) = server.informer();
    informer.synced().await;
    assert_eq!(informer.len(), 2);
    assert!(server.requests()[1].contains("continue=more"), "{:?}", server.requests());
}

#[tokio::test(start_paused = true)]
async fn a_closed_watch_is_resumed_where_it_was() {
    let server = Server::default();
    server.list(5, &[]);
    let first = server.stream(200);
    let second = server.stream(200);
    let (informer, clock) = server.informer();
    first.event("ADDED", &config_map("a", 8));
    drop(first);
    second.event("ADDED", &config_map("b", 9));
    informer.reached(9).await;
    assert_eq!(informer.len(), 2);
    assert!(server.requests()[2].contains("resourceVersion=8"), "{:?}", server.requests());
    assert_eq!(clock.elapsed(), Duration::ZERO, "without a pause");
}

#[tokio::test(start_paused = true)]
async fn lost_history_starts_over_and_only_differences_are_heard() {
    for in_stream in [false, true] {
        let server = Server::default();
        server.list(5, &[config_map("changed", 1), config_map("gone", 2), config_map("same", 3)]);
        if in_stream {
            server.stream(200).event("ERROR", &status(410, "Expired"));
        } else {
            server.json(410, &status(410, "Expired"));
        }
        let relist = server.stream(200);
        let (informer, clock) = server.informer();
        let mut subscription = informer.subscribe();
        informer.synced().await;
        let same = informer.get("default", "same").unwrap();
        assert_eq!(names(subscription.changed().await), ["changed", "gone", "same"]);
        relist.send(&json!({
            "metadata": {"resourceVersion": "90"},
            "items": [config_map("changed", 70), config_map("new", 80), config_map("same", 3)],
        }));
        drop(relist);
        assert_eq!(names(subscription.changed().await), ["changed", "gone", "new"]);
        assert!(Arc::ptr_eq(&same, &informer.get("default", "same").unwrap()));
        assert!(informer.get("default", "gone").is_none());
        assert_eq!(informer.revision(), 90);
        assert_eq!(clock.elapsed(), Duration::ZERO, "without a pause");
    }
}

#[tokio::test(start_paused = true)]
async fn errors_are_retried_with_back_off_and_a_dead_watch_does_not_spin() {
    let server = Server::default();
    server.json(403, &status(403, "Forbidden"));
    server.json(503, &status(503, "ServiceUnavailable"));
    server.list(5, &[config_map("a", 1)]);
    for _ in 0..5 {
        drop(server.stream(200));
    }
    server.stream(200).event("ADDED", &config_map("b", 9));
    let (informer, clock) = server.informer();
    informer.synced().await;
    let listed = clock.elapsed();
    assert!((300..=450).contains(&listed.as_millis()), "100 and 200 ms with jitter, not {listed:?}");
    informer.reached(9).await;
    let watched = clock.elapsed() - listed;
    assert!((3100..=4700).contains(&watched.as_millis()), "five doubling pauses, not {watched:?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_subscriber_holds_no_one_up_and_remembers_only_what_it_knows() {
    let server = Server::default();
    server.list(1, &[config_map("old", 1)]);
    let watch = server.stream(200);
    let (informer, _) = server.informer();
    let (mut slow, mut fast) = (informer.subscribe(), informer.subscribe());
    assert_eq!(names(slow.changed().await), ["old"]);
    assert_eq!(names(fast.changed().await), ["old"]);
    for i in 0..1000 {
        watch.event("ADDED", &config_map(&format!("passing-{i}"), 10 + 2 * i));
        watch.event("DELETED", &config_map(&format!("passing-{i}"), 11 + 2 * i));
    }
    watch.event("DELETED", &config_map("old", 5000));
    watch.event("ADDED", &config_map("new", 5001));
    informer.reached(5001).await;
    assert_eq!(names(slow.changed().await), ["new", "old"]);
    assert!(slow.changed().now_or_never().is_none());
}
