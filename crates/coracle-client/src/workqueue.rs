//! A queue of keys: each at most once in it, each with at most one worker.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_clock::{Clock, select};
use tokio::sync::Notify;

/// A queue of keys that need a look.
///
/// # Guarantees
/// - A key that is added any number of times before a worker takes it is taken once.
/// - A key is with one worker at a time. Added meanwhile, it comes again when that worker is done: no addition is
///   lost.
/// - Keys are taken in the order in which they became due.
///
/// # Bounds
/// It holds each key once, so it is bounded by the number of keys, and adding never waits.
pub struct Workqueue<K>(Arc<Queue<K>>);

struct Queue<K> {
    state: Mutex<State<K>>,
    changed: Notify,
    clock: Clock,
    first_delay: Duration,
    max_delay: Duration,
}

struct State<K> {
    ready: VecDeque<K>,
    /// Keys in `ready`, and keys to come again when their worker is done.
    dirty: BTreeSet<K>,
    claimed: BTreeSet<K>,
    /// Keys that wait, by when they are due; the number keeps equal times in order.
    delayed: BTreeMap<(Duration, u64), K>,
    due: BTreeMap<K, (Duration, u64)>,
    failures: BTreeMap<K, u32>,
    serial: u64,
    closed: bool,
}

/// A key taken by a worker; dropping it, also by a panic, gives it back.
pub struct Claim<K: Ord + Clone> {
    key: K,
    queue: Arc<Queue<K>>,
}

impl<K: Ord + Clone> Workqueue<K> {
    /// An empty queue whose back-off doubles from `first_delay` to `max_delay` per key.
    #[must_use]
    pub fn new(clock: Clock, first_delay: Duration, max_delay: Duration) -> Self {
        Workqueue(Arc::new(Queue {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: BTreeSet::new(),
                claimed: BTreeSet::new(),
                delayed: BTreeMap::new(),
                due: BTreeMap::new(),
                failures: BTreeMap::new(),
                serial: 0,
                closed: false,
            }),
            changed: Notify::new(),
            clock,
            first_delay,
            max_delay,
        }))
    }

    /// Adds a key now.
    pub fn add(&self, key: K) {
        self.0.lock().enqueue(key);
        self.0.changed.notify_one();
    }

    /// Adds a key after a delay. A key that is already waiting keeps the earlier time.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let due = self.0.clock.elapsed() + delay;
        {
            let mut state = self.0.lock();
            if let Some(&waiting) = state.due.get(&key) {
                if waiting.0 <= due {
                    return;
                }
                state.delayed.remove(&waiting);
            }
            state.serial += 1;
            let at = (due, state.serial);
            state.delayed.insert(at, key.clone());
            state.due.insert(key, at);
            if state.delayed.keys().next() != Some(&at) {
                return;
            }
        }
        self.0.changed.notify_one();
    }

    /// Adds a key after its back-off, which doubles; returns the delay.
    pub fn add_backed_off(&self, key: K) -> Duration {
        let delay = {
            let mut state = self.0.lock();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            let delay = self
                .0
                .first_delay
                .checked_mul(1u32.checked_shl(*failures).unwrap_or(u32::MAX))
                .map_or(self.0.max_delay, |delay| delay.min(self.0.max_delay));
            *failures = failures.saturating_add(1);
            delay
        };
        self.add_after(key, delay);
        delay
    }

    /// Ends the back-off of a key, after a success. It stays in the queue if it is there.
    pub fn forget(&self, key: &K) {
        self.0.lock().failures.remove(key);
    }

    /// The next key that is due, when there is one; `None` when the queue is closed and empty.
    ///
    /// Cancel-safe: a key is taken only if this returns.
    pub async fn next(&self) -> Option<Claim<K>> {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, so that an addition in between is heard.
            changed.as_mut().enable();
            let wait = {
                let now = self.0.clock.elapsed();
                let mut state = self.0.lock();
                state.promote(now);
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.claimed.insert(key.clone());
                    // One worker is woken at a time; who takes something wakes the next if there is more to take or to
                    // wait for.
                    if !state.ready.is_empty() || !state.delayed.is_empty() {
                        self.0.changed.notify_one();
                    }
                    return Some(Claim { key, queue: self.0.clone() });
                }
                if state.closed {
                    return None;
                }
                state.delayed.keys().next().map(|(due, _)| due.saturating_sub(now))
            };
            match wait {
                Some(wait) => select! {
                    () = &mut changed => {}
                    () = self.0.clock.sleep(wait) => {}
                },
                None => changed.await,
            }
        }
    }

    /// Lets workers finish what is ready and then get `None`; what waits for its time is dropped.
    pub fn close(&self) {
        {
            let mut state = self.0.lock();
            state.closed = true;
            state.delayed.clear();
            state.due.clear();
        }
        self.0.changed.notify_waiters();
    }

    /// How many keys are ready or waiting for their time.
    #[must_use]
    pub fn len(&self) -> usize {
        let state = self.0.lock();
        state.dirty.len() + state.delayed.len()
    }

    /// Whether nothing is ready or waiting.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K> Clone for Workqueue<K> {
    fn clone(&self) -> Self {
        Workqueue(self.0.clone())
    }
}

