//! Which images there are: one file, replaced as a whole, read again only when it was replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

use coracle_cri::Image;
use serde::{Deserialize, Serialize};

use super::config::{ParsedConfig, parse_config};
use super::digest::Digest;
use super::fs::{FileLock, write_atomically};
use super::layout::Layout;
use super::name::ImageName;
use super::{ImageError, ImageResult};

/// Version of the file's form. A store of another version is not touched.
const VERSION: u32 = 1;
/// Digits of an id that are enough to ask for an image.
const SHORT_ID_MIN: usize = 4;

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Normalized names with tags.
    pub(crate) names: BTreeSet<String>,
    /// Normalized names with digests.
    pub(crate) digests: BTreeSet<String>,
    /// Manifests and indexes that led to this image.
    pub(crate) manifests: BTreeSet<Digest>,
    /// Chain ids of the layers, the bottom one first.
    pub(crate) chain: Vec<Digest>,
    /// Bytes on disk.
    pub(crate) size: u64,
    /// Imported by hand.
    pub(crate) pinned: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Contents {
    version: u32,
    images: BTreeMap<Digest, Record>,
}

/// The images at one moment.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    images: BTreeMap<Digest, (Record, Arc<ParsedConfig>)>,
}

impl Snapshot {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Digest, &Record)> {
        self.images.iter().map(|(id, (record, _))| (id, record))
    }

    pub(crate) fn record(&self, id: &Digest) -> Option<&Record> {
        self.images.get(id).map(|(record, _)| record)
    }

    pub(crate) fn config(&self, id: &Digest) -> Option<&Arc<ParsedConfig>> {
        self.images.get(id).map(|(_, config)| config)
    }

    /// The image in the words of the contract.
    pub(crate) fn image(&self, id: &Digest) -> Option<Image> {
        let (record, config) = self.images.get(id)?;
        Some(Image {
            id: id.to_string(),
            repo_tags: record.names.iter().cloned().collect(),
            repo_digests: record.digests.iter().cloned().collect(),
            size: record.size,
            uid: config.uid,
            username: config.username.clone(),
            pinned: record.pinned,
            stop_signal: config.run.stop_signal.clone(),
        })
    }

    /// Finds an image by id, by name, or by the beginning of its id, in this order.
    pub(crate) fn find(&self, reference: &str) -> ImageResult<Option<Found>> {
        if let Some(id) = Digest::parse(reference).or_else(|| Digest::from_hex(reference)) {
            return Ok(self.images.contains_key(&id).then_some(Found::Id(id)));
        }
        // Most often the name is given as the store has it; parsing takes longer than looking.
        if let Some((id, _)) = self.iter().find(|(_, record)| record.names.contains(reference)) {
            return Ok(Some(Found::Name(id.clone(), reference.to_owned())));
        }
        let prefix = reference.strip_prefix("sha256:").unwrap_or(reference);
        let is_prefix = prefix.len() >= SHORT_ID_MIN && prefix.bytes().all(|b| b.is_ascii_hexdigit());
        let name = match ImageName::parse(reference) {
            Ok(name) => name,
            Err(error) if !is_prefix => return Err(error),
            Err(_) => return self.find_short(prefix),
        };
        let text = name.to_string();
        let named =
            self.iter().find(|(_, record)| record.names.contains(&text) || record.digests.contains(&text));
        match named {
            Some((id, _)) => Ok(Some(Found::Name(id.clone(), text))),
            None if is_prefix => self.find_short(prefix),
            None => Ok(None),
        }
    }

    fn find_short(&self, prefix: &str) -> ImageResult<Option<Found>> {
        let mut fitting = self.images.keys().filter(|id| id.hex().starts_with(prefix));
        match (fitting.next(), fitting.next()) {
            (Some(_), Some(_)) => Err(ImageError::AmbiguousId(prefix.to_owned())),
            (found, _) => Ok(found.cloned().map(Found::Id)),
        }
    }

    /// The image that a repository's digest led to.
    pub(crate) fn by_manifest(&self, manifest: &Digest) -> Option<(&Digest, &Record)> {
        self.iter().find(|(_, record)| record.manifests.contains(manifest))
    }
}

