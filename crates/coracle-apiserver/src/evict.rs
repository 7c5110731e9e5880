//! `POST pods/NAME/eviction`: a delete that a disruption budget may refuse.
//!
//! [`judge`] decides from the Pod and its budgets; what it grants is taken from the budget by compare-and-set before
//! the Pod is touched, so that two evictions never share what was allowed once.

use coracle_api::catalogue::{self, Resource};
use coracle_api::metadata;
use coracle_api::selector::LabelSelector;
use coracle_api::status::{Cause, Reason, Status};
use coracle_api::{Timestamp, Value};
use coracle_store::Op;
use http::{Response, StatusCode};
use serde_json::{Map, json};

use crate::body::{self, Body};
use crate::call::{Call, FieldValidation};
use crate::delete::DeleteOptions;
use crate::negotiate::content_type;
use crate::prepare;
use crate::server::{Core, add_warnings};
use crate::write::{Along, Attempt};

/// How often an eviction is tried again when somebody else changes Pod or budget at the same time, as upstream's.
const TRIES: usize = 20;

/// So many evictions of one budget may wait for the controller at once.
const DISRUPTED_MAX: usize = 2000;

const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

/// What becomes of an eviction before anything is written.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// No budget is asked.
    Free,
    /// The Pod is not healthy, so that its end disrupts nothing: as long as it stays as it is.
    Unhealthy { budget: String },
    /// This budget has to have something left.
    Budgeted { budget: String },
}

/// Decides whose leave an eviction needs.
fn judge(pod: &Value, budgets: &[Value]) -> Result<Verdict, Status> {
    let labels = pod.pointer("/metadata/labels").and_then(Value::as_object);
    if labels.is_none_or(Map::is_empty) {
        return Ok(Verdict::Free);
    }
    let protects = |budget: &&Value| {
        let selector = budget.pointer("/spec/selector").map(LabelSelector::from_object);
        matches!(selector, Some(Ok(selector)) if selector.matches(pod))
    };
    let mut protecting = budgets.iter().filter(protects);
    let Some(budget) = protecting.next() else { return Ok(Verdict::Free) };
    if protecting.next().is_some() {
        let mut status = Status::internal("");
        status.message =
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not \
                          support."
                .to_owned();
        status.reason = Reason::Unknown;
        status.details = None;
        return Err(status);
    }
    let name = metadata::name(budget).to_owned();
    if !is_ready(pod) {
        let policy = budget.pointer("/spec/unhealthyPodEvictionPolicy").and_then(Value::as_str);
        let (current, desired) = (count(budget, "currentHealthy"), count(budget, "desiredHealthy"));
        if policy == Some("AlwaysAllow") || (current >= desired && desired > 0) {
            return Ok(Verdict::Unhealthy { budget: name });
        }
    }
    Ok(Verdict::Budgeted { budget: name })
}

