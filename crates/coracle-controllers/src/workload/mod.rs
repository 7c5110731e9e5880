//! What controllers of workloads have in common: who belongs to whom, which Pods are good, how they are made.
//!
//! [`desk`] is where each of them begins; [`family`] knows the children of each owner, [`claim`] decides about strangers, [`pods`] judges Pods, [`births`]
//! makes new ones, [`status`] writes down what was seen.

pub(crate) mod births;
pub(crate) mod claim;
pub(crate) mod desk;
pub(crate) mod family;
pub(crate) mod pods;
pub(crate) mod status;

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};
use kube::Error;

use coracle_client::{Object, uid_of};

/// How long a controller waits for its copies to show its own writes before it looks at another key meanwhile.
pub(crate) const CATCH_UP: Duration = Duration::from_secs(30);

/// The reference of a controlled object to its controller.
pub(crate) fn controller_reference<K: Object>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: uid_of(owner).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The controller of an object, if it has one.
pub(crate) fn controller_of<K: Object>(object: &K) -> Option<&OwnerReference> {
    object.meta().owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// A selector as it is matched; `None` if it is malformed, which the API server does not let happen.
pub(crate) fn selector(selector: &LabelSelector) -> Option<coracle_api::selector::LabelSelector> {
    let value = serde_json::to_value(selector).ok()?;
    coracle_api::selector::LabelSelector::from_object(&value).ok()
}

/// Whether an object's labels are selected.
pub(crate) fn selects<K: Object>(selector: &coracle_api::selector::LabelSelector, object: &K) -> bool {
    let labels = object.meta().labels.as_ref();
    selector.matches_labels(|key| labels?.get(key).map(String::as_str))
}

/// What the API server said, or what kept it from saying anything.
pub(crate) fn words_of(error: &Error) -> String {
    match error {
        Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Whether a creation was refused because its namespace is on the way out: nothing is wrong then, and nothing is to
/// be done.
pub(crate) fn is_terminating_namespace(error: &Error) -> bool {
    let Error::Api(status) = error else { return false };
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
}
