//! The `coracle` binary: flags, wiring and user-facing commands. It holds no logic of the cluster.

mod check;
mod cli;
mod cluster;
mod commands;
mod daemon;
mod files;
mod lock;
mod logfile;
mod output;
mod ranges;
mod settings;
mod store;

use std::process::ExitCode;

use clap::Parser;

// An API server is made of small objects that come and go; the C library's allocator takes as long for them as all else.
#[global_allocator]
static MEMORY: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
