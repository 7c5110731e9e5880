//! The loop of a controller that looks at one key at a time.

use std::fmt::Display;
use std::time::Duration;

use coracle_client::{ErrorExt as _, ObjectKey, Subscription, Workqueue};
use coracle_clock::{Clock, select};
use futures::StreamExt as _;
use futures::future::join;
use futures::stream::FuturesUnordered;

const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// What a look at a key came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Looked {
    /// It is as it should be; a change will tell.
    Settled,
    /// Nothing was wrong, but it is to be looked at again after its back-off.
    Again,
    /// The same, and not later than this.
    Within(Duration),
}

/// Runs all of them until each has ended. One that is woken costs the others nothing, which is what `join_all` does not
/// do for a few: it would ask all of them.
pub(crate) async fn all<W: Future>(of: impl IntoIterator<Item = W>) {
    let mut running: FuturesUnordered<W> = of.into_iter().collect();
    while running.next().await.is_some() {}
}

/// Which keys a changed object of one informer is about.
pub(crate) struct Source {
    pub(crate) changes: Subscription,
    pub(crate) keys: fn(ObjectKey) -> Option<ObjectKey>,
}

/// A key of an object is its own.
pub(crate) fn itself(key: ObjectKey) -> Option<ObjectKey> {
    Some(key)
}

/// The namespace of an object.
pub(crate) fn its_namespace(key: ObjectKey) -> Option<ObjectKey> {
    Some(ObjectKey::cluster(key.namespace))
}

/// A queue of keys whose failures are tried again after a back-off.
pub(crate) fn queue<K: Ord + Clone>(clock: &Clock) -> Workqueue<K> {
    Workqueue::new(clock.clone(), BACKOFF_FIRST, BACKOFF_MAX)
}

/// Looks at every key that changes, `workers` at a time and one worker per key; again, after a back-off, when that
/// fails. Ends when an informer does.
pub(crate) async fn run<F, W>(name: &str, clock: &Clock, workers: usize, sources: Vec<Source>, look: F)
where
    F: Fn(ObjectKey) -> W,
    W: Future<Output = Result<Looked, kube::Error>>,
{
    let queue = queue(clock);
    let queue = &queue;
    let feeds = all(sources.into_iter().map(|mut source| async move {
        while let Some(keys) = source.changes.changed().await {
            keys.into_iter().filter_map(source.keys).for_each(|key| queue.add(key));
        }
    }));
    let feeds = async {
        feeds.await;
        queue.close();
    };
    select! {
        _ = join(feeds, serve(name, queue, workers, look)) => {}
    }
}

/// Looks at every key of the queue until it is closed and empty.
pub(crate) async fn serve<K, F, W>(name: &str, queue: &Workqueue<K>, workers: usize, look: F)
where
    K: Ord + Clone + Display,
    F: Fn(K) -> W,
    W: Future<Output = Result<Looked, kube::Error>>,
{
    let look = &look;
    all((0..workers).map(|_| async move {
        while let Some(key) = queue.next().await {
            match look(key.clone()).await {
                Ok(Looked::Settled) => queue.forget(&key),
                Ok(Looked::Again) => {
                    queue.add_backed_off(key.clone());
                }
                Ok(Looked::Within(delay)) => {
                    // The earlier time wins.
                    queue.add_backed_off(key.clone());
                    queue.add_after(key.clone(), delay);
                }
                // Somebody else was there in between; what they did has been heard of or will be.
                Err(error) if error.is_conflict() => {
                    queue.add_backed_off(key.clone());
                }
                Err(error) => {
                    let delay = queue.add_backed_off(key.clone());
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(name, key = %*key, error, ?delay, "failed, will try again");
                }
            }
        }
    }))
    .await;
}
