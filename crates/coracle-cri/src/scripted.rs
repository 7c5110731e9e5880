//! A runtime that runs nothing: sandboxes and containers are data, and a script says how they behave.
//!
//! It is a full implementation of the contract for tests and for the simulator. Time is the clock it is given, ids
//! count up, and what a container does is looked up by the image it runs: [`ImageScript`] and, for each run,
//! [`RunScript`]. Nothing here is random, so one schedule gives one history.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use coracle_clock::Clock;
use coracle_clock::watch;
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::{
    AuthConfig, Container, ContainerConfig, ContainerEvent, ContainerEventKind, ContainerFilter, ContainerId,
    ContainerState, ContainerStatus, CriError, CriResult, ExecRequest, ExecSyncResult, FilesystemUsage,
    Image, ImageService, ImageSpec, LinuxContainerResources, NamespaceMode, PodSandbox, PodSandboxConfig,
    PodSandboxFilter, PodSandboxId, PodSandboxState, PodSandboxStatus, RuntimeCondition, RuntimeService,
    RuntimeStatus, StreamSession, Version,
};

const EVENTS: usize = 1024;

/// How an image, and the containers that run it, behave.
#[derive(Debug, Clone, Default)]
pub struct ImageScript {
    /// It is in the store from the start.
    pub present: bool,
    /// How long a pull takes.
    pub pull_time: Duration,
    /// Pulls that fail, one entry each, before they succeed. The last entry repeats if `pull_never_succeeds`.
    pub pull_failures: Vec<CriError>,
    /// No pull ever succeeds.
    pub pull_never_succeeds: bool,
    /// Successive runs of one container; the last one repeats. Without any, containers run until they are stopped.
    pub runs: Vec<RunScript>,
}

/// How one run of a container goes.
#[derive(Debug, Clone, Default)]
pub struct RunScript {
    /// Creating the container fails.
    pub create_error: Option<String>,
    /// The program cannot be executed.
    pub start_error: Option<String>,
    /// The program ends by itself.
    pub exit: Option<Exit>,
    /// What the stop signal does.
    pub on_stop: OnStop,
}

/// A program that ends by itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Exit {
    /// How long after its start.
    pub after: Duration,
    /// Exit code.
    pub code: i32,
    /// Killed for want of memory.
    pub oom_killed: bool,
}

/// What the stop signal does.
#[derive(Debug, Clone, Copy, Default)]
pub enum OnStop {
    /// The program dies of the signal.
    #[default]
    Dies,
    /// The program ends with this code after this time.
    Exits {
        /// How long after the signal.
        after: Duration,
        /// Exit code.
        code: i32,
    },
    /// The program ignores the signal.
    Ignores,
}

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
}

/// One run of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Namespace and name of the Pod.
    pub pod: (String, String),
    /// UID of the Pod.
    pub pod_uid: String,
    /// Name of the container.
    pub container: String,
    /// The instance.
    pub id: ContainerId,
}

#[derive(Default)]
struct State {
    scripts: BTreeMap<String, ImageScript>,
    /// How images behave that have no script; without it there are none.
    default: Option<ImageScript>,
    listener: Option<Listener>,
    images: BTreeMap<String, Image>,
    pulls: BTreeMap<String, usize>,
    sandboxes: BTreeMap<PodSandboxId, Sandbox>,
    containers: BTreeMap<ContainerId, Run>,
    runs: BTreeMap<(String, String), usize>,
    subscribers: Vec<mpsc::Sender<ContainerEvent>>,
    network_down: Option<String>,
    sandbox_failures: Vec<CriError>,
    pod_cidr: Option<String>,
    calls: Vec<String>,
    next_id: u64,
    next_ip: u32,
}

struct Sandbox {
    status: PodSandboxStatus,
}

struct Run {
    status: ContainerStatus,
    pod: (String, String),
    pod_uid: String,
    script: RunScript,
    /// True once it has ended, or when a newer stop has taken over.
    ended: watch::Sender<bool>,
    /// Counts stops, so that a newer one replaces an older one's kill.
    stops: u64,
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

