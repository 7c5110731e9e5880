//! What a ReplicaSet lacks, has too much of, and says of itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;

use crate::workload::pods;
use crate::workload::status::time;

/// Most Pods that are made or deleted in one go.
const BURST: usize = 500;
const FAILURE: &str = "ReplicaFailure";

/// What is to be done.
#[derive(Debug)]
pub struct Plan {
    /// How many Pods are to be made.
    pub create: usize,
    /// Which are to go.
    pub delete: Vec<Arc<Pod>>,
    /// What was seen.
    pub status: ReplicaSetStatus,
    /// When a Pod that is ready becomes available, which no event tells.
    pub wake_at: Option<Timestamp>,
}

/// Whether making or deleting Pods went wrong, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was to be done, or it was done.
    Fine,
    /// `FailedCreate` or `FailedDelete`, and the error.
    Failed(&'static str, String),
}

/// Decides about the Pods that a ReplicaSet holds. `related` are the active Pods of its whole workload, by node.
#[must_use]
pub fn reconcile(
    replica_set: &ReplicaSet,
    held: &[Arc<Pod>],
    related: &BTreeMap<&str, usize>,
    now: Timestamp,
) -> Plan {
    let mut active: Vec<Arc<Pod>> = held.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
    let (status, wake_at) = status(replica_set, held, &active, now);
    let mut plan = Plan { create: 0, delete: Vec::new(), status, wake_at };
    if replica_set.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let wanted = wanted(replica_set);
    plan.create = wanted.saturating_sub(active.len()).min(BURST);
    let surplus = active.len().saturating_sub(wanted).min(BURST);
    if surplus > 0 {
        pods::deletion_order(&mut active, related, now);
        active.truncate(surplus);
        plan.delete = active;
    }
    plan
}

