//! watch: the hub's events, filtered for one client, as a stream of lines.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use coracle_api::field::{FieldError, Path};
use coracle_api::status::Status;
use coracle_store::{KeyValue, Revision};
use futures::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};

use crate::body::Body;
use crate::call::{Call, Filter};
use crate::hub::{self, Attributes, Event, Side, WatchEnd, WatchKind, Watcher};
use crate::metrics::Watching;
use crate::negotiate::{Encoding, Shape};
use crate::object;
use crate::read::{ListOptions, include_object, partial, resource_version};
use crate::server::{Core, store_failed};

/// How often a watch that asked for bookmarks gets one.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// And how often at least, if nothing happens that it would tell of: within the age of the history, so that it can be
/// resumed.
const BOOKMARK_IDLE: Duration = Duration::from_secs(180);
/// Watches without a limit of their own end after this long or up to twice that, as upstream's.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);
/// Lines are joined up to this size before they are sent: a record of TLS holds no more.
const CHUNK_BYTES: usize = 16 * 1024;

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
        let (mut first, mut initial_end) = (Vec::new(), None);
        let after = match begin {
            Begin::After(revision) => revision,
            Begin::Now => self.store.revision().await.map_err(|error| store_failed(&error))?,
            Begin::Everything { bookmark, not_older_than } => {
                let page = self.list_page(&call, &ListOptions::not_older_than(not_older_than)).await?;
                first = page.items;
                initial_end = bookmark.then_some(page.revision);
                page.revision
            }
        };
        let (scope, rest) = call.narrow(filter);
        let watcher = self.hub.watch(call.row.storage_prefix, scope, after).await;
        let now = self.clock.elapsed();
        let bookmarks = call.query.flag("allowWatchBookmarks");
        let prefix = call.row.storage_list_prefix(call.namespace.as_deref());
        let mut session = Session {
            counted: self.metrics.watch_begins(call.row),
            core: Arc::clone(self),
            shape: format.shape,
            rest,
            prefix,
            // They have told all they can, and there are many watches.
            call: Call { headers: HeaderMap::new(), ..call },
            watcher: None,
            initial: first.into_iter(),
            initial_end,
            events: VecDeque::new(),
            pending: VecDeque::new(),
            deadline: now + limit,
            bookmark_at: bookmarks.then(|| now + BOOKMARK_EVERY),
            bookmark_pause: BOOKMARK_EVERY,
            bookmark_due: None,
            bookmarked: after,
            columns_sent: false,
            ended: None,
        };
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

