//! What decisions about a Pod know of its volumes.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ImageVolumeSource, PodSpec};

/// How far the volumes of a Pod are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumesState {
    /// Every volume that a container uses has been set up: containers may start.
    pub ready: bool,
    /// When something has to be set up, or written anew because its source has changed.
    pub due: Option<Timestamp>,
    /// Something of them is on the node.
    pub present: bool,
}

/// Of a Pod without volumes.
impl Default for VolumesState {
    fn default() -> Self {
        VolumesState { ready: true, due: None, present: false }
    }
}

/// What one round of setting volumes up came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VolumesRound {
    /// Volumes that hold what their sources said, and what identifies that state of the sources.
    pub done: BTreeMap<String, String>,
    /// Volumes that could not be set up, what identifies the state of their sources, and why not.
    pub failed: BTreeMap<String, (String, String)>,
    /// When tokens in volumes have to be renewed.
    pub renew_at: BTreeMap<String, Timestamp>,
}

/// The volumes with the content of images that a container mounts, in the order of the spec.
pub(crate) fn of_images<'a>(
    spec: &'a PodSpec,
    container: &Container,
) -> impl Iterator<Item = (&'a str, &'a ImageVolumeSource)> {
    let mounted = |name: &str| container.volume_mounts.iter().flatten().any(|mount| mount.name == name);
    let volumes = spec.volumes.iter().flatten().filter(move |volume| mounted(&volume.name));
    volumes.filter_map(|volume| Some((volume.name.as_str(), volume.image.as_ref()?)))
}
