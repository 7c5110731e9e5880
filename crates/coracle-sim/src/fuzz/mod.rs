//! Random workloads and random faults under the invariants, all from one seed.
//!
//! A run has two parts: a stretch in which anything may happen, and a quiet one in which everything has to come to what
//! was asked for. What fails is repeated by the same seed.

mod plan;
mod pods;
mod settled;

use std::time::Duration;

use coracle_clock::Rng;
use jiff::SignedDuration;

use crate::fault::Fault;
use crate::node::NodeSettings;
use crate::world::{Settings, SimError, World};
use plan::Plan;

/// How long things may take to come to rest when nothing goes wrong any more: the longest of all back-offs, after which
/// a Pod that fits nowhere is looked at again, and what follows from it.
const REST: Duration = Duration::from_secs(720);

/// How often it is looked whether everything is at rest.
const LOOK: Duration = Duration::from_secs(5);

/// A run that went well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The hash of its trace.
    pub hash: String,
    /// How much happened.
    pub events: u64,
    /// The store's last revision.
    pub revision: u64,
    /// Virtual time, until everything had come to rest.
    pub took: Duration,
}

/// A run that did not.
#[derive(Debug)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// What broke.
    pub error: String,
    /// What happened, if lines were kept.
    pub lines: Vec<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "seed {}: {}", self.seed, self.error)
    }
}

impl std::error::Error for Failure {}

/// One run from `seed`: `minutes` of virtual time with anything in them, then rest. Every second seed has Pods with lives
/// of their own, as [`fuzz_lives`] has them always.
///
/// # Errors
/// If an invariant breaks, or something does not come to rest.
pub fn fuzz(seed: u64, minutes: u64, keep_lines: bool) -> Result<Report, Box<Failure>> {
    play(seed, minutes, keep_lines, seed % 2 == 1)
}

/// The same with everything in Pods that has to do with their lives: init containers, sidecars, probes, hooks, rules of
/// restarts, gates, deadlines.
///
/// # Errors
/// As [`fuzz`].
pub fn fuzz_lives(seed: u64, minutes: u64, keep_lines: bool) -> Result<Report, Box<Failure>> {
    play(seed, minutes, keep_lines, true)
}

fn play(seed: u64, minutes: u64, keep_lines: bool, lives: bool) -> Result<Report, Box<Failure>> {
    let mut rng = Rng::seeded(seed).fork("fuzz");
    let count = 1 + rng.below(4);
    let nodes = (0..count).map(|n| {
        let cpus = [2, 4, 8][usize::try_from(rng.below(3)).unwrap_or(0)];
        NodeSettings { cpus, memory_bytes: u64::from(cpus) << 30, ..NodeSettings::named(format!("node-{n}")) }
    });
    let settings = Settings {
        seed,
        nodes: nodes.collect(),
        keep_lines,
        witnesses: true,
        most_at_once: 1000,
        ..Settings::default()
    };
    let failed = |error: String, lines: Vec<String>| Box::new(Failure { seed, error, lines });
    let mut world = World::new(settings).map_err(|error| failed(error.to_string(), Vec::new()))?;
    match run(&mut world, rng, Duration::from_secs(60 * minutes), lives) {
        Ok(()) => Ok(Report {
            hash: world.hash(),
            events: world.trace(crate::Trace::events),
            revision: world.revision(),
            took: world.elapsed(),
        }),
        Err(error) => {
            let mut text = error.to_string();
            if matches!(error, SimError::InVain(_)) {
                text = format!("does not come to rest: {}", settled::unsettled(&world).join("; "));
            }
            Err(failed(text, world.trace(|trace| trace.lines().to_vec())))
        }
    }
}

fn run(world: &mut World, rng: Rng, time: Duration, lives: bool) -> Result<(), SimError> {
    Plan::new(rng, world, lives).carry_out(world, time)?;
    let nodes: Vec<String> = world.node_names().map(str::to_owned).collect();
    world.say("rest: nothing goes wrong from here on");
    world.make_good()?;
    for node in nodes {
        world.inject(&Fault::Heal { node: node.clone() })?;
        // What was not heard of is looked for anew.
        world.inject(&Fault::AgentCrash { node, lasts: Some(SignedDuration::ZERO) })?;
    }
    let end = world.elapsed() + REST;
    while !settled::unsettled(world).is_empty() {
        if world.elapsed() >= end {
            return Err(SimError::InVain(REST));
        }
        world.run_for(LOOK)?;
    }
    Ok(())
}
