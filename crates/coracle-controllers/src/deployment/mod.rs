//! Deployments: ReplicaSets, one for each template that there was, and the way from one to the next.
//!
//! [`reconcile()`] decides on the next step from a copy of the cluster; this loop carries it out. A step is taken when the
//! copies show the one before.

mod numbers;
mod reconcile;
mod revision;
mod rollout;
mod status;
#[cfg(test)]
mod tests;

use coracle_client::request::PatchBody;
use coracle_client::{
    Deletion, ErrorExt as _, EventType, ObjectKey, key_of, reference, request, revision_of, uid_of,
};
use coracle_clock::Clock;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::{Client, Error};
use serde_json::json;

pub use reconcile::{Change, Plan, reconcile};

use crate::ControllerInputs;
use crate::keyed::Looked;
use crate::workload::desk::{Case, Desk};
use crate::workload::{controller_of, is_terminating_namespace, selector, words_of};

const NAME: &str = "deployment-controller";
const WORKERS: usize = 5;

struct Shell(Desk<Deployment, ReplicaSet>);

pub(crate) async fn run(client: Client, inputs: ControllerInputs, clock: Clock) {
    let wants = |deployment: &Deployment| selector(&deployment.spec.selector);
    let copies = (inputs.deployments, inputs.replica_sets);
    let shell = Shell(Desk::open(NAME, client, clock, copies, wants, None).await);
    let look = |key: ObjectKey| {
        let shell = &shell;
        async move { shell.look(&key).await }
    };
    shell.0.serve(NAME, WORKERS, look).await;
}

impl Shell {
    async fn look(&self, key: &ObjectKey) -> Result<Looked, Error> {
        let (deployment, held) = match self.0.case(key).await? {
            Case::Gone(_) => return Ok(Looked::Settled),
            Case::Later(looked) => return Ok(looked),
            Case::Open(deployment, held) => (deployment, held),
        };
        let mut plan = reconcile(&deployment, held, self.0.clock.now());
        if let Some(set) = plan.create.take() {
            if !self.0.is_to_stay(&deployment).await? {
                return Ok(Looked::Again);
            }
            if !self.create(key, &deployment, &set, &mut plan).await? {
                return Ok(Looked::Settled);
            }
        }
        let about = reference(deployment.as_ref());
        for change in &plan.change {
            let patch = PatchBody::Merge(change.patch.clone());
            match request::patch::<ReplicaSet>(&self.0.client, &key_of(change.set.as_ref()), &patch).await {
                Ok(changed) => self.0.wrote_child(key, revision_of(&changed)),
                // It goes away, which will be heard of.
                Err(error) if error.is_not_found() => return Ok(Looked::Again),
                Err(error) => return Err(error),
            }
            if let Some(message) = &change.message {
                self.0.recorder.event(&about, EventType::Normal, "ScalingReplicaSet", message.as_str());
            }
        }
        for set in &plan.delete {
            let deletion = Deletion::of(uid_of(set.as_ref()));
            match request::delete::<ReplicaSet>(&self.0.client, &key_of(set.as_ref()), &deletion).await {
                Ok(revision) => self.0.wrote_child(key, revision),
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => return Err(error),
            }
        }
        if let Some(at) = plan.wake_at {
            self.0.wake_at(key, at);
        }
        self.write_status(key, &deployment, &plan).await?;
        Ok(Looked::Settled)
    }

    async fn write_status(&self, key: &ObjectKey, deployment: &Deployment, plan: &Plan) -> Result<(), Error> {
        let uid = deployment.metadata.uid.as_deref();
        let patch = crate::workload::status::patch(uid, deployment.status.as_ref(), &plan.status);
        let mut patch = match (patch, &plan.revision) {
            (None, None) => return Ok(()),
            (patch, _) => patch.unwrap_or_else(|| json!({ "metadata": { "uid": uid } })),
        };
        if let Some(revision) = &plan.revision {
            patch["metadata"]["annotations"] = json!({ revision::REVISION: revision });
        }
        self.0.write_status(key, patch).await
    }

    /// Makes the ReplicaSet of the current template; false if that is to be tried again with another name.
    async fn create(
        &self,
        key: &ObjectKey,
        deployment: &Deployment,
        set: &ReplicaSet,
        plan: &mut Plan,
    ) -> Result<bool, Error> {
        let about = reference(deployment);
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let error = match request::create::<ReplicaSet>(&self.0.client, set).await {
            Ok(made) => {
                self.0.wrote_child(key, revision_of(&made));
                let replicas = numbers::replicas(set);
                if replicas > 0 {
                    let message = reconcile::scaled(name, 0, replicas);
                    self.0.recorder.event(&about, EventType::Normal, "ScalingReplicaSet", message);
                }
                return Ok(true);
            }
            Err(error) => error,
        };
        if is_terminating_namespace(&error) {
            return Ok(false);
        }
        if error.is_already_exists() {
            let there: ReplicaSet = match request::get(&self.0.client, &key_of(set)).await {
                Err(error) if error.is_not_found() => return Err(error),
                found => found?,
            };
            let own = controller_of(&there).is_some_and(|owner| owner.uid == uid_of(deployment));
            if own && revision::is_of(&there, &deployment.spec.template) {
                // The copy will show it.
                self.0.wrote_child(key, revision_of(&there));
                return Ok(true);
            }
            let collisions =
                deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
            plan.status = deployment.status.clone().unwrap_or_default();
            plan.status.collision_count = Some(collisions.saturating_add(1));
            plan.revision = None;
            self.write_status(key, deployment, plan).await?;
            return Ok(false);
        }
        let message = format!("Failed to create new replica set \"{name}\": {}", words_of(&error));
        self.0.recorder.event(&about, EventType::Warning, "ReplicaSetCreateError", message.as_str());
        if deployment.spec.progress_deadline_seconds.is_some() {
            let mut conditions = status::Conditions::of(deployment, self.0.clock.now());
            conditions.set(status::PROGRESSING, "False", "ReplicaSetCreateError", message);
            plan.status = deployment.status.clone().unwrap_or_default();
            plan.status.conditions = Some(conditions.into_list());
            plan.revision = None;
            self.write_status(key, deployment, plan).await?;
        }
        Err(error)
    }
}
