//! A loop that survives its own panics.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use coracle_clock::{Clock, Rng};
use futures::FutureExt as _;

use crate::Backoff;

/// A loop that ran so long before it panicked starts again without the earlier delays.
const HEALTHY: Duration = Duration::from_secs(300);

/// Runs the future that `start` makes, and after a panic another one, with back-off from one second to a minute.
/// Returns when one of them ends by itself.
///
/// The loop must take its state from elsewhere when it starts: nothing of the one that panicked is left.
pub async fn supervise<F, W>(name: &str, clock: &Clock, rng: Rng, mut start: F)
where
    F: FnMut() -> W,
    W: Future<Output = ()>,
{
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60), rng);
    loop {
        let started = clock.elapsed();
        let Err(panic) = AssertUnwindSafe(start()).catch_unwind().await else { return };
        if clock.elapsed() - started >= HEALTHY {
            backoff.reset();
        }
        let delay = backoff.delay();
        tracing::error!(
            name,
            panic = describe(panic.as_ref()),
            ?delay,
            "a loop panicked and will start again"
        );
        clock.sleep(delay).await;
    }
}

fn describe(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("of an unknown kind")
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_panicking_loop_starts_again_later() {
        let clock = Clock::starting_at(Timestamp::UNIX_EPOCH);
        let mut runs = 0;
        supervise("test", &clock, Rng::seeded(1), || {
            runs += 1;
            let fails = runs < 3;
            async move { assert!(!fails, "boom") }
        })
        .await;
        assert_eq!(runs, 3);
        let elapsed = clock.elapsed().as_millis();
        assert!((3000..=4500).contains(&elapsed), "one and two seconds with jitter, not {elapsed} ms");
    }
}
