//! How many Pods of a budget may be disrupted, and which disruptions never happened.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_client::{EventType, uid_of};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::workload::status::time;
use crate::workload::{controller_of, pods, selector};

/// How long a Pod may take from its eviction to its deletion before nobody believes in it any more.
pub const PATIENCE: SignedDuration = SignedDuration::from_secs(2 * 60);

const CONDITION: &str = "DisruptionAllowed";

/// What a look at a budget came to.
#[derive(Debug)]
pub struct Plan {
    /// What was seen.
    pub status: PodDisruptionBudgetStatus,
    /// When an eviction that did not become a deletion is forgotten, which no event tells.
    pub wake_at: Option<Timestamp>,
    /// What is told of the budget.
    pub told: Vec<(EventType, &'static str, String)>,
    /// The Pods whose evictions did not become deletions.
    pub not_deleted: Vec<Arc<Pod>>,
}

/// The controller of Pods and how many it is to have; `None` if there is no such controller, an error if it is of a kind
/// that has no such number.
pub type Scaled = Result<Option<(String, i64)>, String>;

/// Decides about a budget. `pods` are those that it selects, `scale` says how many Pods a controller is to have.
#[must_use]
pub fn reconcile(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    scale: impl Fn(&OwnerReference) -> Scaled,
    now: Timestamp,
) -> Plan {
    let old = budget.status.clone().unwrap_or_default();
    let mut told = Vec::new();
    if pods.is_empty() {
        told.push((EventType::Normal, "NoPods", "No matching pods found".to_owned()));
    }
    let expected = match expected(budget, pods, scale) {
        Ok(expected) => expected,
        Err(why) => {
            let message = format!("Failed to calculate the number of expected pods: {why}");
            told.push((EventType::Warning, "CalculateExpectedPodCountFailed", message));
            // Nothing is allowed while nobody can say how much would be too much.
            let mut status = PodDisruptionBudgetStatus { disruptions_allowed: Some(0), ..old };
            set_condition(&mut status, "False", "SyncFailed", why, budget.metadata.generation, now);
            return Plan { status, wake_at: None, told, not_deleted: Vec::new() };
        }
    };
    if expected.unmanaged {
        let wanted = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()).and_then(selector);
        let message = format!(
            "Pods selected by this PodDisruptionBudget (selector: {}) were found to be unmanaged. As a result, the \
             status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for \
             these pods please set \".spec.minAvailable\" field of the PDB to an integer value.",
            wanted.map(|wanted| wanted.to_string()).unwrap_or_default()
        );
        told.push((EventType::Warning, "UnmanagedPods", message));
    }
    let awaited = awaited(pods, old.disrupted_pods.as_ref(), now);
    let healthy = |pod: &&Arc<Pod>| {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        pod.metadata.deletion_timestamp.is_none()
            && pods::is_ready(pod)
            // At the very end of its time an eviction is still awaited, but its Pod counts again.
            && awaited.disrupted.get(name).is_none_or(|at| end_of(at) <= now)
    };
    let current = i64::try_from(pods.iter().filter(healthy).count()).unwrap_or(i64::MAX);
    let allowed = if expected.count > 0 { (current - expected.healthy).max(0) } else { 0 };
    let number = |count: i64| Some(i32::try_from(count).unwrap_or(i32::MAX));
    let mut status = PodDisruptionBudgetStatus {
        current_healthy: number(current),
        desired_healthy: number(expected.healthy),
        expected_pods: number(expected.count),
        disruptions_allowed: number(allowed),
        disrupted_pods: Some(awaited.disrupted).filter(|disrupted| !disrupted.is_empty()),
        observed_generation: budget.metadata.generation,
        conditions: old.conditions,
    };
    let (truth, reason) =
        if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    set_condition(&mut status, truth, reason, String::new(), budget.metadata.generation, now);
    Plan { status, wake_at: awaited.wake_at, told, not_deleted: awaited.over }
}

#[derive(Debug, PartialEq)]
struct Expected {
    /// How many Pods there are to be.
    count: i64,
    /// How many of them have to be healthy.
    healthy: i64,
    /// Whether Pods without a controller are among them, which no share can be taken of.
    unmanaged: bool,
}

