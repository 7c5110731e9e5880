//! Volumes are set up: their sources gathered, then the node's disk made to agree with them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Pod, PodSpec, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use sha2::{Digest as _, Sha256};

use super::kernel::{VolumeHost, is_mount_point};
use super::payload::{Payload, Sources, TokenWanted, payload, token_wanted};
use super::token::Tokens;
use super::write::{Writing, write};
use super::{NOTES, host_path, is_live, kind, owner, place, used};
use crate::context::Context;
use crate::disk::make_directory;
use crate::execute;
use crate::objects::{Objects, Referable, version_of};
use crate::pod::containers;
use crate::pod::history::Outcome;
use crate::pod::reasons::PodEvent;
use crate::pod::volumes::VolumesRound;
use crate::spec::PodIdentity;
use crate::spec::resources::{pod_resources, whole};

/// What work on the volumes of one Pod shares.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Only one works on the disk at a time. True once the volumes have been taken down: nothing is set up after that.
    ended: Mutex<bool>,
    tokens: Tokens,
}

impl Shared {
    /// Works on the disk, unless the volumes have been taken down.
    fn unless_ended<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        (!*ended).then(work)
    }

    /// Works on the disk for the last time.
    pub(super) fn end<T>(&self, work: impl FnOnce() -> T) -> T {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        *ended = true;
        work()
    }
}

// === Which state of its sources a volume is to hold ===

/// For each volume in use what identifies the state of its sources.
pub(crate) fn versions(pod: &Pod, objects: &Objects) -> BTreeMap<String, String> {
    let namespace = PodIdentity::of(pod).namespace;
    let volumes = pod.spec.as_ref().map(used).unwrap_or_default();
    let of = |volume: &Volume| {
        version(
            pod,
            volume,
            |name| objects.config_maps.version(&namespace, name),
            |name| objects.secrets.version(&namespace, name),
        )
    };
    volumes.into_iter().map(|volume| (volume.name.clone(), of(volume))).collect()
}

fn version(
    pod: &Pod,
    volume: &Volume,
    config_map: impl Fn(&str) -> String,
    secret: impl Fn(&str) -> String,
) -> String {
    if !is_live(volume) {
        return String::new();
    }
    let mut parts: Vec<String> = Vec::new();
    parts.extend(volume.config_map.iter().map(|source| config_map(&source.name)));
    parts
        .extend(volume.secret.iter().map(|source| secret(source.secret_name.as_deref().unwrap_or_default())));
    let mut downward = volume.downward_api.is_some();
    for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
        parts.extend(source.config_map.iter().map(|source| config_map(&source.name)));
        parts.extend(source.secret.iter().map(|source| secret(&source.name)));
        downward |= source.downward_api.is_some();
    }
    if downward {
        let resources: Vec<_> =
            pod.spec.iter().flat_map(containers::all).map(|c| c.container.resources.clone()).collect();
        let seen = serde_json::to_vec(&(&pod.metadata.labels, &pod.metadata.annotations, resources));
        let digest = Sha256::digest(seen.unwrap_or_default());
        parts.push(digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect());
    }
    parts.join(" ")
}

// === Sources ===

async fn gather(context: &Context, pod: &Pod, volumes: &[Volume], shared: &Shared) -> Sources {
    let namespace = PodIdentity::of(pod).namespace;
    let mut sources = Sources { allocatable: allocatable(context), ..Sources::default() };
    let (mut config_maps, mut secrets, mut tokens) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for volume in volumes {
        config_maps.extend(volume.config_map.iter().map(|source| source.name.clone()));
        secrets.extend(volume.secret.iter().filter_map(|source| source.secret_name.clone()));
        for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            config_maps.extend(source.config_map.iter().map(|source| source.name.clone()));
            secrets.extend(source.secret.iter().map(|source| source.name.clone()));
            tokens.extend(source.service_account_token.iter().map(token_wanted));
        }
    }
    // All at once: the Pod waits as long as for the slowest.
    let config_maps = join_all(config_maps.into_iter().map(async |name| {
        let found = context.objects.config_maps.get(&namespace, &name).await;
        (name, found)
    }));
    let secrets = join_all(secrets.into_iter().map(async |name| {
        let found = context.objects.secrets.get(&namespace, &name).await;
        (name, found)
    }));
    let tokens = join_all(tokens.into_iter().map(async |wanted| {
        let token = shared.tokens.get(context, pod, &wanted).await;
        (wanted, token)
    }));
    let (config_maps, secrets, tokens) = futures::join!(config_maps, secrets, tokens);
    sources.config_maps.extend(config_maps);
    sources.secrets.extend(secrets);
    sources.tokens.extend(tokens);
    sources
}

