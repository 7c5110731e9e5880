//! `coracle status`: whether the cluster runs, where, and what it uses.

use std::process::ExitCode;

use anyhow::Context;
use coracle_client::connect_with_kubeconfig;
use coracle_client::request::list;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde::Serialize;

use crate::cli::Form;
use crate::cluster::Cluster;
use crate::output;

/// Exit code of a cluster that is stopped, as init scripts have it.
const STOPPED: u8 = 3;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    name: String,
    running: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resident_megabytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<String>,
    kubeconfig: String,
    /// Where the objects are.
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<String>,
    log: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nodes: Vec<NodeStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<usize>,
    /// Why nodes and Pods are not told, if the API server did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct NodeStatus {
    name: String,
    ready: bool,
    /// Why it is not Ready.
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

pub(crate) fn run(cluster: &Cluster, form: Form) -> anyhow::Result<ExitCode> {
    let status = look(cluster)?;
    match form {
        Form::Json => output::result(serde_json::to_string_pretty(&status)?),
        Form::Text if cluster.exists() => output::result(text(&status, &cluster.command("up"))),
        Form::Text => output::result(cluster.unknown()),
    }
    Ok(if status.running { ExitCode::SUCCESS } else { ExitCode::from(STOPPED) })
}

fn look(cluster: &Cluster) -> anyhow::Result<Status> {
    let process = cluster.running()?;
    let settings = cluster.settings()?;
    let mut status = Status {
        name: cluster.name.clone(),
        running: process.is_some(),
        process,
        resident_megabytes: process.and_then(resident_megabytes),
        store: settings.as_ref().map(|settings| match &settings.store {
            Some(etcd) => etcd.address.clone(),
            None => "embedded".to_owned(),
        }),
        server: settings.map(|settings| format!("https://127.0.0.1:{}", settings.api_port)),
        kubeconfig: cluster.kubeconfig().display().to_string(),
        log: cluster.log().display().to_string(),
        nodes: Vec::new(),
        pods: None,
        problem: None,
    };
    if status.running
        && let Err(error) = ask(cluster, &mut status)
    {
        status.problem = Some(format!("{error:#}"));
    }
    Ok(status)
}

/// Asks the API server about nodes and Pods.
fn ask(cluster: &Cluster, status: &mut Status) -> anyhow::Result<()> {
    let path = cluster.kubeconfig();
    let kubeconfig =
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = connect_with_kubeconfig(&kubeconfig).await?;
        status.nodes = list::<Node>(&client, None).await?.iter().map(node_status).collect();
        status.pods = Some(list::<Pod>(&client, None).await?.len());
        Ok(())
    })
}

fn node_status(node: &Node) -> NodeStatus {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
    let is_ready = ready.is_some_and(|condition| condition.status == "True");
    NodeStatus {
        name: node.metadata.name.clone().unwrap_or_default(),
        ready: is_ready,
        message: ready
            .filter(|_| !is_ready)
            .and_then(|condition| condition.message.clone())
            .unwrap_or_default(),
    }
}

fn resident_megabytes(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? / 1024)
}

fn text(status: &Status, start: &str) -> String {
    let mut lines = vec![match status.process {
        Some(pid) => format!("cluster {:?} is running (process {pid})", status.name),
        None => format!("cluster {:?} is stopped; start it with {start}", status.name),
    }];
    let mut row = |name: &str, value: String| lines.push(format!("  {name:<11} {value}"));
    if let (true, Some(server)) = (status.running, &status.server) {
        row("server", server.clone());
        row("kubeconfig", status.kubeconfig.clone());
    }
    if let Some(store) = &status.store {
        row("store", store.clone());
    }
    for node in &status.nodes {
        let state = if node.ready { "Ready".to_owned() } else { format!("NotReady: {}", node.message) };
        row("node", format!("{} {state}", node.name));
    }
    if let Some(pods) = status.pods {
        row("pods", pods.to_string());
    }
    if let Some(megabytes) = status.resident_megabytes {
        row("memory", format!("{megabytes} MB resident"));
    }
    if let Some(problem) = &status.problem {
        row("problem", format!("the API server does not answer: {problem}"));
    }
    row("log", status.log.clone());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_not_ready_says_why() {
        let node: Node = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n"},
            "status": {"conditions": [{"type": "Ready", "status": "False", "message": "no network"}]},
        }))
        .unwrap();
        let status = node_status(&node);
        assert_eq!((status.ready, status.message.as_str()), (false, "no network"));
    }
}
