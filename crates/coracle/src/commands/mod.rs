//! The user-facing commands, one module each.

mod backup;
mod check;
mod down;
mod image;
mod kubeconfig;
mod launch;
mod node;
mod restore;
mod sim;
mod status;
mod token;
mod up;

use std::process::ExitCode;

use crate::cli::{Cli, Command};
use crate::cluster::Cluster;

/// Carries out what the command line asks for.
pub(crate) fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::of(&cli.target);
    match cli.command {
        Command::Up(options) => up::run(&cluster, &options, &cli.target),
        Command::Server(options) => up::serve(&cluster, &options),
        Command::Node(options) => node::run(&cluster, &options, &cli.target),
        Command::Token { command } => token::run(&cluster, command),
        Command::Backup { file } => backup::run(&cluster, &file),
        Command::Restore { file, force } => restore::run(&cluster, &file, force),
        Command::Check { output } => check::run(&cluster, output.output),
        Command::Down { purge } => down::run(&cluster, purge),
        Command::Status { output } => status::run(&cluster, output.output),
        Command::Kubeconfig { path } => kubeconfig::run(&cluster, path),
        Command::Sim(options) => sim::run(&options),
        Command::Image { command } => image::run(&cluster, command),
    }
}
