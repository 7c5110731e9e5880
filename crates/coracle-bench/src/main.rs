//! The load generator behind `make bench`: starts a cluster of its own with the given binary, measures it from
//! outside as a user would, prints a table beside upstream's figures, and removes the cluster.
//!
//! It asserts nothing: numbers are for people to read. Every figure comes from real clients over TLS.

mod cluster;
mod lifecycle;
mod measure;
mod recover;
mod report;
mod simulated;

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use coracle_clock::Clock;

use crate::cluster::Cluster;
use crate::report::{Row, table};

/// Measures a coracle binary.
#[derive(Debug, Parser)]
struct Options {
    /// The binary to measure.
    #[arg(long)]
    coracle: PathBuf,
    /// A `docker save` archive with `busybox:1.35`.
    #[arg(long)]
    image_archive: PathBuf,
    /// Pods started and deleted one after another.
    #[arg(long, default_value_t = 60)]
    pods: usize,
    /// Pods created at once.
    #[arg(long, default_value_t = 100)]
    burst: usize,
    /// Containers with a probe that idle together.
    #[arg(long, default_value_t = 500)]
    probes: usize,
    /// Objects created by 64 connections together.
    #[arg(long, default_value_t = 100_000)]
    objects: usize,
    /// Starts of a new cluster.
    #[arg(long, default_value_t = 5)]
    starts: usize,
    /// Seconds of idling.
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// Leave out one half of the measurements.
    #[arg(long, value_enum)]
    only: Option<Half>,
}

/// A half of the measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Half {
    /// Real clusters.
    Cluster,
    /// Scenarios on virtual time.
    Simulated,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is installed already"))?;
    let clock_runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rows = clock_runtime.block_on(run(&options))?;
    println!("{}", table(&rows));
    Ok(())
}

async fn run(options: &Options) -> anyhow::Result<Vec<Row>> {
    let clock = Clock::system();
    let mut rows = Vec::new();
    if options.only != Some(Half::Simulated) {
        cluster_rows(options, &clock, &mut rows).await?;
    }
    if options.only != Some(Half::Cluster) {
        eprintln!("playing scenarios on virtual time");
        rows.extend(simulated::rows(&options.coracle, &clock).await?);
    }
    Ok(rows)
}

