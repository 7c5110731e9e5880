//! The short-lived child that runs the OCI library to make a container or a further process in one.
//!
//! The library changes its caller (oom score, dumpability, working directory) and grows its heap, so the keeper
//! never calls it itself. The child tells the keeper what happens on a pipe, one line each: `P` and the process
//! id, or `E` and what went wrong. Every process on the way to the program holds the writing end, closed on
//! exec: once the keeper reads its end, the program has been executed, or nothing is left of the attempt.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_keeper::{Exec, Start};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use rustix::pipe::PipeFlags;
use rustix::process::Pid;

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
        prepare(&start.cgroup_procs, start.oom_score_adj, start.uid, &stdio);
        let mut container = builder(&start.container, &start.oci_root, stdio, status)?
            .with_console_socket(console)
            .as_init(&start.dir)
            .with_systemd(false)
            .with_detach(true)
            .build()
            .map_err(chain)?;
        let pid = container.pid().ok_or("the container has no process")?.as_raw();
        say(status, 'P', &pid.to_string());
        container.start().map_err(chain)
    })
}

/// Runs a further process in a running container.
pub(crate) fn exec(exec: &Exec, stdio: Stdio) -> io::Result<Helper> {
    fork(|status| {
        prepare(&exec.cgroup_procs, exec.oom_score_adj, exec.uid, &stdio);
        let pid = builder(&exec.container, &exec.oci_root, stdio, status)?
            .with_console_socket(exec.console_socket.clone())
            .as_tenant()
            .with_process(Some(&exec.process_file))
            .with_detach(true)
            .build()
            .map_err(chain)?;
        say(status, 'P', &pid.as_raw().to_string());
        Ok(())
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

fn say(status: RawFd, kind: char, text: &str) {
    let mut text = text.replace('\n', " ");
    // One write of at most PIPE_BUF bytes is atomic.
    text.truncate(text.floor_char_boundary(4000));
    // SAFETY: the descriptor stays open in this process to its end; `ManuallyDrop` keeps this from closing it.
    let mut pipe = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(status) });
    let _ = pipe.write_all(format!("{kind}{text}\n").as_bytes());
}

/// Puts the child where the container's processes belong; they inherit it.
fn prepare(cgroup_procs: &[PathBuf], oom_score_adj: Option<i32>, uid: u32, stdio: &Stdio) {
    for procs in cgroup_procs {
        // A hierarchy that refuses is one without limits of ours: those that matter are checked when made.
        let _ = std::fs::write(procs, "0");
    }
    set_oom_score(oom_score_adj.unwrap_or(0));
    // The process may open its own streams again through /dev/stdout and the like.
    for stream in [&stdio.stdin, &stdio.stdout, &stdio.stderr].into_iter().flatten() {
        let _ = rustix::fs::fchown(stream, Some(rustix::process::Uid::from_raw(uid)), None);
    }
}

/// Without `CAP_SYS_RESOURCE` a score cannot be lowered below what the process started with: then it stays.
fn set_oom_score(score: i32) {
    let _ = std::fs::write("/proc/self/oom_score_adj", score.to_string());
}

fn builder(id: &str, root: &Path, stdio: Stdio, status: RawFd) -> Result<ContainerBuilder, String> {
    let mut builder = ContainerBuilder::new(id.to_owned(), SyscallType::Linux)
        .with_root_path(root)
        .map_err(chain)?
        .with_executor(Program { status });
    if let Some(stdin) = stdio.stdin {
        builder = builder.with_stdin(stdin);
    }
    if let Some(stdout) = stdio.stdout {
        builder = builder.with_stdout(stdout);
    }
    if let Some(stderr) = stdio.stderr {
        builder = builder.with_stderr(stderr);
    }
    Ok(builder)
}

/// An error with all its causes in one line.
fn chain(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Executes the program, at the very end of the library's work.
#[derive(Clone)]
struct Program {
    status: RawFd,
}

impl Executor for Program {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let message = execute(spec);
        say(self.status, 'E', &message);
        Err(ExecutorError::Other(message))
    }

    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        // What can be executed is decided by executing it.
        Ok(())
    }

    fn setup_envs(
        &self,
        envs: HashMap<String, String>,
    ) -> Result<(), libcontainer::workload::ExecutorSetEnvsError> {
        // Only HOME, which the library looks up: the rest is taken from the specification, in its order.
        if let Some(home) = envs.get("HOME") {
            // SAFETY: the process has one thread.
            unsafe { std::env::set_var("HOME", home) };
        }
        Ok(())
    }
}

/// Returns only if it fails, with the reason in the words of runc.
fn execute(spec: &Spec) -> String {
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
