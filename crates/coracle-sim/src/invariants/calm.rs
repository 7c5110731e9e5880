//! Since when nothing is wrong with a node, or with the control plane.

use std::collections::BTreeMap;
use std::time::Duration;

/// What a fault touches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// Everything.
    Cluster,
    /// One node.
    Node(String),
}

/// How long components take to find their way back after a fault: the longest back-off of an informer, and then some.
const RECOVERY: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct Calm(BTreeMap<Scope, Trouble>);

#[derive(Debug, Default)]
struct Trouble {
    faults: u32,
    ended: Option<Duration>,
}

impl Calm {
    pub(crate) fn begin(&mut self, scope: Scope) {
        self.0.entry(scope).or_default().faults += 1;
    }

    pub(crate) fn end(&mut self, now: Duration, scope: Scope) {
        let trouble = self.0.entry(scope).or_default();
        trouble.faults = trouble.faults.saturating_sub(1);
        trouble.ended = Some(now);
    }

    /// From when on what is due on `node` is really due: `due`, or later because of a fault; `None` as long as one lasts.
    pub(crate) fn due(&self, due: Duration, node: &str) -> Option<Duration> {
        let scopes = [Scope::Cluster, Scope::Node(node.to_owned())];
        let mut due = due;
        for trouble in scopes.iter().filter_map(|scope| self.0.get(scope)) {
            if trouble.faults > 0 {
                return None;
            }
            if let Some(ended) = trouble.ended {
                due = due.max(ended + RECOVERY);
            }
        }
        Some(due)
    }
}