/// How an image was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    Id(Digest),
    /// By this normalized name.
    Name(Digest, String),
}

impl Found {
    pub(crate) fn id(&self) -> &Digest {
        let (Found::Id(id) | Found::Name(id, _)) = self;
        id
    }
}

/// The file, and what was read from it last.
#[derive(Debug)]
pub(crate) struct Index {
    cache: Mutex<Cache>,
}

/// `file` stays open, so that its inode number cannot be given to a later file while it is compared.
#[derive(Debug, Default)]
struct Cache {
    file: Option<File>,
    snapshot: Arc<Snapshot>,
}

impl Index {
    pub(crate) fn new() -> Self {
        Index { cache: Mutex::new(Cache::default()) }
    }

    /// The images now. Costs one look at the file unless it was replaced.
    pub(crate) fn load(&self, layout: &Layout) -> ImageResult<Arc<Snapshot>> {
        let path = layout.index();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let current = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Arc::default()),
            Err(error) => return Err(ImageError::io("cannot look at", &path)(error)),
        };
        if let Some(file) = &cache.file
            && file.metadata().is_ok_and(|known| (known.dev(), known.ino()) == (current.dev(), current.ino()))
        {
            return Ok(Arc::clone(&cache.snapshot));
        }
        let mut file = File::open(&path).map_err(ImageError::io("cannot open", &path))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(ImageError::io("cannot read", &path))?;
        #[derive(Deserialize)]
        struct Form {
            version: u32,
        }
        let damaged =
            |error: serde_json::Error| ImageError::Damaged { path: path.clone(), what: error.to_string() };
        let Form { version } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if version > VERSION {
            return Err(ImageError::Newer { path, found: version });
        }
        let contents: Contents = serde_json::from_slice(&bytes).map_err(damaged)?;
        let mut images = BTreeMap::new();
        for (id, record) in contents.images {
            let config = match cache.snapshot.config(&id) {
                Some(config) => Arc::clone(config),
                None => {
                    let blob = layout.blob(&id);
                    let bytes = std::fs::read(&blob).map_err(ImageError::io("cannot read", &blob));
                    match bytes.and_then(|bytes| parse_config(&bytes)) {
                        Ok(config) => Arc::new(config),
                        Err(error) => {
                            // Removed between the index and its blob, lost, or damaged: such an image cannot be run,
                            // and is pulled again when it is asked for.
                            tracing::warn!(image = %id, %error, "image without its configuration");
                            continue;
                        }
                    }
                }
            };
            if let Some(layer) = record.chain.iter().find(|layer| !layout.layer(layer).is_dir()) {
                tracing::warn!(image = %id, %layer, "image without one of its layers");
                continue;
            }
            images.insert(id, (record, config));
        }
        let snapshot = Arc::new(Snapshot { images });
        *cache = Cache { file: Some(file), snapshot: Arc::clone(&snapshot) };
        Ok(snapshot)
    }

    /// Changes the file. The caller holds the store's lock.
    pub(crate) fn update(
        &self,
        layout: &Layout,
        _held: &FileLock,
        change: impl FnOnce(&mut BTreeMap<Digest, Record>),
    ) -> ImageResult<()> {
        let snapshot = self.load(layout)?;
        let mut images: BTreeMap<Digest, Record> =
            snapshot.iter().map(|(id, record)| (id.clone(), record.clone())).collect();
        change(&mut images);
        // An image that nothing names and nobody keeps is gone.
        images.retain(|_, record| record.pinned || !record.names.is_empty() || !record.digests.is_empty());
        let json = serde_json::to_vec(&Contents { version: VERSION, images }).unwrap_or_default();
        write_atomically(&layout.index(), &layout.next_index(), &json)
    }
}

/// Gives `name` to the image `id`, taking it from any other.
pub(crate) fn assign_name(images: &mut BTreeMap<Digest, Record>, id: &Digest, name: &str) {
    for (other, record) in images.iter_mut() {
        if other != id && record.names.remove(name) && record.names.is_empty() && record.digests.is_empty() {
            // Its last name went to another image: nobody asks for it any more.
            record.pinned = false;
        }
    }
    if let Some(record) = images.get_mut(id) {
        record.names.insert(name.to_owned());
    }
}
