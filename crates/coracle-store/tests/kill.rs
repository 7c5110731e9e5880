//! Real processes that write to a real directory, and are killed at any moment: nothing that was acknowledged is
//! lost, every transaction is there as a whole or not at all, and revisions never go back.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_clock::{Clock, Rng};
use coracle_store::embedded::{EmbeddedStore, Options, Recovery, Retention};
use coracle_store::{ListRequest, Op, Revision, Store, Txn, TxnOutcome};
use futures::future::join_all;

const KILLS: u64 = 200;
const WRITERS: u64 = 8;
const KEYS: u64 = 5;
/// Names the directory to the process that writes, which is this test program again.
const DIRECTORY: &str = "CORACLE_KILL_TEST_DIRECTORY";

/// Small files, so that kills hit new segments and snapshots as well.
fn open(directory: &Path) -> (Arc<EmbeddedStore>, Recovery) {
    let options = Options {
        retention: Retention { revisions: 50, ..Retention::default() },
        segment_bytes: 16 << 10,
        garbage_bytes: 48 << 10,
        ..Options::default()
    };
    EmbeddedStore::open_dir(directory, Clock::system(), options).unwrap()
}

/// What transaction `n` of a writer does, beside counting: a function of both, so that the count tells everything.
fn change(writer: u64, n: u64) -> (Bytes, Option<Bytes>) {
    let mut rng = Rng::seeded(writer << 32 | n);
    let key = Bytes::from(format!("/{writer}/{}", rng.below(KEYS)));
    if rng.below(5) == 0 {
        return (key, None);
    }
    let length = usize::try_from(rng.below(1500)).unwrap();
    let mut value = format!("{n} ").into_bytes();
    value.resize(value.len() + length, b'a' + u8::try_from(rng.below(26)).unwrap());
    (key, Some(value.into()))
}

fn count_key(writer: u64) -> Bytes {
    Bytes::from(format!("/{writer}/count"))
}

fn count(value: &Bytes) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

async fn write_for_ever(store: &EmbeddedStore, writer: u64) {
    let (counted, _) = store.get(&count_key(writer)).await.unwrap();
    let mut n = counted.map_or(0, |kv| count(&kv.value));
    loop {
        n += 1;
        let (key, value) = change(writer, n);
        let counted = Op::Put { key: count_key(writer), value: n.to_string().into() };
        let op = match value {
            Some(value) => Op::Put { key, value },
            None => Op::Delete { key },
        };
        let outcome = store.txn(Txn { compares: Vec::new(), ops: vec![counted, op] }).await.unwrap();
        let TxnOutcome::Committed(revision) = outcome else { panic!("{outcome:?}") };
        // One write each: what the reader gets is whole lines and at most one piece.
        let line = format!("ack {writer} {n} {revision}\n");
        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
    }
}

/// The process that gets killed. Started by the test below, never by itself.
#[test]
#[ignore = "runs in a process of its own, which never ends"]
fn child() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let (store, recovery) = open(Path::new(&directory));
        // On a line of its own: the test harness has begun one.
        println!("\nopen {}", recovery.revision);
        join_all((0..WRITERS).map(|writer| write_for_ever(&store, writer))).await;
    });
}

/// What was told before the end.
#[derive(Default)]
struct Known {
    /// By writer.
    acknowledged: BTreeMap<u64, u64>,
    /// The newest revision that anybody saw.
    seen: Revision,
    acknowledgements: u64,
    killed_while_opening: u64,
}

/// Starts the writing process and kills it, at a moment that `rng` chooses.
#[allow(
    clippy::disallowed_methods,
    reason = "while it starts there is no news to wait for: any moment will do"
)]
fn write_and_kill(directory: &Path, rng: &mut Rng, known: &mut Known) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    // One in eight dies while it starts or opens the store; the others after so many acknowledgements.
    let mut wait_for = if rng.below(8) == 0 {
        std::thread::sleep(Duration::from_micros(rng.below(12_000)));
        child.kill().unwrap();
        None
    } else {
        Some(1 + rng.below(250))
    };
    let mut opened = false;
    let mut line = String::new();
    loop {
        line.clear();
        lines.read_line(&mut line).unwrap();
        if line.is_empty() {
            break;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            _ if !line.ends_with('\n') => {}
            ["open", revision] => {
                opened = true;
                let revision = Revision(revision.parse().unwrap());
                assert!(revision >= known.seen, "{} was seen, {revision} is there", known.seen);
            }
            ["ack", writer, n, revision] => {
                let (writer, n): (u64, u64) = (writer.parse().unwrap(), n.parse().unwrap());
                let revision = Revision(revision.parse().unwrap());
                assert!(n > known.acknowledged.insert(writer, n).unwrap_or(0));
                known.seen = known.seen.max(revision);
                known.acknowledgements += 1;
                if let Some(left) = &mut wait_for {
                    *left -= 1;
                    if *left == 0 {
                        child.kill().unwrap();
                        wait_for = None;
                    }
                }
            }
            _ => {}
        }
    }
    assert!(wait_for.is_none(), "the writing process ended by itself: {:?}", child.wait());
    child.wait().unwrap();
    known.killed_while_opening += u64::from(!opened);
}

/// The store holds what the counts say, which are those that were acknowledged, or one transaction more.
fn check(directory: &Path, known: &mut Known, context: &str) {
    let (store, recovery) = open(directory);
    assert!(
        recovery.revision >= known.seen,
        "{context}: {} was seen, {} is there",
        known.seen,
        recovery.revision
    );
    known.seen = recovery.revision;
    let list = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(store.list(&ListRequest::default()))
        .unwrap();
    let found: BTreeMap<Bytes, Bytes> = list.items.into_iter().map(|kv| (kv.key, kv.value)).collect();
    let mut expected = BTreeMap::new();
    for writer in 0..WRITERS {
        let acknowledged = known.acknowledged.get(&writer).copied().unwrap_or(0);
        let n = found.get(&count_key(writer)).map_or(0, count);
        assert!(
            n == acknowledged || n == acknowledged + 1,
            "{context}: writer {writer} had {acknowledged} acknowledged, and {n} are there"
        );
        known.acknowledged.insert(writer, n);
        if n > 0 {
            expected.insert(count_key(writer), n.to_string().into());
        }
        // The newest change of each key.
        let mut open: Vec<u64> = (0..KEYS).collect();
        for (key, value) in (1..=n).rev().map(|n| change(writer, n)) {
            let slot = open.iter().position(|slot| key.ends_with(format!("/{slot}").as_bytes()));
            if let Some(slot) = slot {
                open.remove(slot);
                if let Some(value) = value {
                    expected.insert(key, value);
                }
            }
            if open.is_empty() {
                break;
            }
        }
    }
    assert!(found == expected, "{context}: the content is not what the counts say");
}

#[test]
fn two_hundred_kills_under_load_lose_nothing_that_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let mut rng = Rng::seeded(9);
    let mut known = Known::default();
    for kill in 1..=KILLS {
        write_and_kill(directory.path(), &mut rng, &mut known);
        check(directory.path(), &mut known, &format!("kill {kill}"));
    }
    let Known { acknowledgements, killed_while_opening, seen, .. } = known;
    println!("{acknowledgements} acknowledged, {killed_while_opening} killed while opening, at {seen} now");
    assert!(acknowledgements > KILLS * 50, "{acknowledgements}");
    assert!(killed_while_opening < KILLS / 2, "{killed_while_opening}");
}
