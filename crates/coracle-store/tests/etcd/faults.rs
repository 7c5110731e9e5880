//! etcd killed, frozen, cut off and compacted, in the middle of watches and writes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use coracle_clock::Clock;
use coracle_store::etcd::{EtcdStore, Limits, Options};
use coracle_store::{
    Compare, EventKind, ListRequest, Op, Revision, Store, StoreError, Txn, TxnOutcome, WatchStream,
};
use nix::sys::signal::Signal;

use crate::behaviour::{bytes, put};
use crate::proxy::Proxy;
use crate::server::{Etcd, PATIENCE};

/// What writers know of their writes.
#[derive(Default)]
struct Written {
    /// Key by revision.
    acknowledged: BTreeMap<Revision, Bytes>,
    unknown: BTreeSet<Bytes>,
}

/// Creates keys, one after the other, until it is told to stop.
async fn write(store: Arc<EtcdStore>, name: String, stop: Arc<AtomicBool>) -> Written {
    let mut written = Written::default();
    for i in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = Bytes::from(format!("/w/{name}/{i}"));
        let compares = vec![Compare { key: key.clone(), mod_revision: Revision(0) }];
        let ops = vec![Op::Put { key: key.clone(), value: key.clone() }];
        match store.txn(Txn { compares, ops }).await {
            Ok(TxnOutcome::Committed(revision)) => {
                written.acknowledged.insert(revision, key);
            }
            Err(StoreError::Unavailable(_)) => {
                written.unknown.insert(key);
            }
            other => panic!("{key:?}: {other:?}; a write that was repeated meets itself"),
        }
        // Slow enough for the test to be about faults.
        tokio::task::yield_now().await;
    }
    written
}

/// Follows a watch up to a key that is written last.
async fn read(mut watch: WatchStream, end: &str) -> Vec<(Revision, Bytes)> {
    let mut seen = Vec::new();
    let mut last = Revision(0);
    loop {
        let batch = watch.recv().await.expect("a watch goes on for ever").unwrap();
        assert!(batch.revision >= last, "never backwards");
        for event in batch.events {
            assert!(event.revision > last, "nothing twice: {event:?} after {last}");
            assert_eq!(event.kind, EventKind::Put);
            last = event.revision;
            if event.key == end {
                return seen;
            }
            seen.push((event.revision, event.key));
        }
        last = last.max(batch.revision);
    }
}

