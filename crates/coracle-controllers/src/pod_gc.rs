//! Removes Pods that nobody else will: of nodes that are gone, on nodes out of service, terminating without a node, and the
//! oldest ended ones when there are too many.
//!
//! A Pod that has not ended becomes Failed first: whoever waits for its end hears of one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use coracle_client::request::{self, PatchBody};
use coracle_client::{Deletion, ErrorExt as _, ObjectKey, key_of, uid_of};
use coracle_clock::{Clock, select};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Client, Error};
use serde_json::{Value, json};

use crate::ControllerInputs;

/// How many ended Pods may stay: upstream's default.
pub const ENDED_MAX: usize = 12_500;
/// How long the Node of a Pod may be missing before it is asked for.
pub const QUARANTINE: Duration = Duration::from_secs(40);
/// Changes of Pods are looked at this often at most, as upstream does.
const PERIOD: Duration = Duration::from_secs(20);
/// A taint that an administrator sets: the node is certainly off.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Why a Pod goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Too many have ended.
    Ended,
    /// It is terminating on a node that is out of service.
    OutOfService,
    /// Its node is gone.
    Orphaned,
    /// It is terminating and never had a node.
    Unscheduled,
}

/// What is known of nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nodes {
    /// The nodes there are.
    pub names: BTreeSet<String>,
    /// Those that are out of service and not Ready.
    pub out_of_service: BTreeSet<String>,
}

impl Nodes {
    /// What `nodes` tell.
    #[must_use]
    pub fn of(nodes: &[Arc<Node>]) -> Self {
        let mut known = Nodes::default();
        for node in nodes {
            let Some(name) = node.metadata.name.clone() else { continue };
            let tainted = node
                .spec
                .as_ref()
                .is_some_and(|spec| spec.taints.iter().flatten().any(|taint| taint.key == OUT_OF_SERVICE));
            let ready = node.status.as_ref().is_some_and(|status| {
                let mut conditions = status.conditions.iter().flatten();
                conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
            });
            if tainted && !ready {
                known.out_of_service.insert(name.clone());
            }
            known.names.insert(name);
        }
        known
    }
}

/// Since when nodes that Pods are bound to are missing.
#[derive(Debug, Default)]
pub struct Missing(BTreeMap<String, Duration>);

impl Missing {
    /// Takes in which nodes there are, and returns those that have been missing for too long, and when the next one will.
    pub fn update(
        &mut self,
        pods: &[Arc<Pod>],
        nodes: &Nodes,
        elapsed: Duration,
    ) -> (BTreeSet<String>, Option<Duration>) {
        let wanted: BTreeSet<&str> =
            pods.iter().map(|pod| node_of(pod)).filter(|name| !name.is_empty()).collect();
        self.0.retain(|name, _| wanted.contains(name.as_str()) && !nodes.names.contains(name));
        for name in wanted {
            if !nodes.names.contains(name) {
                self.0.entry(name.to_owned()).or_insert(elapsed);
            }
        }
        let over = |since: Duration| since + QUARANTINE <= elapsed;
        let next = self.0.values().filter(|since| !over(**since)).map(|since| *since + QUARANTINE).min();
        (self.0.iter().filter(|(_, since)| over(**since)).map(|(name, _)| name.clone()).collect(), next)
    }
}

/// Which Pods go, and why. `gone` are the nodes that certainly do not exist; without a number any number of ended Pods
/// may stay.
#[must_use]
pub fn reconcile(
    pods: &[Arc<Pod>],
    nodes: &Nodes,
    gone: &BTreeSet<String>,
    ended_max: Option<usize>,
) -> Vec<(Arc<Pod>, Why)> {
    let mut ended: Vec<_> = pods.iter().filter(|pod| has_ended(pod)).collect();
    let surplus = ended_max.map_or(0, |max| ended.len().saturating_sub(max));
    if surplus > 0 {
        // The evicted first, then the oldest.
        ended.sort_by_key(|pod| {
            let evicted = reason(pod) == Some("Evicted") && phase(pod) == Some("Failed");
            let made = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (!evicted, made, pod.metadata.name.clone())
        });
    }
    let mut plan: Vec<_> = ended.into_iter().take(surplus).map(|pod| (pod.clone(), Why::Ended)).collect();
    for pod in pods {
        let (node, terminating) = (node_of(pod), pod.metadata.deletion_timestamp.is_some());
        let why = if terminating && nodes.out_of_service.contains(node) {
            Why::OutOfService
        } else if gone.contains(node) {
            Why::Orphaned
        } else if terminating && node.is_empty() {
            Why::Unscheduled
        } else {
            continue;
        };
        plan.push((pod.clone(), why));
    }
    plan
}

