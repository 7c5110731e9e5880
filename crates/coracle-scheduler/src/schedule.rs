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
    let feasible: Vec<_> =
        cluster.nodes().filter(|(node, state)| refusals(pod, node, state).is_empty()).collect();
    let scores = score(pod, &feasible, profile);
    let best = scores.iter().copied().max().unwrap_or(0);
    let equals = || feasible.iter().zip(&scores).filter(|(_, score)| **score == best);
    let count = equals().count();
    let index = usize::try_from(tie % count.max(1) as u64).unwrap_or(0);
    if let Some(((node, _), _)) = equals().nth(index) {
        return Decision::Bind { node: node.name.clone(), score: best, choice: (feasible.len(), count) };
    }
    // What is in the way is worth writing down only where all is.
    let by_node = cluster.nodes().map(|(node, state)| (node.name.clone(), refusals(pod, node, state)));
    let by_node = by_node.collect();
    let message = explain(pod, &by_node);
    Decision::Unschedulable(Unschedulable { by_node, message })
}

fn score(pod: &PodInfo, feasible: &[(&NodeInfo, &NodeState)], profile: &Profile) -> Vec<i64> {
    let disliked = |node| i64::try_from(disliked_taints(pod, node)).unwrap_or(i64::MAX);
    let most_disliked = feasible.iter().map(|(node, _)| disliked(node)).max().unwrap_or(0);
    feasible
        .iter()
        .map(|(node, state)| {
            let taints = match most_disliked {
                0 => SCORE_MAX,
                most => SCORE_MAX - SCORE_MAX * disliked(node) / most,
            };
            profile.least_loaded * least_loaded(pod, node, state) + profile.taints * taints
        })
        .collect()
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
