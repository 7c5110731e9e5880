//! The keeper of one Pod: parents its containers, waits for them, writes their logs, records their exits.
//!
//! It is started with its sandbox's run directory as the only argument and a listening socket as standard
//! input, makes and pins the Pod's namespaces, and serves until it is told to end or its directory is gone. It
//! is synchronous, has one thread and one loop over `poll`, and touches little memory: the OCI library runs in
//! short-lived children only.

mod attach;
mod confine;
mod ends;
mod launch;
mod log;
mod oci;
mod process;
mod rotate;
mod sandbox;
mod server;
mod sources;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::fs::{Mode, OFlags};

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: coracle-keeper DIRECTORY, with a listening socket as standard input");
        return ExitCode::FAILURE;
    };
    forget_signals();
    match take_listener().and_then(|listener| server::Server::new(dir, listener)) {
        Ok(server) => {
            server.run();
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("coracle-keeper: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Takes every signal as programs expect them, and blocks none. What a daemon ignores stays ignored across
/// `execve`: a shell starts background jobs deaf to interrupts, `nohup` to hang-ups, and the programs of
/// containers would be too.
fn forget_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // The runtime ignores it here, and restores it for what is executed.
        if signal != libc::SIGPIPE {
            // SAFETY: no handler runs code. It fails for the signals that cannot be ignored either.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
    // SAFETY: an all-zero `sigset_t` is one of plain numbers, and is initialized before its use.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Moves the listener from standard input to a descriptor that no child inherits, and drops whatever else
/// came along.
fn take_listener() -> std::io::Result<OwnedFd> {
    // SAFETY: nothing in this process owns a descriptor from 3 up yet.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    let listener = rustix::io::fcntl_dupfd_cloexec(std::io::stdin().as_fd(), 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(listener)
}
