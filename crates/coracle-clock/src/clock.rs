//! The clock: calendar time for what is written down, elapsed time for what is measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
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
    /// How far the calendar of a virtual clock has jumped, in milliseconds.
    jumped: AtomicI64,
}

impl Source {
    fn new(epoch: Option<Timestamp>) -> Self {
        Source { epoch, origin: instant(), jumped: AtomicI64::new(0) }
    }
}

impl Clock {
    /// The operating system's clock.
    #[must_use]
    pub fn system() -> Self {
        Clock(Arc::new(Source::new(None)))
    }

    /// A clock that shows `epoch` now and advances with Tokio's time: virtual when the runtime is paused.
    #[must_use]
    pub fn starting_at(epoch: Timestamp) -> Self {
        Clock(Arc::new(Source::new(Some(epoch))))
    }

    /// Calendar time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match self.0.epoch {
            Some(epoch) => {
                let elapsed = SignedDuration::try_from(self.elapsed()).unwrap_or(SignedDuration::MAX);
                let jumped = SignedDuration::from_millis(self.0.jumped.load(Ordering::Relaxed));
                later(later(epoch, elapsed), jumped)
            }
            #[allow(clippy::disallowed_methods, reason = "the one place that reads the system clock")]
            None => Timestamp::now(),
        }
    }

    /// Time since this clock was made; monotonic.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        instant().saturating_duration_since(self.0.origin)
    }

    /// Makes the calendar of a virtual clock, and of its clones, jump: what is measured goes on as if nothing had
    /// happened. The operating system's clock does not jump for us.
    pub fn jump(&self, by: SignedDuration) {
        let millis =
            i64::try_from(by.as_millis()).unwrap_or(if by.is_negative() { i64::MIN } else { i64::MAX });
        // Nobody else jumps at the same time; the sum stays within what can be counted.
        let jumped = self.0.jumped.load(Ordering::Relaxed).saturating_add(millis);
        self.0.jumped.store(jumped, Ordering::Relaxed);
    }

    /// Does work that blocks: on Tokio's threads for such work, or at once if this clock is virtual, so that the end of
    /// the work does not depend on a thread.
    pub async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        if self.0.epoch.is_some() {
            return work();
        }
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Only a runtime that is shutting down cancels it, and then nobody waits for us.
                Err(_) => std::future::pending().await,
            },
        }
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

    #[tokio::test(start_paused = true)]
    async fn a_jump_moves_the_calendar_and_not_what_is_measured() {
        let clock = Clock::starting_at("2030-01-01T00:00:00Z".parse().unwrap());
        clock.jump(SignedDuration::from_hours(-2));
        assert_eq!(clock.now(), "2029-12-31T22:00:00Z".parse().unwrap());
        assert_eq!(clock.elapsed(), Duration::ZERO);
        clock.jump(SignedDuration::MAX);
        assert_eq!(clock.now(), Timestamp::MAX, "as far as a calendar goes");
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_blocks_is_done_at_once_on_virtual_time() {
        let here = std::thread::current().id();
        let virtual_clock = Clock::starting_at(Timestamp::UNIX_EPOCH);
        assert_eq!(virtual_clock.blocking(|| std::thread::current().id()).await, here);
        assert_ne!(Clock::system().blocking(|| std::thread::current().id()).await, here);
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
