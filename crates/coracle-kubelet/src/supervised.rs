//! Work on one Pod whose panic touches no other.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use coracle_clock::Clock;
use futures::FutureExt as _;
use tracing::error;

/// Between a panic and the next try.
const PAUSE: Duration = Duration::from_secs(1);

/// How the work on one Pod came to its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) uid: String,
    pub(crate) panicked: bool,
}

/// Does the work on one Pod. A panic is its end, but not before a pause: it may well repeat.
pub(crate) async fn supervised(uid: String, clock: Clock, work: impl Future<Output = ()>) -> Ended {
    let panicked = AssertUnwindSafe(work).catch_unwind().await.is_err();
    if panicked {
        error!(uid, "the work on a pod panicked and begins anew");
        clock.sleep(PAUSE).await;
    }
    Ended { uid, panicked }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_that_panics_ends_after_a_pause() {
        let clock = Clock::starting_at(jiff::Timestamp::UNIX_EPOCH);
        let uid = || "u".to_owned();
        let fine = supervised(uid(), clock.clone(), async {}).await;
        assert_eq!((fine, clock.elapsed()), (Ended { uid: uid(), panicked: false }, Duration::ZERO));
        let broken = supervised(uid(), clock.clone(), async { panic!("as asked") }).await;
        assert_eq!((broken, clock.elapsed()), (Ended { uid: uid(), panicked: true }, PAUSE));
    }
}
