//! Endpoints: where the Pods of each Service are reached, in the older form.
//!
//! [`wanted`] says what is to stand there. Services without a selector, and their Endpoints, are somebody else's.

mod reconcile;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use coracle_client::request::{self, PatchBody};
use coracle_client::{
    Deletion, ErrorExt as _, EventRecorder, EventType, ObjectKey, WrittenRevisions, key_of, reference,
    revision_of, uid_of,
};
use coracle_clock::{Clock, select};
use futures::future::{join, join3};
use k8s_openapi::api::core::v1::{Endpoints, Service};
use kube::{Client, Error};

pub use reconcile::{ADDRESSES_MAX, MANAGED_BY, change, wanted};

use crate::ControllerInputs;
use crate::interest::Interest;
use crate::keyed::{self, Looked};
use crate::service_pods::{Sight, selector_of, selects};
use crate::workload::{CATCH_UP, is_terminating_namespace, words_of};

const NAME: &str = "endpoint-controller";
const WORKERS: usize = 5;

struct Shell {
    client: Client,
    clock: Clock,
    inputs: ControllerInputs,
    recorder: EventRecorder,
    interest: Interest<Sight>,
    written: WrittenRevisions,
    /// Services that were there: when one of them goes its Endpoints go too, whoever made those.
    known: Mutex<BTreeSet<ObjectKey>>,
}

pub(crate) async fn run(client: Client, inputs: ControllerInputs, clock: Clock) {
    inputs.services.synced().await;
    inputs.endpoints.synced().await;
    inputs.pods.synced().await;
    let shell = Shell {
        recorder: EventRecorder::new(&client, NAME, "", clock.clone()),
        interest: Interest::new(),
        written: WrittenRevisions::new(),
        known: Mutex::default(),
        client,
        clock,
        inputs,
    };
    let queue = keyed::queue(&shell.clock);
    let (shell, queue) = (&shell, &queue);
    let mut services = shell.inputs.services.subscribe();
    let mut endpoints = shell.inputs.endpoints.subscribe();
    let mut pods = shell.inputs.pods.subscribe();
    let of_services = async {
        while let Some(keys) = services.changed().await {
            keys.into_iter().for_each(|key| queue.add(key));
        }
    };
    let of_endpoints = async {
        while let Some(keys) = endpoints.changed().await {
            keys.into_iter().for_each(|key| queue.add(key));
        }
    };
    let of_pods = async {
        while let Some(keys) = pods.changed().await {
            for key in keys {
                shell.selecting(&key).into_iter().for_each(|service| queue.add(service));
            }
        }
    };
    let feeds = async {
        join3(of_services, of_endpoints, of_pods).await;
        queue.close();
    };
    let look = |key: ObjectKey| async move { shell.look(&key).await };
    select! {
        _ = join(feeds, keyed::serve(NAME, queue, WORKERS, look)) => {}
    }
}

impl Shell {
    /// The Services that a changed Pod concerns.
    fn selecting(&self, key: &ObjectKey) -> BTreeSet<ObjectKey> {
        let pod = self.inputs.pods.get_key(key);
        let now = pod.map(|pod| {
            let services = self.inputs.services.list_namespace(&key.namespace);
            let selecting = services.iter().filter(|service| selects(service, &pod));
            (Sight::of(&pod), selecting.map(|service| key_of(service.as_ref())).collect())
        });
        self.interest.changed(key, now)
    }

    async fn look(&self, key: &ObjectKey) -> Result<Looked, Error> {
        if !self.written.caught_up(key, &self.inputs.endpoints, &self.clock, CATCH_UP).await {
            return Ok(Looked::Again);
        }
        let current = self.inputs.endpoints.get_key(key);
        let Some(service) = self.inputs.services.get_key(key) else {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
            if let Some(current) = current.filter(|current| known || is_managed(current)) {
                return self.delete(key, &current).await;
            }
            return Ok(Looked::Settled);
        };
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
        if selector_of(&service).is_none() || service.metadata.deletion_timestamp.is_some() {
            return Ok(Looked::Settled);
        }
        let mut pods = self.inputs.pods.list_namespace(&key.namespace);
        pods.retain(|pod| selects(&service, pod));
        let wanted = wanted(&service, &pods);
        let result = match &current {
            None => request::create(&self.client, &wanted).await,
            Some(current) => match change(current, &wanted) {
                None => return Ok(Looked::Settled),
                Some(patch) => request::patch(&self.client, key, &PatchBody::Merge(patch)).await,
            },
        };
        match result {
            Ok(written) => {
                self.written.note(key, revision_of::<Endpoints>(&written));
                Ok(Looked::Settled)
            }
            Err(error) if is_terminating_namespace(&error) => Ok(Looked::Settled),
            // Somebody was faster; what they wrote is heard of.
            Err(error) if error.is_conflict() || error.is_not_found() || error.is_already_exists() => {
                Ok(Looked::Again)
            }
            Err(error) => {
                self.tell(&service, current.is_some(), &error);
                Err(error)
            }
        }
    }

    fn tell(&self, service: &Service, exists: bool, error: &Error) {
        let (reason, verb) =
            if exists { ("FailedToUpdateEndpoint", "update") } else { ("FailedToCreateEndpoint", "create") };
        let key = key_of(service);
        let why = words_of(error);
        let message = format!("Failed to {verb} endpoint for service {}/{}: {why}", key.namespace, key.name);
        self.recorder.event(&reference(service), EventType::Warning, reason, message);
    }

    async fn delete(&self, key: &ObjectKey, endpoints: &Endpoints) -> Result<Looked, Error> {
        match request::delete::<Endpoints>(&self.client, key, &Deletion::of(uid_of(endpoints))).await {
            Err(error) if error.is_not_found() => Ok(Looked::Settled),
            result => result.map(|_| Looked::Settled),
        }
    }
}

/// Whether Endpoints were made here, so that they go with their Service.
fn is_managed(endpoints: &Endpoints) -> bool {
    let (label, value) = MANAGED_BY;
    endpoints.metadata.labels.as_ref().and_then(|labels| labels.get(label)).is_some_and(|by| by == value)
}
