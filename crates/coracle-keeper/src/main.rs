//! Parents containers, waits, logs, records exits; the container's init helper.

fn main() {}
