//! One suite of tests for any engine.
//!
//! [`store_suite!`](crate::store_suite) makes one `#[tokio::test]` of each function here. A function gets a store
//! that nobody else writes to; it need not be empty, and its first revision may be any.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests, each named after what holds")]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;

use crate::{
    Compare, Event, EventKind, KeyValue, ListRequest, Op, Revision, Store, StoreError, Txn, TxnOutcome,
    WatchStream,
};

/// Makes a module with the suite for an engine: `store_suite!(name, open)`, where `open` is an async function that
/// returns `(guard, Arc<dyn Store>)` with a store of its own each time.
#[macro_export]
macro_rules! store_suite {
    ($name:ident, $open:path) => {
        $crate::store_suite!(@ $name, $open,
            a_key_is_created_read_changed_and_removed,
            a_conflict_tells_the_state_of_each_compared_key,
            revisions_are_dense,
            a_transaction_is_one_revision_or_nothing,
            removing_what_is_not_there_changes_nothing,
            a_key_that_comes_back_is_a_new_one,
            bad_transactions_are_refused,
            values_may_be_empty_large_and_binary,
            lists_are_ordered_and_limited_to_the_prefix,
            pages_of_one_revision_fit_together_whatever_happens_meanwhile,
            old_revisions_can_be_read,
            the_future_cannot_be_read,
            compaction_forgets_what_is_before_and_nothing_else,
            a_watch_follows_its_prefix,
            a_watch_replays_history_and_goes_on_without_a_gap,
            all_changes_of_a_revision_come_in_one_batch,
            many_watches_see_the_same,
            concurrent_increments_lose_nothing,
        );
    };
    (@ $name:ident, $open:path, $($test:ident,)*) => {
        mod $name {
            $(
                #[tokio::test]
                async fn $test() {
                    let (_guard, store) = $open().await;
                    $crate::suite::$test(&store).await;
                }
            )*
        }
    };
}

type Subject = Arc<dyn Store>;

fn key(key: impl AsRef<str>) -> Bytes {
    Bytes::copy_from_slice(key.as_ref().as_bytes())
}

fn put(name: &str, value: &str) -> Op {
    Op::Put { key: key(name), value: key(value) }
}

fn delete(name: &str) -> Op {
    Op::Delete { key: key(name) }
}

fn is(name: &str, revision: Revision) -> Compare {
    Compare { key: key(name), mod_revision: revision }
}

fn absent(name: &str) -> Compare {
    is(name, Revision(0))
}

async fn txn(store: &Subject, compares: Vec<Compare>, ops: Vec<Op>) -> TxnOutcome {
    store.txn(Txn { compares, ops }).await.unwrap()
}

async fn commit(store: &Subject, ops: Vec<Op>) -> Revision {
    committed(txn(store, Vec::new(), ops).await)
}

#[track_caller]
fn committed(outcome: TxnOutcome) -> Revision {
    match outcome {
        TxnOutcome::Committed(revision) => revision,
        TxnOutcome::Conflict(states) => panic!("conflict: {states:?}"),
    }
}

async fn get(store: &Subject, name: &str) -> Option<KeyValue> {
    store.get(&key(name)).await.unwrap().0
}

fn prefix(name: &str) -> ListRequest {
    ListRequest { prefix: key(name), ..ListRequest::default() }
}

async fn names(store: &Subject, request: &ListRequest) -> Vec<String> {
    let page = store.list(request).await.unwrap();
    page.items.into_iter().map(|item| String::from_utf8(item.key.to_vec()).unwrap()).collect()
}

/// Reads a watch until it has told everything up to `revision`.
async fn read_to(watch: &mut WatchStream, revision: Revision) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        let batch = watch.recv().await.expect("a watch goes on for ever").unwrap();
        assert!(batch.events.iter().all(|event| event.revision <= batch.revision), "{batch:?}");
        events.extend(batch.events);
        // Progress may be lazy: the last event will do.
        if batch.revision >= revision || events.last().is_some_and(|event: &Event| event.revision >= revision)
        {
            return events;
        }
    }
}

