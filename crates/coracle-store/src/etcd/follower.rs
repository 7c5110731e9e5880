//! The one watch of this engine: it follows everything under the prefix and feeds history and hub.
//!
//! It resumes after the last revision that has come as a whole, whichever member it is connected to, so nothing is
//! lost, seen twice, or out of order. Only when etcd has been compacted beyond that is there a gap; then every watch
//! that would miss something ends, and says so.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::failure::Failure;
use super::proto::{self, EventType, WatchCreateRequest, WatchResponse};
use super::{Shared, Space};
use crate::contract::{Event, EventKind, Revision, StoreError};

const PAUSE_MIN: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Why a stream of watch responses ended.
#[derive(Debug)]
enum End {
    /// History before this revision is gone, and with it what comes next.
    Compacted(Revision),
    /// The connection or the member failed.
    Broken(String),
}

/// Follows until it is aborted.
pub(super) async fn follow(shared: Arc<Shared>) {
    let mut pause = PAUSE_MIN;
    let mut broken = false;
    loop {
        let before = shared.progress();
        let end = follow_once(&shared, &mut broken).await;
        if shared.progress() > before {
            pause = PAUSE_MIN;
        }
        match end {
            End::Compacted(oldest) => {
                tracing::warn!(after = %shared.progress(), %oldest, "etcd was compacted beyond what had been seen");
                shared.gap(oldest);
            }
            End::Broken(why) => {
                if !broken {
                    tracing::warn!(why, after = %shared.progress(), "the watch of etcd broke; resuming it");
                }
                broken = true;
                shared.client.pass_over_current();
                shared.clock.sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

async fn follow_once(shared: &Shared, broken: &mut bool) -> End {
    let after = shared.progress();
    let range = shared.space.range(&Bytes::new(), None);
    let create = WatchCreateRequest {
        key: range.0,
        range_end: range.1,
        // From what has been seen, not after it: a compaction up to the next revision could have taken away a removal
        // at that revision, and nobody would say so.
        start_revision: i64::try_from(after.0).unwrap_or(i64::MAX).max(1),
        progress_notify: true,
        prev_kv: true,
        fragment: true,
    };
    let mut stream = match shared.client.watch(create).await {
        Ok(stream) => stream,
        Err(failure) => return End::Broken(format!("{failure:?}")),
    };
    let mut whole = Assembly::default();
    loop {
        let response = match stream.message().await {
            Ok(Some(response)) => response,
            Ok(None) => return End::Broken("the stream ended".to_owned()),
            Err(status) => return End::Broken(format!("{:?}", Failure::of(&status))),
        };
        if response.canceled {
            return match u64::try_from(response.compact_revision) {
                Ok(oldest) if oldest > 0 => End::Compacted(Revision(oldest)),
                _ => End::Broken(response.cancel_reason),
            };
        }
        if response.created {
            if std::mem::take(broken) {
                tracing::info!(%after, "the watch of etcd goes on");
            }
            continue;
        }
        if let Some((events, progress)) = whole.take(&shared.space, response) {
            shared.arrived(events, progress);
        }
    }
}

/// Puts the fragments of a response together.
#[derive(Debug, Default)]
struct Assembly {
    events: Vec<Event>,
}

impl Assembly {
    /// The events of a whole response, and the revision up to which everything has now come.
    fn take(&mut self, space: &Space, response: WatchResponse) -> Option<(Vec<Event>, Revision)> {
        self.events.extend(response.events.into_iter().filter_map(|event| read_event(space, event)));
        if response.fragment {
            return None;
        }
        let events = std::mem::take(&mut self.events);
        let progress = match events.last() {
            // The header may be ahead of the events: a watch that catches up gets them in portions. A portion has
            // whole revisions.
            Some(last) => last.revision,
            // Without events it is a notification of progress, and those come in order with the events.
            None => Revision(response.header.map_or(0, |header| header.revision.unsigned_abs())),
        };
        Some((events, progress))
    }
}

fn read_event(space: &Space, event: proto::Event) -> Option<Event> {
    let kind = match event.kind() {
        EventType::Put => EventKind::Put,
        EventType::Delete => EventKind::Delete,
    };
    let kv = space.read(event.kv?)?;
    Some(Event {
        kind,
        revision: kv.mod_revision,
        key: kv.key,
        value: (kind == EventKind::Put).then_some(kv.value),
        previous: event.prev_kv.and_then(|previous| space.read(previous)),
    })
}

impl Shared {
    /// Takes what the watch brought.
    fn arrived(&self, mut events: Vec<Event>, progress: Revision) {
        let now = self.clock.elapsed();
        let mut state = self.state();
        let seen = state.history.progress();
        // A resumed watch repeats the last revision.
        events.retain(|event| event.revision > seen);
        if progress <= seen {
            return;
        }
        state.history.push(&events, progress, now);
        let tell_all = now.saturating_sub(state.last_progress) >= PROGRESS;
        if tell_all {
            state.last_progress = now;
        }
        state.hub.publish(&events, progress, tell_all || events.is_empty());
    }

    /// Goes on at `oldest`, without what came before.
    fn gap(&self, oldest: Revision) {
        let mut state = self.state();
        let requested = state.history.progress();
        state.history.restart(oldest);
        state.hub.end_before(oldest, &StoreError::Compacted { requested, oldest });
    }
}

/// How often watches without events hear how far the store has come, while there are writes.
const PROGRESS: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn response(fragment: bool, header: i64, revisions: &[i64]) -> WatchResponse {
        let event = |revision: &i64| proto::Event {
            kind: EventType::Put.into(),
            kv: Some(proto::KeyValue {
                key: Bytes::from_static(b"/p/a"),
                mod_revision: *revision,
                create_revision: 1,
                ..proto::KeyValue::default()
            }),
            prev_kv: None,
        };
        WatchResponse {
            header: Some(proto::ResponseHeader { revision: header }),
            fragment,
            events: revisions.iter().map(event).collect(),
            ..WatchResponse::default()
        }
    }

    #[test]
    fn fragments_make_one_response() {
        let space = Space::new(Bytes::from_static(b"/p"));
        let mut whole = Assembly::default();
        assert!(whole.take(&space, response(true, 9, &[3, 4])).is_none());
        assert!(whole.take(&space, response(true, 9, &[4])).is_none());
        let (events, progress) = whole.take(&space, response(false, 9, &[4, 5])).unwrap();
        let revisions: Vec<u64> = events.iter().map(|event| event.revision.0).collect();
        assert_eq!((revisions, progress), (vec![3, 4, 4, 4, 5], Revision(5)));
        assert_eq!(events[0].key, Bytes::from_static(b"/a"), "without the prefix");
        let (events, progress) = whole.take(&space, response(false, 9, &[])).unwrap();
        assert_eq!((events.len(), progress), (0, Revision(9)));
    }
}
