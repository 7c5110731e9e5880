//! Which kernel parameters a Pod may set: those that the kernel keeps apart for it, and that harm no neighbour.

use k8s_openapi::api::core::v1::PodSpec;

/// What the kernel keeps a parameter apart by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Namespace {
    Ipc,
    Net,
}

use Namespace::{Ipc, Net};

/// The parameters that upstream takes for safe. Kernels on which one of them is not are too old for this node.
const SAFE: &[(&str, Namespace)] = &[
    ("kernel.shm_rmid_forced", Ipc),
    ("net.ipv4.ip_local_port_range", Net),
    ("net.ipv4.ip_local_reserved_ports", Net),
    ("net.ipv4.ip_unprivileged_port_start", Net),
    ("net.ipv4.ping_group_range", Net),
    ("net.ipv4.tcp_fin_timeout", Net),
    ("net.ipv4.tcp_keepalive_intvl", Net),
    ("net.ipv4.tcp_keepalive_probes", Net),
    ("net.ipv4.tcp_keepalive_time", Net),
    ("net.ipv4.tcp_rmem", Net),
    ("net.ipv4.tcp_syncookies", Net),
    ("net.ipv4.tcp_wmem", Net),
];

/// A name with dots between its parts: it may be written with slashes, and then a dot is part of a name.
pub(crate) fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(first) if name[first..].starts_with('/') => {
            let swapped = |c| match c {
                '/' => '.',
                '.' => '/',
                other => other,
            };
            name.chars().map(swapped).collect()
        }
        _ => name.to_owned(),
    }
}

/// What speaks against the first parameter that the Pod may not set.
pub(crate) fn forbidden(spec: &PodSpec) -> Option<String> {
    let asked = spec.security_context.as_ref().and_then(|context| context.sysctls.as_deref());
    asked.unwrap_or_default().iter().find_map(|sysctl| {
        let name = dotted(&sysctl.name);
        let of = SAFE.iter().find(|(safe, _)| *safe == name).map(|(_, of)| *of);
        let why = match of {
            None => format!("\"{name}\" not allowlisted"),
            Some(Ipc) if spec.host_ipc == Some(true) => {
                format!("\"{name}\" not allowed with host ipc enabled")
            }
            Some(Net) if spec.host_network == Some(true) => {
                format!("\"{name}\" not allowed with host net enabled")
            }
            Some(_) => return None,
        };
        Some(format!("forbidden sysctl: {why}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn judged(names: &[&str], more: Value) -> Option<String> {
        let sysctls: Vec<_> = names.iter().map(|name| json!({"name": name, "value": "1"})).collect();
        let mut spec = json!({"containers": [], "securityContext": {"sysctls": sysctls}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        forbidden(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn what_is_safe_may_be_set_in_namespaces_of_the_pod() {
        let all: Vec<_> = SAFE.iter().map(|(name, _)| *name).collect();
        assert_eq!(judged(&all, json!({})), None);
        assert_eq!(judged(&["kernel/shm_rmid_forced", "net/ipv4/tcp_rmem"], json!({})), None);
        assert_eq!(judged(&["net.ipv4.tcp_rmem"], json!({"hostIPC": true})), None);
        for (names, more, why) in [
            (vec!["kernel.msgmax"], json!({}), "\"kernel.msgmax\" not allowlisted"),
            (vec!["net.core.somaxconn"], json!({}), "\"net.core.somaxconn\" not allowlisted"),
            (vec!["kernel.core_pattern"], json!({}), "\"kernel.core_pattern\" not allowlisted"),
            (
                vec!["net.ipv4.tcp_rmem", "net/ipv4/conf/eth0.1/forwarding"],
                json!({}),
                "\"net.ipv4.conf.eth0/1.forwarding\" not allowlisted",
            ),
            (
                vec!["kernel.shm_rmid_forced"],
                json!({"hostIPC": true}),
                "\"kernel.shm_rmid_forced\" not allowed with host ipc enabled",
            ),
            (
                vec!["net.ipv4.tcp_rmem"],
                json!({"hostNetwork": true}),
                "\"net.ipv4.tcp_rmem\" not allowed with host net enabled",
            ),
        ] {
            assert_eq!(judged(&names, more), Some(format!("forbidden sysctl: {why}")));
        }
    }

    #[test]
    fn names_may_be_written_with_slashes() {
        for (said, meant) in [
            ("net.ipv4.tcp_rmem", "net.ipv4.tcp_rmem"),
            ("net/ipv4/tcp_rmem", "net.ipv4.tcp_rmem"),
            ("net/ipv4/conf/eth0.1/x", "net.ipv4.conf.eth0/1.x"),
            ("net.ipv4.conf.eth0/1.x", "net.ipv4.conf.eth0/1.x"),
            ("plain", "plain"),
        ] {
            assert_eq!(dotted(said), meant);
        }
    }
}
