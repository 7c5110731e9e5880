//! Import of image archives: what `docker save` writes, old and new, and OCI image layouts.

use std::path::Path;

use oci_spec::image::{Descriptor, ImageManifest};
use serde::Deserialize;

use super::config::{
    DOCUMENT_MAX, Document, check_values, may_fit_host, parse_config, parse_document, select_platform,
};
use super::digest::{Cancel, Digest, chain_ids};
use super::layers::{Stack, mismatch};
use super::name::ImageName;
use super::operation::Operation;
use super::source::Source;
use super::store::{ImageStore, NewImage, Shared};
use super::types::{ImportProgress, ImportedImage};
use super::{ImageError, ImageResult};

/// Indexes in indexes: as deep as anyone makes them.
const INDEX_DEPTH: usize = 4;
/// Annotations of an index that name an image, the stronger one first.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

impl ImageStore {
    /// Imports the images of an archive (tar, tar.gz, tar.zst) or of a directory with an OCI layout.
    ///
    /// `name` replaces the names in the archive, which must then hold one image. Imported images are pinned:
    /// no garbage collection removes them. Either all images of the archive are imported or none.
    pub fn import(
        &self,
        path: &Path,
        name: Option<&str>,
        progress: &mut dyn FnMut(ImportProgress),
    ) -> ImageResult<Vec<ImportedImage>> {
        let name = name.map(ImageName::parse).transpose()?;
        if name.as_ref().is_some_and(|name| name.digest().is_some()) {
            return Err(ImageError::BadArchive {
                what: "the name of an imported image has a tag, not a digest".to_owned(),
            });
        }
        let operation = self.shared.begin()?;
        let source = Source::open(path, &operation, &self.shared.config.limits)?;
        let mut found = read_archive(&source)?;
        match (&name, found.as_mut_slice()) {
            (None, _) => {}
            (Some(name), [only]) => only.names = vec![name.to_string()],
            (Some(_), all) => {
                return Err(ImageError::BadArchive {
                    what: format!(
                        "{} holds {} images: they cannot all have one name",
                        path.display(),
                        all.len()
                    ),
                });
            }
        }
        self.shared.import_all(&source, &operation, found, progress)
    }
}

/// An image in an archive, its layers not read yet.
struct ArchivedImage {
    config: Vec<u8>,
    names: Vec<String>,
    /// The manifests that led here, with their digests.
    manifests: Vec<(Digest, Vec<u8>)>,
    layers: Vec<ArchivedLayer>,
}

struct ArchivedLayer {
    path: String,
    /// Digest and size of the file, where the archive says so.
    blob: Option<(Digest, u64)>,
}

impl Shared {
    fn import_all(
        &self,
        source: &Source,
        operation: &Operation,
        found: Vec<ArchivedImage>,
        progress: &mut dyn FnMut(ImportProgress),
    ) -> ImageResult<Vec<ImportedImage>> {
        let mut state = ImportProgress::default();
        for layer in found.iter().flat_map(|image| &image.layers) {
            state.layers_total += 1;
            state.total_bytes += source.size(&layer.path)?;
        }
        progress(state);
        let mut finished = Vec::new();
        for image in found {
            finished.push(self.unpack_archived(source, operation, image, &mut state, progress)?);
        }
        finished
            .into_iter()
            .map(|new| Ok(ImportedImage { image: self.commit(operation, &new)?, names: new.names }))
            .collect()
    }

