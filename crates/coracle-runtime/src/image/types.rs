//! The store's public data.

use std::path::PathBuf;
use std::time::Duration;

use coracle_cri::Image;

/// How to open an image store.
#[derive(Debug, Clone)]
pub struct ImageStoreConfig {
    /// Directory of the store. Made if missing; its file system must be able to hold overlay layers.
    pub dir: PathBuf,
    /// How registries are talked to.
    pub registry: RegistryConfig,
    /// What an image may unpack to.
    pub limits: UnpackLimits,
}

impl ImageStoreConfig {
    /// The usual configuration of a store in `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        ImageStoreConfig {
            dir: dir.into(),
            registry: RegistryConfig::default(),
            limits: UnpackLimits::default(),
        }
    }
}

/// How registries are talked to.
#[derive(Debug, Clone)]
pub struct RegistryConfig {
    /// Registries (`host` or `host:port`) that are spoken to without TLS. Loopback addresses always are.
    pub plain_http: Vec<String>,
    /// PEM files with certificate authorities that are trusted beside the system's.
    pub extra_ca_files: Vec<PathBuf>,
    /// Time to make a connection.
    pub connect_timeout: Duration,
    /// Time without a byte after which a transfer is given up.
    pub idle_timeout: Duration,
    /// Time that a whole pull may take.
    pub total_timeout: Duration,
    /// Layers of one image fetched at the same time.
    pub parallel_downloads: usize,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        RegistryConfig {
            plain_http: Vec::new(),
            extra_ca_files: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            total_timeout: Duration::from_secs(3600),
            parallel_downloads: 3,
        }
    }
}

/// What an image may unpack to: the guard against archives that are small on the wire and huge on disk.
#[derive(Debug, Clone)]
pub struct UnpackLimits {
    /// Bytes that stay free on the store's file system; an unpack that would take them fails.
    pub min_free_bytes: u64,
    /// Inodes that stay free there, if the file system counts them.
    pub min_free_inodes: u64,
    /// Bytes of one unpacked layer.
    pub max_layer_bytes: u64,
    /// Files, directories and links of one layer.
    pub max_layer_entries: u64,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        UnpackLimits {
            min_free_bytes: 512 << 20,
            min_free_inodes: 50_000,
            max_layer_bytes: 128 << 30,
            max_layer_entries: 1_500_000,
        }
    }
}

/// How far an import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImportProgress {
    /// Layers unpacked, or found unpacked already.
    pub layers_done: usize,
    /// Layers in all.
    pub layers_total: usize,
    /// Bytes read from the layers so far.
    pub read_bytes: u64,
    /// Bytes of the layers in all, as stored in the archive.
    pub total_bytes: u64,
}

/// One image that an import brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedImage {
    /// The image as it is in the store now.
    pub image: Image,
    /// The names that this import gave it.
    pub names: Vec<String>,
}

/// What removing an image did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RemovedImage {
    /// Names taken away.
    pub untagged: Vec<String>,
    /// Id of the image, if it went with its last name.
    pub deleted: Option<String>,
}

/// The directories of one container's overlay. The runtime mounts them; nothing here is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// Read-only layers, the topmost first (the order of overlay's `lowerdir`). Never empty.
    pub lower: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// Overlay's work directory.
    pub work: PathBuf,
    /// An empty directory to mount at.
    pub merged: PathBuf,
}
