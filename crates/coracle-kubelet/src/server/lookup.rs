//! Which container of a Pod a request means.

use coracle_api::field::go_quote;
use coracle_cri::ContainerId;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// Why there is no container to read from. The texts are upstream's, all answered with code 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// The status does not tell of the container yet.
    #[error("container {} in pod {} is not available", go_quote(container), go_quote(pod))]
    NotAvailable {
        /// The container.
        container: String,
        /// The Pod.
        pod: String,
    },
    /// Asked for the container before this one, and there is none.
    #[error("previous terminated container {} in pod {} not found", go_quote(container), go_quote(pod))]
    NoPrevious {
        /// The container.
        container: String,
        /// The Pod.
        pod: String,
    },
    /// It ended, and nothing is left of it.
    #[error("container {} in pod {} is terminated", go_quote(container), go_quote(pod))]
    Terminated {
        /// The container.
        container: String,
        /// The Pod.
        pod: String,
    },
    /// It never ran.
    #[error("container {} in pod {} is waiting to start{why}", go_quote(container), go_quote(pod))]
    Waiting {
        /// The container.
        container: String,
        /// The Pod.
        pod: String,
        /// What it waits for, with what separates it from the sentence.
        why: String,
    },
}

/// The container whose log a request means: the running one, else the last that ran; with `previous`, the one
/// before.
///
/// # Errors
/// See [`LookupError`].
pub fn log_container(pod: &Pod, container: &str, previous: bool) -> Result<ContainerId, LookupError> {
    let name = || container.to_owned();
    let pod_name = || pod.metadata.name.clone().unwrap_or_default();
    let Some(status) = container_status(pod, container) else {
        return Err(LookupError::NotAvailable { container: name(), pod: pod_name() });
    };
    let state = status.state.as_ref();
    let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let last_id = last.and_then(|terminated| container_id(terminated.container_id.as_deref()));
    let terminated = || LookupError::Terminated { container: name(), pod: pod_name() };

    if previous {
        return last_id.ok_or_else(|| LookupError::NoPrevious { container: name(), pod: pod_name() });
    }
    if state.is_some_and(|state| state.running.is_some()) {
        return container_id(status.container_id.as_deref())
            .ok_or_else(|| LookupError::NotAvailable { container: name(), pod: pod_name() });
    }
    if let Some(now) = state.and_then(|state| state.terminated.as_ref()) {
        // Without an id the next container could not even be made: the one before has the log.
        return container_id(now.container_id.as_deref()).or(last_id).ok_or_else(terminated);
    }
    if last.is_some() {
        return last_id.ok_or_else(terminated);
    }
    let why = match state.and_then(|state| state.waiting.as_ref()) {
        Some(waiting) => match waiting.reason.as_deref().unwrap_or_default() {
            "ErrImagePull" => ": image can't be pulled".to_owned(),
            "ImagePullBackOff" => ": trying and failing to pull image".to_owned(),
            reason => format!(": {reason}"),
        },
        None => " - no logs yet".to_owned(),
    };
    Err(LookupError::Waiting { container: name(), pod: pod_name(), why })
}

/// The container in which a command can run: the one that runs now.
#[must_use]
pub fn running_container(pod: &Pod, container: &str) -> Option<ContainerId> {
    let status = container_status(pod, container)?;
    status.state.as_ref()?.running.as_ref()?;
    container_id(status.container_id.as_deref())
}

/// The container of this name that the status tells of, in whatever state it is.
pub(super) fn container(pod: &Pod, container: &str) -> Option<ContainerId> {
    container_id(container_status(pod, container)?.container_id.as_deref())
}

/// Whether the Pod has a container of this name, of any kind.
#[must_use]
pub fn has_container(pod: &Pod, container: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let init = spec.init_containers.iter().flatten();
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    spec.containers.iter().chain(init).any(|c| c.name == container)
        || ephemeral.into_iter().any(|c| c.name == container)
}

fn container_status<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses]
        .into_iter()
        .flatten()
        .flatten()
        .find(|status| status.name == container)
}