/// What the node has for Pods.
pub(crate) fn allocatable(context: &Context) -> BTreeMap<String, Quantity> {
    let node = context.nodes.get("", &context.config.node_name);
    node.and_then(|node| node.status.as_ref()?.allocatable.clone()).unwrap_or_default()
}

/// The state of the sources that were found, in the words of [`versions`].
fn version_found(pod: &Pod, volume: &Volume, sources: &Sources) -> String {
    fn of<T: Referable>(all: &BTreeMap<String, super::payload::Found<T>>, name: &str) -> String {
        match all.get(name) {
            Some(Ok(object)) => version_of(object.as_deref()),
            Some(Err(_)) | None => "unknown".to_owned(),
        }
    }
    version(pod, volume, |name| of(&sources.config_maps, name), |name| of(&sources.secrets, name))
}

fn tokens_of(volume: &Volume) -> Vec<TokenWanted> {
    let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    sources.filter_map(|source| source.service_account_token.as_ref().map(token_wanted)).collect()
}

// === The work ===

/// One volume, with everything that is needed to set it up.
#[derive(Debug)]
struct Work {
    path: PathBuf,
    what: What,
}

#[derive(Debug)]
enum What {
    EmptyDir { memory: Option<u64>, note: PathBuf, group: Option<u32> },
    HostPath { kind: String, shown: String },
    Files { memory: Option<u64>, payload: Payload, inside: Vec<PathBuf>, writing: Writing },
}

/// Sets up those of the Pod's volumes whose names are in `due`.
pub(crate) async fn set_up(
    context: Arc<Context>,
    pod: Arc<Pod>,
    shared: Arc<Shared>,
    due: BTreeSet<String>,
) -> Outcome {
    let volumes: Vec<Volume> = {
        let all = pod.spec.as_ref().map(used).unwrap_or_default();
        all.into_iter().filter(|volume| due.contains(&volume.name)).cloned().collect()
    };
    let sources = gather(&context, &pod, &volumes, &shared).await;
    let mut round = VolumesRound::default();
    if let Err(why) = execute::make_pod_directory(&context, &pod).await {
        context.report(&pod, &PodEvent::pod_warning("Failed", why.clone()));
        let each =
            |volume: &Volume| (volume.name.clone(), (version_found(&pod, volume, &sources), why.clone()));
        round.failed = volumes.iter().map(each).collect();
        return Outcome::VolumesSetUp(Box::new(round));
    }
    let mut work = Vec::new();
    for volume in &volumes {
        let version = version_found(&pod, volume, &sources);
        match plan(&context, &pod, volume, &sources) {
            Ok(planned) => work.push((volume.name.clone(), version, planned)),
            Err(why) => {
                round.failed.insert(volume.name.clone(), (version, why));
            }
        }
        let renewals = tokens_of(volume).iter().filter_map(|wanted| shared.tokens.renew_at(wanted)).min();
        round.renew_at.extend(renewals.map(|at| (volume.name.clone(), at)));
    }
    let host = context.config.volume_host.clone();
    let carry_out = move || {
        let each = |(name, version, work): (String, String, Work)| {
            let result = shared.unless_ended(|| work.carry_out(&host));
            (name, version, result.unwrap_or_else(|| Err("the pod has ended".to_owned())))
        };
        work.into_iter().map(each).collect::<Vec<_>>()
    };
    for (name, version, result) in context.clock.blocking(carry_out).await {
        match result {
            Ok(()) => {
                round.done.insert(name, version);
            }
            Err(why) => {
                round.failed.insert(name, (version, why));
            }
        }
    }
    for (name, (_, why)) in &round.failed {
        let text = format!("MountVolume.SetUp failed for volume \"{name}\" : {why}");
        context.report(&pod, &PodEvent::pod_warning("FailedMount", text));
    }
    Outcome::VolumesSetUp(Box::new(round))
}

fn plan(context: &Context, pod: &Pod, volume: &Volume, sources: &Sources) -> Result<Work, String> {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let directory = context.config.pods_dir.join(&PodIdentity::of(pod).uid);
    let host = &context.config.volume_host;
    let unknown = || "no volume plugin matched".to_owned();
    let (path, _) = place(&directory, volume, host).ok_or_else(unknown)?;
    let group = super::fs_group(pod).filter(|_| host.has_owners());
    let what = if let Some(source) = &volume.host_path {
        What::HostPath { kind: source.type_.clone().unwrap_or_default(), shown: source.path.clone() }
    } else if let Some(source) = &volume.empty_dir {
        let kind = kind(volume).ok_or_else(unknown)?;
        let limit =
            source.size_limit.as_ref().map(|limit| BTreeMap::from([("size".to_owned(), limit.clone())]));
        let limit = whole(limit.as_ref(), "size").and_then(|limit| u64::try_from(limit).ok());
        let in_memory = match source.medium.as_deref().unwrap_or_default() {
            "" => false,
            "Memory" => true,
            other => return Err(format!("unknown storage medium \"{other}\"")),
        };
        What::EmptyDir {
            memory: in_memory
                .then(|| memory_size(context.config.machine.memory_bytes, spec, &sources.allocatable, limit)),
            note: directory.join(NOTES).join(kind).join(&volume.name).join("ready"),
            group,
        }
    } else {
        // What only the Pod is to know is never written to a disk.
        let in_memory = volume.config_map.is_none();
        What::Files {
            memory: in_memory
                .then(|| memory_size(context.config.machine.memory_bytes, spec, &sources.allocatable, None)),
            payload: payload(pod, volume, sources)?,
            inside: mounted_inside(spec, &volume.name),
            writing: Writing { now: context.clock.now(), group, owners: host.has_owners() },
        }
    };
    Ok(Work { path, what })
}

