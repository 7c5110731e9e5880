//! One worker per Pod UID: gathers inputs, asks the core, starts what it says, and looks again when told to.
//!
//! A turn never waits for long work: what takes long is an operation in flight whose end is an outcome. The worker
//! holds no truth but the memory of past attempts ([`History`]), of which [`record`] keeps what must outlive it, and the
//! work in flight; everything else is looked up anew in each turn. A turn that panics is reported, and tried again after
//! a pause.

mod calendar;
mod gather;
pub(crate) mod record;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use coracle_client::{ErrorExt as _, ObjectKey, request, revision_of, uid_of};
use coracle_cri::{ContainerId, CriResult};
use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tracing::{debug, error, info, warn};

use crate::context::Context;
use crate::execute;
use crate::pod::history::{History, Outcome};
use crate::pod::inputs::{Eviction, Lifecycle, Operation, OperationKey, PodInputs, Rejection};
use crate::pod::memo::Memo;
use crate::pod::reasons::PodEvent;
use crate::pod::{self, PodAction, PodPlan, Publication};
use crate::probe::Probers;
use crate::spec::PodIdentity;
use crate::volume::memory::Memory;
use crate::volume::set_up;
use calendar::Calendar;
use record::Record;

/// Outcomes that may wait for the worker: more than operations it can have in flight.
const OUTCOMES: usize = 64;
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Turns that follow each other without anything to wait for; more is a core that does not settle.
const TURNS_MAX: usize = 32;

/// How the node core reaches a worker.
#[derive(Debug, Clone)]
pub(crate) struct WorkerHandle {
    pub(crate) key: ObjectKey,
    wake: Arc<Notify>,
    eviction: Arc<OnceLock<Eviction>>,
}

impl WorkerHandle {
    /// The Pod is to end for the sake of others. It stays so.
    pub(crate) fn evict(&self, why: Eviction) {
        // Who comes second finds it decided.
        let _ = self.eviction.set(why);
        self.wake.notify_one();
    }

    /// Whether the Pod has been told to end.
    pub(crate) fn is_evicted(&self) -> bool {
        self.eviction.get().is_some()
    }

    /// Something about the Pod may have changed.
    pub(crate) fn look_again(&self) {
        self.wake.notify_one();
    }
}

pub(crate) struct Worker {
    context: Arc<Context>,
    calendar: Calendar,
    identity: PodIdentity,
    key: ObjectKey,
    /// The newest version of the object that is known: heard from the informer, or the answer to a write.
    pod: Arc<Pod>,
    object_gone: bool,
    rejection: Option<Rejection>,
    eviction: Arc<OnceLock<Eviction>>,
    lifecycle: Lifecycle,
    history: History,
    previous_status: PodStatus,
    operations: BTreeMap<OperationKey, InFlight>,
    write: WriteState,
    termination_messages: BTreeMap<ContainerId, String>,
    volumes: Memory,
    /// The state of the sources of each volume, as this turn sees it.
    volume_versions: BTreeMap<String, String>,
    /// The generation of the Pod whose references are followed.
    followed: Option<i64>,
    /// What is on disk: the generation of the Pod, and what is remembered.
    recorded: (Option<i64>, Memo),
    probers: Probers,
    wake: Arc<Notify>,
    outcomes: mpsc::Receiver<Done>,
    done: mpsc::Sender<Done>,
    turns: u64,
}

struct InFlight {
    operation: Operation,
    turn: u64,
    task: AbortHandle,
}

/// The end of an operation.
struct Done {
    what: Finished,
    turn: u64,
}

/// Boxed, because a channel keeps room for many.
enum Finished {
    Operation(Box<(OperationKey, Outcome)>),
    Write(Box<Result<Option<Pod>, kube::Error>>),
}

#[derive(Default)]
struct WriteState {
    in_flight: Option<AbortHandle>,
    /// Since when a status is held back.
    held_since: Option<Timestamp>,
    /// A write found the object gone: this version of it was the last, unless a newer one is heard of.
    gone_after: Option<u64>,
    /// After a failed write: when to try again.
    retry: Option<(Timestamp, Duration)>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.context.objects.forget(&self.identity.uid);
        for operation in self.operations.values() {
            operation.task.abort();
        }
        if let Some(write) = &self.write.in_flight {
            write.abort();
        }
    }
}

