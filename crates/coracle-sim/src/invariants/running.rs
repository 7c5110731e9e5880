//! Rules about what really runs on nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use coracle_cri::ContainerId;
use coracle_cri::scripted::Instance;

use super::{Broken, Calm};
use crate::view::Pod;

/// What a Pod without a word of its own gets, as upstream.
const GRACE: i64 = 30;
/// How long after the grace of a Pod that is gone its containers may run.
const LATE: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(crate) struct Live {
    /// Running instances by Pod UID and container, each with its node.
    instances: BTreeMap<(String, String), BTreeMap<ContainerId, String>>,
    /// Pods in the store by UID: their grace.
    known: BTreeMap<String, Duration>,
    /// Pods that are gone and of which something may still run: by when nothing does.
    gone: BTreeMap<String, (String, Duration)>,
    /// UIDs of which something runs.
    running: BTreeSet<String>,
}

impl Live {
    pub(crate) fn started(&mut self, now: Duration, node: &str, instance: &Instance) -> Broken {
        let key = (instance.pod_uid.clone(), instance.container.clone());
        let name = format!("{}/{}", instance.pod.0, instance.pod.1);
        let instances = self.instances.entry(key).or_default();
        instances.insert(instance.id.clone(), node.to_owned());
        self.running.insert(instance.pod_uid.clone());
        if !self.known.contains_key(&instance.pod_uid) {
            // Whoever started it has not heard yet.
            self.gone.entry(instance.pod_uid.clone()).or_insert((name.clone(), now + LATE));
        }
        if instances.len() > 1 {
            let what = format!("{name} {}: {instances:?}", instance.container);
            return Some(("at most one live container per name and Pod UID", what));
        }
        None
    }

    pub(crate) fn ended(&mut self, instance: &Instance) {
        let uid = &instance.pod_uid;
        let key = (uid.clone(), instance.container.clone());
        if let Some(instances) = self.instances.get_mut(&key) {
            instances.remove(&instance.id);
            if instances.is_empty() {
                self.instances.remove(&key);
            }
        }
        if self.of(uid).next().is_none() {
            self.running.remove(uid);
            self.gone.remove(uid);
        }
    }

    fn of<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let from = (uid.to_owned(), String::new());
        let instances = self.instances.range(from..).take_while(move |((of, _), _)| of == uid);
        instances.flat_map(|((_, container), nodes)| {
            nodes.values().map(|node| (container.as_str(), node.as_str()))
        })
    }

    pub(crate) fn pod_changed(&mut self, now: Duration, old: Option<&Pod>, new: Option<&Pod>) {
        if let Some(old) = old
            && new.is_none_or(|new| new.metadata.uid != old.metadata.uid)
        {
            let uid = &old.metadata.uid;
            let grace = self.known.remove(uid).unwrap_or_default();
            if self.running.contains(uid) {
                self.gone.insert(uid.clone(), (old.full_name(), now + grace + LATE));
            }
        }
        if let Some(new) = new {
            // Nobody gets less than a second.
            let grace = new.spec.termination_grace_period_seconds.unwrap_or(GRACE).max(1);
            let grace = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
            self.known.insert(new.metadata.uid.clone(), grace);
        }
    }

    pub(crate) fn strays(&self) -> Vec<String> {
        let of = |(uid, (name, _)): (&String, &(String, Duration))| {
            format!("pod {name} ({uid}) is gone and still runs")
        };
        self.gone.iter().map(of).collect()
    }

    pub(crate) fn quiet(&self, now: Duration, calm: &Calm) -> Broken {
        for (uid, (name, due)) in &self.gone {
            let overdue = |node: &str| calm.due(*due, node).is_some_and(|due| due < now);
            if let Some((container, node)) = self.of(uid).find(|(_, node)| overdue(node)) {
                let what = format!("{name} ({uid}) is gone, and {container} still runs on {node}");
                return Some(("no container runs for a Pod that is gone for longer than its grace", what));
            }
        }
        None
    }
}
