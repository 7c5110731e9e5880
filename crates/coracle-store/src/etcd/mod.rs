//! The engine over an etcd.
//!
//! ```text
//! get, list, txn, compact ─▶ client ─▶ whichever member answers
//! watch ─▶ history, then hub ◀─ follower ◀─ one watch of everything under the prefix
//! ```
//!
//! - Revisions are etcd's own. Keys have a prefix in etcd, by which several stores share one.
//! - [`target`](Target) says where; `proto` what is said; `failure` what a failed call means; `space` which keys
//!   are ours; all of them and `history` are pure.
//! - `follower` is the only watch on etcd, however many watches there are here; it survives etcd's absence.
//! - `compactor` keeps history short, as upstream's API server does.
//!
//! **Guarantees** beyond the contract: a call ends within [`Limits::request`]; a write that was sent and not answered is
//! [`StoreError::Unavailable`] and is not sent again, because it may still happen.

mod client;
mod compactor;
mod failure;
mod follower;
mod history;
mod proto;
mod space;
mod target;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use coracle_clock::Clock;
use tokio::task::JoinHandle;

use crate::contract::{
    KeyValue, ListPage, ListRequest, Revision, Store, StoreError, StoreResult, Txn, TxnOutcome, WatchBatch,
    WatchStream,
};
use crate::hub::Hub;
use crate::retention::Retention;
use client::{Client, Repeat};
use failure::Failure;
use history::History;
use proto::{
    CompactionRequest, CompactionResponse, RangeRequest, RangeResponse, StatusRequest, StatusResponse,
    TxnResponse, WatchCreateRequest,
};
use space::Space;
pub use target::{Target, TargetError};

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const COMPACT: &str = "/etcdserverpb.KV/Compact";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";

/// How many keys are asked for at once.
const LIST_AT_ONCE: usize = 2000;
/// How many revisions of an earlier run watches can go back to.
const HISTORY_AT_OPEN: u64 = 10_000;
/// The oldest etcd whose watches come in fragments.
const OLDEST_VERSION: (u32, u32) = (3, 4);

/// Who etcd is, and who we are to it.
#[derive(Clone)]
pub struct Tls {
    /// Certificates of the authorities that may have signed etcd's.
    pub ca_pem: Vec<u8>,
    /// Our certificate and its key, if etcd wants to know who we are.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("client", &self.client.is_some()).finish_non_exhaustive()
    }
}

/// How long to wait for etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For an answer, in all.
    pub request: Duration,
    /// For a member that takes connections.
    pub connect: Duration,
}

impl Default for Limits {
    /// etcd itself gives up a write after 5 s and two elections, which is 7 s; its answer is worth waiting for.
    fn default() -> Self {
        Limits { request: Duration::from_secs(8), connect: Duration::from_secs(2) }
    }
}

/// How the engine behaves.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long to wait.
    pub limits: Limits,
    /// How much history is kept here for watches.
    pub retention: Retention,
    /// How often etcd is compacted to what was current at the time before; `None` leaves it to others.
    pub compact_every: Option<Duration>,
    /// How many batches a watch may be behind before it ends.
    pub watch_buffer: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            limits: Limits::default(),
            retention: Retention::default(),
            compact_every: Some(Duration::from_secs(5 * 60)),
            watch_buffer: 1024,
        }
    }
}

/// The engine over an etcd. Dropping it ends its tasks and watches.
pub struct EtcdStore {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

/// What calls, follower and compactor share.
struct Shared {
    client: Client,
    space: Space,
    clock: Clock,
    state: Mutex<State>,
}

struct State {
    history: History,
    hub: Hub,
    /// When all watches were last told how far the store has come.
    last_progress: Duration,
}

impl EtcdStore {
    /// Connects to the etcd at `target`, which must answer.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it does not answer now; [`StoreError::Invalid`] if it never will: a certificate that
    /// is none, an etcd that is too old.
    pub async fn connect(
        target: &Target,
        tls: Option<&Tls>,
        clock: Clock,
        options: Options,
    ) -> StoreResult<Arc<Self>> {
        let client = Client::new(target, tls, options.limits, clock.clone())
            .map_err(|error| StoreError::Invalid(failure::chain(&error)))?;
        let state = State {
            history: History::new(Revision(0), options.retention),
            hub: Hub::new(options.watch_buffer),
            last_progress: Duration::ZERO,
        };
        let shared = Arc::new(Shared {
            client,
            space: Space::new(target.key_prefix()),
            clock,
            state: Mutex::new(state),
        });
        let status: StatusResponse = shared.read(STATUS, StatusRequest {}).await.map_err(plain)?;
        check_version(&status.version)?;
        let current = shared.current().await.map_err(plain)?;
        let oldest = shared.oldest().await.map_err(plain)?;
        let floor = oldest.max(Revision(current.0.saturating_sub(HISTORY_AT_OPEN)));
        shared.state().history.restart(floor);
        tracing::info!(
            %target, version = status.version, bytes = status.db_size, %current, %oldest, "etcd answers"
        );
        let mut tasks = vec![tokio::spawn(follower::follow(Arc::clone(&shared)))];
        if let Some(interval) = options.compact_every {
            tasks.push(tokio::spawn(compactor::run(Arc::clone(&shared), interval)));
        }
        Ok(Arc::new(EtcdStore { shared, tasks }))
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.shared.state().hub.stop(&StoreError::Stopped("it was closed".to_owned()));
    }
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EtcdStore")
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn revision(&self) -> StoreResult<Revision> {
        self.shared.current().await.map_err(plain)
    }

