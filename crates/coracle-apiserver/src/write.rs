//! create, update and patch: read, prepare, commit with compare-and-set, and again if somebody was faster.

use bytes::Bytes;
use coracle_api::catalogue::{self, Resource};
use coracle_api::metadata;
use coracle_api::patch;
use coracle_api::status::Status;
use coracle_api::{Value, decode};
use coracle_store::{Compare, KeyValue, Op, Revision, Txn, TxnOutcome};
use http::{Response, StatusCode};

use crate::body::{self, Body};
use crate::call::{Call, FieldValidation};
use crate::negotiate::{Format, Shape, content_type};
use crate::object;
use crate::prepare::{self, Birth, Part};
use crate::read::unreadable;
use crate::server::{Core, add_warnings, store_failed};

/// How often a name is generated before giving up, as upstream's.
const GENERATE_NAME_TRIES: usize = 8;
/// How often a write that states no revision is tried again when somebody else was faster.
pub(crate) const CONFLICT_TRIES: usize = 64;
/// The same for patches, as upstream's.
pub(crate) const PATCH_TRIES: usize = 5;

pub(crate) const PATCH_TYPES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];

/// An object after a write.
pub(crate) struct Written {
    /// In the served form.
    pub(crate) object: Value,
    /// In the stored form, with the revision of the write.
    pub(crate) stored: Option<(Bytes, Revision)>,
    pub(crate) warnings: Vec<String>,
}

/// What commits together with an object.
#[derive(Debug, Default)]
pub(crate) struct Along {
    pub(crate) compares: Vec<Compare>,
    pub(crate) ops: Vec<Op>,
}

/// How one attempt to commit ended.
pub(crate) enum Attempt {
    Done(Revision),
    /// Somebody else was faster; the state of each compared key.
    Again(Vec<Option<KeyValue>>),
}

/// What a patch of this media type makes of `current`.
pub(crate) fn patched(
    row: &Resource,
    media_type: &str,
    current: &Value,
    patch: &Value,
) -> Result<Value, Status> {
    match media_type {
        "application/json-patch+json" => patch::json(current, patch),
        "application/merge-patch+json" => patch::merge(current, patch),
        _ => patch::strategic(row, current, patch),
    }
}

impl Core {
    pub(crate) async fn commit(
        &self,
        key: &Bytes,
        seen: Revision,
        op: Op,
        along: Along,
    ) -> Result<Attempt, Status> {
        let mut compares = vec![Compare { key: key.clone(), mod_revision: seen }];
        compares.extend(along.compares);
        let mut ops = vec![op.clone()];
        ops.extend(along.ops);
        match self.store.txn(Txn { compares, ops }).await.map_err(|error| store_failed(&error))? {
            TxnOutcome::Committed(revision) => {
                self.placed.wrote(&op);
                Ok(Attempt::Done(revision))
            }
            TxnOutcome::Conflict(states) => Ok(Attempt::Again(states)),
        }
    }

    /// The stored form of an object in the served form.
    pub(crate) fn encode(row: &Resource, object: &Value) -> Bytes {
        if row.strategy.stored_as_served() {
            object::encode(object)
        } else {
            object::encode(&row.strategy.to_storage(object.clone()))
        }
    }

    fn respond(
        &self,
        call: &Call,
        format: Format,
        code: StatusCode,
        written: &Written,
    ) -> Result<Response<Body>, Status> {
        let mut response = match &written.stored {
            Some((stored, revision))
                if format.shape == Shape::Object && call.row.strategy.stored_as_served() =>
            {
                let mut out = Vec::with_capacity(stored.len() + 48);
                object::write_object(&mut out, stored, *revision).map_err(unreadable)?;
                format.bytes(code, out)
            }
            _ => self.answer(call, format, code, &written.object)?,
        };
        add_warnings(response.headers_mut(), &written.warnings);
        Ok(response)
    }

    pub(crate) async fn create(&self, call: &Call, body: Body) -> Result<Response<Body>, Status> {
        let format = call.format()?;
        let validation: FieldValidation = call.query.get("fieldValidation").parse()?;
        let dry_run = call.dry_run()?;
        let bytes = body::read(body, &self.clock).await?;
        let (object, warnings) =
            prepare::decode_body(call.row, &content_type(&call.headers), &bytes, validation)?;
        let mut written = self.create_object(call, object, dry_run).await?;
        written.warnings.splice(0..0, warnings);
        self.respond(call, format, StatusCode::CREATED, &written)
    }

