//! Properties: in a world where every operation sooner or later ends as the dice say, a Pod always comes to rest.

use std::collections::BTreeMap;

use coracle_cri::{ContainerState, Image, PodSandboxState};
use jiff::SignedDuration;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::pod::containers::{self, Kind};
use crate::pod::history::Outcome;
use crate::pod::inputs::{ImagePresence, Operation, OperationKey, statuses};
use crate::pod::memo::Memo;
use crate::pod::phase::Phase;
use crate::pod::volumes::VolumesState;
use crate::pod::{PodAction, PodPlan, Publication, plan, publication};

/// What a test decides about a world.
#[derive(Debug, Clone)]
struct Dice {
    policy: &'static str,
    pull_policy: &'static str,
    containers: usize,
    /// After which step the Pod is deleted, and with which grace; after which step the object vanishes.
    delete: Option<(usize, i64)>,
    vanish: Option<usize>,
    /// After which step the sandbox is lost.
    lose: Option<usize>,
    /// It has volumes.
    volumes: bool,
    /// One of them is the content of an image, which the first init and the last regular container mount.
    content: bool,
    /// Its init containers: true for a sidecar.
    inits: Vec<bool>,
    /// An exit code of 2 restarts all containers.
    rules: bool,
    /// After which step the node ends it.
    evict: Option<usize>,
    /// After which steps the node agent is killed and starts anew.
    kills: Vec<usize>,
    /// Each use takes the next number.
    rolls: Vec<u8>,
}

fn dice() -> impl Strategy<Value = Dice> {
    let shape = (
        prop::sample::select(vec!["Always", "OnFailure", "Never"]),
        prop::sample::select(vec!["Always", "IfNotPresent", "Never"]),
        1..4usize,
        any::<bool>(),
        prop::collection::vec(any::<bool>(), 0..4),
        any::<bool>(),
        any::<bool>(),
    );
    let events = (
        prop::option::of((0..60usize, 1..40i64)),
        prop::option::of(0..80usize),
        prop::option::of(0..60usize),
        prop::option::weighted(0.2, 0..60usize),
        prop::collection::vec(0..80usize, 0..6),
    );
    (shape, events, prop::collection::vec(any::<u8>(), 16..64)).prop_map(|(shape, events, rolls)| {
        let (policy, pull_policy, containers, volumes, inits, rules, content) = shape;
        let (delete, vanish, lose, evict, kills) = events;
        Dice {
            policy,
            pull_policy,
            containers,
            delete,
            vanish,
            lose,
            volumes,
            content,
            inits,
            rules,
            evict,
            kills,
            rolls,
        }
    })
}

/// The image whose content some containers mount.
const CONTENT: &str = "v:1";

struct World {
    i: PodInputs,
    dice: Dice,
    rolled: usize,
    /// When operations in flight end.
    ends: BTreeMap<OperationKey, Timestamp>,
    starts: BTreeMap<String, Box<crate::pod::StartContainer>>,
    /// When running containers end by themselves, and how.
    exits: BTreeMap<String, (Timestamp, i32)>,
    /// A status on its way to the API server.
    writing: Option<(Timestamp, PodStatus)>,
    held_since: Option<Timestamp>,
    image_present: bool,
    content_present: bool,
    /// What is being fetched, by container.
    pulls: BTreeMap<String, String>,
    next: u32,
    phase_ended: Option<Phase>,
    counts: BTreeMap<String, i32>,
    rank: u8,
    /// What the node agent has recorded.
    memo: Memo,
}

