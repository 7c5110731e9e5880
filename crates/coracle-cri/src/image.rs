//! Images: the `ImageService` of CRI.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{ContainerUser, CriResult, PodSandboxConfig};

/// A reference to an image, as the user wrote it or as the runtime normalized it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageSpec {
    /// Name with tag or digest, for example `busybox:1.37`, or an image id.
    pub image: String,
}

/// Credentials for one registry.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct AuthConfig {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Bearer token sent as it is.
    pub registry_token: String,
}

impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig").field("username", &self.username).finish_non_exhaustive()
    }
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Image {
    /// Digest of the image configuration: `sha256:…`. This is what a container status shows as `imageID` when
    /// the image has no repository digest.
    pub id: String,
    /// Normalized names with tags, for example `docker.io/library/busybox:1.37`.
    pub repo_tags: Vec<String>,
    /// Normalized names with digests.
    pub repo_digests: Vec<String>,
    /// Size on disk, in bytes.
    pub size: u64,
    /// The numeric user of the image configuration, if it names one by number.
    pub uid: Option<i64>,
    /// The user of the image configuration, if it names one by name.
    pub username: String,
    /// Never collected (imported by hand).
    pub pinned: bool,
    /// `STOPSIGNAL` of the image configuration, empty if none.
    pub stop_signal: String,
}

/// How far a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PullProgress {
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes in all, as far as known.
    pub total_bytes: u64,
}

/// Space used by images and containers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FilesystemUsage {
    /// Directory of the file system.
    pub mountpoint: String,
    /// Bytes in use by the runtime.
    pub used_bytes: u64,
    /// Inodes in use by the runtime.
    pub inodes_used: u64,
}

/// The image half of the contract.
#[async_trait]
pub trait ImageService: Send + Sync {
    /// All images, sorted by id.
    async fn list_images(&self) -> CriResult<Vec<Image>>;
    /// The image, if it is in the store. A reference that does not parse is `InvalidArgument`.
    async fn image_status(&self, image: &ImageSpec) -> CriResult<Option<Image>>;
    /// Fetches an image and returns its reference (the id). Every layer's digest and size is verified. Blobs that
    /// are already in the store are not fetched again. Dropping the future abandons the pull and its files.
    async fn pull_image(
        &self,
        image: &ImageSpec,
        auth: Option<&AuthConfig>,
        sandbox: Option<&PodSandboxConfig>,
    ) -> CriResult<String>;
    /// Removes an image, by name (the last name takes the image with it) or by id; succeeds if there is none.
    async fn remove_image(&self, image: &ImageSpec) -> CriResult<()>;
    /// Space used by the store.
    async fn image_fs_info(&self) -> CriResult<FilesystemUsage>;
}

/// What an image says about running it: the part of its configuration that a container starts from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageRunConfig {
    /// `ENTRYPOINT`.
    pub entrypoint: Vec<String>,
    /// `CMD`.
    pub cmd: Vec<String>,
    /// `ENV`, as `NAME=value`.
    pub env: Vec<String>,
    /// `WORKDIR`.
    pub working_dir: String,
    /// `USER`.
    pub user: String,
    /// `STOPSIGNAL`.
    pub stop_signal: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `USER` resolved against the image's own passwd and group files, once known.
    pub resolved_user: Option<ContainerUser>,
}
