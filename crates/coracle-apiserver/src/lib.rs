//! HTTP in front of catalogue and store.
//!
//! A request passes, in this order: identity ▸ authorization ▸ decode ▸ default ▸ admit ▸ validate ▸ one
//! compare-and-set transaction. There is one generic handler per verb; what a resource is, comes from its row in
//! the catalogue. The watch hub sends each committed change to every watcher, as bytes that are made once.
//!
//! **Invariants**
//! - Only this crate talks to the store; a component, in this process or not, is a client like any other.
//! - An identity comes from a verified client certificate or from the wiring, never from a header.
//! - A watch is gapless and ordered, a bookmark is never ahead of an event, and a slow watcher delays nobody.

pub mod auth;
pub mod kubeconfig;
pub mod pki;