impl Worker {
    /// A worker for `pod`. `record` is what an earlier node agent has left of it.
    pub(crate) fn new(
        context: Arc<Context>,
        pod: Arc<Pod>,
        rejection: Option<Rejection>,
        record: Option<Record>,
    ) -> Self {
        let identity = PodIdentity::of(&pod);
        let recorded =
            record.map_or_else(Default::default, |record| (record.pod.metadata.generation, record.memo));
        let memo = &recorded.1;
        let eviction = pod::eviction_under_way(&pod).or_else(|| memo.eviction());
        let known = memo.restarting_all.clone().or_else(|| pod.status.clone());
        let (done, outcomes) = mpsc::channel(OUTCOMES);
        Worker {
            key: ObjectKey::namespaced(identity.namespace.clone(), identity.name.clone()),
            identity,
            eviction: Arc::new(eviction.map(OnceLock::from).unwrap_or_default()),
            previous_status: known.unwrap_or_default(),
            probers: Probers::new(context.clone(), pod.clone()),
            calendar: Calendar::new(context.clock.now(), context.clock.elapsed()),
            pod,
            context,
            object_gone: false,
            rejection,
            lifecycle: memo.lifecycle.clone(),
            history: memo.history(),
            recorded,
            operations: BTreeMap::new(),
            write: WriteState::default(),
            termination_messages: BTreeMap::new(),
            volumes: Memory::default(),
            volume_versions: BTreeMap::new(),
            followed: None,
            wake: Arc::new(Notify::new()),
            outcomes,
            done,
            turns: 0,
        }
    }

    pub(crate) fn handle(&self) -> WorkerHandle {
        WorkerHandle { key: self.key.clone(), wake: self.wake.clone(), eviction: self.eviction.clone() }
    }

    /// Works until nothing of the Pod is left.
    pub(crate) async fn run(mut self: Box<Self>) {
        if let Some(rejection) = self.rejection.as_ref().filter(|_| self.recorded.1.rejection.is_none()) {
            let event = coracle_client::EventType::Warning;
            let involved = coracle_client::reference(&*self.pod);
            self.context.recorder.event(&involved, event, &rejection.reason, rejection.message.clone());
        }
        let mut pause = PAUSE_MIN;
        while self.lifecycle != Lifecycle::Gone {
            // What a look needs is large, and most of the time nobody looks.
            let wake_at = match AssertUnwindSafe(Box::pin(self.look())).catch_unwind().await {
                Ok(Ok(wake_at)) => {
                    pause = PAUSE_MIN;
                    wake_at
                }
                Ok(Err(why)) => {
                    warn!(pod = %self.key, error = %why, "cannot look at the pod's containers");
                    let text = format!("error determining status: {why}");
                    self.context.report(&self.pod, &PodEvent::pod_warning("FailedSync", text));
                    self.pause_until(&mut pause)
                }
                Err(_) => {
                    error!(pod = %self.key, "a turn of the pod's worker panicked");
                    let text = "error determining status: the node agent met an internal error";
                    self.context.report(&self.pod, &PodEvent::pod_warning("FailedSync", text));
                    self.pause_until(&mut pause)
                }
            };
            if self.lifecycle == Lifecycle::Gone {
                break;
            }
            self.wait(wake_at).await;
        }
        info!(pod = %self.key, uid = %self.identity.uid, "pod is gone");
    }

    fn pause_until(&self, pause: &mut Duration) -> Option<Timestamp> {
        let at = self.context.clock.now() + *pause;
        *pause = (*pause * 2).min(PAUSE_MAX);
        Some(at)
    }

