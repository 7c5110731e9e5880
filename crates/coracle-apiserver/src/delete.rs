//! delete and deletecollection.

mod options;

use coracle_api::catalogue::{Dependents, Grace, Resource};
use coracle_api::metadata;
use coracle_api::status::{Details, Status};
use coracle_api::{Timestamp, Value};
use coracle_store::Op;
use http::{Response, StatusCode};
use serde_json::json;

use crate::body::{self, Body};
use crate::call::Call;
use crate::negotiate::Format;
use crate::object;
use crate::prepare;
use crate::read::{ListOptions, unreadable};
use crate::server::{Core, add_warnings};
use crate::write::{Along, Attempt};
pub(crate) use options::DeleteOptions;
use options::Fate;

/// Namespaces that every cluster has.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];
/// Kinds whose deletion answers with the object instead of a Status, as upstream's.
const ANSWERS_WITH_OBJECT: [&str; 3] = ["Pod", "Service", "ServiceAccount"];
/// How often a delete is tried again when somebody else changes the object at the same time.
const TRIES: usize = 64;

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
fn plan(row: &Resource, object: &Value, grace: Option<i64>, fate: Option<Fate>, now: Timestamp) -> Step {
    let marked = metadata::is_deleting(object);
    let is_empty =
        |object: &Value, at: &str| object.pointer(at).and_then(Value::as_array).is_none_or(Vec::is_empty);
    if prepare::is_namespace(row) {
        let mut new = object.clone();
        if !marked {
            prepare::set(&mut new, "deletionTimestamp", metadata::rfc3339(now).into());
            if !new.get("status").is_some_and(Value::is_object) {
                new["status"] = json!({});
            }
            new["status"]["phase"] = "Terminating".into();
        }
        // While the namespace is being emptied it is too late to say what becomes of what it owns.
        if (!marked || is_empty(object, "/spec/finalizers"))
            && let Some(finalizers) = options::finalizers(row, object, fate)
        {
            set_finalizers(&mut new, finalizers);
        }
        let held = !is_empty(&new, "/spec/finalizers") || !is_empty(&new, "/metadata/finalizers");
        return if !held {
            Step::Remove
        } else if new == *object {
            Step::Nothing
        } else {
            Step::Mark(new)
        };
    }
    let grace = match row.strategy.graceful_deletion(object, grace) {
        // Who ends gracefully has been told how when it was asked first.
        Grace::Unchanged => return Step::Nothing,
        Grace::Immediate => 0,
        Grace::Seconds(seconds) => seconds.max(0),
    };
    let mut new = object.clone();
    if let Some(finalizers) = options::finalizers(row, object, fate) {
        set_finalizers(&mut new, finalizers);
    }
    if grace == 0 && is_empty(&new, "/metadata/finalizers") {
        return Step::Remove;
    }
    let before = object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    if !marked || before != Some(grace) {
        metadata::mark_deleted(&mut new, grace, now);
    }
    if new == *object { Step::Nothing } else { Step::Mark(new) }
}

fn set_finalizers(object: &mut Value, finalizers: Vec<Value>) {
    if finalizers.is_empty() {
        prepare::unset(object, "finalizers");
    } else {
        prepare::set(object, "finalizers", finalizers.into());
    }
}

/// An object after a delete.
pub(crate) struct Deleted {
    object: Value,
    gone: bool,
}

impl Core {
    pub(crate) async fn delete(&self, call: &Call, body: Body) -> Result<Response<Body>, Status> {
        let format = call.format()?;
        let bytes = body::read(body, &self.clock).await?;
        let options = DeleteOptions::read(call, &bytes)?;
        let deleted = self.delete_object(call, &options).await?;
        let mut response = self.answer_delete(call, format, &options, &deleted)?;
        if let (None, Dependents::Orphan { warning }) = (options.fate, call.row.strategy.dependents()) {
            add_warnings(response.headers_mut(), &[warning.to_owned()]);
        }
        Ok(response)
    }

