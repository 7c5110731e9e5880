//! What becomes of an occurrence: the rules of client-go's event correlator.
//!
//! 1. Aggregation: after ten different messages of one kind (same source, object, type and reason) within ten minutes,
//!    further ones become one Event with the message prefix `(combined from similar events): `.
//! 2. Counting: what has been reported before raises the count of that Event.
//! 3. Spam filter: per source and object a burst of 25, then one per five minutes; the rest is counted but not
//!    written.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};

use super::EventType;

const SIMILAR_MAX: usize = 10;
const SIMILAR_WINDOW: SignedDuration = SignedDuration::from_secs(600);
const SPAM_BURST: f64 = 25.0;
const SPAM_REFILL_PER_SECOND: f64 = 1.0 / 300.0;
/// How many objects, groups and Events are remembered at most; the longest unused are forgotten.
const REMEMBERED: usize = 4096;

/// Something that happened to an object.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Occurrence {
    pub(super) involved: ObjectReference,
    pub(super) event_type: EventType,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) at: Timestamp,
}

/// Who reports.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) component: String,
    pub(super) host: String,
}

/// What to write.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Write {
    /// A new Event.
    Create(Box<Event>),
    /// A strategic merge patch of an Event that was written before, and that Event in full in case it is gone.
    Count { patch: Value, event: Box<Event> },
}

/// An object, as the keys below have it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Subject {
    api_version: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    uid: Option<String>,
}

type Group = (Subject, EventType, String);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Identity {
    /// One message about one part of an object.
    Single { group: Group, field_path: Option<String>, message: String },
    /// All that is alike.
    Combined(Group),
}

struct Similar {
    messages: BTreeSet<String>,
    last: Timestamp,
}

struct Reported {
    name: String,
    first: Timestamp,
    count: i32,
}

struct Allowance {
    tokens: f64,
    at: Timestamp,
}

/// The memory of one reporter. All keys contain the object, so objects can be spread over several of these.
pub(super) struct Correlator {
    source: Source,
    similar: Remember<Group, Similar>,
    reported: Remember<Identity, Reported>,
    allowances: Remember<Subject, Allowance>,
    last_suffix: i128,
}

impl Correlator {
    pub(super) fn new(source: Source) -> Self {
        Correlator {
            source,
            similar: Remember::new(),
            reported: Remember::new(),
            allowances: Remember::new(),
            last_suffix: 0,
        }
    }

    /// What to write about `occurrence`; `None` if the spam filter holds it back.
    pub(super) fn observe(&mut self, occurrence: Occurrence) -> Option<Write> {
        let subject = Subject::of(&occurrence.involved);
        let at = occurrence.at;
        let (identity, message) = self.aggregate(&subject, &occurrence);
        let name = self.event_name(&occurrence.involved, at);
        let reported = self.reported.get_or_insert_with(identity, || Reported { name, first: at, count: 0 });
        reported.count = reported.count.saturating_add(1);
        let repeated = reported.count > 1;
        let event = event(&self.source, occurrence, message, reported);
        if !self.allow(subject, at) {
            return None;
        }
        let event = Box::new(event);
        Some(if repeated {
            let patch = json!({
                "count": event.count,
                "lastTimestamp": event.last_timestamp,
                "message": event.message,
            });
            Write::Count { patch, event }
        } else {
            Write::Create(event)
        })
    }

    /// A name that has not been used, for an Event whose name was taken.
    pub(super) fn event_name(&mut self, involved: &ObjectReference, at: Timestamp) -> String {
        self.last_suffix = at.as_nanosecond().max(self.last_suffix + 1);
        format!("{}.{:016x}", involved.name.as_deref().unwrap_or_default(), self.last_suffix)
    }

    /// Later counts go to the Event under this new name.
    pub(super) fn renamed(&mut self, from: &str, to: &str) {
        for reported in self.reported.values_mut() {
            if reported.name == from {
                to.clone_into(&mut reported.name);
            }
        }
    }

