//! What the engine hears of its keepers, and makes of their silence.

use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use coracle_cri::{ContainerEventKind, CriError, CriResult};
use coracle_keeper::{ExitRecord, Reply, Request, version_problem};

use super::keeper::{Connection, NoAnswer};
use super::{Container, Inner, Phase, Sandbox, blocking, internal, state};

/// Between two attempts to reach a keeper that cannot be asked for now.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// The same of one that refuses: another daemon may talk to it.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);
/// A keeper that has told nothing for so long is asked whether it still can.
const LISTEN_LIMIT: Duration = Duration::from_secs(300);

/// What a keeper says to a new listener.
pub(super) struct Meeting {
    pub(super) events: Connection,
    pub(super) running: Vec<String>,
    /// Ends that it could not write down.
    ended: Vec<(String, Option<ExitRecord>)>,
}

impl Inner {
    /// Listens to a keeper until it goes.
    pub(super) fn watch_keeper(
        self: &Arc<Self>,
        sandbox: Arc<Sandbox>,
        events: Option<Connection>,
        child: Option<Child>,
    ) {
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            let mut connection = events;
            // Only a keeper that cannot be reached again is gone: it also hangs up on who does not listen.
            while let Some(events) = match connection.take() {
                Some(events) => Some(events),
                None => inner.reach(&sandbox).await,
            } {
                if inner.listen(&sandbox, events).await {
                    break;
                }
            }
            if let Some(mut child) = child {
                let _ = blocking(move || child.wait().map_err(internal)).await;
            }
            inner.keeper_gone(&sandbox).await;
            sandbox.gone.send_replace(true);
        });
    }

    /// A new connection to a keeper that has hung up; `None` if there is no keeper any more.
    async fn reach(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Option<Connection> {
        loop {
            // Those of now: what is started later is not in the keeper's list, and yet not lost.
            let believed = self.believed_running(&sandbox.record.id);
            let mut pause = PAUSE;
            match self.meet(sandbox).await {
                Ok(meeting) => return Some(self.met_again(sandbox, meeting, &believed).await),
                Err(NoAnswer::Gone) => return None,
                Err(NoAnswer::Silent) if sandbox.silence.lasts(&self.clock) >= self.patience.ever => {
                    if let Err(error) = self.end_by_force(sandbox).await {
                        tracing::error!(sandbox = %sandbox.record.id, %error, "cannot end a keeper");
                    }
                }
                Err(NoAnswer::Silent) => {}
                Err(NoAnswer::Refused(_)) => pause = REFUSED_PAUSE,
                Err(error @ (NoAnswer::Failed(_) | NoAnswer::Unasked(_))) => {
                    tracing::warn!(sandbox = %sandbox.record.id, %error, "cannot talk to a keeper");
                }
            }
            coracle_clock::select! {
                () = sandbox.silence.broken() => {}
                () = self.clock.sleep(pause) => {}
            }
        }
    }

    /// Takes in what a keeper said when it was met.
    pub(super) async fn met_again(
        self: &Arc<Self>,
        sandbox: &Sandbox,
        meeting: Meeting,
        believed: &[Arc<Container>],
    ) -> Connection {
        for (container, record) in meeting.ended {
            self.notice_exit(&container, record).await;
        }
        for container in believed.iter().filter(|c| !meeting.running.contains(&c.record.id)) {
            // Its end is on disk, or nobody knows it.
            self.notice_exit(&container.record.id, None).await;
        }
        for id in &meeting.running {
            // Started for a daemon that has gone since.
            if !*sandbox.met.borrow()
                && let Ok(container) = self.container(id)
                && container.advance(Phase::Running { pid: None, started_at: self.clock.now() })
            {
                self.tell(ContainerEventKind::Started, &container.record.pod_uid, Some(id));
            }
        }
        sandbox.met.send_replace(true);
        meeting.events
    }

    /// Whether the keeper has ended as it was told.
    async fn listen(self: &Arc<Self>, sandbox: &Sandbox, mut events: Connection) -> bool {
        loop {
            match events.reply_within(&self.clock, LISTEN_LIMIT).await {
                Ok(Reply::Exited { container, record }) => self.notice_exit(&container, record).await,
                Ok(Reply::Done) => return true,
                Ok(_) => {}
                Err(reason) => {
                    tracing::debug!(sandbox = %sandbox.record.id, %reason, "lost a keeper");
                    return false;
                }
            }
        }
    }

    /// Asks a keeper what runs, and to be told what ends.
    pub(super) async fn meet(&self, sandbox: &Sandbox) -> Result<Meeting, NoAnswer> {
        let asked_at = self.clock.elapsed();
        let outcome = self.try_to_meet(&sandbox.record.id).await;
        sandbox.silence.note(asked_at, outcome.as_ref().err());
        outcome
    }

    async fn try_to_meet(&self, sandbox: &str) -> Result<Meeting, NoAnswer> {
        let mut events = Connection::ask(&self.layout.sandbox_run(sandbox), Request::Subscribe, &[])?;
        let mut ended = Vec::new();
        let hello = async {
            loop {
                match events.reply().await? {
                    Reply::Hello { version, running, .. } => match version_problem("its keeper", version) {
                        Some(problem) => return Err(NoAnswer::Refused(problem)),
                        None => return Ok(running),
                    },
                    Reply::Failed { message } => return Err(NoAnswer::Refused(message)),
                    Reply::Exited { container, record } => ended.push((container, record)),
                    Reply::Done => return Err(NoAnswer::Gone),
                    other => tracing::warn!(sandbox, ?other, "a keeper does not say hello"),
                }
            }
        };
        let running =
            self.clock.timeout(self.patience.answer, hello).await.unwrap_or(Err(NoAnswer::Silent))?;
        Ok(Meeting { events, running, ended })
    }

    /// Waits until the sandbox's keeper has said what runs.
    pub(super) async fn met(&self, sandbox: &str) -> CriResult<()> {
        let sandbox = self.sandbox(sandbox)?;
        if let Some(why) = sandbox.silence.refusal() {
            return Err(NoAnswer::Refused(why).into());
        }
        let mut met = sandbox.met.subscribe();
        match self.clock.timeout(self.patience.answer, met.wait_for(|met| *met)).await {
            Some(_) => Ok(()),
            None => Err(NoAnswer::Silent.into()),
        }
    }

    /// Asks a keeper about a container that should have ended.
    pub(super) async fn ask_after(self: &Arc<Self>, container: &Container) -> CriResult<()> {
        let Ok(sandbox) = self.sandbox(&container.record.sandbox) else { return Ok(()) };
        let meeting = match self.meet(&sandbox).await {
            Ok(meeting) => meeting,
            // Whoever watches it says so.
            Err(NoAnswer::Gone) => return Ok(()),
            Err(reason) => return Err(reason.into()),
        };
        let end = meeting.ended.into_iter().find(|(id, _)| *id == container.record.id);
        if !meeting.running.contains(&container.record.id) {
            self.notice_exit(&container.record.id, end.and_then(|(_, record)| record)).await;
        }
        Ok(())
    }

    /// Takes in that a container has ended, and lets everyone know.
    async fn notice_exit(self: &Arc<Self>, id: &str, told: Option<ExitRecord>) {
        let Ok(container) = self.container(id) else { return };
        let (inner, within) = (Arc::clone(self), Arc::clone(&container));
        let noticed = blocking(move || {
            let written = state::load_exit(&inner.layout.container(&within.record.id)).ok().flatten();
            if let Some(exit) = &told {
                inner.exited(&within, exit.clone());
            }
            let exit = written.clone().or(told).unwrap_or_else(|| {
                tracing::error!(container = within.record.id, "nobody knows how a container ended");
                inner.unknown_end()
            });
            if written.is_none() {
                inner.write_down(&within.record.id, &exit);
            }
            inner.exited(&within, exit);
            Ok(())
        });
        if let Err(error) = noticed.await {
            tracing::error!(container = id, %error, "the end of a container is not noticed");
        }
    }

    fn unknown_end(&self) -> ExitRecord {
        ExitRecord {
            exit_code: 255,
            oom_killed: false,
            finished_at: state::nanos(self.clock.now()),
            start_error: None,
            unseen: true,
        }
    }

    /// An end that the disk does not take is known until the daemon ends; then the keeper knows it, or it is
    /// found that nothing runs.
    pub(super) fn write_down(&self, id: &str, exit: &ExitRecord) {
        if let Err(error) = state::store_exit(&self.layout.container(id), exit) {
            tracing::error!(container = id, %error, "cannot write down how a container ended");
        }
    }

    pub(super) fn exited(&self, container: &Container, exit: ExitRecord) {
        let started_at = match container.phase() {
            Phase::Running { started_at, .. } => Some(started_at),
            Phase::Created if exit.start_error.is_none() => {
                let start = state::load_start(&self.layout.container(&container.record.id)).ok().flatten();
                start.map(|record| state::timestamp(record.started_at))
            }
            Phase::Created | Phase::Exited { .. } | Phase::Removed => None,
        };
        if container.advance(Phase::Exited { started_at, exit }) {
            self.tell(ContainerEventKind::Stopped, &container.record.pod_uid, Some(&container.record.id));
        }
    }

    pub(super) fn believed_running(&self, sandbox: &str) -> Vec<Arc<Container>> {
        let mut containers = self.containers_of(sandbox);
        containers.retain(|container| matches!(container.phase(), Phase::Running { .. }));
        containers
    }

    /// A keeper has gone. If nobody told it to, what it kept is killed: nobody could say how it ends.
    async fn keeper_gone(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let accident = !sandbox.ending.load(Ordering::Acquire);
        if accident {
            tracing::error!(sandbox = %sandbox.record.id, "the keeper died; its containers are killed");
        }
        let (inner, copy) = (Arc::clone(self), Arc::clone(sandbox));
        let killed = blocking(move || inner.kill_and_record(&copy)).await;
        if let Err(error) = killed {
            tracing::error!(sandbox = %sandbox.record.id, %error, "cannot clean up after a keeper");
        }
        if accident {
            self.mark_stopped(sandbox).await;
            self.tell(ContainerEventKind::SandboxChanged, &sandbox.record.config.metadata.uid, None);
        }
    }

    /// Kills what is left in a sandbox without a keeper, and writes down the ends that nobody saw.
    pub(super) fn kill_and_record(&self, sandbox: &Sandbox) -> Result<(), CriError> {
        self.kill_group(&sandbox.record.id, &sandbox.record.cgroup)?;
        for container in self.containers_of(&sandbox.record.id) {
            let phase = container.phase();
            if matches!(phase, Phase::Exited { .. } | Phase::Removed) {
                continue;
            }
            let dir = self.layout.container(&container.record.id);
            let exit = match state::load_exit(&dir).ok().flatten() {
                Some(exit) => exit,
                None if phase == Phase::Created && matches!(state::load_start(&dir), Ok(None)) => continue,
                None => {
                    let exit = self.unknown_end();
                    self.write_down(&container.record.id, &exit);
                    exit
                }
            };
            self.exited(&container, exit);
        }
        Ok(())
    }
}
