//! What a new daemon does: reads what is on disk, finds the keepers, takes back what was left half done.

use std::path::Path;
use std::sync::Arc;

use coracle_cri::{CriResult, PodSandboxId};
use coracle_keeper::{Reply, Request};

use super::container::unmount_roots_of;
use super::keeper::Connection;
use super::state::{self, CONTAINER_FILE, ContainerRecord, SANDBOX_FILE, SandboxPhase, SandboxRecord};
use super::{Container, Inner, Phase, Sandbox, blocking, internal, lock};

impl Inner {
    pub(super) async fn recover(self: &Arc<Self>) -> CriResult<()> {
        let mut keepers = Vec::new();
        for id in state::names(&self.layout.sandboxes()).map_err(internal)? {
            let record: Option<SandboxRecord> = match state::load(&self.layout.sandbox(&id), SANDBOX_FILE) {
                Ok(record) => record,
                Err(error) => {
                    tracing::error!(sandbox = %id, %error, "the record of a sandbox cannot be read; it is removed");
                    None
                }
            };
            match record {
                Some(record) if record.phase == SandboxPhase::Creating => self.take_back(&record).await?,
                Some(record) => {
                    let sandbox = Sandbox::new(record);
                    if sandbox.is_ready() {
                        keepers.push((Arc::clone(&sandbox), self.find_keeper(&id).await));
                    } else {
                        sandbox.gone.send_replace(true);
                    }
                    lock(&self.index).sandboxes.insert(id, sandbox);
                }
                None => state::remove_tree(&self.layout.sandbox(&id)).map_err(internal)?,
            }
        }

        let running: Vec<String> =
            keepers.iter().filter_map(|(_, keeper)| keeper.as_ref()).flat_map(|(_, r)| r.clone()).collect();
        let inner = Arc::clone(self);
        blocking(move || inner.read_containers(&running)).await?;

        for (sandbox, keeper) in keepers {
            match keeper {
                Some((events, _)) => self.watch_keeper(sandbox, events, None),
                None => {
                    tracing::warn!(sandbox = %sandbox.record.id, "a sandbox has lost its keeper");
                    self.without_keeper(&sandbox).await?;
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

    async fn find_keeper(&self, sandbox: &str) -> Option<(Connection, Vec<String>)> {
        let run = self.layout.sandbox_run(sandbox);
        let mut keeper = Connection::ask(&run, Request::Subscribe, &[]).ok()?;
        match keeper.reply().await {
            Ok(Some(Reply::Hello { running, .. })) => Some((keeper, running)),
            Ok(_) | Err(_) => None,
        }
    }

    async fn without_keeper(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> CriResult<()> {
        lock(&sandbox.state).phase = SandboxPhase::Stopped;
        sandbox.gone.send_replace(true);
        let (inner, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        blocking(move || {
            inner.kill_and_record(&sandbox)?;
            let record = SandboxRecord { phase: SandboxPhase::Stopped, ..sandbox.record.clone() };
            state::store(&inner.layout.sandbox(&record.id), SANDBOX_FILE, &record).map_err(internal)
        })
        .await
    }

    fn read_containers(&self, running: &[String]) -> CriResult<()> {
        for id in state::names(&self.layout.containers()).map_err(internal)? {
            let dir = self.layout.container(&id);
            let record: Option<ContainerRecord> = state::load(&dir, CONTAINER_FILE).unwrap_or_default();
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
            if !lock(&self.index).containers.contains_key(&id) {
                unmount_roots_of(&id).map_err(internal)?;
                self.images.release_rootfs(&id)?;
            }
        }
        Ok(())
    }

    /// A directory without a record, or of a sandbox that is gone: its control group is not known, but is named
    /// after it.
    fn clear_leftover(&self, id: &str) -> CriResult<()> {
        let sandboxes: Vec<_> =
            lock(&self.index).sandboxes.values().map(|s| s.record.cgroup.clone()).collect();
        for parent in sandboxes {
            let cgroup = self.cgroups.path(&parent.join(id)).map_err(internal)?;
            self.cgroups.kill(&cgroup).map_err(internal)?;
            self.cgroups.remove(&cgroup).map_err(internal)?;
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
