//! What the node agent tells of its Node: the Events below `kubectl describe node`.

use coracle_client::EventType;
use k8s_openapi::api::core::v1::{NodeStatus, ObjectReference};

use crate::context::Context;

/// Said once at the start of the agent.
pub(crate) fn report_start(context: &Context) {
    context.recorder.event(&involved(context), EventType::Normal, "Starting", "Starting kubelet.");
}

/// Says what has changed from one status to the next.
pub(crate) fn report_changes(context: &Context, before: &NodeStatus, after: &NodeStatus) {
    if let Some(boot) = new_boot(before, after) {
        let text = format!("Node {} has been rebooted, boot id: {boot}", context.config.node_name);
        context.recorder.event(&involved(context), EventType::Warning, "Rebooted", text);
    }
    for reason in changes(before, after) {
        report(context, reason);
    }
}

/// The id of a boot that was not known before.
fn new_boot<'a>(before: &NodeStatus, after: &'a NodeStatus) -> Option<&'a str> {
    let id = |status: &'a NodeStatus| status.node_info.as_ref().map(|info| info.boot_id.as_str());
    let was = before.node_info.as_ref().map(|info| info.boot_id.as_str()).filter(|was| !was.is_empty())?;
    id(after).filter(|is| *is != was)
}

/// Says whether the node takes new Pods, when that has changed. `known` is what was said last.
pub(crate) fn report_schedulable(context: &Context, known: &mut Option<bool>, unschedulable: bool) {
    if known.replace(unschedulable).is_some_and(|before| before != unschedulable) {
        report(context, if unschedulable { "NodeNotSchedulable" } else { "NodeSchedulable" });
    }
}

fn report(context: &Context, reason: &'static str) {
    let message = format!("Node {} status is now: {reason}", context.config.node_name);
    context.recorder.event(&involved(context), EventType::Normal, reason, message);
}

/// Node agents refer to their Node by its name where others have its UID, as `kubectl describe` expects.
fn involved(context: &Context) -> ObjectReference {
    let name = Some(context.config.node_name.clone());
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        uid: name.clone(),
        name,
        ..ObjectReference::default()
    }
}

/// The reasons of the Events between two statuses. That a new node is ready from the start is no change.
fn changes(before: &NodeStatus, after: &NodeStatus) -> Vec<&'static str> {
    let status_of = |status: &'_ NodeStatus, kind: &str| {
        let conditions = status.conditions.as_deref().unwrap_or_default();
        conditions.iter().find(|condition| condition.type_ == kind).map(|condition| condition.status.clone())
    };
    let pressure = [
        ("MemoryPressure", "NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
        ("DiskPressure", "NodeHasDiskPressure", "NodeHasNoDiskPressure"),
        ("PIDPressure", "NodeHasInsufficientPID", "NodeHasSufficientPID"),
        ("Ready", "NodeReady", "NodeNotReady"),
    ];
    pressure
        .into_iter()
        .filter_map(|(kind, holds, does_not)| {
            let (was, is) = (status_of(before, kind), status_of(after, kind)?);
            let new_and_ready = was.is_none() && kind == "Ready";
            let reason = if is == "True" { holds } else { does_not };
            (was.as_ref() != Some(&is) && !new_and_ready).then_some(reason)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn status(conditions: &[(&str, &str)]) -> NodeStatus {
        let conditions: Vec<Value> =
            conditions.iter().map(|(kind, status)| json!({"type": kind, "status": status})).collect();
        serde_json::from_value(json!({ "conditions": conditions })).unwrap()
    }

    #[test]
    fn only_what_changes_is_told() {
        let new = status(&[]);
        let starting = status(&[("MemoryPressure", "False"), ("DiskPressure", "False"), ("Ready", "False")]);
        let well = status(&[("MemoryPressure", "False"), ("DiskPressure", "False"), ("Ready", "True")]);
        let full = status(&[("MemoryPressure", "False"), ("DiskPressure", "True"), ("Ready", "True")]);
        assert_eq!(changes(&new, &starting), ["NodeHasSufficientMemory", "NodeHasNoDiskPressure"]);
        assert_eq!(changes(&starting, &well), ["NodeReady"]);
        assert_eq!(changes(&well, &well), [""; 0]);
        assert_eq!(changes(&well, &full), ["NodeHasDiskPressure"]);
        assert_eq!(changes(&full, &starting), ["NodeHasNoDiskPressure", "NodeNotReady"]);
    }
}
