//! Power cuts, torn writes and failed flushes at every step of a generated history, and flipped bits everywhere.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use coracle_clock::{Clock, Rng};
use coracle_store::embedded::{EmbeddedStore, Execution, OpenError, Options, Recovery, Retention};
use coracle_store::files::Directory;
use coracle_store::simfs::{PowerCut, SimFs};
use coracle_store::{ListRequest, Op, Revision, Store, StoreError, Txn, TxnOutcome};
use futures::future::join_all;

type State = BTreeMap<Bytes, Bytes>;

fn options() -> Options {
    Options {
        execution: Execution::Tasks,
        retention: Retention { revisions: 8, ..Retention::default() },
        segment_bytes: 1500,
        garbage_bytes: 3000,
        ..Options::default()
    }
}

fn open(disk: &SimFs) -> Result<(Arc<EmbeddedStore>, Recovery), OpenError> {
    EmbeddedStore::open(Arc::new(disk.clone()), Clock::system(), options())
}

/// What clients know of the history.
#[derive(Default)]
struct Known {
    /// The changes of each revision that was acknowledged.
    acknowledged: BTreeMap<Revision, Vec<Op>>,
    /// Changes that were asked for and not answered.
    unanswered: Vec<Vec<Op>>,
    /// The newest revision that anybody saw, in any way.
    seen: Revision,
}

/// Rounds of one to four transactions at once, from a seed. Ends early when the store does.
async fn work(store: &EmbeddedStore, rng: &mut Rng, rounds: usize, known: &mut Known) {
    let Ok(mut watch) = store.watch(Bytes::new(), None).await else { return };
    for _ in 0..rounds {
        // One writer of each key, so that what an answer says does not depend on the order within a group.
        let group: Vec<Vec<Op>> = (0..1 + rng.below(4)).map(|writer| ops(rng, writer)).collect();
        let answers =
            join_all(group.iter().map(|ops| store.txn(Txn { compares: Vec::new(), ops: ops.clone() }))).await;
        let mut stopped = false;
        for (ops, answer) in group.into_iter().zip(answers) {
            match answer {
                Ok(TxnOutcome::Committed(revision)) => {
                    // A deletion of nothing has the revision of what came before.
                    let changes = known.acknowledged.entry(revision).or_default();
                    changes.extend(ops);
                    known.seen = known.seen.max(revision);
                }
                Ok(TxnOutcome::Conflict(states)) => panic!("{states:?}"),
                Err(StoreError::Stopped(_)) => {
                    known.unanswered.push(ops);
                    stopped = true;
                }
                Err(error) => panic!("{error}"),
            }
        }
        if let Ok(revision) = store.revision().await {
            known.seen = known.seen.max(revision);
        }
        while let Ok(Ok(batch)) = watch.try_recv() {
            known.seen = known.seen.max(batch.revision);
        }
        if stopped {
            return;
        }
        // Lets a snapshot go on, by more or less.
        for _ in 0..rng.below(3) {
            tokio::task::yield_now().await;
        }
    }
}

fn ops(rng: &mut Rng, writer: u64) -> Vec<Op> {
    let mut ops = BTreeMap::new();
    for _ in 0..1 + rng.below(2) {
        let key = Bytes::from(format!("/{writer}/{}", rng.below(3)));
        let op = if rng.below(5) == 0 {
            Op::Delete { key: key.clone() }
        } else {
            let length = usize::try_from(rng.below(700)).unwrap();
            let letter = b'a' + u8::try_from(rng.below(26)).unwrap();
            Op::Put { key: key.clone(), value: Bytes::from(vec![letter; length]) }
        };
        ops.insert(key, op);
    }
    ops.into_values().collect()
}

fn apply(state: &mut State, ops: &[Op]) {
    for op in ops {
        match op {
            Op::Put { key, value } => drop(state.insert(key.clone(), value.clone())),
            Op::Delete { key } => drop(state.remove(key)),
        }
    }
}

async fn content(store: &EmbeddedStore) -> State {
    let page = store.list(&ListRequest::default()).await.unwrap();
    page.items.into_iter().map(|item| (item.key, item.value)).collect()
}

