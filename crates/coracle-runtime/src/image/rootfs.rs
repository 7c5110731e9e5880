//! Root file systems of containers: writable layers over an image's, and what keeps the latter in the store.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use coracle_cri::ContainerId;

use super::digest::Digest;
use super::fs::remove_path;
use super::layers::{files, read_info};
use super::operation::Operation;
use super::overlay::is_mounted;
use super::store::{ImageStore, Shared};
use super::types::Rootfs;
use super::{ImageError, ImageResult};

/// Names of the links that say what a root file system stands on.
const IMAGE: &str = "image";
const LAYER: &str = "layer";

impl ImageStore {
    /// Makes the directories for a container's root file system; the same ones again if they are there. From now
    /// on the image's layers stay, whatever becomes of the image.
    pub fn prepare_rootfs(&self, image_id: &str, container: &ContainerId) -> ImageResult<Rootfs> {
        self.shared.prepare_rootfs(image_id, container)
    }

    /// Removes a container's root file system; succeeds if there is none. It must not be mounted.
    pub fn release_rootfs(&self, container: &ContainerId) -> ImageResult<()> {
        self.shared.release_rootfs(container)
    }

    /// Containers that have a root file system, sorted: what a restarted runtime compares with its own records.
    pub fn prepared_rootfs(&self) -> ImageResult<Vec<ContainerId>> {
        let mut ids: Vec<_> = self.shared.rootfs_dirs()?.into_iter().map(|(id, _)| ContainerId(id)).collect();
        ids.sort();
        Ok(ids)
    }
}

impl Shared {
    fn prepare_rootfs(&self, image_id: &str, container: &ContainerId) -> ImageResult<Rootfs> {
        let dir = self.rootfs_dir(container)?;
        let lock = self.lock()?;
        let snapshot = self.snapshot()?;
        let found = snapshot.find(image_id)?.ok_or_else(|| ImageError::NotFound(image_id.to_owned()))?;
        let record = snapshot.record(found.id()).ok_or_else(|| ImageError::NotFound(image_id.to_owned()))?;
        let mut lower: Vec<PathBuf> =
            record.chain.iter().rev().map(|id| files(&self.layout.layer(id))).collect();
        if lower.is_empty() {
            lower.push(self.layout.empty());
        }
        let rootfs =
            Rootfs { lower, upper: dir.join("upper"), work: dir.join("work"), merged: dir.join("merged") };
        match read_link(&dir, IMAGE) {
            Some(image) if image == found.id().to_string() => return Ok(rootfs),
            Some(image) => {
                return Err(ImageError::Precondition(format!(
                    "container {container} has a root file system of image {image} already"
                )));
            }
            // A crash in the middle of this function left a part.
            None if dir.exists() => remove_path(&dir)?,
            None => {}
        }
        for path in [&dir, &rootfs.upper, &rootfs.work, &rootfs.merged] {
            std::fs::create_dir(path).map_err(ImageError::io("cannot make directory", path))?;
        }
        self.copy_root_attributes(&rootfs)?;
        if let Some(top) = record.chain.last() {
            link(&dir, LAYER, top.hex())?;
        }
        // Last: it marks the directory as complete.
        link(&dir, IMAGE, &found.id().to_string())?;
        drop(lock);
        Ok(rootfs)
    }

    /// The root directory's own mode and owner come from the upper layer.
    fn copy_root_attributes(&self, rootfs: &Rootfs) -> ImageResult<()> {
        use std::os::unix::fs::MetadataExt;
        let top = &rootfs.lower[0];
        let upper = &rootfs.upper;
        let from = std::fs::metadata(top).map_err(ImageError::io("cannot look at", top))?;
        std::os::unix::fs::chown(upper, Some(from.uid()), Some(from.gid()))
            .and_then(|()| std::fs::set_permissions(upper, from.permissions()))
            .map_err(ImageError::io("cannot change", upper))
    }

    fn release_rootfs(&self, container: &ContainerId) -> ImageResult<()> {
        let dir = self.rootfs_dir(container)?;
        let merged = dir.join("merged");
        match is_mounted(&merged) {
            Ok(false) => {}
            Ok(true) => {
                return Err(ImageError::Precondition(format!(
                    "the root file system of container {container} is still mounted"
                )));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(ImageError::io("cannot look at", &merged)(error)),
        }
        if !dir.exists() {
            return Ok(());
        }
        // In one step out of sight, so that a crash in the middle leaves nothing that looks usable.
        let trash = {
            let lock = self.lock()?;
            let trash = Operation::begin(&self.layout, &lock)?;
            let to = trash.dir().join("rootfs");
            match std::fs::rename(&dir, &to) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(ImageError::io("cannot rename to", &to)(error)),
            }
            trash
        };
        drop(trash);
        Ok(())
    }

    fn rootfs_dir(&self, container: &ContainerId) -> ImageResult<PathBuf> {
        let id = &container.0;
        let safe = !id.is_empty()
            && id.len() <= 128
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if safe {
            Ok(self.layout.rootfs().join(id))
        } else {
            Err(ImageError::Precondition(format!("{id:?} is not a container id")))
        }
    }

    fn rootfs_dirs(&self) -> ImageResult<Vec<(String, PathBuf)>> {
        let parent = self.layout.rootfs();
        let entries = std::fs::read_dir(&parent).map_err(ImageError::io("cannot read", &parent))?;
        Ok(entries
            .flatten()
            .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
            .collect())
    }

    /// Containers whose root file system stands on the image. The caller holds the store's lock.
    pub(super) fn containers_of(&self, image: &Digest) -> ImageResult<Vec<String>> {
        let image = image.to_string();
        let mut ids: Vec<String> = self
            .rootfs_dirs()?
            .into_iter()
            .filter(|(_, dir)| read_link(dir, IMAGE).as_ref() == Some(&image))
            .map(|(id, _)| id)
            .collect();
        ids.sort();
        Ok(ids)
    }

    /// Layers that root file systems stand on, with all below them. The caller holds the store's lock.
    pub(super) fn layers_of_rootfs(&self) -> ImageResult<BTreeSet<Digest>> {
        let mut layers = BTreeSet::new();
        for (_, dir) in self.rootfs_dirs()? {
            let mut next = read_link(&dir, LAYER).and_then(|hex| Digest::from_hex(&hex));
            while let Some(id) = next {
                if !layers.insert(id.clone()) {
                    break;
                }
                let dir = self.layout.layer(&id);
                // A layer that is gone keeps nothing; one that cannot be read stops the sweep.
                next = if dir.exists() { read_info(&dir)?.parent } else { None };
            }
        }
        Ok(layers)
    }
}

fn link(dir: &Path, name: &str, target: &str) -> ImageResult<()> {
    let path = dir.join(name);
    std::os::unix::fs::symlink(target, &path).map_err(ImageError::io("cannot link", &path))
}

fn read_link(dir: &Path, name: &str) -> Option<String> {
    std::fs::read_link(dir.join(name)).ok()?.into_os_string().into_string().ok()
}
