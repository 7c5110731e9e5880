//! Which nodes are silent, and what has to be said of them.
//!
//! Silence is measured by the time that this process has been looking: a node's clock does not matter, and neither does time
//! that nobody looked in. After a pause of its own (a machine that slept, a process that was stopped) every node gets a
//! moment to be heard first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::taints::{self, NOT_READY, UNREACHABLE};
use super::zones::{Count, Overall, Zones};

/// A node that was heard of is silent after this long.
pub const GRACE: Duration = Duration::from_secs(50);
/// A node that never posted a status is silent after this long.
pub const STARTUP_GRACE: Duration = Duration::from_secs(60);
/// A look that comes later than planned by more than this means that nobody looked in between.
const LATE: Duration = Duration::from_secs(1);
/// How long nodes have to be heard of after such a pause: two renewals of a Lease.
const SETTLE: Duration = Duration::from_secs(20);
/// The conditions that a node agent keeps, which nobody knows when it is silent.
const KEPT: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Whether a node takes Pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readiness {
    Ready,
    NotReady,
    Unknown,
    /// Nobody has said anything yet.
    Unsaid,
}

#[derive(Debug)]
struct Seen {
    uid: String,
    heartbeat: Option<Timestamp>,
    renewed: Option<Timestamp>,
    /// When it was heard of last.
    at: Duration,
    /// Since when its Pods should leave.
    waits: Option<Duration>,
    /// Its turn has come.
    passed: bool,
}

/// What is to be written about one node.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The node as it was looked at.
    pub node: Arc<Node>,
    /// The conditions that change.
    pub conditions: Vec<NodeCondition>,
    /// Its taints, if they change.
    pub taints: Option<Vec<Taint>>,
}

/// What a look came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Nodes that were not known, by name and UID.
    pub registered: Vec<(String, String)>,
    /// Nodes that are gone, by name and UID.
    pub removed: Vec<(String, String)>,
    /// What is to be written.
    pub steps: Vec<Step>,
    /// The nodes that are silent: nobody knows whether their Pods are Ready.
    pub silent: BTreeSet<String>,
    /// When to look again if nothing happens.
    pub wake_at: Option<Duration>,
}

/// What is remembered between looks.
#[derive(Debug, Default)]
pub struct Monitor {
    seen: BTreeMap<String, Seen>,
    zones: Zones,
    planned: Option<Duration>,
}

impl Monitor {
    /// Takes in the time that a node wrote into its Lease.
    pub fn renewed(&mut self, node: &str, time: Option<Timestamp>, elapsed: Duration) {
        if let Some(seen) = self.seen.get_mut(node)
            && seen.renewed != time
        {
            seen.renewed = time;
            seen.at = elapsed;
        }
    }

    /// Looks at all nodes.
    pub fn look(&mut self, nodes: &[Arc<Node>], elapsed: Duration, now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        self.notice(nodes, elapsed, &mut plan);
        if self.planned.is_some_and(|planned| planned + LATE < elapsed) {
            self.hear_out(elapsed + SETTLE);
        }
        let mut counts: BTreeMap<String, Count> = BTreeMap::new();
        for node in nodes {
            let count = counts.entry(Zones::of(node)).or_default();
            match self.readiness(node, elapsed) {
                Readiness::Ready => count.ready += 1,
                _ => count.not_ready += 1,
            }
        }
        let overall = self.zones.update(&counts, elapsed);
        if overall == Overall::Back {
            // Why nobody was heard of may still be passing.
            self.hear_out(elapsed + GRACE);
        }
        self.queue(nodes, overall, elapsed);
        for node in nodes {
            let Some(name) = node.metadata.name.clone() else { continue };
            if self.is_silent(node, elapsed) {
                plan.silent.insert(name);
            }
            plan.steps.extend(self.step(node, overall, elapsed, now));
        }
        plan.wake_at = self.wake_at(nodes, elapsed);
        self.planned = plan.wake_at;
        plan
    }

    /// Nodes that came, went, or were heard of.
    fn notice(&mut self, nodes: &[Arc<Node>], elapsed: Duration, plan: &mut Plan) {
        let uids: BTreeMap<&str, &str> = nodes
            .iter()
            .filter_map(|node| Some((node.metadata.name.as_deref()?, node.metadata.uid.as_deref()?)))
            .collect();
        self.seen.retain(|name, seen| {
            let stays = uids.get(name.as_str()).is_some_and(|uid| *uid == seen.uid);
            if !stays {
                plan.removed.push((name.clone(), seen.uid.clone()));
            }
            stays
        });
        for node in nodes {
            let (Some(name), Some(uid)) = (&node.metadata.name, &node.metadata.uid) else { continue };
            let heartbeat =
                condition(node, "Ready").and_then(|c| c.last_heartbeat_time.as_ref()).map(|t| t.0);
            match self.seen.get_mut(name) {
                Some(seen) if seen.heartbeat != heartbeat => {
                    seen.heartbeat = heartbeat;
                    seen.at = elapsed;
                }
                Some(_) => {}
                None => {
                    plan.registered.push((name.clone(), uid.clone()));
                    let (renewed, waits, passed) = (None, None, false);
                    let seen = Seen { uid: uid.clone(), heartbeat, renewed, at: elapsed, waits, passed };
                    self.seen.insert(name.clone(), seen);
                }
            }
        }
    }

