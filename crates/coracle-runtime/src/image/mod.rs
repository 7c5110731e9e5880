//! Images: a content-addressed store of unpacked layers, import of archives, and pulls from registries.
//!
//! The store is one directory, shared by the daemon and the command line without a server between them: see
//! [`ImageStore`] for its rules. It makes the directories that an overlay mount needs ([`Rootfs`]); mounting
//! them is the runtime's.
//!
//! Everything that comes out of an image is hostile: files are created through descriptors that cannot leave
//! the layer's root, archives are read with limits, and every byte is checked against its digest.

mod config;
mod dial;
mod digest;
mod error;
mod exchange;
mod fs;
mod import;
mod index;
mod layers;
mod layout;
mod name;
mod operation;
mod overlay;
mod pull;
mod registry;
mod rootfs;
mod service;
mod source;
mod store;
mod tar;
#[cfg(test)]
mod tests;
mod types;
mod unpack;

pub use error::{ImageError, ImageResult};
pub use overlay::DeviceNodes;
pub use store::ImageStore;
pub use types::{
    ImageStoreConfig, ImportProgress, ImportedImage, RegistryConfig, RemovedImage, Rootfs, UnpackLimits,
};

/// Runs work with files on a thread that may wait for them.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> ImageResult<T> + Send + 'static,
) -> ImageResult<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ImageError::Precondition(format!("image work did not finish: {error}"))),
    }
}
