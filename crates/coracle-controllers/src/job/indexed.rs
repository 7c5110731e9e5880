//! Pods with an index: which each has, how often it failed, and which are too many.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};

use super::policy::Verdict;
use super::reconcile::Birth;

const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
const VARIABLE: &str = "JOB_COMPLETION_INDEX";

fn number(pod: &Pod, annotation: &str) -> Option<i64> {
    pod.metadata.annotations.as_ref()?.get(annotation)?.parse().ok().filter(|number| *number >= 0)
}

/// The index of a Pod.
pub(super) fn index_of(pod: &Pod) -> Option<i64> {
    number(pod, INDEX)
}

/// How often the index of a failed Pod has failed, this time included, and how often that did not count.
pub(super) fn failures_with(pod: &Pod, verdict: &Verdict) -> (i64, i64) {
    let (counted, ignored) = (number(pod, FAILURES).unwrap_or(0), number(pod, IGNORED_FAILURES).unwrap_or(0));
    if *verdict == Verdict::Ignore { (counted, ignored + 1) } else { (counted + 1, ignored) }
}

/// How often containers of a Pod were started again.
pub(super) fn restarts(pod: &Pod) -> i64 {
    let Some(status) = &pod.status else { return 0 };
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    all.map(|container| i64::from(container.restart_count)).sum()
}

/// Pods that are to go: those without an index that counts and those whose index another Pod has, whatever is asked for;
/// then those of the highest indexes.
pub(super) fn surplus(active: &[Arc<Pod>], at_least: usize, completions: i64) -> Vec<Arc<Pod>> {
    let mut by_index: BTreeMap<i64, &Arc<Pod>> = BTreeMap::new();
    let mut going = Vec::new();
    let born = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let mut oldest_first: Vec<&Arc<Pod>> = active.iter().collect();
    oldest_first.sort_by_key(|pod| born(pod));
    let mut taken = BTreeSet::new();
    for pod in oldest_first {
        match index_of(pod).filter(|index| *index < completions) {
            Some(index) if taken.insert(index) => {
                by_index.insert(index, pod);
            }
            _ => going.push(Arc::clone(pod)),
        }
    }
    while going.len() < at_least
        && let Some((_, pod)) = by_index.pop_last()
    {
        going.push(Arc::clone(pod));
    }
    going
}

/// Gives a Pod that is to be made what its index asks for: names, annotations, and the variable in its containers.
pub(super) fn mark(pod: &mut Pod, job: &str, birth: &Birth) {
    let Some(index) = birth.index else { return };
    let text = index.to_string();
    pod.metadata.generate_name = Some(format!("{job}-{index}-"));
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), text.clone());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_owned(), text);
    if let Some((counted, ignored)) = birth.failures {
        annotations.insert(FAILURES.to_owned(), counted.to_string());
        if ignored > 0 {
            annotations.insert(IGNORED_FAILURES.to_owned(), ignored.to_string());
        }
    }
    let Some(spec) = pod.spec.as_mut() else { return };
    spec.hostname = Some(format!("{job}-{index}"));
    let add = |container: &mut Container| {
        let variables = container.env.get_or_insert_default();
        if variables.iter().all(|variable| variable.name != VARIABLE) {
            variables.push(EnvVar {
                name: VARIABLE.to_owned(),
                value_from: Some(EnvVarSource {
                    field_ref: Some(ObjectFieldSelector {
                        field_path: format!("metadata.labels['{INDEX}']"),
                        ..ObjectFieldSelector::default()
                    }),
                    ..EnvVarSource::default()
                }),
                ..EnvVar::default()
            });
        }
    };
    spec.init_containers.iter_mut().flatten().chain(&mut spec.containers).for_each(add);
}
