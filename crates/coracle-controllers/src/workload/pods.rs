//! What Pods are worth: running or ended, ready, available, and which of them go first.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Whether it has ended, well or not.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether it runs, or is going to, and nobody wants it gone.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Whether it still runs and somebody wants it gone.
pub(crate) fn is_terminating(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_some()
}

/// Since when it is ready, if it is.
fn ready_since(pod: &Pod) -> Option<Option<Timestamp>> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready =
        conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    Some(ready.last_transition_time.as_ref().map(|time| time.0))
}

/// Whether it is ready.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    ready_since(pod).is_some()
}

/// From when a ready Pod counts as available; `None` if it is not ready.
pub(crate) fn available_from(pod: &Pod, min_ready_seconds: i32) -> Option<Timestamp> {
    let since = ready_since(pod)?;
    if min_ready_seconds <= 0 {
        return Some(Timestamp::MIN);
    }
    let patience = SignedDuration::from_secs(min_ready_seconds.into());
    since.map(|since| since.checked_add(patience).unwrap_or(Timestamp::MAX))
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref());
    statuses.unwrap_or_default().iter().map(|status| status.restart_count).max().unwrap_or(0)
}

fn deletion_cost(pod: &Pod) -> i32 {
    let said = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(DELETION_COST));
    said.and_then(|text| text.parse().ok()).unwrap_or(0)
}

pub(crate) fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// The order in which Pods that are too many go, those first that are missed least. `neighbours` counts the active
/// Pods of the same workload by node.
pub(crate) fn deletion_order(pods: &mut [Arc<Pod>], neighbours: &BTreeMap<&str, usize>, now: Timestamp) {
    pods.sort_by(|a, b| missed_less(a, b, neighbours, now));
}

fn missed_less(a: &Pod, b: &Pod, neighbours: &BTreeMap<&str, usize>, now: Timestamp) -> Ordering {
    let phase_rank = |pod: &Pod| match phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let crowd = |pod: &Pod| neighbours.get(node_of(pod)).copied().unwrap_or(0);
    let by = |key: fn(&Pod) -> bool| key(a).cmp(&key(b));
    let ready = |pod: &Pod| ready_since(pod).flatten();
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    by(|pod| !node_of(pod).is_empty())
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| by(is_ready))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| Reverse(crowd(a)).cmp(&Reverse(crowd(b))))
        .then_with(|| younger(a, b, ready, now))
        .then_with(|| Reverse(restarts(a)).cmp(&Reverse(restarts(b))))
        .then_with(|| younger(a, b, created, now))
}

/// Who is younger by `time` goes first, and who has none before all. Who is about as old is as old, and chance decides:
/// otherwise all Pods that were made together would go together.
fn younger(a: &Pod, b: &Pod, time: impl Fn(&Pod) -> Option<Timestamp>, now: Timestamp) -> Ordering {
    match (time(a), time(b)) {
        (same, other) if same == other => Ordering::Equal,
        (None, _) => Ordering::Less,
        (_, None) => Ordering::Greater,
        (Some(one), Some(other)) => {
            let by_chance = || a.metadata.uid.cmp(&b.metadata.uid);
            magnitude(one, now).cmp(&magnitude(other, now)).then_with(by_chance)
        }
    }
}

/// How old something is, in powers of two of nanoseconds.
fn magnitude(since: Timestamp, now: Timestamp) -> Option<u32> {
    u128::try_from(now.as_nanosecond() - since.as_nanosecond()).ok().and_then(u128::checked_ilog2)
}

/// A Pod as a template of Pods describes it, without a name.
pub(crate) fn from_template(
    template: &PodTemplateSpec,
    namespace: &str,
    owner: OwnerReference,
    prefix: &str,
) -> Pod {
    let said = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: Some(namespace.to_owned()),
            generate_name: Some(format!("{prefix}-")),
            labels: said.labels,
            annotations: said.annotations,
            finalizers: said.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, change: &Value) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": "2030-01-01T00:00:00Z"},
            "spec": {"nodeName": "n", "containers": []},
            "status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2030-01-01T00:00:05Z"}],
                "containerStatuses": [
                    {"name": "c", "image": "i", "imageID": "i", "ready": true, "restartCount": 0}
                ],
            },
        });
        for (pointer, value) in change.as_object().into_iter().flatten() {
            let (parent, field) = pointer.rsplit_once('/').unwrap();
            pod.pointer_mut(parent).unwrap()[field] = value.clone();
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn those_that_are_missed_least_go_first() {
        let now: Timestamp = "2030-01-01T01:00:00Z".parse().unwrap();
        let mut pods = vec![
            pod("last", &json!({})),
            pod("older twin", &json!({"/metadata/creationTimestamp": "2029-01-01T00:00:00Z"})),
            pod("restarts", &json!({"/status/containerStatuses/0/restartCount": 3})),
            pod(
                "ready for less",
                &json!({"/status/conditions/0/lastTransitionTime": "2030-01-01T00:59:00Z"}),
            ),
            pod("in a crowd", &json!({"/spec/nodeName": "m"})),
            pod("cheap", &json!({"/metadata/annotations": {DELETION_COST: "-1"}})),
            pod("not ready", &json!({"/status/conditions/0/status": "False"})),
            pod("pending", &json!({"/status/phase": "Pending"})),
            pod("unassigned", &json!({"/spec/nodeName": null})),
        ];
        let mut expected: Vec<String> = pods.iter().map(|pod| pod.metadata.name.clone().unwrap()).collect();
        expected.swap(0, 1);
        expected.reverse();
        deletion_order(&mut pods, &BTreeMap::from([("n", 7), ("m", 8)]), now);
        let order: Vec<String> = pods.iter().map(|pod| pod.metadata.name.clone().unwrap()).collect();
        assert_eq!(order[..7], expected[..7]);
        assert_eq!(order[7..], ["last", "older twin"], "the younger one first");
    }

    #[test]
    fn a_pod_is_available_after_it_was_ready_for_long_enough() {
        let ready = pod("a", &json!({}));
        assert_eq!(available_from(&ready, 0), Some(Timestamp::MIN));
        assert_eq!(available_from(&ready, 10), Some("2030-01-01T00:00:15Z".parse().unwrap()));
        let not = pod("b", &json!({"/status/conditions/0/status": "False"}));
        assert_eq!(available_from(&not, 0), None);
    }
}
