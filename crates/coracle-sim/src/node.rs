//! A simulated machine: a scripted runtime, and the real node agent on it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_apiserver::auth::UserInfo;
use coracle_client::in_process;
use coracle_clock::{Clock, Rng};
use coracle_cri::scripted::{ImageScript, OnStop, RunScript, ScriptedRuntime};
use coracle_kubelet::{Kubelet, KubeletConfig, Machine, VolumeHost};
use serde::Deserialize;
use tokio::task::JoinHandle;

use crate::wire::Wire;

/// What a node has.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct NodeSettings {
    /// Its name.
    pub name: String,
    /// Processors.
    pub cpus: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// The most Pods.
    pub max_pods: u32,
    /// Labels beside the usual ones.
    pub labels: BTreeMap<String, String>,
}

impl Default for NodeSettings {
    fn default() -> Self {
        NodeSettings {
            name: "node-0".to_owned(),
            cpus: 8,
            memory_bytes: 32 << 30,
            max_pods: 110,
            labels: BTreeMap::new(),
        }
    }
}

impl NodeSettings {
    /// A usual node of this name.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        NodeSettings { name: name.into(), ..Self::default() }
    }
}

/// How images behave that nobody scripted: there is any, a pull takes a second, containers run for ever and end a
/// tenth of a second after SIGTERM.
#[must_use]
pub fn usual_image() -> ImageScript {
    let on_stop = OnStop::Exits { after: Duration::from_millis(100), code: 143 };
    ImageScript {
        pull_time: Duration::from_secs(1),
        runs: vec![RunScript { on_stop, ..RunScript::default() }],
        ..ImageScript::default()
    }
}

/// One machine.
pub(crate) struct SimNode {
    settings: NodeSettings,
    address: Ipv4Addr,
    directory: PathBuf,
    pub(crate) runtime: ScriptedRuntime,
    pub(crate) wire: Wire,
    pub(crate) clock: Clock,
    rng: Rng,
    agent: Option<JoinHandle<()>>,
    boots: u32,
    pub(crate) powered: bool,
}

impl SimNode {
    pub(crate) fn new(
        settings: NodeSettings,
        nth: u32,
        directory: &Path,
        wire: Wire,
        clock: Clock,
        rng: Rng,
    ) -> Self {
        let runtime = ScriptedRuntime::new(clock.clone());
        runtime.script_others(usual_image());
        SimNode {
            address: Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 1)) + nth),
            directory: directory.join(&settings.name),
            settings,
            runtime,
            wire,
            clock,
            rng,
            agent: None,
            boots: 1,
            powered: true,
        }
    }

    fn config(&self) -> KubeletConfig {
        let NodeSettings { name, cpus, memory_bytes, max_pods, labels } = &self.settings;
        KubeletConfig {
            node_name: name.clone(),
            hostname: name.clone(),
            node_ips: vec![IpAddr::V4(self.address)],
            node_labels: labels.clone(),
            machine: Machine {
                pids: 32_768,
                cpus: *cpus,
                memory_bytes: *memory_bytes,
                storage_bytes: 100 << 30,
                machine_id: name.clone(),
                system_uuid: name.clone(),
                boot_id: format!("{name}-{}", self.boots),
                kernel_version: "6.12.0".to_owned(),
                os_image: "Simulated".to_owned(),
                architecture: "amd64".to_owned(),
            },
            max_pods: *max_pods,
            api: None,
            pods_dir: self.directory.join("pods"),
            image_records_dir: self.directory.join("images"),
            volume_host: VolumeHost::Below(self.directory.join("host")),
            pod_logs_dir: self.directory.join("logs/pods"),
            container_logs_dir: self.directory.join("logs/containers"),
            cgroup_root: String::new(),
            resolv_conf: self.directory.join("resolv.conf"),
            hosts_file: self.directory.join("hosts"),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            restart_backoff_max: jiff::SignedDuration::from_secs(300),
            max_parallel_image_pulls: 1,
        }
    }

    /// Starts the node agent, unless it runs.
    pub(crate) fn start_agent(&mut self) {
        if self.agent.is_some() || !self.powered {
            return;
        }
        let client = in_process(self.wire.caller(UserInfo::node(&self.settings.name)));
        let runtime = Arc::new(self.runtime.clone());
        let rng = self.rng.fork("agent");
        let network = runtime.clone();
        let kubelet = Kubelet::new(self.config(), client, runtime.clone(), runtime, self.clock.clone(), rng)
            .with_probe_network(network);
        self.agent = Some(tokio::spawn(async move {
            if let Err(error) = kubelet.run(std::future::pending()).await {
                tracing::error!(%error, "a node agent cannot run");
            }
        }));
    }

    /// Ends the node agent as `kill -9` would.
    pub(crate) async fn kill_agent(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.abort();
            let _ = agent.await;
        }
    }

    pub(crate) async fn lose_power(&mut self) {
        self.powered = false;
        self.kill_agent().await;
        self.runtime.lose_power();
    }

    pub(crate) fn boot(&mut self) {
        if !self.powered {
            self.powered = true;
            self.boots += 1;
            self.start_agent();
        }
    }
}