/// Writes and watches while `disrupt` does its worst, and then compares.
async fn storm(etcd: &mut Etcd, options: Options, disrupt: impl AsyncFnOnce(&mut Etcd, &Clock)) {
    let clock = Clock::system();
    let store = etcd.store("", options).await;
    let begin = put(&*store, "/start", "").await.unwrap();
    let readers: Vec<_> = {
        let mut readers = Vec::new();
        for prefix in ["/", "/w/", "/w/1/"] {
            // The end is under every prefix.
            let watch = store.watch(bytes(prefix), Some(begin)).await.unwrap();
            readers.push((prefix, tokio::spawn(read(watch, "/w/1/end"))));
        }
        readers
    };
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..4).map(|i| tokio::spawn(write(Arc::clone(&store), i.to_string(), Arc::clone(&stop)))).collect();
    disrupt(etcd, &clock).await;
    stop.store(true, Ordering::Relaxed);
    let mut written = Written::default();
    for writer in writers {
        let one = clock.timeout(PATIENCE, writer).await.expect("a write hangs").unwrap();
        written.acknowledged.extend(one.acknowledged);
        written.unknown.extend(one.unknown);
    }
    while let Err(error) = put(&*store, "/w/1/end", "").await {
        assert!(clock.elapsed() < PATIENCE, "{error}");
    }
    assert!(written.acknowledged.len() > 100, "only {} writes", written.acknowledged.len());
    let list = store.list(&ListRequest { prefix: bytes("/w/"), ..ListRequest::default() }).await.unwrap();
    let mut there: BTreeMap<Revision, Bytes> =
        list.items.into_iter().map(|item| (item.mod_revision, item.key)).collect();
    there.retain(|_, key| key != "/w/1/end");
    for (revision, key) in &written.acknowledged {
        assert_eq!(there.get(revision), Some(key), "an acknowledged write is lost");
    }
    for key in there.values() {
        let known = written.acknowledged.values().any(|acknowledged| acknowledged == key);
        assert!(known || written.unknown.contains(key), "{key:?} comes from nowhere");
    }
    for (prefix, reader) in readers {
        let seen = clock.timeout(PATIENCE, reader).await.expect("a watch hangs").unwrap();
        let expected: Vec<_> =
            there.clone().into_iter().filter(|(_, key)| key.starts_with(prefix.as_bytes())).collect();
        assert_eq!(seen, expected, "what {prefix} saw");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_etcd_loses_nothing_and_repeats_nothing() {
    let mut etcd = Etcd::start();
    storm(&mut etcd, Options::default(), async |etcd, clock| {
        for _ in 0..4 {
            clock.sleep(Duration::from_millis(400)).await;
            etcd.kill(0);
            clock.sleep(Duration::from_millis(100)).await;
            etcd.run(0);
        }
        clock.sleep(Duration::from_millis(600)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_etcd_is_waited_for() {
    let mut etcd = Etcd::start();
    storm(&mut etcd, Options::default(), async |etcd, clock| {
        for seconds in [1, 3] {
            clock.sleep(Duration::from_millis(300)).await;
            etcd.signal(0, Signal::SIGSTOP);
            clock.sleep(Duration::from_secs(seconds)).await;
            etcd.signal(0, Signal::SIGCONT);
        }
        clock.sleep(Duration::from_millis(300)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_member_may_go() {
    let mut etcd = Etcd::with(3, false, &[]);
    storm(&mut etcd, Options::default(), async |etcd, clock| {
        // One of the three is the leader, and one the member that is asked.
        for i in 0..3 {
            clock.sleep(Duration::from_millis(500)).await;
            etcd.kill(i);
            clock.sleep(Duration::from_millis(1500)).await;
            etcd.run(i);
            clock.sleep(Duration::from_millis(1000)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn requests_end_in_time_and_a_write_is_not_sent_twice() {
    let mut etcd = Etcd::start();
    let limits = Limits { request: Duration::from_millis(700), connect: Duration::from_millis(300) };
    let store = etcd.store("", Options { limits, ..Options::default() }).await;
    let begin = put(&*store, "/a", "0").await.unwrap();
    let clock = Clock::system();
    let took = async |call: &mut dyn FnMut() -> futures::future::BoxFuture<'static, StoreError>| {
        let begun = clock.elapsed();
        let error = call().await;
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
        (clock.elapsed() - begun, error)
    };
    etcd.signal(0, Signal::SIGSTOP);
    let reader = Arc::clone(&store);
    let (waited, error) = took(&mut || {
        let store = Arc::clone(&reader);
        Box::pin(async move { store.get(&bytes("/a")).await.unwrap_err() })
    })
    .await;
    assert!(waited < Duration::from_millis(1500), "{waited:?}");
    assert!(error.to_string().contains("etcdserver: request timed out"), "{error}");
    let (waited, _) = took(&mut || {
        let store = Arc::clone(&reader);
        Box::pin(async move { put(&*store, "/a", "1").await.unwrap_err() })
    })
    .await;
    assert!(waited < Duration::from_millis(1500), "{waited:?}");
    etcd.signal(0, Signal::SIGCONT);
    let end = loop {
        match put(&*store, "/end", "").await {
            Ok(revision) => break revision,
            Err(error) => assert!(clock.elapsed() < PATIENCE, "{error}"),
        }
    };
    // It may have happened, once.
    assert!(end.0 - begin.0 <= 2, "{begin} to {end}");

    etcd.kill(0);
    let (waited, error) = took(&mut || {
        let store = Arc::clone(&reader);
        Box::pin(async move { put(&*store, "/a", "2").await.unwrap_err() })
    })
    .await;
    assert!(waited < Duration::from_millis(1500), "{waited:?}");
    assert!(!error.to_string().is_empty());
}

#[tokio::test]
async fn compaction_beyond_what_a_watch_has_seen_ends_it() {
    let etcd = Etcd::start();
    let near = etcd.store("", Options::default()).await;
    let proxy = Proxy::to(etcd.client_port(0)).await;
    let clock = Clock::system();
    let far = EtcdStore::connect(&proxy.target(), None, clock.clone(), Options::default()).await.unwrap();
    let seen = put(&*near, "/a", "0").await.unwrap();
    let mut watch = far.watch(bytes("/"), Some(Revision(1))).await.unwrap();
    while watch.recv().await.unwrap().unwrap().revision < seen {}

    // Cut, and mended in time: nothing is missing.
    proxy.cut();
    let missed = put(&*near, "/a", "1").await.unwrap();
    proxy.mend();
    let mut revisions = Vec::new();
    while revisions.last() != Some(&missed) {
        let batch = clock.timeout(PATIENCE, watch.recv()).await.expect("resumes").unwrap().unwrap();
        revisions.extend(batch.events.iter().map(|event| event.revision));
    }
    assert_eq!(revisions, [missed]);

    // Cut, and compacted meanwhile.
    proxy.cut();
    for i in 0..5 {
        put(&*near, "/a", i.to_string()).await.unwrap();
    }
    let oldest = near.revision().await.unwrap();
    near.compact(oldest).await.unwrap();
    proxy.mend();
    let error = loop {
        match clock.timeout(PATIENCE, watch.recv()).await.expect("ends").unwrap() {
            Ok(batch) => assert!(batch.events.is_empty(), "{batch:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!(error, StoreError::Compacted { requested: missed, oldest });
    assert_eq!(watch.recv().await, None);
    let again = far.watch(bytes("/"), Some(missed)).await.err();
    assert_eq!(again, Some(StoreError::Compacted { requested: missed, oldest }));
    // Whoever lists anew goes on.
    let page = far.list(&ListRequest::default()).await.unwrap();
    let mut watch = far.watch(bytes("/"), Some(page.revision)).await.unwrap();
    let last = put(&*near, "/b", "").await.unwrap();
    let mut revisions = Vec::new();
    while revisions.is_empty() {
        let batch = clock.timeout(PATIENCE, watch.recv()).await.expect("goes on").unwrap().unwrap();
        revisions.extend(batch.events.iter().map(|event| event.revision));
    }
    assert_eq!(revisions, [last]);
}
