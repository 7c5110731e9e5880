//! A cluster in one process: who is in it, and how time passes.

mod api;
mod edge;
mod faults;

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_apiserver::pki::AccountKey;
use coracle_clock::{Clock, Rng, select};
use coracle_cri::scripted::{ImageScript, ScriptedRuntime};
use coracle_store::simfs::SimFs;
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::mpsc;

pub use edge::{Door, refusal};

use crate::acknowledged::Acknowledged;
use crate::control::{Components, Keeper, Restart};
use crate::hook::{Hook, Until};
use crate::invariants::Scope;
use crate::node::{NodeSettings, SimNode};
use crate::observer::{Observer, Stored};
use crate::rush::Rush;
use crate::scratch::Scratch;
use crate::trace::{Listen, Trace};
use crate::violation::Violation;
use crate::wire::{Address, Unreachable, Wire};
use crate::witness::{self, WATCHED};

/// What a world is made from.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Everything that is left to chance comes from here.
    pub seed: u64,
    /// Calendar time at the start.
    pub start: Timestamp,
    /// The nodes.
    pub nodes: Vec<NodeSettings>,
    /// Whether the lines of the trace are kept. The hash is the same without them.
    pub keep_lines: bool,
    /// Whether clients watch over the API all the time and are held against the store. They are part of the run.
    pub witnesses: bool,
    /// How often one user may ask for one path at one moment before it is taken for without end.
    pub most_at_once: u32,
}

/// A large cluster begins with nearly as many.
const MOST_AT_ONCE: u32 = 100_000;

impl Default for Settings {
    fn default() -> Self {
        let start = "2030-01-01T00:00:00Z".parse().expect("a moment");
        Settings {
            seed: 0,
            start,
            nodes: vec![NodeSettings::default()],
            keep_lines: true,
            witnesses: false,
            most_at_once: MOST_AT_ONCE,
        }
    }
}

