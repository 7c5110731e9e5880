//! The etcd engine against Debian's `etcd-server`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod behaviour;
mod faults;
mod proxy;
mod server;

use std::sync::Arc;

use coracle_store::Store;
use coracle_store::etcd::Options;
use server::Etcd;

async fn open() -> (Etcd, Arc<dyn Store>) {
    let etcd = Etcd::start();
    let store = etcd.store("", Options::default()).await;
    (etcd, store)
}

async fn open_with_tls_and_prefix() -> (Etcd, Arc<dyn Store>) {
    let etcd = Etcd::with(1, true, &[]);
    let store = etcd.store("/team/one", Options::default()).await;
    (etcd, store)
}

coracle_store::store_suite!(suite, super::open);
coracle_store::store_suite!(suite_with_tls_and_prefix, super::open_with_tls_and_prefix);
