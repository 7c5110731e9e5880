//! A writer who is in everybody's way: it changes every Pod that somebody else has changed.

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_client::request::{self, PatchBody};
use coracle_client::{Informer, ListOptions, revision_of};
use coracle_clock::{Clock, Rng};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use serde_json::json;

const PAUSE: Duration = Duration::from_millis(1);

/// Meddles for ever.
pub(crate) async fn run(client: Client, clock: Clock, rng: Rng) {
    let pods = Informer::<Pod>::start(client.clone(), ListOptions::default(), clock.clone(), rng);
    let mut changes = pods.subscribe();
    // What came of its own writes, which it leaves alone.
    let mut own = BTreeMap::new();
    let mut count = 0u64;
    while let Some(keys) = changes.changed().await {
        // Two who react to each other would let no time pass.
        clock.sleep(PAUSE).await;
        for key in keys {
            let Some(pod) = pods.get_key(&key) else {
                own.remove(&key);
                continue;
            };
            if own.get(&key).is_some_and(|revision| *revision >= revision_of(&*pod)) {
                continue;
            }
            count += 1;
            let touch = json!({"metadata": {"annotations": {"example.com/touched": count.to_string()}}});
            if let Ok(pod) = request::patch::<Pod>(&client, &key, &PatchBody::Merge(touch)).await {
                own.insert(key, revision_of(&pod));
            }
        }
    }
}
