//! The keeper's loop: one `poll` over the listener, connections, launches, processes and their output.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use coracle_keeper::{
    EXIT_FILE, Envelope, ExitRecord, PROTOCOL_VERSION, Reply, Request, START_FILE, Start, StartRecord, wire,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::pipe::PipeFlags;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

use crate::launch::{self, Helper, Stdio};
use crate::log::{LineCutter, LogFile};
use crate::process::{
    Container, Kind, Launch, Output, Process, listen, now, oom_kills, receive_terminal, store, write_quickly,
};
use crate::sandbox;

pub(crate) type ConnectionId = u64;
type ProcessId = u64;

pub(crate) struct Server {
    dir: PathBuf,
    listener: OwnedFd,
    watch: OwnedFd,
    connections: BTreeMap<ConnectionId, Connection>,
    processes: BTreeMap<ProcessId, Process>,
    next: u64,
    ending: bool,
}

struct Connection {
    socket: OwnedFd,
    subscribed: bool,
}

#[derive(Clone, Copy)]
enum Source {
    Listener,
    Directory,
    Connection(ConnectionId),
    Launch(ProcessId),
    Console(ProcessId),
    Output(ProcessId, usize),
    Exit(ProcessId),
}

impl Server {
    /// Sets the sandbox up. A failure is told to whoever asks, so it does not end the keeper at once.
    pub(crate) fn new(dir: PathBuf, listener: OwnedFd) -> io::Result<Self> {
        if let Err(error) = sandbox::set_up(&dir) {
            refuse(&listener, &error.to_string());
            return Err(error);
        }
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watch, &dir, inotify::WatchFlags::DELETE_SELF)?;
        Ok(Server {
            dir,
            listener,
            watch,
            connections: BTreeMap::new(),
            processes: BTreeMap::new(),
            next: 0,
            ending: false,
        })
    }

    /// Serves until told to end, and until nothing runs.
    pub(crate) fn run(mut self) {
        while !(self.ending && self.processes.is_empty()) {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(error) => {
                    eprintln!("coracle-keeper: poll: {error}");
                    return;
                }
            };
            for source in ready {
                self.handle(source);
            }
        }
        for connection in self.connections.values() {
            let _ = wire::send(&connection.socket, &Reply::Done, &[]);
        }
    }

    /// Everything that can wake the keeper. Output comes before exits: whatever a process wrote is logged first.
    fn wait(&self) -> io::Result<Vec<Source>> {
        let mut sources = vec![Source::Listener, Source::Directory];
        let mut fds =
            vec![PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&self.watch, PollFlags::IN)];
        let mut add = |source, fd| {
            sources.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        };
        for (id, connection) in &self.connections {
            add(Source::Connection(*id), connection.socket.as_fd());
        }
        for (id, process) in &self.processes {
            if let Kind::Container(container) = &process.kind {
                for (index, output) in container.outputs.iter().enumerate() {
                    add(Source::Output(*id, index), output.pipe.as_fd());
                }
                if let Some(console) = &container.console {
                    add(Source::Console(*id), console.as_fd());
                }
            }
            match (&process.launch, &process.pidfd) {
                (Some(launch), _) => add(Source::Launch(*id), launch.helper.status.as_fd()),
                (None, Some(pidfd)) => add(Source::Exit(*id), pidfd.as_fd()),
                (None, None) => {}
            }
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(sources.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty()).map(|(s, _)| s).collect())
    }

    fn handle(&mut self, source: Source) {
        match source {
            Source::Listener => self.accept(),
            Source::Directory => {
                if !self.dir.exists() {
                    self.end();
                }
            }
            Source::Connection(id) => self.receive(id),
            Source::Launch(id) => self.launching(id),
            Source::Console(id) => self.take_console(id),
            Source::Output(id, index) => self.output(id, index),
            Source::Exit(id) => self.exited(id),
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        if let Ok(socket) = rustix::net::accept_with(&self.listener, flags) {
            let id = self.id();
            self.connections.insert(id, Connection { socket, subscribed: false });
        }
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn receive(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id) else { return };
        match wire::receive::<Envelope>(&connection.socket) {
            Ok(Some((envelope, _))) if envelope.version > PROTOCOL_VERSION => {
                let message = format!(
                    "this keeper speaks version {PROTOCOL_VERSION} of the protocol, not {}",
                    envelope.version
                );
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

    fn reply(&mut self, id: ConnectionId, reply: &Reply) {
        if let Some(connection) = self.connections.get(&id)
            && wire::send(&connection.socket, reply, &[]).is_err()
        {
            // Gone, or not reading. Who comes back finds everything on disk.
            self.hang_up(id);
        }
    }

    /// A closed connection ends the exec that belongs to it.
    fn hang_up(&mut self, id: ConnectionId) {
        self.connections.remove(&id);
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
            Request::Start(start) => match self.start(id, *start) {
                Ok(()) => return,
                Err(error) => Reply::Failed { message: error.to_string() },
            },
            Request::Exec(exec) => {
                let mut streams = descriptors.into_iter();
                let stdio = Stdio { stdin: streams.next(), stdout: streams.next(), stderr: streams.next() };
                match launch::exec(&exec, stdio) {
                    Ok(helper) => {
                        self.add(Kind::Exec, id, helper);
                        return;
                    }
                    Err(error) => Reply::Failed { message: error.to_string() },
                }
            }
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

    fn container(&mut self, name: &str) -> Option<&mut Container> {
        self.processes.values_mut().find_map(|process| match &mut process.kind {
            Kind::Container(container) if container.start.container == name => Some(&mut **container),
            Kind::Container(_) | Kind::Exec => None,
        })
    }

    fn signal(&self, name: &str, signal: i32) -> Reply {
        // SAFETY: any number is taken to the kernel as it is, which refuses what is no signal.
        let signal = unsafe { Signal::from_raw_unchecked(signal) };
        match self.containers().find(|(_, c)| c.start.container == name) {
            Some((Process { pidfd: Some(pidfd), .. }, _)) => match pidfd_send_signal(pidfd, signal) {
                Ok(()) | Err(Errno::SRCH) => Reply::Done,
                Err(error) => Reply::Failed { message: error.to_string() },
            },
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

    fn start(&mut self, connection: ConnectionId, start: Start) -> io::Result<()> {
        if self.containers().any(|(_, c)| c.start.container == start.container) {
            return Err(io::Error::other("the container already runs"));
        }
        let log = LogFile::open(&start.log_path)
            .map_err(|e| io::Error::new(e.kind(), format!("open {}: {e}", start.log_path.display())))?;
        let mut container =
            Box::new(Container { start, log, outputs: Vec::new(), stdin_kept_open: None, console: None });
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
                stdio.stdin = Some(read);
                container.stdin_kept_open = Some(write);
            }
        }
        let helper = launch::start(&container.start, stdio, console_path)?;
        self.add(Kind::Container(container), connection, helper);
        Ok(())
    }

    fn add(&mut self, kind: Kind, connection: ConnectionId, helper: Helper) {
        let id = self.id();
        let launch = Launch { helper, said: Vec::new(), failure: None };
        self.processes.insert(
            id,
            Process { kind, connection: Some(connection), launch: Some(launch), pidfd: None, pid: 0 },
        );
    }

    /// Reads what a launch says, and concludes it at its end.
    fn launching(&mut self, id: ProcessId) {
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
            if line[0] == b'P' {
                process.pid = text.parse().unwrap_or(0);
                // The process cannot have been reaped by anyone: until its launch ends it is nobody's else.
                process.pidfd =
                    Pid::from_raw(process.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
            } else {
                launch.failure.get_or_insert(text);
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
        let failure = match (&launch.failure, &process.pidfd) {
            (None, Some(_)) => None,
            (Some(failure), _) => Some(failure.clone()),
            (None, None) => Some("the process that starts containers died".to_owned()),
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

    /// Takes back what is left of a launch that failed.
    fn failed(&mut self, id: ProcessId, message: String) {
        let Some(mut process) = self.processes.remove(&id) else { return };
        process.kill();
        if let Some(pidfd) = &process.pidfd {
            let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        }
        self.reap_strangers();
        if let Kind::Container(container) = &mut process.kind {
            container.drain();
            let record = ExitRecord {
                exit_code: 128,
                oom_killed: false,
                finished_at: now(),
                start_error: Some(message.clone()),
            };
            store(&container.start.dir, EXIT_FILE, &record);
            container.forget();
        }
        if let Some(connection) = process.connection {
            self.reply(connection, &Reply::Failed { message });
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
            container.read(index);
        }
    }

    fn exited(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get(&id) else { return };
        let Some(pidfd) = &process.pidfd else { return };
        let exit_code =
            match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
                Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => code,
                    (None, signal) => 128 + signal.unwrap_or(0),
                },
                Ok(None) | Err(Errno::INTR) => return,
                Err(_) => 255,
            };
        let Some(mut process) = self.processes.remove(&id) else { return };
        match &mut process.kind {
            Kind::Exec => {
                if let Some(connection) = process.connection {
                    self.reply(connection, &Reply::ExecExited { exit_code });
                    self.connections.remove(&connection);
                }
            }
            Kind::Container(container) => {
                if container.start.kill_stragglers {
                    container.kill_cgroup();
                }
                container.drain();
                let oom_killed = container.start.oom_file.as_deref().is_some_and(oom_kills);
                let record = ExitRecord { exit_code, oom_killed, finished_at: now(), start_error: None };
                store(&container.start.dir, EXIT_FILE, &record);
                container.forget();
                let reply = Reply::Exited { container: container.start.container.clone() };
                let subscribers: Vec<ConnectionId> =
                    self.connections.iter().filter(|(_, c)| c.subscribed).map(|(id, _)| *id).collect();
                for subscriber in subscribers {
                    self.reply(subscriber, &reply);
                }
            }
        }
        self.reap_strangers();
    }

    /// Reaps children that the keeper did not start: what a launch that was killed left behind.
    fn reap_strangers(&self) {
        let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        // SAFETY: an all-zero `siginfo_t` is a valid value of a plain C structure.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = peek.bits().cast_signed();
        // SAFETY: the kernel fills one `siginfo_t`, which outlives the call.
        while unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) } == 0 {
            // SAFETY: waitid succeeded, so the structure is one of a child.
            let pid = unsafe { info.si_pid() };
            let known = self.processes.values().any(|process| {
                process.pid == pid
                    || process
                        .launch
                        .as_ref()
                        .is_some_and(|launch| launch.helper.pid.as_raw_nonzero().get() == pid)
            });
            // A child of ours that has ended hides further ones; its own event takes care of it, and then of them.
            if pid == 0 || known {
                return;
            }
            let _ = rustix::process::waitpid(Pid::from_raw(pid), rustix::process::WaitOptions::NOHANG);
        }
    }
}

/// Tells the first caller why there is no sandbox.
fn refuse(listener: &OwnedFd, message: &str) {
    let mut fds = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
    let _ = poll(&mut fds, Some(&limit));
    if let Ok(connection) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
        let _ = wire::send(&connection, &Reply::Failed { message: message.to_owned() }, &[]);
    }
}
