//! The ConfigMap `kube-root-ca.crt` of each namespace: whom Pods trust when they talk to the API server.

use std::collections::BTreeMap;

use coracle_client::request::PatchBody;
use coracle_client::{ErrorExt as _, ObjectKey, request};
use coracle_clock::Clock;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use serde_json::{Map, Value, json};

use crate::ControllerInputs;
use crate::keyed::{self, Looked, Source};
use crate::service_account::{created_or_pointless, is_active};

const NAME: &str = "kube-root-ca.crt";
const CA_KEY: &str = "ca.crt";
const DESCRIPTION_KEY: &str = "kubernetes.io/description";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
    endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
    distributions of Kubernetes clusters.";

/// What is to be written.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// A ConfigMap that is missing.
    Create(Box<ConfigMap>),
    /// A merge patch of one that is not as it should be.
    Patch(Value),
}

/// What makes the namespace have the ConfigMap with this PEM and nothing else in it.
#[must_use]
pub fn reconcile(
    namespace: Option<&Namespace>,
    existing: Option<&ConfigMap>,
    root_ca: &str,
) -> Option<Write> {
    let namespace = namespace.filter(|namespace| is_active(namespace))?;
    let Some(existing) = existing else {
        return Some(Write::Create(Box::new(ConfigMap {
            metadata: ObjectMeta {
                namespace: namespace.metadata.name.clone(),
                name: Some(NAME.to_owned()),
                annotations: Some(BTreeMap::from([(DESCRIPTION_KEY.to_owned(), DESCRIPTION.to_owned())])),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(CA_KEY.to_owned(), root_ca.to_owned())])),
            ..ConfigMap::default()
        })));
    };
    let described = existing
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(DESCRIPTION_KEY))
        .is_some_and(|description| !description.is_empty());
    let mut data: Map<_, _> = existing
        .data
        .iter()
        .flatten()
        .filter(|(key, _)| *key != CA_KEY)
        .map(|(key, _)| (key.clone(), Value::Null))
        .collect();
    let current = existing.data.as_ref().and_then(|data| data.get(CA_KEY)).is_some_and(|pem| pem == root_ca);
    if current && data.is_empty() && described {
        return None;
    }
    data.insert(CA_KEY.to_owned(), Value::from(root_ca));
    Some(Write::Patch(json!({
        "metadata": {"uid": existing.metadata.uid, "annotations": {DESCRIPTION_KEY: DESCRIPTION}},
        "data": data,
    })))
}

pub(crate) async fn run(client: Client, inputs: ControllerInputs, clock: Clock, root_ca: String) {
    inputs.config_maps.synced().await;
    let sources = vec![
        Source { changes: inputs.namespaces.subscribe(), keys: keyed::itself },
        Source {
            changes: inputs.config_maps.subscribe(),
            keys: |key| (key.name == NAME).then(|| ObjectKey::cluster(key.namespace)),
        },
    ];
    keyed::run("root-ca", &clock, 4, sources, |key| {
        let (client, inputs, root_ca) = (&client, &inputs, root_ca.as_str());
        async move {
            let namespace = inputs.namespaces.get_key(&key);
            let existing = inputs.config_maps.get(&key.name, NAME);
            match reconcile(namespace.as_deref(), existing.as_deref(), root_ca) {
                None => {}
                Some(Write::Create(config_map)) => {
                    created_or_pointless(request::create(client, config_map.as_ref()).await)?;
                }
                Some(Write::Patch(patch)) => {
                    let key = ObjectKey::namespaced(key.name, NAME);
                    match request::patch::<ConfigMap>(client, &key, &PatchBody::Merge(patch)).await {
                        Err(error) if error.is_not_found() => {}
                        result => drop(result?),
                    }
                }
            }
            Ok(Looked::Settled)
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace() -> Namespace {
        serde_json::from_value(json!({"metadata": {"name": "a"}, "status": {"phase": "Active"}})).unwrap()
    }

    fn existing(data: &Value) -> ConfigMap {
        serde_json::from_value(json!({
            "metadata": {"uid": "u", "annotations": {DESCRIPTION_KEY: "d"}}, "data": data,
        }))
        .unwrap()
    }

    #[test]
    fn a_missing_one_is_created_and_a_right_one_is_left_alone() {
        let Some(Write::Create(created)) = reconcile(Some(&namespace()), None, "PEM") else { panic!() };
        assert_eq!(created.data.as_ref().unwrap()["ca.crt"], "PEM");
        assert_eq!(reconcile(Some(&namespace()), Some(&created), "PEM"), None);
        assert_eq!(reconcile(Some(&namespace()), Some(&existing(&json!({"ca.crt": "PEM"}))), "PEM"), None);
        assert_eq!(reconcile(None, None, "PEM"), None);
    }

    #[test]
    fn a_changed_one_is_repaired() {
        for data in [json!({"ca.crt": "other"}), json!({}), json!({"ca.crt": "PEM", "extra": "x"})] {
            let Some(Write::Patch(patch)) = reconcile(Some(&namespace()), Some(&existing(&data)), "PEM")
            else {
                panic!("{data}");
            };
            assert_eq!(patch["data"]["ca.crt"], "PEM");
            assert_eq!(patch["metadata"]["uid"], "u");
            assert_eq!(patch["data"].get("extra"), data.get("extra").map(|_| &Value::Null));
        }
    }
}
