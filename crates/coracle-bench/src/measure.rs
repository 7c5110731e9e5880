//! What is measured, from outside.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail};
use coracle_clock::Clock;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;

use crate::cluster::Cluster;

/// Cost of a cluster that does nothing.
pub(crate) struct Idle {
    pub(crate) resident_mb: u64,
    pub(crate) cpu_percent: f64,
    /// Bytes written to disk.
    pub(crate) written: u64,
    /// Writes of the store.
    pub(crate) revisions: u64,
    /// Those of them that renewed a Lease.
    pub(crate) leases: u64,
}

/// What all the cluster's processes cost over some seconds.
pub(crate) async fn idle(
    cluster: &Cluster,
    client: &kube::Client,
    clock: &Clock,
    seconds: u64,
) -> anyhow::Result<Idle> {
    let processes = cluster.processes()?;
    // The start-up's last work is not idling.
    clock.sleep(Duration::from_secs(5)).await;
    let leases: Api<Lease> = Api::all(client.clone());
    let from = revision(&leases).await?;
    let mut renewals = leases.watch(&WatchParams::default().timeout(290), &from.to_string()).await?.boxed();
    let (before, written_before) = (cpu_ticks(&processes), written(&processes));
    let begin = clock.elapsed();
    clock.sleep(Duration::from_secs(seconds)).await;
    let ticks = cpu_ticks(&processes) - before;
    let written = written(&processes) - written_before;
    let revisions = revision(&leases).await? - from;
    let mut renewed = 0;
    // What has been written has been sent: nothing more comes within a moment.
    while let Some(Some(event)) = clock.timeout(Duration::from_millis(200), renewals.next()).await {
        renewed += u64::from(matches!(event?, WatchEvent::Modified(_)));
    }
    let elapsed = (clock.elapsed() - begin).as_secs_f64();
    let kilobytes: u64 = processes.iter().map(|pid| status_kb(*pid, "VmRSS:")).sum();
    // The kernel counts in hundredths of a second on every Linux that Coracle runs on.
    Ok(Idle {
        resident_mb: kilobytes / 1024,
        cpu_percent: ticks as f64 / elapsed,
        written,
        revisions,
        leases: renewed,
    })
}

/// The store's revision, by a list.
async fn revision<K>(api: &Api<K>) -> anyhow::Result<u64>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let version = api.list(&ListParams::default()).await?.metadata.resource_version;
    Ok(version.context("a list without a revision")?.parse()?)
}

/// Bytes that processes have had written to disk.
fn written(processes: &[u32]) -> u64 {
    let of = |pid: &u32| {
        let io = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
        io.lines().find_map(|line| line.strip_prefix("write_bytes:"))?.trim().parse::<u64>().ok()
    };
    processes.iter().filter_map(of).sum()
}

pub(crate) fn cpu_ticks(processes: &[u32]) -> u64 {
    processes
        .iter()
        .filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok())
        .map(ticks)
        .sum()
}

