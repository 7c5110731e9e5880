//! The whole cluster in one process, on one thread, on virtual time, replayable from a seed.
//!
//! Everything above the runtime contract is the real thing: the store's engine (on a simulated disk), the API server,
//! the scheduler, the controllers, a node agent for each node. Runtimes are scripted, the ways between nodes and API
//! server can be cut, and time passes only when somebody lets it.
//!
//! ```
//! use std::time::Duration;
//! use coracle_sim::{Fault, NodeSettings, Settings, World};
//! use serde_json::json;
//!
//! # fn main() -> Result<(), coracle_sim::SimError> {
//! let nodes = ["a", "b"].map(NodeSettings::named).to_vec();
//! let mut world = World::new(Settings { seed: 7, nodes, ..Settings::default() })?;
//!
//! // Something to happen at a time: a manifest, and a fault that ends by itself.
//! world.at(Duration::from_secs(5), |world| {
//!     let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
//!                      "spec": {"containers": [{"name": "app", "image": "web:1"}]}});
//!     world.apply(&pod).map(drop)
//! });
//! world.at(Duration::from_secs(60), |world| {
//!     let lasts = Some(jiff::SignedDuration::from_secs(20));
//!     world.inject(&Fault::Partition { node: "a".to_owned(), lasts })
//! });
//!
//! // Let time pass: to a moment, or until something holds.
//! world.run_until(Duration::from_secs(30))?;
//! assert_eq!(world.get("Pod", "default", "web").unwrap()["status"]["phase"], "Running");
//! world.run_while_not(Duration::from_secs(600), |world| world.elapsed() > Duration::from_secs(100))?;
//!
//! // What happened, and whether two runs were the same.
//! let lines = world.trace(|trace| trace.about("pod default/web").len());
//! assert!(lines > 3);
//! println!("{} {}", world.hash(), world.trace(|trace| trace.lines().join("\n")));
//! # Ok(())
//! # }
//! ```
//!
//! - [`World`] is the cluster and its time; [`Settings`] is what it is made from. [`World::settle`] lets happen what can
//!   happen now, [`World::run_until`], [`World::run_for`] and [`World::run_while_not`] let time pass.
//! - [`Fault`] is what can go wrong; it can be read from YAML or JSON.
//! - The observer (private) follows the store by itself and looks at every quiet point: a moment at which nothing can
//!   go on before time does. It keeps the [`Trace`] and checks the invariants; a [`Violation`] ends the run.
//! - [`fuzz`] makes random runs; `examples/fuzz.rs` makes many.
//! - How containers behave is a matter of [`coracle_cri::scripted`]: by image ([`World::script_image`]) or for one node
//!   ([`World::runtime_of`]). Without a script every image exists, see [`usual_image`].
//!
//! - [`scenario`] reads and plays files that say which cluster there is, what happens to it, and what must be seen.
//!
//! # What makes a run repeatable
//! One thread, paused time, one seed split into a stream for each purpose; no sockets, no threads, no system clock.
//! Nothing may depend on the order of a `HashMap`, on addresses in memory, or on `tokio::sync::watch`, which wakes its
//! receivers in a random order (`coracle_clock::watch` does not).

mod acknowledged;
mod control;
mod describe;
mod fault;
mod fuzz;
mod hook;
mod invariants;
mod meddler;
mod node;
mod observer;
mod rush;
pub mod scenario;
mod scratch;
mod trace;
mod view;
mod violation;
mod wire;
mod witness;
mod world;

pub use fault::{Fault, Leftover};
pub use fuzz::{Failure, Report, fuzz, fuzz_lives};
pub use node::{NodeSettings, usual_image};
pub use trace::{Listen, Told, Trace, stamp};
pub use violation::Violation;
pub use wire::Unreachable;
pub use world::{Door, Settings, SimError, World, refusal};
