//! Work in progress: a directory of its own, locked while its process lives, swept when it does not.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::digest::Digest;
use super::fs::{FileLock, make_dirs, remove_path};
use super::layout::Layout;
use super::{ImageError, ImageResult, overlay};

static NEXT: AtomicU64 = AtomicU64::new(0);

/// One import or pull. Its directory goes with it; if the process dies instead, the next sweep finds the lock
/// free and removes the directory.
#[derive(Debug)]
pub(crate) struct Operation {
    dir: PathBuf,
    _lock: FileLock,
}

impl Operation {
    /// Begins an operation. The caller holds the store's lock, so that no sweep sees the directory before its
    /// lock is taken.
    pub(crate) fn begin(layout: &Layout, _held: &FileLock) -> ImageResult<Operation> {
        let parent = layout.operations();
        loop {
            let dir = parent.join(format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
            match std::fs::create_dir(&dir) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(ImageError::io("cannot make directory", &dir)(error)),
            }
            let lock = FileLock::exclusive(&dir.join("lock"))?;
            return Ok(Operation { dir, _lock: lock });
        }
    }

    /// Where this operation may make what it likes.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file to fill.
    pub(crate) fn create_file(&self, name: &str) -> ImageResult<File> {
        let path = self.dir.join(name);
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(ImageError::io("cannot create", &path))
    }

    /// The directory of a layer being unpacked.
    pub(crate) fn layer(&self, chain: &Digest) -> PathBuf {
        self.dir.join("layers").join(chain.hex())
    }

    /// Keeps layers of the store while the operation lasts, although no image refers to them yet. The caller
    /// holds the store's lock.
    pub(crate) fn pin(&self, chain: &[Digest], _held: &FileLock) -> ImageResult<()> {
        let pins = self.dir.join("pins");
        make_dirs(&pins)?;
        for id in chain {
            let path = pins.join(id.hex());
            File::create(&path).map_err(ImageError::io("cannot create", &path))?;
        }
        Ok(())
    }

    fn pins(dir: &Path) -> BTreeSet<Digest> {
        let Ok(pins) = std::fs::read_dir(dir.join("pins")) else { return BTreeSet::new() };
        pins.filter_map(|entry| Digest::from_hex(entry.ok()?.file_name().to_str()?)).collect()
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        let dir = self.dir.clone();
        let remove = move || {
            if let Err(error) = remove_path(&dir) {
                tracing::warn!(error = %error, "leftovers of an image operation remain until the next sweep");
            }
        };
        // A dropped pull ends on a thread of the runtime, which must not wait for the disk.
        match tokio::runtime::Handle::try_current() {
            Ok(handle) => drop(handle.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// What the operations of all processes leave to a sweep.
pub(crate) struct Survey {
    /// Layers that live operations count on.
    pub(crate) pinned: BTreeSet<Digest>,
    /// Directories of operations whose process is gone.
    pub(crate) abandoned: Vec<PathBuf>,
}

/// Looks at all operations. The caller holds the store's lock.
pub(crate) fn survey(layout: &Layout, _held: &FileLock) -> ImageResult<Survey> {
    let mut survey = Survey { pinned: BTreeSet::new(), abandoned: Vec::new() };
    let parent = layout.operations();
    let entries = std::fs::read_dir(&parent).map_err(ImageError::io("cannot read", &parent))?;
    for entry in entries.flatten() {
        let dir = entry.path();
        match FileLock::try_exclusive(&dir.join("lock")) {
            Ok(None) => survey.pinned.extend(Operation::pins(&dir)),
            // Without a lock file it is trash that a sweep was about to remove.
            Ok(Some(_)) | Err(_) => {
                let merged = dir.join("merged");
                if let Err(error) = overlay::unmount(&merged) {
                    tracing::warn!(path = %merged.display(), %error, "cannot unmount");
                }
                survey.abandoned.push(dir);
            }
        }
    }
    Ok(survey)
}
