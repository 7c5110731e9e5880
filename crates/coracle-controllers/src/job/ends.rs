//! When the Pods of a Job ended, as far as its back-off is concerned.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use super::reconcile::uid;

/// The ends of the Pods of one Job.
///
/// Nodes write the times at which containers ended, by clocks of their own. One that is ahead would have a Job wait until
/// the controller's clock has caught up. So an end that lies in the future counts from when it was first seen.
#[derive(Debug, Clone, Default)]
pub struct Ends(BTreeMap<String, Timestamp>);

impl Ends {
    /// Takes in the Pods of the Job as they are now.
    pub fn note(&mut self, held: &[Arc<Pod>], now: Timestamp) {
        self.0.retain(|known, _| held.iter().any(|pod| uid(pod) == known));
        for pod in held.iter().filter(|pod| written(pod).is_some_and(|end| end > now)) {
            self.0.entry(uid(pod).to_owned()).and_modify(|seen| *seen = now.min(*seen)).or_insert(now);
        }
    }

    /// Whether all ends are as the nodes say.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// When a Pod ended: with its last container; or when it was told to.
    pub(super) fn of(&self, pod: &Pod, now: Timestamp) -> Timestamp {
        self.0.get(uid(pod)).copied().or_else(|| written(pod)).unwrap_or(now).min(now)
    }
}

fn written(pod: &Pod) -> Option<Timestamp> {
    let statuses =
        pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let ends = statuses.iter().filter_map(|status| {
        status.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|time| time.0)
    });
    let deleted = pod.metadata.deletion_timestamp.as_ref().map(|time| {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        time.0.checked_sub(SignedDuration::from_secs(grace)).unwrap_or(time.0)
    });
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    ends.max().or(deleted).or(created)
}
