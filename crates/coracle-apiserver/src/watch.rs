//! watch: the hub's events, filtered for one client, as a stream of lines.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use coracle_api::field::{FieldError, Path};
use coracle_api::status::Status;
use coracle_store::Revision;
use futures::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};

use crate::body::Body;
use crate::call::{Call, Filter};
use crate::hub::{Event, WatchEnd, WatchKind, Watcher};
use crate::metrics::Watching;
use crate::negotiate::{Encoding, Shape};
use crate::object;
use crate::read::{ListOptions, include_object, partial, resource_version};
use crate::server::{Core, store_failed};

/// How often an idle watch that asked for bookmarks gets one.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Watches without a limit of their own end after this long or up to twice that, as upstream's.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);
/// Lines are joined up to this size before they are sent.
const CHUNK_BYTES: usize = 64 * 1024;

const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// Where a watch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// With what there is, at this revision or later, as ADDED events, closed by a bookmark if `bookmark`.
    Everything { bookmark: bool, not_older_than: Revision },
    /// After this revision.
    After(Revision),
    /// With the next change.
    Now,
}

fn begin(call: &Call) -> Result<Begin, Status> {
    let query = &call.query;
    let (wanted, how) = (query.get("resourceVersion"), query.get("resourceVersionMatch"));
    let initial = query.has("sendInitialEvents").then(|| query.flag("sendInitialEvents"));
    let path = Path::new("resourceVersionMatch");
    let mut errors = Vec::new();
    if initial.is_some() && how != "NotOlderThan" {
        let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        errors.push(FieldError::forbidden(&path, why));
    }
    if !how.is_empty() {
        if initial.is_none() {
            let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            errors.push(FieldError::forbidden(&path, why));
        }
        if how != "NotOlderThan" {
            errors.push(FieldError::not_supported(&path, how, &["NotOlderThan"]));
        }
        if query.has("continue") {
            let why = "resourceVersionMatch is forbidden when continue is provided";
            errors.push(FieldError::forbidden(&path, why));
        }
    }
    if !errors.is_empty() {
        return Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors));
    }
    let revision = resource_version(wanted)?.unwrap_or_default();
    Ok(match initial {
        Some(true) => Begin::Everything { bookmark: true, not_older_than: revision },
        Some(false) if revision.0 == 0 => Begin::Now,
        None if revision.0 == 0 => Begin::Everything { bookmark: false, not_older_than: revision },
        _ => Begin::After(revision),
    })
}

/// What a watcher with this filter sees of an event, given whether the old and the new object match.
#[must_use]
pub(crate) fn view(old_matches: bool, new_matches: bool) -> Option<WatchKind> {
    match (old_matches, new_matches) {
        (false, true) => Some(WatchKind::Added),
        (true, true) => Some(WatchKind::Modified),
        (true, false) => Some(WatchKind::Deleted),
        (false, false) => None,
    }
}

