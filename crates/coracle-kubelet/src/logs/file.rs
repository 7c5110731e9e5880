//! Opening log files safely, and finding the last lines without reading the rest.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

/// How much is read at a time.
pub(super) const BLOCK: usize = 64 * 1024;

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The path is not one of a log of this node's Pods.
    #[error("log file {} is not in the directory of the Pods' logs", path.display())]
    Outside {
        /// The path.
        path: PathBuf,
    },
    /// The log, or a directory on the way, is a link or a device.
    #[error("log file {} is not a regular file", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
    },
    /// The log cannot be opened.
    #[error("failed to open log file {:?}: {source}", path.display().to_string())]
    Open {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The log cannot be read.
    #[error("failed to read log file {:?}: {source}", path.display().to_string())]
    Read {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Changes of the log cannot be watched.
    #[error("failed to watch directory {:?}: {source}", path.display().to_string())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Where a log is: its directory, held open, and its name there.
///
/// The directory is reached from the root of all logs without following a link, so that nobody who can write
/// below the root makes us read something else.
#[derive(Debug)]
pub(super) struct LogPlace {
    directory: OwnedFd,
    name: OsString,
    path: PathBuf,
    /// Name of the latest rotated log that is older than what is being read; empty if there is none.
    older: OsString,
}

impl LogPlace {
    pub(super) fn locate(root: &Path, path: &Path) -> Result<Self, LogError> {
        let outside = || LogError::Outside { path: path.to_owned() };
        let inside = path.strip_prefix(root).map_err(|_| outside())?;
        let mut names: Vec<&OsStr> = Vec::new();
        for component in inside.components() {
            let Component::Normal(name) = component else { return Err(outside()) };
            names.push(name);
        }
        let name = names.pop().ok_or_else(outside)?.to_owned();
        let open = |source: Errno| match source {
            Errno::LOOP | Errno::NOTDIR => LogError::NotRegular { path: path.to_owned() },
            source => LogError::Open { path: path.to_owned(), source: source.into() },
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut directory = rustix::fs::open(root, flags, Mode::empty()).map_err(open)?;
        for name in names {
            directory = rustix::fs::openat(&directory, name, flags | OFlags::NOFOLLOW, Mode::empty())
                .map_err(open)?;
        }
        let mut place = LogPlace { directory, name, path: path.to_owned(), older: OsString::new() };
        if let Some(newest) = place.rotated()?.pop() {
            place.older = newest;
        }
        Ok(place)
    }

    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file that has the name now.
    pub(super) fn open(&self) -> Result<File, LogError> {
        self.open_name(&self.name)
    }

    fn open_name(&self, name: &OsStr) -> Result<File, LogError> {
        // Not blocking, because a named pipe would wait for its other end.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.directory, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::LOOP) => return Err(LogError::NotRegular { path: self.path.clone() }),
            Err(source) => {
                return Err(LogError::Open { path: self.path.clone(), source: source.into() });
            }
        };
        let metadata = file.metadata().map_err(|source| self.read_error(source))?;
        if !metadata.is_file() {
            return Err(LogError::NotRegular { path: self.path.clone() });
        }
        Ok(file)
    }

    /// The file after `current`, which is the one that has the name, unless a busy container has filled more than
    /// one since.
    pub(super) fn successor(&mut self, current: &File) -> Result<Option<File>, LogError> {
        let current = current.metadata().map_err(|source| self.read_error(source))?;
        match self.inode(&self.name) {
            Ok(named) if named == (current.dev(), current.ino()) => return Ok(None),
            Ok(_) => {}
            // Renamed, and the new one is not there yet.
            Err(Errno::NOENT) => return Ok(None),
            Err(source) => return Err(self.read_error(source.into())),
        }
        let rotated = self.rotated()?;
        let at = rotated.iter().position(|name| self.inode(name) == Ok((current.dev(), current.ino())));
        let next = match at {
            Some(at) => {
                self.older.clone_from(&rotated[at]);
                rotated.get(at + 1)
            }
            // Too old to be kept: all that are left are newer.
            None if current.nlink() == 0 => rotated.first(),
            None => None,
        };
        for name in next.into_iter().chain([&self.name]) {
            match self.open_name(name) {
                Err(LogError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                found => return found.map(Some),
            }
        }
        Ok(None)
    }

    fn inode(&self, name: &OsStr) -> Result<(u64, u64), Errno> {
        let stat = rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Names of the rotated logs that are not older than what is being read, in the order of their writing.
    fn rotated(&self) -> Result<Vec<OsString>, LogError> {
        let mut found = Vec::new();
        let entries = Dir::read_from(&self.directory).map_err(|source| self.read_error(source.into()))?;
        for entry in entries {
            let entry = entry.map_err(|source| self.read_error(source.into()))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if is_rotated(name, &self.name) && *name > *self.older {
                found.push(name.to_owned());
            }
        }
        found.sort();
        Ok(found)
    }

    pub(super) fn read_error(&self, source: io::Error) -> LogError {
        LogError::Read { path: self.path.clone(), source }
    }
}

/// Whether the file `name` is what `log` became when it was rotated: `LOG.YYYYMMDD-HHMMSS`.
fn is_rotated(name: &OsStr, log: &OsStr) -> bool {
    let rest = name.as_bytes().strip_prefix(log.as_bytes()).and_then(|rest| rest.strip_prefix(b"."));
    rest.is_some_and(|stamp| {
        stamp.len() == "20060102-150405".len()
            && stamp.iter().all(|byte| byte.is_ascii_digit() || *byte == b'-')
    })
}

/// Removes the log `path` and what it was when it was rotated. What cannot be removed goes with the Pod.
pub(crate) fn remove_logs(path: &Path) {
    let _ = std::fs::remove_file(path);
    let (Some(directory), Some(log)) = (path.parent(), path.file_name()) else { return };
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if is_rotated(&entry.file_name(), log) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Where the last `lines` lines begin. A last line without a newline is not counted, and is part of them.
pub(super) fn start_of_last_lines(file: &File, lines: u64) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut block = vec![0; BLOCK];
    let mut newlines = 0;
    while end > 0 {
        let begin = end.saturating_sub(BLOCK as u64);
        let length = usize::try_from(end - begin).unwrap_or(BLOCK);
        file.read_exact_at(&mut block[..length], begin)?;
        for (index, _) in block[..length].iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            newlines += 1;
            if newlines > lines {
                return Ok(begin + index as u64 + 1);
            }
        }
        end = begin;
    }
    Ok(0)
}
