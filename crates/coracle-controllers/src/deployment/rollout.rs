//! How many Pods each ReplicaSet is to have, step by step.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::numbers::{self, bounds, counted, is_rolling, max_unavailable, wanted};
use super::revision::{self, DESIRED, MAX, annotation};

/// A ReplicaSet and the size that it is to have.
#[derive(Debug, Clone)]
pub(super) struct Sized {
    pub(super) set: Arc<ReplicaSet>,
    /// As planned so far.
    pub(super) replicas: i64,
    /// Whether its annotations are to say the size of the Deployment, which they do after each scaling.
    pub(super) noted: bool,
}

impl Sized {
    pub(super) fn of(set: Arc<ReplicaSet>) -> Self {
        let replicas = numbers::replicas(&set);
        Sized { set, replicas, noted: false }
    }

    fn available(&self) -> i64 {
        counted(&self.set, |status| status.available_replicas)
    }

    fn born(&self) -> (Option<Timestamp>, Option<&str>) {
        let metadata = &self.set.metadata;
        (metadata.creation_timestamp.as_ref().map(|time| time.0), metadata.name.as_deref())
    }

    /// Whether anything changes by that.
    pub(super) fn scale(&mut self, replicas: i64, deployment: &Deployment) -> bool {
        let stale = revision::sizes(deployment)
            .iter()
            .any(|(name, value)| annotation(&self.set.metadata, name) != Some(value));
        let changes = self.replicas != replicas;
        self.noted |= changes || stale;
        self.replicas = replicas;
        changes
    }
}

/// All ReplicaSets of a Deployment. The current one makes the Pods of its template.
#[derive(Debug)]
pub(super) struct Sets {
    pub(super) old: Vec<Sized>,
    pub(super) new: Option<Sized>,
}

impl Sets {
    pub(super) fn all(&self) -> impl Iterator<Item = &Sized> {
        self.old.iter().chain(&self.new)
    }

    fn total(&self) -> i64 {
        self.all().map(|sized| sized.replicas).sum()
    }

    fn available(&self) -> i64 {
        self.all().map(Sized::available).sum()
    }

    /// Whether the Deployment was given another size since its ReplicaSets were scaled.
    pub(super) fn is_resized(&self, deployment: &Deployment) -> bool {
        let active = self.all().filter(|sized| sized.replicas > 0);
        let desired = |sized: &Sized| annotation(&sized.set.metadata, DESIRED)?.parse::<i64>().ok();
        active.filter_map(desired).any(|desired| desired != wanted(deployment))
    }

    /// How many the current ReplicaSet is to have next.
    pub(super) fn next_size(&self, deployment: &Deployment, current: i64) -> i64 {
        if !is_rolling(deployment) {
            return wanted(deployment);
        }
        let room = wanted(deployment) + bounds(deployment).0 - self.total();
        if room <= 0 {
            return current;
        }
        current + room.min(wanted(deployment) - current)
    }

    /// The next step of a rolling update; whether there was one.
    pub(super) fn roll(&mut self, deployment: &Deployment) -> bool {
        let Some(current) = self.new.as_ref().map(|new| new.replicas) else { return false };
        let target = match current.cmp(&wanted(deployment)) {
            std::cmp::Ordering::Equal => current,
            std::cmp::Ordering::Greater => wanted(deployment),
            std::cmp::Ordering::Less => self.next_size(deployment, current),
        };
        if let Some(new) = self.new.as_mut()
            && target != current
            && new.scale(target, deployment)
        {
            return true;
        }
        self.shrink_old(deployment)
    }

    /// Takes old Pods away, as far as enough stay available: first those that do not work anyway.
    fn shrink_old(&mut self, deployment: &Deployment) -> bool {
        if self.old.iter().all(|old| old.replicas == 0) {
            return false;
        }
        let least = wanted(deployment) - max_unavailable(deployment);
        let new_missing = self.new.as_ref().map_or(0, |new| new.replicas - new.available());
        let spare = self.total() - least - new_missing;
        if spare <= 0 {
            return false;
        }
        self.old.sort_by(|a, b| a.born().cmp(&b.born()));
        let mut changed = false;
        let mut broken = spare;
        for old in &mut self.old {
            let unhealthy = (old.replicas - old.available()).min(broken);
            if broken > 0 && unhealthy > 0 {
                broken -= unhealthy;
                changed |= old.scale(old.replicas - unhealthy, deployment);
            }
        }
        let mut healthy = self.available() - least;
        for old in &mut self.old {
            let down = old.replicas.min(healthy);
            if down > 0 {
                healthy -= down;
                changed |= old.scale(old.replicas - down, deployment);
            }
        }
        changed
    }

