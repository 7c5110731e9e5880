//! What can go wrong with images.

use std::io;
use std::path::{Path, PathBuf};

use coracle_cri::CriError;

/// The result of an operation of the image store.
pub type ImageResult<T> = Result<T, ImageError>;

/// A failed operation of the image store.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file or directory of the store, or of an import, could not be worked with.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was attempted, as in "cannot open".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A name that does not parse as an image reference.
    #[error("couldn't parse image name {name:?}: {reason}")]
    InvalidName {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No such image.
    #[error("image {0:?}: not found")]
    NotFound(String),
    /// A short id that more than one image starts with.
    #[error("image id {0:?} is ambiguous")]
    AmbiguousId(String),
    /// The image is used by containers.
    #[error("image {name:?} is in use by container {}; remove the Pod first", containers.join(", "))]
    InUse {
        /// The image as asked for.
        name: String,
        /// Ids of the containers, shortened.
        containers: Vec<String>,
    },
    /// What was to be imported is not an image archive, or a damaged one.
    #[error("{what}")]
    BadArchive {
        /// What is wrong, and where.
        what: String,
    },
    /// The list of images is not as it was written.
    #[error(
        "{path} is damaged ({what}): remove it, and the cluster starts without images; then import or pull them again",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The list of images is of a later version.
    #[error("{path} was written by a newer coracle (format {found}): start the newer one", path = path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A layer holds something that is refused, or a damaged archive.
    #[error("layer {layer}: {what}")]
    BadLayer {
        /// Digest of the unpacked layer.
        layer: String,
        /// What is wrong, and where.
        what: String,
    },
    /// Content that is not what its digest or size says.
    #[error("{what}: expected {expected}, got {actual}")]
    Mismatch {
        /// Which content.
        what: String,
        /// What was promised.
        expected: String,
        /// What was found.
        actual: String,
    },
    /// The image is for other machines.
    #[error("no image for platform {platform} in {name}")]
    NoPlatform {
        /// Where it was looked for.
        name: String,
        /// This machine's platform.
        platform: String,
    },
    /// A limit of the unpacking was reached.
    #[error("{0}")]
    Limit(String),
    /// A pull failed; the message says at which step, in the words of the usual runtimes.
    #[error("{0}")]
    Pull(String),
    /// A pull found that the registry does not have the image.
    #[error("{0}")]
    PullNotFound(String),
    /// A pull took longer than it may.
    #[error("{0}")]
    PullTimeout(String),
    /// The operation was abandoned by its caller.
    #[error("abandoned")]
    Abandoned,
    /// The operation does not fit the state of the store.
    #[error("{0}")]
    Precondition(String),
}

impl ImageError {
    /// A mapper for the error of a file operation.
    pub fn io<E: Into<io::Error>>(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> ImageError {
        let path = path.as_ref().to_owned();
        move |source| ImageError::Io { action, path, source: source.into() }
    }
}

impl From<ImageError> for CriError {
    fn from(error: ImageError) -> Self {
        let message = error.to_string();
        match error {
            ImageError::InvalidName { .. } | ImageError::AmbiguousId(_) => CriError::InvalidArgument(message),
            ImageError::NotFound(_) | ImageError::PullNotFound(_) | ImageError::NoPlatform { .. } => {
                CriError::NotFound(message)
            }
            ImageError::InUse { .. } | ImageError::Precondition(_) => CriError::FailedPrecondition(message),
            ImageError::PullTimeout(_) => CriError::DeadlineExceeded(message),
            ImageError::Io { .. }
            | ImageError::BadArchive { .. }
            | ImageError::Damaged { .. }
            | ImageError::Newer { .. }
            | ImageError::BadLayer { .. }
            | ImageError::Mismatch { .. }
            | ImageError::Limit(_)
            | ImageError::Pull(_)
            | ImageError::Abandoned => CriError::Internal(message),
        }
    }
}
