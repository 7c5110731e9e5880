//! The quiet points of a run: when nothing can go on before time does.
//!
//! Tokio calls us when it has no task left to run, just before it would let virtual time jump to the next timer. All
//! tasks have then done what they can at this moment: the state is looked at, and whoever drives the run may stop it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use crate::observer::Observer;

/// Until when the driver lets the run go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// The next quiet point.
    Quiet,
    /// The next quiet point at a later time than this.
    After(Duration),
    /// Something that the driver waits for itself.
    Asked,
}

struct Drive {
    until: Until,
    reached: bool,
    driver: Option<Waker>,
}

/// Shared by the driver and Tokio's callback.
#[derive(Clone)]
pub(crate) struct Hook(Arc<Inner>);

struct Inner {
    drive: Mutex<Drive>,
    observer: Mutex<Option<Observer>>,
}

impl Hook {
    pub(crate) fn new() -> Self {
        let drive = Drive { until: Until::Asked, reached: false, driver: None };
        Hook(Arc::new(Inner { drive: Mutex::new(drive), observer: Mutex::new(None) }))
    }

    pub(crate) fn install(&self, observer: Observer) {
        *self.observer_slot() = Some(observer);
    }

    /// Looks at the observer, which is there from the first moment of a world on.
    pub(crate) fn observer<R>(&self, look: impl FnOnce(&mut Observer) -> R) -> R {
        look(self.observer_slot().as_mut().expect("the observer is installed when the world is made"))
    }

    /// For a test, to see that nobody keeps it.
    #[cfg(test)]
    pub(crate) fn downgrade(&self) -> std::sync::Weak<impl Sized + use<>> {
        Arc::downgrade(&self.0)
    }

    fn observer_slot(&self) -> MutexGuard<'_, Option<Observer>> {
        self.0.observer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drive(&self) -> MutexGuard<'_, Drive> {
        self.0.drive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tokio has nothing left to run.
    pub(crate) fn quiet(&self) {
        let (now, broken) = match self.observer_slot().as_mut() {
            Some(observer) => (observer.look(), observer.violation().is_some()),
            None => return,
        };
        let mut drive = self.drive();
        drive.reached |= broken
            || match drive.until {
                Until::Quiet => true,
                Until::After(then) => now > then,
                Until::Asked => false,
            };
        if drive.reached
            && let Some(driver) = drive.driver.take()
        {
            driver.wake();
        }
    }

    /// Waits for what `until` says, or for a broken invariant.
    pub(crate) async fn reached(&self, until: Until) {
        {
            let mut drive = self.drive();
            drive.until = until;
            drive.reached = false;
        }
        std::future::poll_fn(|context| {
            let mut drive = self.drive();
            if drive.reached {
                drive.until = Until::Asked;
                return Poll::Ready(());
            }
            drive.driver = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
