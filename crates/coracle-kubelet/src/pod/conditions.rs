//! The conditions of a Pod that the node agent owns.

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::inputs::{Lifecycle, PodInputs};
use super::phase::Phase;

const OWNED: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

struct Verdict {
    kind: &'static str,
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

/// Foreign conditions as they are, then the owned ones. `lastTransitionTime` moves only when the status of a
/// condition changes.
pub(super) fn conditions(i: &PodInputs, status: &PodStatus, phase: Phase) -> Vec<PodCondition> {
    let current = i.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let mut all: Vec<_> = current.iter().filter(|c| !OWNED.contains(&c.type_.as_str())).cloned().collect();
    let containers_ready = containers_ready(i, status, phase);
    let ready = ready(i, &containers_ready, &all);
    for verdict in
        [ready_to_start(i), initialized(phase), ready, containers_ready, simple("PodScheduled", true)]
    {
        all.push(condition(i, verdict));
    }
    all
}

fn condition(i: &PodInputs, verdict: Verdict) -> PodCondition {
    let status = if verdict.holds { "True" } else { "False" };
    let find = |status: &PodStatus| {
        let all = status.conditions.as_deref().unwrap_or_default();
        all.iter().find(|c| c.type_ == verdict.kind).cloned()
    };
    let before = find(&i.previous_status).or_else(|| i.pod.status.as_ref().and_then(find));
    let unmoved = before.filter(|c| c.status == status).and_then(|c| c.last_transition_time);
    PodCondition {
        type_: verdict.kind.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_probe_time: None,
        last_transition_time: unmoved.or(Some(Time(i.now))),
        observed_generation: i.pod.metadata.generation,
    }
}

fn simple(kind: &'static str, holds: bool) -> Verdict {
    Verdict { kind, holds, reason: None, message: None }
}

fn ready_to_start(i: &PodInputs) -> Verdict {
    let connected = i.ready_sandbox().is_some_and(|s| i.host_network() || !s.ips.is_empty());
    let ended = matches!(i.lifecycle, Lifecycle::Terminated { .. } | Lifecycle::Gone);
    simple("PodReadyToStartContainers", connected && !ended)
}

fn initialized(phase: Phase) -> Verdict {
    let reason = (phase == Phase::Succeeded).then_some("PodCompleted");
    Verdict { reason, ..simple("Initialized", true) }
}

fn containers_ready(i: &PodInputs, status: &PodStatus, phase: Phase) -> Verdict {
    let statuses = status.container_statuses.as_deref().unwrap_or_default();
    let spec = &i.spec().containers;
    let find = |name: &str| statuses.iter().find(|s| s.name == name);
    let names = |matches: &dyn Fn(Option<&ContainerStatus>) -> bool| -> Vec<&str> {
        spec.iter().map(|c| c.name.as_str()).filter(|name| matches(find(name))).collect()
    };
    let unknown = names(&|s| s.is_none());
    let unready = names(&|s| s.is_some_and(|s| !s.ready));
    let no = |reason, message| Verdict { reason: Some(reason), message, ..simple("ContainersReady", false) };
    if phase == Phase::Succeeded && unknown.is_empty() {
        no("PodCompleted", None)
    } else if phase == Phase::Failed {
        no("PodFailed", None)
    } else if unknown.is_empty() && unready.is_empty() {
        simple("ContainersReady", true)
    } else {
        let mut parts = Vec::new();
        if !unknown.is_empty() {
            parts.push(format!("containers with unknown status: [{}]", unknown.join(" ")));
        }
        if !unready.is_empty() {
            parts.push(format!("containers with unready status: [{}]", unready.join(" ")));
        }
        no("ContainersNotReady", Some(parts.join(", ")))
    }
}

fn ready(i: &PodInputs, containers_ready: &Verdict, foreign: &[PodCondition]) -> Verdict {
    if !containers_ready.holds {
        return Verdict {
            kind: "Ready",
            holds: false,
            reason: containers_ready.reason,
            message: containers_ready.message.clone(),
        };
    }
    let gates = i.spec().readiness_gates.iter().flatten().filter_map(|gate| {
        let kind = &gate.condition_type;
        match foreign.iter().find(|c| c.type_ == *kind) {
            None => Some(format!("corresponding condition of pod readiness gate \"{kind}\" does not exist.")),
            Some(c) if c.status != "True" => {
                Some(format!("the status of pod readiness gate \"{kind}\" is not \"True\", but {}", c.status))
            }
            Some(_) => None,
        }
    });
    let unmet: Vec<String> = gates.collect();
    if unmet.is_empty() {
        return simple("Ready", true);
    }
    let message = Some(unmet.join(", "));
    Verdict { reason: Some("ReadinessGatesNotReady"), message, ..simple("Ready", false) }
}

/// Whether the node agent is the one who writes conditions of this type.
pub(super) fn is_owned(kind: &str) -> bool {
    OWNED.contains(&kind)
}
