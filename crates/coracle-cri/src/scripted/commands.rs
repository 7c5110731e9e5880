//! Commands in scripted containers: what they answer is a matter of the script and of time.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::{Answer, Note, ScriptedRuntime, no_container};
use crate::{ContainerId, ContainerState, CriError, CriResult, ExecRequest, ExecSyncResult, StreamSession};

impl ScriptedRuntime {
    /// What a command, or a probe of any other kind (with its own words in place of a command), is answered now.
    ///
    /// # Errors
    /// If there is no such container, or it does not run.
    pub fn answer(&self, id: &ContainerId, command: &[String]) -> CriResult<Answer> {
        let state = self.state();
        let run = state.containers.get(id).ok_or_else(|| no_container(id))?;
        if run.status.container.state != ContainerState::Running {
            return Err(CriError::FailedPrecondition(format!("container \"{id}\" is not running")));
        }
        let age = self.0.clock.elapsed().saturating_sub(run.since);
        let applies =
            |answer: &&Answer| answer.from <= age && (answer.command.is_empty() || answer.command == command);
        // The later one counts; of two that begin together, the one that is written later.
        let found = run.script.answers.iter().filter(applies).max_by_key(|answer| answer.from);
        let not_yet = i32::from(age < run.script.ready_after);
        let answer = found.cloned().unwrap_or_else(|| Answer { code: not_yet, ..Answer::default() });
        state.note(&Note::Asked(run.instance(), command.to_vec(), answer.code));
        Ok(answer)
    }

    /// How much memory a running container takes now, in bytes.
    #[must_use]
    pub fn memory_of(&self, id: &ContainerId) -> Option<u64> {
        let state = self.state();
        let run = state.containers.get(id)?;
        if run.status.container.state != ContainerState::Running {
            return None;
        }
        let memory = run.script.memory.unwrap_or_default();
        let age = self.0.clock.elapsed().saturating_sub(run.since);
        let grown =
            u64::try_from(age.as_millis()).unwrap_or(u64::MAX).saturating_mul(memory.bytes_per_second) / 1000;
        Some(memory.bytes.saturating_add(grown))
    }

    pub(super) async fn run_command(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Option<Duration>,
    ) -> CriResult<ExecSyncResult> {
        let answer = self.answer(id, command)?;
        let mut ended = {
            let state = self.state();
            state.containers.get(id).ok_or_else(|| no_container(id))?.ended.subscribe()
        };
        let limit = timeout.filter(|limit| !limit.is_zero() && *limit < answer.takes);
        coracle_clock::select! {
            // A command ends with its container.
            _ = ended.wait_for(|ended| *ended) => {
                return Ok(ExecSyncResult { exit_code: 137, ..ExecSyncResult::default() });
            }
            () = self.0.clock.sleep(limit.unwrap_or(answer.takes)) => {}
        }
        if let Some(limit) = limit {
            let text = format!("command {command:?} timed out after {limit:?}");
            return Err(CriError::DeadlineExceeded(text));
        }
        let Answer { code, stdout, stderr, .. } = answer;
        Ok(ExecSyncResult { stdout: stdout.into_bytes(), stderr: stderr.into_bytes(), exit_code: code })
    }

    pub(super) fn run_session(&self, request: &ExecRequest) -> CriResult<StreamSession> {
        self.answer(&request.container, &request.command)?;
        let (out, stdout) = mpsc::channel(4);
        let (err, stderr) = mpsc::channel(4);
        let (done, exit) = oneshot::channel();
        let (stdin, mut read) = mpsc::channel::<Bytes>(4);
        let (runtime, request_of) = (self.clone(), request.clone());
        tokio::spawn(async move {
            let ExecRequest { container, command, tty, .. } = request_of;
            let result = runtime.run_command(&container, &command, None).await;
            read.close();
            let result = match result {
                Ok(ran) => {
                    // Whoever does not read any more is not told.
                    let _ = out.send(Bytes::from(ran.stdout)).await;
                    let _ = if tty { &out } else { &err }.send(Bytes::from(ran.stderr)).await;
                    Ok(ran.exit_code)
                }
                Err(why) => Err(why),
            };
            drop((out, err));
            let _ = done.send(result);
        });
        let stdin = request.stdin.then_some(stdin);
        Ok(StreamSession { stdin, stdout, stderr, resize: None, exit })
    }
}
