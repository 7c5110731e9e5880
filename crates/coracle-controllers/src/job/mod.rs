//! Jobs: Pods that are run until enough have ended well.
//!
//! [`reconcile()`] decides from a copy of the cluster; this loop carries it out: first the status is written, then counted
//! Pods lose their finalizer, then Pods go and come. Death between any two of these counts nothing twice.

mod ends;
mod indexed;
mod manage;
mod policy;
mod reconcile;
mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use coracle_client::request::PatchBody;
use coracle_client::{ErrorExt as _, EventType, ObjectKey, key_of, reference, request, revision_of, uid_of};
use coracle_clock::{Clock, Rng};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, Error};
use serde_json::json;

pub use ends::Ends;
pub use reconcile::{Birth, FINALIZER, Plan, is_held, reconcile};
pub(crate) use state::end_of;

use crate::ControllerInputs;
use crate::keyed::Looked;
use crate::workload::births::{Births, slow_start};
use crate::workload::desk::{Case, Desk};
use crate::workload::{controller_reference, pods, selector, status};

const NAME: &str = "job-controller";
const WORKERS: usize = 5;

struct Shell {
    desk: Desk<Job, Pod>,
    births: Births,
    /// By Job, where nodes' clocks are ahead.
    ends: Mutex<BTreeMap<ObjectKey, Ends>>,
}

pub(crate) async fn run(client: Client, inputs: ControllerInputs, clock: Clock, rng: Rng) {
    let wants = |job: &Job| selector(job.spec.as_ref()?.selector.as_ref()?);
    let copies = (inputs.jobs, inputs.pods);
    let desk = Desk::open(NAME, client, clock, copies, wants, Some(FINALIZER)).await;
    let shell = Shell { desk, births: Births::new(rng), ends: Mutex::default() };
    let look = |key: ObjectKey| {
        let shell = &shell;
        async move { shell.look(&key).await }
    };
    shell.desk.serve(NAME, WORKERS, look).await;
}

impl Shell {
    async fn look(&self, key: &ObjectKey) -> Result<Looked, Error> {
        let (job, held) = match self.desk.case(key).await? {
            Case::Gone(strays) => return self.let_go(key, &strays).await,
            Case::Later(looked) => return Ok(looked),
            Case::Open(job, held) => (job, held),
        };
        self.births.settle(key, |name| self.desk.children.get(&key.namespace, name).is_some());
        let now = self.desk.clock.now();
        let plan = reconcile(&job, &held, &self.ends(key, &held, now), now);
        if !plan.create.is_empty() && !self.desk.is_to_stay(&job).await? {
            return Ok(Looked::Again);
        }
        if let Some(at) = plan.wake_at {
            self.desk.wake_at(key, at);
        }
        let uid = job.metadata.uid.as_deref();
        if let Some(patch) = status::patch(uid, job.status.as_ref(), &plan.status) {
            self.desk.write_status(key, patch).await?;
        }
        let about = reference(job.as_ref());
        for (is_warning, reason, message) in &plan.events {
            let kind = if *is_warning { EventType::Warning } else { EventType::Normal };
            self.desk.recorder.event(&about, kind, reason, message.as_str());
        }
        for pod in &plan.unhold {
            self.unhold(key, pod).await?;
        }
        self.desk.delete_pods(key, &about, &plan.delete).await?;
        let made = slow_start(plan.create.len(), |at| {
            let pod = make(&job, &plan.create[at]);
            self.births.create(&self.desk.client, key, pod)
        })
        .await;
        self.desk.tell_of_births(key, &about, made)?;
        Ok(Looked::Settled)
    }

    /// When the Pods of a Job ended.
    fn ends(&self, key: &ObjectKey, held: &[Arc<Pod>], now: Timestamp) -> Ends {
        // Each change is whole before anything can panic.
        let mut all = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ends = all.remove(key).unwrap_or_default();
        ends.note(held, now);
        if !ends.is_empty() {
            all.insert(key.clone(), ends.clone());
        }
        ends
    }

    /// The Pods of a Job that is gone are nobody's to count. The copy may only be behind, so that the server is asked.
    async fn let_go(&self, key: &ObjectKey, strays: &[Arc<Pod>]) -> Result<Looked, Error> {
        self.births.forget(key);
        self.ends(key, &[], self.desk.clock.now());
        let strays: Vec<_> = strays.iter().filter(|pod| is_held(pod)).collect();
        if strays.is_empty() {
            return Ok(Looked::Settled);
        }
        match request::get::<Job>(&self.desk.client, key).await {
            Ok(_) => return Ok(Looked::Again),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        for pod in strays {
            self.unhold(key, pod).await?;
        }
        Ok(Looked::Settled)
    }

    async fn unhold(&self, key: &ObjectKey, pod: &Pod) -> Result<(), Error> {
        let patch = json!({"metadata": {
            "uid": uid_of(pod), "$deleteFromPrimitiveList/finalizers": [FINALIZER],
        }});
        match request::patch::<Pod>(&self.desk.client, &key_of(pod), &PatchBody::Strategic(patch)).await {
            Ok(changed) => {
                self.desk.wrote_child(key, revision_of(&changed));
                Ok(())
            }
            // It is gone, or another one has its name.
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn make(job: &Job, birth: &Birth) -> Pod {
    let key = key_of(job);
    let template = job.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let mut pod = pods::from_template(&template, &key.namespace, controller_reference(job), &key.name);
    pod.metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
    indexed::mark(&mut pod, &key.name, birth);
    pod
}
