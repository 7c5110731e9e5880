//! Which failures count, and when enough has succeeded.

use coracle_api::job::Indexes;
use k8s_openapi::api::batch::v1::{PodFailurePolicy, PodFailurePolicyRule, SuccessPolicy};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// What a failure of a Pod comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It counts.
    Count,
    /// It does not.
    Ignore,
    /// Its index has failed.
    FailIndex,
    /// The whole Job has.
    FailJob,
}

/// A rule that matches, its place, and what it matched, in words.
struct Match<'a> {
    rule: &'a PodFailurePolicyRule,
    place: usize,
    what: String,
}

/// What the failure of `pod` comes to by the first rule that matches.
pub(super) fn judge(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Verdict {
    match find(policy, pod).map(|found| found.rule.action.as_str()) {
        Some("Ignore") => Verdict::Ignore,
        Some("FailIndex") => Verdict::FailIndex,
        Some("FailJob") => Verdict::FailJob,
        _ => Verdict::Count,
    }
}

/// Why the failure of `pod` is that of the whole Job, if it is.
pub(super) fn fails_job(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Option<String> {
    let found = find(policy, pod).filter(|found| found.rule.action == "FailJob")?;
    let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
    let pod = format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default());
    Some(found.what.replace("{pod}", &pod) + &format!(" matching FailJob rule at index {}", found.place))
}

fn find<'a>(policy: Option<&'a PodFailurePolicy>, pod: &Pod) -> Option<Match<'a>> {
    let rules = &policy?.rules;
    rules.iter().enumerate().find_map(|(place, rule)| {
        let what = by_exit_code(rule, pod).or_else(|| by_condition(rule, pod))?;
        Some(Match { rule, place, what })
    })
}

fn by_exit_code(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let wanted = rule.on_exit_codes.as_ref()?;
    let status = pod.status.as_ref()?;
    let code = |container: &ContainerStatus| Some(container.state.as_ref()?.terminated.as_ref()?.exit_code);
    status.init_container_statuses.iter().chain(&status.container_statuses).flatten().find_map(|container| {
        let code = code(container).filter(|code| *code != 0)?;
        let named = wanted.container_name.as_ref().is_none_or(|name| *name == container.name);
        let listed = wanted.values.contains(&code);
        let matches = named && if wanted.operator == "In" { listed } else { !listed };
        matches.then(|| format!("Container {} for pod {{pod}} failed with exit code {code}", container.name))
    })
}

fn by_condition(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    rule.on_pod_conditions.iter().flatten().find_map(|pattern| {
        let status = pattern.status.as_deref().unwrap_or("True");
        conditions
            .iter()
            .any(|condition| condition.type_ == pattern.type_ && condition.status == status)
            .then(|| format!("Pod {{pod}} has condition {}", pattern.type_))
    })
}

/// Why what has succeeded is enough, if it is.
pub(super) fn success(policy: &SuccessPolicy, completed: &Indexes, completions: i64) -> Option<String> {
    let place = policy.rules.iter().position(|rule| {
        let wanted =
            rule.succeeded_indexes.as_deref().map(|text| Indexes::of_status(Some(text), completions));
        let done = match &wanted {
            Some(wanted) => wanted.iter().filter(|index| completed.contains(*index)).count(),
            None => usize::try_from(completed.len()).unwrap_or(0),
        };
        let done = i64::try_from(done).unwrap_or(0);
        match (rule.succeeded_count, &wanted) {
            (Some(count), _) => done >= count.into(),
            (None, Some(wanted)) => done >= wanted.len(),
            (None, None) => false,
        }
    })?;
    Some(format!("Matched rules at index {place}"))
}
