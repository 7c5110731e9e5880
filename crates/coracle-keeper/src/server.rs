//! The keeper's loop: one `poll` over the listener, connections, launches, processes and their output.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use coracle_keeper::{
    Envelope, PROTOCOL_VERSION, Reply, Request, START_FILE, Start, StartRecord, version_problem, wire,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use crate::attach::Attachers;
use crate::ends::Unwritten;
use crate::launch::{self, Helper, Stdio};
use crate::log::{LineCutter, LogFile};
use crate::process::{
    Container, Kind, Launch, Output, Process, listen, now, oom_kills, receive_terminal, write_quickly,
};
use crate::sandbox;
use crate::sources::{Source, connections_max};

/// How often a keeper sees whether its directory is still there. Not by inotify: a user has 128 instances of it by
/// default, which the programs in Pods need too, and there may be more Pods than that.
const LOOK: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

pub(crate) type ConnectionId = u64;
pub(crate) type ProcessId = u64;

pub(crate) struct Server {
    dir: PathBuf,
    pub(crate) listener: OwnedFd,
    /// Expires every [`LOOK`]: time to see whether the directory is still there.
    pub(crate) look: OwnedFd,
    pub(crate) connections: BTreeMap<ConnectionId, Connection>,
    pub(crate) connections_max: usize,
    /// No descriptor was left for a connection that waits.
    pub(crate) out_of_descriptors: bool,
    pub(crate) processes: BTreeMap<ProcessId, Process>,
    /// Ends whose records the disk did not take yet.
    pub(crate) unwritten: Vec<Unwritten>,
    pub(crate) attachers: Attachers,
    next: u64,
    pub(crate) ending: bool,
}

pub(crate) struct Connection {
    pub(crate) socket: OwnedFd,
    pub(crate) subscribed: bool,
}

impl Server {
    /// Sets the sandbox up. A failure is told to whoever asks, so it does not end the keeper at once.
    pub(crate) fn new(dir: PathBuf, listener: OwnedFd) -> io::Result<Self> {
        match sandbox::set_up(&dir).and_then(|()| looking()) {
            Ok(look) => Ok(Server::serving(dir, listener, look)),
            Err(error) => {
                refuse(&listener, &error.to_string());
                Err(error)
            }
        }
    }

    /// A server of a sandbox that is set up.
    pub(crate) fn serving(dir: PathBuf, listener: OwnedFd, look: OwnedFd) -> Self {
        Server {
            dir,
            listener,
            look,
            connections: BTreeMap::new(),
            connections_max: connections_max(),
            out_of_descriptors: false,
            processes: BTreeMap::new(),
            unwritten: Vec::new(),
            attachers: Attachers::default(),
            next: 0,
            ending: false,
        }
    }

    /// Serves until told to end, and until nothing runs and those attached know.
    pub(crate) fn run(mut self) {
        while !(self.ending && self.processes.is_empty() && self.attachers.is_empty()) {
            for source in self.wait() {
                self.handle(source);
            }
            self.write_unwritten();
            self.part();
        }
        for connection in self.connections.values() {
            let _ = wire::send(&connection.socket, &Reply::Done, &[]);
        }
    }

    fn handle(&mut self, source: Source) {
        match source {
            Source::Listener => self.accept(),
            Source::Look => {
                let _ = rustix::io::read(&self.look, &mut [0_u8; 8]);
                if !self.dir.exists() {
                    self.end();
                }
            }
            Source::Connection(id) => self.receive(id),
            Source::Launch(id) => self.launching(id),
            Source::Console(id) => self.take_console(id),
            Source::Output(id, index) => self.output(id, index),
            Source::Exit(id) => self.exited(id),
            Source::Stdin(id) => self.take_typed(id),
            Source::Typed(id) => self.typed(id),
            Source::Attached(id, index) => self.attached(id, index),
        }
    }