    /// No node is silent before `until`.
    fn hear_out(&mut self, until: Duration) {
        for seen in self.seen.values_mut() {
            seen.at = seen.at.max(until.saturating_sub(GRACE));
        }
    }

    fn silent_at(&self, node: &Node) -> Option<Duration> {
        let seen = self.seen.get(node.metadata.name.as_deref()?)?;
        let grace = if condition(node, "Ready").is_some() { GRACE } else { STARTUP_GRACE };
        Some(seen.at + grace)
    }

    fn is_silent(&self, node: &Node, elapsed: Duration) -> bool {
        self.silent_at(node).is_some_and(|at| at <= elapsed)
    }

    fn readiness(&self, node: &Node, elapsed: Duration) -> Readiness {
        match condition(node, "Ready").map(|condition| condition.status.as_str()) {
            _ if self.is_silent(node, elapsed) => Readiness::Unknown,
            Some("True") => Readiness::Ready,
            Some("False") => Readiness::NotReady,
            Some(_) => Readiness::Unknown,
            None => Readiness::Unsaid,
        }
    }

    /// Who waits for the taint by which Pods leave, and whose turn has come: first come, first served, at each zone's rate.
    fn queue(&mut self, nodes: &[Arc<Node>], overall: Overall, elapsed: Duration) {
        let mut waiting = Vec::new();
        for node in nodes {
            let bad = matches!(self.readiness(node, elapsed), Readiness::NotReady | Readiness::Unknown);
            let tainted = taints::evicts(taints_of(node));
            let Some(name) = node.metadata.name.as_deref() else { continue };
            let Some(seen) = self.seen.get_mut(name) else { continue };
            if !bad || overall == Overall::Nothing {
                (seen.waits, seen.passed) = (None, false);
                continue;
            }
            // Another restart of this controller let it through.
            seen.passed |= tainted;
            if !seen.passed {
                waiting.push((*seen.waits.get_or_insert(elapsed), name, node));
            }
        }
        waiting.sort_by_key(|(since, name, _)| (*since, *name));
        for (_, name, node) in waiting {
            if self.zones.pass(&Zones::of(node), elapsed)
                && let Some(seen) = self.seen.get_mut(name)
            {
                (seen.waits, seen.passed) = (None, true);
            }
        }
    }

    fn step(&self, node: &Arc<Node>, overall: Overall, elapsed: Duration, now: Timestamp) -> Option<Step> {
        let seen = self.seen.get(node.metadata.name.as_deref()?)?;
        let mut conditions =
            node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        let changed =
            if self.is_silent(node, elapsed) { forget(node, &mut conditions, now) } else { Vec::new() };
        let evicts = match self.readiness(node, elapsed) {
            _ if overall == Overall::Nothing || !seen.passed => None,
            Readiness::NotReady => Some(NOT_READY),
            Readiness::Unknown => Some(UNREACHABLE),
            Readiness::Ready | Readiness::Unsaid => None,
        };
        let unschedulable = node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true));
        let taints = taints::wanted(taints_of(node), &conditions, unschedulable, evicts, now);
        (!changed.is_empty() || taints.is_some()).then(|| Step {
            node: node.clone(),
            conditions: changed,
            taints,
        })
    }

    fn wake_at(&self, nodes: &[Arc<Node>], elapsed: Duration) -> Option<Duration> {
        let silences = nodes.iter().filter_map(|node| self.silent_at(node)).filter(|at| *at > elapsed);
        let turns = nodes.iter().filter_map(|node| {
            let seen = self.seen.get(node.metadata.name.as_deref()?)?;
            seen.waits.and_then(|_| self.zones.opens(&Zones::of(node)))
        });
        silences.chain(turns).min()
    }
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

fn taints_of(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// What a silent node said is not known any more: changes `conditions` and returns those that changed.
fn forget(node: &Node, conditions: &mut Vec<NodeCondition>, now: Timestamp) -> Vec<NodeCondition> {
    let mut changed = Vec::new();
    for kind in KEPT {
        let unknown = |reason: &str, message: &str, heartbeat: Option<Time>| NodeCondition {
            type_: kind.to_owned(),
            status: "Unknown".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: heartbeat,
            last_transition_time: Some(Time(now)),
        };
        match conditions.iter_mut().find(|condition| condition.type_ == kind) {
            Some(known) if known.status == "Unknown" => {}
            Some(known) => {
                let heartbeat = known.last_heartbeat_time.clone();
                *known = unknown("NodeStatusUnknown", "Kubelet stopped posting node status.", heartbeat);
                changed.push(known.clone());
            }
            None => {
                let made = node.metadata.creation_timestamp.clone();
                let new = unknown("NodeStatusNeverUpdated", "Kubelet never posted node status.", made);
                conditions.push(new.clone());
                changed.push(new);
            }
        }
    }
    changed
}
