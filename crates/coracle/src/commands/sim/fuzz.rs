//! `coracle sim --fuzz`: random workloads and faults from many seeds, under the invariants.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use coracle_clock::Clock;
use coracle_sim::Failure;
use serde_json::{Value, json};

use super::FAILED;
use crate::cli::{Form, Sim};
use crate::output;

/// How often it is said how far it is.
const EVERY: Duration = Duration::from_secs(5);
/// How much of the trace of a run that failed is shown.
const SHOWN: usize = 20;

/// The sum of all runs.
#[derive(Default)]
struct Sum {
    runs: u64,
    events: u64,
    failures: Vec<Failure>,
}

pub(super) fn run(options: &Sim) -> anyhow::Result<ExitCode> {
    let clock = Clock::system();
    let first = options.seed.unwrap_or(1);
    let (mut sum, mut said) = (Sum::default(), Duration::ZERO);
    for seed in first..first.saturating_add(options.seeds) {
        match coracle_sim::fuzz(seed, options.minutes, false) {
            Ok(report) => sum.events += report.events,
            Err(failure) => {
                output::note(format_args!("{failure}"));
                sum.failures.push(*failure);
            }
        }
        sum.runs += 1;
        if clock.elapsed().saturating_sub(said) >= EVERY {
            said = clock.elapsed();
            let (runs, failed) = (sum.runs, sum.failures.len());
            output::progress(said, format_args!("{runs} of {} seeds, {failed} failed", options.seeds));
        }
    }
    if let Some(failure) = sum.failures.first() {
        show(failure, options)?;
    }
    let took = clock.elapsed();
    match options.output.output {
        Form::Json => output::result(serde_json::to_string_pretty(&to_json(&sum, options, took))?),
        Form::Text => {
            let Sum { runs, events, failures } = &sum;
            let per_second = events.checked_div(took.as_secs().max(1)).unwrap_or(0);
            output::result(format_args!(
                "{} of {runs} seeds held for {} minutes each; {events} events in {:.1}s, {per_second} a second",
                runs - failures.len() as u64,
                options.minutes,
                took.as_secs_f64(),
            ));
            for failure in failures {
                output::result(format_args!("replay with: {}", replay(failure.seed, options)));
            }
        }
    }
    Ok(if sum.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// Runs a seed that failed once more, this time with its trace.
fn show(failure: &Failure, options: &Sim) -> anyhow::Result<()> {
    let Err(again) = coracle_sim::fuzz(failure.seed, options.minutes, true) else {
        output::note(format_args!(
            "seed {} did not fail again: it depends on more than its seed",
            failure.seed
        ));
        return Ok(());
    };
    if let Some(path) = &options.trace {
        let mut file =
            std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        file.write_all(again.lines.join("\n").as_bytes())?;
    }
    if options.output.output == Form::Text && !options.quiet {
        let last = again.lines.len().saturating_sub(SHOWN);
        again.lines[last..].iter().for_each(output::result);
    }
    Ok(())
}

fn replay(seed: u64, options: &Sim) -> String {
    format!("coracle sim --fuzz --seeds 1 --seed {seed} --minutes {} --trace trace.txt", options.minutes)
}

fn to_json(sum: &Sum, options: &Sim, took: Duration) -> Value {
    let failure = |failure: &Failure| json!({"seed": failure.seed, "error": failure.error, "replay": replay(failure.seed, options)});
    json!({
        "held": sum.failures.is_empty(),
        "seeds": sum.runs,
        "minutes": options.minutes,
        "events": sum.events,
        "tookSeconds": took.as_secs_f64(),
        "failures": sum.failures.iter().map(failure).collect::<Vec<_>>(),
    })
}
