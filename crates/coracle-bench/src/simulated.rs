//! How fast simulated clusters are: scenarios played by `coracle sim`, in real seconds.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use coracle_clock::Clock;
use serde::Deserialize;

use crate::measure::status_kb;
use crate::report::Row;

/// How often the memory of a run is looked at: the kernel remembers the most of it.
const LOOK: Duration = Duration::from_millis(20);
/// A run that takes longer is ended, and said not to be done.
const GIVEN_UP: Duration = Duration::from_secs(180);

/// An hour in which nothing happens but that every node renews its Lease.
const IDLE_HOUR: &str = "scenario: an idle hour of 100 nodes\nuntil: 1h\nnodes: 100\n";

/// A day of one Pod whose program crashes a second after each of its starts.
const CRASHING_DAY: &str = "\
scenario: a day of a Pod that crashes
until: 1d
nodes: 1
images:
  crash:1:
    runs: [{exit: {code: 1, after: 1s}}]
expect:
  - at end: pod crash container app restarts >= 280
---
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec: {containers: [{name: app, image: 'crash:1'}]}
";

/// Many Pods on many nodes, by so many Deployments.
const DEPLOYMENTS: usize = 30;
const REPLICAS: usize = 1000;
const NODES: usize = 1000;

fn many() -> String {
    let mut text = format!("scenario: many Pods on many nodes\nuntil: 90s\nnodes: {NODES}\nexpect:\n");
    for nth in 0..DEPLOYMENTS {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  - within 90s: deployment web-{nth} complete");
    }
    for nth in 0..DEPLOYMENTS {
        let _ = write!(
            text,
            "\
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web-{nth}}}
spec:
  replicas: {REPLICAS}
  selector: {{matchLabels: {{app: web-{nth}}}}}
  template:
    metadata: {{labels: {{app: web-{nth}}}}}
    spec:
      containers:
        - {{name: app, image: 'web:1', resources: {{requests: {{cpu: 100m, memory: 64Mi}}}}}}
"
        );
    }
    text
}

/// What the command says of a run.
#[derive(Deserialize)]
struct Said {
    held: bool,
    events: u64,
}

/// What a run took.
struct Took {
    real: Duration,
    resident_mb: u64,
    events: u64,
}

impl Took {
    fn in_words(&self) -> String {
        let seconds = self.real.as_secs_f64();
        let rate = self.events as f64 / seconds;
        format!("{seconds:.2} s, {} MB, {rate:.0} events/s", self.resident_mb)
    }
}

async fn play(program: &Path, clock: &Clock, scenario: &str) -> anyhow::Result<Option<Took>> {
    let directory = std::env::temp_dir().join(format!("coracle-bench-sim-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let file = directory.join("scenario.yaml");
    std::fs::write(&file, scenario)?;
    let took = run(program, clock, &file).await;
    std::fs::remove_dir_all(&directory)?;
    took
}

async fn run(program: &Path, clock: &Clock, file: &Path) -> anyhow::Result<Option<Took>> {
    let begin = clock.elapsed();
    let mut child = Command::new(program)
        .arg("sim")
        .arg(file)
        .args(["--quiet", "--output", "json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut resident = 0;
    while child.try_wait()?.is_none() {
        if clock.elapsed() - begin > GIVEN_UP {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        resident = status_kb(child.id(), "VmHWM:").max(resident);
        clock.sleep(LOOK).await;
    }
    let real = clock.elapsed() - begin;
    let output = child.wait_with_output()?;
    let said: Said = serde_json::from_slice(&output.stdout).context("what coracle sim says")?;
    if !said.held {
        bail!("a scenario does not hold:\n{}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(Some(Took { real, resident_mb: resident / 1024, events: said.events }))
}

/// One row for each scenario.
pub(crate) async fn rows(program: &Path, clock: &Clock) -> anyhow::Result<Vec<Row>> {
    let many_pods = format!("simulated: {} Pods on {NODES} nodes, until all run", DEPLOYMENTS * REPLICAS);
    let scenarios = [
        ("simulated: an idle hour of 100 nodes", IDLE_HOUR.to_owned(), "5 s"),
        ("simulated: a day of a crashing Pod", CRASHING_DAY.to_owned(), "1 s"),
        (many_pods.as_str(), many(), "60 s, 4096 MB"),
    ];
    let mut rows = Vec::new();
    for (name, scenario, budget) in &scenarios {
        let took = play(program, clock, scenario).await?;
        let said = took.map_or_else(|| format!("not done in {GIVEN_UP:?}"), |took| took.in_words());
        rows.push(Row::text(name, said, budget, ""));
    }
    Ok(rows)
}