    /// Takes all old Pods away; whether there were any.
    pub(super) fn empty_old(&mut self, deployment: &Deployment) -> bool {
        let mut changed = false;
        for old in self.old.iter_mut().filter(|old| old.replicas > 0) {
            changed |= old.scale(0, deployment);
        }
        changed
    }

    /// Whether a Pod of an old ReplicaSet may still be there.
    pub(super) fn old_pods_are_left(&self) -> bool {
        self.old.iter().any(|old| {
            let behind = old.set.status.as_ref().and_then(|status| status.observed_generation)
                < old.set.metadata.generation;
            let left = counted(&old.set, |status| Some(status.replicas))
                + counted(&old.set, |status| status.terminating_replicas);
            behind || left > 0
        })
    }

    /// Brings all ReplicaSets to the size of the Deployment, in proportion if several are active.
    pub(super) fn resize(&mut self, deployment: &Deployment) {
        if let Some(only) = self.active_or_latest() {
            if only.replicas != wanted(deployment) || only.replicas > 0 {
                only.scale(wanted(deployment), deployment);
            }
            return;
        }
        if self.new.as_ref().is_some_and(|new| is_saturated(new, deployment)) {
            self.empty_old(deployment);
            return;
        }
        if is_rolling(deployment) {
            self.spread(deployment);
            return;
        }
        // Sizes are the business of the next steps; that they have been seen is noted.
        for sized in self.old.iter_mut().chain(&mut self.new).filter(|sized| sized.replicas > 0) {
            sized.scale(sized.replicas, deployment);
        }
    }

    fn active_or_latest(&mut self) -> Option<&mut Sized> {
        let active = self.all().filter(|sized| sized.replicas > 0).count();
        match (active, &self.new) {
            (0, Some(_)) => self.new.as_mut(),
            (0, None) => self.old.iter_mut().max_by(|a, b| a.born().cmp(&b.born())),
            (1, _) => self.old.iter_mut().chain(&mut self.new).find(|sized| sized.replicas > 0),
            _ => None,
        }
    }

    fn spread(&mut self, deployment: &Deployment) {
        let (total, max) = (wanted(deployment), wanted(deployment) + bounds(deployment).0);
        let mut active: Vec<&mut Sized> =
            self.old.iter_mut().chain(&mut self.new).filter(|sized| sized.replicas > 0).collect();
        let size: i64 = active.iter().map(|sized| sized.replicas).sum();
        let to_add = if total > 0 { max - size } else { -size };
        // The largest first; among equals the newest grows, and the oldest shrinks.
        active.sort_by(|a, b| {
            let by_age = if to_add > 0 { b.born().cmp(&a.born()) } else { a.born().cmp(&b.born()) };
            b.replicas.cmp(&a.replicas).then(by_age)
        });
        let mut added = 0;
        let mut sizes: Vec<i64> = Vec::with_capacity(active.len());
        for sized in &active {
            let part = part_of(sized, deployment, total, max);
            let allowed = to_add - added;
            let part = match to_add.cmp(&0) {
                std::cmp::Ordering::Greater => part.min(allowed).max(0),
                std::cmp::Ordering::Less => part.max(allowed).min(0),
                std::cmp::Ordering::Equal => 0,
            };
            added += part;
            sizes.push((sized.replicas + part).max(0));
        }
        if let Some(first) = sizes.first_mut() {
            *first = (*first + to_add - added).max(0);
        }
        for (sized, size) in active.into_iter().zip(sizes) {
            sized.scale(size, deployment);
        }
    }
}

/// How many more a ReplicaSet would have if it kept its share of all Pods.
fn part_of(sized: &Sized, deployment: &Deployment, total: i64, max: i64) -> i64 {
    if total == 0 {
        return -sized.replicas;
    }
    let noted = annotation(&sized.set.metadata, MAX).and_then(|text| text.parse::<i64>().ok());
    let counted = deployment.status.as_ref().and_then(|status| status.replicas).map(i64::from);
    let Some(before) = noted.filter(|noted| *noted > 0).or(counted).filter(|before| *before > 0) else {
        return 0;
    };
    // Rounded to the nearest.
    (2 * sized.replicas * max + before) / (2 * before) - sized.replicas
}

/// Whether the current ReplicaSet has all Pods that the Deployment wants.
fn is_saturated(new: &Sized, deployment: &Deployment) -> bool {
    let desired = annotation(&new.set.metadata, DESIRED).and_then(|text| text.parse::<i64>().ok());
    desired == Some(wanted(deployment))
        && new.replicas == wanted(deployment)
        && new.available() == wanted(deployment)
}
