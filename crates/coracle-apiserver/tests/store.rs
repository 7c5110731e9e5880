//! A store that goes away and comes back, and one that has forgotten what happened meanwhile.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use common::{MAPS, World, config_map, revision};
use coracle_apiserver::ServerEnd;
use coracle_clock::watch;
use coracle_store::simfs::SimFs;
use coracle_store::{
    KeyValue, ListPage, ListRequest, Op, Revision, Store, StoreError, StoreResult, Txn, TxnOutcome,
    WatchStream,
};
use futures::future::BoxFuture;
use serde_json::json;
use tokio::sync::mpsc;

/// The embedded engine behind a switch.
struct Switched {
    store: Arc<dyn Store>,
    away: Arc<AtomicBool>,
    /// Ends every watch with the error.
    end: watch::Sender<Option<StoreError>>,
}

impl Switched {
    fn check(&self) -> StoreResult<()> {
        if self.away.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable("nobody answers".to_owned()));
        }
        Ok(())
    }
}

#[async_trait]
impl Store for Switched {
    async fn revision(&self) -> StoreResult<Revision> {
        self.check()?;
        self.store.revision().await
    }

    async fn get(&self, key: &Bytes) -> StoreResult<(Option<KeyValue>, Revision)> {
        self.check()?;
        self.store.get(key).await
    }

    async fn list(&self, request: &ListRequest) -> StoreResult<ListPage> {
        self.check()?;
        self.store.list(request).await
    }

    async fn txn(&self, txn: Txn) -> StoreResult<TxnOutcome> {
        self.check()?;
        self.store.txn(txn).await
    }

    async fn watch(&self, prefix: Bytes, after: Option<Revision>) -> StoreResult<WatchStream> {
        self.check()?;
        let mut inner = self.store.watch(prefix, after).await?;
        let mut end = self.end.subscribe();
        let (sender, receiver) = mpsc::channel(64);
        let away = Arc::clone(&self.away);
        tokio::spawn(async move {
            loop {
                let batch = coracle_clock::select! {
                    changed = end.changed() => match changed {
                        Ok(()) => Some(Err(end.borrow().clone().unwrap())),
                        Err(_) => return,
                    },
                    batch = inner.recv() => batch,
                };
                let Some(batch) = batch else { return };
                if away.load(Ordering::Relaxed) && batch.is_ok() {
                    continue;
                }
                let ended = batch.is_err();
                if sender.send(batch).await.is_err() || ended {
                    return;
                }
            }
        });
        Ok(receiver)
    }

    async fn compact(&self, revision: Revision) -> StoreResult<()> {
        self.check()?;
        self.store.compact(revision).await
    }
}

async fn world() -> (World, Arc<AtomicBool>, watch::Sender<Option<StoreError>>) {
    let (away, end) = (Arc::new(AtomicBool::new(false)), watch::Sender::new(None));
    let switch = (Arc::clone(&away), end.clone());
    let world = World::behind(SimFs::new(coracle_clock::Rng::seeded(1)), |store| {
        Arc::new(Switched { store, away: switch.0, end: switch.1 })
    })
    .await;
    (world, away, end)
}

#[tokio::test(start_paused = true)]
async fn an_absent_store_is_said_at_once_and_watches_outlive_it() {
    let (world, away, end) = world().await;
    let admin = world.admin();
    let mut watch = admin.watch(&format!("{MAPS}?watch=1")).await;
    admin.post(MAPS, &config_map("before")).await.expect(201);
    assert_eq!(watch.say().await, "ADDED before");

    away.store(true, Ordering::Relaxed);
    end.send_replace(Some(StoreError::Unavailable("the connection broke".to_owned())));
    for answer in [
        admin.get(&format!("{MAPS}/before")).await,
        admin.get(MAPS).await,
        admin.post(MAPS, &config_map("during")).await,
    ] {
        let status = answer.expect(500);
        assert_eq!(status["message"], "etcdserver: request timed out");
        assert!(status["reason"].is_null(), "{status}");
    }
    let ready = admin.get("/readyz").await;
    assert_eq!(ready.code, 500);
    let text = String::from_utf8(ready.bytes.to_vec()).unwrap();
    assert!(text.contains("[-]etcd failed: reason withheld\n"), "{text}");
    assert_eq!(admin.get("/livez").await.code, 200, "restarting would not help");

    away.store(false, Ordering::Relaxed);
    admin.post(MAPS, &config_map("after")).await.expect(201);
    assert_eq!(watch.say().await, "ADDED after", "the same watch goes on");
    assert_eq!(admin.get("/readyz").await.code, 200);
}

