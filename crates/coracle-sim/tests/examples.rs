//! The scenarios in `examples/sim` hold, twice alike, and each fails when one number in it is made wrong.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod lives;

use std::path::PathBuf;
use std::time::Duration;

use coracle_sim::scenario::{self, Play, Report};

fn example(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/sim").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn play(text: &str) -> Report {
    play_until(text, None)
}

fn play_until(text: &str, until: Option<Duration>) -> Report {
    let nothing = |name: &str| Err(std::io::Error::other(format!("no example reads {name}")));
    let scenario = scenario::read(text, &nothing).unwrap_or_else(|problems| panic!("{problems}\n{text}"));
    let seed = scenario.seed;
    let show = std::env::var_os("SHOW_TRACE").is_some();
    let tell = Box::new(move |line: &str| {
        if show {
            println!("{line}");
        }
    });
    let mut play = Play::new(scenario, seed, until, tell).unwrap();
    let end = play.end();
    play.advance(end).unwrap_or_else(|stopped| panic!("{stopped}"));
    play.finish()
}

/// It holds, and a second run is the same to the byte.
fn holds(name: &str) {
    let text = example(name);
    let report = play(&text);
    assert!(report.holds(), "{name}\n{}", report.to_text("-"));
    assert_eq!(play(&text).hash, report.hash, "{name}: two runs differ");
}

/// With one number made wrong, the expectation that says so fails.
fn fails(name: &str, right: &str, wrong: &str, complaint: &str) {
    let text = example(name);
    assert!(text.contains(right), "{name} does not say {right:?}");
    let report = play(&text.replacen(right, wrong, 1)).to_text("-");
    assert!(report.contains(complaint), "{name} with {wrong:?}: {complaint:?} is not in\n{report}");
}

#[test]
fn a_crash_loop_waits_as_it_should() {
    holds("crash-loop.yaml");
    let delays = "container app restart delays 0s 10s 20s 40s 1m20s 2m40s 5m 5m 0s 10s 20s\n";
    fails("crash-loop.yaml", "80s 160s 300s 300s 0s", "80s 150s 300s 300s 0s", delays);
}

#[test]
fn an_image_that_comes_late_is_pulled() {
    holds("image-pull.yaml");
    fails("image-pull.yaml", "pullFailures: 4", "pullFailures: 3", "it was so at 1m30s, after 1m30s already");
}

#[test]
fn pods_of_a_lost_node_are_replaced() {
    holds("node-loss.yaml");
    fails("node-loss.yaml", "between 5m and 5m20s", "between 4m and 4m50s", "it was not so until 7m");
}

#[test]
fn a_rolling_restart_leaves_enough_of_them() {
    holds("rolling-restart.yaml");
    fails("rolling-restart.yaml", "after: 20s", "after: 40s", "terminated exit 137\n  it was so at ");
}

#[test]
fn a_day_of_cron_jobs_is_as_scheduled() {
    // A day takes its time in a debug build: that it repeats is seen in its first hours, and by `make sim-hashes`.
    const MORNING: Option<Duration> = Some(Duration::from_secs(2 * 3600));
    let text = example("cron-day.yaml");
    let report = play(&text);
    assert!(report.holds(), "{}", report.to_text("-"));
    let morning = play_until(&text, MORNING);
    assert_eq!(play_until(&text, MORNING).hash, morning.hash, "two runs differ");
    let wrong = text.replacen("\"0 * * * *\"", "\"5 * * * *\"", 1);
    let report = play_until(&wrong, MORNING).to_text("-");
    let complaint = "at 1h1m: exactly 1 pods job-of=report phase Running\n  it was not so at 1h1m";
    assert!(report.contains(complaint), "{report}");
}

/// For `make sim-hashes`, which holds what a debug build prints against what a release build prints.
#[test]
#[ignore = "it says something only in two kinds of builds"]
fn hashes_of_all_examples() {
    for name in ["crash-loop", "image-pull", "node-loss", "rolling-restart", "cron-day"] {
        println!("{name} {}", play(&example(&format!("{name}.yaml"))).hash);
    }
}
