//! Plays a scenario: time passes from step to step, every change is seen and judged, and the trace is told as it comes.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use coracle_api::catalogue;
use http::Method;
use serde_json::{Value, json};

use super::expect::{Judge, Verdict};
use super::model::{Action, Manifest, Scenario, Step, Target};
use super::problem::{Problem, Problems};
use super::report::{Report, verdict_line};
use super::seen::{Id, Seen, about, container_statuses};
use crate::{Fault, Settings, SimError, Told, World};

/// Hears the trace, line by line.
pub type Tell = Box<dyn FnMut(&str) + Send>;

/// Why a scenario cannot be played on.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// The API server refuses what a step asks for, or a step asks for what cannot be.
    #[error("{0}")]
    BadStep(Problems),
    /// The simulation itself does not work.
    #[error("the simulation cannot go on")]
    Broken(#[source] SimError),
}

impl Stopped {
    /// The machine that the simulation runs on cannot do something.
    #[must_use]
    pub fn host(error: std::io::Error) -> Self {
        Stopped::Broken(SimError::Host(error))
    }
}

/// A scenario being played.
pub struct Play {
    world: World,
    table: Arc<Mutex<Table>>,
    title: String,
    steps: VecDeque<Step>,
    end: Duration,
    violation: Option<String>,
}

/// What the play has seen; shared with the observer of the world, which tells it of every change.
struct Table {
    seen: Seen,
    /// `None` once the play is over.
    judge: Option<Judge>,
    /// What has to be decoded: of a long run most changes are those of Leases.
    kinds: BTreeSet<&'static str>,
    verdicts: Vec<Verdict>,
    tell: Tell,
}

impl Table {
    fn told(&mut self, told: &Told<'_>) {
        match told {
            Told::Line { at, line } => {
                self.time(*at);
                (self.tell)(line);
            }
            Told::Change { at, key, value, text, line } => {
                self.time(*at);
                if let Some(line) = line {
                    (self.tell)(line);
                }
                self.changed(*at, key, *value, *text);
            }
        }
    }

    fn changed(&mut self, at: Duration, key: &str, value: Option<&Bytes>, text: Option<&str>) {
        let Some(id) = id_of(key) else { return };
        if !self.kinds.contains(id.kind) {
            // What an Event says belongs to the story of what it is about, also where nobody counts Events.
            let about = value.filter(|_| id.kind == "event").zip(text).and_then(|(bytes, text)| {
                Some((about(bytes).filter(|about| self.kinds.contains(about.kind))?, text))
            });
            if let Some((about, text)) = about {
                self.seen.remember(at, &about, text);
            }
            return;
        }
        let object = value.and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok()).map(Arc::new);
        self.seen.change(at, &id, object, text);
        self.judge(|judge, seen| judge.changed(id.kind, seen));
    }

    fn time(&mut self, at: Duration) {
        self.judge(|judge, seen| judge.time(at, seen));
    }

    fn judge(&mut self, ask: impl FnOnce(&mut Judge, &Seen) -> Vec<Verdict>) {
        let Some(judge) = &mut self.judge else { return };
        let verdicts = ask(judge, &self.seen);
        self.decided(verdicts);
    }

    fn decided(&mut self, verdicts: Vec<Verdict>) {
        for verdict in verdicts {
            (self.tell)(&verdict_line(&verdict));
            self.verdicts.push(verdict);
        }
    }
}

/// The object that a key of the store holds.
fn id_of(key: &str) -> Option<Id> {
    let resource = catalogue::resources().iter().find(|resource| {
        key.strip_prefix(resource.storage_prefix).is_some_and(|rest| rest.starts_with('/'))
    })?;
    let rest = key.strip_prefix(resource.storage_prefix)?.strip_prefix('/')?;
    let (namespace, name) = if resource.namespaced { rest.split_once('/')? } else { ("", rest) };
    Some(Id { kind: resource.singular, namespace: namespace.to_owned(), name: name.to_owned() })
}

impl Play {
    /// Makes the cluster of a scenario. No time has passed, and no step been taken.
    ///
    /// # Errors
    /// If the simulation cannot be set up.
    pub fn new(scenario: Scenario, seed: u64, until: Option<Duration>, tell: Tell) -> Result<Self, Stopped> {
        let Scenario { title, until: planned, start, nodes, images, steps, expectations, .. } = scenario;
        let end = until.unwrap_or(planned);
        let settings = Settings { seed, start, nodes, keep_lines: false, ..Settings::default() };
        // Where the file says `end`, it means the end that it names.
        let judge = Judge::new(expectations, end.max(planned));
        let table = Table {
            seen: Seen::default(),
            kinds: judge.kinds(),
            judge: Some(judge),
            verdicts: Vec::new(),
            tell,
        };
        let table = Arc::new(Mutex::new(table));
        let told = Arc::clone(&table);
        let listen = Box::new(move |what: &Told<'_>| lock(&told).told(what));
        let world = World::listened_to(settings, listen).map_err(Stopped::Broken)?;
        for (name, script) in &images {
            world.script_image(name, script);
        }
        Ok(Play { world, table, title, steps: steps.into(), end, violation: None })
    }

    /// Virtual time since the start.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.world.elapsed()
    }

