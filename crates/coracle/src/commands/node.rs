//! `coracle node`: this machine as a node of a cluster on another one.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
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
    hide_token(options)?;
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

/// Begins anew with the token in the environment, if it stands among the arguments: those can be read by
/// everyone on the machine for as long as the process runs.
fn hide_token(options: &Node) -> anyhow::Result<()> {
    let (Some(token), Some(rest)) = (&options.token, without_token(std::env::args_os())) else {
        return Ok(());
    };
    let mut rest = rest.into_iter();
    let mut again = Command::new("/proc/self/exe");
    again.arg0(rest.next().unwrap_or_else(|| "coracle".into()));
    Err(again.args(rest).env("CORACLE_TOKEN", token).exec())
        .context("cannot take the token off the arguments")
}

/// The arguments without `--token`; `None` if it does not stand there.
fn without_token(arguments: impl IntoIterator<Item = OsString>) -> Option<Vec<OsString>> {
    let (mut rest, mut found) = (Vec::new(), false);
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        if argument == OsStr::new("--token") {
            arguments.next();
            found = true;
        } else if argument.as_bytes().starts_with(b"--token=") {
            found = true;
        } else {
            rest.push(argument);
        }
    }
    found.then_some(rest)
}

fn token(options: &Node) -> anyhow::Result<Option<String>> {
    let Some(path) = &options.token_file else { return Ok(options.token.clone()) };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Some(text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_taken_off_the_arguments_however_it_is_written() {
        let without = |line: &str| {
            let rest = without_token(line.split(' ').map(OsString::from))?;
            Some(rest.join(OsStr::new(" ")).into_string().unwrap())
        };
        assert_eq!(without("coracle node --token a.b --detach").as_deref(), Some("coracle node --detach"));
        assert_eq!(without("coracle node --token=a.b").as_deref(), Some("coracle node"));
        assert_eq!(without("coracle node --token-file /f"), None);
        assert_eq!(without("coracle node"), None);
    }
}
