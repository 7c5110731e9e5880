//! The decisions about one Pod: pure functions over plain data.
//!
//! [`plan`] says what to do, [`status`] what to tell, [`publication`] when to tell it. All of them look at
//! [`PodInputs`] and nothing else. Nothing here does I/O, knows a clock or holds a lock; the shell around it is
//! [`crate::worker`].

pub mod backoff;
mod conditions;
mod container_status;
pub mod containers;
pub mod history;
pub mod image_name;
mod initialization;
pub mod inputs;
pub mod memo;
pub mod phase;
mod plan;
mod publish;
pub mod reasons;
mod status;
pub mod volumes;

pub use conditions::eviction_under_way;
pub use inputs::{Eviction, Lifecycle, PodInputs, TerminationCause};
pub use plan::{MINIMUM_GRACE, PodAction, PodPlan, StartContainer, WaitingOn, plan};
pub(crate) use publish::merge_patch;
pub use publish::{Publication, differs, patch, publication, rebase};
pub use status::status;

use k8s_openapi::api::core::v1::Container;
use sha2::{Digest as _, Sha256};

/// Hash of what cannot change while a container runs: its name and image.
#[must_use]
pub fn definition_hash(container: &Container) -> String {
    let mut hash = Sha256::new();
    hash.update(container.name.as_bytes());
    hash.update([0]);
    hash.update(container.image.as_deref().unwrap_or_default().as_bytes());
    hash.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
