//! A node's calendar that is set to another time while the node agent runs.
//!
//! What a worker remembers has moments of the calendar in it. Left as they are, a clock that is set back by an hour would
//! delay by an hour what is tried again in a second; one that is set forward would cut every grace period short. So they
//! move along. What others wrote stays as it is: moments in objects, and those at which the runtime saw something end.

use std::time::Duration;

use coracle_clock::later;
use jiff::{SignedDuration, Timestamp};
use tracing::warn;

use super::Worker;

/// Clocks are slewed all the time. That much is no jump, until it adds up.
const SLEW: SignedDuration = SignedDuration::from_secs(1);

/// Tells how far the calendar has been set.
#[derive(Debug)]
pub(super) struct Calendar {
    /// What the calendar said, or would have said, when the clock that measures began.
    zero: Timestamp,
}

impl Calendar {
    pub(super) fn new(now: Timestamp, elapsed: Duration) -> Self {
        Calendar { zero: zero(now, elapsed) }
    }

    /// How far the calendar has jumped since the last call that told of a jump, if it has.
    fn jump(&mut self, now: Timestamp, elapsed: Duration) -> Option<SignedDuration> {
        let zero = zero(now, elapsed);
        let by = zero.duration_since(self.zero);
        (by.abs() > SLEW).then(|| {
            self.zero = zero;
            by
        })
    }
}

fn zero(now: Timestamp, elapsed: Duration) -> Timestamp {
    later(now, -SignedDuration::try_from(elapsed).unwrap_or(SignedDuration::MAX))
}

impl Worker {
    /// Moves what is remembered along with the calendar, before anybody compares it with the calendar.
    pub(super) fn follow_calendar(&mut self) {
        let clock = &self.context.clock;
        let Some(by) = self.calendar.jump(clock.now(), clock.elapsed()) else { return };
        warn!(pod = %self.key, by_seconds = by.as_secs(), "the clock of this machine was set");
        self.lifecycle.shift(by);
        self.history.shift(by);
        self.volumes.shift(by);
        let write = &mut self.write;
        let retry = write.retry.iter_mut().map(|(at, _)| at);
        let operations = self.operations.values_mut().map(|in_flight| &mut in_flight.operation);
        let operations = operations
            .flat_map(|operation| std::iter::once(&mut operation.since).chain(operation.deadline.as_mut()));
        for at in write.held_since.iter_mut().chain(retry).chain(operations) {
            *at = later(*at, by);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_is_told_once_and_slewing_only_when_it_adds_up() {
        let start: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let second = Duration::from_secs(1);
        let mut calendar = Calendar::new(start, 5 * second);
        assert_eq!(calendar.jump(start + 3 * second, 8 * second), None);
        let back = start - 300 * second;
        assert_eq!(calendar.jump(back, 8 * second), Some(SignedDuration::from_secs(-303)));
        assert_eq!(calendar.jump(back + second, 9 * second), None);
        let slewed = |millis| back + second + Duration::from_millis(millis);
        assert_eq!(calendar.jump(slewed(900), 9 * second), None);
        assert_eq!(calendar.jump(slewed(1100), 9 * second), Some(SignedDuration::from_millis(1100)));
        assert_eq!(
            calendar.jump(Timestamp::MIN, Duration::MAX),
            Some(Timestamp::MIN.duration_since(slewed(1100) - 9 * second))
        );
    }
}
