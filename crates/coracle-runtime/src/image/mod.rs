//! Images: a content-addressed store of unpacked layers, import of archives, and pulls from registries.
//!
//! The store is one directory, shared by the daemon and the command line without a server between them: see
//! the store module for its layout and rules. It makes the directories that an overlay mount needs
//! ([`Rootfs`]); mounting them is the runtime's.
//!
//! Everything that comes out of an image is hostile: files are created through descriptors that cannot leave
//! the layer's root, archives are read with limits, and every byte is checked against its digest.

mod error;
mod types;

pub use error::{ImageError, ImageResult};
pub use types::{
    ImageStoreConfig, ImportProgress, ImportedImage, RegistryConfig, RemovedImage, Rootfs, UnpackLimits,
};
