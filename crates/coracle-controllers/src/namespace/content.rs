//! What lives in a namespace, and how it is made to go.

use std::collections::BTreeSet;

use coracle_api::catalogue::{self, Resource};
use coracle_client::ObjectKey;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, GetParams, ListParams, PostParams};
use kube::core::Request;
use kube::{Client, Error};
use serde_json::Value;

use super::{Remaining, without_finalizer};

/// A kind whose objects live in namespaces and can be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Its API group; empty for the core group.
    pub group: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Its name in paths.
    pub plural: &'static str,
}

/// All of them, each stored object under one kind only, Pods first.
#[must_use]
pub fn kinds() -> Vec<Kind> {
    let deletable = |resource: &&Resource| {
        resource.namespaced && resource.allows("list") && resource.allows("deletecollection")
    };
    let mut stored = BTreeSet::new();
    let mut kinds: Vec<_> = catalogue::resources()
        .iter()
        .filter(deletable)
        .filter(|resource| stored.insert(resource.storage_prefix))
        .map(|resource| Kind { group: resource.group, version: resource.version, plural: resource.plural })
        .collect();
    kinds.sort_by_key(|kind| !kind.is_pods());
    kinds
}

impl Kind {
    fn is_pods(&self) -> bool {
        self.group.is_empty() && self.plural == "pods"
    }

    fn path(&self, namespace: &str) -> String {
        let Kind { group, version, plural } = self;
        if group.is_empty() {
            format!("/api/{version}/namespaces/{namespace}/{plural}")
        } else {
            format!("/apis/{group}/{version}/namespaces/{namespace}/{plural}")
        }
    }
}

/// What a list says about the objects in it.
#[derive(Debug, Default)]
struct Listed {
    count: usize,
    /// Objects that nobody has asked to go yet.
    unmarked: usize,
    /// Pods that still have time to end in peace.
    in_grace: usize,
    finalizers: Vec<String>,
}

impl Listed {
    fn of(list: &Value) -> Self {
        let mut listed = Listed::default();
        for item in list["items"].as_array().into_iter().flatten() {
            listed.count += 1;
            if item.pointer("/metadata/deletionTimestamp").is_none_or(Value::is_null) {
                listed.unmarked += 1;
            }
            let grace = item.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
            let ended =
                matches!(item.pointer("/status/phase").and_then(Value::as_str), Some("Succeeded" | "Failed"));
            if grace.is_some_and(|grace| grace > 0) && !ended {
                listed.in_grace += 1;
            }
            let finalizers = item.pointer("/metadata/finalizers").and_then(Value::as_array);
            let names = finalizers.into_iter().flatten().filter_map(Value::as_str);
            listed.finalizers.extend(names.map(str::to_owned));
        }
        listed
    }
}

/// Asks everything in a namespace to go, Pods before all else, and says what is left.
pub(super) async fn delete_all(client: &Client, namespace: &str) -> Remaining {
    let mut remaining = Remaining::default();
    for kind in kinds() {
        let name = format!("{}.{}", kind.plural, kind.group);
        match delete_kind(client, namespace, kind).await {
            Ok(Listed { count: 0, .. }) => {}
            Ok(listed) => {
                remaining.objects.insert(name, listed.count);
                // What waits for its grace or for a finalizer is as it should be.
                if listed.in_grace == 0 && listed.finalizers.is_empty() {
                    remaining.failures.push(unexpected(namespace, kind));
                }
                for finalizer in listed.finalizers {
                    *remaining.finalizers.entry(finalizer).or_insert(0) += 1;
                }
            }
            Err(error) => remaining.failures.push(error.to_string()),
        }
        if kind.is_pods() && !remaining.is_empty() {
            break;
        }
    }
    remaining
}

fn unexpected(namespace: &str, Kind { group, version, plural }: Kind) -> String {
    format!(
        "unexpected items still remain in namespace: {namespace} for gvr: {group}/{version}, Resource={plural}"
    )
}

async fn delete_kind(client: &Client, namespace: &str, kind: Kind) -> Result<Listed, Error> {
    let collection = Request::new(kind.path(namespace));
    let list = || async {
        let request = collection.list(&ListParams::default()).map_err(Error::BuildRequest)?;
        Ok::<_, Error>(Listed::of(&client.request::<Value>(request).await?))
    };
    let before = list().await?;
    if before.unmarked == 0 {
        return Ok(before);
    }
    let request = collection
        .delete_collection(&DeleteParams::default(), &ListParams::default())
        .map_err(Error::BuildRequest)?;
    client.request::<Value>(request).await?;
    list().await
}

/// Takes our finalizer from a namespace, with all else of it as it is.
pub(super) async fn finalize(client: &Client, key: &ObjectKey, seen: &Namespace) -> Result<(), Error> {
    let namespaces = Request::new("/api/v1/namespaces");
    let request = namespaces.get(&key.name, &GetParams::default()).map_err(Error::BuildRequest)?;
    let current: Value = client.request(request).await?;
    let uid = current.pointer("/metadata/uid").and_then(Value::as_str);
    if uid != seen.metadata.uid.as_deref() {
        return Ok(());
    }
    let body = serde_json::to_vec(&without_finalizer(current)).map_err(Error::SerdeError)?;
    let request = namespaces
        .replace_subresource("finalize", &key.name, &PostParams::default(), body)
        .map_err(Error::BuildRequest)?;
    client.request::<Value>(request).await.map(drop)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_go_first_and_no_object_is_under_two_kinds() {
        let kinds = kinds();
        assert!(kinds[0].is_pods());
        let plurals: Vec<_> = kinds.iter().map(|kind| kind.plural).collect();
        for expected in ["configmaps", "secrets", "serviceaccounts", "services", "endpoints", "leases"] {
            assert!(plurals.contains(&expected), "{expected} in {plurals:?}");
        }
        assert_eq!(plurals.iter().filter(|plural| **plural == "events").count(), 1);
        assert!(!plurals.contains(&"nodes") && !plurals.contains(&"namespaces"));
    }

    #[test]
    fn a_list_tells_who_waits_for_what() {
        let listed = Listed::of(&json!({"items": [
            {"metadata": {}},
            {"metadata": {"deletionTimestamp": "t", "deletionGracePeriodSeconds": 30}, "status": {"phase": "Running"}},
            {"metadata": {"deletionTimestamp": "t", "deletionGracePeriodSeconds": 30}, "status": {"phase": "Failed"}},
            {"metadata": {"deletionTimestamp": "t", "finalizers": ["a/b", "c/d"]}},
        ]}));
        assert_eq!((listed.count, listed.unmarked, listed.in_grace), (4, 1, 1));
        assert_eq!(listed.finalizers, ["a/b", "c/d"]);
    }
}
