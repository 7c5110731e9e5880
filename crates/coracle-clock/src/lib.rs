//! Time, randomness and ids, handed in from outside.
//!
//! No component of Coracle reads a system clock, draws unseeded randomness or invents an id by itself: the
//! wiring (`coracle`, `coracle-sim`) makes one [`Clock`], one [`Rng`] per purpose and one [`Ids`], and hands
//! them down. That is what lets a cluster run on virtual time and a seed replay a run. `clippy.toml` disallows
//! the ways around this crate.
//!
//! Waiting is done on Tokio's timer, so that a paused Tokio runtime is virtual time for everything. [`watch`] replaces
//! Tokio's channel of that name, and [`Clock::blocking`] its pool of threads, because both would make a run unrepeatable.

mod clock;
mod ids;
mod rng;
pub mod watch;

pub use clock::{Clock, later};
pub use ids::{Ids, name_suffix};
pub use rng::Rng;

#[doc(hidden)]
pub use tokio as __tokio;

/// `tokio::select!` with `biased;` always on: branches are polled in the order they are written.
///
/// Unbiased selection draws from a random source that cannot be seeded, and one such draw makes a run
/// unrepeatable. Put shutdown and rare inputs first and busy ones last, so that order starves nobody.
#[macro_export]
macro_rules! select {
    ($($tokens:tt)*) => {
        $crate::__tokio::select! { biased; $($tokens)* }
    };
}
