//! Speed of the embedded engine on real files, and of the etcd engine beside it: `cargo bench -p coracle-store`. Set
//! `BENCH_DIR` to the disk to measure; etcd is on that of the target directory.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a benchmark measures time and stops when it cannot"
)]

#[allow(dead_code, reason = "the tests need more of it")]
#[path = "../tests/etcd/server.rs"]
mod server;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use coracle_clock::Clock;
use coracle_store::embedded::{EmbeddedStore, Options};
use coracle_store::{Compare, ListRequest, Op, Revision, Store, Txn, TxnOutcome};

const OBJECT: usize = 2048;

async fn create(store: &dyn Store, key: String) {
    let key = Bytes::from(key);
    let compares = vec![Compare { key: key.clone(), mod_revision: Revision(0) }];
    let value = Bytes::from(vec![b'x'; OBJECT]);
    let outcome = store.txn(Txn { compares, ops: vec![Op::Put { key, value }] }).await.unwrap();
    assert!(matches!(outcome, TxnOutcome::Committed(_)), "{outcome:?}");
}

fn open(path: &Path) -> Arc<EmbeddedStore> {
    EmbeddedStore::open_dir(path, Clock::system(), Options::default()).unwrap().0
}

fn row(what: &str, value: &str, wanted: &str) {
    println!("{what:<58} {value:>14}   {wanted}");
}

async fn concurrent<S: Store>(store: &Arc<S>, tasks: usize, each: usize, prefix: &str) -> f64 {
    let start = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for task in 0..tasks {
        let (store, prefix) = (Arc::clone(store), prefix.to_owned());
        running.spawn(async move {
            for i in 0..each {
                create(&*store, format!("{prefix}{task}/{i}")).await;
            }
        });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
    let count = u32::try_from(tasks * each).unwrap();
    f64::from(count) / start.elapsed().as_secs_f64()
}

/// Processor time of this thread so far, which a busy machine does not stretch.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

/// What the disk itself takes for the same bytes, just now.
fn raw(path: &Path) -> (Duration, Duration) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path.join("raw")).unwrap();
    let zeros = vec![0; 8 << 20];
    file.write_all_at(&zeros, 0).unwrap();
    file.sync_all().unwrap();
    let bytes = vec![b'x'; OBJECT + 64];
    let mut latencies = Vec::new();
    for i in 0..2000 {
        let start = Instant::now();
        file.write_all_at(&bytes, i * bytes.len() as u64).unwrap();
        file.sync_data().unwrap();
        latencies.push(start.elapsed());
    }
    latencies.sort_unstable();
    (latencies[1000], latencies[1980])
}

async fn alone<S: Store>(store: &Arc<S>, prefix: &str) -> (Duration, Duration) {
    let mut latencies = Vec::new();
    for i in 0..2000 {
        let start = Instant::now();
        create(&**store, format!("{prefix}{i}")).await;
        latencies.push(start.elapsed());
    }
    latencies.sort_unstable();
    (latencies[1000], latencies[1980])
}

/// The same creates in an etcd of one member, and how they compare with what the embedded engine took just now.
async fn on_etcd(embedded_alone: Duration, embedded_rate: f64) {
    let etcd = server::Etcd::start();
    let store = etcd.store("", coracle_store::etcd::Options::default()).await;
    let (p50, _) = tokio::spawn({
        let store = Arc::clone(&store);
        async move { alone(&store, "/alone/").await }
    })
    .await
    .unwrap();
    let ratio = p50.as_secs_f64() / embedded_alone.as_secs_f64();
    let took = format!("{:.0} µs", p50.as_secs_f64() * 1e6);
    row("etcd: one writer alone, p50", &took, &format!("{ratio:.1} times the embedded engine's"));
    let rate = concurrent(&store, 64, 128, "/many/").await;
    let ratio = rate / embedded_rate;
    row(
        "etcd: creates from 64 tasks",
        &format!("{rate:.0} /s"),
        &format!("{ratio:.2} of the embedded engine's"),
    );
}

#[tokio::main]
async fn main() {
    let parent = std::env::var_os("BENCH_DIR").unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
    let directory = tempfile::tempdir_in(parent).unwrap();
    let path = directory.path();
    println!("objects of {OBJECT} bytes, each create durable before its answer\n");

    let micros = |duration: Duration| format!("{:.0} µs", duration.as_secs_f64() * 1e6);
    let (p50, p99) = raw(path);
    row("write and fdatasync without a store, p50, p99", &format!("{}, {}", micros(p50), micros(p99)), "");
    let store = open(path);
    let (p50, p99) = tokio::spawn({
        let store = Arc::clone(&store);
        async move { alone(&store, "/alone/").await }
    })
    .await
    .unwrap();
    row("one writer alone, p50", &micros(p50), "wanted: under 500 µs");
    row("one writer alone, p99", &micros(p99), "");
    let mut embedded_rate = 0.0;
    for tasks in [8, 64] {
        let rate = concurrent(&store, tasks, 16_384 / tasks, &format!("/many/{tasks}/")).await;
        let wanted = if tasks == 64 { "wanted: 5000 /s" } else { "" };
        row(&format!("creates from {tasks} tasks"), &format!("{rate:.0} /s"), wanted);
        embedded_rate = rate;
    }
    on_etcd(p50, embedded_rate).await;
    let mut watches = Vec::new();
    for i in 0..10_000 {
        let prefix = Bytes::from(format!("/watched/{i}/"));
        watches.push(store.watch(prefix, None).await.unwrap());
    }
    let rate = concurrent(&store, 64, 256, "/watched/").await;
    row("creates from 64 tasks beside 10,000 watches", &format!("{rate:.0} /s"), "");
    drop(watches);

    let have = store.list(&ListRequest { limit: 1, ..ListRequest::default() }).await.unwrap().remaining + 1;
    concurrent(&store, 64, (100_000 - have) / 64 + 1, "/fill/").await;
    let start = Instant::now();
    let page = store.list(&ListRequest::default()).await.unwrap();
    let count = page.items.len();
    row(&format!("list of {count} objects"), &format!("{:.1} ms", start.elapsed().as_secs_f64() * 1e3), "");
    drop(page);
    let start = Instant::now();
    let page = store.list(&ListRequest { limit: 500, ..ListRequest::default() }).await.unwrap();
    let took = format!("{:.2} ms", start.elapsed().as_secs_f64() * 1e3);
    row(&format!("page of 500, {} remaining", page.remaining), &took, "");
    let (after, at) = (page.items.last().map(|item| item.key.clone()), Some(page.revision));
    drop(page);
    let start = Instant::now();
    let page = store.list(&ListRequest { limit: 500, after, at, ..ListRequest::default() }).await.unwrap();
    let took = format!("{:.2} ms", start.elapsed().as_secs_f64() * 1e3);
    row(&format!("the page after it, {} remaining", page.remaining), &took, "");
    drop(page);
    drop(store);

    let (start, processor) = (Instant::now(), processor_time());
    let (store, recovery) = EmbeddedStore::open_dir(path, Clock::system(), Options::default()).unwrap();
    let how = recovery.snapshot.map_or("log only", |_| "snapshot and log");
    let (took, processor) = (start.elapsed(), processor_time() - processor);
    let took = format!("{:.0} ms, {:.0} ms", took.as_secs_f64() * 1e3, processor.as_secs_f64() * 1e3);
    row(
        &format!("recovery of {} objects ({how}), processor time", recovery.keys),
        &took,
        "wanted: under 1000 ms",
    );
    drop(store);
}
