//! What came of a run, as data, for people and for machines.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::expect::{Outcome, Verdict};
use super::time;
use crate::trace::stamp;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the scenario is about.
    pub title: String,
    /// The seed that it was run with.
    pub seed: u64,
    /// How long it lasted, in virtual time.
    pub lasted: Duration,
    /// What became of each expectation, in the order in which that was decided.
    pub verdicts: Vec<Verdict>,
    /// The invariant that was broken, if one was.
    pub violation: Option<String>,
    /// What tells this run from any other.
    pub hash: String,
    /// How much happened.
    pub events: u64,
}

impl Report {
    /// Whether nothing went otherwise than it should.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.violation.is_none() && self.failed().next().is_none()
    }

    /// The expectations that did not hold.
    pub fn failed(&self) -> impl Iterator<Item = &Verdict> {
        self.verdicts.iter().filter(|verdict| matches!(verdict.outcome, Outcome::Failed { .. }))
    }

    fn count(&self, is: impl Fn(&Outcome) -> bool) -> usize {
        self.verdicts.iter().filter(|verdict| is(&verdict.outcome)).count()
    }

    /// For people: what failed and why, and the sum. `replay` is the command that runs it again.
    #[must_use]
    pub fn to_text(&self, replay: &str) -> String {
        let mut text = String::new();
        for verdict in self.failed() {
            text.push_str(if text.is_empty() { "" } else { "\n" });
            text.push_str(&failure(verdict));
        }
        if let Some(violation) = &self.violation {
            text.push_str(if text.is_empty() { "" } else { "\n" });
            let _ = writeln!(text, "an invariant of the cluster was broken: {violation}");
        }
        let mut sum: Vec<String> = Vec::new();
        let all = self.verdicts.len();
        if all > 0 {
            let held = self.count(|outcome| *outcome == Outcome::Held);
            let unreached = match self.count(|outcome| *outcome == Outcome::Unreached) {
                0 => String::new(),
                count => format!(", {count} were not reached"),
            };
            sum.push(format!("{held} of {all} expectations held{unreached}"));
        }
        sum.push(format!("{} of virtual time", time::show(self.lasted)));
        sum.push(format!("{} events, seed {}, trace {}", self.events, self.seed, self.hash));
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&sum.join("; "));
        if !self.holds() {
            let _ = write!(text, "\nreplay with: {replay}");
        }
        text
    }

    /// For machines.
    #[must_use]
    pub fn to_json(&self, replay: &str) -> Value {
        json!({
            "scenario": self.title,
            "held": self.holds(),
            "seed": self.seed,
            "lastedSeconds": self.lasted.as_secs_f64(),
            "events": self.events,
            "traceHash": self.hash,
            "violation": self.violation,
            "replay": replay,
            "expectations": self.verdicts.iter().map(verdict_json).collect::<Vec<_>>(),
        })
    }
}

/// One line about what became of an expectation, as it stands in the trace.
#[must_use]
pub(super) fn verdict_line(verdict: &Verdict) -> String {
    let word = match verdict.outcome {
        Outcome::Held => "held",
        Outcome::Failed { .. } => "FAILED",
        Outcome::Unreached => "not reached",
    };
    format!("{} {word}: {}", stamp(verdict.at), verdict.text)
}

fn failure(verdict: &Verdict) -> String {
    let Outcome::Failed { because, saw, last } = &verdict.outcome else { return String::new() };
    let mut text = format!("line {}: {}\n  {because}\n", verdict.line, verdict.text);
    for line in saw {
        let _ = writeln!(text, "  saw       {line}");
    }
    for (nth, line) in last.iter().enumerate() {
        let label = if nth == 0 { "last      " } else { "          " };
        let _ = writeln!(text, "  {label}{} {}", stamp(line.at), line.text);
    }
    text
}

fn verdict_json(verdict: &Verdict) -> Value {
    let mut object = json!({
        "line": verdict.line,
        "expected": verdict.text,
        "atSeconds": verdict.at.as_secs_f64(),
        "outcome": match verdict.outcome {
            Outcome::Held => "held",
            Outcome::Failed { .. } => "failed",
            Outcome::Unreached => "unreached",
        },
    });
    if let Outcome::Failed { because, saw, last } = &verdict.outcome {
        let last = last.iter().map(|line| format!("{} {}", stamp(line.at), line.text));
        object["because"] = because.clone().into();
        object["saw"] = saw.clone().into();
        object["last"] = last.collect::<Vec<_>>().into();
    }
    object
}