    pub(crate) fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn receive(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id) else { return };
        match wire::receive::<Envelope>(&connection.socket) {
            Ok(Some((envelope, _))) if envelope.version > PROTOCOL_VERSION => {
                let message = format!(
                    "the keeper of this Pod was started by an older coracle and speaks version {PROTOCOL_VERSION} of \
                     the protocol; this needs version {}: make the Pod anew",
                    envelope.version
                );
                self.reply(id, &Reply::Failed { message });
            }
            Ok(Some((envelope, _))) if version_problem("coracle", envelope.version).is_some() => {
                let message = version_problem("coracle", envelope.version).unwrap_or_default();
                self.reply(id, &Reply::Failed { message });
            }
            Ok(Some((envelope, descriptors))) => self.request(id, envelope.request, descriptors),
            Ok(None) => self.hang_up(id),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.reply(id, &Reply::Failed { message: format!("the request is not understood: {error}") });
            }
            Err(_) => self.hang_up(id),
        }
    }

    pub(crate) fn reply(&mut self, id: ConnectionId, reply: &Reply) {
        if let Some(connection) = self.connections.get(&id)
            && wire::send(&connection.socket, reply, &[]).is_err()
        {
            // Gone, or not reading. Who comes back finds everything on disk.
            self.hang_up(id);
        }
    }

    /// A closed connection ends the exec or the attachment that belongs to it.
    pub(crate) fn hang_up(&mut self, id: ConnectionId) {
        self.connections.remove(&id);
        self.left(id);
        for process in self.processes.values_mut().filter(|p| p.connection == Some(id)) {
            process.connection = None;
            if matches!(process.kind, Kind::Exec) {
                process.kill();
            }
        }
    }

    fn request(&mut self, id: ConnectionId, request: Request, descriptors: Vec<OwnedFd>) {
        let reply = match request {
            Request::Subscribe => {
                // First, so that whoever hears what runs knows how the others ended.
                self.tell_unwritten(id);
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.subscribed = true;
                }
                Reply::Hello {
                    version: PROTOCOL_VERSION,
                    pid: rustix::process::getpid().as_raw_nonzero().get(),
                    running: self.containers().map(|(_, c)| c.start.container.clone()).collect(),
                }
            }
            Request::Start(_) | Request::Exec(_) if self.ending => {
                Reply::Failed { message: "the sandbox is ending".to_owned() }
            }
            Request::Start(start) if self.join_start(id, &start.container) => return,
            Request::Start(start) => match self.start(id, *start) {
                Ok(()) => return,
                Err(error) => Reply::Failed { message: error.to_string() },
            },
            Request::Exec(exec) => {
                let Some((to, dir)) = self.running(&exec.container) else {
                    let message = format!("container {} does not run", exec.container);
                    return self.reply(id, &Reply::Failed { message });
                };
                let mut streams = descriptors.into_iter();
                let stdio = Stdio { stdin: streams.next(), stdout: streams.next(), stderr: streams.next() };
                match launch::exec(&exec, to, &dir, stdio) {
                    Ok(helper) => {
                        self.add(Kind::Exec, id, helper);
                        return;
                    }
                    Err(error) => Reply::Failed { message: error.to_string() },
                }
            }
            Request::Attach(attach) => self.attach(id, &attach, descriptors),
            Request::Resize { container, width, height } => self.resize(&container, width, height),
            Request::Signal { container, signal } => self.signal(&container, signal),
            Request::ReopenLog { container } => match self.container(&container).map(|c| c.log.reopen()) {
                Some(Ok(())) => Reply::Done,
                Some(Err(error)) => Reply::Failed { message: error.to_string() },
                None => Reply::Failed { message: format!("container {container} does not run") },
            },
            Request::Shutdown => {
                self.end();
                return;
            }
        };
        self.reply(id, &reply);
    }

    fn containers(&self) -> impl Iterator<Item = (&Process, &Container)> {
        self.processes.values().filter_map(|process| match &process.kind {
            Kind::Container(container) => Some((process, &**container)),
            Kind::Exec => None,
        })
    }

    pub(crate) fn container(&mut self, name: &str) -> Option<&mut Container> {
        self.processes.values_mut().find_map(|process| match &mut process.kind {
            Kind::Container(container) if container.start.container == name => Some(&mut **container),
            Kind::Container(_) | Kind::Exec => None,
        })
    }

    /// The first process and the directory of a container whose program runs.
    fn running(&self, name: &str) -> Option<(i32, PathBuf)> {
        let (process, container) = self.containers().find(|(_, c)| c.start.container == name)?;
        (process.launch.is_none() && process.pid > 0).then(|| (process.pid, container.start.dir.clone()))
    }

    fn signal(&self, name: &str, signal: i32) -> Reply {
        // SAFETY: any number is taken to the kernel as it is, which refuses what is no signal.
        let signal = unsafe { Signal::from_raw_unchecked(signal) };
        match self.containers().find(|(_, c)| c.start.container == name) {
            Some((Process { pidfd: Some(pidfd), .. }, _)) => match pidfd_send_signal(pidfd, signal) {
                Ok(()) | Err(Errno::SRCH) => Reply::Done,
                Err(error) => Reply::Failed { message: error.to_string() },
            },
            // Its launch fails then.
            Some((Process { launch: Some(launch), .. }, _)) if signal == Signal::KILL => {
                let _ = kill_process(launch.helper.pid, Signal::KILL);
                Reply::Done
            }
            Some(_) => Reply::Failed { message: "the container is just being started".to_owned() },
            None => Reply::Done,
        }
    }

    fn end(&mut self) {
        self.ending = true;
        for process in self.processes.values_mut() {
            process.kill();
        }
    }

    /// A container that is being started, or runs, is not started twice: who asks again, after a daemon's
    /// restart, hears how the first time went.
    fn join_start(&mut self, connection: ConnectionId, name: &str) -> bool {
        let found = self.processes.values_mut().find(|process| match &process.kind {
            Kind::Container(container) => container.start.container == name,
            Kind::Exec => false,
        });
        let Some(process) = found else { return false };
        if process.launch.is_some() {
            process.connection = Some(connection);
        } else {
            let pid = process.pid;
            self.reply(connection, &Reply::Started { pid });
        }
        true
    }

    fn start(&mut self, connection: ConnectionId, start: Start) -> io::Result<()> {
        let log = LogFile::open(&start.log_path, start.log_limit)
            .map_err(|e| io::Error::new(e.kind(), format!("open {}: {e}", start.log_path.display())))?;
        let mut container = Box::new(Container::new(start, log));
        let mut stdio = Stdio { stdin: None, stdout: None, stderr: None };
        let mut console_path = None;
        if container.start.tty {
            let path = self.dir.join(format!("tty-{}", &container.start.container[..12]));
            container.console = Some(listen(&path)?);
            console_path = Some(path);
        } else {
            for name in ["stdout", "stderr"] {
                let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
                rustix::io::ioctl_fionbio(&read, true)?;
                container.outputs.push(Output { name, pipe: read, cutter: LineCutter::default() });
                if name == "stdout" { stdio.stdout = Some(write) } else { stdio.stderr = Some(write) }
            }
            if container.start.stdin {
                let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
                rustix::io::ioctl_fionbio(&write, true)?;
                stdio.stdin = Some(read);
                container.stdin = Some(write);
            }
        }
        let helper = launch::start(&container.start, stdio, console_path)?;
        self.add(Kind::Container(container), connection, helper);
        Ok(())
    }

    fn add(&mut self, kind: Kind, connection: ConnectionId, helper: Helper) {
        let id = self.id();
        let launch = Launch { helper, said: Vec::new(), failure: None, reached: false };
        self.processes.insert(
            id,
            Process { kind, connection: Some(connection), launch: Some(launch), pidfd: None, pid: 0 },
        );
    }

    /// Reads what a launch says, and concludes it at its end.
    pub(crate) fn launching(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(launch) = &mut process.launch else { return };
        let mut buffer = [0u8; 4096];
        let count = match rustix::io::read(&launch.helper.status, &mut buffer) {
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => 0,
        };
        launch.said.extend_from_slice(&buffer[..count]);
        while let Some(end) = launch.said.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = launch.said.drain(..=end).collect();
            let text = String::from_utf8_lossy(&line[1..end]).into_owned();
            match line[0] {
                b'P' => {
                    process.pid = text.parse().unwrap_or(0);
                    // The process cannot have been reaped by anyone: until its launch ends it is nobody's else.
                    process.pidfd =
                        Pid::from_raw(process.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
                }
                b'X' => launch.reached = true,
                _ => {
                    launch.failure.get_or_insert(text);
                }
            }
        }
        if count == 0 {
            self.launched(id);
        }
    }

    fn launched(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(launch) = process.launch.take() else { return };
        // It closed the pipe by ending, so this does not wait for long.
        let _ = rustix::process::waitpid(Some(launch.helper.pid), rustix::process::WaitOptions::empty());
        let starved = |kind: &Kind| match kind {
            Kind::Container(container) => container.start.oom_file.as_deref().is_some_and(oom_kills),
            Kind::Exec => false,
        };
        let failure = match (&launch.failure, &process.pidfd) {
            (None, Some(_)) if launch.reached => None,
            (Some(failure), _) => Some(failure.clone()),
            (None, _) if starved(&process.kind) => {
                Some("container init was OOM-killed (memory limit too low?)".to_owned())
            }
            (None, _) => Some("the process that starts containers died".to_owned()),
        };
        let (pid, connection) = (process.pid, process.connection);
        if let Some(message) = failure {
            self.failed(id, message);
            return;
        }
        if let Kind::Container(container) = &process.kind {
            let record = StartRecord { pid, started_at: now() };
            // Power loss ends the container too, so this need not survive it.
            let bytes = serde_json::to_vec(&record).unwrap_or_default();
            if let Err(error) = write_quickly(&container.start.dir, START_FILE, &bytes) {
                eprintln!("coracle-keeper: cannot write {START_FILE}: {error}");
            }
        }
        if self.ending || (connection.is_none() && matches!(process.kind, Kind::Exec)) {
            process.kill();
        }
        if let Some(connection) = connection {
            self.reply(connection, &Reply::Started { pid });
        }
    }

    fn take_console(&mut self, id: ProcessId) {
        let Some(Process { kind: Kind::Container(container), .. }) = self.processes.get_mut(&id) else {
            return;
        };
        let Some(listener) = container.console.take() else { return };
        let _ = std::fs::remove_file(self.dir.join(format!("tty-{}", &container.start.container[..12])));
        match receive_terminal(&listener) {
            Ok(terminal) => {
                container.terminal = terminal.try_clone().ok();
                if container.start.stdin {
                    container.stdin = terminal.try_clone().ok();
                }
                container.outputs.push(Output {
                    name: "stdout",
                    pipe: terminal,
                    cutter: LineCutter::default(),
                });
            }
            Err(error) => eprintln!("coracle-keeper: no terminal: {error}"),
        }
    }

    fn output(&mut self, id: ProcessId, index: usize) {
        if let Some(Process { kind: Kind::Container(container), .. }) = self.processes.get_mut(&id) {
            // One read only, so that a busy writer does not keep the others waiting.
            container.read(index, &mut |name, bytes| self.attachers.tell(id, name, bytes));
        }
    }
}

/// A timer that says when to see whether the directory is still there.
pub(crate) fn looking() -> io::Result<OwnedFd> {
    let look = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    let every = Itimerspec { it_interval: LOOK, it_value: LOOK };
    timerfd_settime(&look, TimerfdTimerFlags::empty(), &every)?;
    Ok(look)
}

/// Tells the first caller why there is no sandbox.
fn refuse(listener: &OwnedFd, message: &str) {
    let mut fds = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
    let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
    let _ = poll(&mut fds, Some(&limit));
    if let Ok(connection) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
        let _ = wire::send(&connection, &Reply::Failed { message: message.to_owned() }, &[]);
    }
}
