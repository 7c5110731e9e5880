//! A process in the background that shows how far it is until its node is Ready.
//!
//! The background process is this program again. It tells its progress, a line a step, on its standard output, which
//! is a pipe to this process; the end of the pipe means that it has ended.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, bail};
use coracle_clock::Clock;

use crate::cli::Target;
use crate::cluster::{Cluster, private_directory};
use crate::daemon::READY_LINE;
use crate::output;

/// What to run in the background.
pub(super) struct Launch {
    /// The command and its flags.
    pub(super) arguments: Vec<OsString>,
    /// What must not show in the list of processes.
    pub(super) environment: Vec<(&'static str, OsString)>,
    /// How long to wait until the node is Ready.
    pub(super) limit: Duration,
}

impl Launch {
    /// Starts it and returns when the node is Ready.
    pub(super) fn run(&self, cluster: &Cluster, target: &Target) -> anyhow::Result<()> {
        let clock = Clock::system();
        private_directory(&cluster.data)?;
        let mut child = self.start(cluster, target)?;
        let lines = progress_lines(&mut child)?;
        loop {
            match lines.recv_timeout(self.limit.saturating_sub(clock.elapsed())) {
                Ok(line) if line == READY_LINE => break,
                Ok(line) => output::progress(clock.elapsed(), line),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = child.wait().context("cannot wait for the cluster's process")?;
                    bail!(
                        "the cluster's process ended at start ({status}); its last words:\n{}",
                        last_words(cluster)
                    );
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
        output::progress(clock.elapsed(), "node is Ready");
        Ok(())
    }

    /// Starts the background process in a session of its own, so that the terminal's signals do not reach it.
    fn start(&self, cluster: &Cluster, target: &Target) -> anyhow::Result<Child> {
        let log = File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(cluster.log())
            .with_context(|| format!("cannot open {}", cluster.log().display()))?;
        let program = std::env::current_exe().context("cannot find the coracle binary")?;
        let mut command = Command::new(program);
        command
            .args(["--name", &target.name])
            .arg("--data-dir")
            .arg(&target.data_dir)
            .arg("--run-dir")
            .arg(&target.run_dir)
            .args(&self.arguments)
            .envs(self.environment.iter().cloned());
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

/// The end of the log, for a start that failed.
fn last_words(cluster: &Cluster) -> String {
    let text = std::fs::read(cluster.log()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(8)..];
    tail.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
