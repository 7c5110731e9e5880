//! Scenarios: files that say which cluster there is, what happens to it, and what must be seen.

mod describe;
pub mod expect;
mod faults;
mod fields;
mod images;
pub mod model;
pub mod problem;
mod read;
mod report;
mod run;
pub mod seen;
mod steps;
pub mod time;
pub mod yaml;

pub use model::Scenario;
pub use read::{Load, scenario as read};
pub use report::Report;
pub use run::{Play, Stopped, Tell};

#[cfg(test)]
mod tests;
