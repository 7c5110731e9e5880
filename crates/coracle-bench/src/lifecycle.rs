//! What the life of Pods costs: restarts, and probes while nothing happens.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail};
use coracle_clock::Clock;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::{Api, DeleteParams, PostParams, WatchEvent};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::cluster::Cluster;
use crate::measure::{cpu_ticks, is_ready, next, pod, watch};

/// Containers with a probe in each Pod of [`probes`]: a node takes fewer Pods than there are to be probes.
const PROBED_IN_A_POD: usize = 5;
/// The work of the start, and of the first answers, is not idling.
const REST: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(300);

/// Ends the program of a Pod and waits until a watch shows its container running anew, for the first time, so that there
/// is no back-off; again with another Pod. Returns the times from the end of the program.
pub(crate) async fn restarts(
    cluster: &Cluster,
    client: &kube::Client,
    clock: &Clock,
    count: usize,
) -> anyhow::Result<Vec<Duration>> {
    let api: Api<Pod> = Api::default_namespaced(client.clone());
    let mut events = watch(&api).await?;
    let mut times = Vec::new();
    for number in 0..count {
        let name = format!("restart-{number}");
        let before: BTreeSet<u32> = cluster.keepers().into_iter().collect();
        api.create(&PostParams::default(), &pod(&name, true)?).await?;
        while !next(&mut events, &name).await?.is_some_and(|pod| is_ready(&pod)) {}
        let program = program(cluster, &before)?;
        let begin = clock.elapsed();
        kill_process(program, Signal::KILL)?;
        loop {
            let pod = next(&mut events, &name).await?.context("the Pod went before it was restarted")?;
            if container(&pod).is_some_and(|status| status.restart_count == 1 && is_running(status)) {
                break;
            }
        }
        times.push(clock.elapsed() - begin);
        api.delete(&name, &DeleteParams::default().grace_period(0)).await?;
        while next(&mut events, &name).await?.is_some() {}
    }
    Ok(times)
}

fn container(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()
}

fn is_running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.running.is_some())
}

/// The first process of the container of the Pod that was made last.
fn program(cluster: &Cluster, before: &BTreeSet<u32>) -> anyhow::Result<Pid> {
    let keeper = cluster.keepers().into_iter().find(|keeper| !before.contains(keeper));
    let keeper = keeper.context("the Pod has no keeper")?;
    let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"))?;
    let child = children.split_whitespace().next().context("the container has no process")?;
    Pid::from_raw(child.parse()?).context("no process has the number 0")
}

/// Makes Pods whose containers are asked over HTTP every 10 s whether they are ready, so many in all, and returns how many
/// percent of a core the cluster's process takes while nothing else happens.
pub(crate) async fn probes(
    cluster: &Cluster,
    client: &kube::Client,
    clock: &Clock,
    count: usize,
    seconds: u64,
) -> anyhow::Result<f64> {
    let api: Api<Pod> = Api::default_namespaced(client.clone());
    let mut events = watch(&api).await?;
    let names: Vec<String> =
        (0..count.div_ceil(PROBED_IN_A_POD)).map(|nth| format!("probed-{nth}")).collect();
    let manifests = names.iter().map(|name| probed(name)).collect::<anyhow::Result<Vec<_>>>()?;
    let create = async |pod: &Pod| api.create(&PostParams::default(), pod).await;
    futures::future::try_join_all(manifests.iter().map(create)).await?;
    let mut missing: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let all_ready = async {
        while !missing.is_empty() {
            match events.next().await.context("the watch ended")?? {
                WatchEvent::Modified(pod) if is_ready(&pod) => {
                    missing.remove(pod.metadata.name.as_deref().unwrap_or_default());
                }
                WatchEvent::Error(error) => bail!("{error:?}"),
                _ => {}
            }
        }
        Ok(())
    };
    clock.timeout(PATIENCE, all_ready).await.context("not all probed Pods became Ready")??;
    clock.sleep(REST).await;
    let process = [cluster.pid()?];
    let (ticks, begin) = (cpu_ticks(&process), clock.elapsed());
    clock.sleep(Duration::from_secs(seconds)).await;
    // The kernel counts in hundredths of a second on every Linux that Coracle runs on.
    let percent = (cpu_ticks(&process) - ticks) as f64 / (clock.elapsed() - begin).as_secs_f64();
    let delete = async |name: &String| api.delete(name, &DeleteParams::default().grace_period(0)).await;
    futures::future::try_join_all(names.iter().map(delete)).await?;
    let mut left: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    while !left.is_empty() {
        if let WatchEvent::Deleted(pod) = events.next().await.context("the watch ended")?? {
            left.remove(pod.metadata.name.as_deref().unwrap_or_default());
        }
    }
    Ok(percent)
}

/// A Pod whose containers are web servers with a readiness probe.
fn probed(name: &str) -> anyhow::Result<Pod> {
    let container = |nth: usize| {
        let port = 8080 + nth;
        json!({
            "name": format!("web-{nth}"), "image": "busybox:1.35",
            "command": ["sh", "-c", format!("echo ok > /tmp/index.html; exec httpd -f -p {port} -h /tmp")],
            "readinessProbe": {"httpGet": {"path": "/", "port": port}, "periodSeconds": 10},
        })
    };
    Ok(serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": (0..PROBED_IN_A_POD).map(container).collect::<Vec<_>>()},
    }))?)
}