/// The size of a volume in memory: the least of what the node has for Pods, what the Pod may use, and the limit.
fn memory_size(
    machine: u64,
    spec: &PodSpec,
    allocatable: &BTreeMap<String, Quantity>,
    limit: Option<u64>,
) -> u64 {
    let node = whole(Some(allocatable), "memory").and_then(|bytes| u64::try_from(bytes).ok());
    let node = node.filter(|bytes| *bytes > 0).unwrap_or(machine);
    let pod = pod_resources(spec, 0).memory_limit_in_bytes.and_then(|bytes| u64::try_from(bytes).ok());
    [pod, limit].into_iter().flatten().filter(|bytes| *bytes > 0).fold(node, u64::min)
}

/// Where containers mount other things inside of what they see of this volume: directories that have to be there,
/// because the volume itself cannot be written to.
fn mounted_inside(spec: &PodSpec, volume: &str) -> Vec<PathBuf> {
    let mut found = BTreeSet::new();
    for member in containers::all(spec) {
        let mounts: Vec<_> = member.container.volume_mounts.iter().flatten().collect();
        let whole = |mount: &&&k8s_openapi::api::core::v1::VolumeMount| {
            mount.name == volume && mount.sub_path.is_none() && mount.sub_path_expr.is_none()
        };
        for outer in mounts.iter().filter(whole) {
            for inner in &mounts {
                let Ok(below) = Path::new(&inner.mount_path).strip_prefix(&outer.mount_path) else {
                    continue;
                };
                let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
                if plain && !below.as_os_str().is_empty() {
                    found.insert(below.to_owned());
                }
            }
        }
    }
    found.into_iter().collect()
}

impl Work {
    fn carry_out(&self, host: &VolumeHost) -> Result<(), String> {
        let said = |why: io::Error| why.to_string();
        match &self.what {
            What::HostPath { kind, shown } => host_path::check(kind, shown, &self.path),
            What::EmptyDir { memory, note, group } => {
                self.make_empty_dir(host, *memory, note, *group).map_err(said)
            }
            What::Files { memory, payload, inside, writing } => {
                self.write_files(host, *memory, payload, inside, *writing).map_err(said)
            }
        }
    }

    /// Makes the volume once: what containers have written there, and how they have changed it, stays.
    fn make_empty_dir(
        &self,
        host: &VolumeHost,
        memory: Option<u64>,
        note: &Path,
        group: Option<u32>,
    ) -> io::Result<()> {
        let machine = *host == VolumeHost::Machine;
        let mounted = memory.is_none() || !machine || is_mount_point(&self.path)?;
        if note.exists() && self.path.is_dir() && mounted {
            return Ok(());
        }
        self.make_directory(host, memory)?;
        if let Some(group) = group {
            let directory = owner::open_directory(rustix::fs::CWD, &self.path)?;
            owner::give_directory(directory.as_fd(), group, owner::WRITE)?;
        }
        if let Some(parent) = note.parent() {
            make_directory(parent)?;
        }
        fs::write(note, "")
    }

    fn write_files(
        &self,
        host: &VolumeHost,
        memory: Option<u64>,
        payload: &Payload,
        inside: &[PathBuf],
        writing: Writing,
    ) -> io::Result<()> {
        self.make_directory(host, memory)?;
        for path in inside {
            fs::create_dir_all(self.path.join(path))?;
        }
        write(&self.path, payload, writing)?;
        match writing.group {
            Some(group) => {
                let directory = owner::open_directory(rustix::fs::CWD, &self.path)?;
                owner::give_directory(directory.as_fd(), group, owner::READ)
            }
            None => Ok(()),
        }
    }

