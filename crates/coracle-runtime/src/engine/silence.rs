//! Keepers that say nothing, or refuse to: how long that is borne, and how they are ended from outside.
//!
//! A keeper may wait for a disk, or be stopped by somebody, while what it keeps runs on: so its silence alone ends
//! nothing at once. When its Pod is to end, it is killed after [`Patience::at_end`]; otherwise after
//! [`Patience::ever`], because nobody could see how its containers end or look into them. One of a version that is
//! not spoken here is left alone until its Pod is to end.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coracle_clock::Clock;
use coracle_cri::CriResult;
use coracle_keeper::SOCKET_FILE;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::Notify;

use super::keeper::NoAnswer;
use super::{Inner, KEEPERS_CGROUP, Sandbox, blocking, internal, lock};

/// How long keepers may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For one answer, to what a keeper does at once.
    pub answer: Duration,
    /// When its Pod is to end: then it is killed.
    pub at_end: Duration,
    /// At any time: then it is killed.
    pub ever: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            answer: Duration::from_secs(10),
            at_end: Duration::from_secs(30),
            ever: Duration::from_secs(300),
        }
    }
}

/// What is known of one keeper's silence.
#[derive(Default)]
pub(super) struct Silence {
    /// When it was first asked without an answer, since it last gave one.
    since: Mutex<Option<Duration>>,
    /// Why it, or this daemon, does not talk to the other.
    refusal: Mutex<Option<String>>,
    broken: Notify,
}

impl Silence {
    /// Takes in how a question ended that was asked at this time.
    pub(super) fn note(&self, asked_at: Duration, failure: Option<&NoAnswer>) {
        match failure {
            Some(NoAnswer::Silent) => {
                lock(&self.since).get_or_insert(asked_at);
            }
            Some(NoAnswer::Refused(why)) => {
                *lock(&self.since) = None;
                if lock(&self.refusal).replace(why.clone()).is_none() {
                    tracing::error!(
                        why,
                        "a keeper cannot be talked to; its containers run on until their Pod ends"
                    );
                }
            }
            Some(NoAnswer::Unasked(_)) => {}
            Some(NoAnswer::Gone | NoAnswer::Failed(_)) | None => {
                *lock(&self.since) = None;
                *lock(&self.refusal) = None;
            }
        }
    }

    /// How long it has been silent.
    pub(super) fn lasts(&self, clock: &Clock) -> Duration {
        lock(&self.since).map_or(Duration::ZERO, |since| clock.elapsed().saturating_sub(since))
    }

    /// Why nobody can talk to it, if so.
    pub(super) fn refusal(&self) -> Option<String> {
        lock(&self.refusal).clone()
    }

    /// Waits until the keeper is ended by force.
    pub(super) async fn broken(&self) {
        self.broken.notified().await;
    }
}

impl Inner {
    /// Kills a keeper that does not talk. What it keeps is killed when its going is noticed, which is soon.
    pub(super) async fn end_by_force(self: &Arc<Self>, sandbox: &Sandbox) -> CriResult<()> {
        let pod = &sandbox.record.config.metadata;
        tracing::error!(
            sandbox = %sandbox.record.id,
            pod = format!("{}/{}", pod.namespace, pod.name),
            silent = ?sandbox.silence.lasts(&self.clock),
            refuses = sandbox.silence.refusal(),
            "the keeper of a Pod does not answer; it is killed, and with it what it keeps"
        );
        self.kill_keeper(&sandbox.record.id).await?;
        sandbox.silence.broken.notify_one();
        Ok(())
    }

    /// Kills the keeper of a sandbox, if there is one: what has its run directory as the argument among the
    /// cluster's keepers.
    pub(super) async fn kill_keeper(self: &Arc<Self>, sandbox: &str) -> CriResult<()> {
        let (inner, run) = (Arc::clone(self), self.layout.sandbox_run(sandbox));
        blocking(move || {
            let keepers = inner.cgroups.path(Path::new(KEEPERS_CGROUP)).map_err(internal)?;
            for pid in inner.cgroups.processes(&keepers) {
                let keeps = || {
                    let path = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
                    let line = std::fs::read(path).unwrap_or_default();
                    line.strip_suffix(b"\0").is_some_and(|line| {
                        line.rsplit(|byte| *byte == 0).next() == Some(run.as_os_str().as_encoded_bytes())
                    })
                };
                // Asked again with the descriptor: the number may have gone to another process.
                if keeps()
                    && let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
                    && keeps()
                {
                    let _ = pidfd_send_signal(&process, Signal::KILL);
                }
            }
            // Nobody listens any more, whoever still has it open.
            let _ = std::fs::remove_file(run.join(SOCKET_FILE));
            Ok(())
        })
        .await
    }
}
