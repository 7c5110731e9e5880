//! Whether something is so, and how it is instead: pure functions over what has been seen.

use std::sync::Arc;
use std::time::Duration;

use coracle_api::quantity::Quantity;
use serde_json::Value;

use super::super::describe;
use super::super::seen::{Id, Objects, Run, Seen, container_statuses};
use super::super::time;
use super::{Amount, Claim, ContainerTest, FieldPath, FieldTest, Filter, PathStep, Predicate, Test};

/// Whether it is so. `then` is how things were at the beginning of the time that the expectation names.
pub(super) fn holds(predicate: &Predicate, seen: &Seen, then: &Objects) -> bool {
    match predicate {
        Predicate::All(parts) => parts.iter().all(|part| holds(part, seen, then)),
        Predicate::Any(parts) => parts.iter().any(|part| holds(part, seen, then)),
        Predicate::Not(part) => !holds(part, seen, then),
        Predicate::Claim(claim) => claim_holds(claim, seen, then),
    }
}

fn claim_holds(claim: &Claim, seen: &Seen, then: &Objects) -> bool {
    // `gone` and `replaced` are about objects of the past.
    if claim.tests.iter().any(|(_, test)| *test == Test::Replaced) {
        return replaced(&claim.filter, seen, then) && rest_holds(claim, seen);
    }
    if claim.tests.iter().all(|(_, test)| *test == Test::Gone) {
        let there = selected(&claim.filter, &seen.objects).next().is_some();
        let absent = |amount: Amount| matches!(amount, Amount::The | Amount::Every) != there;
        return claim.tests.iter().all(|(as_said, _)| absent(claim.amount) == *as_said);
    }
    rest_holds(claim, seen)
}

fn rest_holds(claim: &Claim, seen: &Seen) -> bool {
    let mut all = 0;
    let mut passing = 0;
    for (id, object) in selected(&claim.filter, &seen.objects) {
        let passes = claim
            .tests
            .iter()
            .filter(|(_, test)| *test != Test::Replaced)
            .all(|(as_said, test)| passes(test, id, object, seen) == *as_said);
        all += 1;
        passing += usize::from(passes);
    }
    let only_replaced = claim.tests.iter().all(|(_, test)| *test == Test::Replaced);
    match claim.amount {
        _ if only_replaced => true,
        Amount::The | Amount::Every => all > 0 && passing == all,
        Amount::Some => passing > 0,
        Amount::No => passing == 0,
        Amount::Exactly(n) => passing == n,
        Amount::AtLeast(n) => passing >= n,
        Amount::AtMost(n) => passing <= n,
    }
}

/// The objects that a filter means.
pub(super) fn selected<'a>(
    filter: &'a Filter,
    objects: &'a Objects,
) -> impl Iterator<Item = (&'a Id, &'a Arc<Value>)> {
    // Objects are in the order of kind, namespace and name: what cannot be meant is not looked at.
    let namespace = filter.namespace.clone().unwrap_or_default();
    let exact = filter.name.as_ref().filter(|name| filter.namespace.is_some() && !name.contains('*'));
    let from = Id { kind: filter.kind, namespace, name: exact.cloned().unwrap_or_default() };
    let among = objects.range(from..).take_while(move |(id, _)| {
        id.kind == filter.kind
            && filter.namespace.as_ref().is_none_or(|namespace| *namespace == id.namespace)
            && exact.is_none_or(|name| *name == id.name)
    });
    among.filter(move |(id, object)| {
        filter.name.as_ref().is_none_or(|pattern| name_fits(pattern, &id.name))
            && filter.labels.matches(object)
            && filter.node.as_ref().is_none_or(|node| object["spec"]["nodeName"] == node.as_str())
    })
}

/// Whether a name fits a pattern in which `*` stands for anything.
fn name_fits(pattern: &str, name: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(head) else { return false };
    (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).any(|at| name_fits(tail, &rest[at..]))
}

