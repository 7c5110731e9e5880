//! Rules about Pods in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Broken, Calm};
use crate::view::Pod;

/// How long after its grace a Pod may take to go.
const LATE: Duration = Duration::from_secs(2);
/// How long a node agent may take to say that it has seen a Pod.
const TAKEN_UP: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(crate) struct Pods {
    /// Pods on their way out.
    terminating: Deadlines,
    /// Pods that have a node whose agent has said nothing of them.
    bound: Deadlines,
}

/// What something has to have happened to, and by when.
#[derive(Debug, Default)]
struct Deadlines {
    /// By UID.
    pods: BTreeMap<String, Due>,
    /// The same by time.
    order: BTreeSet<(Duration, String)>,
}

#[derive(Debug)]
struct Due {
    name: String,
    node: String,
    at: Duration,
}

impl Deadlines {
    /// The earlier time counts.
    fn set(&mut self, pod: &Pod, node: &str, at: Duration) {
        let uid = &pod.metadata.uid;
        if self.pods.get(uid).is_some_and(|known| known.at <= at) {
            return;
        }
        self.forget(uid);
        self.order.insert((at, uid.clone()));
        self.pods.insert(uid.clone(), Due { name: pod.full_name(), node: node.to_owned(), at });
    }

    fn forget(&mut self, uid: &str) {
        if let Some(known) = self.pods.remove(uid) {
            self.order.remove(&(known.at, uid.to_owned()));
        }
    }

    /// One whose time is over on a node that is there and that nothing is wrong with.
    fn missed(&self, now: Duration, calm: &Calm, is_there: impl Fn(&str) -> bool) -> Option<&Due> {
        let late = self.order.iter().take_while(|(at, _)| *at < now);
        let mut late = late.filter_map(|(_, uid)| self.pods.get(uid)).filter(|due| is_there(&due.node));
        late.find(|due| calm.due(due.at, &due.node).is_some_and(|at| at < now))
    }
}

impl Pods {
    pub(crate) fn changed(&mut self, now: Duration, old: Option<&Pod>, new: Option<&Pod>) -> Broken {
        let uid = &new.or(old)?.metadata.uid;
        if let Some(old) = old
            && new.is_none_or(|new| new.metadata.uid != old.metadata.uid)
        {
            self.terminating.forget(&old.metadata.uid);
            self.bound.forget(&old.metadata.uid);
        }
        let new = new?;
        self.note_deletion(now, new);
        match &new.spec.node_name {
            Some(node) if new.status.start_time.is_none() && !new.has_ended() => {
                self.bound.set(new, node, now + TAKEN_UP);
            }
            _ => self.bound.forget(uid),
        }
        let old = old.filter(|old| old.metadata.uid == *uid)?;
        let name = new.full_name();
        let (was, is) = (&old.status.phase, &new.status.phase);
        if old.has_ended() && was != is {
            return Some(("phase never leaves Succeeded or Failed", format!("{name}: {was}→{is}")));
        }
        if old.spec.node_name.is_some() && old.spec.node_name != new.spec.node_name {
            let what = format!("{name}: {:?}→{:?}", old.spec.node_name, new.spec.node_name);
            return Some(("Pods are never bound twice", what));
        }
        for container in new.status.all() {
            let before = old.status.all().find(|c| c.name == container.name);
            if let Some(before) = before.filter(|before| before.restart_count > container.restart_count) {
                let what = format!(
                    "{name} {}: {}→{}",
                    container.name, before.restart_count, container.restart_count
                );
                return Some(("restartCount never falls", what));
            }
        }
        None
    }

    fn note_deletion(&mut self, now: Duration, pod: &Pod) {
        let meta = &pod.metadata;
        let (Some(node), Some(_)) = (&pod.spec.node_name, meta.deletion_timestamp) else { return };
        if !meta.finalizers.is_empty() {
            // It may stay as long as they do; its time begins when they are gone.
            return self.terminating.forget(&meta.uid);
        }
        let grace = u64::try_from(meta.deletion_grace_period_seconds.unwrap_or(0)).unwrap_or(0);
        self.terminating.set(pod, node, now + Duration::from_secs(grace) + LATE);
    }

    pub(crate) fn quiet(&self, now: Duration, calm: &Calm, is_there: impl Fn(&str) -> bool) -> Broken {
        if let Some(Due { name, node, at }) = self.terminating.missed(now, calm, &is_there) {
            let what = format!("{name} on {node} had to be gone {:?} ago", now.saturating_sub(*at));
            return Some(("a terminated Pod goes within its grace and 2 s", what));
        }
        if let Some(Due { name, node, .. }) = self.bound.missed(now, calm, &is_there) {
            let what = format!("{name} is on {node}, whose agent says nothing of it");
            return Some(("a Pod on a node that works is taken up within 5 s", what));
        }
        None
    }
}