    /// A directory that everybody may use. Only the machine's administrator gets as far as to it.
    fn make_directory(&self, host: &VolumeHost, memory: Option<u64>) -> io::Result<()> {
        make_directory(&self.path)?;
        if let Some(bytes) = memory {
            host.mount_memory(&self.path, bytes)?;
        }
        // Read through a link if there were one: the directory above belongs to the node agent alone.
        if fs::metadata(&self.path)?.permissions().mode() & 0o777 != 0o777 {
            fs::set_permissions(&self.path, fs::Permissions::from_mode(0o777))?;
        }
        Ok(())
    }
}

/// Takes down the volumes of a Pod.
pub(crate) async fn take_down(context: Arc<Context>, pod: PodIdentity, shared: Arc<Shared>) -> Outcome {
    let directory = context.config.pods_dir.join(&pod.uid);
    let host = context.config.volume_host.clone();
    let removed = context
        .clock
        .blocking(move || shared.end(|| super::tear_down::remove_volumes(&directory, &host)))
        .await;
    match removed {
        Ok(()) => Outcome::TeardownDone,
        Err(why) => {
            tracing::warn!(pod = %pod.full_name(), error = %why, "cannot remove the pod's volumes");
            Outcome::TeardownFailed
        }
    }
}

/// Whether something of a Pod's volumes may be on the node.
pub(crate) async fn any_present(context: &Context, uid: &str) -> bool {
    let directory = context.config.pods_dir.join(uid);
    let look = move || [super::VOLUMES, super::SUB_PATHS].iter().any(|name| directory.join(name).exists());
    context.clock.blocking(look).await
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use serde_json::{Value, json};

    use super::*;
    use crate::volume::tests::Mounts;

    fn empty_dir(directory: &Path, name: &str, memory: Option<u64>, group: Option<u32>) -> Work {
        let note = directory.join(NOTES).join(name).join("ready");
        Work { path: directory.join("volumes").join(name), what: What::EmptyDir { memory, note, group } }
    }

    fn owner_and_mode(work: &Work) -> (u32, u32) {
        let meta = fs::metadata(&work.path).unwrap();
        (meta.gid(), meta.mode() & 0o7777)
    }

    #[test]
    fn an_empty_dir_is_for_all_or_for_the_group_and_is_made_once() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let host = VolumeHost::Machine;
        let for_all = empty_dir(root.path(), "all", None, None);
        for_all.carry_out(&host).unwrap();
        assert_eq!(owner_and_mode(&for_all), (0, 0o777));
        let grouped = empty_dir(root.path(), "grouped", None, Some(4321));
        grouped.carry_out(&host).unwrap();
        assert_eq!(owner_and_mode(&grouped), (4321, 0o2777));

        // What a container has made of it stays: only a volume that is new is given away.
        fs::write(grouped.path.join("file"), "kept").unwrap();
        fs::set_permissions(&grouped.path, fs::Permissions::from_mode(0o700)).unwrap();
        grouped.carry_out(&host).unwrap();
        assert_eq!(owner_and_mode(&grouped), (4321, 0o700));
        assert_eq!(fs::read_to_string(grouped.path.join("file")).unwrap(), "kept");
    }

    #[test]
    fn an_empty_dir_in_memory_has_its_size_and_its_group_and_is_mounted_anew_where_the_mount_is_gone() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let root = Mounts::new();
        let host = VolumeHost::Machine;
        let work = empty_dir(root.0.path(), "memory", Some(1 << 20), Some(4321));
        let sized = || {
            let about = rustix::fs::statvfs(&work.path).unwrap();
            about.f_blocks * about.f_frsize
        };
        for _ in 0..2 {
            work.carry_out(&host).unwrap();
            work.carry_out(&host).unwrap();
            assert!(is_mount_point(&work.path).unwrap());
            assert_eq!((owner_and_mode(&work), sized()), ((4321, 0o2777), 1 << 20));
            // As after a reboot: the note says that the volume was made.
            host.unmount_below(&work.path).unwrap();
        }
    }

    #[test]
    fn memory_for_a_volume_is_the_least_of_the_limit_what_the_pod_may_use_and_what_the_node_has() {
        let size = |limits: Value, allocatable: Value, limit: Option<u64>| {
            let containers = json!([{"name": "c", "resources": {"limits": limits}}]);
            let spec: PodSpec = serde_json::from_value(json!({ "containers": containers })).unwrap();
            memory_size(1 << 30, &spec, &serde_json::from_value(allocatable).unwrap(), limit)
        };
        let (none, small) = (json!({}), json!({"memory": "64Mi"}));
        assert_eq!(size(none.clone(), none.clone(), None), 1 << 30);
        assert_eq!(size(none.clone(), json!({"memory": "512Mi"}), None), 512 << 20);
        assert_eq!(size(small.clone(), none.clone(), None), 64 << 20);
        assert_eq!(size(small.clone(), none.clone(), Some(1 << 20)), 1 << 20);
        assert_eq!(size(small, none, Some(1 << 40)), 64 << 20);
    }
}
