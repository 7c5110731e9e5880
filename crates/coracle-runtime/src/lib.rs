//! The embedded engine behind the CRI traits: images, snapshots, sandboxes, containers, logs, exec.

pub mod image;
