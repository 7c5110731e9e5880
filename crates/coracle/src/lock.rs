//! The lock of a cluster: which process has it, and what for.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::Signal;

/// What a process has the lock for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It starts the cluster; the node is not Ready yet.
    Starting,
    /// It runs the cluster.
    Running,
    /// It stops or removes what the cluster left.
    Stopping,
}

impl Purpose {
    const ALL: [Purpose; 3] = [Purpose::Starting, Purpose::Running, Purpose::Stopping];

    /// The word for it in the file: all of one length, so that one replaces the other whole.
    fn word(self) -> &'static str {
        match self {
            Purpose::Starting => "starting",
            Purpose::Running => "running ",
            Purpose::Stopping => "stopping",
        }
    }
}

/// The process that has a cluster's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) pid: i32,
    pub(crate) purpose: Purpose,
}

/// A lock that this process has; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    begun: bool,
}

impl Lock {
    /// Takes the lock and writes this process's id into it; `None` if another process has it.
    pub(crate) fn take(path: &Path, purpose: Purpose) -> anyhow::Result<Option<Self>> {
        let file = open(path)?;
        if fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())).is_err() {
            return Ok(None);
        }
        let mut lock = Lock { file, begun: false };
        lock.tell(purpose)?;
        Ok(Some(lock))
    }

    /// Remembers that all of the cluster has been started: from now on it is somebody's.
    pub(crate) fn begin(&mut self) {
        self.begun = true;
    }

    /// Whether all of the cluster has been started.
    pub(crate) fn is_begun(&self) -> bool {
        self.begun
    }

    /// Says what the lock is held for from now on.
    pub(crate) fn tell(&mut self, purpose: Purpose) -> anyhow::Result<()> {
        let text = format!("{} {}", std::process::id(), purpose.word());
        let write = || {
            self.file.write_all_at(text.as_bytes(), 0)?;
            self.file.set_len(text.len() as u64)
        };
        write().context("cannot write into the cluster's lock file")
    }
}

/// Who has the lock, if anyone. Asking does not take it.
pub(crate) fn holder(path: &Path) -> anyhow::Result<Option<Holder>> {
    if !path.exists() {
        return Ok(None);
    }
    let mut file = open(path)?;
    // Between locking and writing its id a process can be seen without a name, but not for long.
    for _ in 0..20 {
        let mut question = whole_file();
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut question))
            .with_context(|| format!("cannot ask for the lock on {}", path.display()))?;
        if question.l_type == i16::try_from(libc::F_UNLCK).unwrap_or_default() {
            return Ok(None);
        }
        if let Some(holder) = read(&mut file) {
            return Ok(Some(holder));
        }
        let _ = poll(&mut [], PollTimeout::from(10_u8));
    }
    bail!("{} is locked but names no process", path.display())
}

fn open(path: &Path) -> anyhow::Result<File> {
    super::files::open_lock(path)
}

fn read(file: &mut File) -> Option<Holder> {
    let mut text = String::new();
    std::io::Seek::rewind(file).ok()?;
    file.take(64).read_to_string(&mut text).ok()?;
    let mut words = text.split_whitespace();
    let pid = words.next()?.parse().ok()?;
    let word = words.next().unwrap_or_default();
    let purpose = Purpose::ALL.into_iter().find(|purpose| purpose.word().trim_end() == word);
    Some(Holder { pid, purpose: purpose.unwrap_or(Purpose::Running) })
}

/// A write lock on the whole file, owned by the open file: it can be asked about without being taken.
fn whole_file() -> libc::flock {
    libc::flock {
        l_type: i16::try_from(libc::F_WRLCK).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Another process, safe against its number being given to a new one.
#[derive(Debug)]
pub(crate) struct Process {
    fd: OwnedFd,
}

impl Process {
    /// The process of this number, if there is one.
    pub(crate) fn open(pid: i32) -> anyhow::Result<Option<Self>> {
        let pid = rustix::process::Pid::from_raw(pid).context("the lock file names no process")?;
        match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            Ok(fd) => Ok(Some(Process { fd })),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error).context("cannot open the cluster's process"),
        }
    }

    /// Sends it a signal. That it has ended already is no error.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        match rustix::process::pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).context("cannot signal the cluster's process"),
        }
    }

    /// Waits for its end, for no longer than this; whether it has ended.
    pub(crate) fn ended_within(&self, limit: Duration) -> anyhow::Result<bool> {
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        loop {
            let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait for the cluster's process"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_process_holds_the_lock_and_everyone_sees_what_for() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("lock");
        assert_eq!(holder(&path).unwrap(), None);
        let pid = i32::try_from(std::process::id()).unwrap();
        let mut lock = Lock::take(&path, Purpose::Starting).unwrap().unwrap();
        assert_eq!(holder(&path).unwrap(), Some(Holder { pid, purpose: Purpose::Starting }));
        assert!(Lock::take(&path, Purpose::Stopping).unwrap().is_none());
        for purpose in [Purpose::Running, Purpose::Stopping] {
            lock.tell(purpose).unwrap();
            assert_eq!(holder(&path).unwrap(), Some(Holder { pid, purpose }));
        }
        drop(lock);
        assert_eq!(holder(&path).unwrap(), None);
    }

    #[test]
    fn the_end_of_a_process_is_seen() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let process = Process::open(i32::try_from(child.id()).unwrap()).unwrap().unwrap();
        assert!(!process.ended_within(Duration::ZERO).unwrap());
        process.signal(Signal::KILL).unwrap();
        assert!(process.ended_within(Duration::from_secs(20)).unwrap());
        child.wait().unwrap();
    }
}