/// User and system time in a line of `/proc/PID/stat`; the name in it may hold spaces and parentheses.
fn ticks(stat: impl AsRef<str>) -> u64 {
    let after_name = stat.as_ref().rsplit(')').next().unwrap_or_default();
    after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

pub(crate) fn status_kb(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

pub(crate) fn private_kb(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    rollup
        .lines()
        .filter(|line| line.starts_with("Private_"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

/// Durations of the steps of Pods that were started and deleted one after another.
#[derive(Default)]
pub(crate) struct InTurn {
    pub(crate) answered: Vec<Duration>,
    pub(crate) bound: Vec<Duration>,
    pub(crate) creating: Vec<Duration>,
    pub(crate) running: Vec<Duration>,
    pub(crate) ready: Vec<Duration>,
    pub(crate) deleted: Vec<Duration>,
}

pub(crate) type Events = BoxStream<'static, kube::Result<WatchEvent<Pod>>>;

/// Starts a Pod, with a token of its service account or without, waits until a watch shows it Ready, deletes it, waits
/// until the watch shows it gone; again.
pub(crate) async fn pods_in_turn(
    client: &kube::Client,
    clock: &Clock,
    count: usize,
    token: bool,
) -> anyhow::Result<InTurn> {
    let api: Api<Pod> = Api::default_namespaced(client.clone());
    let mut events = watch(&api).await?;
    let mut result = InTurn::default();
    for number in 0..count {
        let name = format!("turn-{number}");
        let manifest = pod(&name, token)?;
        let begin = clock.elapsed();
        api.create(&PostParams::default(), &manifest).await?;
        result.answered.push(clock.elapsed() - begin);
        let (mut bound, mut creating) = (None, None);
        let ready = loop {
            let pod = next(&mut events, &name).await?.context("the Pod went before it was Ready")?;
            let now = clock.elapsed();
            if is_ready(&pod) {
                break now;
            } else if pod.status.as_ref().is_some_and(|status| status.start_time.is_some()) {
                creating.get_or_insert(now);
            } else if pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) {
                bound.get_or_insert(now);
            }
        };
        if let (Some(bound), Some(creating)) = (bound, creating) {
            let answered = begin + *result.answered.last().context("pushed above")?;
            result.bound.push(bound.saturating_sub(answered));
            result.creating.push(creating.saturating_sub(bound));
            result.running.push(ready.saturating_sub(creating));
        }
        result.ready.push(ready - begin);
        let begin = clock.elapsed();
        api.delete(&name, &DeleteParams::default()).await?;
        while next(&mut events, &name).await?.is_some() {}
        result.deleted.push(clock.elapsed() - begin);
    }
    Ok(result)
}

/// Pods that were created together.
pub(crate) struct Burst {
    api: Api<Pod>,
    events: Events,
    names: BTreeSet<String>,
    /// Seconds until all were Ready.
    pub(crate) ready: f64,
    /// Seconds until all were Running.
    pub(crate) running: f64,
    /// Private memory of a keeper, and of the whole cluster beyond what it was before, a Pod, in kilobytes.
    pub(crate) keeper_kb: u64,
    pub(crate) private_kb: u64,
}

/// Creates many Pods together and waits for all.
pub(crate) async fn start_at_once(
    cluster: &Cluster,
    client: &kube::Client,
    clock: &Clock,
    count: usize,
) -> anyhow::Result<Burst> {
    let daemon = cluster.pid()?;
    let before = private_kb(daemon);
    let api: Api<Pod> = Api::default_namespaced(client.clone());
    let mut events = watch(&api).await?;
    let names: BTreeSet<String> = (0..count).map(|number| format!("burst-{number}")).collect();
    let begin = clock.elapsed();
    let manifests = names.iter().map(|name| pod(name, true)).collect::<anyhow::Result<Vec<_>>>()?;
    futures::future::try_join_all(
        manifests.iter().map(async |pod| api.create(&PostParams::default(), pod).await),
    )
    .await?;
    let (mut missing, mut not_running) = (names.clone(), names.clone());
    let mut running = begin;
    while !missing.is_empty() {
        match events.next().await.context("the watch ended")?? {
            WatchEvent::Modified(pod) => {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
                if phase == Some("Running") && not_running.remove(name) {
                    running = clock.elapsed();
                }
                if is_ready(&pod) {
                    missing.remove(name);
                }
            }
            WatchEvent::Error(error) => bail!("{error:?}"),
            _ => {}
        }
    }
    let ready = (clock.elapsed() - begin).as_secs_f64();
    // What was needed for the start is not idling.
    clock.sleep(Duration::from_secs(3)).await;
    let keeper_kb = keeper_private_kb(cluster);
    let grown = private_kb(daemon).saturating_sub(before);
    let private_kb = keeper_kb + grown / u64::try_from(count.max(1))?;
    let running = (running - begin).as_secs_f64();
    Ok(Burst { api, events, names, ready, running, keeper_kb, private_kb })
}

impl Burst {
    /// The same Pods, by a connection that lives.
    pub(crate) async fn reconnect(mut self, client: &kube::Client) -> anyhow::Result<Self> {
        self.api = Api::default_namespaced(client.clone());
        self.events = watch(&self.api).await?;
        Ok(self)
    }

    /// Deletes all together and waits until they are gone; in how many seconds.
    pub(crate) async fn delete(mut self, clock: &Clock) -> anyhow::Result<f64> {
        let begin = clock.elapsed();
        let delete = async |name: &String| self.api.delete(name, &DeleteParams::default()).await;
        futures::future::try_join_all(self.names.iter().map(delete)).await?;
        while !self.names.is_empty() {
            match self.events.next().await.context("the watch ended")?? {
                WatchEvent::Deleted(pod) => {
                    self.names.remove(pod.metadata.name.as_deref().unwrap_or_default());
                }
                WatchEvent::Error(error) => bail!("{error:?}"),
                _ => {}
            }
        }
        Ok((clock.elapsed() - begin).as_secs_f64())
    }
}

/// Median private memory of the cluster's keepers.
fn keeper_private_kb(cluster: &Cluster) -> u64 {
    let mut sizes: Vec<u64> = cluster.keepers().into_iter().map(private_kb).collect();
    sizes.sort_unstable();
    sizes.get(sizes.len() / 2).copied().unwrap_or(0)
}

/// Objects created each second by some connections together, each answer waited for.
pub(crate) async fn creates(
    cluster: &Cluster,
    clock: &Clock,
    count: usize,
    connections: usize,
) -> anyhow::Result<f64> {
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(cluster.client().await?);
    }
    let begin = clock.elapsed();
    let work = clients.into_iter().enumerate().map(async |(connection, client)| {
        let api: Api<ConfigMap> = Api::default_namespaced(client);
        for number in 0..count / connections {
            api.create(&PostParams::default(), &object(&format!("c{connection}-{number}"))?).await?;
        }
        anyhow::Ok(())
    });
    futures::future::try_join_all(work).await?;
    Ok(count as f64 / (clock.elapsed() - begin).as_secs_f64())
}

/// Latencies of creates one at a time: each as the client saw it, and their mean by the server's own count.
pub(crate) async fn create_alone(
    client: &kube::Client,
    clock: &Clock,
    count: usize,
) -> anyhow::Result<(Vec<Duration>, Duration)> {
    let (seconds, requests) = created(client).await?;
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let mut samples = Vec::new();
    for number in 0..count {
        let object = object(&format!("alone-{number}"))?;
        let begin = clock.elapsed();
        api.create(&PostParams::default(), &object).await?;
        samples.push(clock.elapsed() - begin);
    }
    let (seconds_after, requests_after) = created(client).await?;
    let mean = (seconds_after - seconds) / (requests_after - requests).max(1.0);
    Ok((samples, Duration::from_secs_f64(mean)))
}

/// Seconds that the server has spent on creates of ConfigMaps, and how many there were, by its metrics.
async fn created(client: &kube::Client) -> anyhow::Result<(f64, f64)> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let metrics = client.request_text(request).await?;
    let number = |name: &str| {
        let is_it = |line: &&str| {
            line.starts_with(name)
                && line.contains("verb=\"POST\"")
                && line.contains("resource=\"configmaps\"")
        };
        let line = metrics.lines().find(is_it);
        line.and_then(|line| line.rsplit(' ').next()).and_then(|number| number.parse::<f64>().ok())
    };
    let name = "apiserver_request_duration_seconds";
    Ok((
        number(&format!("{name}_sum")).unwrap_or_default(),
        number(&format!("{name}_count")).unwrap_or_default(),
    ))
}

pub(crate) async fn watch(api: &Api<Pod>) -> anyhow::Result<Events> {
    let version = api.list(&Default::default()).await?.metadata.resource_version.unwrap_or_default();
    Ok(api.watch(&WatchParams::default().timeout(290), &version).await?.map_err(Into::into).boxed())
}

/// The next state of one Pod; `None` when it is gone.
pub(crate) async fn next(events: &mut Events, name: &str) -> anyhow::Result<Option<Pod>> {
    loop {
        match events.next().await.context("the watch ended")?? {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod)
                if pod.metadata.name.as_deref() == Some(name) =>
            {
                return Ok(Some(pod));
            }
            WatchEvent::Deleted(pod) if pod.metadata.name.as_deref() == Some(name) => return Ok(None),
            WatchEvent::Error(error) => bail!("{error:?}"),
            _ => {}
        }
    }
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

/// A Pod whose process exits on SIGTERM.
pub(crate) fn pod(name: &str, token: bool) -> anyhow::Result<Pod> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"automountServiceAccountToken": token, "containers": [{
            "name": "main", "image": "busybox:1.35",
            "command": ["sh", "-c", "trap 'exit 0' TERM; sleep 3600 & wait $!"],
        }]},
    }))?)
}

fn object(name: &str) -> anyhow::Result<ConfigMap> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"key": "value of some length, as a configuration has"},
    }))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_a_strange_name() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 1 0 100 1 1";
        assert_eq!(ticks(stat), 12);
    }
}
