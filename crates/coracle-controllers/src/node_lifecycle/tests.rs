//! The monitor over time: who is silent when, and what is said of them.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use super::monitor::{Monitor, Plan};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn at(second: u64) -> Timestamp {
    Timestamp::from_second(i64::try_from(second).unwrap()).unwrap()
}

/// A node whose agent said this at this time.
fn node(name: &str, ready: &str, heartbeat: u64) -> Arc<Node> {
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "lastHeartbeatTime": at(heartbeat), "lastTransitionTime": at(0)});
    let node = json!({
        "metadata": {"name": name, "uid": name, "resourceVersion": "1", "creationTimestamp": at(0)},
        "status": {"conditions": [
            condition("MemoryPressure", "False"), condition("DiskPressure", "False"),
            condition("PIDPressure", "False"), condition("Ready", ready),
        ]},
    });
    Arc::new(serde_json::from_value(node).unwrap())
}

/// As the API server has it after a plan was carried out.
fn after(mut nodes: Vec<Arc<Node>>, plan: &Plan) -> Vec<Arc<Node>> {
    for step in &plan.steps {
        let name = &step.node.metadata.name;
        let node = Arc::make_mut(nodes.iter_mut().find(|node| node.metadata.name == *name).unwrap());
        let conditions = node.status.get_or_insert_default().conditions.get_or_insert_default();
        for changed in &step.conditions {
            conditions.retain(|condition| condition.type_ != changed.type_);
            conditions.push(changed.clone());
        }
        if let Some(taints) = &step.taints {
            node.spec.get_or_insert_default().taints = Some(taints.clone());
        }
    }
    nodes
}

fn taints(nodes: &[Arc<Node>], name: &str) -> Vec<String> {
    let node = nodes.iter().find(|node| node.metadata.name.as_deref() == Some(name)).unwrap();
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let short = |key: &str| key.trim_start_matches("node.kubernetes.io/").to_owned();
    taints.iter().map(|taint| format!("{}:{}", short(&taint.key), taint.effect)).collect()
}

/// A world in which Leases of some nodes are renewed every ten seconds, looked at whenever the monitor asks to.
struct World {
    monitor: Monitor,
    nodes: Vec<Arc<Node>>,
    now: u64,
}

impl World {
    fn new(names: &[&str]) -> Self {
        let nodes = names.iter().map(|name| node(name, "True", 0)).collect();
        let mut world = World { monitor: Monitor::default(), nodes, now: 0 };
        world.look();
        world
    }

    fn look(&mut self) -> Plan {
        let plan = self.monitor.look(&self.nodes, seconds(self.now), at(self.now));
        self.nodes = after(std::mem::take(&mut self.nodes), &plan);
        plan
    }

    /// Lets time pass with these nodes alive.
    fn run(&mut self, until: u64, alive: &[&str]) {
        let mut wake_at = self.look().wake_at;
        while self.now < until {
            self.now += 1;
            if self.now.is_multiple_of(10) {
                for name in alive {
                    self.monitor.renewed(name, Some(at(self.now)), seconds(self.now));
                }
            }
            if wake_at.is_some_and(|wake_at| wake_at <= seconds(self.now)) {
                wake_at = self.look().wake_at;
            }
        }
    }

    fn status(&self, name: &str, kind: &str) -> (String, String, Timestamp) {
        let node = self.nodes.iter().find(|node| node.metadata.name.as_deref() == Some(name)).unwrap();
        let conditions = node.status.as_ref().unwrap().conditions.as_ref().unwrap();
        let condition = conditions.iter().find(|condition| condition.type_ == kind).unwrap();
        let reason = condition.reason.clone().unwrap_or_default();
        (condition.status.clone(), reason, condition.last_transition_time.as_ref().unwrap().0)
    }
}

#[test]
fn a_silent_node_is_unknown_after_fifty_seconds_and_tainted_at_once() {
    let mut world = World::new(&["a", "b"]);
    world.run(60, &["a", "b"]);
    // The last that is heard of b is at 60.
    world.run(109, &["a"]);
    assert_eq!(world.status("b", "Ready").0, "True");
    assert_eq!(taints(&world.nodes, "b"), [] as [&str; 0]);
    world.run(110, &["a"]);
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        assert_eq!(world.status("b", kind), ("Unknown".into(), "NodeStatusUnknown".into(), at(110)));
    }
    assert_eq!(taints(&world.nodes, "b"), ["unreachable:NoSchedule", "unreachable:NoExecute"]);
    assert_eq!(world.status("a", "Ready").0, "True");
    assert_eq!(taints(&world.nodes, "a"), [] as [&str; 0]);

    // It is back: its agent posts a status, and the taints go with it.
    world.now = 200;
    world.nodes[1] = {
        let mut back = node("b", "True", 200);
        Arc::make_mut(&mut back).spec.clone_from(&world.nodes[1].spec);
        back
    };
    world.look();
    assert_eq!(taints(&world.nodes, "b"), [] as [&str; 0]);
}

