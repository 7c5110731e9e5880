//! The short-lived child that makes a container or a further process in one.
//!
//! It takes on what the process inherits (control groups, process namespace) and forks it; the OCI library
//! (see `oci.rs`) then runs in that process alone, up to the program. It changes its caller (dumpability,
//! working directory) and grows its heap, so the keeper never calls it itself. The child and the process tell the
//! keeper what happens on a pipe, one line each: `P` and the process id, `E` and what went wrong, or `X` when only
//! the program is left to be executed: a process that ends without it was killed on the way. Every
//! process on the way to the program holds the writing end, closed on exec: once the keeper reads its end, the
//! program has been executed, or nothing is left of the attempt.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_keeper::{Exec, Start};
use libcontainer::oci_spec::runtime::Spec;
use rustix::pipe::PipeFlags;
use rustix::process::Pid;

use crate::oci;

/// Standard streams of a process: `None` leaves what a terminal will replace.
pub(crate) struct Stdio {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// A launch under way.
pub(crate) struct Helper {
    /// The child.
    pub(crate) pid: Pid,
    /// What it has to say; ends when the launch is over.
    pub(crate) status: OwnedFd,
}

/// Makes a container and starts it.
pub(crate) fn start(start: &Start, stdio: Stdio, console: Option<PathBuf>) -> io::Result<Helper> {
    fork(|status| {
        prepare(&start.cgroup_procs, start.oom_score_adj, start.uid, &stdio)?;
        let scratch = start.oci_root.join(&start.container);
        std::fs::create_dir_all(&start.oci_root).map_err(|e| format!("{}: {e}", start.oci_root.display()))?;
        oci::container(&start.dir, &scratch, stdio, console.as_deref(), status)
    })
}

/// Runs a further process in the container at `dir`, whose first process is `of`.
pub(crate) fn exec(exec: &Exec, of: i32, dir: &Path, stdio: Stdio) -> io::Result<Helper> {
    fork(|status| {
        prepare(&exec.cgroup_procs, exec.oom_score_adj, exec.uid, &stdio)?;
        oci::further(of, dir, &exec.process_file, stdio, exec.console_socket.as_deref(), status)
    })
}

fn fork(work: impl FnOnce(RawFd) -> Result<(), String>) -> io::Result<Helper> {
    let (status, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // SAFETY: the process has one thread, so the child may use everything in its copy of memory.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let raw = write.as_raw_fd();
            let ok = match work(raw) {
                Ok(()) => true,
                Err(message) => {
                    say(raw, 'E', &message);
                    false
                }
            };
            // SAFETY: ends the child without running the keeper's destructors.
            unsafe { libc::_exit(i32::from(!ok)) }
        }
        pid => {
            let pid = Pid::from_raw(pid).expect("fork gives a positive id to the parent");
            Ok(Helper { pid, status })
        }
    }
}

/// Tells the keeper one line.
pub(crate) fn say(status: RawFd, kind: char, text: &str) {
    let mut text = text.replace('\n', " ");
    // One write of at most PIPE_BUF bytes is atomic.
    text.truncate(text.floor_char_boundary(4000));
    // SAFETY: the descriptor stays open in this process to its end; `ManuallyDrop` keeps this from closing it.
    let mut pipe = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(status) });
    let _ = pipe.write_all(format!("{kind}{text}\n").as_bytes());
}

/// Puts the child where the container's processes belong; they inherit it. All these groups were made for the
/// container: outside of one of them it would run without its limits.
fn prepare(procs: &[PathBuf], oom_score_adj: Option<i32>, uid: u32, stdio: &Stdio) -> Result<(), String> {
    for procs in procs {
        std::fs::write(procs, "0")
            .map_err(|e| format!("join the control group by {}: {e}", procs.display()))?;
    }
    set_oom_score(oom_score_adj.unwrap_or(0));
    // The process may open its own streams again through /dev/stdout and the like.
    for stream in [&stdio.stdin, &stdio.stdout, &stdio.stderr].into_iter().flatten() {
        let _ = rustix::fs::fchown(stream, Some(rustix::process::Uid::from_raw(uid)), None);
    }
    Ok(())
}

/// Without `CAP_SYS_RESOURCE` a score cannot be lowered below what the process started with: then it stays.
fn set_oom_score(score: i32) {
    let _ = std::fs::write("/proc/self/oom_score_adj", score.to_string());
}

/// Returns only if it fails, with the reason in the words of runc.
pub(crate) fn execute(spec: &Spec, status: RawFd) -> String {
    let Some(process) = spec.process() else { return "the container has no process".to_owned() };
    let args = process.args().as_deref().unwrap_or_default();
    let Some(program) = args.first() else { return "the container has no command".to_owned() };
    let env: Vec<(&str, &str)> = process
        .env()
        .as_deref()
        .unwrap_or_default()
        .iter()
        .filter_map(|entry| entry.split_once('='))
        .collect();
    let path_variable = env.iter().rev().find(|(name, _)| *name == "PATH").map_or("", |(_, value)| value);
    let path = match find(program, path_variable) {
        Ok(path) => path,
        Err(why) => return format!("exec: \"{program}\": {why}"),
    };
    if let Err(error) = crate::confine::confine(spec) {
        return format!("cannot confine the container: {error}");
    }
    let home = std::env::var_os("HOME");
    let mut command = Command::new(&path);
    command.arg0(program).args(&args[1..]).env_clear();
    if let Some(home) = home {
        command.env("HOME", home);
    }
    // `exec` also restores the default action of SIGPIPE, which the Rust runtime ignores.
    say(status, 'X', "");
    let error = command.envs(env).exec();
    format!("exec {}: {}", path.display(), reason(&error))
}

fn find(program: &str, path_variable: &str) -> Result<PathBuf, String> {
    if program.contains('/') {
        return match std::fs::metadata(program) {
            Ok(found) if found.is_dir() => Err("is a directory".to_owned()),
            Ok(_) if !executable(Path::new(program)) => Err("permission denied".to_owned()),
            Ok(_) => Ok(PathBuf::from(program)),
            Err(error) => Err(format!("stat {program}: {}", reason(&error))),
        };
    }
    let mut denied = false;
    for dir in path_variable.split(':') {
        let candidate = Path::new(if dir.is_empty() { "." } else { dir }).join(program);
        match std::fs::metadata(&candidate) {
            Ok(found) if found.is_file() && executable(&candidate) => return Ok(candidate),
            Ok(found) if found.is_file() => denied = true,
            Ok(_) | Err(_) => {}
        }
    }
    Err(if denied { "permission denied" } else { "executable file not found in $PATH" }.to_owned())
}

fn executable(path: &Path) -> bool {
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: the path is a NUL-terminated string that outlives the call.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::X_OK, libc::AT_EACCESS) == 0 }
}

fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "no such file or directory".to_owned(),
        Some(libc::EACCES) => "permission denied".to_owned(),
        Some(libc::ENOEXEC) => "exec format error".to_owned(),
        Some(libc::ENOTDIR) => "not a directory".to_owned(),
        Some(libc::E2BIG) => "argument list too long".to_owned(),
        _ => error.to_string(),
    }
}