impl World {
    fn new(dice: Dice) -> World {
        let make = |name: String| json!({"name": name, "image": "x:1", "imagePullPolicy": dice.pull_policy});
        let mounts = json!([{"name": "v", "mountPath": "/v"}]);
        let containers: Vec<_> = (0..dice.containers)
            .map(|n| {
                let mut made = make(format!("c{n}"));
                if dice.content && n + 1 == dice.containers {
                    made["volumeMounts"] = mounts.clone();
                }
                if dice.rules && n == 0 {
                    made["restartPolicy"] = json!("Never");
                    made["restartPolicyRules"] = json!([{"action": "RestartAllContainers",
                        "exitCodes": {"operator": "In", "values": [2]}}]);
                }
                made
            })
            .collect();
        let inits: Vec<_> = (dice.inits.iter().enumerate())
            .map(|(n, sidecar)| {
                let mut made = make(format!("i{n}"));
                if dice.content && n == 0 {
                    made["volumeMounts"] = mounts.clone();
                }
                if *sidecar {
                    made["restartPolicy"] = json!("Always");
                    made["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 1}}});
                }
                made
            })
            .collect();
        let content = json!({"reference": CONTENT, "pullPolicy": dice.pull_policy});
        let volumes = if dice.content { json!([{"name": "v", "image": content}]) } else { json!([]) };
        let mut i = inputs(pod(json!({"restartPolicy": dice.policy, "containers": containers,
            "initContainers": inits, "volumes": volumes})));
        if dice.volumes {
            i.volumes = VolumesState { ready: false, due: Some(i.now), present: false };
        }
        World {
            i,
            image_present: dice.rolls[0].is_multiple_of(2),
            content_present: dice.rolls[0].is_multiple_of(3),
            pulls: BTreeMap::new(),
            dice,
            rolled: 0,
            ends: BTreeMap::new(),
            starts: BTreeMap::new(),
            exits: BTreeMap::new(),
            writing: None,
            held_since: None,
            next: 0,
            phase_ended: None,
            counts: BTreeMap::new(),
            rank: 0,
            memo: Memo::default(),
        }
    }

    fn roll(&mut self) -> u8 {
        self.rolled += 1;
        self.dice.rolls[self.rolled % self.dice.rolls.len()]
    }

    fn soon(&mut self) -> Timestamp {
        self.i.now + SignedDuration::from_millis(i64::from(self.roll()) * 10)
    }

    fn look(&mut self) {
        let alive = |c: &cri::ContainerStatus| c.container.state == ContainerState::Running;
        let presence = |present: bool, id: &str| match present {
            true => ImagePresence::Present(Image { id: id.into(), ..Image::default() }),
            false => ImagePresence::Absent,
        };
        let image = presence(self.image_present, "sha256:1");
        self.i.volume_images = [("v".to_owned(), presence(self.content_present, "sha256:2"))].into();
        let idle: Vec<String> = containers::all(self.i.spec()).map(|m| m.name().to_owned()).collect();
        self.i.images = idle.into_iter().map(|name| (name, image.clone())).collect();
        self.i.containers.sort_by_key(alive);
    }

    /// Turns as the worker does until nothing is to be asked again; returns the last plan.
    fn turn(&mut self) -> PodPlan {
        for _ in 0..32 {
            self.look();
            let plan = plan(&self.i);
            let mut again = plan.lifecycle != self.i.lifecycle && plan.lifecycle != Lifecycle::Gone;
            self.i.lifecycle = plan.lifecycle.clone();
            for action in &plan.actions {
                if let PodAction::AnnounceStop { id, .. } = action {
                    assert!(!self.i.history.announced_stops.contains(id), "the stop of {id} is told twice");
                }
                self.i.history.intend(action);
            }
            self.memo = Memo::of(&self.i, &self.memo);
            for action in plan.actions.clone() {
                again |= self.act(action);
            }
            self.check_repeat();
            self.publish(&plan);
            if !again {
                return plan;
            }
        }
        panic!("the plan does not settle: {:#?}", self.i);
    }

    /// Nothing that has just been started is started again.
    fn check_repeat(&self) {
        for action in plan(&self.i).actions {
            let key = match action {
                PodAction::CreateSandbox { .. } => OperationKey::CreateSandbox,
                PodAction::StopSandbox(id) => OperationKey::StopSandbox(id),
                PodAction::RemoveSandbox(id) => OperationKey::RemoveSandbox(id),
                PodAction::PullImage { container, .. } => OperationKey::PullImage(container),
                PodAction::StartContainer(start) => OperationKey::StartContainer(start.container),
                PodAction::RemoveContainer(id) => OperationKey::RemoveContainer(id),
                PodAction::MountVolumes => OperationKey::MountVolumes,
                PodAction::UnmountVolumes => OperationKey::UnmountVolumes,
                PodAction::DeletePod => OperationKey::DeletePod,
                PodAction::CleanUp => OperationKey::CleanUp,
                _ => continue,
            };
            assert!(!self.i.operations.contains_key(&key), "{key:?} is in flight already");
        }
    }

    fn begin(&mut self, key: OperationKey, deadline: Option<Timestamp>) {
        let end = self.soon();
        self.i.operations.insert(key.clone(), Operation { since: self.i.now, deadline });
        self.ends.insert(key, end);
    }

    fn act(&mut self, action: PodAction) -> bool {
        match action {
            PodAction::CreateSandbox { attempt } => {
                self.next = attempt;
                self.begin(OperationKey::CreateSandbox, None);
            }
            PodAction::StopSandbox(id) => self.begin(OperationKey::StopSandbox(id), None),
            PodAction::RemoveSandbox(id) => self.begin(OperationKey::RemoveSandbox(id), None),
            PodAction::PullImage { container, image, volume } => {
                assert_eq!(volume, image == CONTENT);
                self.pulls.insert(container.clone(), image);
                self.begin(OperationKey::PullImage(container), None);
            }
            PodAction::StartContainer(start) => {
                self.check_start(&start);
                let mounts = self
                    .i
                    .spec()
                    .containers
                    .iter()
                    .chain(self.i.spec().init_containers.iter().flatten())
                    .any(|c| c.name == start.container && c.volume_mounts.is_some());
                assert_eq!(
                    start.volumes.contains_key("v"),
                    mounts,
                    "{} starts with what it mounts",
                    start.container
                );
                let name = start.container.clone();
                self.starts.insert(name.clone(), start);
                self.begin(OperationKey::StartContainer(name), None);
            }
            PodAction::FinishStart { container, .. } => panic!("{container} has no hook"),
            PodAction::AnnounceStop { .. } => {}
            PodAction::PreStop { id, deadline, .. } => self.begin(OperationKey::PreStop(id), Some(deadline)),
            PodAction::StopContainer { id, deadline, .. } => {
                self.check_stop(&id);
                self.begin(OperationKey::StopContainer(id.clone()), Some(deadline));
                // Some die of the signal, some only at the deadline.
                if self.roll().is_multiple_of(2) {
                    self.ends.insert(OperationKey::StopContainer(id), deadline);
                }
            }
            PodAction::RemoveContainer(id) => self.begin(OperationKey::RemoveContainer(id), None),
            PodAction::Cancel(key) => {
                self.i.operations.remove(&key);
                self.ends.remove(&key);
            }
            PodAction::FailStart { container, image, reason, message, .. } => {
                let reason = reason.to_owned();
                self.i.history.apply(&Outcome::StartFailed { container, image, reason, message }, self.i.now);
                return true;
            }
            PodAction::BeginBackOff { container, instance, .. } => {
                let history = self.i.history.container(&container);
                match instance {
                    Some(instance) => history.announced = Some(instance),
                    None => history.failure.as_mut().unwrap().backing_off = true,
                }
                return true;
            }
            PodAction::Report(_) => {}
            PodAction::MountVolumes => {
                self.i.volumes.present = true;
                self.begin(OperationKey::MountVolumes, None);
            }
            PodAction::UnmountVolumes => self.begin(OperationKey::UnmountVolumes, None),
            PodAction::DeletePod => self.begin(OperationKey::DeletePod, None),
            PodAction::CleanUp => self.begin(OperationKey::CleanUp, None),
        }
        false
    }

    /// What stands before a container in the order of starts has done its part in the same sandbox.
    fn check_start(&self, start: &crate::pod::StartContainer) {
        let here = |name: &str| {
            let mut all: Vec<_> = self.i.instances(name);
            all.retain(|c| c.container.sandbox == start.sandbox);
            all
        };
        let spec = self.i.spec();
        let members: Vec<_> = containers::init(spec).chain(containers::regular(spec)).collect();
        let own = members.iter().position(|m| m.name() == start.container).unwrap();
        let regular = |m: &&containers::Member<'_>| m.kind == Kind::Regular;
        if members[own].kind == Kind::Init {
            let done = here(&start.container).iter().any(|c| c.exit_code == Some(0));
            assert!(!done, "{} runs again: {:#?}", start.container, self.i);
            let later = members.iter().filter(regular).any(|m| !here(m.name()).is_empty());
            assert!(!later, "{} runs after regular ones: {:#?}", start.container, self.i);
        }
        for before in members[..own].iter().filter(|m| !regular(m)) {
            let instances = here(before.name());
            let passed = match before.kind {
                Kind::Init => instances.iter().any(|c| c.exit_code == Some(0)),
                _ => !instances.is_empty(),
            };
            assert!(passed, "{} starts before {} is done: {:#?}", start.container, before.name(), self.i);
        }
    }

    /// A sidecar outlives what is declared to.
    fn check_stop(&self, id: &cri::ContainerId) {
        let Lifecycle::Terminating { deadline, .. } = self.i.lifecycle else { return };
        let name = &self.i.containers.iter().find(|c| c.container.id == *id).unwrap().container.name;
        let spec = self.i.spec();
        let later = containers::init(spec).skip_while(|m| m.name() != name).skip(1);
        let later = later.filter(|m| m.kind == Kind::Sidecar).chain(containers::regular(spec));
        let alive = |m: containers::Member<'_>| {
            self.i.instances(m.name()).iter().any(|c| c.container.state == ContainerState::Running)
        };
        let sidecar = containers::find(spec, name).is_some_and(|m| m.kind == Kind::Sidecar);
        assert!(
            !sidecar || self.i.now >= deadline || !later.into_iter().any(alive),
            "{id} is stopped too early: {:#?}",
            self.i
        );
    }

