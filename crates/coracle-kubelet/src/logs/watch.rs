//! One inotify instance for all followers of logs.
//!
//! The kernel gives each user few instances (128 by default) but many watches, so followers share one.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_clock::watch;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

/// Tells followers that something in the directory of their log has changed.
///
/// [`LogWatcher::run`] has to be running for that.
#[derive(Debug)]
pub struct LogWatcher {
    inotify: AsyncFd<OwnedFd>,
    directories: Mutex<BTreeMap<i32, Directory>>,
}

#[derive(Debug)]
struct Directory {
    changed: watch::Sender<()>,
    followers: usize,
}

/// A follower's interest in one directory; ends when dropped.
#[derive(Debug)]
pub(super) struct Subscription {
    watcher: Arc<LogWatcher>,
    descriptor: i32,
    changed: watch::Receiver<()>,
}

impl LogWatcher {
    /// Makes the instance. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When the kernel has no instance left to give.
    pub fn new() -> io::Result<Arc<Self>> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        // SAFETY: an `OwnedFd` names one open descriptor, the same for as long as it lives, and `LogWatcher`
        // gives it out by shared reference only.
        let inotify = unsafe { AsyncFd::register(inotify) }?;
        Ok(Arc::new(LogWatcher { inotify, directories: Mutex::default() }))
    }

    /// Passes the kernel's events on to the followers, for ever.
    ///
    /// # Errors
    /// When events can no longer be read.
    pub async fn run(&self) -> io::Result<()> {
        loop {
            let mut ready = self.inotify.readable().await?;
            match self.pass_on() {
                Ok(()) => {}
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads one buffer of events.
    fn pass_on(&self) -> Result<(), Errno> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        let mut events = inotify::Reader::new(self.inotify.get_ref(), &mut buffer);
        loop {
            let event = events.next()?;
            let directories = self.directories();
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                directories.values().for_each(|directory| directory.changed.send_replace(()));
            } else if let Some(directory) = directories.get(&event.wd()) {
                directory.changed.send_replace(());
            }
            if events.is_buffer_empty() {
                return Ok(());
            }
        }
    }

    pub(super) fn subscribe(self: &Arc<Self>, directory: BorrowedFd<'_>) -> io::Result<Subscription> {
        let flags = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVE | WatchFlags::DELETE;
        let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        // Held while the watch is added, so that its first event finds the entry.
        let mut directories = self.directories();
        let descriptor = inotify::add_watch(self.inotify.get_ref(), path, flags)?;
        let entry = directories
            .entry(descriptor)
            .or_insert_with(|| Directory { changed: watch::Sender::new(()), followers: 0 });
        entry.followers += 1;
        let changed = entry.changed.subscribe();
        drop(directories);
        Ok(Subscription { watcher: Arc::clone(self), descriptor, changed })
    }

    fn directories(&self) -> MutexGuard<'_, BTreeMap<i32, Directory>> {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn watched(&self) -> usize {
        self.directories().len()
    }
}

impl Subscription {
    /// Waits for a change since the last call, or since the subscription.
    pub(super) async fn changed(&mut self) {
        if self.changed.changed().await.is_err() {
            // The sender lives as long as its followers.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut directories = self.watcher.directories();
        let Some(directory) = directories.get_mut(&self.descriptor) else { return };
        directory.followers -= 1;
        if directory.followers == 0 {
            directories.remove(&self.descriptor);
            // The kernel has removed it already if the directory is gone.
            let _ = inotify::remove_watch(self.watcher.inotify.get_ref(), self.descriptor);
        }
    }
}
