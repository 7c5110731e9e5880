//! Exponential back-off with jitter.

use std::time::Duration;

use coracle_clock::Rng;

/// Delays that double from `first` to `max`, each stretched by up to its own half so that many waiters spread out.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
    rng: Rng,
}

impl Backoff {
    /// Starts at `first`.
    #[must_use]
    pub fn new(first: Duration, max: Duration, rng: Rng) -> Self {
        Backoff { first, max, next: first, rng }
    }

    /// The delay before the next attempt; never more than `max`.
    pub fn delay(&mut self) -> Duration {
        let base = self.next;
        self.next = (base * 2).min(self.max);
        let spread = u64::try_from(base.as_micros() / 2).unwrap_or(u64::MAX);
        (base + Duration::from_micros(self.rng.below(spread))).min(self.max)
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_with_jitter_up_to_the_cap_and_start_over() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, 5 * second, Rng::seeded(1));
        for (low, high) in [(1, 2), (2, 3), (4, 5), (5, 5)] {
            let delay = backoff.delay();
            assert!(delay >= low * second && delay <= high * second, "{delay:?} not in {low}..={high}");
        }
        backoff.reset();
        assert!(backoff.delay() < 2 * second);
    }
}