#[test]
fn a_node_that_never_spoke_has_a_minute() {
    let mut world = World::new(&["a", "b"]);
    Arc::make_mut(&mut world.nodes[1]).status = None;
    world.run(59, &["a"]);
    assert!(world.nodes[1].status.is_none());
    assert_eq!(taints(&world.nodes, "b"), [] as [&str; 0]);
    world.run(60, &["a"]);
    assert_eq!(world.status("b", "Ready").1, "NodeStatusNeverUpdated");
}

#[test]
fn a_node_that_says_it_is_not_ready_is_not_unreachable() {
    let mut world = World::new(&["a", "b"]);
    world.nodes[1] = node("b", "False", 5);
    world.run(5, &["a", "b"]);
    assert_eq!(taints(&world.nodes, "b"), ["not-ready:NoSchedule", "not-ready:NoExecute"]);
    world.run(100, &["a"]);
    assert_eq!(taints(&world.nodes, "b"), ["unreachable:NoSchedule", "unreachable:NoExecute"]);
}

#[test]
fn nodes_are_emptied_one_in_ten_seconds() {
    let names: Vec<String> = (0..10).map(|i| format!("n{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::new(&names);
    // Four of ten die: fewer than 55 %.
    let evicting = |world: &World| names.iter().filter(|name| taints(&world.nodes, name).len() == 2).count();
    world.run(50, &names[4..]);
    assert_eq!(evicting(&world), 1);
    world.run(59, &names[4..]);
    assert_eq!(evicting(&world), 1);
    world.run(60, &names[4..]);
    assert_eq!(evicting(&world), 2);
    world.run(80, &names[4..]);
    assert_eq!(evicting(&world), 4);
    // Six of ten: nobody goes on, and whoever was being emptied still is.
    world.run(200, &names[6..]);
    assert_eq!(evicting(&world), 4);
    assert_eq!(taints(&world.nodes, "n5"), ["unreachable:NoSchedule"]);
}

#[test]
fn when_no_node_is_heard_of_none_is_emptied() {
    let mut world = World::new(&["a", "b"]);
    world.run(60, &["a"]);
    assert_eq!(taints(&world.nodes, "b"), ["unreachable:NoSchedule", "unreachable:NoExecute"]);
    // Now a, too: rather the network is down than everything dead, and b is let off as well.
    world.run(600, &[]);
    for name in ["a", "b"] {
        assert_eq!(world.status(name, "Ready").0, "Unknown");
        assert_eq!(taints(&world.nodes, name), ["unreachable:NoSchedule"], "{name}");
    }
    // One is back: the other has its time again before its Pods leave.
    let mut back = node("a", "True", 601);
    Arc::make_mut(&mut back).spec.clone_from(&world.nodes[0].spec);
    world.nodes[0] = back;
    world.run(605, &["a"]);
    assert_eq!(taints(&world.nodes, "a"), [] as [&str; 0]);
}

#[test]
fn time_in_which_nobody_looked_does_not_count() {
    let mut world = World::new(&["a", "b"]);
    world.run(60, &["a", "b"]);
    // The machine sleeps for an hour, the process does not run, and both nodes with it.
    world.now += 3600;
    let plan = world.look();
    assert_eq!(plan.steps, [], "nobody is declared dead by somebody who just woke up");
    world.run(world.now + 100, &["a", "b"]);
    assert_eq!(world.status("a", "Ready").0, "True");
    // A node that did not survive it is still found out.
    world.now += 3600;
    world.look();
    let woken = world.now;
    world.run(woken + 19, &["a"]);
    assert_eq!(world.status("b", "Ready").0, "True");
    world.run(woken + 20, &["a"]);
    assert_eq!(world.status("b", "Ready").0, "Unknown");
}

#[test]
fn nodes_that_come_and_go_are_told_of_once() {
    let mut world = World::new(&[]);
    world.nodes.push(node("a", "True", 0));
    assert_eq!(world.look().registered, [("a".to_owned(), "a".to_owned())]);
    assert_eq!(world.look().registered, []);
    let mut again = node("a", "True", 0);
    Arc::make_mut(&mut again).metadata.uid = Some("other".into());
    world.nodes = vec![again];
    let plan = world.look();
    assert_eq!(plan.removed, [("a".to_owned(), "a".to_owned())]);
    assert_eq!(plan.registered, [("a".to_owned(), "other".to_owned())]);
}