fn passes(test: &Test, id: &Id, object: &Value, seen: &Seen) -> bool {
    let status = &object["status"];
    match test {
        Test::Exists => true,
        Test::Gone | Test::Replaced => false,
        Test::Terminating => !object["metadata"]["deletionTimestamp"].is_null(),
        Test::Ready => is_ready(object),
        Test::Complete => is_complete(id.kind, object),
        Test::Phase(phase) => phase.has(text(&status["phase"])),
        Test::Reason(reason) => reason.has(text(&status["reason"])),
        Test::Condition { kind, status: wanted, reason } => {
            condition(object, kind).is_some_and(|condition| {
                condition["status"] == wanted.as_str()
                    && reason.as_ref().is_none_or(|reason| reason.has(text(&condition["reason"])))
            })
        }
        Test::On(node) => object["spec"]["nodeName"] == node.as_str(),
        Test::Taint { key, effect } => list(&object["spec"]["taints"]).any(|taint| {
            taint["key"] == key.as_str()
                && effect.as_ref().is_none_or(|effect| taint["effect"] == effect.as_str())
        }),
        Test::Event { reason, count } => count.holds(seen.events(id, |told| reason.has(told))),
        Test::Restarts(count) => {
            let restarts = container_statuses(object).filter_map(|one| one["restartCount"].as_i64());
            count.holds(restarts.sum())
        }
        Test::Container { name, test } => container_passes(test, name, object, seen),
        Test::Field { path, test } => field_passes(test, find(path, object)),
    }
}

fn is_ready(object: &Value) -> bool {
    condition(object, "Ready").is_some_and(|condition| condition["status"] == "True")
}

/// What `kubectl rollout status` and `kubectl wait --for=condition=complete` wait for.
fn is_complete(kind: &str, object: &Value) -> bool {
    if kind == "job" {
        return condition(object, "Complete").is_some_and(|condition| condition["status"] == "True");
    }
    let count = |field: &str| object["status"][field].as_i64().unwrap_or(0);
    let wanted = object["spec"]["replicas"].as_i64().unwrap_or(1);
    count("observedGeneration") >= object["metadata"]["generation"].as_i64().unwrap_or(0)
        && ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|field| count(field) == wanted)
}

fn container_passes(test: &ContainerTest, name: &str, pod: &Value, seen: &Seen) -> bool {
    let Some(status) = container_statuses(pod).find(|one| one["name"] == name) else {
        return false;
    };
    let state = &status["state"];
    match test {
        ContainerTest::Running => !state["running"].is_null(),
        ContainerTest::Ready => status["ready"] == true,
        ContainerTest::Waiting(reason) => {
            !state["waiting"].is_null()
                && reason.as_ref().is_none_or(|reason| reason.has(text(&state["waiting"]["reason"])))
        }
        ContainerTest::Terminated { last, reason, code } => {
            let ended = if *last { &status["lastState"]["terminated"] } else { &state["terminated"] };
            !ended.is_null()
                && reason.as_ref().is_none_or(|reason| reason.has(text(&ended["reason"])))
                && code.is_none_or(|code| ended["exitCode"] == code)
        }
        ContainerTest::Restarts(count) => count.holds(status["restartCount"].as_i64().unwrap_or(0)),
        ContainerTest::Delays { delays: wanted, give_or_take } => {
            let found = delays(seen.runs(text(&pod["metadata"]["uid"]), name));
            found.len() >= wanted.len()
                && found.iter().zip(wanted).all(|(found, wanted)| found.abs_diff(*wanted) <= *give_or_take)
        }
    }
}

/// From the end of each run to the start of the next.
fn delays(runs: &[Run]) -> Vec<Duration> {
    let between = |pair: &[Run]| {
        let waited = pair[0].ended?.duration_until(pair[1].started?);
        Some(Duration::try_from(waited).unwrap_or(Duration::ZERO))
    };
    runs.windows(2).map_while(between).collect()
}

fn field_passes(test: &FieldTest, found: Option<&Value>) -> bool {
    let found = found.filter(|value| !value.is_null());
    match test {
        FieldTest::Exists => found.is_some(),
        FieldTest::Absent => found.is_none(),
        FieldTest::Compare(operator, wanted) => {
            let Some(found) = found else { return false };
            let shown = plain(found);
            let order = match (shown.parse::<Quantity>(), wanted.parse::<Quantity>()) {
                (Ok(found), Ok(wanted)) => found.cmp(&wanted),
                _ => shown.cmp(wanted),
            };
            operator.holds(order)
        }
    }
}

/// A value as one would write it in an expectation.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn find<'a>(path: &FieldPath, object: &'a Value) -> Option<&'a Value> {
    path.steps.iter().try_fold(object, |value, step| match step {
        PathStep::Name(name) => value.get(name),
        PathStep::Index(index) => value.get(index),
        PathStep::Where { field, value: wanted } => {
            list(value).find(|item| item.get(field).is_some_and(|found| plain(found) == *wanted))
        }
    })
}

