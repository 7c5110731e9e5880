//! The rule that an end is told of: a container that ended does not go on running in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::scripted::Instance;

use super::{Broken, Calm};
use crate::view::Pod;

/// How long the node agent may take to write that a container ended. It holds back a status for a second at most, and
/// its work on the Pod may wait for a runtime that takes its time.
const LATE: Duration = Duration::from_secs(10);

/// Ends that the store does not show yet.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// By Pod UID: containers' ids that ended, each with where and when.
    ends: BTreeMap<String, BTreeMap<String, End>>,
    due: BTreeSet<(Duration, String)>,
}

#[derive(Debug)]
struct End {
    node: String,
    at: Duration,
}

impl Told {
    /// A container ended. `shown` is its Pod in the store, if there is one.
    pub(crate) fn ended(&mut self, now: Duration, node: &str, instance: &Instance) {
        let end = End { node: node.to_owned(), at: now };
        self.due.insert((now + LATE, instance.pod_uid.clone()));
        self.ends.entry(instance.pod_uid.clone()).or_default().insert(instance.id.0.clone(), end);
    }

    pub(crate) fn quiet(&mut self, now: Duration, calm: &Calm, pods: &BTreeMap<String, Arc<Pod>>) -> Broken {
        let late: Vec<_> = self.due.iter().take_while(|(due, _)| *due < now).cloned().collect();
        for (due, uid) in late {
            let Some(ends) = self.ends.get_mut(&uid) else {
                self.due.remove(&(due, uid));
                continue;
            };
            let shown = pods.get(&uid);
            let runs = |id: &str| {
                let all = shown.map(|pod| pod.status.container_statuses.as_slice()).unwrap_or_default();
                all.iter().any(|c| c.state.running.is_some() && c.id.ends_with(id))
            };
            ends.retain(|id, _| runs(id));
            if ends.is_empty() {
                self.ends.remove(&uid);
                self.due.remove(&(due, uid));
                continue;
            }
            let mut all = ends.values();
            let forgotten = all.find(|end| calm.due(end.at + LATE, &end.node).is_some_and(|due| due < now));
            if let Some(End { node, at }) = forgotten {
                let name = shown.map(|pod| pod.full_name()).unwrap_or_default();
                let what = format!(
                    "a container of {name} on {node} ended {:?} ago, and is shown as running",
                    now - *at
                );
                return Some(("an end is told of", what));
            }
        }
        None
    }
}
