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
        let terminated = container.get("state").and_then(|s| s.get("terminated"));
        let waiting = str_at(container, &["state", "waiting", "reason"]);
        if let Some(terminated) = terminated {
            if int_at(terminated, &["exitCode"]).unwrap_or(0) == 0 {
                continue;
            }
            status = format!("Init:{}", ended(terminated));
        } else if sidecar && true_at(container, &["started"]) {
            if true_at(container, &["ready"]) {
                ready += 1;
            }
            continue;
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            status = format!("Init:{waiting}");
        } else {
            status = format!("Init:{index}/{}", inits.len());
        }
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
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(status: &Value, spec: &Value, deleted: bool) -> String {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": spec, "status": status});
        if deleted {
            pod["metadata"]["deletionTimestamp"] = "2020-01-01T00:00:00Z".into();
        }
        let cells = row(&pod, "2020-01-01T00:01:00Z".parse().unwrap());
        let text = |i: usize| cells[i].as_str().unwrap().to_owned();
        format!("{} {} {}", text(1), text(2), text(3))
    }

    #[test]
    fn the_status_column_is_upstreams() {
        let one = json!({"containers": [{"name": "a"}]});
        let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let init = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]});
        let side = json!({
            "containers": [{"name": "a"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]
        });
        let running = json!({"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}});
        let done = |code: i64, reason: &str| json!({"name": "b", "state": {"terminated": {"exitCode": code, "reason": reason}}});
        let waiting = |reason: &str| json!({"name": "a", "state": {"waiting": {"reason": reason}}});
        for (name, status, spec, deleted, expected) in [
            ("pending", json!({"phase": "Pending"}), &one, false, "0/1 Pending 0"),
            (
                "creating",
                json!({"phase": "Pending", "containerStatuses": [waiting("ContainerCreating")]}),
                &one,
                false,
                "0/1 ContainerCreating 0",
            ),
            (
                "running",
                json!({"phase": "Running", "containerStatuses": [running]}),
                &one,
                false,
                "1/1 Running 0",
            ),
            (
                "restarted",
                json!({"phase": "Running", "containerStatuses": [{
                    "name": "a", "ready": true, "restartCount": 3, "state": {"running": {}},
                    "lastState": {"terminated": {"finishedAt": "2020-01-01T00:00:30Z"}}
                }]}),
                &one,
                false,
                "1/1 Running 3 (30s ago)",
            ),
            (
                "one done, not ready",
                json!({"phase": "Running", "containerStatuses": [running, done(0, "Completed")]}),
                &two,
                false,
                "1/2 NotReady 0",
            ),
            (
                "one done, ready",
                json!({
                    "phase": "Running", "containerStatuses": [running, done(0, "Completed")],
                    "conditions": [{"type": "Ready", "status": "True"}]
                }),
                &two,
                false,
                "1/2 Running 0",
            ),
            (
                "exit code",
                json!({"phase": "Failed", "containerStatuses": [done(3, "")]}),
                &one,
                false,
                "0/1 ExitCode:3 0",
            ),
            (
                "init runs",
                json!({"phase": "Pending", "initContainerStatuses": [
                    {"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": {"running": {}}}
                ], "containerStatuses": [waiting("PodInitializing")]}),
                &init,
                false,
                "0/1 Init:1/2 0",
            ),
            (
                "init fails",
                json!({"phase": "Pending", "initContainerStatuses": [
                    {"name": "i", "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
                ]}),
                &init,
                false,
                "0/1 Init:CrashLoopBackOff 1",
            ),
            (
                "sidecar",
                json!({"phase": "Running", "initContainerStatuses": [
                    {"name": "s", "ready": true, "started": true, "restartCount": 2, "state": {"running": {}}}
                ], "containerStatuses": [running]}),
                &side,
                false,
                "2/2 Running 2",
            ),
            ("evicted", json!({"phase": "Failed", "reason": "Evicted"}), &one, false, "0/1 Evicted 0"),
            (
                "deleted",
                json!({"phase": "Running", "containerStatuses": [running]}),
                &one,
                true,
                "1/1 Terminating 0",
            ),
            ("lost", json!({"phase": "Running", "reason": "NodeLost"}), &one, true, "0/1 Unknown 0"),
        ] {
            assert_eq!(shown(&status, spec, deleted), expected, "{name}");
        }
    }
}
