//! How a cluster comes back from a crash.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use coracle_clock::Clock;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};

use crate::cluster::Cluster;
use crate::measure::is_ready;

/// How many containers end while nobody looks, so that statuses have something to catch up with.
const ENDED: usize = 10;
const POLL: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(60);

/// Times from the start of the new process, in seconds.
pub(crate) struct Recovery {
    /// A request was answered.
    pub(crate) answered: f64,
    /// Every status says what is: the containers that ended meanwhile run again and are counted, all others are
    /// those from before.
    pub(crate) statuses: f64,
}

/// Kills the cluster's process, ends some containers, starts it again.
pub(crate) async fn after_kill(
    cluster: &Cluster,
    client: &kube::Client,
    clock: &Clock,
) -> anyhow::Result<Recovery> {
    let api: Api<Pod> = Api::default_namespaced(client.clone());
    let before = containers(&api).await?;
    cluster.kill(clock).await?;
    let ended = end_containers(cluster)?;
    let begin = clock.elapsed();
    let mut starting = cluster.launch()?;
    let within = |what: &str| {
        if clock.elapsed() - begin > PATIENCE {
            bail!("{what} within {PATIENCE:?} of a crash");
        }
        Ok(())
    };
    // The old connection is gone with the process.
    let api: Api<Pod> = Api::default_namespaced(cluster.client().await?);
    while api.list(&ListParams::default().limit(1)).await.is_err() {
        within("the API server did not answer")?;
        clock.sleep(POLL).await;
    }
    let answered = (clock.elapsed() - begin).as_secs_f64();
    loop {
        let now = containers(&api).await?;
        let same = now.iter().filter(|(name, state)| before.get(*name) == Some(*state)).count();
        let restarted = now.values().filter(|(restarts, _, ready)| *restarts == 1 && *ready).count();
        if same == before.len() - ended && restarted == ended {
            break;
        }
        within("not all statuses were true")?;
        clock.sleep(POLL).await;
    }
    let statuses = (clock.elapsed() - begin).as_secs_f64();
    if !starting.wait()?.success() {
        bail!("the cluster did not start again");
    }
    Ok(Recovery { answered, statuses })
}

/// Restarts, identity and readiness of each Pod's container.
async fn containers(api: &Api<Pod>) -> anyhow::Result<BTreeMap<String, (i32, String, bool)>> {
    let pods = api.list(&ListParams::default()).await?;
    pods.items
        .into_iter()
        .map(|pod| {
            let ready = is_ready(&pod);
            let name = pod.metadata.name.context("a Pod without a name")?;
            let status = pod.status.and_then(|status| status.container_statuses?.into_iter().next());
            let (restarts, id) =
                status.map_or((0, None), |status| (status.restart_count, status.container_id));
            Ok((name, (restarts, id.unwrap_or_default(), ready)))
        })
        .collect()
}

/// Ends the containers of some Pods; how many.
fn end_containers(cluster: &Cluster) -> anyhow::Result<usize> {
    let keepers: Vec<u32> = cluster.keepers().into_iter().take(ENDED).collect();
    for keeper in &keepers {
        let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"))?;
        let status =
            std::process::Command::new("kill").arg("-9").args(children.split_whitespace()).status()?;
        if !status.success() {
            bail!("cannot end the containers of keeper {keeper}");
        }
    }
    Ok(keepers.len())
}
