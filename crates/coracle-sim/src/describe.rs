//! What a change of an object is, in words.

use serde_json::Value;

use crate::view::{Container, Event, Meta, Node, Pod, State};

/// Differences of one object that are told of one by one; of more, only their number.
const DIFFERENCES: usize = 6;

/// A Pod that was made, changed or removed; `None` if nothing worth telling of changed.
pub(crate) fn pod(old: Option<&Pod>, new: Option<&Pod>) -> Option<String> {
    let nothing = Pod::default();
    let Some(after) = new else {
        let gone = old?;
        return Some(format!("pod {} gone, it was {}", gone.full_name(), gone.status.phase));
    };
    let before = old.unwrap_or(&nothing);
    let mut parts = Vec::new();
    if old.is_none() {
        parts.push("created".to_owned());
    }
    if let (None, Some(node)) = (&before.spec.node_name, &after.spec.node_name) {
        parts.push(format!("bound to {node}"));
    }
    if before.status.phase != after.status.phase {
        parts.push(format!("{}→{}", or_dash(&before.status.phase), after.status.phase));
    }
    if before.status.reason != after.status.reason {
        parts.push(format!("reason {}", or_dash(&after.status.reason)));
    }
    let unknown = Container::default();
    for container in after.status.all() {
        let then = before.status.all().find(|c| c.name == container.name);
        let then = then.unwrap_or(&unknown);
        if then.state != container.state {
            parts.push(format!("{} {}→{}", container.name, state(&then.state), state(&container.state)));
        }
        if then.restart_count != container.restart_count {
            parts.push(format!("restartCount {}→{}", then.restart_count, container.restart_count));
        }
    }
    if before.condition("Ready") != after.condition("Ready") {
        parts.push(format!("Ready={}", after.condition("Ready")));
    }
    parts.extend(deletion(&before.metadata, &after.metadata));
    (!parts.is_empty()).then(|| format!("pod {} {}", after.full_name(), parts.join(", ")))
}

