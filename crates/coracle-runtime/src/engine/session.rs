//! Exec: a further process in a running container, its streams as channels.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_clock::watch;
use coracle_cri::{
    ContainerId, CriError, CriResult, ExecRequest, ExecSyncResult, StreamSession, TerminalSize,
};
use coracle_keeper::{Exec, Reply, Request};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use serde_json::Value;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use super::keeper::{self, Connection, LAUNCH_LIMIT};
use super::state::{self, SPEC_FILE};
use super::{Inner, Phase, internal, spec};

/// Most output kept of each stream of [`Inner::exec_sync`]; the rest is read and dropped.
const SYNC_OUTPUT_BYTES_MAX: usize = 16 << 20;
const CHUNK_BYTES: usize = 32 * 1024;
/// Most that a command can have left in a stream: what the kernel lets a pipe be. A descendant that goes on writing
/// is not read for longer.
const AFTER_END_BYTES_MAX: usize = 1 << 20;
pub(super) const CHUNKS_IN_FLIGHT: usize = 16;

impl Inner {
    pub(super) async fn exec_sync(
        self: Arc<Self>,
        id: ContainerId,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> CriResult<ExecSyncResult> {
        let request = ExecRequest { container: id, command, tty: false, stdin: false };
        let clock = self.clock.clone();
        let run = async move {
            let session = self.exec(request).await?;
            let (stdout, stderr) = futures::join!(collect(session.stdout), collect(session.stderr));
            let exit_code = session.exit.await.map_err(|_| keeper_died())??;
            Ok(ExecSyncResult { stdout, stderr, exit_code })
        };
        match timeout {
            None => run.await,
            // Dropping the session kills the command.
            Some(limit) => clock.timeout(limit, run).await.unwrap_or_else(|| {
                Err(CriError::DeadlineExceeded(format!(
                    "failed to exec in container: timeout {limit:?} exceeded: context deadline exceeded"
                )))
            }),
        }
    }

    pub(super) async fn exec(self: Arc<Self>, request: ExecRequest) -> CriResult<StreamSession> {
        let container = self.container(&request.container.0)?;
        if !matches!(container.phase(), Phase::Running { .. }) {
            return Err(CriError::FailedPrecondition("container not running".to_owned()));
        }
        if request.command.is_empty() {
            return Err(CriError::InvalidArgument("no command specified".to_owned()));
        }
        let record = &container.record;
        if let Some(why) = self.sandbox(&record.sandbox)?.silence.refusal() {
            return Err(keeper::NoAnswer::Refused(why).into());
        }
        let specification: Value = state::load(&self.layout.container(&record.id), SPEC_FILE)
            .map_err(internal)?
            .ok_or_else(|| CriError::NotFound("the container has no specification".to_owned()))?;
        let run = self.layout.sandbox_run(&record.sandbox);
        let files = ExecFiles::new(&run, &self.new_id()[..16]);
        let process = spec::exec_process(&specification, &request.command, request.tty);
        std::fs::write(&files.process, process.to_string()).map_err(internal)?;
        let cgroup = self.cgroups.path(&record.cgroup).map_err(internal)?;
        let ask = Exec {
            container: record.id.clone(),
            oci_root: self.layout.oci_root(&record.sandbox),
            process_file: files.process.clone(),
            console_socket: request.tty.then(|| files.console.clone()),
            uid: u32::try_from(record.user.uid).unwrap_or(0),
            cgroup_procs: self.cgroups.procs(&cgroup),
            oom_score_adj: record.config.resources.oom_score_adj,
        };
        if request.tty {
            let name = files.console.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let listener =
                keeper::listen(&run, &name, SocketType::STREAM, SocketFlags::NONBLOCK).map_err(internal)?;
            let keeper = Connection::ask(&run, Request::Exec(Box::new(ask)), &[])?;
            let keeper = self.exec_started(keeper).await?;
            // The terminal was sent before the program was executed, so it is here.
            let terminal = receive_terminal(&listener).map_err(internal)?;
            return terminal_session(keeper, terminal, request.stdin).map_err(internal);
        }
        let (stdin, keep_stdin) = if request.stdin {
            let (read, write) = pipe(PipeFlags::empty())?;
            (read, Some(write))
        } else {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            (rustix::fs::open("/dev/null", flags, Mode::empty()).map_err(|e| internal(e.into()))?, None)
        };
        let (stdout, stdout_end) = pipe(PipeFlags::empty())?;
        let (stderr, stderr_end) = pipe(PipeFlags::empty())?;
        let descriptors = [stdin.as_fd(), stdout_end.as_fd(), stderr_end.as_fd()];
        let keeper = Connection::ask(&run, Request::Exec(Box::new(ask)), &descriptors)?;
        drop((stdin, stdout_end, stderr_end));
        let keeper = self.exec_started(keeper).await?;
        pipe_session(keeper, keep_stdin, stdout, stderr).map_err(internal)
    }

    async fn exec_started(&self, mut keeper: Connection) -> CriResult<Connection> {
        match keeper.reply_within(&self.clock, LAUNCH_LIMIT).await? {
            Reply::Started { .. } => Ok(keeper),
            Reply::Failed { message } => Err(CriError::Internal(format!(
                "failed to exec in container: failed to start exec: {message}"
            ))),
            other => Err(CriError::Internal(format!("a keeper answers {other:?} to an exec"))),
        }
    }
}

/// Files of one exec; gone when it has started.
struct ExecFiles {
    process: PathBuf,
    console: PathBuf,
}

impl ExecFiles {
    fn new(run: &std::path::Path, id: &str) -> Self {
        ExecFiles {
            process: run.join(format!("exec-{id}.json")),
            console: run.join(format!("exec-{id}.sock")),
        }
    }
}

impl Drop for ExecFiles {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.process);
        let _ = std::fs::remove_file(&self.console);
    }
}

