//! Pulling an image: resolve the name, fetch what is missing side by side, unpack it from the bottom up.

use std::collections::BTreeSet;
use std::sync::Arc;

use coracle_cri::AuthConfig;
use tokio::io::BufWriter;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};

use super::blocking;
use super::config::{Document, ParsedConfig, parse_config, parse_document, select_platform};
use super::digest::{Cancel, Digest, chain_ids};
use super::import::sha256_of;
use super::layers::{Stack, mismatch};
use super::name::ImageName;
use super::operation::Operation;
use super::registry::Session;
use super::store::{NewImage, Shared};
use super::{ImageError, ImageResult};

/// Indexes in indexes: as deep as anyone makes them.
const INDEX_DEPTH: usize = 4;

/// Pulls `name` and returns the id of the image. Dropping the future abandons the pull and its files.
pub(super) async fn pull(
    shared: &Arc<Shared>,
    name: &ImageName,
    auth: Option<&AuthConfig>,
) -> ImageResult<Digest> {
    let limit = shared.config.registry.total_timeout;
    // Pulls of one name wait for each other: the later one finds the image, and asks the registry only whether
    // the name still stands for it.
    let turn = shared.registries.turn(&name.to_string());
    let work = async {
        let _turn = turn.lock().await;
        Box::pin(pull_now(shared, name, auth)).await
    };
    let outcome = shared.clock.timeout(limit, work).await;
    let outcome =
        outcome.unwrap_or_else(|| Err(ImageError::PullTimeout(format!("not finished after {limit:?}"))));
    outcome.map_err(|error| {
        let message = format!("failed to pull and unpack image \"{name}\": {error}");
        match error {
            ImageError::PullNotFound(_) => ImageError::PullNotFound(message),
            ImageError::PullTimeout(_) => ImageError::PullTimeout(message),
            ImageError::Abandoned => ImageError::Abandoned,
            _ => ImageError::Pull(message),
        }
    })
}

async fn pull_now(shared: &Arc<Shared>, name: &ImageName, auth: Option<&AuthConfig>) -> ImageResult<Digest> {
    // Asked even if the image is here: whoever pulls must be allowed to.
    let (session, bytes) = shared.registries.resolve(&shared.clock, name, auth).await?;
    let root = Digest::of(&bytes);
    if let Some(promised) = name.digest()
        && promised != root
    {
        return Err(mismatch("manifest".to_owned(), &promised, &root));
    }
    let names: Vec<String> = if name.digest().is_some() { Vec::new() } else { vec![name.to_string()] };
    let digests = vec![name.with_digest(&root)];
    let known = shared.snapshot()?.by_manifest(&root).map(|(id, _)| id.clone());
    if let Some(id) = known {
        let (shared, id_again, names, digests) =
            (Arc::clone(shared), id.clone(), names.clone(), digests.clone());
        if blocking(move || shared.name_again(&id_again, &names, &digests)).await? {
            return Ok(id);
        }
    }
    let contents = describe(&session, name, bytes).await?;
    Box::pin(fetch(shared, session, contents, names, digests)).await
}

/// What a name stands for, before any layer is fetched.
struct Contents {
    /// The first is what the name itself leads to.
    manifests: Vec<(Digest, Vec<u8>)>,
    config: Vec<u8>,
    parsed: ParsedConfig,
    layers: Vec<Blob>,
}

#[derive(Debug, Clone)]
struct Blob {
    digest: Digest,
    size: u64,
}

/// Follows indexes to the manifest and the configuration for this machine.
async fn describe(session: &Session, name: &ImageName, mut bytes: Vec<u8>) -> ImageResult<Contents> {
    let mut manifests = Vec::new();
    for _ in 0..INDEX_DEPTH {
        let document = parse_document(&bytes, None)?;
        manifests.push((Digest::of(&bytes), bytes));
        match document {
            Document::Index(index) => {
                let chosen = select_platform(index.manifests(), &name.to_string())?;
                bytes = session.manifest(&sha256_of(chosen)?, chosen.size()).await?;
            }
            Document::Manifest(manifest) => {
                let descriptor = manifest.config();
                let config = session.document(&sha256_of(descriptor)?, descriptor.size()).await?;
                let parsed = parse_config(&config)?;
                let layers = manifest
                    .layers()
                    .iter()
                    .map(|layer| Ok(Blob { digest: sha256_of(layer)?, size: layer.size() }))
                    .collect::<ImageResult<Vec<_>>>()?;
                if layers.len() != parsed.diff_ids.len() {
                    return Err(ImageError::BadArchive {
                        what: format!(
                            "the image configuration names {} layers, the manifest {}",
                            parsed.diff_ids.len(),
                            layers.len()
                        ),
                    });
                }
                return Ok(Contents { manifests, config, parsed, layers });
            }
        }
    }
    Err(ImageError::BadArchive { what: "image indexes are nested too deep".to_owned() })
}

