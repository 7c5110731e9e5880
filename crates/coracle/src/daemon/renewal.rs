//! Certificates end; long before that they are made anew, without a restart.

use std::time::Duration;

use coracle_clock::{Clock, select};
use tokio_util::sync::CancellationToken;

/// How often certificates are looked at. They are renewed thirty days before they end.
const LOOK: Duration = Duration::from_secs(12 * 3600);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(600);

/// Calls `renew` from time to time, until `stop`. A failure is told and tried again.
pub(super) async fn keep<F>(clock: Clock, stop: CancellationToken, mut renew: impl FnMut() -> F)
where
    F: Future<Output = anyhow::Result<()>>,
{
    let mut pause = LOOK;
    loop {
        select! {
            () = stop.cancelled() => return,
            () = clock.sleep(pause) => {}
        }
        pause = match renew().await {
            Ok(()) => LOOK,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "certificates could not be renewed");
                RETRY
            }
        };
    }
}
