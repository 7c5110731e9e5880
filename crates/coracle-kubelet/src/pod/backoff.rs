//! Back-off of restarts and pulls: 10 s, doubling, at most 300 s, forgotten after 600 s of quiet.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// The first delay.
pub const INITIAL: SignedDuration = SignedDuration::from_secs(10);
/// The longest delay, unless the node is configured for less.
pub const MAX: SignedDuration = SignedDuration::from_secs(300);
/// How long after the last change of a delay it starts from [`INITIAL`] again.
pub const RESET: SignedDuration = SignedDuration::from_secs(600);

/// A delay, and when it was last changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// The delay that holds.
    pub delay: SignedDuration,
    /// When it was set.
    pub updated: Timestamp,
}

impl Backoff {
    /// The entry after one more attempt, made at `now` because of something that happened at `event`.
    #[must_use]
    pub fn next(previous: Option<Backoff>, event: Timestamp, now: Timestamp, max: SignedDuration) -> Backoff {
        let delay = match previous {
            Some(entry) if !entry.has_expired(event) => (entry.delay * 2).min(max),
            _ => INITIAL.min(max),
        };
        Backoff { delay, updated: now }
    }

    /// Whether `event` came so long after the last change that the past no longer counts.
    #[must_use]
    pub fn has_expired(&self, event: Timestamp) -> bool {
        event.duration_since(self.updated) > RESET
    }

    /// When the delay that began with `event` is over; `None` if the past no longer counts.
    #[must_use]
    pub fn until(&self, event: Timestamp) -> Option<Timestamp> {
        (!self.has_expired(event)).then(|| event + self.delay)
    }

    /// The form kept in a container's annotation.
    #[must_use]
    pub fn to_annotation(&self) -> String {
        format!("{} {}", self.delay.as_secs(), self.updated)
    }

    /// Reads [`Backoff::to_annotation`].
    #[must_use]
    pub fn from_annotation(text: &str) -> Option<Backoff> {
        let (delay, updated) = text.split_once(' ')?;
        Some(Backoff {
            delay: SignedDuration::from_secs(delay.parse().ok()?),
            updated: updated.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
    }

    #[test]
    fn delays_double_up_to_the_cap_and_start_over_after_ten_quiet_minutes() {
        let mut entry = None;
        let mut delays = Vec::new();
        let mut now = 0;
        for _ in 0..8 {
            let next = Backoff::next(entry, at(now), at(now), MAX);
            delays.push(next.delay.as_secs());
            now += next.delay.as_secs();
            entry = Some(next);
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300, 300]);
        let entry = entry.unwrap();
        let just = entry.updated + RESET;
        assert_eq!(Backoff::next(Some(entry), just, just, MAX).delay, MAX);
        let after = just + SignedDuration::from_secs(1);
        assert_eq!(Backoff::next(Some(entry), after, after, MAX).delay, INITIAL);
        assert_eq!(entry.until(after), None);
    }

    #[test]
    fn a_lower_cap_is_also_the_first_delay() {
        let cap = SignedDuration::from_secs(4);
        assert_eq!(Backoff::next(None, at(0), at(0), cap).delay, cap);
    }

    #[test]
    fn annotations_round_trip() {
        let entry = Backoff { delay: SignedDuration::from_secs(40), updated: at(1_700_000_000) };
        assert_eq!(Backoff::from_annotation(&entry.to_annotation()), Some(entry));
        assert_eq!(Backoff::from_annotation("rubbish"), None);
    }
}
