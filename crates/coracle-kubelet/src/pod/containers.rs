//! The containers of a Pod, of all kinds, in one list.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, PodSpec};

/// What a container is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Runs to its end before the next one begins.
    Init,
    /// Stands among the init containers and runs beside all that come after it (`restartPolicy: Always`).
    Sidecar,
    /// Does the Pod's work.
    Regular,
    /// Was added to look into a Pod, and is nothing to the Pod's fate.
    Ephemeral,
}

/// A container with its kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Member<'a> {
    /// What it is for.
    pub kind: Kind,
    /// Its definition. That of an ephemeral container says the same in another type and is made for the occasion.
    pub container: Cow<'a, Container>,
    /// The container whose processes an ephemeral container is to see.
    pub target: Option<&'a str>,
}

impl Member<'_> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.container.name
    }

    /// Where the spec has it, as events name it: `spec.initContainers{c}`.
    #[must_use]
    pub fn field_path(&self) -> String {
        let list = match self.kind {
            Kind::Init | Kind::Sidecar => "initContainers",
            Kind::Regular => "containers",
            Kind::Ephemeral => "ephemeralContainers",
        };
        format!("spec.{list}{{{}}}", self.name())
    }
}

/// All containers: init containers and sidecars as declared, then regular ones, then ephemeral ones.
pub fn all(spec: &PodSpec) -> impl Iterator<Item = Member<'_>> {
    init(spec).chain(regular(spec)).chain(ephemeral(spec))
}

/// Init containers and sidecars, as declared.
pub fn init(spec: &PodSpec) -> impl Iterator<Item = Member<'_>> {
    spec.init_containers.iter().flatten().map(|container| Member {
        kind: if is_sidecar(container) { Kind::Sidecar } else { Kind::Init },
        container: Cow::Borrowed(container),
        target: None,
    })
}

/// Regular containers, as declared.
pub fn regular(spec: &PodSpec) -> impl Iterator<Item = Member<'_>> {
    let member =
        |container| Member { kind: Kind::Regular, container: Cow::Borrowed(container), target: None };
    spec.containers.iter().map(member)
}

/// Ephemeral containers, in the order in which they were added.
pub fn ephemeral(spec: &PodSpec) -> impl Iterator<Item = Member<'_>> {
    spec.ephemeral_containers.iter().flatten().map(|container| Member {
        kind: Kind::Ephemeral,
        container: Cow::Owned(as_container(container)),
        target: container.target_container_name.as_deref().filter(|name| !name.is_empty()),
    })
}

/// The container of this name, of any kind.
#[must_use]
pub fn find<'a>(spec: &'a PodSpec, name: &str) -> Option<Member<'a>> {
    all(spec).find(|member| member.name() == name)
}

/// Whether an init container is a sidecar.
#[must_use]
pub fn is_sidecar(container: &Container) -> bool {
    coracle_api::pod::is_sidecar(container)
}

fn as_container(ephemeral: &EphemeralContainer) -> Container {
    let of = ephemeral.clone();
    Container {
        args: of.args,
        command: of.command,
        env: of.env,
        env_from: of.env_from,
        image: of.image,
        image_pull_policy: of.image_pull_policy,
        lifecycle: of.lifecycle,
        liveness_probe: of.liveness_probe,
        name: of.name,
        ports: of.ports,
        readiness_probe: of.readiness_probe,
        resize_policy: of.resize_policy,
        resources: of.resources,
        restart_policy: of.restart_policy,
        restart_policy_rules: of.restart_policy_rules,
        security_context: of.security_context,
        startup_probe: of.startup_probe,
        stdin: of.stdin,
        stdin_once: of.stdin_once,
        termination_message_path: of.termination_message_path,
        termination_message_policy: of.termination_message_policy,
        tty: of.tty,
        volume_devices: of.volume_devices,
        volume_mounts: of.volume_mounts,
        working_dir: of.working_dir,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_container_is_found_by_name_and_named_at_its_path() {
        let spec: PodSpec = serde_json::from_value(serde_json::json!({
            "containers": [{"name": "a", "image": "x"}],
            "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
            "ephemeralContainers": [{"name": "e", "image": "y", "targetContainerName": "a"}],
        }))
        .unwrap();
        let listed: Vec<_> = all(&spec).map(|m| (m.kind, m.field_path())).collect();
        assert_eq!(
            listed,
            [
                (Kind::Init, "spec.initContainers{i}".to_owned()),
                (Kind::Sidecar, "spec.initContainers{s}".to_owned()),
                (Kind::Regular, "spec.containers{a}".to_owned()),
                (Kind::Ephemeral, "spec.ephemeralContainers{e}".to_owned()),
            ]
        );
        let found = find(&spec, "e").unwrap();
        assert_eq!((found.container.image.as_deref(), found.target), (Some("y"), Some("a")));
        assert_eq!(find(&spec, "z"), None);
    }
}
