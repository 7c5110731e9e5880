//! The daemon's side of the keepers: their binary in memory, starting them, talking to them.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use coracle_keeper::{Envelope, PROTOCOL_VERSION, Reply, Request, SOCKET_FILE, wire};
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

/// A connection to a keeper, for one request and its replies.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: AsyncFd<OwnedFd>,
}

impl Connection {
    /// Connects to the keeper of the sandbox whose run directory is `dir`, and asks.
    pub(crate) fn ask(dir: &Path, request: Request, descriptors: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let directory = open_dir(dir)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::connect(&socket, &address(&directory, SOCKET_FILE)?)?;
        // The first message on a fresh socket always has room.
        wire::send(&socket, &Envelope { version: PROTOCOL_VERSION, request }, descriptors)?;
        Ok(Connection { socket: watched(socket)? })
    }

    /// The next reply; `None` when the keeper has gone.
    pub(crate) async fn reply(&mut self) -> io::Result<Option<Reply>> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| wire::receive::<Reply>(socket.get_ref().as_fd())) {
                Ok(Ok(message)) => return Ok(message.map(|(reply, _)| reply)),
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}
