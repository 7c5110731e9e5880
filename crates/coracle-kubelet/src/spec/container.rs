//! The configuration of a container.

use std::path::{Path, PathBuf};

use coracle_cri::{
    ContainerConfig, EnvVar, Image, ImageSpec, LinuxContainerResources, Mount, MountPropagation,
    NamespaceMode, SecurityContext,
};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::env;
use super::sandbox::namespaces;
use super::{ANNOTATION_GRACE, ANNOTATION_RESTART_COUNT, LABEL_CONTAINER_NAME, PodIdentity};
use crate::logs::container_log_path;
use crate::pod::StartContainer;
use crate::pod::inputs::{ANNOTATION_BACKOFF, ANNOTATION_HASH, ANNOTATION_IMAGE, ANNOTATION_IMAGE_ID};

/// Where a container finds its termination message file unless it says otherwise.
pub const TERMINATION_MESSAGE_PATH: &str = "/dev/termination-log";

/// What the node adds to the container's spec.
#[derive(Debug, Clone)]
pub struct ContainerContext<'a> {
    /// Its variables.
    pub envs: &'a [EnvVar],
    /// What it finds mounted of volumes.
    pub volume_mounts: &'a [Mount],
    /// The image it runs.
    pub image: &'a Image,
    /// Its limits.
    pub resources: LinuxContainerResources,
    /// The Pod's hosts file.
    pub hosts_file: PathBuf,
    /// The file of its termination message.
    pub termination_file: PathBuf,
}

/// Makes the configuration.
///
/// # Errors
/// The waiting message of `CreateContainerConfigError`.
pub fn container_config(
    pod: &Pod,
    container: &Container,
    start: &StartContainer,
    context: &ContainerContext<'_>,
) -> Result<ContainerConfig, String> {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let identity = PodIdentity::of(pod);
    let mut security_context = security_context(spec, container);
    if let Some(target) = &start.target {
        security_context.namespaces.pid = NamespaceMode::Target(target.clone());
    }
    check_non_root(spec, container, &security_context, context.image, &identity)?;
    let value_of = |name: &str| context.envs.iter().find(|v| v.key == name).map(|v| v.value.as_str());
    let expand = |texts: &Option<Vec<String>>| -> Vec<String> {
        texts.iter().flatten().map(|text| env::expand(text, value_of)).collect()
    };
    let (command, args) = (expand(&container.command), expand(&container.args));
    let mut labels = identity.labels();
    labels.insert(LABEL_CONTAINER_NAME.to_owned(), container.name.clone());
    let wanted = container.image.clone().unwrap_or_default();
    let mut annotations = std::collections::BTreeMap::from([
        (ANNOTATION_HASH.to_owned(), start.hash.clone()),
        (ANNOTATION_RESTART_COUNT.to_owned(), start.attempt.to_string()),
        (ANNOTATION_IMAGE.to_owned(), image_name(context.image, &wanted)),
        (ANNOTATION_IMAGE_ID.to_owned(), image_id(context.image)),
    ]);
    if let Some(seconds) = spec.termination_grace_period_seconds {
        annotations.insert(ANNOTATION_GRACE.to_owned(), seconds.to_string());
    }
    if let Some(backoff) = start.backoff {
        annotations.insert(ANNOTATION_BACKOFF.to_owned(), backoff.to_annotation());
    }
    Ok(ContainerConfig {
        name: container.name.clone(),
        attempt: start.attempt,
        image: ImageSpec { image: context.image.id.clone() },
        user_specified_image: wanted,
        command,
        args,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        mounts: mounts(container, context),
        envs: context.envs.to_vec(),
        labels,
        annotations,
        log_path: container_log_path(&container.name, start.attempt),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        resources: context.resources.clone(),
        security_context,
        stop_signal: container.lifecycle.as_ref().and_then(|l| l.stop_signal.clone()).unwrap_or_default(),
    })
}

/// What the status shows as `image`: the image's full name that the spec's name stands for, if it has one.
fn image_name(image: &Image, wanted: &str) -> String {
    let tagged = crate::pod::image_name::with_default_tag(wanted).unwrap_or_else(|_| wanted.to_owned());
    let names = image.repo_tags.iter().chain(&image.repo_digests);
    names
        .clone()
        .find(|name| **name == tagged || name.ends_with(&format!("/{tagged}")))
        .or_else(|| image.repo_tags.first())
        .cloned()
        .unwrap_or_else(|| wanted.to_owned())
}

fn image_id(image: &Image) -> String {
    image.repo_digests.first().unwrap_or(&image.id).clone()
}