    /// Makes a sandbox unusable, as a reboot would, ending what runs in it.
    pub fn lose_sandbox(&self, id: &PodSandboxId) {
        for container in self.running_in(id) {
            self.end(&container, 137, "");
        }
        let mut state = self.state();
        let Some(sandbox) = state.sandboxes.get_mut(id) else { return };
        sandbox.status.sandbox.state = PodSandboxState::NotReady;
        let uid = sandbox.status.sandbox.metadata.uid.clone();
        state.tell(ContainerEventKind::SandboxChanged, &uid, None);
    }

    /// The calls so far that change something, one line each.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
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
        let instance = run.instance();
        state.tell(ContainerEventKind::Stopped, &instance.pod_uid, Some(id));
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
}

impl State {
    fn id(&mut self) -> String {
        self.next_id += 1;
        format!("{:064x}", self.next_id)
    }

    fn add_image(&mut self, name: &str) -> String {
        let id = format!(
            "sha256:{:0>64}",
            format!("{:x}", name.bytes().fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into())))
        );
        let image =
            Image { id: id.clone(), repo_tags: vec![name.to_owned()], size: 1024, ..Image::default() };
        self.images.insert(id.clone(), image);
        id
    }

    fn image(&self, reference: &str) -> Option<&Image> {
        self.images
            .get(reference)
            .or_else(|| self.images.values().find(|image| image.repo_tags.iter().any(|tag| tag == reference)))
    }

    fn script_of(&self, image: &str) -> Option<ImageScript> {
        self.scripts.get(image).or(self.default.as_ref()).cloned()
    }

    fn tell(&mut self, kind: ContainerEventKind, pod_uid: &str, container: Option<&ContainerId>) {
        let event = ContainerEvent { kind, pod_uid: pod_uid.to_owned(), container: container.cloned() };
        self.subscribers.retain(|subscriber| {
            // A receiver that lags loses hints, as the contract allows.
            !matches!(subscriber.try_send(event.clone()), Err(mpsc::error::TrySendError::Closed(_)))
        });
    }

    fn log(&mut self, call: String) {
        self.calls.push(call.clone());
        self.note(&Note::Call(call));
    }

    fn note(&self, note: &Note) {
        if let Some(listener) = &self.listener {
            listener(note);
        }
    }
}

impl Run {
    fn instance(&self) -> Instance {
        let container = &self.status.container;
        Instance {
            pod: self.pod.clone(),
            pod_uid: self.pod_uid.clone(),
            container: container.name.clone(),
            id: container.id.clone(),
        }
    }
}

fn no_container(id: &ContainerId) -> CriError {
    CriError::NotFound(format!("container \"{id}\" not found"))
}

