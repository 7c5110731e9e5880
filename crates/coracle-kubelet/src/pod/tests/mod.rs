//! Tables and properties of the decisions about one Pod.

mod initial;
mod observed;
mod order;
mod phases;
mod rules;
mod volumes;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_cri as cri;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Value, json};

use super::history::History;
use super::inputs::{ANNOTATION_HASH, Lifecycle, NodeFacts, PodInputs};
use super::{containers, definition_hash, status};

fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_900_000_000 + seconds)
}

fn pod(spec: Value) -> Pod {
    let mut pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 2, "resourceVersion": "5"},
        "status": {"phase": "Pending", "qosClass": "BestEffort", "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2030-01-01T00:00:00Z"}]},
    }))
    .unwrap();
    pod.spec = Some(serde_json::from_value(spec).unwrap());
    pod
}

fn inputs(pod: Pod) -> PodInputs {
    let published = pod.status.clone().unwrap_or_default();
    PodInputs {
        pod: Arc::new(pod),
        object_gone: false,
        now: at(0),
        node: NodeFacts {
            host_ips: vec!["192.0.2.1".parse().unwrap()],
            runtime_name: "coracle".to_owned(),
            network: Ok(()),
            restart_backoff_max: SignedDuration::from_secs(300),
        },
        lifecycle: Lifecycle::Syncing,
        rejection: None,
        eviction: None,
        sandboxes: Vec::new(),
        containers: Vec::new(),
        termination_messages: BTreeMap::new(),
        probes: BTreeMap::new(),
        images: BTreeMap::new(),
        volume_images: BTreeMap::new(),
        volumes: Default::default(),
        operations: BTreeMap::new(),
        history: History::default(),
        previous_status: published.clone(),
        published,
    }
}

fn sandbox(attempt: u32, state: cri::PodSandboxState) -> cri::PodSandboxStatus {
    cri::PodSandboxStatus {
        sandbox: cri::PodSandbox {
            id: cri::PodSandboxId(format!("s{attempt}")),
            metadata: cri::PodSandboxMetadata { attempt, ..Default::default() },
            state,
            created_at: at(0),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        },
        ips: vec!["10.0.0.7".parse().unwrap()],
        netns: None,
        namespaces: Default::default(),
    }
}

fn container(i: &PodInputs, name: &str, attempt: u32, state: cri::ContainerState) -> cri::ContainerStatus {
    let spec = containers::find(i.spec(), name).unwrap().container;
    let started = matches!(state, cri::ContainerState::Running | cri::ContainerState::Exited);
    cri::ContainerStatus {
        container: cri::Container {
            id: cri::ContainerId(format!("{name}{attempt}")),
            sandbox: cri::PodSandboxId("s0".to_owned()),
            name: name.to_owned(),
            attempt,
            image: Default::default(),
            image_ref: "sha256:1".to_owned(),
            state,
            created_at: at(0),
            labels: BTreeMap::new(),
            annotations: [(ANNOTATION_HASH.to_owned(), definition_hash(&spec))].into(),
        },
        started_at: started.then(|| at(1)),
        finished_at: None,
        exit_code: None,
        reason: String::new(),
        message: String::new(),
        log_path: Default::default(),
        mounts: Vec::new(),
        user: None,
        pid: None,
        resources: Default::default(),
    }
}

fn exited(i: &PodInputs, name: &str, attempt: u32, code: i32, finished: Timestamp) -> cri::ContainerStatus {
    cri::ContainerStatus {
        exit_code: Some(code),
        finished_at: Some(finished),
        ..container(i, name, attempt, cri::ContainerState::Exited)
    }
}

/// Computes the status and takes it as published.
fn publish(i: &mut PodInputs) -> PodStatus {
    let computed = status(i);
    i.previous_status = computed.clone();
    i.published = computed.clone();
    computed
}