async fn cluster_rows(options: &Options, clock: &Clock, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    eprintln!("starting a cluster {} times", options.starts);
    let mut starts = Vec::new();
    for _ in 0..options.starts {
        let cluster = Cluster::new(&options.coracle)?;
        starts.push(cluster.start(clock)?);
    }
    rows.push(Row::millis("built binary to node Ready", &starts, "1000 ms", "16 s"));

    let cluster = Cluster::new(&options.coracle)?;
    cluster.start(clock)?;
    cluster.import(&options.image_archive)?;
    let client = cluster.client().await.context("cannot connect to the cluster")?;

    eprintln!("idling for {} s", options.idle);
    let idle = measure::idle(&cluster, &client, clock, options.idle).await?;
    rows.push(Row::text(
        "whole cluster idle, resident",
        format!("{} MB", idle.resident_mb),
        "60 MB",
        "680 MB",
    ));
    rows.push(Row::text(
        "whole cluster idle, CPU",
        format!("{:.2} % of a core", idle.cpu_percent),
        "0.5 %",
        "4.8 %",
    ));

    rows.push(Row::text(
        &format!("written to disk in {} s of idling", options.idle),
        format!("{} KB, {} writes, {} of them Leases", idle.written / 1024, idle.revisions, idle.leases),
        "Leases only",
        "",
    ));

    eprintln!("starting and deleting {} Pods one at a time", options.pods);
    let plain = measure::pods_in_turn(&client, clock, options.pods, false).await?;
    let pods = measure::pods_in_turn(&client, clock, options.pods, true).await?;
    let goal = "40 ms p50, 120 ms p99";
    rows.push(Row::millis("Pod POST to Ready on a watch", &pods.ready, goal, "1003 ms p50"));
    rows.push(Row::millis("  the same without a token", &plain.ready, "", ""));
    rows.push(Row::ratio("  with a token to without", &pods.ready, &plain.ready));
    rows.push(Row::millis("  of it: POST answered", &pods.answered, "", ""));
    rows.push(Row::millis("  of it: then bound", &pods.bound, "", ""));
    rows.push(Row::millis("  of it: then ContainerCreating written", &pods.creating, "", ""));
    rows.push(Row::millis("  of it: then Running and Ready", &pods.running, "", ""));
    rows.push(Row::millis("Pod delete to gone (exits on SIGTERM)", &pods.deleted, "100 ms", "10 s"));

    eprintln!("ending the programs of {} Pods", options.pods);
    let restarts = lifecycle::restarts(&cluster, &client, clock, options.pods).await?;
    rows.push(Row::millis("container's end to the next one on a watch", &restarts, "50 ms", ""));
    rows.push(Row::ratio("  to POST to Ready without a token", &restarts, &plain.ready));

    eprintln!("starting {} Pods at once", options.burst);
    let burst = measure::start_at_once(&cluster, &client, clock, options.burst).await?;
    let pods = options.burst;
    let scaled = |seconds: f64| format!("{seconds:.2} s");
    rows.push(Row::text(
        &format!("{pods} Pods at once, all Running"),
        scaled(burst.running),
        "2.5 s",
        "78 s",
    ));
    rows.push(Row::text(&format!("{pods} Pods at once, all Ready"), scaled(burst.ready), "2.5 s", "78 s"));
    rows.push(Row::text("private memory of a Pod's keeper", format!("{} KB", burst.keeper_kb), "300 KB", ""));
    rows.push(Row::text(
        "private memory of an idle Pod beyond its own processes",
        format!("{} KB", burst.private_kb),
        "1024 KB",
        "",
    ));
    eprintln!("killing the cluster's process with {pods} Pods");
    let recovery = recover::after_kill(&cluster, &client, clock).await?;
    rows.push(Row::text("after kill -9: the API answers", scaled(recovery.answered), "0.3 s", ""));
    rows.push(Row::text("after kill -9: all statuses true", scaled(recovery.statuses), "1 s", ""));
    let client = cluster.client().await?;
    let burst = burst.reconnect(&client).await?;
    rows.push(Row::text(
        &format!("{pods} Pods at once, all gone"),
        scaled(burst.delete(clock).await?),
        "2.5 s",
        "91 s",
    ));

    eprintln!("probing {} containers for {} s", options.probes, options.idle);
    let percent = lifecycle::probes(&cluster, &client, clock, options.probes, options.idle).await?;
    rows.push(Row::text(
        &format!("{} containers with an HTTP probe every 10 s, CPU", options.probes),
        format!("{percent:.2} % of a core"),
        "5 %",
        "",
    ));

    let (alone, server_side) = measure::create_alone(&client, clock, 500).await?;
    rows.push(Row::millis("durable create, alone, seen by the client", &alone, "", ""));
    let server_side = format!("{:.2} ms mean", server_side.as_secs_f64() * 1000.0);
    rows.push(Row::text("durable create, alone, server side", server_side, "0.5 ms", ""));
    eprintln!("creating {} objects from 64 connections", options.objects);
    let rate = measure::creates(&cluster, clock, options.objects, 64).await?;
    rows.push(Row::text("durable creates, 64 connections", format!("{rate:.0} /s"), "5000 /s", "800 /s"));
    cluster.kill(clock).await?;
    cluster.start(clock)?;
    let opened = scaled(cluster.store_opened_in()?.as_secs_f64());
    rows.push(Row::text(&format!("recovery of {} objects", options.objects), opened, "1 s", ""));
    let resident = measure::status_kb(cluster.pid()?, "VmRSS:") / 1024;
    rows.push(Row::text("  resident memory with them", format!("{resident} MB"), "", ""));
    Ok(())
}
