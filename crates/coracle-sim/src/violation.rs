//! A rule of the cluster that did not hold.

use std::fmt;
use std::time::Duration;

use crate::trace::stamp;

/// An invariant that was broken: the end of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// What the world was made from: the same seed and the same script break it again.
    pub seed: u64,
    /// Virtual time since the start.
    pub at: Duration,
    /// The store's revision.
    pub revision: u64,
    /// Which rule.
    pub rule: &'static str,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { seed, at, revision, rule, what } = self;
        write!(f, "seed {seed}, {} revision {revision}: {rule}: {what}", stamp(*at))
    }
}

impl std::error::Error for Violation {}
