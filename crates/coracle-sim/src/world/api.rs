//! Requests of whoever drives a world.

use coracle_api::catalogue::{self, Resource};
use coracle_apiserver::auth::UserInfo;
use coracle_client::in_process;
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::Value;

use super::{SimError, World};
use crate::wire::Unreachable;

impl World {
    /// A client with all rights, for use with [`World::block_on`].
    #[must_use]
    pub fn client(&self) -> kube::Client {
        let _guard = self.runtime.enter();
        in_process(self.admin.caller(UserInfo::new("kubernetes-admin", ["system:masters"])))
    }

    /// Asks the API server. Returns the code and the answer.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn request(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), SimError> {
        self.request_with(method, path, body, "application/json")
    }

    /// Asks the API server with a body of another type. Returns the code and the answer.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn request_with(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        content_type: &str,
    ) -> Result<(u16, Value), SimError> {
        let mut caller = self.admin.caller(UserInfo::new("kubernetes-admin", ["system:masters"]));
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, content_type)
            .body(kube::client::Body::from(body))
            .map_err(|error| SimError::Unknown(error.to_string()))?;
        let answer = self.runtime.block_on(async move {
            let response = tower::Service::call(&mut caller, request).await?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            Ok::<_, Unreachable>((head.status.as_u16(), serde_json::from_slice(&body).unwrap_or(Value::Null)))
        })?;
        Ok(answer)
    }

    fn demand(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        kind: &str,
    ) -> Result<Value, SimError> {
        let verb = method.to_string();
        let (code, answer) = self.request_with(method, path, body, kind)?;
        if (200..300).contains(&code) {
            return Ok(answer);
        }
        let status = answer["message"].as_str().unwrap_or_default().to_owned();
        Err(SimError::Refused { verb, path: path.to_owned(), status, code })
    }

    /// Creates the object of a manifest, or changes the one that is there to what it says. Returns what the server
    /// made of it.
    ///
    /// # Errors
    /// If the kind is unknown, or the server refuses.
    pub fn apply(&mut self, manifest: &Value) -> Result<Value, SimError> {
        let (resource, namespace, name) = resource_of(manifest)?;
        let all = collection_path(resource, namespace);
        match self.demand(Method::POST, &all, Some(manifest), "application/json") {
            Err(SimError::Refused { code: 409, .. }) if !name.is_empty() => {
                let one = format!("{all}/{name}");
                self.demand(Method::PATCH, &one, Some(manifest), "application/merge-patch+json")
            }
            done => done,
        }
    }

    /// Creates the object of a manifest.
    ///
    /// # Errors
    /// If the kind is unknown, or the server refuses: also because there is such an object.
    pub fn create(&mut self, manifest: &Value) -> Result<Value, SimError> {
        let (resource, namespace, _) = resource_of(manifest)?;
        let all = collection_path(resource, namespace);
        self.demand(Method::POST, &all, Some(manifest), "application/json")
    }

    /// Changes an object by a strategic merge patch.
    ///
    /// # Errors
    /// If the kind is unknown, or the server refuses.
    pub fn patch_strategic(
        &mut self,
        kind: &str,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Value, SimError> {
        let path = format!("{}/{name}", collection_path(resource_named(kind)?, namespace));
        self.demand(Method::PATCH, &path, Some(patch), "application/strategic-merge-patch+json")
    }

    /// Changes an object by a merge patch.
    ///
    /// # Errors
    /// If the kind is unknown, or the server refuses.
    pub fn patch(
        &mut self,
        kind: &str,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Value, SimError> {
        let path = format!("{}/{name}", collection_path(resource_named(kind)?, namespace));
        self.demand(Method::PATCH, &path, Some(patch), "application/merge-patch+json")
    }

    /// Deletes an object, with this grace if any is given.
    ///
    /// # Errors
    /// If the kind is unknown, or the server refuses.
    pub fn delete(
        &mut self,
        kind: &str,
        namespace: &str,
        name: &str,
        grace: Option<u32>,
    ) -> Result<(), SimError> {
        let path = format!("{}/{name}", collection_path(resource_named(kind)?, namespace));
        let how = grace.map(|seconds| serde_json::json!({"gracePeriodSeconds": seconds}));
        self.demand(Method::DELETE, &path, how.as_ref(), "application/json").map(drop)
    }
}

/// The resource of a kind, by its name or any of the short ones.
pub(super) fn resource_named(kind: &str) -> Result<&'static Resource, SimError> {
    let wanted = kind.to_lowercase();
    let is = |row: &&Resource| {
        row.kind.to_lowercase() == wanted
            || row.plural == wanted
            || row.short_names.contains(&wanted.as_str())
    };
    let found = catalogue::resources().iter().find(is);
    found.ok_or_else(|| SimError::Unknown(format!("there is no kind {kind}")))
}

fn resource_of(manifest: &Value) -> Result<(&'static Resource, &str, &str), SimError> {
    let text = |at: &str| manifest.pointer(at).and_then(Value::as_str).unwrap_or_default();
    let (version, kind) = (text("/apiVersion"), text("/kind"));
    let (group, short) = version.split_once('/').unwrap_or(("", version));
    let unknown = || SimError::Unknown(format!("no matches for kind \"{kind}\" in version \"{version}\""));
    let resource = catalogue::by_kind(group, short, kind).ok_or_else(unknown)?;
    let namespace = match text("/metadata/namespace") {
        "" if resource.namespaced => "default",
        given => given,
    };
    Ok((resource, namespace, text("/metadata/name")))
}

fn collection_path(resource: &Resource, namespace: &str) -> String {
    let root = if resource.group.is_empty() { "/api" } else { "/apis" };
    let of = if resource.namespaced { format!("/namespaces/{namespace}") } else { String::new() };
    format!("{root}/{}{of}/{}", resource.api_version(), resource.plural)
}
