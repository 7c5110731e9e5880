//! Bodies of answers on the wire: handed over in pieces, so that it is seen whether the client takes them.
//!
//! HTTP/2 takes whatever it is given and keeps it until the client has room. A piece at a time bounds what an answer
//! that nobody reads holds, and a piece behind which nobody has asked for the next is one that is not taken.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use coracle_clock::Clock;
use http_body::{Frame, SizeHint};
use tokio::sync::Notify;

use crate::body::{Body, BoxError};
use crate::connections::InFlight;

/// Bytes handed over at a time.
const PIECE_BYTES: usize = 32 * 1024;

/// The answers of a connection that wait to be taken.
#[derive(Debug, Clone)]
pub(crate) struct Outflows(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: Clock,
    waiting: Mutex<Waiting>,
    begun: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// Since when the piece that was handed over last is not known to be taken.
    since: BTreeMap<u64, Duration>,
}

impl Outflows {
    pub(crate) fn new(clock: Clock) -> Self {
        Outflows(Arc::new(Shared { clock, waiting: Mutex::default(), begun: Notify::new() }))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Inserting and removing cannot panic half way.
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until some answer has not been taken for `most`.
    pub(crate) async fn stuck(&self, most: Duration) {
        loop {
            let oldest = self.waiting().since.values().min().copied();
            let Some(oldest) = oldest else {
                self.0.begun.notified().await;
                continue;
            };
            let age = self.0.clock.elapsed().saturating_sub(oldest);
            if age >= most {
                return;
            }
            self.0.clock.sleep(most - age).await;
        }
    }
}

/// A body on its way.
pub(crate) struct Outflow {
    inner: Body,
    /// What is left of a piece that was too large.
    rest: Bytes,
    /// Where it is seen whether the client takes it; `None` for a stream that may rest.
    watched: Option<Outflows>,
    number: Option<u64>,
    /// Whether there was more than a piece. The end of such a body is not told with its last piece, so that it is
    /// seen whether that is taken.
    large: bool,
    #[expect(dead_code, reason = "dropping it is what it is for")]
    in_flight: InFlight,
}

impl Outflow {
    pub(crate) fn new(inner: Body, watched: Option<Outflows>, in_flight: InFlight) -> Self {
        Outflow { inner, rest: Bytes::new(), watched, number: None, large: false, in_flight }
    }

    fn taken(&mut self) {
        if let (Some(outflows), Some(number)) = (&self.watched, self.number.take()) {
            outflows.waiting().since.remove(&number);
        }
    }

    /// Hands over a piece of `data`.
    fn piece(&mut self, mut data: Bytes) -> Frame<Bytes> {
        if data.len() > PIECE_BYTES {
            self.large = true;
            self.rest = data.split_off(PIECE_BYTES);
        }
        if let Some(outflows) = self.watched.as_ref().filter(|_| !http_body::Body::is_end_stream(self)) {
            let now = outflows.0.clock.elapsed();
            let mut waiting = outflows.waiting();
            waiting.next += 1;
            let number = waiting.next;
            waiting.since.insert(number, now);
            let first = waiting.since.len() == 1;
            drop(waiting);
            if first {
                outflows.0.begun.notify_one();
            }
            self.number = Some(number);
        }
        Frame::data(data)
    }
}

impl Drop for Outflow {
    fn drop(&mut self) {
        self.taken();
    }
}

impl http_body::Body for Outflow {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.taken();
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            return Poll::Ready(Some(Ok(self.piece(rest))));
        }
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(match frame.into_data() {
                Ok(data) => self.piece(data),
                Err(trailers) => trailers,
            }))),
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        !self.large && self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, more) = (self.inner.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + more);
        }
        hint.set_lower(hint.lower() + more);
        hint
    }
}
