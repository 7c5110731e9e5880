//! Reasons and texts that users see, as upstream words them.

use jiff::SignedDuration;

/// Default waiting reason.
pub const CONTAINER_CREATING: &str = "ContainerCreating";
/// Default waiting reason of a Pod with init containers.
pub const POD_INITIALIZING: &str = "PodInitializing";
/// A restart is delayed.
pub const CRASH_LOOP_BACK_OFF: &str = "CrashLoopBackOff";
/// A pull failed.
pub const ERR_IMAGE_PULL: &str = "ErrImagePull";
/// The next pull is delayed.
pub const IMAGE_PULL_BACK_OFF: &str = "ImagePullBackOff";
/// The image name does not parse.
pub const INVALID_IMAGE_NAME: &str = "InvalidImageName";
/// Pull policy Never, and the image is absent.
pub const ERR_IMAGE_NEVER_PULL: &str = "ErrImageNeverPull";
/// The runtime could not tell whether the image is there.
pub const IMAGE_INSPECT_ERROR: &str = "ImageInspectError";
/// The registry could not be reached.
pub const REGISTRY_UNAVAILABLE: &str = "RegistryUnavailable";
/// The container's configuration could not be made.
pub const CREATE_CONTAINER_CONFIG_ERROR: &str = "CreateContainerConfigError";
/// The runtime could not create the container.
pub const CREATE_CONTAINER_ERROR: &str = "CreateContainerError";
/// The runtime could not start the container.
pub const RUN_CONTAINER_ERROR: &str = "RunContainerError";
/// The hook after the start failed.
pub const POST_START_HOOK_ERROR: &str = "PostStartHookError";
/// Event: Pods cannot be connected to the network.
pub const NETWORK_NOT_READY: &str = "NetworkNotReady";
/// Event: the runtime has not killed in time.
pub const EXCEEDED_GRACE_PERIOD: &str = "ExceededGracePeriod";
/// Event: the node's address is of another family than before.
pub const HOST_IPS_FAMILY_MISMATCH: &str = "HostIPsIPFamilyMismatch";
/// Exit code 0.
pub const COMPLETED: &str = "Completed";
/// Any other exit code.
pub const ERROR: &str = "Error";
/// Nobody saw the container end.
pub const CONTAINER_STATUS_UNKNOWN: &str = "ContainerStatusUnknown";
/// Message of a container that vanished.
pub const LOST_WHEN_DELETED: &str =
    "The container could not be located when the pod was deleted.  The container used to be Running";
/// Message of a container whose end nobody saw, when the Pod ends.
pub const LOST_WHEN_TERMINATED: &str = "The container could not be located when the pod was terminated";
/// Message of a plain init container of which nothing is left, in a Pod that has come further.
pub const INIT_FORGOTTEN: &str = "Unable to get init container status from container runtime and pod has been initialized, \
                                  treat it as exited normally";
/// A container was removed so that all containers start anew.
pub const RESTARTING_ALL_CONTAINERS: &str = "RestartingAllContainers";
/// Message of [`RESTARTING_ALL_CONTAINERS`].
pub const RESTARTING_ALL_CONTAINERS_MESSAGE: &str =
    "The container is removed because RestartAllContainers in place";
/// Condition: all containers are being removed in order to start anew.
pub const ALL_CONTAINERS_RESTARTING: &str = "AllContainersRestarting";
/// Condition: the Pod is about to be ended for the sake of others.
pub const DISRUPTION_TARGET: &str = "DisruptionTarget";
/// Reason of [`DISRUPTION_TARGET`] when it is the node that ends the Pod.
pub const TERMINATION_BY_KUBELET: &str = "TerminationByKubelet";
/// The node ends a Pod to make room for a critical one.
pub const PREEMPTING: &str = "Preempting";
/// Message of [`PREEMPTING`].
pub const PREEMPTING_MESSAGE: &str = "Preempted in order to admit critical pod";
/// `activeDeadlineSeconds` passed.
pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
/// Message of [`DEADLINE_EXCEEDED`].
pub const DEADLINE_EXCEEDED_MESSAGE: &str = "Pod was active on the node longer than the specified deadline";

/// An event about a Pod or one of its containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEvent {
    /// The container it is about; `None` for the Pod.
    pub container: Option<String>,
    /// `Warning` instead of `Normal`.
    pub warning: bool,
    /// Reason.
    pub reason: &'static str,
    /// Text.
    pub message: String,
}

impl PodEvent {
    /// A `Normal` event about a container.
    pub fn normal(container: &str, reason: &'static str, message: impl Into<String>) -> Self {
        PodEvent { container: Some(container.to_owned()), warning: false, reason, message: message.into() }
    }

    /// A `Warning` event about a container.
    pub fn warning(container: &str, reason: &'static str, message: impl Into<String>) -> Self {
        PodEvent { container: Some(container.to_owned()), warning: true, reason, message: message.into() }
    }

    /// A `Normal` event about the Pod.
    pub fn pod(reason: &'static str, message: impl Into<String>) -> Self {
        PodEvent { container: None, warning: false, reason, message: message.into() }
    }

    /// A `Warning` event about the Pod.
    pub fn pod_warning(reason: &'static str, message: impl Into<String>) -> Self {
        PodEvent { container: None, warning: true, reason, message: message.into() }
    }
}

/// A duration of whole seconds or less as Go prints it: `10s`, `1m20s`, `5m0s`, `1.234s`, `12.5ms`.
#[must_use]
pub fn go_duration(duration: SignedDuration) -> String {
    let nanos = duration.as_nanos().unsigned_abs();
    let sign = if duration.is_negative() { "-" } else { "" };
    let fraction = |unit: u128| {
        let text = format!("{}.{:0width$}", nanos / unit, nanos % unit, width = unit.ilog10() as usize);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{nanos}ns"),
        1_000..1_000_000 => format!("{sign}{}µs", fraction(1_000)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", fraction(1_000_000)),
        _ => {
            let (minutes, rest) = (nanos / 60_000_000_000, nanos % 60_000_000_000);
            let seconds = format!("{}.{:09}", rest / 1_000_000_000, rest % 1_000_000_000);
            let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

/// Message of a delayed restart.
#[must_use]
pub fn crash_loop_message(delay: SignedDuration, container: &str, pod: &str) -> String {
    format!("back-off {} restarting failed container={container} pod={pod}", go_duration(delay))
}

/// Event of a delayed restart.
#[must_use]
pub fn restart_back_off_event(container: &str, pod: &str) -> PodEvent {
    let text = format!("Back-off restarting failed container {container} in pod {pod}");
    PodEvent::warning(container, "BackOff", text)
}

/// Event of a delayed pull.
#[must_use]
pub fn pull_back_off_event(container: &str, image: &str) -> PodEvent {
    PodEvent::normal(container, "BackOff", format!("Back-off pulling image \"{image}\""))
}

/// Event of a failed step of a start: `Error: REASON` for images, `Error: MESSAGE` for create and start.
#[must_use]
pub fn start_failed_event(container: &str, text: &str) -> PodEvent {
    PodEvent::warning(container, "Failed", format!("Error: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_go() {
        for (millis, text) in [
            (0, "0s"),
            (10_000, "10s"),
            (80_000, "1m20s"),
            (300_000, "5m0s"),
            (1_234, "1.234s"),
            (12, "12ms"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(go_duration(SignedDuration::from_millis(millis)), text);
        }
        assert_eq!(go_duration(SignedDuration::from_micros(12_500)), "12.5ms");
    }
}
