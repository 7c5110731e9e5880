//! The Endpoints that a Service is to have.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use serde_json::{Value, json};

use crate::service_pods::{
    addresses, families, family, hostname, is_headless, ports_of, publishes_not_ready, reference_to, target,
};
use crate::workload::pods;
use crate::workload::status::difference;

/// One object holds no more addresses; EndpointSlices hold the rest.
pub const ADDRESSES_MAX: usize = 1000;

const HEADLESS: &str = "service.kubernetes.io/headless";
/// By this label everybody sees who looks after an object.
pub const MANAGED_BY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

/// The Endpoints of a Service whose Pods are `pods`.
#[must_use]
pub fn wanted(service: &Service, pods: &[Arc<Pod>]) -> Endpoints {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    let mut endpoints = Endpoints::default();
    endpoints.metadata.namespace.clone_from(&service.metadata.namespace);
    endpoints.metadata.name.clone_from(&service.metadata.name);
    endpoints.metadata.labels = Some(labels);
    let mut subsets = subsets(service, pods);
    if truncate(&mut subsets) {
        let told = BTreeMap::from([(OVER_CAPACITY.to_owned(), "truncated".to_owned())]);
        endpoints.metadata.annotations = Some(told);
    }
    endpoints.subsets = Some(subsets).filter(|subsets| !subsets.is_empty());
    endpoints
}

/// A merge patch from `current` to `wanted`; `None` if nothing differs.
#[must_use]
pub fn change(current: &Endpoints, wanted: &Endpoints) -> Option<Value> {
    let shown = |endpoints: &Endpoints| {
        let annotation = endpoints.metadata.annotations.as_ref().and_then(|all| all.get(OVER_CAPACITY));
        let mut shown = serde_json::Map::new();
        shown.insert("labels".to_owned(), json!(endpoints.metadata.labels.clone().unwrap_or_default()));
        let annotations = annotation.map(|value| json!({ OVER_CAPACITY: value }));
        shown.insert("annotations".to_owned(), annotations.unwrap_or_else(|| json!({})));
        shown
    };
    let subsets = |endpoints: &Endpoints| endpoints.subsets.clone().unwrap_or_default();
    let mut metadata = difference(&shown(current), &shown(wanted));
    if metadata.is_empty() && subsets(current) == subsets(wanted) {
        return None;
    }
    metadata.insert("uid".to_owned(), json!(current.metadata.uid));
    metadata.insert("resourceVersion".to_owned(), json!(current.metadata.resource_version));
    Some(json!({ "metadata": metadata, "subsets": subsets(wanted) }))
}

/// A port as subsets are sorted by it: name, number, protocol, protocol of the application.
type Port = (String, i32, String, Option<String>);

/// Addresses with the same ports stand together.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let all = publishes_not_ready(service);
    let families = families(service);
    let Some(wanted_family) = families.first() else { return Vec::new() };
    let mut subsets: BTreeMap<Vec<Port>, [Vec<EndpointAddress>; 2]> = BTreeMap::new();
    for pod in pods {
        // A Pod that goes is no endpoint any more, unless somebody wants to hear of all.
        if pods::is_terminal(pod) || (pod.metadata.deletion_timestamp.is_some() && !all) {
            continue;
        }
        let own = addresses(pod).find(|address| family(address) == Some(wanted_family.as_str()));
        let Some(ip) = own else { continue };
        let mut ports = Vec::new();
        for port in ports_of(service) {
            let Some(number) = target(pod, port) else { continue };
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            ports.push((port.name.clone().unwrap_or_default(), number, protocol, port.app_protocol.clone()));
        }
        // Only a Service without an address may go without ports.
        let headless = service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"));
        if ports.is_empty() && !(ports_of(service).is_empty() && headless) {
            continue;
        }
        ports.sort();
        let node = pods::node_of(pod);
        let address = EndpointAddress {
            ip: ip.to_owned(),
            hostname: hostname(pod, service),
            node_name: (!node.is_empty()).then(|| node.to_owned()),
            target_ref: Some(reference_to(pod)),
        };
        let ready = all || pods::is_ready(pod);
        subsets.entry(ports).or_default()[usize::from(!ready)].push(address);
    }
    subsets.into_iter().map(|(ports, [ready, not_ready])| subset(ports, ready, not_ready)).collect()
}

