//! delete and deletecollection.

use coracle_api::catalogue::{Grace, Resource};
use coracle_api::field::{FieldError, Path};
use coracle_api::metadata;
use coracle_api::status::{Details, Status};
use coracle_api::{Timestamp, Value, decode};
use coracle_store::Op;
use http::{Response, StatusCode};
use serde_json::json;

use crate::body::{self, Body};
use crate::call::{Call, dry_run};
use crate::negotiate::content_type;
use crate::object;
use crate::prepare::{self, BODY_TYPES};
use crate::protobuf;
use crate::read::{ListOptions, unreadable};
use crate::server::Core;
use crate::write::{Along, Attempt};

/// Namespaces that every cluster has.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];
/// Kinds whose deletion answers with the object instead of a Status, as upstream's.
const ANSWERS_WITH_OBJECT: [&str; 3] = ["Pod", "Service", "ServiceAccount"];
/// How often a delete is tried again when somebody else changes the object at the same time.
const TRIES: usize = 64;

/// The options of a delete.
#[derive(Debug, Default, Clone)]
pub(crate) struct DeleteOptions {
    grace: Option<i64>,
    uid: Option<String>,
    resource_version: Option<String>,
    dry_run: bool,
}

impl DeleteOptions {
    /// Reads the body, or the query if there is no body.
    fn read(call: &Call, body: &[u8]) -> Result<Self, Status> {
        let mut options = if body.is_empty() {
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
        // Without a garbage collector nobody would carry these out: refusing is honest, hanging for ever is not.
        let policy = fields.get("propagationPolicy").filter(|value| !value.is_null());
        let orphan = fields.get("orphanDependents").filter(|value| !value.is_null());
        match policy.map(|policy| policy.as_str().unwrap_or_default()) {
            None | Some("Background") => {}
            Some(other @ ("Foreground" | "Orphan")) => {
                let path = Path::new("propagationPolicy");
                return Err(invalid(FieldError::not_supported(&path, other, &["Background"])));
            }
            Some(other) => {
                let why = "DeletionPropagation need to be one of {\"Foreground\",\"Background\",\"Orphan\"}";
                let path = Path::new("propagationPolicy");
                return Err(invalid(FieldError::invalid(&path, other, why)));
            }
        }
        if orphan.is_some() && policy.is_some() {
            let why = "orphanDependents and deletionPropagation cannot be both set";
            let path = Path::new("propagationPolicy");
            return Err(invalid(FieldError::invalid(&path, policy.cloned().unwrap_or_default(), why)));
        }
        if orphan == Some(&Value::Bool(true)) {
            let path = Path::new("orphanDependents");
            return Err(invalid(FieldError::not_supported(&path, "true", &["false"])));
        }
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
            dry_run: dry_run(&dry_runs, "DeleteOptions", "meta.k8s.io")?,
        })
    }

    fn check(&self, row: &Resource, object: &Value) -> Result<(), Status> {
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

/// What a delete does to an object.
#[derive(Debug, PartialEq)]
enum Step {
    /// It goes.
    Remove,
    /// It stays, marked.
    Mark(Value),
    /// It is marked already.
    Nothing,
}

/// Decides what a delete does to an object.
fn plan(row: &Resource, object: &Value, grace: Option<i64>, now: Timestamp) -> Step {
    let marked = metadata::is_deleting(object);
    let held = |pointer: &str| {
        object.pointer(pointer).and_then(Value::as_array).is_some_and(|list| !list.is_empty())
    };
    if prepare::is_namespace(row) {
        if marked {
            let held = held("/spec/finalizers") || held("/metadata/finalizers");
            return if held { Step::Nothing } else { Step::Remove };
        }
        let mut new = object.clone();
        prepare::set(&mut new, "deletionTimestamp", metadata::rfc3339(now).into());
        if !new.get("status").is_some_and(Value::is_object) {
            new["status"] = json!({});
        }
        new["status"]["phase"] = "Terminating".into();
        return if held("/spec/finalizers") || held("/metadata/finalizers") {
            Step::Mark(new)
        } else {
            Step::Remove
        };
    }
    let grace = match row.strategy.graceful_deletion(object, grace) {
        Grace::Unchanged => return Step::Nothing,
        Grace::Immediate => 0,
        Grace::Seconds(seconds) => seconds.max(0),
    };
    if grace == 0 && !held("/metadata/finalizers") {
        return Step::Remove;
    }
    let before = object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    if marked && before == Some(grace) {
        return Step::Nothing;
    }
    let mut new = object.clone();
    metadata::mark_deleted(&mut new, grace, now);
    Step::Mark(new)
}

/// An object after a delete.
struct Deleted {
    object: Value,
    gone: bool,
}

impl Core {
    pub(crate) async fn delete(&self, call: &Call, body: Body) -> Result<Response<Body>, Status> {
        let format = call.format()?;
        let bytes = body::read(body, &self.clock).await?;
        let options = DeleteOptions::read(call, &bytes)?;
        let deleted = self.delete_object(call, &options).await?;
        let row = call.row;
        if !deleted.gone || ANSWERS_WITH_OBJECT.contains(&row.kind) {
            return self.answer(call, format, StatusCode::OK, &deleted.object);
        }
        let details = Details {
            name: call.name.clone(),
            group: row.group.to_owned(),
            kind: row.plural.to_owned(),
            uid: prepare::text(&deleted.object, "uid").to_owned(),
            ..Details::default()
        };
        Ok(format.status(&Status::success(200, Some(details))))
    }

    async fn delete_object(&self, call: &Call, options: &DeleteOptions) -> Result<Deleted, Status> {
        let row = call.row;
        if prepare::is_namespace(row) && IMMORTAL.contains(&call.name.as_str()) {
            return Err(Status::forbidden("", "namespaces", &call.name, "this namespace may not be deleted"));
        }
        for _ in 0..TRIES {
            let Some((current, kv)) = self.current(call).await? else { return Err(call.not_found()) };
            options.check(row, &current)?;
            let (op, mut object, gone) = match plan(row, &current, options.grace, self.clock.now()) {
                Step::Nothing => return Ok(Deleted { object: current, gone: false }),
                Step::Remove => (Op::Delete { key: kv.key.clone() }, current, true),
                Step::Mark(new) => {
                    (Op::Put { key: kv.key.clone(), value: Self::encode(row, &new) }, new, false)
                }
            };
            if options.dry_run {
                return Ok(Deleted { object, gone });
            }
            let mut along = Along::default();
            if gone {
                self.release(row, &object, &mut along);
            }
            if let Attempt::Done(revision) = self.commit(&kv.key, kv.mod_revision, op, along).await? {
                prepare::set(&mut object, "resourceVersion", revision.to_string().into());
                return Ok(Deleted { object, gone });
            }
        }
        Err(Status::modified(row.group, row.plural, &call.name))
    }

    pub(crate) async fn delete_collection(&self, call: &Call, body: Body) -> Result<Response<Body>, Status> {
        let format = call.format()?;
        let bytes = body::read(body, &self.clock).await?;
        let options = DeleteOptions::read(call, &bytes)?;
        let page = self.list_page(call, &ListOptions::of(call)?).await?;
        let mut items = Vec::with_capacity(page.items.len());
        for kv in &page.items {
            let object = object::decode(&kv.value, kv.mod_revision).map_err(unreadable)?;
            let mut one = call.clone();
            one.name = metadata::name(&object).to_owned();
            one.namespace = call.row.namespaced.then(|| metadata::namespace(&object).to_owned());
            match self.delete_object(&one, &options).await {
                Ok(deleted) => items.push(deleted.object),
                // Somebody else deleted it meanwhile: that is what was wanted.
                Err(status) if status.code == 404 => {}
                Err(status) => return Err(status),
            }
        }
        for item in items.iter_mut().filter_map(Value::as_object_mut) {
            item.shift_remove("kind");
            item.shift_remove("apiVersion");
        }
        let list = json!({
            "kind": format!("{}List", call.row.kind),
            "apiVersion": call.row.api_version(),
            "metadata": page.metadata(),
            "items": items,
        });
        Ok(format.value(StatusCode::OK, &list))
    }
}

#[cfg(test)]
mod tests {
    use coracle_api::catalogue;

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:00:10Z".parse().unwrap()
    }

    #[test]
    fn finalizers_hold_an_object_and_namespaces_wait_for_theirs() {
        let row = catalogue::find("", "v1", "configmaps").unwrap();
        let free = json!({ "metadata": { "name": "a" } });
        assert_eq!(plan(row, &free, None, now()), Step::Remove);
        let held = json!({ "metadata": { "name": "a", "finalizers": ["x/y"] } });
        let Step::Mark(marked) = plan(row, &held, None, now()) else { panic!("not held") };
        assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-01-01T00:00:10Z");
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 0);
        assert_eq!(plan(row, &marked, None, now()), Step::Nothing);

        let row = catalogue::find("", "v1", "namespaces").unwrap();
        let namespace = json!({ "metadata": { "name": "a" }, "spec": { "finalizers": ["kubernetes"] } });
        let Step::Mark(mut marked) = plan(row, &namespace, None, now()) else { panic!("not held") };
        assert_eq!(marked["status"]["phase"], "Terminating");
        assert_eq!(plan(row, &marked, None, now()), Step::Nothing);
        marked["spec"] = json!({});
        assert!(prepare::is_finished(row, &marked));
        assert_eq!(plan(row, &marked, None, now()), Step::Remove);
    }

    #[test]
    fn a_second_delete_can_only_shorten() {
        let row = catalogue::find("", "v1", "pods").unwrap();
        let pod = json!({
            "metadata": { "name": "a", "generation": 1 },
            "spec": { "nodeName": "n", "terminationGracePeriodSeconds": 30 }, "status": { "phase": "Running" },
        });
        let Step::Mark(first) = plan(row, &pod, None, now()) else { panic!("not graceful") };
        assert_eq!(first["metadata"]["deletionTimestamp"], "2026-01-01T00:00:40Z");
        assert_eq!(first["metadata"]["deletionGracePeriodSeconds"], 30);
        assert_eq!(first["metadata"]["generation"], 2);
        let later = "2026-01-01T00:00:15Z".parse().unwrap();
        assert_eq!(plan(row, &first, Some(60), later), Step::Nothing);
        let Step::Mark(second) = plan(row, &first, Some(10), later) else { panic!("not shortened") };
        assert_eq!(second["metadata"]["deletionTimestamp"], "2026-01-01T00:00:20Z");
        assert_eq!(second["metadata"]["generation"], 2, "only the first delete counts");
        assert_eq!(plan(row, &first, Some(0), later), Step::Remove);
    }
}
