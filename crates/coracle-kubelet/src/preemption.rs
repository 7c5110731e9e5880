//! Which Pods of a node end so that a critical one finds room.
//!
//! As few as can be, of the lowest class of service: Guaranteed ones only if all others were not enough.

use coracle_api::pod::{QosClass, effective_requests, qos_class};
use k8s_openapi::api::core::v1::{Node, Pod};

use crate::admission::{Refusal, Shortage, amount, refusals};
use crate::pod::inputs::Rejection;

/// From this priority on a Pod is critical.
const CRITICAL: i32 = 2_000_000_000;

/// What becomes of a Pod that is new to the node.
#[derive(Debug, Clone, PartialEq)]
pub enum Admission<'a> {
    /// It fits.
    Admit,
    /// It does not.
    Reject(Rejection),
    /// It fits once these have ended.
    Preempt(Vec<&'a Pod>),
}

/// Decides about `pod` beside `admitted`.
#[must_use]
pub fn decide<'a>(pod: &Pod, node: &Node, admitted: &[&'a Pod]) -> Admission<'a> {
    let refusals = refusals(pod, node, admitted);
    let Some(first) = refusals.first() else { return Admission::Admit };
    if !is_critical(pod) {
        return Admission::Reject(first.rejection());
    }
    let mut missing = Vec::new();
    for refusal in &refusals {
        match refusal {
            Refusal::Insufficient(shortage) => missing.push(shortage.clone()),
            // Room would not help.
            Refusal::Other(other) => return Admission::Reject(other.clone()),
        }
    }
    let missing = missing.iter().map(Missing::of).collect();
    match victims(pod, admitted, missing) {
        Ok(victims) => Admission::Preempt(victims),
        Err(why) => Admission::Reject(Rejection {
            reason: "UnexpectedAdmissionError".to_owned(),
            message: format!(
                "Unexpected error while attempting to recover from admission failure: preemption: error finding a set \
                 of pods to preempt: {why}"
            ),
        }),
    }
}

/// Whether a Pod may push others off its node.
#[must_use]
pub fn is_critical(pod: &Pod) -> bool {
    priority(pod).is_some_and(|priority| priority >= CRITICAL)
}

fn priority(pod: &Pod) -> Option<i32> {
    pod.spec.as_ref()?.priority
}

fn may_preempt(pod: &Pod, other: &Pod) -> bool {
    (is_critical(pod) && !is_critical(other))
        || priority(pod).zip(priority(other)).is_some_and(|(own, its)| own > its)
}

/// What is still missing of one resource.
#[derive(Debug, Clone)]
struct Missing {
    resource: String,
    quantity: i64,
}

impl Missing {
    fn of(shortage: &Shortage) -> Missing {
        Missing { resource: shortage.resource.clone(), quantity: shortage.missing() }
    }
}

fn victims<'a>(pod: &Pod, admitted: &[&'a Pod], missing: Vec<Missing>) -> Result<Vec<&'a Pod>, String> {
    let candidates = || admitted.iter().copied().filter(|other| may_preempt(pod, other));
    let of = |class: QosClass| -> Vec<&'a Pod> {
        candidates().filter(|other| qos_class(other) == class).collect()
    };
    let (best_effort, burstable, guaranteed) =
        (of(QosClass::BestEffort), of(QosClass::Burstable), of(QosClass::Guaranteed));
    let all: Vec<_> = candidates().collect();
    none_left(&subtract(missing.clone(), &all))?;
    // Of each class only as many as are needed beside all of the lower ones and those chosen of the higher ones.
    let rest = subtract(subtract(missing.clone(), &best_effort), &burstable);
    let guaranteed = closest(guaranteed, rest)?;
    let rest = subtract(subtract(missing.clone(), &best_effort), &guaranteed);
    let burstable = closest(burstable, rest)?;
    let rest = subtract(subtract(missing, &burstable), &guaranteed);
    let best_effort = closest(best_effort, rest)?;
    Ok([best_effort, burstable, guaranteed].concat())
}

/// The Pods that come closest to what is missing, one after the other, until nothing is.
fn closest(mut pods: Vec<&Pod>, mut missing: Vec<Missing>) -> Result<Vec<&Pod>, String> {
    let mut chosen = Vec::new();
    while !missing.is_empty() {
        let best = pods.iter().enumerate().min_by(|(_, a), (_, b)| {
            let by_distance = distance(&missing, a).total_cmp(&distance(&missing, b));
            by_distance.then_with(|| size(a).cmp(&size(b)))
        });
        let Some((best, _)) = best else {
            none_left(&missing)?;
            break;
        };
        let pod = pods.swap_remove(best);
        missing = subtract(missing, &[pod]);
        chosen.push(pod);
    }
    Ok(chosen)
}