/// Tells the unpacking thread when nobody waits for it any more.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Fetches the layers that are not here, unpacks them, and enters the image.
async fn fetch(
    shared: &Arc<Shared>,
    session: Session,
    contents: Contents,
    names: Vec<String>,
    digests: Vec<String>,
) -> ImageResult<Digest> {
    let diff_ids = contents.parsed.diff_ids;
    let chain = chain_ids(&diff_ids);
    let (operation, missing) = {
        let (shared, chain) = (Arc::clone(shared), chain.clone());
        blocking(move || {
            let operation = shared.begin()?;
            shared.pin(&operation, &chain)?;
            let missing = chain.iter().position(|id| !shared.layout.layer(id).exists());
            Ok((Arc::new(operation), missing.unwrap_or(chain.len())))
        })
        .await?
    };
    let work = Arc::new(Work {
        shared: Arc::clone(shared),
        operation: Arc::clone(&operation),
        layers: contents.layers,
        diff_ids,
        chain,
        cancel: Cancel::default(),
    });
    let _guard = CancelOnDrop(work.cancel.clone());
    work.fill(session, missing).await?;

    let id = Digest::of(&contents.config);
    let mut blobs = contents.manifests;
    blobs.push((id.clone(), contents.config));
    let new = NewImage { id: id.clone(), chain: work.chain.clone(), names, digests, blobs, pinned: false };
    let shared = Arc::clone(shared);
    blocking(move || shared.commit(&operation, &new)).await?;
    Ok(id)
}

/// The layers of one pull.
struct Work {
    shared: Arc<Shared>,
    operation: Arc<Operation>,
    layers: Vec<Blob>,
    diff_ids: Vec<Digest>,
    chain: Vec<Digest>,
    cancel: Cancel,
}

impl Work {
    /// Downloads and unpacks the layers from `first` on. Downloads run side by side, unpacking follows in order
    /// as soon as the next layer has arrived; the first failure ends it all.
    async fn fill(self: &Arc<Self>, session: Session, first: usize) -> ImageResult<()> {
        let permits = Arc::new(Semaphore::new(self.shared.config.registry.parallel_downloads.max(1)));
        // Dropping the set ends the downloads.
        let mut downloads: JoinSet<ImageResult<Digest>> = JoinSet::new();
        let wanted: BTreeSet<&Digest> = self.layers[first..].iter().map(|blob| &blob.digest).collect();
        let mut started = BTreeSet::new();
        for blob in &self.layers[first..] {
            // Equal layers are fetched once.
            if wanted.contains(&blob.digest) && started.insert(blob.digest.clone()) {
                let (work, session, blob) = (Arc::clone(self), session.clone(), blob.clone());
                let permits = Arc::clone(&permits);
                downloads.spawn(async move {
                    let _permit = permits.acquire().await.map_err(|_| ImageError::Abandoned)?;
                    work.download(&session, &blob).await?;
                    Ok(blob.digest)
                });
            }
        }
        let mut arrived = BTreeSet::new();
        let mut unpacking: JoinSet<ImageResult<()>> = JoinSet::new();
        let mut next = first;
        while next < self.layers.len() {
            if unpacking.is_empty() && arrived.contains(&self.layers[next].digest) {
                let work = Arc::clone(self);
                unpacking.spawn_blocking(move || work.unpack(next));
            }
            coracle_clock::select! {
                Some(done) = unpacking.join_next() => {
                    joined(done)?;
                    next += 1;
                }
                Some(done) = downloads.join_next() => {
                    arrived.insert(joined(done)?);
                }
                else => return Err(ImageError::Abandoned),
            }
        }
        Ok(())
    }

    async fn download(&self, session: &Session, blob: &Blob) -> ImageResult<()> {
        let file = self.operation.create_file(&blob_name(&blob.digest))?;
        let mut writer = BufWriter::with_capacity(1 << 20, tokio::fs::File::from_std(file));
        session.blob(&blob.digest, blob.size, &mut writer).await
    }

    fn unpack(&self, position: usize) -> ImageResult<()> {
        let blob = &self.layers[position];
        let path = self.operation.dir().join(blob_name(&blob.digest));
        let mut stack = Stack::new(
            &self.shared.layout,
            &self.operation,
            &self.shared.config.limits,
            self.cancel.clone(),
            (&self.diff_ids, &self.chain),
        );
        if stack.next_missing() == Some(position) {
            let file = std::fs::File::open(&path).map_err(ImageError::io("cannot open", &path))?;
            stack.put(file, Some((&blob.digest, blob.size)), &mut |_| {}).map_err(|error| match error {
                ImageError::Abandoned => ImageError::Abandoned,
                error => {
                    ImageError::Pull(format!("failed to extract layer {}: {error}", self.diff_ids[position]))
                }
            })?;
        }
        let needed_again = self.layers[position + 1..].iter().any(|other| other.digest == blob.digest);
        if !needed_again {
            super::fs::remove_path(&path)?;
        }
        Ok(())
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blob-{}", digest.hex())
}

/// The result of a task; a panic in it is a failed pull, not a failed daemon.
fn joined<T>(done: Result<ImageResult<T>, JoinError>) -> ImageResult<T> {
    done.unwrap_or_else(|error| Err(ImageError::Pull(error.to_string())))
}
