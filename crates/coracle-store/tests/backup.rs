//! From a store that is written to, through a backup, to a new store.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use bytes::Bytes;
use coracle_clock::{Clock, Rng};
use coracle_store::backup::{Record, export};
use coracle_store::embedded::{EmbeddedStore, Execution, NewStore, Options};
use coracle_store::simfs::SimFs;
use coracle_store::{KeyValue, ListRequest, Op, Revision, Store, StoreError, Txn, TxnOutcome};
use futures::StreamExt;

async fn put(store: &EmbeddedStore, key: &str, value: &str) -> Revision {
    let op = Op::Put { key: Bytes::from(key.to_owned()), value: Bytes::from(value.to_owned()) };
    match store.txn(Txn { compares: Vec::new(), ops: vec![op] }).await.unwrap() {
        TxnOutcome::Committed(revision) => revision,
        TxnOutcome::Conflict(states) => panic!("{states:?}"),
    }
}

async fn all(store: &EmbeddedStore) -> Vec<KeyValue> {
    store.list(&ListRequest::default()).await.unwrap().items
}

#[tokio::test]
async fn a_backup_is_of_one_revision_and_a_restored_store_goes_on_far_above_it() {
    let options = Options { execution: Execution::Tasks, ..Options::default() };
    let disk = SimFs::new(Rng::seeded(1));
    let (store, _) = EmbeddedStore::open(Arc::new(disk), Clock::system(), options).unwrap();
    for i in 0..1200 {
        put(&store, &format!("/{i:04}"), "before").await;
    }
    let expected = all(&store).await;

    // Everything changes between the pages.
    let mut records = export(Arc::clone(&store) as Arc<dyn Store>);
    let mut items = Vec::new();
    let mut writes = 0;
    let (at, keys) = loop {
        match records.next().await.unwrap().unwrap() {
            Record::Items(page) => items.extend(page),
            Record::End { revision, keys } => break (revision, keys),
            Record::File { name, .. } => panic!("{name}"),
        }
        for i in 0..1200 {
            writes += 1;
            put(&store, &format!("/{i:04}"), "after").await;
        }
        put(&store, "/new", "after").await;
    };
    assert!(writes >= 3600, "there were pages: {writes}");
    assert_eq!((at, keys), (Revision(1200), 1200));
    assert!(items == expected, "not as of one revision");
    assert!(records.next().await.is_none());

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let start = Revision(at.0 + 1_000_000);
    let mut new = NewStore::create(&path, start).unwrap();
    for item in &items {
        new.push(item).unwrap();
    }
    new.finish().unwrap();
    NewStore::create(&path, start).unwrap_err();
    for opening in 1..=3 {
        let (restored, recovery) =
            EmbeddedStore::open_dir(&path, Clock::system(), Options::default()).unwrap();
        assert_eq!((recovery.cut, recovery.revision.0), (None, start.0 + opening - 1));
        if opening == 1 {
            assert!(all(&restored).await == expected, "revisions of keys included");
        }
        for seen in [Revision(1), at, Revision(at.0 + 5000)] {
            let error = restored.watch(Bytes::new(), Some(seen)).await.unwrap_err();
            assert!(
                matches!(error, StoreError::Compacted { .. }),
                "a watcher is told to start anew: {error}"
            );
        }
        assert_eq!(put(&restored, "/0000", "restored").await, Revision(start.0 + opening));
    }
}

#[tokio::test]
async fn an_empty_store_has_a_backup_too() {
    let directory = tempfile::tempdir().unwrap();
    let open = |name: &str| {
        let path = directory.path().join(name);
        EmbeddedStore::open_dir(&path, Clock::system(), Options::default()).unwrap().0
    };
    let records: Vec<_> = export(open("a")).map(Result::unwrap).collect().await;
    let end = Record::End { revision: Revision(0), keys: 0 };
    assert_eq!(records, [Record::Items(Vec::new()), end]);
    NewStore::create(&directory.path().join("b"), Revision(10)).unwrap().finish().unwrap();
    assert_eq!(open("b").revision().await.unwrap(), Revision(10));
}
