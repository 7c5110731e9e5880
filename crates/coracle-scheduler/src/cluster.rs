//! Who is where: nodes, the Pods on them, and Pods whose binding is under way.

use std::collections::{BTreeMap, VecDeque};

use coracle_client::ObjectKey;

use crate::Amounts;
use crate::amounts::NonZero;
use coracle_api::placement::HostPort;

use crate::info::{NodeInfo, PodInfo};

/// What is used of a node.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NodeState {
    /// Requests of its Pods.
    pub used: Amounts,
    /// What its Pods count for when load is compared.
    pub load: NonZero,
    /// How many Pods.
    pub pods: i64,
    /// Ports its Pods hold, each with how many of them do.
    pub ports: BTreeMap<HostPort, usize>,
}

impl NodeState {
    fn add(&mut self, pod: &PodInfo) {
        self.used.add(&pod.requests);
        self.load.add(&pod.load);
        self.pods += 1;
        for port in &pod.host_ports {
            *self.ports.entry(port.clone()).or_insert(0) += 1;
        }
    }

    fn remove(&mut self, pod: &PodInfo) {
        self.used.subtract(&pod.requests);
        self.load.subtract(&pod.load);
        self.pods -= 1;
        for port in &pod.host_ports {
            if let Some(count) = self.ports.get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    self.ports.remove(port);
                }
            }
        }
    }
}

/// The scheduler's view of the cluster.
///
/// A Pod counts on its node from the moment it is assumed there until it has ended, is gone, or its binding has
/// failed; so many bindings in flight stay within what the nodes have.
#[derive(Debug, Default)]
pub struct Cluster {
    nodes: BTreeMap<String, NodeInfo>,
    /// Also of nodes that are not known (yet).
    states: BTreeMap<String, NodeState>,
    placed: BTreeMap<String, Placed>,
    uids: BTreeMap<ObjectKey, String>,
    idle: NodeState,
    changes: Changes,
}

/// Names of the nodes that changed last, in order.
#[derive(Debug, Default)]
struct Changes {
    names: VecDeque<String>,
    /// How many were forgotten.
    before: u64,
}

/// How many changes of nodes are remembered.
const CHANGES: usize = 1024;

impl Changes {
    fn note(&mut self, node: &str) {
        self.names.push_back(node.to_owned());
        if self.names.len() > CHANGES {
            self.names.pop_front();
            self.before += 1;
        }
    }
}

#[derive(Debug)]
struct Placed {
    node: String,
    pod: PodInfo,
    assumed: bool,
}

impl Cluster {
    /// Without nodes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Nodes in order of their names, with what is used of them.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeInfo, &NodeState)> {
        // Both are in order: there is nothing to look up.
        let mut states = self.states.iter().peekable();
        self.nodes.values().map(move |node| {
            while states.next_if(|(name, _)| **name < node.name).is_some() {}
            (node, states.next_if(|(name, _)| **name == node.name).map_or(&self.idle, |(_, state)| state))
        })
    }

    /// A node, with what is used of it.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<(&NodeInfo, &NodeState)> {
        Some((self.nodes.get(name)?, self.state(name)))
    }

    /// Stands for the nodes as they are now; see [`Cluster::changed_since`].
    pub(crate) fn mark(&self) -> u64 {
        self.changes.before + self.changes.names.len() as u64
    }

    /// The nodes that came, went or changed since `mark`, some more than once; `None` if that is too long ago.
    pub(crate) fn changed_since(&self, mark: u64) -> Option<impl Iterator<Item = &str>> {
        let skipped = usize::try_from(mark.checked_sub(self.changes.before)?).ok()?;
        let range = (skipped <= self.changes.names.len()).then(|| self.changes.names.range(skipped..))?;
        Some(range.map(String::as_str))
    }

    /// What is used of a node.
    #[must_use]
    pub fn state(&self, node: &str) -> &NodeState {
        self.states.get(node).unwrap_or(&self.idle)
    }

    /// Takes in a node as it is now, or that it is gone. Returns whether that could help a Pod.
    pub fn set_node(&mut self, name: &str, node: Option<NodeInfo>) -> bool {
        match node {
            Some(node) if self.nodes.get(name) == Some(&node) => false,
            Some(node) => {
                self.nodes.insert(name.to_owned(), node);
                self.changes.note(name);
                true
            }
            None => {
                self.nodes.remove(name);
                self.changes.note(name);
                false
            }
        }
    }

    /// Takes in a Pod as it is now, or that it is gone. Returns whether room was made on a node.
    pub fn set_pod(&mut self, key: &ObjectKey, pod: Option<&PodInfo>) -> bool {
        let mut freed = false;
        if let Some(known) = self.uids.get(key)
            && pod.is_none_or(|pod| pod.uid != *known)
        {
            let gone = known.clone();
            freed |= self.lift(&gone);
        }
        let Some(pod) = pod else { return freed };
        match &pod.node_name {
            Some(node) if !pod.finished => {
                if let Some(placed) = self.placed.get_mut(&pod.uid)
                    && placed.node == *node
                    && placed.pod.requests == pod.requests
                    && placed.pod.host_ports == pod.host_ports
                {
                    placed.assumed = false;
                    placed.pod.clone_from(pod);
                    return freed;
                }
                freed |= self.lift(&pod.uid);
                self.place(pod.clone(), node.clone(), false);
            }
            Some(_) => freed |= self.lift(&pod.uid),
            // The news of a binding under way has not come in yet.
            None if self.is_assumed(&pod.uid) && !pod.finished => {}
            None => freed |= self.lift(&pod.uid),
        }
        freed
    }

    /// Counts `pod` on `node` from now on, until its binding is seen, or has failed.
    pub fn assume(&mut self, pod: &PodInfo, node: &str) {
        self.lift(&pod.uid);
        self.place(pod.clone(), node.to_owned(), true);
    }

    /// The binding of an assumed Pod has failed. Returns whether room was made.
    pub fn forget(&mut self, uid: &str) -> bool {
        self.is_assumed(uid) && self.lift(uid)
    }

    /// Whether a binding is under way whose result has not been seen.
    #[must_use]
    pub fn is_assumed(&self, uid: &str) -> bool {
        self.placed.get(uid).is_some_and(|placed| placed.assumed)
    }

    fn place(&mut self, pod: PodInfo, node: String, assumed: bool) {
        self.states.entry(node.clone()).or_default().add(&pod);
        self.changes.note(&node);
        self.uids.insert(pod.key.clone(), pod.uid.clone());
        self.placed.insert(pod.uid.clone(), Placed { node, pod, assumed });
    }

    fn lift(&mut self, uid: &str) -> bool {
        let Some(Placed { node, pod, .. }) = self.placed.remove(uid) else { return false };
        if self.uids.get(&pod.key).is_some_and(|known| known == uid) {
            self.uids.remove(&pod.key);
        }
        self.changes.note(&node);
        if let Some(state) = self.states.get_mut(&node) {
            state.remove(&pod);
            if state.pods == 0 {
                self.states.remove(&node);
            }
        }
        true
    }
}
