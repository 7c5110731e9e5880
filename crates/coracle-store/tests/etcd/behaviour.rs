//! What the engine does beyond the suite: prefixes, large answers, retention, and refusals.

use std::time::Duration;

use bytes::Bytes;
use coracle_clock::Clock;
use coracle_store::etcd::{EtcdStore, Options, Target, Tls};
use coracle_store::{ListRequest, Op, Revision, Store, StoreError, StoreResult, Txn, TxnOutcome};

use crate::server::{Etcd, PATIENCE};

pub(crate) fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(crate) async fn put(store: &dyn Store, key: &str, value: impl Into<Bytes>) -> StoreResult<Revision> {
    let ops = vec![Op::Put { key: bytes(key), value: value.into() }];
    match store.txn(Txn { compares: Vec::new(), ops }).await? {
        TxnOutcome::Committed(revision) => Ok(revision),
        TxnOutcome::Conflict(_) => panic!("a conflict without a condition"),
    }
}

async fn keys(store: &dyn Store, prefix: &str) -> Vec<Bytes> {
    let request = ListRequest { prefix: bytes(prefix), ..ListRequest::default() };
    store.list(&request).await.unwrap().items.into_iter().map(|item| item.key).collect()
}

#[tokio::test]
async fn stores_of_one_etcd_do_not_see_each_other() {
    let etcd = Etcd::start();
    let a = etcd.store("/a", Options::default()).await;
    let ab = etcd.store("/ab", Options::default()).await;
    let whole = etcd.store("", Options::default()).await;
    let mut watch = a.watch(Bytes::new(), None).await.unwrap();
    put(&*ab, "/x", "ab").await.unwrap();
    put(&*a, "/x", "a").await.unwrap();
    put(&*ab, "/y", "ab").await.unwrap();
    let last = put(&*a, "/z", "a").await.unwrap();
    assert_eq!(keys(&*a, "").await, ["/x", "/z"]);
    assert_eq!(keys(&*ab, "").await, ["/x", "/y"]);
    assert_eq!(keys(&*whole, "").await, ["/a/x", "/a/z", "/ab/x", "/ab/y"], "what etcdctl shows");
    assert_eq!(a.get(&bytes("/x")).await.unwrap().0.unwrap().value, "a");
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(watch.recv().await.unwrap().unwrap().events);
    }
    assert_eq!((seen[0].key.as_ref(), seen[1].revision), (&b"/x"[..], last));
    let stray = put(&*a, "b/x", "1").await;
    assert!(matches!(stray, Err(StoreError::Invalid(_))), "it would be in the other store: {stray:?}");
}

#[tokio::test]
async fn answers_may_be_larger_than_a_message() {
    let etcd = Etcd::start();
    let store = etcd.store("", Options::default()).await;
    // A replay of 8 MB comes in fragments; so does a single revision of 128 keys.
    for i in 0..8u8 {
        put(&*store, &format!("/large/{i}"), vec![i; 1_000_000]).await.unwrap();
    }
    for batch in 0..40 {
        let key = |i: usize| bytes(&format!("/many/{batch:02}/{i:03}"));
        let ops = (0..128).map(|i| Op::Put { key: key(i), value: Bytes::from(vec![0; 100]) }).collect();
        store.txn(Txn { compares: Vec::new(), ops }).await.unwrap();
    }
    let current = store.revision().await.unwrap();
    let page = store.list(&ListRequest::default()).await.unwrap();
    assert_eq!((page.items.len(), page.remaining, page.revision), (8 + 40 * 128, 0, current));
    assert!(page.items.is_sorted_by(|a, b| a.key < b.key));
    let limited = ListRequest { limit: 3000, ..ListRequest::default() };
    let page = store.list(&limited).await.unwrap();
    assert_eq!((page.items.len(), page.remaining), (3000, 8 + 40 * 128 - 3000));

    // Somebody who comes now reads what was before, in order.
    let late = etcd.store("", Options::default()).await;
    let mut watch = late.watch(Bytes::new(), Some(Revision(1))).await.unwrap();
    let (mut last, mut large, mut count) = (Revision(1), 0, 0);
    while last < current {
        let batch = watch.recv().await.unwrap().unwrap();
        for events in batch.events.chunk_by(|a, b| a.revision == b.revision) {
            assert!(events[0].revision > last, "whole revisions, in order");
            last = events[0].revision;
            assert!(events.len() == 1 || events.len() == 128, "{} of {last}", events.len());
            count += events.len();
            large += events.iter().filter(|event| event.value.as_ref().unwrap().len() == 1_000_000).count();
        }
    }
    assert_eq!((large, count), (8, 8 + 40 * 128));
}

