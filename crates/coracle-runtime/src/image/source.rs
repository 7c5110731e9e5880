//! Files of an image archive, by name: from a directory, or from a tar file without unpacking it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, OFlags};

use super::fs::{free_space, open_dir, open_in_root};
use super::layers::{Compression, decompress};
use super::operation::Operation;
use super::tar::{Kind, Section, TarReader};
use super::types::UnpackLimits;
use super::{ImageError, ImageResult};

/// Files of one archive; real ones have a few for each layer.
const FILES_MAX: usize = 100_000;
/// Longest name of a file, and of what a link points to: the kernel's limit on a path.
const NAME_MAX: usize = 4096;
/// Bytes of all names of one archive.
const NAMES_MAX: usize = 16 << 20;
/// Bytes of all documents of one archive: manifests, configurations. Those of one image are some kilobytes.
const DOCUMENTS_MAX: u64 = 32 << 20;
/// Links to follow from one name.
const LINKS_MAX: usize = 16;

/// An archive, opened.
pub(crate) struct Source {
    path: PathBuf,
    form: Form,
    /// Bytes of the documents read so far.
    documents: Cell<u64>,
}

enum Form {
    Directory(OwnedFd),
    Tar { file: Arc<File>, files: BTreeMap<String, Place> },
}

enum Place {
    Data {
        offset: u64,
        size: u64,
    },
    /// Old archives share equal layers by links, relative to the directory of the link.
    Link(String),
}

