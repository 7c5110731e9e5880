//! `coracle down`: stops the cluster's process, then its containers; with `--purge`, removes every trace.
//!
//! It works on what it finds: a cluster that crashed, or one of which half is already gone, is no special case, and
//! a second `down` has nothing to do.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use coracle_clock::Clock;
use rustix::process::Signal;

use crate::cluster::Cluster;
use crate::lock::{Process, Purpose};
use crate::{daemon, output};

/// How long the cluster's process may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long another `down` may take; containers have 10 s of it.
const OTHER_DOWN_LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn run(cluster: &Cluster, purge: bool) -> anyhow::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("stopping a cluster needs root: run `sudo coracle down`");
    }
    if !cluster.exists() && !cluster.run.exists() {
        output::note(format_args!("cluster {:?} is not here: nothing to do", cluster.name));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(other) = cluster.elsewhere() {
        output::note(format_args!(
            "cluster {:?} is not here: what has its name on this machine belongs to {}, which another --data-dir names",
            cluster.name,
            other.display()
        ));
        if purge && cluster.exists() {
            daemon::purge_directory(cluster)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let clock = Clock::system();
    stop_process(cluster, &clock)?;
    // From here on nobody else may start it.
    let lock = cluster.lock(Purpose::Stopping)?;
    match daemon::stop_containers(cluster, purge) {
        Ok(stopped) => output::progress(clock.elapsed(), format_args!("{stopped} Pods stopped")),
        // What cannot be stopped in peace is removed all the same.
        Err(error) if purge => output::note(format_args!("warning: {error:#}")),
        Err(error) => return Err(error),
    }
    if purge {
        daemon::purge(cluster, daemon::Kept::Nothing)?;
        drop(lock);
        output::progress(clock.elapsed(), "all traces removed");
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends the process that runs the cluster; another `down` is waited for.
fn stop_process(cluster: &Cluster, clock: &Clock) -> anyhow::Result<()> {
    let Some(holder) = cluster.holder()? else { return Ok(()) };
    let Some(process) = Process::open(holder.pid)? else { return Ok(()) };
    // The number may have been given to another process between reading and opening: look again.
    if cluster.holder()?.map(|now| now.pid) != Some(holder.pid) {
        return Ok(());
    }
    if holder.purpose == Purpose::Stopping {
        output::note(format_args!(
            "cluster {:?} is being stopped by process {}: waiting",
            cluster.name, holder.pid
        ));
        if !process.ended_within(OTHER_DOWN_LIMIT)? {
            bail!("process {} does not get done with stopping cluster {:?}", holder.pid, cluster.name);
        }
        return Ok(());
    }
    process.signal(Signal::TERM)?;
    if !process.ended_within(STOP_LIMIT)? {
        output::note(format_args!(
            "process {} does not end after {} s: killing it",
            holder.pid,
            STOP_LIMIT.as_secs()
        ));
        process.signal(Signal::KILL)?;
        process.ended_within(STOP_LIMIT)?;
    }
    output::progress(clock.elapsed(), "cluster stopped");
    Ok(())
}