fn mounts(container: &Container, context: &ContainerContext<'_>) -> Vec<Mount> {
    let bind = |container_path: PathBuf, host_path: &PathBuf| Mount {
        container_path,
        host_path: host_path.clone(),
        readonly: false,
        recursive_readonly: false,
        image: None,
        propagation: MountPropagation::Private,
    };
    let message_path = termination_message_path(container);
    let mut mounts = context.volume_mounts.to_vec();
    if !container.volume_mounts.iter().flatten().any(|m| m.mount_path == "/etc/hosts") {
        mounts.push(bind("/etc/hosts".into(), &context.hosts_file));
    }
    // A volume that is mounted at this very path is where the message is.
    let taken = |path: &Path| context.volume_mounts.iter().any(|mount| mount.container_path == path);
    if let Some(path) = message_path.filter(|path| !taken(path)) {
        mounts.push(bind(path, &context.termination_file));
    }
    mounts
}

/// Where a container leaves its termination message. Like any path of a mount, one that is relative begins at the
/// container's root.
pub fn termination_message_path(container: &Container) -> Option<PathBuf> {
    let path = container.termination_message_path.as_deref().unwrap_or(TERMINATION_MESSAGE_PATH);
    (!path.is_empty()).then(|| Path::new("/").join(path))
}

fn security_context(spec: &PodSpec, container: &Container) -> SecurityContext {
    let pod = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let capabilities = own.capabilities.unwrap_or_default();
    let names = |list: Option<Vec<String>>| -> Vec<String> {
        list.unwrap_or_default()
            .into_iter()
            .map(|c| c.strip_prefix("CAP_").unwrap_or(&c).to_owned())
            .collect()
    };
    let privileged = own.privileged == Some(true);
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked");
    let seccomp = own.seccomp_profile.as_ref().or(pod.seccomp_profile.as_ref()).map(|p| p.type_.as_str());
    let groups = pod.supplemental_groups.into_iter().flatten().chain(pod.fs_group);
    let strict_groups = pod.supplemental_groups_policy.as_deref() == Some("Strict");
    SecurityContext {
        privileged,
        add_capabilities: names(capabilities.add),
        drop_capabilities: names(capabilities.drop),
        run_as_user: own.run_as_user.or(pod.run_as_user),
        run_as_group: own.run_as_group.or(pod.run_as_group),
        supplemental_groups: groups.collect(),
        strict_groups,
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        no_new_privs: own.allow_privilege_escalation == Some(false) && !privileged,
        seccomp_unconfined: privileged || seccomp == Some("Unconfined"),
        namespaces: namespaces(spec),
        masked_paths: unmasked.then(Vec::new),
        readonly_paths: unmasked.then(Vec::new),
    }
}

fn check_non_root(
    spec: &PodSpec,
    container: &Container,
    security: &SecurityContext,
    image: &Image,
    pod: &PodIdentity,
) -> Result<(), String> {
    let own = container.security_context.as_ref().and_then(|s| s.run_as_non_root);
    let wanted = own.or(spec.security_context.as_ref().and_then(|s| s.run_as_non_root));
    if wanted != Some(true) {
        return Ok(());
    }
    let place = format!("(pod: \"{}\", container: {})", pod.full_name(), container.name);
    match (security.run_as_user, image.uid) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {place}")),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err(format!("container has runAsNonRoot and image will run as root {place}")),
        (None, Some(_)) => Ok(()),
        (None, None) if image.username.is_empty() => {
            Err(format!("container has runAsNonRoot and image will run as root {place}"))
        }
        (None, None) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root {place}",
            image.username
        )),
    }
}

#[cfg(test)]
mod tests {
    use coracle_cri::{ContainerId, PodSandboxId};
    use serde_json::{Value, json};

    use super::*;

    fn config(container: Value, image: &Image) -> Result<ContainerConfig, String> {
        config_beside(None, container, image)
    }

