//! The scenarios in `examples/sim` hold, twice alike, and each fails when one number in it is made wrong.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::PathBuf;

use coracle_sim::scenario::{self, Play, Report};

fn example(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/sim").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn play(text: &str) -> Report {
    let nothing = |name: &str| Err(std::io::Error::other(format!("no example reads {name}")));
    let scenario = scenario::read(text, &nothing).unwrap_or_else(|problems| panic!("{problems}"));
    let seed = scenario.seed;
    let show = std::env::var_os("SHOW_TRACE").is_some();
    let tell = Box::new(move |line: &str| {
        if show {
            println!("{line}");
        }
    });
    let mut play = Play::new(scenario, seed, None, tell).unwrap();
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

#[test]
fn a_crash_loop_waits_as_it_should() {
    holds("crash-loop.yaml");
}

#[test]
fn an_image_that_comes_late_is_pulled() {
    holds("image-pull.yaml");
}
