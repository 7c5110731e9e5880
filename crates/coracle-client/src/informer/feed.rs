//! List, then watch, for ever.

use std::sync::Arc;
use std::time::Duration;

use coracle_clock::{Clock, Rng};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Request;
use kube::{Client, Error};
use serde::Deserialize;

use super::lines::Lines;
use super::store::Store;
use crate::object::parse_revision;
use crate::request::send;
use crate::{Backoff, ErrorExt as _, Object};

/// Objects per page of a list, as client-go asks for.
const PAGE: u32 = 500;
/// How long the server keeps a watch open. Bookmarks and the pings of the connection say that it lives.
const WATCH_SECONDS: u32 = 1800;
/// A watch that ends sooner than this, without a word, is not resumed at once.
const SHORT_WATCH: Duration = Duration::from_secs(1);

/// How a watch ended.
enum Ended {
    /// Normally; it can be resumed.
    Closed,
    /// The history it would resume from is gone.
    Expired,
    /// With an error; it can be resumed later.
    Failed(Error),
}

/// What a feed follows.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    /// For the log.
    pub(super) name: String,
    /// Path of the collection.
    pub(super) path: String,
    /// Whether only the objects' metadata is asked for.
    pub(super) metadata_only: bool,
    pub(super) labels: Option<String>,
    pub(super) fields: Option<String>,
}

#[derive(Deserialize)]
struct Page<K> {
    #[serde(default)]
    metadata: ListMeta,
    items: Vec<K>,
}

pub(super) async fn run<K: Object>(
    client: Client,
    subject: Subject,
    store: Arc<Store<K>>,
    clock: Clock,
    rng: Rng,
) {
    let kind = subject.name.as_str();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30), rng);
    loop {
        let mut revision = match list(&client, &subject).await {
            Ok((items, revision)) => {
                backoff.reset();
                store.replace(items, parse_revision(Some(&revision)));
                revision
            }
            Err(error) => {
                let delay = backoff.delay();
                tracing::warn!(kind, error = &error as &dyn std::error::Error, ?delay, "list failed");
                clock.sleep(delay).await;
                continue;
            }
        };
        loop {
            let started = (clock.elapsed(), revision.clone());
            let ended = watch(&client, &subject, &store, &mut revision).await;
            if revision != started.1 {
                backoff.reset();
            }
            match ended {
                Ended::Expired => {
                    tracing::debug!(kind, revision, "the watch cannot be resumed, listing again");
                    break;
                }
                Ended::Closed if revision != started.1 || clock.elapsed() - started.0 >= SHORT_WATCH => {}
                Ended::Closed => clock.sleep(backoff.delay()).await,
                Ended::Failed(error) => {
                    let delay = backoff.delay();
                    tracing::warn!(kind, error = &error as &dyn std::error::Error, ?delay, "watch failed");
                    clock.sleep(delay).await;
                }
            }
        }
    }
}

/// All objects, page by page at one revision.
async fn list<K: Object>(client: &Client, subject: &Subject) -> Result<(Vec<K>, String), Error> {
    let mut items = Vec::new();
    let mut parameters = ListParams {
        label_selector: subject.labels.clone(),
        field_selector: subject.fields.clone(),
        limit: Some(PAGE),
        ..ListParams::default()
    };
    loop {
        let collection = Request::new(&subject.path);
        let request = if subject.metadata_only {
            collection.list_metadata(&parameters)
        } else {
            collection.list(&parameters)
        };
        match send::<Page<K>>(client, request, "list").await {
            Ok(mut page) => {
                items.append(&mut page.items);
                parameters.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
                if parameters.continue_token.is_none() {
                    return Ok((items, page.metadata.resource_version.unwrap_or_default()));
                }
            }
            // The pages took longer than the history lasts: one answer with everything.
            Err(error) if error.is_expired() && parameters.continue_token.is_some() => {
                items.clear();
                parameters.continue_token = None;
                parameters.limit = None;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Takes in changes after `revision`, and moves it, until the watch ends.
async fn watch<K: Object>(
    client: &Client,
    subject: &Subject,
    store: &Store<K>,
    revision: &mut String,
) -> Ended {
    let parameters = WatchParams {
        label_selector: subject.labels.clone(),
        field_selector: subject.fields.clone(),
        timeout: Some(WATCH_SECONDS),
        bookmarks: true,
        ..WatchParams::default()
    };
    let collection = Request::new(&subject.path);
    let request = if subject.metadata_only {
        collection.watch_metadata(&parameters, revision)
    } else {
        collection.watch(&parameters, revision)
    };
    let request = match request {
        Ok(mut request) => {
            request.extensions_mut().insert("watch");
            request
        }
        Err(error) => return Ended::Failed(Error::BuildRequest(error)),
    };
    let mut lines = match Lines::of(client, request).await {
        Ok(lines) => lines,
        Err(error) => return failed(error),
    };
    loop {
        let event = match lines.next::<K>().await {
            Ok(Some(event)) => event,
            Ok(None) => return Ended::Closed,
            Err(error) => return failed(error),
        };
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                advance(revision, object.meta().resource_version.as_deref());
                store.set(object);
            }
            WatchEvent::Deleted(object) => {
                advance(revision, object.meta().resource_version.as_deref());
                store.remove(&object);
            }
            WatchEvent::Bookmark(bookmark) => {
                advance(revision, Some(&bookmark.metadata.resource_version));
                store.progress(parse_revision(Some(revision)));
            }
            WatchEvent::Error(status) => return failed(Error::Api(status)),
        }
    }
}

fn advance(revision: &mut String, to: Option<&str>) {
    if let Some(to) = to.filter(|to| !to.is_empty()) {
        to.clone_into(revision);
    }
}

fn failed(error: Error) -> Ended {
    if error.is_expired() { Ended::Expired } else { Ended::Failed(error) }
}
