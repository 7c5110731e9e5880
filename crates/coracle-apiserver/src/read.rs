//! get and list: stored bytes, with their revision spliced in, sent as they are.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use coracle_api::field::{FieldError, Path};
use coracle_api::status::Status;
use coracle_api::table::{self, IncludeObject};
use coracle_store::{KeyValue, ListRequest, Revision, StoreError};
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::body::Body;
use crate::call::{Call, Filter};
use crate::hub::Scope;
use crate::negotiate::{Format, Shape};
use crate::object;
use crate::server::{Core, store_failed};

const TOO_OLD_WITH_TOKEN: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// About how many bytes of a list are made at a time.
const PIECE_BYTES: usize = 32 * 1024;

/// Fewest keys read at once when a selector may throw most of them away.
const FILTERED_PAGE: usize = 500;

impl Core {
    /// The stored object that a call names, decoded in the served form, with its key.
    pub(crate) async fn current(&self, call: &Call) -> Result<Option<(Value, KeyValue)>, Status> {
        let (found, _) = self.store.get(&Bytes::from(call.key())).await.map_err(|e| store_failed(&e))?;
        found.map(|kv| Ok((self.served(call.row, &kv)?, kv))).transpose()
    }

    /// A stored object in the form that `row` serves.
    pub(crate) fn served(
        &self,
        row: &coracle_api::catalogue::Resource,
        kv: &KeyValue,
    ) -> Result<Value, Status> {
        let object = object::decode(&kv.value, kv.mod_revision).map_err(unreadable)?;
        Ok(if row.strategy.stored_as_served() { object } else { row.strategy.from_storage(object) })
    }

    pub(crate) async fn get(&self, call: &Call) -> Result<Response<Body>, Status> {
        let format = call.format()?;
        let wanted = resource_version(call.query.get("resourceVersion"))?.unwrap_or_default();
        let (found, revision) =
            self.store.get(&Bytes::from(call.key())).await.map_err(|e| store_failed(&e))?;
        if wanted > revision {
            return Err(too_large_revision(wanted, revision));
        }
        let kv = found.ok_or_else(|| call.not_found())?;
        if format.shape == Shape::Object && call.row.strategy.stored_as_served() {
            let mut out = Vec::with_capacity(kv.value.len() + 48);
            object::write_object(&mut out, &kv.value, kv.mod_revision).map_err(unreadable)?;
            return Ok(format.bytes(StatusCode::OK, out));
        }
        self.answer(call, format, StatusCode::OK, &self.served(call.row, &kv)?)
    }

    /// Sends one object in the shape that the client asked for.
    pub(crate) fn answer(
        &self,
        call: &Call,
        format: Format,
        code: StatusCode,
        served: &Value,
    ) -> Result<Response<Body>, Status> {
        Ok(match format.shape {
            Shape::Object => format.value(code, served),
            Shape::PartialObject(version) => format.value(code, &partial(served, version)),
            Shape::Table(version) => {
                let metadata = json!({ "resourceVersion": served.pointer("/metadata/resourceVersion") });
                let table = self.table(call, &[served], true, &metadata, version)?;
                format.value(code, &table)
            }
        })
    }

    pub(crate) fn table(
        &self,
        call: &Call,
        objects: &[&Value],
        with_columns: bool,
        metadata: &Value,
        version: &str,
    ) -> Result<Value, Status> {
        let include = include_object(call)?;
        let mut table = table::render(call.row, objects, include, with_columns, metadata, self.clock.now());
        if version != "v1" {
            table["apiVersion"] = format!("meta.k8s.io/{version}").into();
        }
        Ok(table)
    }