fn state(state: &State) -> String {
    if let Some(waiting) = &state.waiting {
        // Of a back-off, how long it is, and not the rest of the sentence.
        let pause =
            waiting.message.split_whitespace().nth(1).filter(|_| waiting.message.starts_with("back-off "));
        return match pause {
            Some(pause) => format!("{} (back-off {pause})", waiting.reason),
            None => waiting.reason.clone(),
        };
    }
    if let Some(terminated) = &state.terminated {
        return format!("{}({})", terminated.reason, terminated.exit_code);
    }
    if state.running.is_some() { "Running".to_owned() } else { "-".to_owned() }
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

fn deletion(before: &Meta, after: &Meta) -> Option<String> {
    let grace = after.deletion_grace_period_seconds;
    let changed = before.deletion_timestamp.is_none() || before.deletion_grace_period_seconds != grace;
    (after.deletion_timestamp.is_some() && changed)
        .then(|| format!("terminating (grace {}s)", grace.unwrap_or_default()))
}

/// A Node that was made, changed or removed.
pub(crate) fn node(old: Option<&Node>, new: Option<&Node>) -> Option<String> {
    let nothing = Node::default();
    let Some(after) = new else { return Some(format!("node {} gone", old?.metadata.name)) };
    let before = old.unwrap_or(&nothing);
    let mut parts = Vec::new();
    if old.is_none() {
        parts.push("created".to_owned());
    }
    for condition in &after.status.conditions {
        let was = before.condition(&condition.kind);
        // That nothing is wrong is only worth a word when something was.
        let usual = was.is_empty() && condition.status == "False" && condition.kind != "Ready";
        if was != condition.status && !usual {
            parts.push(format!("{}={} ({})", condition.kind, condition.status, condition.reason));
        }
    }
    if before.spec.pod_cidr != after.spec.pod_cidr {
        parts.push(format!("podCIDR {}", after.spec.pod_cidr));
    }
    if before.spec.unschedulable != after.spec.unschedulable {
        parts.push(if after.spec.unschedulable { "cordoned" } else { "uncordoned" }.to_owned());
    }
    let differ = |from: &Node, to: &Node, sign: &str| {
        let new = to.spec.taints.iter().filter(|taint| !from.spec.taints.contains(taint));
        new.map(|taint| format!("{sign}taint {}:{}", taint.key, taint.effect)).collect::<Vec<_>>()
    };
    parts.extend(differ(before, after, "+"));
    parts.extend(differ(after, before, "-"));
    parts.extend(deletion(&before.metadata, &after.metadata));
    (!parts.is_empty()).then(|| format!("node {} {}", after.metadata.name, parts.join(", ")))
}

/// An Event that was written or counted up. That one expires is not told of.
pub(crate) fn event(new: &Event) -> String {
    let object = &new.involved_object;
    let mut of = object.kind.to_lowercase();
    of.push(' ');
    if !object.namespace.is_empty() {
        of += &format!("{}/", object.namespace);
    }
    of += &object.name;
    let part = object.field_path.split(['{', '}']).nth(1).map(|c| format!(" {c}")).unwrap_or_default();
    let times = if new.count > 1 { format!(" (x{})", new.count) } else { String::new() };
    format!("event {of}{part}: {} {}: {}{times}", new.kind, new.reason, new.message)
}

/// Any other object.
pub(crate) fn other(old: Option<&Value>, new: Option<&Value>) -> Option<String> {
    let of = new.or(old)?;
    let text = |at: &str| of.pointer(at).and_then(Value::as_str).unwrap_or_default();
    let mut name = text("/kind").to_lowercase();
    name.push(' ');
    if !text("/metadata/namespace").is_empty() {
        name += &format!("{}/", text("/metadata/namespace"));
    }
    name += text("/metadata/name");
    let (Some(before), Some(after)) = (old, new) else {
        return Some(format!("{name} {}", if new.is_some() { "created" } else { "gone" }));
    };
    let mut found = Vec::new();
    differences("", before, after, &mut found);
    if found.is_empty() {
        return None;
    }
    let more = found.len().saturating_sub(DIFFERENCES);
    found.truncate(DIFFERENCES);
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    Some(format!("{name} {}{more}", found.join(", ")))
}

fn differences(path: &str, old: &Value, new: &Value, found: &mut Vec<String>) {
    const SILENT: [&str; 4] = [
        "metadata.managedFields",
        "metadata.generation",
        "metadata.resourceVersion",
        "status.observedGeneration",
    ];
    if old == new || SILENT.contains(&path) {
        return;
    }
    if let (Value::Object(old), Value::Object(new)) = (old, new) {
        let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let (old, new) = (old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null));
            differences(&path, old, new, found);
        }
        return;
    }
    found.push(format!("{path} {}→{}", short(old), short(new)));
}

fn short(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.len()),
        Value::Object(members) => format!("{{{}}}", members.len()),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_restart_reads_like_one() {
        let pod_with = |state: Value, restarts: i64| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"namespace": "default", "name": "web-0"},
                "status": {"phase": "Running", "containerStatuses": [
                    {"name": "app", "restartCount": restarts, "state": state}]},
            }))
            .unwrap()
        };
        let message = "back-off 20s restarting failed container=app pod=web-0_default(u)";
        let before = pod_with(json!({"terminated": {"reason": "Error", "exitCode": 1}}), 1);
        let after = pod_with(json!({"waiting": {"reason": "CrashLoopBackOff", "message": message}}), 2);
        assert_eq!(
            pod(Some(&before), Some(&after)).unwrap(),
            "pod default/web-0 app Error(1)→CrashLoopBackOff (back-off 20s), restartCount 1→2"
        );
        assert_eq!(pod(Some(&after), Some(&after)), None);
        assert_eq!(pod(Some(&after), None).unwrap(), "pod default/web-0 gone, it was Running");
    }

    #[test]
    fn other_objects_tell_what_differs() {
        let of = |replicas: u64| {
            json!({"kind": "ReplicaSet", "metadata": {"namespace": "a", "name": "b", "generation": replicas},
                   "spec": {"replicas": replicas}})
        };
        assert_eq!(other(Some(&of(1)), Some(&of(3))).unwrap(), "replicaset a/b spec.replicas 1→3");
        assert_eq!(other(None, Some(&of(3))).unwrap(), "replicaset a/b created");
    }
}