/// One client's watch. What it holds is bounded by one look into the ring, as references, and one chunk of lines: a
/// client that does not read keeps nothing else alive.
struct Session {
    core: Arc<Core>,
    call: Call,
    /// What the scope of the watcher does not tell.
    rest: Filter,
    shape: Shape,
    /// What the keys of the request's namespace begin with.
    prefix: String,
    watcher: Option<Watcher>,
    /// What there was in the beginning and has not been sent, and the revision of the bookmark behind it.
    initial: std::vec::IntoIter<KeyValue>,
    initial_end: Option<Revision>,
    /// Events that have not been sent. There are new ones only when all before them are.
    events: VecDeque<Arc<Event>>,
    /// Lines that have not been sent.
    pending: VecDeque<Bytes>,
    deadline: Duration,
    bookmark_at: Option<Duration>,
    /// The time between bookmarks, which grows as long as there are no events between them.
    bookmark_pause: Duration,
    /// The bookmark behind the events.
    bookmark_due: Option<Revision>,
    bookmarked: Revision,
    columns_sent: bool,
    /// What is said behind everything else, if anything; nothing comes after.
    ended: Option<Option<Bytes>>,
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
            if self.ended.is_some() {
                return None;
            }
            let watcher = self.watcher.as_mut()?;
            let wake_at = self.bookmark_at.map_or(self.deadline, |at| at.min(self.deadline));
            let wait = wake_at.saturating_sub(self.core.clock.elapsed());
            coracle_clock::select! {
                () = self.core.draining.cancelled() => self.ended = Some(None),
                () = self.core.clock.sleep(wait) => self.time_passed(),
                news = watcher.next() => match news {
                    Ok(events) => self.events.extend(events),
                    Err(end) => self.end(&end),
                },
            }
        }
    }

    /// The next lines, joined.
    fn take_chunk(&mut self) -> Option<Bytes> {
        let first = self.next_line()?;
        let mut joined = BytesMut::new();
        let mut size = first.len();
        while size < CHUNK_BYTES
            && let Some(line) = self.next_line()
        {
            size += line.len();
            if size > CHUNK_BYTES {
                self.pending.push_front(line);
                break;
            }
            if joined.is_empty() {
                joined.extend_from_slice(&first);
            }
            joined.extend_from_slice(&line);
        }
        Some(if joined.is_empty() { first } else { joined.freeze() })
    }

    fn next_line(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.pending.pop_front() {
                return Some(line);
            }
            if let Some(kv) = self.initial.next() {
                // What is there already is an event that adds it, at its own revision.
                self.push_line(WatchKind::Added, &kv.value, kv.mod_revision, None);
            } else if let Some(revision) = self.initial_end.take() {
                self.push_bookmark(revision, true);
            } else if let Some(event) = self.events.pop_front() {
                self.push(&event);
            } else if let Some(revision) = self.bookmark_due.take() {
                self.push_bookmark(revision, false);
            } else {
                return self.ended.as_mut()?.take();
            }
        }
    }

    /// A timer fired: time for a bookmark, or the end. What has happened by now is still told in both cases.
    fn time_passed(&mut self) {
        let now = self.core.clock.elapsed();
        match self.watcher.as_mut().map(|watcher| (watcher.ready(), watcher.cursor())) {
            Some((Ok(events), cursor)) => {
                self.events.extend(events);
                if self.bookmark_at.is_some() && cursor > self.bookmarked {
                    self.bookmark_due = Some(cursor);
                }
            }
            Some((Err(end), _)) => self.end(&end),
            None => {}
        }
        self.bookmark_pause = (self.bookmark_pause * 2).min(BOOKMARK_IDLE);
        self.bookmark_at = self.bookmark_at.map(|_| now + self.bookmark_pause);
        if now >= self.deadline && self.ended.is_none() {
            self.ended = Some(None);
        }
    }

    fn push(&mut self, event: &Arc<Event>) {
        if !event.key.starts_with(self.prefix.as_bytes()) {
            return;
        }
        if event.new.is_none() && event.old.is_none() {
            // A removal of something that history no longer shows: the client has to look afresh.
            return self.end(&WatchEnd::TooOld { requested: event.revision, oldest: event.revision });
        }
        let (mut old, mut new) =
            self.watcher.as_ref().map_or((false, false), |watcher| watcher.covers(event));
        if !self.rest.is_everything() {
            old = old && self.selects(event, Side::Old);
            new = new && self.selects(event, Side::New);
        }
        let Some(kind) = view(old, new) else { return };
        if let Some(stored) = event.shown(kind) {
            self.bookmark_pause = BOOKMARK_EVERY / 2;
            self.push_line(kind, stored, event.revision, Some(event));
        }
    }

    fn selects(&self, event: &Arc<Event>, side: Side) -> bool {
        let row = self.call.row;
        let make = |stored: &[u8]| {
            self.core.metrics.watch_decoded();
            let object = self.decode(stored, event.revision)?;
            let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
            let text = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
            let labels = labels.into_iter().flatten().filter_map(text).collect();
            Some(Attributes { labels, fields: row.selectable_values(&object) })
        };
        let attributes = if row.strategy.stored_as_served() {
            event.attributes(side, make)
        } else {
            // Kinds that share their storage differ in what can be selected.
            event.side(side).and_then(|stored| make(stored)).map(Arc::new)
        };
        attributes.is_some_and(|attributes| self.rest.selects(&attributes))
    }

    /// Queues the line that shows `stored`, which is the one of `event` if it comes from one.
    fn push_line(&mut self, kind: WatchKind, stored: &[u8], revision: Revision, event: Option<&Arc<Event>>) {
        let as_stored = self.call.row.strategy.stored_as_served();
        let line = if self.shape == Shape::Object && as_stored {
            match event {
                Some(event) => event.line(kind),
                None => hub::line(kind, stored, revision),
            }
        } else if let Shape::PartialObject(version) = self.shape
            && as_stored
        {
            partial_line(kind, stored, revision, version)
        } else {
            self.decode(stored, revision).and_then(|object| {
                let shown = match self.shape {
                    Shape::Object => object,
                    Shape::PartialObject(version) => partial(&object, version),
                    Shape::Table(version) => {
                        let metadata = json!({ "resourceVersion": revision.to_string() });
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
        let end = if initial_events_end {
            format!(r#","annotations":{{"{INITIAL_EVENTS_END}":"true"}}"#)
        } else {
            String::new()
        };
        let of_kind = |kind: &str, version: &dyn std::fmt::Display| {
            format!(
                r#"{{"kind":"{kind}","apiVersion":"{version}","metadata":{{"resourceVersion":"{revision}"{end}}}}}"#
            )
        };
        let object = match self.shape {
            Shape::Object => of_kind(self.call.row.kind, &self.call.row.api_version()),
            Shape::PartialObject(version) => {
                of_kind("PartialObjectMetadata", &format_args!("meta.k8s.io/{version}"))
            }
            Shape::Table(version) => {
                let mut table = json!({
                    "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"),
                    "metadata": { "resourceVersion": revision.to_string() },
                    "columnDefinitions": null, "rows": [],
                });
                if initial_events_end {
                    // A table has no annotations of its own: the object of its one row carries them.
                    let metadata = json!({
                        "resourceVersion": revision.to_string(), "annotations": { INITIAL_EVENTS_END: "true" },
                    });
                    let object = json!({
                        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                    });
                    table["rows"] = json!([{ "cells": [], "object": object }]);
                }
                table.to_string()
            }
        };
        self.pending.push_back(line("BOOKMARK", &object));
    }

    fn end(&mut self, end: &WatchEnd) {
        match end {
            WatchEnd::TooOld { requested, oldest } => {
                self.fail(&Status::expired(format!("too old resource version: {requested} ({oldest})")));
            }
            WatchEnd::Closed => self.ended = Some(None),
            WatchEnd::Store(error) => self.fail(&store_failed(error)),
        }
    }

    /// Ends the watch with an error behind what has been told; what has not is seen by the next list.
    fn fail(&mut self, status: &Status) {
        self.initial = Vec::new().into_iter();
        self.events.clear();
        (self.initial_end, self.bookmark_due) = (None, None);
        self.ended = Some(Some(line("ERROR", &status.to_json())));
    }
}

fn line(kind: &str, object: &impl std::fmt::Display) -> Bytes {
    Bytes::from(format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n"))
}

/// What is stored has its metadata cut out, without being decoded: those who follow every kind ask for that.
fn partial_line(kind: WatchKind, stored: &[u8], revision: Revision, version: &str) -> Option<Bytes> {
    let mut out = format!("{{\"type\":\"{}\",\"object\":", kind.as_str()).into_bytes();
    object::write_partial(&mut out, stored, revision, version).ok()?;
    out.extend_from_slice(b"}\n");
    Some(out.into())
}
