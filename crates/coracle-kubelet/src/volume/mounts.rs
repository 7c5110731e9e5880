//! What a container finds mounted of its Pod's volumes.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use coracle_cri::{EnvVar, ImageContent, ImageSpec, Mount, MountPropagation};
use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use tracing::warn;

use super::sub_path::{SubPath, SubPathError};
use super::{SUB_PATHS, VolumeHost, place};
use crate::context::Context;
use crate::spec::PodIdentity;
use crate::spec::env::expand_known;

/// A mount, and the part of the volume that has to be at its source first.
#[derive(Debug)]
struct Planned {
    volume: String,
    mount: Mount,
    part: Option<SubPath>,
}

/// The mounts of a container, ready to be used.
///
/// # Errors
/// The waiting message of `CreateContainerConfigError`.
pub(crate) async fn container_mounts(
    context: &Context,
    pod: &Pod,
    container: &Container,
    envs: &[EnvVar],
    images: &BTreeMap<String, String>,
) -> Result<Vec<Mount>, String> {
    let directory = context.config.pods_dir.join(PodIdentity::of(pod).uid);
    let host = context.config.volume_host.clone();
    let planned = plan(&directory, &host, pod, container, envs, images)?;
    if planned.iter().all(|planned| planned.part.is_none()) {
        return Ok(planned.into_iter().map(|planned| planned.mount).collect());
    }
    let name = container.name.clone();
    let carry_out = move || {
        let each = |mut planned: Planned| {
            if let Some(part) = &planned.part {
                let mounted = part.mount(&host);
                planned.mount.host_path = mounted.map_err(|why| refuse(&why, &planned.volume, &name))?;
            }
            Ok(planned.mount)
        };
        planned.into_iter().map(each).collect()
    };
    context.clock.blocking(carry_out).await
}

/// What lies on the node is for the log alone.
fn refuse(why: &SubPathError, volume: &str, container: &str) -> String {
    let what = match why {
        SubPathError::Make(_) => "create subPath directory",
        SubPathError::Prepare(_) => "prepare subPath",
    };
    warn!(container, volume, error = why as &dyn std::error::Error, "a part of a volume cannot be mounted");
    format!("failed to {what} for volumeMount \"{volume}\" of container \"{container}\"")
}

fn plan(
    directory: &Path,
    host: &VolumeHost,
    pod: &Pod,
    container: &Container,
    envs: &[EnvVar],
    images: &BTreeMap<String, String>,
) -> Result<Vec<Planned>, String> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let one = |(index, mount): (usize, &VolumeMount)| {
        let volume = volumes.iter().find(|volume| volume.name == mount.name);
        if let Some(image) = images.get(&mount.name) {
            let image = ImageSpec { image: image.clone() };
            let content = ImageContent { image, sub_path: sub_path(mount, envs)?.unwrap_or_default() };
            let mount = Mount {
                container_path: container_path(mount),
                host_path: PathBuf::new(),
                image: Some(content),
                readonly: true,
                recursive_readonly: false,
                propagation: MountPropagation::Private,
            };
            return Ok(Planned { volume: mount_name(volume), mount, part: None });
        }
        let found = volume.and_then(|volume| place(directory, volume, host));
        let (path, readonly) = found.ok_or_else(|| {
            format!("cannot find volume \"{}\" to mount into container \"{}\"", mount.name, container.name)
        })?;
        let part = sub_path(mount, envs)?.map(|part| SubPath {
            volume: path.clone(),
            path: part,
            target: directory.join(SUB_PATHS).join(&mount.name).join(&container.name).join(index.to_string()),
        });
        let readonly = readonly || mount.read_only == Some(true);
        let mount = Mount {
            container_path: container_path(mount),
            host_path: path,
            image: None,
            readonly,
            recursive_readonly: recursive_readonly(mount)?,
            propagation: propagation(mount)?,
        };
        Ok(Planned { volume: mount_name(volume), mount, part })
    };
    container.volume_mounts.iter().flatten().enumerate().map(one).collect()
}

fn container_path(mount: &VolumeMount) -> PathBuf {
    Path::new("/").join(&mount.mount_path)
}

fn mount_name(volume: Option<&k8s_openapi::api::core::v1::Volume>) -> String {
    volume.map(|volume| volume.name.clone()).unwrap_or_default()
}

/// The part of the volume that is asked for, if it is not all of it.
fn sub_path(mount: &VolumeMount, envs: &[EnvVar]) -> Result<Option<String>, String> {
    let expression = mount.sub_path_expr.as_deref().filter(|text| !text.is_empty());
    let path = match expression {
        Some(expression) => expand_known(expression, |name| {
            envs.iter().find(|variable| variable.key == name).map(|variable| variable.value.as_str())
        })?,
        None => mount.sub_path.clone().unwrap_or_default(),
    };
    if path.is_empty() {
        return Ok(None);
    }
    if path.starts_with('/') {
        return Err(format!("error SubPath `{path}` must not be an absolute path"));
    }
    if Path::new(&path).components().any(|part| part == Component::ParentDir) {
        return Err(format!("unable to provision SubPath `{path}`: must not contain '..'"));
    }
    Ok(Some(path))
}

/// Whether what is mounted below is read-only, too. The kernel can always do that where containers run at all.
fn recursive_readonly(mount: &VolumeMount) -> Result<bool, String> {
    let wrong = |why: String| Err(format!("failed to resolve recursive read-only mode: {why}"));
    match mount.recursive_read_only.as_deref().unwrap_or("Disabled") {
        "Disabled" => Ok(false),
        mode @ ("Enabled" | "IfPossible") if mount.read_only != Some(true) => wrong(format!(
            "volume \"{}\" requested {mode} recursive read-only mode, but it is not read-only",
            mount.name
        )),
        "Enabled" | "IfPossible" => Ok(true),
        other => wrong(format!("unknown recursive read-only mode \"{other}\"")),
    }
}