pub async fn a_key_is_created_read_changed_and_removed(store: &Subject) {
    assert_eq!(get(store, "/a/x").await, None);
    let first = committed(txn(store, vec![absent("/a/x")], vec![put("/a/x", "1")]).await);
    let read = get(store, "/a/x").await.unwrap();
    assert_eq!((read.value, read.create_revision, read.mod_revision), (key("1"), first, first));

    let second = committed(txn(store, vec![is("/a/x", first)], vec![put("/a/x", "2")]).await);
    let read = get(store, "/a/x").await.unwrap();
    assert_eq!((read.value, read.create_revision, read.mod_revision), (key("2"), first, second));

    let third = committed(txn(store, vec![is("/a/x", second)], vec![delete("/a/x")]).await);
    assert_eq!(get(store, "/a/x").await, None);
    assert!(first < second && second < third);
    assert_eq!(store.revision().await.unwrap(), third);
}

pub async fn a_conflict_tells_the_state_of_each_compared_key(store: &Subject) {
    let at = commit(store, vec![put("/b/x", "1")]).await;
    let before = store.revision().await.unwrap();
    let outcome = txn(
        store,
        vec![is("/b/x", at), absent("/b/none"), is("/b/gone", at), absent("/b/x")],
        vec![put("/b/x", "2"), put("/b/y", "2")],
    )
    .await;
    let TxnOutcome::Conflict(states) = outcome else { panic!("{outcome:?}") };
    let x = get(store, "/b/x").await;
    assert_eq!(x.as_ref().unwrap().value, key("1"));
    assert_eq!(states, vec![x.clone(), None, None, x]);
    assert_eq!(get(store, "/b/y").await, None);
    assert_eq!(store.revision().await.unwrap(), before, "a conflict is no revision");
}

pub async fn revisions_are_dense(store: &Subject) {
    let first = commit(store, vec![put("/c/0", "")]).await;
    for i in 1..20 {
        let at = commit(store, vec![put(&format!("/c/{}", i % 3), &i.to_string())]).await;
        assert_eq!(at, Revision(first.0 + i));
    }
}

pub async fn a_transaction_is_one_revision_or_nothing(store: &Subject) {
    let at = commit(store, vec![put("/d/a", "1"), put("/d/b", "1"), put("/d/c", "1")]).await;
    let page = store.list(&prefix("/d/")).await.unwrap();
    assert_eq!(page.items.len(), 3);
    assert!(page.items.iter().all(|item| item.mod_revision == at));
    let next = commit(store, vec![delete("/d/a"), put("/d/b", "2"), put("/d/d", "2")]).await;
    assert_eq!(next, Revision(at.0 + 1));
    assert_eq!(names(store, &prefix("/d/")).await, ["/d/b", "/d/c", "/d/d"]);
}

pub async fn removing_what_is_not_there_changes_nothing(store: &Subject) {
    let at = commit(store, vec![put("/e/x", "1")]).await;
    assert_eq!(commit(store, vec![delete("/e/none")]).await, at);
    assert_eq!(commit(store, Vec::new()).await, at);
    assert_eq!(committed(txn(store, vec![is("/e/x", at)], Vec::new()).await), at);
    assert_eq!(commit(store, vec![delete("/e/none"), put("/e/y", "1")]).await, Revision(at.0 + 1));
    assert_eq!(store.revision().await.unwrap(), Revision(at.0 + 1));
}

pub async fn a_key_that_comes_back_is_a_new_one(store: &Subject) {
    let first = commit(store, vec![put("/f/x", "1")]).await;
    commit(store, vec![delete("/f/x")]).await;
    let again = commit(store, vec![put("/f/x", "2")]).await;
    assert_eq!(get(store, "/f/x").await.unwrap().create_revision, again);
    let stale = txn(store, vec![is("/f/x", first)], vec![put("/f/x", "3")]).await;
    assert!(matches!(stale, TxnOutcome::Conflict(_)), "{stale:?}");
}

pub async fn bad_transactions_are_refused(store: &Subject) {
    let before = store.revision().await.unwrap();
    for ops in
        [vec![put("", "1")], vec![put("/g/x", "1"), put("/g/x", "2")], vec![put("/g/x", "1"), delete("/g/x")]]
    {
        let refused = store.txn(Txn { compares: Vec::new(), ops }).await;
        assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    }
    assert_eq!(store.revision().await.unwrap(), before);
}

