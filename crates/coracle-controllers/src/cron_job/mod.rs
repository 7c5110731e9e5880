//! CronJobs: Jobs at their times.
//!
//! [`reconcile()`] decides from a copy of the cluster; this loop carries it out. The name of a Job says when it was due, so
//! that nothing is started twice, whoever dies when.

mod reconcile;

use coracle_client::{
    Deletion, ErrorExt as _, EventType, ObjectKey, Propagation, key_of, reference, request, revision_of,
    uid_of,
};
use coracle_clock::Clock;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use kube::{Client, Error};

pub use reconcile::{Plan, reconcile, started};

use crate::ControllerInputs;
use crate::keyed::Looked;
use crate::workload::desk::{Case, Desk};
use crate::workload::{controller_of, is_terminating_namespace, status, words_of};

const NAME: &str = "cronjob-controller";
const WORKERS: usize = 5;

struct Shell(Desk<CronJob, Job>);

pub(crate) async fn run(client: Client, inputs: ControllerInputs, clock: Clock) {
    let copies = (inputs.cron_jobs, inputs.jobs);
    let shell = Shell(Desk::open(NAME, client, clock, copies, |_| None, None).await);
    let look = |key: ObjectKey| {
        let shell = &shell;
        async move { shell.look(&key).await }
    };
    shell.0.serve(NAME, WORKERS, look).await;
}

impl Shell {
    async fn look(&self, key: &ObjectKey) -> Result<Looked, Error> {
        let desk = &self.0;
        let (cron_job, held) = match desk.case(key).await? {
            Case::Gone(_) => return Ok(Looked::Settled),
            Case::Later(looked) => return Ok(looked),
            Case::Open(cron_job, held) => (cron_job, held),
        };
        let plan = reconcile(&cron_job, &held, desk.clock.now());
        let about = reference(cron_job.as_ref());
        let tell = |is_warning: bool, reason: &str, message: String| {
            let kind = if is_warning { EventType::Warning } else { EventType::Normal };
            desk.recorder.event(&about, kind, reason, message);
        };
        for (is_warning, reason, message) in plan.events {
            tell(is_warning, reason, message);
        }
        if let Some(at) = plan.wake_at {
            desk.wake_at(key, at);
        }
        for job in &plan.delete {
            let name = job.metadata.name.as_deref().unwrap_or_default();
            let deletion = Deletion::of(uid_of(job.as_ref())).propagating(Propagation::Background);
            match request::delete::<Job>(&desk.client, &key_of(job.as_ref()), &deletion).await {
                Ok(revision) => {
                    desk.wrote_child(key, revision);
                    tell(false, "SuccessfulDelete", format!("Deleted job {name}"));
                }
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => {
                    tell(true, "FailedDelete", format!("Deleted job: {}", words_of(&error)));
                    return Err(error);
                }
            }
        }
        let mut new = plan.status;
        if let Some((job, due)) = &plan.start {
            match request::create::<Job>(&desk.client, job).await {
                Ok(made) => {
                    desk.wrote_child(key, revision_of(&made));
                    let name = made.metadata.name.as_deref().unwrap_or_default();
                    tell(false, "SuccessfulCreate", format!("Created job {name}"));
                    new = started(new, &made, *due);
                }
                Err(error) if is_terminating_namespace(&error) => {}
                Err(error) if error.is_already_exists() => {
                    let there: Job = request::get(&desk.client, &key_of(job.as_ref())).await?;
                    if controller_of(&there).is_none_or(|owner| owner.uid != uid_of(cron_job.as_ref())) {
                        tell(true, "FailedCreate", format!("Error creating job: {}", words_of(&error)));
                        return Err(error);
                    }
                    // Started before, by somebody who died; the copy will show it.
                    desk.wrote_child(key, revision_of(&there));
                    return Ok(Looked::Again);
                }
                Err(error) => {
                    tell(true, "FailedCreate", format!("Error creating job: {}", words_of(&error)));
                    return Err(error);
                }
            }
        }
        let uid = cron_job.metadata.uid.as_deref();
        if let Some(patch) = status::patch(uid, cron_job.status.as_ref(), &new) {
            desk.write_status(key, patch).await?;
        }
        Ok(Looked::Settled)
    }
}
