//! What can go wrong at the runtime contract.

/// A failed runtime call. The message is for people and ends up in events and container statuses.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CriError {
    /// The sandbox, container or image named in the request is not there.
    #[error("{0}")]
    NotFound(String),
    /// The request cannot be carried out as asked, now or later: it is wrong.
    #[error("{0}")]
    InvalidArgument(String),
    /// The object is not in the state that the request needs.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The runtime cannot do this at all.
    #[error("{0}")]
    Unimplemented(String),
    /// The deadline of the request passed.
    #[error("{0}")]
    DeadlineExceeded(String),
    /// The registry could not be reached or answered that it is unavailable.
    #[error("RegistryUnavailable: {0}")]
    RegistryUnavailable(String),
    /// The group of processes of a Pod cannot be made.
    #[error("{0}")]
    Cgroup(String),
    /// Anything else.
    #[error("{0}")]
    Internal(String),
}

/// The result of a runtime call.
pub type CriResult<T> = Result<T, CriError>;
