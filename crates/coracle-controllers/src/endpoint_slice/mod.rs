//! EndpointSlices: where the Pods of each Service are reached, whether they are ready, serve, and go.
//!
//! [`wanted`] says which endpoints there are, [`place`] into which slices they go. One controller keeps the slices of
//! Services that select Pods, another those of Endpoints that were made by hand; each leaves alone what is not its own.

pub mod place;
pub mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use coracle_client::request::{self, PatchBody};
use coracle_client::{
    Deletion, ErrorExt as _, ObjectKey, Workqueue, WrittenRevisions, key_of, revision_of, uid_of,
};
use coracle_clock::{Clock, select};
use futures::future::{join, join3, join4};
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Client, Error};

use crate::ControllerInputs;
use crate::interest::Interest;
use crate::keyed::{self, Looked};
use crate::service_pods::{Sight, selector_of, selects};
use crate::workload::{CATCH_UP, is_terminating_namespace};
use place::{Common, Group, Plan, change, place};

/// Endpoints in one slice, as upstream's default.
pub const ENDPOINTS_MAX: usize = 100;
/// The same for slices that mirror Endpoints.
pub const MIRRORED_MAX: usize = 1000;

/// The value of [`wanted::MANAGED_BY`] of slices of Services.
pub const CONTROLLER: &str = "endpointslice-controller.k8s.io";
/// The value of [`wanted::MANAGED_BY`] of slices of Endpoints.
pub const MIRROR: &str = "endpointslicemirroring-controller.k8s.io";

const WORKERS: usize = 5;
const ZONE: &str = "topology.kubernetes.io/zone";

/// The slices that one controller keeps.
struct Slices {
    client: Client,
    clock: Clock,
    inputs: ControllerInputs,
    managed_by: &'static str,
    written: WrittenRevisions,
    /// Whose each slice is: what is gone no longer says so.
    owners: Mutex<BTreeMap<ObjectKey, ObjectKey>>,
}

impl Slices {
    async fn open(client: Client, inputs: ControllerInputs, clock: Clock, managed_by: &'static str) -> Self {
        inputs.services.synced().await;
        inputs.endpoint_slices.synced().await;
        Slices {
            client,
            clock,
            inputs,
            managed_by,
            written: WrittenRevisions::new(),
            owners: Mutex::default(),
        }
    }

    /// The name of the Service that a slice of this controller is about.
    fn service_of<'a>(&self, slice: &'a EndpointSlice) -> Option<&'a str> {
        let labels = slice.metadata.labels.as_ref()?;
        let own = labels.get(wanted::MANAGED_BY).is_some_and(|by| by == self.managed_by);
        labels.get(wanted::SERVICE).filter(|_| own).map(String::as_str)
    }

    /// Puts those into the queue whose slices changed, until no more change.
    async fn follow(&self, queue: &Workqueue<ObjectKey>) {
        let mut changes = self.inputs.endpoint_slices.subscribe();
        while let Some(keys) = changes.changed().await {
            for key in keys {
                let slice = self.inputs.endpoint_slices.get_key(&key);
                let now = slice.as_ref().and_then(|slice| self.service_of(slice));
                let now = now.map(|service| ObjectKey::namespaced(&*key.namespace, service));
                let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
                let before = match now.clone() {
                    Some(now) => owners.insert(key, now),
                    None => owners.remove(&key),
                };
                drop(owners);
                before.into_iter().chain(now).for_each(|owner| queue.add(owner));
            }
        }
    }

    fn of(&self, key: &ObjectKey) -> Vec<Arc<EndpointSlice>> {
        let mut slices = self.inputs.endpoint_slices.list_namespace(&key.namespace);
        slices.retain(|slice| self.service_of(slice) == Some(key.name.as_str()));
        slices
    }

    /// Whether the copy of slices shows all that was written for a key.
    async fn caught_up(&self, key: &ObjectKey) -> bool {
        self.written.caught_up(key, &self.inputs.endpoint_slices, &self.clock, CATCH_UP).await
    }

    async fn settle(
        &self,
        key: &ObjectKey,
        groups: Vec<Group>,
        common: &Common,
        limit: usize,
    ) -> Result<Looked, Error> {
        let plan = place(&self.of(key), groups, common, limit);
        match self.carry_out(key, plan).await {
            Ok(()) => Ok(Looked::Settled),
            Err(error) if is_terminating_namespace(&error) => Ok(Looked::Settled),
            // Somebody was faster; what they wrote is heard of.
            Err(error) if error.is_conflict() || error.is_not_found() => Ok(Looked::Again),
            Err(error) => Err(error),
        }
    }

    /// What is new comes first, so that nobody misses what only moves.
    async fn carry_out(&self, key: &ObjectKey, plan: Plan) -> Result<(), Error> {
        for slice in &plan.create {
            let made = request::create(&self.client, slice).await?;
            self.written.note(key, revision_of::<EndpointSlice>(&made));
        }
        for (current, new) in &plan.update {
            let Some(patch) = change(current, new) else { continue };
            let own = key_of(current.as_ref());
            let patch = PatchBody::Merge(patch);
            let made = request::patch::<EndpointSlice>(&self.client, &own, &patch).await?;
            self.written.note(key, revision_of(&made));
        }
        for slice in &plan.delete {
            let own = key_of(slice.as_ref());
            let how = Deletion::of(uid_of(slice.as_ref()));
            match request::delete::<EndpointSlice>(&self.client, &own, &how).await {
                Err(error) if error.is_not_found() => {}
                result => self.written.note(key, result?),
            }
        }
        Ok(())
    }
}

