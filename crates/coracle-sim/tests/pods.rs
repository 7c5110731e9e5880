//! Pods on a simulated cluster, and that runs repeat.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use coracle_sim::{Fault, NodeSettings, Settings, World};
use jiff::SignedDuration;
use serde_json::json;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn world(seed: u64, nodes: usize) -> World {
    let nodes = (0..nodes).map(|n| NodeSettings::named(format!("node-{n}"))).collect();
    World::new(Settings { seed, nodes, ..Settings::default() }).unwrap()
}

fn pod(name: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
           "spec": {"terminationGracePeriodSeconds": 5,
                    "containers": [{"name": "app", "image": "web:1", "resources": {"requests": {"cpu": "1"}}}]}})
}

#[test]
fn pods_run_on_three_nodes_and_go() {
    let mut world = world(1, 3);
    for n in 0..6 {
        world.at(seconds(5), move |world| world.apply(&pod(&format!("web-{n}"))).map(drop));
    }
    world.run_until(seconds(20)).unwrap();
    println!("{}", world.trace(|trace| trace.lines().join("\n")));
    let pods = world.list("Pod");
    assert_eq!(pods.len(), 6);
    for pod in &pods {
        assert_eq!(pod["status"]["phase"], "Running", "{pod:#}");
    }
    let on = |node: &str| pods.iter().filter(|pod| pod["spec"]["nodeName"] == node).count();
    assert_eq!([on("node-0"), on("node-1"), on("node-2")], [2, 2, 2]);
    world.delete("Pod", "default", "web-3", None).unwrap();
    world.run_while_not(seconds(3), |world| world.get("Pod", "default", "web-3").is_none()).unwrap();
}

fn eventful(seed: u64) -> World {
    let mut world = world(seed, 3);
    for n in 0..4 {
        world.at(seconds(2 + n), move |world| world.apply(&pod(&format!("web-{n}"))).map(drop));
    }
    let lasts = SignedDuration::from_secs;
    let faults = [
        (10, Fault::Partition { node: "node-0".to_owned(), lasts: Some(lasts(30)) }),
        (20, Fault::AgentCrash { node: "node-1".to_owned(), lasts: Some(lasts(3)) }),
        (30, Fault::ServerCrash { lasts: lasts(4) }),
        (60, Fault::PowerLoss { node: "node-2".to_owned(), lasts: Some(lasts(20)) }),
        (90, Fault::StoreCrash { step: 2 }),
        (110, Fault::ServerPowerLoss { lasts: lasts(5), leaves: coracle_sim::Leftover::Nothing }),
        (120, Fault::ComponentsRestart { lasts: lasts(1) }),
    ];
    for (at, fault) in faults {
        world.at(seconds(at), move |world| world.inject(&fault));
    }
    world.at(seconds(150), |world| world.delete("Pod", "default", "web-0", None));
    if let Err(error) = world.run_until(seconds(300)) {
        panic!("{error}\n{}", world.trace(|trace| trace.lines().join("\n")));
    }
    world
}

#[test]
fn one_seed_is_one_run_with_faults_and_all() {
    let (first, second) = (eventful(3), eventful(3));
    let lines = |world: &World| world.trace(|trace| trace.lines().to_vec());
    for (nth, (a, b)) in lines(&first).iter().zip(&lines(&second)).enumerate() {
        assert_eq!(a, b, "line {nth}");
    }
    assert_eq!(first.hash(), second.hash());
    assert_ne!(eventful(4).hash(), first.hash());
    println!("{}", lines(&first).join("\n"));
    for name in ["web-1", "web-2", "web-3"] {
        assert_eq!(first.get("Pod", "default", name).unwrap()["status"]["phase"], "Running");
    }
    assert!(first.get("Pod", "default", "web-0").is_none());
}
