//! Unpacked layers: made once under their chain id, shared by every image that starts with the same stack.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use serde::{Deserialize, Serialize};

use super::digest::{Cancel, Digest, Hashed, Observed};
use super::fs::{make_dirs, open_dir};
use super::layout::Layout;
use super::operation::Operation;
use super::tar::Stream;
use super::types::UnpackLimits;
use super::unpack::{UnpackError, unpack};
use super::{ImageError, ImageResult, overlay};

/// Facts of an unpacked layer, beside its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerInfo {
    /// Digest of the layer's archive, uncompressed.
    pub(crate) diff_id: Digest,
    /// Chain id of the stack below.
    pub(crate) parent: Option<Digest>,
    /// Bytes of its files.
    pub(crate) bytes: u64,
    /// Files, directories and links.
    pub(crate) entries: u64,
}

/// Memory that a zstd archive may demand for being unpacked, as a power of two: 32 MiB. Archives made for exchange
/// demand 8 MiB at most (RFC 9659).
const ZSTD_WINDOW_LOG_MAX: u32 = 25;

const INFO: &str = "layer.json";

pub(crate) fn read_info(dir: &Path) -> ImageResult<LayerInfo> {
    let path = dir.join(INFO);
    let bytes = std::fs::read(&path).map_err(ImageError::io("cannot read", &path))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| ImageError::BadArchive { what: format!("{}: {error}", path.display()) })
}

/// The files of a layer, ready for overlay.
pub(crate) fn files(dir: &Path) -> PathBuf {
    dir.join("fs")
}

/// Unpacks layers of one image, from the bottom up, into an operation.
pub(crate) struct Stack<'a> {
    layout: &'a Layout,
    operation: &'a Operation,
    limits: &'a UnpackLimits,
    cancel: Cancel,
    diff_ids: &'a [Digest],
    chain: &'a [Digest],
    /// Directories of the layers that are there already, the bottom one first.
    below: Vec<PathBuf>,
}

impl<'a> Stack<'a> {
    pub(crate) fn new(
        layout: &'a Layout,
        operation: &'a Operation,
        limits: &'a UnpackLimits,
        cancel: Cancel,
        (diff_ids, chain): (&'a [Digest], &'a [Digest]),
    ) -> Self {
        Stack { layout, operation, limits, cancel, diff_ids, chain, below: Vec::new() }
    }

    /// The next layer to put on, if it has to be unpacked. Layers that are there are passed over.
    pub(crate) fn next_missing(&mut self) -> Option<usize> {
        while let Some(id) = self.chain.get(self.below.len()) {
            let places = [self.layout.layer(id), self.operation.layer(id)];
            match places.into_iter().find(|dir| dir.exists()) {
                Some(dir) => self.below.push(files(&dir)),
                None => return Some(self.below.len()),
            }
        }
        None
    }

    /// Number of the layer that comes next.
    pub(crate) fn position(&self) -> usize {
        self.below.len()
    }