    async fn create_object(&self, call: &Call, mut object: Value, dry_run: bool) -> Result<Written, Status> {
        let row = call.row;
        prepare::place(row, &mut object, call.namespace.as_deref(), &call.name)?;
        let generated = metadata::name(&object).is_empty();
        let mut tries = if generated { GENERATE_NAME_TRIES } else { CONFLICT_TRIES };
        loop {
            let mut along = self.admit(row, &object).await?;
            let mut new = object.clone();
            prepare::admit_node(row, &call.user, &new, None)?;
            self.admit_account(row, &mut new).await?;
            self.admit_priority(row, &mut new).await?;
            let birth = Birth { now: self.clock.now(), uid: self.ids.uid(), suffix: self.ids.name_suffix() };
            prepare::create(row, &mut new, birth)?;
            if let Err(status) = self.allocate(row, &mut new, None, &mut along).await {
                // What exists holds what it asks for: the name is the better answer.
                let key = row.storage_key(metadata::namespace(&new), metadata::name(&new)).into();
                let (found, _) = self.store.get(&key).await.map_err(|error| store_failed(&error))?;
                return Err(match found {
                    Some(_) => Status::already_exists(row.group, row.plural, metadata::name(&new)),
                    None => status,
                });
            }
            let warnings = row.strategy.warnings(&new, None);
            let (namespace, name) = (metadata::namespace(&new).to_owned(), metadata::name(&new).to_owned());
            let key = Bytes::from(row.storage_key(&namespace, &name));
            let stored = Self::encode(row, &new);
            let exists = if dry_run {
                self.store.get(&key).await.map_err(|error| store_failed(&error))?.0.is_some()
            } else {
                let op = Op::Put { key: key.clone(), value: stored.clone() };
                match self.commit(&key, Revision(0), op, along).await? {
                    Attempt::Done(revision) => {
                        prepare::set(&mut new, "resourceVersion", revision.to_string().into());
                        return Ok(Written { object: new, stored: Some((stored, revision)), warnings });
                    }
                    Attempt::Again(states) => states.first().is_some_and(Option::is_some),
                }
            };
            if !exists && dry_run {
                return Ok(Written { object: new, stored: None, warnings });
            }
            if exists && !generated {
                return Err(Status::already_exists(row.group, row.plural, &name));
            }
            // A generated name was taken, or what the object depends on changed under us.
            tries -= 1;
            if tries == 0 {
                return Err(if exists {
                    Status::generate_name_conflict(row.group, row.plural, &name)
                } else {
                    Status::server_timeout(row.group, row.plural, "create", 1)
                });
            }
        }
    }

    /// Admission of new objects that depends on other objects; what was read is part of the transaction.
    async fn admit(&self, row: &Resource, object: &Value) -> Result<Along, Status> {
        let mut along = Along::default();
        if !row.namespaced {
            return Ok(along);
        }
        let name = metadata::namespace(object);
        let Some(namespaces) = catalogue::find("", "v1", "namespaces") else { return Ok(along) };
        let key = Bytes::from(namespaces.storage_key("", name));
        let (found, _) = self.store.get(&key).await.map_err(|error| store_failed(&error))?;
        let namespace = found.as_ref().map(|kv| self.served(namespaces, kv)).transpose()?;
        prepare::admit_to_namespace(row, object, namespace.as_ref(), name)?;
        // The namespace must still be what was read when the object is committed: nothing is ever created in a
        // namespace that is gone.
        along.compares.extend(found.map(|kv| Compare { key, mod_revision: kv.mod_revision }));
        Ok(along)
    }

    fn part(call: &Call) -> Result<Part, Status> {
        match call.subresource.map(|sub| sub.name) {
            None => Ok(Part::Main),
            Some("status") => Ok(Part::Status),
            Some("ephemeralcontainers") => Ok(Part::EphemeralContainers),
            Some("finalize") if prepare::is_namespace(call.row) => Ok(Part::Finalize),
            Some(_) => Err(Status::method_not_allowed(call.row.group, call.row.plural, call.verb.as_str())),
        }
    }