    fn config_beside(
        target: Option<ContainerId>,
        container: Value,
        image: &Image,
    ) -> Result<ContainerConfig, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"containers": [container], "securityContext": {
                "runAsGroup": 7, "supplementalGroups": [8], "supplementalGroupsPolicy": "Strict",
                "seccompProfile": {"type": "Unconfined"}}},
        }))
        .unwrap();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let start = StartContainer {
            container: "c".into(),
            attempt: 3,
            sandbox: PodSandboxId("s".into()),
            volumes: Default::default(),
            image: None,
            pulled: None,
            backoff: None,
            hash: "h".into(),
            event: None,
            target,
            post_start: false,
        };
        let context = ContainerContext {
            envs: &[EnvVar { key: "A".into(), value: "1".into() }],
            volume_mounts: &[],
            image,
            resources: LinuxContainerResources::default(),
            hosts_file: "/pods/u/etc-hosts".into(),
            termination_file: "/pods/u/t".into(),
        };
        container_config(&pod, container, &start, &context)
    }

    #[test]
    fn one_with_a_target_sees_its_processes() {
        let target = ContainerId("app".to_owned());
        let image = Image { id: "sha256:1".into(), ..Image::default() };
        let debugger = json!({"name": "c", "image": "busybox:1"});
        let pid = |target| {
            let config = config_beside(target, debugger.clone(), &image).unwrap();
            config.security_context.namespaces.pid
        };
        assert_eq!(pid(Some(target.clone())), NamespaceMode::Target(target));
        assert_eq!(pid(None), NamespaceMode::Container);
    }

    #[test]
    fn the_spec_is_carried_over() {
        let image = Image {
            id: "sha256:1".into(),
            repo_tags: vec!["docker.io/library/other:1".into(), "docker.io/library/busybox:latest".into()],
            repo_digests: vec!["docker.io/library/busybox@sha256:2".into()],
            ..Image::default()
        };
        let container = json!({
            "name": "c", "image": "busybox", "command": ["sh", "-c", "echo $(A) $$(A)"], "args": ["$(A)"],
            "workingDir": "/w", "tty": true, "terminationMessagePath": "var/why",
            "lifecycle": {"stopSignal": "SIGUSR1"},
            "securityContext": {"runAsUser": 5, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "seccompProfile": {"type": "RuntimeDefault"}, "procMount": "Default",
                "capabilities": {"add": ["NET_ADMIN"], "drop": ["CAP_CHOWN"]}},
        });
        let made = config(container, &image).unwrap();
        assert_eq!(made.command, ["sh", "-c", "echo 1 $(A)"]);
        assert_eq!(made.args, ["1"]);
        assert_eq!((made.attempt, made.image.image.as_str(), made.tty), (3, "sha256:1", true));
        assert_eq!(made.log_path, PathBuf::from("c/3.log"));
        assert_eq!(made.annotations[ANNOTATION_IMAGE], "docker.io/library/busybox:latest");
        assert_eq!(made.annotations[ANNOTATION_IMAGE_ID], "docker.io/library/busybox@sha256:2");
        assert_eq!(made.labels[LABEL_CONTAINER_NAME], "c");
        let paths: Vec<_> = made.mounts.iter().map(|m| m.container_path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/etc/hosts", "/var/why"]);
        assert_eq!((made.working_dir.as_str(), made.stop_signal.as_str()), ("/w", "SIGUSR1"));
        let security = made.security_context;
        assert_eq!((security.run_as_user, security.run_as_group), (Some(5), Some(7)));
        assert_eq!((security.supplemental_groups.as_slice(), security.strict_groups), (&[8][..], true));
        assert!(security.no_new_privs && security.readonly_rootfs && !security.seccomp_unconfined);
        assert_eq!((&security.masked_paths, &security.readonly_paths), (&None, &None), "the usual ones");
        assert_eq!(
            (security.add_capabilities, security.drop_capabilities),
            (vec!["NET_ADMIN".into()], vec!["CHOWN".into()])
        );
    }

    #[test]
    fn what_the_pod_says_of_system_calls_holds_where_the_container_says_nothing() {
        let unconfined = |security: Value| {
            let container = json!({"name": "c", "image": "x", "securityContext": security});
            config(container, &Image::default()).unwrap().security_context.seccomp_unconfined
        };
        assert!(unconfined(Value::Null));
        assert!(!unconfined(json!({"seccompProfile": {"type": "RuntimeDefault"}})));
        let confined = json!({"seccompProfile": {"type": "RuntimeDefault"}, "privileged": true});
        assert!(unconfined(confined), "nothing confines what is privileged");
    }

    #[test]
    fn a_container_that_must_not_be_root_is_not_made_as_root() {
        let wanted = |user: Value| json!({"name": "c", "image": "x", "securityContext": {"runAsNonRoot": true, "runAsUser": user}});
        let image =
            |uid: Option<i64>, username: &str| Image { uid, username: username.into(), ..Image::default() };
        let refused = |user: Value, image: &Image| config(wanted(user), image).unwrap_err();
        let place = "(pod: \"p_ns(u)\", container: c)";
        assert_eq!(
            refused(Value::Null, &image(None, "")),
            format!("container has runAsNonRoot and image will run as root {place}")
        );
        assert_eq!(
            refused(Value::Null, &image(None, "app")),
            format!(
                "container has runAsNonRoot and image has non-numeric user (app), cannot verify user is non-root {place}"
            )
        );
        assert_eq!(
            refused(json!(0), &image(Some(5), "")),
            format!("container's runAsUser breaks non-root policy {place}")
        );
        assert!(config(wanted(json!(1)), &image(Some(0), "")).is_ok());
        assert!(config(wanted(Value::Null), &image(Some(5), "")).is_ok());
    }
}
