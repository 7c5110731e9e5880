//! Rules about Pods in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Broken, Calm};
use crate::view::Pod;

/// How long after its grace a Pod may take to go.
const LATE: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(crate) struct Pods {
    /// Pods on their way out, by UID.
    terminating: BTreeMap<String, Terminating>,
    /// The same by the time at which they have to be gone.
    due: BTreeSet<(Duration, String)>,
}

#[derive(Debug)]
struct Terminating {
    name: String,
    node: String,
    due: Duration,
}

impl Pods {
    pub(crate) fn changed(&mut self, now: Duration, old: Option<&Pod>, new: Option<&Pod>) -> Broken {
        let uid = &new.or(old)?.metadata.uid;
        if let Some(old) = old
            && new.is_none_or(|new| new.metadata.uid != old.metadata.uid)
        {
            self.forget(&old.metadata.uid);
        }
        let new = new?;
        self.note_deletion(now, new);
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
        for container in &new.status.container_statuses {
            let before = old.status.container_statuses.iter().find(|c| c.name == container.name);
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
            return self.forget(&meta.uid);
        }
        let grace = u64::try_from(meta.deletion_grace_period_seconds.unwrap_or(0)).unwrap_or(0);
        let due = now + Duration::from_secs(grace) + LATE;
        if self.terminating.get(&meta.uid).is_some_and(|known| known.due <= due) {
            return;
        }
        self.forget(&meta.uid);
        self.due.insert((due, meta.uid.clone()));
        let entry = Terminating { name: pod.full_name(), node: node.clone(), due };
        self.terminating.insert(meta.uid.clone(), entry);
    }

    fn forget(&mut self, uid: &str) {
        if let Some(known) = self.terminating.remove(uid) {
            self.due.remove(&(known.due, uid.to_owned()));
        }
    }

    pub(crate) fn quiet(&self, now: Duration, calm: &Calm) -> Broken {
        let late = self.due.iter().take_while(|(due, _)| *due < now);
        let mut late = late.filter_map(|(_, uid)| self.terminating.get(uid));
        let overdue = late.find(|pod| calm.due(pod.due, &pod.node).is_some_and(|due| due < now))?;
        let Terminating { name, node, due } = overdue;
        let what = format!("{name} on {node} had to be gone {:?} ago", now.saturating_sub(*due));
        Some(("a terminated Pod goes within its grace and 2 s", what))
    }
}
