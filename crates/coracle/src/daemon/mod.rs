//! The cluster's process: assembles the parts, runs them, ends them in order. And what `down` does from outside.

mod assemble;
mod host;
mod identity;
mod joined;
mod node;
mod renewal;
mod store;
mod teardown;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, bail};
use coracle_clock::{Clock, Rng};
use coracle_runtime::image::{ImageStore, ImageStoreConfig};
use tracing_subscriber::EnvFilter;

use crate::check::degraded;
use crate::cli;
use crate::cluster::{Cluster, Settings, Wishes};
use crate::lock::{Lock, Purpose};

use host::Host;
pub(crate) use joined::Invitation;
pub(crate) use teardown::{purge, stop_containers};

/// The line of progress that says that the node is Ready; the last one.
pub(crate) const READY_LINE: &str = "ready";

/// Threads for asynchronous work. Blocking file and kernel work has threads of its own.
const WORKERS: usize = 2;

/// Runs the cluster in this process until a signal ends it.
pub(crate) fn run_server(cluster: &Cluster, options: &cli::Server) -> anyhow::Result<ExitCode> {
    check_own(cluster)?;
    let degraded = degraded(cluster)?;
    let settings = cluster.settings_or_choose(&Wishes::of(options)?)?;
    let host = Host::this(&settings, options.machine.address);
    in_the_foreground(cluster, &settings, &degraded, async |lock| {
        assemble::run(cluster, &settings, &host, &options.tls_san, lock, Clock::system(), Rng::from_os())
            .await
    })
}

/// A node of another machine's cluster is none of its own.
pub(crate) fn check_own(cluster: &Cluster) -> anyhow::Result<()> {
    if cluster.restore_mark().exists() {
        bail!("a restore of this cluster was interrupted: run `coracle restore` with --force again");
    }
    if let Some(joined) = cluster.settings()?.and_then(|settings| settings.joined) {
        bail!(
            "this machine is a node of {}: start it with `coracle node`, or choose another --name",
            joined.server
        );
    }
    Ok(())
}

/// Runs this machine as a node of another one's cluster until a signal ends it.
pub(crate) fn run_node(
    cluster: &Cluster,
    machine: &cli::MachineOptions,
    invitation: &Invitation,
) -> anyhow::Result<ExitCode> {
    let known = cluster.settings()?;
    if known.as_ref().is_some_and(|settings: &Settings| settings.joined.is_none())
        && cluster.kubeconfig().exists()
    {
        bail!(
            "cluster {:?} on this machine is its own: `coracle up` starts it; to join another one, choose another \
             --name",
            cluster.name
        );
    }
    if known.is_none() && invitation.server.is_none() {
        bail!(
            "this machine has not joined a cluster yet: give --server and --token, as `coracle token create` on the \
             server prints them"
        );
    }
    let degraded = degraded(cluster)?;
    let wishes = Wishes { node_name: machine.node_name.clone(), ..Wishes::default() };
    let settings = cluster.settings_or_choose(&wishes)?;
    let host = Host::this(&settings, machine.address);
    let outcome = in_the_foreground(cluster, &settings, &degraded, async |lock| {
        joined::run(cluster, settings.clone(), &host, invitation, lock, Clock::system(), Rng::from_os()).await
    });
    if outcome.is_err() && known.is_none() {
        // What was chosen for a node that has not joined binds nobody.
        cluster.drop_settings_unless_joined()?;
    }
    outcome
}

fn in_the_foreground(
    cluster: &Cluster,
    settings: &Settings,
    degraded: &[String],
    work: impl AsyncFnOnce(&mut Lock) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let filter = EnvFilter::try_from_env("CORACLE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is installed already"))?;
    let mut lock = cluster.lock(Purpose::Starting)?;
    raise_descriptor_limit();
    cluster.remember_settings(settings)?;
    for finding in degraded {
        tracing::warn!("{finding}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("coracle")
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(work(&mut lock))?;
    drop(lock);
    Ok(ExitCode::SUCCESS)
}

/// Sockets and files are many: as many as the system lets this process have. What keepers and containers inherit is
/// the same, as from other runtimes.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// The node's images.
pub(crate) fn open_images(cluster: &Cluster) -> anyhow::Result<ImageStore> {
    let directory = cluster.images();
    ImageStore::open(ImageStoreConfig::new(&directory), Clock::system())
        .with_context(|| format!("cannot open the images in {}", directory.display()))
}

/// Tells a step of the start to whoever started this process. Nobody has to listen.
fn progress(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
