//! The OCI library's part in a start: all that happens in the new process up to its program.
//!
//! The library's own way there is a builder that writes its state down, a process between that looks for the
//! control groups among all mounts of the machine (a dozen times, and a node with 100 Pods has many), and a second
//! step that lets the program run. The keeper has done all that or does not want it, so this calls the library
//! where the work is: in the container's new process.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcgroups::common::CgroupConfig;
use libcontainer::namespaces::Namespaces;
use libcontainer::notify_socket::{NotifyListener, NotifySocket};
use libcontainer::oci_spec::runtime::{LinuxBuilder, LinuxNamespace, LinuxNamespaceType, Process, Spec};
use libcontainer::process::args::{ContainerArgs, ContainerType};
use libcontainer::process::channel::{init_channel, main_channel};
use libcontainer::process::init::container_init_process;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::launch::{Stdio, execute, say};

/// The OCI specification in a container's directory.
const SPEC_FILE: &str = "config.json";

/// Starts the first process of the container whose specification is in `dir`. `scratch` is a path for something
/// that is gone when this returns.
pub(crate) fn container(
    dir: &Path,
    scratch: &Path,
    stdio: Stdio,
    console: Option<&Path>,
    status: RawFd,
) -> Result<(), String> {
    let spec = Spec::load(dir.join(SPEC_FILE)).map_err(chain)?;
    let root = spec.root().as_ref().ok_or("the container has no root file system")?.path();
    let root = root.canonicalize().map_err(|e| format!("{}: {e}", root.display()))?;
    process(ContainerType::InitContainer, spec, root, scratch, stdio, console, status)
}

/// Starts a further process in the container whose specification is in `dir` and whose first process is `first`.
pub(crate) fn further(
    first: i32,
    dir: &Path,
    process_file: &Path,
    stdio: Stdio,
    console: Option<&Path>,
    status: RawFd,
) -> Result<(), String> {
    let mut spec = Spec::load(dir.join(SPEC_FILE)).map_err(chain)?;
    let text = std::fs::read(process_file).map_err(|e| format!("{}: {e}", process_file.display()))?;
    let wanted: Process = serde_json::from_slice(&text).map_err(|e| format!("the process to run: {e}"))?;
    let own = spec.linux().as_ref().and_then(|linux| linux.namespaces().clone()).unwrap_or_default();
    let joined = own.into_iter().map(|namespace| of_process(namespace, first)).collect::<Vec<_>>();
    let linux = LinuxBuilder::default().namespaces(joined).build().map_err(chain)?;
    spec.set_process(Some(wanted)).set_linux(Some(linux));
    let kind = ContainerType::TenantContainer { exec_notify_fd: status };
    process(kind, spec, PathBuf::from("/"), &process_file.with_extension("go"), stdio, console, status)
}

/// The same kind of namespace as `first` has it.
fn of_process(mut namespace: LinuxNamespace, first: i32) -> LinuxNamespace {
    let name = match namespace.typ() {
        LinuxNamespaceType::Mount => "mnt",
        LinuxNamespaceType::Network => "net",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Time => "time",
    };
    namespace.set_path(Some(format!("/proc/{first}/ns/{name}").into()));
    namespace
}

fn process(
    container_type: ContainerType,
    spec: Spec,
    rootfs: PathBuf,
    scratch: &Path,
    stdio: Stdio,
    console: Option<&Path>,
    status: RawFd,
) -> Result<(), String> {
    let console = console.map(connect).transpose().map_err(|e| format!("the terminal's socket: {e}"))?;
    // The library waits for leave to go on just before the program. It is given here and waits in the socket.
    let notify_listener = NotifyListener::new(scratch).map_err(chain)?;
    let leave = NotifySocket::new(scratch).notify_container_start().map_err(chain);
    let _ = std::fs::remove_file(scratch);
    leave?;

    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().clone());
    let namespaces = Namespaces::try_from(namespaces.as_ref()).map_err(chain)?;
    // A process about to enter namespaces must not be open to those who are in them.
    // SAFETY: a system call on plain numbers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    // Only children are in it, so it is entered before the process is made.
    if let Some(pid) = namespaces.get(LinuxNamespaceType::Pid).map_err(chain)? {
        namespaces.unshare_or_setns(pid).map_err(chain)?;
    }
    let raw = |stream: &Option<OwnedFd>| stream.as_ref().map(AsRawFd::as_raw_fd);
    let args = ContainerArgs {
        container_type,
        syscall: SyscallType::Linux,
        spec: Rc::new(spec),
        rootfs,
        console_socket: raw(&console),
        notify_listener,
        preserve_fds: 0,
        container: None,
        user_ns_config: None,
        // Read by the process between only, which there is none of.
        cgroup_config: CgroupConfig {
            cgroup_path: PathBuf::new(),
            systemd_cgroup: false,
            container_name: String::new(),
        },
        detached: true,
        executor: Box::new(Program { status }),
        no_pivot: false,
        stdin: raw(&stdio.stdin),
        stdout: raw(&stdio.stdout),
        stderr: raw(&stdio.stderr),
        as_sibling: false,
        pid_file: None,
    };
    // What the process says to the library's main process is read by nobody; the ends stay open, so it can.
    let (mut to_main, _from_process) = main_channel().map_err(chain)?;
    let (_to_process, mut from_main) = init_channel().map_err(chain)?;
    // SAFETY: the process has one thread, so the child may use everything in its copy of memory.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error().to_string()),
        0 => {
            std::panic::set_hook(Box::new(move |panic| say(status, 'E', &panic.to_string())));
            if let Err(error) = container_init_process(&args, &mut to_main, &mut from_main) {
                // The first thing said counts, should the program have had its say.
                say(status, 'E', &chain(error));
            }
            // SAFETY: ends the process without running destructors that are the keeper's or the library's.
            unsafe { libc::_exit(1) }
        }
        pid => {
            say(status, 'P', &pid.to_string());
            Ok(())
        }
    }
}

/// Connects to a socket by its directory's descriptor: the path may be too long for an address.
fn connect(path: &Path) -> io::Result<OwnedFd> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let dir = rustix::fs::open(path.parent().unwrap_or(Path::new("/")), flags, rustix::fs::Mode::empty())?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
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
        let message = execute(spec, self.status);
        say(self.status, 'E', &message);
        Err(ExecutorError::Other(message))
    }

    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        // What can be executed is decided by executing it.
        Ok(())
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // Only HOME, which the library looks up: the rest is taken from the specification, in its order.
        if let Some(home) = envs.get("HOME") {
            // SAFETY: the process has one thread.
            unsafe { std::env::set_var("HOME", home) };
        }
        Ok(())
    }
}
