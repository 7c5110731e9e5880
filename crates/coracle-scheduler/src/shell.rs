//! Gathers what the decision needs and carries it out.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_client::{
    Backoff, ErrorExt as _, EventRecorder, EventType, Informer, ObjectKey, Subscription, reference, request,
    supervise,
};
use coracle_clock::{Clock, Rng, select};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Client;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::info::{NodeInfo, PodInfo};
use crate::queue::Help;
use crate::schedule::{Decision, Profile, Ranking};
use crate::{Cluster, Queue, Waiting};

/// Bindings and status writes in flight; more wait for their turn.
const IN_FLIGHT: usize = 256;
const BIND_ATTEMPTS: usize = 5;
/// How often a report is made anew because the Pod has changed meanwhile.
const REPORT_ATTEMPTS: usize = 4;

/// What the scheduler reads.
#[derive(Clone)]
pub struct SchedulerInputs {
    /// All Pods.
    pub pods: Informer<Pod>,
    /// All nodes.
    pub nodes: Informer<Node>,
}

/// Finds nodes for Pods.
///
/// One loop owns the queue and the view of the cluster. It wakes for changes of Pods and nodes, results of bindings,
/// and the next back-off that ends; it decides about one Pod after the other without waiting for anything, and
/// requests run beside it.
#[derive(Clone)]
pub struct Scheduler {
    profile: Profile,
    queue: Arc<Mutex<Queue>>,
}

impl Scheduler {
    /// A scheduler for Pods that ask for `profile`.
    #[must_use]
    pub fn new(profile: Profile) -> Self {
        Scheduler { profile, queue: Arc::default() }
    }

    /// What a Pod waits for; `None` if this scheduler has nothing to do with it.
    #[must_use]
    pub fn waiting_on(&self, uid: &str) -> Option<Waiting> {
        self.queue().waiting(uid)
    }

    /// Schedules until `shutdown` is ready. Requests that are in flight then may or may not happen, which whoever
    /// schedules next will see.
    pub async fn run(
        &self,
        client: Client,
        inputs: SchedulerInputs,
        clock: Clock,
        mut rng: Rng,
        shutdown: impl Future<Output = ()>,
    ) {
        let recorder = EventRecorder::new(&client, &self.profile.scheduler_name, "", clock.clone());
        let restarts = rng.fork("restarts");
        let work = supervise("scheduler", &clock, restarts, || {
            *self.queue() = Queue::new();
            let run = Run {
                client: client.clone(),
                recorder: recorder.clone(),
                clock: clock.clone(),
                profile: self.profile.clone(),
                rng: rng.fork("run"),
                queue: self.queue.clone(),
                cluster: Cluster::new(),
                ranking: Ranking::default(),
                pod_changes: inputs.pods.subscribe(),
                node_changes: inputs.nodes.subscribe(),
                inputs: inputs.clone(),
                tasks: JoinSet::new(),
            };
            run.run()
        });
        select! {
            () = shutdown => {}
            () = work => {}
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }
}

/// A queue left by a panic is replaced before it is used again.
fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Run {
    client: Client,
    recorder: EventRecorder,
    clock: Clock,
    profile: Profile,
    rng: Rng,
    queue: Arc<Mutex<Queue>>,
    cluster: Cluster,
    ranking: Ranking,
    pod_changes: Subscription,
    node_changes: Subscription,
    inputs: SchedulerInputs,
    tasks: JoinSet<Done>,
}

/// A request that has ended.
enum Done {
    Bound { pod: Box<PodInfo>, node: String, decided: jiff::Timestamp, result: Result<(), BindError> },
    Reported,
}

#[derive(Debug, thiserror::Error)]
enum BindError {
    /// The Pod is gone, or is on another node: nothing is left to do.
    #[error("the Pod does not need a node any more")]
    Settled,
    #[error("running Bind plugin \"DefaultBinder\": {0}")]
    Refused(String),
}

impl Run {
    async fn run(mut self) {
        self.inputs.nodes.synced().await;
        self.inputs.pods.synced().await;
        loop {
            self.take_in_nodes();
            self.take_in_pods();
            self.schedule_ready();
            let now = self.clock.elapsed();
            let wake = if self.tasks.len() < IN_FLIGHT { lock(&self.queue).next_wake() } else { None };
            let timer = async {
                match wake {
                    Some(at) => self.clock.sleep(at.saturating_sub(now)).await,
                    None => std::future::pending().await,
                }
            };
            select! {
                done = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    if let Some(Ok(done)) = done {
                        self.finish(done);
                    }
                }
                changed = self.node_changes.filled() => if !changed { return },
                changed = self.pod_changes.filled() => if !changed { return },
                () = timer => {}
            }
        }
    }