impl Core {
    pub(crate) async fn watch(self: &Arc<Self>, call: Call) -> Result<Response<Body>, Status> {
        let format = call.format()?;
        if format.encoding != Encoding::Json {
            return Err(Status::not_acceptable(&["application/json"]));
        }
        if let Shape::Table(_) = format.shape {
            include_object(&call)?;
        }
        let begin = begin(&call)?;
        let filter = call.filter()?;
        let limit = match call.query.number("timeoutSeconds")?.and_then(|n| u64::try_from(n).ok()) {
            Some(seconds) if seconds > 0 => Duration::from_secs(seconds),
            _ => DEFAULT_TIMEOUT + Duration::from_secs(self.metrics.watches_started() * 97 % 1800),
        };
        let mut first = VecDeque::new();
        let mut initial = None;
        let after = match begin {
            Begin::After(revision) => revision,
            Begin::Now => self.store.revision().await.map_err(|error| store_failed(&error))?,
            Begin::Everything { bookmark, not_older_than } => {
                let page = self.list_page(&call, &ListOptions::not_older_than(not_older_than)).await?;
                for kv in page.items {
                    // What is there already is an event that adds it, at its own revision.
                    first.push_back(Arc::new(Event::from_store(coracle_store::Event {
                        kind: coracle_store::EventKind::Put,
                        revision: kv.mod_revision,
                        key: kv.key,
                        value: Some(kv.value),
                        previous: None,
                    })));
                }
                initial = bookmark.then_some(page.revision);
                page.revision
            }
        };
        let watcher = self.hub.watch(call.row.storage_prefix, after).await;
        let now = self.clock.elapsed();
        let bookmarks = call.query.flag("allowWatchBookmarks");
        let prefix = call.row.storage_list_prefix(call.namespace.as_deref());
        let mut session = Session {
            counted: self.metrics.watch_begins(call.row),
            core: Arc::clone(self),
            shape: format.shape,
            filter,
            prefix,
            call,
            watcher: None,
            pending: VecDeque::new(),
            deadline: now + limit,
            bookmark_at: bookmarks.then(|| now + BOOKMARK_EVERY),
            bookmarked: after,
            columns_sent: false,
            ended: false,
        };
        for event in first {
            session.push_as(&event, WatchKind::Added);
        }
        if let Some(revision) = initial {
            session.push_bookmark(revision, true);
        }
        match watcher {
            Ok(watcher) => session.watcher = Some(watcher),
            Err(end) => session.end(&end),
        }
        let frames = stream::unfold(session, |mut session| async move {
            let bytes = session.next().await?;
            Some((Ok::<_, Infallible>(Frame::data(bytes)), session))
        });
        let mut response =
            Response::new(StreamBody::new(frames).map_err(|never| match never {}).boxed_unsync());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        Ok(response)
    }
}

/// One client's watch.
struct Session {
    core: Arc<Core>,
    call: Call,
    filter: Filter,
    shape: Shape,
    prefix: String,
    watcher: Option<Watcher>,
    /// Lines not yet sent. It only grows while it is empty, so it is bounded by one look into the ring.
    pending: VecDeque<Bytes>,
    deadline: Duration,
    bookmark_at: Option<Duration>,
    bookmarked: Revision,
    columns_sent: bool,
    ended: bool,
    /// Counts this watch for as long as it lives.
    #[expect(dead_code, reason = "dropping it is what it is for")]
    counted: Watching,
}

