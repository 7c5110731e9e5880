//! Speed of the embedded engine.
fn main() {}
