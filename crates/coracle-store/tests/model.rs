//! The engine against a model that keeps every state there ever was.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use coracle_clock::{Clock, Rng};
use coracle_store::embedded::{EmbeddedStore, Execution, Options, Retention};
use coracle_store::simfs::SimFs;
use coracle_store::{
    Compare, EventKind, KeyValue, ListRequest, Op, Revision, Store, StoreError, Txn, TxnOutcome, WatchStream,
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    /// Compares (with the right revision or not) and ops.
    Txn {
        compares: Vec<(u8, bool)>,
        ops: BTreeMap<u8, Option<u8>>,
    },
    List {
        prefix: u8,
        after: Option<u8>,
        limit: usize,
        back: Option<u64>,
    },
    Watch {
        prefix: u8,
        back: Option<u64>,
    },
    Compact {
        back: u64,
    },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..12u8;
    prop_oneof![
        8 => (
            prop::collection::vec((key.clone(), prop::bool::weighted(0.9)), 0..3),
            prop::collection::btree_map(key.clone(), prop::option::weighted(0.7, any::<u8>()), 0..4),
        )
            .prop_map(|(compares, ops)| Step::Txn { compares, ops }),
        4 => (0..4u8, prop::option::of(key), 0..4usize, prop::option::of(0..10u64))
            .prop_map(|(prefix, after, limit, back)| Step::List { prefix, after, limit, back }),
        2 => (0..4u8, prop::option::of(0..10u64)).prop_map(|(prefix, back)| Step::Watch { prefix, back }),
        1 => (0..10u64).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Reopen),
    ]
}

/// Keys under three prefixes; prefix 3 is all of them.
fn key(n: u8) -> Bytes {
    Bytes::from(format!("/{}/{}", n % 3, n / 3))
}

fn prefix(n: u8) -> Bytes {
    Bytes::from(if n == 3 { "/".to_owned() } else { format!("/{n}/") })
}

type State = BTreeMap<Bytes, KeyValue>;

struct Model {
    /// One per revision.
    states: Vec<State>,
    oldest: u64,
}

impl Model {
    fn now(&self) -> &State {
        self.states.last().unwrap()
    }

    fn revision(&self) -> Revision {
        Revision(self.states.len() as u64 - 1)
    }

    fn back(&self, back: u64) -> Revision {
        Revision(self.revision().0.saturating_sub(back))
    }

    fn txn(&mut self, txn: &Txn) -> TxnOutcome {
        let now = self.now();
        let current: Vec<_> = txn.compares.iter().map(|compare| now.get(&compare.key).cloned()).collect();
        let holds = current.iter().zip(&txn.compares).all(|(current, compare)| {
            current.as_ref().map_or(Revision(0), |kv| kv.mod_revision) == compare.mod_revision
        });
        if !holds {
            return TxnOutcome::Conflict(current);
        }
        let mod_revision = Revision(self.revision().0 + 1);
        let mut next = now.clone();
        let mut changed = false;
        for op in &txn.ops {
            match op {
                Op::Put { key, value } => {
                    let create_revision = next.get(key).map_or(mod_revision, |kv| kv.create_revision);
                    let (key, value) = (key.clone(), value.clone());
                    next.insert(key.clone(), KeyValue { key, value, create_revision, mod_revision });
                    changed = true;
                }
                Op::Delete { key } => changed |= next.remove(key).is_some(),
            }
        }
        if !changed {
            return TxnOutcome::Committed(self.revision());
        }
        self.states.push(next);
        TxnOutcome::Committed(mod_revision)
    }

    /// Key and revision of each change after `after`, with what was there before.
    fn changes(
        &self,
        prefix: &Bytes,
        after: Revision,
    ) -> Vec<(Revision, EventKind, Option<KeyValue>, Option<KeyValue>)> {
        let mut changes = Vec::new();
        for at in after.0 + 1..self.states.len() as u64 {
            let i = usize::try_from(at).unwrap();
            let (before, now) = (&self.states[i - 1], &self.states[i]);
            let keys: std::collections::BTreeSet<_> = before.keys().chain(now.keys()).collect();
            for key in keys.into_iter().filter(|key| key.starts_with(prefix)) {
                if before.get(key) != now.get(key) {
                    let kind = if now.contains_key(key) { EventKind::Put } else { EventKind::Delete };
                    changes.push((Revision(at), kind, now.get(key).cloned(), before.get(key).cloned()));
                }
            }
        }
        changes
    }
}

struct Watching {
    prefix: Bytes,
    after: Revision,
    stream: WatchStream,
}

