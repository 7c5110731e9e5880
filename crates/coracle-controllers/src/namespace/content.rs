//! What lives in a namespace, and how it is made to go.

use std::collections::BTreeSet;

use coracle_api::catalogue::{self, Resource};
use coracle_client::{Collection, Deletion, ErrorExt as _, Metadata, ObjectKey, Propagation, request};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{GetParams, PostParams};
use kube::core::Request;
use kube::{Client, Error, Resource as _};
use serde_json::Value;

use super::{Remaining, without_finalizer};

/// The kinds whose objects live in namespaces and can be deleted, each stored object under one kind only, Pods first.
#[must_use]
pub fn kinds() -> Vec<&'static Resource> {
    let deletable = |row: &&Resource| row.namespaced && row.allows("list") && row.allows("delete");
    let mut stored = BTreeSet::new();
    let mut kinds: Vec<_> = catalogue::resources()
        .iter()
        .filter(deletable)
        .filter(|row| stored.insert(row.storage_prefix))
        .collect();
    kinds.sort_by_key(|row| !is_pods(row));
    kinds
}

fn is_pods(row: &Resource) -> bool {
    row.group.is_empty() && row.plural == "pods"
}

/// What a list says about the objects in it.
#[derive(Debug, Default)]
struct Listed {
    count: usize,
    /// Objects that nobody has asked to go yet.
    unmarked: Vec<String>,
    /// Pods that still have time to end in peace.
    in_grace: usize,
    finalizers: Vec<String>,
}

impl Listed {
    fn of<'a>(objects: impl IntoIterator<Item = &'a ObjectMeta>) -> Self {
        let mut listed = Listed::default();
        for meta in objects {
            listed.count += 1;
            if meta.deletion_timestamp.is_none() {
                listed.unmarked.extend(meta.name.clone());
            }
            listed.finalizers.extend(meta.finalizers.iter().flatten().cloned());
        }
        listed
    }

    /// The same of Pods, whose end takes time that they have.
    fn of_pods(pods: &[Pod]) -> Self {
        let in_grace = pods.iter().filter(|pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            pod.metadata.deletion_grace_period_seconds.is_some_and(|grace| grace > 0)
                && !matches!(phase, Some("Succeeded" | "Failed"))
        });
        Listed { in_grace: in_grace.count(), ..Listed::of(pods.iter().map(|pod| &pod.metadata)) }
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
        if is_pods(kind) && !remaining.is_empty() {
            break;
        }
    }
    remaining
}

fn unexpected(namespace: &str, Resource { group, version, plural, .. }: &Resource) -> String {
    format!(
        "unexpected items still remain in namespace: {namespace} for gvr: {group}/{version}, Resource={plural}"
    )
}

async fn delete_kind(client: &Client, namespace: &str, kind: &Resource) -> Result<Listed, Error> {
    let objects = Collection::new(client, kind.path(Some(namespace)));
    let list = || async {
        if is_pods(kind) {
            return Ok::<_, Error>(Listed::of_pods(&request::list(client, Some(namespace)).await?));
        }
        Ok(Listed::of(objects.list().await?.iter().map(Metadata::meta)))
    };
    let before = list().await?;
    if before.unmarked.is_empty() {
        return Ok(before);
    }
    // Everything goes, so nobody is to wait for anybody, nor to be orphaned.
    let how = Deletion::default().propagating(Propagation::Background);
    if kind.allows("deletecollection") {
        objects.delete_all(&how).await?;
    } else {
        for name in &before.unmarked {
            match objects.delete(name, &how).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
    }
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
        assert!(is_pods(kinds[0]));
        let plurals: Vec<_> = kinds.iter().map(|kind| kind.plural).collect();
        for expected in ["configmaps", "secrets", "serviceaccounts", "services", "endpoints", "leases"] {
            assert!(plurals.contains(&expected), "{expected} in {plurals:?}");
        }
        assert_eq!(plurals.iter().filter(|plural| **plural == "events").count(), 1);
        assert!(!plurals.contains(&"nodes") && !plurals.contains(&"namespaces"));
    }

    #[test]
    fn a_list_tells_who_waits_for_what() {
        let pods: Vec<Pod> = serde_json::from_value(json!([
            {"metadata": {"name": "a"}},
            {"metadata": {"deletionTimestamp": "2030-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30},
             "status": {"phase": "Running"}},
            {"metadata": {"deletionTimestamp": "2030-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30},
             "status": {"phase": "Failed"}},
            {"metadata": {"deletionTimestamp": "2030-01-01T00:00:00Z", "finalizers": ["a/b", "c/d"]}},
        ]))
        .unwrap();
        let listed = Listed::of_pods(&pods);
        assert_eq!((listed.count, listed.in_grace), (4, 1));
        assert_eq!(listed.unmarked, ["a"]);
        assert_eq!(listed.finalizers, ["a/b", "c/d"]);
    }
}