    async fn get(&self, key: &Bytes) -> StoreResult<(Option<KeyValue>, Revision)> {
        let key = self.shared.space.key(key);
        let request = RangeRequest { key, ..RangeRequest::default() };
        let mut answer: RangeResponse = self.shared.read(RANGE, request).await.map_err(plain)?;
        let found = answer.kvs.pop().and_then(|kv| self.shared.space.read(kv));
        Ok((found, revision(answer.header)))
    }

    async fn list(&self, request: &ListRequest) -> StoreResult<ListPage> {
        loop {
            match self.shared.list(request).await {
                Ok(page) => return Ok(page),
                // A compaction came between two pieces: the next beginning is at a newer revision.
                Err(Failure::Compacted) if request.at.is_none() => {}
                Err(failure) => return Err(self.shared.explain(failure, request.at).await),
            }
        }
    }

    async fn txn(&self, txn: Txn) -> StoreResult<TxnOutcome> {
        txn.check()?;
        self.shared.space.check(&txn)?;
        if txn.compares.is_empty() && txn.ops.is_empty() {
            // etcd would answer from what this member knows.
            return self.revision().await.map(TxnOutcome::Committed);
        }
        let compares = txn.compares.len();
        let request = self.shared.space.txn(txn);
        let answer: TxnResponse =
            self.shared.client.call(TXN, request, Repeat::UnlessDone).await.map_err(plain)?;
        if answer.succeeded {
            return Ok(TxnOutcome::Committed(revision(answer.header)));
        }
        let state = |response: proto::ResponseOp| {
            response.range.and_then(|mut range| self.shared.space.read(range.kvs.pop()?))
        };
        let states: Vec<_> = answer.responses.into_iter().map(state).collect();
        if states.len() != compares {
            return Err(StoreError::Unavailable("etcd answers half a transaction".to_owned()));
        }
        Ok(TxnOutcome::Conflict(states))
    }

    async fn watch(&self, prefix: Bytes, after: Option<Revision>) -> StoreResult<WatchStream> {
        let after = match after {
            None => self.revision().await?,
            Some(after) if after > self.shared.progress() => {
                // What the follower has not seen may have happened all the same.
                let current = self.revision().await?;
                if after > current {
                    return Err(StoreError::Future { requested: after, current });
                }
                after
            }
            Some(after) => after,
        };
        let mut state = self.shared.state();
        let events = state.history.events_after(after, |key| key.starts_with(&prefix))?;
        let revision = after.max(state.history.progress());
        Ok(state.hub.subscribe(prefix, WatchBatch { events, revision }))
    }

