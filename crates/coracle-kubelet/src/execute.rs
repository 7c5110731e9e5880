//! The operations: each carries out one decided step and says how it ended. Nothing is chosen here.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_client::{Deletion, ErrorExt as _, ObjectKey, request};
use coracle_cri::{ContainerId, CriError, Image, ImageSpec, PodSandboxConfig, PodSandboxId};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use tracing::{info, warn};

use crate::context::Context;
use crate::disk::{self, ContainerFiles, PodFiles};
use crate::pod::history::Outcome;
use crate::pod::inputs::PodInputs;
use crate::pod::reasons::{self, PodEvent};
use crate::pod::{StartContainer, containers, image_name};
use crate::spec::container::{ContainerContext, container_config};
use crate::spec::env::{EnvContext, service_variables};
use crate::spec::resources::{Qos, container_resources};
use crate::spec::sandbox::{SandboxContext, fqdn, sandbox_config, short_hostname};
use crate::spec::{LABEL_CONTAINER_NAME, LABEL_POD_NAME, LABEL_POD_NAMESPACE, PodIdentity, files};
use crate::termination;

// === Sandboxes ===

pub(crate) async fn create_sandbox(context: Arc<Context>, pod: Arc<Pod>, attempt: u32) -> Outcome {
    let (config, missing_dns) = make_sandbox_config(&context, &pod, attempt).await;
    if missing_dns {
        let policy = spec_of(&pod).dns_policy.unwrap_or_else(|| "ClusterFirst".to_owned());
        let text = format!(
            "pod: \"{}\". kubelet does not have ClusterDNS IP configured and cannot create Pod using \"{policy}\" policy. \
             Falling back to \"Default\" policy.",
            PodIdentity::of(&pod).full_name()
        );
        context.report(&pod, &PodEvent::pod_warning("MissingClusterDNS", text));
    }
    let logs = config.log_directory.clone();
    let result = match context.clock.blocking(move || std::fs::create_dir_all(logs)).await {
        Ok(()) => context.runtime.run_pod_sandbox(&config).await.map_err(|e| e.to_string()),
        Err(why) => Err(format!("cannot make the log directory {}: {why}", config.log_directory.display())),
    };
    match result {
        Ok(_) => Outcome::SandboxCreated,
        Err(why) => {
            let text = format!("Failed to create pod sandbox: {why}");
            context.report(&pod, &PodEvent::pod_warning("FailedCreatePodSandBox", text));
            Outcome::SandboxFailed
        }
    }
}

async fn make_sandbox_config(context: &Context, pod: &Pod, attempt: u32) -> (PodSandboxConfig, bool) {
    let config = &context.config;
    let identity = PodIdentity::of(pod);
    let spec = spec_of(pod);
    let resolv_conf = config.resolv_conf.clone();
    let node_dns = context.clock.blocking(move || disk::text(&resolv_conf)).await;
    let cluster = files::ClusterDns { servers: &config.cluster_dns, domain: &config.cluster_domain };
    let node_dns = files::parse_resolv_conf(&node_dns);
    let (dns, missing) = files::pod_dns(&spec, &identity.namespace, &node_dns, cluster);
    let sandbox = SandboxContext {
        attempt,
        node_hostname: config.hostname.clone(),
        cluster_domain: config.cluster_domain.clone(),
        log_directory: config.pod_log_dir(&identity.namespace, &identity.name, &identity.uid),
        dns,
        cgroup_root: config.cgroup_root.clone(),
        qos: qos(pod),
        node_pids: config.machine.pids,
    };
    (sandbox_config(pod, &spec, &sandbox), missing)
}

pub(crate) async fn stop_sandbox(context: Arc<Context>, pod: Arc<Pod>, id: PodSandboxId) -> Outcome {
    match context.runtime.stop_pod_sandbox(&id).await {
        Ok(()) | Err(CriError::NotFound(_)) => Outcome::SandboxStopped(id),
        Err(why) => teardown_failed(&context, &pod, &why),
    }
}

pub(crate) async fn remove_sandbox(context: Arc<Context>, id: PodSandboxId) -> Outcome {
    match context.runtime.remove_pod_sandbox(&id).await {
        Ok(()) | Err(CriError::NotFound(_)) => Outcome::TeardownDone,
        Err(why) => {
            warn!(sandbox = %id, error = %why, "cannot remove a sandbox");
            Outcome::TeardownFailed
        }
    }
}

