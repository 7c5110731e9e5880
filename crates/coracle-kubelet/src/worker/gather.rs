//! What a turn of a Pod's worker looks at, gathered anew for each turn.

use std::collections::BTreeMap;

use coracle_cri::{ContainerFilter, ContainerState, CriError, CriResult, Image, ImageSpec, PodSandboxFilter};

use super::Worker;
use crate::context::Context;
use crate::credentials::{self, keyring::Keyring};
use crate::pod::inputs::{ImagePresence, Lifecycle, Operation, OperationKey, PodInputs};
use crate::pod::volumes::{VolumesState, of_images};
use crate::pod::{containers, image_name};
use crate::spec::LABEL_POD_UID;
use crate::termination;
use crate::volume::{self, set_up};

type Presences = BTreeMap<String, ImagePresence>;

impl Worker {
    pub(super) async fn gather(&mut self) -> CriResult<PodInputs> {
        let runtime = &self.context.runtime;
        let labels = BTreeMap::from([(LABEL_POD_UID.to_owned(), self.identity.uid.clone())]);
        let mut sandboxes = Vec::new();
        let filter = PodSandboxFilter { labels: labels.clone(), ..PodSandboxFilter::default() };
        for sandbox in runtime.list_pod_sandboxes(&filter).await? {
            // One that has gone since the listing is not there.
            if let Some(status) = found(runtime.pod_sandbox_status(&sandbox.id).await)? {
                sandboxes.push(status);
            }
        }
        sandboxes.sort_by_key(|s| std::cmp::Reverse((s.sandbox.metadata.attempt, s.sandbox.created_at)));
        let mut containers = Vec::new();
        for container in
            runtime.list_containers(&ContainerFilter { labels, ..ContainerFilter::default() }).await?
        {
            if let Some(status) = found(runtime.container_status(&container.id).await)? {
                containers.push(status);
            }
        }
        self.read_termination_messages(&containers).await;
        let volumes = self.look_at_volumes().await;
        let mut inputs = PodInputs {
            pod: self.pod.clone(),
            object_gone: self.object_gone,
            now: self.context.clock.now(),
            node: self.context.facts(),
            lifecycle: self.lifecycle.clone(),
            rejection: self.rejection.clone(),
            eviction: self.eviction.get().cloned(),
            sandboxes,
            containers,
            termination_messages: self.termination_messages.clone(),
            probes: BTreeMap::new(),
            images: BTreeMap::new(),
            volume_images: BTreeMap::new(),
            volumes,
            operations: self.operations_in_flight(),
            history: self.history.clone(),
            previous_status: self.previous_status.clone(),
            published: self.pod.status.clone().unwrap_or_default(),
        };
        (inputs.images, inputs.volume_images) = self.gather_images(&inputs).await;
        inputs.probes = self.probers.observe(&inputs);
        Ok(inputs)
    }

    /// Sees to it that what the Pod refers to is followed, and how far its volumes are.
    async fn look_at_volumes(&mut self) -> VolumesState {
        let Some(spec) = self.pod.spec.as_ref().filter(|_| self.lifecycle != Lifecycle::Gone) else {
            return VolumesState::default();
        };
        let (objects, uid) = (&self.context.objects, self.identity.uid.as_str());
        let generation = Some(self.pod.metadata.generation.unwrap_or(0));
        let kept = self.lifecycle == Lifecycle::Syncing && self.rejection.is_none();
        if kept && self.followed != generation {
            objects.follow(uid, &self.wake, &self.identity.namespace, &volume::references(spec));
            self.followed = generation;
        } else if !kept && self.followed.take().is_some() {
            objects.forget(uid);
        }
        if spec.volumes.as_ref().is_none_or(Vec::is_empty) {
            return VolumesState::default();
        }
        self.volume_versions = if kept { set_up::versions(&self.pod, objects) } else { BTreeMap::new() };
        if self.volumes.present.is_none() {
            self.volumes.present = Some(set_up::any_present(&self.context, uid).await);
        }
        self.volumes.state(&self.volume_versions, self.context.clock.now())
    }

    /// Asks about the images of containers that may be about to start.
    async fn gather_images(&self, inputs: &PodInputs) -> (Presences, Presences) {
        let (mut images, mut volumes) = (Presences::new(), Presences::new());
        if self.lifecycle != Lifecycle::Syncing || inputs.ready_sandbox().is_none() {
            return (images, volumes);
        }
        for member in containers::all(inputs.spec()) {
            let container = &member.container;
            let alive = inputs.instances(&container.name).first().is_some_and(|newest| {
                matches!(newest.container.state, ContainerState::Running | ContainerState::Unknown)
            });
            if alive {
                continue;
            }
            if let Some(presence) = self.presence(container.image.as_deref()).await {
                images.insert(container.name.clone(), presence);
            }
            for (volume, source) in of_images(inputs.spec(), container) {
                if let Some(presence) = self.presence(source.reference.as_deref()).await {
                    volumes.insert(volume.to_owned(), presence);
                }
            }
        }
        (images, volumes)
    }

    /// `None` of what is no name of an image.
    async fn presence(&self, wanted: Option<&str>) -> Option<ImagePresence> {
        let image = image_name::with_default_tag(wanted.unwrap_or_default()).ok()?;
        let spec = ImageSpec { image };
        Some(match self.context.images.image_status(&spec).await {
            Ok(Some(image)) => {
                let may = self.may_use(&image, &spec.image).await;
                if may { ImagePresence::Present(image) } else { ImagePresence::Unproven }
            }
            Ok(None) => ImagePresence::Absent,
            Err(why) => ImagePresence::InspectFailed(why.to_string()),
        })
    }

    /// Whether the Pod could have fetched an image that is here.
    async fn may_use(&self, image: &Image, name: &str) -> bool {
        let records = &self.context.image_records;
        let repository = image_name::repository(name).unwrap_or_default();
        if !records.asks_for_proof(image, name, &repository) {
            return true;
        }
        let (secrets, _) = credentials::secrets(&self.context, &self.pod).await;
        let credentials =
            Keyring::of(&secrets).map(|keyring| keyring.lookup(&repository)).unwrap_or_default();
        let (records, image, name) = (records.clone(), image.clone(), name.to_owned());
        let look = move || records.allows(&image, &name, &repository, &credentials);
        self.context.clock.blocking(look).await
    }

    /// Reads each message once: the file does not change any more when its container has ended.
    async fn read_termination_messages(&mut self, containers: &[coracle_cri::ContainerStatus]) {
        for status in containers.iter().filter(|c| c.container.state == ContainerState::Exited) {
            let id = &status.container.id;
            if !self.termination_messages.contains_key(id) {
                let Context { clock, config, .. } = &*self.context;
                let message = termination::read_message(clock, &config.pod_logs_dir, &self.pod, status).await;
                self.termination_messages.insert(id.clone(), message);
            }
        }
        self.termination_messages.retain(|id, _| containers.iter().any(|c| c.container.id == *id));
    }

    pub(super) fn operations_in_flight(&self) -> BTreeMap<OperationKey, Operation> {
        self.operations.iter().map(|(key, in_flight)| (key.clone(), in_flight.operation)).collect()
    }
}

fn found<T>(result: CriResult<T>) -> CriResult<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(CriError::NotFound(_)) => Ok(None),
        Err(other) => Err(other),
    }
}