    fn answer_delete(
        &self,
        call: &Call,
        format: Format,
        options: &DeleteOptions,
        deleted: &Deleted,
    ) -> Result<Response<Body>, Status> {
        let row = call.row;
        if !deleted.gone || ANSWERS_WITH_OBJECT.contains(&row.kind) {
            let accepted = !deleted.gone && options.no_orphans;
            let code = if accepted { StatusCode::ACCEPTED } else { StatusCode::OK };
            return self.answer(call, format, code, &deleted.object);
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

    pub(crate) async fn delete_object(
        &self,
        call: &Call,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        let row = call.row;
        if prepare::is_namespace(row) && IMMORTAL.contains(&call.name.as_str()) {
            return Err(Status::forbidden("", "namespaces", &call.name, "this namespace may not be deleted"));
        }
        for _ in 0..TRIES {
            let Some((current, kv)) = self.current(call).await? else { return Err(call.not_found()) };
            options.check(row, &current)?;
            let (op, mut object, gone) =
                match plan(row, &current, options.grace, options.fate, self.clock.now()) {
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
        assert_eq!(plan(row, &free, None, None, now()), Step::Remove);
        let held = json!({ "metadata": { "name": "a", "finalizers": ["x/y"] } });
        let Step::Mark(marked) = plan(row, &held, None, None, now()) else { panic!("not held") };
        assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-01-01T00:00:10Z");
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 0);
        assert_eq!(plan(row, &marked, None, None, now()), Step::Nothing);

        let row = catalogue::find("", "v1", "namespaces").unwrap();
        let namespace = json!({ "metadata": { "name": "a" }, "spec": { "finalizers": ["kubernetes"] } });
        let Step::Mark(mut marked) = plan(row, &namespace, None, None, now()) else { panic!("not held") };
        assert_eq!(marked["status"]["phase"], "Terminating");
        assert_eq!(plan(row, &marked, None, None, now()), Step::Nothing);
        marked["spec"] = json!({});
        assert!(prepare::is_finished(row, &marked));
        assert_eq!(plan(row, &marked, None, None, now()), Step::Remove);
    }

    #[test]
    fn a_second_delete_can_only_shorten() {
        let row = catalogue::find("", "v1", "pods").unwrap();
        let pod = json!({
            "metadata": { "name": "a", "generation": 1 },
            "spec": { "nodeName": "n", "terminationGracePeriodSeconds": 30 }, "status": { "phase": "Running" },
        });
        let Step::Mark(first) = plan(row, &pod, None, None, now()) else { panic!("not graceful") };
        assert_eq!(first["metadata"]["deletionTimestamp"], "2026-01-01T00:00:40Z");
        assert_eq!(first["metadata"]["deletionGracePeriodSeconds"], 30);
        assert_eq!(first["metadata"]["generation"], 2);
        let later = "2026-01-01T00:00:15Z".parse().unwrap();
        assert_eq!(plan(row, &first, Some(60), None, later), Step::Nothing);
        let Step::Mark(second) = plan(row, &first, Some(10), None, later) else { panic!("not shortened") };
        assert_eq!(second["metadata"]["deletionTimestamp"], "2026-01-01T00:00:20Z");
        assert_eq!(second["metadata"]["generation"], 2, "only the first delete counts");
        assert_eq!(plan(row, &first, Some(0), None, later), Step::Remove);
    }

    /// The finalizers after a delete that is asked for in this way; `None` if the object goes at once.
    fn held(row: &str, finalizers: &Value, marked: bool, fate: Option<Fate>) -> Option<Value> {
        let row = catalogue::find("", "v1", row).unwrap();
        let mut object = json!({ "metadata": { "name": "a", "finalizers": finalizers } });
        if marked {
            metadata::mark_deleted(&mut object, 0, now());
        }
        match plan(row, &object, None, fate, now()) {
            Step::Remove => None,
            Step::Mark(new) => Some(new["metadata"]["finalizers"].clone()),
            Step::Nothing => Some(finalizers.clone()),
        }
    }

    #[test]
    fn the_request_the_object_and_the_kind_say_what_becomes_of_dependents_in_this_order() {
        let (orphan, foreground) = (json!(["orphan"]), json!(["foregroundDeletion"]));
        let none = json!([]);
        for (finalizers, marked, fate, expected) in [
            (&none, false, None, None),
            (&none, false, Some(Fate::Background), None),
            (&none, false, Some(Fate::Orphan), Some(orphan.clone())),
            (&none, false, Some(Fate::Foreground), Some(foreground.clone())),
            (&orphan, false, None, Some(orphan.clone())),
            (&foreground, false, None, Some(foreground.clone())),
            (&orphan, false, Some(Fate::Background), None),
            (&orphan, false, Some(Fate::Foreground), Some(foreground.clone())),
            (&json!(["x/y", "orphan"]), false, Some(Fate::Background), Some(json!(["x/y"]))),
            (&json!(["x/y"]), false, Some(Fate::Orphan), Some(json!(["x/y", "orphan"]))),
            // A second delete may say something else, as long as the object is there.
            (&foreground, true, Some(Fate::Orphan), Some(orphan.clone())),
            (&foreground, true, Some(Fate::Background), None),
            (&foreground, true, None, Some(foreground.clone())),
        ] {
            let got = held("configmaps", finalizers, marked, fate);
            assert_eq!(got, expected, "{finalizers} {marked} {fate:?}");
        }
        let row = catalogue::find("batch", "v1", "jobs").unwrap();
        let job = json!({ "metadata": { "name": "a" } });
        let Step::Mark(orphaning) = plan(row, &job, None, None, now()) else {
            panic!("Jobs leave Pods behind")
        };
        assert_eq!(orphaning["metadata"]["finalizers"], orphan);
        assert_eq!(plan(row, &job, None, Some(Fate::Background), now()), Step::Remove);
        assert_eq!(held("events", &none, false, Some(Fate::Foreground)), None, "an Event owns nothing");
    }
}
