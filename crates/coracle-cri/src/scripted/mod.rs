//! A runtime that runs nothing: sandboxes and containers are data, and a script says how they behave.
//!
//! It is a full implementation of the contract for tests and for the simulator. Time is the clock it is given, ids
//! count up, and what a container does is looked up by the image it runs ([`ImageScript`] and, for each run,
//! [`RunScript`]) or said by its Pod ([`ANNOTATION`]). Nothing here is random, so one schedule gives one history.
//!
//! The suite in [`crate::suite`] holds it against the embedded engine, so that the script does not drift from reality.

mod attach;
mod commands;
mod images;
mod network;
mod output;
mod script;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_clock::{Clock, watch};
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::{
    ContainerEvent, ContainerEventKind, ContainerId, ContainerState, ContainerStatus, CriError, CriResult,
    EnvVar, Image, PodSandboxId, PodSandboxState, PodSandboxStatus,
};
pub use script::{ANNOTATION, Answer, Exit, ImageScript, Line, Login, Memory, OnStop, RunScript, Trouble};

/// Where addresses of Pods come from as long as nobody has said.
const USUAL_RANGE: (u32, u8) = (0x0AF4_0000, 16);

/// The scripted runtime: both halves of the contract. Cheap to clone; clones are the same runtime.
#[derive(Clone)]
pub struct ScriptedRuntime(Arc<Inner>);

struct Inner {
    clock: Clock,
    state: Mutex<State>,
}

/// Hears what happens in a runtime: the calls that change something, what containers do by themselves.
pub type Listener = Arc<dyn Fn(&Note) + Send + Sync>;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A call that changes something was made.
    Call(String),
    /// A container began to run.
    Started(Instance),
    /// A container that ran ended, with this exit code.
    Ended(Instance, i32),
    /// A container was asked something, a command or the words of a probe, and this is the code of its answer.
    Asked(Instance, Vec<String>, i32),
}

/// One run of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Namespace and name of the Pod.
    pub pod: (String, String),
    /// UID of the Pod.
    pub pod_uid: String,
    /// The sandbox that it runs in.
    pub sandbox: PodSandboxId,
    /// Name of the container.
    pub container: String,
    /// The image that it was made to run.
    pub image: String,
    /// The instance.
    pub id: ContainerId,
}

#[derive(Default)]
struct State {
    scripts: BTreeMap<String, ImageScript>,
    /// How images behave that have no script; without it there are none.
    default: Option<ImageScript>,
    listener: Option<Listener>,
    trouble: Trouble,
    images: BTreeMap<String, Image>,
    pulls: BTreeMap<String, usize>,
    sandboxes: BTreeMap<PodSandboxId, Sandbox>,
    containers: BTreeMap<ContainerId, Run>,
    runs: BTreeMap<(String, String), usize>,
    subscribers: Vec<mpsc::Sender<ContainerEvent>>,
    network_down: Option<String>,
    sandbox_failures: Vec<CriError>,
    pod_cidr: Option<String>,
    addresses: BTreeSet<u32>,
    last_address: u32,
    /// The calls, as long as nobody listens.
    calls: Vec<String>,
    next_id: u64,
    next_attachment: u64,
}

struct Sandbox {
    status: PodSandboxStatus,
    address: Option<u32>,
}

struct Run {
    status: ContainerStatus,
    pod: (String, String),
    pod_uid: String,
    envs: Vec<EnvVar>,
    script: RunScript,
    /// When it started, by the measuring clock.
    since: Duration,
    /// True once it has ended, or when a newer stop has taken over.
    ended: watch::Sender<bool>,
    /// Counts stops, so that a newer one replaces an older one's kill.
    stops: u64,
    input: Input,
    attached: Vec<attach::Attached>,
}

/// What a container was made with for its standard input.
#[derive(Clone, Copy)]
struct Input {
    open: bool,
    once: bool,
}

