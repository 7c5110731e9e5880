//! What `coracle down` does from outside, when the cluster's process is gone: end containers, remove traces.
//!
//! Everything here looks at what there is and removes that; nothing depends on how the cluster ended.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use coracle_clock::{Clock, Rng};
use coracle_cri::{
    Container, ContainerFilter, ContainerState, PodSandboxFilter, PodSandboxState, RuntimeService,
};
use coracle_kubelet::spec::ANNOTATION_GRACE;
use coracle_net::bridge::BridgeNetwork;
use coracle_net::overlay::{Overlay, OverlayConfig};
use futures::future::join_all;

use super::{node, open_images};
use crate::cluster::Cluster;
use crate::settings::Settings;

/// How long containers may take to end after their stop signal when the cluster goes down, at most: less if their
/// Pod says so.
const GRACE: Duration = Duration::from_secs(10);

/// Stops all containers and sandboxes; returns how many sandboxes there were. What is about to be purged may be damaged.
pub(crate) fn stop_containers(cluster: &Cluster, purging: bool) -> anyhow::Result<usize> {
    let settings = if purging { cluster.settings_to_remove()? } else { cluster.settings()? };
    let Some(settings) = settings else { return Ok(0) };
    block_on(async {
        let clock = Clock::system();
        let network = std::sync::Arc::new(node::open_network(cluster, &settings)?);
        let images = std::sync::Arc::new(open_images(cluster)?);
        let config = node::runtime_config(cluster);
        let runtime = coracle_runtime::EmbeddedRuntime::open(config, network, images, clock, Rng::from_os())
            .await
            .context("cannot open the container runtime")?;
        let running = ContainerFilter { state: Some(ContainerState::Running), ..ContainerFilter::default() };
        let containers = runtime.list_containers(&running).await?;
        let stops =
            containers.iter().map(|container| runtime.stop_container(&container.id, grace(container)));
        report(join_all(stops).await);
        let ready = PodSandboxFilter { state: Some(PodSandboxState::Ready), ..PodSandboxFilter::default() };
        let sandboxes = runtime.list_pod_sandboxes(&ready).await?;
        report(join_all(sandboxes.iter().map(|sandbox| runtime.stop_pod_sandbox(&sandbox.id))).await);
        Ok(sandboxes.len())
    })
}

fn grace(container: &Container) -> Duration {
    let of_pod = container.annotations.get(ANNOTATION_GRACE).and_then(|seconds| seconds.parse().ok());
    of_pod.map_or(GRACE, |seconds| GRACE.min(Duration::from_secs(seconds)))
}

/// What a purge leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    Nothing,
    /// What somebody has imported before the first start.
    Images,
}

/// Removes everything of the cluster from this machine. Settings that are missing or damaged are no reason to leave
/// the rest: all but the network links has the cluster's name.
pub(crate) fn purge(cluster: &Cluster, kept: Kept) -> anyhow::Result<()> {
    // Read before anything is removed: the copy of the settings lies in the run directory, which goes first.
    let settings = cluster.settings_to_remove();
    coracle_runtime::purge(&node::runtime_config(cluster))
        .context("cannot remove what the container runtime left")?;
    match settings {
        Ok(Some(settings)) => {
            let network = network_to_purge(cluster, &settings)?;
            let device = node::overlay_device(&settings);
            let overlay = Overlay::new(OverlayConfig { device, vni: 0, address: Ipv4Addr::UNSPECIFIED });
            block_on(async {
                network.purge().await.context("cannot remove the Pod network")?;
                overlay.purge().await.context("cannot remove the overlay")
            })?;
            if let Some(etcd) = settings.store.as_ref().filter(|etcd| etcd.used) {
                let left = block_on(super::store::let_go(cluster, etcd))?;
                crate::output::note(left);
            }
        }
        Ok(None) => {}
        Err(error) => crate::output::note(format_args!(
            "warning: {error:#}\nwarning: the cluster's links are not known: `ip link` shows those named coracleN, \
             `ip link delete` removes them, and `nft delete table ip {}` its packet rules",
            cluster.nft_table()
        )),
    }
    remove_logs(cluster)?;
    // Volumes are mounted there, and may hold more of the machine than the cluster's own.
    let pods = cluster.pod_directories();
    coracle_kubelet::remove_pod_directories(&pods)
        .with_context(|| format!("cannot remove volumes in {}", pods.display()))?;
    remove_all(&cluster.run)?;
    if kept == Kept::Images && cluster.images().join("images.json").exists() {
        for entry in entries(&cluster.data).filter(|entry| entry.path() != cluster.images()) {
            let path = entry.path();
            if path.is_dir() { remove_all(&path)? } else { std::fs::remove_file(&path)? }
        }
    } else {
        remove_all(&cluster.data)?;
    }
    cluster.forget()
}

/// Removes the directory of a cluster, and nothing that has its name elsewhere.
pub(crate) fn purge_directory(cluster: &Cluster) -> anyhow::Result<()> {
    let pods = cluster.pod_directories();
    coracle_kubelet::remove_pod_directories(&pods)
        .with_context(|| format!("cannot remove volumes in {}", pods.display()))?;
    remove_all(&cluster.data)?;
    cluster.forget()
}

/// The Pod network; without its records, if they cannot be read: links and rules have the cluster's name.
fn network_to_purge(cluster: &Cluster, settings: &Settings) -> anyhow::Result<BridgeNetwork> {
    node::open_network(cluster, settings).or_else(|_| {
        let records = node::network_records(cluster);
        let _ = std::fs::remove_file(&records);
        remove_all(&records)?;
        node::open_network(cluster, settings)
    })
}

/// Logs of this cluster's Pods, where they stand beside those of others. The directories of the Pods say which.
fn remove_logs(cluster: &Cluster) -> anyhow::Result<()> {
    let (pods, containers) = (cluster.pod_logs(), cluster.container_logs());
    if pods.starts_with(&cluster.data) {
        return Ok(());
    }
    for pod in entries(&cluster.pod_directories()) {
        let suffix = format!("_{}", pod.file_name().to_string_lossy());
        let ours = |name: &Path| name.to_string_lossy().ends_with(&suffix);
        for link in entries(&containers) {
            let target = std::fs::read_link(link.path()).unwrap_or_default();
            if target.starts_with(&pods) && target.parent().and_then(Path::parent).is_some_and(ours) {
                std::fs::remove_file(link.path())
                    .with_context(|| format!("cannot remove {}", link.path().display()))?;
            }
        }
        for log in entries(&pods).filter(|log| ours(Path::new(&log.file_name()))) {
            remove_all(&log.path())?;
        }
    }
    // Gone if this cluster was the only one that wrote there.
    let _ = std::fs::remove_dir(&pods);
    let _ = std::fs::remove_dir(&containers);
    Ok(())
}

fn entries(directory: &Path) -> impl Iterator<Item = std::fs::DirEntry> {
    std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok)
}

fn remove_all(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(path) {
        // A file in the way is somebody else's.
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            Ok(())
        }
        removed => removed.with_context(|| format!("cannot remove {}", path.display())),
    }
}

fn report<T>(results: Vec<coracle_cri::CriResult<T>>) {
    for error in results.into_iter().filter_map(Result::err) {
        crate::output::note(format_args!("warning: {error}"));
    }
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