    /// The node agent ends at once and another one begins with what the API server and the runtime know. What was in
    /// flight may have been done or not.
    fn kill_agent(&mut self) {
        for key in self.i.operations.keys().cloned().collect::<Vec<_>>() {
            self.ends.remove(&key);
            if self.roll().is_multiple_of(2) {
                self.end(&key);
            }
        }
        self.i.operations.clear();
        self.starts.clear();
        if let Some((_, written)) = self.writing.take()
            && self.roll().is_multiple_of(2)
        {
            self.land(written);
        }
        // Sometimes its record is lost, too.
        let memo = if self.roll().is_multiple_of(4) { Memo::default() } else { self.memo.clone() };
        self.i.history = memo.history();
        self.i.lifecycle = memo.lifecycle.clone();
        self.i.previous_status = memo.restarting_all.clone().unwrap_or_else(|| self.i.published.clone());
        self.i.eviction = crate::pod::eviction_under_way(&self.i.pod).or_else(|| memo.eviction());
        self.held_since = None;
        self.rank = 0;
        let count = |c: &k8s_openapi::api::core::v1::ContainerStatus| (c.name.clone(), c.restart_count);
        self.counts = statuses(&self.i.published).map(count).collect();
        if self.dice.volumes {
            self.i.volumes = VolumesState { ready: false, due: Some(self.i.now), ..self.i.volumes };
        }
    }

