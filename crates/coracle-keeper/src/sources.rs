//! What can wake the keeper, and waiting for it.

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::process::{Resource, getrlimit};

use crate::process::Kind;
use crate::server::{Connection, ConnectionId, ProcessId, Server};

/// How often is tried again what failed for want of something: descriptors, room on the disk, memory.
const RETRY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Listener,
    /// Time to see whether the directory is still there.
    Look,
    Connection(ConnectionId),
    Launch(ProcessId),
    Console(ProcessId),
    Output(ProcessId, usize),
    Exit(ProcessId),
    /// A container's standard input has room for what was typed.
    Stdin(ProcessId),
    /// An attacher has typed.
    Typed(ConnectionId),
    /// An attacher has room for output.
    Attached(ConnectionId, usize),
}

/// Half of the descriptors: a connection may bring a process, which has one too.
pub(crate) fn connections_max() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / 2).unwrap_or(usize::MAX).clamp(8, 4096)
}

impl Server {
    /// Everything that may wake the keeper. Output comes before exits: whatever a process wrote is logged first.
    fn sources(&self) -> Vec<(Source, PollFd<'_>)> {
        let mut sources = vec![(Source::Look, PollFd::new(&self.look, PollFlags::IN))];
        let takes_input = |process| match self.processes.get(&process).map(|process| &process.kind) {
            Some(Kind::Container(container)) => container.takes_input(),
            Some(Kind::Exec) | None => false,
        };
        self.attachers
            .sources(takes_input, |source, fd, flags| sources.push((source, PollFd::new(fd, flags))));
        for (id, process) in &self.processes {
            if let Kind::Container(container) = &process.kind
                && let Some(stdin) = &container.stdin
                && !container.typed.is_empty()
            {
                sources.push((Source::Stdin(*id), PollFd::new(stdin, PollFlags::OUT)));
            }
        }
        let mut add = |source, fd| sources.push((source, PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        // A connection that cannot be taken would wake the keeper for ever.
        if self.connections.len() < self.connections_max && !self.out_of_descriptors {
            add(Source::Listener, self.listener.as_fd());
        }
        for (id, connection) in &self.connections {
            add(Source::Connection(*id), connection.socket.as_fd());
        }
        for (id, process) in &self.processes {
            if let Kind::Container(container) = &process.kind {
                let outputs = container.outputs.iter().enumerate();
                for (index, output) in outputs.filter(|(_, o)| !self.attachers.hold_back(*id, o.name)) {
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
        sources
    }

    /// Waits until something happens, or until something is to be tried again.
    pub(crate) fn wait(&mut self) -> Vec<Source> {
        let retry = self.out_of_descriptors || !self.unwritten.is_empty() || self.attachers.any_pending();
        let (sources, mut fds): (Vec<_>, Vec<_>) = self.sources().into_iter().unzip();
        let ready = match poll(&mut fds, retry.then_some(&RETRY)) {
            Ok(_) => sources
                .into_iter()
                .zip(&fds)
                .filter(|(_, fd)| !fd.revents().is_empty())
                .map(|(s, _)| s)
                .collect(),
            Err(Errno::INTR) => Vec::new(),
            // For want of memory, or of descriptors that a lowered limit took away. Nothing is supervised while
            // it lasts; to end would kill everything.
            Err(_) => {
                let _ = poll(&mut [], Some(&RETRY));
                Vec::new()
            }
        };
        self.out_of_descriptors = false;
        ready
    }

    pub(crate) fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(&self.listener, flags) {
            Ok(socket) => {
                let id = self.id();
                self.connections.insert(id, Connection { socket, subscribed: false });
            }
            Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => self.out_of_descriptors = true,
            // It has gone again.
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

    use super::*;
    use crate::server::looking;

    #[test]
    fn a_connection_that_cannot_be_taken_does_not_wake_the_keeper() {
        let dir = std::env::temp_dir().join(format!("coracle-keeper-sources-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let socket = || rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        let listener = socket();
        let address = SocketAddrUnix::new(dir.join("sock")).unwrap();
        rustix::net::bind(&listener, &address).unwrap();
        rustix::net::listen(&listener, 16).unwrap();
        let mut server = Server::serving(dir.clone(), listener, looking().unwrap());
        server.connections_max = 1;
        let clients: Vec<_> = (0..2)
            .map(|_| {
                let client = socket();
                rustix::net::connect(&client, &address).unwrap();
                client
            })
            .collect();
        let listens =
            |server: &Server| server.sources().iter().any(|(source, _)| *source == Source::Listener);

        assert_eq!(server.wait(), [Source::Listener]);
        server.accept();
        assert!(!listens(&server), "there are as many connections as there may be, and one more waits");
        server.connections.clear();
        assert!(listens(&server));
        server.out_of_descriptors = true;
        assert!(!listens(&server));
        assert_eq!(server.wait(), [], "after a pause");
        assert_eq!(server.wait(), [Source::Listener], "it is tried again");
        drop(clients);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
