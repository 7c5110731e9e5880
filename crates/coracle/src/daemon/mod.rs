//! The cluster's process: assembles the parts, runs them, ends them in order. And what `down` does from outside.

mod assemble;
mod identity;
mod teardown;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use coracle_clock::{Clock, Rng};
use coracle_runtime::image::{ImageStore, ImageStoreConfig};
use tracing_subscriber::EnvFilter;

use crate::cli::Up;
use crate::cluster::{Cluster, Wishes};

pub(crate) use teardown::{purge, stop_containers};

/// The line of progress that says that the node is Ready; the last one.
pub(crate) const READY_LINE: &str = "ready";

/// Threads for asynchronous work. Blocking file and kernel work has threads of its own.
const WORKERS: usize = 2;

/// Runs the cluster in this process until a signal ends it.
pub(crate) fn run(cluster: &Cluster, options: &Up) -> anyhow::Result<ExitCode> {
    let filter = EnvFilter::try_from_env("CORACLE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is installed already"))?;
    let settings = cluster.settings_or_choose(&Wishes::of(options))?;
    let lock = cluster.lock()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("coracle")
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(assemble::run(cluster, &settings, Clock::system(), Rng::from_os()))?;
    drop(lock);
    Ok(ExitCode::SUCCESS)
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
