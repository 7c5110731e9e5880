//! Who is attached to a container: told what it writes from then on, and writing to its standard input.
//!
//! What an attacher is told goes through pipes that never block the keeper. While one of them is full, the output
//! that it is for is not read, so that who reads slowly misses nothing. That ends after [`STALLED_AFTER`]: then the
//! attacher is cut off and the container goes on. Its log has everything in any case.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use coracle_keeper::{Attach, Reply};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::process::{Container, Kind, Process};
use crate::server::{ConnectionId, ProcessId, Server};
use crate::sources::Source;

/// How long an attacher may take for one piece of output (16 KiB at most) before it is cut off.
const STALLED_AFTER: Nanos = 2_000_000_000;
/// The same once the keeper is to end.
const STALLED_AT_THE_END: Nanos = 500_000_000;
/// Most output that is kept for an attacher: what a container leaves in a pipe at its end is no more.
const PENDING_BYTES_MAX: usize = 2 << 20;
/// What is read of an attacher's input at a time.
const TYPED_BYTES: usize = 4096;

type Nanos = i64;

/// All attachers of all containers.
#[derive(Default)]
pub(crate) struct Attachers(BTreeMap<ConnectionId, Attacher>);

struct Attacher {
    process: ProcessId,
    stdin: Option<OwnedFd>,
    /// It was given standard input, and not yet closed it.
    types: bool,
    outputs: Vec<AttachedOutput>,
    /// It is told nothing more; what it has been told still goes out.
    over: bool,
}

struct AttachedOutput {
    name: &'static str,
    pipe: OwnedFd,
    pending: Vec<u8>,
    /// Since when there is something pending.
    full_since: Nanos,
}

