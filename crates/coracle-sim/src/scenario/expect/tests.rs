//! Expectations over hand-made histories.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::seen::{Id, Seen};
use super::super::time;
use super::grammar::Context;
use super::*;

fn context() -> Context {
    Context { steps: ["power-loss".to_owned()].into() }
}

/// `WHEN: WHAT`, as it stands in a file.
fn parse(text: &str) -> Result<Expectation, String> {
    let (when, what) = text.split_once(": ").unwrap();
    expectation(when, what, Mark { line: 7, column: 1 }, &context())
}

fn pod(name: &str, node: &str, more: Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": {"app": "web"},
            "ownerReferences": [{"controller": true, "kind": "ReplicaSet", "name": "web", "uid": "rs"}]},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    });
    merge(&mut pod, more);
    pod
}

fn merge(target: &mut Value, patch: Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (target, patch) => *target = patch,
    }
}

fn not_ready() -> Value {
    json!({"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "NodeLost"}]}})
}

/// A history: each entry is a time, a name, and the new state of that Pod, or that it is gone. A name that begins
/// with `!` is a step.
struct History {
    seen: Seen,
    judge: Judge,
    verdicts: Vec<Verdict>,
}

impl History {
    fn of(expectation: &str) -> Self {
        let parsed = parse(expectation).unwrap_or_else(|error| panic!("{expectation}: {error}"));
        let judge = Judge::new(vec![parsed], time::parse("10m").unwrap());
        History { seen: Seen::default(), judge, verdicts: Vec::new() }
    }

    fn time(&mut self, at: &str) -> Duration {
        let at = time::parse(at).unwrap();
        self.verdicts.extend(self.judge.time(at, &self.seen));
        at
    }

    fn change(mut self, at: &str, kind: &'static str, object: Value) -> Self {
        let at = self.time(at);
        let id = id(kind, object["metadata"]["name"].as_str().unwrap());
        let text = format!("{kind} changed");
        self.seen.change(at, &id, Some(Arc::new(object)), Some(&text));
        self.verdicts.extend(self.judge.changed(kind, &self.seen));
        self
    }

    fn pod(self, at: &str, name: &str, node: &str, more: Value) -> Self {
        self.change(at, "pod", pod(name, node, more))
    }

    fn gone(mut self, at: &str, name: &str) -> Self {
        let at = self.time(at);
        self.seen.change(at, &id("pod", name), None, Some("gone"));
        self.verdicts.extend(self.judge.changed("pod", &self.seen));
        self
    }

    fn step(mut self, at: &str, name: &str) -> Self {
        self.time(at);
        self.verdicts.extend(self.judge.step(name, &self.seen));
        self
    }

    fn end(mut self, at: &str) -> Verdict {
        let end = time::parse(at).unwrap();
        self.verdicts.extend(self.judge.finish(end, &self.seen));
        assert_eq!(self.verdicts.len(), 1, "one expectation has one verdict: {:?}", self.verdicts);
        self.verdicts.remove(0)
    }
}

fn id(kind: &'static str, name: &str) -> Id {
    let namespace = if kind == "node" { "" } else { "default" };
    Id { kind, namespace: namespace.to_owned(), name: name.to_owned() }
}

/// A Pod that comes at 10 s, stops being ready at 1 m, and is gone at 5 m; power is lost at 50 s.
fn a_pod_is_lost(expectation: &str) -> Verdict {
    History::of(expectation)
        .pod("10s", "web-0", "node-1", json!({}))
        .step("50s", "power-loss")
        .pod("1m", "web-0", "node-1", not_ready())
        .gone("5m", "web-0")
        .end("10m")
}

fn because(verdict: &Verdict) -> String {
    match &verdict.outcome {
        Outcome::Held => "held".to_owned(),
        Outcome::Failed { because, .. } => because.clone(),
        Outcome::Unreached => "unreached".to_owned(),
    }
}

#[test]
fn each_word_for_time_means_what_it_says() {
    for (expectation, outcome) in [
        ("at 9s: pod web-0 exists", "it was not so at 9s"),
        ("at 10s: pod web-0 exists", "held"),
        ("at 59.9s: pod web-0 ready", "held"),
        ("at 1m: pod web-0 ready", "it was not so at 1m"),
        ("at 6m: pod web-0 gone", "held"),
        ("at end: pod web-0 exists", "it was not so at 10m"),
        ("at 10s after power-loss: pod web-0 condition Ready=False", "held"),
        ("at 9s after power-loss: pod web-0 condition Ready=False", "it was not so at 59s"),
        ("within 10s: pod web-0 exists", "held"),
        ("within 9s: pod web-0 exists", "it was not so until 9s"),
        ("within 10s of power-loss: pod web-0 not ready", "held"),
        ("within 9s of power-loss: pod web-0 not ready", "it was not so until 59s"),
        ("within 4m of pod web-0 not ready: pod web-0 gone", "held"),
        ("within 3m of pod web-0 not ready: pod web-0 gone", "it was not so until 4m"),
        ("within 1m of pod db-0 ready: pod web-0 gone", "the moment from which it counts never came"),
        ("between 9s and 11s after power-loss: pod web-0 not ready", "held"),
        ("between 11s and 20s after power-loss: pod web-0 not ready", "it was so at 1m, after 10s already"),
        ("between 1s and 9s after power-loss: pod web-0 not ready", "it was not so until 59s"),
        ("always from 10s until 59s: pod web-0 ready", "held"),
        ("always from 10s until 1m: pod web-0 ready", "it was not so at 1m"),
        ("always from 5s: pod web-0 exists", "it was not so at 5s"),
        ("always from pod web-0 exists until power-loss: pod web-0 ready", "held"),
        ("never: pod web-0 phase Failed", "held"),
        ("never until 59s: pod web-0 not ready", "held"),
        ("never from 2m until 3m: pod web-0 not ready", "it was so at 2m"),
        ("never from 2m: pod web-0 ready", "held"),
    ] {
        assert_eq!(because(&a_pod_is_lost(expectation)), outcome, "{expectation}");
    }
}

#[test]
fn claims_are_joined_as_in_logic() {
    for (what, holds) in [
        ("pod web-0 phase Running and on node-1", true),
        ("pod web-0 phase Running and not on node-1", false),
        ("pod web-0 phase Failed|Running", true),
        ("pod web-0 phase Failed or pod web-0 on node-1", true),
        ("not pod web-0 phase Failed and pod web-0 exists", true),
        ("not (pod web-0 phase Failed or pod web-0 on node-1)", false),
        ("pod/web-0 exists", true),
        ("pod db-0 not ready", false),
        ("not pod db-0 ready", true),
        ("pod db-0 gone", true),
        ("pod web-0 not gone", true),
        ("no pod app=db", true),
        ("every pod app=db ready", false),
        ("exactly 2 pods app=web", true),
        ("exactly 1 pods app=web on node-1", true),
        ("every pod app=web on node-1", false),
        ("every pod app=web on node-1 ready", true),
        ("some pod web-* on node-2", true),
        ("at least 3 pods", false),
        ("at most 2 pods in any namespace", true),
        ("no pod in kube-system", true),
        ("every pod app!=db ready and not terminating", true),
        ("pod web-0 field .spec.nodeName = node-1", true),
        ("pod web-0 field .metadata.labels[\"app\"] = web", true),
        ("pod web-0 field .status.conditions[type=Ready].status = True", true),
        ("pod web-0 field .status.conditions[0].status != True", false),
        ("pod web-0 field .status.reason absent", true),
        ("pod web-0 field .status.reason != x", false),
        ("pod web-0 event BackOff >= 1", false),
    ] {
        let verdict = History::of(&format!("at 1m: {what}"))
            .pod("10s", "web-0", "node-1", json!({}))
            .pod("10s", "web-1", "node-2", json!({}))
            .end("10m");
        assert_eq!(verdict.outcome == Outcome::Held, holds, "{what}: {verdict:?}");
    }
}

#[test]
fn containers_are_looked_at_one_by_one() {
    let status = json!({"status": {"containerStatuses": [{
        "name": "app", "restartCount": 3, "ready": false,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"reason": "Error", "exitCode": 2}},
    }]}});
    for (test, holds) in [
        ("container app waiting", true),
        ("container app waiting CrashLoopBackOff", true),
        ("container app waiting ErrImagePull|ImagePullBackOff", false),
        ("container app waiting and container app restarts = 3", true),
        ("container app last terminated Error exit 2", true),
        ("container app last terminated exit 1", false),
        ("container app terminated", false),
        ("container app running", false),
        ("container app not running", false),
        ("container db running", false),
        ("restarts > 2", true),
    ] {
        let parsed = parse(&format!("at 1m: pod web-0 {test}"));
        if test.contains("not running") {
            assert!(parsed.is_err(), "`not` stands before the whole test");
            continue;
        }
        let verdict = History::of(&format!("at 1m: pod web-0 {test}"))
            .pod("10s", "web-0", "node-1", status.clone())
            .end("10m");
        assert_eq!(verdict.outcome == Outcome::Held, holds, "{test}: {verdict:?}");
    }
}

