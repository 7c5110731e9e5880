//! The configuration of a Pod's sandbox.

use std::path::PathBuf;

use coracle_cri::{
    DnsConfig, NamespaceMode, NamespaceOptions, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol,
};
use k8s_openapi::api::core::v1::{Pod, PodSpec};

use super::PodIdentity;
use super::resources::{self, Qos};
use crate::pod::containers::{self, Kind};
use crate::sysctl::dotted;

const HOSTNAME_MAX: usize = 63;
/// What the kernel takes.
const KERNEL_HOSTNAME_MAX: usize = 64;

/// What the node adds to the Pod's spec.
#[derive(Debug, Clone)]
pub struct SandboxContext {
    /// Which sandbox of this Pod.
    pub attempt: u32,
    /// Host name of the node.
    pub node_hostname: String,
    /// Domain of the cluster.
    pub cluster_domain: String,
    /// Directory of the Pod's logs.
    pub log_directory: PathBuf,
    /// The Pod's DNS configuration.
    pub dns: DnsConfig,
    /// Under which `kubepods` is.
    pub cgroup_root: String,
    /// The Pod's class.
    pub qos: Qos,
    /// The most processes that the node can have.
    pub node_pids: u64,
}

/// Makes the configuration.
///
/// # Errors
/// The Pod cannot have the host name that it asks for.
pub fn sandbox_config(
    pod: &Pod,
    spec: &PodSpec,
    context: &SandboxContext,
) -> Result<PodSandboxConfig, String> {
    let identity = PodIdentity::of(pod);
    let sysctls = spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten());
    Ok(PodSandboxConfig {
        metadata: PodSandboxMetadata {
            name: identity.name.clone(),
            uid: identity.uid.clone(),
            namespace: identity.namespace.clone(),
            attempt: context.attempt,
        },
        hostname: hostname(pod, spec, &context.node_hostname, &context.cluster_domain)?,
        log_directory: context.log_directory.clone(),
        dns_config: context.dns.clone(),
        port_mappings: port_mappings(spec),
        labels: identity.labels(),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        cgroup_parent: resources::cgroup_parent(&context.cgroup_root, context.qos, &identity),
        resources: resources::pod_resources(spec, context.node_pids),
        sysctls: sysctls.map(|s| (dotted(&s.name), s.value.clone())).collect(),
        namespaces: namespaces(spec),
    })
}

