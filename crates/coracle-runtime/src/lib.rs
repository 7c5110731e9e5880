//! The embedded engine behind the CRI traits: images, snapshots, sandboxes, containers, logs, exec.

mod engine;
pub mod image;

pub use engine::{
    CgroupVersion, EmbeddedRuntime, LogLimit, MachineCgroups, Patience, RootfsSource, RuntimeConfig, purge,
};
