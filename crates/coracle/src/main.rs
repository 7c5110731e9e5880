//! Kubernetes in one small binary.

fn main() {}