impl<K> Queue<K> {
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        // No method panics half way through a change, so a poisoned state is a whole one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Ord + Clone> State<K> {
    fn enqueue(&mut self, key: K) {
        if self.closed || !self.dirty.insert(key.clone()) || self.claimed.contains(&key) {
            return;
        }
        self.ready.push_back(key);
    }

    /// Makes keys ready whose time has come.
    fn promote(&mut self, now: Duration) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let key = entry.remove();
            self.due.remove(&key);
            self.enqueue(key);
        }
    }
}

impl<K: Ord + Clone> Deref for Claim<K> {
    type Target = K;

    fn deref(&self) -> &K {
        &self.key
    }
}

impl<K: Ord + Clone> Drop for Claim<K> {
    fn drop(&mut self) {
        {
            let mut state = self.queue.lock();
            state.claimed.remove(&self.key);
            if !state.dirty.contains(&self.key) {
                return;
            }
            state.ready.push_back(self.key.clone());
        }
        self.queue.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn queue() -> (Clock, Workqueue<&'static str>) {
        let clock = Clock::starting_at(Timestamp::UNIX_EPOCH);
        (clock.clone(), Workqueue::new(clock, Duration::from_secs(1), Duration::from_secs(10)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_taken_once_and_comes_again_if_added_while_claimed() {
        let (_, queue) = queue();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        let a = queue.next().await.unwrap();
        assert_eq!(*a, "a");
        queue.add("a");
        assert_eq!(*queue.next().await.unwrap(), "b", "a is with a worker");
        assert!(futures::FutureExt::now_or_never(queue.next()).is_none());
        drop(a);
        assert_eq!(*queue.next().await.unwrap(), "a");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn delays_are_kept_and_the_earlier_time_wins() {
        let (clock, queue) = queue();
        queue.add_after("late", Duration::from_secs(60));
        queue.add_after("a", Duration::from_secs(9));
        queue.add_after("a", Duration::from_secs(3));
        queue.add_after("a", Duration::from_secs(5));
        assert_eq!(*queue.next().await.unwrap(), "a");
        assert_eq!(clock.elapsed(), Duration::from_secs(3));
        assert_eq!(*queue.next().await.unwrap(), "late");
        assert_eq!(clock.elapsed(), Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn back_off_doubles_per_key_to_the_cap_and_is_forgotten() {
        let (_, queue) = queue();
        let delays: Vec<_> = (0..6).map(|_| queue.add_backed_off("a").as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 10, 10]);
        assert_eq!(queue.add_backed_off("b").as_secs(), 1);
        queue.forget(&"a");
        assert_eq!(queue.add_backed_off("a").as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_worker_does_not_delay_a_timer_of_others() {
        let (clock, queue) = queue();
        let idle = tokio::spawn({
            let (clock, queue) = (clock.clone(), queue.clone());
            async move { (*queue.next().await.unwrap(), clock.elapsed()) }
        });
        let busy = tokio::spawn({
            let queue = queue.clone();
            async move { queue.next().await }
        });
        tokio::task::yield_now().await;
        queue.add_after("later", Duration::from_secs(2));
        queue.add("now");
        let first = idle.await.unwrap();
        assert_eq!(first.0, "now");
        let claim = busy.await.unwrap().unwrap();
        assert_eq!((*claim, clock.elapsed()), ("later", Duration::from_secs(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_queue_is_emptied_and_ends() {
        let (_, queue) = queue();
        queue.add("a");
        queue.add_after("b", Duration::from_secs(1));
        queue.close();
        queue.add("c");
        assert_eq!(*queue.next().await.unwrap(), "a");
        assert!(queue.next().await.is_none());
    }
}
