//! What a node agent may touch, as far as only the objects can tell: Pods that are bound to it, and the Secrets
//! and ConfigMaps that those Pods use.

use std::collections::BTreeSet;

use bytes::Bytes;
use coracle_api::Value;
use coracle_api::catalogue;
use coracle_api::status::Status;
use coracle_store::ListRequest;

use crate::object;
use crate::policy::{self, Attributes};
use crate::read::unreadable;
use crate::request::Verb;
use crate::server::{Core, store_failed};
use crate::tokens;

impl Core {
    /// Checks a request of a node agent that the policy lets through against the objects it is about.
    /// That Secrets and ConfigMaps are asked for in one namespace is the policy's to see.
    pub(crate) async fn authorize_node(&self, node: &str, attributes: &Attributes<'_>) -> Result<(), Status> {
        let path = attributes.path;
        if attributes.verb == Verb::Create && path.group.is_empty() && path.resource == "nodes" {
            return self.check_makes_node(node);
        }
        let Some(namespace) = path.namespace.as_deref() else { return Ok(()) };
        if !path.group.is_empty() {
            return Ok(());
        }
        let name = path.name.clone().or_else(|| attributes.selected("metadata.name"));
        let unrelated = || {
            let why = format!("no relationship found between node '{node}' and this object");
            Err(policy::denied(attributes, &why))
        };
        match (path.resource.as_str(), name) {
            ("pods", Some(name)) if path.name.is_some() => {
                let Some(row) = catalogue::find("", "v1", "pods") else { return Ok(()) };
                let key = Bytes::from(row.storage_key(namespace, &name));
                let (found, _) = self.store.get(&key).await.map_err(|error| store_failed(&error))?;
                // What does not exist is answered by the handler, with 404.
                let Some(kv) = found else { return Ok(()) };
                let pod = object::decode(&kv.value, kv.mod_revision).map_err(unreadable)?;
                if is_bound_to(&pod, node) {
                    return Ok(());
                }
                match attributes.verb {
                    Verb::Get => unrelated(),
                    Verb::Delete => Err(Status::forbidden(
                        "",
                        "pods",
                        &name,
                        &format!("node {node:?} can only delete pods with spec.nodeName set to itself"),
                    )),
                    _ => Err(Status::forbidden(
                        "",
                        "pods",
                        &name,
                        &format!(
                            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
                        ),
                    )),
                }
            }
            (resource @ ("secrets" | "configmaps" | "serviceaccounts"), Some(name)) => {
                if self.is_used_on(node, namespace, resource, &name).await? { Ok(()) } else { unrelated() }
            }
            ("secrets" | "configmaps", None) => unrelated(),
            _ => Ok(()),
        }
    }

    async fn is_used_on(
        &self,
        node: &str,
        namespace: &str,
        resource: &str,
        name: &str,
    ) -> Result<bool, Status> {
        let Some(row) = catalogue::find("", "v1", "pods") else { return Ok(false) };
        let prefix = Bytes::from(row.storage_list_prefix(Some(namespace)));
        for key in self.placed.on(node, &prefix) {
            let (found, _) = self.store.get(&key).await.map_err(|error| store_failed(&error))?;
            let pod = found.map(|kv| object::decode(&kv.value, kv.mod_revision)).transpose();
            match pod.map_err(unreadable)?.filter(|pod| is_bound_to(pod, node)) {
                Some(pod) if uses(&pod, resource, name) => return Ok(true),
                Some(_) => {}
                None => self.placed.forget(&key),
            }
        }
        // Others may have written more.
        let page = self
            .store
            .list(&ListRequest { prefix, ..ListRequest::default() })
            .await
            .map_err(|error| store_failed(&error))?;
        let mut is_used = false;
        for kv in page.items {
            let bound_to = object::text_at(&kv.value, "spec.nodeName").unwrap_or_default();
            if bound_to.is_empty() {
                continue;
            }
            self.placed.learn(&kv.key, &bound_to);
            if !is_used && bound_to == node {
                let pod = object::decode(&kv.value, kv.mod_revision).map_err(unreadable)?;
                is_used = uses(&pod, resource, name);
            }
        }
        Ok(is_used)
    }
}

fn is_bound_to(pod: &Value, node: &str) -> bool {
    pod.pointer("/spec/nodeName").and_then(Value::as_str) == Some(node)
}

/// Whether a Pod refers to an object, or runs as it.
fn uses(pod: &Value, resource: &str, name: &str) -> bool {
    if resource == "serviceaccounts" {
        return tokens::account_of(pod) == name;
    }
    referred_to(pod, resource).contains(name)
}

/// The names of all Secrets or ConfigMaps that a Pod refers to.
fn referred_to(pod: &Value, resource: &str) -> BTreeSet<String> {
    let members: &[&str] = match resource {
        "secrets" => &["secret", "secretRef", "secretKeyRef", "nodePublishSecretRef", "imagePullSecrets"],
        _ => &["configMap", "configMapRef", "configMapKeyRef"],
    };
    let mut names = BTreeSet::new();
    if let Some(spec) = pod.get("spec") {
        collect(spec, members, &mut names);
    }
    names
}

/// Each reference is an object under one of a few member names; no other field of a Pod uses those names.
fn collect(value: &Value, members: &[&str], names: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if members.contains(&key.as_str()) {
                    let references = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
                    names.extend(references.iter().flat_map(|reference| {
                        ["name", "secretName"]
                            .iter()
                            .filter_map(|key| reference.get(key).and_then(Value::as_str))
                            .map(str::to_owned)
                    }));
                }
                collect(value, members, names);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, members, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_of_reference_is_found() {
        let pod = json!({ "spec": {
            "imagePullSecrets": [{ "name": "pull" }],
            "volumes": [
                { "name": "a", "secret": { "secretName": "vol" } },
                { "name": "b", "configMap": { "name": "cm-vol" } },
                { "name": "c", "projected": { "sources": [
                    { "secret": { "name": "proj" } }, { "configMap": { "name": "cm-proj" } }] } },
            ],
            "initContainers": [{ "name": "i", "envFrom": [
                { "secretRef": { "name": "from" } }, { "configMapRef": { "name": "cm-from" } }] }],
            "containers": [{ "name": "c", "env": [
                { "name": "X", "valueFrom": { "secretKeyRef": { "name": "key", "key": "k" } } },
                { "name": "Y", "valueFrom": { "configMapKeyRef": { "name": "cm-key", "key": "k" } } }] }],
        }});
        let names = |resource| referred_to(&pod, resource).into_iter().collect::<Vec<_>>().join(" ");
        assert_eq!(names("secrets"), "from key proj pull vol");
        assert_eq!(names("configmaps"), "cm-from cm-key cm-proj cm-vol");
    }
}
