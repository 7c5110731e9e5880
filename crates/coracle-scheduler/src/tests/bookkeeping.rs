//! The books of the scheduler: what nodes have left, which Pods wait, and what wakes them again.

use std::time::Duration;

use coracle_client::ObjectKey;
use proptest::prelude::*;
use serde_json::json;

use super::{cluster, node, pod, requests};
use crate::info::{NodeInfo, PodInfo};
use crate::{Cluster, Decision, Help, NodeState, Profile, Queue, Ranking, Unschedulable, schedule};

fn info(name: &str) -> PodInfo {
    PodInfo::of(&pod(name, &requests(&json!({"cpu": "1"}))))
}

fn on(mut pod: PodInfo, node: &str) -> PodInfo {
    pod.node_name = Some(node.to_owned());
    pod
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn short_of_cpu() -> Unschedulable {
    let full = cluster(
        &[node("a", &json!({"status": {"allocatable": {"cpu": "1"}}}))],
        &[{
            let mut other = pod("other", &requests(&json!({"cpu": "1"})));
            other.spec.as_mut().unwrap().node_name = Some("a".to_owned());
            other
        }],
    );
    match schedule(&info("p"), &full, &Profile::default(), 0) {
        Decision::Unschedulable(reason) => reason,
        Decision::Bind { node, .. } => panic!("bound to {node}"),
    }
}

#[test]
fn a_pod_behind_a_gate_needs_no_node_yet() {
    let mut gated = pod("p", &json!({"schedulingGates": [{"name": "g"}]}));
    assert!(!PodInfo::of(&gated).needs("default-scheduler"));
    gated.spec.as_mut().unwrap().scheduling_gates = None;
    assert!(PodInfo::of(&gated).needs("default-scheduler"));
}

#[derive(Debug, Clone)]
enum Step {
    /// A Pod is scheduled, and assumed where it is to go.
    Schedule {
        pod: usize,
        cpu_millis: i64,
    },
    Bound {
        pod: usize,
    },
    Failed {
        pod: usize,
    },
    Finished {
        pod: usize,
    },
    Gone {
        pod: usize,
    },
    /// A node is cordoned, or no longer.
    Cordon {
        node: &'static str,
        cordoned: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let pod = 0..12usize;
    prop_oneof![
        // Few amounts, so that one Pod often asks for what the one before asked for.
        3 => (pod.clone(), 0..6i64).prop_map(|(pod, cpus)| Step::Schedule { pod, cpu_millis: 500 * cpus }),
        2 => pod.clone().prop_map(|pod| Step::Bound { pod }),
        1 => pod.clone().prop_map(|pod| Step::Failed { pod }),
        1 => pod.clone().prop_map(|pod| Step::Finished { pod }),
        1 => pod.prop_map(|pod| Step::Gone { pod }),
        1 => (prop::sample::select(vec!["a", "b"]), any::<bool>())
            .prop_map(|(node, cordoned)| Step::Cordon { node, cordoned }),
    ]
}

proptest! {
    /// Whatever happens to bindings in flight, no node is ever promised more than it has, and when all Pods are gone
    /// nothing is left in the books. What is remembered from one decision to the next changes none.
    #[test]
    fn capacity_is_never_exceeded(steps in prop::collection::vec(step(), 1..80)) {
        let small = json!({"status": {"allocatable": {"cpu": "4", "pods": "3"}}});
        let mut cluster = cluster(&[node("a", &small), node("b", &small)], &[]);
        let mut alive: Vec<Option<(PodInfo, String)>> = vec![None; 12];
        let mut ranking = Ranking::default();
        for (tie, step) in steps.into_iter().enumerate() {
            match step {
                Step::Schedule { pod: i, cpu_millis } if alive[i].is_none() => {
                    let spec = requests(&json!({"cpu": format!("{cpu_millis}m")}));
                    let mut info = PodInfo::of(&pod(&format!("p{i}"), &spec));
                    info.uid = format!("u{tie}");
                    cluster.set_pod(&info.key.clone(), Some(&info));
                    let decision = schedule(&info, &cluster, &Profile::default(), tie as u64);
                    let remembered = ranking.schedule(&info, &cluster, &Profile::default(), tie as u64);
                    prop_assert_eq!(&remembered, &decision);
                    if let Decision::Bind { node, .. } = decision {
                        cluster.assume(&info, &node);
                        // A status write comes in before the binding does.
                        cluster.set_pod(&info.key.clone(), Some(&info));
                        alive[i] = Some((info, node));
                    }
                }
                Step::Schedule { .. } => {}
                Step::Bound { pod } => if let Some((info, node)) = &alive[pod] {
                    cluster.set_pod(&info.key.clone(), Some(&on(info.clone(), node)));
                },
                Step::Failed { pod } => if let Some((info, _)) = &alive[pod] && cluster.is_assumed(&info.uid) {
                    prop_assert!(cluster.forget(&info.uid.clone()));
                    alive[pod] = None;
                },
                Step::Finished { pod } => if let Some((info, node)) = alive[pod].take() {
                    let mut done = on(info.clone(), &node);
                    done.finished = true;
                    prop_assert!(cluster.set_pod(&info.key, Some(&done)));
                },
                Step::Gone { pod } => if let Some((info, _)) = alive[pod].take() {
                    prop_assert!(cluster.set_pod(&info.key, None));
                },
                Step::Cordon { node: name, cordoned } => {
                    let mut changed = NodeInfo::of(&node(name, &small));
                    changed.unschedulable = cordoned;
                    cluster.set_node(name, Some(changed));
                }
            }
            for (node, state) in cluster.nodes() {
                let expected: i64 = alive.iter().flatten()
                    .filter(|(_, on)| *on == node.name)
                    .map(|(info, _)| info.requests.get("cpu"))
                    .sum();
                prop_assert_eq!(state.used.get("cpu"), expected);
                prop_assert!(state.used.get("cpu") <= 4000 && state.pods <= 3);
            }
        }
        for (info, _) in alive.into_iter().flatten() {
            cluster.set_pod(&info.key, None);
        }
        prop_assert!(["a", "b"].iter().all(|node| *cluster.state(node) == NodeState::default()));
    }
}

#[test]
fn a_pod_that_came_again_under_its_old_name_replaces_the_old_one() {
    let mut cluster = Cluster::new();
    let old = on(info("p"), "a");
    cluster.set_pod(&old.key.clone(), Some(&old));
    let mut new = old.clone();
    new.uid = "another".to_owned();
    assert!(cluster.set_pod(&new.key.clone(), Some(&new)), "the old one made room");
    assert_eq!(cluster.state("a").pods, 1);
}

#[test]
fn a_heartbeat_of_a_node_helps_no_one() {
    let mut cluster = Cluster::new();
    let mut object = node("a", &json!({}));
    assert!(cluster.set_node("a", Some(NodeInfo::of(&object))));
    object.metadata.resource_version = Some("77".to_owned());
    assert!(!cluster.set_node("a", Some(NodeInfo::of(&object))));
    object.spec.get_or_insert_default().unschedulable = Some(true);
    assert!(cluster.set_node("a", Some(NodeInfo::of(&object))));
}

fn queue_with(pod: &PodInfo) -> Queue {
    let mut queue = Queue::new();
    queue.set(&pod.key, Some(pod.clone()), seconds(0));
    queue
}

#[test]
fn an_unschedulable_pod_waits_for_help_and_its_own_status_is_none() {
    let p = info("p");
    let mut queue = queue_with(&p);
    assert_eq!(queue.pop(seconds(0)).unwrap().uid, p.uid);
    queue.unschedulable(&p.uid, short_of_cpu(), seconds(0));
    queue.set(&p.key, Some(p.clone()), seconds(20));
    assert!(queue.pop(seconds(20)).is_none(), "nothing about the Pod has changed");
    queue.help(Help::Room, seconds(20));
    assert!(queue.pop(seconds(20)).is_some());
}

#[test]
fn room_does_not_help_a_pod_that_no_room_can_help() {
    let p = info("p");
    let mut queue = queue_with(&p);
    queue.pop(seconds(0));
    let decision = schedule(
        &p,
        &cluster(&[node("a", &json!({"spec": {"unschedulable": true}}))], &[]),
        &Profile::default(),
        0,
    );
    let Decision::Unschedulable(reason) = decision else { panic!() };
    queue.unschedulable(&p.uid, reason, seconds(0));
    queue.help(Help::Room, seconds(20));
    assert!(queue.pop(seconds(20)).is_none());
    queue.help(Help::Node, seconds(20));
    assert!(queue.pop(seconds(20)).is_some());
}

#[test]
fn help_is_taken_after_the_back_off_which_doubles_to_ten_seconds() {
    let p = info("p");
    let mut queue = queue_with(&p);
    let mut now = seconds(0);
    let mut delays = Vec::new();
    for _ in 0..6 {
        queue.pop(now).expect("its turn");
        queue.unschedulable(&p.uid, short_of_cpu(), now);
        queue.help(Help::Node, now);
        assert!(queue.pop(now).is_none());
        let wake = queue.next_wake().expect("a time");
        delays.push((wake - now).as_secs());
        now = wake;
    }
    assert_eq!(delays, [1, 2, 4, 8, 10, 10]);
    let waiting = queue.waiting(&p.uid).unwrap();
    assert_eq!((waiting.attempts, waiting.retry_at), (6, Some(now)));
    assert!(waiting.reason.unwrap().message.starts_with("0/1 nodes are available: 1 Insufficient cpu."));
}

#[test]
fn a_pod_that_heard_of_nothing_is_tried_again_after_five_minutes() {
    let p = info("p");
    let mut queue = queue_with(&p);
    queue.pop(seconds(0));
    queue.unschedulable(&p.uid, short_of_cpu(), seconds(0));
    assert_eq!(queue.next_wake(), Some(seconds(300)));
    assert!(queue.pop(seconds(300)).is_some());
}

#[test]
fn priority_goes_first_then_who_came_first() {
    let mut queue = Queue::new();
    for (name, priority) in [("a", 0), ("b", 5), ("c", 0)] {
        let mut pod = info(name);
        pod.priority = priority;
        queue.set(&pod.key.clone(), Some(pod), seconds(0));
    }
    let order: Vec<_> = std::iter::from_fn(|| queue.pop(seconds(0))).map(|pod| pod.key.name).collect();
    assert_eq!(order, ["b", "a", "c"]);
}

#[test]
fn a_pod_leaves_the_queue_when_it_needs_no_node_or_is_another() {
    let p = info("p");
    let mut queue = queue_with(&p);
    queue.set(&p.key, None, seconds(1));
    assert!(queue.is_empty() && queue.pop(seconds(1)).is_none());
    queue.set(&p.key, Some(p.clone()), seconds(2));
    let mut other = p.clone();
    other.uid = "another".to_owned();
    queue.set(&ObjectKey::namespaced("default", "p"), Some(other), seconds(3));
    assert_eq!(queue.len(), 1);
    assert_eq!(queue.pop(seconds(3)).unwrap().uid, "another");
    assert!(queue.pop(seconds(3)).is_none());
}
