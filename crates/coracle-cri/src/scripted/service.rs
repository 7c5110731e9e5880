//! Sandboxes and containers.

use std::time::Duration;

use async_trait::async_trait;
use coracle_clock::watch;
use tokio::sync::mpsc;

use super::script::annotated;
use super::{
    Exit, Input, Note, OnStop, Run, Sandbox, ScriptedRuntime, ip, labels_match, no_container, no_sandbox,
};
use crate::{
    AttachRequest, Container, ContainerConfig, ContainerEvent, ContainerEventKind, ContainerFilter,
    ContainerId, ContainerState, ContainerStatus, CriError, CriResult, ExecRequest, ExecSyncResult,
    LinuxContainerResources, NamespaceMode, PodSandbox, PodSandboxConfig, PodSandboxFilter, PodSandboxId,
    PodSandboxState, PodSandboxStatus, PortStream, RuntimeCondition, RuntimeService, RuntimeStatus,
    StreamSession, Version,
};

const EVENTS: usize = 1024;

#[async_trait]
impl RuntimeService for ScriptedRuntime {
    async fn version(&self) -> CriResult<Version> {
        Ok(Version { runtime_name: "coracle".to_owned(), runtime_version: "0.0.0".to_owned() })
    }

    async fn status(&self) -> CriResult<RuntimeStatus> {
        self.meet_trouble("status").await?;
        let down = self.state().network_down.clone();
        let condition = |kind: &str, down: Option<String>| RuntimeCondition {
            kind: kind.to_owned(),
            status: down.is_none(),
            reason: if down.is_some() { "NetworkPluginNotReady".to_owned() } else { String::new() },
            message: down.unwrap_or_default(),
        };
        Ok(RuntimeStatus {
            conditions: vec![condition("RuntimeReady", None), condition("NetworkReady", down)],
        })
    }

    async fn update_pod_cidr(&self, pod_cidr: &str) -> CriResult<()> {
        self.meet_trouble("update_pod_cidr").await?;
        self.state().pod_cidr = Some(pod_cidr.to_owned());
        Ok(())
    }

    async fn run_pod_sandbox(&self, config: &PodSandboxConfig) -> CriResult<PodSandboxId> {
        self.meet_trouble("run_pod_sandbox").await?;
        let now = self.now();
        let mut state = self.state();
        let same = |s: &&Sandbox| {
            s.status.sandbox.metadata == config.metadata && s.status.sandbox.state == PodSandboxState::Ready
        };
        if let Some(there) = state.sandboxes.values().find(same) {
            return Ok(there.status.sandbox.id.clone());
        }
        if !state.sandbox_failures.is_empty() {
            return Err(state.sandbox_failures.remove(0));
        }
        let id = PodSandboxId(state.id());
        let on_node = config.namespaces.network == NamespaceMode::Node;
        let address = if on_node { None } else { state.address() };
        if address.is_none() && !on_node {
            return Err(CriError::Internal("no addresses are left in the range of this node".to_owned()));
        }
        let status = PodSandboxStatus {
            sandbox: PodSandbox {
                id: id.clone(),
                metadata: config.metadata.clone(),
                state: PodSandboxState::Ready,
                created_at: now,
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            },
            ips: address.map(ip).into_iter().collect(),
            netns: None,
            namespaces: config.namespaces.clone(),
        };
        state.sandboxes.insert(id.clone(), Sandbox { status, address });
        state.log(format!("run sandbox {} {}", config.metadata.name, config.metadata.attempt));
        Ok(id)
    }

    async fn stop_pod_sandbox(&self, id: &PodSandboxId) -> CriResult<()> {
        self.meet_trouble("stop_pod_sandbox").await?;
        for container in self.running_in(id) {
            self.end(&container, 137, "");
        }
        let mut state = self.state();
        if let Some(sandbox) = state.sandboxes.get_mut(id) {
            sandbox.status.sandbox.state = PodSandboxState::NotReady;
            let name = sandbox.status.sandbox.metadata.name.clone();
            state.free(id);
            state.log(format!("stop sandbox {name}"));
        }
        Ok(())
    }

    async fn remove_pod_sandbox(&self, id: &PodSandboxId) -> CriResult<()> {
        self.meet_trouble("remove_pod_sandbox").await?;
        self.stop_pod_sandbox(id).await?;
        let mut state = self.state();
        if let Some(sandbox) = state.sandboxes.remove(id) {
            state.containers.retain(|_, run| run.status.container.sandbox != *id);
            state.log(format!("remove sandbox {}", sandbox.status.sandbox.metadata.name));
        }
        Ok(())
    }

    async fn pod_sandbox_status(&self, id: &PodSandboxId) -> CriResult<PodSandboxStatus> {
        self.meet_trouble("pod_sandbox_status").await?;
        let state = self.state();
        let found = state.sandboxes.get(id).map(|s| s.status.clone());
        found.ok_or_else(|| no_sandbox(id))
    }

