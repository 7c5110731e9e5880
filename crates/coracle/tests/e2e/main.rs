//! End to end: the built binary, real kubectl, real containers; each test has a cluster of its own.
//!
//! With `CORACLE_E2E_STORE=etcd` every cluster has its objects in an etcd of its own.
//!
//! The tests need root and what `scripts/prerequisites.sh test` installs; they fail, and do not skip, without.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod accounts;
mod backup;
mod bad_input;
mod cleanup;
mod cli;
mod debug;
mod etcd;
mod examples;
mod hostile;
mod kubectl;
mod lifecycle;
mod machines;
mod probes;
mod registry;
mod streams;
mod support;
mod upgrade;
mod volumes;
mod workloads;
