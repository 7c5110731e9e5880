//! What a container needs before it can be made: its variables, its mounts, its files.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use coracle_cri::{EnvVar, Mount};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use tracing::warn;

use crate::context::Context;
use crate::disk::{self, ContainerFiles};
use crate::pod::StartContainer;
use crate::pod::reasons::PodEvent;
use crate::spec::PodIdentity;
use crate::spec::env::{EnvContext, Environment, environment};
use crate::spec::files;
use crate::spec::sandbox::{fqdn, short_hostname};
use crate::spec::services::service_variables;
use crate::volume::{self, env_file, mounts, set_up};

/// What was prepared.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) envs: Vec<EnvVar>,
    pub(crate) volume_mounts: Vec<Mount>,
    pub(crate) hosts_file: PathBuf,
    pub(crate) termination_file: PathBuf,
}

/// Prepares everything, and tells the user what was left out.
///
/// # Errors
/// The waiting message of `CreateContainerConfigError`.
pub(crate) async fn prepare(
    context: &Context,
    pod: &Pod,
    pod_ips: &[String],
    container: &Container,
    start: &StartContainer,
    log_directory: &Path,
) -> Result<Prepared, String> {
    let Environment { variables, skipped } = variables(context, pod, pod_ips, container).await?;
    for text in skipped {
        context.report(pod, &PodEvent::pod_warning("InvalidEnvironmentVariableNames", text));
    }
    let volume_mounts = mounts::container_mounts(context, pod, container, &variables, &start.volumes).await?;
    let logs = log_directory.join(&start.container);
    let path = logs.clone();
    let made = context.clock.blocking(move || std::fs::create_dir_all(path)).await;
    made.map_err(|why| {
        let (name, logs) = (&start.container, logs.display());
        format!("create container log directory for container {name} failed: mkdir {logs}: {why}")
    })?;
    let files = make_files(context, pod, pod_ips, start).await;
    let (hosts_file, termination_file) = files.map_err(|why| why.to_string())?;
    Ok(Prepared { envs: variables, volume_mounts, hosts_file, termination_file })
}

async fn variables(
    context: &Context,
    pod: &Pod,
    pod_ips: &[String],
    container: &Container,
) -> Result<Environment, String> {
    let namespace = PodIdentity::of(pod).namespace;
    let host_ips: Vec<_> = context.config.node_ips.iter().map(ToString::to_string).collect();
    let services = context.services.list();
    let (mut config_maps, mut secrets, mut files) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for source in container.env_from.iter().flatten() {
        config_maps.extend(source.config_map_ref.iter().map(|all| all.name.clone()));
        secrets.extend(source.secret_ref.iter().map(|all| all.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.iter().map(|key| key.name.clone()));
        secrets.extend(source.secret_key_ref.iter().map(|key| key.name.clone()));
        files.extend(source.file_key_ref.iter().map(|key| (key.volume_name.clone(), key.path.clone())));
    }
    let mut found = EnvContext {
        pod,
        node_name: &context.config.node_name,
        host_ips: &host_ips,
        pod_ips,
        services: service_variables(pod, services.iter().map(AsRef::as_ref)),
        config_maps: BTreeMap::new(),
        secrets: BTreeMap::new(),
        files: BTreeMap::new(),
        allocatable: set_up::allocatable(context),
    };
    for name in config_maps {
        let map = context.objects.config_maps.get(&namespace, &name).await;
        found.config_maps.insert(name, map);
    }
    for name in secrets {
        let secret = context.objects.secrets.get(&namespace, &name).await;
        found.secrets.insert(name, secret);
    }
    for (name, path) in files {
        if let Some(volume) = volume::path(context, pod, &name) {
            let file = path.clone();
            let text = context.clock.blocking(move || env_file::read(&volume, &file)).await;
            if let Err(why) = &text {
                warn!(pod = %PodIdentity::of(pod).full_name(), volume = name, error = %why, "cannot read a file of variables");
            }
            found.files.insert((name, path), text.map_err(|why| why.to_string()));
        }
    }
    environment(container, &found)
}

/// Makes the Pod's hosts file and an empty termination message file.
async fn make_files(
    context: &Context,
    pod: &Pod,
    pod_ips: &[String],
    start: &StartContainer,
) -> io::Result<(PathBuf, PathBuf)> {
    let directory = context.config.pods_dir.join(PodIdentity::of(pod).uid);
    let own = directory.join("containers").join(&start.container);
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let aliases = spec.host_aliases.as_deref().unwrap_or_default();
    let hosts = if spec.host_network == Some(true) {
        let node_file = context.config.hosts_file.clone();
        let node_file = context.clock.blocking(move || disk::text(&node_file)).await;
        files::host_network_hosts(&node_file, aliases)
    } else {
        let full = fqdn(pod, spec, &context.config.cluster_domain);
        files::hosts(pod_ips, &short_hostname(pod, spec), full.as_deref(), aliases)
    };
    let hosts_file = directory.join("etc-hosts");
    let termination_file = own.join(format!("{}-termination-log", start.attempt));
    let made =
        ContainerFiles { hosts_file: hosts_file.clone(), hosts, termination_file: termination_file.clone() };
    context.clock.blocking(move || made.make()).await?;
    Ok((hosts_file, termination_file))
}