    async fn list_pod_sandboxes(&self, filter: &PodSandboxFilter) -> CriResult<Vec<PodSandbox>> {
        self.meet_trouble("list_pod_sandboxes").await?;
        let state = self.state();
        let all = state.sandboxes.values().map(|s| &s.status.sandbox);
        let matching = all.filter(|s| {
            filter.id.as_ref().is_none_or(|id| *id == s.id)
                && filter.state.is_none_or(|wanted| wanted == s.state)
                && labels_match(&filter.labels, &s.labels)
        });
        Ok(matching.cloned().collect())
    }

    async fn create_container(
        &self,
        sandbox: &PodSandboxId,
        config: &ContainerConfig,
        sandbox_config: &PodSandboxConfig,
    ) -> CriResult<ContainerId> {
        self.meet_trouble("create_container").await?;
        let now = self.now();
        let mut state = self.state();
        let same = |run: &&Run| {
            let c = &run.status.container;
            c.sandbox == *sandbox && c.name == config.name && c.attempt == config.attempt
        };
        if let Some(there) = state.containers.values().find(same) {
            return Ok(there.status.container.id.clone());
        }
        let known = state.sandboxes.get(sandbox).map(|sandbox| sandbox.status.sandbox.state);
        match known {
            Some(PodSandboxState::Ready) => {}
            Some(PodSandboxState::NotReady) => {
                return Err(CriError::FailedPrecondition(format!("sandbox \"{sandbox}\" is not ready")));
            }
            None => return Err(no_sandbox(sandbox)),
        }
        let Some(image) = state.image(&config.image.image).cloned() else {
            return Err(CriError::NotFound(format!("image \"{}\" not found", config.image.image)));
        };
        let runs = match annotated(&sandbox_config.annotations, &config.name)? {
            Some(runs) => runs,
            None => image.repo_tags.first().and_then(|tag| state.script_of(tag)).unwrap_or_default().runs,
        };
        let uid = sandbox_config.metadata.uid.clone();
        let nth = state.runs.entry((uid.clone(), config.name.clone())).or_insert(0);
        let run = runs.get(*nth).or(runs.last()).cloned().unwrap_or_default();
        *nth += 1;
        if let Some(error) = run.create_error {
            return Err(CriError::Internal(error));
        }
        let id = ContainerId(state.id());
        let container = Container {
            id: id.clone(),
            sandbox: sandbox.clone(),
            name: config.name.clone(),
            attempt: config.attempt,
            image: config.image.clone(),
            image_ref: image.id,
            state: ContainerState::Created,
            created_at: now,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        };
        let status = ContainerStatus {
            container,
            started_at: None,
            finished_at: None,
            exit_code: None,
            reason: String::new(),
            message: String::new(),
            log_path: sandbox_config.log_directory.join(&config.log_path),
            mounts: config.mounts.clone(),
            user: None,
            pid: None,
            resources: config.resources.clone(),
        };
        let pod = (sandbox_config.metadata.namespace.clone(), sandbox_config.metadata.name.clone());
        let ended = watch::Sender::new(false);
        let since = self.0.clock.elapsed();
        // A terminal's input has no end that could be closed.
        let input = Input { open: config.stdin, once: config.stdin_once && !config.tty };
        let run = Run {
            status,
            pod,
            pod_uid: uid.clone(),
            envs: config.envs.clone(),
            script: run,
            since,
            ended,
            stops: 0,
            input,
            attached: Vec::new(),
        };
        state.containers.insert(id.clone(), run);
        state.log(format!("create {} {}", config.name, config.attempt));
        self.tell(&mut state, ContainerEventKind::Created, &uid, Some(&id));
        Ok(id)
    }

