//! What a Job does next: count what ended, make and delete Pods, and say how it stands.
//!
//! Each ended Pod is counted once, whatever dies when: its UID goes into `status.uncountedTerminatedPods` first, then its
//! finalizer is taken off, and only when that is seen does it move into the number. A Pod that has its finalizer and is
//! not in the list has not been counted.

use std::collections::BTreeSet;
use std::sync::Arc;

use coracle_api::job::Indexes;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;

use super::ends::Ends;
use super::indexed::{self, index_of};
use super::policy::{self, Verdict};
use super::state::{self, Conditions};
use crate::workload::pods;
use crate::workload::status::time;

/// What Pods carry until they are counted.
pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Most Pods that are made, deleted or counted in one go.
pub(super) const BURST: usize = 500;

/// What is to be done, in this order.
#[derive(Debug)]
pub struct Plan {
    /// What was seen and decided. Nothing else may be done before it is written.
    pub status: JobStatus,
    /// Pods whose finalizer goes: they are counted.
    pub unhold: Vec<Arc<Pod>>,
    /// Pods that are to go.
    pub delete: Vec<Arc<Pod>>,
    /// Pods that are to be made: for a Job with indexes, for which, and how often each has failed.
    pub create: Vec<Birth>,
    /// Warning or not, reason, message.
    pub events: Vec<(bool, String, String)>,
    /// When to look again although nothing happens.
    pub wake_at: Option<Timestamp>,
}

/// A Pod that is to be made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Birth {
    /// Its index, if the Job has some.
    pub index: Option<i64>,
    /// How often its index has failed, and how often that did not count, if that is limited.
    pub failures: Option<(i64, i64)>,
}

impl Plan {
    fn nothing(job: &Job) -> Self {
        Plan {
            status: job.status.clone().unwrap_or_default(),
            unhold: Vec::new(),
            delete: Vec::new(),
            create: Vec::new(),
            events: Vec::new(),
            wake_at: None,
        }
    }

    pub(super) fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

/// Whether a Pod has not been counted yet.
#[must_use]
pub fn is_held(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

pub(super) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// Whether only Pods that have ended are replaced; else those that are ending are, too.
pub(super) fn waits_for_the_end(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed")
}

/// Whether a Pod has failed as far as its Job is concerned.
pub(super) fn has_failed(pod: &Pod, spec: &JobSpec) -> bool {
    pods::phase(pod) == "Failed"
        || (!waits_for_the_end(spec)
            && pod.metadata.deletion_timestamp.is_some()
            && pods::phase(pod) != "Succeeded")
}

/// Decides about the Pods that a Job holds, which `ends` has taken note of.
#[must_use]
pub fn reconcile(job: &Job, held: &[Arc<Pod>], ends: &Ends, now: Timestamp) -> Plan {
    let mut plan = Plan::nothing(job);
    let Some(spec) = &job.spec else { return plan };
    if spec.managed_by.as_deref().is_some_and(|manager| manager != "kubernetes.io/job-controller") {
        return plan;
    }
    let mut conditions = Conditions::of(plan.status.conditions.take(), now);
    if conditions.is_finished() || job.metadata.deletion_timestamp.is_some() {
        // Nobody counts any more.
        plan.unhold = held.iter().filter(|pod| is_held(pod)).cloned().collect();
        plan.status = job.status.clone().unwrap_or_default();
        return plan;
    }
    let mut look = Look::at(spec, held, ends, now, plan.status.clone());
    look.count();
    let suspended = spec.suspend == Some(true);
    if plan.status.start_time.is_none() && !suspended {
        look.status.start_time = Some(time(now));
    }
    let ending = look.ending(&conditions, suspended);
    if let Some(ending) = &ending {
        conditions.set(ending.interim(), "True", &ending.reason, &ending.message);
        plan.delete = look.active.iter().take(BURST).cloned().collect();
        look.end_if_nobody_is_left(ending, &mut conditions, &mut plan);
    } else {
        look.suspend_or_resume(suspended, &mut conditions, &mut plan);
        if suspended {
            plan.delete = look.active.iter().take(BURST).cloned().collect();
        } else {
            look.manage(&mut plan);
            if let Some(deadline) = look.deadline() {
                plan.wake(deadline);
            }
        }
    }
    plan.unhold = look.counted(ending.is_some());
    plan.status = look.status;
    plan.status.conditions = conditions.into_list();
    plan
}

/// How a Job is about to end.
#[derive(Debug, Clone)]
pub(super) struct Ending {
    good: bool,
    reason: String,
    message: String,
}

impl Ending {
    fn bad(reason: &str, message: impl Into<String>) -> Self {
        Ending { good: false, reason: reason.to_owned(), message: message.into() }
    }

    fn good(reason: &str, message: impl Into<String>) -> Self {
        Ending { good: true, reason: reason.to_owned(), message: message.into() }
    }

    fn interim(&self) -> &'static str {
        if self.good { state::SUCCESS_CRITERIA_MET } else { state::FAILURE_TARGET }
    }
}

/// One look at a Job and its Pods.
pub(super) struct Look<'a> {
    pub(super) spec: &'a JobSpec,
    pub(super) held: &'a [Arc<Pod>],
    pub(super) ends: &'a Ends,
    pub(super) now: Timestamp,
    pub(super) active: Vec<Arc<Pod>>,
    pub(super) terminating: usize,
    status: JobStatus,
    /// UIDs of ended Pods that are listed and not in the numbers yet.
    pub(super) uncounted_good: BTreeSet<String>,
    pub(super) uncounted_bad: BTreeSet<String>,
    /// Indexes, if the Job has some.
    pub(super) completed: Option<Indexes>,
    pub(super) failed: Option<Indexes>,
    /// UIDs of failed Pods that count for nothing.
    pub(super) ignored: BTreeSet<String>,
}