    /// When it ends.
    #[must_use]
    pub fn end(&self) -> Duration {
        self.end
    }

    /// Whether there is nothing more to play.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.violation.is_some() || self.now() >= self.end
    }

    /// The cluster.
    pub fn world(&mut self) -> &mut World {
        &mut self.world
    }

    /// Lets time pass until `then`, with the steps on the way. A broken invariant ends the play.
    ///
    /// # Errors
    /// If a step cannot be taken.
    pub fn advance(&mut self, then: Duration) -> Result<(), Stopped> {
        while self.violation.is_none()
            && let Some(step) = self.steps.pop_front_if(|step| step.at <= then)
        {
            self.pass(step.at)?;
            if self.violation.is_none() {
                self.take(&step)?;
            }
        }
        if self.violation.is_none() {
            self.pass(then)?;
        }
        Ok(())
    }

    fn pass(&mut self, then: Duration) -> Result<(), Stopped> {
        let passed = self.world.run_until(then);
        self.note_violation(passed)?;
        let now = self.world.elapsed();
        lock(&self.table).time(now);
        Ok(())
    }

    fn note_violation(&mut self, outcome: Result<(), SimError>) -> Result<(), Stopped> {
        match outcome {
            Ok(()) => Ok(()),
            Err(SimError::Violation(violation)) => {
                self.violation = Some(violation.to_string());
                Ok(())
            }
            Err(error) => Err(Stopped::Broken(error)),
        }
    }

    /// The play is over.
    #[must_use]
    pub fn finish(self) -> Report {
        let now = self.world.elapsed();
        let mut table = lock(&self.table);
        if let Some(judge) = table.judge.take() {
            let verdicts = judge.finish(now, &table.seen);
            table.decided(verdicts);
        }
        Report {
            title: self.title.clone(),
            seed: self.world.seed(),
            lasted: now,
            verdicts: std::mem::take(&mut table.verdicts),
            violation: self.violation.clone(),
            hash: self.world.hash(),
            events: self.world.trace(crate::Trace::events),
        }
    }

    fn take(&mut self, step: &Step) -> Result<(), Stopped> {
        if let Some(name) = &step.name {
            lock(&self.table).judge(|judge, seen| judge.step(name, seen));
        }
        match &step.action {
            Action::Apply(manifests) => manifests.iter().try_for_each(|manifest| self.apply(step, manifest)),
            Action::Delete { target, grace } => {
                self.world.say(&format!("step: delete {}", target.id()));
                let options = grace.map(|grace| json!({"gracePeriodSeconds": grace.as_secs()}));
                self.change(step, Method::DELETE, target, "application/json", options.as_ref())
            }
            Action::Patch { target, media_type, body } => {
                self.world.say(&format!("step: patch {}", target.id()));
                self.change(step, Method::PATCH, target, media_type, Some(&body.to_json()))
            }
            Action::Scale { target, replicas } => {
                self.world.say(&format!("step: scale {} to {replicas}", target.id()));
                let body = json!({"spec": {"replicas": replicas}});
                self.change(step, Method::PATCH, target, "application/merge-patch+json", Some(&body))
            }
            Action::RolloutRestart(target) => {
                self.world.say(&format!("step: rollout restart {}", target.id()));
                let at = self.world.now().to_string();
                let annotations = json!({"kubectl.kubernetes.io/restartedAt": at});
                let body = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
                self.change(step, Method::PATCH, target, "application/merge-patch+json", Some(&body))
            }
            Action::Crash { pod, container, code } => self.crash(step, pod, container, *code),
            Action::Fault(fault) => self.fault(step, fault),
        }
    }

    fn apply(&mut self, step: &Step, manifest: &Manifest) -> Result<(), Stopped> {
        self.world.say(&format!("step: apply {}", manifest.target.id()));
        let object = manifest.object();
        let strict = "fieldValidation=Strict";
        let all = format!("{}?{strict}", collection_path(&manifest.target));
        let (mut code, mut answer) = self.ask(step, Method::POST, &all, "application/json", Some(&object))?;
        if code == 409 && answer["reason"] == "AlreadyExists" {
            let one = format!("{}?{strict}", object_path(&manifest.target));
            let kind = "application/merge-patch+json";
            (code, answer) = self.ask(step, Method::PATCH, &one, kind, Some(&object))?;
        }
        if (200..300).contains(&code) {
            return Ok(());
        }
        Err(Stopped::BadStep(refusals(step, manifest, &answer)))
    }

    /// A request for one object that has to succeed.
    fn change(
        &mut self,
        step: &Step,
        method: Method,
        target: &Target,
        media_type: &str,
        body: Option<&Value>,
    ) -> Result<(), Stopped> {
        let (code, answer) = self.ask(step, method, &object_path(target), media_type, body)?;
        if (200..300).contains(&code) {
            return Ok(());
        }
        Err(bad_step(step, answer["message"].as_str().unwrap_or("the API server refuses it")))
    }

    fn ask(
        &mut self,
        step: &Step,
        method: Method,
        path: &str,
        media_type: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), Stopped> {
        self.world
            .request_with(method, path, body, media_type)
            .map_err(|error| bad_step(step, &error.to_string()))
    }

    fn crash(&mut self, step: &Step, pod: &Id, container: &str, code: i32) -> Result<(), Stopped> {
        self.world.say(&format!("step: container {container} of {pod} crashes with {code}"));
        let (object, now) = (self.world.get("Pod", &pod.namespace, &pod.name), self.world.elapsed());
        let Some(object) = object else {
            return Err(bad_step(step, &format!("there is no {pod} at {}", super::time::show(now))));
        };
        let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
        let mut named = container_statuses(&object).filter(|status| status["name"] == container);
        let id = named.find_map(|status| status["containerID"].as_str()?.rsplit("://").next());
        match (self.world.runtime_of(node), id) {
            (Some(runtime), Some(id)) => {
                let (runtime, id) = (runtime.clone(), coracle_cri::ContainerId(id.to_owned()));
                self.world.block_on(async move { runtime.crash(&id, code) });
                Ok(())
            }
            _ => Err(bad_step(step, &format!("container {container:?} of {pod} does not run"))),
        }
    }

    fn fault(&mut self, step: &Step, fault: &Fault) -> Result<(), Stopped> {
        match self.world.inject(fault) {
            Err(SimError::Unknown(reason)) => Err(bad_step(step, &reason)),
            outcome => self.note_violation(outcome),
        }
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    // A panic while it was held ends the run anyway.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bad_step(step: &Step, reason: &str) -> Stopped {
    let problem = Problem { mark: step.mark, field: step.path.clone(), reason: reason.to_owned() };
    Stopped::BadStep(problem.into())
}