    pub(crate) async fn update(&self, call: &Call, body: Body) -> Result<Response<Body>, Status> {
        let format = call.format()?;
        let part = Self::part(call)?;
        let validation: FieldValidation = call.query.get("fieldValidation").parse()?;
        let dry_run = call.dry_run()?;
        let bytes = body::read(body, &self.clock).await?;
        let (mut object, warnings) =
            prepare::decode_body(call.row, &content_type(&call.headers), &bytes, validation)?;
        prepare::place(call.row, &mut object, call.namespace.as_deref(), &call.name)?;
        let stated = !matches!(prepare::text(&object, "resourceVersion"), "" | "0");
        for _ in 0..CONFLICT_TRIES {
            let Some((current, kv)) = self.current(call).await? else {
                if part == Part::Main && call.row.strategy.allow_create_on_update() {
                    if stated {
                        // An update of a state that no longer exists.
                        return Err(call.not_found());
                    }
                    let mut written = self.create_object(call, object.clone(), dry_run).await?;
                    written.warnings.splice(0..0, warnings);
                    return self.respond(call, format, StatusCode::CREATED, &written);
                }
                return Err(call.not_found());
            };
            let attempt = self.replace(call, part, object.clone(), &current, &kv, dry_run).await?;
            if let Some(mut written) = attempt {
                written.warnings.splice(0..0, warnings);
                return self.respond(call, format, StatusCode::OK, &written);
            }
        }
        Err(Status::modified(call.row.group, call.row.plural, &call.name))
    }

    /// One attempt to replace `current`; `None` if somebody else was faster.
    pub(crate) async fn replace(
        &self,
        call: &Call,
        part: Part,
        mut new: Value,
        current: &Value,
        kv: &KeyValue,
        dry_run: bool,
    ) -> Result<Option<Written>, Status> {
        let row = call.row;
        prepare::update(row, part, &mut new, current)?;
        prepare::admit_node(row, &call.user, &new, Some(current))?;
        if part == Part::EphemeralContainers {
            self.admit_ephemeral(&new).await?;
        }
        self.admit_changed_priority(row, &mut new).await?;
        let mut along = Along::default();
        self.allocate(row, &mut new, Some(current), &mut along).await?;
        let warnings =
            if part == Part::Main { row.strategy.warnings(&new, Some(current)) } else { Vec::new() };
        let finished = prepare::is_finished(row, &new);
        let stored = Self::encode(row, &new);
        let unchanged = stored == kv.value || (new == *current && along.ops.is_empty());
        if dry_run || (unchanged && !finished) {
            return Ok(Some(Written { object: new, stored: None, warnings }));
        }
        let op = if finished {
            self.release(row, &new, &mut along);
            Op::Delete { key: kv.key.clone() }
        } else {
            Op::Put { key: kv.key.clone(), value: stored.clone() }
        };
        match self.commit(&kv.key, kv.mod_revision, op, along).await? {
            Attempt::Done(revision) => {
                prepare::set(&mut new, "resourceVersion", revision.to_string().into());
                Ok(Some(Written { object: new, stored: Some((stored, revision)), warnings }))
            }
            Attempt::Again(_) => Ok(None),
        }
    }

    pub(crate) async fn patch(&self, call: &Call, body: Body) -> Result<Response<Body>, Status> {
        let format = call.format()?;
        let part = Self::part(call)?;
        let validation: FieldValidation = call.query.get("fieldValidation").parse()?;
        let dry_run = call.dry_run()?;
        let media_type = content_type(&call.headers);
        if !PATCH_TYPES.contains(&media_type.as_str()) {
            return Err(Status::unsupported_media_type(&PATCH_TYPES));
        }
        let bytes = body::read(body, &self.clock).await?;
        let patch = decode::json(&bytes)
            .map_err(|complaint| Status::bad_request(format!("error decoding patch: {complaint}")))?;
        for _ in 0..PATCH_TRIES {
            let Some((current, kv)) = self.current(call).await? else { return Err(call.not_found()) };
            let mut new = patched(call.row, &media_type, &current, &patch.value)?;
            decode::check_type(call.row, &mut new)?;
            let warnings = prepare::check_fields(call.row, &mut new, patch.duplicates.clone(), validation)?;
            prepare::place(call.row, &mut new, call.namespace.as_deref(), &call.name)?;
            if let Some(mut written) = self.replace(call, part, new, &current, &kv, dry_run).await? {
                written.warnings.splice(0..0, warnings);
                return self.respond(call, format, StatusCode::OK, &written);
            }
        }
        Err(Status::modified(call.row.group, call.row.plural, &call.name))
    }
}
