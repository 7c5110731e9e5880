//! The probers of one Pod: they belong to its worker, live as long as it does, and end with it.
//!
//! There is one prober for a container and a kind of probe, by construction: they stand in a map under that name. A
//! question is a task for as long as it takes; between questions there is nothing but a time at which the worker
//! wakes up.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coracle_clock::Rng;
use coracle_cri::{ContainerId, ContainerState, ContainerStatus};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, error};

use super::prober::{Before, Instance, Prober};
use super::{ProbeKind, ProbeResults, Verdict};
use crate::context::Context;
use crate::execute;
use crate::handler::{Answer, Subject};
use crate::pod::containers::{self, Kind};
use crate::pod::inputs::{Lifecycle, PodInputs};
use crate::pod::reasons::PodEvent;

/// A container by its name, and what is asked about it.
type Key = (String, ProbeKind);

/// What all probers of a node share.
pub(crate) struct Probing {
    /// When the node agent began, by the measuring clock.
    begun: Duration,
    rng: Mutex<Rng>,
}

impl Probing {
    pub(crate) fn new(begun: Duration, rng: Rng) -> Self {
        Probing { begun, rng: Mutex::new(rng) }
    }

    /// How long the first question about a container waits that was there before the node agent: a part of the
    /// period by chance, as long as the agent is younger than that.
    fn wait(&self, now: Duration, period: Duration) -> Duration {
        if now.saturating_sub(self.begun) >= period {
            return Duration::ZERO;
        }
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        Duration::from_millis(1 + rng.below(u64::try_from(period.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// The probers of one Pod. Dropping them ends every question.
pub(crate) struct Probers {
    context: Arc<Context>,
    pod: Arc<Pod>,
    pod_ip: String,
    probers: BTreeMap<Key, Prober>,
    questions: JoinSet<(Key, ContainerId, Answer)>,
    asking: BTreeMap<Key, AbortHandle>,
}

impl Probers {
    pub(crate) fn new(context: Arc<Context>, pod: Arc<Pod>) -> Self {
        Probers {
            context,
            pod,
            pod_ip: String::new(),
            probers: BTreeMap::new(),
            questions: JoinSet::new(),
            asking: BTreeMap::new(),
        }
    }

    /// Looks at the Pod, and says what is known of its running containers.
    pub(crate) fn observe(&mut self, inputs: &PodInputs) -> BTreeMap<ContainerId, ProbeResults> {
        self.pod = inputs.pod.clone();
        self.pod_ip = execute::pod_ips(inputs).into_iter().next().unwrap_or_default();
        let mut all = BTreeMap::new();
        for member in containers::all(inputs.spec()) {
            if !matches!(member.kind, Kind::Regular | Kind::Sidecar) {
                continue;
            }
            let container = &*member.container;
            let running = shown(inputs, container);
            let results = self.observe_container(inputs, container, running);
            if let Some(running) = running.filter(|_| results != ProbeResults::default()) {
                all.insert(running.container.id.clone(), results);
            }
        }
        all
    }

    fn observe_container(
        &mut self,
        inputs: &PodInputs,
        container: &Container,
        running: Option<&ContainerStatus>,
    ) -> ProbeResults {
        let now = self.context.clock.elapsed();
        let mut results = ProbeResults::default();
        // Startup comes first: what it says is the gate of the others.
        for kind in ProbeKind::ALL {
            let Some(probe) = kind.of(container) else { continue };
            let key = (container.name.clone(), kind);
            let prober = self.probers.entry(key.clone()).or_insert_with(|| Prober::new(kind, probe));
            match running {
                None => prober.observe_none(),
                Some(running) => {
                    let since = running.started_at.unwrap_or(running.container.created_at);
                    let is_first = prober.instance().is_none();
                    let before = before(inputs, running, kind).filter(|_| is_first).map(|verdict| Before {
                        verdict,
                        wait: self.context.probing.wait(now, prober.period()),
                    });
                    let seen = Instance {
                        id: &running.container.id,
                        age: Duration::try_from(inputs.now.duration_since(since)).unwrap_or_default(),
                        started: results.is_started(container),
                        ending: inputs.is_deleted() || inputs.lifecycle != Lifecycle::Syncing,
                        before,
                    };
                    prober.observe(now, &seen);
                    results.set(kind, prober.verdict());
                }
            }
            if !prober.is_asking()
                && let Some(question) = self.asking.remove(&key)
            {
                question.abort();
            }
        }
        results
    }

    /// Asks what is due and waits for answers until a verdict is another one. May be dropped and called again.
    pub(crate) async fn changed(&mut self) {
        loop {
            self.ask_what_is_due();
            let next = self.probers.values().filter_map(Prober::due).min();
            let clock = self.context.clock.clone();
            let timer = async {
                match next {
                    Some(at) => clock.sleep(at.saturating_sub(clock.elapsed())).await,
                    None => std::future::pending().await,
                }
            };
            let answered = coracle_clock::select! {
                Some(answered) = self.questions.join_next(), if !self.questions.is_empty() => Some(answered),
                () = timer => None,
            };
            // One that was cancelled has nothing to say.
            if let Some(Ok((key, id, answer))) = answered
                && self.answered(&key, &id, answer)
            {
                return;
            }
        }
    }

    fn ask_what_is_due(&mut self) {
        let now = self.context.clock.elapsed();
        let Some(spec) = &self.pod.spec else { return };
        for (key, prober) in &mut self.probers {
            if prober.due().is_none_or(|at| at > now) {
                continue;
            }
            let (Some(id), Some(member)) = (prober.instance().cloned(), containers::find(spec, &key.0))
            else {
                continue;
            };
            prober.asked(now);
            let container = member.container.into_owned();
            let question = question(self.context.clone(), key.clone(), id, container, self.pod_ip.clone());
            self.asking.insert(key.clone(), self.questions.spawn(question));
        }
    }

    fn answered(&mut self, key: &Key, id: &ContainerId, answer: Answer) -> bool {
        let now = self.context.clock.elapsed();
        let Some(prober) = self.probers.get_mut(key) else { return false };
        if !prober.is_asking() || prober.instance() != Some(id) {
            return false;
        }
        self.asking.remove(key);
        let (name, title) = (&key.0, key.1.title());
        debug!(container = name, probe = title, ?answer, "probed");
        let (yes, event) = match answer {
            Answer::Success => (Some(true), None),
            Answer::Warning(text) => {
                (Some(true), Some(("ProbeWarning", format!("{title} probe warning: {text}"))))
            }
            Answer::Failure(text) => {
                (Some(false), Some(("Unhealthy", format!("{title} probe failed: {text}"))))
            }
            Answer::Error { state, text } => {
                let text = format!("{title} probe errored and resulted in {state} state: {text}");
                (None, Some(("Unhealthy", text)))
            }
        };
        if let Some((reason, text)) = event {
            self.context.report(&self.pod, &PodEvent::warning(name, reason, text));
        }
        prober.answered(now, yes)
    }
}

/// Asks. A panic in it is an answer like any other that went wrong.
async fn question(
    context: Arc<Context>,
    key: Key,
    id: ContainerId,
    container: Container,
    pod_ip: String,
) -> (Key, ContainerId, Answer) {
    let asked = async {
        let subject = Subject { container: &container, id: &id, pod_ip: &pod_ip };
        match key.1.of(&container) {
            Some(probe) => context.handlers.probe(probe, subject).await,
            None => Answer::Success,
        }
    };
    let answer = AssertUnwindSafe(asked).catch_unwind().await.unwrap_or_else(|_| {
        error!(container = key.0, "a probe panicked");
        Answer::Error { state: "unknown", text: "the node agent met an internal error".to_owned() }
    });
    (key, id, answer)
}

/// The running instance of a container, as far as users are shown it: not before its postStart hook has ended.
fn shown<'a>(inputs: &'a PodInputs, container: &Container) -> Option<&'a ContainerStatus> {
    let newest = inputs.instances(&container.name).into_iter().next()?;
    let runs = newest.container.state == ContainerState::Running;
    (runs && !inputs.is_starting(&container.name)).then_some(newest)
}

/// What the API server was told of this very instance by an earlier node agent.
fn before(inputs: &PodInputs, running: &ContainerStatus, kind: ProbeKind) -> Option<Verdict> {
    let known = inputs.published(&running.container.name)?;
    let runs = known.state.as_ref().is_some_and(|state| state.running.is_some());
    if !runs || known.container_id.as_deref() != Some(&inputs.container_id(&running.container.id)) {
        return None;
    }
    let yes = match kind {
        ProbeKind::Startup => known.started == Some(true),
        ProbeKind::Liveness => true,
        ProbeKind::Readiness => known.ready,
    };
    Some(if yes { Verdict::Success } else { kind.initial() })
}
