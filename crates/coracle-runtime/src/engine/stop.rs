//! Stopping containers: asked, waited for, killed, asked after.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use coracle_cri::{CriError, CriResult};
use coracle_keeper::{Reply, Request};

use super::ends::PAUSE;
use super::keeper::{Connection, NoAnswer};
use super::{Container, Inner, Phase};

/// How long a killed process may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(30);

impl Inner {
    /// Stops one that is just being started after that, or, if that takes too long, breaks its start off.
    pub(super) async fn stop_in_turn(
        self: &Arc<Self>,
        container: &Container,
        grace: Duration,
    ) -> CriResult<()> {
        if self.clock.timeout(grace.max(self.patience.answer), container.turn.lock()).await.is_none() {
            self.kill(container).await?;
            return self.killed(container).await;
        }
        self.stop(container, grace).await
    }

    /// Asks, waits, kills. Every caller brings a deadline of its own, so the shortest one counts.
    pub(super) async fn stop(self: &Arc<Self>, container: &Container, grace: Duration) -> CriResult<()> {
        if !matches!(container.phase(), Phase::Running { .. }) {
            return Ok(());
        }
        if !grace.is_zero() {
            if !container.asked_to_stop.swap(true, Ordering::AcqRel) {
                match self.signal(container, container.record.stop_signal).await {
                    // It is killed, if it cannot be asked.
                    Ok(()) | Err(NoAnswer::Silent | NoAnswer::Refused(_)) => {}
                    Err(reason) => return Err(reason.into()),
                }
            }
            if self.clock.timeout(grace, container.ended()).await.is_some() {
                return Ok(());
            }
        }
        self.kill(container).await?;
        self.killed(container).await
    }

    /// Has a container killed by its keeper; one that stays silent, or refuses, is killed with all that it keeps.
    async fn kill(self: &Arc<Self>, container: &Container) -> CriResult<()> {
        let Ok(sandbox) = self.sandbox(&container.record.sandbox) else { return Ok(()) };
        loop {
            match self.signal(container, libc::SIGKILL).await {
                Ok(()) => return Ok(()),
                Err(NoAnswer::Silent) if sandbox.silence.lasts(&self.clock) < self.patience.at_end => {}
                Err(NoAnswer::Silent | NoAnswer::Refused(_)) => return self.end_by_force(&sandbox).await,
                Err(reason) => return Err(reason.into()),
            }
        }
    }

    /// Waits for the end of a container that has been killed. The kernel ends it; if the keeper dies meanwhile,
    /// whoever watches the keeper says so.
    async fn killed(self: &Arc<Self>, container: &Container) -> CriResult<()> {
        if self.clock.timeout(KILL_LIMIT, container.ended()).await.is_some() {
            return Ok(());
        }
        self.ask_after(container).await?;
        match container.phase() {
            Phase::Exited { .. } | Phase::Removed => Ok(()),
            Phase::Created | Phase::Running { .. } => Err(CriError::DeadlineExceeded(format!(
                "container {} has been killed and does not end",
                container.record.id
            ))),
        }
    }

    async fn signal(self: &Arc<Self>, container: &Container, signal: i32) -> Result<(), NoAnswer> {
        let Ok(sandbox) = self.sandbox(&container.record.sandbox) else { return Ok(()) };
        if let Some(why) = sandbox.silence.refusal() {
            return Err(NoAnswer::Refused(why));
        }
        let asked_at = self.clock.elapsed();
        let run = self.layout.sandbox_run(&container.record.sandbox);
        let request = Request::Signal { container: container.record.id.clone(), signal };
        let reply = match Connection::ask(&run, request, &[]) {
            Ok(mut keeper) => keeper.reply_within(&self.clock, self.patience.answer).await,
            Err(reason) => {
                // Its connections are full: not to be asked in a busy loop.
                self.clock.sleep(PAUSE).await;
                Err(reason)
            }
        };
        sandbox.silence.note(asked_at, reply.as_ref().err());
        match reply {
            Ok(Reply::Failed { message }) => Err(NoAnswer::Failed(message)),
            // No keeper, no process.
            Ok(_) | Err(NoAnswer::Gone) => Ok(()),
            Err(reason) => Err(reason),
        }
    }
}
