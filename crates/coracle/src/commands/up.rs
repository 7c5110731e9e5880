//! `coracle up` and `coracle server`: the same cluster in the background and in the foreground.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;

use super::check;
use super::launch::Launch;
use crate::cli::{MachineOptions, Server, Target, Up};
use crate::cluster::{Cluster, Wishes};
use crate::output;

pub(crate) fn run(cluster: &Cluster, options: &Up, target: &Target) -> anyhow::Result<ExitCode> {
    check_root("up")?;
    crate::daemon::check_own(cluster)?;
    // The machine, and what the command line asks of it, are judged before anything is started or left behind.
    let environment = check::before_launch(cluster)?;
    cluster.settings_or_choose(&Wishes::of(&options.server)?)?;
    let limit = Duration::from_secs(options.timeout);
    let launch = Launch { arguments: arguments(&options.server), environment, limit };
    launch.run(cluster, target)?;
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
    // The store has been remembered already: its files are relative to this process's directory.
    let Server { port, pod_cidr, service_cidr, tls_san, machine, store: _ } = options;
    let mut arguments = vec!["server".into()];
    let mut flag = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            arguments.extend([OsString::from(name), value.into()]);
        }
    };
    flag("--port", port.map(|port| port.to_string()));
    flag("--pod-cidr", pod_cidr.clone());
    flag("--service-cidr", service_cidr.clone());
    for name in tls_san {
        flag("--tls-san", Some(name.clone()));
    }
    arguments.extend(machine_arguments(machine));
    arguments
}

pub(super) fn machine_arguments(machine: &MachineOptions) -> Vec<OsString> {
    let MachineOptions { node_name, address } = machine;
    let mut arguments = Vec::new();
    if let Some(name) = node_name {
        arguments.extend(["--node-name".into(), name.into()]);
    }
    if let Some(address) = address {
        arguments.extend(["--address".into(), address.to_string().into()]);
    }
    arguments
}

fn next_steps(cluster: &Cluster) {
    output::note(format_args!(
        "\nkubeconfig: {path}\nnext:       export KUBECONFIG={path}\n            kubectl get nodes",
        path = cluster.kubeconfig().display()
    ));
}