fn expected(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    scale: impl Fn(&OwnerReference) -> Scaled,
) -> Result<Expected, String> {
    let spec = budget.spec.clone().unwrap_or_default();
    if let Some(most) = &spec.max_unavailable {
        let (count, unmanaged) = scales(pods, scale)?;
        return Ok(Expected { count, healthy: (count - share(most, count)).max(0), unmanaged });
    }
    match &spec.min_available {
        Some(IntOrString::Int(least)) => {
            let count = i64::try_from(pods.len()).unwrap_or(i64::MAX);
            Ok(Expected { count, healthy: (*least).into(), unmanaged: false })
        }
        Some(least) => {
            let (count, unmanaged) = scales(pods, scale)?;
            Ok(Expected { count, healthy: share(least, count), unmanaged })
        }
        None => Ok(Expected { count: 0, healthy: 0, unmanaged: false }),
    }
}

/// How many Pods the controllers of `pods` are to have together, and whether some Pods have none.
fn scales(pods: &[Arc<Pod>], scale: impl Fn(&OwnerReference) -> Scaled) -> Result<(i64, bool), String> {
    let mut asked: BTreeMap<&str, ()> = BTreeMap::new();
    let mut known: BTreeMap<String, i64> = BTreeMap::new();
    let mut unmanaged = false;
    for pod in pods {
        let Some(controller) = controller_of(pod.as_ref()) else {
            unmanaged = true;
            continue;
        };
        if asked.insert(&controller.uid, ()).is_some() {
            continue;
        }
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let (uid, count) =
            scale(controller)?.ok_or_else(|| format!("found no controllers for pod {name:?}"))?;
        known.insert(uid, count);
    }
    Ok((known.values().sum(), unmanaged))
}

/// A number, or a share of `total`, rounded up.
fn share(value: &IntOrString, total: i64) -> i64 {
    match value {
        IntOrString::Int(number) => (*number).into(),
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%').and_then(|text| text.parse().ok()).unwrap_or(0);
            (percent.saturating_mul(total) + 99) / 100
        }
    }
}

fn end_of(evicted: &Time) -> Timestamp {
    evicted.0.checked_add(PATIENCE).unwrap_or(Timestamp::MAX)
}

/// Evictions that are still to become deletions.
struct Awaited {
    disrupted: BTreeMap<String, Time>,
    wake_at: Option<Timestamp>,
    over: Vec<Arc<Pod>>,
}

fn awaited(pods: &[Arc<Pod>], before: Option<&BTreeMap<String, Time>>, now: Timestamp) -> Awaited {
    let mut awaited = Awaited { disrupted: BTreeMap::new(), wake_at: None, over: Vec::new() };
    for pod in pods {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let evicted = before.and_then(|before| before.get(name));
        let Some(evicted) = evicted.filter(|_| pod.metadata.deletion_timestamp.is_none()) else { continue };
        let end = end_of(evicted);
        if end < now {
            awaited.over.push(Arc::clone(pod));
            continue;
        }
        // A moment after its end it is over.
        let wake = end.checked_add(SignedDuration::from_secs(1)).unwrap_or(end);
        awaited.wake_at = Some(awaited.wake_at.map_or(wake, |earlier| earlier.min(wake)));
        awaited.disrupted.insert(name.to_owned(), evicted.clone());
    }
    awaited
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    truth: &str,
    reason: &str,
    message: String,
    generation: Option<i64>,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let old = conditions.iter().position(|condition| condition.type_ == CONDITION);
    let since = old.map(|at| &conditions[at]).filter(|old| old.status == truth);
    let new = Condition {
        type_: CONDITION.to_owned(),
        status: truth.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: since.map_or_else(|| time(now), |old| old.last_transition_time.clone()),
    };
    match old {
        Some(at) => conditions[at] = new,
        None => conditions.push(new),
    }
}

/// From when on nobody believes any more that a Pod is about to be disrupted, as its status says; `None` if it does not
/// say so, or is believed for ever.
#[must_use]
pub fn stale_from(pod: &Pod) -> Option<Timestamp> {
    if pod.metadata.deletion_timestamp.is_some() || pods::is_terminal(pod) {
        return None;
    }
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let said = conditions.iter().find(|condition| condition.type_ == "DisruptionTarget")?;
    // A node agent may take as long as it likes between saying it and ending the Pod.
    if said.status != "True" || said.reason.as_deref() == Some("TerminationByKubelet") {
        return None;
    }
    let since = said.last_transition_time.as_ref().map_or(Timestamp::MIN, |since| since.0);
    Some(since.checked_add(PATIENCE).unwrap_or(Timestamp::MAX))
}

/// What a budget looks at in a Pod.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sight {
    uid: String,
    ready: bool,
    deleting: bool,
    controller: Option<String>,
}

