//! What all parts of one node agent share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_client::{EventRecorder, EventType, Informer, reference, uid_of};
use coracle_clock::Clock;
use coracle_clock::watch;
use coracle_cri::{ImageService, RuntimeService};
use k8s_openapi::api::core::v1::{Node, Pod, PodStatus, Service};
use tokio::sync::Semaphore;

use crate::KubeletConfig;
use crate::credentials::records::Records;
use crate::handler::Handlers;
use crate::objects::Objects;
use crate::pod::containers;
use crate::pod::inputs::NodeFacts;
use crate::pod::reasons::PodEvent;
use crate::probe::Probing;
use crate::server::PodSource;

/// Shared by the node core, the workers and the API.
pub(crate) struct Context {
    pub(crate) config: KubeletConfig,
    pub(crate) client: kube::Client,
    pub(crate) runtime: Arc<dyn RuntimeService>,
    pub(crate) images: Arc<dyn ImageService>,
    pub(crate) clock: Clock,
    pub(crate) recorder: EventRecorder,
    /// Pods bound to this node.
    pub(crate) pods: Informer<Pod>,
    pub(crate) services: Informer<Service>,
    /// ConfigMaps and Secrets that Pods of this node refer to.
    pub(crate) objects: Objects,
    /// With which credentials images were fetched.
    pub(crate) image_records: Arc<Records>,
    /// This node's own object.
    pub(crate) nodes: Informer<Node>,
    /// Name of the runtime, the scheme of container ids.
    pub(crate) runtime_name: String,
    /// Whether Pods can be connected to the network, and if not, why.
    pub(crate) network: watch::Sender<Result<(), String>>,
    /// As many pulls at a time as the node is set to, in the order in which they were asked for.
    pub(crate) pulls: Semaphore,
    /// The statuses that workers have computed last, by Pod UID: newer than what the API server was told.
    pub(crate) statuses: Mutex<BTreeMap<String, PodStatus>>,
    /// By what probes and hooks reach containers.
    pub(crate) handlers: Handlers,
    pub(crate) probing: Probing,
}

impl Context {
    pub(crate) fn facts(&self) -> NodeFacts {
        NodeFacts {
            host_ips: self.config.node_ips.clone(),
            runtime_name: self.runtime_name.clone(),
            network: self.network.borrow().clone(),
            restart_backoff_max: self.config.restart_backoff_max,
        }
    }

    pub(crate) fn statuses(&self) -> MutexGuard<'_, BTreeMap<String, PodStatus>> {
        // Entries are replaced as a whole: a panic elsewhere leaves nothing half done.
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the user.
    pub(crate) fn report(&self, pod: &Pod, event: &PodEvent) {
        let mut involved = reference(pod);
        let member = |name: &String| containers::find(pod.spec.as_ref()?, name);
        involved.field_path = event.container.as_ref().and_then(member).map(|member| member.field_path());
        let kind = if event.warning { EventType::Warning } else { EventType::Normal };
        self.recorder.event(&involved, kind, event.reason, event.message.clone());
    }
}

impl PodSource for Context {
    fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.list().into_iter().map(|pod| self.with_status(pod)).collect()
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods.get(namespace, name).map(|pod| self.with_status(pod))
    }
}

impl Context {
    fn with_status(&self, mut pod: Arc<Pod>) -> Arc<Pod> {
        if let Some(status) = self.statuses().get(uid_of(&*pod)) {
            Arc::make_mut(&mut pod).status = Some(status.clone());
        }
        pod
    }
}
