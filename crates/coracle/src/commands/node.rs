//! `coracle node`: this machine as a node of a cluster on another one.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use super::check;
use super::launch::{Launch, undone_if_new};
use super::up::{check_root, machine_arguments};
use crate::cli::{Node, Target};
use crate::cluster::Cluster;
use crate::daemon::Invitation;

pub(crate) fn run(cluster: &Cluster, options: &Node, target: &Target) -> anyhow::Result<ExitCode> {
    check_root("node")?;
    let invitation = Invitation { server: options.server.clone(), token: token(options)? };
    if !options.detach {
        return crate::daemon::run_node(cluster, &options.machine, &invitation);
    }
    let mut environment = check::before_launch(cluster)?;
    let mut arguments = vec!["node".into()];
    if let Some(server) = &invitation.server {
        arguments.extend(["--server".into(), server.into()]);
    }
    arguments.extend(machine_arguments(&options.machine));
    environment.extend(invitation.token.iter().map(|token| ("CORACLE_TOKEN", token.into())));
    let launch = Launch { arguments, environment, limit: Duration::from_secs(options.timeout) };
    undone_if_new(cluster, || launch.run(cluster, target))?;
    Ok(ExitCode::SUCCESS)
}

fn token(options: &Node) -> anyhow::Result<Option<String>> {
    let Some(path) = &options.token_file else { return Ok(options.token.clone()) };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Some(text.trim().to_owned()))
}