#[tokio::test(start_paused = true)]
async fn after_a_gap_watches_begin_again_and_the_server_lives_on() {
    let (world, away, end) = world().await;
    let admin = world.admin();
    let mut watch = admin.watch(&format!("{MAPS}?watch=1")).await;
    admin.post(MAPS, &config_map("before")).await.expect(201);
    assert_eq!(watch.say().await, "ADDED before");

    // While it is away, something is changed, a namespace is removed that every cluster has, and history is compacted.
    away.store(true, Ordering::Relaxed);
    let gone = Bytes::from_static(b"/registry/namespaces/kube-public");
    let ops = vec![
        Op::Delete { key: gone },
        Op::Put { key: Bytes::from_static(b"/registry/x"), value: Bytes::new() },
    ];
    world.store.txn(Txn { compares: Vec::new(), ops }).await.unwrap();
    world.store.compact(world.store.revision().await.unwrap()).await.unwrap();
    end.send_replace(Some(StoreError::Unavailable("the connection broke".to_owned())));
    world.clock.sleep(std::time::Duration::from_secs(1)).await;
    away.store(false, Ordering::Relaxed);

    let event = watch.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&"ERROR".into(), &410.into()), "{event}");
    assert_eq!(watch.say().await, "end");
    let mut watch = admin.watch(&format!("{MAPS}?watch=1")).await;
    assert_eq!(watch.say().await, "ADDED before");
    admin.post(MAPS, &config_map("after")).await.expect(201);
    assert_eq!(watch.say().await, "ADDED after");
    let mut namespaces =
        admin.watch("/api/v1/namespaces?watch=1&fieldSelector=metadata.name=kube-public").await;
    assert_eq!(namespaces.say().await, "ADDED kube-public", "it is made again");
}

type Hook = dyn Fn(Arc<dyn Store>, ListRequest) -> BoxFuture<'static, StoreResult<()>> + Send + Sync;

/// The embedded engine, with something that happens after each list is read and before its answer comes.
struct Hooked {
    store: Arc<dyn Store>,
    after_list: Box<Hook>,
}

#[async_trait]
impl Store for Hooked {
    async fn revision(&self) -> StoreResult<Revision> {
        self.store.revision().await
    }

    async fn get(&self, key: &Bytes) -> StoreResult<(Option<KeyValue>, Revision)> {
        self.store.get(key).await
    }

    async fn list(&self, request: &ListRequest) -> StoreResult<ListPage> {
        let page = self.store.list(request).await?;
        (self.after_list)(Arc::clone(&self.store), request.clone()).await?;
        Ok(page)
    }

    async fn txn(&self, txn: Txn) -> StoreResult<TxnOutcome> {
        self.store.txn(txn).await
    }

    async fn watch(&self, prefix: Bytes, after: Option<Revision>) -> StoreResult<WatchStream> {
        self.store.watch(prefix, after).await
    }

    async fn compact(&self, revision: Revision) -> StoreResult<()> {
        self.store.compact(revision).await
    }
}

async fn hooked(after_list: Box<Hook>) -> World {
    let files = SimFs::new(coracle_clock::Rng::seeded(1));
    World::behind(files, |store| Arc::new(Hooked { store, after_list })).await
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_written_while_events_are_looked_at_expires_as_well() {
    let key = Bytes::from_static(b"/registry/events/default/old");
    let written = Arc::new(AtomicBool::new(false));
    let event = key.clone();
    let world = hooked(Box::new(move |store, request| {
        let first = request.prefix == "/registry/events/" && !written.swap(true, Ordering::Relaxed);
        let key = event.clone();
        Box::pin(async move {
            if first {
                let value = json!({
                    "apiVersion": "v1", "kind": "Event", "lastTimestamp": "2030-01-01T00:00:00Z",
                    "metadata": { "name": "old", "namespace": "default" },
                });
                let ops = vec![Op::Put { key, value: value.to_string().into() }];
                store.txn(Txn { compares: Vec::new(), ops }).await?;
                // The hub hears of it before the sweep goes on.
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
            }
            Ok(())
        })
    }))
    .await;
    world.clock.sleep(std::time::Duration::from_secs(600)).await;
    assert_eq!(world.store.get(&key).await.unwrap().0, None);
}

#[tokio::test(start_paused = true)]
async fn a_list_whose_history_goes_away_names_the_revision_that_it_read() {
    let world = hooked(Box::new(|_, request| {
        Box::pin(async move {
            // The second page comes too late.
            match request.at.filter(|_| request.prefix == "/registry/configmaps/default/") {
                Some(requested) => {
                    Err(StoreError::Compacted { requested, oldest: Revision(requested.0 + 1) })
                }
                None => Ok(()),
            }
        })
    }))
    .await;
    let admin = world.admin();
    let mut last = json!(null);
    for n in 0..510 {
        last = admin.post(MAPS, &config_map(&format!("m{n}"))).await.expect(201);
    }
    let refused = admin.get(&format!("{MAPS}?labelSelector=no%3Dbody&limit=5")).await.message(410);
    let expected = format!("The resourceVersion for the provided list is too old: {}", revision(&last));
    assert_eq!(refused, expected);
}

#[tokio::test(start_paused = true)]
async fn a_server_whose_store_has_stopped_says_that_it_has_ended() {
    let files = SimFs::new(coracle_clock::Rng::seeded(1));
    let world = World::on(files.clone()).await;
    let admin = world.admin();
    let soon = std::time::Duration::from_secs(60);
    assert_eq!(world.clock.timeout(soon, world.server.ended()).await, None, "it works");
    files.fail_sync(1);
    admin.post(MAPS, &config_map("a")).await.expect(503);
    let end = world.clock.timeout(soon, world.server.ended()).await;
    assert!(matches!(end, Some(ServerEnd::Store(StoreError::Stopped(_)))), "{end:?}");
    assert_eq!(world.clock.timeout(soon, world.server.ended()).await, end, "whoever asks later hears it too");
    world.server.stop().await;
}
