//! Which Pods a Job makes, which it deletes, and which it is done with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coracle_api::job::Indexes;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use super::indexed::{self, index_of};
use super::policy;
use super::reconcile::{BURST, Birth, Look, Plan, has_failed, is_held, long, uid, waits_for_the_end};
use crate::workload::pods;

/// The wait after the first failure; it doubles with each that follows.
const BACKOFF_FIRST: SignedDuration = SignedDuration::from_secs(10);
const BACKOFF_MAX: SignedDuration = SignedDuration::from_mins(10);

impl Look<'_> {
    /// Makes as many Pods as are missing, and deletes those that are too many.
    pub(super) fn manage(&self, plan: &mut Plan) {
        let parallelism = i64::from(self.spec.parallelism.unwrap_or(1));
        let active = long(self.active.len());
        let want = match self.spec.completions {
            // Who has once succeeded starts no more.
            None if self.succeeded() > 0 => active,
            None => parallelism,
            Some(completions) => (i64::from(completions) - self.succeeded()).clamp(0, parallelism.max(0)),
        };
        let surplus = usize::try_from(active - want).unwrap_or(0);
        plan.delete = match self.spec.completions {
            Some(completions) if self.completed.is_some() => {
                indexed::surplus(&self.active, surplus, completions.into())
            }
            _ => {
                let mut active = self.active.clone();
                pods::deletion_order(&mut active, &BTreeMap::new(), self.now);
                active.truncate(surplus);
                active
            }
        };
        plan.delete.truncate(BURST);
        let leaving = if waits_for_the_end(self.spec) { long(self.terminating) } else { 0 };
        let missing = want - leaving - (active - long(plan.delete.len()));
        let missing = usize::try_from(missing).unwrap_or(0).min(BURST);
        if missing == 0 {
            return;
        }
        if self.failed.is_some() {
            self.create_with_limits(missing, plan);
            return;
        }
        if let Some(at) = self.backed_off_until().filter(|at| *at > self.now) {
            plan.wake(at);
            return;
        }
        plan.create = match &self.completed {
            None => vec![Birth::default(); missing],
            Some(_) => self
                .pending_indexes()
                .take(missing)
                .map(|index| Birth { index: Some(index), failures: None })
                .collect(),
        };
    }

    /// Indexes without a Pod and without an end, in order.
    fn pending_indexes(&self) -> impl Iterator<Item = i64> + '_ {
        let waits = waits_for_the_end(self.spec);
        let taken: BTreeSet<i64> = self
            .held
            .iter()
            .filter(|pod| pods::is_active(pod) || (waits && pods::is_terminating(pod)))
            .filter_map(|pod| index_of(pod))
            .collect();
        let ended = |indexes: &Option<Indexes>, index: i64| {
            indexes.as_ref().is_some_and(|indexes| indexes.contains(index))
        };
        (0..i64::from(self.spec.completions.unwrap_or(0))).filter(move |index| {
            !taken.contains(index) && !ended(&self.completed, *index) && !ended(&self.failed, *index)
        })
    }

    /// Each index has failures and a wait of its own.
    fn create_with_limits(&self, missing: usize, plan: &mut Plan) {
        for index in self.pending_indexes() {
            if plan.create.len() == missing {
                return;
            }
            let last = self.last_failure(index);
            let failures = last.map_or((0, 0), |pod| {
                indexed::failures_with(pod, &policy::judge(self.spec.pod_failure_policy.as_ref(), pod))
            });
            let until = last.map(|pod| self.ends.of(pod, self.now) + backoff(failures.0 + failures.1));
            match until.filter(|until| *until > self.now) {
                Some(until) => plan.wake(until),
                None => plan.create.push(Birth { index: Some(index), failures: Some(failures) }),
            }
        }
    }

    /// The last failed Pod of an index; it knows how often that failed.
    fn last_failure(&self, index: i64) -> Option<&Arc<Pod>> {
        let verdict = |pod: &Pod| policy::judge(self.spec.pod_failure_policy.as_ref(), pod);
        self.held.iter().filter(|pod| has_failed(pod, self.spec) && index_of(pod) == Some(index)).max_by_key(
            |pod| {
                let (counted, ignored) = indexed::failures_with(pod, &verdict(pod));
                (counted + ignored, self.ends.of(pod, self.now))
            },
        )
    }

    /// Until when no Pod is made, because those before failed.
    fn backed_off_until(&self) -> Option<Timestamp> {
        let mut ends: Vec<(Timestamp, bool)> = self
            .held
            .iter()
            .filter(|pod| !self.ignored.contains(uid(pod)))
            .filter_map(|pod| match pods::phase(pod) {
                "Succeeded" => Some((self.ends.of(pod, self.now), true)),
                _ if has_failed(pod, self.spec) => Some((self.ends.of(pod, self.now), false)),
                _ => None,
            })
            .collect();
        ends.sort_unstable();
        let failures = ends.iter().rev().take_while(|(_, good)| !good).count();
        let (last, _) = ends.last().filter(|_| failures > 0)?;
        Some(*last + backoff(long(failures)))
    }

    /// Pods whose finalizer may go once the status is written: they are counted, or there is nothing to count.
    pub(super) fn counted(&self, ending: bool) -> Vec<Arc<Pod>> {
        let listed =
            |pod: &Pod| self.uncounted_good.contains(uid(pod)) || self.uncounted_bad.contains(uid(pod));
        let done_with = |pod: &&Arc<Pod>| {
            is_held(pod)
                && (listed(pod)
                    || self.ignored.contains(uid(pod))
                    || (pods::is_terminal(pod) || has_failed(pod, self.spec)) && !self.is_valid(pod)
                    || (self.completed.is_some() && pods::phase(pod) == "Succeeded"))
        };
        // The last failed Pod of an index stays until there is another that remembers how often it failed.
        let remembers = |pod: &&Arc<Pod>| {
            let Some(index) = index_of(pod).filter(|_| self.failed.is_some() && !ending) else {
                return false;
            };
            let open = !self.failed.as_ref().is_some_and(|failed| failed.contains(index))
                && !self.completed.as_ref().is_some_and(|completed| completed.contains(index));
            let replaced = self.active.iter().any(|other| index_of(other) == Some(index));
            has_failed(pod, self.spec)
                && open
                && !replaced
                && self.last_failure(index).is_some_and(|last| uid(last) == uid(pod))
        };
        self.held.iter().filter(|pod| done_with(pod) && !remembers(pod)).cloned().collect()
    }
}

/// How long to wait after so many failures in a row.
fn backoff(failures: i64) -> SignedDuration {
    match u32::try_from(failures) {
        Ok(0) | Err(_) => SignedDuration::ZERO,
        Ok(failures) => {
            let factor = 1i32.checked_shl(failures - 1).filter(|factor| *factor > 0).unwrap_or(i32::MAX);
            BACKOFF_FIRST.checked_mul(factor).map_or(BACKOFF_MAX, |delay| delay.min(BACKOFF_MAX))
        }
    }
}
