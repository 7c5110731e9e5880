//! The decision: one Pod, all nodes, where to.

use std::collections::BTreeMap;

use crate::NodeState;
use crate::cluster::Cluster;
use crate::filter::{Refusal, disliked_taints, refusals};
use crate::info::{NodeInfo, PodInfo};

/// How much each wish weighs against the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The name that Pods ask for.
    pub scheduler_name: String,
    /// For the node with the largest free share of cpu and memory.
    pub least_loaded: i64,
    /// For the node with the fewest taints that say `PreferNoSchedule`.
    pub taints: i64,
}

impl Default for Profile {
    fn default() -> Self {
        Profile { scheduler_name: "default-scheduler".to_owned(), least_loaded: 1, taints: 3 }
    }
}

/// What is to be done with a Pod, with the record of why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It goes to `node`.
    Bind {
        /// The node.
        node: String,
        /// What it is worth, which no other exceeds.
        score: i64,
        /// How many nodes would do, and how many of them are worth as much.
        choice: (usize, usize),
    },
    /// It cannot go anywhere now.
    Unschedulable(Unschedulable),
}

/// Why a Pod cannot go anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unschedulable {
    /// What is in the way on each node.
    pub by_node: BTreeMap<String, Vec<Refusal>>,
    /// All of it in one sentence, as the user sees it.
    pub message: String,
}

/// The best score a node can get for one wish.
const SCORE_MAX: i64 = 100;

/// Decides where `pod` goes. `tie` picks among equally good nodes.
#[must_use]
pub fn schedule(pod: &PodInfo, cluster: &Cluster, profile: &Profile, tie: u64) -> Decision {
    Ranking::default().schedule(pod, cluster, profile, tie)
}

/// What each node is worth to the Pod that was scheduled last. The next one often asks for the same, and then only nodes
/// that have changed since are looked at again.
#[derive(Debug, Default)]
pub struct Ranking {
    asked: Option<PodInfo>,
    /// The state of the cluster that this is of.
    mark: u64,
    /// All nodes that would do.
    feasible: BTreeMap<String, Worth>,
}

/// What speaks for and against a node.
#[derive(Debug, Clone, Copy)]
struct Worth {
    least_loaded: i64,
    disliked: i64,
}

impl Ranking {
    /// The same decision as [`schedule()`] for this Pod; the cluster has to be the same one every time.
    #[must_use]
    pub fn schedule(&mut self, pod: &PodInfo, cluster: &Cluster, profile: &Profile, tie: u64) -> Decision {
        self.bring_up_to_date(pod, cluster);
        let most_disliked = self.feasible.values().map(|worth| worth.disliked).max().unwrap_or(0);
        let score = |worth: &Worth| {
            let taints = match most_disliked {
                0 => SCORE_MAX,
                most => SCORE_MAX - SCORE_MAX * worth.disliked / most,
            };
            profile.least_loaded * worth.least_loaded + profile.taints * taints
        };
        let best = self.feasible.values().map(score).max().unwrap_or(0);
        let equals = || self.feasible.iter().filter(|(_, worth)| score(worth) == best);
        let count = equals().count();
        let index = usize::try_from(tie % count.max(1) as u64).unwrap_or(0);
        if let Some((node, _)) = equals().nth(index) {
            return Decision::Bind { node: node.clone(), score: best, choice: (self.feasible.len(), count) };
        }
        // What is in the way is worth writing down only where all is.
        let by_node = cluster.nodes().map(|(node, state)| (node.name.clone(), refusals(pod, node, state)));
        let by_node = by_node.collect();
        let message = explain(pod, &by_node);
        Decision::Unschedulable(Unschedulable { by_node, message })
    }

    fn bring_up_to_date(&mut self, pod: &PodInfo, cluster: &Cluster) {
        let changed = match &self.asked {
            Some(asked) if asks_for_the_same(asked, pod) => cluster.changed_since(self.mark),
            _ => None,
        };
        match changed {
            Some(changed) => {
                for name in changed {
                    match cluster.node(name).and_then(|(node, state)| worth(pod, node, state)) {
                        Some(worth) => {
                            self.feasible.insert(name.to_owned(), worth);
                        }
                        None => {
                            self.feasible.remove(name);
                        }
                    }
                }
            }
            None => {
                let worth =
                    |(node, state): (&NodeInfo, _)| Some((node.name.clone(), worth(pod, node, state)?));
                self.feasible = cluster.nodes().filter_map(worth).collect();
                self.asked = Some(pod.clone());
            }
        }
        self.mark = cluster.mark();
    }
}

/// Whether every node is worth the same to both.
fn asks_for_the_same(a: &PodInfo, b: &PodInfo) -> bool {
    a.requests == b.requests
        && a.load == b.load
        && a.node_name == b.node_name
        && a.host_ports == b.host_ports
        && a.node_selector == b.node_selector
        && a.node_affinity == b.node_affinity
        && a.tolerations == b.tolerations
}

/// `None` if the Pod cannot go there.
fn worth(pod: &PodInfo, node: &NodeInfo, state: &NodeState) -> Option<Worth> {
    refusals(pod, node, state).is_empty().then(|| Worth {
        least_loaded: least_loaded(pod, node, state),
        disliked: i64::try_from(disliked_taints(pod, node)).unwrap_or(i64::MAX),
    })
}

/// The share of cpu and memory that would still be free, in the middle of the two.
fn least_loaded(pod: &PodInfo, node: &NodeInfo, state: &NodeState) -> i64 {
    let free = |allocatable: i64, used: i64| {
        if allocatable <= 0 || used > allocatable {
            return 0;
        }
        let share = i128::from(allocatable - used) * i128::from(SCORE_MAX) / i128::from(allocatable);
        i64::try_from(share).unwrap_or(0)
    };
    let cpu = free(node.allocatable.get("cpu"), state.load.cpu.saturating_add(pod.load.cpu));
    let memory = free(node.allocatable.get("memory"), state.load.memory.saturating_add(pod.load.memory));
    i64::midpoint(cpu, memory)
}

/// The message of the FailedScheduling event and the PodScheduled condition.
fn explain(pod: &PodInfo, by_node: &BTreeMap<String, Vec<Refusal>>) -> String {
    let count = by_node.len();
    if count == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let reasons = histogram(by_node.values().flatten().map(Refusal::to_string));
    let preemption = if pod.never_preempts {
        "not eligible due to preemptionPolicy=Never.".to_owned()
    } else {
        let helpful = |refusals: &Vec<Refusal>| refusals.iter().all(Refusal::resolvable);
        let outlook = histogram(by_node.values().map(|refusals| {
            if helpful(refusals) {
                "No preemption victims found for incoming pod".to_owned()
            } else {
                "Preemption is not helpful for scheduling".to_owned()
            }
        }));
        format!("0/{count} nodes are available: {outlook}.")
    };
    format!("0/{count} nodes are available: {reasons}. preemption: {preemption}")
}

/// `<count> <reason>` for each reason, sorted as text.
fn histogram(reasons: impl Iterator<Item = String>) -> String {
    let mut counts = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_insert(0u64) += 1;
    }
    let mut lines: Vec<_> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    lines.sort();
    lines.join(", ")
}
