//! What happens in a random run, and when.

use std::time::Duration;

use coracle_clock::Rng;
use coracle_controllers::Identity;
use coracle_cri::CriError;
use coracle_cri::scripted::Trouble;
use http::Method;
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::pods::{self, IMAGES, Maker, images};
use crate::fault::{Fault, Leftover};
use crate::world::{SimError, World};

/// A condition that Pods may wait for, and that somebody sets.
pub(super) const GATE: &str = "example.com/gate";

/// Pods by these names come and go, so that names are used again.
const NAMES: u64 = 12;

pub(super) struct Plan {
    rng: Rng,
    /// Whether Pods are more than their containers.
    lives: bool,
    nodes: Vec<String>,
}

impl Plan {
    pub(super) fn new(rng: Rng, world: &World, lives: bool) -> Self {
        for (name, script) in images() {
            world.script_image(name, &script);
        }
        Plan { rng, lives, nodes: world.node_names().map(str::to_owned).collect() }
    }

    pub(super) fn carry_out(mut self, world: &mut World, time: Duration) -> Result<(), SimError> {
        let calm = self.rng.below(4) == 0;
        let mean = 1000 + self.rng.below(8000);
        loop {
            // Often in one moment, sometimes after a while.
            let pause = if self.rng.below(4) == 0 { 0 } else { self.rng.below(2 * mean) };
            let then = world.elapsed() + Duration::from_millis(pause);
            if then >= time {
                return world.run_until(time);
            }
            world.run_until(then)?;
            if !calm && self.rng.below(5) == 0 {
                let fault = self.fault();
                world.inject(&fault)?;
            } else {
                self.deed(world)?;
            }
        }
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let index = usize::try_from(self.rng.below(all.len() as u64)).unwrap_or(0);
        &all[index]
    }

    fn seconds(&mut self, most: u64) -> SignedDuration {
        SignedDuration::from_millis(i64::try_from(self.rng.below(most * 1000)).unwrap_or(0))
    }

    /// Something that a user does. That the server refuses, or is away, is part of it.
    fn deed(&mut self, world: &mut World) -> Result<(), SimError> {
        let name = format!("p{}", self.rng.below(NAMES));
        let done = match self.rng.below(16) {
            0..=4 => {
                let pod = self.pod(&name);
                world.create(&pod).map(drop)
            }
            5..=6 => {
                let grace = *self.one_of(&[None, None, Some(0), Some(1), Some(3), Some(10)]);
                world.delete("Pod", "default", &name, grace)
            }
            7 => {
                let patch = json!({"metadata": {"labels": {"touched": self.rng.below(5).to_string()}}});
                world.patch("Pod", "default", &name, &patch).map(drop)
            }
            8 => {
                let image = *self.one_of(&IMAGES);
                let patch = json!({"spec": {"containers": [{"name": "app", "image": image}]}});
                world.patch_strategic("Pod", "default", &name, &patch).map(drop)
            }
            9 => {
                let finalizers = if self.rng.below(2) == 0 { json!(["example.com/hold"]) } else { json!([]) };
                world
                    .patch("Pod", "default", &name, &json!({"metadata": {"finalizers": finalizers}}))
                    .map(drop)
            }
            10 => {
                let node = self.one_of(&self.nodes.clone()).clone();
                let cordoned = self.rng.below(3) == 0;
                world.patch("Node", "", &node, &json!({"spec": {"unschedulable": cordoned}})).map(drop)
            }
            11 => self.replace(world, &name),
            12 | 13 if !self.lives => Ok(()),
            12 => {
                let status = if self.rng.below(3) == 0 { "False" } else { "True" };
                let patch = json!({"status": {"conditions": [{"type": GATE, "status": status}]}});
                part(world, &name, "status", &patch)
            }
            13 => {
                let number = self.rng.below(3);
                let image = *self.one_of(&["once:1", "ok:1", "crash:1", "never-stops:1"]);
                let more = json!({"name": format!("look-{number}"), "image": image});
                let patch = json!({"spec": {"ephemeralContainers": [more]}});
                part(world, &name, "ephemeralcontainers", &patch)
            }
            _ => self.workload(world),
        };
        put_up_with(world, done)
    }