fn teardown_failed(context: &Context, pod: &Pod, why: &CriError) -> Outcome {
    context.report(pod, &PodEvent::pod_warning("FailedKillPod", format!("error killing pod: {why}")));
    Outcome::TeardownFailed
}

// === Images ===

pub(crate) async fn pull_image(
    context: Arc<Context>,
    pod: Arc<Pod>,
    container: String,
    image: String,
) -> Outcome {
    context.report(&pod, &PodEvent::normal(&container, "Pulling", format!("Pulling image \"{image}\"")));
    let asked = context.clock.elapsed();
    let _turn = context.pulls.acquire().await;
    let begun = context.clock.elapsed();
    let reference = ImageSpec { image: image.clone() };
    let result = context.images.pull_image(&reference, None, None).await;
    let ended = context.clock.elapsed();
    match result {
        Ok(image_ref) => {
            let pulled = context.images.image_status(&ImageSpec { image: image_ref.clone() }).await;
            let size = pulled.ok().flatten().map_or(0, |image| image.size);
            let text = format!(
                "Successfully pulled image \"{image}\" in {} ({} including waiting). Image size: {size} bytes.",
                whole_millis(ended - begun),
                whole_millis(ended - asked)
            );
            context.report(&pod, &PodEvent::normal(&container, "Pulled", text));
            Outcome::Pulled { container, image_ref }
        }
        Err(why) => {
            let (reason, message) = match &why {
                CriError::RegistryUnavailable(_) => (
                    reasons::REGISTRY_UNAVAILABLE,
                    format!("image pull failed for {image} because the registry is unavailable: {why}"),
                ),
                _ => (reasons::ERR_IMAGE_PULL, why.to_string()),
            };
            let text = format!("Failed to pull image \"{image}\": {why}");
            context.report(&pod, &PodEvent::warning(&container, "Failed", text));
            context.report(&pod, &reasons::start_failed_event(&container, reason));
            start_failed(&pod, container, reason, message)
        }
    }
}

fn whole_millis(duration: Duration) -> String {
    let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    reasons::go_duration(SignedDuration::from_millis(millis))
}

fn start_failed(pod: &Pod, container: String, reason: &str, message: String) -> Outcome {
    let image = find_container(pod, &container).and_then(|c| c.image.clone()).unwrap_or_default();
    Outcome::StartFailed { container, image, reason: reason.to_owned(), message }
}

// === Containers ===

/// The addresses that the Pod has, as its containers are told.
pub(crate) fn pod_ips(inputs: &PodInputs) -> Vec<String> {
    let ips = if inputs.host_network() {
        inputs.node.host_ips.as_slice()
    } else {
        inputs.ready_sandbox().map_or(&[][..], |s| s.ips.as_slice())
    };
    ips.iter().map(ToString::to_string).collect()
}

pub(crate) async fn start_container(
    context: Arc<Context>,
    pod: Arc<Pod>,
    pod_ips: Vec<String>,
    start: StartContainer,
) -> Outcome {
    let name = start.container.clone();
    match try_start(&context, &pod, &pod_ips, &start).await {
        Ok(()) => Outcome::Started { container: name },
        Err((reason, message)) => {
            context.report(&pod, &reasons::start_failed_event(&name, &message));
            start_failed(&pod, name, reason, message)
        }
    }
}

