//! Writes Events in the background.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use coracle_clock::Clock;
use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, ObjectReference};
use kube::{Client, Error};
use tokio::sync::mpsc;

use super::EventType;
use super::correlate::{Correlator, Occurrence, Source, Write};
use crate::request::{self, PatchBody};
use crate::{ErrorExt as _, key_of};

/// Occurrences that may wait per lane; further ones are dropped, as upstream drops them.
const QUEUE: usize = 1000;
/// Writers. One object's Events all go through one of them, in order.
const LANES: usize = 4;
const ATTEMPTS: u32 = 12;
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Reports what happens to objects, as Events of core/v1 in the form that upstream's recorder gives them.
///
/// # Guarantees
/// - Reporting never waits and never fails. Events of one object are written in the order of the reports.
/// - Repeats raise `count`, floods are combined and held back (see `correlate`).
///
/// # What is not guaranteed
/// That a report becomes an Event: while the API server does not answer, a thousand reports per lane are kept, and a
/// report is given up after twelve attempts or when the server refuses it.
///
/// The writers end when the last clone is dropped and everything reported before is written.
#[derive(Clone)]
pub struct EventRecorder(Arc<Lanes>);

struct Lanes {
    lanes: Vec<mpsc::Sender<Occurrence>>,
    clock: Clock,
}

impl EventRecorder {
    /// A recorder for `component` on `host` (empty if it has none). Must be called within a Tokio runtime.
    #[must_use]
    pub fn new(client: &Client, component: &str, host: &str, clock: Clock) -> Self {
        let source = Source { component: component.to_owned(), host: host.to_owned() };
        let lanes = (0..LANES)
            .map(|_| {
                let (sender, receiver) = mpsc::channel(QUEUE);
                let correlator = Correlator::new(source.clone());
                tokio::spawn(write_all(client.clone(), correlator, clock.clone(), receiver));
                sender
            })
            .collect();
        EventRecorder(Arc::new(Lanes { lanes, clock }))
    }

    /// Reports that something happened to `involved`.
    pub fn event(
        &self,
        involved: &ObjectReference,
        event_type: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.event_at(self.0.clock.now(), involved, event_type, reason, message);
    }

    /// Reports that something happened to `involved` at a time that has passed: Events are listed in that order.
    pub fn event_at(
        &self,
        at: Timestamp,
        involved: &ObjectReference,
        event_type: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let occurrence = Occurrence {
            involved: involved.clone(),
            event_type,
            reason: reason.to_owned(),
            message: message.into(),
            at,
        };
        let lane = &self.0.lanes[lane_of(involved)];
        if let Err(error) = lane.try_send(occurrence) {
            let name = involved.name.as_deref().unwrap_or_default();
            tracing::warn!(name, reason, %error, "an event is lost");
        }
    }
}

/// Objects are spread over the lanes by what identifies them.
fn lane_of(involved: &ObjectReference) -> usize {
    let identity = [&involved.namespace, &involved.name, &involved.uid];
    identity
        .iter()
        .filter_map(|part| part.as_deref())
        .flat_map(str::bytes)
        .fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)))
        % LANES
}

async fn write_all(
    client: Client,
    mut correlator: Correlator,
    clock: Clock,
    mut occurrences: mpsc::Receiver<Occurrence>,
) {
    while let Some(occurrence) = occurrences.recv().await {
        let work = async {
            if let Some(write) = correlator.observe(occurrence) {
                write_one(&client, &mut correlator, &clock, write).await;
            }
        };
        // One report may be lost, those after it are not.
        if AssertUnwindSafe(work).catch_unwind().await.is_err() {
            tracing::error!("reporting an event panicked");
        }
    }
}

/// Writes until it is done, refused, or tried often enough.
async fn write_one(client: &Client, correlator: &mut Correlator, clock: &Clock, mut write: Write) {
    let mut delay = Duration::from_millis(250);
    for _ in 0..ATTEMPTS {
        let error = match attempt(client, &write).await {
            Ok(()) => return,
            Err(error) => error,
        };
        match write {
            // It expired, or was never written because the spam filter held it back.
            Write::Count { event, .. } if error.is_not_found() => write = Write::Create(event),
            // Another reporter named an Event of this object in the same instant.
            Write::Create(mut event) if error.is_already_exists() => {
                let old = event.metadata.name.take().unwrap_or_default();
                let name = correlator.event_name(&event.involved_object, clock.now());
                correlator.renamed(&old, &name);
                event.metadata.name = Some(name);
                write = Write::Create(event);
            }
            _ if error.is_transient() => {
                clock.sleep(delay).await;
                delay = (delay * 2).min(RETRY_MAX);
            }
            _ => {
                // A namespace on its way out takes no new Events: nothing to tell anyone.
                tracing::debug!(error = &error as &dyn std::error::Error, "an event was refused");
                return;
            }
        }
    }
    tracing::warn!("an event is lost after {ATTEMPTS} attempts");
}

