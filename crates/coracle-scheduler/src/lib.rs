//! Filter, score, bind.
//!
//! Reading order: [`info`] (what the scheduler knows of Pods and nodes), [`filter`] and [`schedule()`] (the decision),
//! [`Cluster`] (who is where, with Pods whose binding is under way), [`Queue`] (who is to be looked at when), and
//! [`Scheduler`], the shell that carries it out. All but the last are pure: values in, values out.
//!
//! Nothing here knows the store, and nothing waits while it decides: bindings are in flight while the next Pod is
//! scheduled, and count as used meanwhile.

mod amounts;
mod cluster;
pub mod filter;
pub mod info;
mod queue;
mod schedule;
mod shell;
#[cfg(test)]
mod tests;

pub use amounts::{Amounts, NonZero};
pub use cluster::{Cluster, NodeState};
pub use queue::{Help, Queue, Waiting};
pub use schedule::{Decision, Profile, Ranking, Unschedulable, schedule};
pub use shell::{Scheduler, SchedulerInputs};
