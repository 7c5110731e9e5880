//! Directories for what simulated node agents write, which are gone with the world, also when its process is killed.
//!
//! They are in memory if the machine has such a place, so whatever a killed simulation leaves takes memory until the next
//! boot. Each is locked as long as it is used; the lock ends with the process, and the next process removes what nobody
//! holds.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Once;

use tempfile::TempDir;

const PREFIX: &str = "coracle-sim-";

/// A directory of one's own, removed with this.
pub(crate) struct Scratch {
    directory: TempDir,
    // After the directory, so that nobody else removes it at the same time.
    _lock: File,
}

impl Scratch {
    /// Makes one, in memory if the machine has such a place.
    pub(crate) fn new() -> io::Result<Scratch> {
        static SWEPT: Once = Once::new();
        let usual = std::env::temp_dir();
        let places = [Path::new("/dev/shm"), &usual];
        SWEPT.call_once(|| places.iter().for_each(|place| sweep(place)));
        Scratch::below(places[0]).or_else(|_| Scratch::below(places[1]))
    }

    fn below(place: &Path) -> io::Result<Scratch> {
        loop {
            let directory = tempfile::Builder::new().prefix(PREFIX).tempdir_in(place)?;
            let lock = File::open(directory.path())?;
            match lock.try_lock() {
                Ok(()) if is_at(&lock, directory.path())? => return Ok(Scratch { directory, _lock: lock }),
                // Somebody who sweeps was quicker, and it is or will be gone.
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(why)) => return Err(why),
            }
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Whether this directory is still the one of this path.
fn is_at(directory: &File, path: &Path) -> io::Result<bool> {
    let opened = directory.metadata()?;
    match path.symlink_metadata() {
        Ok(there) => Ok((there.dev(), there.ino()) == (opened.dev(), opened.ino())),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(why) => Err(why),
    }
}

/// Removes the directories whose process has ended. What cannot be removed, as somebody else's, stays.
fn sweep(place: &Path) {
    for entry in place.read_dir().into_iter().flatten().flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if !ours || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let Ok(directory) = File::open(entry.path()) else { continue };
        if directory.try_lock().is_ok()
            && let Err(why) = std::fs::remove_dir_all(entry.path())
        {
            tracing::debug!(path = %entry.path().display(), %why, "what an ended simulation left stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_simulation_left_is_removed_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let used = Scratch::below(place.path()).unwrap();
        std::fs::write(used.path().join("file"), "used").unwrap();
        let left = place.path().join("coracle-sim-left");
        std::fs::create_dir_all(left.join("pods/a")).unwrap();
        std::fs::write(left.join("pods/a/file"), "left").unwrap();
        let foreign = place.path().join("somebody-else");
        std::fs::create_dir(&foreign).unwrap();
        let behind = place.path().join("coracle-sim-link");
        std::os::unix::fs::symlink(&foreign, &behind).unwrap();

        sweep(place.path());

        assert!(!left.exists());
        assert_eq!(std::fs::read(used.path().join("file")).unwrap(), b"used");
        assert!(foreign.exists() && behind.is_symlink());
        let path = used.path().to_owned();
        drop(used);
        assert!(!path.exists());
    }
}
