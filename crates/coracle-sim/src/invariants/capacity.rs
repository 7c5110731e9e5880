//! Rules about how much is on a node, and how much of what a controller makes there is.

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_api::quantity::Quantity;
use serde_json::Value;

use super::Broken;
use crate::view::{Node, Pod, Resources};

/// For how long a controller may still act on what was asked of it before.
const BEHIND: Duration = Duration::from_secs(60);

/// Thousandths of a processor, and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Amount {
    cpu: i64,
    memory: i64,
}

impl Amount {
    fn of(list: &BTreeMap<String, String>) -> Self {
        let parsed = |name: &str| list.get(name).and_then(|text| text.parse::<Quantity>().ok());
        Amount {
            cpu: parsed("cpu").map_or(0, Quantity::milli_value),
            memory: parsed("memory").map_or(0, Quantity::value),
        }
    }

    fn plus(self, other: Amount) -> Self {
        Amount { cpu: self.cpu + other.cpu, memory: self.memory + other.memory }
    }
}

#[derive(Debug, Default)]
struct OnNode {
    offers: Option<(Amount, i64)>,
    /// Pods that have not ended, by UID.
    pods: BTreeMap<String, Placed>,
}

#[derive(Debug)]
struct Placed {
    requests: Amount,
    /// Its maker named the node: nobody looked whether there is room.
    pinned: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Capacity {
    nodes: BTreeMap<String, OnNode>,
    owners: BTreeMap<String, Owned>,
}

/// What a controller of Pods is to have.
#[derive(Debug, Default)]
struct Owned {
    /// How many Pods were asked for, and since when.
    asked: Vec<(Duration, i64)>,
    /// UIDs of its Pods that have not ended and are not on their way out.
    active: BTreeMap<String, String>,
}

impl Capacity {
    pub(crate) fn node_changed(&mut self, new: Option<&Node>, old: Option<&Node>) {
        let Some(name) = new.or(old).map(|node| &node.metadata.name) else { return };
        let offers = new.map(|node| {
            let list = &node.status.allocatable;
            let pods = list.get("pods").and_then(|pods| pods.parse().ok()).unwrap_or(0);
            (Amount::of(list), pods)
        });
        self.nodes.entry(name.clone()).or_default().offers = offers;
    }

    /// Whether there is a node of this name.
    pub(crate) fn knows(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|here| here.offers.is_some())
    }

    pub(crate) fn pod_changed(&mut self, now: Duration, old: Option<&Pod>, new: Option<&Pod>) -> Broken {
        if let Some(old) = old
            && new.is_none_or(|new| new.metadata.uid != old.metadata.uid || new.has_ended())
        {
            self.leave(old);
        }
        let new = new?;
        let broken = self.note_owner(now, new, old.is_none());
        let node = new.spec.node_name.as_ref().filter(|_| !new.has_ended())?;
        let uid = &new.metadata.uid;
        let here = self.nodes.entry(node.clone()).or_default();
        if here.pods.contains_key(uid) {
            return broken;
        }
        let requests = new.spec.containers.iter().map(|c| requests_of(&c.resources));
        let requests = requests.fold(Amount::default(), Amount::plus);
        here.pods.insert(uid.clone(), Placed { requests, pinned: old.is_none() });
        broken.or_else(|| here.check(node))
    }

    fn leave(&mut self, pod: &Pod) {
        let uid = &pod.metadata.uid;
        if let Some(here) = pod.spec.node_name.as_ref().and_then(|node| self.nodes.get_mut(node)) {
            here.pods.remove(uid);
        }
        if let Some(owned) = pod.controller().and_then(|owner| self.owners.get_mut(&owner.uid)) {
            owned.active.remove(uid);
        }
    }

    fn note_owner(&mut self, now: Duration, pod: &Pod, is_new: bool) -> Broken {
        let owner = pod.controller()?;
        let owned = self.owners.get_mut(&owner.uid)?;
        let uid = &pod.metadata.uid;
        if pod.has_ended() || pod.metadata.deletion_timestamp.is_some() {
            owned.active.remove(uid);
            return None;
        }
        let known = owned.active.insert(uid.clone(), pod.full_name()).is_some();
        // One that is taken in has not been made.
        if known || !is_new {
            return None;
        }
        let most = owned.most(now);
        if i64::try_from(owned.active.len()).unwrap_or(i64::MAX) > most {
            let pods: Vec<_> = owned.active.values().collect();
            let what = format!("{} {} asked for {most} and has {pods:?}", owner.kind, owner.name);
            return Some(("a controller never makes more Pods than asked for", what));
        }
        None
    }

    /// An object of another kind changed; those that make Pods say how many there are to be.
    pub(crate) fn other_changed(&mut self, now: Duration, old: Option<&Value>, new: Option<&Value>) {
        let Some(object) = new.or(old) else { return };
        let asked = match object["kind"].as_str() {
            Some("ReplicaSet") => object["spec"]["replicas"].as_i64().unwrap_or(1),
            Some("Job") => object["spec"]["parallelism"].as_i64().unwrap_or(1),
            _ => return,
        };
        let Some(uid) = object["metadata"]["uid"].as_str() else { return };
        if new.is_none() {
            self.owners.remove(uid);
            return;
        }
        let owned = self.owners.entry(uid.to_owned()).or_default();
        if owned.asked.last().is_none_or(|(_, last)| *last != asked) {
            owned.asked.push((now, asked));
        }
    }
}

impl Owned {
    /// The largest number that was asked for in the last while.
    fn most(&self, now: Duration) -> i64 {
        let ends = self.asked.iter().skip(1).map(|(since, _)| *since).chain([Duration::MAX]);
        let recent = self.asked.iter().zip(ends).filter(|(_, end)| end.saturating_add(BEHIND) >= now);
        recent.map(|((_, asked), _)| *asked).max().unwrap_or(0)
    }
}

impl OnNode {
    fn check(&self, node: &str) -> Broken {
        let (offers, most) = self.offers?;
        if self.pods.values().any(|placed| placed.pinned) {
            return None;
        }
        let used = self.pods.values().fold(Amount::default(), |sum, placed| sum.plus(placed.requests));
        let count = i64::try_from(self.pods.len()).unwrap_or(i64::MAX);
        if used.cpu > offers.cpu || used.memory > offers.memory || count > most {
            let what = format!("{node} offers {offers:?} and {most} pods, and has {used:?} and {count}");
            return Some(("capacity is never exceeded", what));
        }
        None
    }
}

fn requests_of(resources: &Resources) -> Amount {
    Amount::of(&resources.requests)
}
