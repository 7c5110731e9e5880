//! Rollouts, told by what happens to ReplicaSets, without a cluster.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetStatus};
use serde_json::{Value, json};

use super::revision::{REVISION, annotation};
use super::{Plan, reconcile};

/// A Deployment and its ReplicaSets, whose Pods are available at once, except those of the image `stuck`.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    now: Timestamp,
    told: Vec<String>,
    /// Names of ReplicaSets by the image that they run, so that texts can be read.
    names: Vec<(String, String)>,
}

impl World {
    fn new(spec: &Value) -> Self {
        let mut deployment = json!({
            "metadata": {"name": "d", "namespace": "n", "uid": "u", "generation": 1},
            "spec": {
                "replicas": 4, "selector": {"matchLabels": {"app": "a"}}, "progressDeadlineSeconds": 600,
                "revisionHistoryLimit": 10,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}},
                "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}},
            },
        });
        for (field, value) in spec.as_object().into_iter().flatten() {
            deployment["spec"][field] = value.clone();
        }
        World {
            deployment: serde_json::from_value(deployment).unwrap(),
            sets: Vec::new(),
            now: "2030-01-01T00:00:00Z".parse().unwrap(),
            told: Vec::new(),
            names: Vec::new(),
        }
    }

    fn image(&mut self, image: &str) {
        self.deployment.spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.to_owned());
        self.changed();
    }

    fn changed(&mut self) {
        *self.deployment.metadata.generation.as_mut().unwrap() += 1;
    }

    /// One look of the controller, carried out, and one of the controller of ReplicaSets. Whether anything changed.
    fn step(&mut self) -> bool {
        self.now = self.now.checked_add(SignedDuration::from_secs(1)).unwrap();
        let plan = reconcile(&self.deployment, self.sets.iter().cloned().map(Arc::new).collect(), self.now);
        let mut changed = self.carry_out(plan);
        for set in &mut self.sets {
            let replicas = set.spec.replicas.unwrap();
            let image =
                set.spec.template.as_ref().unwrap().spec.as_ref().unwrap().containers[0].image.clone();
            let good = if image.as_deref() == Some("stuck") { 0 } else { replicas };
            let status = ReplicaSetStatus {
                replicas,
                ready_replicas: Some(good),
                available_replicas: Some(good),
                terminating_replicas: Some(0),
                observed_generation: set.metadata.generation,
                ..ReplicaSetStatus::default()
            };
            changed |= set.status.as_ref() != Some(&status);
            set.status = Some(status);
        }
        changed
    }

    fn carry_out(&mut self, plan: Plan) -> bool {
        let mut changed = plan.create.is_some() || !plan.change.is_empty() || !plan.delete.is_empty();
        if let Some(mut set) = plan.create.map(|set| *set) {
            let image =
                set.spec.template.as_ref().unwrap().spec.as_ref().unwrap().containers[0].image.clone();
            self.names.push((set.metadata.name.clone().unwrap(), image.unwrap()));
            set.metadata.uid = set.metadata.name.clone();
            set.metadata.generation = Some(1);
            set.metadata.creation_timestamp = Some(crate::workload::status::time(self.now));
            let message = reconcile::scaled(
                set.metadata.name.as_deref().unwrap(),
                0,
                set.spec.replicas.unwrap().into(),
            );
            self.tell(&message);
            self.sets.push(set);
        }
        for change in plan.change {
            let set = self.sets.iter_mut().find(|set| set.metadata.uid == change.set.metadata.uid).unwrap();
            let mut value = serde_json::to_value(&*set).unwrap();
            for part in ["metadata", "spec"] {
                for (field, new) in change.patch[part].as_object().into_iter().flatten() {
                    if field == "annotations" {
                        for (name, new) in new.as_object().unwrap() {
                            value["metadata"]["annotations"][name] = new.clone();
                        }
                    } else {
                        value[part][field] = new.clone();
                    }
                }
            }
            *set = serde_json::from_value(value).unwrap();
            *set.metadata.generation.as_mut().unwrap() += 1;
            if let Some(message) = change.message {
                self.tell(&message);
            }
        }
        for set in plan.delete {
            self.tell(&format!("Deleted {}", set.metadata.name.as_deref().unwrap()));
            self.sets.retain(|other| other.metadata.uid != set.metadata.uid);
        }
        if let Some(revision) = plan.revision {
            self.deployment
                .metadata
                .annotations
                .get_or_insert_default()
                .insert(REVISION.to_owned(), revision);
        }
        changed |= self.deployment.status.as_ref() != Some(&plan.status);
        self.deployment.status = Some(plan.status);
        changed
    }

    fn tell(&mut self, message: &str) {
        let mut message = message.trim_start_matches("Scaled ").replace("replica set ", "");
        for (name, image) in &self.names {
            message = message.replace(name, image);
        }
        self.told.push(message);
    }

    /// Steps until nothing changes; what was told meanwhile.
    fn settle(&mut self) -> Vec<String> {
        for _ in 0..100 {
            if !self.step() {
                return std::mem::take(&mut self.told);
            }
        }
        panic!("it never settles: {:#?}", self.told);
    }

    fn condition(&self, type_: &str) -> (String, String) {
        let conditions = self.deployment.status.as_ref().unwrap().conditions.as_ref().unwrap();
        let condition =
            conditions.iter().find(|condition| condition.type_.as_deref() == Some(type_)).unwrap();
        (condition.status.clone().unwrap(), condition.reason.clone().unwrap())
    }

    fn status(&self) -> Value {
        let mut status = serde_json::to_value(self.deployment.status.as_ref().unwrap()).unwrap();
        status.as_object_mut().unwrap().remove("conditions");
        status
    }
}

