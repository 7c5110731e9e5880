//! The cluster's process: assembles the parts, runs them, ends them in order. And what `down` does from outside.

mod assemble;
mod first;
mod host;
mod identity;
mod joined;
mod node;
mod renewal;
mod sockets;
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
use crate::cluster::Cluster;
use crate::lock::{Lock, Purpose};
use crate::logfile::Log;
use crate::settings::{Settings, Wishes};

pub(crate) use first::undo_first_start;
use host::Host;
pub(crate) use joined::Invitation;
use sockets::{Ports, Sockets};
pub(crate) use teardown::{Kept, purge, purge_directory, stop_containers};

/// The line of progress that says that the node is Ready; the last one.
pub(crate) const READY_LINE: &str = "ready";

/// Threads for asynchronous work. Blocking file and kernel work has threads of its own.
const WORKERS: usize = 2;

/// Runs the cluster in this process until a signal ends it.
pub(crate) fn run_server(cluster: &Cluster, options: &cli::Server) -> anyhow::Result<ExitCode> {
    check_own(cluster)?;
    let start = Start {
        degraded: degraded(cluster)?,
        wishes: Wishes::of(options)?,
        ports: Ports { api: true, new: cluster.is_new(), api_wished: options.port.is_some() },
    };
    in_the_foreground(cluster, start, async |settings, sockets, lock| {
        let host = Host::this(settings);
        assemble::run(cluster, settings, &host, sockets, lock, Clock::system(), Rng::from_os()).await
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
    let new = known.is_none_or(|settings| settings.joined.is_none());
    let start = Start {
        degraded: degraded(cluster)?,
        wishes: Wishes::of_machine(machine),
        ports: Ports { api: false, new, api_wished: false },
    };
    in_the_foreground(cluster, start, async |settings, sockets, lock| {
        let settings = settings.clone();
        joined::run(cluster, settings, invitation, sockets, lock, Clock::system(), Rng::from_os()).await
    })
}

/// What a start begins with.
struct Start {
    /// What makes this machine worse for a cluster.
    degraded: Vec<String>,
    wishes: Wishes,
    ports: Ports,
}

/// Runs the cluster. When a first start does not get so far that it is somebody's, nothing is left of it.
fn in_the_foreground(
    cluster: &Cluster,
    start: Start,
    work: impl AsyncFnOnce(&Settings, Sockets, &mut Lock) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let new = start.ports.new;
    let mut begun = false;
    let outcome = cluster
        .settings_or_choose(&start.wishes)
        .and_then(|settings| with_settings(cluster, settings, &start, work, &mut begun));
    if outcome.is_err() && new && !begun {
        undo_first_start(cluster);
    }
    outcome.map(|()| ExitCode::SUCCESS)
}

/// `begun` tells whether the cluster was started to the end, so that somebody may have used it.
fn with_settings(
    cluster: &Cluster,
    mut settings: Settings,
    start: &Start,
    work: impl AsyncFnOnce(&Settings, Sockets, &mut Lock) -> anyhow::Result<()>,
    begun: &mut bool,
) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("CORACLE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Log::of_this_process())
        .with_ansi(false)
        .init();
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is installed already"))?;
    let mut lock = cluster.lock(Purpose::Starting)?;
    raise_descriptor_limit();
    let sockets = Sockets::bind(cluster, &mut settings, start.ports)?;
    cluster.remember_settings(&settings)?;
    for finding in &start.degraded {
        tracing::warn!("{finding}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("coracle")
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let outcome = runtime.block_on(work(&settings, sockets, &mut lock));
    *begun = lock.is_begun();
    outcome
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