/// A container that runs for a second and is started again after each delay, as statuses show it.
fn a_crash_loop(expectation: &str, delays: &[u64]) -> Verdict {
    let mut history = History::of(expectation);
    let stamp = |second: u64| format!("2030-01-01T00:{:02}:{:02}Z", second / 60, second % 60);
    let (mut now, mut last) = (0, json!({}));
    for (count, delay) in delays.iter().enumerate() {
        let status = |state: &Value, last: &Value, count: usize| {
            json!({"status": {"containerStatuses":
                [{"name": "app", "restartCount": count, "state": state, "lastState": last}]}})
        };
        let running = json!({"running": {"startedAt": stamp(now)}});
        history = history.pod(&format!("{now}s"), "crash", "node-1", status(&running, &last, count));
        let ended = json!({"terminated": {"startedAt": stamp(now), "finishedAt": stamp(now + 1), "reason": "Error", "exitCode": 1}});
        now += 1;
        history = history.pod(&format!("{now}s"), "crash", "node-1", status(&ended, &last, count));
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        history = history.pod(&format!("{now}s"), "crash", "node-1", status(&waiting, &ended, count));
        (now, last) = (now + delay, ended);
    }
    history.end("10m")
}

#[test]
fn delays_between_restarts_are_counted_from_end_to_start() {
    let expectation = "at 9m: pod crash container app restart delays 0s 10s 20s 40s";
    assert_eq!(because(&a_crash_loop(expectation, &[0, 10, 21, 40, 80])), "held");
    let verdict = a_crash_loop(expectation, &[0, 10, 22, 40, 80]);
    let Outcome::Failed { saw, last, .. } = &verdict.outcome else { panic!("{verdict:?}") };
    assert!(
        saw.iter().any(|line| line == "pod/crash: container app restart delays 0s 10s 22s 40s"),
        "{saw:?}"
    );
    assert_eq!(last.len(), 10);
    let exact = "at 9m: pod crash container app restart delays 0s 10s give or take 0s";
    assert_eq!(because(&a_crash_loop(exact, &[0, 10, 20])), "held");
    assert_ne!(because(&a_crash_loop(expectation, &[0, 10, 20])), "held", "one delay is missing");
}

