//! How processes end: reaped, written down, told.

use std::os::fd::AsFd;
use std::path::PathBuf;

use coracle_keeper::{EXIT_FILE, ExitRecord, Reply};
use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::process::{Container, Kind, now, oom_kills, store};
use crate::server::{ConnectionId, ProcessId, Server};

/// How a container ended, which the disk did not take. The keeper keeps it until it does.
pub(crate) struct Unwritten {
    container: String,
    dir: PathBuf,
    record: ExitRecord,
}

impl Server {
    /// Takes back what is left of a launch that failed.
    pub(crate) fn failed(&mut self, id: ProcessId, message: String) {
        let Some(mut process) = self.processes.remove(&id) else { return };
        process.kill();
        if let Some(pidfd) = &process.pidfd {
            let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        }
        self.reap_strangers();
        if let Kind::Container(container) = &mut process.kind {
            container.drain(&mut |name, bytes| self.attachers.tell(id, name, bytes));
            self.attachers.container_ended(id);
            let record = ExitRecord {
                exit_code: 128,
                oom_killed: false,
                finished_at: now(),
                start_error: Some(message.clone()),
                unseen: false,
            };
            // Also to those who did not ask for the start: who did may have gone.
            self.ended(container, record);
        }
        if let Some(connection) = process.connection {
            self.reply(connection, &Reply::Failed { message });
        }
    }

    pub(crate) fn exited(&mut self, id: ProcessId) {
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
                container.drain(&mut |name, bytes| self.attachers.tell(id, name, bytes));
                self.attachers.container_ended(id);
                let oom_killed = container.start.oom_file.as_deref().is_some_and(oom_kills);
                let record =
                    ExitRecord { exit_code, oom_killed, finished_at: now(), ..ExitRecord::default() };
                self.ended(container, record);
            }
        }
        self.reap_strangers();
    }

    /// Writes down how a container ended, and tells everyone who listens.
    fn ended(&mut self, container: &Container, record: ExitRecord) {
        let start = &container.start;
        if let Err(error) = store(&start.dir, EXIT_FILE, &record) {
            eprintln!("coracle-keeper: cannot write {}/{EXIT_FILE}: {error}", start.dir.display());
            self.unwritten.push(Unwritten {
                container: start.container.clone(),
                dir: start.dir.clone(),
                record: record.clone(),
            });
        }
        let reply = Reply::Exited { container: start.container.clone(), record: Some(record) };
        let subscribers: Vec<ConnectionId> =
            self.connections.iter().filter(|(_, c)| c.subscribed).map(|(id, _)| *id).collect();
        for subscriber in subscribers {
            self.reply(subscriber, &reply);
        }
    }

    /// Tries again to write down what could not be.
    pub(crate) fn write_unwritten(&mut self) {
        self.unwritten.retain(|end| {
            // Somebody else wrote it, or the container is gone and nobody wants to know any more.
            let settled = !end.dir.exists() || end.dir.join(EXIT_FILE).exists();
            !settled && store(&end.dir, EXIT_FILE, &end.record).is_err()
        });
    }

    /// Tells a new listener what it cannot find on disk.
    pub(crate) fn tell_unwritten(&mut self, connection: ConnectionId) {
        let ends: Vec<Reply> = self
            .unwritten
            .iter()
            .map(|end| Reply::Exited { container: end.container.clone(), record: Some(end.record.clone()) })
            .collect();
        for end in &ends {
            self.reply(connection, end);
        }
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

#[cfg(test)]
mod tests {
    use std::fs::File;

    use coracle_keeper::{Start, wire};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;
    use crate::launch::Helper;
    use crate::log::LogFile;
    use crate::process::{Launch, Process};
    use crate::server::{Connection, looking};

    /// A server with one listener, and the container `c` about to be started by a process that says `said`.
    #[allow(clippy::zombie_processes, reason = "the server waits for it")]
    fn launching(dir: &std::path::Path, said: &str) -> (Server, ProcessId, std::os::fd::OwnedFd) {
        std::fs::create_dir_all(dir).unwrap();
        let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        let mut server = Server::serving(dir.to_owned(), listener, looking().unwrap());
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        server.connections.insert(1, Connection { socket: near, subscribed: true });
        let helper = std::process::Command::new("true").spawn().unwrap();
        let (status, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        std::io::Write::write_all(&mut File::from(write), said.as_bytes()).unwrap();
        let start = Start { container: "c".into(), dir: dir.to_owned(), ..Default::default() };
        let container = Container::new(start, LogFile::open("/dev/null".as_ref(), None).unwrap());
        let pid = Pid::from_raw(helper.id().cast_signed()).unwrap();
        let process = Process {
            kind: Kind::Container(Box::new(container)),
            // Whoever asked has gone.
            connection: None,
            launch: Some(Launch {
                helper: Helper { pid, status },
                said: Vec::new(),
                failure: None,
                reached: false,
            }),
            pidfd: None,
            pid: 0,
        };
        server.processes.insert(7, process);
        (server, 7, far)
    }

    #[test]
    fn a_launch_that_fails_is_told_to_all_and_kept_until_it_is_written() {
        let dir = std::env::temp_dir().join(format!("coracle-keeper-ends-{}", std::process::id()));
        let (mut server, id, listener) = launching(&dir, "Eno such file\n");
        // A directory in the way of the file, as a disk that takes nothing.
        std::fs::create_dir(dir.join(format!(".{EXIT_FILE}.new"))).unwrap();
        server.launching(id);
        server.launching(id);
        let heard = || match wire::receive::<Reply>(&listener).unwrap().unwrap().0 {
            Reply::Exited { container, record: Some(record) } if container == "c" => record,
            other => panic!("{other:?}"),
        };
        let record = heard();
        assert_eq!((record.exit_code, record.start_error.as_deref()), (128, Some("no such file")));
        assert!(server.processes.is_empty());
        server.write_unwritten();
        server.tell_unwritten(1);
        assert_eq!(heard(), record, "a new listener is told what is not on disk");

        std::fs::remove_dir(dir.join(format!(".{EXIT_FILE}.new"))).unwrap();
        server.write_unwritten();
        assert!(server.unwritten.is_empty());
        let written = std::fs::read(dir.join(EXIT_FILE)).unwrap();
        assert_eq!(serde_json::from_slice::<ExitRecord>(&written).unwrap(), record);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