fn labels_match(wanted: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[async_trait]
impl RuntimeService for ScriptedRuntime {
    async fn version(&self) -> CriResult<Version> {
        Ok(Version { runtime_name: "coracle".to_owned(), runtime_version: "0.0.0".to_owned() })
    }

    async fn status(&self) -> CriResult<RuntimeStatus> {
        let down = self.state().network_down.clone();
        let condition = |kind: &str, down: Option<String>| RuntimeCondition {
            kind: kind.to_owned(),
            status: down.is_none(),
            reason: if down.is_some() { "NetworkPluginNotReady".to_owned() } else { String::new() },
            message: down.unwrap_or_default(),
        };
        Ok(RuntimeStatus {
            conditions: vec![condition("RuntimeReady", None), condition("NetworkReady", down)],
        })
    }

    async fn update_pod_cidr(&self, pod_cidr: &str) -> CriResult<()> {
        self.state().pod_cidr = Some(pod_cidr.to_owned());
        Ok(())
    }

    async fn run_pod_sandbox(&self, config: &PodSandboxConfig) -> CriResult<PodSandboxId> {
        let now = self.now();
        let mut state = self.state();
        let same = |s: &&Sandbox| {
            s.status.sandbox.metadata == config.metadata && s.status.sandbox.state == PodSandboxState::Ready
        };
        if let Some(there) = state.sandboxes.values().find(same) {
            return Ok(there.status.sandbox.id.clone());
        }
        if !state.sandbox_failures.is_empty() {
            return Err(state.sandbox_failures.remove(0));
        }
        let id = PodSandboxId(state.id());
        state.next_ip += 1;
        let ip = IpAddr::V4(Ipv4Addr::from(0x0AF4_0000 + state.next_ip));
        let on_node = config.namespaces.network == NamespaceMode::Node;
        let status = PodSandboxStatus {
            sandbox: PodSandbox {
                id: id.clone(),
                metadata: config.metadata.clone(),
                state: PodSandboxState::Ready,
                created_at: now,
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            },
            ips: if on_node { Vec::new() } else { vec![ip] },
            netns: None,
            namespaces: config.namespaces.clone(),
        };
        state.sandboxes.insert(id.clone(), Sandbox { status });
        state.log(format!("run sandbox {} {}", config.metadata.name, config.metadata.attempt));
        Ok(id)
    }

    async fn stop_pod_sandbox(&self, id: &PodSandboxId) -> CriResult<()> {
        for container in self.running_in(id) {
            self.end(&container, 137, "");
        }
        let mut state = self.state();
        if let Some(sandbox) = state.sandboxes.get_mut(id) {
            sandbox.status.sandbox.state = PodSandboxState::NotReady;
            let name = sandbox.status.sandbox.metadata.name.clone();
            state.log(format!("stop sandbox {name}"));
        }
        Ok(())
    }

    async fn remove_pod_sandbox(&self, id: &PodSandboxId) -> CriResult<()> {
        self.stop_pod_sandbox(id).await?;
        let mut state = self.state();
        if let Some(sandbox) = state.sandboxes.remove(id) {
            state.containers.retain(|_, run| run.status.container.sandbox != *id);
            state.log(format!("remove sandbox {}", sandbox.status.sandbox.metadata.name));
        }
        Ok(())
    }

    async fn pod_sandbox_status(&self, id: &PodSandboxId) -> CriResult<PodSandboxStatus> {
        let state = self.state();
        let found = state.sandboxes.get(id).map(|s| s.status.clone());
        found.ok_or_else(|| CriError::NotFound(format!("sandbox \"{id}\" not found")))
    }

    async fn list_pod_sandboxes(&self, filter: &PodSandboxFilter) -> CriResult<Vec<PodSandbox>> {
        let state = self.state();
        let all = state.sandboxes.values().map(|s| &s.status.sandbox);
        let matching = all.filter(|s| {
            filter.id.as_ref().is_none_or(|id| *id == s.id)
                && filter.state.is_none_or(|wanted| wanted == s.state)
                && labels_match(&filter.labels, &s.labels)
        });
        Ok(matching.cloned().collect())
    }

    async fn create_container(
        &self,
        sandbox: &PodSandboxId,
        config: &ContainerConfig,
        sandbox_config: &PodSandboxConfig,
    ) -> CriResult<ContainerId> {
        let now = self.now();
        let mut state = self.state();
        let same = |run: &&Run| {
            let c = &run.status.container;
            c.sandbox == *sandbox && c.name == config.name && c.attempt == config.attempt
        };
        if let Some(there) = state.containers.values().find(same) {
            return Ok(there.status.container.id.clone());
        }
        let Some(image) = state.image(&config.image.image).cloned() else {
            return Err(CriError::NotFound(format!("image \"{}\" not found", config.image.image)));
        };
        let script = image.repo_tags.first().and_then(|tag| state.script_of(tag)).unwrap_or_default();
        let uid = sandbox_config.metadata.uid.clone();
        let nth = state.runs.entry((uid.clone(), config.name.clone())).or_insert(0);
        let run = script.runs.get(*nth).or(script.runs.last()).cloned().unwrap_or_default();
        *nth += 1;
        if let Some(error) = run.create_error {
            return Err(CriError::Internal(error));
        }
        let id = ContainerId(state.id());
        let container = Container {
            id: id.clone(),
            sandbox: sandbox.clone(),
            name: config.name.clone(),
            attempt: config.attempt,
            image: config.image.clone(),
            image_ref: image.id,
            state: ContainerState::Created,
            created_at: now,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        };
        let status = ContainerStatus {
            container,
            started_at: None,
            finished_at: None,
            exit_code: None,
            reason: String::new(),
            message: String::new(),
            log_path: sandbox_config.log_directory.join(&config.log_path),
            mounts: config.mounts.clone(),
            user: None,
            pid: None,
            resources: config.resources.clone(),
        };
        let pod = (sandbox_config.metadata.namespace.clone(), sandbox_config.metadata.name.clone());
        let ended = watch::Sender::new(false);
        let run = Run { status, pod, pod_uid: uid.clone(), script: run, ended, stops: 0 };
        state.containers.insert(id.clone(), run);
        state.log(format!("create {} {}", config.name, config.attempt));
        state.tell(ContainerEventKind::Created, &uid, Some(&id));
        Ok(id)
    }

    async fn start_container(&self, id: &ContainerId) -> CriResult<()> {
        let now = self.now();
        let exit = {
            let mut state = self.state();
            let run = state.containers.get_mut(id).ok_or_else(|| no_container(id))?;
            if run.status.container.state != ContainerState::Created {
                return Err(CriError::FailedPrecondition(format!(
                    "container \"{id}\" is not in created state"
                )));
            }
            let name = run.status.container.name.clone();
            let uid = run.pod_uid.clone();
            if let Some(error) = run.script.start_error.clone() {
                run.status.container.state = ContainerState::Exited;
                (run.status.started_at, run.status.finished_at) = (Some(now), Some(now));
                run.status.exit_code = Some(128);
                run.status.reason = "StartError".to_owned();
                run.status.message.clone_from(&error);
                run.ended.send_replace(true);
                state.log(format!("start {name} failed"));
                state.tell(ContainerEventKind::Stopped, &uid, Some(id));
                return Err(CriError::Internal(error));
            }
            run.status.container.state = ContainerState::Running;
            run.status.started_at = Some(now);
            run.status.pid = Some(1);
            let exit = run.script.exit;
            let instance = run.instance();
            state.log(format!("start {name}"));
            state.tell(ContainerEventKind::Started, &uid, Some(id));
            state.note(&Note::Started(instance));
            exit
        };
        if let Some(exit) = exit {
            self.let_run(id, exit);
        }
        Ok(())
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> CriResult<()> {
        let (on_stop, mut ended, turn, first) = {
            let mut state = self.state();
            let Some(run) = state.containers.get_mut(id) else { return Ok(()) };
            if run.status.container.state != ContainerState::Running {
                return Ok(());
            }
            run.stops += 1;
            let found = (run.script.on_stop, run.ended.subscribe(), run.stops, run.stops == 1);
            let name = run.status.container.name.clone();
            state.log(format!("stop {name} {}s", grace.as_secs()));
            found
        };
        if first {
            match on_stop {
                OnStop::Dies => self.end(id, 143, ""),
                OnStop::Exits { after, code } => self.let_run(id, Exit { after, code, oom_killed: false }),
                OnStop::Ignores => {}
            }
        }
        let over = self.0.clock.timeout(grace, ended.wait_for(|ended| *ended)).await.is_none();
        let latest = self.state().containers.get(id).is_some_and(|run| run.stops == turn);
        if over && latest {
            self.end(id, 137, "");
        } else if over {
            let _ = ended.wait_for(|ended| *ended).await;
        }
        Ok(())
    }

    async fn remove_container(&self, id: &ContainerId) -> CriResult<()> {
        self.end(id, 137, "");
        let mut state = self.state();
        if let Some(run) = state.containers.remove(id) {
            state.log(format!("remove {} {}", run.status.container.name, run.status.container.attempt));
            state.tell(ContainerEventKind::Deleted, &run.pod_uid, Some(id));
        }
        Ok(())
    }

    async fn list_containers(&self, filter: &ContainerFilter) -> CriResult<Vec<Container>> {
        let state = self.state();
        let all = state.containers.values().map(|run| &run.status.container);
        let matching = all.filter(|c| {
            filter.id.as_ref().is_none_or(|id| *id == c.id)
                && filter.state.is_none_or(|wanted| wanted == c.state)
                && filter.sandbox.as_ref().is_none_or(|sandbox| *sandbox == c.sandbox)
                && labels_match(&filter.labels, &c.labels)
        });
        Ok(matching.cloned().collect())
    }

    async fn container_status(&self, id: &ContainerId) -> CriResult<ContainerStatus> {
        self.state().containers.get(id).map(|run| run.status.clone()).ok_or_else(|| no_container(id))
    }

    async fn update_container_resources(
        &self,
        id: &ContainerId,
        resources: &LinuxContainerResources,
    ) -> CriResult<()> {
        let mut state = self.state();
        let run = state.containers.get_mut(id).ok_or_else(|| no_container(id))?;
        run.status.resources = resources.clone();
        Ok(())
    }

    async fn reopen_container_log(&self, id: &ContainerId) -> CriResult<()> {
        self.state().containers.get(id).map(|_| ()).ok_or_else(|| no_container(id))
    }

    async fn exec_sync(
        &self,
        id: &ContainerId,
        _command: &[String],
        _timeout: Option<Duration>,
    ) -> CriResult<ExecSyncResult> {
        self.container_status(id).await?;
        Err(CriError::Unimplemented("a scripted container runs no commands".to_owned()))
    }

    async fn exec(&self, request: &ExecRequest) -> CriResult<StreamSession> {
        self.container_status(&request.container).await?;
        Err(CriError::Unimplemented("a scripted container runs no commands".to_owned()))
    }

    async fn container_events(&self) -> CriResult<mpsc::Receiver<ContainerEvent>> {
        let (sender, receiver) = mpsc::channel(EVENTS);
        self.state().subscribers.push(sender);
        Ok(receiver)
    }
}

#[async_trait]
impl ImageService for ScriptedRuntime {
    async fn list_images(&self) -> CriResult<Vec<Image>> {
        Ok(self.state().images.values().cloned().collect())
    }

    async fn image_status(&self, image: &ImageSpec) -> CriResult<Option<Image>> {
        Ok(self.state().image(&image.image).cloned())
    }

    async fn pull_image(
        &self,
        image: &ImageSpec,
        _auth: Option<&AuthConfig>,
        _sandbox: Option<&PodSandboxConfig>,
    ) -> CriResult<String> {
        let name = image.image.clone();
        let script = self.state().script_of(&name);
        let Some(script) = script else {
            return Err(CriError::NotFound(format!("failed to resolve reference \"{name}\": not found")));
        };
        self.0.clock.sleep(script.pull_time).await;
        let mut state = self.state();
        let nth = state.pulls.entry(name.clone()).or_insert(0);
        let failure = script
            .pull_failures
            .get(*nth)
            .or(script.pull_failures.last().filter(|_| script.pull_never_succeeds));
        *nth += 1;
        state.log(format!("pull {name}"));
        match failure {
            Some(error) => Err(error.clone()),
            None => Ok(state.add_image(&name)),
        }
    }

    async fn remove_image(&self, image: &ImageSpec) -> CriResult<()> {
        let mut state = self.state();
        if let Some(id) = state.image(&image.image).map(|image| image.id.clone()) {
            state.images.remove(&id);
        }
        Ok(())
    }

    async fn image_fs_info(&self) -> CriResult<FilesystemUsage> {
        Ok(FilesystemUsage::default())
    }
}
