//! What can go wrong with the Pod network.

use std::io;
use std::net::AddrParseError;
use std::path::{Path, PathBuf};

use coracle_cri::CriError;

/// A failed operation on the Pod network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A file could not be worked with.
    #[error("{action} {path}: {source}", path = path.display())]
    File {
        /// What was attempted, as in "cannot open".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a change of the network.
    #[error("cannot {action}: {source}")]
    Link {
        /// What was attempted, as in "add the default route".
        action: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// `nft` failed, or could not be run.
    #[error("nft: {0}")]
    Rules(String),
    /// The Pod range of the node cannot be used.
    #[error("Pod range {cidr:?} cannot be used: {reason}")]
    Range {
        /// The range as given.
        cidr: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No Pod range has been set yet.
    #[error("the node has no Pod range yet")]
    NoRange,
    /// Every address of the Pod range is in use.
    #[error("no addresses left in Pod range {0}")]
    Exhausted(String),
    /// The work was not finished.
    #[error("network work did not finish: {0}")]
    Unfinished(String),
}

impl NetError {
    pub(crate) fn file<E: Into<io::Error>>(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> NetError {
        let path = path.as_ref().to_owned();
        move |source| NetError::File { action, path, source: source.into() }
    }

    pub(crate) fn range(cidr: &str, reason: impl Into<String>) -> NetError {
        NetError::Range { cidr: cidr.to_owned(), reason: reason.into() }
    }

    pub(crate) fn bad_address(cidr: &str) -> impl FnOnce(AddrParseError) -> NetError {
        move |error| NetError::range(cidr, error.to_string())
    }
}

impl From<NetError> for CriError {
    fn from(error: NetError) -> Self {
        let message = error.to_string();
        match error {
            NetError::Range { .. } => CriError::InvalidArgument(message),
            NetError::NoRange => CriError::FailedPrecondition(message),
            NetError::File { .. }
            | NetError::Link { .. }
            | NetError::Rules(_)
            | NetError::Exhausted(_)
            | NetError::Unfinished(_) => CriError::Internal(message),
        }
    }
}