impl<'a> Look<'a> {
    fn at(
        spec: &'a JobSpec,
        held: &'a [Arc<Pod>],
        ends: &'a Ends,
        now: Timestamp,
        status: JobStatus,
    ) -> Self {
        let listed = status.uncounted_terminated_pods.clone().unwrap_or_default();
        let completions = i64::from(spec.completions.unwrap_or(0));
        let is_indexed = spec.completion_mode.as_deref() == Some("Indexed");
        let indexes = |text: &Option<String>| Indexes::of_status(text.as_deref(), completions);
        Look {
            active: held.iter().filter(|pod| pods::is_active(pod)).cloned().collect(),
            terminating: held.iter().filter(|pod| pods::is_terminating(pod)).count(),
            completed: is_indexed.then(|| indexes(&status.completed_indexes)),
            failed: (is_indexed && spec.backoff_limit_per_index.is_some())
                .then(|| indexes(&status.failed_indexes)),
            uncounted_good: listed.succeeded.into_iter().flatten().collect(),
            uncounted_bad: listed.failed.into_iter().flatten().collect(),
            ignored: BTreeSet::new(),
            spec,
            held,
            ends,
            now,
            status,
        }
    }

    /// Whether a Pod's index is one of the Job's; true for Jobs without indexes.
    pub(super) fn is_valid(&self, pod: &Pod) -> bool {
        let completions = i64::from(self.spec.completions.unwrap_or(0));
        self.completed.is_none() || index_of(pod).is_some_and(|index| index < completions)
    }

