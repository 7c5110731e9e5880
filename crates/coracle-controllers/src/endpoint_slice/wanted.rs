//! The endpoints that slices are to hold: of a Service's Pods, or of Endpoints that somebody made by hand.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};

use super::place::{Common, Group, sort_ports};
use crate::service_pods::{
    addresses, families, family, hostname, is_headless, ports_of, publishes_not_ready, reference_to, target,
};
use crate::workload::{controller_reference, pods};

/// The Service whose endpoints a slice holds.
pub const SERVICE: &str = "kubernetes.io/service-name";
/// Who looks after a slice.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints that only say who leads.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

/// The endpoints of a Service whose Pods are `pods`; `zone_of` knows the zones of nodes.
#[must_use]
pub fn of_service(
    service: &Service,
    pods: &[Arc<Pod>],
    zone_of: impl Fn(&str) -> Option<String>,
) -> Vec<Group> {
    let mut groups = Vec::new();
    for wanted in families(service) {
        let mut by_ports: Vec<Group> = Vec::new();
        for pod in pods.iter().filter(|pod| !pods::is_terminal(pod)) {
            let own: Vec<String> = addresses(pod)
                .filter(|address| family(address) == Some(wanted.as_str()))
                .map(str::to_owned)
                .collect();
            if own.is_empty() {
                continue;
            }
            let endpoint = endpoint(service, pod, own, &zone_of);
            add(&mut by_ports, &wanted, ports(service, pod), endpoint);
        }
        if by_ports.is_empty() {
            // That there are none is told by a slice, too.
            by_ports.push(Group { family: wanted, ports: Vec::new(), endpoints: Vec::new() });
        }
        groups.extend(by_ports);
    }
    groups
}

fn add(groups: &mut Vec<Group>, family: &str, mut ports: Vec<EndpointPort>, endpoint: Endpoint) {
    sort_ports(&mut ports);
    match groups.iter_mut().find(|group| group.family == family && group.ports == ports) {
        Some(group) => group.endpoints.push(endpoint),
        None => groups.push(Group { family: family.to_owned(), ports, endpoints: vec![endpoint] }),
    }
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let port = |port: &k8s_openapi::api::core::v1::ServicePort| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(target(pod, port)?),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            app_protocol: port.app_protocol.clone(),
        })
    };
    ports_of(service).iter().filter_map(port).collect()
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    addresses: Vec<String>,
    zone_of: impl Fn(&str) -> Option<String>,
) -> Endpoint {
    let serving = pods::is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let node = Some(pods::node_of(pod)).filter(|node| !node.is_empty());
    Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            // Nobody is sent to a Pod that goes, unless all are to be told of.
            ready: Some(publishes_not_ready(service) || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(pod, service),
        node_name: node.map(str::to_owned),
        target_ref: Some(reference_to(pod)),
        zone: node.and_then(zone_of),
        ..Endpoint::default()
    }
}

/// What the slices of a Service say of it.
#[must_use]
pub fn common_of_service(service: &Service, managed_by: &str) -> Common {
    let mut labels = own_labels(service.metadata.labels.as_ref());
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    let name = service.metadata.name.clone().unwrap_or_default();
    labels.insert(SERVICE.to_owned(), name.clone());
    labels.insert(MANAGED_BY.to_owned(), managed_by.to_owned());
    Common {
        namespace: service.metadata.namespace.clone(),
        generate_name: format!("{name}-"),
        labels,
        owner: controller_reference(service),
    }
}

/// The labels of an owner that its slices take over: those that say what a slice is are not its to give.
fn own_labels(labels: Option<&BTreeMap<String, String>>) -> BTreeMap<String, String> {
    let mut labels = labels.cloned().unwrap_or_default();
    labels.retain(|label, _| ![SERVICE, MANAGED_BY, HEADLESS, SKIP_MIRROR].contains(&label.as_str()));
    labels
}

/// Whether Endpoints are to be shown as slices, as far as they say.
#[must_use]
pub fn is_mirrored(endpoints: &Endpoints) -> bool {
    let meta = &endpoints.metadata;
    let skipped =
        meta.labels.as_ref().and_then(|labels| labels.get(SKIP_MIRROR)).is_some_and(|skip| skip == "true");
    let leads = meta.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(LEADER));
    !skipped && !leads && meta.deletion_timestamp.is_none()
}

/// The endpoints that Endpoints name.
#[must_use]
pub fn of_endpoints(endpoints: &Endpoints) -> Vec<Group> {
    let mut groups = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let lists = [(true, &subset.addresses), (false, &subset.not_ready_addresses)];
        for (ready, list) in lists {
            for address in list.iter().flatten() {
                let Some(family) = family(&address.ip) else { continue };
                add(&mut groups, family, mirrored_ports(subset), mirrored(address, ready));
            }
        }
    }
    groups
}

fn mirrored_ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let port = |port: &k8s_openapi::api::core::v1::EndpointPort| EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: port.app_protocol.clone(),
    };
    subset.ports.iter().flatten().map(port).collect()
}