    fn land(&mut self, written: PodStatus) {
        if !self.i.object_gone {
            let phase = written.phase.as_deref().and_then(Phase::parse).filter(|p| p.is_terminal());
            self.phase_ended = self.phase_ended.or(phase);
            self.i.published = written.clone();
            Arc::make_mut(&mut self.i.pod).status = Some(written);
        }
    }

    fn publish(&mut self, plan: &PodPlan) {
        assert!(
            !plan.waiting_on.is_empty() || plan.lifecycle == Lifecycle::Gone,
            "waits for nothing: {:#?}",
            self.i
        );
        let computed = status(&self.i);
        self.check_status(&computed);
        self.i.previous_status = computed.clone();
        let publication = publication(&self.i, &computed, self.held_since);
        self.held_since = match publication {
            Publication::HoldUntil(_) => self.held_since.or(Some(self.i.now)),
            Publication::Nothing | Publication::Now => None,
        };
        if self.writing.is_none() && publication == Publication::Now {
            let when = self.soon();
            self.writing = Some((when, computed));
        }
    }

    fn check_status(&mut self, computed: &PodStatus) {
        let phase = computed.phase.as_deref().and_then(Phase::parse).unwrap();
        if let Some(ended) = self.phase_ended {
            assert_eq!(phase, ended, "the phase left its end");
        }
        for container in statuses(computed) {
            let count = self.counts.entry(container.name.clone()).or_insert(0);
            assert!(container.restart_count >= *count, "the restart count of {} fell", container.name);
            *count = container.restart_count;
        }
        let rank = match self.i.lifecycle {
            Lifecycle::Syncing => 0,
            Lifecycle::Terminating { .. } => 1,
            Lifecycle::Terminated { .. } => 2,
            Lifecycle::Gone => 3,
        };
        assert!(rank >= self.rank, "the lifecycle went back");
        self.rank = rank;
    }