/// Keeps the slices of Services that select Pods.
pub(crate) async fn run(client: Client, inputs: ControllerInputs, clock: Clock) {
    inputs.pods.synced().await;
    inputs.nodes.synced().await;
    let slices = Slices::open(client, inputs, clock, CONTROLLER).await;
    let (queue, interest) = (keyed::queue(&slices.clock), Interest::new());
    let (slices, queue, interest) = (&slices, &queue, &interest);
    let inputs = &slices.inputs;
    let (mut services, mut pods) = (inputs.services.subscribe(), inputs.pods.subscribe());
    let mut nodes = inputs.nodes.subscribe();
    let of_services = async {
        while let Some(keys) = services.changed().await {
            keys.into_iter().for_each(|key| queue.add(key));
        }
    };
    let of_pods = async {
        while let Some(keys) = pods.changed().await {
            for key in keys {
                selecting(inputs, interest, &key).into_iter().for_each(|service| queue.add(service));
            }
        }
    };
    let of_nodes = async {
        let mut zones = BTreeMap::new();
        while nodes.changed().await.is_some() {
            let now: BTreeMap<String, Option<String>> =
                inputs.nodes.list().iter().map(|node| (key_of(node.as_ref()).name, zone(node))).collect();
            // Seldom, and then of many.
            if zones != now {
                zones = now;
                inputs.services.list().iter().for_each(|service| queue.add(key_of(service.as_ref())));
            }
        }
    };
    let feeds = async {
        join4(of_services, of_pods, of_nodes, slices.follow(queue)).await;
        queue.close();
    };
    let look = |key: ObjectKey| async move { look_at_service(slices, &key).await };
    select! {
        _ = join(feeds, keyed::serve("endpointslice-controller", queue, WORKERS, look)) => {}
    }
}

/// The Services that a changed Pod concerns.
fn selecting(inputs: &ControllerInputs, interest: &Interest<Sight>, key: &ObjectKey) -> BTreeSet<ObjectKey> {
    let pod = inputs.pods.get_key(key);
    let now = pod.map(|pod| {
        let services = inputs.services.list_namespace(&key.namespace);
        let selecting = services.iter().filter(|service| selects(service, &pod));
        (Sight::of(&pod), selecting.map(|service| key_of(service.as_ref())).collect())
    });
    interest.changed(key, now)
}

fn zone(node: &k8s_openapi::api::core::v1::Node) -> Option<String> {
    node.metadata.labels.as_ref()?.get(ZONE).cloned()
}

async fn look_at_service(slices: &Slices, key: &ObjectKey) -> Result<Looked, Error> {
    if !slices.caught_up(key).await {
        return Ok(Looked::Again);
    }
    let inputs = &slices.inputs;
    // The slices of a Service that is gone go with it: it owns them.
    let service: Option<Arc<Service>> = inputs.services.get_key(key);
    let Some(service) = service.filter(|service| selector_of(service).is_some()) else {
        return Ok(Looked::Settled);
    };
    if service.metadata.deletion_timestamp.is_some() {
        return Ok(Looked::Settled);
    }
    let mut pods = inputs.pods.list_namespace(&key.namespace);
    pods.retain(|pod| selects(&service, pod));
    let zone_of = |node: &str| inputs.nodes.get("", node).and_then(|node| zone(&node));
    let groups = wanted::of_service(&service, &pods, zone_of);
    slices.settle(key, groups, &wanted::common_of_service(&service, CONTROLLER), ENDPOINTS_MAX).await
}

/// Keeps slices of Endpoints that were made by hand, for Services that select no Pods.
pub(crate) async fn run_mirror(client: Client, inputs: ControllerInputs, clock: Clock) {
    inputs.endpoints.synced().await;
    let slices = Slices::open(client, inputs, clock, MIRROR).await;
    let queue = keyed::queue(&slices.clock);
    let (slices, queue) = (&slices, &queue);
    let inputs = &slices.inputs;
    let (mut services, mut endpoints) = (inputs.services.subscribe(), inputs.endpoints.subscribe());
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
    let feeds = async {
        join3(of_services, of_endpoints, slices.follow(queue)).await;
        queue.close();
    };
    let look = |key: ObjectKey| async move { look_at_endpoints(slices, &key).await };
    select! {
        _ = join(feeds, keyed::serve("endpointslicemirroring-controller", queue, WORKERS, look)) => {}
    }
}

async fn look_at_endpoints(slices: &Slices, key: &ObjectKey) -> Result<Looked, Error> {
    if !slices.caught_up(key).await {
        return Ok(Looked::Again);
    }
    let service = slices.inputs.services.get_key(key);
    let by_hand = service.is_some_and(|service| {
        service.spec.as_ref().is_none_or(|spec| spec.selector.as_ref().is_none_or(BTreeMap::is_empty))
    });
    let endpoints: Option<Arc<Endpoints>> = slices.inputs.endpoints.get_key(key);
    let Some(endpoints) = endpoints.filter(|endpoints| by_hand && wanted::is_mirrored(endpoints)) else {
        for slice in slices.of(key) {
            slices.carry_out(key, Plan { delete: vec![slice], ..Plan::default() }).await?;
        }
        return Ok(Looked::Settled);
    };
    let groups = wanted::of_endpoints(&endpoints);
    slices.settle(key, groups, &wanted::common_of_endpoints(&endpoints, MIRROR), MIRRORED_MAX).await
}
