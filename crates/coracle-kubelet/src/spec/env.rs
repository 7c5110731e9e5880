//! The environment of a container: `env` in order, `$(NAME)` expanded, service variables for names not set.

use std::collections::BTreeMap;

use coracle_cri::EnvVar;
use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod, Service};

/// Replaces each `$(NAME)` that `value_of` knows; `$$` is a literal `$`, anything else stays as it is.
#[must_use]
pub fn expand<'a>(text: &str, value_of: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        expanded.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match value_of(name) {
                Some(value) => expanded.push_str(value),
                None => expanded.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded.push_str(rest);
    expanded
}

/// What variables of a container may refer to.
#[derive(Debug, Clone)]
pub struct EnvContext<'a> {
    /// The Pod.
    pub pod: &'a Pod,
    /// Name of the node.
    pub node_name: &'a str,
    /// Addresses of the node.
    pub host_ips: &'a [String],
    /// Addresses of the Pod.
    pub pod_ips: &'a [String],
    /// Service variables.
    pub services: BTreeMap<String, String>,
}

/// The environment, in the order of `env`, then the service variables that it does not set.
///
/// # Errors
/// The waiting message of `CreateContainerConfigError`.
pub fn environment(container: &Container, context: &EnvContext<'_>) -> Result<Vec<EnvVar>, String> {
    if container.env_from.as_ref().is_some_and(|sources| !sources.is_empty()) {
        return Err("envFrom is not supported by this node".to_owned());
    }
    let mut known: BTreeMap<&str, String> = BTreeMap::new();
    let mut ordered: Vec<EnvVar> = Vec::new();
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            Some(source) => from_source(source, context)?,
            None => expand(variable.value.as_deref().unwrap_or_default(), |name| {
                known.get(name).or_else(|| context.services.get(name)).map(String::as_str)
            }),
        };
        match ordered.iter_mut().find(|earlier| earlier.key == variable.name) {
            Some(earlier) => earlier.value.clone_from(&value),
            None => ordered.push(EnvVar { key: variable.name.clone(), value: value.clone() }),
        }
        known.insert(&variable.name, value);
    }
    for (key, value) in &context.services {
        if !known.contains_key(key.as_str()) {
            ordered.push(EnvVar { key: key.clone(), value: value.clone() });
        }
    }
    Ok(ordered)
}

fn from_source(source: &EnvVarSource, context: &EnvContext<'_>) -> Result<String, String> {
    let Some(field) = &source.field_ref else {
        return Err("this source of an environment variable is not supported by this node".to_owned());
    };
    field_value(&field.field_path, context)
        .ok_or_else(|| format!("unsupported fieldPath: {}", field.field_path))
}

fn field_value(path: &str, context: &EnvContext<'_>) -> Option<String> {
    let meta = &context.pod.metadata;
    let spec = context.pod.spec.as_ref();
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let subscript =
        |map: &str| Some(path.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']")?.to_owned());
    let entry = |map: &Option<BTreeMap<String, String>>, key: &str| {
        map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default()
    };
    if let Some(key) = subscript("metadata.labels") {
        return Some(entry(&meta.labels, &key));
    }
    if let Some(key) = subscript("metadata.annotations") {
        return Some(entry(&meta.annotations, &key));
    }
    match path {
        "metadata.name" => Some(text(&meta.name)),
        "metadata.namespace" => Some(text(&meta.namespace)),
        "metadata.uid" => Some(text(&meta.uid)),
        "spec.nodeName" => Some(context.node_name.to_owned()),
        "spec.serviceAccountName" => {
            Some(spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default())
        }
        "status.hostIP" => Some(context.host_ips.first().cloned().unwrap_or_default()),
        "status.hostIPs" => Some(context.host_ips.join(",")),
        "status.podIP" => Some(context.pod_ips.first().cloned().unwrap_or_default()),
        "status.podIPs" => Some(context.pod_ips.join(",")),
        _ => None,
    }
}

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

    #[test]
    fn references_expand_and_two_dollars_escape() {
        let value = |name: &str| (name == "A").then_some("1");
        for (text, expanded) in [
            ("$(A)", "1"),
            ("$$(A)", "$(A)"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(B)"),
            ("$", "$"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$$$(A)", "$1"),
            ("", ""),
        ] {
            assert_eq!(expand(text, value), expanded, "{text}");
        }
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"a.b/c": "l"}},
            "spec": {"containers": []}
        }))
        .unwrap()
    }

    fn env(container: serde_json::Value, services: BTreeMap<String, String>) -> Vec<(String, String)> {
        let container = serde_json::from_value(container).unwrap();
        let pod = pod();
        let ips = ["10.0.0.5".to_owned()];
        let context = EnvContext { pod: &pod, node_name: "n", host_ips: &[], pod_ips: &ips, services };
        environment(&container, &context).unwrap().into_iter().map(|v| (v.key, v.value)).collect()
    }

    #[test]
    fn variables_see_those_before_them_and_the_services() {
        let services =
            BTreeMap::from([("S".to_owned(), "svc".to_owned()), ("B".to_owned(), "lost".to_owned())]);
        let got = env(
            json!({"name": "c", "env": [
                {"name": "A", "value": "a"},
                {"name": "B", "value": "$(A)-$(S)-$(C)"},
                {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a.b/c']"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            ]}),
            services,
        );
        let expected = [("A", "a"), ("B", "a-svc-$(C)"), ("C", "l"), ("IP", "10.0.0.5"), ("S", "svc")];
        assert_eq!(got, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
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
