//! The volumes of Pods: what they hold, where they are on the node, and how they get there and away again.
//!
//! [`payload`] says from plain data which files a volume shows. [`set_up`] gathers that data and has the node's disk
//! agree with it; [`write`] does so in a way that nobody sees half of; [`tear_down`] removes all of it. [`mounts`]
//! is how a container finds them. What the plan of a Pod knows of volumes is [`crate::pod::volumes`].

pub(crate) mod env_file;
mod host_path;
mod kernel;
pub(crate) mod memory;
pub(crate) mod mounts;
mod owner;
pub(crate) mod payload;
pub(crate) mod set_up;
mod sub_path;
pub(crate) mod tear_down;
#[cfg(test)]
mod tests;
mod token;
mod write;

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod, PodSpec, Volume};

pub use kernel::VolumeHost;

use crate::context::Context;
use crate::objects::References;
use crate::pod::containers;
use crate::spec::PodIdentity;

/// Directory of a Pod's volumes, in the Pod's own.
const VOLUMES: &str = "volumes";
/// Directory of what containers have mounted of parts of volumes.
const SUB_PATHS: &str = "volume-subpaths";
/// Directory of notes about volumes.
const NOTES: &str = "plugins";

/// The volumes that some container uses, in the order of the spec. Others are never looked at.
pub(crate) fn used(spec: &PodSpec) -> Vec<&Volume> {
    let uses = |container: &Container, name: &str| {
        container.volume_mounts.iter().flatten().any(|mount| mount.name == name)
            || sources(container)
                .any(|source| source.file_key_ref.as_ref().is_some_and(|file| file.volume_name == name))
    };
    let all: Vec<_> = containers::all(spec).collect();
    let wanted = |volume: &&Volume| all.iter().any(|of| uses(&of.container, &volume.name));
    // What images hold is the runtime's.
    spec.volumes.iter().flatten().filter(|volume| volume.image.is_none()).filter(wanted).collect()
}

fn sources(container: &Container) -> impl Iterator<Item = &EnvVarSource> {
    container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref())
}

/// The ConfigMaps and Secrets that a Pod refers to: in its volumes, in the environments of its containers, and for its
/// images.
pub(crate) fn references(spec: &PodSpec) -> References {
    let mut found = References::default();
    for volume in used(spec) {
        found.config_maps.extend(volume.config_map.iter().map(|source| source.name.clone()));
        found.secrets.extend(volume.secret.iter().filter_map(|source| source.secret_name.clone()));
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            found.config_maps.extend(source.config_map.iter().map(|source| source.name.clone()));
            found.secrets.extend(source.secret.iter().map(|source| source.name.clone()));
        }
    }
    for of in containers::all(spec) {
        for source in sources(&of.container) {
            found.config_maps.extend(source.config_map_key_ref.iter().map(|key| key.name.clone()));
            found.secrets.extend(source.secret_key_ref.iter().map(|key| key.name.clone()));
        }
        for source in of.container.env_from.iter().flatten() {
            found.config_maps.extend(source.config_map_ref.iter().map(|all| all.name.clone()));
            found.secrets.extend(source.secret_ref.iter().map(|all| all.name.clone()));
        }
    }
    found.secrets.extend(spec.image_pull_secrets.iter().flatten().map(|secret| secret.name.clone()));
    // A reference without a name refers to nothing.
    found.config_maps.remove("");
    found.secrets.remove("");
    found
}

/// The name that directories give to the kind of a volume; `None` for a kind that this node does not know.
fn kind(volume: &Volume) -> Option<&'static str> {
    if volume.empty_dir.is_some() {
        Some("kubernetes.io~empty-dir")
    } else if volume.host_path.is_some() {
        Some("kubernetes.io~host-path")
    } else if volume.config_map.is_some() {
        Some("kubernetes.io~configmap")
    } else if volume.secret.is_some() {
        Some("kubernetes.io~secret")
    } else if volume.downward_api.is_some() {
        Some("kubernetes.io~downward-api")
    } else if volume.projected.is_some() {
        Some("kubernetes.io~projected")
    } else {
        None
    }
}

/// Where a volume is on the node, and whether containers may only read it. `directory` is the Pod's.
fn place(directory: &Path, volume: &Volume, host: &VolumeHost) -> Option<(PathBuf, bool)> {
    if let Some(source) = &volume.host_path {
        return Some((host.path(&source.path), false));
    }
    let path = directory.join(VOLUMES).join(kind(volume)?).join(&volume.name);
    Some((path, volume.empty_dir.is_none()))
}

/// Whether a volume holds what its source says at the moment, and not only what it was made with.
fn is_live(volume: &Volume) -> bool {
    volume.empty_dir.is_none() && volume.host_path.is_none()
}

/// The group that files in volumes belong to.
fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// Where a volume of this name is on the node.
pub(crate) fn path(context: &Context, pod: &Pod, name: &str) -> Option<PathBuf> {
    let volume = pod.spec.as_ref()?.volumes.iter().flatten().find(|volume| volume.name == name)?;
    let directory = context.config.pods_dir.join(PodIdentity::of(pod).uid);
    place(&directory, volume, &context.config.volume_host).map(|(path, _)| path)
}
