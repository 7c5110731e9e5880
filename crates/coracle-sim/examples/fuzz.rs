//! Runs random clusters, one seed after the other, on all processors, until one breaks a rule.
//!
//! `cargo run --release -p coracle-sim --example fuzz -- --from 0 --seeds 2000 --minutes 10`; one seed alone prints what
//! happened.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use coracle_sim::{Failure, Report, fuzz, fuzz_lives};

// A simulated cluster is made of small objects that come and go, and nobody counts the memory of a run.
#[global_allocator]
static MEMORY: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, usual: u64| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)).and_then(|text| text.parse().ok()).unwrap_or(usual)
    };
    let (from, seeds, minutes) = (number("--from", 0), number("--seeds", 100), number("--minutes", 10));
    // Whether Pods have init containers, probes, hooks and all else that belongs to their lives.
    let lives = arguments.iter().any(|argument| argument == "--lives");
    let play = if lives { fuzz_lives } else { fuzz };
    if let Some(seed) = arguments.iter().position(|a| a == "--seed").map(|_| number("--seed", 0)) {
        return one(play(seed, minutes, !arguments.iter().any(|argument| argument == "--quiet")));
    }
    let more = if lives { " --lives" } else { "" };
    let next = AtomicU64::new(from);
    let (failed, events, hash) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..number("--threads", threads as u64) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + seeds {
                        break;
                    }
                    match play(seed, minutes, false) {
                        Ok(report) => {
                            events.fetch_add(report.events, Ordering::Relaxed);
                            let part = u64::from_str_radix(&report.hash, 16).unwrap_or(0);
                            hash.fetch_add(part.rotate_left((seed % 64) as u32), Ordering::Relaxed);
                        }
                        Err(failure) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                            println!("{failure}");
                            println!("  again: cargo run --release -p coracle-sim --example fuzz -- --seed {seed} --minutes {minutes}{more}");
                        }
                    }
                }
            });
        }
    });
    let (failed, events, hash) = (failed.into_inner(), events.into_inner(), hash.into_inner());
    println!("{seeds} seeds of {minutes} minutes: {failed} failed, {events} events, hash {hash:016x}");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(played: Result<Report, Box<Failure>>) -> ExitCode {
    match played {
        Ok(report) => {
            println!("{report:?}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{}\n{failure}", failure.lines.join("\n"));
            ExitCode::FAILURE
        }
    }
}