    /// Moves those into the numbers whose finalizer is gone, lists those that have ended, and writes all of it down.
    fn count(&mut self) {
        let still: BTreeSet<&str> = self.held.iter().filter(|pod| is_held(pod)).map(|pod| uid(pod)).collect();
        let settle = |listed: &mut BTreeSet<String>, number: &mut Option<i32>| {
            let before = listed.len();
            listed.retain(|uid| still.contains(uid.as_str()));
            let moved = i32::try_from(before - listed.len()).unwrap_or(0);
            if moved > 0 {
                *number = Some(number.unwrap_or(0).saturating_add(moved));
            }
        };
        settle(&mut self.uncounted_good, &mut self.status.succeeded);
        settle(&mut self.uncounted_bad, &mut self.status.failed);
        let mut room = BURST;
        for pod in self.held.iter().filter(|pod| is_held(pod)) {
            let listed = |list: &BTreeSet<String>| list.contains(uid(pod));
            if room == 0 || listed(&self.uncounted_good) || listed(&self.uncounted_bad) {
                continue;
            }
            if pods::phase(pod) == "Succeeded" {
                match (&mut self.completed, index_of(pod)) {
                    (Some(completed), Some(index))
                        if index < i64::from(self.spec.completions.unwrap_or(0)) =>
                    {
                        completed.insert(index);
                    }
                    (Some(_), _) => {}
                    (None, _) => {
                        self.uncounted_good.insert(uid(pod).to_owned());
                    }
                }
                room -= 1;
            } else if has_failed(pod, self.spec) && self.is_valid(pod) {
                if policy::judge(self.spec.pod_failure_policy.as_ref(), pod) == Verdict::Ignore {
                    self.ignored.insert(uid(pod).to_owned());
                } else {
                    self.uncounted_bad.insert(uid(pod).to_owned());
                }
                room -= 1;
            }
        }
        self.fail_indexes();
        self.write_numbers();
    }

    /// Indexes that have failed more often than they may.
    fn fail_indexes(&mut self) {
        let (Some(failed), Some(limit)) = (&mut self.failed, self.spec.backoff_limit_per_index) else {
            return;
        };
        for pod in self.held.iter().filter(|pod| has_failed(pod, self.spec)) {
            let Some(index) =
                index_of(pod).filter(|index| *index < i64::from(self.spec.completions.unwrap_or(0)))
            else {
                continue;
            };
            let verdict = policy::judge(self.spec.pod_failure_policy.as_ref(), pod);
            let (failures, _) = indexed::failures_with(pod, &verdict);
            if verdict == Verdict::FailIndex || failures > i64::from(limit) {
                failed.insert(index);
            }
        }
    }

    fn write_numbers(&mut self) {
        let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
        let active = count(self.active.len());
        self.status.active = (active > 0).then_some(active);
        self.status.ready = Some(count(self.active.iter().filter(|pod| pods::is_ready(pod)).count()));
        self.status.terminating = Some(count(self.terminating));
        if let Some(completed) = &self.completed {
            self.status.completed_indexes = Some(completed.to_string()).filter(|text| !text.is_empty());
            let done = i32::try_from(completed.len()).unwrap_or(i32::MAX);
            self.status.succeeded = (done > 0).then_some(done);
        }
        if let Some(failed) = &self.failed {
            self.status.failed_indexes = Some(failed.to_string());
        }
        let list = |uids: &BTreeSet<String>| (!uids.is_empty()).then(|| uids.iter().cloned().collect());
        let listed = self.status.uncounted_terminated_pods.get_or_insert_default();
        listed.succeeded = list(&self.uncounted_good);
        listed.failed = list(&self.uncounted_bad);
    }

    pub(super) fn succeeded(&self) -> i64 {
        match &self.completed {
            Some(completed) => completed.len(),
            None => i64::from(self.status.succeeded.unwrap_or(0)) + long(self.uncounted_good.len()),
        }
    }

    fn failures(&self) -> i64 {
        i64::from(self.status.failed.unwrap_or(0)) + long(self.uncounted_bad.len())
    }

    fn deadline(&self) -> Option<Timestamp> {
        let seconds = self.spec.active_deadline_seconds?;
        let start = self.status.start_time.as_ref()?.0;
        start.checked_add(SignedDuration::from_secs(seconds)).ok()
    }

