//! Whom the watch hub wakes, what it keeps, and that nobody misses anything: counted, not timed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use coracle_apiserver::hub::{Event, Hub, Prefix, Scope, WatchEnd, Watcher};
use coracle_clock::{Clock, Rng};
use coracle_store::embedded::{EmbeddedStore, Execution, Options};
use coracle_store::simfs::SimFs;
use coracle_store::{Op, Revision, Store, Txn, TxnOutcome};
use tokio::task::JoinSet;

/// What is watched, since when, by whom, and what has been seen.
type Watching = (Scope, Revision, Watcher, Vec<(Revision, Bytes)>);

const PODS: &str = "/registry/pods";

struct World {
    store: Arc<EmbeddedStore>,
    hub: Arc<Hub>,
}

fn pod(name: &str, node: &str, filler: usize) -> Bytes {
    let (filler, node) =
        ("x".repeat(filler), if node.is_empty() { String::new() } else { format!(r#""nodeName":"{node}""#) });
    format!(r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","a":"{filler}"}},"spec":{{{node}}}}}"#).into()
}

fn key(namespace: &str, name: &str) -> Bytes {
    format!("{PODS}/{namespace}/{name}").into()
}

fn object(namespace: &str, name: &str) -> Scope {
    Scope::Object(key(namespace, name))
}

fn namespace(name: &str) -> Scope {
    Scope::Namespace(format!("{PODS}/{name}/").into())
}

fn node(name: &str) -> Scope {
    Scope::Indexed(name.into())
}

impl World {
    async fn new() -> Self {
        let options = Options { execution: Execution::Tasks, ..Options::default() };
        let clock = Clock::system();
        let (store, _) =
            EmbeddedStore::open(Arc::new(SimFs::new(Rng::seeded(1))), clock.clone(), options).unwrap();
        let pods = Prefix { prefix: PODS, indexed: Some("spec.nodeName") };
        let maps = Prefix { prefix: "/registry/configmaps", indexed: None };
        let engine: Arc<dyn Store> = Arc::<EmbeddedStore>::clone(&store);
        let (hub, feeder) = Hub::start(engine, clock, "/registry/", vec![pods, maps]).await.unwrap();
        tokio::spawn(feeder);
        World { store, hub }
    }

    async fn txn(&self, ops: Vec<Op>) -> Revision {
        match self.store.txn(Txn { compares: Vec::new(), ops }).await.unwrap() {
            TxnOutcome::Committed(revision) => revision,
            TxnOutcome::Conflict(_) => unreachable!("nothing is compared"),
        }
    }

    async fn put(&self, namespace: &str, name: &str, node: &str) -> Revision {
        self.txn(vec![Op::Put { key: key(namespace, name), value: pod(name, node, 0) }]).await
    }

    async fn published(&self, revision: Revision) {
        while self.hub.progress() < revision {
            tokio::task::yield_now().await;
        }
    }

    async fn watch(&self, scope: Scope, after: Revision) -> Watcher {
        self.hub.watch(PODS, scope, after).await.unwrap()
    }

    async fn watch_now(&self, scope: Scope) -> Watcher {
        self.watch(scope, self.store.revision().await.unwrap()).await
    }
}

/// What a watcher has to be told up to a revision.
async fn until(watcher: &mut Watcher, revision: Revision) -> Vec<Arc<Event>> {
    let mut seen = Vec::new();
    loop {
        let more = if watcher.cursor() < revision { watcher.ready().unwrap() } else { Vec::new() };
        seen.extend(more);
        if watcher.cursor() >= revision {
            return seen;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_event_wakes_the_watchers_that_it_concerns_and_no_others() {
    let world = World::new().await;
    let begin = world.put("default", "before", "n0").await;
    world.published(begin).await;
    let (told, mut tell) = tokio::sync::mpsc::unbounded_channel();
    let mut agents = JoinSet::new();
    let mut scopes: Vec<Scope> = (0..1000).map(|i| node(&format!("n{i}"))).collect();
    scopes.extend([
        namespace("default"),
        namespace("other"),
        object("default", "a"),
        object("default", "ab"),
    ]);
    for (index, scope) in scopes.into_iter().enumerate() {
        let (mut watcher, told) = (world.watch(scope, begin).await, told.clone());
        agents.spawn(async move {
            while let Ok(events) = watcher.next().await {
                for event in events {
                    told.send((index, watcher.covers(&event))).unwrap();
                }
            }
        });
    }
    // A watcher of everything is there for the end of each round.
    let mut all = world.watch(Scope::All, begin).await;
    let mut woken = 0;
    for (change, expected) in [
        (Some("n5"), vec![(5, (false, true)), (1000, (false, true)), (1002, (false, true))]),
        (Some("n5"), vec![(5, (true, true)), (1000, (true, true)), (1002, (true, true))]),
        (
            Some("n7"),
            vec![(5, (true, false)), (7, (false, true)), (1000, (true, true)), (1002, (true, true))],
        ),
        (Some(""), vec![(7, (true, false)), (1000, (true, true)), (1002, (true, true))]),
        (Some("n9"), vec![(9, (false, true)), (1000, (true, true)), (1002, (true, true))]),
        (None, vec![(9, (true, false)), (1000, (true, false)), (1002, (true, false))]),
    ] {
        let (key, before) = (key("default", "a"), world.hub.wakeups());
        let revision = match change {
            Some(node) => world.txn(vec![Op::Put { key, value: pod("a", node, 0) }]).await,
            None => world.txn(vec![Op::Delete { key }]).await,
        };
        until(&mut all, revision).await;
        let mut seen = Vec::new();
        for _ in &expected {
            seen.push(tell.recv().await.unwrap());
        }
        seen.sort_unstable();
        assert_eq!(seen, expected, "{change:?}");
        woken += expected.len() as u64;
        // Whoever was woken for nothing has had its turn by then.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(tell.try_recv().is_err());
        assert_eq!(world.hub.wakeups() - before, expected.len() as u64, "{change:?}");
    }
    // What happens to other kinds concerns nobody here.
    let map = Bytes::from_static(b"/registry/configmaps/default/a");
    world.published(world.txn(vec![Op::Put { key: map, value: pod("a", "", 0) }]).await).await;
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.hub.wakeups(), woken);
    world.hub.close();
    while agents.join_next().await.is_some() {}
}

#[tokio::test]
async fn whatever_is_watched_from_wherever_nothing_is_missed_doubled_or_out_of_order() {
    let world = World::new().await;
    let mut rng = Rng::seeded(11);
    let mut pick = |most: u64| rng.below(most);
    let begin = world.store.revision().await.unwrap();
    let mut revisions = vec![begin];
    let mut watchers: Vec<Watching> = Vec::new();
    // More than the ring holds, so that some begin in the store's history and some topics outlive events.
    for round in 0..6000_u64 {
        let namespaces = ["a", "b"];
        let mut ops = BTreeMap::new();
        for _ in 0..=pick(3) / 2 {
            let (namespace, name) = (namespaces[pick(2) as usize], format!("p{}", pick(6)));
            let value = pod(&name, ["", "n1", "n2", "n3"][pick(4) as usize], 0);
            let key = key(namespace, &name);
            ops.insert(key.clone(), if pick(4) == 0 { Op::Delete { key } } else { Op::Put { key, value } });
        }
        revisions.push(world.txn(ops.into_values().collect()).await);
        if round % 100 == 7 {
            let scope = match pick(4) {
                0 => Scope::All,
                1 => namespace(namespaces[pick(2) as usize]),
                2 => object(namespaces[pick(2) as usize], &format!("p{}", pick(6))),
                _ => node(&format!("n{}", pick(4))),
            };
            let back = if pick(3) == 0 { pick(5000) } else { pick(20) } as usize;
            let after = revisions[revisions.len().saturating_sub(back + 1)];
            let watcher = world.watch(scope.clone(), after).await;
            watchers.push((scope, after, watcher, Vec::new()));
        }
        // Some keep up, some look now and then, some come to an end.
        if round % 50 == 0 {
            for (_, _, watcher, seen) in watchers.iter_mut().filter(|_| pick(3) > 0) {
                while let Some(Ok(events)) = futures::FutureExt::now_or_never(watcher.next()) {
                    seen.extend(events.iter().map(|event| (event.revision, event.key.clone())));
                }
            }
            if watchers.len() > 20 {
                watchers.swap_remove(pick(20) as usize);
            }
        }
    }
    let last = *revisions.last().unwrap();
    world.published(last).await;
    let mut history = Vec::new();
    let mut stream = world.store.watch(Bytes::from_static(PODS.as_bytes()), Some(begin)).await.unwrap();
    let mut seen = begin;
    while seen < last {
        let batch = stream.recv().await.unwrap().unwrap();
        seen = batch.revision;
        history.extend(batch.events);
    }
    assert!(watchers.len() > 10);
    for (scope, after, mut watcher, mut seen) in watchers {
        let mut lost = false;
        while watcher.cursor() < last && !lost {
            match futures::FutureExt::now_or_never(watcher.next()) {
                Some(Ok(events)) => {
                    seen.extend(events.iter().map(|event| (event.revision, event.key.clone())));
                }
                Some(Err(WatchEnd::TooOld { .. })) => lost = true,
                Some(Err(end)) => panic!("{end:?}"),
                None => tokio::task::yield_now().await,
            }
        }
        let selected = |event: &&coracle_store::Event| {
            let on = |value: Option<&Bytes>, wanted: &str| {
                let field = format!(r#""nodeName":"{wanted}""#);
                value.is_some_and(|value| match wanted {
                    "" => !String::from_utf8_lossy(value).contains("nodeName"),
                    _ => String::from_utf8_lossy(value).contains(&field),
                })
            };
            match &scope {
                Scope::All => true,
                Scope::Namespace(start) => event.key.starts_with(start),
                Scope::Object(key) => event.key == key,
                Scope::Indexed(name) => {
                    on(event.value.as_ref(), name) || on(event.previous.as_ref().map(|kv| &kv.value), name)
                }
            }
        };
        let after = |event: &&coracle_store::Event| event.revision > after;
        let mut expected: Vec<_> = history
            .iter()
            .filter(after)
            .filter(selected)
            .map(|event| (event.revision, event.key.clone()))
            .collect();
        if lost {
            // It has seen the beginning, whole.
            expected.truncate(seen.len());
        }
        assert_eq!(seen, expected, "{scope:?}");
    }
}

#[tokio::test]
async fn a_quiet_watcher_keeps_its_place_while_others_lose_theirs() {
    let world = World::new().await;
    let begin = world.put("default", "quiet", "n1").await;
    world.published(begin).await;
    let mut quiet = world.watch(node("n1"), begin).await;
    let mut slow = world.watch(node("n2"), begin).await;
    let mut everything = world.watch(Scope::All, begin).await;
    let mut last = begin;
    for i in 0..5000_u32 {
        last = world.put("default", &format!("p{}", i % 10), "n2").await;
    }
    world.published(last).await;
    assert!(quiet.ready().unwrap().is_empty());
    assert_eq!(quiet.cursor(), last, "nothing has happened to it up to now");
    let now = world.put("default", "quiet", "n1").await;
    assert_eq!(until(&mut quiet, now).await.len(), 1);
    for watcher in [&mut slow, &mut everything] {
        assert!(matches!(watcher.ready(), Err(WatchEnd::TooOld { requested, .. }) if requested == begin));
    }
    // One who begins anew has history from the store.
    let mut anew = world.watch(node("n2"), begin).await;
    let mut seen = 0;
    while seen < 5000 {
        let part = anew.next().await.unwrap().len();
        assert!(part <= 64, "a part at a time");
        seen += part;
    }
}

#[tokio::test]
async fn a_look_returns_a_bounded_part_and_the_rest_is_not_lost() {
    let world = World::new().await;
    let mut watcher = world.watch_now(Scope::All).await;
    let mut last = Revision(0);
    for i in 0..300_u32 {
        let ops = (0..3).map(|j| {
            let name = format!("p{i}-{j}");
            Op::Put { key: key("default", &name), value: pod(&name, "n1", 2000) }
        });
        last = world.txn(ops.collect()).await;
    }
    world.published(last).await;
    let mut seen = Vec::new();
    while watcher.cursor() < last {
        let look = watcher.next().await.unwrap();
        let bytes: usize = look.iter().map(|event| event.new.as_ref().unwrap().len()).sum();
        assert!(look.len() <= 66 && bytes <= 300 << 10, "{} events, {bytes} bytes", look.len());
        assert_eq!(watcher.cursor(), look.last().unwrap().revision.max(watcher.cursor()));
        seen.extend(look.iter().map(|event| event.revision));
    }
    assert_eq!(seen.len(), 900);
    assert!(seen.is_sorted());
    assert_eq!(seen.chunk_by(|a, b| a == b).count(), 300, "no transaction is divided");
}

#[tokio::test]
async fn ten_thousand_watchers_have_the_event_and_those_that_do_not_read_hold_up_nobody() {
    let world = World::new().await;
    let mut stuck = Vec::new();
    for _ in 0..100 {
        stuck.push(world.watch_now(Scope::All).await);
    }
    let (told, mut tell) = tokio::sync::mpsc::unbounded_channel();
    let mut watching = JoinSet::new();
    for _ in 0..10_000 {
        let (mut watcher, told) = (world.watch_now(Scope::All).await, told.clone());
        watching.spawn(async move {
            let mut seen = 0;
            while seen < 3 {
                for event in watcher.next().await.unwrap() {
                    seen += 1;
                    told.send(event.revision).unwrap();
                }
            }
        });
    }
    for _ in 0..3 {
        let revision = world.put("default", "a", "n1").await;
        for _ in 0..10_000 {
            assert_eq!(tell.recv().await.unwrap(), revision);
        }
    }
    while let Some(ended) = watching.join_next().await {
        ended.unwrap();
    }
    assert!(world.hub.wakeups() <= 30_000);
    let mut last = Revision(0);
    for i in 0..5000_u32 {
        last = world.put("default", &format!("p{}", i % 10), "n2").await;
    }
    world.published(last).await;
    for watcher in &mut stuck {
        assert!(matches!(watcher.next().await, Err(WatchEnd::TooOld { .. })));
    }
}
