//! The store: what holds the parts together.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use coracle_clock::Clock;
use coracle_cri::{FilesystemUsage, Image, ImageRunConfig};

use super::digest::Digest;
use super::fs::{FileLock, remove_path};
use super::index::{Found, Index, Record, Snapshot, assign_name};
use super::layers::{adopt, flush, read_info};
use super::layout::Layout;
use super::operation::{Operation, survey};
use super::registry::Registries;
use super::types::{ImageStoreConfig, RemovedImage};
use super::{ImageError, ImageResult};

/// Images of one cluster on this machine.
///
/// # Guarantees
/// - What is in the store was verified: manifests, configurations and layers against their digests, sizes
///   against their descriptors. A layer appears under its name only when it is complete and durable.
/// - Several processes may use one directory. Changes exclude each other by a lock on a file, held for
///   milliseconds and not while something is fetched or unpacked. Readers take no lock, and see a change at
///   their next look, which costs one system call.
/// - A layer stays while an image, a prepared root file system or an import or pull under way needs it. Leftovers
///   of a process that died are removed when a store is opened and after a removal.
///
/// # Caveats
/// The methods that are not `async` work with files and may wait for another process's change: short, but not
/// free. The directory must be on a file system that overlay can use as its upper layer.
#[derive(Debug, Clone)]
pub struct ImageStore {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: ImageStoreConfig,
    pub(super) layout: Layout,
    pub(super) index: Index,
    pub(super) clock: Clock,
    pub(super) registries: Registries,
}

impl ImageStore {
    /// Opens the store, making it if it is not there, and sweeps leftovers.
    pub fn open(config: ImageStoreConfig, clock: Clock) -> ImageResult<ImageStore> {
        let layout = Layout::create(&config.dir)?;
        let registries = Registries::new(&config.registry);
        let shared = Arc::new(Shared { layout, index: Index::new(), clock, registries, config });
        shared.index.load(&shared.layout)?;
        shared.sweep()?;
        Ok(ImageStore { shared })
    }

    /// All images, sorted by id.
    pub fn list(&self) -> ImageResult<Vec<Image>> {
        let snapshot = self.shared.snapshot()?;
        Ok(snapshot.iter().filter_map(|(id, _)| snapshot.image(id)).collect())
    }

    /// The image of a name, an id or the beginning of an id.
    pub fn get(&self, reference: &str) -> ImageResult<Option<Image>> {
        let snapshot = self.shared.snapshot()?;
        Ok(snapshot.find(reference)?.and_then(|found| snapshot.image(found.id())))
    }

    /// How containers of the image start. `image_id` may be anything that [`ImageStore::get`] takes.
    pub fn run_config(&self, image_id: &str) -> ImageResult<ImageRunConfig> {
        let snapshot = self.shared.snapshot()?;
        let found = snapshot.find(image_id)?.ok_or_else(|| ImageError::NotFound(image_id.to_owned()))?;
        let config = snapshot.config(found.id()).ok_or_else(|| ImageError::NotFound(image_id.to_owned()))?;
        Ok(config.run.clone())
    }

    /// Removes a name, and with its last name the image; or the image with all its names, if asked by id. An
    /// image that containers use is not removed.
    pub fn remove(&self, reference: &str) -> ImageResult<RemovedImage> {
        self.shared
            .remove(reference, InUse::Refuse)?
            .ok_or_else(|| ImageError::NotFound(reference.to_owned()))
    }
}

/// What to do with an image that containers use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InUse {
    Refuse,
    /// Forget the image; its layers stay while they are used.
    Forget,
}

/// A finished image, about to enter the store.
pub(super) struct NewImage {
    pub(super) id: Digest,
    pub(super) chain: Vec<Digest>,
    pub(super) names: Vec<String>,
    pub(super) digests: Vec<String>,
    /// Blobs to store: the configuration, and the manifests with what led to them.
    pub(super) blobs: Vec<(Digest, Vec<u8>)>,
    pub(super) pinned: bool,
}

impl Shared {
    pub(super) fn lock(&self) -> ImageResult<FileLock> {
        FileLock::exclusive(&self.layout.lock())
    }

    pub(super) fn snapshot(&self) -> ImageResult<Arc<Snapshot>> {
        self.index.load(&self.layout)
    }

    /// Begins an import or a pull.
    pub(super) fn begin(&self) -> ImageResult<Operation> {
        Operation::begin(&self.layout, &self.lock()?)
    }

    /// Keeps the layers of `chain` that are there from being swept while `operation` lasts.
    pub(super) fn pin(&self, operation: &Operation, chain: &[Digest]) -> ImageResult<()> {
        operation.pin(chain, &self.lock()?)
    }

    /// Enters a finished image: its layers are in `operation` or in the store already.
    pub(super) fn commit(&self, operation: &Operation, image: &NewImage) -> ImageResult<Image> {
        // Before the lock is taken: this is the part that takes long.
        let fresh = image.chain.iter().any(|id| operation.layer(id).exists());
        if fresh {
            flush(&self.layout)?;
        }
        let lock = self.lock()?;
        if fresh {
            adopt(&self.layout, operation, &image.chain)?;
        }
        for (digest, bytes) in &image.blobs {
            let path = self.layout.blob(digest);
            if !path.exists() {
                super::fs::write_atomically(&path, &operation.dir().join("blob"), bytes)?;
            }
        }
        let mut size: u64 = image.blobs.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        for id in &image.chain {
            size += read_info(&self.layout.layer(id))?.bytes;
        }
        self.index.update(&self.layout, &lock, |images| {
            let record = images.entry(image.id.clone()).or_default();
            record.chain.clone_from(&image.chain);
            record.size = record.size.max(size);
            record.pinned |= image.pinned;
            record.digests.extend(image.digests.iter().cloned());
            let manifests =
                image.blobs.iter().map(|(digest, _)| digest).filter(|digest| **digest != image.id);
            record.manifests.extend(manifests.cloned());
            for name in &image.names {
                assign_name(images, &image.id, name);
            }
        })?;
        drop(lock);
        self.snapshot()?.image(&image.id).ok_or_else(|| ImageError::NotFound(image.id.to_string()))
    }

