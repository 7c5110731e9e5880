//! What a Deployment does next: one step of its rollout, as upstream takes them.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use serde_json::{Map, Value, json};

use super::numbers::{self, counted, is_rolling};
use super::revision::{self, REVISION, annotation, revision_of};
use super::rollout::{Sets, Sized};
use super::status::{self, Conditions, PROGRESSING};

/// What is to be done, in this order.
#[derive(Debug)]
pub struct Plan {
    /// The ReplicaSet of the current template, if there is none yet.
    pub create: Option<Box<ReplicaSet>>,
    /// What changes in those that are there.
    pub change: Vec<Change>,
    /// Which are old enough to be forgotten.
    pub delete: Vec<Arc<ReplicaSet>>,
    /// What was seen.
    pub status: DeploymentStatus,
    /// The revision that the Deployment is at now, if it does not say so yet.
    pub revision: Option<String>,
    /// When to look again although nothing happens: a rollout that stands still for too long has failed.
    pub wake_at: Option<Timestamp>,
}

/// A change of a ReplicaSet.
#[derive(Debug)]
pub struct Change {
    /// As it is.
    pub set: Arc<ReplicaSet>,
    /// What changes.
    pub patch: Value,
    /// What to tell about it.
    pub message: Option<String>,
}

/// Decides about the ReplicaSets that a Deployment holds.
#[must_use]
pub fn reconcile(deployment: &Deployment, held: Vec<Arc<ReplicaSet>>, now: Timestamp) -> Plan {
    let mut conditions = Conditions::of(deployment, now);
    let mut sets = sort_out(deployment, held);
    if deployment.metadata.deletion_timestamp.is_some() {
        let status = status::count(deployment, &sets, conditions);
        return Plan {
            create: None,
            change: Vec::new(),
            delete: Vec::new(),
            status,
            revision: None,
            wake_at: None,
        };
    }
    status::note_pause(deployment, &mut conditions);
    let paused = deployment.spec.paused == Some(true);
    let only_sizes = paused || sets.is_resized(deployment);
    let (mut create, mut forget) = (None, paused);
    if only_sizes {
        sets.resize(deployment);
    } else if is_rolling(deployment) {
        create = make_current(deployment, &mut sets, &mut conditions);
        forget = !sets.roll(deployment) && status::has_arrived(deployment);
    } else if !sets.empty_old(deployment) && !sets.old_pods_are_left() {
        create = make_current(deployment, &mut sets, &mut conditions);
        let grew = sets.new.as_mut().is_some_and(|new| new.scale(numbers::wanted(deployment), deployment));
        forget = !grew && status::has_arrived(deployment);
    }
    if let (None, Some(new)) = (&create, &sets.new)
        && deployment.spec.progress_deadline_seconds.is_some()
        && conditions.get(PROGRESSING).is_none()
    {
        let message = format!("Found new replica set \"{}\"", name_of(&new.set));
        conditions.set(PROGRESSING, "True", "FoundNewReplicaSet", message);
    }
    let newest_old = sets.old.iter().map(|old| revision_of(&old.set)).max().unwrap_or(0);
    let (mut change, mut revision) = (Vec::new(), None);
    if let Some(new) = &sets.new {
        let annotations = revision::annotations(deployment, &new.set, newest_old);
        revision = annotations.get(REVISION).cloned();
        match &mut create {
            Some(created) => {
                let own = created.metadata.annotations.get_or_insert_default();
                own.extend(annotations);
                own.extend(revision::sizes(deployment).map(|(name, value)| (name.to_owned(), value)));
                created.spec.replicas = i32::try_from(new.replicas).ok();
            }
            None => {
                let named = annotations
                    .into_iter()
                    .filter(|(name, value)| annotation(&new.set.metadata, name) != Some(value));
                change.extend(change_of(deployment, new, named.collect()));
            }
        }
    }
    change.extend(sets.old.iter().filter_map(|old| change_of(deployment, old, Vec::new())));
    let delete = if forget { forgotten(deployment, &sets) } else { Vec::new() };
    let (status, wake_at) = if only_sizes {
        (status::count(deployment, &sets, conditions), None)
    } else {
        status::judge(deployment, &sets, conditions)
    };
    let known = annotation(&deployment.metadata, REVISION);
    let revision = revision.filter(|revision| known != Some(revision));
    Plan { create, change, delete, status, revision, wake_at }
}

