//! The phase of a Pod, from its spec and its container statuses.

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, ContainerState, ContainerStatus, PodSpec};

use super::containers::is_sidecar;
use super::reasons;

/// A Pod's phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not all containers have been started.
    Pending,
    /// Something runs, or will run again.
    Running,
    /// All containers ended well.
    Succeeded,
    /// All containers ended, and one of them badly.
    Failed,
}

impl Phase {
    /// The phase as the API writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Pending => "Pending",
            Phase::Running => "Running",
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
        }
    }

    /// Reads [`Phase::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Phase> {
        [Phase::Pending, Phase::Running, Phase::Succeeded, Phase::Failed]
            .into_iter()
            .find(|p| p.as_str() == text)
    }

    /// Succeeded or Failed.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed)
    }
}

/// Whether a container that ended with `exit` is started again. `init` is true for an init container.
#[must_use]
pub fn restartable(pod_policy: Option<&str>, container: &Container, init: bool, exit: i32) -> bool {
    if matching_rule(container, exit).is_some() {
        return true;
    }
    let policy = container.restart_policy.as_deref().or(pod_policy).unwrap_or("Always");
    let sidecar = init && container.restart_policy.as_deref() == Some("Always");
    match policy {
        "Never" => false,
        "OnFailure" => exit != 0,
        _ if init && !sidecar => exit != 0,
        _ => true,
    }
}

/// The first rule of the container that speaks of `exit`. Rules count only beside a restart policy of its own.
pub(crate) fn matching_rule(container: &Container, exit: i32) -> Option<&ContainerRestartRule> {
    container.restart_policy.as_ref()?;
    container.restart_policy_rules.iter().flatten().find(|rule| {
        let Some(codes) = &rule.exit_codes else { return false };
        let listed = codes.values.iter().flatten().any(|v| *v == exit);
        let matches = if codes.operator == "NotIn" { !listed } else { listed };
        matches && matches!(rule.action.as_str(), "Restart" | RESTART_ALL_CONTAINERS)
    })
}

const RESTART_ALL_CONTAINERS: &str = "RestartAllContainers";

/// Whether the action of a rule is to start all containers anew.
pub(crate) fn restarts_all(rule: &ContainerRestartRule) -> bool {
    rule.action == RESTART_ALL_CONTAINERS
}

#[derive(Default)]
struct Counts {
    unknown: u32,
    running: u32,
    waiting: u32,
    stopped: u32,
    succeeded: u32,
    stopped_restartable: u32,
}

/// The phase, by the rules of the Pod lifecycle. `terminal`: no container will ever be restarted.
/// `initialized`: a regular container of the current sandbox has been started.
#[must_use]
pub fn phase(
    spec: &PodSpec,
    containers: &[ContainerStatus],
    init_containers: &[ContainerStatus],
    terminal: bool,
    initialized: bool,
) -> Phase {
    let policy = spec.restart_policy.as_deref();
    let mut pending_init = false;
    let mut pending_sidecar = false;
    let mut counts = Counts::default();
    for container in spec.init_containers.iter().flatten() {
        let status = init_containers.iter().find(|s| s.name == container.name);
        let seen = evidence(status);
        if is_sidecar(container) {
            match seen {
                Evidence::None => counts.unknown += 1,
                Evidence::Running => {
                    counts.running += 1;
                    pending_sidecar |= status.and_then(|s| s.started) != Some(true);
                }
                Evidence::Waiting => {
                    pending_sidecar = true;
                    counts.waiting += 1;
                }
                Evidence::Stopped(_) => {}
            }
        } else {
            match seen {
                Evidence::None | Evidence::Running | Evidence::Waiting => pending_init = true,
                Evidence::Stopped(0) => {}
                Evidence::Stopped(exit) if restartable(policy, container, true, exit) => {}
                Evidence::Stopped(_) => return Phase::Failed,
            }
        }
    }
    for container in &spec.containers {
        match evidence(containers.iter().find(|s| s.name == container.name)) {
            Evidence::None => counts.unknown += 1,
            Evidence::Running => counts.running += 1,
            Evidence::Waiting => counts.waiting += 1,
            Evidence::Stopped(exit) => {
                counts.stopped += 1;
                counts.succeeded += u32::from(exit == 0);
                counts.stopped_restartable += u32::from(restartable(policy, container, false, exit));
            }
        }
    }
    decide(&counts, pending_init || (pending_sidecar && !initialized), terminal)
}

fn decide(counts: &Counts, initializing: bool, terminal: bool) -> Phase {
    let ended = if counts.succeeded == counts.stopped { Phase::Succeeded } else { Phase::Failed };
    if initializing || counts.waiting > 0 {
        Phase::Pending
    } else if counts.running > 0 && counts.unknown == 0 {
        Phase::Running
    } else if counts.running == 0 && counts.stopped > 0 && counts.unknown == 0 {
        if terminal || counts.stopped_restartable == 0 { ended } else { Phase::Running }
    } else {
        Phase::Pending
    }
}

enum Evidence {
    None,
    Running,
    Waiting,
    /// Terminated, or waiting with a termination behind it: its exit code.
    Stopped(i32),
}

fn evidence(status: Option<&ContainerStatus>) -> Evidence {
    let Some(status) = status else { return Evidence::None };
    let terminated = |s: &'_ Option<ContainerState>| s.as_ref().and_then(|s| s.terminated.clone());
    let removed = Some(reasons::RESTARTING_ALL_CONTAINERS);
    let state = status.state.as_ref();
    if state.is_some_and(|s| s.running.is_some()) {
        return Evidence::Running;
    }
    if let Some(ended) = terminated(&status.state) {
        // One that is removed in order to start anew has not ended.
        let going = ended.reason.as_deref() == removed;
        return if going { Evidence::Waiting } else { Evidence::Stopped(ended.exit_code) };
    }
    match (state.and_then(|s| s.waiting.as_ref()), terminated(&status.last_state)) {
        (Some(waiting), Some(last)) if waiting.reason.as_deref() != removed => {
            Evidence::Stopped(last.exit_code)
        }
        _ => Evidence::Waiting,
    }
}
