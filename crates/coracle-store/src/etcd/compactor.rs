//! Who compacts: whoever of all clients of this etcd is the first after an interval.
//!
//! Compaction is for the whole etcd, whatever the prefix, so the key by which clients agree is upstream's, at upstream's
//! place: Coracle's servers and others', on one etcd, compact it once an interval. What is compacted is the revision
//! that was current one interval before, so history reaches back one to two intervals.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::client::Repeat;
use super::failure::Failure;
use super::proto::{
    Compare, CompareTarget, PutRequest, RangeRequest, Request, TargetUnion, TxnRequest, TxnResponse,
};
use super::{Shared, TXN};
use crate::contract::Revision;

/// Holds the revision that was current at the last compaction; its version counts the compactions.
const KEY: Bytes = Bytes::from_static(b"compact_rev_key");

/// What is known of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Seen {
    version: i64,
    /// The revision that was current then.
    revision: Revision,
}

/// Compacts every `interval`, until it is aborted.
pub(super) async fn run(shared: Arc<Shared>, interval: Duration) {
    let mut seen = Seen::default();
    loop {
        shared.clock.sleep(interval).await;
        match turn(&shared, seen).await {
            Ok(now) => seen = now,
            // The next turn does the same.
            Err(failure) => tracing::warn!(?failure, "could not compact etcd"),
        }
    }
}

/// One turn: if nobody has compacted since `seen`, compacts to what was current then.
async fn turn(shared: &Shared, seen: Seen) -> Result<Seen, Failure> {
    let current = shared.current().await?;
    let request = TxnRequest {
        compare: vec![Compare {
            target: CompareTarget::Version.into(),
            key: KEY,
            target_union: Some(TargetUnion::Version(seen.version)),
        }],
        success: vec![Request::Put(PutRequest { key: KEY, value: Bytes::from(current.to_string()) }).into()],
        failure: vec![Request::Range(RangeRequest { key: KEY, ..RangeRequest::default() }).into()],
    };
    let answer: TxnResponse = shared.client.call(TXN, request, Repeat::UnlessDone).await?;
    if !answer.succeeded {
        // Somebody else was faster, or has been before.
        return Ok(read(&answer));
    }
    if seen.revision > Revision(0) {
        shared.compact_to(seen.revision).await?;
        tracing::debug!(to = %seen.revision, "etcd compacted");
    }
    Ok(Seen { version: seen.version + 1, revision: current })
}

fn read(answer: &TxnResponse) -> Seen {
    let range = answer.responses.first().and_then(|response| response.range.as_ref());
    let Some(kv) = range.and_then(|range| range.kvs.first()) else { return Seen::default() };
    let revision = std::str::from_utf8(&kv.value).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    Seen { version: kv.version, revision: Revision(revision) }
}