pub async fn values_may_be_empty_large_and_binary(store: &Subject) {
    let large = Bytes::from((0..1_000_000u32).map(|i| i.to_le_bytes()[1]).collect::<Vec<u8>>());
    let odd = Bytes::from_static(b"/h/\x00\xff\xfe");
    let zeros = Bytes::from(vec![0; 5000]);
    for (name, value) in
        [(odd.clone(), large.clone()), (key("/h/empty"), Bytes::new()), (key("/h/0"), zeros.clone())]
    {
        let put = Op::Put { key: name, value };
        commit(store, vec![put]).await;
    }
    assert_eq!(store.get(&odd).await.unwrap().0.unwrap().value, large);
    assert_eq!(get(store, "/h/empty").await.unwrap().value, Bytes::new());
    assert_eq!(get(store, "/h/0").await.unwrap().value, zeros);
    let high = ListRequest { prefix: Bytes::from_static(b"/h/\x00\xff"), ..ListRequest::default() };
    assert_eq!(store.list(&high).await.unwrap().items.len(), 1, "a prefix may end with the highest byte");
}

pub async fn lists_are_ordered_and_limited_to_the_prefix(store: &Subject) {
    for name in ["/i/b", "/i/a/2", "/i/a/1", "/i/c", "/i0", "/i", "/i/a"] {
        commit(store, vec![put(name, name)]).await;
    }
    let all = ["/i/a", "/i/a/1", "/i/a/2", "/i/b", "/i/c"];
    assert_eq!(names(store, &prefix("/i/")).await, all);
    assert_eq!(names(store, &prefix("/i/a/")).await, ["/i/a/1", "/i/a/2"]);
    assert_eq!(names(store, &prefix("/i/none")).await, Vec::<String>::new());
    let page = |after: &str, limit| ListRequest { after: Some(key(after)), limit, ..prefix("/i/") };
    assert_eq!(names(store, &page("/i/a/1", 0)).await, ["/i/a/2", "/i/b", "/i/c"]);
    assert_eq!(names(store, &page("/i/a/15", 1)).await, ["/i/a/2"]);
    assert_eq!(names(store, &page("/i/c", 0)).await, Vec::<String>::new());
    assert_eq!(names(store, &page("/a", 2)).await, all[..2], "before the prefix");
    assert_eq!(names(store, &page("/z", 2)).await, Vec::<String>::new(), "beyond the prefix");
    for limit in 1..=6 {
        let listed = store.list(&ListRequest { limit, ..prefix("/i/") }).await.unwrap();
        assert_eq!((listed.items.len(), listed.remaining), (limit.min(5), 5usize.saturating_sub(limit)));
    }
    assert_eq!(store.list(&prefix("/i/")).await.unwrap().revision, store.revision().await.unwrap());
}

pub async fn pages_of_one_revision_fit_together_whatever_happens_meanwhile(store: &Subject) {
    let mut at = Revision(0);
    for i in 0..10 {
        at = commit(store, vec![put(&format!("/j/{i}"), "old")]).await;
    }
    let mut request = ListRequest { limit: 3, ..prefix("/j/") };
    let mut seen = Vec::new();
    loop {
        let page = store.list(&request).await.unwrap();
        assert_eq!(page.revision, at);
        seen.extend(page.items.iter().map(|item| (item.key.clone(), item.value.clone())));
        assert_eq!(page.remaining, 10 - seen.len());
        if page.remaining == 0 {
            break;
        }
        request.after = page.items.last().map(|item| item.key.clone());
        request.at = Some(page.revision);
        let n = seen.len();
        let name = format!("/j/{n}");
        commit(store, vec![delete(&name), put(&format!("/j/{n}x"), "new"), put("/j/8", "new")]).await;
    }
    let expected: Vec<_> = (0..10).map(|i| (key(format!("/j/{i}")), key("old"))).collect();
    assert_eq!(seen, expected);
}