    /// A Pod goes without a word, and another one comes by the same name, often to the same node: what is left of the
    /// first is not the second's.
    fn replace(&mut self, world: &mut World, name: &str) -> Result<(), SimError> {
        let node = world
            .get("Pod", "default", name)
            .and_then(|pod| pod["spec"]["nodeName"].as_str().map(str::to_owned));
        let mut pod = self.pod(name);
        if let Some(node) = node.filter(|_| self.rng.below(3) > 0) {
            pod["spec"]["nodeName"] = node.into();
        }
        let patch = json!({"metadata": {"finalizers": null}});
        world.patch("Pod", "default", name, &patch).map(drop)?;
        world.delete("Pod", "default", name, Some(0))?;
        world.create(&pod).map(drop)
    }

    fn pod(&mut self, name: &str) -> Value {
        let mut pod = Maker(&mut self.rng).pod(name);
        if !self.lives {
            pods::strip(&mut pod);
        }
        pod
    }

    /// Something that makes Pods, if its controller is there.
    fn workload(&mut self, world: &mut World) -> Result<(), SimError> {
        let name = format!("w{}", self.rng.below(3));
        let labels = json!({"app": name});
        let replicas = self.rng.below(5);
        let kinds = [
            ("apps", "Deployment", "deployment-controller"),
            ("apps", "ReplicaSet", "replicaset-controller"),
            ("batch", "Job", "job-controller"),
        ];
        let (group, kind, controller) = *self.one_of(&kinds);
        if !Identity::ALL.iter().any(|identity| identity.service_account() == controller) {
            return Ok(());
        }
        let image = *self.one_of(&["ok:1", "ok:2", "slow-stop:1", "crash:1"]);
        let template = |image: &str, policy: &str| {
            let containers =
                json!([{"name": "app", "image": image, "resources": {"requests": {"cpu": "100m"}}}]);
            json!({"metadata": {"labels": labels}, "spec": {"restartPolicy": policy, "containers": containers,
                   "terminationGracePeriodSeconds": 2}})
        };
        let spec = match kind {
            "Job" => {
                let image = *self.one_of(&["once:1", "once:1", "fails:1"]);
                json!({"completions": replicas, "parallelism": 1 + replicas / 2, "backoffLimit": 2,
                       "template": template(image, "Never")})
            }
            _ => {
                json!({"replicas": replicas, "selector": {"matchLabels": labels}, "template": template(image, "Always")})
            }
        };
        let metadata = json!({"name": name, "namespace": "default"});
        let object =
            json!({"apiVersion": format!("{group}/v1"), "kind": kind, "metadata": metadata, "spec": spec});
        match self.rng.below(6) {
            0 => world.delete(kind, "default", &name, None),
            1 | 2 if kind != "Job" => {
                let scale = move |world: &mut World, name: &str, replicas: u64| {
                    world.patch(kind, "default", name, &json!({"spec": {"replicas": replicas}})).map(drop)
                };
                if self.rng.below(2) == 0 {
                    // And at once again, while what follows from it is under way.
                    let (then, next) = (Duration::from_millis(self.rng.below(1500)), self.rng.below(5));
                    let name = name.clone();
                    world.at(world.elapsed() + then, move |world| {
                        let done = scale(world, &name, next);
                        put_up_with(world, done)
                    });
                }
                scale(world, &name, replicas)
            }
            _ => world.apply(&object).map(drop),
        }
    }

    fn runtime_trouble(&self, node: String, trouble: Trouble, lasts: SignedDuration) -> Fault {
        Fault::RuntimeTrouble { node, trouble, lasts: Some(lasts) }
    }

