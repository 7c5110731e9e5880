//! Events expire an hour after they were last written.
//!
//! The sweep is level-triggered: it looks at what there is, removes what is old, and sleeps until the next one
//! is due. Without Events it only waits for the first.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_api::catalogue;
use coracle_api::{Timestamp, Value};
use coracle_store::{Compare, ListRequest, Op, Revision, StoreError, Txn, TxnOutcome};
use jiff::SignedDuration;

use crate::hub::Scope;
use crate::object;
use crate::server::Core;

/// How long an Event lives after its last change.
const TTL: SignedDuration = SignedDuration::from_hours(1);
/// Sweeps are at least this far apart, so that Events that end one by one go in batches.
const PACE: Duration = Duration::from_secs(60);
/// Removals in one transaction.
const BATCH: usize = 128;

/// When an Event was last written, as it says itself.
fn last_change(event: &Value) -> Option<Timestamp> {
    [
        "/series/lastObservedTime",
        "/lastTimestamp",
        "/deprecatedLastTimestamp",
        "/eventTime",
        "/metadata/creationTimestamp",
    ]
    .iter()
    .filter_map(|pointer| event.pointer(pointer).and_then(Value::as_str)?.parse().ok())
    .max()
}

/// When an Event ends. One that claims to be from the future ends as if it were from now, so that no clock makes it
/// immortal; `None` for one without any time, which is not waited for.
fn expiry(event: &Value, now: Timestamp) -> Option<Timestamp> {
    last_change(event)?.min(now).checked_add(TTL).ok()
}

/// Removes Events that are due, until the server ends.
pub(crate) async fn expire(core: Arc<Core>) {
    let Some(row) = catalogue::find("", "v1", "events") else { return };
    loop {
        let wait = match sweep(&core, row.storage_list_prefix(None)).await {
            Ok(Swept { next: Some(due), .. }) => {
                let until = core.clock.now().duration_until(due);
                Duration::try_from(until).unwrap_or(PACE).max(PACE)
            }
            Ok(Swept { next: None, revision }) => {
                // Whatever ends the watch is a reason to look again as well.
                if let Ok(mut watcher) = core.hub.watch(row.storage_prefix, Scope::All, revision).await {
                    coracle_clock::select! {
                        () = core.draining.cancelled() => return,
                        _ = watcher.next() => {}
                    }
                }
                PACE
            }
            Err(error) => {
                tracing::warn!(%error, "could not expire Events");
                PACE
            }
        };
        coracle_clock::select! {
            () = core.draining.cancelled() => return,
            () = core.clock.sleep(wait) => {}
        }
    }
}

/// What a look at all Events came to.
struct Swept {
    /// What was looked at: Events that are written later have not been seen.
    revision: Revision,
    /// When the next one is due.
    next: Option<Timestamp>,
}

/// Removes what is due.
async fn sweep(core: &Core, prefix: String) -> Result<Swept, StoreError> {
    let page = core.store.list(&ListRequest { prefix: prefix.into(), ..ListRequest::default() }).await?;
    let now = core.clock.now();
    let mut next: Option<Timestamp> = None;
    let mut due = Vec::new();
    for kv in page.items {
        let event = object::decode(&kv.value, kv.mod_revision).unwrap_or_default();
        match expiry(&event, now) {
            Some(end) if end <= now => due.push((kv.key, kv.mod_revision)),
            Some(end) => next = Some(next.map_or(end, |next| next.min(end))),
            None => {}
        }
    }
    for batch in due.chunks(BATCH) {
        // An Event that was written again meanwhile stays: the whole batch is looked at again next time.
        let compares =
            batch.iter().map(|(key, seen)| Compare { key: key.clone(), mod_revision: *seen }).collect();
        let ops = batch.iter().map(|(key, _): &(Bytes, _)| Op::Delete { key: key.clone() }).collect();
        if let TxnOutcome::Conflict(_) = core.store.txn(Txn { compares, ops }).await? {
            next = Some(now);
        }
    }
    Ok(Swept { revision: page.revision, next })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_ends_an_hour_after_its_last_change() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        let end = |event: Value| expiry(&event, now).map(|end| end.to_string());
        let created = json!({ "metadata": { "creationTimestamp": "2026-01-01T10:00:00Z" } });
        assert_eq!(end(created).as_deref(), Some("2026-01-01T11:00:00Z"));
        let counted = json!({
            "metadata": { "creationTimestamp": "2026-01-01T10:00:00Z" }, "lastTimestamp": "2026-01-01T11:30:00Z",
        });
        assert_eq!(end(counted).as_deref(), Some("2026-01-01T12:30:00Z"));
        let future = json!({ "lastTimestamp": "2036-01-01T00:00:00Z" });
        assert_eq!(end(future).as_deref(), Some("2026-01-01T13:00:00Z"));
        assert_eq!(end(json!({})), None);
    }
}
