//! The taints that say what is wrong with a node.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// The node says that it is not Ready.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// The node says nothing.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Condition, the status at which it is bad, and the taint that says so.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// The taints that a node has to have; `None` if it has them. `conditions` are what is true now, `evicts` is the key of the
/// taint by which Pods have to leave. Taints of others stay.
#[must_use]
pub fn wanted(
    current: &[Taint],
    conditions: &[NodeCondition],
    unschedulable: bool,
    evicts: Option<&str>,
    now: Timestamp,
) -> Option<Vec<Taint>> {
    let holds = |kind: &str, status: &str| conditions.iter().any(|c| c.type_ == kind && c.status == status);
    let by_condition = BY_CONDITION
        .iter()
        .filter(|(kind, status, _)| holds(kind, status))
        .map(|(_, _, key)| (*key, "NoSchedule"));
    let wanted: Vec<(&str, &str)> = by_condition
        .chain(unschedulable.then_some((UNSCHEDULABLE, "NoSchedule")))
        .chain(evicts.map(|key| (key, "NoExecute")))
        .collect();
    let is_ours = |taint: &Taint| match taint.effect.as_str() {
        "NoSchedule" => {
            taint.key == UNSCHEDULABLE || BY_CONDITION.iter().any(|(_, _, key)| *key == taint.key)
        }
        "NoExecute" => taint.key == NOT_READY || taint.key == UNREACHABLE,
        _ => false,
    };
    let is = |taint: &Taint, (key, effect): &(&str, &str)| taint.key == *key && taint.effect == *effect;
    let mut new: Vec<Taint> = current
        .iter()
        .filter(|taint| !is_ours(taint) || wanted.iter().any(|wanted| is(taint, wanted)))
        .cloned()
        .collect();
    for wanted in wanted {
        if !new.iter().any(|taint| is(taint, &wanted)) {
            new.push(Taint {
                key: wanted.0.to_owned(),
                effect: wanted.1.to_owned(),
                time_added: Some(Time(now)),
                ..Taint::default()
            });
        }
    }
    (new != current).then_some(new)
}

/// Whether Pods have to leave a node because of its state.
#[must_use]
pub fn evicts(taints: &[Taint]) -> bool {
    taints
        .iter()
        .any(|taint| taint.effect == "NoExecute" && (taint.key == NOT_READY || taint.key == UNREACHABLE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taints(text: &[&str]) -> Vec<Taint> {
        let taint = |text: &&str| {
            let (key, effect) = text.split_once(':').unwrap();
            Taint { key: key.to_owned(), effect: effect.to_owned(), ..Taint::default() }
        };
        text.iter().map(taint).collect()
    }

    #[test]
    fn taints_follow_the_conditions_and_others_stay() {
        let ready = "node.kubernetes.io/not-ready:NoSchedule";
        let evicting = "node.kubernetes.io/not-ready:NoExecute";
        let unreachable = "node.kubernetes.io/unreachable:NoSchedule";
        let memory = "node.kubernetes.io/memory-pressure:NoSchedule";
        let cordoned = "node.kubernetes.io/unschedulable:NoSchedule";
        for (current, conditions, unschedulable, evicts, expected) in [
            (&[][..], &["Ready=True"][..], false, None, None),
            (&[ready], &["Ready=True"], false, None, Some(vec![])),
            (&["a/b:NoSchedule", ready], &["Ready=True"], false, None, Some(vec!["a/b:NoSchedule"])),
            (&["a/b:NoExecute"], &["Ready=False"], false, None, Some(vec!["a/b:NoExecute", ready])),
            (&[ready], &["Ready=False"], false, Some(NOT_READY), Some(vec![ready, evicting])),
            (
                &[ready, evicting],
                &["Ready=Unknown"],
                false,
                Some(UNREACHABLE),
                Some(vec![unreachable, "node.kubernetes.io/unreachable:NoExecute"]),
            ),
            (&[unreachable], &["Ready=Unknown"], false, None, None),
            (&[], &["Ready=True", "MemoryPressure=True"], true, None, Some(vec![memory, cordoned])),
            (&[memory, cordoned], &["Ready=True", "MemoryPressure=Unknown"], false, None, Some(vec![])),
            // The same key with another effect is somebody else's.
            (&["node.kubernetes.io/not-ready:PreferNoSchedule"], &["Ready=True"], false, None, None),
        ] {
            let condition = |text: &&str| {
                let (kind, status) = text.split_once('=').unwrap();
                NodeCondition {
                    type_: kind.to_owned(),
                    status: status.to_owned(),
                    ..NodeCondition::default()
                }
            };
            let conditions: Vec<_> = conditions.iter().map(condition).collect();
            let now = Timestamp::UNIX_EPOCH;
            let new = wanted(&taints(current), &conditions, unschedulable, evicts, now);
            let shown = new.map(|new| {
                new.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect::<Vec<_>>()
            });
            let expected: Option<Vec<String>> =
                expected.map(|expected| expected.iter().map(|text| (*text).to_owned()).collect());
            assert_eq!(shown, expected, "{current:?} {conditions:?}");
        }
    }
}
