//! Revisioned key-value history.
//!
//! A store holds keys and bytes and knows nothing of Kubernetes. Every committed transaction gets one revision of
//! one global, dense sequence; a read can be made at any revision since the last compaction, and a watch replays
//! and follows the history of a prefix. Engines: [`embedded`] (an index in memory over a checksummed log) and
//! [`etcd`]; both pass one suite.
//!
//! **Invariants**
//! - A revision is visible to no one before it is durable.
//! - Revisions never go back and are never used twice, whatever happens to the machine.
//! - A failed flush stops the embedded engine; it is never retried.
//! - A write of which it is unknown whether it happened is reported as such and never sent again.

pub mod backup;
mod contract;
pub mod embedded;
pub mod etcd;
pub mod files;
mod hub;
mod retention;
pub mod simfs;
pub mod suite;

pub use contract::{
    Compare, Event, EventKind, KeyValue, ListPage, ListRequest, Op, Revision, Store, StoreError, StoreResult,
    Txn, TxnOutcome, WatchBatch, WatchStream,
};