#[test]
fn a_pod_is_replaced_when_another_is_ready_elsewhere() {
    let lost = json!({"metadata": {"deletionTimestamp": "2030-01-01T00:05:00Z"}});
    let history = || {
        History::of("within 5m of power-loss: every pod app=web on node-1 replaced on another node")
            .pod("10s", "web-0", "node-1", json!({}))
            .pod("10s", "web-1", "node-2", json!({}))
            .step("50s", "power-loss")
            .pod("2m", "web-0", "node-1", lost.clone())
    };
    assert_eq!(because(&history().pod("2m", "web-2", "node-3", json!({})).end("10m")), "held");
    assert_eq!(
        because(&history().pod("2m", "web-2", "node-1", json!({})).end("10m")),
        "it was not so until 5m50s"
    );
    assert_eq!(
        because(&history().pod("2m", "web-2", "node-3", not_ready()).end("10m")),
        "it was not so until 5m50s"
    );
    let verdict = history().end("10m");
    let Outcome::Failed { saw, .. } = &verdict.outcome else { panic!("{verdict:?}") };
    assert!(saw.contains(&"there at the beginning of that time: web-0".to_owned()), "{saw:?}");
}

#[test]
fn events_are_counted_past_their_own_end() {
    let event = |name: &str, count: u32| {
        json!({"metadata": {"name": name}, "type": "Warning", "reason": "BackOff", "message": "Back-off", "count": count,
            "involvedObject": {"kind": "Pod", "namespace": "default", "name": "web-0"}})
    };
    let history = || {
        History::of("at 1m: pod web-0 event BackOff = 4")
            .pod("1s", "web-0", "node-1", json!({}))
            .change("2s", "event", event("a", 1))
            .change("3s", "event", event("a", 3))
    };
    assert_eq!(because(&history().change("4s", "event", event("b", 1)).end("10m")), "held");
    let verdict = history().end("10m");
    let Outcome::Failed { saw, last, .. } = &verdict.outcome else { panic!("{verdict:?}") };
    assert!(saw.iter().any(|line| line == "pod/web-0: event BackOff told 3 times"), "{saw:?}");
    assert_eq!(last.last().unwrap().text, "event changed");
}

