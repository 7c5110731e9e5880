//! `coracle up`: starts the cluster in the background and shows how far it is until the node is Ready.
//!
//! The background process is this program again with `--foreground`. It tells its progress, a line a step, on its
//! standard output, which is a pipe to this process; the end of the pipe means that it has ended.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, bail};
use coracle_clock::Clock;

use crate::cli::{Target, Up};
use crate::cluster::{Cluster, Wishes, private_directory};
use crate::daemon::READY_LINE;
use crate::output;

pub(crate) fn run(cluster: &Cluster, options: &Up, target: &Target) -> anyhow::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a cluster needs root (namespaces, cgroups, mounts): run `sudo coracle up`");
    }
    // What the command line asks for is judged before anything is started or left behind.
    cluster.settings_or_choose(&Wishes::of(options))?;
    if let Some(pid) = cluster.running()? {
        output::note(format_args!("cluster {:?} is already running (process {pid})", cluster.name));
        next_steps(cluster);
        return Ok(ExitCode::SUCCESS);
    }
    let clock = Clock::system();
    private_directory(&cluster.data)?;
    let mut child = start(cluster, options, target)?;
    let lines = progress_lines(&mut child)?;
    let limit = Duration::from_secs(options.timeout);
    loop {
        match lines.recv_timeout(limit.saturating_sub(clock.elapsed())) {
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
                options.timeout,
                cluster.log().display(),
                cluster.command("status")
            ),
        }
    }
    output::progress(clock.elapsed(), "node is Ready");
    next_steps(cluster);
    Ok(ExitCode::SUCCESS)
}

/// Starts the background process in a session of its own, so that the terminal's signals do not reach it.
fn start(cluster: &Cluster, options: &Up, target: &Target) -> anyhow::Result<Child> {
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
        .args(["up", "--foreground"]);
    if let Some(port) = options.port {
        command.args(["--port", &port.to_string()]);
    }
    for (flag, value) in [("--pod-cidr", &options.pod_cidr), ("--service-cidr", &options.service_cidr)] {
        if let Some(value) = value {
            command.args([flag, value]);
        }
    }
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    // SAFETY: setsid is async-signal-safe and touches no memory of this process.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
    }
    command.spawn().context("cannot start the cluster's process")
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

fn next_steps(cluster: &Cluster) {
    output::note(format_args!(
        "\nkubeconfig: {path}\nnext:       export KUBECONFIG={path}\n            kubectl get nodes",
        path = cluster.kubeconfig().display()
    ));
}
