//! Writes Events in the background.

use std::sync::Arc;
use std::time::Duration;

use coracle_clock::Clock;
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
        let occurrence = Occurrence {
            involved: involved.clone(),
            event_type,
            reason: reason.to_owned(),
            message: message.into(),
            at: self.0.clock.now(),
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
        if let Some(write) = correlator.observe(occurrence) {
            write_one(&client, &mut correlator, &clock, write).await;
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
