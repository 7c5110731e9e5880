//! Request and response bodies, one type for the wire and for in-process callers.

use std::time::Duration;

use bytes::Bytes;
use coracle_api::status::Status;
use coracle_clock::Clock;
use futures::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Collected, Full, LengthLimitError, Limited};

/// Any error, as hyper and tower pass it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body, whoever it comes from.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// The largest request body, as upstream's default.
pub(crate) const BODY_LIMIT_BYTES: usize = 3 * 1024 * 1024;

/// How long a client may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// A body of one piece.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Reads a whole request body, within limits of size and time.
pub(crate) async fn read(body: Body, clock: &Clock) -> Result<Bytes, Status> {
    let too_large = || Status::too_large(BODY_LIMIT_BYTES);
    if http_body::Body::size_hint(&body).lower() > BODY_LIMIT_BYTES as u64 {
        return Err(too_large());
    }
    // Boxed, because the compiler cannot see that the future is Send otherwise.
    let collecting: BoxFuture<'static, Result<Collected<Bytes>, BoxError>> =
        Box::pin(Limited::new(body, BODY_LIMIT_BYTES).collect());
    match clock.timeout(BODY_TIMEOUT, collecting).await {
        None => Err(Status::timeout("the request body did not arrive in time", 0)),
        Some(Ok(collected)) => Ok(collected.to_bytes()),
        Some(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Some(Err(error)) => {
            tracing::debug!(error, "request body broke off");
            Err(Status::bad_request("the request body could not be read"))
        }
    }
}
