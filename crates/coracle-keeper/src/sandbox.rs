//! What a keeper does before it serves: namespaces made and pinned, host name, loopback, kernel parameters.

use std::ffi::CString;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use coracle_keeper::{NAMESPACES_DIR, SETUP_FILE, SandboxSetup};
use rustix::process::{Signal, set_child_subreaper};
use rustix::thread::UnshareFlags;

fn context(what: &str) -> impl FnOnce(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Reads the setup from `dir` and carries it out on this process.
pub(crate) fn set_up(dir: &Path) -> io::Result<()> {
    let setup: SandboxSetup =
        serde_json::from_slice(&std::fs::read(dir.join(SETUP_FILE)).map_err(context("read the setup"))?)?;

    rustix::process::umask(rustix::fs::Mode::from_bits_retain(0o022));
    rustix::process::setsid().map_err(|e| context("start a session")(e.into()))?;
    set_child_subreaper(Some(rustix::process::getpid()))?;
    // A container must not inherit the groups of whoever started the daemon.
    rustix::thread::set_thread_groups(&[])?;
    for procs in &setup.cgroup_procs {
        std::fs::write(procs, "0").map_err(context("join the keepers' cgroup"))?;
    }
    // The last to go when memory is short. Without CAP_SYS_RESOURCE this is refused, which is no harm.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-999");

    let mut flags = UnshareFlags::empty();
    if setup.own_network {
        flags |= UnshareFlags::NEWNET | UnshareFlags::NEWUTS;
    }
    if setup.own_ipc {
        flags |= UnshareFlags::NEWIPC;
    }
    // SAFETY: the process has one thread, and no descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(|e| context("make namespaces")(e.into()))?;

    let namespaces = dir.join(NAMESPACES_DIR);
    std::fs::create_dir_all(&namespaces)?;
    if setup.own_network {
        if !setup.hostname.is_empty() {
            rustix::system::sethostname(setup.hostname.as_bytes())?;
        }
        raise_loopback().map_err(context("raise the loopback interface"))?;
        pin(&namespaces, "net", "self")?;
    }
    for (name, value) in &setup.sysctls {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        std::fs::write(&path, value).map_err(context(&format!("write {}", path.display())))?;
    }
    if setup.shared_pid {
        let pid = spawn_shared_init()?;
        pin(&namespaces, "pid", &pid.to_string())?;
    }
    Ok(())
}

fn pin(dir: &Path, namespace: &str, process: &str) -> io::Result<()> {
    let target = dir.join(namespace);
    std::fs::File::create(&target)?;
    let source = format!("/proc/{process}/ns/{namespace}");
    rustix::mount::mount_bind(source.as_str(), &target)
        .map_err(|e| context(&format!("pin the {namespace} namespace"))(e.into()))
}

fn raise_loopback() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: an all-zero `ifreq` is a valid value of a plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Starts the first process of a process namespace that containers share. All it does is reap.
fn spawn_shared_init() -> io::Result<i32> {
    // SAFETY: the process has one thread. The child gets a copy of memory and only makes system calls.
    let pid = unsafe {
        libc::syscall(libc::SYS_clone, libc::CLONE_NEWPID | libc::SIGCHLD, 0usize, 0usize, 0usize, 0usize)
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => shared_init(),
        _ => i32::try_from(pid).map_err(io::Error::other),
    }
}

fn shared_init() -> ! {
    // It must not outlive the keeper: nothing else would end it.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    if let Ok(name) = CString::new("pod-init") {
        let _ = rustix::thread::set_name(&name);
    }
    // SAFETY: plain system calls on values of this frame. Descriptors are closed because nobody here uses them.
    unsafe {
        libc::close_range(0, libc::c_uint::MAX, 0);
        let mut signals: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut signals);
        libc::sigaddset(&raw mut signals, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut());
        loop {
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
            libc::sigwaitinfo(&raw const signals, std::ptr::null_mut());
        }
    }
}
