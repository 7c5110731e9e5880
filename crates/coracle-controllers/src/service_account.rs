//! The service account `default` of each namespace.

use coracle_client::{ErrorExt as _, ObjectKey, request};
use coracle_clock::Clock;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Client, Error};

use crate::ControllerInputs;
use crate::keyed::{self, Looked, Source};

const NAME: &str = "default";

/// The service account to create in `namespace`, if it should have one and has not.
#[must_use]
pub fn reconcile(namespace: Option<&Namespace>, existing: Option<&ServiceAccount>) -> Option<ServiceAccount> {
    let namespace = namespace.filter(|namespace| is_active(namespace))?;
    if existing.is_some() {
        return None;
    }
    Some(ServiceAccount {
        metadata: ObjectMeta {
            namespace: namespace.metadata.name.clone(),
            name: Some(NAME.to_owned()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    })
}

/// Whether objects can be created in it.
pub(crate) fn is_active(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    namespace.metadata.deletion_timestamp.is_none() && phase != Some("Terminating")
}

/// An object was there already, or its namespace is on its way out: either way there is nothing to create.
pub(crate) fn created_or_pointless<T>(result: Result<T, Error>) -> Result<(), Error> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.is_already_exists() || error.is_not_found() => Ok(()),
        Err(Error::Api(status)) if is_namespace_terminating(&status) => Ok(()),
        Err(error) => Err(error),
    }
}

fn is_namespace_terminating(status: &kube::core::Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 403 && causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

pub(crate) async fn run(client: Client, inputs: ControllerInputs, clock: Clock) {
    inputs.service_accounts.synced().await;
    let sources = vec![
        Source { changes: inputs.namespaces.subscribe(), keys: keyed::itself },
        Source {
            changes: inputs.service_accounts.subscribe(),
            keys: |key| (key.name == NAME).then(|| ObjectKey::cluster(key.namespace)),
        },
    ];
    keyed::run("service-account", &clock, 4, sources, |key| {
        let (client, inputs) = (&client, &inputs);
        async move {
            let namespace = inputs.namespaces.get_key(&key);
            let existing = inputs.service_accounts.get(&key.name, NAME);
            if let Some(account) = reconcile(namespace.as_deref(), existing.as_deref()) {
                created_or_pointless(request::create(client, &account).await)?;
            }
            Ok(Looked::Settled)
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn namespace(value: Value) -> Namespace {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_active_namespace_without_an_account_gets_one() {
        let active = namespace(json!({"metadata": {"name": "a"}, "status": {"phase": "Active"}}));
        let account = reconcile(Some(&active), None).unwrap();
        assert_eq!(account.metadata.namespace.as_deref(), Some("a"));
        assert_eq!(account.metadata.name.as_deref(), Some("default"));
        assert_eq!(reconcile(Some(&active), Some(&account)), None);
        assert_eq!(reconcile(None, None), None);
    }

    #[test]
    fn a_namespace_on_its_way_out_gets_none() {
        let phase = namespace(json!({"metadata": {"name": "a"}, "status": {"phase": "Terminating"}}));
        assert_eq!(reconcile(Some(&phase), None), None);
        let marked = json!({"metadata": {"name": "a", "deletionTimestamp": "2030-01-01T00:00:00Z"}});
        assert_eq!(reconcile(Some(&namespace(marked)), None), None);
    }
}
