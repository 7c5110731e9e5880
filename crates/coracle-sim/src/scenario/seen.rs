//! What has been seen of a cluster so far: its objects at the newest revision, and what has to be remembered of the
//! way there.
//!
//! A pure fold over the changes of the store. Nothing else feeds expectations and the readable trace.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

/// How many lines about an object are kept.
const KEPT: usize = 10;

/// An object's name in full.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    /// Its kind in lower case, as `pod`.
    pub kind: &'static str,
    /// Its namespace; empty for kinds that have none.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" | "default" => write!(f, "{}/{}", self.kind, self.name),
            namespace => write!(f, "{}/{namespace}/{}", self.kind, self.name),
        }
    }
}

/// Something that happened to an object, in the words of the trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When, counted from the start of the run.
    pub at: Duration,
    /// What.
    pub text: String,
}

/// One run of a container, as the statuses of its Pod tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// When it started.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub ended: Option<Timestamp>,
}

/// Objects by their names.
pub type Objects = BTreeMap<Id, Arc<Value>>;

/// What has been seen so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The objects at the newest revision.
    pub objects: Objects,
    /// The last state of objects that are gone.
    pub former: Objects,
    told: BTreeMap<Id, BTreeMap<String, i64>>,
    runs: BTreeMap<(String, String), Vec<Run>>,
    lines: BTreeMap<Id, VecDeque<Line>>,
}

impl Seen {
    /// Takes in one change of one object; `None` says that it is gone. `text` is what the trace says of it.
    pub fn change(&mut self, at: Duration, id: &Id, object: Option<Arc<Value>>, text: Option<&str>) {
        let mut about = Some(id.clone());
        match (id.kind, &object) {
            ("event", Some(event)) => about = self.count_event(id, event),
            ("pod", Some(pod)) => self.note_runs(pod),
            _ => {}
        }
        match object {
            Some(object) => {
                self.former.remove(id);
                self.objects.insert(id.clone(), object);
            }
            None => {
                if let Some(last) = self.objects.remove(id)
                    && id.kind != "event"
                {
                    self.former.insert(id.clone(), last);
                }
            }
        }
        if let (Some(about), Some(text)) = (about, text) {
            self.remember(at, &about, text);
        }
    }

    /// Keeps a line about an object, for whoever asks for the last ones.
    pub fn remember(&mut self, at: Duration, about: &Id, text: &str) {
        let lines = self.lines.entry(about.clone()).or_default();
        lines.push_back(Line { at, text: text.to_owned() });
        if lines.len() > KEPT {
            lines.pop_front();
        }
    }

    /// An Event is counted once for each time that it was told, and past its own end. Answers with what it is about.
    fn count_event(&mut self, id: &Id, event: &Value) -> Option<Id> {
        let count =
            |event: &Value| event["count"].as_i64().or(event["series"]["count"].as_i64()).unwrap_or(1);
        let more = count(event) - self.objects.get(id).map_or(0, |before| count(before));
        let about = involved(event)?;
        if more > 0 {
            let reason = event["reason"].as_str().unwrap_or_default().to_owned();
            *self.told.entry(about.clone()).or_default().entry(reason).or_default() += more;
        }
        Some(about)
    }

    /// How often an Event with one of these reasons was told about an object.
    #[must_use]
    pub fn events(&self, about: &Id, is: impl Fn(&str) -> bool) -> i64 {
        let told = self.told.get(about).into_iter().flatten();
        told.filter(|(reason, _)| is(reason)).map(|(_, count)| count).sum()
    }

    /// The last lines about an object, oldest first.
    pub fn lines(&self, about: &Id) -> impl Iterator<Item = &Line> {
        self.lines.get(about).into_iter().flatten()
    }

    /// The runs of a container of a Pod, by its UID, in their order.
    #[must_use]
    pub fn runs(&self, uid: &str, container: &str) -> &[Run] {
        self.runs.get(&(uid.to_owned(), container.to_owned())).map_or(&[], Vec::as_slice)
    }

    fn note_runs(&mut self, pod: &Value) {
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        for status in container_statuses(pod) {
            let name = status["name"].as_str().unwrap_or_default();
            let count = status["restartCount"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
            let runs = self.runs.entry((uid.to_owned(), name.to_owned())).or_default();
            // While the next run waits, the count is still that of the run that ended.
            let waits = !status["state"]["waiting"].is_null();
            note(runs, count, &status["state"]["running"]);
            note(runs, count, &status["state"]["terminated"]);
            let ended = &status["lastState"]["terminated"];
            if waits {
                note(runs, count, ended);
            } else if let Some(before) = count.checked_sub(1) {
                note(runs, before, ended);
            }
        }
    }
}

/// The statuses of all containers of a Pod, those that come before the others first.
pub(super) fn container_statuses(pod: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"];
    lists.into_iter().filter_map(|list| pod["status"][list].as_array()).flatten()
}

fn note(runs: &mut Vec<Run>, nth: usize, state: &Value) {
    let time = |field: &str| state[field].as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let (started, ended) = (time("startedAt"), time("finishedAt"));
    // A count that jumps has lost the runs between; more than that many at once is not believed.
    if (started.is_none() && ended.is_none()) || nth > runs.len() + 1000 {
        return;
    }
    if runs.len() <= nth {
        runs.resize(nth + 1, Run::default());
    }
    let run = &mut runs[nth];
    *run = Run { started: started.or(run.started), ended: ended.or(run.ended) };
}

/// The object that an Event is about.
fn involved(event: &Value) -> Option<Id> {
    let about = match &event["involvedObject"] {
        Value::Null => &event["regarding"],
        about => about,
    };
    let text = |field: &str| about[field].as_str().map(str::to_owned);
    Reference { kind: text("kind")?, namespace: text("namespace"), name: text("name")? }.id()
}

/// The object that an Event in the store's form is about.
pub(super) fn about(event: &[u8]) -> Option<Id> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct About {
        involved_object: Reference,
    }
    serde_json::from_slice::<About>(event).ok()?.involved_object.id()
}

#[derive(Deserialize)]
struct Reference {
    kind: String,
    namespace: Option<String>,
    name: String,
}

impl Reference {
    fn id(self) -> Option<Id> {
        let kind = super::expect::kind_of(&self.kind)?;
        let namespace = if kind.namespaced { self.namespace? } else { String::new() };
        Some(Id { kind: kind.singular, namespace, name: self.name })
    }
}
