//! From a Pod's spec to the configurations that the runtime is given: pure functions.

pub mod container;
pub(crate) mod env;
pub mod fields;
pub mod files;
pub mod resources;
pub mod sandbox;
pub mod services;

/// Label of sandboxes and containers: the Pod's name.
pub const LABEL_POD_NAME: &str = "io.kubernetes.pod.name";
/// Label of sandboxes and containers: the Pod's namespace.
pub const LABEL_POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label of sandboxes and containers: the Pod's UID.
pub const LABEL_POD_UID: &str = "io.kubernetes.pod.uid";
/// Label of containers: the container's name.
pub const LABEL_CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation of containers: the Pod's grace period in seconds, for who stops them without the Pod at hand.
pub const ANNOTATION_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
/// Annotation of containers: the restart count.
pub const ANNOTATION_RESTART_COUNT: &str = "io.kubernetes.container.restartCount";

/// A Pod's name, namespace and UID.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodIdentity {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

impl PodIdentity {
    /// Of a Pod.
    #[must_use]
    pub fn of(pod: &k8s_openapi::api::core::v1::Pod) -> PodIdentity {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let meta = &pod.metadata;
        PodIdentity { namespace: text(&meta.namespace), name: text(&meta.name), uid: text(&meta.uid) }
    }

    /// `name_namespace(uid)`, as messages name a Pod.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}_{}({})", self.name, self.namespace, self.uid)
    }

    /// The labels that the Pod's sandboxes and containers carry.
    #[must_use]
    pub fn labels(&self) -> std::collections::BTreeMap<String, String> {
        [(LABEL_POD_NAME, &self.name), (LABEL_POD_NAMESPACE, &self.namespace), (LABEL_POD_UID, &self.uid)]
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.clone()))
            .collect()
    }
}