    fn aggregate(&mut self, subject: &Subject, occurrence: &Occurrence) -> (Identity, String) {
        let group: Group = (subject.clone(), occurrence.event_type, occurrence.reason.clone());
        let similar = self
            .similar
            .get_or_insert_with(group.clone(), || Similar { messages: BTreeSet::new(), last: occurrence.at });
        if occurrence.at.duration_since(similar.last) > SIMILAR_WINDOW {
            similar.messages.clear();
        }
        similar.last = occurrence.at;
        similar.messages.insert(occurrence.message.clone());
        let message = occurrence.message.clone();
        if similar.messages.len() < SIMILAR_MAX {
            let field_path = occurrence.involved.field_path.clone();
            return (Identity::Single { group, field_path, message: message.clone() }, message);
        }
        // Room for the next one, so that the set stays at its limit and the group stays combined.
        similar.messages.pop_first();
        (Identity::Combined(group), format!("(combined from similar events): {message}"))
    }

    fn allow(&mut self, subject: Subject, at: Timestamp) -> bool {
        let allowance = self.allowances.get_or_insert_with(subject, || Allowance { tokens: SPAM_BURST, at });
        let passed = at.duration_since(allowance.at).as_secs_f64().max(0.0);
        allowance.tokens = (allowance.tokens + passed * SPAM_REFILL_PER_SECOND).min(SPAM_BURST);
        allowance.at = at;
        let allowed = allowance.tokens >= 1.0;
        if allowed {
            allowance.tokens -= 1.0;
        }
        allowed
    }
}

impl Subject {
    fn of(involved: &ObjectReference) -> Self {
        Subject {
            api_version: involved.api_version.clone(),
            kind: involved.kind.clone(),
            namespace: involved.namespace.clone(),
            name: involved.name.clone(),
            uid: involved.uid.clone(),
        }
    }
}

fn event(source: &Source, occurrence: Occurrence, message: String, reported: &Reported) -> Event {
    // Events about objects without a namespace live in `default`.
    let namespace = occurrence.involved.namespace.clone().filter(|namespace| !namespace.is_empty());
    let host = Some(source.host.clone()).filter(|host| !host.is_empty());
    Event {
        metadata: ObjectMeta {
            name: Some(reported.name.clone()),
            namespace: Some(namespace.unwrap_or_else(|| "default".to_owned())),
            ..ObjectMeta::default()
        },
        involved_object: occurrence.involved,
        reason: Some(occurrence.reason),
        message: Some(message),
        type_: Some(occurrence.event_type.as_str().to_owned()),
        first_timestamp: Some(Time(reported.first)),
        last_timestamp: Some(Time(occurrence.at)),
        count: Some(reported.count),
        source: Some(EventSource { component: Some(source.component.clone()), host: host.clone() }),
        reporting_component: Some(source.component.clone()),
        reporting_instance: Some(host.unwrap_or_default()),
        ..Event::default()
    }
}

/// A map that forgets what was not used for longest.
struct Remember<K, V> {
    entries: BTreeMap<K, (V, u64)>,
    by_use: BTreeMap<u64, K>,
    uses: u64,
}

impl<K: Ord + Clone, V> Remember<K, V> {
    fn new() -> Self {
        Remember { entries: BTreeMap::new(), by_use: BTreeMap::new(), uses: 0 }
    }

    fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        self.uses += 1;
        if let Some((_, used)) = self.entries.get(&key) {
            self.by_use.remove(used);
        } else if self.entries.len() >= REMEMBERED
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.entries.remove(&oldest);
        }
        self.by_use.insert(self.uses, key.clone());
        let entry = self.entries.entry(key).or_insert_with(|| (make(), 0));
        entry.1 = self.uses;
        &mut entry.0
    }

    fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.entries.values_mut().map(|(value, _)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn correlator() -> Correlator {
        Correlator::new(Source { component: "kubelet".into(), host: "node-1".into() })
    }

    fn occurrence(message: &str, seconds: i64) -> Occurrence {
        Occurrence {
            involved: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                namespace: Some("default".into()),
                name: Some("busybox".into()),
                uid: Some("u1".into()),
                ..ObjectReference::default()
            },
            event_type: EventType::Normal,
            reason: "Pulling".into(),
            message: message.into(),
            at: Timestamp::from_second(1_800_000_000 + seconds).unwrap(),
        }
    }

    #[test]
    fn a_first_occurrence_is_an_event_as_upstream_writes_it() {
        let Some(Write::Create(event)) = correlator().observe(occurrence("m", 0)) else { panic!() };
        assert_eq!(event.metadata.name.as_deref(), Some("busybox.18fae27693b40000"));
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(event.count, Some(1));
        assert_eq!(event.first_timestamp, event.last_timestamp);
        let source = event.source.unwrap();
        assert_eq!((source.component.as_deref(), source.host.as_deref()), (Some("kubelet"), Some("node-1")));
        assert_eq!(event.reporting_component.as_deref(), Some("kubelet"));
        assert_eq!(event.reporting_instance.as_deref(), Some("node-1"));
    }

    #[test]
    fn a_repeat_raises_the_count_of_the_same_event() {
        let mut correlator = correlator();
        let Some(Write::Create(first)) = correlator.observe(occurrence("m", 0)) else { panic!() };
        let Some(Write::Count { patch, event }) = correlator.observe(occurrence("m", 7)) else { panic!() };
        assert_eq!(event.metadata.name, first.metadata.name);
        assert_eq!(event.first_timestamp, first.first_timestamp);
        assert_eq!(patch["count"], 2);
        assert_eq!(patch["lastTimestamp"], "2027-01-15T08:00:07Z");
        let mut other_container = occurrence("m", 8);
        other_container.involved.field_path = Some("spec.containers{b}".into());
        assert!(matches!(correlator.observe(other_container), Some(Write::Create(_))));
    }

    #[test]
    fn two_events_of_one_instant_have_two_names() {
        let mut correlator = correlator();
        let names: Vec<_> = ["a", "b"]
            .iter()
            .map(|message| match correlator.observe(occurrence(message, 0)) {
                Some(Write::Create(event)) => event.metadata.name.unwrap(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_ne!(names[0], names[1]);
    }

    #[test]
    fn the_tenth_different_message_in_ten_minutes_is_combined() {
        let mut correlator = correlator();
        for i in 0..9 {
            assert!(matches!(correlator.observe(occurrence(&format!("m{i}"), i)), Some(Write::Create(_))));
        }
        let Some(Write::Create(event)) = correlator.observe(occurrence("m9", 9)) else { panic!() };
        assert_eq!(event.message.as_deref(), Some("(combined from similar events): m9"));
        let Some(Write::Count { patch, .. }) = correlator.observe(occurrence("m10", 10)) else { panic!() };
        assert_eq!(patch["message"], "(combined from similar events): m10");
        let Some(Write::Create(event)) = correlator.observe(occurrence("m11", 611)) else { panic!() };
        assert_eq!(event.message.as_deref(), Some("m11"), "ten quiet minutes start over");
    }

    #[test]
    fn spam_is_held_back_after_a_burst_and_let_through_every_five_minutes() {
        let mut correlator = correlator();
        let written = (0..40).filter(|_| correlator.observe(occurrence("m", 0)).is_some()).count();
        assert_eq!(written, 25);
        assert!(correlator.observe(occurrence("m", 299)).is_none());
        let Some(Write::Count { patch, .. }) = correlator.observe(occurrence("m", 301)) else { panic!() };
        assert_eq!(patch["count"], 42, "what was held back was counted");
        let mut other = occurrence("m", 301);
        other.involved.uid = Some("u2".into());
        assert!(correlator.observe(other).is_some(), "another object has its own allowance");
    }

    #[test]
    fn memory_is_bounded() {
        let mut remember = Remember::new();
        for i in 0..REMEMBERED + 10 {
            remember.get_or_insert_with(i, || i);
            remember.get_or_insert_with(0, || 0);
        }
        assert_eq!(remember.entries.len(), REMEMBERED);
        assert_eq!(remember.by_use.len(), REMEMBERED);
        assert!(remember.entries.contains_key(&0), "what is in use stays");
    }
}