fn monotonic() -> Nanos {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

impl AttachedOutput {
    /// Writes what is pending; says whether anything went out. An attacher that has closed this output wants none.
    fn flush(&mut self) -> bool {
        let mut written = 0;
        while written < self.pending.len() {
            match rustix::io::write(&self.pipe, &self.pending[written..]) {
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => written = self.pending.len(),
            }
        }
        self.pending.drain(..written);
        if self.pending.is_empty() {
            // Freed rather than kept: most of the time nothing is pending.
            self.pending = Vec::new();
        }
        written > 0
    }
}

impl Attachers {
    /// Passes on what a container has written.
    pub(crate) fn tell(&mut self, process: ProcessId, name: &str, bytes: &[u8]) {
        let attached = self.0.values_mut().filter(|attacher| attacher.process == process && !attacher.over);
        for output in attached.flat_map(|attacher| &mut attacher.outputs).filter(|output| output.name == name)
        {
            if output.pending.is_empty() {
                output.full_since = monotonic();
            }
            output.pending.extend_from_slice(bytes);
            output.flush();
        }
    }

    /// Whether somebody has not yet taken the last piece of this output.
    pub(crate) fn hold_back(&self, process: ProcessId, name: &str) -> bool {
        let attached = self.0.values().filter(|attacher| attacher.process == process && !attacher.over);
        attached.flat_map(|attacher| &attacher.outputs).any(|o| o.name == name && !o.pending.is_empty())
    }

    /// The container has ended: nothing more comes.
    pub(crate) fn container_ended(&mut self, process: ProcessId) {
        for attacher in self.0.values_mut().filter(|attacher| attacher.process == process) {
            (attacher.over, attacher.stdin) = (true, None);
        }
    }

    /// Nobody's input goes anywhere any more.
    fn drop_stdin(&mut self, process: ProcessId) {
        for attacher in self.0.values_mut().filter(|attacher| attacher.process == process) {
            attacher.stdin = None;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the clock alone may have to end something.
    pub(crate) fn any_pending(&self) -> bool {
        self.0.values().flat_map(|attacher| &attacher.outputs).any(|output| !output.pending.is_empty())
    }

    /// What may wake the keeper; input only of those whose container takes it.
    pub(crate) fn sources<'a>(
        &'a self,
        takes_input: impl Fn(ProcessId) -> bool,
        mut add: impl FnMut(Source, &'a OwnedFd, PollFlags),
    ) {
        for (id, attacher) in &self.0 {
            if let Some(stdin) = &attacher.stdin
                && takes_input(attacher.process)
            {
                add(Source::Typed(*id), stdin, PollFlags::IN);
            }
            for (index, output) in attacher.outputs.iter().enumerate() {
                if !output.pending.is_empty() {
                    add(Source::Attached(*id, index), &output.pipe, PollFlags::OUT);
                }
            }
        }
    }
}

impl Container {
    /// Whether an attacher's input can be taken now.
    pub(crate) fn takes_input(&self) -> bool {
        self.stdin.is_some() && self.typed.is_empty() && !self.stdin_closing
    }

    /// Gives the container what was typed, as far as it takes it.
    pub(crate) fn write_typed(&mut self) {
        while let Some(stdin) = &self.stdin
            && !self.typed.is_empty()
        {
            match rustix::io::write(stdin, &self.typed) {
                Ok(count) => drop(self.typed.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // Nobody reads it any more.
                Err(_) => self.stdin = None,
            }
        }
        self.typed = Vec::new();
        if self.stdin_closing {
            self.stdin = None;
        }
    }

    fn close_stdin(&mut self) {
        self.stdin_closing = true;
        if self.typed.is_empty() {
            self.stdin = None;
        }
    }

    /// Its input is lost with the first attacher that had it. A terminal's input has no end that could be told.
    fn loses_stdin(&self) -> bool {
        self.start.stdin_once && !self.start.tty
    }
}

impl Server {
    /// Attaches a connection to a container, with its descriptors in the order of the request's fields.
    pub(crate) fn attach(&mut self, id: ConnectionId, attach: &Attach, descriptors: Vec<OwnedFd>) -> Reply {
        let found = self.processes.iter().find_map(|(process, Process { kind, .. })| match kind {
            Kind::Container(container) if container.start.container == attach.container => {
                Some((*process, container.stdin.is_some() && !container.stdin_closing))
            }
            Kind::Container(_) | Kind::Exec => None,
        });
        let Some((process, has_input)) = found else {
            return Reply::Failed { message: format!("container {} does not run", attach.container) };
        };
        for descriptor in &descriptors {
            if let Err(error) = rustix::io::ioctl_fionbio(descriptor, true) {
                return Reply::Failed { message: error.to_string() };
            }
        }
        let mut descriptors = descriptors.into_iter();
        let stdin = if attach.stdin { descriptors.next() } else { None };
        let stdin = stdin.filter(|_| has_input);
        let outputs = [("stdout", attach.stdout), ("stderr", attach.stderr)];
        let outputs: Vec<AttachedOutput> = outputs
            .into_iter()
            .filter(|(_, wanted)| *wanted)
            .zip(descriptors)
            .map(|((name, _), pipe)| AttachedOutput { name, pipe, pending: Vec::new(), full_since: 0 })
            .collect();
        let types = stdin.is_some();
        self.attachers.0.insert(id, Attacher { process, stdin, types, outputs, over: false });
        Reply::Attached
    }

    /// A connection has closed; if an attacher's, it has left.
    pub(crate) fn left(&mut self, id: ConnectionId) {
        if let Some(attacher) = self.attachers.0.remove(&id)
            && attacher.types
        {
            self.input_ended(attacher.process);
        }
    }

    fn input_ended(&mut self, process: ProcessId) {
        if let Some(Process { kind: Kind::Container(container), .. }) = self.processes.get_mut(&process)
            && container.loses_stdin()
        {
            container.close_stdin();
            self.attachers.drop_stdin(process);
        }
    }

    /// Passes an attacher's input on.
    pub(crate) fn typed(&mut self, id: ConnectionId) {
        let Some(attacher) = self.attachers.0.get_mut(&id) else { return };
        let Some(stdin) = &attacher.stdin else { return };
        let process = attacher.process;
        let Some(Process { kind: Kind::Container(container), .. }) = self.processes.get_mut(&process) else {
            return;
        };
        let mut buffer = [0u8; TYPED_BYTES];
        match rustix::io::read(stdin, &mut buffer) {
            Ok(count) if count > 0 => {
                container.typed.extend_from_slice(&buffer[..count]);
                container.write_typed();
                if container.stdin.is_none() {
                    self.attachers.drop_stdin(process);
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) | Err(_) => {
                (attacher.stdin, attacher.types) = (None, false);
                if container.loses_stdin() {
                    self.input_ended(process);
                } else {
                    attacher.over = true;
                }
            }
        }
    }

    /// Gives a container more of what was typed.
    pub(crate) fn take_typed(&mut self, process: ProcessId) {
        if let Some(Process { kind: Kind::Container(container), .. }) = self.processes.get_mut(&process) {
            container.write_typed();
            if container.stdin.is_none() {
                self.attachers.drop_stdin(process);
            }
        }
    }

    /// An attacher has room for more.
    pub(crate) fn attached(&mut self, id: ConnectionId, index: usize) {
        let ending = self.ending;
        if let Some(attacher) = self.attachers.0.get_mut(&id) {
            let output = &mut attacher.outputs[index];
            if output.flush() && attacher.over && !ending {
                // It holds up nobody.
                output.full_since = monotonic();
            }
        }
    }

    /// Ends attachments that are over, and those of who does not read.
    pub(crate) fn part(&mut self) {
        if self.attachers.is_empty() {
            return;
        }
        let (now, limit) = (monotonic(), if self.ending { STALLED_AT_THE_END } else { STALLED_AFTER });
        let mut parting = Vec::new();
        for (id, attacher) in &self.attachers.0 {
            let pending = || attacher.outputs.iter().filter(|output| !output.pending.is_empty());
            let stalled = pending()
                .any(|output| now - output.full_since > limit || output.pending.len() > PENDING_BYTES_MAX);
            if stalled {
                let problem = "what the container writes was not read fast enough; its log has all of it";
                parting.push((*id, Some(problem.to_owned())));
            } else if attacher.over && pending().next().is_none() {
                parting.push((*id, None));
            }
        }
        for (id, problem) in parting {
            self.reply(id, &Reply::Detached { problem });
            self.hang_up(id);
        }
    }

    /// Gives a container's terminal another size.
    pub(crate) fn resize(&mut self, name: &str, width: u16, height: u16) -> Reply {
        let Some(container) = self.container(name) else {
            return Reply::Failed { message: format!("container {name} does not run") };
        };
        if let Some(terminal) = &container.terminal {
            let size = rustix::termios::Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
            if let Err(error) = rustix::termios::tcsetwinsize(terminal.as_fd(), size) {
                return Reply::Failed { message: error.to_string() };
            }
        }
        Reply::Done
    }
}