async fn try_start(
    context: &Context,
    pod: &Pod,
    pod_ips: &[String],
    start: &StartContainer,
) -> Result<(), (&'static str, String)> {
    let config_error = |message: String| (reasons::CREATE_CONTAINER_CONFIG_ERROR, message);
    let name = start.container.as_str();
    let container = find_container(pod, name).ok_or_else(|| config_error(format!("no container {name}")))?;
    let container = container.as_ref();
    let image = resolve_image(context, container, start).await?;
    if let Some(event) = &start.event {
        context.report(pod, event);
    }
    let sandbox_config = {
        let attempt = context.runtime.pod_sandbox_status(&start.sandbox).await;
        let attempt = attempt.map_or(0, |status| status.sandbox.metadata.attempt);
        make_sandbox_config(context, pod, attempt).await.0
    };
    let prepared = prepare_files(context, pod, pod_ips, start, &sandbox_config.log_directory);
    let (hosts_file, termination_file) = prepared.await.map_err(|why| config_error(why.to_string()))?;
    let spec = spec_of(pod);
    let host_ips: Vec<_> = context.config.node_ips.iter().map(ToString::to_string).collect();
    let services = context.services.list();
    let container_context = ContainerContext {
        env: EnvContext {
            pod,
            node_name: &context.config.node_name,
            host_ips: &host_ips,
            pod_ips,
            services: service_variables(pod, services.iter().map(AsRef::as_ref)),
        },
        image: &image,
        resources: container_resources(&spec, container, qos(pod), context.config.machine.memory_bytes),
        hosts_file,
        termination_file,
    };
    let config = container_config(pod, container, start, &container_context).map_err(config_error)?;
    let id = context
        .runtime
        .create_container(&start.sandbox, &config, &sandbox_config)
        .await
        .map_err(|why| (reasons::CREATE_CONTAINER_ERROR, why.to_string()))?;
    context.report(pod, &PodEvent::normal(name, "Created", "Container created"));
    link_log(context, pod, name, &id, sandbox_config.log_directory.join(&config.log_path)).await;
    let started = context.runtime.start_container(&id).await;
    started.map_err(|why| (reasons::RUN_CONTAINER_ERROR, why.to_string()))?;
    context.report(pod, &PodEvent::normal(name, "Started", "Container started"));
    Ok(())
}

async fn resolve_image(
    context: &Context,
    container: &Container,
    start: &StartContainer,
) -> Result<Image, (&'static str, String)> {
    if let (None, Some(image)) = (&start.pulled, &start.image) {
        return Ok(image.clone());
    }
    let wanted = container.image.clone().unwrap_or_default();
    let named = image_name::with_default_tag(&wanted).unwrap_or(wanted);
    for image in start.pulled.iter().cloned().chain([named.clone()]) {
        if let Ok(Some(image)) = context.images.image_status(&ImageSpec { image }).await {
            return Ok(image);
        }
    }
    Err((reasons::IMAGE_INSPECT_ERROR, format!("Failed to inspect image \"{named}\": no such image")))
}

/// Makes what the container will find mounted: the Pod's hosts file and an empty termination message file.
async fn prepare_files(
    context: &Context,
    pod: &Pod,
    pod_ips: &[String],
    start: &StartContainer,
    log_directory: &Path,
) -> io::Result<(PathBuf, PathBuf)> {
    let directory = pod_dir(context, &PodIdentity::of(pod));
    let own = directory.join("containers").join(&start.container);
    let spec = spec_of(pod);
    let aliases = spec.host_aliases.as_deref().unwrap_or_default();
    let hosts = if spec.host_network == Some(true) {
        let node_file = context.config.hosts_file.clone();
        let node_file = context.clock.blocking(move || disk::text(&node_file)).await;
        files::host_network_hosts(&node_file, aliases)
    } else {
        let full = fqdn(pod, &spec, &context.config.cluster_domain);
        files::hosts(pod_ips, &short_hostname(pod, &spec), full.as_deref(), aliases)
    };
    let hosts_file = directory.join("etc-hosts");
    let termination_file = own.join(format!("{}-termination-log", start.attempt));
    let made = ContainerFiles {
        log_directory: log_directory.join(&start.container),
        hosts_file: hosts_file.clone(),
        hosts,
        termination_file: termination_file.clone(),
    };
    context.clock.blocking(move || made.make()).await?;
    Ok((hosts_file, termination_file))
}

async fn link_log(context: &Context, pod: &Pod, container: &str, id: &ContainerId, log: PathBuf) {
    let identity = PodIdentity::of(pod);
    let link = context.config.container_log_link(&identity.namespace, &identity.name, container, &id.0);
    let path = link.clone();
    if let Err(why) = context.clock.blocking(move || disk::link_log(&log, &path)).await {
        warn!(link = %link.display(), error = %why, "cannot link a container's log");
    }
}

/// Runs the preStop hook of a container that is not to be stopped yet.
pub(crate) async fn pre_stop(
    _context: Arc<Context>,
    _pod: Arc<Pod>,
    id: ContainerId,
    _grace: Duration,
) -> Outcome {
    Outcome::PreStopped(id)
}

pub(crate) async fn stop_container(
    context: Arc<Context>,
    pod: Arc<Pod>,
    id: ContainerId,
    grace: Duration,
    _pre_stop: bool,
) -> Outcome {
    match context.runtime.stop_container(&id, grace).await {
        Ok(()) | Err(CriError::NotFound(_)) => Outcome::TeardownDone,
        Err(why) => teardown_failed(&context, &pod, &why),
    }
}

