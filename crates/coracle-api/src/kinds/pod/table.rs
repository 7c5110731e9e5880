//! What `kubectl get pods` shows.

use jiff::Timestamp;
use serde_json::Value;

use crate::kinds::age;
use crate::metadata;
use crate::table::{Column, RowCondition, human_duration};
use crate::tree::{int_at, list_at, str_at, true_at};

pub(super) static COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Ready", "The aggregate readiness state of this pod for accepting traffic."),
    Column::text("Status", "The aggregate status of the containers in this pod."),
    Column::text(
        "Restarts",
        "The number of times the containers in this pod have been restarted and when the last container in \
         this pod has restarted.",
    ),
    Column::AGE,
    Column::wide(
        "IP",
        "podIP address allocated to the pod. Routable at least within the cluster. Empty if not yet allocated.",
    ),
    Column::wide("Node", "NodeName indicates in which node this pod is scheduled."),
    Column::wide(
        "Nominated Node",
        "nominatedNodeName is set only when this pod preempts other pods on the node.",
    ),
    Column::wide("Readiness Gates", "If specified, all readiness gates will be evaluated for pod readiness."),
];

/// Restarts, and when the last one was.
#[derive(Clone, Copy, Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += int_at(status, &["restartCount"]).unwrap_or(0);
        let finished = str_at(status, &["lastState", "terminated", "finishedAt"]).parse().ok();
        self.last = self.last.max(finished);
    }

    fn show(self, now: Timestamp) -> String {
        match self.last {
            Some(last) if self.count != 0 => {
                format!("{} ({} ago)", self.count, human_duration(now.as_second() - last.as_second()))
            }
            _ => self.count.to_string(),
        }
    }
}

/// `Completed`-like, from a state that ended.
fn ended(terminated: &Value) -> String {
    let reason = str_at(terminated, &["reason"]);
    if !reason.is_empty() {
        return reason.to_owned();
    }
    match int_at(terminated, &["signal"]).unwrap_or(0) {
        0 => format!("ExitCode:{}", int_at(terminated, &["exitCode"]).unwrap_or(0)),
        signal => format!("Signal:{signal}"),
    }
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    list_at(pod, &["status", "conditions"]).iter().find(|c| str_at(c, &["type"]) == kind)
}

fn condition_is_true(pod: &Value, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|c| str_at(c, &["status"]) == "True")
}

fn is_sidecar(init: &Value) -> bool {
    str_at(init, &["restartPolicy"]) == "Always"
}

/// Status, ready containers and restarts of a Pod.
fn summary(pod: &Value) -> (String, i64, Restarts) {
    let phase = str_at(pod, &["status", "phase"]);
    let pod_reason = str_at(pod, &["status", "reason"]);
    let mut status = if pod_reason.is_empty() { phase.to_owned() } else { pod_reason.to_owned() };
    if condition(pod, "PodScheduled").is_some_and(|c| str_at(c, &["reason"]) == "SchedulingGated") {
        status = "SchedulingGated".to_owned();
    }
    let inits = list_at(pod, &["spec", "initContainers"]);
    let sidecar_named = |name: &str| inits.iter().any(|c| str_at(c, &["name"]) == name && is_sidecar(c));
    let (mut ready, mut restarts, mut sidecar_restarts) = (0, Restarts::default(), Restarts::default());
    let mut initializing = false;
    for (index, container) in list_at(pod, &["status", "initContainerStatuses"]).iter().enumerate() {
        restarts.add(container);
        let sidecar = sidecar_named(str_at(container, &["name"]));
        if sidecar {
            sidecar_restarts.add(container);
        }
        let terminated = container.get("state").and_then(|state| state.get("terminated"));
        let waiting = str_at(container, &["state", "waiting", "reason"]);
        if terminated.is_some_and(|ended| int_at(ended, &["exitCode"]).unwrap_or(0) == 0) {
            continue;
        }
        if sidecar && true_at(container, &["started"]) {
            ready += i64::from(true_at(container, &["ready"]));
            continue;
        }
        status = match terminated {
            Some(terminated) => format!("Init:{}", ended(terminated)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{index}/{}", inits.len()),
        };
        initializing = true;
        break;
    }
    if !initializing || condition_is_true(pod, "Initialized") {
        restarts = sidecar_restarts;
        let mut running = false;
        // Backwards, so that the first container has the last word.
        for container in list_at(pod, &["status", "containerStatuses"]).iter().rev() {
            restarts.add(container);
            let waiting = str_at(container, &["state", "waiting", "reason"]);
            let state = container.get("state");
            if !waiting.is_empty() {
                status = waiting.to_owned();
            } else if let Some(terminated) = state.and_then(|s| s.get("terminated")) {
                status = ended(terminated);
            } else if true_at(container, &["ready"]) && state.is_some_and(|s| s.get("running").is_some()) {
                running = true;
                ready += 1;
            }
        }
        if status == "Completed" && running {
            status = if condition_is_true(pod, "Ready") { "Running" } else { "NotReady" }.to_owned();
        }
    }
    if metadata::is_deleting(pod) {
        if pod_reason == "NodeLost" {
            status = "Unknown".to_owned();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            status = "Terminating".to_owned();
        }
    }
    (status, ready, restarts)
}

fn or_none(text: &str) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

pub(super) fn row(pod: &Value, now: Timestamp) -> Vec<Value> {
    let (status, ready, restarts) = summary(pod);
    let sidecars = list_at(pod, &["spec", "initContainers"]).iter().filter(|c| is_sidecar(c)).count();
    let total = list_at(pod, &["spec", "containers"]).len() + sidecars;
    let ip = match list_at(pod, &["status", "podIPs"]).first() {
        Some(ip) => str_at(ip, &["ip"]),
        None => str_at(pod, &["status", "podIP"]),
    };
    let gates = list_at(pod, &["spec", "readinessGates"]);
    let gates_shown = if gates.is_empty() {
        "<none>".to_owned()
    } else {
        let open = gates.iter().filter(|g| condition_is_true(pod, str_at(g, &["conditionType"]))).count();
        format!("{open}/{}", gates.len())
    };
    vec![
        metadata::name(pod).into(),
        format!("{ready}/{total}").into(),
        status.into(),
        restarts.show(now).into(),
        age(pod, now),
        or_none(ip),
        or_none(str_at(pod, &["spec", "nodeName"])),
        or_none(str_at(pod, &["status", "nominatedNodeName"])),
        gates_shown.into(),
    ]
}

pub(super) fn conditions(pod: &Value) -> Vec<RowCondition> {
    let completed =
        |reason, message| vec![RowCondition { kind: "Completed", status: "True", reason, message }];
    match str_at(pod, &["status", "phase"]) {
        "Succeeded" => completed("Succeeded", "The pod has completed successfully."),
        "Failed" => completed("Failed", "The pod failed."),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