    async fn wait(&mut self, wake_at: Option<Timestamp>) {
        let timer = async {
            match wake_at {
                Some(at) => self.context.clock.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let done = coracle_clock::select! {
            done = self.outcomes.recv() => done,
            () = self.wake.notified() => None,
            () = self.probers.changed() => None,
            () = timer => None,
        };
        self.follow_calendar();
        if let Some(done) = done {
            self.finish(done);
        }
        // Whatever else has ended meanwhile belongs to the same look.
        while let Ok(done) = self.outcomes.try_recv() {
            self.finish(done);
        }
    }

    /// Turns until the core has nothing more to say. Returns when to look again.
    async fn look(&mut self) -> CriResult<Option<Timestamp>> {
        for _ in 0..TURNS_MAX {
            self.follow_calendar();
            self.refresh_pod();
            let mut inputs = self.gather().await?;
            let plan = pod::plan(&inputs);
            self.note(&plan);
            let mut again = self.lifecycle != plan.lifecycle && plan.lifecycle != Lifecycle::Gone;
            self.lifecycle = plan.lifecycle.clone();
            self.history.retain(|id| inputs.containers.iter().any(|c| c.container.id == *id));
            plan.actions.iter().for_each(|action| self.history.intend(action));
            inputs.lifecycle = self.lifecycle.clone();
            inputs.history = self.history.clone();
            self.record(&inputs).await;
            for action in plan.actions {
                again |= self.act(action, &inputs);
            }
            inputs.history = self.history.clone();
            inputs.operations = self.operations_in_flight();
            let wake_at = self.publish(&inputs, plan.wake_at);
            if !again {
                return Ok(wake_at);
            }
        }
        error!(pod = %self.key, "the plan of the pod does not settle");
        Ok(Some(self.context.clock.now() + PAUSE_MAX))
    }

    /// Brings the record on disk up to date before anything is done. Without it the Pod is still worked on.
    async fn record(&mut self, inputs: &PodInputs) {
        let ended = matches!(self.lifecycle, Lifecycle::Terminated { .. } | Lifecycle::Gone);
        if ended && self.object_gone {
            // What is on disk is about to go.
            return;
        }
        let memo = Memo::of(inputs, &self.recorded.1);
        let generation = self.pod.metadata.generation;
        let known = self.recorded.1 == memo && (ended || self.recorded.0 == generation);
        if known {
            return;
        }
        let record = Record { pod: Pod::clone(&self.pod), memo };
        let text = serde_json::to_vec(&record).expect("a Pod has string keys only");
        let directory = self.context.config.pods_dir.join(&self.identity.uid);
        let written = self.context.clock.blocking(move || record::write(&directory, &text)).await;
        match written {
            Ok(()) => self.recorded = (generation, record.memo),
            Err(why) => warn!(pod = %self.key, error = %why, "cannot record what is done about the pod"),
        }
    }

    fn note(&self, plan: &PodPlan) {
        debug!(pod = %self.key, actions = plan.actions.len(), waiting_on = ?plan.waiting_on, "planned");
        if self.lifecycle != plan.lifecycle {
            debug!(pod = %self.key, from = ?self.lifecycle, to = ?plan.lifecycle, "lifecycle");
        }
    }

    fn refresh_pod(&mut self) {
        let heard = self.context.pods.get_key(&self.key).filter(|pod| uid_of(&**pod) == self.identity.uid);
        self.object_gone = heard.is_none();
        if let Some(heard) = heard
            && revision_of(&*heard) >= revision_of(&*self.pod)
        {
            // Also of the same revision: the answer to a write is a copy that nobody else has.
            self.pod = heard;
        }
    }

    // === Actions ===

    /// Carries out one action. True if it changed what the core looks at, so that it must be asked again.
    fn act(&mut self, action: PodAction, inputs: &PodInputs) -> bool {
        debug!(pod = %self.key, ?action, "action");
        let (context, pod) = (self.context.clone(), self.pod.clone());
        match action {
            PodAction::CreateSandbox { attempt } => {
                let work = execute::create_sandbox(context, pod, attempt);
                self.spawn(OperationKey::CreateSandbox, None, work);
            }
            PodAction::StopSandbox(id) => {
                let work = execute::stop_sandbox(context, pod, id.clone());
                self.spawn(OperationKey::StopSandbox(id), None, work);
            }
            PodAction::RemoveSandbox(id) => {
                let work = execute::remove_sandbox(context, id.clone());
                self.spawn(OperationKey::RemoveSandbox(id), None, work);
            }
            PodAction::PullImage { container, image, volume } => {
                let work = execute::pull_image(context, pod, container.clone(), image, volume);
                self.spawn(OperationKey::PullImage(container), None, work);
            }
            PodAction::StartContainer(start) => {
                let pod_ips = execute::pod_ips(inputs);
                let key = OperationKey::StartContainer(start.container.clone());
                self.spawn(key, None, execute::start_container(context, pod, pod_ips, *start));
            }
            PodAction::FinishStart { container, id } => {
                let key = OperationKey::StartContainer(container.clone());
                let pod_ips = execute::pod_ips(inputs);
                self.spawn(key, None, execute::finish_start(context, pod, pod_ips, container, id));
            }
            PodAction::AnnounceStop { event, .. } => context.report(&pod, &event),
            PodAction::PreStop { id, deadline, grace } => {
                let work = execute::pre_stop(context, pod, id.clone(), grace);
                self.spawn(OperationKey::PreStop(id), Some(deadline), work);
            }
            PodAction::StopContainer { id, deadline, grace, pre_stop, .. } => {
                let work = execute::stop_container(context, pod, id.clone(), grace, pre_stop);
                self.spawn(OperationKey::StopContainer(id), Some(deadline), work);
            }
            PodAction::RemoveContainer(id) => {
                let work = execute::remove_container(context, self.identity.clone(), id.clone());
                self.spawn(OperationKey::RemoveContainer(id), None, work);
            }
            PodAction::Cancel(key) => {
                if let Some(in_flight) = self.operations.remove(&key) {
                    in_flight.task.abort();
                }
            }
            PodAction::FailStart { container, image, reason, message, events } => {
                for event in &events {
                    context.report(&pod, event);
                }
                let reason = reason.to_owned();
                let outcome = Outcome::StartFailed { container, image, reason, message };
                self.history.apply(&outcome, inputs.now);
                return true;
            }
            PodAction::BeginBackOff { container, instance, event } => {
                if let Some(event) = &event {
                    context.report(&pod, event);
                }
                let history = self.history.container(&container);
                match instance {
                    Some(instance) => history.announced = Some(instance),
                    None => history.failure.iter_mut().for_each(|failure| failure.backing_off = true),
                }
                return true;
            }
            PodAction::Report(event) => context.report(&pod, &event),
            PodAction::MountVolumes => {
                let due = self.volumes.begin(&self.volume_versions, inputs.now);
                let work = set_up::set_up(context, pod, self.volumes.shared.clone(), due);
                self.spawn(OperationKey::MountVolumes, None, work);
            }
            PodAction::UnmountVolumes => {
                let work = set_up::take_down(context, self.identity.clone(), self.volumes.shared.clone());
                self.spawn(OperationKey::UnmountVolumes, None, work);
            }
            PodAction::DeletePod => {
                self.spawn(
                    OperationKey::DeletePod,
                    None,
                    execute::delete_pod(context, self.key.clone(), self.identity.uid.clone()),
                );
            }
            PodAction::CleanUp => {
                self.spawn(OperationKey::CleanUp, None, execute::clean_up(context, self.identity.clone()));
            }
        }
        false
    }

    fn spawn(
        &mut self,
        key: OperationKey,
        deadline: Option<Timestamp>,
        work: impl Future<Output = Outcome> + Send + 'static,
    ) {
        self.turns += 1;
        let turn = self.turns;
        let (done, name) = (self.done.clone(), key.clone());
        let task = tokio::spawn(async move {
            let outcome = match AssertUnwindSafe(work).catch_unwind().await {
                Ok(outcome) => outcome,
                Err(_) => after_panic(&name),
            };
            // The worker has gone if nobody receives.
            let _ = done.send(Done { what: Finished::Operation(Box::new((name, outcome))), turn }).await;
        });
        let operation = Operation { since: self.context.clock.now(), deadline };
        let replaced = self.operations.insert(key, InFlight { operation, turn, task: task.abort_handle() });
        if let Some(replaced) = replaced {
            replaced.task.abort();
        }
    }

    fn finish(&mut self, done: Done) {
        let now = self.context.clock.now();
        match done.what {
            Finished::Operation(ended) => {
                let (key, outcome) = *ended;
                // One that was cancelled or replaced says nothing any more.
                if self.operations.get(&key).is_some_and(|in_flight| in_flight.turn == done.turn) {
                    debug!(pod = %self.key, ?outcome, "outcome");
                    self.operations.remove(&key);
                    match (&key, &outcome) {
                        (_, Outcome::VolumesSetUp(round)) => self.volumes.note(round, now),
                        (OperationKey::UnmountVolumes, Outcome::TeardownDone) => {
                            self.volumes.present = Some(false);
                        }
                        _ => {}
                    }
                    self.history.apply(&outcome, now);
                }
            }
            Finished::Write(result) => {
                self.write.in_flight = None;
                match *result {
                    Ok(written) => {
                        self.write.retry = None;
                        if written.is_none() {
                            self.write.gone_after = Some(revision_of(&*self.pod));
                        }
                        if let Some(pod) = written.filter(|pod| revision_of(pod) > revision_of(&*self.pod)) {
                            self.pod = Arc::new(pod);
                        }
                    }
                    Err(why) => {
                        let last =
                            self.write.retry.map_or(PAUSE_MIN, |(_, pause)| (pause * 2).min(PAUSE_MAX));
                        warn!(pod = %self.key, error = %why, "cannot write the pod's status");
                        self.write.retry = Some((now + last, last));
                    }
                }
            }
        }
    }

    // === Status ===

    /// Writes the status if it is time to. Returns when to look again.
    fn publish(&mut self, inputs: &PodInputs, wake_at: Option<Timestamp>) -> Option<Timestamp> {
        let earliest = |at: Timestamp| Some(wake_at.map_or(at, |other| other.min(at)));
        let status = pod::status(inputs);
        if status != self.previous_status {
            self.context.statuses().insert(self.identity.uid.clone(), status.clone());
        }
        self.previous_status = status.clone();
        let publication = pod::publication(inputs, &status, self.write.held_since);
        self.write.held_since = match publication {
            Publication::HoldUntil(_) => self.write.held_since.or(Some(inputs.now)),
            Publication::Nothing | Publication::Now => None,
        };
        match publication {
            Publication::Nothing => return wake_at,
            Publication::HoldUntil(at) => return earliest(at),
            Publication::Now if self.write.in_flight.is_some() => return wake_at,
            Publication::Now => {}
        }
        if self.write.gone_after == Some(revision_of(&*self.pod)) {
            return wake_at;
        }
        if let Some((at, _)) = self.write.retry.filter(|(at, _)| inputs.now < *at) {
            return earliest(at);
        }
        let (client, key, base) = (self.context.client.clone(), self.key.clone(), self.pod.clone());
        let done = self.done.clone();
        let task = tokio::spawn(async move {
            let result = write_status(&client, &key, base, &status).await;
            let _ = done.send(Done { what: Finished::Write(Box::new(result)), turn: 0 }).await;
        });
        self.write.in_flight = Some(task.abort_handle());
        wake_at
    }
}

/// What is taken note of when an operation panicked: that it failed.
fn after_panic(key: &OperationKey) -> Outcome {
    const MESSAGE: &str = "the node agent met an internal error";
    error!(operation = ?key, "an operation panicked");
    match key {
        OperationKey::CreateSandbox => Outcome::SandboxFailed,
        OperationKey::PullImage(container) | OperationKey::StartContainer(container) => {
            Outcome::StartFailed {
                container: container.clone(),
                image: String::new(),
                reason: pod::reasons::CREATE_CONTAINER_ERROR.to_owned(),
                message: MESSAGE.to_owned(),
            }
        }
        OperationKey::DeletePod => Outcome::DeleteFailed,
        OperationKey::MountVolumes => Outcome::VolumesSetUp(Box::default()),
        OperationKey::PreStop(id) => Outcome::PreStopped(id.clone()),
        OperationKey::StopSandbox(_)
        | OperationKey::RemoveSandbox(_)
        | OperationKey::StopContainer(_)
        | OperationKey::RemoveContainer(_)
        | OperationKey::UnmountVolumes
        | OperationKey::CleanUp => Outcome::TeardownFailed,
    }
}

/// Writes `status` over `base`, or over what has become of it. `None` if the object is gone.
async fn write_status(
    client: &kube::Client,
    key: &ObjectKey,
    base: Arc<Pod>,
    status: &PodStatus,
) -> Result<Option<Pod>, kube::Error> {
    let uid = uid_of(&*base).to_owned();
    let mut base = base;
    loop {
        let from = base.status.clone().unwrap_or_default();
        let to = pod::rebase(status, &from);
        let revision = base.metadata.resource_version.clone().unwrap_or_default();
        let Some(patch) = pod::patch(&uid, &revision, &from, &to) else {
            return Ok(Some(Arc::unwrap_or_clone(base)));
        };
        let patch = kube::api::Patch::Merge(patch);
        match request::patch_status::<Pod>(client, key, &patch).await {
            Ok(pod) => return Ok(Some(pod)),
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error),
        }
        let fresh = match request::get::<Pod>(client, key).await {
            Ok(fresh) => fresh,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        if uid_of(&fresh) != uid {
            return Ok(None);
        }
        if fresh.metadata.resource_version == base.metadata.resource_version {
            // A conflict with what is there: the server knows why, and it is not a race.
            return Err(kube::Error::Service("the status conflicts with the object it was made from".into()));
        }
        base = Arc::new(fresh);
    }
}