/// The runtime's own id out of `coracle://ID`; none if it is empty.
fn container_id(id: Option<&str>) -> Option<ContainerId> {
    let id = id?;
    let id = id.split_once("://").map_or(id, |(_, id)| id);
    (!id.is_empty()).then(|| ContainerId(id.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "containers": [{"name": "app"}],
                "initContainers": [{"name": "init"}],
                "ephemeralContainers": [{"name": "debug"}],
            },
            "status": status,
        }))
        .unwrap()
    }

    /// A Pod whose container `app` has this state, last state and id.
    fn app(state: &Value, last: &Value, id: &str) -> Pod {
        pod(&json!({"containerStatuses": [{
            "name": "app", "image": "x", "imageID": "", "ready": false, "restartCount": 1,
            "state": state, "lastState": last, "containerID": id,
        }]}))
    }

    fn running() -> Value {
        json!({"running": {"startedAt": "2026-11-21T12:00:00Z"}})
    }

    fn terminated(id: &str) -> Value {
        json!({"terminated": {"exitCode": 1, "containerID": id}})
    }

    fn waiting(reason: &str) -> Value {
        json!({"waiting": {"reason": reason}})
    }

    #[test]
    fn the_log_is_of_the_container_that_upstream_would_take() {
        let none = json!({});
        let table: &[(&str, Pod, bool, Result<&str, &str>)] = &[
            ("running", app(&running(), &none, "coracle://a"), false, Ok("a")),
            ("running again", app(&running(), &terminated("coracle://a"), "coracle://b"), false, Ok("b")),
            ("the one before", app(&running(), &terminated("coracle://a"), "coracle://b"), true, Ok("a")),
            ("ended", app(&terminated("coracle://a"), &none, "coracle://a"), false, Ok("a")),
            ("could not start again", app(&terminated(""), &terminated("coracle://a"), ""), false, Ok("a")),
            (
                "back-off",
                app(&waiting("CrashLoopBackOff"), &terminated("coracle://a"), "coracle://a"),
                false,
                Ok("a"),
            ),
            (
                "no one before",
                app(&running(), &none, "coracle://a"),
                true,
                Err(r#"previous terminated container "app" in pod "web" not found"#),
            ),
            (
                "the one before without id",
                app(&running(), &terminated(""), "coracle://a"),
                true,
                Err(r#"previous terminated container "app" in pod "web" not found"#),
            ),
            (
                "nothing left",
                app(&terminated(""), &none, ""),
                false,
                Err(r#"container "app" in pod "web" is terminated"#),
            ),
            (
                "nothing left of the one before",
                app(&waiting("CrashLoopBackOff"), &terminated(""), ""),
                false,
                Err(r#"container "app" in pod "web" is terminated"#),
            ),
            (
                "being made",
                app(&waiting("ContainerCreating"), &none, ""),
                false,
                Err(r#"container "app" in pod "web" is waiting to start: ContainerCreating"#),
            ),
            (
                "image",
                app(&waiting("ErrImagePull"), &none, ""),
                false,
                Err(r#"container "app" in pod "web" is waiting to start: image can't be pulled"#),
            ),
            (
                "image back-off",
                app(&waiting("ImagePullBackOff"), &none, ""),
                false,
                Err(r#"container "app" in pod "web" is waiting to start: trying and failing to pull image"#),
            ),
            (
                "no state",
                app(&none, &none, ""),
                false,
                Err(r#"container "app" in pod "web" is waiting to start - no logs yet"#),
            ),
            ("no status", pod(&json!({})), false, Err(r#"container "app" in pod "web" is not available"#)),
        ];
        for (what, pod, previous, expected) in table {
            let found = log_container(pod, "app", *previous);
            let found = found.as_ref().map(|id| id.0.as_str()).map_err(ToString::to_string);
            assert_eq!(found, expected.map_err(str::to_owned), "{what}");
        }
    }

    #[test]
    fn commands_run_only_in_a_running_container() {
        let none = json!({});
        let id = |pod: &Pod| running_container(pod, "app").map(|id| id.0);
        assert_eq!(id(&app(&running(), &none, "coracle://a")), Some("a".to_owned()));
        assert_eq!(id(&app(&terminated("coracle://a"), &none, "coracle://a")), None);
        assert_eq!(id(&app(&waiting("CrashLoopBackOff"), &terminated("coracle://a"), "coracle://a")), None);
        assert_eq!(id(&pod(&none)), None);
    }

    #[test]
    fn containers_of_every_kind_are_known() {
        let pod = pod(&json!({}));
        for name in ["app", "init", "debug"] {
            assert!(has_container(&pod, name), "{name}");
        }
        assert!(!has_container(&pod, "other"));
    }
}