fn mirrored(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

/// What the slices of Endpoints say of them.
#[must_use]
pub fn common_of_endpoints(endpoints: &Endpoints, managed_by: &str) -> Common {
    let mut labels = own_labels(endpoints.metadata.labels.as_ref());
    let name = endpoints.metadata.name.clone().unwrap_or_default();
    labels.insert(SERVICE.to_owned(), name.clone());
    labels.insert(MANAGED_BY.to_owned(), managed_by.to_owned());
    Common {
        namespace: endpoints.metadata.namespace.clone(),
        generate_name: format!("{name}-"),
        labels,
        owner: controller_reference(endpoints),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::service_pods::examples::{going, pod, service, unready};

    /// Each endpoint as `address: ready serving terminating`.
    fn told(groups: &[Group]) -> Vec<String> {
        let truth = |is: Option<bool>| is.map_or("-".to_owned(), |is| is.to_string());
        let of = |endpoint: &Endpoint| {
            let is = endpoint.conditions.clone().unwrap_or_default();
            let all = [is.ready, is.serving, is.terminating].map(truth).join(" ");
            format!("{}: {all}", endpoint.addresses.join(","))
        };
        groups.iter().flat_map(|group| &group.endpoints).map(of).collect()
    }

    #[test]
    fn a_pod_that_goes_is_not_ready_and_serves_as_long_as_it_can() {
        let both = |pod: &mut serde_json::Value| {
            going(pod);
            unready(pod);
        };
        let pods = [
            pod("a", "10.0.0.1", |_| {}),
            pod("b", "10.0.0.2", unready),
            pod("c", "10.0.0.3", going),
            pod("d", "10.0.0.4", both),
            pod("ended", "10.0.0.5", |pod| pod["status"]["phase"] = "Failed".into()),
            pod("new", "", |pod| pod["status"] = json!({ "phase": "Pending" })),
        ];
        let plain = of_service(&service(|_| {}), &pods, |_| None);
        assert_eq!(
            told(&plain),
            [
                "10.0.0.1: true true false",
                "10.0.0.2: false false false",
                "10.0.0.3: false true true",
                "10.0.0.4: false false true",
            ]
        );
        let all = service(|service| service["spec"]["publishNotReadyAddresses"] = true.into());
        let all = of_service(&all, &pods, |_| None);
        assert_eq!(
            told(&all),
            [
                "10.0.0.1: true true false",
                "10.0.0.2: true false false",
                "10.0.0.3: true true true",
                "10.0.0.4: true false true",
            ]
        );
    }

    #[test]
    fn an_endpoint_tells_of_its_pod_node_and_zone() {
        let groups = of_service(&service(|_| {}), &[pod("a", "10.0.0.1", |_| {})], |node| {
            Some(format!("zone of {node}"))
        });
        assert_eq!(groups.len(), 1);
        assert_eq!(
            serde_json::to_value(&groups[0].endpoints[0]).unwrap(),
            json!({
                "addresses": ["10.0.0.1"],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": "n1", "zone": "zone of n1",
                "targetRef": { "kind": "Pod", "namespace": "ns", "name": "a", "uid": "uid-a" },
            })
        );
        assert_eq!(
            serde_json::to_value(&groups[0].ports).unwrap(),
            json!([{ "name": "web", "port": 8080, "protocol": "TCP" }])
        );
    }

    #[test]
    fn a_family_without_pods_is_told_of_and_pods_stand_by_their_families() {
        let dual = service(|service| service["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]));
        let both = pod("a", "10.0.0.1", |pod| {
            pod["status"]["podIPs"] = json!([{ "ip": "10.0.0.1" }, { "ip": "2001:db8::1" }]);
        });
        let families = |groups: &[Group]| {
            groups
                .iter()
                .map(|group| format!("{} {}", group.family, group.endpoints.len()))
                .collect::<Vec<_>>()
        };
        assert_eq!(families(&of_service(&dual, &[], |_| None)), ["IPv4 0", "IPv6 0"]);
        assert_eq!(families(&of_service(&dual, std::slice::from_ref(&both), |_| None)), ["IPv4 1", "IPv6 1"]);
        assert_eq!(families(&of_service(&service(|_| {}), &[both], |_| None)), ["IPv4 1"]);
    }

    #[test]
    fn slices_carry_their_services_labels_and_its_name() {
        let headless = service(|service| service["spec"]["clusterIP"] = "None".into());
        let common = common_of_service(&headless, "me");
        assert_eq!(common.generate_name, "web-");
        assert_eq!(
            json!(common.labels),
            json!({
                "endpointslice.kubernetes.io/managed-by": "me", "kubernetes.io/service-name": "web",
                "service.kubernetes.io/headless": "", "team": "a",
            })
        );
        assert_eq!((common.owner.kind.as_str(), common.owner.controller), ("Service", Some(true)));
        assert!(!common_of_service(&service(|_| {}), "me").labels.contains_key(HEADLESS));
    }

    #[test]
    fn endpoints_made_by_hand_are_shown_unless_they_say_otherwise() {
        let endpoints = |mutate: &dyn Fn(&mut serde_json::Value)| -> Endpoints {
            let mut endpoints = json!({
                "metadata": { "name": "web", "namespace": "ns" },
                "subsets": [
                    { "addresses": [{ "ip": "10.0.0.1" }, { "ip": "2001:db8::1" }],
                      "notReadyAddresses": [{ "ip": "10.0.0.2" }], "ports": [{ "port": 80 }] },
                    { "addresses": [{ "ip": "10.0.0.3" }], "ports": [{ "port": 81 }] },
                ],
            });
            mutate(&mut endpoints);
            serde_json::from_value(endpoints).unwrap()
        };
        let groups = of_endpoints(&endpoints(&|_| {}));
        assert_eq!(
            told(&groups),
            ["10.0.0.1: true - -", "10.0.0.2: false - -", "2001:db8::1: true - -", "10.0.0.3: true - -"]
        );
        assert_eq!(groups.len(), 3);
        assert!(is_mirrored(&endpoints(&|_| {})));
        assert!(!is_mirrored(&endpoints(&|e| e["metadata"]["labels"] = json!({ SKIP_MIRROR: "true" }))));
        assert!(!is_mirrored(&endpoints(&|e| e["metadata"]["annotations"] = json!({ LEADER: "x" }))));
    }
}