fn keeper_died() -> CriError {
    CriError::Internal("the keeper of the sandbox died".to_owned())
}

pub(super) fn pipe(flags: PipeFlags) -> CriResult<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC | flags).map_err(|e| internal(e.into()))
}

async fn collect(mut output: mpsc::Receiver<Bytes>) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(chunk) = output.recv().await {
        let room = SYNC_OUTPUT_BYTES_MAX - all.len();
        all.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }
    all
}

/// A descriptor that does not block.
pub(super) fn watched(fd: OwnedFd) -> io::Result<Arc<AsyncFd<OwnedFd>>> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(Arc::new(keeper::watched(fd)?))
}

fn pipe_session(
    keeper: Connection,
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: OwnedFd,
) -> io::Result<StreamSession> {
    let ended = watch::Sender::new(false);
    let stdin = stdin
        .map(|fd| -> io::Result<_> {
            let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
            tokio::spawn(write_all(watched(fd)?, receiver));
            Ok(sender)
        })
        .transpose()?;
    let (stdout_sender, stdout_receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let (stderr_sender, stderr_receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let outputs = vec![
        tokio::spawn(read_all(watched(stdout)?, stdout_sender, ended.subscribe())),
        tokio::spawn(read_all(watched(stderr)?, stderr_sender, ended.subscribe())),
    ];
    let (exit_sender, exit) = oneshot::channel();
    tokio::spawn(conclude(keeper, ended, outputs, exit_sender));
    Ok(StreamSession { stdin, stdout: stdout_receiver, stderr: stderr_receiver, resize: None, exit })
}

fn terminal_session(keeper: Connection, terminal: OwnedFd, with_stdin: bool) -> io::Result<StreamSession> {
    let ended = watch::Sender::new(false);
    let terminal = watched(terminal)?;
    let stdin = with_stdin.then(|| {
        let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
        tokio::spawn(write_all(Arc::clone(&terminal), receiver));
        sender
    });
    let (resize, mut sizes) = mpsc::channel::<TerminalSize>(4);
    let (window, mut over) = (Arc::clone(&terminal), ended.subscribe());
    tokio::spawn(async move {
        loop {
            let size = coracle_clock::select! {
                _ = over.wait_for(|over| *over) => return,
                size = sizes.recv() => match size { Some(size) => size, None => return },
            };
            let size = rustix::termios::Winsize {
                ws_row: size.height,
                ws_col: size.width,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            let _ = rustix::termios::tcsetwinsize(window.get_ref(), size);
        }
    });
    let (stdout_sender, stdout) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let (_, stderr) = mpsc::channel(1);
    let outputs = vec![tokio::spawn(read_all(terminal, stdout_sender, ended.subscribe()))];
    let (exit_sender, exit) = oneshot::channel();
    tokio::spawn(conclude(keeper, ended, outputs, exit_sender));
    Ok(StreamSession { stdin, stdout, stderr, resize: Some(resize), exit })
}

/// Waits for the end of the command, or of what it is attached to, or of the caller's interest, and tells the exit code after all output.
pub(super) async fn conclude(
    mut keeper: Connection,
    ended: watch::Sender<bool>,
    outputs: Vec<tokio::task::JoinHandle<()>>,
    mut exit: oneshot::Sender<CriResult<i32>>,
) {
    let result = coracle_clock::select! {
        // Nobody waits: closing the connection kills the command.
        () = exit.closed() => None,
        reply = keeper.reply() => Some(match reply {
            Ok(Reply::ExecExited { exit_code }) => Ok(exit_code),
            Ok(Reply::Detached { problem }) => problem.map_or(Ok(0), |why| Err(CriError::Internal(why))),
            Ok(_) => Err(keeper_died()),
            Err(reason) => Err(reason.into()),
        }),
    };
    drop(keeper);
    ended.send_replace(true);
    for output in outputs {
        let _ = output.await;
    }
    if let Some(result) = result {
        let _ = exit.send(result);
    }
}

/// Sends on what is read. After the command's end only what is there already: a descendant that keeps the
/// stream open does not keep the session.
pub(super) async fn read_all(
    from: Arc<AsyncFd<OwnedFd>>,
    to: mpsc::Sender<Bytes>,
    mut ended: watch::Receiver<bool>,
) {
    let mut buffer = vec![0u8; CHUNK_BYTES];
    let mut left = AFTER_END_BYTES_MAX;
    loop {
        let over = *ended.borrow();
        match rustix::io::read(from.get_ref(), &mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                if over {
                    let Some(rest) = left.checked_sub(count) else { return };
                    left = rest;
                }
                if to.send(Bytes::copy_from_slice(&buffer[..count])).await.is_err() {
                    return;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if over => return,
            Err(Errno::AGAIN) => {
                coracle_clock::select! {
                    ready = from.readable() => match ready {
                        // Read again first: readiness is only cleared by an empty read.
                        Ok(mut ready) => if is_empty(&from) { ready.clear_ready() },
                        Err(_) => return,
                    },
                    _ = ended.wait_for(|over| *over) => {}
                    () = to.closed() => return,
                }
            }
            // A terminal without processes: the end.
            Err(_) => return,
        }
    }
}

/// Whether a read would block.
fn is_empty(fd: &AsyncFd<OwnedFd>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut [PollFd::new(fd.get_ref(), PollFlags::IN)], Some(&now)), Ok(0))
}

pub(super) async fn write_all(to: Arc<AsyncFd<OwnedFd>>, mut from: mpsc::Receiver<Bytes>) {
    while let Some(mut chunk) = from.recv().await {
        while !chunk.is_empty() {
            let Ok(mut ready) = to.writable().await else { return };
            match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), &chunk)?)) {
                Ok(Ok(count)) => {
                    let _ = chunk.split_to(count);
                }
                Ok(Err(_)) => return,
                Err(_would_block) => {}
            }
        }
    }
}

fn receive_terminal(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let connection = rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?;
    let mut bytes = [0u8; 256];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(
        &connection,
        &mut [io::IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    for message in control.drain() {
        if let rustix::net::RecvAncillaryMessage::ScmRights(mut rights) = message
            && let Some(terminal) = rights.next()
        {
            return Ok(terminal);
        }
    }
    Err(io::Error::other("no terminal came with the message"))
}