/// Which namespaces the Pod's containers share.
#[must_use]
pub fn namespaces(spec: &PodSpec) -> NamespaceOptions {
    let node_or = |node: Option<bool>, other| if node == Some(true) { NamespaceMode::Node } else { other };
    let pid = if spec.share_process_namespace == Some(true) {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    NamespaceOptions {
        network: node_or(spec.host_network, NamespaceMode::Pod),
        pid: node_or(spec.host_pid, pid),
        ipc: node_or(spec.host_ipc, NamespaceMode::Pod),
    }
}

/// The short host name of the Pod: as the spec says, else the Pod's name, cut to what the kernel takes.
#[must_use]
pub fn short_hostname(pod: &Pod, spec: &PodSpec) -> String {
    let said = |field: &Option<String>| field.clone().filter(|name| !name.is_empty());
    let name = said(&spec.hostname_override).or_else(|| said(&spec.hostname));
    let name = name.as_deref().or(pod.metadata.name.as_deref()).unwrap_or_default();
    let cut = &name[..name.len().min(HOSTNAME_MAX)];
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// The full name of a Pod with a subdomain.
#[must_use]
pub fn fqdn(pod: &Pod, spec: &PodSpec, domain: &str) -> Option<String> {
    if spec.hostname_override.as_deref().is_some_and(|name| !name.is_empty()) {
        return None;
    }
    let subdomain = spec.subdomain.as_deref().filter(|s| !s.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    Some(format!("{}.{subdomain}.{namespace}.svc.{domain}", short_hostname(pod, spec)))
}

/// What the kernel shows as the host name.
fn hostname(pod: &Pod, spec: &PodSpec, node: &str, domain: &str) -> Result<String, String> {
    if spec.host_network == Some(true) {
        return Ok(node.to_owned());
    }
    match fqdn(pod, spec, domain) {
        Some(full) if spec.set_hostname_as_fqdn == Some(true) && full.len() > KERNEL_HOSTNAME_MAX => {
            Err(format!(
                "failed to construct FQDN from Pod hostname and cluster domain, FQDN {full} is too long \
             ({KERNEL_HOSTNAME_MAX} characters is the max, {} characters requested)",
                full.len()
            ))
        }
        Some(full) if spec.set_hostname_as_fqdn == Some(true) => Ok(full),
        _ => Ok(short_hostname(pod, spec)),
    }
}

fn port_mappings(spec: &PodSpec) -> Vec<PortMapping> {
    if spec.host_network == Some(true) {
        return Vec::new();
    }
    containers::all(spec)
        .filter(|member| matches!(member.kind, Kind::Regular | Kind::Sidecar))
        .flat_map(|member| member.container.ports.clone().unwrap_or_default())
        .filter_map(|port| {
            let host_port = u16::try_from(port.host_port?).ok().filter(|p| *p > 0)?;
            Some(PortMapping {
                protocol: match port.protocol.as_deref() {
                    Some("UDP") => Protocol::Udp,
                    Some("SCTP") => Protocol::Sctp,
                    _ => Protocol::Tcp,
                },
                container_port: u16::try_from(port.container_port).ok()?,
                host_port,
                host_ip: port.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, spec: Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec})).unwrap()
    }

    /// Short name, full name, and what the kernel shows.
    fn names(name: &str, spec: Value) -> (String, Option<String>, Result<String, String>) {
        let pod = pod(name, spec);
        let spec = pod.spec.as_ref().unwrap();
        (
            short_hostname(&pod, spec),
            fqdn(&pod, spec, "cluster.local"),
            hostname(&pod, spec, "node", "cluster.local"),
        )
    }

    #[test]
    fn ports_of_the_node_lead_to_containers_and_sidecars_on_the_address_that_they_ask_for() {
        let ports = |more: Value| {
            let container = |port: u16, host: Value| {
                let (name, port) = (format!("c{port}"), json!({"containerPort": port, "hostPort": host}));
                json!({"name": name, "ports": [port]})
            };
            let mut sidecar = container(3, json!(30));
            sidecar["restartPolicy"] = json!("Always");
            sidecar["ports"][0]["hostIP"] = json!("192.0.2.1");
            let mut spec = json!({
                "initContainers": [container(2, json!(20)), sidecar],
                "containers": [container(1, json!(10)), container(4, Value::Null)],
            });
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let made = port_mappings(&serde_json::from_value(spec).unwrap());
            made.iter().map(|p| (p.container_port, p.host_port, p.host_ip)).collect::<Vec<_>>()
        };
        assert_eq!(ports(json!({})), [(3, 30, Some("192.0.2.1".parse().unwrap())), (1, 10, None)]);
        assert_eq!(ports(json!({"hostNetwork": true})), [], "they are the node's anyway");
    }

    #[test]
    fn namespaces_are_the_pods_or_the_nodes_and_that_of_processes_each_containers_own() {
        use NamespaceMode::{Container, Node, Pod};
        for (spec, network, pid, ipc) in [
            (json!({}), Pod, Container, Pod),
            (json!({"shareProcessNamespace": true}), Pod, Pod, Pod),
            (json!({"hostPID": true, "hostIPC": true}), Pod, Node, Node),
            (json!({"hostNetwork": true, "shareProcessNamespace": false}), Node, Container, Pod),
        ] {
            let of = namespaces(pod("p", spec.clone()).spec.as_ref().unwrap());
            assert_eq!(of, NamespaceOptions { network, pid, ipc }, "{spec}");
        }
    }

    #[test]
    fn kernel_parameters_are_written_with_dots() {
        let sysctls = json!([{"name": "net/ipv4/tcp_rmem", "value": "1 2 3"}]);
        let pod = pod("p", json!({"securityContext": {"sysctls": sysctls}}));
        let context = SandboxContext {
            attempt: 0,
            node_hostname: "node".into(),
            cluster_domain: "cluster.local".into(),
            log_directory: PathBuf::new(),
            dns: DnsConfig::default(),
            cgroup_root: String::new(),
            qos: Qos::BestEffort,
            node_pids: 1,
        };
        let made = sandbox_config(&pod, pod.spec.as_ref().unwrap(), &context).unwrap();
        assert_eq!(
            made.sysctls.into_iter().collect::<Vec<_>>(),
            [("net.ipv4.tcp_rmem".into(), "1 2 3".into())]
        );
    }

    #[test]
    fn host_names_come_from_the_pod_and_are_as_long_as_the_kernel_takes() {
        let own = |name: &str| Ok(name.to_owned());
        assert_eq!(names("web-0", json!({})), ("web-0".into(), None, own("web-0")));
        let full = || Some("web.sub.ns.svc.cluster.local".to_owned());
        assert_eq!(
            names("p", json!({"hostname": "web", "subdomain": "sub"})),
            ("web".into(), full(), own("web"))
        );
        let as_fqdn = json!({"hostname": "web", "subdomain": "sub", "setHostnameAsFQDN": true});
        assert_eq!(names("p", as_fqdn).2, own("web.sub.ns.svc.cluster.local"));
        assert_eq!(names("p", json!({"setHostnameAsFQDN": true})).2, own("p"), "there is no full name");
        let over = json!({"hostname": "web", "subdomain": "sub", "hostnameOverride": "a.b", "setHostnameAsFQDN": true});
        assert_eq!(names("p", over), ("a.b".into(), None, own("a.b")));
        assert_eq!(names("p", json!({"hostNetwork": true, "hostname": "web"})).2, own("node"));

        let long = format!("{}-.-tail", "a".repeat(61));
        assert_eq!(names(&long, json!({})).2, own(&"a".repeat(61)), "63 characters, and no dash at the end");
        let subdomain = "s".repeat(42);
        let refused = names("p", json!({"subdomain": subdomain, "setHostnameAsFQDN": true})).2.unwrap_err();
        let full = format!("p.{subdomain}.ns.svc.cluster.local");
        assert_eq!(
            refused,
            format!(
                "failed to construct FQDN from Pod hostname and cluster domain, FQDN {full} is too long (64 characters is \
                 the max, {} characters requested)",
                full.len()
            )
        );
    }
}
