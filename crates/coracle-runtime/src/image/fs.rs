//! File operations that hold against crashes and against what images contain.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{ImageError, ImageResult};

/// Opens a directory by its path.
pub(crate) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens `path` as if `root` were the root of the file system: no link and no `..` leads out of it.
pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // A rename elsewhere on the system can make the kernel ask for a repetition.
    loop {
        match rustix::fs::openat2(
            root,
            OsStr::from_bytes(path),
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        ) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// Writes a file so that a reader and a crash see either the old contents or the new. `scratch` is a name in
/// the same file system that nobody else uses.
pub(crate) fn write_atomically(path: &Path, scratch: &Path, contents: &[u8]) -> ImageResult<()> {
    let mut file = File::create(scratch).map_err(ImageError::io("cannot create", scratch))?;
    file.write_all(contents)
        .and_then(|()| file.sync_all())
        .map_err(ImageError::io("cannot write", scratch))?;
    std::fs::rename(scratch, path).map_err(ImageError::io("cannot rename to", path))?;
    if let Some(parent) = path.parent() {
        sync_dir(parent)?;
    }
    Ok(())
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_dir(path: &Path) -> ImageResult<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(ImageError::io("cannot flush", path))
}

/// Makes a directory and its parents; no error if it is there.
pub(crate) fn make_dirs(path: &Path) -> ImageResult<()> {
    std::fs::create_dir_all(path).map_err(ImageError::io("cannot make directory", path))
}

/// An exclusive lock on a file, held until dropped. Locks of one process exclude each other too.
#[derive(Debug)]
pub(crate) struct FileLock {
    _file: File,
}

impl FileLock {
    /// Waits for the lock.
    pub(crate) fn exclusive(path: &Path) -> ImageResult<FileLock> {
        let file = Self::open(path)?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(FileLock { _file: file }),
                Err(Errno::INTR) => {}
                Err(error) => return Err(ImageError::io("cannot lock", path)(error)),
            }
        }
    }

    /// Takes the lock if it is free.
    pub(crate) fn try_exclusive(path: &Path) -> ImageResult<Option<FileLock>> {
        let file = Self::open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(FileLock { _file: file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(ImageError::io("cannot lock", path)(error)),
        }
    }

    fn open(path: &Path) -> ImageResult<File> {
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(ImageError::io("cannot open", path))
    }
}

/// Removes a file or a whole tree; no error if it is not there.
pub(crate) fn remove_path(path: &Path) -> ImageResult<()> {
    coracle_tree::remove(path).map_err(ImageError::io("cannot remove", path))
}

/// What is free for root on a file system.
pub(crate) struct FreeSpace {
    pub(crate) bytes: u64,
    /// `None` where files are not counted.
    pub(crate) inodes: Option<u64>,
}

/// What is free on the file system of `dir`.
pub(crate) fn free_space(dir: BorrowedFd<'_>) -> io::Result<FreeSpace> {
    let stat = rustix::fs::fstatvfs(dir)?;
    Ok(FreeSpace {
        bytes: stat.f_bfree.saturating_mul(stat.f_frsize),
        inodes: (stat.f_files > 0).then_some(stat.f_ffree),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_excludes_within_the_process_and_is_freed_on_drop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = FileLock::exclusive(&path).unwrap();
        assert!(FileLock::try_exclusive(&path).unwrap().is_none());
        drop(held);
        assert!(FileLock::try_exclusive(&path).unwrap().is_some());
    }
}