pub async fn old_revisions_can_be_read(store: &Subject) {
    let mut expected: Vec<(Revision, BTreeMap<Bytes, Bytes>)> = Vec::new();
    let mut state = BTreeMap::new();
    let first = commit(store, vec![put("/k/0", "start")]).await;
    state.insert(key("/k/0"), key("start"));
    expected.push((first, state.clone()));
    for i in 0..30u32 {
        let name = format!("/k/{}", i % 4);
        let at = if i % 5 == 3 && state.remove(&key(&name)).is_some() {
            commit(store, vec![delete(&name)]).await
        } else {
            state.insert(key(&name), key(i.to_string()));
            commit(store, vec![put(&name, &i.to_string())]).await
        };
        expected.push((at, state.clone()));
    }
    for (at, state) in expected {
        let page = store.list(&ListRequest { at: Some(at), ..prefix("/k/") }).await.unwrap();
        assert_eq!(page.revision, at);
        let listed: BTreeMap<_, _> = page.items.into_iter().map(|item| (item.key, item.value)).collect();
        assert_eq!(listed, state, "at {at}");
    }
}

pub async fn the_future_cannot_be_read(store: &Subject) {
    let current = commit(store, vec![put("/l/x", "1")]).await;
    let requested = Revision(current.0 + 1);
    let future = StoreError::Future { requested, current };
    assert_eq!(store.list(&ListRequest { at: Some(requested), ..prefix("/l/") }).await, Err(future.clone()));
    assert_eq!(store.watch(key("/l/"), Some(requested)).await.err(), Some(future.clone()));
    assert_eq!(store.compact(requested).await, Err(future));
}

pub async fn compaction_forgets_what_is_before_and_nothing_else(store: &Subject) {
    let first = commit(store, vec![put("/m/x", "1"), put("/m/keep", "1"), put("/m/gone", "1")]).await;
    commit(store, vec![put("/m/x", "2"), delete("/m/gone")]).await;
    let third = commit(store, vec![put("/m/x", "3")]).await;
    let fourth = commit(store, vec![put("/m/x", "4")]).await;
    store.compact(third).await.unwrap();
    store.compact(first).await.unwrap();

    let at = |revision| ListRequest { at: Some(revision), ..prefix("/m/") };
    let compacted = StoreError::Compacted { requested: Revision(third.0 - 1), oldest: third };
    assert_eq!(store.list(&at(Revision(third.0 - 1))).await, Err(compacted.clone()));
    assert_eq!(store.watch(key("/m/"), Some(Revision(third.0 - 1))).await.err(), Some(compacted));
    let listed = store.list(&at(third)).await.unwrap();
    let values: Vec<_> = listed.items.into_iter().map(|item| (item.key, item.value)).collect();
    assert_eq!(values, [(key("/m/keep"), key("1")), (key("/m/x"), key("3"))]);
    assert_eq!(get(store, "/m/keep").await.unwrap().mod_revision, first);
    assert_eq!(get(store, "/m/x").await.unwrap().create_revision, first);

    let mut watch = store.watch(key("/m/"), Some(third)).await.unwrap();
    let events = read_to(&mut watch, fourth).await;
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].revision, events[0].value.clone()), (fourth, Some(key("4"))));

    store.compact(fourth).await.unwrap();
    assert_eq!(names(store, &prefix("/m/")).await, ["/m/keep", "/m/x"]);
    assert_eq!(commit(store, vec![put("/m/gone", "again")]).await, Revision(fourth.0 + 1));
}

pub async fn a_watch_follows_its_prefix(store: &Subject) {
    let before = commit(store, vec![put("/n/x", "before")]).await;
    let mut watch = store.watch(key("/n/"), None).await.unwrap();
    let first = watch.recv().await.unwrap().unwrap();
    assert_eq!(
        (first.events.len(), first.revision),
        (0, before),
        "the first batch says where the watch starts"
    );

    commit(store, vec![put("/n0", "other")]).await;
    let changed = commit(store, vec![put("/n/x", "after")]).await;
    commit(store, vec![put("/m/x", "other")]).await;
    let removed = commit(store, vec![delete("/n/x")]).await;
    let added = commit(store, vec![put("/n/y", "new")]).await;

    let events = read_to(&mut watch, added).await;
    let x = |value: &str, mod_revision| {
        Some(KeyValue { key: key("/n/x"), value: key(value), create_revision: before, mod_revision })
    };
    let event = |kind, revision, name: &str, value: Option<&str>, previous| Event {
        kind,
        revision,
        key: key(name),
        value: value.map(key),
        previous,
    };
    assert_eq!(
        events,
        [
            event(EventKind::Put, changed, "/n/x", Some("after"), x("before", before)),
            event(EventKind::Delete, removed, "/n/x", None, x("after", changed)),
            event(EventKind::Put, added, "/n/y", Some("new"), None),
        ]
    );
}

