//! The engine as [`RuntimeService`]: views of the index, and changes handed to their own tasks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_cri::{
    AttachRequest, Container as CriContainer, ContainerConfig, ContainerEvent, ContainerFilter, ContainerId,
    ContainerState, ContainerStatus, CriResult, ExecRequest, ExecSyncResult, LinuxContainerResources,
    PodSandbox, PodSandboxConfig, PodSandboxFilter, PodSandboxId, PodSandboxState, PodSandboxStatus,
    PortStream, RuntimeCondition, RuntimeService, RuntimeStatus, StreamSession, Version,
};
use tokio::sync::mpsc;

use super::{Container, EmbeddedRuntime, Inner, Phase, Sandbox, lock, state, to_the_end};

/// Hints kept for a listener that is busy.
const HINTS_IN_FLIGHT: usize = 1024;

#[async_trait]
impl RuntimeService for EmbeddedRuntime {
    async fn version(&self) -> CriResult<Version> {
        Ok(Version {
            runtime_name: "coracle".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    async fn status(&self) -> CriResult<RuntimeStatus> {
        let network = self.inner.network.ready().await;
        let condition = |kind: &str, result: Result<(), String>, reason: &str| RuntimeCondition {
            kind: kind.to_owned(),
            status: result.is_ok(),
            reason: result.as_ref().err().map(|_| reason.to_owned()).unwrap_or_default(),
            message: result.err().unwrap_or_default(),
        };
        Ok(RuntimeStatus {
            conditions: vec![
                condition("RuntimeReady", Ok(()), ""),
                condition("NetworkReady", network, "NetworkPluginNotReady"),
            ],
        })
    }

    async fn update_pod_cidr(&self, pod_cidr: &str) -> CriResult<()> {
        self.inner.network.set_pod_cidr(pod_cidr).await
    }

    async fn run_pod_sandbox(&self, config: &PodSandboxConfig) -> CriResult<PodSandboxId> {
        to_the_end(self.inner().run_sandbox(config.clone())).await
    }

    async fn stop_pod_sandbox(&self, id: &PodSandboxId) -> CriResult<()> {
        to_the_end(self.inner().stop_sandbox(id.clone())).await
    }

    async fn remove_pod_sandbox(&self, id: &PodSandboxId) -> CriResult<()> {
        to_the_end(self.inner().remove_sandbox(id.clone())).await
    }

    async fn pod_sandbox_status(&self, id: &PodSandboxId) -> CriResult<PodSandboxStatus> {
        let sandbox = self.inner.sandbox(&id.0)?;
        let ips = lock(&sandbox.state).ips.clone();
        Ok(PodSandboxStatus {
            sandbox: sandbox.view(),
            ips,
            netns: sandbox.own_network().then(|| self.inner.netns(&id.0)),
            namespaces: sandbox.record.config.namespaces.clone(),
        })
    }

    async fn list_pod_sandboxes(&self, filter: &PodSandboxFilter) -> CriResult<Vec<PodSandbox>> {
        // Every look at a Pod asks this: only what is asked for is copied.
        let asked_for = |sandbox: &&Arc<Sandbox>| {
            filter.id.as_ref().is_none_or(|id| id.0 == sandbox.record.id)
                && has_labels(&sandbox.record.config.labels, &filter.labels)
        };
        let found: Vec<Arc<Sandbox>> =
            lock(&self.inner.index).sandboxes.values().filter(asked_for).cloned().collect();
        let views = found.iter().map(|sandbox| sandbox.view());
        Ok(views.filter(|sandbox| filter.state.is_none_or(|state| state == sandbox.state)).collect())
    }

    async fn create_container(
        &self,
        sandbox: &PodSandboxId,
        config: &ContainerConfig,
        _sandbox_config: &PodSandboxConfig,
    ) -> CriResult<ContainerId> {
        // The sandbox's own record is the truth about it.
        to_the_end(self.inner().create(sandbox.clone(), config.clone())).await
    }

    async fn start_container(&self, id: &ContainerId) -> CriResult<()> {
        to_the_end(self.inner().start(id.clone())).await
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> CriResult<()> {
        let Ok(container) = self.inner.container(&id.0) else { return Ok(()) };
        let inner = self.inner();
        to_the_end(async move { inner.stop_in_turn(&container, grace).await }).await
    }

    async fn remove_container(&self, id: &ContainerId) -> CriResult<()> {
        let Ok(container) = self.inner.container(&id.0) else { return Ok(()) };
        to_the_end(self.inner().remove(container)).await
    }

    async fn list_containers(&self, filter: &ContainerFilter) -> CriResult<Vec<CriContainer>> {
        let asked_for = |container: &&Arc<Container>| {
            filter.id.as_ref().is_none_or(|id| id.0 == container.record.id)
                && filter.sandbox.as_ref().is_none_or(|sandbox| sandbox.0 == container.record.sandbox)
                && has_labels(&container.record.config.labels, &filter.labels)
        };
        let found: Vec<Arc<Container>> =
            lock(&self.inner.index).containers.values().filter(asked_for).cloned().collect();
        let views = found.iter().map(|container| container.view(&container.phase()));
        Ok(views.filter(|container| filter.state.is_none_or(|state| state == container.state)).collect())
    }

    async fn container_status(&self, id: &ContainerId) -> CriResult<ContainerStatus> {
        Ok(self.inner.container(&id.0)?.status())
    }

    async fn update_container_resources(
        &self,
        id: &ContainerId,
        resources: &LinuxContainerResources,
    ) -> CriResult<()> {
        to_the_end(self.inner().update(id.clone(), resources.clone())).await
    }

    async fn reopen_container_log(&self, id: &ContainerId) -> CriResult<()> {
        self.inner.reopen_log(id).await
    }

    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Option<Duration>,
    ) -> CriResult<ExecSyncResult> {
        self.inner().exec_sync(id.clone(), command.to_vec(), timeout).await
    }

    async fn exec(&self, request: &ExecRequest) -> CriResult<StreamSession> {
        self.inner().exec(request.clone()).await
    }

    async fn attach(&self, request: &AttachRequest) -> CriResult<StreamSession> {
        self.inner().attach(request.clone()).await
    }

    async fn port_forward(&self, sandbox: &PodSandboxId, port: u16) -> CriResult<PortStream> {
        self.inner.port_forward(sandbox, port).await
    }

    async fn container_events(&self) -> CriResult<mpsc::Receiver<ContainerEvent>> {
        let (sender, receiver) = mpsc::channel(HINTS_IN_FLIGHT);
        lock(&self.inner.listeners).push(sender);
        Ok(receiver)
    }
}

impl EmbeddedRuntime {
    fn inner(&self) -> Arc<Inner> {
        Arc::clone(&self.inner)
    }
}

fn has_labels(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}

impl Sandbox {
    fn view(&self) -> PodSandbox {
        let record = &self.record;
        PodSandbox {
            id: PodSandboxId(record.id.clone()),
            metadata: record.config.metadata.clone(),
            state: if self.is_ready() { PodSandboxState::Ready } else { PodSandboxState::NotReady },
            created_at: record.created_at,
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        }
    }
}

impl Container {
    /// How it looks in a phase that was read once: what is told of it must not be from two moments.
    fn view(&self, phase: &Phase) -> CriContainer {
        let record = &self.record;
        CriContainer {
            id: ContainerId(record.id.clone()),
            sandbox: PodSandboxId(record.sandbox.clone()),
            name: record.config.name.clone(),
            attempt: record.config.attempt,
            image: record.config.image.clone(),
            image_ref: record.image_ref.clone(),
            state: match phase {
                Phase::Created => ContainerState::Created,
                Phase::Running { .. } => ContainerState::Running,
                Phase::Exited { .. } => ContainerState::Exited,
                Phase::Removed => ContainerState::Unknown,
            },
            created_at: record.created_at,
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        }
    }

    fn status(&self) -> ContainerStatus {
        let record = &self.record;
        let phase = self.phase();
        let (started_at, pid) = match &phase {
            Phase::Running { pid, started_at } => (Some(*started_at), *pid),
            Phase::Exited { started_at, .. } => (*started_at, None),
            Phase::Created | Phase::Removed => (None, None),
        };
        let exit = match &phase {
            Phase::Exited { exit, .. } => Some(exit),
            Phase::Created | Phase::Running { .. } | Phase::Removed => None,
        };
        let reason = match exit {
            None => "",
            Some(exit) if exit.start_error.is_some() => "StartError",
            Some(exit) if exit.exit_code == 0 => "Completed",
            Some(exit) if exit.oom_killed => "OOMKilled",
            // containerd's word, which upstream's users know from a machine that went down.
            Some(exit) if exit.unseen => "Unknown",
            Some(_) => "Error",
        };
        ContainerStatus {
            container: self.view(&phase),
            started_at,
            finished_at: exit.map(|exit| state::timestamp(exit.finished_at)),
            exit_code: exit.map(|exit| exit.exit_code),
            reason: reason.to_owned(),
            message: exit.and_then(|exit| exit.start_error.clone()).unwrap_or_default(),
            log_path: record.log_path.clone(),
            mounts: record.config.mounts.clone(),
            user: Some(record.user.clone()),
            pid,
            resources: lock(&self.resources).clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use coracle_cri::{ContainerConfig, ContainerUser, LinuxContainerResources};
    use coracle_keeper::ExitRecord;
    use jiff::Timestamp;

    use super::super::state::ContainerRecord;
    use super::*;

    fn running() -> Arc<Container> {
        let record = ContainerRecord {
            id: "c".into(),
            sandbox: "s".into(),
            pod_uid: "u".into(),
            config: ContainerConfig::default(),
            created_at: Timestamp::UNIX_EPOCH,
            image_ref: String::new(),
            log_path: "/dev/null".into(),
            user: ContainerUser::default(),
            stop_signal: 15,
            rootfs: "/".into(),
            cgroup: "c".into(),
            own_pid_namespace: true,
        };
        let started = Phase::Running { pid: None, started_at: Timestamp::UNIX_EPOCH };
        Container::new(record, started, LinuxContainerResources::default())
    }

    #[test]
    fn whoever_sees_that_a_container_has_ended_sees_how() {
        for _ in 0..2_000 {
            let container = running();
            let together = Barrier::new(2);
            std::thread::scope(|threads| {
                threads.spawn(|| {
                    together.wait();
                    let exit = ExitRecord { exit_code: 7, ..ExitRecord::default() };
                    container.advance(Phase::Exited { started_at: None, exit });
                });
                together.wait();
                loop {
                    let status = container.status();
                    if status.container.state == ContainerState::Exited {
                        assert_eq!(status.exit_code, Some(7));
                        break;
                    }
                }
            });
        }
    }
}