fn count(budget: &Value, field: &str) -> i64 {
    budget.get("status").and_then(|status| status.get(field)).and_then(Value::as_i64).unwrap_or(0)
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Whether a Pod disrupts nothing when it goes: it does not run yet, or no more, or is going already.
fn is_no_disruption(pod: &Value) -> bool {
    let phase = pod.pointer("/status/phase").and_then(Value::as_str).unwrap_or_default();
    matches!(phase, "Pending" | "Succeeded" | "Failed") || metadata::is_deleting(pod)
}

/// The budget after one more disruption, or why there is none left.
fn decrement(budget: &Value, pod: &str, now: Timestamp) -> Result<Value, Status> {
    let name = metadata::name(budget);
    let refuse = |why: String, retry_after| {
        let mut status = Status::too_many_requests(REFUSED, retry_after);
        let cause = Cause { reason: "DisruptionBudget".to_owned(), message: why, field: String::new() };
        status.details.get_or_insert_default().causes.push(cause);
        status
    };
    let generation = budget.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
    if count(budget, "observedGeneration") < generation {
        return Err(refuse(being_processed(name), 10));
    }
    let allowed = count(budget, "disruptionsAllowed");
    let forbid = |why: &str| Err(Status::forbidden("policy", "poddisruptionbudget", name, why));
    if allowed < 0 {
        return forbid("pdb disruptions allowed is negative");
    }
    let disrupted = budget.pointer("/status/disruptedPods").and_then(Value::as_object);
    if disrupted.map_or(0, Map::len) > DISRUPTED_MAX {
        return forbid("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if allowed == 0 {
        let conditions = budget.pointer("/status/conditions").and_then(Value::as_array);
        let failed = conditions.into_iter().flatten().find(|condition| {
            condition["type"] == "DisruptionAllowed"
                && condition["status"] == "False"
                && condition["reason"] == "SyncFailed"
        });
        let why = match failed {
            Some(condition) => format!(
                "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
                condition["message"].as_str().unwrap_or_default()
            ),
            None => format!(
                "The disruption budget {name} needs {} healthy pods and has {} currently",
                count(budget, "desiredHealthy"),
                count(budget, "currentHealthy")
            ),
        };
        return Err(refuse(why, 0));
    }
    let mut left = budget.clone();
    left["status"]["disruptionsAllowed"] = (allowed - 1).into();
    if !left["status"]["disruptedPods"].is_object() {
        left["status"]["disruptedPods"] = json!({});
    }
    left["status"]["disruptedPods"][pod] = metadata::rfc3339(now).into();
    if allowed == 1 {
        let condition = json!({
            "type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods", "message": "",
            "observedGeneration": count(budget, "observedGeneration"),
        });
        set_condition(&mut left, condition, now);
    }
    Ok(left)
}

fn being_processed(budget: &str) -> String {
    format!("The disruption budget {budget} is still being processed by the server.")
}

/// Sets a condition of an object's status; the time says since when its truth is this.
fn set_condition(object: &mut Value, mut condition: Value, now: Timestamp) {
    if !object["status"]["conditions"].is_array() {
        object["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = object["status"]["conditions"].as_array_mut() else { return };
    let old = conditions.iter_mut().find(|old| old["type"] == condition["type"]);
    condition["lastTransitionTime"] = match &old {
        Some(old) if old["status"] == condition["status"] => old["lastTransitionTime"].clone(),
        _ => metadata::rfc3339(now).into(),
    };
    match old {
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
}

/// The Pod with the reason of its end.
fn disrupted(pod: &Value, now: Timestamp) -> Value {
    let mut condition = json!({
        "type": "DisruptionTarget", "status": "True",
        "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
    });
    if let Some(generation) = pod.pointer("/metadata/generation") {
        condition["observedGeneration"] = generation.clone();
    }
    let mut new = pod.clone();
    set_condition(&mut new, condition, now);
    new
}

impl Core {
    pub(crate) async fn evict(&self, call: &Call, body: Body) -> Result<Response<Body>, Status> {
        let row = call.subresource.and_then(catalogue::carried_by).ok_or_else(Status::unknown_resource)?;
        let format = call.format()?;
        let validation: FieldValidation = call.query.get("fieldValidation").parse()?;
        let bytes = body::read(body, &self.clock).await?;
        let (mut eviction, warnings) =
            prepare::decode_body(row, &content_type(&call.headers), &bytes, validation)?;
        prepare::place(row, &mut eviction, call.namespace.as_deref(), "")?;
        if metadata::name(&eviction) != call.name {
            return Err(Status::bad_request("name in URL does not match name in Eviction object"));
        }
        let said = eviction.get("deleteOptions").filter(|options| options.is_object()).cloned();
        let options = DeleteOptions::of(call, said.unwrap_or_else(|| json!({})))?;
        self.evict_pod(&Call { subresource: None, ..call.clone() }, &options).await?;
        let mut response = format.value(StatusCode::CREATED, &Status::success(201, None).to_json());
        add_warnings(response.headers_mut(), &warnings);
        Ok(response)
    }

    async fn evict_pod(&self, call: &Call, options: &DeleteOptions) -> Result<(), Status> {
        let stated = options.resource_version.is_some();
        let mut tries = TRIES;
        let pod = loop {
            let (pod, _) = self.current(call).await?.ok_or_else(|| call.not_found())?;
            if !is_no_disruption(&pod) {
                break pod;
            }
            let mut options = options.clone();
            // What does not run yet may run before the delete: then the budget has a say.
            if prepare::text(&pod, "deletionTimestamp").is_empty() && pod["status"]["phase"] == "Pending" {
                options
                    .resource_version
                    .get_or_insert_with(|| prepare::text(&pod, "resourceVersion").to_owned());
            }
            tries -= 1;
            match self.disrupt(call, options).await {
                Err(status) if status.reason == Reason::Conflict && !stated && tries > 0 => {}
                result => return result,
            }
        };
        let mut options = options.clone();
        let unhealthy = match judge(&pod, &self.budgets(call).await?)? {
            Verdict::Free => None,
            Verdict::Unhealthy { budget } => {
                options.resource_version = Some(prepare::text(&pod, "resourceVersion").to_owned());
                Some(budget)
            }
            Verdict::Budgeted { budget } => {
                self.take_from(call, &budget, options.dry_run).await?;
                None
            }
        };
        match (self.disrupt(call, options).await, unhealthy) {
            // It is another Pod than the one that was judged: whoever tries again will be judged again.
            (Err(status), Some(budget)) if status.reason == Reason::Conflict && !stated => {
                let mut status = Status::too_many_requests(REFUSED, 10);
                let cause = Cause {
                    reason: "DisruptionBudget".to_owned(),
                    message: being_processed(&budget),
                    field: String::new(),
                };
                status.details.get_or_insert_default().causes.push(cause);
                Err(status)
            }
            (result, _) => result,
        }
    }

    /// Says in the Pod's status why it goes, and deletes it.
    async fn disrupt(&self, call: &Call, mut options: DeleteOptions) -> Result<(), Status> {
        for _ in 0..TRIES {
            if options.dry_run {
                break;
            }
            let (pod, kv) = self.current(call).await?.ok_or_else(|| call.not_found())?;
            options.check(call.row, &pod)?;
            let new = disrupted(&pod, self.clock.now());
            if new == pod {
                break;
            }
            let op = Op::Put { key: kv.key.clone(), value: Self::encode(call.row, &new) };
            if let Attempt::Done(revision) =
                self.commit(&kv.key, kv.mod_revision, op, Along::default()).await?
            {
                options.resource_version = options.resource_version.map(|_| revision.to_string());
                break;
            }
        }
        self.delete_object(call, &options).await.map(|_| ())
    }

    fn budget_row() -> Result<&'static Resource, Status> {
        catalogue::find("policy", "v1", "poddisruptionbudgets").ok_or_else(Status::unknown_resource)
    }

    async fn budgets(&self, call: &Call) -> Result<Vec<Value>, Status> {
        let row = Self::budget_row()?;
        let prefix = row.storage_list_prefix(call.namespace.as_deref()).into();
        let request = coracle_store::ListRequest { prefix, ..coracle_store::ListRequest::default() };
        let page = self.store.list(&request).await.map_err(|error| crate::server::store_failed(&error))?;
        page.items.iter().map(|kv| self.served(row, kv)).collect()
    }

    /// Takes one disruption from a budget.
    async fn take_from(&self, call: &Call, budget: &str, dry_run: bool) -> Result<(), Status> {
        let own =
            Call { row: Self::budget_row()?, subresource: None, name: budget.to_owned(), ..call.clone() };
        for _ in 0..TRIES {
            let (current, kv) = self.current(&own).await?.ok_or_else(|| own.not_found())?;
            let left = decrement(&current, &call.name, self.clock.now())?;
            if dry_run {
                return Ok(());
            }
            let op = Op::Put { key: kv.key.clone(), value: Self::encode(own.row, &left) };
            if let Attempt::Done(_) = self.commit(&kv.key, kv.mod_revision, op, Along::default()).await? {
                return Ok(());
            }
        }
        let why = format!("couldn't update PodDisruptionBudget {budget:?} due to conflicts");
        Err(Status::timeout(&why, 10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(ready: bool) -> Value {
        let ready = if ready { "True" } else { "False" };
        json!({
            "metadata": { "name": "p", "labels": { "app": "a" }, "generation": 1 },
            "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": ready }] },
        })
    }

    fn budget(name: &str, selector: Value, status: Value) -> Value {
        json!({ "metadata": { "name": name, "generation": 1 }, "spec": { "selector": selector }, "status": status })
    }

    fn now() -> Timestamp {
        "2030-01-01T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn pods_that_do_not_run_are_nobodys_disruption() {
        for (phase, deleted, expected) in [
            ("Pending", false, true),
            ("Running", false, false),
            ("Running", true, true),
            ("Succeeded", false, true),
            ("Failed", false, true),
            ("Unknown", false, false),
        ] {
            let mut pod = json!({ "metadata": { "name": "p" }, "status": { "phase": phase } });
            if deleted {
                pod["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z".into();
            }
            assert_eq!(is_no_disruption(&pod), expected, "{phase} {deleted}");
        }
    }

    #[test]
    fn the_budget_that_selects_a_pod_has_the_say() {
        let wide = |name: &str| budget(name, json!({}), json!({}));
        let own = budget("own", json!({ "matchLabels": { "app": "a" } }), json!({}));
        let other = budget("other", json!({ "matchLabels": { "app": "b" } }), json!({}));
        let none = json!({ "metadata": { "name": "none" }, "spec": {} });
        let granted = |name: &str| Verdict::Budgeted { budget: name.to_owned() };
        assert_eq!(judge(&pod(true), &[]), Ok(Verdict::Free));
        assert_eq!(judge(&pod(true), &[other.clone(), none]), Ok(Verdict::Free));
        assert_eq!(judge(&pod(true), &[other, own.clone()]), Ok(granted("own")));
        assert_eq!(judge(&pod(true), &[wide("all")]), Ok(granted("all")), "an empty selector selects all");
        let mut bare = pod(true);
        bare["metadata"]["labels"] = json!({});
        assert_eq!(judge(&bare, &[wide("all")]), Ok(Verdict::Free), "but Pods without labels");
        let two = judge(&pod(true), &[own, wide("all")]).unwrap_err();
        assert_eq!(
            (two.code, two.message.as_str()),
            (
                500,
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
            )
        );
    }

    #[test]
    fn a_pod_that_is_not_ready_goes_when_the_others_suffice_or_when_it_always_may() {
        for (policy, current, desired, free) in [
            (None, 2, 2, true),
            (None, 3, 2, true),
            (None, 1, 2, false),
            (None, 0, 0, false),
            (Some("IfHealthyBudget"), 1, 2, false),
            (Some("AlwaysAllow"), 1, 2, true),
            (Some("AlwaysAllow"), 0, 0, true),
        ] {
            let mut own =
                budget("b", json!({}), json!({ "currentHealthy": current, "desiredHealthy": desired }));
            own["spec"]["unhealthyPodEvictionPolicy"] = policy.into();
            let expected = if free {
                Verdict::Unhealthy { budget: "b".to_owned() }
            } else {
                Verdict::Budgeted { budget: "b".to_owned() }
            };
            assert_eq!(judge(&pod(false), std::slice::from_ref(&own)), Ok(expected), "{own}");
            assert_eq!(judge(&pod(true), &[own]), Ok(Verdict::Budgeted { budget: "b".to_owned() }));
        }
    }

    #[test]
    fn a_budget_gives_what_it_has_and_says_why_it_gives_nothing() {
        let of = |status: Value| decrement(&budget("b", json!({}), status), "p", now());
        let left = of(json!({ "observedGeneration": 1, "disruptionsAllowed": 2 })).unwrap();
        assert_eq!(left["status"]["disruptionsAllowed"], 1);
        assert_eq!(left["status"]["disruptedPods"], json!({ "p": "2030-01-01T00:00:00Z" }));
        assert_eq!(left["status"].get("conditions"), None);
        let last = of(json!({ "observedGeneration": 1, "disruptionsAllowed": 1 })).unwrap();
        let condition = &last["status"]["conditions"][0];
        assert_eq!(
            (&condition["status"], &condition["reason"]),
            (&json!("False"), &json!("InsufficientPods"))
        );

        let refused = |status: Value| {
            let status = of(status).unwrap_err();
            let details = status.details.unwrap_or_default();
            let cause = details.causes.first().cloned();
            assert!(status.code != 429 || status.message == REFUSED, "{}", status.message);
            assert!(cause.as_ref().is_none_or(|cause| cause.reason == "DisruptionBudget"));
            (status.code, details.retry_after_seconds, cause.map(|cause| cause.message).unwrap_or_default())
        };
        assert_eq!(
            refused(json!({ "observedGeneration": 0, "disruptionsAllowed": 1 })),
            (429, 10, "The disruption budget b is still being processed by the server.".to_owned())
        );
        assert_eq!(
            refused(json!({ "observedGeneration": 1, "desiredHealthy": 3, "currentHealthy": 3 })),
            (429, 0, "The disruption budget b needs 3 healthy pods and has 3 currently".to_owned())
        );
        let failed = json!([
            { "type": "DisruptionAllowed", "status": "False", "reason": "SyncFailed", "message": "no controllers" }
        ]);
        assert_eq!(
            refused(json!({ "observedGeneration": 1, "conditions": failed })),
            (
                429,
                0,
                "The disruption budget b does not allow evicting pods currently because it failed sync: no \
                 controllers"
                    .to_owned()
            )
        );
        assert_eq!(refused(json!({ "observedGeneration": 1, "disruptionsAllowed": -1 })).0, 403);
        let many: Map<String, Value> = (0..=2000).map(|n| (n.to_string(), json!(""))).collect();
        let crowded = json!({ "observedGeneration": 1, "disruptionsAllowed": 1, "disruptedPods": many });
        assert_eq!(refused(crowded).0, 403);
    }

    #[test]
    fn the_pod_says_why_it_goes() {
        let gone = disrupted(&pod(true), now());
        assert_eq!(
            gone["status"]["conditions"][1],
            json!({
                "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting", "observedGeneration": 1,
                "lastTransitionTime": "2030-01-01T00:00:00Z",
            })
        );
        let later = "2030-01-01T00:01:00Z".parse().unwrap();
        assert_eq!(disrupted(&gone, later), gone, "said once");
    }
}