impl Session {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(chunk) = self.take_chunk() {
                return Some(chunk);
            }
            if self.ended {
                return None;
            }
            let watcher = self.watcher.as_mut()?;
            let wake_at = self.bookmark_at.map_or(self.deadline, |at| at.min(self.deadline));
            let wait = wake_at.saturating_sub(self.core.clock.elapsed());
            coracle_clock::select! {
                () = self.core.draining.cancelled() => self.ended = true,
                () = self.core.clock.sleep(wait) => self.time_passed(),
                news = watcher.next() => match news {
                    Ok(events) => self.push_all(&events),
                    Err(end) => self.end(&end),
                },
            }
        }
    }

    fn take_chunk(&mut self) -> Option<Bytes> {
        let first = self.pending.pop_front()?;
        if self.pending.is_empty() || first.len() >= CHUNK_BYTES {
            return Some(first);
        }
        let mut chunk = BytesMut::from(first);
        while let Some(line) = self.pending.front() {
            if chunk.len() + line.len() > CHUNK_BYTES {
                break;
            }
            chunk.extend_from_slice(line);
            self.pending.pop_front();
        }
        Some(chunk.freeze())
    }

    /// A timer fired: time for a bookmark, or the end. What has happened by now is still told in both cases.
    fn time_passed(&mut self) {
        let now = self.core.clock.elapsed();
        match self.watcher.as_mut().map(|watcher| (watcher.ready(), watcher.cursor())) {
            Some((Ok(events), cursor)) => {
                self.push_all(&events);
                if self.bookmark_at.is_some() && cursor > self.bookmarked {
                    self.push_bookmark(cursor, false);
                }
            }
            Some((Err(end), _)) => self.end(&end),
            None => {}
        }
        self.bookmark_at = self.bookmark_at.map(|_| now + BOOKMARK_EVERY);
        if now >= self.deadline {
            self.ended = true;
        }
    }

    fn push_all(&mut self, events: &[Arc<Event>]) {
        for event in events {
            if self.ended {
                return;
            }
            if event.key.starts_with(self.prefix.as_bytes()) {
                self.push(event);
            }
        }
    }

    fn push(&mut self, event: &Arc<Event>) {
        if event.new.is_none() && event.old.is_none() {
            // A removal of something that history no longer shows: the client has to look afresh.
            return self.end(&WatchEnd::TooOld { requested: event.revision, oldest: event.revision });
        }
        let kind = if self.filter.is_everything() {
            view(event.old.is_some(), event.new.is_some())
        } else {
            let matches = |stored: Option<&Bytes>| {
                stored.is_some_and(|stored| {
                    self.decode(stored, event.revision).is_some_and(|object| self.filter.matches(&object))
                })
            };
            view(matches(event.old.as_ref()), matches(event.new.as_ref()))
        };
        if let Some(kind) = kind {
            self.push_as(event, kind);
        }
    }

    fn push_as(&mut self, event: &Event, kind: WatchKind) {
        let as_stored = self.call.row.strategy.stored_as_served();
        let line = if self.shape == Shape::Object && as_stored {
            event.line(kind)
        } else {
            event.shown(kind).and_then(|stored| self.decode(stored, event.revision)).and_then(|object| {
                let shown = match self.shape {
                    Shape::Object => object,
                    Shape::PartialObject(version) => partial(&object, version),
                    Shape::Table(version) => {
                        let metadata = json!({ "resourceVersion": event.revision.to_string() });
                        let columns = !std::mem::replace(&mut self.columns_sent, true);
                        self.core.table(&self.call, &[&object], columns, &metadata, version).ok()?
                    }
                };
                Some(line(kind.as_str(), &shown))
            })
        };
        match line {
            Some(line) => self.pending.push_back(line),
            None => self.fail(&Status::internal("a stored object could not be read")),
        }
    }

    fn decode(&self, stored: &[u8], revision: Revision) -> Option<Value> {
        let object = object::decode(stored, revision).ok()?;
        let strategy = self.call.row.strategy;
        Some(if strategy.stored_as_served() { object } else { strategy.from_storage(object) })
    }

    fn push_bookmark(&mut self, revision: Revision, initial_events_end: bool) {
        self.bookmarked = revision;
        let mut metadata = json!({ "resourceVersion": revision.to_string() });
        if initial_events_end {
            metadata["annotations"] = json!({ INITIAL_EVENTS_END: "true" });
        }
        let (kind, api_version) = match self.shape {
            Shape::Object => (self.call.row.kind, self.call.row.api_version()),
            Shape::PartialObject(version) => ("PartialObjectMetadata", format!("meta.k8s.io/{version}")),
            Shape::Table(version) => {
                let mut table = json!({
                    "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": { "resourceVersion": metadata["resourceVersion"] },
                    "columnDefinitions": null, "rows": [],
                });
                if initial_events_end {
                    // A table has no annotations of its own: the object of its one row carries them.
                    let object = json!({
                        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                    });
                    table["rows"] = json!([{ "cells": [], "object": object }]);
                }
                return self.pending.push_back(line("BOOKMARK", &table));
            }
        };
        let object = json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata });
        self.pending.push_back(line("BOOKMARK", &object));
    }

    fn end(&mut self, end: &WatchEnd) {
        match end {
            WatchEnd::TooOld { requested, oldest } => {
                self.fail(&Status::expired(format!("too old resource version: {requested} ({oldest})")));
            }
            WatchEnd::Closed => self.ended = true,
            WatchEnd::Store(error) => self.fail(&store_failed(error)),
        }
    }

    fn fail(&mut self, status: &Status) {
        self.pending.push_back(line("ERROR", &status.to_json()));
        self.ended = true;
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n"))
}