fn collection_path(target: &Target) -> String {
    let root = if target.resource.group.is_empty() { "/api" } else { "/apis" };
    let of =
        if target.resource.namespaced { format!("/namespaces/{}", target.namespace) } else { String::new() };
    format!("{root}/{}{of}/{}", target.resource.api_version(), target.resource.plural)
}

fn object_path(target: &Target) -> String {
    format!("{}/{}", collection_path(target), target.name)
}

/// What the API server says of a manifest, each complaint at the line of its field.
fn refusals(step: &Step, manifest: &Manifest, status: &Value) -> Problems {
    let message = status["message"].as_str().unwrap_or("the API server refuses it");
    let mut complaints: Vec<(String, String)> = Vec::new();
    for cause in status["details"]["causes"].as_array().into_iter().flatten() {
        let text = |name: &str| cause[name].as_str().unwrap_or_default().to_owned();
        complaints.push((text("field"), text("message")));
    }
    // A strict server tells of unknown fields in its message alone.
    if complaints.is_empty() && message.contains("strict decoding error") {
        for part in message.split("unknown field \"").skip(1) {
            let field = part.split('"').next().unwrap_or_default();
            complaints
                .push((field.to_owned(), format!("unknown field in a {}", manifest.target.resource.kind)));
        }
    }
    if complaints.is_empty() {
        complaints.push((String::new(), message.to_owned()));
    }
    let mut problems = Problems::default();
    for (field, reason) in complaints {
        let mark = manifest.node.locate(&field);
        match &manifest.file {
            None => problems.add(mark, field, reason),
            Some(file) => {
                let field = if field.is_empty() { field } else { format!("{field}: ") };
                problems.add(
                    step.mark,
                    step.path.clone(),
                    format!("{file} line {}: {field}{reason}", mark.line),
                );
            }
        }
    }
    problems
}
