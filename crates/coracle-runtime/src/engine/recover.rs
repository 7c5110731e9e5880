//! What a new daemon does: reads what is on disk, finds the keepers, takes back what was left half done.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::{CriResult, PodSandboxId};
use futures::future::join_all;

use super::keeper::NoAnswer;
use super::mounted::{owner_of, unmount_roots_of};
use super::state::{self, CONTAINER_FILE, ContainerRecord, SANDBOX_FILE, SandboxPhase, SandboxRecord};
use super::{Container, Inner, Phase, Sandbox, blocking, internal, lock};

/// How long a start waits for keepers. Who has not answered then is asked on while others are served.
const MEET_LIMIT: Duration = Duration::from_secs(2);

impl Inner {
    pub(super) async fn recover(self: &Arc<Self>) -> CriResult<()> {
        let (mut sandboxes, mut half_made, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
        for id in state::names(&self.layout.sandboxes()).map_err(internal)? {
            match state::load::<SandboxRecord>(&self.layout.sandbox(&id), SANDBOX_FILE) {
                Ok(Some(record)) if record.phase == SandboxPhase::Creating => half_made.push(record),
                Ok(Some(record)) => {
                    let sandbox = Sandbox::new(record);
                    lock(&self.index).sandboxes.insert(id, Arc::clone(&sandbox));
                    if sandbox.is_ready() {
                        sandboxes.push(sandbox);
                    } else {
                        sandbox.gone.send_replace(true);
                    }
                }
                Ok(None) => unknown.push(id),
                Err(error) => {
                    tracing::error!(sandbox = %id, %error, "the record of a sandbox cannot be read; it is removed");
                    unknown.push(id);
                }
            }
        }
        // All at once, and not for long: one keeper that is stopped or waits for a disk does not hold up the others.
        let meetings = join_all(sandboxes.iter().map(async |sandbox| {
            self.clock.timeout(MEET_LIMIT, self.meet(sandbox)).await.unwrap_or(Err(NoAnswer::Silent))
        }));
        let leftovers = join_all(half_made.iter().map(async |record| {
            if let Err(error) = self.take_back(record).await {
                tracing::error!(sandbox = %record.id, %error, "cannot take back a sandbox that was not made to the end");
            }
        }));
        let strangers = join_all(unknown.iter().map(async |id| {
            if let Err(error) = self.clear_unknown(id).await {
                tracing::error!(sandbox = %id, %error, "cannot clear what is left of a sandbox");
            }
        }));
        let (meetings, _, _) = futures::join!(meetings, leftovers, strangers);

        let running: Vec<String> = meetings.iter().flatten().flat_map(|m| m.running.clone()).collect();
        let inner = Arc::clone(self);
        blocking(move || inner.read_containers(&running)).await?;

        for (sandbox, meeting) in sandboxes.into_iter().zip(meetings) {
            match meeting {
                Ok(meeting) => {
                    let believed = self.believed_running(&sandbox.record.id);
                    let events = self.met_again(&sandbox, meeting, &believed).await;
                    self.watch_keeper(sandbox, Some(events), None);
                }
                Err(NoAnswer::Gone) => {
                    tracing::warn!(sandbox = %sandbox.record.id, "a sandbox has lost its keeper");
                    self.without_keeper(&sandbox).await;
                }
                Err(NoAnswer::Refused(_)) => self.watch_keeper(sandbox, None, None),
                Err(reason) => {
                    tracing::error!(sandbox = %sandbox.record.id, %reason, "it is believed to run, and asked again");
                    self.watch_keeper(sandbox, None, None);
                }
            }
        }
        let live: Vec<PodSandboxId> = lock(&self.index)
            .sandboxes
            .values()
            .filter(|s| s.is_ready() && s.own_network())
            .map(|s| PodSandboxId(s.record.id.clone()))
            .collect();
        self.network.reconcile(&live).await
    }

    async fn without_keeper(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        sandbox.gone.send_replace(true);
        // One whose socket was removed would write ends down beside this.
        if let Err(error) = self.kill_keeper(&sandbox.record.id).await {
            tracing::error!(sandbox = %sandbox.record.id, %error, "cannot end a keeper that nobody can reach");
        }
        let (inner, copy) = (Arc::clone(self), Arc::clone(sandbox));
        if let Err(error) = blocking(move || inner.kill_and_record(&copy)).await {
            tracing::error!(sandbox = %sandbox.record.id, %error, "cannot clean up after a keeper");
        }
        self.mark_stopped(sandbox).await;
    }

    /// Takes back what a sandbox has of which only the id is known. Its containers' control groups go with them.
    async fn clear_unknown(self: &Arc<Self>, id: &str) -> CriResult<()> {
        self.shut_keeper(id).await?;
        self.network.teardown(&PodSandboxId(id.to_owned())).await?;
        let (inner, id) = (Arc::clone(self), id.to_owned());
        blocking(move || {
            inner.remove_run_dir(&id)?;
            state::remove_tree(&inner.layout.sandbox(&id)).map_err(internal)
        })
        .await
    }

    fn read_containers(&self, running: &[String]) -> CriResult<()> {
        for id in state::names(&self.layout.containers()).map_err(internal)? {
            let dir = self.layout.container(&id);
            let record: Option<ContainerRecord> =
                state::load(&dir, CONTAINER_FILE).unwrap_or_else(unreadable(&id));
            let known = record.filter(|r| lock(&self.index).sandboxes.contains_key(&r.sandbox));
            let Some(record) = known else {
                self.clear_leftover(&id)?;
                continue;
            };
            // In this order: a container that ends meanwhile has its record of the end, or will be told of.
            let start = state::load_start(&dir).unwrap_or_else(unreadable(&id));
            let started_at = start.as_ref().map(|start| state::timestamp(start.started_at));
            let phase = match state::load_exit(&dir).unwrap_or_else(unreadable(&id)) {
                Some(exit) => Phase::Exited { started_at, exit },
                None if start.is_some() || running.contains(&id) => Phase::Running {
                    pid: start.and_then(|start| u32::try_from(start.pid).ok()),
                    started_at: started_at.unwrap_or_else(|| self.clock.now()),
                },
                None => Phase::Created,
            };
            let resources = state::load_resources(&dir).unwrap_or_else(unreadable(&id));
            let resources = resources.unwrap_or_else(|| record.config.resources.clone());
            lock(&self.index).containers.insert(id, Container::new(record, phase, resources));
        }
        for id in self.images.prepared_rootfs()? {
            if !lock(&self.index).containers.contains_key(owner_of(&id)) {
                unmount_roots_of(owner_of(&id)).map_err(internal)?;
                self.images.release_rootfs(&id)?;
            }
        }
        Ok(())
    }

    /// A directory without a record, or of a sandbox that is gone: its control group may not be known, but is
    /// named after it.
    fn clear_leftover(&self, id: &str) -> CriResult<()> {
        for cgroup in self.cgroups.named(id) {
            self.cgroups.kill(&cgroup).map_err(internal)?;
            self.cgroups.remove(&cgroup).map_err(internal)?;
            let pod = cgroup.parent();
            let known = lock(&self.index)
                .sandboxes
                .values()
                .any(|s| self.cgroups.path(&s.record.cgroup).ok().as_ref() == Some(&pod));
            if !known {
                self.cgroups.remove_if_empty(&pod);
            }
        }
        self.clear_container(id, Path::new(&format!("leftover-{id}")))
    }
}

/// One damaged record (a power loss in the middle of its writing) must not keep the others from being found.
fn unreadable<T>(id: &str) -> impl FnOnce(std::io::Error) -> Option<T> {
    move |error| {
        tracing::error!(container = id, %error, "a record of a container cannot be read");
        None
    }
}
