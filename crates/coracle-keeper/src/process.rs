//! What a keeper keeps: processes with their launch, output, log and end.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use coracle_keeper::kill::kill_members;
use coracle_keeper::{Start, UnixNanos, write_durably};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, kill_process, kill_process_group, pidfd_send_signal};
use rustix::time::{ClockId, clock_gettime};

use crate::launch::Helper;
use crate::log::{LineCutter, LogFile};
use crate::server::ConnectionId;

/// A container's first process, or a further one: from the request to the record of its end.
pub(crate) struct Process {
    pub(crate) kind: Kind,
    /// Who gets told; a container goes on without.
    pub(crate) connection: Option<ConnectionId>,
    pub(crate) launch: Option<Launch>,
    pub(crate) pidfd: Option<OwnedFd>,
    pub(crate) pid: i32,
}

pub(crate) enum Kind {
    Container(Box<Container>),
    Exec,
}

pub(crate) struct Container {
    pub(crate) start: Start,
    pub(crate) log: LogFile,
    pub(crate) outputs: Vec<Output>,
    /// Where attachers' input goes; held open so that standard input does not end without them.
    pub(crate) stdin: Option<OwnedFd>,
    /// What has been typed and not yet been taken.
    pub(crate) typed: Vec<u8>,
    /// Standard input ends with what has been typed.
    pub(crate) stdin_closing: bool,
    /// Where the terminal comes.
    pub(crate) console: Option<OwnedFd>,
    pub(crate) terminal: Option<OwnedFd>,
}

pub(crate) struct Output {
    pub(crate) name: &'static str,
    pub(crate) pipe: OwnedFd,
    pub(crate) cutter: LineCutter,
}

pub(crate) struct Launch {
    pub(crate) helper: Helper,
    pub(crate) said: Vec<u8>,
    pub(crate) failure: Option<String>,
    /// Only the program was left to be executed.
    pub(crate) reached: bool,
}

pub(crate) fn now() -> UnixNanos {
    let time = clock_gettime(ClockId::Realtime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

impl Process {
    pub(crate) fn kill(&mut self) {
        if let Some(launch) = &self.launch {
            let _ = kill_process(launch.helper.pid, Signal::KILL);
        }
        if let Some(pidfd) = &self.pidfd {
            if matches!(self.kind, Kind::Exec)
                && let Some(pid) = Pid::from_raw(self.pid)
            {
                // The process leads a session of its own and is not reaped yet, so its id is still its own.
                let _ = kill_process_group(pid, Signal::KILL);
            }
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
    }
}

impl Container {
    pub(crate) fn new(start: Start, log: LogFile) -> Self {
        Container {
            start,
            log,
            outputs: Vec::new(),
            stdin: None,
            typed: Vec::new(),
            stdin_closing: false,
            console: None,
            terminal: None,
        }
    }

    /// Reads once, and tells what; false when there is nothing to read now or ever again.
    pub(crate) fn read(&mut self, index: usize, told: &mut dyn FnMut(&str, &[u8])) -> bool {
        let mut buffer = [0u8; 16 * 1024];
        let output = &mut self.outputs[index];
        match rustix::io::read(&output.pipe, &mut buffer) {
            Ok(count) if count > 0 => {
                output.cutter.feed(&buffer[..count], output.name, now(), &mut self.log);
                told(output.name, &buffer[..count]);
                true
            }
            Err(Errno::INTR) => true,
            Err(Errno::AGAIN) => false,
            Ok(_) | Err(_) => {
                output.cutter.finish(output.name, now(), &mut self.log);
                // The other one keeps its index: an output that has ended is replaced by one that never wakes.
                if let Ok(silence) = silence() {
                    output.pipe = silence;
                }
                false
            }
        }
    }

    /// Reads all that was written.
    pub(crate) fn drain(&mut self, told: &mut dyn FnMut(&str, &[u8])) {
        for index in 0..self.outputs.len() {
            while self.read(index, told) {}
            let output = &mut self.outputs[index];
            output.cutter.finish(output.name, now(), &mut self.log);
        }
    }

    pub(crate) fn kill_cgroup(&self) {
        let Some(procs) = self.start.cgroup_procs.first() else { return };
        kill_members(|| {
            let list = std::fs::read_to_string(procs).unwrap_or_default();
            list.lines().filter_map(|line| line.parse().ok().and_then(Pid::from_raw)).collect()
        });
    }
}

/// A descriptor that never wakes anyone: an event counter that nobody counts up.
pub(crate) fn silence() -> io::Result<OwnedFd> {
    use rustix::event::{EventfdFlags, eventfd};
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Whole to whoever reads it while the machine runs.
pub(crate) fn write_quickly(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!(".{name}.new"));
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(temporary, dir.join(name))
}

pub(crate) fn store<T: serde::Serialize>(dir: &Path, name: &str, record: &T) -> io::Result<()> {
    write_durably(dir, name, &serde_json::to_vec(record)?)
}

/// Whether the kernel killed something here: `oom_kill N` in `memory.oom_control` (v1) or `memory.events` (v2).
pub(crate) fn oom_kills(file: &Path) -> bool {
    std::fs::read_to_string(file)
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.strip_prefix("oom_kill "))
        .any(|count| count.trim() != "0")
}

pub(crate) fn listen(path: &Path) -> io::Result<OwnedFd> {
    let _ = std::fs::remove_file(path);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Through the directory's descriptor: the path itself may be too long for a socket address.
    let parent = path.parent().unwrap_or(Path::new("/"));
    let dir = rustix::fs::open(
        parent,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let short = format!("/proc/self/fd/{}/{name}", std::os::fd::AsRawFd::as_raw_fd(&dir));
    rustix::net::bind(&socket, &SocketAddrUnix::new(short.as_str())?)?;
    rustix::net::listen(&socket, 1)?;
    Ok(socket)
}

pub(crate) fn receive_terminal(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let connection = rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?;
    let mut bytes = [0u8; 256];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(
        &connection,
        &mut [io::IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in control.drain() {
        if let rustix::net::RecvAncillaryMessage::ScmRights(mut rights) = message
            && let Some(terminal) = rights.next()
        {
            rustix::io::ioctl_fionbio(&terminal, true)?;
            return Ok(terminal);
        }
    }
    Err(io::Error::other("no terminal came with the message"))
}