    /// Whether, and how, the Job is about to end.
    fn ending(&self, conditions: &Conditions, suspended: bool) -> Option<Ending> {
        if let Some((good, reason, message)) = conditions.interim() {
            return Some(Ending { good, reason, message });
        }
        if let Some(message) = self
            .held
            .iter()
            .filter(|pod| has_failed(pod, self.spec))
            .find_map(|pod| policy::fails_job(self.spec.pod_failure_policy.as_ref(), pod))
        {
            return Some(Ending::bad("PodFailurePolicy", message));
        }
        let limit = i64::from(self.spec.backoff_limit.unwrap_or(6));
        if self.failures() > limit || self.restarted_too_often(limit) {
            return Some(Ending::bad("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
        }
        if !suspended && self.deadline().is_some_and(|deadline| deadline <= self.now) {
            return Some(Ending::bad("DeadlineExceeded", "Job was active longer than specified deadline"));
        }
        self.indexes_ended().or_else(|| self.completed_all())
    }

    fn indexes_ended(&self) -> Option<Ending> {
        let completed = self.completed.as_ref()?;
        if let Some(failed) = &self.failed {
            if self.spec.max_failed_indexes.is_some_and(|most| failed.len() > most.into()) {
                let message = "Job has exceeded the specified maximal number of failed indexes";
                return Some(Ending::bad("MaxFailedIndexesExceeded", message));
            }
            let done = failed.iter().filter(|index| !completed.contains(*index)).count();
            if !failed.is_empty()
                && long(done) + completed.len() >= i64::from(self.spec.completions.unwrap_or(0))
            {
                return Some(Ending::bad("FailedIndexes", "Job has failed indexes"));
            }
        }
        let completions = i64::from(self.spec.completions.unwrap_or(0));
        let message = policy::success(self.spec.success_policy.as_ref()?, completed, completions)?;
        Some(Ending::good("SuccessPolicy", message))
    }

    fn completed_all(&self) -> Option<Ending> {
        let done = match self.spec.completions {
            // A work queue: when one has found it empty, and all have stopped.
            None => self.succeeded() > 0,
            Some(completions) => self.succeeded() >= completions.into(),
        };
        (done && self.active.is_empty())
            .then(|| Ending::good("CompletionsReached", "Reached expected number of succeeded pods"))
    }

    /// Where containers are started again in place, those starts count.
    fn restarted_too_often(&self, limit: i64) -> bool {
        let template = self.spec.template.spec.as_ref();
        if template.and_then(|spec| spec.restart_policy.as_deref()) != Some("OnFailure") {
            return false;
        }
        let restarts: i64 = self.active.iter().map(|pod| indexed::restarts(pod)).sum();
        if limit == 0 { restarts > 0 } else { restarts >= limit }
    }

    fn end_if_nobody_is_left(&mut self, ending: &Ending, conditions: &mut Conditions, plan: &mut Plan) {
        let left = !self.active.is_empty()
            || self.terminating > 0
            || self.held.iter().any(|pod| is_held(pod))
            || !self.uncounted_good.is_empty()
            || !self.uncounted_bad.is_empty();
        if left {
            return;
        }
        let kind = if ending.good { state::COMPLETE } else { state::FAILED };
        conditions.set(kind, "True", &ending.reason, &ending.message);
        let event = if ending.good {
            self.status.completion_time = Some(time(self.now));
            (false, "Completed".to_owned(), "Job completed".to_owned())
        } else {
            (true, ending.reason.clone(), ending.message.clone())
        };
        plan.events.push(event);
    }

    fn suspend_or_resume(&mut self, suspended: bool, conditions: &mut Conditions, plan: &mut Plan) {
        if suspended {
            // The time that counts towards the deadline starts anew.
            self.status.start_time = None;
            if conditions.set(state::SUSPENDED, "True", "JobSuspended", "Job suspended") {
                plan.events.push((false, "Suspended".to_owned(), "Job suspended".to_owned()));
            }
        } else if conditions.is_true(state::SUSPENDED) {
            conditions.set(state::SUSPENDED, "False", "JobResumed", "Job resumed");
            self.status.start_time = Some(time(self.now));
            plan.events.push((false, "Resumed".to_owned(), "Job resumed".to_owned()));
        }
    }
}

pub(super) fn long(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