#[test]
fn a_run_that_is_cut_short_says_what_was_not_reached() {
    let cut = |expectation: &str| {
        because(&History::of(expectation).pod("1s", "web-0", "node-1", json!({})).end("2m"))
    };
    assert_eq!(cut("at 3m: pod web-0 exists"), "unreached");
    assert_eq!(cut("at end: pod web-0 exists"), "unreached");
    assert_eq!(cut("within 3m: pod web-1 exists"), "unreached");
    assert_eq!(cut("never: pod web-1 exists"), "unreached");
    assert_eq!(cut("never: pod web-0 exists"), "it was so at 1s");
    assert_eq!(cut("within 1m of power-loss: pod web-0 exists"), "unreached");
    assert_eq!(cut("at 2m: pod web-0 exists"), "held");
}

#[test]
fn what_cannot_be_understood_is_named() {
    for (text, word) in [
        ("at noon: pod web-0 ready", "\"noon\" is neither a time"),
        ("at 90: pod web-0 ready", "has no unit"),
        ("at -5s: pod web-0 ready", "not negative"),
        ("at power-los: pod web-0 ready", "did you mean \"power-loss\"?"),
        ("soon: pod web-0 ready", "\"soon\" says no time"),
        ("within: pod web-0 ready", "is missing at the end"),
        ("between 5m and 1m: pod web-0 ready", "the later time has to come second"),
        ("at 5m: pud web-0 ready", "did you mean \"pod\"?"),
        ("at 5m: pod web-0", "a test is missing"),
        ("at 5m: pod web-0 redy", "did you mean \"ready\"?"),
        ("at 5m: pod web-* ready", "may be several"),
        ("at 5m: pod web-0 condition Ready", "write Ready=True"),
        ("at 5m: pod web-0 condition Ready=Maybe", "True, False or Unknown"),
        ("at 5m: pod web-0 ready now", "\"now\" is not understood here"),
        ("at 5m: pod web-0 taint x", "a test of a node, not of a pod"),
        ("at 5m: node node-1 in default ready", "a node is in no namespace"),
        ("at 5m: pod web-0 restarts 3", "a comparison"),
        ("at 5m: pod web-0 restarts = -1", "\"-1\" is no number"),
        ("at 5m: pod web-0 field spec..x = 1", "a name is missing"),
        ("at 5m: pod web-0 field .spec.x", "a comparison"),
        ("at 5m: pod web-0 container app sleeping", "nothing that a container does"),
        ("at 5m: (pod web-0 ready", "\")\" is missing"),
        ("at 5m: every pod a=b=c ready", "a=b=c"),
        ("at 5m: pod web-0 field .a = \"x", "a quotation mark is open"),
    ] {
        let error = parse(text).expect_err(text).to_lowercase();
        assert!(error.contains(&word.to_lowercase()), "{text}: {error}");
    }
}
