//! `coracle up` and `coracle server`: the same cluster in the background and in the foreground.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;

use super::check;
use super::launch::{Launch, undone_if_new};
use crate::cli::{MachineOptions, Server, Target, Up};
use crate::cluster::Cluster;
use crate::output;
use crate::settings::Wishes;

pub(crate) fn run(cluster: &Cluster, options: &Up, target: &Target) -> anyhow::Result<ExitCode> {
    check_root("up")?;
    crate::daemon::check_own(cluster)?;
    // The machine, and what the command line asks of it, are judged before anything is started or left behind.
    let environment = check::before_launch(cluster)?;
    let wishes = Wishes::of(&options.server)?;
    let limit = Duration::from_secs(options.timeout);
    let launch = Launch { arguments: arguments(&options.server), environment, limit };
    undone_if_new(cluster, || {
        let before = cluster.settings()?;
        let settings = cluster.settings_or_choose(&wishes)?;
        if before.is_some_and(|before| before != settings) && cluster.running()?.is_some() {
            output::note(format_args!(
                "what has changed in the settings takes effect at the next start: {}, then {}",
                cluster.command("down"),
                cluster.command("up")
            ));
        }
        launch.run(cluster, target)
    })?;
    next_steps(cluster);
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn serve(cluster: &Cluster, options: &Server) -> anyhow::Result<ExitCode> {
    check_root("server")?;
    crate::daemon::run_server(cluster, options)
}

pub(super) fn check_root(command: &str) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a cluster needs root (namespaces, cgroups, mounts): run `sudo coracle {command}`");
    }
    Ok(())
}

/// The command line that runs in the background what `options` ask for.
fn arguments(options: &Server) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["server".into()];
    // Everything is remembered already, but for this: a port that was asked for is not exchanged for another one.
    if let Some(port) = options.port {
        arguments.extend(["--port".into(), port.to_string().into()]);
    }
    arguments
}

pub(super) fn machine_arguments(machine: &MachineOptions) -> Vec<OsString> {
    let MachineOptions { node_name, address, max_container_restart_period, max_parallel_image_pulls } =
        machine;
    let mut arguments = Vec::new();
    if let Some(name) = node_name {
        arguments.extend(["--node-name".into(), name.into()]);
    }
    if let Some(address) = address {
        arguments.extend(["--address".into(), address.to_string().into()]);
    }
    if let Some(period) = max_container_restart_period {
        let seconds = format!("{}s", period.as_secs());
        arguments.extend(["--max-container-restart-period".into(), seconds.into()]);
    }
    if let Some(pulls) = max_parallel_image_pulls {
        arguments.extend(["--max-parallel-image-pulls".into(), pulls.to_string().into()]);
    }
    arguments
}

fn next_steps(cluster: &Cluster) {
    output::note(format_args!(
        "\nkubeconfig: {path}\nnext:       export KUBECONFIG={path}\n            kubectl get nodes",
        path = cluster.kubeconfig().display()
    ));
}
