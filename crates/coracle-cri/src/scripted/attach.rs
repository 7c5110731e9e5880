//! Attaching to scripted containers, and connections to their ports.

use bytes::Bytes;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, oneshot};

use super::{Input, Line, ScriptedRuntime, no_container, no_sandbox, output};
use crate::{
    AttachRequest, ContainerId, ContainerState, CriError, CriResult, PodSandboxId, PodSandboxState,
    PortStream, StreamSession,
};

/// Pieces of output kept for an attacher. One who leaves more lying is cut off.
const KEPT: usize = 64;
const CUT_OFF: &str = "attached, but does not read what the container writes: its log has all of it";
/// What a connection to a port holds in each direction.
const PORT_BYTES: usize = 64 * 1024;

/// One who is told what a container writes.
pub(super) struct Attached {
    number: u64,
    stdout: Option<mpsc::Sender<Bytes>>,
    stderr: Option<mpsc::Sender<Bytes>>,
    /// Dropped when it is cut off.
    _interest: oneshot::Sender<()>,
}

impl ScriptedRuntime {
    pub(super) fn join(&self, request: &AttachRequest) -> CriResult<StreamSession> {
        let id = &request.container;
        let (out, stdout) = mpsc::channel(KEPT);
        let (err, stderr) = mpsc::channel(KEPT);
        let (stdin, typed) = mpsc::channel::<Bytes>(4);
        let (mut done, exit) = oneshot::channel();
        let (interest, cut) = oneshot::channel();
        let (input, mut ended, number) = {
            let mut state = self.state();
            state.next_attachment += 1;
            let number = state.next_attachment;
            let run = state.containers.get_mut(id).ok_or_else(|| no_container(id))?;
            if run.status.container.state != ContainerState::Running {
                return Err(CriError::FailedPrecondition(format!("container \"{id}\" is not running")));
            }
            let attached = Attached {
                number,
                stdout: request.stdout.then_some(out),
                stderr: request.stderr.then_some(err),
                _interest: interest,
            };
            run.attached.push(attached);
            (run.input, run.ended.subscribe(), number)
        };
        let takes = request.stdin && input.open;
        let (runtime, id) = (self.clone(), id.clone());
        tokio::spawn(async move {
            let (gone, result) = coracle_clock::select! {
                _ = ended.wait_for(|ended| *ended) => (false, Ok(0)),
                () = done.closed() => (true, Ok(0)),
                _ = cut => (true, Err(CriError::Internal(CUT_OFF.to_owned()))),
                () = runtime.take(&id, typed, input), if takes => (false, Ok(0)),
            };
            if let Some(run) = runtime.state().containers.get_mut(&id) {
                run.attached.retain(|attached| attached.number != number);
            }
            if gone && takes && input.once {
                runtime.close_input(&id);
            }
            let _ = done.send(result);
        });
        let stdin = takes.then_some(stdin);
        Ok(StreamSession { stdin, stdout, stderr, resize: None, exit })
    }

    /// Takes what an attacher writes, to the end of it if that is not the container's own.
    async fn take(&self, id: &ContainerId, mut typed: mpsc::Receiver<Bytes>, input: Input) {
        let echoes = self.state().containers.get(id).is_some_and(|run| run.script.echo);
        while let Some(bytes) = typed.recv().await {
            if !echoes {
                continue;
            }
            let path = self.state().containers.get(id).map(|run| run.status.log_path.clone());
            let Some(path) = path else { return };
            for line in String::from_utf8_lossy(&bytes).lines() {
                let line = Line { text: line.to_owned(), ..Line::default() };
                let _ = output::append(&path, self.now(), &line);
            }
            self.show(id, false, bytes);
        }
        if input.once {
            self.close_input(id);
            // The output goes on.
            std::future::pending::<()>().await;
        }
    }

    fn close_input(&self, id: &ContainerId) {
        if self.state().containers.get(id).is_some_and(|run| run.script.echo) {
            self.end(id, 0, "");
        }
    }

    /// Shows everyone attached what a container writes.
    pub(super) fn show(&self, id: &ContainerId, stderr: bool, bytes: Bytes) {
        let mut state = self.state();
        let Some(run) = state.containers.get_mut(id) else { return };
        run.attached.retain(|attached| {
            let to = if stderr { &attached.stderr } else { &attached.stdout };
            to.as_ref().is_none_or(|to| to.try_send(bytes.clone()).is_ok())
        });
    }

    pub(super) fn connect(&self, sandbox: &PodSandboxId, port: u16) -> CriResult<PortStream> {
        let listens = {
            let state = self.state();
            let found = state.sandboxes.get(sandbox).ok_or_else(|| no_sandbox(sandbox))?;
            if found.status.sandbox.state != PodSandboxState::Ready {
                return Err(CriError::FailedPrecondition("sandbox container is not running".to_owned()));
            }
            state.containers.values().any(|run| {
                run.status.container.sandbox == *sandbox
                    && run.status.container.state == ContainerState::Running
                    && run.script.ports.contains(&port)
            })
        };
        if !listens {
            return Err(CriError::Internal(format!(
                "failed to connect to localhost:{port} inside namespace \"{sandbox}\", IPv4: dial tcp4 \
                 127.0.0.1:{port}: connect: connection refused"
            )));
        }
        let (near, far) = tokio::io::duplex(PORT_BYTES);
        tokio::spawn(echo(far));
        Ok(Box::new(near))
    }
}

/// Writes what it reads, to the end of it.
async fn echo(stream: DuplexStream) {
    let (mut read, mut write) = tokio::io::split(stream);
    let _ = tokio::io::copy(&mut read, &mut write).await;
    let _ = write.shutdown().await;
}
