//! File operations that hold against crashes and against what images contain.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{ImageError, ImageResult};

/// Names of a directory that are in memory at once. Not two, which the dots may be alone.
const NAMES_AT_ONCE: usize = 512;
/// Levels of directories that a removal holds open at once.
const REMOVE_DEPTH: usize = 48;

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
    let failed = |error| ImageError::io::<io::Error>("cannot remove", path)(error);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(io::Error::from(io::ErrorKind::InvalidInput)));
    };
    let parent = match open_dir(parent) {
        Ok(parent) => parent,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let name = CString::new(name.as_bytes()).map_err(|error| failed(error.into()))?;
    remove_tree(parent.as_fd(), &name).map_err(failed)
}

/// Removes `name` in `parent`, and what is below it. Follows no link, enters no mount, and copes with trees of
/// any depth: what lies too deep is first moved up. Two removals of one tree may run side by side.
pub(crate) fn remove_tree(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux says EISDIR for a directory; POSIX allows EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let Some(top) = open_child(parent, name)? else { return Ok(()) };
    let mut removal = Removal { top: top.as_fd(), moved: 0, pending: BTreeSet::new() };
    removal.clear(top.as_fd(), 0)?;
    while let Some(moved) = removal.pending.pop_last() {
        let moved = moved_name(moved)?;
        if let Some(dir) = open_child(top.as_fd(), &moved)? {
            removal.clear(dir.as_fd(), 1)?;
            remove_empty(top.as_fd(), &moved)?;
        }
    }
    remove_empty(parent, name)
}

fn remove_empty(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

struct Removal<'a> {
    top: BorrowedFd<'a>,
    moved: u64,
    /// Numbers of what was moved up and is still to be removed: there may be very many.
    pending: BTreeSet<u64>,
}

const MOVED: &str = ".removed-";

fn moved_name(number: u64) -> io::Result<CString> {
    Ok(CString::new(format!("{MOVED}{number}"))?)
}

impl Removal<'_> {
    fn clear(&mut self, dir: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
        for_each_child(dir, |name, kind| {
            let number = || name.to_str().ok()?.strip_prefix(MOVED)?.parse().ok();
            if depth == 0 && number().is_some_and(|number| self.pending.contains(&number)) {
                return Ok(false);
            }
            let is_dir = kind == FileType::Directory
                || (kind == FileType::Unknown
                    && rustix::fs::unlinkat(dir, name, AtFlags::empty()) == Err(Errno::ISDIR));
            if !is_dir {
                return match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => Ok(true),
                    Err(error) => Err(error.into()),
                };
            }
            if depth < REMOVE_DEPTH {
                if let Some(child) = open_child(dir, name)? {
                    self.clear(child.as_fd(), depth + 1)?;
                    remove_empty(dir, name)?;
                }
            } else {
                self.move_up(dir, name)?;
            }
            Ok(true)
        })
    }

    fn move_up(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        loop {
            let number = self.moved;
            let target = moved_name(number)?;
            self.moved += 1;
            match rustix::fs::renameat_with(dir, name, self.top, &target, rustix::fs::RenameFlags::NOREPLACE)
            {
                Ok(()) => {
                    self.pending.insert(number);
                    return Ok(());
                }
                Err(Errno::EXIST) => {}
                Err(Errno::NOENT) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Opens a directory to be emptied; `None` if someone else has removed it.
fn open_child(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV | ResolveFlags::BENEATH;
    match rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Calls `visit` for the names in a directory, without `.` and `..`; it says whether it removed the entry. After
/// removals the directory is read again, until nothing more is removed: whatever a file system does to a reading
/// under which entries go, all are visited. A few names at a time are in memory, however many there are.
pub(crate) fn for_each_child(
    dir: BorrowedFd<'_>,
    mut visit: impl FnMut(&CStr, FileType) -> io::Result<bool>,
) -> io::Result<()> {
    let mut entries = Dir::read_from(dir)?;
    let mut batch = Vec::with_capacity(NAMES_AT_ONCE);
    loop {
        let mut removed = false;
        loop {
            for entry in entries.by_ref().take(NAMES_AT_ONCE) {
                let entry = entry?;
                if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                    batch.push((entry.file_name().to_owned(), entry.file_type()));
                }
            }
            if batch.is_empty() {
                break;
            }
            for (name, kind) in batch.drain(..) {
                removed |= visit(&name, kind)?;
            }
        }
        if !removed {
            return Ok(());
        }
        entries.rewind();
    }
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
    fn a_tree_deeper_than_any_path_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut at = open_dir(dir.path()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, c"d", Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&at, c".removed-0", Mode::RWXU).unwrap();
            at = open_child(at.as_fd(), c"d").unwrap().unwrap();
        }
        drop(at);
        remove_path(&dir.path().join("d")).unwrap();
        assert!(!dir.path().join("d").exists());
        remove_path(&dir.path().join("d")).unwrap();
    }

    #[test]
    fn a_removal_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("kept");
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("file"), "x").unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::os::unix::fs::symlink(&kept, tree.join("link")).unwrap();
        remove_path(&tree).unwrap();
        assert!(kept.join("file").exists() && !tree.exists());
    }

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