    /// Lets the next thing happen, whatever it is. False if nothing will.
    fn step(&mut self, wake_at: Option<Timestamp>) -> bool {
        let next = (self.ends.values().copied())
            .chain(self.exits.values().map(|(at, _)| *at))
            .chain(self.writing.as_ref().map(|(at, _)| *at))
            .chain(wake_at)
            .min();
        let Some(next) = next else { return false };
        self.i.now = self.i.now.max(next);
        if self.writing.as_ref().is_some_and(|(at, _)| *at <= self.i.now) {
            let (_, written) = self.writing.take().unwrap();
            self.land(written);
        }
        let due: Vec<_> =
            self.ends.iter().filter(|(_, at)| **at <= self.i.now).map(|(key, _)| key.clone()).collect();
        for key in due {
            self.ends.remove(&key);
            self.i.operations.remove(&key);
            let outcome = self.end(&key);
            self.i.history.apply(&outcome, self.i.now);
        }
        let due: Vec<_> =
            self.exits.iter().filter(|(_, (at, _))| *at <= self.i.now).map(|(id, _)| id.clone()).collect();
        for id in due {
            let (_, code) = self.exits.remove(&id).unwrap();
            self.exit(&id, code);
        }
        true
    }

    fn exit(&mut self, id: &str, code: i32) {
        self.exits.remove(id);
        let now = self.i.now;
        for container in self.i.containers.iter_mut().filter(|c| c.container.id.0 == id) {
            if container.container.state == ContainerState::Running {
                container.container.state = ContainerState::Exited;
                container.finished_at = Some(now);
                container.exit_code = Some(code);
            }
        }
    }

