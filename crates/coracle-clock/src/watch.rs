//! One value, and everyone who waits for it to change.
//!
//! The same as `tokio::sync::watch`, with one difference: that one wakes its receivers in an order drawn from a source
//! that cannot be seeded, which makes a run unrepeatable; this one wakes them in the order in which they began to wait.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::Notify;

/// A value and one receiver of it.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

struct Shared<T> {
    state: RwLock<State<T>>,
    changed: Notify,
    senders: AtomicUsize,
}

struct State<T> {
    value: T,
    /// Counts the changes.
    version: u64,
}

impl<T> Shared<T> {
    fn read(&self) -> RwLockReadGuard<'_, State<T>> {
        // The value is what the last change made of it, also if that change panicked.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<T>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Changes the value.
pub struct Sender<T>(Arc<Shared<T>>);

/// Sees the value, and waits for it to change.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// The value, which does not change while this is held.
pub struct Ref<'a, T>(RwLockReadGuard<'a, State<T>>);

/// There are no senders any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody changes the value any more")
    }
}

impl std::error::Error for Closed {}

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Ref<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.value.fmt(f)
    }
}

impl<T> Sender<T> {
    /// A value that nobody waits for yet.
    pub fn new(value: T) -> Self {
        let state = RwLock::new(State { value, version: 0 });
        Sender(Arc::new(Shared { state, changed: Notify::new(), senders: AtomicUsize::new(1) }))
    }

    /// A receiver that has seen the value as it is.
    pub fn subscribe(&self) -> Receiver<T> {
        let seen = self.0.read().version;
        Receiver { shared: Arc::clone(&self.0), seen }
    }

    /// The value.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.0.read())
    }

    /// Replaces the value and tells everyone.
    pub fn send_replace(&self, value: T) -> T {
        let mut state = self.0.write();
        let old = std::mem::replace(&mut state.value, value);
        state.version += 1;
        drop(state);
        self.0.changed.notify_waiters();
        old
    }

    /// Replaces the value and tells everyone; an error if there is nobody.
    ///
    /// # Errors
    /// There is no receiver.
    pub fn send(&self, value: T) -> Result<(), Closed> {
        let receivers = Arc::strong_count(&self.0).saturating_sub(self.0.senders.load(Ordering::Acquire));
        if receivers == 0 {
            return Err(Closed);
        }
        self.send_replace(value);
        Ok(())
    }

    /// Changes the value in place and tells everyone.
    pub fn send_modify(&self, change: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            change(value);
            true
        });
    }

    /// Changes the value in place and tells everyone if `change` says that it did.
    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let mut state = self.0.write();
        let modified = change(&mut state.value);
        state.version += u64::from(modified);
        drop(state);
        if modified {
            self.0.changed.notify_waiters();
        }
        modified
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.senders.fetch_add(1, Ordering::AcqRel);
        Sender(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

impl<T: Default> Default for Sender<T> {
    fn default() -> Self {
        Sender::new(T::default())
    }
}

impl<T> Receiver<T> {
    /// The value, whether it was seen before or not.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.read())
    }

    /// The value, which has then been seen.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let state = self.shared.read();
        self.seen = state.version;
        Ref(state)
    }

    /// Waits until the value is another one than was seen last, which has then been seen. Cancel-safe.
    ///
    /// # Errors
    /// All senders are gone, and there is no change left to see.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            // Made before the look, so that no change falls between.
            let changed = self.shared.changed.notified();
            let closed = self.shared.senders.load(Ordering::Acquire) == 0;
            let version = self.shared.read().version;
            if version != self.seen {
                self.seen = version;
                return Ok(());
            }
            if closed {
                return Err(Closed);
            }
            changed.await;
        }
    }

    /// Waits for a value that satisfies `holds`; the one there is may do. Cancel-safe.
    ///
    /// # Errors
    /// All senders are gone, and the last value does not satisfy it.
    pub async fn wait_for(&mut self, mut holds: impl FnMut(&T) -> bool) -> Result<Ref<'_, T>, Closed> {
        loop {
            let changed = self.shared.changed.notified();
            let closed = self.shared.senders.load(Ordering::Acquire) == 0;
            {
                let state = self.shared.read();
                self.seen = state.version;
                if holds(&state.value) {
                    break;
                }
            }
            if closed {
                return Err(Closed);
            }
            changed.await;
        }
        Ok(Ref(self.shared.read()))
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Receiver { shared: Arc::clone(&self.shared), seen: self.seen }
    }
}

impl<T: fmt::Debug> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sender").field(&*self.borrow()).finish()
    }
}

impl<T: fmt::Debug> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receiver").field(&*self.borrow()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn everyone_is_woken_in_the_order_of_waiting() {
        let sender = Sender::new(0);
        let order = Arc::new(Mutex::new(Vec::new()));
        let waiters: Vec<_> = (0..32)
            .map(|n| {
                let (mut receiver, order) = (sender.subscribe(), Arc::clone(&order));
                tokio::spawn(async move {
                    receiver.changed().await.unwrap();
                    order.lock().unwrap().push(n);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        sender.send_replace(1);
        for waiter in waiters {
            waiter.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), (0..32).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_change_is_seen_once_and_the_end_is_heard() {
        let (sender, mut receiver) = channel(1);
        assert!(sender.send(2).is_ok());
        assert_eq!(receiver.changed().await, Ok(()));
        assert_eq!(*receiver.borrow_and_update(), 2);
        assert!(!sender.send_if_modified(|_| false));
        sender.send_modify(|value| *value += 1);
        assert_eq!(*receiver.wait_for(|value| *value == 3).await.unwrap(), 3);
        let another = sender.clone();
        drop(sender);
        drop(another);
        assert_eq!(receiver.changed().await, Err(Closed));
        assert_eq!(receiver.wait_for(|value| *value == 9).await.err(), Some(Closed));
        let lonely = Sender::new(0);
        assert_eq!(lonely.send(1), Err(Closed));
    }
}
