//! One pull: with each of the credentials that are for the image, until one is taken.

use std::sync::Arc;

use coracle_cri::{CriError, CriResult, ImageSpec};
use k8s_openapi::api::core::v1::Secret;
use tracing::warn;

use super::keyring::{Keyring, all_of};
use super::records::{Proof, Records};
use crate::context::Context;
use crate::pod::image_name;

/// Fetches an image with what is in `secrets`, and takes note of what it was fetched with. Returns the image's reference.
pub(crate) async fn pull(context: &Context, secrets: &[Arc<Secret>], image: &str) -> CriResult<String> {
    let keyring = Keyring::of(secrets).map_err(CriError::InvalidArgument)?;
    let repository = image_name::repository(image).unwrap_or_default();
    let spec = ImageSpec { image: image.to_owned() };
    let before = context.images.image_status(&spec).await.ok().flatten();
    let pulling = Pulling::begin(context, image, before).await.map_err(|why| {
        CriError::Internal(format!(
            "Failed to record image pull intent for container image \"{image}\": {why}"
        ))
    })?;
    let mut failures = Vec::new();
    let credentials = keyring.lookup(&repository);
    if credentials.is_empty() {
        match context.images.pull_image(&spec, None, None).await {
            Ok(found) => return Ok(pulling.succeeded(context, found, repository, None).await),
            Err(why) => failures.push(why),
        }
    }
    for credential in credentials {
        match context.images.pull_image(&spec, Some(&credential.auth), None).await {
            Ok(found) => {
                return Ok(pulling.succeeded(context, found, repository, Some(credential.proof)).await);
            }
            Err(why) => failures.push(why),
        }
    }
    pulling.failed(context).await;
    Err(together(failures))
}

/// What the failures of several attempts are together.
fn together(mut failures: Vec<CriError>) -> CriError {
    failures.dedup();
    if failures.len() == 1 {
        return failures.remove(0);
    }
    CriError::Internal(all_of(failures.iter().map(ToString::to_string).collect()))
}

/// A pull that is written down. One that is given up is, too: its image has not arrived.
struct Pulling {
    records: Arc<Records>,
    name: String,
    open: bool,
}

impl Pulling {
    async fn begin(
        context: &Context,
        name: &str,
        before: Option<coracle_cri::Image>,
    ) -> std::io::Result<Self> {
        let pulling = Pulling { records: context.image_records.clone(), name: name.to_owned(), open: true };
        let (records, name) = (pulling.records.clone(), pulling.name.clone());
        context.clock.blocking(move || records.begin(&name, before.as_ref())).await?;
        Ok(pulling)
    }

    async fn succeeded(
        mut self,
        context: &Context,
        image: String,
        repository: String,
        proof: Option<Proof>,
    ) -> String {
        self.open = false;
        let (records, name, found) = (self.records.clone(), self.name.clone(), image.clone());
        let end = move || records.end(&name, Some((&found, &repository, proof.as_ref())));
        if let Err(why) = context.clock.blocking(end).await {
            warn!(image, error = %why, "cannot take note of the credentials of an image");
        }
        image
    }

    async fn failed(mut self, context: &Context) {
        self.open = false;
        let (records, name) = (self.records.clone(), self.name.clone());
        let _ = context.clock.blocking(move || records.end(&name, None)).await;
    }
}

impl Drop for Pulling {
    fn drop(&mut self) {
        if self.open {
            // Removing one file; nobody is left to wait for it.
            let _ = self.records.end(&self.name, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_stays_what_it_is_and_several_are_told_together() {
        let away = || CriError::RegistryUnavailable("x".to_owned());
        let denied = || CriError::Internal("denied".to_owned());
        assert_eq!(together(vec![away()]), away());
        assert_eq!(together(vec![denied(), denied()]), denied());
        assert_eq!(
            together(vec![denied(), away()]),
            CriError::Internal("[denied, RegistryUnavailable: x]".to_owned())
        );
    }
}
