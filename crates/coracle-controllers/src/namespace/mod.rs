//! Empties namespaces that are being deleted, and lets them go.
//!
//! Pods go first, with the grace they ask for, so that they find their ConfigMaps and Secrets to the end; then
//! everything else that lives in namespaces according to the catalogue; then the finalizer `kubernetes` goes. What
//! holds this up is written into the namespace's conditions.

mod conditions;
mod content;

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_client::request::{self, PatchBody};
use coracle_client::{Deletion, ErrorExt as _, ObjectKey};
use coracle_clock::Clock;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Client, Error};
use serde_json::{Value, json};

pub use conditions::update_conditions;
pub use content::kinds;

use crate::ControllerInputs;
use crate::keyed::{self, Looked, Source};

const FINALIZER: &str = "kubernetes";
/// Nobody tells when a finalizer of others lets something go: look this often, as upstream does.
const LOOK: Duration = Duration::from_secs(8);

/// What is left in a namespace after everything was asked to go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remaining {
    /// Objects by `<plural>.<group>`.
    pub objects: BTreeMap<String, usize>,
    /// Objects by the finalizer that holds them.
    pub finalizers: BTreeMap<String, usize>,
    /// What went wrong, or should not be.
    pub failures: Vec<String>,
}

impl Remaining {
    /// Whether the namespace is known to be empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.failures.is_empty()
    }
}

/// What is to be done about a namespace, by what can be seen of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is not being deleted.
    Nothing,
    /// Its phase does not say yet that it is.
    MarkTerminating,
    /// Its content has to go.
    Empty,
    /// Nothing of ours holds it any more.
    Delete,
}

/// The next step for `namespace`.
#[must_use]
pub fn next_step(namespace: &Namespace) -> Step {
    if namespace.metadata.deletion_timestamp.is_none() {
        return Step::Nothing;
    }
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_deref()).unwrap_or_default();
    if finalizers.is_empty() {
        // Others may hold it by metadata.finalizers; the API server knows when it can go.
        let held = namespace.metadata.finalizers.as_ref().is_some_and(|held| !held.is_empty());
        return if held { Step::Nothing } else { Step::Delete };
    }
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        return Step::Nothing;
    }
    if phase == Some("Terminating") { Step::Empty } else { Step::MarkTerminating }
}

/// A namespace as the API server has it, without our finalizer: the body of `finalize`.
#[must_use]
pub fn without_finalizer(mut namespace: Value) -> Value {
    if let Some(finalizers) = namespace.pointer_mut("/spec/finalizers").and_then(Value::as_array_mut) {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
    }
    namespace
}

pub(crate) async fn run(client: Client, inputs: ControllerInputs, clock: Clock) {
    let sources = vec![
        Source { changes: inputs.namespaces.subscribe(), keys: keyed::itself },
        // A Pod that is gone lets its namespace go on at once.
        Source { changes: inputs.pods.subscribe(), keys: keyed::its_namespace },
    ];
    keyed::run("namespace", &clock, 8, sources, |key| {
        let (client, clock) = (&client, &clock);
        let namespace = inputs.namespaces.get_key(&key);
        async move {
            match namespace {
                Some(namespace) => look(client, clock, &key, &namespace).await,
                None => Ok(Looked::Settled),
            }
        }
    })
    .await;
}

async fn look(
    client: &Client,
    clock: &Clock,
    key: &ObjectKey,
    namespace: &Namespace,
) -> Result<Looked, Error> {
    let result = match next_step(namespace) {
        Step::Nothing => return Ok(Looked::Settled),
        Step::MarkTerminating => {
            let patch = json!({
                "metadata": {"uid": namespace.metadata.uid}, "status": {"phase": "Terminating"},
            });
            request::patch_status::<Namespace>(client, key, &PatchBody::Merge(patch)).await.map(drop)
        }
        Step::Empty => return empty(client, clock, key, namespace).await,
        Step::Delete => {
            let uid = namespace.metadata.uid.clone().unwrap_or_default();
            request::delete::<Namespace>(client, key, &Deletion::of(uid)).await.map(drop)
        }
    };
    match result {
        Err(error) if error.is_not_found() => Ok(Looked::Settled),
        Err(error) => Err(error),
        // The change just made comes back as a change.
        Ok(()) => Ok(Looked::Settled),
    }
}

async fn empty(
    client: &Client,
    clock: &Clock,
    key: &ObjectKey,
    namespace: &Namespace,
) -> Result<Looked, Error> {
    let remaining = content::delete_all(client, &key.name).await;
    let old = namespace.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    if let Some(conditions) = update_conditions(old, &remaining, clock.now()) {
        let patch = json!({
            "metadata": {"uid": namespace.metadata.uid}, "status": {"conditions": conditions},
        });
        match request::patch_status::<Namespace>(client, key, &PatchBody::Strategic(patch)).await {
            Err(error) if error.is_not_found() => return Ok(Looked::Settled),
            result => drop(result?),
        }
    }
    if !remaining.is_empty() {
        return Ok(Looked::Within(LOOK));
    }
    match content::finalize(client, key, namespace).await {
        Err(error) if error.is_not_found() => Ok(Looked::Settled),
        Err(error) => Err(error),
        Ok(()) => Ok(Looked::Settled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn step(metadata: &Value, finalizers: &Value, phase: &str, expected: Step) {
        let namespace = serde_json::from_value(json!({
            "metadata": metadata, "spec": {"finalizers": finalizers}, "status": {"phase": phase},
        }));
        assert_eq!(next_step(&namespace.unwrap()), expected);
    }

    #[test]
    fn a_namespace_goes_step_by_step() {
        let marked = json!({"name": "a", "deletionTimestamp": "2030-01-01T00:00:00Z"});
        step(&json!({"name": "a"}), &json!(["kubernetes"]), "Active", Step::Nothing);
        step(&marked, &json!(["kubernetes"]), "Active", Step::MarkTerminating);
        step(&marked, &json!(["kubernetes"]), "Terminating", Step::Empty);
        step(&marked, &json!(["someone.else/x"]), "Terminating", Step::Nothing);
        step(&marked, &json!([]), "Terminating", Step::Delete);
        let held = json!({
            "name": "a", "deletionTimestamp": "2030-01-01T00:00:00Z", "finalizers": ["someone.else/x"],
        });
        step(&held, &json!([]), "Terminating", Step::Nothing);
    }

    #[test]
    fn only_our_finalizer_is_taken_and_unknown_fields_stay() {
        let before = json!({"spec": {"finalizers": ["a/b", "kubernetes"], "later": 1}, "unknown": true});
        let after = json!({"spec": {"finalizers": ["a/b"], "later": 1}, "unknown": true});
        assert_eq!(without_finalizer(before), after);
    }
}
