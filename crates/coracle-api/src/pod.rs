//! Decisions about Pods that more than one component makes: quality of service, what a Pod asks of a node.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource as api_resource;

use crate::Value;
use crate::quantity::Quantity;
use crate::status::Status;

/// The Pod with the node that `binding` names, its labels and annotations, and the condition `PodScheduled`.
///
/// # Errors
/// 409 if the Pod has a node already, is being deleted, or is another one than the binding means.
pub fn bind(pod: &Value, binding: &Value, now: Timestamp) -> Result<Value, Status> {
    crate::kinds::pod::bind(pod, binding, now)
}

/// Amounts by resource name.
pub type ResourceList = BTreeMap<String, Quantity>;

/// How a Pod fares when its node runs out of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum QosClass {
    /// It asked for nothing.
    BestEffort,
    /// It asked for something.
    Burstable,
    /// It may use exactly what it asked for.
    Guaranteed,
}

impl QosClass {
    /// As it stands in `status.qosClass`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            QosClass::BestEffort => "BestEffort",
            QosClass::Burstable => "Burstable",
            QosClass::Guaranteed => "Guaranteed",
        }
    }
}

/// Quantities of a typed object; what does not parse (nothing that passed the API server) is left out.
#[must_use]
pub fn resource_list(list: Option<&BTreeMap<String, api_resource::Quantity>>) -> ResourceList {
    list.into_iter().flatten().filter_map(|(name, q)| Some((name.clone(), q.0.parse().ok()?))).collect()
}

fn requests(resources: Option<&ResourceRequirements>) -> ResourceList {
    resource_list(resources.and_then(|r| r.requests.as_ref()))
}

fn limits(resources: Option<&ResourceRequirements>) -> ResourceList {
    resource_list(resources.and_then(|r| r.limits.as_ref()))
}

fn add(sum: &mut ResourceList, other: &ResourceList) {
    for (name, quantity) in other {
        *sum.entry(name.clone()).or_default() += *quantity;
    }
}

fn raise(most: &mut ResourceList, other: &ResourceList) {
    for (name, quantity) in other {
        let entry = most.entry(name.clone()).or_default();
        if *quantity > *entry {
            *entry = *quantity;
        }
    }
}

/// Whether an init container keeps running beside the regular ones.
#[must_use]
pub fn is_sidecar(init: &Container) -> bool {
    init.restart_policy.as_deref() == Some("Always")
}

/// The class of a Pod, from the cpu and memory of its containers, or of the Pod as a whole if that is set.
#[must_use]
pub fn qos_class(pod: &Pod) -> QosClass {
    let Some(spec) = &pod.spec else { return QosClass::BestEffort };
    let mut asked = ResourceList::new();
    let mut allowed = ResourceList::new();
    let mut guaranteed = true;
    let mut count = |resources: Option<&ResourceRequirements>| {
        let counted = |list: ResourceList| -> ResourceList {
            list.into_iter().filter(|(name, q)| (name == "cpu" || name == "memory") && !q.is_zero()).collect()
        };
        let (own_requests, own_limits) = (counted(requests(resources)), counted(limits(resources)));
        guaranteed &= own_limits.len() == 2;
        add(&mut asked, &own_requests);
        add(&mut allowed, &own_limits);
    };
    if spec.resources.is_some() {
        count(spec.resources.as_ref());
    } else {
        for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            count(container.resources.as_ref());
        }
    }
    if asked.is_empty() && allowed.is_empty() {
        QosClass::BestEffort
    } else if guaranteed && asked == allowed {
        QosClass::Guaranteed
    } else {
        QosClass::Burstable
    }
}

/// What a Pod asks of its node: the sum of its containers and sidecars, or the most that its init containers
/// need while they run, whichever is more for each resource, and the Pod's overhead. Requests of the Pod as a
/// whole come before those of its containers.
#[must_use]
pub fn effective_requests(pod: &Pod) -> ResourceList {
    effective_requests_by(pod, |container| requests(container.resources.as_ref()))
}

/// As [`effective_requests`], with something else than their requests counted for containers.
pub fn effective_requests_by(pod: &Pod, of: impl Fn(&Container) -> ResourceList) -> ResourceList {
    let Some(spec) = &pod.spec else { return ResourceList::new() };
    let mut sum = ResourceList::new();
    for container in &spec.containers {
        add(&mut sum, &of(container));
    }
    // Init containers run one after another, beside the sidecars declared before them.
    let mut sidecars = ResourceList::new();
    let mut most = ResourceList::new();
    for init in spec.init_containers.iter().flatten() {
        let own = of(init);
        if is_sidecar(init) {
            add(&mut sum, &own);
            add(&mut sidecars, &own);
            raise(&mut most, &sidecars);
        } else {
            let mut while_running = sidecars.clone();
            add(&mut while_running, &own);
            raise(&mut most, &while_running);
        }
    }
    raise(&mut sum, &most);
    for (name, quantity) in requests(spec.resources.as_ref()) {
        sum.insert(name, quantity);
    }
    add(&mut sum, &resource_list(spec.overhead.as_ref()));
    sum
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(containers: &Value, init: &Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": containers, "initContainers": init}})).unwrap()
    }

    fn asks(cpu: &str) -> Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn the_class_follows_requests_and_limits() {
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}});
        let only_cpu = json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}});
        let less =
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Mi"}});
        let zero = json!({"limits": {"cpu": "0"}, "requests": {"cpu": "0"}});
        for (name, resources, class) in [
            ("nothing", vec![json!({})], QosClass::BestEffort),
            ("zero", vec![zero], QosClass::BestEffort),
            ("equal", vec![full.clone()], QosClass::Guaranteed),
            ("no memory", vec![only_cpu], QosClass::Burstable),
            ("less", vec![less], QosClass::Burstable),
            ("one without", vec![full, json!({})], QosClass::Burstable),
            ("storage alone", vec![json!({"requests": {"ephemeral-storage": "1Gi"}})], QosClass::BestEffort),
        ] {
            let containers: Vec<Value> =
                resources.into_iter().map(|r| json!({"name": "c", "resources": r})).collect();
            assert_eq!(qos_class(&pod(&json!(containers), &json!([]))), class, "{name}");
        }
    }

    #[test]
    fn requests_are_the_sum_or_the_most_of_the_init_containers() {
        let sidecar = |cpu: &str| {
            let mut container = asks(cpu);
            container["restartPolicy"] = "Always".into();
            container
        };
        for (name, containers, init, cpu) in [
            ("sum", json!([asks("100m"), asks("200m")]), json!([]), "300m"),
            ("larger init", json!([asks("100m")]), json!([asks("1"), asks("2")]), "2"),
            ("smaller init", json!([asks("3")]), json!([asks("1")]), "3"),
            ("sidecar is added", json!([asks("1")]), json!([sidecar("1")]), "2"),
            ("init beside an earlier sidecar", json!([asks("1")]), json!([sidecar("1"), asks("3")]), "4"),
            ("init before the sidecar", json!([asks("1")]), json!([asks("2"), sidecar("1")]), "2"),
        ] {
            assert_eq!(effective_requests(&pod(&containers, &init))["cpu"].to_string(), cpu, "{name}");
        }
    }
}
