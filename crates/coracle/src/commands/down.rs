//! `coracle down`: stops the cluster's process, then its containers; with `--purge`, removes every trace.
//!
//! It works on what it finds: a cluster that crashed, or one of which half is already gone, is no special case, and
//! a second `down` has nothing to do.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use coracle_clock::Clock;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::Signal;

use crate::cluster::Cluster;
use crate::{daemon, output};

/// How long the cluster's process may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn run(cluster: &Cluster, purge: bool) -> anyhow::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("stopping a cluster needs root: run `sudo coracle down`");
    }
    if !cluster.exists() && !cluster.run.exists() {
        output::note(format_args!("cluster {:?} is not here: nothing to do", cluster.name));
        return Ok(ExitCode::SUCCESS);
    }
    let clock = Clock::system();
    if let Some(pid) = cluster.running()? {
        stop_process(cluster, pid)?;
        output::progress(clock.elapsed(), "cluster stopped");
    }
    // From here on nobody else may start it.
    let lock = cluster.lock()?;
    let stopped = daemon::stop_containers(cluster, purge)?;
    output::progress(clock.elapsed(), format_args!("{stopped} Pods stopped"));
    if purge {
        daemon::purge(cluster)?;
        drop(lock);
        output::progress(clock.elapsed(), "all traces removed");
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks the process to end and waits on its pidfd until it has.
fn stop_process(cluster: &Cluster, pid: i32) -> anyhow::Result<()> {
    let Some(process) = open_process(pid)? else { return Ok(()) };
    // The number may have been given to another process between reading and opening: look again.
    if cluster.running()? != Some(pid) {
        return Ok(());
    }
    signal(&process, Signal::TERM)?;
    if !ended_within(&process, STOP_LIMIT)? {
        output::note(format_args!("process {pid} does not end after {} s: killing it", STOP_LIMIT.as_secs()));
        signal(&process, Signal::KILL)?;
        ended_within(&process, STOP_LIMIT)?;
    }
    Ok(())
}

fn open_process(pid: i32) -> anyhow::Result<Option<OwnedFd>> {
    let pid = rustix::process::Pid::from_raw(pid).context("the lock file names no process")?;
    match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(error).context("cannot open the cluster's process"),
    }
}

fn signal(process: &OwnedFd, signal: Signal) -> anyhow::Result<()> {
    match rustix::process::pidfd_send_signal(process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).context("cannot signal the cluster's process"),
    }
}

fn ended_within(process: &OwnedFd, limit: Duration) -> anyhow::Result<bool> {
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    loop {
        let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for the cluster's process"),
        }
    }
}
