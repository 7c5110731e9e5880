//! Where things are in the store's directory.
//!
//! ```text
//! lock                       held while the store is changed
//! images.json                which images there are: replaced as a whole, so that readers need no lock
//! blobs/sha256/<hex>         manifests and configurations
//! layers/<chain id>/fs       an unpacked layer, in overlay's own form
//! layers/<chain id>/layer.json
//! operations/<pid>-<n>/      imports and pulls under way, and what is about to be removed
//! empty/                     stands in for the layers of an image that has none
//! rootfs/<container id>/     upper, work, merged; links image and layer say what it stands on
//! ```

use std::path::{Path, PathBuf};

use super::ImageResult;
use super::digest::Digest;
use super::fs::make_dirs;

#[derive(Debug, Clone)]
pub(crate) struct Layout {
    dir: PathBuf,
}

impl Layout {
    pub(crate) fn create(dir: &Path) -> ImageResult<Layout> {
        let layout = Layout { dir: dir.to_owned() };
        for path in [layout.blobs(), layout.layers(), layout.operations(), layout.rootfs(), layout.empty()] {
            make_dirs(&path)?;
        }
        Ok(layout)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.dir.join("images.json")
    }

    /// Where the next index is written; only the holder of the lock does.
    pub(crate) fn next_index(&self) -> PathBuf {
        self.dir.join("images.json.next")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.dir.join("blobs").join("sha256")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.dir.join("layers")
    }

    pub(crate) fn layer(&self, chain: &Digest) -> PathBuf {
        self.layers().join(chain.hex())
    }

    pub(crate) fn operations(&self) -> PathBuf {
        self.dir.join("operations")
    }

    pub(crate) fn empty(&self) -> PathBuf {
        self.dir.join("empty")
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }
}