impl Source {
    /// Opens a directory or an archive. A compressed archive is first unpacked into the operation's directory.
    pub(crate) fn open(path: &Path, operation: &Operation, limits: &UnpackLimits) -> ImageResult<Source> {
        let metadata = std::fs::metadata(path).map_err(ImageError::io("cannot open", path))?;
        let form = if metadata.is_dir() {
            Form::Directory(open_dir(path).map_err(ImageError::io("cannot open", path))?)
        } else {
            let file = plain_file(path, operation, limits)?;
            let files = list(&file, path)?;
            Form::Tar { file: Arc::new(file), files }
        };
        Ok(Source { path: path.to_owned(), form, documents: Cell::new(0) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.size(name).is_ok()
    }

    /// Length of a file.
    pub(crate) fn size(&self, name: &str) -> ImageResult<u64> {
        match &self.form {
            Form::Directory(dir) => {
                let file = self.open_below(dir, name)?;
                Ok(file.metadata().map_err(ImageError::io("cannot look at", self.path.join(name)))?.len())
            }
            Form::Tar { files, .. } => Ok(self.locate(files, name)?.1),
        }
    }

    /// Opens a file for reading from its start.
    pub(crate) fn open_file(&self, name: &str) -> ImageResult<Box<dyn Read>> {
        match &self.form {
            Form::Directory(dir) => Ok(Box::new(self.open_below(dir, name)?)),
            Form::Tar { file, files } => {
                let (offset, size) = self.locate(files, name)?;
                Ok(Box::new(Section::new(Arc::clone(file), offset, size)))
            }
        }
    }

    /// Reads a document.
    pub(crate) fn read_small(&self, name: &str, max: u64) -> ImageResult<Vec<u8>> {
        let size = self.size(name)?;
        if size > max {
            return Err(ImageError::Limit(format!(
                "{name} in {} is larger than {max} bytes",
                self.path.display()
            )));
        }
        // One document may be named any number of times, and is kept each time.
        self.documents.set(self.documents.get().saturating_add(size));
        if self.documents.get() > DOCUMENTS_MAX {
            return Err(ImageError::Limit(format!(
                "the manifests and configurations in {} are larger than {DOCUMENTS_MAX} bytes",
                self.path.display()
            )));
        }
        let mut bytes = Vec::new();
        self.open_file(name)?
            .take(max)
            .read_to_end(&mut bytes)
            .map_err(ImageError::io("cannot read", self.path.join(name)))?;
        Ok(bytes)
    }

    fn open_below(&self, dir: &OwnedFd, name: &str) -> ImageResult<File> {
        let path = self.path.join(name);
        let file = open_in_root(dir.as_fd(), name.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK)
            .map_err(ImageError::io("cannot open", &path))?;
        let stat = rustix::fs::fstat(&file).map_err(ImageError::io("cannot look at", &path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(ImageError::BadArchive { what: format!("{} is not a file", path.display()) });
        }
        Ok(File::from(file))
    }

    fn locate(&self, files: &BTreeMap<String, Place>, name: &str) -> ImageResult<(u64, u64)> {
        let mut at = normal(name);
        for _ in 0..LINKS_MAX {
            match at.as_ref().and_then(|at| Some((at, files.get(at)?))) {
                Some((_, Place::Data { offset, size })) => return Ok((*offset, *size)),
                Some((from, Place::Link(target))) => {
                    let dir = from.rsplit_once('/').map_or("", |(dir, _)| dir);
                    at = normal(target)
                        .filter(|t| files.contains_key(t))
                        .or_else(|| normal(&format!("{dir}/{target}")));
                }
                None => break,
            }
        }
        Err(ImageError::BadArchive { what: format!("{} holds no file {name}", self.path.display()) })
    }
}

/// A name without `.` and `..`; `None` if it leads out.
fn normal(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The archive as a plain tar file.
fn plain_file(path: &Path, operation: &Operation, limits: &UnpackLimits) -> ImageResult<File> {
    let cannot_read = |error: io::Error| ImageError::io("cannot read", path)(error);
    let mut file = File::open(path).map_err(ImageError::io("cannot open", path))?;
    let mut magic = Vec::new();
    (&mut file).take(4).read_to_end(&mut magic).map_err(cannot_read)?;
    let seekable = file.seek(SeekFrom::Start(0)).is_ok();
    if seekable && Compression::of(&magic) == Compression::None {
        return Ok(file);
    }
    // A pipe is copied as well: it can be read only once.
    let start: &[u8] = if seekable { &[] } else { &magic };
    let mut plain = decompress(start.chain(file))
        .map_err(|error| ImageError::BadArchive { what: format!("{}: {error}", path.display()) })?;
    let mut copy = operation.create_file("archive")?;
    let mut total: u64 = 0;
    loop {
        let n = io::copy(&mut (&mut plain).take(16 << 20), &mut copy)
            .map_err(|error| ImageError::BadArchive { what: format!("{}: {error}", path.display()) })?;
        if n == 0 {
            return Ok(copy);
        }
        total += n;
        let free = free_space(copy.as_fd()).map_err(cannot_read)?;
        if total > limits.max_layer_bytes || free.bytes < limits.min_free_bytes {
            return Err(ImageError::Limit(format!("{}: no space to unpack the archive", path.display())));
        }
    }
}

fn list(file: &File, path: &Path) -> ImageResult<BTreeMap<String, Place>> {
    let bad = |error: io::Error| ImageError::BadArchive { what: format!("{}: {error}", path.display()) };
    let length = file.metadata().map_err(ImageError::io("cannot look at", path))?.len();
    let mut reader = TarReader::new(Section::new(file, 0, length));
    let mut files = BTreeMap::new();
    let mut names = 0;
    while let Some(entry) = reader.next_entry().map_err(bad)? {
        names += entry.path.len() + entry.link.len();
        if entry.path.len().max(entry.link.len()) > NAME_MAX || names > NAMES_MAX {
            return Err(ImageError::Limit(format!("the names in {} are too long", path.display())));
        }
        let Some(name) = std::str::from_utf8(&entry.path).ok().and_then(normal) else {
            return Err(bad(super::tar::invalid("a name in the archive leads out of it, or is not text")));
        };
        let place = match entry.kind {
            Kind::Regular => {
                let offset = reader.inner().position();
                if offset.saturating_add(entry.size) > length {
                    return Err(bad(super::tar::cut_short()));
                }
                Place::Data { offset, size: entry.size }
            }
            Kind::Symlink | Kind::HardLink => Place::Link(String::from_utf8_lossy(&entry.link).into_owned()),
            _ => continue,
        };
        files.insert(name, place);
        if files.len() > FILES_MAX {
            return Err(ImageError::Limit(format!("{} holds more than {FILES_MAX} files", path.display())));
        }
    }
    Ok(files)
}
