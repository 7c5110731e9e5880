//! The conditions of a Pod that the node agent owns.

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::containers::{self, Kind, Member};
use super::initialization;
use super::inputs::{Eviction, Lifecycle, PodInputs, has_run, statuses};
use super::phase::Phase;
use super::reasons::{
    ALL_CONTAINERS_RESTARTING, DISRUPTION_TARGET, PREEMPTING_MESSAGE, TERMINATION_BY_KUBELET,
};

const OWNED: [&str; 6] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    ALL_CONTAINERS_RESTARTING,
];

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
    let evicted = disruption(i).filter(|_| !all.iter().any(|c| c.type_ == DISRUPTION_TARGET));
    let owned = [
        evicted,
        Some(ready_to_start(i)),
        Some(initialized(i, status, phase)),
        Some(ready),
        Some(containers_ready),
        Some(simple("PodScheduled", true)),
        all_restarting(i, phase),
    ];
    all.extend(owned.into_iter().flatten().map(|verdict| condition(i, verdict)));
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

/// The eviction that a node agent had begun before it started anew: the condition was written first.
#[must_use]
pub fn eviction_under_way(pod: &Pod) -> Option<Eviction> {
    let condition =
        pod.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == DISRUPTION_TARGET)?;
    let preempted = condition.status == "True"
        && condition.reason.as_deref() == Some(TERMINATION_BY_KUBELET)
        && condition.message.as_deref() == Some(PREEMPTING_MESSAGE);
    preempted.then(Eviction::preemption)
}

/// Written when the node ends the Pod; once it is there it stays as it is.
fn disruption(i: &PodInputs) -> Option<Verdict> {
    let eviction = i.eviction.as_ref()?;
    let message = Some(eviction.message.clone());
    Some(Verdict { reason: Some(TERMINATION_BY_KUBELET), message, ..simple(DISRUPTION_TARGET, true) })
}

/// Written if some rule may restart all containers.
fn all_restarting(i: &PodInputs, phase: Phase) -> Option<Verdict> {
    let rules = |member: Member<'_>| {
        member.container.restart_policy_rules.iter().flatten().any(super::phase::restarts_all)
    };
    if !containers::all(i.spec()).any(rules) {
        return None;
    }
    let reason = match phase {
        Phase::Succeeded => "PodCompleted",
        Phase::Failed => "PodFailed",
        Phase::Pending | Phase::Running => {
            if i.lifecycle == Lifecycle::Syncing && initialization::restarts_all(i) {
                let message = Some("container exited with restart policy rule".to_owned());
                let reason = Some("RestartAllContainersStarted");
                return Some(Verdict { reason, message, ..simple(ALL_CONTAINERS_RESTARTING, true) });
            }
            return Some(simple(ALL_CONTAINERS_RESTARTING, false));
        }
    };
    Some(Verdict { reason: Some(reason), ..simple(ALL_CONTAINERS_RESTARTING, false) })
}

fn initialized(i: &PodInputs, status: &PodStatus, phase: Phase) -> Verdict {
    let find = |name: &str| status.init_container_statuses.iter().flatten().find(|s| s.name == name);
    let inits: Vec<_> = containers::init(i.spec()).collect();
    let unknown = names(&inits, &|member| find(member.name()).is_none());
    let incomplete = names(&inits, &|member| {
        find(member.name()).is_some_and(|s| match member.kind {
            Kind::Sidecar => s.started != Some(true),
            _ => !s.ready,
        })
    });
    // Once a regular container has run, what becomes of sidecars later takes nothing back.
    let begun = status.container_statuses.iter().flatten().any(has_run);
    if phase == Phase::Succeeded && unknown.is_empty() {
        Verdict { reason: Some("PodCompleted"), ..simple("Initialized", true) }
    } else if begun || (unknown.is_empty() && incomplete.is_empty()) {
        simple("Initialized", true)
    } else {
        let message = Some(listed(&[("unknown", unknown), ("incomplete", incomplete)]));
        Verdict { reason: Some("ContainersNotInitialized"), message, ..simple("Initialized", false) }
    }
}

fn names<'a>(members: &'a [Member<'_>], matches: &dyn Fn(&Member<'_>) -> bool) -> Vec<&'a str> {
    members.iter().filter(|member| matches(member)).map(Member::name).collect()
}

/// `containers with unready status: [a b]`, for each list that names some.
fn listed(lists: &[(&str, Vec<&str>)]) -> String {
    let some = lists.iter().filter(|(_, names)| !names.is_empty());
    let parts: Vec<_> =
        some.map(|(what, names)| format!("containers with {what} status: [{}]", names.join(" "))).collect();
    parts.join(", ")
}

fn containers_ready(i: &PodInputs, status: &PodStatus, phase: Phase) -> Verdict {
    let find = |name: &str| statuses(status).find(|s| s.name == name);
    let counted: Vec<_> = containers::all(i.spec())
        .filter(|member| matches!(member.kind, Kind::Sidecar | Kind::Regular))
        .collect();
    let unknown = names(&counted, &|member| find(member.name()).is_none());
    let unready = names(&counted, &|member| find(member.name()).is_some_and(|s| !s.ready));
    let no = |reason, message| Verdict { reason: Some(reason), message, ..simple("ContainersReady", false) };
    if phase == Phase::Succeeded && unknown.is_empty() {
        no("PodCompleted", None)
    } else if phase == Phase::Failed {
        no("PodFailed", None)
    } else if unknown.is_empty() && unready.is_empty() {
        simple("ContainersReady", true)
    } else {
        no("ContainersNotReady", Some(listed(&[("unknown", unknown), ("unready", unready)])))
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
