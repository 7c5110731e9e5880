//! A store that goes away and comes back, and one that has forgotten what happened meanwhile.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use common::{MAPS, World, config_map};
use coracle_store::simfs::SimFs;
use coracle_store::{
    KeyValue, ListPage, ListRequest, Op, Revision, Store, StoreError, StoreResult, Txn, TxnOutcome,
    WatchStream,
};
use tokio::sync::{mpsc, watch};

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
        end.mark_unchanged();
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