    fn take_in_nodes(&mut self) {
        let mut helps = false;
        for key in self.node_changes.pending() {
            let node = self.inputs.nodes.get_key(&key);
            helps |= self.cluster.set_node(&key.name, node.map(|node| NodeInfo::of(&node)));
        }
        if helps {
            lock(&self.queue).help(Help::Node, self.clock.elapsed());
        }
    }

    fn take_in_pods(&mut self) {
        let now = self.clock.elapsed();
        let mut freed = false;
        for key in self.pod_changes.pending() {
            let pod = self.inputs.pods.get_key(&key).map(|pod| PodInfo::of(&pod));
            freed |= self.cluster.set_pod(&key, pod.as_ref());
            if let Some(pod) = pod.as_ref().filter(|pod| pod.deleting) {
                self.tell_of_deletion(pod);
            }
            let needs = pod.filter(|pod| pod.needs(&self.profile.scheduler_name));
            lock(&self.queue).set(&key, needs, now);
        }
        if freed {
            lock(&self.queue).help(Help::Room, now);
        }
    }

    /// Tells the user once that a Pod that has waited for a node gets none any more.
    fn tell_of_deletion(&self, pod: &PodInfo) {
        if lock(&self.queue).waiting(&pod.uid).is_none() {
            return;
        }
        if let Some(object) = self.current(&pod.key, &pod.uid) {
            let message = format!("skip schedule deleting pod: {}", pod.key);
            self.recorder.event(&reference(object.as_ref()), EventType::Warning, "FailedScheduling", message);
        }
    }

    fn schedule_ready(&mut self) {
        while self.tasks.len() < IN_FLIGHT {
            let now = self.clock.elapsed();
            let Some(pod) = lock(&self.queue).pop(now) else { return };
            if self.cluster.is_assumed(&pod.uid) {
                continue;
            }
            match self.ranking.schedule(&pod, &self.cluster, &self.profile, self.rng.next_u64()) {
                Decision::Bind { node, score, choice } => {
                    tracing::debug!(pod = %pod.key, node, score, ?choice, "scheduled");
                    self.cluster.assume(&pod, &node);
                    self.start_binding(pod, node);
                }
                Decision::Unschedulable(reason) => {
                    tracing::debug!(pod = %pod.key, message = reason.message, "unschedulable");
                    self.report(&pod.key, &pod.uid, "Unschedulable", &reason.message);
                    lock(&self.queue).unschedulable(&pod.uid, reason, now);
                }
            }
        }
    }

    fn start_binding(&mut self, pod: PodInfo, node: String) {
        let (client, clock) = (self.client.clone(), self.clock.clone());
        let rng = self.rng.fork("bind");
        let decided = clock.now();
        self.tasks.spawn(async move {
            let bound = AssertUnwindSafe(bind(&client, &clock, rng, &pod, &node)).catch_unwind().await;
            let result = bound.unwrap_or_else(|_| Err(BindError::Refused("panic".to_owned())));
            Done::Bound { pod: Box::new(pod), node, decided, result }
        });
    }

    fn finish(&mut self, done: Done) {
        let Done::Bound { pod, node, decided, result } = done else { return };
        let now = self.clock.elapsed();
        match result {
            Ok(()) => {
                if let Some(object) = self.current(&pod.key, &pod.uid) {
                    let message = format!("Successfully assigned {} to {node}", pod.key);
                    let object = reference(object.as_ref());
                    // The node agent is told of the Pod by the binding itself and reports at once: what the
                    // scheduler did comes before that.
                    self.recorder.event_at(decided, &object, EventType::Normal, "Scheduled", message);
                }
            }
            Err(error) => {
                if self.cluster.forget(&pod.uid) {
                    lock(&self.queue).help(Help::Room, now);
                }
                lock(&self.queue).failed(&pod.uid, now);
                if let BindError::Refused(_) = error {
                    self.report(&pod.key, &pod.uid, "SchedulerError", &error.to_string());
                }
            }
        }
    }

    /// The Pod as the informer has it, if it is still the same.
    fn current(&self, key: &ObjectKey, uid: &str) -> Option<Arc<Pod>> {
        self.inputs.pods.get_key(key).filter(|pod| pod.metadata.uid.as_deref() == Some(uid))
    }