    fn end(&mut self, key: &OperationKey) -> Outcome {
        let fails = self.roll().is_multiple_of(4);
        match key {
            OperationKey::CreateSandbox if fails => Outcome::SandboxFailed,
            OperationKey::CreateSandbox => {
                self.i.sandboxes.insert(0, sandbox(self.next, PodSandboxState::Ready));
                Outcome::SandboxCreated
            }
            OperationKey::StopSandbox(_)
            | OperationKey::RemoveSandbox(_)
            | OperationKey::RemoveContainer(_)
            | OperationKey::UnmountVolumes
                if fails =>
            {
                Outcome::TeardownFailed
            }
            OperationKey::StopSandbox(id) => {
                self.lose(Some(id.0.clone()));
                Outcome::SandboxStopped(id.clone())
            }
            OperationKey::RemoveSandbox(id) => {
                self.i.sandboxes.retain(|s| s.sandbox.id != *id);
                self.i.containers.retain(|c| c.container.sandbox != *id);
                Outcome::TeardownDone
            }
            OperationKey::PullImage(container) => {
                let (container, image) = (container.clone(), self.pulls.remove(container).unwrap());
                if fails {
                    let (reason, message) = ("ErrImagePull".to_owned(), "dice".to_owned());
                    return Outcome::PullFailed {
                        container,
                        image: "x:1".into(),
                        pulling: image,
                        reason,
                        message,
                    };
                }
                let content = image == CONTENT;
                self.content_present |= content;
                self.image_present |= !content;
                let image_ref = if content { "sha256:2" } else { "sha256:1" }.to_owned();
                Outcome::Pulled { container, image, image_ref }
            }
            OperationKey::StartContainer(name) => self.end_start(&name.clone(), fails),
            OperationKey::PreStop(id) => Outcome::PreStopped(id.clone()),
            OperationKey::StopContainer(id) => {
                self.exit(&id.0, 143);
                Outcome::TeardownDone
            }
            OperationKey::RemoveContainer(id) => {
                self.i.containers.retain(|c| c.container.id != *id);
                Outcome::TeardownDone
            }
            OperationKey::DeletePod if fails => Outcome::DeleteFailed,
            OperationKey::DeletePod => {
                self.i.object_gone = true;
                Outcome::DeleteSent
            }
            OperationKey::MountVolumes => {
                let due = fails.then(|| self.i.now + SignedDuration::from_secs(1));
                self.i.volumes = VolumesState { ready: due.is_none(), due, present: true };
                Outcome::VolumesSetUp(Box::default())
            }
            OperationKey::UnmountVolumes => {
                self.i.volumes.present = false;
                Outcome::TeardownDone
            }
            OperationKey::CleanUp => Outcome::CleanedUp,
        }
    }

    fn start_failed(&self, container: &str, reason: &str) -> Outcome {
        Outcome::StartFailed {
            container: container.to_owned(),
            image: "x:1".into(),
            reason: reason.to_owned(),
            message: "dice".into(),
        }
    }

    fn end_start(&mut self, name: &str, fails: bool) -> Outcome {
        let start = self.starts.remove(name).unwrap();
        let there = self.i.sandboxes.first().is_some_and(|s| s.sandbox.state == PodSandboxState::Ready);
        if !there || (fails && self.roll().is_multiple_of(2)) {
            return self.start_failed(name, "CreateContainerError");
        }
        let mut made = container(&self.i, name, start.attempt, ContainerState::Running);
        made.container.sandbox = start.sandbox.clone();
        made.started_at = Some(self.i.now);
        let id = made.container.id.0.clone();
        self.i.containers.retain(|c| c.container.id.0 != id);
        self.i.containers.push(made);
        if fails {
            self.exit(&id, 128);
            return self.start_failed(name, "RunContainerError");
        }
        let lives = i64::from(self.roll());
        if lives < 200 {
            let code = i32::from(self.roll() % 3);
            self.exits.insert(id, (self.i.now + SignedDuration::from_secs(lives * lives / 8), code));
        }
        Outcome::Started { container: name.to_owned() }
    }

    /// A sandbox becomes unusable and takes its containers along.
    fn lose(&mut self, id: Option<String>) {
        let Some(sandbox) =
            self.i.sandboxes.iter_mut().find(|s| id.as_ref().is_none_or(|id| s.sandbox.id.0 == *id))
        else {
            return;
        };
        sandbox.sandbox.state = PodSandboxState::NotReady;
        let lost = sandbox.sandbox.id.clone();
        let inside: Vec<_> = (self.i.containers.iter())
            .filter(|c| c.container.sandbox == lost)
            .map(|c| c.container.id.0.clone())
            .collect();
        inside.iter().for_each(|id| self.exit(id, 137));
    }

