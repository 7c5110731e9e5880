//! The conditions of a Job.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition};

use crate::workload::status::time;

pub(super) const COMPLETE: &str = "Complete";
pub(super) const FAILED: &str = "Failed";
pub(super) const SUSPENDED: &str = "Suspended";
pub(super) const FAILURE_TARGET: &str = "FailureTarget";
pub(super) const SUCCESS_CRITERIA_MET: &str = "SuccessCriteriaMet";

/// The conditions of a status while they are being decided.
#[derive(Debug)]
pub(super) struct Conditions {
    list: Vec<JobCondition>,
    now: Timestamp,
}

impl Conditions {
    pub(super) fn of(list: Option<Vec<JobCondition>>, now: Timestamp) -> Self {
        Conditions { list: list.unwrap_or_default(), now }
    }

    fn get_true(&self, kind: &str) -> Option<&JobCondition> {
        self.list.iter().find(|condition| condition.type_ == kind && condition.status == "True")
    }

    pub(super) fn is_true(&self, kind: &str) -> bool {
        self.get_true(kind).is_some()
    }

    pub(super) fn is_finished(&self) -> bool {
        self.is_true(COMPLETE) || self.is_true(FAILED)
    }

    /// The end that was decided on before: whether it is a good one, why, and in words.
    pub(super) fn interim(&self) -> Option<(bool, String, String)> {
        let (good, condition) = match (self.get_true(FAILURE_TARGET), self.get_true(SUCCESS_CRITERIA_MET)) {
            (Some(condition), _) => (false, condition),
            (None, Some(condition)) => (true, condition),
            (None, None) => return None,
        };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Some((good, text(&condition.reason), text(&condition.message)))
    }

    /// Says something unless it is said already; whether it was news.
    pub(super) fn set(&mut self, kind: &str, status: &str, reason: &str, message: &str) -> bool {
        if self.list.iter().any(|condition| condition.type_ == kind && condition.status == status) {
            return false;
        }
        let condition = JobCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_probe_time: Some(time(self.now)),
            last_transition_time: Some(time(self.now)),
        };
        match self.list.iter_mut().find(|condition| condition.type_ == kind) {
            Some(old) => *old = condition,
            None => self.list.push(condition),
        }
        true
    }

    pub(super) fn into_list(self) -> Option<Vec<JobCondition>> {
        (!self.list.is_empty()).then_some(self.list)
    }
}

/// How a Job ended, and when, if it has.
pub(crate) fn end_of(job: &Job) -> Option<(&str, Option<Timestamp>)> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let ended = |condition: &&JobCondition| {
        condition.status == "True" && matches!(condition.type_.as_str(), COMPLETE | FAILED)
    };
    let condition = conditions.iter().find(ended)?;
    Some((&condition.type_, condition.last_transition_time.as_ref().map(|time| time.0)))
}
