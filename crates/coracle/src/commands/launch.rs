//! A process in the background that shows how far it is until its node is Ready.
//!
//! The background process is this program again. It tells its progress, a line a step, on its standard output, which
//! is a pipe to this process; the end of the pipe means that it has ended.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, bail};
use coracle_clock::Clock;

use crate::cli::Target;
use crate::cluster::Cluster;
use crate::daemon::{self, READY_LINE};
use crate::files::private_directory;
use crate::lock::{Holder, Process, Purpose};
use crate::logfile;
use crate::output;

/// How often a process that starts or stops the cluster is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Does `work`. A first start that fails before anything is there that somebody could miss leaves nothing.
pub(super) fn undone_if_new<T>(
    cluster: &Cluster,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let new = cluster.is_new();
    let outcome = work();
    if outcome.is_err() && new && cluster.is_new() {
        daemon::undo_first_start(cluster);
    }
    outcome
}

/// What to run in the background.
pub(super) struct Launch {
    /// The command and its flags.
    pub(super) arguments: Vec<OsString>,
    /// What it is told, and must not show in the list of processes.
    pub(super) environment: Vec<(&'static str, OsString)>,
    /// How long to wait until the node is Ready.
    pub(super) limit: Duration,
}

impl Launch {
    /// Starts it and returns when the node is Ready. What another process does with the cluster is waited for.
    pub(super) fn run(&self, cluster: &Cluster, target: &Target) -> anyhow::Result<()> {
        let clock = Clock::system();
        while !self.is_running(cluster, &clock)? {
            private_directory(&cluster.data)?;
            let log = logfile::open(&cluster.log())?;
            let log_before = log.metadata().map_or(0, |metadata| metadata.len());
            let mut child = self.start(cluster, target, log.try_clone()?)?;
            let id = child.id();
            match self.follow(cluster, &mut child, &clock)? {
                None => {
                    output::progress(clock.elapsed(), "node is Ready");
                    return Ok(());
                }
                // Somebody else starts or stops it at the same time: what comes of that is waited for.
                Some(_) if cluster.holder()?.is_some_and(|holder| holder.pid.cast_unsigned() != id) => {}
                Some(status) => bail!(
                    "the cluster's process ended at start ({status}); its last words:\n{}",
                    last_words(&log, log_before)
                ),
            }
        }
        Ok(())
    }

    /// Waits while another process starts or stops the cluster. `true` when the cluster runs, `false` when nobody
    /// has it.
    fn is_running(&self, cluster: &Cluster, clock: &Clock) -> anyhow::Result<bool> {
        let mut told = false;
        while let Some(Holder { pid, purpose }) = cluster.holder()? {
            let Some(process) = Process::open(pid)? else { continue };
            // A process that was just killed has its lock for a moment more.
            if process.ended_within(LOOK_AGAIN)? {
                continue;
            }
            let doing = match purpose {
                Purpose::Running => "already running",
                Purpose::Starting => "being started",
                Purpose::Stopping => "being stopped",
            };
            if !told || purpose == Purpose::Running {
                output::note(format_args!("cluster {:?} is {doing} (process {pid})", cluster.name));
                told = true;
            }
            if purpose == Purpose::Running {
                return Ok(true);
            }
            if clock.elapsed() > self.limit {
                let seconds = self.limit.as_secs();
                bail!("cluster {:?} is still {doing} after {seconds} s (process {pid})", cluster.name);
            }
        }
        Ok(false)
    }

    /// Shows the progress of the process until the node is Ready (`None`) or the process has ended.
    fn follow(
        &self,
        cluster: &Cluster,
        child: &mut Child,
        clock: &Clock,
    ) -> anyhow::Result<Option<ExitStatus>> {
        let lines = progress_lines(child)?;
        loop {
            match lines.recv_timeout(self.limit.saturating_sub(clock.elapsed())) {
                Ok(line) if line == READY_LINE => return Ok(None),
                Ok(line) => output::progress(clock.elapsed(), line),
                Err(RecvTimeoutError::Disconnected) => {
                    return child.wait().map(Some).context("cannot wait for the cluster's process");
                }
                Err(RecvTimeoutError::Timeout) => bail!(
                    "the node is not Ready after {} s; the cluster keeps trying in the background, see {} \
                     and {}",
                    self.limit.as_secs(),
                    cluster.log().display(),
                    cluster.command("status")
                ),
            }
        }
    }

    /// Starts the background process in a session of its own, so that the terminal's signals do not reach it.
    fn start(&self, cluster: &Cluster, target: &Target, log: File) -> anyhow::Result<Child> {
        let program = std::env::current_exe().context("cannot find the coracle binary")?;
        let mut command = Command::new(program);
        command
            .args(["--name", &target.name])
            .arg("--data-dir")
            .arg(&target.data_dir)
            .arg("--run-dir")
            .arg(&target.run_dir)
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .env(logfile::ROTATED, cluster.log());
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        // SAFETY: setsid is async-signal-safe and touches no memory of this process.
        unsafe {
            command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
        }
        command.spawn().context("cannot start the cluster's process")
    }
}

fn progress_lines(child: &mut Child) -> anyhow::Result<std::sync::mpsc::Receiver<String>> {
    let pipe = child.stdout.take().context("the progress pipe is missing")?;
    let (send, receive) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    Ok(receive)
}

/// The end of what was logged after `from`, for a start that failed. The file itself may be gone by now.
fn last_words(log: &File, from: u64) -> String {
    const MOST: u64 = 64 << 10;
    let end = log.metadata().map_or(from, |metadata| metadata.len());
    let mut text = vec![0; usize::try_from((end.saturating_sub(from)).min(MOST)).unwrap_or_default()];
    let begin = end.saturating_sub(text.len() as u64);
    let read = log.read_at(&mut text, begin).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[..read]);
    let lines: Vec<&str> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(8)..];
    tail.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
