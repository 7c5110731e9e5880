//! The embedded engine: the suite on real and on simulated files, and what is its own.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_clock::{Clock, Rng};
use coracle_store::embedded::{EmbeddedStore, Execution, OpenError, Options, Recovery, Retention};
use coracle_store::files::Directory;
use coracle_store::simfs::{PowerCut, SimFs};
use coracle_store::{
    ListRequest, Op, Revision, Store, StoreError, StoreResult, Txn, TxnOutcome, store_suite,
};

async fn on_disk() -> (tempfile::TempDir, Arc<dyn Store>) {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 64 << 10, retention: Retention::forever(), ..Options::default() };
    let (store, _) = EmbeddedStore::open_dir(directory.path(), Clock::system(), options).unwrap();
    (directory, store)
}

async fn simulated() -> (SimFs, Arc<dyn Store>) {
    let disk = SimFs::new(Rng::seeded(1));
    let store = open(&disk, small()).unwrap().0;
    (disk, store)
}

store_suite!(suite_on_disk, super::on_disk);
store_suite!(suite_simulated, super::simulated);

/// Small files, so that a short test sees many of them.
fn small() -> Options {
    Options {
        execution: Execution::Tasks,
        retention: Retention::forever(),
        segment_bytes: 2048,
        garbage_bytes: 4096,
        ..Options::default()
    }
}

fn open(disk: &SimFs, options: Options) -> Result<(Arc<EmbeddedStore>, Recovery), OpenError> {
    EmbeddedStore::open(Arc::new(disk.clone()), Clock::system(), options)
}

fn bytes(text: impl Into<String>) -> Bytes {
    Bytes::from(text.into())
}

async fn put(store: &EmbeddedStore, key: &str, value: impl Into<Bytes>) -> StoreResult<Revision> {
    let ops = vec![Op::Put { key: bytes(key), value: value.into() }];
    match store.txn(Txn { compares: Vec::new(), ops }).await? {
        TxnOutcome::Committed(revision) => Ok(revision),
        TxnOutcome::Conflict(states) => panic!("{states:?}"),
    }
}

async fn delete(store: &EmbeddedStore, key: &str) {
    store.txn(Txn { compares: Vec::new(), ops: vec![Op::Delete { key: bytes(key) }] }).await.unwrap();
}

async fn all(store: &EmbeddedStore) -> Vec<(Bytes, Bytes, Revision, Revision)> {
    let page = store.list(&ListRequest::default()).await.unwrap();
    page.items.into_iter().map(|kv| (kv.key, kv.value, kv.create_revision, kv.mod_revision)).collect()
}

#[tokio::test]
async fn a_store_opens_as_it_was_closed() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 4096, garbage_bytes: 8192, ..Options::default() };
    let open = || EmbeddedStore::open_dir(directory.path(), Clock::system(), options).unwrap();
    let mut expected = Vec::new();
    for round in 0..5 {
        let (store, recovery) = open();
        assert_eq!(recovery.cut, None);
        assert_eq!(recovery.revision, Revision(round * 100));
        assert_eq!(all(&store).await, expected);
        for i in 0..100 {
            put(&store, &format!("/{}", i % 30), format!("{round}/{i}")).await.unwrap();
        }
        expected = all(&store).await;
    }
}

#[tokio::test]
async fn a_directory_has_one_owner() {
    let directory = tempfile::tempdir().unwrap();
    let open = || EmbeddedStore::open_dir(directory.path(), Clock::system(), Options::default());
    let (first, _) = open().unwrap();
    let error = open().unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    assert!(error.to_string().contains("in use by another process"), "{error}");
    drop(first);
    open().unwrap();
}