fn name_of(set: &ReplicaSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

/// Of several ReplicaSets of one template, which should not be, the oldest is the current one.
fn sort_out(deployment: &Deployment, held: Vec<Arc<ReplicaSet>>) -> Sets {
    let born = |set: &ReplicaSet| set.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let mut old: Vec<Sized> = held.into_iter().map(Sized::of).collect();
    old.sort_by(|a, b| (born(&a.set), name_of(&a.set)).cmp(&(born(&b.set), name_of(&b.set))));
    let current = old.iter().position(|sized| revision::is_of(&sized.set, &deployment.spec.template));
    let new = current.map(|at| old.remove(at));
    Sets { old, new }
}

/// The ReplicaSet of the current template, with its first Pods, if there is none.
fn make_current(
    deployment: &Deployment,
    sets: &mut Sets,
    conditions: &mut Conditions,
) -> Option<Box<ReplicaSet>> {
    if sets.new.is_some() {
        return None;
    }
    let set = revision::new_set(deployment);
    if deployment.spec.progress_deadline_seconds.is_some() {
        let message = format!("Created new replica set \"{}\"", name_of(&set));
        conditions.set(PROGRESSING, "True", "NewReplicaSetCreated", message);
    }
    let mut new = Sized::of(Arc::new(set.clone()));
    new.replicas = sets.next_size(deployment, 0);
    sets.new = Some(new);
    Some(Box::new(set))
}

/// What is to be written about a ReplicaSet that is there, if anything.
fn change_of(deployment: &Deployment, sized: &Sized, annotations: Vec<(String, String)>) -> Option<Change> {
    let before = numbers::replicas(&sized.set);
    let mut named: Map<String, Value> =
        annotations.into_iter().map(|(name, value)| (name, Value::from(value))).collect();
    if sized.noted {
        named.extend(revision::sizes(deployment).map(|(name, value)| (name.to_owned(), Value::from(value))));
    }
    let mut spec = Map::new();
    if sized.replicas != before {
        spec.insert("replicas".to_owned(), sized.replicas.into());
    }
    let wait = |seconds: Option<i32>| seconds.unwrap_or(0);
    let is_current = revision::is_of(&sized.set, &deployment.spec.template);
    if is_current && wait(sized.set.spec.min_ready_seconds) != wait(deployment.spec.min_ready_seconds) {
        spec.insert("minReadySeconds".to_owned(), wait(deployment.spec.min_ready_seconds).into());
    }
    if named.is_empty() && spec.is_empty() {
        return None;
    }
    let mut metadata = json!({
        "uid": sized.set.metadata.uid, "resourceVersion": sized.set.metadata.resource_version,
    });
    if !named.is_empty() {
        metadata["annotations"] = named.into();
    }
    let patch = json!({ "metadata": metadata, "spec": spec });
    let message = (sized.replicas != before).then(|| scaled(name_of(&sized.set), before, sized.replicas));
    Some(Change { set: Arc::clone(&sized.set), patch, message })
}

/// What is told of a change in size.
pub(super) fn scaled(name: &str, before: i64, after: i64) -> String {
    let direction = if after > before { "up" } else { "down" };
    format!("Scaled {direction} replica set {name} from {before} to {after}")
}

/// Old ReplicaSets without Pods, beyond those that are kept to go back to.
fn forgotten(deployment: &Deployment, sets: &Sets) -> Vec<Arc<ReplicaSet>> {
    let Some(limit) = deployment.spec.revision_history_limit.filter(|limit| *limit != i32::MAX) else {
        return Vec::new();
    };
    let mut old: Vec<&Sized> =
        sets.old.iter().filter(|old| old.set.metadata.deletion_timestamp.is_none()).collect();
    let beyond = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    old.sort_by_key(|old| revision_of(&old.set));
    old.truncate(beyond);
    let empty = |old: &&Sized| {
        let observed = old.set.status.as_ref().and_then(|status| status.observed_generation);
        old.replicas == 0
            && counted(&old.set, |status| Some(status.replicas)) == 0
            && observed >= old.set.metadata.generation
    };
    old.into_iter().filter(empty).map(|old| Arc::clone(&old.set)).collect()
}