    /// Tells the user that a Pod could not be scheduled: an Event, and the PodScheduled condition if that is news.
    fn report(&mut self, key: &ObjectKey, uid: &str, reason: &str, message: &str) {
        let Some(pod) = self.current(key, uid) else { return };
        self.recorder.event(
            &reference(pod.as_ref()),
            EventType::Warning,
            "FailedScheduling",
            shortened(message),
        );
        let (client, key, now) = (self.client.clone(), key.clone(), self.clock.now());
        let (reason, message) = (reason.to_owned(), message.to_owned());
        self.tasks.spawn(async move {
            show_condition(&client, &key, pod, |pod| condition_patch(pod, &reason, &message, now)).await;
            Done::Reported
        });
    }
}

/// Writes what `patch` makes of a Pod that has no node. What it says is about the Pod that it was made from: who has
/// been bound meanwhile is not called unschedulable.
pub(crate) async fn show_condition(
    client: &Client,
    key: &ObjectKey,
    mut pod: Arc<Pod>,
    patch: impl Fn(&Pod) -> Option<Value>,
) {
    for _ in 0..REPORT_ATTEMPTS {
        let Some(patch) = patch(&pod).map(request::PatchBody::Strategic) else { return };
        let error = match request::patch_status::<Pod>(client, key, &patch).await {
            Ok(_) => return,
            Err(error) => error,
        };
        if !error.is_conflict() {
            if !error.is_not_found() {
                // The next attempt to schedule the Pod reports again.
                tracing::warn!(pod = %key, error = &error as &dyn std::error::Error, "cannot report");
            }
            return;
        }
        let Ok(fresh) = request::get::<Pod>(client, key).await else { return };
        let is_bound = fresh.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        if is_bound || fresh.metadata.uid != pod.metadata.uid {
            return;
        }
        pod = Arc::new(fresh);
    }
}

/// Binds, and finds out how it ended if that was not said.
async fn bind(client: &Client, clock: &Clock, rng: Rng, pod: &PodInfo, node: &str) -> Result<(), BindError> {
    let binding = Binding {
        metadata: ObjectMeta {
            namespace: Some(pod.key.namespace.clone()),
            name: Some(pod.key.name.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), rng);
    let mut refusal = String::new();
    for _ in 0..BIND_ATTEMPTS {
        let error =
            match request::create_subresource::<Pod, Value>(client, &pod.key, "binding", &binding).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
        if error.is_not_found() {
            return Err(BindError::Settled);
        }
        if error.is_conflict() {
            return already_bound(client, pod, node).await;
        }
        refusal = words_of(&error);
        if !error.is_transient() {
            break;
        }
        clock.sleep(backoff.delay()).await;
    }
    Err(BindError::Refused(refusal))
}

/// What an error says to a user.
fn words_of(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// A conflict may be our own earlier attempt whose answer was lost.
async fn already_bound(client: &Client, pod: &PodInfo, node: &str) -> Result<(), BindError> {
    match request::get::<Pod>(client, &pod.key).await {
        Ok(current) => {
            let current = PodInfo::of(&current);
            if current.uid == pod.uid && current.node_name.as_deref() == Some(node) {
                Ok(())
            } else if current.uid == pod.uid && current.node_name.is_none() {
                Err(BindError::Refused("the Pod has changed".to_owned()))
            } else {
                Err(BindError::Settled)
            }
        }
        Err(error) if error.is_not_found() => Err(BindError::Settled),
        Err(error) => Err(BindError::Refused(words_of(&error))),
    }
}

/// A strategic merge patch of the PodScheduled condition; `None` if it says all this already.
pub(crate) fn condition_patch(pod: &Pod, reason: &str, message: &str, now: jiff::Timestamp) -> Option<Value> {
    let old = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .and_then(|conditions| conditions.iter().find(|condition| condition.type_ == "PodScheduled"));
    let same_status = old.filter(|old| old.status == "False");
    let condition = PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: same_status
            .and_then(|old| old.last_transition_time.clone())
            .or(Some(Time(now))),
        last_probe_time: None,
        observed_generation: pod.metadata.generation,
    };
    if old == Some(&condition) {
        return None;
    }
    let metadata = json!({"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version});
    Some(json!({"metadata": metadata, "status": {"conditions": [condition]}}))
}

/// Events take messages of at most 1024 bytes.
fn shortened(message: &str) -> String {
    const MAX: usize = 1024;
    const MARK: &str = " ...";
    if message.len() <= MAX {
        return message.to_owned();
    }
    format!("{}{MARK}", &message[..message.floor_char_boundary(MAX - MARK.len())])
}
