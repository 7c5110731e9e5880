//! HTTP in front of catalogue and store.
//!
//! A request passes, in this order: identity ▸ authorization ▸ decode ▸ default ▸ admit ▸ validate ▸ one
//! compare-and-set transaction. There is one generic handler per verb; what a resource is, comes from its row in
//! the catalogue. The watch hub sends each committed change to every watcher, as bytes that are made once.
//!
//! Start at [`ApiServer`]. [`hub`] is the fan-out, `prepare` holds the decisions of a write, `read` and `watch`
//! the rules of resource versions, `policy` who may do what.
//!
//! **Invariants**
//! - Only this crate talks to the store; a component, in this process or not, is a client like any other.
//! - An identity comes from a verified client certificate, a token that the cluster signed, or the wiring; no other
//!   header is believed.
//! - A watch is gapless and ordered, a bookmark is never ahead of an event, and a slow watcher delays nobody.
//! - Every write is one transaction that compares the revision it was decided on.

mod accounts;
pub mod auth;
mod backup;
mod body;
mod bootstrap;
mod call;
mod connections;
mod delete;
mod discovery;
mod events;
mod evict;
mod health;
pub mod hub;
mod impersonate;
mod join;
pub mod kubeconfig;
mod kubelet;
mod metrics;
mod negotiate;
mod node;
mod object;
mod openapi;
mod outflow;
mod paths;
pub mod pki;
mod placed;
mod pods;
mod policy;
mod prepare;
mod priority;
mod protobuf;
mod read;
mod request;
mod reviews;
mod scale;
mod server;
mod services;
mod tls;
mod tokens;
mod watch;
mod write;

pub use body::{Body, BoxError};
pub use connections::{Answering, Limits, serve_with};
pub use join::{Joining, NODE_NETWORK};
pub use kubelet::KubeletClient;
pub use server::{ApiServer, Config, InProcess, ServerEnd, StartError};
pub use services::{BadRange, ServiceRange};
pub use tls::{ServerTls, TlsError};
