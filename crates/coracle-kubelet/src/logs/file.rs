//! Opening log files safely, and finding the last lines without reading the rest.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
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
        Ok(LogPlace { directory, name, path: path.to_owned() })
    }

    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file that has the name now.
    pub(super) fn open(&self) -> Result<File, LogError> {
        // Not blocking, because a named pipe would wait for its other end.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.directory, &self.name, flags, Mode::empty()) {
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

    /// The file that has the name now, if it is not `current`.
    pub(super) fn successor(&self, current: &File) -> Result<Option<File>, LogError> {
        let current = current.metadata().map_err(|source| self.read_error(source))?;
        match rustix::fs::statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) if named.st_ino == current.ino() && named.st_dev == current.dev() => Ok(None),
            Ok(_) => match self.open() {
                Ok(file) => Ok(Some(file)),
                Err(LogError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
            // Renamed, and the new one is not there yet.
            Err(Errno::NOENT) => Ok(None),
            Err(source) => Err(self.read_error(source.into())),
        }
    }

    pub(super) fn read_error(&self, source: io::Error) -> LogError {
        LogError::Read { path: self.path.clone(), source }
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