fn propagation(mount: &VolumeMount) -> Result<MountPropagation, String> {
    match mount.mount_propagation.as_deref() {
        None | Some("None") => Ok(MountPropagation::Private),
        Some("HostToContainer") => Ok(MountPropagation::HostToContainer),
        Some("Bidirectional") => Ok(MountPropagation::Bidirectional),
        Some(other) => Err(format!("invalid MountPropagation mode: \"{other}\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn planned(mounts: Value, envs: &[(&str, &str)]) -> Result<Vec<Planned>, String> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {
        "containers": [{"name": "c", "volumeMounts": mounts}],
        "volumes": [
            {"name": "e", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x"}},
            {"name": "h", "hostPath": {"path": "/srv"}}, {"name": "n", "nfs": {"server": "x", "path": "/"}},
            {"name": "i", "image": {"reference": "x:1"}},
        ]}}))
        .unwrap();
        let envs: Vec<_> =
            envs.iter().map(|(key, value)| EnvVar { key: (*key).into(), value: (*value).into() }).collect();
        plan(
            Path::new("/pods/u"),
            &VolumeHost::Machine,
            &pod,
            &pod.spec.as_ref().unwrap().containers[0],
            &envs,
            &BTreeMap::from([("i".to_owned(), "sha256:1".to_owned())]),
        )
    }

    #[test]
    fn mounts_say_where_volumes_are_and_what_may_be_done_with_them() {
        let mounts = planned(
            json!([
                {"name": "e", "mountPath": "/e"},
                {"name": "e", "mountPath": "/ro", "readOnly": true, "recursiveReadOnly": "IfPossible"},
                {"name": "s", "mountPath": "relative"},
                {"name": "h", "mountPath": "/h", "mountPropagation": "HostToContainer"},
            ]),
            &[],
        )
        .unwrap();
        let shown: Vec<_> = mounts
            .iter()
            .map(|p| {
                let m = &p.mount;
                let flags = (m.readonly, m.recursive_readonly, m.propagation);
                (m.container_path.to_str().unwrap(), m.host_path.to_str().unwrap(), flags)
            })
            .collect();
        let private = MountPropagation::Private;
        assert_eq!(
            shown,
            [
                ("/e", "/pods/u/volumes/kubernetes.io~empty-dir/e", (false, false, private)),
                ("/ro", "/pods/u/volumes/kubernetes.io~empty-dir/e", (true, true, private)),
                ("/relative", "/pods/u/volumes/kubernetes.io~secret/s", (true, false, private)),
                ("/h", "/srv", (false, false, MountPropagation::HostToContainer)),
            ]
        );
    }

    #[test]
    fn the_content_of_an_image_is_named_by_the_image_and_is_only_read() {
        let mounts = planned(
            json!([
                {"name": "i", "mountPath": "/all"},
                {"name": "i", "mountPath": "/part", "subPathExpr": "$(DIR)/x", "mountPropagation": "HostToContainer"},
            ]),
            &[("DIR", "data")],
        );
        let image = |sub_path: &str| {
            let image = ImageSpec { image: "sha256:1".into() };
            Some(ImageContent { image, sub_path: sub_path.into() })
        };
        let mounts = mounts.unwrap();
        assert!(mounts.iter().all(|p| p.mount.readonly && p.part.is_none()));
        let shown: Vec<_> = mounts.iter().map(|p| p.mount.image.clone()).collect();
        assert_eq!(shown, [image(""), image("data/x")]);
    }

    #[test]
    fn parts_of_volumes_have_places_of_their_own() {
        let mounts = planned(
            json!([
                {"name": "e", "mountPath": "/a", "subPath": "x/y"},
                {"name": "e", "mountPath": "/b", "subPathExpr": "$(NAME)-$$(NAME)"},
            ]),
            &[("NAME", "p")],
        )
        .unwrap();
        let parts: Vec<_> = mounts.iter().map(|p| p.part.as_ref().unwrap()).collect();
        assert_eq!((parts[0].path.as_str(), parts[1].path.as_str()), ("x/y", "p-$(NAME)"));
        assert_eq!(parts[1].target, Path::new("/pods/u/volume-subpaths/e/c/1"));
    }

    #[test]
    fn what_cannot_be_mounted_is_said_in_upstreams_words() {
        for (mount, why) in [
            (json!({"name": "x"}), "cannot find volume \"x\" to mount into container \"c\""),
            (json!({"name": "n"}), "cannot find volume \"n\" to mount into container \"c\""),
            (json!({"name": "e", "subPathExpr": "$(NONE)"}), "missing value for \"NONE\""),
            (
                json!({"name": "e", "subPathExpr": "$(UP)"}),
                "unable to provision SubPath `a/../..`: must not contain '..'",
            ),
            (
                json!({"name": "e", "subPathExpr": "$(ROOT)"}),
                "error SubPath `/etc` must not be an absolute path",
            ),
            (
                json!({"name": "e", "mountPropagation": "Sideways"}),
                "invalid MountPropagation mode: \"Sideways\"",
            ),
        ] {
            let mut mount = mount;
            mount["mountPath"] = json!("/x");
            let said = planned(json!([mount]), &[("UP", "a/../.."), ("ROOT", "/etc")]).unwrap_err();
            assert_eq!(said, why);
        }
    }
}
