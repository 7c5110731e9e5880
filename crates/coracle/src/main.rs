//! The `coracle` binary: flags, wiring and user-facing commands. It holds no logic of the cluster.

mod check;
mod cli;
mod cluster;
mod commands;
mod daemon;
mod files;
mod lock;
mod logfile;
mod memory;
mod output;
mod ranges;
mod register;
mod settings;
mod store;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static MEMORY: memory::Memory = memory::Memory;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match commands::run(cli) {
        Ok(code) => code,
        Err(error) => {
            output::error(&error);
            ExitCode::from(1)
        }
    }
}