impl Sight {
    pub(crate) fn of(pod: &Pod) -> Self {
        Sight {
            uid: uid_of(pod).to_owned(),
            ready: pods::is_ready(pod),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            controller: controller_of(pod).map(|controller| controller.uid.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn now() -> Timestamp {
        "2030-01-01T00:10:00Z".parse().unwrap()
    }

    fn pod(name: &str, ready: bool, owner: Option<&str>) -> Arc<Pod> {
        let ready = if ready { "True" } else { "False" };
        let mut pod = json!({
            "metadata": { "name": name, "uid": name },
            "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": ready }] },
        });
        if let Some(owner) = owner {
            pod["metadata"]["ownerReferences"] = json!([
                { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": true }
            ]);
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        let budget = json!({ "metadata": { "generation": 2 }, "spec": spec, "status": status });
        serde_json::from_value(budget).unwrap()
    }

    /// Owners are named by how many Pods they are to have.
    fn scale(owner: &OwnerReference) -> Scaled {
        match owner.name.split_once('-') {
            Some((count, _)) => Ok(Some((owner.uid.clone(), count.parse().unwrap()))),
            None if owner.name == "gone" => Ok(None),
            None => Err(format!("{} does not implement the scale subresource", owner.name)),
        }
    }

    fn look(spec: Value, status: Value, pods: &[Arc<Pod>]) -> Plan {
        reconcile(&budget(spec, status), pods, scale, now())
    }

    /// Allowed, current, desired, expected.
    fn counts(plan: &Plan) -> [i32; 4] {
        let status = &plan.status;
        [status.disruptions_allowed, status.current_healthy, status.desired_healthy, status.expected_pods]
            .map(Option::unwrap)
    }

    #[test]
    fn numbers_count_pods_and_shares_count_what_controllers_want() {
        let ready = |count: usize, owner: Option<&str>| -> Vec<Arc<Pod>> {
            (0..count).map(|n| pod(&format!("p{n}"), true, owner)).collect()
        };
        for (spec, pods, expected) in [
            (json!({ "minAvailable": 2 }), ready(3, None), [1, 3, 2, 3]),
            (json!({ "minAvailable": 3 }), ready(3, None), [0, 3, 3, 3]),
            (json!({ "minAvailable": 5 }), ready(3, None), [0, 3, 5, 3]),
            (json!({ "minAvailable": "50%" }), ready(5, Some("5-a")), [2, 5, 3, 5]),
            (json!({ "minAvailable": "50%" }), ready(2, Some("5-a")), [0, 2, 3, 5]),
            (json!({ "maxUnavailable": 1 }), ready(5, Some("5-a")), [1, 5, 4, 5]),
            (json!({ "maxUnavailable": "25%" }), ready(5, Some("5-a")), [2, 5, 3, 5]),
            (json!({ "maxUnavailable": 9 }), ready(5, Some("5-a")), [5, 5, 0, 5]),
            (json!({ "maxUnavailable": 0 }), ready(5, Some("5-a")), [0, 5, 5, 5]),
            (json!({}), ready(2, None), [0, 2, 0, 0]),
            (json!({ "minAvailable": 0 }), Vec::new(), [0, 0, 0, 0]),
        ] {
            let plan = look(spec.clone(), json!({}), &pods);
            assert_eq!(counts(&plan), expected, "{spec} of {}", pods.len());
            let condition = &plan.status.conditions.as_ref().unwrap()[0];
            let (truth, reason) =
                if expected[0] > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
            assert_eq!((condition.status.as_str(), condition.reason.as_str()), (truth, reason));
            assert_eq!(plan.status.observed_generation, Some(2));
        }
        let two = [pod("a", true, Some("3-a")), pod("b", true, Some("3-a")), pod("c", true, Some("2-b"))];
        assert_eq!(counts(&look(json!({ "maxUnavailable": 0 }), json!({}), &two)), [0, 3, 5, 5]);
    }

    #[test]
    fn pods_that_are_not_ready_going_or_evicted_are_not_healthy() {
        let mut going = pod("going", true, None).as_ref().clone();
        going.metadata.deletion_timestamp = Some(Time(now()));
        let pods = [pod("a", true, None), pod("b", false, None), Arc::new(going), pod("evicted", true, None)];
        let status = json!({ "disruptedPods": { "evicted": "2030-01-01T00:09:00Z", "away": "2030-01-01T00:09:00Z",
                                                "going": "2030-01-01T00:09:00Z" } });
        let plan = look(json!({ "minAvailable": 1 }), status, &pods);
        assert_eq!(counts(&plan), [0, 1, 1, 4]);
        let kept: Vec<&String> = plan.status.disrupted_pods.as_ref().unwrap().keys().collect();
        assert_eq!(kept, ["evicted"], "those that go, or went, are no longer awaited");
        assert_eq!(plan.wake_at, Some("2030-01-01T00:11:01Z".parse().unwrap()));
    }

    #[test]
    fn an_eviction_that_did_not_become_a_deletion_is_forgotten_after_two_minutes() {
        let pods = [pod("a", true, None), pod("evicted", true, None)];
        let status = |at: &str| json!({ "disruptedPods": { "evicted": at } });
        let plan = look(json!({ "minAvailable": 1 }), status("2030-01-01T00:07:59Z"), &pods);
        assert_eq!(counts(&plan), [1, 2, 1, 2]);
        assert_eq!((plan.status.disrupted_pods, plan.wake_at), (None, None));
        assert_eq!(plan.not_deleted.len(), 1);
    }

    #[test]
    fn what_cannot_be_calculated_allows_nothing_and_says_why() {
        let had =
            json!({ "disruptionsAllowed": 2, "currentHealthy": 3, "desiredHealthy": 1, "expectedPods": 3 });
        for (owner, why) in [
            ("gone", "found no controllers for pod \"p\""),
            ("jobs.batch", "jobs.batch does not implement the scale subresource"),
        ] {
            let plan = look(json!({ "maxUnavailable": 1 }), had.clone(), &[pod("p", true, Some(owner))]);
            assert_eq!(counts(&plan), [0, 3, 1, 3], "what was known stays");
            let condition = &plan.status.conditions.as_ref().unwrap()[0];
            assert_eq!((condition.reason.as_str(), condition.message.as_str()), ("SyncFailed", why));
            let (kind, reason, message) = &plan.told[0];
            assert_eq!((*kind, *reason), (EventType::Warning, "CalculateExpectedPodCountFailed"));
            assert_eq!(message, &format!("Failed to calculate the number of expected pods: {why}"));
            let fine = look(json!({ "minAvailable": 0 }), json!({}), &[pod("p", true, Some(owner))]);
            assert_eq!(counts(&fine), [1, 1, 0, 1], "a plain number asks no controller");
        }
    }

    #[test]
    fn no_pods_and_pods_of_nobody_are_told() {
        let none = look(json!({ "minAvailable": 1 }), json!({}), &[]);
        assert_eq!(none.told, [(EventType::Normal, "NoPods", "No matching pods found".to_owned())]);
        let bare = look(json!({ "maxUnavailable": 1 }), json!({}), &[pod("p", true, None)]);
        assert_eq!((bare.told[0].1, counts(&bare)), ("UnmanagedPods", [0, 1, 0, 0]));
        let counted = look(json!({ "minAvailable": 1 }), json!({}), &[pod("p", true, None)]);
        assert_eq!(counted.told, []);
    }

    #[test]
    fn a_condition_keeps_its_time_while_its_truth_does() {
        let pods = [pod("a", true, None)];
        let first = look(json!({ "minAvailable": 0 }), json!({}), &pods);
        let status = serde_json::to_value(&first.status).unwrap();
        let later = "2030-01-01T00:20:00Z".parse().unwrap();
        let again = reconcile(&budget(json!({ "minAvailable": 0 }), status.clone()), &pods, scale, later);
        assert_eq!(serde_json::to_value(&again.status).unwrap(), status, "a second look changes nothing");
        let less = reconcile(&budget(json!({ "minAvailable": 1 }), status), &pods, scale, later);
        assert_eq!(less.status.conditions.unwrap()[0].last_transition_time.0, later);
    }

    #[test]
    fn only_an_announced_disruption_that_nobody_carries_out_is_stale() {
        let pod = |reason: &str, truth: &str, phase: &str, deleting: bool| {
            let mut pod = json!({ "metadata": {}, "status": { "phase": phase, "conditions": [{
                "type": "DisruptionTarget", "status": truth, "reason": reason,
                "lastTransitionTime": "2030-01-01T00:00:00Z",
            }] } });
            if deleting {
                pod["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z".into();
            }
            serde_json::from_value::<Pod>(pod).unwrap()
        };
        let eviction = "EvictionByEvictionAPI";
        let at = Some("2030-01-01T00:02:00Z".parse().unwrap());
        assert_eq!(stale_from(&pod(eviction, "True", "Running", false)), at);
        assert_eq!(stale_from(&pod(eviction, "False", "Running", false)), None);
        assert_eq!(stale_from(&pod(eviction, "True", "Failed", false)), None);
        assert_eq!(stale_from(&pod(eviction, "True", "Running", true)), None);
        assert_eq!(stale_from(&pod("TerminationByKubelet", "True", "Running", false)), None);
    }
}
