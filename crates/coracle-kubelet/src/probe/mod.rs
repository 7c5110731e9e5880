//! Probes: whether a container has started, is alive and is ready, asked again and again.

mod results;

pub use results::{ProbeKind, ProbeResults, Verdict};