    fn fault(&mut self) -> Fault {
        let node = self.one_of(&self.nodes.clone()).clone();
        let lasts = self.seconds(60);
        let brief = self.seconds(8);
        match self.rng.below(20) {
            0 => Fault::PowerLoss { node, lasts: Some(lasts) },
            1 => Fault::AgentCrash { node, lasts: Some(brief) },
            2 => Fault::Partition { node, lasts: Some(lasts) },
            3 => Fault::SlowLink {
                node,
                by: SignedDuration::from_millis(20 + lasts.as_secs() * 10),
                lasts: Some(lasts),
            },
            4 => Fault::ServerRestart { lasts: brief },
            5 => Fault::ServerCrash { lasts: brief },
            6 => {
                let leaves =
                    *self.one_of(&[Leftover::Nothing, Leftover::AnySectors, Leftover::AllButTheLast]);
                Fault::ServerPowerLoss { lasts: brief, leaves }
            }
            7 => Fault::StoreCrash { step: 1 + self.rng.below(12) },
            8 => Fault::FlushFails { nth: 1 + self.rng.below(6) },
            9 => Fault::DiskFull { lasts: Some(brief) },
            10 => Fault::ComponentsRestart { lasts: brief },
            11 => {
                let by = SignedDuration::from_secs(i64::try_from(self.rng.below(1200)).unwrap_or(0) - 600);
                Fault::ClockJump { node, by }
            }
            13 => Fault::Meddler { lasts },
            14 => self.runtime_trouble(
                node,
                Trouble { slow: Duration::from_millis(700), ..Trouble::default() },
                lasts,
            ),
            15 => {
                let fails = Some(CriError::Internal("the runtime is out of order".to_owned()));
                let calls = *self.one_of(&CALLS);
                let calls = calls.iter().map(|call| (*call).to_owned()).collect();
                self.runtime_trouble(node, Trouble { fails, calls, ..Trouble::default() }, brief)
            }
            16 => {
                let events_late = Duration::from_secs(5);
                self.runtime_trouble(node, Trouble { events_late, ..Trouble::default() }, lasts)
            }
            17 => Fault::ComponentsSlow { by: SignedDuration::from_millis(300), lasts },
            18 => {
                let by = *self.one_of(&[200, 800, 2500]);
                let of = *self.one_of(&STALE);
                let of = of.map(str::to_owned);
                Fault::ComponentsStale { by: SignedDuration::from_millis(by), of, lasts }
            }
            12 => Fault::NetworkDown { node, lasts: Some(lasts) },
            _ => Fault::AgentCrash { node, lasts: Some(SignedDuration::ZERO) },
        }
    }
}

/// That the server refuses something, or does not answer, is part of a run.
fn put_up_with(world: &World, done: Result<(), SimError>) -> Result<(), SimError> {
    match done {
        Err(SimError::Refused { verb, path, status, code }) => {
            world.say(&format!("refused: {verb} {path}: {code} {status}"));
            Ok(())
        }
        Err(SimError::Unreachable(why)) => {
            world.say(&format!("no answer: {why}"));
            Ok(())
        }
        other => other,
    }
}

/// Changes a part of a Pod that has a path of its own.
fn part(world: &mut World, name: &str, part: &str, patch: &Value) -> Result<(), SimError> {
    let path = format!("/api/v1/namespaces/default/pods/{name}/{part}");
    let kind = "application/strategic-merge-patch+json";
    let (code, answer) = world.request_with(Method::PATCH, &path, Some(patch), kind)?;
    if code < 300 {
        return Ok(());
    }
    let status = answer["message"].as_str().unwrap_or_default().to_owned();
    Err(SimError::Refused { verb: "PATCH".to_owned(), path, status, code })
}

/// What components hear of late: of one kind only, so that they act on what they know of the others.
const STALE: [Option<&str>; 6] =
    [None, Some("pods"), Some("pods"), Some("replicasets"), Some("deployments"), Some("jobs")];

/// Calls that fail together.
const CALLS: [&[&str]; 5] = [
    &[],
    &["run_pod_sandbox", "create_container"],
    &["start_container"],
    &["stop_container", "stop_pod_sandbox", "remove_pod_sandbox"],
    &["list_containers", "container_status", "status"],
];