#[tokio::test]
async fn history_is_compacted_once_an_interval_whoever_does_it() {
    let etcd = Etcd::start();
    let interval = Duration::from_millis(200);
    let options = Options { compact_every: Some(interval), ..Options::default() };
    let stores = [etcd.store("", options).await, etcd.store("", options).await];
    let first = put(&*stores[0], "/a", "1").await.unwrap();
    let clock = Clock::system();
    // The last state of a key outlives its history.
    let last = put(&*stores[0], "/a", "2").await.unwrap();
    let request = ListRequest { prefix: bytes("/a"), at: Some(first), ..ListRequest::default() };
    let error = loop {
        match stores[1].list(&request).await {
            Ok(_) if clock.elapsed() > PATIENCE => panic!("never compacted"),
            Ok(_) => clock.sleep(Duration::from_millis(10)).await,
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, StoreError::Compacted { requested, oldest } if requested == first && oldest >= last)
    );
    let kept = stores[1].get(&bytes("/a")).await.unwrap().0.unwrap();
    assert_eq!((kept.value, kept.mod_revision), (bytes("2"), last));
    let begun = clock.elapsed();
    let turns = |kv: Option<coracle_store::KeyValue>, at: Revision| (kv.is_some(), at);
    let (there, before) = {
        let (kv, at) = stores[0].get(&bytes("compact_rev_key")).await.unwrap();
        turns(kv, at)
    };
    assert!(there, "the key by which servers agree");
    clock.sleep(interval * 5).await;
    let after = stores[0].revision().await.unwrap();
    let intervals = (clock.elapsed() - begun).as_millis() / interval.as_millis();
    assert!(u128::from(after.0 - before.0) <= intervals + 2, "two stores compact as often as one");
}

#[tokio::test]
async fn no_room_is_said_and_reading_goes_on() {
    let etcd = Etcd::with(1, false, &["--quota-backend-bytes", "2000000"]);
    let store = etcd.store("", Options::default()).await;
    let error = loop {
        if let Err(error) = put(&*store, "/a", vec![1; 200_000]).await {
            break error;
        }
    };
    assert_eq!(error, StoreError::NoSpace("etcdserver: mvcc: database space exceeded".to_owned()));
    assert!(store.get(&bytes("/a")).await.unwrap().0.is_some());
    let error = put(&*store, "/a", vec![1; 4_000_000]).await.unwrap_err();
    assert!(matches!(error, StoreError::NoSpace(_)), "{error}");
}

#[tokio::test]
async fn whoever_is_not_etcd_is_told_apart() {
    let clock = Clock::system();
    let connect = async |target: &Target, tls: Option<&Tls>| {
        let connected = EtcdStore::connect(target, tls, clock.clone(), Options::default()).await;
        connected.expect_err("it did connect").to_string()
    };
    // Nobody is there: said after the time that a restart takes.
    let nobody = Target::parse("etcd://127.0.0.1:1").unwrap();
    let begun = clock.elapsed();
    let error = connect(&nobody, None).await;
    assert!(error.contains("Connection refused"), "{error}");
    assert!(clock.elapsed() - begun < Duration::from_secs(4));

    let etcd = Etcd::with(1, true, &[]);
    etcd.store("", Options::default()).await;
    let ours = etcd.tls().unwrap();
    let other = Etcd::with(1, true, &[]);
    let error = connect(&etcd.target(""), other.tls()).await;
    assert!(error.contains("certificate"), "an authority that did not sign it: {error}");
    let anonymous = Tls { ca_pem: ours.ca_pem.clone(), client: None };
    let error = connect(&etcd.target(""), Some(&anonymous)).await;
    assert!(error.contains("unavailable"), "etcd wants to know who we are: {error}");
    let error = connect(&etcd.target(""), None).await;
    assert!(error.contains("unavailable"), "without TLS: {error}");
    let bad = Tls { ca_pem: ours.ca_pem.clone(), client: Some((b"x".to_vec(), b"y".to_vec())) };
    let connected = EtcdStore::connect(&etcd.target(""), Some(&bad), clock.clone(), Options::default()).await;
    assert!(matches!(connected, Err(StoreError::Invalid(_))), "{connected:?}");
}
