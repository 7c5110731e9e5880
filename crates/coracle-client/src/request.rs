//! The requests that components repeat: typed, over any scope, with preconditions.
//!
//! A write returns the object as written, with its revision ([`crate::revision_of`]). Nobody writes an object back that was read in typed form: typed decoding drops what
//! it does not know. Change by [`patch`].

use kube::api::{
    DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy,
};
use kube::core::Request;
use kube::core::request::Error as RequestError;
use kube::{Client, Error};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::object::parse_revision;
use crate::{Object, ObjectKey};

/// The body of a patch.
pub type PatchBody = Patch<serde_json::Value>;

/// How to delete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Deletion {
    /// Seconds to end in peace; what the object says if `None`.
    pub grace_period_seconds: Option<u32>,
    /// Only the object with this UID.
    pub uid: Option<String>,
    /// Only if the object has not changed since this resourceVersion.
    pub resource_version: Option<String>,
    /// What becomes of the objects that it owns; what its kind says if `None`.
    pub propagation: Option<Propagation>,
}

/// What becomes of the objects that a deleted object owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Propagation {
    /// They stay, and no longer name it as their owner.
    Orphan,
    /// They go after it.
    Background,
    /// They go before it.
    Foreground,
}

impl From<Propagation> for PropagationPolicy {
    fn from(propagation: Propagation) -> Self {
        match propagation {
            Propagation::Orphan => PropagationPolicy::Orphan,
            Propagation::Background => PropagationPolicy::Background,
            Propagation::Foreground => PropagationPolicy::Foreground,
        }
    }
}

impl Deletion {
    /// Of the object with this UID, as it says.
    #[must_use]
    pub fn of(uid: impl Into<String>) -> Self {
        Deletion { uid: Some(uid.into()), ..Deletion::default() }
    }

    /// With this end for what it owns.
    #[must_use]
    pub fn propagating(mut self, propagation: Propagation) -> Self {
        self.propagation = Some(propagation);
        self
    }

    /// With so many seconds of grace.
    #[must_use]
    pub fn grace(mut self, seconds: u32) -> Self {
        self.grace_period_seconds = Some(seconds);
        self
    }
}

/// What the API server meant.
pub trait ErrorExt {
    /// The code of the API server's answer; `None` if there was no answer.
    fn code(&self) -> Option<u16>;
    /// The reason of the API server's answer; empty if there was no answer.
    fn reason(&self) -> &str;
    /// There is no such object.
    fn is_not_found(&self) -> bool {
        self.reason() == "NotFound"
    }
    /// The name is taken.
    fn is_already_exists(&self) -> bool {
        self.reason() == "AlreadyExists"
    }
    /// A precondition did not hold.
    fn is_conflict(&self) -> bool {
        self.reason() == "Conflict"
    }
    /// The history asked for is gone.
    fn is_expired(&self) -> bool {
        self.code() == Some(410)
    }
    /// Trying the same again later may help: there was no answer, or it says so.
    fn is_transient(&self) -> bool {
        self.code().is_none_or(|code| code == 429 || code >= 500)
    }
}

impl ErrorExt for Error {
    fn code(&self) -> Option<u16> {
        if let Error::Api(status) = self { Some(status.code) } else { None }
    }

    fn reason(&self) -> &str {
        if let Error::Api(status) = self { &status.reason } else { "" }
    }
}

/// Reads one object from the store, not from an informer.
pub async fn get<K: Object>(client: &Client, key: &ObjectKey) -> Result<K, Error> {
    let request = collection::<K>(key.namespace()).get(&key.name, &GetParams::default());
    send(client, request, "get").await
}

/// Reads all objects, of one namespace or of all.
pub async fn list<K: Object>(client: &Client, namespace: Option<&str>) -> Result<Vec<K>, Error> {
    #[derive(serde::Deserialize)]
    struct List<K> {
        items: Vec<K>,
    }
    let list: List<K> = send(client, collection::<K>(namespace).list(&ListParams::default()), "list").await?;
    Ok(list.items)
}

/// Creates `object` in the namespace it names.
pub async fn create<K: Object + Serialize>(client: &Client, object: &K) -> Result<K, Error> {
    let body = serde_json::to_vec(object).map_err(Error::SerdeError)?;
    let request = collection::<K>(object.meta().namespace.as_deref()).create(&PostParams::default(), body);
    send(client, request, "create").await
}

/// Posts `body` to a subresource, as `binding`.
pub async fn create_subresource<K: Object, R: DeserializeOwned>(
    client: &Client,
    key: &ObjectKey,
    subresource: &'static str,
    body: &impl Serialize,
) -> Result<R, Error> {
    let body = serde_json::to_vec(body).map_err(Error::SerdeError)?;
    let request = collection::<K>(key.namespace()).create_subresource(
        subresource,
        &key.name,
        &PostParams::default(),
        body,
    );
    send(client, request, subresource).await
}

/// Patches an object.
pub async fn patch<K: Object>(client: &Client, key: &ObjectKey, patch: &PatchBody) -> Result<K, Error> {
    let request = collection::<K>(key.namespace()).patch(&key.name, &PatchParams::default(), patch);
    send(client, request, "patch").await
}

/// Patches the status of an object. `metadata.uid` in the patch makes sure that it is that object, and
/// `metadata.resourceVersion` that it has not changed.
pub async fn patch_status<K: Object>(
    client: &Client,
    key: &ObjectKey,
    patch: &PatchBody,
) -> Result<K, Error> {
    patch_subresource(client, key, "status", patch).await
}

/// Patches a subresource.
pub async fn patch_subresource<K: Object>(
    client: &Client,
    key: &ObjectKey,
    subresource: &'static str,
    patch: &PatchBody,
) -> Result<K, Error> {
    let request = collection::<K>(key.namespace()).patch_subresource(
        subresource,
        &key.name,
        &PatchParams::default(),
        patch,
    );
    send(client, request, "patch_subresource").await
}

/// Deletes one object. Returns the revision that the answer speaks of: of the object on its way out, or of the
/// removal; 0 if it says none.
pub async fn delete<K: Object>(client: &Client, key: &ObjectKey, how: &Deletion) -> Result<u64, Error> {
    let parameters = delete_params(how);
    let request = collection::<K>(key.namespace()).delete(&key.name, &parameters);
    let answer: serde_json::Value = send(client, request, "delete").await?;
    Ok(parse_revision(answer.pointer("/metadata/resourceVersion").and_then(serde_json::Value::as_str)))
}

pub(crate) fn delete_params(how: &Deletion) -> DeleteParams {
    let preconditions = (how.uid.is_some() || how.resource_version.is_some())
        .then(|| Preconditions { uid: how.uid.clone(), resource_version: how.resource_version.clone() });
    DeleteParams {
        grace_period_seconds: how.grace_period_seconds,
        preconditions,
        propagation_policy: how.propagation.map(PropagationPolicy::from),
        ..DeleteParams::default()
    }
}

/// Requests about the objects of a kind, within `namespace` or everywhere.
pub(crate) fn collection<K: Object>(namespace: Option<&str>) -> Request {
    Request::new(K::url_path(&(), namespace))
}

/// Sends a request that was built without error; `what` is for the trace.
pub(crate) async fn send<T: DeserializeOwned>(
    client: &Client,
    request: Result<http::Request<Vec<u8>>, RequestError>,
    what: &'static str,
) -> Result<T, Error> {
    let mut request = request.map_err(Error::BuildRequest)?;
    request.extensions_mut().insert(what);
    client.request(request).await
}
