//! The file layer: what the embedded engine asks of a disk, and nothing more.
//!
//! [`Disk`] is the real one; [`crate::simfs::SimFs`] keeps files in memory and loses power on request. The engine
//! is written against the guarantees below and no others:
//! - Bytes that were written are durable once [`File::sync`] has returned; before that any part of them may be
//!   lost, sector by sector, and what is lost in new space reads as zeros.
//! - Names are durable once [`Directory::sync`] has returned.
//! - After a failed `sync` nothing is known about the bytes that it covered, and asking again proves nothing.

use std::any::Any;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One flat directory of files.
pub trait Directory: Send + Sync + 'static {
    /// Takes the directory for this opener alone, until the returned guard is dropped. `WouldBlock` if another has it.
    fn lock(&self) -> io::Result<Box<dyn Any + Send + Sync>>;
    /// The names of all files, sorted.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens an existing file.
    fn open(&self, name: &str) -> io::Result<Box<dyn File>>;
    /// Makes an empty file, in place of one that may be there.
    fn create(&self, name: &str) -> io::Result<Box<dyn File>>;
    /// Renames a file over one that may be there.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes all names durable.
    fn sync(&self) -> io::Result<()>;
    /// Where `name` is, for messages.
    fn describe(&self, name: &str) -> String;
}

/// One file.
#[allow(clippy::len_without_is_empty, reason = "nobody asks a file whether it is empty")]
pub trait File: Send + Sync {
    /// Reads up to `buffer.len()` bytes from `offset`; fewer only at the end of the file.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`. After an error any part of them may have been written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync(&self) -> io::Result<()>;
    /// Cuts or extends (with zeros) to `length`.
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Extends with zeros to `length` and takes the space for them, so that writing there needs no new metadata.
    fn reserve(&self, length: u64) -> io::Result<()>;
    /// The length.
    fn len(&self) -> io::Result<u64>;
}

/// Reads all of `file` into `bytes`, in place of what is there.
pub(crate) fn read_all(file: &dyn File, bytes: &mut Vec<u8>) -> io::Result<()> {
    let length = usize::try_from(file.len()?).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    bytes.resize(length, 0);
    let read = file.read_at(0, bytes)?;
    bytes.truncate(read);
    Ok(())
}

/// Whether an error says that there is no room, or no descriptor, as opposed to a disk that cannot be trusted: it may be
/// tried again.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    let out_of_descriptors = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE];
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        || out_of_descriptors.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

const LOCK_FILE: &str = "lock";

/// A directory of the operating system. Files are readable by their owner only.
#[derive(Debug, Clone)]
pub struct Disk {
    path: PathBuf,
    /// Held, so that making names durable never fails for want of a descriptor.
    directory: Arc<fs::File>,
}

impl Disk {
    /// The directory `path`, made, durably, if it does not exist.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::path::absolute(path.into())?;
        let missing: Vec<&Path> = path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        for parent in missing.into_iter().filter_map(Path::parent) {
            fs::File::open(parent)?.sync_all()?;
        }
        let directory = Arc::new(fs::File::open(&path)?);
        Ok(Disk { path, directory })
    }
}

impl Directory for Disk {
    fn lock(&self) -> io::Result<Box<dyn Any + Send + Sync>> {
        let file = options().create(true).truncate(false).open(self.path.join(LOCK_FILE))?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(file)),
            Err(fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            if let Ok(name) = entry?.file_name().into_string()
                && name != LOCK_FILE
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        Ok(Box::new(DiskFile(options().open(self.path.join(name))?)))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        Ok(Box::new(DiskFile(options().create(true).truncate(true).open(self.path.join(name))?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        self.directory.sync_all()
    }

    fn describe(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }
}

fn options() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

#[derive(Debug)]
struct DiskFile(fs::File);

impl File for DiskFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut read = 0;
        while read < buffer.len() {
            match self.0.read_at(&mut buffer[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(n) => read += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn reserve(&self, length: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), 0, length)?)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}
