//! Probes: whether a container has started, is alive and is ready, asked again and again.
//!
//! [`prober`] decides when to ask and what follows from the answers; [`probers`] asks. What is asked, and of whom, is
//! in [`crate::handler`]; what is done about it is decided with everything else about the Pod, from [`ProbeResults`].

mod prober;
mod probers;
mod results;

pub(crate) use probers::{Probers, Probing};
pub use results::{ProbeKind, ProbeResults, Verdict};
