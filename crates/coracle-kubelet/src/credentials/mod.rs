//! With what a Pod's images are fetched, and what it may use of what is here already.
//!
//! [`keyring`] finds the credentials for an image in the Secrets that a Pod names. [`records`] remembers with which
//! credentials each image was fetched, so that no Pod runs what it could not have fetched itself.

pub(crate) mod keyring;
mod place;
pub(crate) mod pull;
pub(crate) mod records;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Secret};
use tracing::warn;

use crate::context::Context;
use crate::pod::reasons::PodEvent;
use crate::spec::PodIdentity;

/// The names of the Secrets that a Pod's images are fetched with.
pub(crate) fn names(pod: &Pod) -> impl Iterator<Item = &str> {
    let references = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    references.map(|reference| reference.name.as_str()).filter(|name| !name.is_empty())
}

/// The Secrets that a Pod's images are fetched with, and the names of those that cannot be had.
pub(crate) async fn secrets(context: &Context, pod: &Pod) -> (Vec<Arc<Secret>>, Vec<String>) {
    let namespace = PodIdentity::of(pod).namespace;
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in names(pod) {
        match context.objects.secrets.get(&namespace, name).await {
            Ok(Some(secret)) => found.push(secret),
            Ok(None) => missing.push(name.to_owned()),
            Err(why) => {
                warn!(pod = %PodIdentity::of(pod).full_name(), secret = name, error = why, "cannot read a pull secret");
                missing.push(name.to_owned());
            }
        }
    }
    (found, missing)
}

/// The same, telling the user of what is missing: the images may be there for everybody.
pub(crate) async fn secrets_or_event(context: &Context, pod: &Pod) -> Vec<Arc<Secret>> {
    let (found, missing) = secrets(context, pod).await;
    if !missing.is_empty() {
        let text = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            missing.join(", ")
        );
        context.report(pod, &PodEvent::pod_warning("FailedToRetrieveImagePullSecret", text));
    }
    found
}