fn said(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[test]
fn a_first_rollout_makes_all_at_once_and_arrives() {
    let mut world = World::new(&json!({}));
    world.step();
    assert_eq!(world.condition("Progressing"), said("True", "NewReplicaSetCreated"));
    assert_eq!(world.condition("Available"), said("False", "MinimumReplicasUnavailable"));
    assert_eq!(world.settle(), ["up v1 from 0 to 4"]);
    assert_eq!(
        world.status(),
        json!({
            "observedGeneration": 1, "replicas": 4, "updatedReplicas": 4, "readyReplicas": 4,
            "availableReplicas": 4, "terminatingReplicas": 0,
        })
    );
    assert_eq!(world.condition("Progressing"), said("True", "NewReplicaSetAvailable"));
    assert_eq!(world.condition("Available"), said("True", "MinimumReplicasAvailable"));
    assert_eq!(annotation(&world.deployment.metadata, REVISION), Some("1"));
}

#[test]
fn a_rolling_update_never_leaves_its_bounds() {
    let mut world = World::new(&json!({}));
    world.settle();
    world.image("v2");
    for _ in 0..40 {
        world.step();
        let total: i32 = world.sets.iter().map(|set| set.spec.replicas.unwrap()).sum();
        let available: i32 = world
            .sets
            .iter()
            .map(|set| {
                set.status.as_ref().unwrap().available_replicas.unwrap().min(set.spec.replicas.unwrap())
            })
            .sum();
        assert!(total <= 5 && available >= 3, "{total} {available}: {:?}", world.told);
    }
    assert_eq!(
        world.settle(),
        [
            "up v2 from 0 to 1",
            "down v1 from 4 to 3",
            "up v2 from 1 to 2",
            "down v1 from 3 to 1",
            "up v2 from 2 to 4",
            "down v1 from 1 to 0"
        ]
    );
    assert_eq!(annotation(&world.deployment.metadata, REVISION), Some("2"));
    // Back to what was: the same ReplicaSet, at a revision of its own.
    world.image("v1");
    world.settle();
    assert_eq!(world.sets.len(), 2);
    assert_eq!(annotation(&world.sets[0].metadata, REVISION), Some("3"));
    assert_eq!(world.condition("Progressing"), said("True", "NewReplicaSetAvailable"));
}

#[test]
fn recreation_waits_until_all_old_pods_are_gone() {
    let mut world = World::new(&json!({"strategy": {"type": "Recreate"}}));
    assert_eq!(world.settle(), ["up v1 from 0 to 4"]);
    world.image("v2");
    world.step();
    world.sets[0].status.as_mut().unwrap().terminating_replicas = Some(1);
    let plan = reconcile(&world.deployment, world.sets.iter().cloned().map(Arc::new).collect(), world.now);
    assert!(plan.create.is_none(), "one is still there");
    assert_eq!(world.settle(), ["down v1 from 4 to 0", "up v2 from 0 to 4"]);
}

#[test]
fn a_rollout_that_stands_still_is_told_and_goes_on_when_it_can() {
    let mut world = World::new(&json!({}));
    world.settle();
    world.image("stuck");
    assert_eq!(world.settle(), ["up stuck from 0 to 1", "down v1 from 4 to 3", "up stuck from 1 to 2"]);
    assert_eq!(world.condition("Progressing"), said("True", "ReplicaSetUpdated"));
    let plan = reconcile(&world.deployment, world.sets.iter().cloned().map(Arc::new).collect(), world.now);
    let wake = plan.wake_at.expect("somebody has to look when it takes too long");
    world.now = wake;
    world.settle();
    assert_eq!(world.condition("Progressing"), said("False", "ProgressDeadlineExceeded"));
    assert_eq!(world.condition("Available"), said("True", "MinimumReplicasAvailable"));
    world.image("v3");
    world.settle();
    assert_eq!(world.condition("Progressing"), said("True", "NewReplicaSetAvailable"));
    let sizes: Vec<i32> = world.sets.iter().map(|set| set.spec.replicas.unwrap()).collect();
    assert_eq!(sizes, [0, 0, 4]);
}

#[test]
fn a_deployment_that_is_resized_under_way_keeps_proportions() {
    let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}});
    let mut world = World::new(&json!({"replicas": 10, "strategy": rolling}));
    world.settle();
    world.image("stuck");
    world.settle();
    let sizes =
        |world: &World| -> Vec<i32> { world.sets.iter().map(|set| set.spec.replicas.unwrap()).collect() };
    assert_eq!(sizes(&world), [8, 5]);
    world.deployment.spec.replicas = Some(30);
    world.changed();
    world.settle();
    assert_eq!(
        sizes(&world),
        [20, 13],
        "as upstream's documentation of proportional scaling has it, 33 together"
    );
    world.deployment.spec.replicas = Some(0);
    world.changed();
    world.settle();
    assert_eq!(sizes(&world), [0, 0]);
}

#[test]
fn a_pause_holds_the_template_and_not_the_size() {
    let mut world = World::new(&json!({}));
    world.settle();
    world.deployment.spec.paused = Some(true);
    world.image("v2");
    world.deployment.spec.replicas = Some(6);
    world.changed();
    assert_eq!(world.settle(), ["up v1 from 4 to 6"]);
    assert_eq!(world.condition("Progressing"), said("Unknown", "DeploymentPaused"));
    world.deployment.spec.paused = None;
    world.changed();
    world.settle();
    assert_eq!(world.condition("Progressing"), said("True", "NewReplicaSetAvailable"));
    assert_eq!(world.sets[1].spec.replicas, Some(6));
}

#[test]
fn only_so_many_old_ones_are_kept() {
    let mut world = World::new(&json!({"revisionHistoryLimit": 1}));
    for version in 1..5 {
        world.image(&format!("v{version}"));
        world.settle();
    }
    let revisions: Vec<_> =
        world.sets.iter().map(|set| annotation(&set.metadata, REVISION).unwrap().to_owned()).collect();
    assert_eq!(revisions, ["3", "4"]);
}
