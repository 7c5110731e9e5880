//! Objects of any kind, known by the path of their collection, of which only the metadata is read.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{GetParams, ListParams, PatchParams};
use kube::core::{DynamicResourceScope, Request};
use kube::{Client, Error};
use serde::Deserialize;
use serde_json::Value;

use crate::Deletion;
use crate::request::{PatchBody, delete_params, send};

/// What those who look after objects of every kind need of one: its names, its owners, its finalizers, its end. Labels
/// and annotations are dropped, so that a copy of everything stays small.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(from = "Whole")]
pub struct Metadata(ObjectMeta);

#[derive(Deserialize)]
struct Whole {
    #[serde(default)]
    metadata: ObjectMeta,
}

impl From<Whole> for Metadata {
    fn from(Whole { metadata }: Whole) -> Self {
        Metadata(ObjectMeta { labels: None, annotations: None, managed_fields: None, ..metadata })
    }
}

impl kube::Resource for Metadata {
    type DynamicType = ();
    type Scope = DynamicResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "PartialObjectMetadata".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "meta.k8s.io".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "partialobjectmetadata".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.0
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.0
    }
}

/// The objects at one path, as `/api/v1/namespaces/default/pods`.
#[derive(Clone)]
pub struct Collection {
    client: Client,
    request: Request,
}

impl Collection {
    /// The objects at `path`.
    pub fn new(client: &Client, path: impl Into<String>) -> Self {
        Collection { client: client.clone(), request: Request::new(path) }
    }

    /// Reads one from the store.
    pub async fn get(&self, name: &str) -> Result<Metadata, Error> {
        send(&self.client, self.request.get_metadata(name, &GetParams::default()), "get_metadata").await
    }

    /// Reads all from the store.
    pub async fn list(&self) -> Result<Vec<Metadata>, Error> {
        #[derive(Deserialize)]
        struct List {
            items: Vec<Metadata>,
        }
        let request = self.request.list_metadata(&ListParams::default());
        send::<List>(&self.client, request, "list_metadata").await.map(|list| list.items)
    }

    /// Patches one.
    pub async fn patch(&self, name: &str, patch: &PatchBody) -> Result<Metadata, Error> {
        let request = self.request.patch_metadata(name, &PatchParams::default(), patch);
        send(&self.client, request, "patch_metadata").await
    }

    /// Deletes one.
    pub async fn delete(&self, name: &str, how: &Deletion) -> Result<(), Error> {
        let request = self.request.delete(name, &delete_params(how));
        send::<Value>(&self.client, request, "delete").await.map(drop)
    }

    /// Deletes all.
    pub async fn delete_all(&self, how: &Deletion) -> Result<(), Error> {
        let request = self.request.delete_collection(&delete_params(how), &ListParams::default());
        send::<Value>(&self.client, request, "delete_collection").await.map(drop)
    }
}