fn subset(ports: Vec<Port>, ready: Vec<EndpointAddress>, not_ready: Vec<EndpointAddress>) -> EndpointSubset {
    let sorted = |mut addresses: Vec<EndpointAddress>| {
        addresses.sort_by_cached_key(|address| {
            let uid = address.target_ref.as_ref().and_then(|target| target.uid.clone());
            (address.ip.parse::<IpAddr>().ok(), uid)
        });
        Some(addresses).filter(|addresses| !addresses.is_empty())
    };
    let port = |(name, port, protocol, app_protocol): Port| EndpointPort {
        name: Some(name).filter(|name| !name.is_empty()),
        port,
        protocol: Some(protocol),
        app_protocol,
    };
    let ports: Vec<EndpointPort> = ports.into_iter().map(port).collect();
    EndpointSubset {
        addresses: sorted(ready),
        not_ready_addresses: sorted(not_ready),
        ports: Some(ports).filter(|ports| !ports.is_empty()),
    }
}

/// Leaves out what is too much, those first that are not ready. Whether anything was.
fn truncate(subsets: &mut Vec<EndpointSubset>) -> bool {
    let mut left = ADDRESSES_MAX;
    let mut cut = false;
    let mut take = |list: &mut Option<Vec<EndpointAddress>>| {
        if let Some(addresses) = list {
            cut |= addresses.len() > left;
            addresses.truncate(left);
            left -= addresses.len();
            if addresses.is_empty() {
                *list = None;
            }
        }
    };
    subsets.iter_mut().for_each(|subset| take(&mut subset.addresses));
    subsets.iter_mut().for_each(|subset| take(&mut subset.not_ready_addresses));
    subsets.retain(|subset| subset.addresses.is_some() || subset.not_ready_addresses.is_some());
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service_pods::examples::{going, pod, service, unready};

    /// Each subset as `ready | not ready : ports`.
    fn told(endpoints: &Endpoints) -> Vec<String> {
        let ips = |list: &Option<Vec<EndpointAddress>>| {
            list.iter().flatten().map(|address| address.ip.as_str()).collect::<Vec<_>>().join(" ")
        };
        let ports = |subset: &EndpointSubset| {
            let ports = subset.ports.iter().flatten();
            ports
                .map(|port| format!("{}{}", port.name.as_deref().unwrap_or(""), port.port))
                .collect::<Vec<_>>()
        };
        let subsets = endpoints.subsets.iter().flatten();
        subsets
            .map(|s| {
                format!("{} | {} : {}", ips(&s.addresses), ips(&s.not_ready_addresses), ports(s).join(" "))
            })
            .collect()
    }

    #[test]
    fn ready_pods_are_endpoints_and_those_that_go_or_ended_are_not() {
        let pods = [
            pod("b", "10.0.0.10", |_| {}),
            pod("a", "10.0.0.9", |_| {}),
            pod("unready", "10.0.0.3", unready),
            pod("going", "10.0.0.4", going),
            pod("ended", "10.0.0.5", |pod| pod["status"]["phase"] = "Succeeded".into()),
            pod("new", "", |pod| pod["status"] = json!({ "phase": "Pending" })),
        ];
        let plain = wanted(&service(|_| {}), &pods);
        assert_eq!(told(&plain), ["10.0.0.9 10.0.0.10 | 10.0.0.3 : web8080"]);
        let address = &plain.subsets.as_ref().unwrap()[0].addresses.as_ref().unwrap()[0];
        assert_eq!(
            serde_json::to_value(address).unwrap(),
            json!({ "ip": "10.0.0.9", "nodeName": "n1",
                    "targetRef": { "kind": "Pod", "namespace": "ns", "name": "a", "uid": "uid-a" } })
        );
        let all = service(|service| service["spec"]["publishNotReadyAddresses"] = true.into());
        assert_eq!(told(&wanted(&all, &pods)), ["10.0.0.3 10.0.0.4 10.0.0.9 10.0.0.10 |  : web8080"]);
        assert_eq!(told(&wanted(&service(|_| {}), &[])), [""; 0]);
    }

    #[test]
    fn pods_whose_ports_differ_stand_apart() {
        let two = service(|service| {
            service["spec"]["ports"] = json!([
                { "name": "web", "port": 80, "targetPort": "http" }, { "name": "fix", "port": 90, "targetPort": 91 },
            ]);
        });
        let other = |pod: &mut Value| pod["spec"]["containers"][0]["ports"][0]["containerPort"] = 9000.into();
        let without = |pod: &mut Value| pod["spec"]["containers"][0]["ports"] = json!([]);
        let pods = [
            pod("a", "10.0.0.1", |_| {}),
            pod("b", "10.0.0.2", other),
            pod("c", "10.0.0.3", without),
            pod("d", "10.0.0.4", |_| {}),
        ];
        assert_eq!(
            told(&wanted(&two, &pods)),
            ["10.0.0.3 |  : fix91", "10.0.0.1 10.0.0.4 |  : fix91 web8080", "10.0.0.2 |  : fix91 web9000",]
        );
        assert_eq!(told(&wanted(&service(|_| {}), &pods[2..3])), [""; 0], "no port leads to it");
    }

    #[test]
    fn a_service_without_an_address_needs_no_ports_and_is_labelled() {
        let headless = service(|service| {
            service["spec"]["clusterIP"] = "None".into();
            service["spec"]["ports"] = json!([]);
        });
        let named = pod("a", "10.0.0.1", |pod| {
            pod["spec"]["hostname"] = "first".into();
            pod["spec"]["subdomain"] = "web".into();
        });
        let endpoints = wanted(&headless, &[named]);
        assert_eq!(told(&endpoints), ["10.0.0.1 |  : "]);
        let address = &endpoints.subsets.as_ref().unwrap()[0].addresses.as_ref().unwrap()[0];
        assert_eq!(address.hostname.as_deref(), Some("first"));
        assert_eq!(
            serde_json::to_value(endpoints.metadata.labels).unwrap(),
            json!({ "endpoints.kubernetes.io/managed-by": "endpoint-controller",
                    "service.kubernetes.io/headless": "", "team": "a" })
        );
    }

    #[test]
    fn only_what_differs_is_written() {
        let pods = [pod("a", "10.0.0.1", |_| {})];
        let mut current = wanted(&service(|_| {}), &pods);
        current.metadata.uid = Some("e".to_owned());
        current.metadata.resource_version = Some("7".to_owned());
        current.metadata.annotations = Some(BTreeMap::from([("mine".to_owned(), "x".to_owned())]));
        assert_eq!(change(&current, &wanted(&service(|_| {}), &pods)), None);
        let relabelled = wanted(&service(|service| service["metadata"]["labels"] = json!({})), &[]);
        assert_eq!(
            change(&current, &relabelled),
            Some(json!({
                "metadata": { "labels": { "team": null }, "uid": "e", "resourceVersion": "7" }, "subsets": [],
            }))
        );
    }

    #[test]
    fn more_than_a_thousand_are_cut_and_that_is_told() {
        let pods: Vec<_> = (0..1100)
            .map(|n: usize| {
                let ip = format!("10.0.{}.{}", n / 250, n % 250 + 1);
                pod(&format!("p{n}"), &ip, if n < 200 { unready } else { |_: &mut Value| {} })
            })
            .collect();
        let endpoints = wanted(&service(|_| {}), &pods);
        let subset = &endpoints.subsets.as_ref().unwrap()[0];
        assert_eq!(subset.addresses.as_ref().unwrap().len(), 900);
        assert_eq!(subset.not_ready_addresses.as_ref().unwrap().len(), 100);
        assert_eq!(endpoints.metadata.annotations.unwrap()[OVER_CAPACITY], "truncated");
        assert_eq!(wanted(&service(|_| {}), &pods[..1000]).metadata.annotations, None);
    }
}
