//! Unpacking one layer into a directory.
//!
//! The directory is the root of everything: parents are resolved by the kernel as if it were `/`
//! (`openat2` with `RESOLVE_IN_ROOT`), and entries are made by name in the descriptor of their parent, following
//! nothing. Above other layers the directory is an overlay mount of them, so that whiteouts, replaced
//! directories and links into lower layers come out as the kernel itself would store them.

use std::collections::HashSet;
use std::ffi::{CString, OsStr};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use coracle_tree::{for_each_child, remove_at};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::digest::Cancel;
use super::fs::{free_space, open_in_root};
use super::tar::{Entry, Kind, Mtime, Skip, TarReader, invalid};
use super::types::UnpackLimits;

/// Bytes written between two looks at the free space.
const FREE_CHECK_EVERY: u64 = 16 << 20;
/// Space that an entry takes beside its data: an inode, and its part of a directory.
const ENTRY_BYTES: u64 = 512;
/// Entries that are as good a reason for such a look as [`FREE_CHECK_EVERY`].
const FREE_CHECK_ENTRIES: u64 = 4096;
/// Bytes of directory names remembered, whose times are set when nothing changes in them any more.
const DEFERRED_MAX: usize = 16 << 20;
/// The kernel's limit on a path.
const PATH_MAX: usize = 4096;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Bookkeeping of aufs, in archives of its time; upstream leaves such entries out.
const AUFS: &[u8] = b".wh..wh.";

/// What an unpacked layer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

/// Why a layer was not unpacked.
#[derive(Debug)]
pub(crate) enum UnpackError {
    /// The archive is damaged or refused; says which entry.
    Archive(String),
    /// A limit was reached.
    Limit(String),
    /// The caller went away.
    Abandoned,
}

/// Unpacks the archive into `root`, over what is there. The reader is left behind the end of the archive.
pub(crate) fn unpack<R: Skip>(
    archive: R,
    root: BorrowedFd<'_>,
    limits: &UnpackLimits,
    cancel: &Cancel,
) -> Result<(R, Usage), UnpackError> {
    let mut archive = TarReader::new(archive);
    let mut unpacker = Unpacker {
        root,
        limits,
        usage: Usage::default(),
        unchecked_bytes: FREE_CHECK_EVERY,
        parent: None,
        made: HashSet::new(),
        hasher: RandomState::new(),
        directory_times: Vec::new(),
        deferred_bytes: 0,
        buffer: vec![0; 128 << 10],
    };
    loop {
        if cancel.is_cancelled() {
            return Err(UnpackError::Abandoned);
        }
        let entry = archive.next_entry().map_err(|error| UnpackError::Archive(error.to_string()))?;
        let Some(entry) = entry else { break };
        unpacker.count(entry.size)?;
        unpacker.apply(&entry, &mut archive, cancel).map_err(|failure| match failure {
            Failure::Io(_) if cancel.is_cancelled() => UnpackError::Abandoned,
            Failure::Io(error) => {
                UnpackError::Archive(format!("{:?}: {error}", String::from_utf8_lossy(&entry.path)))
            }
            Failure::Unpack(error) => error,
        })?;
    }
    unpacker.set_directory_times().map_err(|error| UnpackError::Archive(error.to_string()))?;
    let usage = unpacker.usage;
    Ok((archive.into_inner(), usage))
}

enum Failure {
    Io(io::Error),
    Unpack(UnpackError),
}

impl<E: Into<io::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Io(error.into())
    }
}

struct Unpacker<'a> {
    root: BorrowedFd<'a>,
    limits: &'a UnpackLimits,
    usage: Usage,
    unchecked_bytes: u64,
    /// The directory of the entry before, under its name: most entries are in the same one.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Hashes of the names made by this layer, which an opaque whiteout keeps.
    made: HashSet<u64>,
    hasher: RandomState,
    /// Times of directories, set when nothing changes in them any more.
    directory_times: Vec<(Vec<u8>, Mtime)>,
    deferred_bytes: usize,
    buffer: Vec<u8>,
}

