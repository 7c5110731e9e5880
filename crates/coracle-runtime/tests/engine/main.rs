//! The engine on the real kernel, with busybox as its image. Needs root and `/bin/busybox`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod attach;
mod attacks;
mod exec;
mod exploits;
mod faults;
mod host;
mod lifecycle;
mod limits;
mod restart;
mod stubborn;
mod suite;
mod terminal;