    fn delete(&mut self, grace: i64) {
        let now = self.i.now;
        let pod = Arc::make_mut(&mut self.i.pod);
        let deadline = now + SignedDuration::from_secs(grace);
        pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(deadline));
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        pod.metadata.generation = pod.metadata.generation.map(|g| g + 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_pod_always_comes_to_rest(dice in dice()) {
        let mut world = World::new(dice.clone());
        let mut turns_at_once = 0;
        for step in 0..400 {
            let plan = world.turn();
            if plan.lifecycle == Lifecycle::Gone {
                break;
            }
            if dice.lose == Some(step) {
                world.lose(None);
                continue;
            }
            if let Some((when, grace)) = dice.delete.filter(|(when, _)| *when == step) {
                let _ = when;
                world.delete(grace);
                continue;
            }
            if dice.evict == Some(step) {
                let reason = crate::pod::reasons::PREEMPTING;
                let message = crate::pod::reasons::PREEMPTING_MESSAGE.to_owned();
                world.i.eviction = Some(crate::pod::Eviction { reason, message });
                continue;
            }
            if dice.kills.contains(&step) {
                world.kill_agent();
            }
            if dice.vanish == Some(step) {
                world.i.object_gone = true;
                continue;
            }
            let before = world.i.now;
            if !world.step(plan.wake_at) {
                break;
            }
            // Time goes on: what follows at once follows from something that happened, and that is bounded.
            turns_at_once = if world.i.now == before { turns_at_once + 1 } else { 0 };
            prop_assert!(turns_at_once < 40, "turns without end at one time: {:#?}", world.i);
        }
        // Somebody deletes it in the end, and then nothing is left.
        if !world.i.is_deleted() {
            world.delete(5);
        }
        for _ in 0..200 {
            let plan = world.turn();
            if plan.lifecycle == Lifecycle::Gone {
                break;
            }
            prop_assert!(world.step(plan.wake_at), "stuck: {:?} {:#?}", plan, world.i);
        }
        prop_assert_eq!(&world.i.lifecycle, &Lifecycle::Gone);
        prop_assert!(world.i.sandboxes.is_empty() && world.i.containers.is_empty() && world.i.history.cleaned_up);
        prop_assert!(!world.i.volumes.present);
    }
}

proptest! {
    /// Whatever seconds a user writes, there is a decision, and the stop that it says is not in the past.
    #[test]
    fn no_number_of_seconds_is_too_many(
        spec_grace in any::<i64>(),
        deletion_grace in prop::option::of(any::<i64>()),
        active_deadline in prop::option::of(any::<i64>()),
        gone in any::<bool>(),
    ) {
        let mut i = inputs(pod(json!({
            "terminationGracePeriodSeconds": spec_grace,
            "activeDeadlineSeconds": active_deadline,
            "containers": [{"name": "c", "image": "x:1"}],
        })));
        i.sandboxes.push(sandbox(0, PodSandboxState::Ready));
        i.containers.push(container(&i, "c", 0, ContainerState::Running));
        publish(&mut i);
        let start = i.now;
        i.previous_status.start_time = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(start));
        prop_assert!(!plan(&i).waiting_on.is_empty());
        let metadata = &mut Arc::make_mut(&mut i.pod).metadata;
        metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(start));
        metadata.deletion_grace_period_seconds = deletion_grace;
        i.object_gone = gone;
        for _ in 0..2 {
            let plan = plan(&i);
            let stops = plan.actions.iter().any(
                |action| matches!(action, PodAction::StopContainer { deadline, .. } if *deadline > i.now),
            );
            prop_assert!(stops, "{:#?}", plan);
            i.lifecycle = plan.lifecycle;
        }
    }
}