    /// Unpacks the next layer from its archive, compressed or not, and checks that it is the one that the
    /// image's configuration promises. `blob` names the archive's own digest and size where those are known.
    pub(crate) fn put(
        &mut self,
        archive: impl Read,
        blob: Option<(&Digest, u64)>,
        report: &mut dyn FnMut(u64),
    ) -> ImageResult<()> {
        let position = self.position();
        let diff_id = &self.diff_ids[position];
        let chain_id = &self.chain[position];
        let bad = |what: String| ImageError::BadLayer { layer: diff_id.to_string(), what };

        let scratch = self.operation.dir().join("unpacking");
        super::fs::remove_path(&scratch)?;
        let root_path = files(&scratch);
        make_dirs(&root_path)?;
        let root = {
            let upper = open_dir(&root_path).map_err(ImageError::io("cannot open", &root_path))?;
            rustix::fs::fchmod(&upper, Mode::from_raw_mode(0o755))
                .map_err(ImageError::io("cannot change", &root_path))?;
            if self.below.is_empty() {
                upper
            } else {
                let lower: Vec<PathBuf> = self.below.iter().rev().cloned().collect();
                overlay::open_detached(&lower, &root_path, &scratch)
                    .map_err(ImageError::io("cannot mount an overlay at", &scratch))?
            }
        };

        let mut compressed = Hashed::new(Observed::new(archive, self.cancel.clone(), report));
        let usage = {
            let plain = decompress(&mut compressed).map_err(|error| bad(error.to_string()))?;
            let stream = Stream(Hashed::new(plain));
            let (stream, usage) = unpack(stream, std::os::fd::AsFd::as_fd(&root), self.limits, &self.cancel)
                .map_err(|error| match error {
                    _ if self.cancel.is_cancelled() => ImageError::Abandoned,
                    UnpackError::Archive(what) => bad(what),
                    UnpackError::Limit(what) => ImageError::Limit(format!("layer {diff_id}: {what}")),
                    UnpackError::Abandoned => ImageError::Abandoned,
                })?;
            // What follows the end mark counts for the digest.
            let mut plain = stream.0;
            let trailing =
                std::io::copy(&mut (&mut plain).take(self.limits.max_layer_bytes), &mut std::io::sink())
                    .map_err(|error| bad(error.to_string()))?;
            if trailing >= self.limits.max_layer_bytes {
                return Err(ImageError::Limit(format!("layer {diff_id}: too much data after the archive")));
            }
            let (actual, _) = plain.finish();
            if actual != *diff_id {
                return Err(mismatch(format!("layer {position}"), diff_id, &actual));
            }
            usage
        };
        // The end of the compressed form, which the decompressor may have left.
        std::io::copy(&mut compressed, &mut std::io::sink()).map_err(|error| bad(error.to_string()))?;
        let (digest, size) = compressed.finish();
        if let Some((expected, expected_size)) = blob {
            if size != expected_size {
                return Err(mismatch(format!("size of blob {expected}"), &expected_size, &size));
            }
            if digest != *expected {
                return Err(mismatch("layer blob".to_owned(), expected, &digest));
            }
        }
        drop(root);

        let info = LayerInfo {
            diff_id: diff_id.clone(),
            parent: position.checked_sub(1).map(|below| self.chain[below].clone()),
            bytes: usage.bytes,
            entries: usage.entries,
        };
        write_info(&scratch, &info)?;
        for leftover in ["work", "merged"] {
            super::fs::remove_path(&scratch.join(leftover))?;
        }
        let dir = self.operation.layer(chain_id);
        if let Some(parent) = dir.parent() {
            make_dirs(parent)?;
        }
        std::fs::rename(&scratch, &dir).map_err(ImageError::io("cannot rename to", &dir))?;
        self.below.push(files(&dir));
        Ok(())
    }
}

pub(crate) fn mismatch(
    what: String,
    expected: &dyn std::fmt::Display,
    actual: &dyn std::fmt::Display,
) -> ImageError {
    ImageError::Mismatch { what, expected: expected.to_string(), actual: actual.to_string() }
}

pub(crate) fn write_info(dir: &Path, info: &LayerInfo) -> ImageResult<()> {
    let path = dir.join(INFO);
    let json = serde_json::to_vec(info).unwrap_or_default();
    std::fs::write(&path, json).map_err(ImageError::io("cannot write", &path))
}

/// Moves the layers of an operation into the store. The caller holds the store's lock and has flushed them.
pub(crate) fn adopt(layout: &Layout, operation: &Operation, chain: &[Digest]) -> ImageResult<()> {
    for id in chain {
        let (from, to) = (operation.layer(id), layout.layer(id));
        if to.exists() {
            // Another operation was faster.
            continue;
        }
        std::fs::rename(&from, &to).map_err(ImageError::io("cannot rename to", &to))?;
    }
    super::fs::sync_dir(&layout.layers())
}

/// The plain form of a layer: gzip and zstd are told by their first bytes.
pub(crate) fn decompress<'a>(mut source: impl Read + 'a) -> std::io::Result<Box<dyn Read + 'a>> {
    let mut magic = [0; 4];
    let mut known = 0;
    while known < magic.len() {
        match source.read(&mut magic[known..]) {
            Ok(0) => break,
            Ok(n) => known += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let magic = magic[..known].to_vec();
    let kind = Compression::of(&magic);
    let whole = std::io::Cursor::new(magic).chain(source);
    Ok(match kind {
        Compression::None => Box::new(whole),
        Compression::Gzip => {
            Box::new(flate2::bufread::MultiGzDecoder::new(std::io::BufReader::with_capacity(64 << 10, whole)))
        }
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::new(whole)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
    })
}

/// How bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub(crate) fn of(start: &[u8]) -> Compression {
        if start.starts_with(&[0x1f, 0x8b]) {
            Compression::Gzip
        } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Compression::Zstd
        } else {
            Compression::None
        }
    }
}

/// Makes the files of unpacked layers durable, all at once: far cheaper than one flush for each file.
pub(crate) fn flush(layout: &Layout) -> ImageResult<()> {
    let path = layout.layers();
    let dir = File::open(&path).map_err(ImageError::io("cannot open", &path))?;
    rustix::fs::syncfs(&dir).map_err(ImageError::io("cannot flush", &path))
}