async fn run(steps: Vec<Step>) {
    let disk = SimFs::new(Rng::seeded(1));
    let options = Options {
        execution: Execution::Tasks,
        retention: Retention::forever(),
        segment_bytes: 700,
        garbage_bytes: 500,
        ..Options::default()
    };
    let open = || EmbeddedStore::open(Arc::new(disk.clone()), Clock::system(), options).unwrap();
    let mut store = open().0;
    let mut model = Model { states: vec![State::new()], oldest: 0 };
    let mut watches: Vec<Watching> = Vec::new();
    for step in steps {
        match step {
            Step::Txn { compares, ops } => {
                let compares = compares
                    .into_iter()
                    .map(|(n, right)| {
                        let current = model.now().get(&key(n)).map_or(0, |kv| kv.mod_revision.0);
                        Compare { key: key(n), mod_revision: Revision(current + u64::from(!right)) }
                    })
                    .collect();
                let ops = ops
                    .into_iter()
                    .map(|(n, value)| match value {
                        Some(value) => Op::Put { key: key(n), value: Bytes::from(vec![value; 50]) },
                        None => Op::Delete { key: key(n) },
                    })
                    .collect();
                let txn = Txn { compares, ops };
                assert_eq!(store.txn(txn.clone()).await.unwrap(), model.txn(&txn));
            }
            Step::List { prefix: p, after, limit, back } => {
                let at = back.map(|back| model.back(back));
                let revision = at.unwrap_or(model.revision());
                let request = ListRequest { prefix: prefix(p), after: after.map(key), limit, at };
                let listed = store.list(&request).await;
                if revision.0 < model.oldest {
                    let oldest = Revision(model.oldest);
                    assert_eq!(listed, Err(StoreError::Compacted { requested: revision, oldest }));
                    continue;
                }
                let all: Vec<KeyValue> = model.states[usize::try_from(revision.0).unwrap()]
                    .values()
                    .filter(|kv| kv.key.starts_with(&request.prefix))
                    .filter(|kv| request.after.as_ref().is_none_or(|after| kv.key > *after))
                    .cloned()
                    .collect();
                let count = if limit == 0 { all.len() } else { all.len().min(limit) };
                let page = listed.unwrap();
                assert_eq!(page.revision, revision);
                assert_eq!(page.items, all[..count]);
                assert_eq!(page.remaining, all.len() - count);
            }
            Step::Watch { prefix: p, back } => {
                let after = back.map(|back| model.back(back));
                match store.watch(prefix(p), after).await {
                    Ok(stream) => {
                        let after = after.unwrap_or(model.revision());
                        assert!(after.0 >= model.oldest);
                        watches.push(Watching { prefix: prefix(p), after, stream });
                    }
                    Err(StoreError::Compacted { .. }) => assert!(after.unwrap().0 < model.oldest),
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Compact { back } => {
                let revision = model.back(back);
                store.compact(revision).await.unwrap();
                model.oldest = model.oldest.max(revision.0);
            }
            Step::Reopen => {
                check_watches(&mut watches, &model, &store).await;
                watches.clear();
                drop(store);
                let (opened, recovery) = open();
                assert_eq!((recovery.cut, recovery.revision), (None, model.revision()));
                assert_eq!(recovery.keys, model.now().len());
                store = opened;
                // More history may be there than was before, never less, and it can be forgotten again.
                assert!(recovery.oldest.0 <= model.oldest);
                store.compact(Revision(model.oldest)).await.unwrap();
            }
        }
        tokio::task::yield_now().await;
    }
    check_watches(&mut watches, &model, &store).await;
}

/// Every watch has told exactly what happened.
async fn check_watches(watches: &mut Vec<Watching>, model: &Model, store: &EmbeddedStore) {
    assert_eq!(store.revision().await.unwrap(), model.revision());
    for mut watch in watches.drain(..) {
        let mut seen = Vec::new();
        while let Ok(batch) = watch.stream.try_recv() {
            let mut batch = batch.unwrap();
            assert!(batch.events.is_sorted_by_key(|event| event.revision));
            // Within a revision the order is nobody's business.
            batch.events.sort_by_key(|event| (event.revision, event.key.clone()));
            for mut event in batch.events {
                let now = event.value.take().map(|value| {
                    let created = event.previous.as_ref().map_or(event.revision, |kv| kv.create_revision);
                    let (key, mod_revision) = (event.key.clone(), event.revision);
                    KeyValue { key, value, create_revision: created, mod_revision }
                });
                seen.push((event.revision, event.kind, now, event.previous));
            }
        }
        assert_eq!(seen, model.changes(&watch.prefix, watch.after));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_does_what_the_model_does(steps in prop::collection::vec(step(), 1..120)) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(run(steps));
    }
}
