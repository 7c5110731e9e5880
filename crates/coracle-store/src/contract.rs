//! The contract that every engine meets.

use std::collections::BTreeSet;
use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

/// A point in the history: 0 is the empty store, the first commit is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A key with its value as of some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// Revision at which the key came into being (again).
    pub create_revision: Revision,
    /// Revision of the last change.
    pub mod_revision: Revision,
}

/// What must hold for a transaction to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: Bytes,
    /// Its modification revision must be this; `Revision(0)` means that the key must not exist.
    pub mod_revision: Revision,
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets a key.
    Put {
        /// The key.
        key: Bytes,
        /// The new value.
        value: Bytes,
    },
    /// Removes a key; nothing happens if it does not exist.
    Delete {
        /// The key.
        key: Bytes,
    },
}

impl Op {
    pub(crate) fn key(&self) -> &Bytes {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }
}

/// A compare-and-set transaction: all compares hold and all ops happen, at one revision, or nothing happens.
/// No key is empty, and no key may appear in two ops.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    /// Conditions, all of which must hold.
    pub compares: Vec<Compare>,
    /// Changes.
    pub ops: Vec<Op>,
}

impl Txn {
    /// Refuses a transaction that makes no sense.
    pub(crate) fn check(&self) -> StoreResult<()> {
        let keys = || self.ops.iter().map(Op::key);
        if keys().chain(self.compares.iter().map(|compare| &compare.key)).any(Bytes::is_empty) {
            return Err(StoreError::Invalid("a key is empty".to_owned()));
        }
        if self.ops.len() > 1 {
            let mut seen = BTreeSet::new();
            if let Some(twice) = keys().find(|key| !seen.insert(*key)) {
                let key = String::from_utf8_lossy(twice);
                return Err(StoreError::Invalid(format!("the key {key:?} is changed twice")));
            }
        }
        Ok(())
    }
}

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnOutcome {
    /// Durable at this revision. A transaction that changes nothing commits at the current revision.
    Committed(Revision),
    /// A condition did not hold; the current state of each compared key, in the order of the compares.
    Conflict(Vec<Option<KeyValue>>),
}

/// A range read in key order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListRequest {
    /// Keys that start with this.
    pub prefix: Bytes,
    /// Only keys greater than this.
    pub after: Option<Bytes>,
    /// At most so many; 0 for all.
    pub limit: usize,
    /// As of this revision; now if `None`.
    pub at: Option<Revision>,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPage {
    /// The keys, in order.
    pub items: Vec<KeyValue>,
    /// The revision that was read.
    pub revision: Revision,
    /// How many keys of the prefix come after the last item.
    pub remaining: usize,
}

/// What happened to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It was set.
    Put,
    /// It was removed.
    Delete,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// When: the key's modification revision, or the revision of the removal.
    pub revision: Revision,
    /// The key.
    pub key: Bytes,
    /// The new value; `None` for a removal.
    pub value: Option<Bytes>,
    /// What was there before, unless compacted away.
    pub previous: Option<KeyValue>,
}

/// News of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchBatch {
    /// Changes in order of revision; all changes of one revision are in one batch. May be empty: progress only.
    pub events: Vec<Event>,
    /// Every change of the prefix up to and including this revision has now been sent.
    pub revision: Revision,
}

/// A running watch: gapless, ordered, each event once. It ends with an error, or when the receiver is dropped. An
/// engine may end a watch that does not keep up with [`StoreError::Lagging`]; it never blocks writers for it.
pub type WatchStream = mpsc::Receiver<StoreResult<WatchBatch>>;

/// Why the store did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// History before `oldest` is gone.
    #[error("required revision {requested} has been compacted, the oldest is {oldest}")]
    Compacted {
        /// The revision asked for.
        requested: Revision,
        /// The oldest that can be read.
        oldest: Revision,
    },
    /// A revision that has not happened yet.
    #[error("required revision {requested} is in the future, the current is {current}")]
    Future {
        /// The revision asked for.
        requested: Revision,
        /// The newest there is.
        current: Revision,
    },
    /// The watcher did not keep up.
    #[error("the watch fell too far behind")]
    Lagging,
    /// No space, or a limit of the store: the write did not happen and may be tried again.
    #[error("the store has no room: {0}")]
    NoSpace(String),
    /// A request that makes no sense: an empty key, or one key in two ops.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// Not reachable right now (a remote engine); whether a write happened is unknown.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The store has stopped for good: a flush failed or its files are damaged. Restart to recover.
    #[error("the store has stopped: {0}")]
    Stopped(String),
}

/// The result of a store call.
pub type StoreResult<T> = Result<T, StoreError>;

/// Revisioned key-value history.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest durable revision.
    async fn revision(&self) -> StoreResult<Revision>;
    /// One key, now, with the revision that was read.
    async fn get(&self, key: &Bytes) -> StoreResult<(Option<KeyValue>, Revision)>;
    /// A range of keys.
    async fn list(&self, request: &ListRequest) -> StoreResult<ListPage>;
    /// Commits, or says what differs. Durable when this returns `Committed`. If the future is dropped before it
    /// ends, the transaction may still happen.
    async fn txn(&self, txn: Txn) -> StoreResult<TxnOutcome>;
    /// Changes of `prefix` with revisions greater than `after`, for ever. `None` starts now. The first batch comes at
    /// once, with what of it there is already, if only to say the revision.
    async fn watch(&self, prefix: Bytes, after: Option<Revision>) -> StoreResult<WatchStream>;
    /// Forgets history before `revision`: reads and watches can start at `revision` and later. Compacting to an
    /// older revision than before does nothing.
    async fn compact(&self, revision: Revision) -> StoreResult<()>;
}

/// The first key after all keys with `prefix`; `None` if there is none.
pub(crate) fn prefix_end(prefix: &Bytes) -> Option<Bytes> {
    let last = prefix.iter().rposition(|&byte| byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(Bytes::from(end))
}