/// Why a world does not go on.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// A rule of the cluster does not hold.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// What was waited for did not come.
    #[error("waited {0:?} of virtual time in vain")]
    InVain(Duration),
    /// The API server refused a request.
    #[error("{verb} {path}: {status}")]
    Refused {
        /// What was asked.
        verb: String,
        /// Of what.
        path: String,
        /// The server's words.
        status: String,
        /// The server's code.
        code: u16,
    },
    /// The API server did not answer.
    #[error("the API server does not answer")]
    Unreachable(#[from] Unreachable),
    /// It is no object of a known kind, or a fault of a node that is not there.
    #[error("{0}")]
    Unknown(String),
    /// The machine that the simulation runs on cannot do something.
    #[error("cannot set up the simulation")]
    Host(#[from] std::io::Error),
}

type Deed = Box<dyn FnOnce(&mut World) -> Result<(), SimError>>;

/// A cluster on virtual time. All of it is on the thread that calls, and only while it calls.
pub struct World {
    settings: Settings,
    clock: Clock,
    hook: Hook,
    disk: SimFs,
    restarts: mpsc::UnboundedSender<Restart>,
    control_wire: Wire,
    components: Option<Components>,
    meddler: Option<tokio::task::AbortHandle>,
    nodes: BTreeMap<String, SimNode>,
    admin: Wire,
    agenda: BTreeMap<(Duration, u64), Deed>,
    planned: u64,
    rng: Rng,
    address: Address,
    acknowledged: Acknowledged,
    rush: Rush,
    directory: Scratch,
    // Last, so that everything else is gone when it ends.
    runtime: tokio::runtime::Runtime,
}

impl World {
    /// Makes the cluster and starts it: control plane first, then the nodes. No time passes yet.
    ///
    /// # Errors
    /// If the host has no room for the few files of the nodes.
    pub fn new(settings: Settings) -> Result<World, SimError> {
        Self::make(settings, None)
    }

    /// The same, for somebody who hears of everything from the first moment on. They are not to ask the world anything
    /// while they hear.
    ///
    /// # Errors
    /// As [`World::new`].
    pub fn listened_to(settings: Settings, listen: Listen) -> Result<World, SimError> {
        Self::make(settings, Some(listen))
    }

    fn make(settings: Settings, listen: Option<Listen>) -> Result<World, SimError> {
        let hook = Hook::new();
        let quiet = hook.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .on_thread_park(move || quiet.quiet())
            .build()?;
        let directory = Scratch::new()?;
        let guard = runtime.enter();
        let mut rng = Rng::seeded(settings.seed);
        let clock = Clock::starting_at(settings.start);
        let (acknowledged, rush) = (Acknowledged::default(), Rush::new(settings.most_at_once));
        let notes = (acknowledged.clone(), rush.clone());
        let mut observer = Observer::new(clock.clone(), settings.seed, notes, settings.keep_lines);
        if let Some(listen) = listen {
            observer.listen(listen);
        }
        hook.install(observer);
        let address = Address::new();
        let wire = || Wire::new(address.clone(), clock.clone(), acknowledged.clone(), rush.clone());
        let disk = SimFs::new(rng.fork("disk"));
        let (restarts, asked) = mpsc::unbounded_channel();
        let (control_wire, admin) = (wire(), wire());
        let keeper = Keeper {
            disk: disk.clone(),
            address: address.clone(),
            clock: clock.clone(),
            hook: hook.clone(),
            rng: rng.fork("server"),
            account_key: AccountKey::unkept().expect("random numbers for a key").into(),
        };
        hook.observer(|observer| observer.invariants.calm.begin(Scope::Cluster));
        tokio::spawn(keeper.run(asked));
        drop(guard);
        let nodes = settings.nodes.clone();
        let mut world = World {
            settings,
            clock,
            hook,
            disk,
            restarts,
            control_wire,
            components: None,
            meddler: None,
            nodes: BTreeMap::new(),
            admin,
            agenda: BTreeMap::new(),
            planned: 0,
            rng,
            address,
            acknowledged,
            rush,
            directory,
            runtime,
        };
        world.settle()?;
        world.start_components();
        world.start_witnesses();
        for node in nodes {
            world.add_node(node)?;
        }
        world.settle()?;
        Ok(world)
    }

    // === Time ===

    /// Virtual time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        let _guard = self.runtime.enter();
        self.clock.elapsed()
    }

    /// The calendar.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let _guard = self.runtime.enter();
        self.clock.now()
    }

    /// Plans something for a time after the start. What is planned for one moment happens in the order of planning.
    pub fn at(&mut self, when: Duration, deed: impl FnOnce(&mut World) -> Result<(), SimError> + 'static) {
        self.planned += 1;
        self.agenda.insert((when, self.planned), Box::new(deed));
    }

    /// Lets time pass until `then` (since the start), with what is planned on the way.
    ///
    /// # Errors
    /// If an invariant breaks, or something that was planned fails.
    pub fn run_until(&mut self, then: Duration) -> Result<(), SimError> {
        while let Some((&(when, _), _)) = self.agenda.first_key_value()
            && when <= then
        {
            self.pass(when)?;
            if let Some((_, deed)) = self.agenda.pop_first() {
                deed(self)?;
            }
        }
        self.pass(then)?;
        self.settle()
    }

    /// Lets so much time pass.
    ///
    /// # Errors
    /// As [`World::run_until`].
    pub fn run_for(&mut self, by: Duration) -> Result<(), SimError> {
        self.run_until(self.elapsed() + by)
    }

    /// Lets time pass until `holds`, looking at each moment at which something happened.
    ///
    /// # Errors
    /// As [`World::run_until`]; also if it does not hold within `limit`.
    pub fn run_while_not(
        &mut self,
        limit: Duration,
        mut holds: impl FnMut(&World) -> bool,
    ) -> Result<(), SimError> {
        let end = self.elapsed() + limit;
        self.settle()?;
        while !holds(self) {
            let now = self.elapsed();
            if now >= end {
                return Err(SimError::InVain(limit));
            }
            let next = self.agenda.first_key_value().map(|(&(when, _), _)| when).filter(|when| *when <= end);
            let stop = next.unwrap_or(end);
            self.step(stop)?;
            if next.is_some_and(|when| when <= self.elapsed())
                && let Some((_, deed)) = self.agenda.pop_first()
            {
                deed(self)?;
                self.settle()?;
            }
        }
        Ok(())
    }

    /// Lets everything happen that can happen now, without time passing.
    ///
    /// # Errors
    /// If an invariant breaks.
    pub fn settle(&mut self) -> Result<(), SimError> {
        self.runtime.block_on(self.hook.reached(Until::Quiet));
        self.check()
    }

    /// Lets time pass to the next moment at which something happens, but not beyond `limit`.
    fn step(&mut self, limit: Duration) -> Result<(), SimError> {
        let (hook, clock) = (&self.hook, &self.clock);
        self.runtime.block_on(async {
            let now = clock.elapsed();
            select! {
                () = hook.reached(Until::After(now)) => {}
                () = clock.sleep(limit.saturating_sub(now)) => {}
            }
        });
        self.settle()
    }

    fn pass(&mut self, then: Duration) -> Result<(), SimError> {
        let (hook, clock) = (&self.hook, &self.clock);
        self.runtime.block_on(async {
            let pause = then.saturating_sub(clock.elapsed());
            if !pause.is_zero() {
                select! {
                    () = hook.reached(Until::Asked) => {}
                    () = clock.sleep(pause) => {}
                }
            }
        });
        self.check()
    }

    fn check(&self) -> Result<(), SimError> {
        match self.hook.observer(|observer| observer.violation().cloned()) {
            Some(violation) => Err(violation.into()),
            None => Ok(()),
        }
    }

    /// Runs a future in the world; time passes as it needs.
    pub fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    // === What is there ===

    /// An object as it is in the store, by kind, namespace (empty for kinds without) and name.
    #[must_use]
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = api::resource_named(kind).ok()?.storage_key(namespace, name);
        self.hook.observer(|observer| observer.objects().get(&key).and_then(decoded))
    }

    /// All objects of a kind, in order of namespace and name.
    #[must_use]
    pub fn list(&self, kind: &str) -> Vec<Value> {
        let Ok(resource) = api::resource_named(kind) else { return Vec::new() };
        let prefix = resource.storage_list_prefix(None);
        self.hook.observer(|observer| {
            let all = observer.objects().range(prefix.clone()..);
            all.take_while(|(key, _)| key.starts_with(&prefix)).filter_map(|(_, o)| decoded(o)).collect()
        })
    }

    /// The store's revision.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.hook.observer(|observer| observer.revision())
    }

    /// Looks at the trace.
    pub fn trace<R>(&self, look: impl FnOnce(&Trace) -> R) -> R {
        self.hook.observer(|observer| look(observer.trace()))
    }

    /// What the trace comes to: equal for equal runs.
    #[must_use]
    pub fn hash(&self) -> String {
        self.trace(Trace::hash)
    }

    /// Adds a line of one's own to the trace.
    pub fn say(&self, text: &str) {
        let _guard = self.runtime.enter();
        self.hook.observer(|observer| observer.say(text));
    }

    /// The world's seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.settings.seed
    }

    /// A stream of chance for a purpose of one's own.
    pub fn fork_rng(&mut self, purpose: &str) -> Rng {
        self.rng.fork(purpose)
    }

    // === Nodes ===

    /// Adds a node and starts it.
    ///
    /// # Errors
    /// If there is one of this name.
    pub fn add_node(&mut self, settings: NodeSettings) -> Result<(), SimError> {
        let name = settings.name.clone();
        if self.nodes.contains_key(&name) {
            return Err(SimError::Unknown(format!("there is a node {name} already")));
        }
        let _guard = self.runtime.enter();
        let nth = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let clock = Clock::starting_at(self.clock.now());
        let (acknowledged, rush) = (self.acknowledged.clone(), self.rush.clone());
        let wire = Wire::new(self.address.clone(), self.clock.clone(), acknowledged, rush);
        let rng = self.rng.fork("node");
        let mut node = SimNode::new(settings, nth, self.directory.path(), wire, clock, rng);
        node.runtime.listen(self.hook.observer(|observer| observer.listener(&name)));
        node.start_agent();
        self.nodes.insert(name, node);
        Ok(())
    }

    /// The names of the nodes.
    pub fn node_names(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// The runtime of a node, for scripts of its own.
    #[must_use]
    pub fn runtime_of(&self, node: &str) -> Option<&ScriptedRuntime> {
        self.nodes.get(node).map(|node| &node.runtime)
    }

    /// Says on all nodes how an image behaves. `name` is the name with its tag.
    pub fn script_image(&self, name: &str, script: &ImageScript) {
        for node in self.nodes.values() {
            node.runtime.script(name, script.clone());
        }
    }

    fn start_witnesses(&self) {
        for watched in WATCHED.iter().copied().filter(|_| self.settings.witnesses) {
            let client = self.client();
            let _guard = self.runtime.enter();
            let heard = self.hook.observer(|observer| {
                observer.invariants.streams.add(watched.0);
                observer.heard.clone()
            });
            tokio::spawn(witness::run(client, self.clock.clone(), watched, heard));
        }
    }

    fn start_components(&mut self) {
        let _guard = self.runtime.enter();
        let mut rng = self.rng.fork("components");
        self.components = Some(Components::start(&self.control_wire, &self.clock, &mut rng));
    }
}

fn decoded(stored: &Stored) -> Option<Value> {
    let mut object: Value = serde_json::from_slice(&stored.value).ok()?;
    object["metadata"]["resourceVersion"] = Value::from(stored.revision.to_string());
    Some(object)
}

impl Drop for World {
    /// The Tokio runtime holds the observer, which holds the store, which holds tasks and so the runtime: left alone, each
    /// world would stay in memory for ever.
    fn drop(&mut self) {
        let _guard = self.runtime.enter();
        self.hook.observer(Observer::unfollow);
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_that_is_gone_leaves_no_memory_behind() {
        let mut world = World::new(Settings { witnesses: true, ..Settings::default() }).unwrap();
        world.run_for(Duration::from_secs(60)).unwrap();
        let hook = world.hook.downgrade();
        drop(world);
        assert!(hook.upgrade().is_none(), "the Tokio runtime, the store and all its objects are kept");
    }
}
