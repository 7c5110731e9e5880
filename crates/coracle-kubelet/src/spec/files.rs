//! Texts of the files that a Pod sees: hosts, and what goes into `resolv.conf`.

use std::fmt::Write as _;
use std::net::IpAddr;

use coracle_cri::DnsConfig;
use k8s_openapi::api::core::v1::{HostAlias, PodSpec};

const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

/// The hosts file of a Pod with addresses of its own. `fqdn` is set when the Pod has a subdomain.
#[must_use]
pub fn hosts(pod_ips: &[String], hostname: &str, fqdn: Option<&str>, aliases: &[HostAlias]) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    for ip in pod_ips {
        let _ = match fqdn {
            Some(fqdn) => writeln!(text, "{ip}\t{fqdn}\t{hostname}"),
            None => writeln!(text, "{ip}\t{hostname}"),
        };
    }
    text + &host_aliases(aliases)
}

/// The hosts file of a Pod on the node's network.
#[must_use]
pub fn host_network_hosts(node_file: &str, aliases: &[HostAlias]) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{node_file}{}", host_aliases(aliases))
}

fn host_aliases(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let _ = writeln!(text, "{}\t{}", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t"));
    }
    text
}

/// Reads a `resolv.conf`.
#[must_use]
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            // As in the resolver, the last line of these wins.
            Some("search") => dns.searches = words.map(|w| w.trim_end_matches('.').to_owned()).collect(),
            Some("options") => dns.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    dns
}

/// What the cluster knows about DNS.
#[derive(Debug, Clone, Copy)]
pub struct ClusterDns<'a> {
    /// Addresses of the DNS service; empty if there is none.
    pub servers: &'a [IpAddr],
    /// The cluster's domain.
    pub domain: &'a str,
}

/// The Pod's DNS configuration, and whether it had to do without the cluster's DNS although it asked for it.
#[must_use]
pub fn pod_dns(
    spec: &PodSpec,
    namespace: &str,
    node: &DnsConfig,
    cluster: ClusterDns<'_>,
) -> (DnsConfig, bool) {
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let host_network = spec.host_network == Some(true);
    let wants_cluster = policy == "ClusterFirstWithHostNet" || (policy == "ClusterFirst" && !host_network);
    let mut dns = match policy {
        "None" => DnsConfig::default(),
        _ if wants_cluster && !cluster.servers.is_empty() => {
            let domain = cluster.domain;
            let mut searches =
                vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
            searches.extend(node.searches.iter().cloned());
            DnsConfig {
                servers: cluster.servers.iter().map(ToString::to_string).collect(),
                searches,
                options: vec!["ndots:5".to_owned()],
            }
        }
        _ => node.clone(),
    };
    if let Some(own) = &spec.dns_config {
        dns.servers.extend(own.nameservers.iter().flatten().cloned());
        dns.searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            dns.options.retain(|o| o.split(':').next() != Some(name.as_str()));
            dns.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name,
            });
        }
    }
    limit(&mut dns);
    (dns, wants_cluster && cluster.servers.is_empty())
}

fn limit(dns: &mut DnsConfig) {
    let unique = |list: &mut Vec<String>| {
        let mut seen = std::collections::BTreeSet::new();
        list.retain(|item| seen.insert(item.clone()));
    };
    unique(&mut dns.servers);
    unique(&mut dns.searches);
    dns.servers.truncate(MAX_NAMESERVERS);
    dns.searches.truncate(MAX_SEARCHES);
    while dns.searches.iter().map(|s| s.len() + 1).sum::<usize>() > MAX_SEARCH_CHARS + 1 {
        dns.searches.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_hosts_file_names_the_pod_and_its_aliases() {
        let aliases = [HostAlias { ip: "1.2.3.4".into(), hostnames: Some(vec!["a".into(), "b".into()]) }];
        let text = hosts(&["10.0.0.5".to_owned()], "web", Some("web.sub.ns.svc.cluster.local"), &aliases);
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with(
            "10.0.0.5\tweb.sub.ns.svc.cluster.local\tweb\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"
        ));
    }

    fn spec(value: serde_json::Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn dns_policies() {
        let node = parse_resolv_conf(
            "nameserver 9.9.9.9\nsearch old\nsearch lan. home\noptions ndots:2 edns0\n# x\n",
        );
        assert_eq!(node.searches, ["lan", "home"]);
        let servers = ["10.96.0.10".parse().unwrap()];
        let cluster = ClusterDns { servers: &servers, domain: "cluster.local" };
        let none = ClusterDns { servers: &[], domain: "cluster.local" };

        let (dns, missing) = pod_dns(&spec(json!({"containers": []})), "ns", &node, cluster);
        assert_eq!(dns.servers, ["10.96.0.10"]);
        assert_eq!(
            dns.searches,
            ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "lan", "home"]
        );
        assert_eq!((dns.options, missing), (vec!["ndots:5".to_owned()], false));

        assert_eq!(pod_dns(&spec(json!({"containers": []})), "ns", &node, none), (node.clone(), true));
        let host = spec(json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirst"}));
        assert_eq!(pod_dns(&host, "ns", &node, none), (node.clone(), false));
        let own = spec(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
            "nameservers": ["1.1.1.1"], "searches": ["x"], "options": [{"name": "ndots", "value": "1"}]}}));
        let (dns, _) = pod_dns(&own, "ns", &node, cluster);
        assert_eq!(
            (dns.servers, dns.searches, dns.options),
            (vec!["1.1.1.1".to_owned()], vec!["x".to_owned()], vec!["ndots:1".to_owned()])
        );
    }
}
