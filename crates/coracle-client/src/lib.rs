//! Typed requests and shared informers over the kube crate.
//!
//! A component writes by request, with its own identity, and reads through informers: one [`Informer`] per kind
//! and selector and process, whose objects everyone shares. Nothing here polls.
//!
//! - [`in_process`] and [`connect`] make a `kube::Client`; [`request`] has the few requests that components
//!   repeat, typed and with preconditions.
//! - [`Informer`] follows a kind; [`Workqueue`] turns changes into keyed, deduplicated, retried work.
//! - [`WrittenRevisions`] keeps a component from planning before it sees its own writes.
//! - [`EventRecorder`] writes the Events that `kubectl describe` shows.
//!
//! This crate does not know the API server: the transport is any `tower::Service`.

mod backoff;
mod certificate;
mod connect;
mod event;
mod informer;
mod metadata;
mod object;
pub mod request;
mod supervise;
mod workqueue;
mod written;

pub use backoff::Backoff;
pub use certificate::{BadCertificate, LiveCertificate};
pub use connect::{
    ConnectError, ConnectOptions, PING_INTERVAL, PING_TIMEOUT, connect, connect_unverified,
    connect_with_kubeconfig, in_process,
};
pub use event::{EventRecorder, EventType, reference};
pub use informer::{Informer, ListOptions, Subscription};
pub use metadata::{Collection, Metadata};
pub use object::{Object, ObjectKey, key_of, revision_of, uid_of};
pub use request::{Deletion, ErrorExt, Propagation};
pub use supervise::supervise;
pub use workqueue::{Claim, Workqueue};
pub use written::WrittenRevisions;
