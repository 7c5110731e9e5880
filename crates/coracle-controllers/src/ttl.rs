//! Jobs that have ended go some time after, if they say so (`spec.ttlSecondsAfterFinished`).

use std::time::Duration;

use coracle_client::{Deletion, ErrorExt as _, ObjectKey, Propagation, request, uid_of};
use coracle_clock::Clock;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use kube::{Client, Error};

use crate::ControllerInputs;
use crate::job::end_of;
use crate::keyed::{self, Looked};

const NAME: &str = "ttl-after-finished-controller";
const WORKERS: usize = 2;

/// When a Job is to go; `None` if nobody knows yet, or never.
#[must_use]
pub fn due(job: &Job) -> Option<Timestamp> {
    let seconds = job.spec.as_ref()?.ttl_seconds_after_finished?;
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let (_, ended) = end_of(job)?;
    ended?.checked_add(SignedDuration::from_secs(seconds.into())).ok()
}

pub(crate) async fn run(client: Client, inputs: ControllerInputs, clock: Clock) {
    inputs.jobs.synced().await;
    let queue = keyed::queue(&clock);
    let mut changes = inputs.jobs.subscribe();
    let feed = async {
        while let Some(keys) = changes.changed().await {
            keys.into_iter().for_each(|key| queue.add(key));
        }
        queue.close();
    };
    let look = |key: ObjectKey| {
        let (client, jobs, clock, queue) = (&client, &inputs.jobs, &clock, &queue);
        async move {
            let Some(at) = jobs.get_key(&key).and_then(|job| due(&job)) else { return Ok(Looked::Settled) };
            let wait = Duration::try_from(clock.now().duration_until(at)).unwrap_or_default();
            if !wait.is_zero() {
                queue.add_after(key, wait);
                return Ok(Looked::Settled);
            }
            delete(client, &key, clock.now()).await
        }
    };
    futures::future::join(feed, keyed::serve(NAME, &queue, WORKERS, look)).await;
}

/// Deletes a Job unless it says something else by now than the copy does.
async fn delete(client: &Client, key: &ObjectKey, now: Timestamp) -> Result<Looked, Error> {
    let fresh: Job = match request::get(client, key).await {
        Err(error) if error.is_not_found() => return Ok(Looked::Settled),
        found => found?,
    };
    if due(&fresh).is_none_or(|at| at > now) {
        return Ok(Looked::Settled);
    }
    let mut deletion = Deletion::of(uid_of(&fresh)).propagating(Propagation::Foreground);
    deletion.resource_version = fresh.metadata.resource_version;
    match request::delete::<Job>(client, key, &deletion).await {
        Err(error) if error.is_not_found() => Ok(Looked::Settled),
        result => result.map(|_| Looked::Settled),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_has_ended_goes() {
        let job = |ttl: Option<i32>, status: &str| -> Job {
            serde_json::from_value(json!({
                "metadata": {}, "spec": {"ttlSecondsAfterFinished": ttl, "template": {}},
                "status": {"conditions": [{
                    "type": "Complete", "status": status, "lastTransitionTime": "2030-01-01T00:00:00Z",
                }]},
            }))
            .unwrap()
        };
        assert_eq!(due(&job(Some(60), "True")), Some("2030-01-01T00:01:00Z".parse().unwrap()));
        assert_eq!(due(&job(Some(0), "True")), Some("2030-01-01T00:00:00Z".parse().unwrap()));
        assert_eq!(due(&job(None, "True")), None);
        assert_eq!(due(&job(Some(60), "False")), None);
    }
}
