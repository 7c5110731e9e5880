//! Which ReplicaSet is of which template, and how its past is written down.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::numbers;
use crate::workload::controller_reference;

pub(super) const HASH_LABEL: &str = "pod-template-hash";
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Longest list of earlier revisions.
const HISTORY_MAX: usize = 2000;

/// Annotations that are not handed down.
const OWN: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

pub(super) fn annotation<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

pub(super) fn revision_of(set: &ReplicaSet) -> i64 {
    annotation(&set.metadata, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Whether a ReplicaSet makes the Pods of this template.
pub(super) fn is_of(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let Some(own) = &set.spec.template else { return false };
    let bare = |template: &PodTemplateSpec| {
        let mut bare = template.clone();
        if let Some(metadata) = bare.metadata.as_mut() {
            if let Some(labels) = metadata.labels.as_mut() {
                labels.remove(HASH_LABEL);
            }
            metadata.labels = metadata.labels.take().filter(|labels| !labels.is_empty());
        }
        bare.metadata = bare.metadata.filter(|metadata| *metadata != ObjectMeta::default());
        bare
    };
    bare(own) == bare(template)
}

/// The end of a ReplicaSet's name: it depends on the template, and on how often names have collided, alone.
pub(super) fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut text = serde_json::to_vec(template).unwrap_or_default();
    if let Some(collisions) = collisions {
        text.extend(collisions.to_le_bytes());
    }
    let hash =
        text.iter().fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    hash.to_string().bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()])).collect()
}

/// A ReplicaSet for the Deployment's template, without replicas yet.
pub(super) fn new_set(deployment: &Deployment) -> ReplicaSet {
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let mut template = deployment.spec.template.clone();
    let hash = hash(&template, collisions);
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = deployment.spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.to_owned(), hash.clone());
    ReplicaSet {
        metadata: ObjectMeta {
            namespace: deployment.metadata.namespace.clone(),
            name: Some(format!("{name}-{hash}")),
            labels: Some(labels),
            annotations: Some(BTreeMap::new()),
            owner_references: Some(vec![controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: deployment.spec.min_ready_seconds,
            selector,
            template: Some(template),
        },
        status: None,
    }
}

/// The annotations that the current ReplicaSet is to have: those of its Deployment, and its revision, which is above that
/// of all others.
pub(super) fn annotations(
    deployment: &Deployment,
    set: &ReplicaSet,
    others: i64,
) -> BTreeMap<String, String> {
    let mut annotations = set.metadata.annotations.clone().unwrap_or_default();
    for (name, value) in deployment.metadata.annotations.iter().flatten() {
        if !OWN.contains(&name.as_str()) {
            annotations.insert(name.clone(), value.clone());
        }
    }
    let newest = others + 1;
    let old = annotations.get(REVISION).cloned();
    let known = old.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0);
    if known < newest {
        annotations.insert(REVISION.to_owned(), newest.to_string());
        if let Some(old) = old {
            let history = annotations.entry(HISTORY.to_owned()).or_default();
            if !history.is_empty() {
                history.push(',');
            }
            history.push_str(&old);
            while history.len() > HISTORY_MAX {
                // The oldest go first.
                let rest = history.split_once(',').map(|(_, rest)| rest.to_owned());
                *history = rest.unwrap_or_default();
            }
        }
    }
    annotations
}

/// What a ReplicaSet remembers of the size that its Deployment had when it was last scaled.
pub(super) fn sizes(deployment: &Deployment) -> [(&'static str, String); 2] {
    let wanted = numbers::wanted(deployment);
    [(DESIRED, wanted.to_string()), (MAX, (wanted + numbers::bounds(deployment).0).to_string())]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_has_one_name_and_a_collision_another() {
        let template: PodTemplateSpec = serde_json::from_value(json!({"spec": {"containers": []}})).unwrap();
        let name = hash(&template, None);
        assert_eq!(name, hash(&template, None));
        assert_ne!(name, hash(&template, Some(1)));
        assert!(name.bytes().all(|byte| b"bcdfghjklmnpqrstvwxz2456789".contains(&byte)), "{name}");
    }

    #[test]
    fn the_hash_does_not_make_a_template_another() {
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "d", "namespace": "n", "uid": "u"},
            "spec": {
                "selector": {"matchLabels": {"app": "a"}},
                "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": []}},
            },
        }))
        .unwrap();
        let set = new_set(&deployment);
        assert!(is_of(&set, &deployment.spec.template));
        let hash = &set.metadata.labels.as_ref().unwrap()[HASH_LABEL];
        assert_eq!(set.metadata.name.as_deref(), Some(format!("d-{hash}").as_str()));
        assert_eq!(&set.spec.selector.match_labels.as_ref().unwrap()[HASH_LABEL], hash);
    }

    #[test]
    fn a_revision_that_comes_back_remembers_what_it_was() {
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"annotations": {"kubernetes.io/change-cause": "because", REVISION: "2"}},
            "spec": {"selector": {}, "template": {}},
        }))
        .unwrap();
        let mut set = new_set(&deployment);
        set.metadata.annotations = Some(annotations(&deployment, &set, 0));
        assert_eq!(annotation(&set.metadata, REVISION), Some("1"));
        assert_eq!(annotation(&set.metadata, "kubernetes.io/change-cause"), Some("because"));
        assert_eq!(annotation(&set.metadata, HISTORY), None);
        set.metadata.annotations = Some(annotations(&deployment, &set, 2));
        assert_eq!(annotation(&set.metadata, REVISION), Some("3"));
        assert_eq!(annotation(&set.metadata, HISTORY), Some("1"));
        assert_eq!(annotations(&deployment, &set, 2), set.metadata.annotations.clone().unwrap());
    }
}