pub(crate) async fn remove_container(context: Arc<Context>, pod: PodIdentity, id: ContainerId) -> Outcome {
    let status = context.runtime.container_status(&id).await;
    if let Err(why) = context.runtime.remove_container(&id).await {
        warn!(container = %id, error = %why, "cannot remove a container");
        return Outcome::TeardownFailed;
    }
    if let Ok(status) = status {
        let name = &status.container.name;
        let link = context.config.container_log_link(&pod.namespace, &pod.name, name, &id.0);
        let message = termination::message_file(&status);
        let log = status.log_path;
        context.clock.blocking(move || disk::remove_container(&link, &log, message.as_deref())).await;
    }
    Outcome::TeardownDone
}

// === The end ===

pub(crate) async fn delete_pod(context: Arc<Context>, key: ObjectKey, uid: String) -> Outcome {
    match request::delete::<Pod>(&context.client, &key, &Deletion::of(uid).grace(0)).await {
        Ok(_) => Outcome::DeleteSent,
        // Gone already, or another Pod by the same name: this one's object is no more.
        Err(why) if why.is_not_found() || why.is_conflict() => Outcome::DeleteSent,
        Err(why) => {
            warn!(pod = %key, error = %why, "cannot delete the pod's object");
            Outcome::DeleteFailed
        }
    }
}

pub(crate) async fn clean_up(context: Arc<Context>, pod: PodIdentity) -> Outcome {
    let logs = context.config.pod_log_dir(&pod.namespace, &pod.name, &pod.uid);
    let files = PodFiles {
        links: context.config.container_logs_dir.clone(),
        prefix: format!("{}_{}_", pod.name, pod.namespace),
        logs,
        directory: pod_dir(&context, &pod),
    };
    match context.clock.blocking(move || files.remove()).await {
        Ok(()) => Outcome::CleanedUp,
        Err(why) => {
            warn!(pod = %pod.full_name(), error = %why, "cannot remove the pod's directories");
            Outcome::TeardownFailed
        }
    }
}

/// Stops and removes what the runtime holds of a Pod that the API server does not know, with its directories.
pub(crate) async fn remove_orphan(context: Arc<Context>, sandbox: coracle_cri::PodSandbox) {
    let text = |label: &str| sandbox.labels.get(label).cloned().unwrap_or_default();
    let pod = PodIdentity {
        namespace: text(LABEL_POD_NAMESPACE),
        name: text(LABEL_POD_NAME),
        uid: sandbox.metadata.uid.clone(),
    };
    info!(pod = %pod.full_name(), "removing a pod that no longer exists");
    let filter = coracle_cri::ContainerFilter { sandbox: Some(sandbox.id.clone()), ..Default::default() };
    let containers = context.runtime.list_containers(&filter).await.unwrap_or_default();
    let grace = Duration::try_from(crate::pod::MINIMUM_GRACE).unwrap_or_default();
    let stops = containers.iter().map(|c| context.runtime.stop_container(&c.id, grace));
    for (result, container) in futures::future::join_all(stops).await.into_iter().zip(&containers) {
        if let Err(why) = result {
            let name = container.labels.get(LABEL_CONTAINER_NAME);
            warn!(pod = %pod.full_name(), container = ?name, error = %why, "cannot stop a container");
        }
    }
    if let Err(why) = context.runtime.remove_pod_sandbox(&sandbox.id).await {
        warn!(pod = %pod.full_name(), error = %why, "cannot remove a sandbox");
        return;
    }
    clean_up(context, pod).await;
}

// === Helpers ===

fn pod_dir(context: &Context, pod: &PodIdentity) -> PathBuf {
    context.config.pods_dir.join(&pod.uid)
}

fn spec_of(pod: &Pod) -> PodSpec {
    pod.spec.clone().unwrap_or_default()
}

/// The definition of a container of any kind.
fn find_container<'a>(pod: &'a Pod, name: &str) -> Option<Cow<'a, Container>> {
    Some(containers::find(pod.spec.as_ref()?, name)?.container)
}

fn qos(pod: &Pod) -> Qos {
    let class = pod.status.as_ref().and_then(|s| s.qos_class.as_deref()).and_then(Qos::parse);
    // The API server sets it when the Pod is made; without it, nothing was asked for.
    class.unwrap_or(Qos::BestEffort)
}
