//! What a Deployment says of itself.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};

use super::numbers::{counted, max_unavailable, wanted};
use super::rollout::Sets;
use crate::workload::status::time;

pub(super) const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const FAILURE: &str = "ReplicaFailure";
const COMPLETED: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// The conditions of a status while they are being decided.
#[derive(Debug, Clone)]
pub(super) struct Conditions {
    list: Vec<DeploymentCondition>,
    now: Timestamp,
}

impl Conditions {
    pub(super) fn of(deployment: &Deployment, now: Timestamp) -> Self {
        let list =
            deployment.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        Conditions { list, now }
    }

    pub(super) fn get(&self, type_: &str) -> Option<&DeploymentCondition> {
        self.list.iter().find(|condition| condition.type_.as_deref() == Some(type_))
    }

    pub(super) fn into_list(self) -> Vec<DeploymentCondition> {
        self.list
    }

    fn remove(&mut self, type_: &str) {
        self.list.retain(|condition| condition.type_.as_deref() != Some(type_));
    }

    /// Says something unless it is said already. The time of the transition is that of the status alone.
    pub(super) fn set(&mut self, type_: &str, status: &str, reason: &str, message: String) {
        let now = time(self.now);
        let current = self.get(type_);
        let same_status = current.is_some_and(|condition| condition.status.as_deref() == Some(status));
        if same_status && current.is_some_and(|condition| condition.reason.as_deref() == Some(reason)) {
            return;
        }
        let since =
            current.filter(|_| same_status).and_then(|condition| condition.last_transition_time.clone());
        let condition = DeploymentCondition {
            type_: Some(type_.to_owned()),
            status: Some(status.to_owned()),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_update_time: Some(now.clone()),
            last_transition_time: Some(since.unwrap_or(now)),
        };
        self.remove(type_);
        self.list.push(condition);
    }

    /// Says it again, as news: progress moves the time of the last update.
    fn renew(&mut self, type_: &str, status: &str, reason: &str, message: String) {
        let current = self.get(type_).cloned();
        self.remove(type_);
        self.set(type_, status, reason, message);
        if let Some(current) = current.filter(|current| current.status.as_deref() == Some(status))
            && let Some(condition) = self.list.last_mut()
        {
            condition.last_transition_time = current.last_transition_time;
        }
    }

    fn reason_of(&self, type_: &str) -> Option<&str> {
        self.get(type_)?.reason.as_deref()
    }
}

/// How long a rollout may stand still; `None` for ever.
fn deadline(deployment: &Deployment) -> Option<SignedDuration> {
    let seconds = deployment.spec.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)?;
    Some(SignedDuration::from_secs(seconds.into()))
}

/// Says that the rollout is paused, or goes on.
pub(super) fn note_pause(deployment: &Deployment, conditions: &mut Conditions) {
    if deployment.spec.progress_deadline_seconds.is_none()
        || conditions.reason_of(PROGRESSING) == Some(TIMED_OUT)
    {
        return;
    }
    let noted = conditions.reason_of(PROGRESSING) == Some(PAUSED);
    match (deployment.spec.paused == Some(true), noted) {
        (true, false) => {
            conditions.set(PROGRESSING, "Unknown", PAUSED, "Deployment is paused".to_owned());
        }
        (false, true) => {
            let message = "Deployment is resumed".to_owned();
            conditions.set(PROGRESSING, "Unknown", "DeploymentResumed", message);
        }
        _ => {}
    }
}

fn narrow(number: i64) -> Option<i32> {
    i32::try_from(number).ok().filter(|number| *number != 0)
}

/// The numbers of the status, and whether enough Pods are available.
pub(super) fn count(deployment: &Deployment, sets: &Sets, mut conditions: Conditions) -> DeploymentStatus {
    let sum = |count: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> Option<i32>| -> i64 {
        sets.all().map(|sized| counted(&sized.set, count)).sum()
    };
    let available = sum(|status| status.available_replicas);
    let planned: i64 = sets.all().map(|sized| sized.replicas).sum();
    if available >= wanted(deployment) - max_unavailable(deployment) {
        let message = "Deployment has minimum availability.".to_owned();
        conditions.set(AVAILABLE, "True", "MinimumReplicasAvailable", message);
    } else {
        let message = "Deployment does not have minimum availability.".to_owned();
        conditions.set(AVAILABLE, "False", "MinimumReplicasUnavailable", message);
    }
    let updated = sets.new.as_ref().map_or(0, |new| counted(&new.set, |status| Some(status.replicas)));
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: narrow(sum(|status| Some(status.replicas))),
        updated_replicas: narrow(updated),
        ready_replicas: narrow(sum(|status| status.ready_replicas)),
        available_replicas: narrow(available),
        unavailable_replicas: narrow((planned - available).max(0)),
        terminating_replicas: i32::try_from(sum(|status| status.terminating_replicas)).ok(),
        collision_count: deployment.status.as_ref().and_then(|status| status.collision_count),
        conditions: Some(conditions.list),
    }
}

fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let all = |count: Option<i32>| i64::from(count.unwrap_or(0)) == wanted(deployment);
    all(status.updated_replicas)
        && all(status.replicas)
        && all(status.available_replicas)
        && status.observed_generation >= deployment.metadata.generation
}

/// Whether the rollout has come further than the last status says.
fn is_progressing(old: Option<&DeploymentStatus>, new: &DeploymentStatus) -> bool {
    let number = |status: Option<&DeploymentStatus>, count: fn(&DeploymentStatus) -> Option<i32>| {
        status.and_then(count).unwrap_or(0)
    };
    let grew = |count: fn(&DeploymentStatus) -> Option<i32>| number(Some(new), count) > number(old, count);
    let outdated = |status: Option<&DeploymentStatus>| {
        number(status, |status| status.replicas) - number(status, |status| status.updated_replicas)
    };
    grew(|status| status.updated_replicas)
        || outdated(Some(new)) < outdated(old)
        || grew(|status| status.ready_replicas)
        || grew(|status| status.available_replicas)
}

/// Whether the Deployment, as its own status says, has arrived; then old ReplicaSets may be forgotten.
pub(super) fn has_arrived(deployment: &Deployment) -> bool {
    deployment.status.as_ref().is_some_and(|status| is_complete(deployment, status))
}

/// Judges a rollout that is under way, and when to judge it again although nothing happens.
pub(super) fn judge(
    deployment: &Deployment,
    sets: &Sets,
    conditions: Conditions,
) -> (DeploymentStatus, Option<Timestamp>) {
    let now = conditions.now;
    let mut status = count(deployment, sets, conditions);
    let mut conditions = Conditions { list: status.conditions.take().unwrap_or_default(), now };
    let deadline = deadline(deployment);
    if deadline.is_none() {
        conditions.remove(PROGRESSING);
    }
    let arrived =
        status.replicas == status.updated_replicas && conditions.reason_of(PROGRESSING) == Some(COMPLETED);
    let what = match &sets.new {
        Some(new) => format!("ReplicaSet \"{}\"", name_of(&new.set)),
        None => format!("Deployment \"{}\"", deployment.metadata.name.as_deref().unwrap_or_default()),
    };
    if let Some(deadline) = deadline.filter(|_| !arrived) {
        if is_complete(deployment, &status) {
            conditions.set(PROGRESSING, "True", COMPLETED, format!("{what} has successfully progressed."));
        } else if is_progressing(deployment.status.as_ref(), &status) {
            conditions.renew(PROGRESSING, "True", "ReplicaSetUpdated", format!("{what} is progressing."));
        } else if has_timed_out(&conditions, deadline) {
            conditions.set(PROGRESSING, "False", TIMED_OUT, format!("{what} has timed out progressing."));
        }
    }
    match failure(sets) {
        Some((reason, message)) => conditions.set(FAILURE, "True", &reason, message),
        None => conditions.remove(FAILURE),
    }
    let wake_at = deadline
        .filter(|_| !is_complete(deployment, &status))
        .filter(|_| !matches!(conditions.reason_of(PROGRESSING), Some(TIMED_OUT | COMPLETED | PAUSED)))
        .and_then(|deadline| {
            let since = conditions.get(PROGRESSING)?.last_update_time.as_ref()?.0;
            since.checked_add(deadline + SignedDuration::from_secs(1)).ok()
        });
    status.conditions = Some(conditions.list);
    (status, wake_at)
}

fn has_timed_out(conditions: &Conditions, deadline: SignedDuration) -> bool {
    let Some(condition) = conditions.get(PROGRESSING) else { return false };
    match condition.reason.as_deref() {
        Some(COMPLETED) => false,
        Some(TIMED_OUT) => true,
        _ => condition
            .last_update_time
            .as_ref()
            .is_some_and(|since| since.0.checked_add(deadline).is_ok_and(|end| end < conditions.now)),
    }
}

fn name_of(set: &ReplicaSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

/// What keeps a ReplicaSet from making its Pods: the current one's trouble before that of others.
fn failure(sets: &Sets) -> Option<(String, String)> {
    sets.new.iter().chain(&sets.old).find_map(|sized| {
        let conditions = sized.set.status.as_ref()?.conditions.as_ref()?;
        let condition = conditions.iter().find(|condition| condition.type_.as_deref() == Some(FAILURE))?;
        Some((condition.reason.clone().unwrap_or_default(), condition.message.clone().unwrap_or_default()))
    })
}