    async fn compact(&self, revision: Revision) -> StoreResult<()> {
        match self.shared.compact_to(revision).await {
            Ok(()) => Ok(()),
            Err(failure) => Err(self.shared.explain(failure, Some(revision)).await),
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A push and a publish do not stop half-way; what panics is the disk's or the network's side.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self) -> Revision {
        self.state().history.progress()
    }

    async fn read<Q, A>(&self, method: &'static str, request: Q) -> Result<A, Failure>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        self.client.call(method, request, Repeat::Always).await
    }

    /// The newest revision, and not what one member takes for it.
    async fn current(&self) -> Result<Revision, Failure> {
        let answer: RangeResponse = self.read(RANGE, self.space.nothing(0)).await?;
        Ok(revision(answer.header))
    }

    /// The oldest revision that can be read.
    async fn oldest(&self) -> Result<Revision, Failure> {
        match self.read::<_, RangeResponse>(RANGE, self.space.nothing(1)).await {
            Ok(_) => return Ok(Revision(1)),
            Err(Failure::Compacted) => {}
            Err(failure) => return Err(failure),
        }
        // Only a watch that comes too late is told by how much.
        let start = self.space.nothing(1);
        let create =
            WatchCreateRequest { key: start.key, start_revision: 1, ..WatchCreateRequest::default() };
        let mut stream = self.client.watch(create).await?;
        let told = async {
            loop {
                match stream.message().await {
                    Ok(Some(response)) if response.canceled => {
                        return Ok(Revision(response.compact_revision.unsigned_abs()));
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => return Err(Failure::Unknown("the stream ended".to_owned())),
                    Err(status) => return Err(Failure::of(&status)),
                }
            }
        };
        let limit = Limits::default().request;
        let late = || Err(Failure::Unknown("etcdserver: request timed out".to_owned()));
        self.clock.timeout(limit, told).await.unwrap_or_else(late)
    }

    /// A list in pieces of one revision.
    async fn list(&self, request: &ListRequest) -> Result<ListPage, Failure> {
        let limit = if request.limit == 0 { usize::MAX } else { request.limit };
        let mut items = Vec::new();
        let mut after = request.after.clone();
        let mut at = request.at;
        loop {
            let (key, range_end) = self.space.range(&request.prefix, after.as_ref());
            let piece = LIST_AT_ONCE.min(limit - items.len());
            let ask = RangeRequest {
                key,
                range_end,
                limit: i64::try_from(piece).unwrap_or(i64::MAX),
                // Revision 0 is the empty store, which etcd calls 1; its 0 is now.
                revision: at.map_or(0, |at| i64::try_from(at.0).unwrap_or(i64::MAX).max(1)),
                count_only: false,
            };
            let answer: RangeResponse = self.read(RANGE, ask).await?;
            let revision = *at.get_or_insert(revision(answer.header));
            let count = usize::try_from(answer.count).unwrap_or(0);
            let remaining = count.saturating_sub(answer.kvs.len());
            items.extend(answer.kvs.into_iter().filter_map(|kv| self.space.read(kv)));
            if remaining == 0 || items.len() >= limit {
                return Ok(ListPage { items, revision, remaining });
            }
            after = items.last().map(|item: &KeyValue| item.key.clone());
        }
    }

    /// Compacts, if that has not been done yet.
    async fn compact_to(&self, to: Revision) -> Result<(), Failure> {
        let request = CompactionRequest { revision: i64::try_from(to.0).unwrap_or(i64::MAX) };
        if to > Revision(0) {
            match self.client.call::<_, CompactionResponse>(COMPACT, request, Repeat::Always).await {
                Ok(_) | Err(Failure::Compacted) => {}
                Err(failure) => return Err(failure),
            }
            self.state().history.forget_before(to);
        }
        Ok(())
    }

    /// The error of a call about `requested`, with the revisions that would have worked.
    async fn explain(&self, failure: Failure, requested: Option<Revision>) -> StoreError {
        let requested = requested.unwrap_or_default();
        let found = match failure {
            Failure::Compacted => {
                self.oldest().await.map(|oldest| StoreError::Compacted { requested, oldest })
            }
            Failure::Future => self.current().await.map(|current| StoreError::Future { requested, current }),
            failure => Err(failure),
        };
        found.unwrap_or_else(plain)
    }
}

/// The error of a call in which no revision was asked for.
fn plain(failure: Failure) -> StoreError {
    match failure {
        Failure::Unconnected(why) | Failure::NotDone(why) | Failure::Unknown(why) | Failure::Refused(why) => {
            StoreError::Unavailable(why)
        }
        Failure::NoSpace(why) => StoreError::NoSpace(why),
        Failure::Invalid(why) => StoreError::Invalid(why),
        Failure::Compacted | Failure::Future => {
            StoreError::Unavailable("etcd talks of a revision that was not asked for".to_owned())
        }
    }
}

fn revision(header: Option<proto::ResponseHeader>) -> Revision {
    Revision(header.map_or(0, |header| header.revision.unsigned_abs()))
}

fn check_version(version: &str) -> StoreResult<()> {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    if (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= OLDEST_VERSION {
        return Ok(());
    }
    Err(StoreError::Invalid(format!("etcd {version} is too old: 3.4 or newer is needed")))
}