#[tokio::test]
async fn files_follow_the_content() {
    let disk = SimFs::new(Rng::seeded(1));
    let (store, _) = open(&disk, small()).unwrap();
    for round in 0..400 {
        let at = put(&store, &format!("/{}", round % 5), vec![b'x'; 100]).await.unwrap();
        store.compact(at).await.unwrap();
        tokio::task::yield_now().await;
        assert!(disk.used() < 30_000, "{} bytes for five keys after {round} writes", disk.used());
    }
    let expected = all(&store).await;
    drop(store);
    let (store, recovery) = open(&disk, small()).unwrap();
    assert!(recovery.snapshot.is_some());
    assert!(recovery.segments < 10, "{recovery:?}");
    assert_eq!(all(&store).await, expected);

    // What was much is little again.
    for i in 0..100 {
        put(&store, &format!("/many/{i}"), vec![b'y'; 1000]).await.unwrap();
    }
    assert!(disk.used() > 100_000);
    for i in 0..100 {
        delete(&store, &format!("/many/{i}")).await;
    }
    for _ in 0..200 {
        let at = put(&store, "/beat", vec![b'z'; 100]).await.unwrap();
        store.compact(at).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert!(disk.used() < 30_000, "{} bytes", disk.used());
}

#[tokio::test(start_paused = true)]
async fn history_is_compacted_by_count_bytes_and_age() {
    let retention = Retention { revisions: 50, bytes: 1 << 20, age: Duration::from_secs(60) };
    let disk = SimFs::new(Rng::seeded(1));
    let clock = Clock::system();
    let options = Options { retention, ..small() };
    let (store, _) = EmbeddedStore::open(Arc::new(disk.clone()), clock.clone(), options).unwrap();
    let oldest = async |store: &EmbeddedStore| {
        let read = store.list(&ListRequest { at: Some(Revision(0)), ..ListRequest::default() }).await;
        match read {
            Err(StoreError::Compacted { oldest, .. }) => oldest,
            _ => Revision(0),
        }
    };
    for _ in 0..100 {
        put(&store, "/lease", "x").await.unwrap();
    }
    assert_eq!(oldest(&store).await, Revision(50), "by count");
    clock.sleep(Duration::from_secs(120)).await;
    put(&store, "/lease", "x").await.unwrap();
    assert!(oldest(&store).await >= Revision(85), "by age: {}", oldest(&store).await);
    for _ in 0..10 {
        put(&store, "/big", vec![0; 300_000]).await.unwrap();
    }
    assert!(oldest(&store).await >= Revision(107), "by bytes: {}", oldest(&store).await);
    assert!(store.history_bytes().unwrap() <= 1 << 20);
}

#[tokio::test]
async fn one_key_with_many_revisions_costs_nothing() {
    let disk = SimFs::new(Rng::seeded(1));
    let retention = Retention { revisions: 100, ..Retention::default() };
    let options = Options { retention, segment_bytes: 64 << 10, garbage_bytes: 256 << 10, ..small() };
    let (store, _) = open(&disk, options).unwrap();
    for _ in 0..30_000 {
        put(&store, "/lease", vec![b'x'; 300]).await.unwrap();
    }
    assert!(store.history_bytes().unwrap() < 100_000);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(disk.used() < 1 << 20, "{}", disk.used());
}

#[tokio::test]
async fn writers_do_not_wait_for_compaction_nor_for_snapshots() {
    let disk = SimFs::new(Rng::seeded(1));
    let options = Options { segment_bytes: 64 << 10, garbage_bytes: 1 << 20, ..small() };
    let (store, _) = open(&disk, options).unwrap();
    let mut last = Revision(0);
    for i in 0..5000 {
        last = put(&store, &format!("/{i:05}"), vec![b'x'; 20]).await.unwrap();
    }
    for i in 0..15_000 {
        last = put(&store, &format!("/{:05}", i % 100), vec![b'y'; 20]).await.unwrap();
    }
    let ended = std::cell::Cell::new(None);
    let compaction = async {
        store.compact(last).await.unwrap();
        ended.set(Some(store.revision().await.unwrap()));
    };
    let writing = async {
        for i in 0..3 {
            put(&store, "/beside", i.to_string()).await.unwrap();
            assert_eq!(ended.get(), None, "write {i} came after the whole of the compaction");
        }
    };
    tokio::join!(compaction, writing);
    assert!(ended.get().unwrap() >= Revision(last.0 + 3));

    // The snapshot that follows is taken beside the writer.
    let under_way = || Directory::list(&disk).unwrap().iter().any(|name| name.ends_with(".tmp"));
    let mut beside = 0;
    let mut rounds = 0;
    while beside < 3 {
        let before = under_way();
        put(&store, "/beside", vec![b'z'; 500]).await.unwrap();
        beside += u32::from(before && under_way());
        rounds += 1;
        assert!(rounds < 10_000, "{beside} writes beside a snapshot");
        let at = store.revision().await.unwrap();
        if rounds % 100 == 0 {
            store.compact(at).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_slow_watch_ends_and_blocks_nobody() {
    let disk = SimFs::new(Rng::seeded(1));
    let (store, _) = open(&disk, Options { watch_buffer: 10, ..small() }).unwrap();
    let mut slow = store.watch(bytes("/"), None).await.unwrap();
    let mut elsewhere = store.watch(bytes("/other"), None).await.unwrap();
    for i in 0..100 {
        put(&store, "/x", i.to_string()).await.unwrap();
    }
    let mut last = Revision(0);
    let error = loop {
        match slow.recv().await.unwrap() {
            Ok(batch) => {
                assert!(batch.events.iter().all(|event| event.revision > last));
                last = batch.revision;
            }
            Err(error) => break error,
        }
    };
    assert_eq!(error, StoreError::Lagging);
    assert_eq!(slow.recv().await, None);
    // From where it was, nothing is lost.
    let mut again = store.watch(bytes("/"), Some(last)).await.unwrap();
    let batch = again.recv().await.unwrap().unwrap();
    assert_eq!(batch.events.first().unwrap().revision, Revision(last.0 + 1));
    assert_eq!(batch.revision, Revision(100));
    put(&store, "/other/x", "1").await.unwrap();
    let mut found = Vec::new();
    while found.is_empty() {
        found = elsewhere.recv().await.unwrap().unwrap().events;
    }
    assert_eq!(found[0].revision, Revision(101));
}

#[tokio::test]
async fn a_failed_flush_stops_the_store_for_good() {
    let disk = SimFs::new(Rng::seeded(1));
    let (store, _) = open(&disk, small()).unwrap();
    let mut watch = store.watch(bytes("/"), None).await.unwrap();
    put(&store, "/a", "1").await.unwrap();
    disk.fail_sync(1);
    let error = put(&store, "/a", "2").await.unwrap_err();
    assert!(matches!(&error, StoreError::Stopped(why) if why.contains("flushing sim:")), "{error}");
    assert_eq!(put(&store, "/a", "3").await.unwrap_err(), error, "no second try");
    assert_eq!(store.get(&bytes("/a")).await.unwrap_err(), error);
    let mut seen = Vec::new();
    let end = loop {
        match watch.recv().await.unwrap() {
            Ok(batch) => seen.extend(batch.events),
            Err(error) => break error,
        }
    };
    assert_eq!((seen.len(), end), (1, error), "what was not durable was not shown");

    // The process restarts; the machine, and with it the memory of its disk, does not. What is read now and shown
    // has to survive a power cut.
    drop(store);
    let (store, recovery) = open(&disk, small()).unwrap();
    let shown = all(&store).await;
    drop(store);
    disk.restart(PowerCut::DropUnflushed);
    let (store, after) = open(&disk, small()).unwrap();
    assert_eq!(all(&store).await, shown);
    assert_eq!(after.revision, recovery.revision);
}

#[tokio::test]
async fn a_full_disk_fails_the_write_and_nothing_else() {
    for can_reserve in [false, true] {
        let disk = SimFs::new(Rng::seeded(1));
        disk.set_can_reserve(can_reserve);
        let (store, _) = open(&disk, small()).unwrap();
        // What a write takes of the disk, in steps.
        let mut before = Vec::new();
        for i in 0..20 {
            let steps = disk.steps();
            put(&store, "/a", vec![b'a' + i; 300]).await.unwrap();
            before.push(disk.steps() - steps);
        }
        let mut written = 20;
        disk.set_capacity(Some(disk.used() + 1000));
        let error = loop {
            match put(&store, &format!("/{written}"), vec![b'x'; 300]).await {
                Ok(_) => written += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, StoreError::NoSpace(_)), "{error}");
        for _ in 0..3 {
            assert!(matches!(put(&store, "/no", vec![b'x'; 300]).await, Err(StoreError::NoSpace(_))));
        }
        assert_eq!(store.revision().await.unwrap(), Revision(written), "reading goes on");
        assert_eq!(store.get(&bytes("/no")).await.unwrap().0, None);
        disk.set_capacity(None);
        let mut after = Vec::new();
        for _ in 0..20 {
            written += 1;
            let steps = disk.steps();
            assert_eq!(put(&store, "/yes", vec![b'y'; 300]).await.unwrap(), Revision(written));
            after.push(disk.steps() - steps);
        }
        // The first write may make a segment anew; from then on it goes as before.
        let (typical, slowest) = (before.iter().min().unwrap(), before.iter().max().unwrap());
        assert!(after.iter().skip(1).all(|steps| steps <= slowest), "{before:?}, then {after:?}");
        assert!(after.iter().filter(|steps| *steps == typical).count() >= 10, "{before:?}, then {after:?}");
        let expected = all(&store).await;
        drop(store);
        disk.restart(PowerCut::DropUnflushed);
        let (store, recovery) = open(&disk, small()).unwrap();
        assert_eq!((recovery.cut, recovery.revision), (None, Revision(written)));
        assert_eq!(all(&store).await, expected);
    }
}

#[tokio::test]
async fn want_of_descriptors_delays_writes_and_stops_nothing() {
    let disk = SimFs::new(Rng::seeded(1));
    let (store, _) = open(&disk, small()).unwrap();
    put(&store, "/a", "1").await.unwrap();
    disk.set_can_open(false);
    let mut written = 1;
    // Sooner or later the log needs its next file.
    let error = loop {
        assert!(written < 1000, "the log has only one file");
        match put(&store, &format!("/{written}"), vec![b'x'; 300]).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::NoSpace(_)), "{error}");
    assert_eq!(store.revision().await.unwrap(), Revision(written), "reading goes on");
    disk.set_can_open(true);
    for _ in 0..20 {
        written += 1;
        assert_eq!(put(&store, "/yes", vec![b'y'; 300]).await.unwrap(), Revision(written));
    }
    let expected = all(&store).await;
    drop(store);
    let (store, _) = open(&disk, small()).unwrap();
    assert_eq!(all(&store).await, expected);
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let disk = SimFs::new(Rng::seeded(1));
    drop(open(&disk, small()).unwrap());
    let name = "00000000000000000001.log";
    let mut header = disk.content(name).unwrap();
    header[8] = 2;
    let crc = crc32c::crc32c(&header[..20]);
    header[20..24].copy_from_slice(&crc.to_le_bytes());
    let file = Directory::open(&disk, name).unwrap();
    file.write_at(0, &header).unwrap();
    let error = open(&disk, small()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "sim:00000000000000000001.log has format version 2, this version of Coracle reads up to 1: start the \
         newer Coracle that wrote it"
    );
}

#[tokio::test]
async fn a_lost_segment_is_noticed() {
    let disk = SimFs::new(Rng::seeded(1));
    let (store, _) = open(&disk, small()).unwrap();
    for i in 0..60 {
        put(&store, &format!("/{i}"), vec![b'x'; 200]).await.unwrap();
    }
    drop(store);
    let names: Vec<String> = Directory::list(&disk).unwrap();
    for lost in &names[..names.len() - 1] {
        let copy = disk.copy(Rng::seeded(2));
        Directory::remove(&copy, lost).unwrap();
        let error = open(&copy, small()).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "without {lost}: {error}");
    }
}