    /// Gives an image that is there further names.
    pub(super) fn name_again(&self, id: &Digest, names: &[String], digests: &[String]) -> ImageResult<bool> {
        let wanted = |record: &Record| {
            names.iter().all(|n| record.names.contains(n))
                && digests.iter().all(|d| record.digests.contains(d))
        };
        match self.snapshot()?.record(id) {
            None => return Ok(false),
            Some(record) if wanted(record) => return Ok(true),
            Some(_) => {}
        }
        let lock = self.lock()?;
        if self.snapshot()?.record(id).is_none() {
            return Ok(false);
        }
        self.index.update(&self.layout, &lock, |images| {
            for name in names {
                assign_name(images, id, name);
            }
            if let Some(record) = images.get_mut(id) {
                record.digests.extend(digests.iter().cloned());
            }
        })?;
        Ok(true)
    }

    /// See [`ImageStore::remove`]; `None` if there is no such image.
    pub(super) fn remove(&self, reference: &str, in_use: InUse) -> ImageResult<Option<RemovedImage>> {
        let removed = {
            let lock = self.lock()?;
            let snapshot = self.snapshot()?;
            let Some(found) = snapshot.find(reference)? else { return Ok(None) };
            let id = found.id().clone();
            let Some(record) = snapshot.record(&id) else { return Ok(None) };
            let other_names = match &found {
                Found::Name(_, name) => record.names.iter().any(|other| other != name),
                Found::Id(_) => false,
            };
            if !other_names && in_use == InUse::Refuse {
                let containers = self.containers_of(&id)?;
                if !containers.is_empty() {
                    let containers = containers.iter().map(|id| id.chars().take(12).collect()).collect();
                    return Err(ImageError::InUse { name: reference.to_owned(), containers });
                }
            }
            let removed = match &found {
                Found::Name(_, name) if other_names => {
                    RemovedImage { untagged: vec![name.clone()], deleted: None }
                }
                _ => RemovedImage {
                    untagged: record.names.iter().cloned().collect(),
                    deleted: Some(id.to_string()),
                },
            };
            self.index.update(&self.layout, &lock, |images| {
                if removed.deleted.is_some() {
                    images.remove(&id);
                } else if let (Found::Name(_, name), Some(record)) = (&found, images.get_mut(&id)) {
                    record.names.remove(name);
                    record.digests.remove(name);
                }
            })?;
            removed
        };
        if removed.deleted.is_some() {
            self.sweep()?;
        }
        Ok(Some(removed))
    }

    /// Removes what nothing refers to: layers, blobs, and leftovers of dead processes.
    pub(super) fn sweep(&self) -> ImageResult<()> {
        let mut garbage: Vec<PathBuf> = Vec::new();
        let trash = {
            let lock = self.lock()?;
            let snapshot = self.snapshot()?;
            let survey = survey(&self.layout, &lock)?;
            garbage.extend(survey.abandoned);

            let mut layers = survey.pinned;
            let mut blobs: BTreeSet<Digest> = BTreeSet::new();
            for (id, record) in snapshot.iter() {
                layers.extend(record.chain.iter().cloned());
                blobs.insert(id.clone());
                blobs.extend(record.manifests.iter().cloned());
            }
            layers.extend(self.layers_of_rootfs()?);

            for path in unreferenced(&self.layout.blobs(), &blobs)? {
                remove_path(&path)?;
            }
            let dead = unreferenced(&self.layout.layers(), &layers)?;
            if dead.is_empty() {
                None
            } else {
                // Out of the way under the lock; the slow part comes after it.
                let trash = Operation::begin(&self.layout, &lock)?;
                for path in dead {
                    if let Some(name) = path.file_name() {
                        let to = trash.dir().join(name);
                        std::fs::rename(&path, &to).map_err(ImageError::io("cannot rename to", &to))?;
                    }
                }
                Some(trash)
            }
        };
        for path in garbage {
            remove_path(&path)?;
        }
        drop(trash);
        Ok(())
    }

    /// Space used, from the records of the layers.
    pub(super) fn usage(&self) -> ImageResult<FilesystemUsage> {
        let snapshot = self.snapshot()?;
        let layers: BTreeSet<&Digest> = snapshot.iter().flat_map(|(_, record)| &record.chain).collect();
        let mut usage = FilesystemUsage {
            mountpoint: self.layout.dir().display().to_string(),
            used_bytes: 0,
            inodes_used: 0,
        };
        for id in layers {
            // A layer may go while we look.
            if let Ok(info) = read_info(&self.layout.layer(id)) {
                usage.used_bytes += info.bytes;
                usage.inodes_used += info.entries;
            }
        }
        let blobs = self.layout.blobs();
        for entry in std::fs::read_dir(&blobs).map_err(ImageError::io("cannot read", &blobs))?.flatten() {
            usage.used_bytes += entry.metadata().map(|metadata| metadata.len()).unwrap_or(0);
            usage.inodes_used += 1;
        }
        Ok(usage)
    }
}

/// Entries of a directory of digests that are not in `live`.
fn unreferenced(dir: &std::path::Path, live: &BTreeSet<Digest>) -> ImageResult<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(ImageError::io("cannot read", dir))?;
    Ok(entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            !name.to_str().and_then(Digest::from_hex).is_some_and(|digest| live.contains(&digest))
        })
        .map(|entry| entry.path())
        .collect())
}
