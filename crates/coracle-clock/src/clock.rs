//! The clock: calendar time for what is written down, elapsed time for what is measured.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// A source of time. Cheap to clone; all clones tell the same time.
///
/// # Guarantees
/// - [`Clock::elapsed`] never goes back.
/// - A virtual clock advances only with Tokio's (paused) time, so one schedule of a runtime gives one sequence
///   of readings.
///
/// # Caveats
/// The calendar time of a system clock may jump in either direction. Compare durations with
/// [`Clock::elapsed`], and use [`Clock::now`] for what is stored or shown.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Source>);

#[derive(Debug)]
struct Source {
    /// Calendar time at `origin`, for a virtual clock; `None` asks the operating system at each reading.
    epoch: Option<Timestamp>,
    origin: tokio::time::Instant,
}

impl Clock {
    /// The operating system's clock.
    #[must_use]
    pub fn system() -> Self {
        Clock(Arc::new(Source { epoch: None, origin: instant() }))
    }

    /// A clock that shows `epoch` now and advances with Tokio's time: virtual when the runtime is paused.
    #[must_use]
    pub fn starting_at(epoch: Timestamp) -> Self {
        Clock(Arc::new(Source { epoch: Some(epoch), origin: instant() }))
    }

    /// Calendar time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match self.0.epoch {
            Some(epoch) => epoch
                .checked_add(SignedDuration::try_from(self.elapsed()).unwrap_or(SignedDuration::MAX))
                .unwrap_or(Timestamp::MAX),
            #[allow(clippy::disallowed_methods, reason = "the one place that reads the system clock")]
            None => Timestamp::now(),
        }
    }

    /// Time since this clock was made; monotonic.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        instant().saturating_duration_since(self.0.origin)
    }

    /// Waits for `duration`.
    pub async fn sleep(&self, duration: Duration) {
        #[allow(clippy::disallowed_methods, reason = "the one place that sleeps")]
        tokio::time::sleep(duration).await;
    }

    /// Waits until calendar time `deadline`; returns at once if it has passed.
    ///
    /// The distance is measured once, at the call: a jump of the calendar while waiting does not move the end.
    pub async fn sleep_until(&self, deadline: Timestamp) {
        self.sleep(Duration::try_from(self.now().duration_until(deadline)).unwrap_or(Duration::ZERO)).await;
    }

    /// Runs `future` for at most `limit`; `None` if it did not finish.
    pub async fn timeout<F: Future>(&self, limit: Duration, future: F) -> Option<F::Output> {
        tokio::time::timeout(limit, future).await.ok()
    }
}

/// `at` plus `by`, at most the last moment that a [`Timestamp`] can be: for durations that a user may have chosen.
#[must_use]
pub fn later(at: Timestamp, by: SignedDuration) -> Timestamp {
    let limit = if by.is_negative() { Timestamp::MIN } else { Timestamp::MAX };
    at.checked_add(by).unwrap_or(limit)
}

fn instant() -> tokio::time::Instant {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
    tokio::time::Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_virtual_clock_advances_only_with_the_runtime() {
        let epoch: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let clock = Clock::starting_at(epoch);
        assert_eq!(clock.now(), epoch);
        clock.sleep(Duration::from_secs(3600)).await;
        assert_eq!(clock.now(), "2030-01-01T01:00:00Z".parse().unwrap());
        clock.sleep_until("2030-01-02T00:00:00Z".parse().unwrap()).await;
        assert_eq!(clock.elapsed(), Duration::from_secs(24 * 3600));
        clock.sleep_until(epoch).await;
        assert_eq!(clock.elapsed(), Duration::from_secs(24 * 3600), "a deadline in the past does not wait");
    }

    #[test]
    fn what_is_added_ends_at_the_last_moment() {
        let second = SignedDuration::from_secs(1);
        assert_eq!(later(Timestamp::UNIX_EPOCH, second).as_second(), 1);
        assert_eq!(later(Timestamp::UNIX_EPOCH, SignedDuration::MAX), Timestamp::MAX);
        assert_eq!(later(Timestamp::UNIX_EPOCH, SignedDuration::MIN), Timestamp::MIN);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_ends_a_future_that_does_not_finish() {
        let clock = Clock::starting_at(Timestamp::UNIX_EPOCH);
        assert_eq!(clock.timeout(Duration::from_secs(5), std::future::pending::<()>()).await, None);
        assert_eq!(clock.elapsed(), Duration::from_secs(5));
        assert_eq!(clock.timeout(Duration::from_secs(5), async { 1 }).await, Some(1));
    }
}