/// The patch by which a Pod ends before it is removed; `None` if it has ended.
#[must_use]
pub fn failed(pod: &Pod, why: Why, now: Timestamp) -> Option<Value> {
    if matches!(phase(pod), Some("Succeeded" | "Failed")) {
        return None;
    }
    let mut status = json!({"phase": "Failed"});
    if why == Why::Orphaned {
        let mut condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
            "message": "PodGC: node no longer exists", "lastTransitionTime": coracle_api::metadata::rfc3339(now),
        });
        if let Some(generation) = pod.metadata.generation {
            condition["observedGeneration"] = generation.into();
        }
        status["conditions"] = json!([condition]);
    }
    Some(json!({"metadata": {"uid": pod.metadata.uid}, "status": status}))
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

fn reason(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.reason.as_deref()
}

fn has_ended(pod: &Pod) -> bool {
    !matches!(phase(pod), None | Some("Pending" | "Running" | "Unknown"))
}

pub(crate) async fn run(client: Client, inputs: ControllerInputs, clock: Clock, ended_max: Option<usize>) {
    let (mut nodes, mut pods) = (inputs.nodes.subscribe(), inputs.pods.subscribe());
    inputs.nodes.synced().await;
    inputs.pods.synced().await;
    let mut missing = Missing::default();
    let mut known = Nodes::default();
    let mut last: Option<Duration> = None;
    let mut due = Some(Duration::ZERO);
    loop {
        nodes.pending();
        let now_known = Nodes::of(&inputs.nodes.list());
        let moved = now_known != known;
        known = now_known;
        if moved || due.is_some_and(|due| due <= clock.elapsed()) {
            pods.pending();
            last = Some(clock.elapsed());
            due = look(&client, &inputs, &clock, &known, &mut missing, ended_max).await;
        }
        let wait = due.map(|due| due.saturating_sub(clock.elapsed()));
        select! {
            open = nodes.filled() => if !open { return },
            () = clock.sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            // Not more often than once a period; what a Pod's change asks for can wait for that.
            open = pods.filled(), if due.is_none_or(|due| due > clock.elapsed() + PERIOD) => {
                if !open {
                    return;
                }
                let next = last.map_or(Duration::ZERO, |last| last + PERIOD).max(clock.elapsed());
                due = Some(due.map_or(next, |due| due.min(next)));
            }
        }
    }
}

/// One look at everything; when to look again.
async fn look(
    client: &Client,
    inputs: &ControllerInputs,
    clock: &Clock,
    nodes: &Nodes,
    missing: &mut Missing,
    ended_max: Option<usize>,
) -> Option<Duration> {
    let pods = inputs.pods.list();
    let (suspects, mut next) = missing.update(&pods, nodes, clock.elapsed());
    let later = clock.elapsed() + PERIOD;
    let mut again = || next = Some(next.map_or(later, |next| next.min(later)));
    let mut gone = BTreeSet::new();
    for name in suspects {
        // The informer may be behind; the API server is not.
        match request::get::<Node>(client, &ObjectKey::cluster(name.as_str())).await {
            Err(error) if error.is_not_found() => {
                gone.insert(name);
            }
            Ok(_) => again(),
            Err(error) => {
                tracing::warn!(
                    node = name,
                    error = &error as &dyn std::error::Error,
                    "cannot ask for a node"
                );
                again();
            }
        }
    }
    for (pod, why) in reconcile(&pods, nodes, &gone, ended_max) {
        let key = key_of(pod.as_ref());
        match remove(client, &key, &pod, why, clock.now()).await {
            Ok(()) => tracing::info!(pod = %key, ?why, "removed a Pod that nobody else would"),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(pod = %key, ?why, error, "cannot remove a Pod");
                again();
            }
        }
    }
    next
}