    fn unpack_archived(
        &self,
        source: &Source,
        operation: &Operation,
        archived: ArchivedImage,
        state: &mut ImportProgress,
        progress: &mut dyn FnMut(ImportProgress),
    ) -> ImageResult<NewImage> {
        let config = parse_config(&archived.config)?;
        if config.diff_ids.len() != archived.layers.len() {
            return Err(ImageError::BadArchive {
                what: format!(
                    "the image configuration names {} layers, the manifest {}",
                    config.diff_ids.len(),
                    archived.layers.len()
                ),
            });
        }
        let chain = chain_ids(&config.diff_ids);
        self.pin(operation, &chain)?;
        let limits = &self.config.limits;
        let mut stack =
            Stack::new(&self.layout, operation, limits, Cancel::default(), (&config.diff_ids, &chain));
        let (done_before, read_before) = (state.layers_done, state.read_bytes);
        let sizes = archived.layers.iter().map(|l| source.size(&l.path)).collect::<ImageResult<Vec<_>>>()?;
        let mut at = |position: usize, read: u64, state: &mut ImportProgress| {
            state.layers_done = done_before + position;
            state.read_bytes = read_before + sizes[..position].iter().sum::<u64>() + read;
            progress(*state);
        };
        while let Some(position) = stack.next_missing() {
            at(position, 0, state);
            let layer = &archived.layers[position];
            let mut read = 0;
            let blob = layer.blob.as_ref().map(|(digest, size)| (digest, *size));
            stack.put(source.open_file(&layer.path)?, blob, &mut |bytes| {
                read += bytes;
                at(position, read, state);
            })?;
        }
        at(stack.position(), 0, state);

        let names = archived.names;
        let digests = match archived.manifests.first() {
            Some((digest, _)) => names
                .iter()
                .filter_map(|name| Some(ImageName::parse(name).ok()?.with_digest(digest)))
                .collect(),
            None => Vec::new(),
        };
        let id = Digest::of(&archived.config);
        let mut blobs = archived.manifests;
        blobs.push((id.clone(), archived.config));
        Ok(NewImage { id, chain, names, digests, blobs, pinned: true })
    }
}

fn read_archive(source: &Source) -> ImageResult<Vec<ArchivedImage>> {
    // New archives of Docker hold both forms; its own has the names as the user knows them.
    let images = if source.has("manifest.json") {
        read_docker(source)?
    } else if source.has("index.json") {
        read_layout(source)?
    } else {
        return Err(ImageError::BadArchive {
            what: format!(
                "{} is not an image archive: it holds neither manifest.json (docker save) nor index.json (OCI layout)",
                source.path().display()
            ),
        });
    };
    if images.is_empty() {
        return Err(ImageError::BadArchive { what: format!("{} holds no image", source.path().display()) });
    }
    Ok(images)
}

/// One image of Docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

fn read_docker(source: &Source) -> ImageResult<Vec<ArchivedImage>> {
    let bytes = source.read_small("manifest.json", DOCUMENT_MAX)?;
    check_values(&bytes, "manifest.json")?;
    let images: Vec<DockerImage> = parse(&bytes, "manifest.json")?;
    let mut found = Vec::new();
    for image in images {
        let config = source.read_small(&image.config, DOCUMENT_MAX)?;
        // The file is named after its digest: `<hex>.json`, or `blobs/sha256/<hex>`.
        let stem = image.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
        if let Some(promised) = Digest::from_hex(stem) {
            check(&image.config, &promised, &config)?;
        }
        let names =
            image.repo_tags.unwrap_or_default().iter().map(|n| normalize(n)).collect::<Result<_, _>>()?;
        let layers = image.layers.unwrap_or_default().into_iter();
        let layers = layers
            .map(|path| ArchivedLayer {
                blob: path
                    .strip_prefix("blobs/sha256/")
                    .and_then(Digest::from_hex)
                    .and_then(|digest| Some((digest, source.size(&path).ok()?))),
                path,
            })
            .collect();
        found.push(ArchivedImage { config, names, manifests: Vec::new(), layers });
    }
    Ok(found)
}

