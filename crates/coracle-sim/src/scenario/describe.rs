//! How an object stands, in words, for somebody who expected it to stand otherwise.

use serde_json::Value;

use super::seen::container_statuses;

/// How an object stands, in one line.
pub(super) fn standing(kind: &str, object: &Value) -> String {
    let mut parts = Vec::new();
    let status = &object["status"];
    let mut say = |label: &str, value: &Value| {
        if let Some(value) = value.as_str().filter(|value| !value.is_empty()) {
            parts.push(format!("{label}{value}"));
        }
    };
    match kind {
        "pod" => {
            say("phase ", &status["phase"]);
            say("reason ", &status["reason"]);
            say("on ", &object["spec"]["nodeName"]);
            parts
                .extend(list(&status["conditions"]).filter(|c| c["type"] == "Ready").map(condition_in_words));
            for one in container_statuses(object) {
                let restarts = number(&one["restartCount"]);
                parts.push(format!(
                    "container {} {} ({restarts} restarts)",
                    text(&one["name"]),
                    container_state(one)
                ));
            }
        }
        "deployment" | "replicaset" => {
            parts.push(format!("{} wanted", number(&object["spec"]["replicas"])));
            for field in ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"] {
                parts.push(format!("{field} {}", number(&status[field])));
            }
        }
        "job" => {
            for field in ["active", "succeeded", "failed"] {
                parts.push(format!("{field} {}", number(&status[field])));
            }
            parts.extend(list(&status["conditions"]).map(condition_in_words));
        }
        _ => {
            say("phase ", &status["phase"]);
            parts.extend(list(&status["conditions"]).map(condition_in_words));
        }
    }
    for taint in list(&object["spec"]["taints"]) {
        parts.push(format!("tainted {}:{}", text(&taint["key"]), text(&taint["effect"])));
    }
    if !object["metadata"]["deletionTimestamp"].is_null() {
        parts.push("being deleted".to_owned());
    }
    if parts.is_empty() { "there".to_owned() } else { parts.join(", ") }
}

/// The state of a container and, where it matters, which run that is.
fn container_state(status: &Value) -> String {
    let state = &status["state"];
    let count = number(&status["restartCount"]);
    if let Some(ended) = state.get("terminated") {
        let reason = text(&ended["reason"]);
        return format!("terminated: {reason}, exit {}", number(&ended["exitCode"]));
    }
    if state.get("running").is_some() {
        return if count == 0 { "running".to_owned() } else { format!("running, restart {count}") };
    }
    match state["waiting"]["reason"].as_str() {
        Some(reason) => format!("waiting: {reason}"),
        None => "waiting".to_owned(),
    }
}

fn condition_in_words(condition: &Value) -> String {
    let reason = text(&condition["reason"]);
    let reason = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
    format!("{}={}{reason}", text(&condition["type"]), text(&condition["status"]))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}