    pub(crate) async fn list(&self, call: &Call) -> Result<Response<Body>, Status> {
        let format = call.format()?;
        let page = self.list_page(call, &ListOptions::of(call)?).await?;
        let metadata = page.metadata();
        Ok(match format.shape {
            Shape::Object if call.row.strategy.stored_as_served() => {
                for kv in &page.items {
                    object::head_len(&kv.value).map_err(unreadable)?;
                }
                let size: usize = page.items.iter().map(|kv| kv.value.len() + 40).sum();
                let head = json!({
                    "kind": format!("{}List", call.row.kind),
                    "apiVersion": call.row.api_version(),
                    "metadata": metadata,
                });
                let mut pieces = pieces(&head, page.items);
                if format.in_pieces(size) {
                    format.pieces(pieces)
                } else {
                    let mut out = Vec::with_capacity(size + 256);
                    pieces.by_ref().for_each(|piece| out.extend_from_slice(&piece));
                    format.bytes(StatusCode::OK, out)
                }
            }
            Shape::Table(version) => {
                let objects = self.served_all(call, &page.items)?;
                let objects: Vec<&Value> = objects.iter().collect();
                format.value(StatusCode::OK, &self.table(call, &objects, true, &metadata, version)?)
            }
            shape => {
                let mut items = self.served_all(call, &page.items)?;
                let (kind, api_version) = match shape {
                    Shape::PartialObject(version) => {
                        items = items.iter().map(|item| partial(item, version)).collect();
                        ("PartialObjectMetadata".to_owned(), format!("meta.k8s.io/{version}"))
                    }
                    _ => {
                        for item in items.iter_mut().filter_map(Value::as_object_mut) {
                            item.shift_remove("kind");
                            item.shift_remove("apiVersion");
                        }
                        (call.row.kind.to_owned(), call.row.api_version())
                    }
                };
                let list = json!({
                    "kind": format!("{kind}List"), "apiVersion": api_version, "metadata": metadata, "items": items,
                });
                format.value(StatusCode::OK, &list)
            }
        })
    }

    fn served_all(&self, call: &Call, items: &[KeyValue]) -> Result<Vec<Value>, Status> {
        items.iter().map(|kv| self.served(call.row, kv)).collect()
    }

    /// Reads a page of the objects that a call selects.
    pub(crate) async fn list_page(&self, call: &Call, options: &ListOptions) -> Result<Page, Status> {
        let filter = call.filter()?;
        let everything = filter.is_everything();
        let (scope, rest) = call.narrow(filter);
        let prefix = call.row.storage_list_prefix(call.namespace.as_deref());
        // What the selectors say of keys is not read and thrown away.
        let within = match &scope {
            Scope::Object(start) | Scope::Namespace(start) => start.clone(),
            Scope::All | Scope::Indexed(_) => prefix.clone().into(),
        };
        let mut request = ListRequest { prefix: within, at: options.at, ..ListRequest::default() };
        if let Some(start) = &options.start {
            // A page ends with a key; the token names the smallest key after it.
            let after = start.strip_suffix('\0').unwrap_or(start);
            request.after = Some(format!("{prefix}{after}").into());
        }
        let mut items: Vec<KeyValue> = Vec::new();
        loop {
            let missing = options.limit.map_or(0, |limit| limit - items.len());
            request.limit = match (missing, everything) {
                (0, _) => 0,
                (missing, true) => missing,
                (missing, false) => missing.max(FILTERED_PAGE),
            };
            let page = self.store.list(&request).await.map_err(|error| match error {
                StoreError::Compacted { requested, .. } => options.expired(requested),
                other => store_failed(&other),
            })?;
            if options.not_older_than > page.revision {
                return Err(too_large_revision(options.not_older_than, page.revision));
            }
            let last_read = page.items.last().map(|kv| kv.key.clone());
            let read = page.items.len();
            let mut cut = None;
            for (index, kv) in page.items.into_iter().enumerate() {
                if !self.selects(&scope, &rest, &kv)? {
                    continue;
                }
                items.push(kv);
                if options.limit == Some(items.len()) {
                    cut = Some(index + 1);
                    break;
                }
            }
            // The rest of the pages is read at the revision of the first.
            request.at = Some(page.revision);
            let remaining = page.remaining + cut.map_or(0, |cut| read - cut);
            if cut.is_some() || page.remaining == 0 {
                let more = (remaining > 0).then(|| items.last().map(|kv| kv.key.clone())).flatten();
                return Ok(Page {
                    continue_token: more.map(|key| token(&key[prefix.len().min(key.len())..], page.revision)),
                    remaining: (everything && remaining > 0 && options.limit.is_some()).then_some(remaining),
                    revision: page.revision,
                    items,
                });
            }
            request.after = last_read;
        }
    }

    fn selects(&self, scope: &Scope, rest: &Filter, kv: &KeyValue) -> Result<bool, Status> {
        let row = rest.row;
        let inside = match scope {
            Scope::All | Scope::Namespace(_) => true,
            Scope::Object(key) => kv.key == key,
            Scope::Indexed(value) => {
                let field = row.strategy.indexed_field().unwrap_or_default();
                object::text_at(&kv.value, field).unwrap_or_default() == **value
            }
        };
        Ok(inside && (rest.is_everything() || rest.matches(&self.served(row, kv)?)))
    }
}

