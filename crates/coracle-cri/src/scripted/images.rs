//! Images that are names.

use async_trait::async_trait;

use super::{ScriptedRuntime, State};
use crate::{
    AuthConfig, CriError, CriResult, FilesystemUsage, Image, ImageService, ImageSpec, PodSandboxConfig,
};

impl State {
    pub(super) fn add_image(&mut self, name: &str) -> String {
        let id = format!(
            "sha256:{:0>64}",
            format!("{:x}", name.bytes().fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into())))
        );
        let image =
            Image { id: id.clone(), repo_tags: vec![name.to_owned()], size: 1024, ..Image::default() };
        self.images.insert(id.clone(), image);
        id
    }

    pub(super) fn image(&self, reference: &str) -> Option<&Image> {
        self.images
            .get(reference)
            .or_else(|| self.images.values().find(|image| image.repo_tags.iter().any(|tag| tag == reference)))
    }
}

#[async_trait]
impl ImageService for ScriptedRuntime {
    async fn list_images(&self) -> CriResult<Vec<Image>> {
        self.meet_trouble("list_images").await?;
        Ok(self.state().images.values().cloned().collect())
    }

    async fn image_status(&self, image: &ImageSpec) -> CriResult<Option<Image>> {
        self.meet_trouble("image_status").await?;
        Ok(self.state().image(&image.image).cloned())
    }

    async fn pull_image(
        &self,
        image: &ImageSpec,
        auth: Option<&AuthConfig>,
        _sandbox: Option<&PodSandboxConfig>,
    ) -> CriResult<String> {
        self.meet_trouble("pull_image").await?;
        let name = image.image.clone();
        let script = self.state().script_of(&name);
        let Some(script) = script else {
            return Err(CriError::NotFound(format!("failed to resolve reference \"{name}\": not found")));
        };
        self.0.clock.sleep(script.pull_time).await;
        let mut state = self.state();
        let nth = state.pulls.entry(name.clone()).or_insert(0);
        let failure = script
            .pull_failures
            .get(*nth)
            .or(script.pull_failures.last().filter(|_| script.pull_never_succeeds));
        *nth += 1;
        state.log(format!("pull {name}"));
        let is_let_in = script.login.as_ref().is_none_or(|login| {
            auth.is_some_and(|auth| (&auth.username, &auth.password) == (&login.username, &login.password))
        });
        match failure {
            Some(error) => Err(error.clone()),
            None if !is_let_in => Err(CriError::Internal(
                "pull access denied, repository does not exist or may require authorization: authorization failed"
                    .to_owned(),
            )),
            None => Ok(state.add_image(&name)),
        }
    }

    async fn remove_image(&self, image: &ImageSpec) -> CriResult<()> {
        let mut state = self.state();
        if let Some(id) = state.image(&image.image).map(|image| image.id.clone()) {
            state.images.remove(&id);
        }
        Ok(())
    }

    async fn image_fs_info(&self) -> CriResult<FilesystemUsage> {
        Ok(FilesystemUsage::default())
    }
}
