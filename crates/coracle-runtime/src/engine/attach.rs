//! Attaching to a running container, through its keeper; and connections to ports of a Pod.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coracle_clock::watch;
use coracle_cri::{
    AttachRequest, CriError, CriResult, PodSandboxId, PortStream, StreamSession, TerminalSize,
};
use coracle_keeper::{Attach, Reply, Request};
use nix::sched::{CloneFlags, setns};
use rustix::pipe::PipeFlags;
use tokio::sync::{mpsc, oneshot};

use super::keeper::{self, Connection};
use super::session::{CHUNKS_IN_FLIGHT, conclude, pipe, read_all, watched, write_all};
use super::{Inner, Phase, internal};

/// How long a keeper may take to say that it has attached somebody, or changed a size.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long a program may take to take a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

impl Inner {
    pub(super) async fn attach(self: Arc<Self>, request: AttachRequest) -> CriResult<StreamSession> {
        let container = self.container(&request.container.0)?;
        let phase = container.phase();
        if !matches!(phase, Phase::Running { .. }) {
            let state = if phase == Phase::Created { "CREATED" } else { "EXITED" };
            return Err(CriError::FailedPrecondition(format!("container is in CONTAINER_{state} state")));
        }
        let record = &container.record;
        if let Some(why) = self.sandbox(&record.sandbox)?.silence.refusal() {
            return Err(keeper::NoAnswer::Refused(why).into());
        }
        let tty = record.config.tty;
        let wanted = Attach {
            container: record.id.clone(),
            stdin: request.stdin && record.config.stdin,
            stdout: request.stdout,
            stderr: request.stderr && !tty,
        };
        let pipe_if = |wanted: bool| wanted.then(|| pipe(PipeFlags::empty())).transpose();
        let (stdin, typed) = pipe_if(wanted.stdin)?.unzip();
        let (stdout, stdout_end) = pipe_if(wanted.stdout)?.unzip();
        let (stderr, stderr_end) = pipe_if(wanted.stderr)?.unzip();
        let run = self.layout.sandbox_run(&record.sandbox);
        let theirs: Vec<&OwnedFd> = [&stdin, &stdout_end, &stderr_end].into_iter().flatten().collect();
        let descriptors: Vec<_> = theirs.iter().map(|fd| fd.as_fd()).collect();
        let mut keeper = Connection::ask(&run, Request::Attach(wanted), &descriptors)?;
        drop((stdin, stdout_end, stderr_end));
        match keeper.reply_within(&self.clock, ANSWER_LIMIT).await? {
            Reply::Attached => {}
            Reply::Failed { message } => return Err(CriError::Internal(message)),
            other => return Err(CriError::Internal(format!("a keeper answers {other:?} to an attach"))),
        }

        let ended = watch::Sender::new(false);
        let mut outputs = Vec::new();
        let mut output = |fd: Option<OwnedFd>| -> CriResult<mpsc::Receiver<bytes::Bytes>> {
            let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
            if let Some(fd) = fd {
                let fd = watched(fd).map_err(internal)?;
                outputs.push(tokio::spawn(read_all(fd, sender, ended.subscribe())));
            }
            Ok(receiver)
        };
        let (stdout, stderr) = (output(stdout)?, output(stderr)?);
        let stdin = match typed {
            None => None,
            Some(fd) => {
                let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
                tokio::spawn(write_all(watched(fd).map_err(internal)?, receiver));
                Some(sender)
            }
        };
        let resize = tty.then(|| {
            let (sender, sizes) = mpsc::channel(4);
            tokio::spawn(resize(Arc::clone(&self), record.sandbox.clone(), record.id.clone(), sizes));
            sender
        });
        let (exit_sender, exit) = oneshot::channel();
        tokio::spawn(conclude(keeper, ended, outputs, exit_sender));
        Ok(StreamSession { stdin, stdout, stderr, resize, exit })
    }

    pub(super) async fn port_forward(&self, sandbox: &PodSandboxId, port: u16) -> CriResult<PortStream> {
        let found = self.sandbox(&sandbox.0)?;
        if !found.is_ready() {
            return Err(CriError::FailedPrecondition("sandbox container is not running".to_owned()));
        }
        let netns = found.own_network().then(|| self.netns(&sandbox.0));
        let (answer, connected) = oneshot::channel();
        let id = sandbox.0.clone();
        // A thread of its own, which ends in the namespace that it enters.
        std::thread::Builder::new()
            .name("port-forward".to_owned())
            .spawn(move || drop(answer.send(connect(netns.as_deref(), &id, port))))
            .map_err(internal)?;
        let stream = connected.await.map_err(|_| CriError::Internal("panicked".to_owned()))??;
        Ok(Box::new(tokio::net::TcpStream::from_std(stream).map_err(internal)?))
    }
}

/// Passes sizes on until nobody has any more.
async fn resize(
    inner: Arc<Inner>,
    sandbox: String,
    container: String,
    mut sizes: mpsc::Receiver<TerminalSize>,
) {
    let run = inner.layout.sandbox_run(&sandbox);
    while let Some(TerminalSize { width, height }) = sizes.recv().await {
        let request = Request::Resize { container: container.clone(), width, height };
        let Ok(mut keeper) = Connection::ask(&run, request, &[]) else { return };
        match keeper.reply_within(&inner.clock, ANSWER_LIMIT).await {
            Ok(Reply::Done) => {}
            // The container has ended, and its attachments with it.
            Ok(_) | Err(_) => return,
        }
    }
}

/// Connects to a port of the loopback address, of either family. What fails is said in containerd's words.
fn connect(netns: Option<&Path>, sandbox: &str, port: u16) -> CriResult<TcpStream> {
    let place = netns.map(|path| format!("network namespace {:?}", path.display().to_string()));
    let failed = |why: String| {
        let place = place.as_deref().unwrap_or("the host's network namespace");
        CriError::Internal(format!("failed to execute portforward in {place}: {why}"))
    };
    if let Some(path) = netns {
        let namespace = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
        setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|error| failed(error.desc().to_owned()))?;
    }
    let dial = |address: SocketAddr| {
        let stream = TcpStream::connect_timeout(&address, CONNECT_LIMIT)?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    let words = |family: &str, address: SocketAddr, error: &std::io::Error| {
        let reason = match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
            std::io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
            _ => format!("connect: {error}"),
        };
        format!("dial {family} {address}: {reason}")
    };
    let (v4, v6): (SocketAddr, SocketAddr) =
        ((Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into());
    dial(v4).or_else(|first| {
        dial(v6).map_err(|second| {
            failed(format!(
                "failed to connect to localhost:{port} inside namespace {sandbox:?}, IPv4: {} IPv6 {} ",
                words("tcp4", v4, &first),
                words("tcp6", v6, &second)
            ))
        })
    })
}