/// The store has what was acknowledged, at least what was seen, and beyond it at most whole transactions that were
/// under way.
async fn check(store: &EmbeddedStore, recovery: &Recovery, known: &Known, context: &str) {
    assert!(
        recovery.revision >= known.seen,
        "{context}: {} was seen, {} is there",
        known.seen,
        recovery.revision
    );
    let mut expected = State::new();
    for ops in known.acknowledged.values() {
        apply(&mut expected, ops);
    }
    let found = content(store).await;
    // Each writer has keys of its own: whatever of its last transaction happened, happened as a whole.
    for writer in 0..4 {
        let part = |state: &State| -> State {
            let prefix = format!("/{writer}/");
            state.clone().into_iter().filter(|(key, _)| key.starts_with(prefix.as_bytes())).collect()
        };
        let mut possible = vec![part(&expected)];
        for ops in &known.unanswered {
            let mut with = expected.clone();
            apply(&mut with, ops);
            possible.push(part(&with));
        }
        assert!(possible.contains(&part(&found)), "{context}: writer {writer}");
    }
    let extra = recovery.revision.0 - known.acknowledged.keys().last().map_or(0, |revision| revision.0);
    assert!(extra <= known.unanswered.len() as u64, "{context}: {extra} revisions from nowhere");
}

const CUTS: [PowerCut; 4] =
    [PowerCut::DropUnflushed, PowerCut::TearLastWrite, PowerCut::TearSectors, PowerCut::KeepAll];

/// Steps that the history of a seed takes without a fault.
async fn steps(seed: u64, rounds: usize) -> u64 {
    let disk = SimFs::new(Rng::seeded(seed));
    let mut known = Known::default();
    let (store, _) = open(&disk).unwrap();
    work(&store, &mut Rng::seeded(seed), rounds, &mut known).await;
    assert!(known.unanswered.is_empty());
    let names = disk.list().unwrap();
    assert!(names.iter().any(|name| name.ends_with(".snapshot")), "the history has a snapshot: {names:?}");
    drop(store);
    disk.steps()
}

#[tokio::test]
async fn power_cuts_at_every_step_lose_nothing_that_was_acknowledged() {
    const ROUNDS: usize = 40;
    for seed in 0..2 {
        let steps = steps(seed, ROUNDS).await;
        for cut in CUTS {
            for step in 1..=steps {
                let context = format!("seed {seed}, {cut:?} at step {step} of {steps}");
                survive(seed, ROUNDS, cut, step, step % 9, &context).await;
            }
        }
    }
}

/// Works, loses power at `step`, and again `again` steps into the recovery; then everything is there, and goes on.
async fn survive(seed: u64, rounds: usize, cut: PowerCut, step: u64, again: u64, context: &str) {
    let disk = SimFs::new(Rng::seeded(seed * 1000 + step));
    disk.power_off_at(step);
    let mut known = Known::default();
    if let Ok((store, _)) = open(&disk) {
        work(&store, &mut Rng::seeded(seed), rounds, &mut known).await;
    }
    // A second cut hits the recovery itself, somewhere.
    disk.restart(cut);
    disk.power_off_at(disk.steps() + 1 + again);
    drop(open(&disk));
    disk.restart(cut);
    let (store, recovery) = open(&disk).unwrap_or_else(|error| panic!("{context}: {error}"));
    check(&store, &recovery, &known, context).await;

    // It goes on, and what it has by then survives as well.
    known.seen = recovery.revision;
    known.unanswered.clear();
    known.acknowledged = BTreeMap::from([(recovery.revision, as_ops(&content(&store).await))]);
    work(&store, &mut Rng::seeded(seed + 77), 3, &mut known).await;
    assert!(known.unanswered.is_empty(), "{context}");
    drop(store);
    disk.restart(cut);
    let (store, recovery) = open(&disk).unwrap_or_else(|error| panic!("{context}, again: {error}"));
    check(&store, &recovery, &known, &format!("{context}, again")).await;
}

/// Names the seed of a run that panics.
struct Tell(u64);

impl Drop for Tell {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed at seed {0}; this one alone: SOAK_SEED={0} SOAK_CUTS=1 make soak", self.0);
        }
    }
}

/// Power cuts at random steps of random histories. A fault that shows at one in 10,000 of such moments is missed by
/// 100,000 of them with a probability of e^-10, which is less than one in 20,000; the test above has every moment of
/// two histories, this one has many histories.
#[tokio::test]
#[ignore = "takes minutes: `make soak`"]
async fn soak() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let cuts = number("SOAK_CUTS").unwrap_or(100_000);
    // A new series each time, unless told.
    let first = number("SOAK_SEED").unwrap_or_else(|| Rng::from_os().below(1 << 40));
    eprintln!("{cuts} power cuts, from seed {first} on");
    for seed in first..first + cuts {
        let _tell = Tell(seed);
        let mut rng = Rng::seeded(seed ^ 0x5eed);
        let rounds = usize::try_from(3 + rng.below(40)).unwrap();
        let cut = CUTS[usize::try_from(rng.below(4)).unwrap()];
        // A round takes some steps; a cut after the last hits a store at rest.
        let step = 1 + rng.below(rounds as u64 * STEPS_OF_A_ROUND);
        let again = rng.below(12);
        survive(seed, rounds, cut, step, again, &format!("seed {seed}, {cut:?} at step {step}")).await;
        let done = seed - first + 1;
        if done.is_multiple_of(5000) {
            eprintln!("{done} of {cuts} survived");
        }
    }
}

