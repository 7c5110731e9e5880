//! What a delete may say: grace, preconditions, and what becomes of the objects that the deleted one owns.

use coracle_api::catalogue::{Dependents, Resource};
use coracle_api::field::{FieldError, Path};
use coracle_api::metadata;
use coracle_api::status::Status;
use coracle_api::{Value, decode};
use serde_json::json;

use crate::call::{Call, dry_run};
use crate::negotiate::content_type;
use crate::prepare::{self, BODY_TYPES};
use crate::protobuf;

/// Holds an object until nothing names it as its owner any more.
const ORPHAN: &str = "orphan";
/// Holds an object until those that it owns, and that say so, are gone.
const FOREGROUND: &str = "foregroundDeletion";

/// What becomes of the objects that a deleted object owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// They stay.
    Orphan,
    /// They go after it.
    Background,
    /// They go before it.
    Foreground,
}

/// The finalizers that `object` has to have when it is deleted so; `None` if it has them already. What a request says
/// comes before what the object says, and that before what its kind says.
pub(super) fn finalizers(row: &Resource, object: &Value, fate: Option<Fate>) -> Option<Vec<Value>> {
    if row.strategy.dependents() == Dependents::None {
        return None;
    }
    let list = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    let old: &[Value] = list.map_or(&[], Vec::as_slice);
    let said = old.iter().find_map(|finalizer| match finalizer.as_str() {
        Some(ORPHAN) => Some(Fate::Orphan),
        Some(FOREGROUND) => Some(Fate::Foreground),
        _ => None,
    });
    let by_kind = match row.strategy.dependents() {
        Dependents::Orphan { .. } => Fate::Orphan,
        _ => Fate::Background,
    };
    let added = match fate.or(said).unwrap_or(by_kind) {
        Fate::Orphan => Some(ORPHAN),
        Fate::Foreground => Some(FOREGROUND),
        Fate::Background => None,
    };
    let kept = old.iter().filter(|finalizer| *finalizer != ORPHAN && *finalizer != FOREGROUND);
    let new: Vec<Value> = kept.cloned().chain(added.map(Value::from)).collect();
    let same = new.len() == old.len() && new.iter().all(|finalizer| old.contains(finalizer));
    (!same).then_some(new)
}

/// The options of a delete.
#[derive(Debug, Default, Clone)]
pub(crate) struct DeleteOptions {
    pub(super) grace: Option<i64>,
    uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    /// `None` if the request leaves it to the kind.
    pub(super) fate: Option<Fate>,
    /// The request says by its older field that dependents go; what is not gone at once is then accepted, not done.
    pub(super) no_orphans: bool,
    pub(crate) dry_run: bool,
}

impl DeleteOptions {
    /// Reads the body, or the query if there is no body.
    pub(super) fn read(call: &Call, body: &[u8]) -> Result<Self, Status> {
        let options = if body.is_empty() {
            let query = &call.query;
            let mut options = json!({});
            if let Some(grace) = query.number("gracePeriodSeconds")? {
                options["gracePeriodSeconds"] = grace.into();
            }
            if query.has("propagationPolicy") {
                options["propagationPolicy"] = query.get("propagationPolicy").into();
            }
            if query.has("orphanDependents") {
                options["orphanDependents"] = query.flag("orphanDependents").into();
            }
            options
        } else {
            let decoded = match content_type(&call.headers).as_str() {
                "application/json" => decode::json(body),
                "application/yaml" => decode::yaml(body),
                protobuf::MEDIA_TYPE => protobuf::decode(body, "DeleteOptions")
                    .map(|value| decode::Decoded { value, duplicates: Vec::new() })
                    .map_err(|malformed| malformed.to_string()),
                _ => return Err(Status::unsupported_media_type(&BODY_TYPES)),
            };
            decoded.map(|decoded| decoded.value).map_err(|complaint| {
                Status::bad_request(format!("couldn't get version/kind; json parse error: {complaint}"))
            })?
        };
        Self::of(call, options)
    }

    /// Reads options that stand in a body or are one.
    pub(crate) fn of(call: &Call, mut options: Value) -> Result<Self, Status> {
        let Some(fields) = options.as_object_mut() else {
            return Err(Status::bad_request("the body of a delete must be DeleteOptions"));
        };
        let kind = fields.get("kind").and_then(Value::as_str).unwrap_or_default();
        if !matches!(kind, "" | "DeleteOptions") {
            return Err(Status::bad_request(format!(
                "decoded object cannot be converted to DeleteOptions: {kind}"
            )));
        }
        let invalid = |error: FieldError| Status::invalid("meta.k8s.io", "DeleteOptions", "", &[error]);
        let wrong_type = |field: &str| {
            let error = FieldError::type_invalid(&Path::new(field), Value::Null, "wrong type");
            Status::invalid("meta.k8s.io", "DeleteOptions", "", &[error])
        };
        let policy = fields.get("propagationPolicy").filter(|value| !value.is_null());
        let orphan = fields.get("orphanDependents").filter(|value| !value.is_null());
        let path = Path::new("propagationPolicy");
        if orphan.is_some()
            && let Some(policy) = policy
        {
            let why = "orphanDependents and deletionPropagation cannot be both set";
            return Err(invalid(FieldError::invalid(&path, policy.clone(), why)));
        }
        let fate = match (policy.map(|policy| policy.as_str().unwrap_or_default()), orphan) {
            (Some("Foreground"), _) => Some(Fate::Foreground),
            (Some("Background"), _) | (None, Some(Value::Bool(false))) => Some(Fate::Background),
            (Some("Orphan"), _) | (None, Some(Value::Bool(true))) => Some(Fate::Orphan),
            (Some(other), _) => {
                let known = ["Foreground", "Background", "Orphan", "nil"];
                return Err(invalid(FieldError::not_supported(&path, other, &known)));
            }
            (None, Some(_)) => return Err(wrong_type("orphanDependents")),
            (None, None) => None,
        };
        let grace = match fields.get("gracePeriodSeconds") {
            None | Some(Value::Null) => None,
            Some(value) => Some(value.as_i64().ok_or_else(|| wrong_type("gracePeriodSeconds"))?),
        };
        let precondition = |name: &str| match fields.get("preconditions").and_then(|p| p.get(name)) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(wrong_type("preconditions")),
        };
        let mut dry_runs: Vec<String> = call.query.all("dryRun").to_vec();
        for value in fields.get("dryRun").and_then(Value::as_array).into_iter().flatten() {
            dry_runs.push(value.as_str().unwrap_or("?").to_owned());
        }
        Ok(DeleteOptions {
            grace,
            uid: precondition("uid")?,
            resource_version: precondition("resourceVersion")?,
            fate,
            no_orphans: policy.is_none() && fate == Some(Fate::Background),
            dry_run: dry_run(&dry_runs, "DeleteOptions", "meta.k8s.io")?,
        })
    }

    pub(crate) fn check(&self, row: &Resource, object: &Value) -> Result<(), Status> {
        let name = metadata::name(object);
        let (uid, version) = (prepare::text(object, "uid"), prepare::text(object, "resourceVersion"));
        let why = match (&self.uid, &self.resource_version) {
            (Some(wanted), _) if wanted != uid => format!(
                "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
            ),
            (_, Some(wanted)) if wanted != version => format!(
                "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({version}). The object might have been modified"
            ),
            _ => return Ok(()),
        };
        Err(Status::conflict(row.group, row.plural, name, &why))
    }
}
