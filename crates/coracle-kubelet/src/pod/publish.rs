//! When a computed status is written, and as which patch.

use coracle_clock::later;
use coracle_cri::ContainerState;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{self as api, PodStatus};
use serde_json::{Map, Value, json};

use super::inputs::{Lifecycle, OperationKey, PodInputs, statuses};
use super::reasons::DISRUPTION_TARGET;

/// The longest that a status is held back because a better one is about to follow.
const HOLD: SignedDuration = SignedDuration::from_secs(1);

/// Reasons to wait that are no failures.
const NOT_YET: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// What to do with a computed status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publication {
    /// The API server has it.
    Nothing,
    /// Write it.
    Now,
    /// A step is in flight that will change it in a moment: write it then, or at this time.
    HoldUntil(Timestamp),
}

/// Decides whether `status` is written now. A Pod on its way up shows one status per step that a user can tell
/// apart, not one per call to the runtime. `held_since` is when the status began to be held back, if it is; what has to
/// be seen before it is acted on never is.
#[must_use]
pub fn publication(i: &PodInputs, status: &PodStatus, held_since: Option<Timestamp>) -> Publication {
    if i.object_gone || !differs(&i.published, status) {
        return Publication::Nothing;
    }
    // While it may be started again, an end or a failure is waited for until it has been seen.
    let acted_on = i.lifecycle == Lifecycle::Syncing;
    if i.published.start_time.is_none() || (acted_on && shows_an_outcome(&i.published, status)) {
        return Publication::Now;
    }
    let running = i.containers.iter().any(|c| c.container.state == ContainerState::Running);
    let passing = |key: &OperationKey| match (&i.lifecycle, key) {
        (Lifecycle::Syncing, OperationKey::StartContainer(_)) => true,
        (Lifecycle::Terminating { .. }, OperationKey::StopSandbox(_)) => !running,
        _ => false,
    };
    let until = later(held_since.unwrap_or(i.now), HOLD);
    if i.operations.keys().any(passing) && i.now < until {
        Publication::HoldUntil(until)
    } else {
        Publication::Now
    }
}

/// Whether `status` tells of an end or a failure that `published` does not tell of.
fn shows_an_outcome(published: &PodStatus, status: &PodStatus) -> bool {
    fn ended(state: Option<&api::ContainerState>) -> Option<&str> {
        state?.terminated.as_ref()?.container_id.as_deref()
    }
    fn failure(container: &api::ContainerStatus) -> Option<(&str, Option<&str>)> {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().filter(|reason| !NOT_YET.contains(reason))?;
        Some((reason, waiting.message.as_deref()))
    }
    statuses(status).any(|container| {
        let before = statuses(published).find(|c| c.name == container.name);
        let shown = |id: &str| {
            before.is_some_and(|c| {
                ended(c.state.as_ref()) == Some(id) || ended(c.last_state.as_ref()) == Some(id)
            })
        };
        let new_end = [&container.state, &container.last_state]
            .into_iter()
            .filter_map(|state| ended(state.as_ref()))
            .any(|id| !shown(id));
        let failed = failure(container);
        new_end || (failed.is_some() && failed != before.and_then(failure))
    })
}

/// Whether two statuses differ as the API writes them.
#[must_use]
pub fn differs(a: &PodStatus, b: &PodStatus) -> bool {
    // Most looks find nothing, and need no texts for that.
    a != b && to_text(a) != to_text(b)
}

/// The JSON merge patch that turns the status `from` into `to`, `None` if they are equal. It names the object by
/// UID and revision, so that it cannot land on anything else.
#[must_use]
pub fn patch(uid: &str, resource_version: &str, from: &PodStatus, to: &PodStatus) -> Option<Value> {
    let status = merge_patch(&to_value(from), &to_value(to))?;
    Some(json!({ "metadata": { "uid": uid, "resourceVersion": resource_version }, "status": status }))
}

fn to_text(status: &PodStatus) -> Vec<u8> {
    serde_json::to_vec(status).expect("a status has string keys only")
}

fn to_value(status: &PodStatus) -> Value {
    serde_json::to_value(status).expect("a status has string keys only and serializes into a tree")
}

/// The smallest merge patch; lists are replaced as a whole.
pub(crate) fn merge_patch(from: &Value, to: &Value) -> Option<Value> {
    let (Value::Object(old), Value::Object(new)) = (from, to) else {
        return (from != to).then(|| to.clone());
    };
    let mut patch = Map::new();
    for (key, value) in new {
        match old.get(key) {
            Some(before) => {
                if let Some(change) = merge_patch(before, value) {
                    patch.insert(key.clone(), change);
                }
            }
            None => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// The status as it is written over a newer object: what belongs to the node agent from `computed`, the rest from
/// `fresh`.
#[must_use]
pub fn rebase(computed: &PodStatus, fresh: &PodStatus) -> PodStatus {
    let owned = |c: &&k8s_openapi::api::core::v1::PodCondition| super::conditions::is_owned(&c.type_);
    let mut conditions: Vec<_> = fresh.conditions.iter().flatten().filter(|c| !owned(c)).cloned().collect();
    let taken = |c: &&k8s_openapi::api::core::v1::PodCondition| {
        owned(c) || (c.type_ == DISRUPTION_TARGET && !conditions.iter().any(|there| there.type_ == c.type_))
    };
    let ours: Vec<_> = computed.conditions.iter().flatten().filter(taken).cloned().collect();
    conditions.extend(ours);
    let mut status = PodStatus {
        conditions: (!conditions.is_empty()).then_some(conditions),
        container_statuses: computed.container_statuses.clone(),
        init_container_statuses: computed.init_container_statuses.clone(),
        ephemeral_container_statuses: computed.ephemeral_container_statuses.clone(),
        host_ip: computed.host_ip.clone(),
        host_ips: computed.host_ips.clone(),
        observed_generation: computed.observed_generation,
        pod_ip: computed.pod_ip.clone(),
        pod_ips: computed.pod_ips.clone(),
        start_time: fresh.start_time.clone().or_else(|| computed.start_time.clone()),
        ..fresh.clone()
    };
    let ended = fresh.phase.as_deref().and_then(super::phase::Phase::parse).is_some_and(|p| p.is_terminal());
    if !ended {
        status.phase.clone_from(&computed.phase);
        status.reason.clone_from(&computed.reason);
        status.message.clone_from(&computed.message);
    }
    status
}