/// About.
const STEPS_OF_A_ROUND: u64 = 5;

fn as_ops(state: &State) -> Vec<Op> {
    state.iter().map(|(key, value)| Op::Put { key: key.clone(), value: value.clone() }).collect()
}

#[tokio::test]
async fn failed_flushes_lose_nothing_that_was_acknowledged() {
    const ROUNDS: usize = 40;
    for seed in 0..2 {
        let mut nth = 1;
        loop {
            let context = format!("seed {seed}, flush {nth}");
            let disk = SimFs::new(Rng::seeded(nth));
            disk.fail_sync(nth);
            let mut known = Known::default();
            let mut failed = true;
            if let Ok((store, _)) = open(&disk) {
                work(&store, &mut Rng::seeded(seed), ROUNDS, &mut known).await;
                failed = store.revision().await.is_err();
            }
            if !failed {
                break;
            }
            // The process starts again on a running machine; what it then shows survives a power cut.
            let (store, recovery) = open(&disk).unwrap_or_else(|error| panic!("{context}: {error}"));
            check(&store, &recovery, &known, &context).await;
            let shown = content(&store).await;
            drop(store);
            disk.restart(PowerCut::DropUnflushed);
            let (store, after) = open(&disk).unwrap_or_else(|error| panic!("{context}, power cut: {error}"));
            assert_eq!((after.revision, content(&store).await), (recovery.revision, shown), "{context}");
            nth += 1;
        }
        assert!(nth > 50, "{nth}");
    }
}

/// A disk with a snapshot and several segments, the last with reserved space, its content and revision.
async fn disk_with_history() -> (SimFs, State, Revision) {
    let disk = SimFs::new(Rng::seeded(5));
    let (store, _) = open(&disk).unwrap();
    let mut known = Known::default();
    let mut rng = Rng::seeded(5);
    // Until the last segment holds something.
    loop {
        work(&store, &mut rng, 30, &mut known).await;
        let names = disk.list().unwrap();
        let last = names.iter().rfind(|name| name.ends_with(".log")).unwrap();
        if names.iter().any(|name| name.ends_with(".snapshot"))
            && disk.content(last).unwrap().iter().rposition(|&b| b != 0).unwrap() > 100
        {
            break;
        }
    }
    let found = (content(&store).await, store.revision().await.unwrap());
    disk.restart(PowerCut::KeepAll);
    drop(store);
    (disk, found.0, found.1)
}

#[tokio::test]
async fn a_flipped_bit_is_found_wherever_it_is() {
    let (disk, state, revision) = disk_with_history().await;
    let (mut refused, mut cut) = (0, 0);
    for name in disk.list().unwrap() {
        let bytes = disk.content(&name).unwrap();
        for (offset, &byte) in bytes.iter().enumerate() {
            let bit = u8::try_from(offset % 8).unwrap();
            let copy = disk.copy(Rng::seeded(1));
            copy.flip_bit(&name, offset, bit);
            match open(&copy) {
                Err(OpenError::Damaged { file, .. }) => {
                    refused += 1;
                    assert_eq!(file, format!("sim:{name}"));
                }
                Err(error) => panic!("{name} at {offset}: {error}"),
                // In space that was reserved and not used yet.
                Ok((store, recovery)) => {
                    cut += 1;
                    assert!(recovery.cut.is_some(), "{name} at {offset}: not noticed");
                    assert_eq!(content(&store).await, state, "{name} at {offset}");
                    assert_eq!(recovery.revision, revision);
                    assert_eq!(byte, 0);
                }
            }
        }
    }
    assert!(refused > 3000, "{refused}");
    assert!(cut > 100, "{cut}");
}

#[tokio::test]
async fn damage_says_where_it_is_and_changes_nothing() {
    let (disk, ..) = disk_with_history().await;
    let name = disk.list().unwrap().into_iter().find(|name| name.ends_with(".log")).unwrap();
    disk.flip_bit(&name, 40, 3);
    let before: Vec<_> = disk.list().unwrap().into_iter().map(|name| disk.content(&name)).collect();
    let message = open(&disk).unwrap_err().to_string();
    assert_eq!(
        message,
        format!(
            "sim:{name} is damaged at byte 24: a record does not match its checksum; nothing has been changed: \
             restore the store from a backup"
        )
    );
    let after: Vec<_> = disk.list().unwrap().into_iter().map(|name| disk.content(&name)).collect();
    assert_eq!(before, after);
}
