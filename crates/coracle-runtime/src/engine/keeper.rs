//! The daemon's side of the keepers: their binary in memory, starting them, talking to them.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use coracle_clock::Clock;
use coracle_cri::CriError;
use coracle_keeper::{Envelope, Reply, Request, SOCKET_FILE, wire};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;

/// The keeper's program.
static KEEPER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/coracle-keeper"));

/// The keeper's program in a sealed memory file: there is nothing on disk, and nothing that a container which
/// got hold of it could change (CVE-2019-5736). All keepers of a daemon share its pages.
pub(crate) struct KeeperBinary {
    file: OwnedFd,
}

impl KeeperBinary {
    pub(crate) fn load() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Kernels before 6.3 do not know the flag, and let every memory file be executed.
        let file = rustix::fs::memfd_create("coracle-keeper", flags | MemfdFlags::EXEC)
            .or_else(|_| rustix::fs::memfd_create("coracle-keeper", flags))?;
        File::from(file.try_clone()?).write_all(KEEPER)?;
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        Ok(KeeperBinary { file })
    }

    /// Starts a keeper for the sandbox whose run directory is `dir`. Its socket takes connections at once.
    pub(crate) fn spawn(&self, dir: &Path) -> io::Result<Child> {
        let listener = listen(dir, SOCKET_FILE, SocketType::SEQPACKET, SocketFlags::empty())?;
        let log = File::create(dir.join("keeper.log"))?;
        // The descriptor closes on exec, after the kernel has found the program through it.
        Command::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
            .arg(dir)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(listener))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
    }
}

/// Address of a socket in `dir` by way of the directory's descriptor: its path may be too long for an address.
fn address(dir: &OwnedFd, name: &str) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))?)
}

fn open_dir(dir: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// A listening Unix socket `dir/name`, in place of what was there.
pub(crate) fn listen(dir: &Path, name: &str, kind: SocketType, flags: SocketFlags) -> io::Result<OwnedFd> {
    let _ = std::fs::remove_file(dir.join(name));
    let directory = open_dir(dir)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | flags, None)?;
    rustix::net::bind(&socket, &address(&directory, name)?)?;
    rustix::net::listen(&socket, 256)?;
    Ok(socket)
}

/// Watches a descriptor that does not block.
pub(crate) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `AsyncFd` owns the descriptor, and nothing replaces or closes it before.
    Ok(unsafe { AsyncFd::register(fd)? })
}

/// How long it may take to have a program executed; upstream's limit for a request to a runtime.
pub(crate) const LAUNCH_LIMIT: Duration = Duration::from_secs(120);

/// Why a keeper gave no answer. Only the first is a reason to believe that it has ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// Nobody listens, or the connection has been closed.
    #[error("the keeper of the sandbox died")]
    Gone,
    /// It may live, but says nothing: stopped, or waiting for a disk.
    #[error("the keeper of the sandbox does not answer")]
    Silent,
    /// It lives, and it or this daemon is too old for the other.
    #[error("{0}; `kubectl delete pod` ends it, or start the coracle of that version again")]
    Refused(String),
    /// It was asked, and could not do it.
    #[error("{0}")]
    Failed(String),
    /// It cannot be asked, for a reason on this side.
    #[error("cannot talk to the keeper of the sandbox: {0}")]
    Unasked(io::Error),
}

impl From<io::Error> for NoAnswer {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{
            BrokenPipe, ConnectionRefused, ConnectionReset, NotConnected, NotFound, WouldBlock,
        };
        match error.kind() {
            NotFound | ConnectionRefused | ConnectionReset | BrokenPipe | NotConnected => NoAnswer::Gone,
            // As many connections wait for it as can.
            WouldBlock => NoAnswer::Silent,
            _ => NoAnswer::Unasked(error),
        }
    }
}

impl From<NoAnswer> for CriError {
    fn from(reason: NoAnswer) -> Self {
        match reason {
            NoAnswer::Silent => CriError::DeadlineExceeded(reason.to_string()),
            NoAnswer::Refused(_) => CriError::FailedPrecondition(reason.to_string()),
            NoAnswer::Gone | NoAnswer::Failed(_) | NoAnswer::Unasked(_) => {
                CriError::Internal(reason.to_string())
            }
        }
    }
}

/// A connection to a keeper, for one request and its replies.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: AsyncFd<OwnedFd>,
}

impl Connection {
    /// Connects to the keeper of the sandbox whose run directory is `dir`, and asks.
    pub(crate) fn ask(
        dir: &Path,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Self, NoAnswer> {
        let directory = open_dir(dir)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(io::Error::from)?;
        rustix::net::connect(&socket, &address(&directory, SOCKET_FILE)?).map_err(io::Error::from)?;
        // The first message on a fresh socket always has room.
        let envelope = Envelope { version: request.since(), request };
        wire::send(&socket, &envelope, descriptors)?;
        Ok(Connection { socket: watched(socket)? })
    }

    /// The next reply that is understood. A keeper of a later version may say more than this.
    pub(crate) async fn reply(&mut self) -> Result<Reply, NoAnswer> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| wire::receive::<Reply>(socket.get_ref().as_fd())) {
                Ok(Ok(Some((reply, _)))) => return Ok(reply),
                Ok(Ok(None)) => return Err(NoAnswer::Gone),
                Ok(Err(error)) if not_understood(&error) => {
                    tracing::warn!(%error, "a keeper says something that is not understood");
                }
                Ok(Err(error)) => return Err(error.into()),
                Err(_would_block) => {}
            }
        }
    }

    /// The next reply, if it comes in time.
    pub(crate) async fn reply_within(&mut self, clock: &Clock, limit: Duration) -> Result<Reply, NoAnswer> {
        clock.timeout(limit, self.reply()).await.unwrap_or(Err(NoAnswer::Silent))
    }
}

fn not_understood(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}
