//! Trees of files that strangers have written: an image, or what a Pod left in a volume. They are read and removed
//! with nothing outside them touched, and however large or deep they are, with little memory, stack and descriptors.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Names of a directory that are in memory at once. Not two, which the dots may be alone.
const NAMES_AT_ONCE: usize = 512;
/// Levels of directories that a removal holds open at once.
const REMOVE_DEPTH: usize = 48;
/// How often a removal empties a directory again into which somebody has put something meanwhile.
const AGAIN: u32 = 64;

/// Removes a file or a whole tree; no error if it is not there.
pub fn remove(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    match rustix::fs::open(parent, flags, Mode::empty()) {
        Ok(parent) => remove_at(parent.as_fd(), &CString::new(name.as_bytes())?),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes `name` in `parent`, and what is below it. Follows no link, enters no mount, and copes with trees of
/// any depth: what lies too deep is first moved up. Two removals of one tree may run side by side.
pub fn remove_at(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux says EISDIR for a directory; POSIX allows EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let Some(top) = open_child(parent, name)? else { return Ok(()) };
    let mut removal = Removal { top: top.as_fd(), moved: 0, pending: BTreeSet::new(), again: 0 };
    loop {
        removal.clear(top.as_fd(), 0)?;
        while let Some(moved) = removal.pending.pop_last() {
            let target = moved_name(moved)?;
            if let Some(dir) = open_child(top.as_fd(), &target)? {
                removal.clear(dir.as_fd(), 1)?;
                if !removal.remove_empty(top.as_fd(), &target)? {
                    removal.pending.insert(moved);
                }
            }
        }
        if removal.remove_empty(parent, name)? {
            return Ok(());
        }
    }
}

struct Removal<'a> {
    top: BorrowedFd<'a>,
    moved: u64,
    /// Numbers of what was moved up and is still to be removed: there may be very many.
    pending: BTreeSet<u64>,
    /// How often a directory that was emptied was not empty.
    again: u32,
}

const MOVED: &str = ".removed-";

fn moved_name(number: u64) -> io::Result<CString> {
    Ok(CString::new(format!("{MOVED}{number}"))?)
}

impl Removal<'_> {
    /// Whether it is gone; if not, somebody has put something there since it was emptied.
    fn remove_empty(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> io::Result<bool> {
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY) if self.again < AGAIN => {
                self.again += 1;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

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
                    // What is left of it is found when this directory is read again.
                    self.remove_empty(dir, name)?;
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
        Err(Errno::XDEV) => {
            let message = format!("something is still mounted at {}", name.to_string_lossy());
            Err(io::Error::new(io::ErrorKind::ResourceBusy, message))
        }
        Err(error) => Err(error.into()),
    }
}

/// Calls `visit` for the names in a directory, without `.` and `..`; it says whether it removed the entry. After
/// removals the directory is read again, until nothing more is removed: whatever a file system does to a reading
/// under which entries go, all are visited. A few names at a time are in memory, however many there are.
pub fn for_each_child(
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

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(path, flags, Mode::empty())?)
    }

    #[test]
    fn more_names_than_are_held_at_once_are_all_visited_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        for n in 0..3 * NAMES_AT_ONCE {
            std::fs::create_dir_all(tree.join(format!("{n}/inner"))).unwrap();
            std::fs::write(tree.join(format!("{n}/file")), "").unwrap();
        }
        let mut seen = BTreeSet::new();
        for_each_child(open(&tree).unwrap().as_fd(), |name, kind| {
            assert_eq!(kind, FileType::Directory);
            Ok(!seen.insert(name.to_owned()))
        })
        .unwrap();
        assert_eq!(seen.len(), 3 * NAMES_AT_ONCE);
        remove(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn pipes_and_links_to_nowhere_are_removed_too() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::os::unix::fs::symlink("/proc/self/root", tree.join("magic")).unwrap();
        std::os::unix::fs::symlink("nowhere", tree.join("dangling")).unwrap();
        let pipe = Mode::from_bits_retain(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, tree.join("pipe"), FileType::Fifo, pipe, 0).unwrap();
        remove(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        // In memory, where thousands of directories take no time.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let mut at = open(dir.path()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, c"d", Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&at, c".removed-0", Mode::RWXU).unwrap();
            at = open_child(at.as_fd(), c"d").unwrap().unwrap();
        }
        drop(at);
        remove(&dir.path().join("d")).unwrap();
        assert!(!dir.path().join("d").exists());
        remove(&dir.path().join("d")).unwrap();
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
        remove(&tree).unwrap();
        assert!(kept.join("file").exists() && !tree.exists());
    }

    #[test]
    fn what_is_put_there_meanwhile_is_removed_too() {
        for _ in 0..50 {
            let dir = tempfile::tempdir().unwrap();
            let tree = dir.path().join("tree");
            std::fs::create_dir_all(tree.join("inner")).unwrap();
            std::thread::scope(|scope| {
                let (begun, begins) = std::sync::mpsc::channel();
                let tree = &tree;
                let writer = scope.spawn(move || {
                    let write = |n: u32| {
                        let _ = begun.send(());
                        std::fs::write(tree.join(format!("inner/{n}")), "")
                    };
                    (0..1000).take_while(|n| write(*n).is_ok()).count()
                });
                begins.recv().unwrap();
                remove(tree).unwrap();
                assert!(!tree.exists(), "after {} files", writer.join().unwrap());
            });
        }
    }
}
