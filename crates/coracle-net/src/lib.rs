//! The network of Pods: a bridge on each node, and between nodes an overlay.

pub mod bridge;
pub mod overlay;
pub mod probe;
#[cfg(test)]
mod testing;