impl Unpacker<'_> {
    fn count(&mut self, size: u64) -> Result<(), UnpackError> {
        self.usage.entries += 1;
        if self.usage.entries > self.limits.max_layer_entries {
            return Err(UnpackError::Limit(format!(
                "the layer has more than {} entries",
                self.limits.max_layer_entries
            )));
        }
        self.take_space(size.max(ENTRY_BYTES))
    }

    fn take_space(&mut self, bytes: u64) -> Result<(), UnpackError> {
        self.usage.bytes = self.usage.bytes.saturating_add(bytes);
        if self.usage.bytes > self.limits.max_layer_bytes {
            return Err(UnpackError::Limit(format!(
                "the layer unpacks to more than {} bytes",
                self.limits.max_layer_bytes
            )));
        }
        self.unchecked_bytes = self.unchecked_bytes.saturating_add(bytes);
        if self.unchecked_bytes >= FREE_CHECK_EVERY || self.usage.entries.is_multiple_of(FREE_CHECK_ENTRIES) {
            self.unchecked_bytes = 0;
            let free = free_space(self.root).map_err(|error| UnpackError::Archive(error.to_string()))?;
            // A file that cannot fit is refused before its first byte.
            if free.bytes < self.limits.min_free_bytes.saturating_add(bytes) {
                return Err(UnpackError::Limit(format!(
                    "no space left for images: {} bytes are free, {} of them reserved",
                    free.bytes, self.limits.min_free_bytes
                )));
            }
            if let Some(inodes) = free.inodes.filter(|inodes| *inodes < self.limits.min_free_inodes) {
                return Err(UnpackError::Limit(format!(
                    "no space left for images: {inodes} inodes are free, {} of them reserved",
                    self.limits.min_free_inodes
                )));
            }
        }
        Ok(())
    }

    fn apply(&mut self, entry: &Entry, data: &mut impl Read, cancel: &Cancel) -> Result<(), Failure> {
        let path = clean(&entry.path)?;
        let Some((parent_path, name)) = split(&path) else {
            // The root itself: only its attributes.
            if entry.kind != Kind::Directory {
                return Err(invalid("the root of a layer must be a directory").into());
            }
            let root = open_in_root(self.root, b"", OFlags::DIRECTORY | OFlags::RDONLY)?;
            set_attributes(root.as_fd(), entry)?;
            return Ok(self.defer_times(Vec::new(), entry.mtime)?);
        };
        let parent = self.open_parent(parent_path)?;
        let result = self.apply_in(parent.as_fd(), parent_path, name, entry, data, cancel);
        // Kept for the next entry unless this one may have moved what the name leads to.
        if result.is_ok() && matches!(entry.kind, Kind::Regular) && self.parent.is_none() {
            self.parent = Some((parent_path.to_vec(), parent));
        }
        result
    }

    fn apply_in(
        &mut self,
        parent: BorrowedFd<'_>,
        parent_path: &[u8],
        name: &[u8],
        entry: &Entry,
        data: &mut impl Read,
        cancel: &Cancel,
    ) -> Result<(), Failure> {
        if name == OPAQUE {
            return Ok(self.make_opaque(parent, parent_path)?);
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(invalid("whiteout of nothing").into());
            }
            return Ok(remove_at(parent, &CString::new(hidden)?)?);
        }
        let made = self.key(parent_path, name);
        self.made.insert(made);
        let name = CString::new(name)?;
        self.make_room(parent, &name, entry.kind)?;
        match entry.kind {
            Kind::Directory => {
                match rustix::fs::mkdirat(parent, &name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let dir = rustix::fs::openat(parent, &name, flags, Mode::empty())?;
                set_attributes(dir.as_fd(), entry)?;
                self.defer_times(join(parent_path, name.as_bytes()), entry.mtime)?;
            }
            Kind::Regular => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(parent, &name, flags, Mode::RUSR | Mode::WUSR)?;
                let mut file = std::fs::File::from(file);
                self.copy(data, &mut file, entry.size, cancel)?;
                set_attributes(file.as_fd(), entry)?;
                rustix::fs::futimens(&file, &times(entry.mtime))?;
            }
            Kind::Symlink => {
                rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), parent, &name)?;
                set_node_attributes(parent, &name, entry)?;
            }
            Kind::HardLink => self.hard_link(parent, &name, &entry.link)?,
            Kind::CharDevice { major: 0, minor: 0 } => {
                // In a layer this would hide what lies below, without being asked as a whiteout.
                return Err(invalid("character device 0/0 is not allowed").into());
            }
            Kind::CharDevice { major, minor } => {
                self.node(
                    parent,
                    &name,
                    entry,
                    FileType::CharacterDevice,
                    rustix::fs::makedev(major, minor),
                )?;
            }
            Kind::BlockDevice { major, minor } => {
                self.node(parent, &name, entry, FileType::BlockDevice, rustix::fs::makedev(major, minor))?;
            }
            Kind::Fifo => self.node(parent, &name, entry, FileType::Fifo, 0)?,
        }
        Ok(())
    }

    /// Removes what is in the way: everything but a directory under a directory.
    fn make_room(&mut self, parent: BorrowedFd<'_>, name: &CString, kind: Kind) -> io::Result<()> {
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(stat)
                if kind == Kind::Directory
                    && FileType::from_raw_mode(stat.st_mode) == FileType::Directory =>
            {
                Ok(())
            }
            Ok(_) => remove_at(parent, name),
        }
    }

    fn node(
        &self,
        parent: BorrowedFd<'_>,
        name: &CString,
        entry: &Entry,
        kind: FileType,
        device: u64,
    ) -> io::Result<()> {
        rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(0), device)?;
        set_node_attributes(parent, name, entry)
    }

    fn hard_link(&self, parent: BorrowedFd<'_>, name: &CString, target: &[u8]) -> io::Result<()> {
        let target = clean(target)?;
        let (target_parent, target_name) =
            split(&target).ok_or_else(|| invalid("hard link to the root directory"))?;
        let target_parent = open_in_root(self.root, target_parent, OFlags::DIRECTORY | OFlags::PATH)
            .map_err(|error| link_error(&target, error))?;
        rustix::fs::linkat(&target_parent, OsStr::from_bytes(target_name), parent, name, AtFlags::empty())
            .map_err(|error| link_error(&target, error))
    }

    fn copy(
        &mut self,
        data: &mut impl Read,
        file: &mut std::fs::File,
        size: u64,
        cancel: &Cancel,
    ) -> Result<(), Failure> {
        let mut left = size;
        while left > 0 {
            if cancel.is_cancelled() {
                return Err(Failure::Unpack(UnpackError::Abandoned));
            }
            match data.read(&mut self.buffer) {
                Ok(0) => return Err(super::tar::cut_short().into()),
                Ok(n) => {
                    file.write_all(&self.buffer[..n])?;
                    left = left.saturating_sub(n as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Opens the directory of an entry, making what is missing on the way.
    fn open_parent(&mut self, path: &[u8]) -> Result<OwnedFd, Failure> {
        if let Some((cached, fd)) = self.parent.take()
            && cached == path
        {
            return Ok(fd);
        }
        let flags = OFlags::DIRECTORY | OFlags::RDONLY;
        match open_in_root(self.root, path, flags) {
            Ok(dir) => return Ok(dir),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let mut parent = open_in_root(self.root, b"", flags)?;
        let mut end = 0;
        for name in path.split(|b| *b == b'/') {
            let start = if end == 0 { 0 } else { end + 1 };
            end = start + name.len();
            parent = match open_in_root(self.root, &path[..end], flags) {
                Ok(dir) => dir,
                Err(Errno::NOENT) => {
                    let made = self.key(&path[..start.saturating_sub(1)], name);
                    self.made.insert(made);
                    self.count(0).map_err(Failure::Unpack)?;
                    // A link that leads nowhere is in the way here, and an error.
                    rustix::fs::mkdirat(&parent, OsStr::from_bytes(name), Mode::from_raw_mode(0o755))?;
                    let dir = open_in_root(self.root, &path[..end], flags)?;
                    rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o755))?;
                    dir
                }
                Err(error) => return Err(error.into()),
            };
        }
        Ok(parent)
    }

    /// Hides everything in a directory that does not come from this layer.
    fn make_opaque(&mut self, dir: BorrowedFd<'_>, path: &[u8]) -> io::Result<()> {
        for_each_child(dir, |name, _| {
            if self.made.contains(&self.key(path, name.to_bytes())) {
                return Ok(false);
            }
            remove_at(dir, name)?;
            Ok(true)
        })
    }

    fn key(&self, parent: &[u8], name: &[u8]) -> u64 {
        self.hasher.hash_one((parent, name))
    }

    fn defer_times(&mut self, path: Vec<u8>, mtime: Mtime) -> io::Result<()> {
        self.deferred_bytes += path.len() + size_of::<(Vec<u8>, Mtime)>();
        self.directory_times.push((path, mtime));
        if self.deferred_bytes > DEFERRED_MAX {
            // Those that still change get the time of that.
            self.set_directory_times()?;
        }
        Ok(())
    }

    fn set_directory_times(&mut self) -> io::Result<()> {
        self.deferred_bytes = 0;
        for (path, mtime) in self.directory_times.drain(..).rev() {
            // A later entry may have put something else there.
            match open_in_root(self.root, &path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW) {
                Ok(dir) => rustix::fs::futimens(&dir, &times(mtime))?,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn link_error(target: &[u8], error: Errno) -> io::Error {
    let error = io::Error::from(error);
    io::Error::new(error.kind(), format!("hard link to {:?}: {error}", String::from_utf8_lossy(target)))
}

/// Owner, extended attributes and mode, in the order in which none of them takes another away.
fn set_attributes(file: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
    rustix::fs::fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    for (name, value) in &entry.xattrs {
        if name.starts_with("trusted.") || name.starts_with("user.overlay.") {
            // Overlay would take these as its own.
            return Err(invalid(&format!("extended attribute {name} is not allowed")));
        }
        if name != "security.capability" && !name.starts_with("user.") {
            continue;
        }
        match rustix::fs::fsetxattr(file, name.as_str(), value, XattrFlags::empty()) {
            // As upstream: a file system without attributes goes without.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode))?;
    Ok(())
}

/// The same for what cannot be opened.
fn set_node_attributes(parent: BorrowedFd<'_>, name: &CString, entry: &Entry) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if entry.kind != Kind::Symlink {
        // Made just now in a directory that nobody else uses: it is no link.
        rustix::fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
    }
    rustix::fs::utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

fn times(mtime: Mtime) -> Timestamps {
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// A name relative to the root, without `.`, doubled slashes and a leading slash. A name with `..` is refused:
/// no tool that makes images writes one.
fn clean(path: &[u8]) -> io::Result<Vec<u8>> {
    if path.len() > PATH_MAX {
        return Err(invalid("the name is too long"));
    }
    if path.contains(&0) {
        return Err(invalid("the name holds a zero byte"));
    }
    let mut clean = Vec::with_capacity(path.len());
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(invalid("the name leads out of the layer")),
            part => {
                if !clean.is_empty() {
                    clean.push(b'/');
                }
                clean.extend_from_slice(part);
            }
        }
    }
    Ok(clean)
}

fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None => Some((b"", path)),
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}
