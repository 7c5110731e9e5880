//! How long the engine takes for each operation on this machine, and what a keeper keeps in memory.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on panics")]

#[allow(dead_code, reason = "shared with the tests, which use more of it")]
#[path = "../tests/engine/host.rs"]
mod host;

use std::time::Duration;

use coracle_cri::RuntimeService;
use host::{Host, shell};

const ROUNDS: usize = 50;
const STEPS: [&str; 6] =
    ["run sandbox", "create container", "start container", "exec", "stop container", "remove"];

fn main() {
    // `cargo test --benches` only wants to know that it builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(measure());
}

async fn measure() {
    let host = Host::new();
    let runtime = host.open().await;
    let mut times: [Vec<Duration>; STEPS.len()] = Default::default();
    let mut private_kib = String::new();
    for round in 0..ROUNDS {
        let pod = host.pod(&format!("bench-{round}"));
        let mut marks = vec![host.clock.elapsed()];
        let sandbox = runtime.run_pod_sandbox(&pod).await.unwrap();
        marks.push(host.clock.elapsed());
        let id = runtime.create_container(&sandbox, &shell("exec sleep 1000"), &pod).await.unwrap();
        marks.push(host.clock.elapsed());
        runtime.start_container(&id).await.unwrap();
        marks.push(host.clock.elapsed());
        runtime.exec_sync(&id, &["true".to_owned()], None).await.unwrap();
        marks.push(host.clock.elapsed());
        private_kib = keeper_anonymous_kib(runtime.container_status(&id).await.unwrap().pid.unwrap());
        let pause = host.clock.elapsed() - marks[4];
        runtime.stop_container(&id, Duration::ZERO).await.unwrap();
        marks.push(host.clock.elapsed() - pause);
        runtime.remove_pod_sandbox(&sandbox).await.unwrap();
        marks.push(host.clock.elapsed() - pause);
        for (step, pair) in marks.windows(2).enumerate() {
            times[step].push(pair[1] - pair[0]);
        }
    }
    println!("{:<18}{:>10}{:>10}{:>10}", "", "min", "median", "p90");
    for (name, mut values) in STEPS.iter().zip(times) {
        values.sort();
        let ms = |value: Duration| format!("{:.2} ms", value.as_secs_f64() * 1000.0);
        let (min, median, p90) = (values[0], values[ROUNDS / 2], values[ROUNDS * 9 / 10]);
        println!("{name:<18}{:>10}{:>10}{:>10}", ms(min), ms(median), ms(p90));
    }
    println!("anonymous memory of a keeper: {private_kib} kB");
}

/// The keeper's memory that is not its sealed program, which all keepers share.
fn keeper_anonymous_kib(container: u32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{container}/stat")).unwrap();
    let keeper = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap();
    let rollup = std::fs::read_to_string(format!("/proc/{keeper}/smaps_rollup")).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Pss_Anon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().to_owned()
}