/// A list, piece by piece: the stored bytes of readable objects in a frame made of the members of `head`.
fn pieces(head: &Value, items: Vec<KeyValue>) -> impl Iterator<Item = Vec<u8>> + Send + use<> {
    let mut head = head.to_string().into_bytes();
    head.pop();
    head.extend_from_slice(br#","items":["#);
    let mut items = items.into_iter();
    let (mut next, mut first) = (Some(head), true);
    std::iter::from_fn(move || {
        let mut piece = next.take()?;
        while piece.len() < PIECE_BYTES {
            let Some(kv) = items.next() else {
                piece.extend_from_slice(b"]}");
                return Some(piece);
            };
            if !std::mem::take(&mut first) {
                piece.push(b',');
            }
            // It has been seen to be readable.
            let _ = object::write_item(&mut piece, &kv.value, kv.mod_revision);
        }
        next = Some(Vec::with_capacity(PIECE_BYTES));
        Some(piece)
    })
}

/// What the rows of a table carry of their objects.
pub(crate) fn include_object(call: &Call) -> Result<IncludeObject, Status> {
    match call.query.get("includeObject") {
        "" | "Metadata" => Ok(IncludeObject::Metadata),
        "None" => Ok(IncludeObject::None),
        "Object" => Ok(IncludeObject::Object),
        other => {
            let supported = ["None", "Metadata", "Object"];
            let error = FieldError::not_supported(&Path::new("includeObject"), other, &supported);
            Err(Status::invalid("meta.k8s.io", "TableOptions", "", &[error]))
        }
    }
}

/// A page of a list.
pub(crate) struct Page {
    pub(crate) items: Vec<KeyValue>,
    pub(crate) revision: Revision,
    continue_token: Option<String>,
    remaining: Option<usize>,
}

impl Page {
    pub(crate) fn metadata(&self) -> Value {
        let mut metadata = Map::new();
        metadata.insert("resourceVersion".into(), self.revision.to_string().into());
        if let Some(token) = &self.continue_token {
            metadata.insert("continue".into(), token.as_str().into());
        }
        if let Some(remaining) = self.remaining {
            metadata.insert("remainingItemCount".into(), remaining.into());
        }
        metadata.into()
    }
}

/// What a list asks for, checked.
#[derive(Debug, Default)]
pub(crate) struct ListOptions {
    limit: Option<usize>,
    at: Option<Revision>,
    not_older_than: Revision,
    /// Key to go on from, without the prefix.
    start: Option<String>,
}

impl ListOptions {
    /// Everything, in a state that is at least as new as `revision`.
    pub(crate) fn not_older_than(revision: Revision) -> Self {
        ListOptions { not_older_than: revision, ..ListOptions::default() }
    }

    pub(crate) fn of(call: &Call) -> Result<Self, Status> {
        let query = &call.query;
        let limit = query.number("limit")?.and_then(|limit| usize::try_from(limit).ok()).filter(|n| *n > 0);
        let (wanted, how) = (query.get("resourceVersion"), query.get("resourceVersionMatch"));
        let token = query.get("continue");
        validate(wanted, how, token, query.has("sendInitialEvents"))?;
        let revision = resource_version(wanted)?;
        if !token.is_empty() {
            if !wanted.is_empty() && wanted != "0" {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let (start, at) = read_token(token)?;
            return Ok(ListOptions { limit, at, not_older_than: Revision(0), start: Some(start) });
        }
        let exact = how == "Exact"
            // Without a match rule, a limit makes the revision exact, as upstream has it.
            || (how.is_empty() && limit.is_some() && revision.is_some_and(|revision| revision.0 > 0));
        Ok(match revision {
            Some(revision) if exact => ListOptions { limit, at: Some(revision), ..ListOptions::default() },
            Some(revision) => ListOptions { limit, not_older_than: revision, ..ListOptions::default() },
            None => ListOptions { limit, ..ListOptions::default() },
        })
    }

    /// 410 for a revision that is no longer there.
    fn expired(&self, at: Revision) -> Status {
        match &self.start {
            Some(start) => {
                let mut status = Status::expired(TOO_OLD_WITH_TOKEN);
                status.continue_token = Some(encode_token(start, -1));
                status
            }
            None => Status::expired(format!("The resourceVersion for the provided list is too old: {at}")),
        }
    }
}

fn validate(wanted: &str, how: &str, token: &str, initial_events: bool) -> Result<(), Status> {
    let path = Path::new("resourceVersionMatch");
    let mut errors = Vec::new();
    if !how.is_empty() {
        if wanted.is_empty() {
            errors.push(FieldError::forbidden(
                &path,
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if !token.is_empty() {
            errors.push(FieldError::forbidden(
                &path,
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
        if how != "Exact" && how != "NotOlderThan" {
            errors.push(FieldError::not_supported(&path, how, &["Exact", "NotOlderThan", ""]));
        }
        if how == "Exact" && wanted == "0" {
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            errors.push(FieldError::forbidden(&path, why));
        }
    }
    if initial_events {
        let path = Path::new("sendInitialEvents");
        errors.push(FieldError::forbidden(&path, "sendInitialEvents is forbidden for list"));
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors)) }
}

/// Parses a resourceVersion; `None` if it is empty.
pub(crate) fn resource_version(text: &str) -> Result<Option<Revision>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(|number| Some(Revision(number))).map_err(|_| {
        let why = format!("strconv.ParseUint: parsing {text:?}: invalid syntax");
        let error = FieldError::invalid(&Path::new("resourceVersion"), text, why);
        Status::invalid("meta.k8s.io", "ListOptions", "", &[error])
    })
}

/// 504 for a revision that has not happened yet.
pub(crate) fn too_large_revision(wanted: Revision, current: Revision) -> Status {
    let mut status = Status::timeout(&format!("Too large resource version: {wanted}, current: {current}"), 1);
    if let Some(details) = status.details.as_mut() {
        details.causes.push(coracle_api::status::Cause {
            reason: "ResourceVersionTooLarge".to_owned(),
            message: "Too large resource version".to_owned(),
            field: String::new(),
        });
    }
    status
}

/// A stored object that this server did not write.
pub(crate) fn unreadable(error: object::NotAnObject) -> Status {
    tracing::error!(%error, "unreadable object in the store");
    Status::internal(&error.to_string())
}

/// An object's metadata alone.
pub(crate) fn partial(object: &Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": object.get("metadata"),
    })
}

fn token(last: &[u8], revision: Revision) -> String {
    let start = format!("{}\0", String::from_utf8_lossy(last));
    encode_token(&start, i64::try_from(revision.0).unwrap_or(i64::MAX))
}

fn encode_token(start: &str, revision: i64) -> String {
    URL_SAFE_NO_PAD.encode(json!({ "v": "meta.k8s.io/v1", "rv": revision, "start": start }).to_string())
}

fn read_token(text: &str) -> Result<(String, Option<Revision>), Status> {
    let bad = |why: String| {
        Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
    };
    let trimmed = text.trim_end_matches('=');
    let data = URL_SAFE_NO_PAD
        .decode(trimmed)
        .or_else(|_| STANDARD_NO_PAD.decode(trimmed))
        .map_err(|error| bad(error.to_string()))?;
    let token: Value = serde_json::from_slice(&data).map_err(|error| bad(error.to_string()))?;
    let version = token.get("v").and_then(Value::as_str).unwrap_or_default();
    if version != "meta.k8s.io/v1" {
        return Err(bad(format!("server does not recognize this encoded version {version}")));
    }
    let revision = token.get("rv").and_then(Value::as_i64).unwrap_or(0);
    if revision == 0 {
        return Err(bad("incorrect encoded start resourceVersion (version meta.k8s.io/v1)".to_owned()));
    }
    let start = token.get("start").and_then(Value::as_str).unwrap_or_default();
    if start.is_empty() {
        return Err(bad("encoded start key empty (version meta.k8s.io/v1)".to_owned()));
    }
    // The key is below the list's prefix and stays there.
    if start.split('/').any(|part| matches!(part.trim_end_matches('\0'), "." | ".." | "")) {
        return Err(bad(start.to_owned()));
    }
    Ok((start.to_owned(), u64::try_from(revision).ok().map(Revision)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_go_round_and_foreign_ones_are_refused() {
        let good = token(b"default/a", Revision(7));
        assert_eq!(read_token(&good).unwrap(), ("default/a\0".to_owned(), Some(Revision(7))));
        assert_eq!(read_token(&encode_token("a\0", -1)).unwrap().1, None);
        for bad in ["%%%", "abc", &encode_token("../b", 7), &encode_token("a", 0), &encode_token("", 3)] {
            let status = read_token(bad).unwrap_err();
            assert_eq!(status.code, 400);
            assert!(
                status.message.starts_with("invalid continue token: continue key is not valid"),
                "{status}"
            );
        }
    }
}