pub async fn a_watch_replays_history_and_goes_on_without_a_gap(store: &Subject) {
    let start = commit(store, vec![put("/o/start", "")]).await;
    let writer = async {
        let mut revisions = Vec::new();
        for i in 0..200 {
            revisions.push(commit(store, vec![put(&format!("/o/{}", i % 7), &i.to_string())]).await);
        }
        revisions
    };
    let watchers = join_all((0..20).map(|n| async move {
        // They join at different moments of the writing.
        while store.revision().await.unwrap() < Revision(start.0 + n * 10) {
            tokio::task::yield_now().await;
        }
        let mut watch = store.watch(key("/o/"), Some(start)).await.unwrap();
        read_to(&mut watch, Revision(start.0 + 200)).await
    }));
    let (revisions, seen) = futures::future::join(writer, watchers).await;
    for events in seen {
        let got: Vec<_> = events.iter().map(|event| event.revision).collect();
        assert_eq!(got, revisions);
    }
}

pub async fn all_changes_of_a_revision_come_in_one_batch(store: &Subject) {
    let start = store.revision().await.unwrap();
    let mut live = store.watch(key("/p/"), Some(start)).await.unwrap();
    for i in 0..10 {
        commit(store, (0..10).map(|n| put(&format!("/p/{n}"), &i.to_string())).collect()).await;
    }
    let mut replay = store.watch(key("/p/"), Some(start)).await.unwrap();
    for watch in [&mut live, &mut replay] {
        let mut last = start;
        while last < Revision(start.0 + 10) {
            let batch = watch.recv().await.unwrap().unwrap();
            let mut count = BTreeMap::<Revision, usize>::new();
            for event in &batch.events {
                *count.entry(event.revision).or_default() += 1;
            }
            assert!(count.values().all(|&n| n == 10), "{count:?}");
            assert!(count.keys().next().is_none_or(|&first| first > last));
            last = last.max(count.keys().next_back().copied().unwrap_or(last));
        }
    }
}

pub async fn many_watches_see_the_same(store: &Subject) {
    let start = commit(store, vec![put("/q/start", "")]).await;
    let mut watches = Vec::new();
    for i in 0..60 {
        // Nested and distinct prefixes, so that one event goes to several.
        let name = if i % 2 == 0 { "/q/".to_owned() } else { format!("/q/{}", i % 10) };
        watches.push((name.clone(), store.watch(key(&name), Some(start)).await.unwrap()));
    }
    let mut all = Vec::new();
    for i in 0..50 {
        let name = format!("/q/{}", i % 10);
        let revision = commit(store, vec![put(&name, &i.to_string())]).await;
        all.push((revision, name));
    }
    for (name, watch) in &mut watches {
        let expected: Vec<_> =
            all.iter().filter(|(_, key)| key.starts_with(name.as_str())).cloned().collect();
        let events = read_to(watch, expected.last().unwrap().0).await;
        let seen: Vec<_> = events
            .iter()
            .map(|event| (event.revision, String::from_utf8(event.key.to_vec()).unwrap()))
            .collect();
        assert_eq!(seen, expected, "{name}");
    }
}

pub async fn concurrent_increments_lose_nothing(store: &Subject) {
    let first = commit(store, vec![put("/r/counter", "0")]).await;
    let increment = || async {
        for _ in 0..10 {
            let mut current = get(store, "/r/counter").await.unwrap();
            loop {
                let value: u64 = std::str::from_utf8(&current.value).unwrap().parse().unwrap();
                let next = put("/r/counter", &(value + 1).to_string());
                match txn(store, vec![is("/r/counter", current.mod_revision)], vec![next]).await {
                    TxnOutcome::Committed(_) => break,
                    TxnOutcome::Conflict(mut states) => current = states.remove(0).unwrap(),
                }
            }
        }
    };
    join_all((0..8).map(|_| increment())).await;
    assert_eq!(get(store, "/r/counter").await.unwrap().value, key("80"));
    assert_eq!(store.revision().await.unwrap(), Revision(first.0 + 80));
}