impl ScriptedRuntime {
    /// A runtime without images. Must be used within a Tokio runtime.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        ScriptedRuntime(Arc::new(Inner { clock, state: Mutex::new(State::default()) }))
    }

    /// Says how an image behaves. `name` is the name with its tag, as it will be asked for.
    pub fn script(&self, name: &str, script: ImageScript) {
        let mut state = self.state();
        if script.present {
            state.add_image(name);
        }
        state.scripts.insert(name.to_owned(), script);
    }

    /// Says how images behave that have no script of their own.
    pub fn script_others(&self, script: ImageScript) {
        self.state().default = Some(script);
    }

    /// Tells `listener` of everything from now on. It is called with the runtime locked, and must not call it.
    pub fn listen(&self, listener: Listener) {
        self.state().listener = Some(listener);
    }

    /// Says what is wrong with the runtime from now on; the default is nothing.
    pub fn set_trouble(&self, trouble: Trouble) {
        self.state().trouble = trouble;
    }

    /// What a cut of the machine's power does: nothing runs any more, no sandbox is ready, nobody saw an end.
    pub fn lose_power(&self) {
        let running: Vec<ContainerId> = {
            let mut state = self.state();
            state.subscribers.clear();
            for sandbox in state.sandboxes.values_mut() {
                sandbox.status.sandbox.state = PodSandboxState::NotReady;
            }
            let ids = state.containers.iter();
            let running = ids.filter(|(_, run)| run.status.container.state == ContainerState::Running);
            running.map(|(id, _)| id.clone()).collect()
        };
        for id in running {
            self.end(&id, 255, "Unknown");
        }
    }

    /// Takes the network down, with a reason, or up again.
    pub fn set_network(&self, ready: Result<(), String>) {
        self.state().network_down = ready.err();
    }

    /// The next sandboxes cannot be made, one for each error.
    pub fn fail_sandboxes(&self, errors: Vec<CriError>) {
        self.state().sandbox_failures = errors;
    }

    /// Ends a running container from outside, as a crash would.
    pub fn crash(&self, id: &ContainerId, code: i32) {
        self.end(id, code, "");
    }

    /// Makes a sandbox unusable, as the end of its keeper would, ending what runs in it.
    pub fn lose_sandbox(&self, id: &PodSandboxId) {
        for container in self.running_in(id) {
            self.end(&container, 137, "");
        }
        let mut state = self.state();
        let Some(sandbox) = state.sandboxes.get_mut(id) else { return };
        sandbox.status.sandbox.state = PodSandboxState::NotReady;
        let uid = sandbox.status.sandbox.metadata.uid.clone();
        self.tell(&mut state, ContainerEventKind::SandboxChanged, &uid, None);
    }

    /// The calls so far that change something, one line each. Somebody who listens hears them instead.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    /// The variables of the newest container of this name.
    #[must_use]
    pub fn environment(&self, container: &str) -> Vec<EnvVar> {
        let state = self.state();
        let named = state.containers.values().filter(|run| run.status.container.name == container);
        let newest = named.max_by_key(|run| (run.status.container.created_at, run.status.container.attempt));
        newest.map(|run| run.envs.clone()).unwrap_or_default()
    }

    /// The range of addresses it has been given.
    #[must_use]
    pub fn pod_cidr(&self) -> Option<String> {
        self.state().pod_cidr.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a single insertion or assignment: a panic elsewhere leaves nothing half done.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// Meets the trouble that a call has: it may take longer, and it may fail.
    async fn meet_trouble(&self, call: &str) -> CriResult<()> {
        let (slow, fails) = {
            let state = self.state();
            let trouble = Some(&state.trouble).filter(|trouble| trouble.concerns(call));
            trouble.map_or((Duration::ZERO, None), |trouble| (trouble.slow, trouble.fails.clone()))
        };
        if !slow.is_zero() {
            self.0.clock.sleep(slow).await;
        }
        fails.map_or(Ok(()), Err)
    }

    fn running_in(&self, sandbox: &PodSandboxId) -> Vec<ContainerId> {
        let state = self.state();
        let running = state.containers.values().map(|run| &run.status).filter(|status| {
            status.container.sandbox == *sandbox && status.container.state == ContainerState::Running
        });
        running.map(|status| status.container.id.clone()).collect()
    }

    fn end(&self, id: &ContainerId, code: i32, reason: &str) {
        let now = self.now();
        let mut state = self.state();
        let Some(run) = state.containers.get_mut(id) else { return };
        if run.status.container.state != ContainerState::Running {
            return;
        }
        run.status.container.state = ContainerState::Exited;
        run.status.finished_at = Some(now);
        run.status.exit_code = Some(code);
        run.status.pid = None;
        let by_code = if code == 0 { "Completed" } else { "Error" };
        run.status.reason = if reason.is_empty() { by_code } else { reason }.to_owned();
        run.ended.send_replace(true);
        run.attached.clear();
        let instance = run.instance();
        self.tell(&mut state, ContainerEventKind::Stopped, &instance.pod_uid, Some(id));
        state.note(&Note::Ended(instance, code));
    }

    /// Carries out what the script says will happen to a container by itself.
    fn let_run(&self, id: &ContainerId, exit: Exit) {
        let (runtime, id) = (self.clone(), id.clone());
        tokio::spawn(async move {
            runtime.0.clock.sleep(exit.after).await;
            runtime.end(&id, exit.code, if exit.oom_killed { "OOMKilled" } else { "" });
        });
    }

    fn tell(
        &self,
        state: &mut State,
        kind: ContainerEventKind,
        pod_uid: &str,
        container: Option<&ContainerId>,
    ) {
        if state.trouble.events_lost {
            return;
        }
        let event = ContainerEvent { kind, pod_uid: pod_uid.to_owned(), container: container.cloned() };
        let late = state.trouble.events_late;
        if late.is_zero() {
            return state.send(&event);
        }
        let runtime = self.clone();
        tokio::spawn(async move {
            runtime.0.clock.sleep(late).await;
            runtime.state().send(&event);
        });
    }
}