fn none_left(missing: &[Missing]) -> Result<(), String> {
    if missing.is_empty() {
        return Ok(());
    }
    let listed: String =
        missing.iter().map(|one| format!("(res: {}, q: {}), ", one.resource, one.quantity)).collect();
    Err(format!("no set of running pods found to reclaim resources: [{listed}]"))
}

fn subtract(missing: Vec<Missing>, pods: &[&Pod]) -> Vec<Missing> {
    let less = missing.into_iter().map(|one| {
        let freed = pods.iter().fold(0, |sum: i64, pod| sum.saturating_add(request(pod, &one.resource)));
        Missing { quantity: one.quantity.saturating_sub(freed), ..one }
    });
    less.filter(|one| one.quantity > 0).collect()
}

/// How much of what is missing would still be, each resource by its share.
fn distance(missing: &[Missing], pod: &Pod) -> f64 {
    let share = |one: &Missing| {
        let left = one.quantity.saturating_sub(request(pod, &one.resource)).max(0);
        #[allow(clippy::cast_precision_loss, reason = "a share need not be exact")]
        let share = left as f64 / one.quantity as f64;
        share * share
    };
    missing.iter().map(share).sum()
}

fn size(pod: &Pod) -> (i64, i64) {
    (request(pod, "memory"), request(pod, "cpu"))
}

fn request(pod: &Pod, resource: &str) -> i64 {
    if resource == "pods" { 1 } else { amount(&effective_requests(pod), resource) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node() -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "4"}}
        }))
        .unwrap()
    }

    /// A Pod that asks for so much CPU and memory; with limits it is Guaranteed.
    fn pod(name: &str, priority: i64, resources: Value) -> Pod {
        let spec = json!({"priority": priority, "containers": [{"name": "c", "resources": resources}]});
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
    }

    fn burstable(name: &str, cpu: &str) -> Pod {
        pod(name, 0, json!({"requests": {"cpu": cpu, "memory": "1Gi"}}))
    }

    fn guaranteed(name: &str, cpu: &str) -> Pod {
        let list = json!({"cpu": cpu, "memory": "1Gi"});
        pod(name, 0, json!({"requests": list, "limits": list}))
    }

    fn critical(cpu: &str) -> Pod {
        pod("critical", 2_000_001_000, json!({"requests": {"cpu": cpu}}))
    }

    fn chosen(pod: &Pod, admitted: &[&Pod]) -> Vec<String> {
        match decide(pod, &node(), admitted) {
            Admission::Preempt(victims) => victims.iter().map(|v| v.metadata.name.clone().unwrap()).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_critical_pod_that_fits_pushes_nobody_off() {
        assert_eq!(decide(&critical("1"), &node(), &[&burstable("a", "3")]), Admission::Admit);
    }

    #[test]
    fn the_lowest_class_goes_first_and_of_it_the_one_that_fits_best() {
        let (a, b, g) = (burstable("a", "1"), burstable("b", "2"), guaranteed("g", "1"));
        assert_eq!(chosen(&critical("2"), &[&a, &b, &g]), ["b"], "one is enough");
        assert_eq!(chosen(&critical("1"), &[&a, &b, &g]), ["a"], "of two that are enough the smaller");
        assert_eq!(chosen(&critical("3"), &[&a, &b, &g]), ["b", "a"]);
        assert_eq!(chosen(&critical("4"), &[&a, &b, &g]), ["b", "a", "g"]);
    }

    #[test]
    fn a_place_for_a_pod_is_freed_too() {
        let small = |name: &str| pod(name, 0, json!({}));
        let (a, b, c, d) = (small("a"), burstable("b", "1"), burstable("c", "1"), burstable("d", "1"));
        assert_eq!(chosen(&critical("1"), &[&a, &b, &c, &d]), ["a"]);
    }

    #[test]
    fn other_critical_pods_stay_and_room_that_cannot_be_found_is_told() {
        let peer = pod("peer", 2_000_001_000, json!({"requests": {"cpu": "3"}}));
        let why = "Unexpected error while attempting to recover from admission failure: preemption: error finding a set \
                   of pods to preempt: no set of running pods found to reclaim resources: [(res: cpu, q: 1000), ]";
        let rejection = Rejection { reason: "UnexpectedAdmissionError".to_owned(), message: why.to_owned() };
        assert_eq!(decide(&critical("2"), &node(), &[&peer]), Admission::Reject(rejection));
    }

    #[test]
    fn what_room_cannot_mend_refuses_a_critical_pod_and_ordinary_pods_push_nobody_off() {
        let mut elsewhere = critical("2");
        elsewhere.spec.as_mut().unwrap().node_selector = Some([("disk".to_owned(), "ssd".to_owned())].into());
        let full = burstable("a", "4");
        let reason = |pod: &Pod| match decide(pod, &node(), &[&full]) {
            Admission::Reject(rejection) => rejection.reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(reason(&elsewhere), "NodeAffinity");
        assert_eq!(reason(&burstable("b", "1")), "OutOfcpu");
    }
}