async fn remove(client: &Client, key: &ObjectKey, pod: &Pod, why: Why, now: Timestamp) -> Result<(), Error> {
    let result = async {
        if let Some(patch) = failed(pod, why, now) {
            request::patch_status::<Pod>(client, key, &PatchBody::Strategic(patch)).await?;
        }
        request::delete::<Pod>(client, key, &Deletion::of(uid_of(pod)).grace(0)).await
    };
    match result.await {
        // It is gone, or another one by now.
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        result => result.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn pod(name: &str, node: &str, phase: &str, terminating: bool) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": {"name": name, "uid": name, "generation": 2, "creationTimestamp": "2030-01-01T00:00:00Z"},
            "spec": {"containers": []}, "status": {"phase": phase},
        });
        if !node.is_empty() {
            pod["spec"]["nodeName"] = node.into();
        }
        if terminating {
            pod["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z".into();
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn chosen(plan: &[(Arc<Pod>, Why)]) -> Vec<(&str, Why)> {
        plan.iter().map(|(pod, why)| (pod.metadata.name.as_deref().unwrap(), *why)).collect()
    }

    #[test]
    fn each_kind_of_leftover_is_found() {
        let pods = [
            pod("fine", "n", "Running", false),
            pod("terminating", "n", "Running", true),
            pod("orphan", "gone", "Running", false),
            pod("lost", "off", "Running", true),
            pod("staying", "off", "Running", false),
            pod("unbound", "", "Pending", true),
            pod("pending", "", "Pending", false),
        ];
        let nodes = Nodes { names: set(&["n", "off"]), out_of_service: set(&["off"]) };
        let plan = reconcile(&pods, &nodes, &set(&["gone"]), Some(10));
        assert_eq!(
            chosen(&plan),
            [("orphan", Why::Orphaned), ("lost", Why::OutOfService), ("unbound", Why::Unscheduled)]
        );
    }

    #[test]
    fn of_too_many_ended_pods_the_evicted_and_the_oldest_go() {
        let mut evicted = pod("evicted", "n", "Failed", false);
        Arc::make_mut(&mut evicted).status.as_mut().unwrap().reason = Some("Evicted".into());
        let mut older = pod("older", "n", "Succeeded", false);
        let time = "2029-01-01T00:00:00Z".parse().unwrap();
        Arc::make_mut(&mut older).metadata.creation_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(time));
        let all = [
            pod("b", "n", "Failed", false),
            pod("a", "n", "Succeeded", false),
            pod("running", "n", "Running", false),
            older,
            evicted,
        ];
        let nodes = Nodes { names: set(&["n"]), out_of_service: set(&[]) };
        let names = |max| {
            let plan = reconcile(&all, &nodes, &set(&[]), max);
            chosen(&plan).into_iter().map(|(name, _)| name.to_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(None), "");
        assert_eq!(names(Some(4)), "");
        assert_eq!(names(Some(3)), "evicted");
        assert_eq!(names(Some(1)), "evicted older a");
    }

    #[test]
    fn a_missing_node_is_missed_for_a_while_first() {
        let mut missing = Missing::default();
        let pods = [pod("p", "n", "Running", false)];
        let nodes = Nodes::default();
        assert_eq!(missing.update(&pods, &nodes, seconds(5)), (set(&[]), Some(seconds(45))));
        assert_eq!(missing.update(&pods, &nodes, seconds(44)), (set(&[]), Some(seconds(45))));
        assert_eq!(missing.update(&pods, &nodes, seconds(45)), (set(&["n"]), None));
        let back = Nodes { names: set(&["n"]), out_of_service: set(&[]) };
        assert_eq!(missing.update(&pods, &back, seconds(46)), (set(&[]), None));
        assert_eq!(missing.update(&pods, &nodes, seconds(50)), (set(&[]), Some(seconds(90))));
    }

    #[test]
    fn a_pod_that_has_not_ended_fails_first() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(failed(&pod("p", "n", "Succeeded", false), Why::Orphaned, now), None);
        let lost = failed(&pod("p", "n", "Running", false), Why::OutOfService, now).unwrap();
        assert_eq!(lost, json!({"metadata": {"uid": "p"}, "status": {"phase": "Failed"}}));
        let orphaned = failed(&pod("p", "n", "Running", false), Why::Orphaned, now).unwrap();
        assert_eq!(
            orphaned["status"]["conditions"],
            json!([{
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                "message": "PodGC: node no longer exists", "lastTransitionTime": "1970-01-01T00:00:00Z",
                "observedGeneration": 2,
            }])
        );
    }

    #[test]
    fn a_node_is_out_of_service_when_it_is_said_to_be_and_is_not_ready() {
        let node = |ready: &str| {
            let node = json!({
                "metadata": {"name": "n"},
                "spec": {"taints": [{"key": OUT_OF_SERVICE, "value": "nodeshutdown", "effect": "NoExecute"}]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            });
            [Arc::new(serde_json::from_value::<Node>(node).unwrap())]
        };
        assert_eq!(Nodes::of(&node("Unknown")).out_of_service, set(&["n"]));
        assert_eq!(Nodes::of(&node("True")).out_of_service, set(&[]));
    }
}