async fn attempt(client: &Client, write: &Write) -> Result<(), Error> {
    match write {
        Write::Create(event) => request::create::<Event>(client, event).await.map(drop),
        Write::Count { patch, event } => {
            let key = key_of(event.as_ref());
            request::patch::<Event>(client, &key, &PatchBody::Strategic(patch.clone())).await.map(drop)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use http::{Method, Request, Response};
    use http_body_util::{BodyExt as _, Full};
    use jiff::Timestamp;
    use kube::client::Body;
    use serde_json::{Value, json};
    use tower::BoxError;

    use super::*;

    /// Keeps Events as an API server does, with what it can do wrong.
    #[derive(Default)]
    struct Server {
        events: BTreeMap<String, Value>,
        requests: Vec<String>,
        unavailable: usize,
        taken: Option<String>,
        panics: usize,
    }

    type Shared = Arc<Mutex<Server>>;

    impl Server {
        fn answer(&mut self, method: &Method, path: &str, body: Value) -> (u16, Value) {
            let status = |code: u16, reason: &str| {
                (code, json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason}))
            };
            self.requests.push(format!("{method} {path}"));
            if self.unavailable > 0 {
                self.unavailable -= 1;
                return status(503, "ServiceUnavailable");
            }
            if *method == Method::POST {
                let name = body["metadata"]["name"].as_str().unwrap().to_owned();
                if self.taken.take_if(|taken| *taken == name).is_some() || self.events.contains_key(&name) {
                    return status(409, "AlreadyExists");
                }
                self.events.insert(name, body.clone());
                return (201, body);
            }
            let name = path.split(['/', '?']).find(|part| part.starts_with("p.")).unwrap();
            let Some(event) = self.events.get_mut(name) else { return status(404, "NotFound") };
            for (key, value) in body.as_object().unwrap() {
                event[key] = value.clone();
            }
            (200, event.clone())
        }
    }

    fn recorder(server: &Shared) -> (EventRecorder, Clock) {
        let server = server.clone();
        let client = crate::in_process(tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = serde_json::from_slice(&body.collect().await?.to_bytes())?;
                let panics = std::mem::take(&mut server.lock().unwrap().panics);
                assert_eq!(panics, 0, "as asked");
                let (code, body) = server.lock().unwrap().answer(&parts.method, &parts.uri.to_string(), body);
                Ok::<_, BoxError>(Response::builder().status(code).body(Full::from(body.to_string()))?)
            }
        }));
        let clock = Clock::starting_at(Timestamp::from_second(1_800_000_000).unwrap());
        (EventRecorder::new(&client, "kubelet", "node-1", clock.clone()), clock)
    }

    fn pod() -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some("default".into()),
            name: Some("p".into()),
            uid: Some("u".into()),
            ..ObjectReference::default()
        }
    }

    fn report(recorder: &EventRecorder, message: &str) {
        recorder.event(&pod(), EventType::Normal, "Pulled", message);
    }

    /// What was written, as message and count, in order of the names.
    fn written(server: &Shared) -> Vec<(String, i64)> {
        let server = server.lock().unwrap();
        let row =
            |event: &Value| (event["message"].as_str().unwrap().to_owned(), event["count"].as_i64().unwrap());
        server.events.values().map(row).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn repeats_raise_the_count_and_an_expired_event_is_written_anew() {
        let server = Shared::default();
        let (recorder, clock) = recorder(&server);
        report(&recorder, "a");
        report(&recorder, "b");
        report(&recorder, "a");
        clock.sleep(Duration::from_millis(1)).await;
        assert_eq!(written(&server), [("a".to_owned(), 2), ("b".to_owned(), 1)]);
        assert!(server.lock().unwrap().requests[0].starts_with("POST /api/v1/namespaces/default/events"));

        server.lock().unwrap().events.clear();
        report(&recorder, "a");
        clock.sleep(Duration::from_millis(1)).await;
        assert_eq!(written(&server), [("a".to_owned(), 3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_loses_one_report() {
        let server = Shared::default();
        server.lock().unwrap().panics = 1;
        let (recorder, clock) = recorder(&server);
        report(&recorder, "a");
        report(&recorder, "b");
        clock.sleep(Duration::from_secs(1)).await;
        assert_eq!(written(&server), [("b".to_owned(), 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_delays_events_and_keeps_their_order() {
        let server = Shared::default();
        server.lock().unwrap().unavailable = 3;
        let (recorder, clock) = recorder(&server);
        report(&recorder, "a");
        report(&recorder, "b");
        clock.sleep(Duration::from_secs(1)).await;
        assert!(written(&server).is_empty());
        clock.sleep(Duration::from_secs(1)).await;
        assert_eq!(written(&server), [("a".to_owned(), 1), ("b".to_owned(), 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_is_taken_is_changed_and_later_counts_find_it() {
        let server = Shared::default();
        server.lock().unwrap().taken = Some("p.18fae27693b40000".to_owned());
        let (recorder, clock) = recorder(&server);
        report(&recorder, "a");
        report(&recorder, "a");
        clock.sleep(Duration::from_millis(1)).await;
        assert_eq!(written(&server), [("a".to_owned(), 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn reporting_never_waits_and_a_full_lane_drops() {
        let server = Shared::default();
        server.lock().unwrap().unavailable = usize::MAX;
        let (recorder, _) = recorder(&server);
        for i in 0..3 * QUEUE {
            report(&recorder, &i.to_string());
        }
    }
}