/// The Pods that were there at the beginning are gone, going or failed, and as many of the same name, or of the same
/// controller, that were not there then are ready on other nodes.
fn replaced(filter: &Filter, seen: &Seen, then: &Objects) -> bool {
    let uid = |pod: &Value| text(&pod["metadata"]["uid"]).to_owned();
    let before: Vec<_> = selected(filter, then).collect();
    let away = |id: &Id, pod: &Value| {
        seen.objects.get(id).is_none_or(|now| {
            uid(now) != uid(pod)
                || !now["metadata"]["deletionTimestamp"].is_null()
                || matches!(text(&now["status"]["phase"]), "Failed" | "Succeeded")
        })
    };
    if before.is_empty() || !before.iter().all(|(id, pod)| away(id, pod)) {
        return false;
    }
    let old: Vec<String> = then.iter().filter(|(id, _)| id.kind == "pod").map(|(_, pod)| uid(pod)).collect();
    let nodes: Vec<&Value> = before.iter().map(|(_, pod)| &pod["spec"]["nodeName"]).collect();
    let stands_in = |id: &Id, pod: &Value| {
        id.kind == "pod"
            && !old.contains(&uid(pod))
            && !nodes.contains(&&pod["spec"]["nodeName"])
            && is_ready(pod)
            && before.iter().any(|(was, before)| id == *was || same_controller(before, pod))
    };
    seen.objects.iter().filter(|(id, pod)| stands_in(id, pod)).count() >= before.len()
}

fn same_controller(a: &Value, b: &Value) -> bool {
    let controller = |pod: &Value| {
        list(&pod["metadata"]["ownerReferences"]).find(|o| o["controller"] == true).map(|o| o["uid"].clone())
    };
    controller(a).is_some_and(|owner| controller(b).as_ref() == Some(&owner))
}

/// How things are, for somebody who expected them otherwise.
pub(super) fn explain(predicate: &Predicate, seen: &Seen, then: &Objects) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for claim in predicate.claims() {
        for line in explain_claim(claim, seen, then) {
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    lines
}

/// How many objects are described one by one.
const DESCRIBED: usize = 5;

fn explain_claim(claim: &Claim, seen: &Seen, then: &Objects) -> Vec<String> {
    let found: Vec<_> = selected(&claim.filter, &seen.objects).collect();
    let mut lines = Vec::new();
    if claim.amount == Amount::The && found.is_empty() {
        let was_there = selected(&claim.filter, &seen.former).next().is_some();
        let name = claim.filter.name.as_deref().unwrap_or_default();
        lines.push(format!(
            "{}/{name}: {}",
            claim.filter.kind,
            if was_there { "gone" } else { "was never there" }
        ));
    }
    if claim.amount != Amount::The {
        let passing = found.iter().filter(|(id, object)| {
            claim.tests.iter().all(|(as_said, test)| passes(test, id, object, seen) == *as_said)
        });
        lines.push(format!("{} of {} {}s", passing.count(), found.len(), claim.filter.kind));
    }
    if claim.tests.iter().any(|(_, test)| *test == Test::Replaced) {
        let before = selected(&claim.filter, then).map(|(id, _)| id.name.as_str()).collect::<Vec<_>>();
        lines.push(match before.as_slice() {
            [] => "no such pod was there at the beginning of that time".to_owned(),
            names => format!("there at the beginning of that time: {}", names.join(", ")),
        });
    }
    for (id, object) in found.iter().take(DESCRIBED) {
        lines.push(format!("{id}: {}", describe::standing(id.kind, object)));
        let more = claim.tests.iter().filter_map(|(_, test)| found_instead(test, id, object, seen));
        lines.extend(more.map(|more| format!("{id}: {more}")));
    }
    lines
}

/// What a test found, where the standing of the object does not tell.
fn found_instead(test: &Test, id: &Id, object: &Value, seen: &Seen) -> Option<String> {
    match test {
        Test::Field { path, .. } => Some(match find(path, object) {
            Some(value) => format!("{} is {}", path.text, plain(value)),
            None => format!("{} is absent", path.text),
        }),
        Test::Event { reason, .. } => Some(format!(
            "event {} told {} times",
            reason.0.join("|"),
            seen.events(id, |told| reason.has(told))
        )),
        Test::Condition { kind, .. } if kind != "Ready" => Some(match condition(object, kind) {
            Some(condition) => {
                format!("{kind}={} {}", text(&condition["status"]), text(&condition["reason"]))
            }
            None => format!("no condition {kind}"),
        }),
        Test::Container { name, test: ContainerTest::Delays { .. } } => {
            let delays = delays(seen.runs(text(&object["metadata"]["uid"]), name));
            let shown: Vec<String> = delays.into_iter().map(time::show).collect();
            Some(format!(
                "container {name} restart delays {}",
                if shown.is_empty() { "none".to_owned() } else { shown.join(" ") }
            ))
        }
        _ => None,
    }
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    list(&object["status"]["conditions"]).find(|condition| condition["type"] == kind)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
