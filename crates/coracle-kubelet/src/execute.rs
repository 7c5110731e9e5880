//! The operations: each carries out one decided step and says how it ended. Nothing is chosen here.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_client::{Deletion, ErrorExt as _, ObjectKey, request};
use coracle_cri::{ContainerId, CriError, DnsConfig, Image, ImageSpec, PodSandboxConfig, PodSandboxId};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use tracing::{info, warn};

use crate::KubeletConfig;
use crate::context::Context;
use crate::credentials;
use crate::disk::{self, PodFiles};
use crate::hooks;
use crate::pod::history::Outcome;
use crate::pod::inputs::PodInputs;
use crate::pod::reasons::{self, PodEvent};
use crate::pod::{StartContainer, containers, image_name};
use crate::prepare::prepare;
use crate::spec::container::{ContainerContext, container_config};
use crate::spec::resources::{Qos, container_resources};
use crate::spec::sandbox::{SandboxContext, sandbox_config};
use crate::spec::{LABEL_CONTAINER_NAME, LABEL_POD_NAME, LABEL_POD_NAMESPACE, PodIdentity, files};
use crate::termination;

// === Sandboxes ===

pub(crate) async fn create_sandbox(context: Arc<Context>, pod: Arc<Pod>, attempt: u32) -> Outcome {
    match try_create_sandbox(&context, &pod, attempt).await {
        Ok(()) => Outcome::SandboxCreated,
        Err(SandboxError { reason, text }) => {
            context.report(&pod, &PodEvent::pod_warning(reason, text));
            Outcome::SandboxFailed
        }
    }
}

/// Why there is no usable sandbox: what the user is told.
struct SandboxError {
    reason: &'static str,
    text: String,
}

impl From<String> for SandboxError {
    fn from(why: String) -> Self {
        SandboxError {
            reason: "FailedCreatePodSandBox",
            text: format!("Failed to create pod sandbox: {why}"),
        }
    }
}

/// Makes the directory of a Pod's own.
///
/// # Errors
/// The text of the event `Failed`.
pub(crate) async fn make_pod_directory(context: &Context, pod: &Pod) -> Result<(), String> {
    let directory = pod_dir(context, &PodIdentity::of(pod));
    let path = directory.clone();
    let made = context.clock.blocking(move || disk::make_directory(&path)).await;
    made.map_err(|why| format!("error making pod data directories: mkdir {}: {why}", directory.display()))
}

async fn try_create_sandbox(context: &Context, pod: &Pod, attempt: u32) -> Result<(), SandboxError> {
    make_pod_directory(context, pod).await.map_err(|text| SandboxError { reason: "Failed", text })?;
    let dns = pod_dns(context, pod).await;
    if dns.missing_cluster_dns {
        let text = format!(
            "pod: \"{}\". kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" \
             policy. Falling back to \"Default\" policy.",
            PodIdentity::of(pod).full_name()
        );
        context.report(pod, &PodEvent::pod_warning("MissingClusterDNS", text));
    }
    for text in &dns.cut {
        context.report(pod, &PodEvent::pod_warning("DNSConfigForming", text.clone()));
    }
    let config = make_sandbox_config(context, pod, attempt, dns.config)?;
    let logs = config.log_directory.clone();
    let made = context.clock.blocking(move || std::fs::create_dir_all(logs)).await;
    made.map_err(|why| format!("cannot make the log directory {}: {why}", config.log_directory.display()))?;
    let made = context.runtime.run_pod_sandbox(&config).await.map_err(|why| match why {
        CriError::Cgroup(_) => {
            let parts: Vec<_> = config.cgroup_parent.split('/').filter(|part| !part.is_empty()).collect();
            let text = format!(
                "unable to ensure pod container exists: failed to create container for [{}] : {why}",
                parts.join(" ")
            );
            SandboxError { reason: "FailedCreatePodContainer", text }
        }
        other => other.to_string().into(),
    })?;
    let status = context.runtime.pod_sandbox_status(&made).await;
    status.map(drop).map_err(|why| SandboxError {
        reason: "FailedPodSandBoxStatus",
        text: format!("Unable to get pod sandbox status: {why}"),
    })
}

async fn pod_dns(context: &Context, pod: &Pod) -> files::PodDns {
    let config = &context.config;
    let resolv_conf = config.resolv_conf.clone();
    let node = context.clock.blocking(move || disk::text(&resolv_conf)).await;
    let cluster = files::ClusterDns { servers: &config.cluster_dns, domain: &config.cluster_domain };
    let namespace = PodIdentity::of(pod).namespace;
    files::pod_dns(&spec_of(pod), &namespace, &files::parse_resolv_conf(&node), cluster)
}

