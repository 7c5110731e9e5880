//! The store as the image half of the runtime contract.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_cri::{AuthConfig, CriResult, FilesystemUsage, Image, ImageService, ImageSpec, PodSandboxConfig};

use super::name::ImageName;
use super::store::{ImageStore, InUse};
use super::{blocking, pull};

#[async_trait]
impl ImageService for ImageStore {
    async fn list_images(&self) -> CriResult<Vec<Image>> {
        Ok(self.list()?)
    }

    async fn image_status(&self, image: &ImageSpec) -> CriResult<Option<Image>> {
        Ok(self.get(&image.image)?)
    }

    async fn pull_image(
        &self,
        image: &ImageSpec,
        auth: Option<&AuthConfig>,
        _sandbox: Option<&PodSandboxConfig>,
    ) -> CriResult<String> {
        let name = ImageName::parse(&image.image)?;
        let id = Box::pin(pull::pull(&self.shared, &name, auth)).await?;
        Ok(id.to_string())
    }

    async fn remove_image(&self, image: &ImageSpec) -> CriResult<()> {
        let (shared, reference) = (Arc::clone(&self.shared), image.image.clone());
        // The node agent knows best what is in use; what still is keeps its layers.
        blocking(move || shared.remove(&reference, InUse::Forget)).await?;
        Ok(())
    }

    async fn image_fs_info(&self) -> CriResult<FilesystemUsage> {
        let shared = Arc::clone(&self.shared);
        Ok(blocking(move || shared.usage()).await?)
    }
}
