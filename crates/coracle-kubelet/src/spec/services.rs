//! The variables that tell a container of services.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Service};

/// The variables that name the services a Pod may use: those of its namespace if it wants them, and always
/// `kubernetes` of the namespace `default`.
#[must_use]
pub fn service_variables<'a>(
    pod: &Pod,
    services: impl IntoIterator<Item = &'a Service>,
) -> BTreeMap<String, String> {
    let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    let mut variables = BTreeMap::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let namespace = service.metadata.namespace.as_deref();
        let master = namespace == Some("default") && name == "kubernetes";
        let own = links && namespace == pod.metadata.namespace.as_deref();
        // A service of the own namespace is stronger than the one of `default` with the same name.
        if own || (master && !variables.contains_key("KUBERNETES_SERVICE_HOST")) {
            add_service(service, name, &mut variables);
        }
    }
    variables
}

fn add_service(service: &Service, name: &str, variables: &mut BTreeMap<String, String>) {
    let Some(spec) = &service.spec else { return };
    let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { return };
    let Some(first) = spec.ports.iter().flatten().next() else { return };
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let prefix = upper(name);
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let mut set = |key: String, value: String| variables.insert(key, value);
    set(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
    set(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            set(format!("{prefix}_SERVICE_PORT_{}", upper(port_name)), port.port.to_string());
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            set(format!("{prefix}_PORT"), url.clone());
        }
        let port_prefix = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        set(port_prefix.clone(), url);
        set(format!("{port_prefix}_PROTO"), protocol.to_lowercase());
        set(format!("{port_prefix}_PORT"), port.port.to_string());
        set(format!("{port_prefix}_ADDR"), ip.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {"containers": []}
        }))
        .unwrap()
    }

    #[test]
    fn services_of_the_namespace_and_kubernetes_are_named() {
        let service = |namespace: &str, name: &str, ip: &str| -> Service {
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"clusterIP": ip, "ports": [{"name": "web-x", "port": 80, "protocol": "TCP"}]}
            }))
            .unwrap()
        };
        let all = [
            service("default", "kubernetes", "10.96.0.1"),
            service("default", "other", "10.96.0.2"),
            service("ns", "my-web", "10.96.0.3"),
            service("ns", "headless", "None"),
        ];
        let mut pod = pod();
        let variables = service_variables(&pod, &all);
        assert_eq!(variables["MY_WEB_SERVICE_HOST"], "10.96.0.3");
        assert_eq!(variables["MY_WEB_SERVICE_PORT_WEB_X"], "80");
        assert_eq!(variables["MY_WEB_PORT_80_TCP"], "tcp://10.96.0.3:80");
        assert_eq!(variables["KUBERNETES_SERVICE_HOST"], "10.96.0.1");
        assert!(!variables.keys().any(|k| k.starts_with("OTHER") || k.starts_with("HEADLESS")));
        pod.spec.as_mut().unwrap().enable_service_links = Some(false);
        let variables = service_variables(&pod, &all);
        assert!(variables.keys().all(|k| k.starts_with("KUBERNETES_")));
    }
}