/// How many Pods there are to be.
#[must_use]
pub fn wanted(replica_set: &ReplicaSet) -> usize {
    let replicas = replica_set.spec.replicas.unwrap_or(1);
    usize::try_from(replicas).unwrap_or(0)
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// Zero is what an absent number says.
fn said(number: usize) -> Option<i32> {
    (number > 0).then(|| count(number))
}

fn status(
    replica_set: &ReplicaSet,
    held: &[Arc<Pod>],
    active: &[Arc<Pod>],
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Timestamp>) {
    let spec = &replica_set.spec;
    let template_labels = spec
        .template
        .as_ref()
        .and_then(|template| template.metadata.as_ref()?.labels.clone())
        .unwrap_or_default();
    let labelled = |pod: &&Arc<Pod>| {
        let labels = pod.metadata.labels.as_ref();
        template_labels.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    };
    let min_ready_seconds = spec.min_ready_seconds.unwrap_or(0);
    let from: Vec<Timestamp> =
        active.iter().filter_map(|pod| pods::available_from(pod, min_ready_seconds)).collect();
    let conditions = replica_set.status.as_ref().and_then(|status| status.conditions.clone());
    let status = ReplicaSetStatus {
        replicas: count(active.len()),
        fully_labeled_replicas: said(active.iter().filter(labelled).count()),
        ready_replicas: said(active.iter().filter(|pod| pods::is_ready(pod)).count()),
        available_replicas: said(from.iter().filter(|from| **from <= now).count()),
        terminating_replicas: Some(count(held.iter().filter(|pod| pods::is_terminating(pod)).count())),
        observed_generation: replica_set.metadata.generation,
        conditions,
    };
    (status, from.into_iter().filter(|from| *from > now).min())
}

/// The status with what became of the plan.
#[must_use]
pub fn concluded(mut status: ReplicaSetStatus, outcome: &Outcome, now: Timestamp) -> ReplicaSetStatus {
    let conditions = status.conditions.get_or_insert_default();
    match outcome {
        Outcome::Fine => conditions.retain(|condition| condition.type_.as_deref() != Some(FAILURE)),
        // The first failure stays: its time says since when.
        Outcome::Failed(..)
            if conditions.iter().any(|condition| condition.type_.as_deref() == Some(FAILURE)) => {}
        Outcome::Failed(reason, message) => conditions.push(ReplicaSetCondition {
            type_: Some(FAILURE.to_owned()),
            status: Some("True".to_owned()),
            reason: Some((*reason).to_owned()),
            message: Some(message.clone()),
            last_transition_time: Some(time(now)),
        }),
    }
    if conditions.is_empty() {
        status.conditions = None;
    }
    status
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: &str = "2030-01-01T00:01:00Z";

    fn replica_set(replicas: i32, min_ready_seconds: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "r", "generation": 3},
            "spec": {
                "replicas": replicas, "minReadySeconds": min_ready_seconds, "selector": {},
                "template": {"metadata": {"labels": {"app": "a", "more": "b"}}},
            },
        }))
        .unwrap()
    }

    /// `ready` is for how many seconds.
    fn pod(name: &str, phase: &str, ready: Option<i64>, deleting: bool) -> Arc<Pod> {
        let now: Timestamp = NOW.parse().unwrap();
        let ready: Vec<_> = ready
            .map(|seconds| {
                let since = Timestamp::from_second(now.as_second() - seconds).unwrap();
                json!({"type": "Ready", "status": "True", "lastTransitionTime": since.to_string()})
            })
            .into_iter()
            .collect();
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {
                    "name": name, "uid": name, "labels": {"app": "a"},
                    "deletionTimestamp": deleting.then_some(NOW),
                },
                "spec": {"nodeName": "n", "containers": []}, "status": {"phase": phase, "conditions": ready},
            }))
            .unwrap(),
        )
    }

    fn plan(replica_set: &ReplicaSet, held: &[Arc<Pod>]) -> Plan {
        reconcile(replica_set, held, &BTreeMap::new(), NOW.parse().unwrap())
    }

    #[test]
    fn what_is_missing_is_made_and_what_is_too_much_goes() {
        let running = |name: &str| pod(name, "Running", Some(10), false);
        for (what, wanted, held, create, delete) in [
            ("none yet", 3, vec![], 3, 0),
            ("as wanted", 2, vec![running("a"), running("b")], 0, 0),
            ("one ended", 2, vec![running("a"), pod("b", "Failed", None, false)], 1, 0),
            ("one is leaving", 2, vec![running("a"), pod("b", "Running", Some(1), true)], 1, 0),
            ("too many", 1, vec![running("a"), running("b"), running("c")], 0, 2),
            ("none wanted", 0, vec![pod("b", "Running", None, true), running("a")], 0, 1),
            ("very many", 2000, vec![], 500, 0),
        ] {
            let plan = plan(&replica_set(wanted, 0), &held);
            assert_eq!((plan.create, plan.delete.len()), (create, delete), "{what}");
        }
        let mut leaving = replica_set(3, 0);
        leaving.metadata.deletion_timestamp = Some(time(NOW.parse().unwrap()));
        assert_eq!(plan(&leaving, &[]).create, 0, "its owner is going away");
    }

    #[test]
    fn the_status_counts_and_says_when_to_look_again() {
        let held = [
            pod("a", "Running", Some(30), false),
            pod("b", "Running", Some(4), false),
            pod("c", "Pending", None, false),
            pod("d", "Running", Some(30), true),
            pod("e", "Succeeded", None, false),
        ];
        let plan = plan(&replica_set(3, 10), &held);
        let status = serde_json::to_value(&plan.status).unwrap();
        assert_eq!(
            status,
            json!({
                "replicas": 3, "readyReplicas": 2, "availableReplicas": 1, "terminatingReplicas": 1,
                "observedGeneration": 3,
            })
        );
        assert_eq!(plan.wake_at, Some("2030-01-01T00:01:06Z".parse().unwrap()));
    }

    #[test]
    fn a_failure_is_told_until_it_is_over() {
        let now = NOW.parse().unwrap();
        let failed = Outcome::Failed("FailedCreate", "no".to_owned());
        let status = concluded(ReplicaSetStatus::default(), &failed, now);
        let condition = status.conditions.clone().unwrap().remove(0);
        assert_eq!(condition.reason.as_deref(), Some("FailedCreate"));
        let later = Outcome::Failed("FailedCreate", "still no".to_owned());
        assert_eq!(concluded(status.clone(), &later, Timestamp::MAX), status);
        assert_eq!(concluded(status, &Outcome::Fine, now).conditions, None);
    }
}
