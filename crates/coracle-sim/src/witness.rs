//! A client that watches a kind as any client does, and tells what it hears.

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_client::ErrorExt as _;
use coracle_clock::Clock;
use futures::TryStreamExt as _;
use kube::api::{ApiResource, DynamicObject, ListParams, WatchEvent, WatchParams};
use kube::{Api, Client};

use crate::invariants::{Heard, News};

/// What is watched: the storage prefix of a kind, its version and kind, its plural.
pub(crate) const WATCHED: [(&str, &str, &str, &str); 3] = [
    ("/registry/pods/", "v1", "Pod", "pods"),
    ("/registry/minions/", "v1", "Node", "nodes"),
    ("/registry/leases/", "coordination.k8s.io/v1", "Lease", "leases"),
];

const PAUSE: Duration = Duration::from_millis(700);
/// Short, so that watches are resumed often.
const WATCH_SECONDS: u32 = 47;

/// Watches for ever.
pub(crate) async fn run(
    client: Client,
    clock: Clock,
    (prefix, version, kind, plural): (&'static str, &str, &str, &str),
    heard: Heard,
) {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let resource = ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version,
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    };
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    loop {
        let Ok(list) = api.list(&ListParams::default()).await else {
            clock.sleep(PAUSE).await;
            continue;
        };
        let Some(mut at) = list.metadata.resource_version.clone() else { continue };
        let objects: BTreeMap<_, _> =
            list.items.iter().map(|object| (name(object), revision(object))).collect();
        heard.push(prefix, News::Listed(at.parse().unwrap_or(0), objects));
        loop {
            let ended = watch(&api, prefix, &mut at, &heard).await;
            heard.push(prefix, News::Lost);
            match ended {
                Ok(()) => {}
                Err(error) if error.is_expired() => break,
                Err(_) => clock.sleep(PAUSE).await,
            }
        }
    }
}

async fn watch(
    api: &Api<DynamicObject>,
    prefix: &'static str,
    at: &mut String,
    heard: &Heard,
) -> Result<(), kube::Error> {
    let parameters = WatchParams { timeout: Some(WATCH_SECONDS), bookmarks: true, ..WatchParams::default() };
    let stream = api.watch(&parameters, at).await?;
    heard.push(prefix, News::Connected);
    let mut stream = std::pin::pin!(stream);
    while let Some(event) = stream.try_next().await? {
        let news = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                News::Changed(name(&object), seen(at, object.metadata.resource_version.as_deref()))
            }
            WatchEvent::Deleted(object) => {
                News::Gone(name(&object), seen(at, object.metadata.resource_version.as_deref()))
            }
            WatchEvent::Bookmark(bookmark) => {
                News::Bookmark(seen(at, Some(&bookmark.metadata.resource_version)))
            }
            WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
        };
        heard.push(prefix, news);
    }
    Ok(())
}

fn seen(at: &mut String, revision: Option<&str>) -> u64 {
    revision.unwrap_or_default().clone_into(at);
    at.parse().unwrap_or(0)
}

/// As in the key: `NAMESPACE/NAME`, or the name alone.
fn name(object: &DynamicObject) -> String {
    let meta = &object.metadata;
    let name = meta.name.clone().unwrap_or_default();
    meta.namespace.as_ref().map_or(name.clone(), |namespace| format!("{namespace}/{name}"))
}

fn revision(object: &DynamicObject) -> u64 {
    object.metadata.resource_version.as_deref().and_then(|revision| revision.parse().ok()).unwrap_or(0)
}
