//! What a namespace that is being deleted says about how far it is, in upstream's words.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::NamespaceCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Remaining;

/// The conditions after a look that left `remaining`; `None` if they are what they were.
///
/// All five are there from the first look on. `lastTransitionTime` moves when the status does.
#[must_use]
pub fn update_conditions(
    old: &[NamespaceCondition],
    remaining: &Remaining,
    now: Timestamp,
) -> Option<Vec<NamespaceCondition>> {
    let mut conditions = old.to_vec();
    let mut changed = false;
    for (type_, wanted, good) in wanted(remaining) {
        let (status, (reason, message)) = match wanted {
            Some(bad) => ("True", bad),
            None => ("False", (good.0, good.1.to_owned())),
        };
        let condition = NamespaceCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(Time(now)),
        };
        match conditions.iter_mut().find(|condition| condition.type_ == type_) {
            None => {
                conditions.push(condition);
                changed = true;
            }
            Some(known) if known.status != condition.status => {
                *known = condition;
                changed = true;
            }
            Some(known) if known.reason != condition.reason || known.message != condition.message => {
                let since = known.last_transition_time.take();
                *known = NamespaceCondition { last_transition_time: since, ..condition };
                changed = true;
            }
            Some(_) => {}
        }
    }
    changed.then_some(conditions)
}

type Row = (&'static str, Option<(&'static str, String)>, (&'static str, &'static str));

/// Type, what is wrong, and what is said when nothing is. The catalogue is the discovery, so the first two never fail.
fn wanted(remaining: &Remaining) -> [Row; 5] {
    let failures = &remaining.failures;
    let content_failure = (!failures.is_empty()).then(|| {
        let causes = match failures.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let count = failures.len();
        ("ContentDeletionFailed", format!("Failed to delete all resource types, {count} remaining: {causes}"))
    });
    let objects = (!remaining.objects.is_empty()).then(|| {
        let list =
            joined(remaining.objects.iter().map(|(kind, n)| format!("{kind} has {n} resource instances")));
        ("SomeResourcesRemain", format!("Some resources are remaining: {list}"))
    });
    let finalizers = (!remaining.finalizers.is_empty()).then(|| {
        let list =
            joined(remaining.finalizers.iter().map(|(name, n)| format!("{name} in {n} resource instances")));
        ("SomeFinalizersRemain", format!("Some content in the namespace has finalizers remaining: {list}"))
    });
    [
        (
            "NamespaceDeletionDiscoveryFailure",
            None,
            ("ResourcesDiscovered", "All resources successfully discovered"),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        ),
        (
            "NamespaceDeletionContentFailure",
            content_failure,
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        ),
        ("NamespaceContentRemaining", objects, ("ContentRemoved", "All content successfully removed")),
        (
            "NamespaceFinalizersRemaining",
            finalizers,
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        ),
    ]
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn said(conditions: &[NamespaceCondition], type_: &str) -> (String, String, String, i64) {
        let condition = conditions.iter().find(|condition| condition.type_ == type_).unwrap();
        (
            condition.status.clone(),
            condition.reason.clone().unwrap(),
            condition.message.clone().unwrap(),
            condition.last_transition_time.clone().unwrap().0.as_second(),
        )
    }

    #[test]
    fn what_remains_is_told_in_upstreams_words_and_taken_back_when_it_is_gone() {
        let remaining = Remaining {
            objects: BTreeMap::from([("pods.".to_owned(), 2), ("leases.coordination.k8s.io".to_owned(), 1)]),
            finalizers: BTreeMap::from([("custom.io/finalizer".to_owned(), 1)]),
            failures: vec![
                "unexpected items still remain in namespace: a for gvr: /v1, Resource=pods".into(),
            ],
        };
        let first = update_conditions(&[], &remaining, at(1)).unwrap();
        assert_eq!(first.len(), 5);
        let t = |status: &str, reason: &str, message: &str, time| {
            (status.to_owned(), reason.to_owned(), message.to_owned(), time)
        };
        assert_eq!(
            said(&first, "NamespaceContentRemaining"),
            t(
                "True",
                "SomeResourcesRemain",
                "Some resources are remaining: leases.coordination.k8s.io has 1 resource instances, \
                 pods. has 2 resource instances",
                1
            )
        );
        assert_eq!(
            said(&first, "NamespaceFinalizersRemaining"),
            t(
                "True",
                "SomeFinalizersRemain",
                "Some content in the namespace has finalizers remaining: custom.io/finalizer in 1 resource instances",
                1
            )
        );
        assert_eq!(
            said(&first, "NamespaceDeletionContentFailure").2,
            "Failed to delete all resource types, 1 remaining: unexpected items still remain in namespace: a for \
             gvr: /v1, Resource=pods"
        );
        assert_eq!(update_conditions(&first, &remaining, at(2)), None, "no news, no write");

        let fewer = Remaining { objects: BTreeMap::from([("pods.".to_owned(), 1)]), ..Remaining::default() };
        let second = update_conditions(&first, &fewer, at(3)).unwrap();
        assert_eq!(said(&second, "NamespaceContentRemaining").3, 1, "still True: the time stays");
        assert_eq!(said(&second, "NamespaceFinalizersRemaining").3, 3);

        let last = update_conditions(&second, &Remaining::default(), at(4)).unwrap();
        assert_eq!(
            said(&last, "NamespaceContentRemaining"),
            t("False", "ContentRemoved", "All content successfully removed", 4)
        );
    }
}
