//! Random runs hold, and repeat. `make fuzz` makes many more of them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::atomic::{AtomicU64, Ordering};

use coracle_sim::fuzz;

/// Small enough for every change; what finds a bug in here is a bug that is easily found.
const SEEDS: u64 = 16;
const MINUTES: u64 = 2;

#[test]
fn random_runs_hold() {
    let next = AtomicU64::new(0);
    let failures = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS {
                        break;
                    }
                    if let Err(failure) = fuzz(seed, MINUTES, false) {
                        failures.lock().unwrap().push(failure.to_string());
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{}\nagain: cargo run --release -p coracle-sim --example fuzz -- --minutes {MINUTES} --seed N",
        failures.join("\n")
    );
}

#[test]
fn a_random_run_repeats() {
    for seed in [1001, 1002] {
        assert_eq!(fuzz(seed, MINUTES, false).unwrap(), fuzz(seed, MINUTES, true).unwrap(), "seed {seed}");
    }
}