impl State {
    fn id(&mut self) -> String {
        self.next_id += 1;
        format!("{:064x}", self.next_id)
    }

    /// A free address for a Pod; `None` if the range is used up.
    fn address(&mut self) -> Option<u32> {
        let (base, prefix) = self.pod_cidr.as_deref().and_then(range).unwrap_or(USUAL_RANGE);
        let size = 1u32.checked_shl(u32::from(32 - prefix)).unwrap_or(u32::MAX);
        // The one after the last, so that an address is not used again at once.
        let (first, end) = (base + 1, base + size - 1);
        let from = Some(self.last_address + 1).filter(|next| (first..end).contains(next)).unwrap_or(first);
        let free = (from..end).chain(first..from).find(|address| !self.addresses.contains(address))?;
        self.addresses.insert(free);
        self.last_address = free;
        Some(free)
    }

    /// Takes an address back.
    fn free(&mut self, sandbox: &PodSandboxId) {
        let address = self.sandboxes.get_mut(sandbox).and_then(|sandbox| sandbox.address.take());
        if let Some(address) = address {
            self.addresses.remove(&address);
        }
    }

    fn script_of(&self, image: &str) -> Option<ImageScript> {
        self.scripts.get(image).or(self.default.as_ref()).cloned()
    }

    fn send(&mut self, event: &ContainerEvent) {
        self.subscribers.retain(|subscriber| {
            // A receiver that lags loses hints, as the contract allows.
            !matches!(subscriber.try_send(event.clone()), Err(mpsc::error::TrySendError::Closed(_)))
        });
    }

    fn log(&mut self, call: String) {
        if self.listener.is_some() {
            self.note(&Note::Call(call));
        } else {
            self.calls.push(call);
        }
    }

    fn note(&self, note: &Note) {
        if let Some(listener) = &self.listener {
            listener(note);
        }
    }
}

/// First address and prefix length of an IPv4 range.
fn range(cidr: &str) -> Option<(u32, u8)> {
    let (base, prefix) = cidr.split_once('/')?;
    let prefix = prefix.parse().ok().filter(|prefix| (8..=30).contains(prefix))?;
    Some((u32::from(base.parse::<Ipv4Addr>().ok()?), prefix))
}

fn ip(address: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(address))
}

impl Run {
    fn instance(&self) -> Instance {
        let container = &self.status.container;
        Instance {
            pod: self.pod.clone(),
            pod_uid: self.pod_uid.clone(),
            sandbox: container.sandbox.clone(),
            container: container.name.clone(),
            image: container.image.image.clone(),
            id: container.id.clone(),
        }
    }
}

fn no_container(id: &ContainerId) -> CriError {
    CriError::NotFound(format!("container \"{id}\" not found"))
}

fn no_sandbox(id: &PodSandboxId) -> CriError {
    CriError::NotFound(format!("sandbox \"{id}\" not found"))
}

fn labels_match(wanted: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