fn read_layout(source: &Source) -> ImageResult<Vec<ArchivedImage>> {
    let bytes = source.read_small("index.json", DOCUMENT_MAX)?;
    let Document::Index(index) = parse_document(&bytes, Some("application/vnd.oci.image.index.v1+json"))?
    else {
        return Err(ImageError::BadArchive { what: "index.json is not an image index".to_owned() });
    };
    let here: Vec<&Descriptor> = index.manifests().iter().filter(|d| may_fit_host(d)).collect();
    if here.is_empty() && !index.manifests().is_empty() {
        // For the message.
        select_platform(index.manifests(), &source.path().display().to_string())?;
    }
    let mut found: Vec<ArchivedImage> = Vec::new();
    for descriptor in here {
        let name = descriptor.annotations().as_ref().and_then(|annotations| {
            NAME_ANNOTATIONS.iter().find_map(|key| annotations.get(*key)).and_then(|name| full_name(name))
        });
        let mut manifests = Vec::new();
        let Some(manifest) = resolve(source, descriptor, &mut manifests)? else { continue };
        let config = read_blob(source, manifest.config())?;
        let names = name.as_deref().map(normalize).transpose()?.into_iter().collect();
        let layers = manifest.layers().iter().map(archived_layer).collect::<ImageResult<_>>()?;
        found.push(ArchivedImage { config, names, manifests, layers });
    }
    Ok(found)
}

/// Follows indexes to the manifest for this machine, which ends up last in `path`; `None` for content that is
/// no image, such as an attestation.
fn resolve(
    source: &Source,
    descriptor: &Descriptor,
    path: &mut Vec<(Digest, Vec<u8>)>,
) -> ImageResult<Option<ImageManifest>> {
    let mut descriptor = descriptor.clone();
    for _ in 0..INDEX_DEPTH {
        let bytes = read_blob(source, &descriptor)?;
        let document = parse_document(&bytes, Some(descriptor.media_type().as_ref()))?;
        path.push((Digest::of(&bytes), bytes));
        match document {
            Document::Manifest(manifest) => {
                let is_image = manifest.artifact_type().is_none();
                return Ok(is_image.then_some(*manifest));
            }
            Document::Index(index) => {
                descriptor =
                    select_platform(index.manifests(), &source.path().display().to_string())?.clone();
            }
        }
    }
    Err(ImageError::BadArchive { what: "image indexes are nested too deep".to_owned() })
}

fn archived_layer(descriptor: &Descriptor) -> ImageResult<ArchivedLayer> {
    let digest = sha256_of(descriptor)?;
    Ok(ArchivedLayer {
        path: format!("blobs/sha256/{}", digest.hex()),
        blob: Some((digest, descriptor.size())),
    })
}

fn read_blob(source: &Source, descriptor: &Descriptor) -> ImageResult<Vec<u8>> {
    let digest = sha256_of(descriptor)?;
    let path = format!("blobs/sha256/{}", digest.hex());
    let bytes = source.read_small(&path, DOCUMENT_MAX)?;
    if bytes.len() as u64 != descriptor.size() {
        return Err(mismatch(format!("size of {path}"), &descriptor.size(), &bytes.len()));
    }
    check(&path, &digest, &bytes)?;
    Ok(bytes)
}

/// The digest of a descriptor; other algorithms than SHA-256 are not supported.
pub(crate) fn sha256_of(descriptor: &Descriptor) -> ImageResult<Digest> {
    let digest = descriptor.digest().to_string();
    Digest::parse(&digest).ok_or_else(|| ImageError::BadArchive {
        what: format!("digest {digest} is not supported: only sha256 is"),
    })
}

fn check(what: &str, expected: &Digest, bytes: &[u8]) -> ImageResult<()> {
    let actual = Digest::of(bytes);
    if actual == *expected { Ok(()) } else { Err(mismatch(what.to_owned(), expected, &actual)) }
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> ImageResult<T> {
    serde_json::from_slice(bytes).map_err(|error| ImageError::BadArchive { what: format!("{what}: {error}") })
}

fn normalize(name: &str) -> ImageResult<String> {
    Ok(ImageName::parse(name)?.to_string())
}

/// `org.opencontainers.image.ref.name` may be a tag alone, which names nothing.
fn full_name(annotation: &str) -> Option<String> {
    annotation.contains(['/', ':']).then(|| annotation.to_owned())
}
