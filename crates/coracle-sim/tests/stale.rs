//! Controllers whose copies are old.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use coracle_sim::{Fault, Settings, World};
use jiff::SignedDuration;
use serde_json::{Value, json};

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn template() -> Value {
    json!({"metadata": {"labels": {"app": "web"}},
           "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "app", "image": "web:1"}]}})
}

fn workload(kind: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "web"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template()}})
}

fn stale(of: &str) -> Fault {
    let (by, lasts) = (SignedDuration::from_millis(2500), SignedDuration::from_secs(20));
    Fault::ComponentsStale { by, of: Some(of.to_owned()), lasts }
}

fn created(world: &World, what: &str) -> usize {
    world.trace(|trace| {
        trace.about(what).iter().filter(|line| line.contains(" created") && !line.contains(" event ")).count()
    })
}

#[test]
fn nothing_is_made_for_an_owner_that_is_gone_and_still_in_the_copy() {
    for (kind, plural) in [("ReplicaSet", "replicasets"), ("Deployment", "deployments")] {
        let mut world = World::new(Settings { seed: 3, most_at_once: 1000, ..Settings::default() }).unwrap();
        world.apply(&workload(kind)).unwrap();
        let up = |world: &World| {
            world.list("Pod").iter().filter(|pod| pod["status"]["phase"] == "Running").count() == 3
        };
        world.run_while_not(seconds(30), up).unwrap();
        world.inject(&stale(plural)).unwrap();
        world.delete(kind, "default", "web", None).unwrap();
        world.run_while_not(seconds(30), |world| world.list("Pod").is_empty()).unwrap();
        world.run_for(seconds(10)).unwrap();
        assert_eq!(created(&world, "pod default/web"), 3, "of a {kind}");
        assert!(world.list("Pod").is_empty() && world.list("ReplicaSet").is_empty());
    }
}

#[test]
fn what_was_made_and_is_not_in_the_copy_yet_is_not_made_again() {
    let mut world = World::new(Settings { seed: 4, ..Settings::default() }).unwrap();
    world.inject(&stale("pods")).unwrap();
    world.apply(&workload("ReplicaSet")).unwrap();
    world.run_for(seconds(1)).unwrap();
    world.patch("ReplicaSet", "default", "web", &json!({"spec": {"replicas": 4}})).unwrap();
    world.run_for(seconds(30)).unwrap();
    assert_eq!(created(&world, "pod default/web"), 4);
}
