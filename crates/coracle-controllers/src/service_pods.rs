//! Pods as a Service sees them: where they are reached, and whether they are to be.

use std::net::IpAddr;

use coracle_client::uid_of;
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::workload::pods;

/// What a Service looks at in a Pod, beside its labels.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sight {
    uid: String,
    addresses: Vec<String>,
    node: String,
    ready: bool,
    deleting: bool,
    terminal: bool,
}

impl Sight {
    pub(crate) fn of(pod: &Pod) -> Self {
        Sight {
            uid: uid_of(pod).to_owned(),
            addresses: addresses(pod).map(str::to_owned).collect(),
            node: pods::node_of(pod).to_owned(),
            ready: pods::is_ready(pod),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            terminal: pods::is_terminal(pod),
        }
    }
}

/// What a Service selects; `None` if its endpoints are somebody else's.
pub(crate) fn selector_of(service: &Service) -> Option<&std::collections::BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    // An empty one is as good as none: the API does not keep empty maps apart.
    spec.selector.as_ref().filter(|selector| !selector.is_empty())
}

/// Whether a Service selects a Pod.
pub(crate) fn selects(service: &Service, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    selector_of(service).is_some_and(|selector| {
        selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    })
}

/// Whether a Service has no address of its own.
pub(crate) fn is_headless(service: &Service) -> bool {
    let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default();
    address.is_empty() || address == "None"
}

pub(crate) fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false)
}

pub(crate) fn ports_of(service: &Service) -> &[ServicePort] {
    service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default()
}

/// The families of addresses that a Service has, the first one first: `IPv4` or `IPv6`.
pub(crate) fn families(service: &Service) -> Vec<String> {
    let spec = service.spec.as_ref();
    let said = spec.and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    if !said.is_empty() {
        return said;
    }
    let address = spec.and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default();
    vec![family(address).unwrap_or("IPv4").to_owned()]
}

/// The family of an address.
pub(crate) fn family(address: &str) -> Option<&'static str> {
    address.parse::<IpAddr>().ok().map(|address| if address.is_ipv4() { "IPv4" } else { "IPv6" })
}

/// The addresses of a Pod.
pub(crate) fn addresses(pod: &Pod) -> impl Iterator<Item = &str> {
    let status = pod.status.as_ref();
    let all = status.and_then(|status| status.pod_ips.as_deref()).unwrap_or_default();
    let first = status.and_then(|status| status.pod_ip.as_deref()).filter(|_| all.is_empty());
    all.iter().map(|address| address.ip.as_str()).chain(first).filter(|address| !address.is_empty())
}

/// The number of the port of a Pod that a Service's port leads to.
pub(crate) fn target(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match &port.target_port {
        Some(IntOrString::Int(0)) | None => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    // Init containers that run beside the others serve as well.
    let sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(sidecar);
    let protocol = |protocol: &Option<String>| protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .find(|own| own.name.as_deref() == Some(name) && protocol(&own.protocol) == protocol(&port.protocol))
        .map(|own| own.container_port)
}

/// The host name by which a Pod is known within a Service that governs its names.
pub(crate) fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let governed = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    spec.hostname.clone().filter(|name| governed && !name.is_empty())
}

/// A reference to a Pod, as endpoints carry it.
pub(crate) fn reference_to(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
pub(crate) mod examples {
    use serde_json::{Value, json};

    use super::*;

    /// A Service with one port that leads to the port `http` of its Pods.
    pub(crate) fn service(mutate: impl Fn(&mut Value)) -> Service {
        let mut service = json!({
            "metadata": { "namespace": "ns", "name": "web", "uid": "u", "labels": { "team": "a" } },
            "spec": {
                "clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], "selector": { "app": "web" },
                "ports": [{ "name": "web", "port": 80, "targetPort": "http", "protocol": "TCP" }],
            },
        });
        mutate(&mut service);
        serde_json::from_value(service).unwrap()
    }

    /// A Pod of it that is ready.
    pub(crate) fn pod(name: &str, ip: &str, mutate: impl Fn(&mut Value)) -> std::sync::Arc<Pod> {
        let mut pod = json!({
            "metadata": { "namespace": "ns", "name": name, "uid": format!("uid-{name}"), "labels": { "app": "web" } },
            "spec": { "nodeName": "n1", "containers": [
                { "name": "c", "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP" }] }] },
            "status": {
                "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
                "conditions": [{ "type": "Ready", "status": "True" }],
            },
        });
        mutate(&mut pod);
        std::sync::Arc::new(serde_json::from_value(pod).unwrap())
    }

    pub(crate) fn unready(pod: &mut Value) {
        pod["status"]["conditions"][0]["status"] = "False".into();
    }

    pub(crate) fn going(pod: &mut Value) {
        pod["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z".into();
    }

    #[test]
    fn a_port_is_a_number_or_the_name_of_a_port_of_the_pod() {
        let at = |target: Value, protocol: &str, pod: &Pod| {
            let service = service(|service| {
                service["spec"]["ports"][0]["targetPort"] = target.clone();
                service["spec"]["ports"][0]["protocol"] = protocol.into();
            });
            super::target(pod, &ports_of(&service)[0])
        };
        let plain = pod("p", "10.0.0.1", |_| {});
        let with_sidecar = |policy: Value| {
            pod("p", "10.0.0.1", |pod| {
                pod["spec"]["initContainers"] = json!([
                    { "name": "s", "restartPolicy": policy, "ports": [{ "name": "side", "containerPort": 9 }] }
                ]);
            })
        };
        assert_eq!(at(json!(81), "TCP", &plain), Some(81));
        assert_eq!(at(Value::Null, "TCP", &plain), Some(80));
        assert_eq!(at(json!("http"), "TCP", &plain), Some(8080));
        assert_eq!(at(json!("http"), "UDP", &plain), None);
        assert_eq!(at(json!("other"), "TCP", &plain), None);
        assert_eq!(at(json!("side"), "TCP", &with_sidecar(json!("Always"))), Some(9));
        assert_eq!(at(json!("side"), "TCP", &with_sidecar(Value::Null)), None);
    }

    #[test]
    fn a_service_without_a_selector_selects_nothing() {
        let plain = pod("p", "10.0.0.1", |_| {});
        assert!(selects(&service(|_| {}), &plain));
        assert!(!selects(&service(|service| service["spec"]["selector"]["x"] = "y".into()), &plain));
        assert!(!selects(&service(|service| service["spec"]["selector"] = json!({})), &plain));
        assert!(!selects(&service(|service| service["spec"]["type"] = "ExternalName".into()), &plain));
    }
}