fn make_sandbox_config(
    context: &Context,
    pod: &Pod,
    attempt: u32,
    dns: DnsConfig,
) -> Result<PodSandboxConfig, String> {
    let config = &context.config;
    let identity = PodIdentity::of(pod);
    let spec = spec_of(pod);
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
    sandbox_config(pod, &spec, &sandbox)
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
    volume: bool,
) -> Outcome {
    let secrets = credentials::secrets_or_event(&context, &pod).await;
    let about = (!volume).then(|| container.clone());
    let tell = |warning, reason, message| {
        context.report(&pod, &PodEvent { container: about.clone(), warning, reason, message });
    };
    tell(false, "Pulling", format!("Pulling image \"{image}\""));
    let asked = context.clock.elapsed();
    let _turn = context.pulls.acquire().await;
    let begun = context.clock.elapsed();
    let result = credentials::pull::pull(&context, &secrets, &image).await;
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
            tell(false, "Pulled", text);
            Outcome::Pulled { container, image, image_ref }
        }
        Err(why) => {
            let (reason, message) = match &why {
                CriError::RegistryUnavailable(_) => (
                    reasons::REGISTRY_UNAVAILABLE,
                    format!("image pull failed for {image} because the registry is unavailable: {why}"),
                ),
                _ => (reasons::ERR_IMAGE_PULL, why.to_string()),
            };
            tell(true, "Failed", format!("Failed to pull image \"{image}\": {why}"));
            context.report(&pod, &reasons::start_failed_event(&container, reason));
            let asked = find_container(&pod, &container).and_then(|c| c.image.clone()).unwrap_or_default();
            Outcome::PullFailed {
                container,
                image: asked,
                pulling: image,
                reason: reason.to_owned(),
                message,
            }
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
            // What a hook was answered may be a secret: it is not told in events.
            if reason != reasons::POST_START_HOOK_ERROR {
                context.report(&pod, &reasons::start_failed_event(&name, &message));
            }
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
        // Nothing had to be fetched. That secrets for it are missing is told all the same.
        credentials::secrets_or_event(context, pod).await;
        context.report(pod, event);
    }
    let sandbox_config = {
        let attempt = context.runtime.pod_sandbox_status(&start.sandbox).await;
        let attempt = attempt.map_or(0, |status| status.sandbox.metadata.attempt);
        let dns = pod_dns(context, pod).await.config;
        make_sandbox_config(context, pod, attempt, dns).map_err(config_error)?
    };
    let prepared = prepare(context, pod, pod_ips, container, start, &sandbox_config.log_directory);
    let prepared = prepared.await.map_err(config_error)?;
    let spec = spec_of(pod);
    let container_context = ContainerContext {
        envs: &prepared.envs,
        volume_mounts: &prepared.volume_mounts,
        image: &image,
        resources: container_resources(&spec, container, qos(pod), context.config.machine.memory_bytes),
        hosts_file: prepared.hosts_file,
        termination_file: prepared.termination_file,
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
    let pod_ip = pod_ips.first().map(String::as_str).unwrap_or_default();
    let hooked = hooks::after_start(context, pod, container, &id, pod_ip).await;
    hooked.map_err(|message| (reasons::POST_START_HOOK_ERROR, message))
}

/// Runs the postStart hook of a container that was started by an agent which ended before the hook did.
pub(crate) async fn finish_start(
    context: Arc<Context>,
    pod: Arc<Pod>,
    pod_ips: Vec<String>,
    name: String,
    id: ContainerId,
) -> Outcome {
    let Some(container) = find_container(&pod, &name) else { return Outcome::Started { container: name } };
    let pod_ip = pod_ips.first().map(String::as_str).unwrap_or_default();
    match hooks::after_start(&context, &pod, &container, &id, pod_ip).await {
        Ok(()) => Outcome::Started { container: name },
        Err(message) => start_failed(&pod, name.clone(), reasons::POST_START_HOOK_ERROR, message),
    }
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
    context: Arc<Context>,
    pod: Arc<Pod>,
    id: ContainerId,
    grace: Duration,
) -> Outcome {
    hooks::before_stop(&context, &pod, &id, grace).await;
    Outcome::PreStopped(id)
}

pub(crate) async fn stop_container(
    context: Arc<Context>,
    pod: Arc<Pod>,
    id: ContainerId,
    grace: Duration,
    pre_stop: bool,
) -> Outcome {
    match hooks::stop(&context, &pod, &id, grace, pre_stop).await {
        Ok(()) => Outcome::TeardownDone,
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
        volume_host: context.config.volume_host.clone(),
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

/// Removes what is on the disk of a Pod of which nothing else is left.
pub(crate) async fn remove_forgotten(context: Arc<Context>, uid: String) {
    info!(uid, "removing what is left of a pod that no longer exists");
    let config = context.config.clone();
    let name = uid.clone();
    let remove = move || {
        let KubeletConfig { pods_dir, pod_logs_dir, container_logs_dir, volume_host, .. } = &config;
        disk::remove_forgotten(&name, pods_dir, pod_logs_dir, container_logs_dir, volume_host)
    };
    if let Err(why) = context.clock.blocking(remove).await {
        warn!(uid, error = %why, "cannot remove what is left of a pod");
    }
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