    async fn start_container(&self, id: &ContainerId) -> CriResult<()> {
        self.meet_trouble("start_container").await?;
        let now = self.now();
        let (exit, output) = {
            let mut state = self.state();
            let run = state.containers.get_mut(id).ok_or_else(|| no_container(id))?;
            match run.status.container.state {
                ContainerState::Created => {}
                // Once is enough.
                ContainerState::Running => return Ok(()),
                _ => return Err(CriError::FailedPrecondition(format!("container \"{id}\" has run"))),
            }
            let name = run.status.container.name.clone();
            let uid = run.pod_uid.clone();
            if let Some(error) = run.script.start_error.clone() {
                run.status.container.state = ContainerState::Exited;
                (run.status.started_at, run.status.finished_at) = (Some(now), Some(now));
                run.status.exit_code = Some(128);
                run.status.reason = "StartError".to_owned();
                run.status.message.clone_from(&error);
                run.ended.send_replace(true);
                state.log(format!("start {name} failed"));
                self.tell(&mut state, ContainerEventKind::Stopped, &uid, Some(id));
                return Err(CriError::Internal(error));
            }
            run.status.container.state = ContainerState::Running;
            run.status.started_at = Some(now);
            run.status.pid = Some(1);
            run.since = self.0.clock.elapsed();
            let exit = ends_by_itself(run);
            let output = run.script.output.clone();
            let instance = run.instance();
            state.log(format!("start {name}"));
            self.tell(&mut state, ContainerEventKind::Started, &uid, Some(id));
            state.note(&Note::Started(instance));
            (exit, output)
        };
        if !output.is_empty() {
            self.write_output(id, output);
        }
        if let Some(exit) = exit {
            self.let_run(id, exit);
        }
        Ok(())
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> CriResult<()> {
        self.meet_trouble("stop_container").await?;
        let (on_stop, mut ended, turn, first) = {
            let mut state = self.state();
            let Some(run) = state.containers.get_mut(id) else { return Ok(()) };
            if run.status.container.state != ContainerState::Running {
                return Ok(());
            }
            run.stops += 1;
            let found = (run.script.on_stop, run.ended.subscribe(), run.stops, run.stops == 1);
            let name = run.status.container.name.clone();
            state.log(format!("stop {name} {}s", grace.as_secs()));
            found
        };
        if first {
            match on_stop {
                OnStop::Dies => self.end(id, 143, ""),
                OnStop::Exits { after, code } => self.let_run(id, Exit { after, code, oom_killed: false }),
                OnStop::Ignores => {}
            }
        }
        let over = self.0.clock.timeout(grace, ended.wait_for(|ended| *ended)).await.is_none();
        let latest = self.state().containers.get(id).is_some_and(|run| run.stops == turn);
        if over && latest {
            self.end(id, 137, "");
        } else if over {
            let _ = ended.wait_for(|ended| *ended).await;
        }
        Ok(())
    }

    async fn remove_container(&self, id: &ContainerId) -> CriResult<()> {
        self.meet_trouble("remove_container").await?;
        self.end(id, 137, "");
        let mut state = self.state();
        if let Some(run) = state.containers.remove(id) {
            state.log(format!("remove {} {}", run.status.container.name, run.status.container.attempt));
            self.tell(&mut state, ContainerEventKind::Deleted, &run.pod_uid, Some(id));
        }
        Ok(())
    }

    async fn list_containers(&self, filter: &ContainerFilter) -> CriResult<Vec<Container>> {
        self.meet_trouble("list_containers").await?;
        let state = self.state();
        let all = state.containers.values().map(|run| &run.status.container);
        let matching = all.filter(|c| {
            filter.id.as_ref().is_none_or(|id| *id == c.id)
                && filter.state.is_none_or(|wanted| wanted == c.state)
                && filter.sandbox.as_ref().is_none_or(|sandbox| *sandbox == c.sandbox)
                && labels_match(&filter.labels, &c.labels)
        });
        Ok(matching.cloned().collect())
    }

    async fn container_status(&self, id: &ContainerId) -> CriResult<ContainerStatus> {
        self.meet_trouble("container_status").await?;
        self.state().containers.get(id).map(|run| run.status.clone()).ok_or_else(|| no_container(id))
    }

    async fn update_container_resources(
        &self,
        id: &ContainerId,
        resources: &LinuxContainerResources,
    ) -> CriResult<()> {
        self.meet_trouble("update_container_resources").await?;
        let mut state = self.state();
        let run = state.containers.get_mut(id).ok_or_else(|| no_container(id))?;
        run.status.resources = resources.clone();
        Ok(())
    }

    async fn reopen_container_log(&self, id: &ContainerId) -> CriResult<()> {
        self.meet_trouble("reopen_container_log").await?;
        self.state().containers.get(id).map(|_| ()).ok_or_else(|| no_container(id))
    }

    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Option<Duration>,
    ) -> CriResult<ExecSyncResult> {
        self.meet_trouble("exec_sync").await?;
        self.run_command(id, command, timeout).await
    }

    async fn exec(&self, request: &ExecRequest) -> CriResult<StreamSession> {
        self.meet_trouble("exec").await?;
        self.run_session(request)
    }

    async fn attach(&self, request: &AttachRequest) -> CriResult<StreamSession> {
        self.meet_trouble("attach").await?;
        self.join(request)
    }

    async fn port_forward(&self, sandbox: &PodSandboxId, port: u16) -> CriResult<PortStream> {
        self.meet_trouble("port_forward").await?;
        self.connect(sandbox, port)
    }

    async fn container_events(&self) -> CriResult<mpsc::Receiver<ContainerEvent>> {
        self.meet_trouble("container_events").await?;
        let (sender, receiver) = mpsc::channel(EVENTS);
        self.state().subscribers.push(sender);
        Ok(receiver)
    }
}

/// How the program of a container that has started ends if nobody stops it.
fn ends_by_itself(run: &Run) -> Option<Exit> {
    let limit = run.status.resources.memory_limit_in_bytes.and_then(|limit| u64::try_from(limit).ok());
    let starved = run.script.memory.zip(limit).and_then(|(memory, limit)| memory.exceeds(limit));
    let starved = starved.map(|after| Exit { after, code: 137, oom_killed: true });
    match (run.script.exit, starved) {
        (Some(exit), Some(starved)) => Some(if starved.after < exit.after { starved } else { exit }),
        (exit, starved) => exit.or(starved),
    }
}
