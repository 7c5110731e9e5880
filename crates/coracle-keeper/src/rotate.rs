//! Old logs: `NAME.YYYYMMDD-HHMMSS` beside `NAME`, as upstream's node agent names them.
//!
//! The keeper rotates, because it is who knows how much it wrote, and because a daemon that is away must not mean
//! that a container fills the disk.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use coracle_keeper::{UnixNanos, is_rotation_of};
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use crate::log::calendar;

/// Names tried at most; each is a second later than the one before.
const NAMES_MAX: i64 = 100_000;

/// Gives the log another name and removes the oldest, so that there are `files` with the one to come.
pub(crate) fn rotate(path: &Path, files: u32, now: UnixNanos) -> io::Result<()> {
    let mut old = rotated(path)?;
    let newest = old.last().cloned();
    let mut candidates = (0..NAMES_MAX)
        .map(|second| name(path, now + second * 1_000_000_000))
        // A log that is full every second, or a clock set back: the order of names is the order of logs.
        .filter(|candidate| newest.as_ref().is_none_or(|newest| candidate > newest));
    let target =
        candidates.next().ok_or_else(|| io::Error::other("the clock is far behind the names of logs"))?;
    match rustix::fs::renameat_with(CWD, path, CWD, &target, RenameFlags::NOREPLACE) {
        // Not every file system knows the flag.
        Err(Errno::INVAL | Errno::NOSYS) => std::fs::rename(path, &target)?,
        // Somebody else rotated.
        Err(Errno::NOENT) => return Ok(()),
        result => result?,
    }
    old.push(target);
    let keep = usize::try_from(files.max(1)).unwrap_or(usize::MAX) - 1;
    for path in &old[..old.len().saturating_sub(keep)] {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

fn name(path: &Path, at: UnixNanos) -> PathBuf {
    let (year, month, day, hour, minute, second) = calendar(at);
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}"));
    name.into()
}

/// The rotated logs of `path`, oldest first.
fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(log)) = (path.parent(), path.file_name().and_then(OsStr::to_str)) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| is_rotation_of(name, log)) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
