//! Texts of the files that a Pod sees: hosts, and what goes into `resolv.conf`.

use std::fmt::Write as _;
use std::net::IpAddr;

use coracle_cri::DnsConfig;
use k8s_openapi::api::core::v1::{HostAlias, PodSpec};

const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;
const MAX_DOMAIN_CHARS: usize = 253;

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

/// The Pod's DNS configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodDns {
    /// What the runtime is given.
    pub config: DnsConfig,
    /// The Pod asked for the cluster's DNS, and there is none.
    pub missing_cluster_dns: bool,
    /// What had to be left out: texts of `DNSConfigForming`.
    pub cut: Vec<String>,
}

/// Makes the Pod's DNS configuration of its policy, its own settings, and those of the node.
#[must_use]
pub fn pod_dns(spec: &PodSpec, namespace: &str, node: &DnsConfig, cluster: ClusterDns<'_>) -> PodDns {
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
            unique(&mut searches);
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
        unique(&mut dns.servers);
        dns.searches.extend(own.searches.iter().flatten().cloned());
        unique(&mut dns.searches);
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            let text = match option.value.as_deref().filter(|value| !value.is_empty()) {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            };
            match dns.options.iter_mut().find(|o| o.split(':').next() == Some(name.as_str())) {
                Some(earlier) => *earlier = text,
                None => dns.options.push(text),
            }
        }
    }
    let cut = limit(&mut dns);
    PodDns { config: dns, missing_cluster_dns: wants_cluster && cluster.servers.is_empty(), cut }
}

fn unique(list: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    list.retain(|item| seen.insert(item.clone()));
}

/// Cuts what resolvers cannot take, and says so.
fn limit(dns: &mut DnsConfig) -> Vec<String> {
    let mut cut = Vec::new();
    if dns.servers.len() > MAX_NAMESERVERS {
        dns.servers.truncate(MAX_NAMESERVERS);
        cut.push(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            dns.servers.join(" ")
        ));
    }
    let searches = dns.searches.len();
    dns.searches.truncate(MAX_SEARCHES);
    // Some resolvers end their program when a domain is longer.
    dns.searches.retain(|search| search.len() <= MAX_DOMAIN_CHARS);
    while dns.searches.join(" ").len() > MAX_SEARCH_CHARS {
        dns.searches.pop();
    }
    if dns.searches.len() < searches {
        cut.push(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            dns.searches.join(" ")
        ));
    }
    cut
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

        let dns = |value: serde_json::Value, cluster| pod_dns(&spec(value), "ns", &node, cluster);
        let first = dns(json!({"containers": []}), cluster);
        assert_eq!(first.config.servers, ["10.96.0.10"]);
        assert_eq!(
            first.config.searches,
            ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "lan", "home"]
        );
        assert_eq!((first.config.options, first.missing_cluster_dns), (vec!["ndots:5".to_owned()], false));

        let missing = dns(json!({"containers": []}), none);
        assert_eq!((&missing.config, missing.missing_cluster_dns), (&node, true));
        // In the node's network, ClusterFirst is Default; who means it says ClusterFirstWithHostNet.
        for (policy, servers, missing) in [
            ("ClusterFirst", "9.9.9.9", false),
            ("Default", "9.9.9.9", false),
            ("ClusterFirstWithHostNet", "10.96.0.10", true),
        ] {
            let of = json!({"containers": [], "hostNetwork": true, "dnsPolicy": policy});
            assert_eq!(dns(of.clone(), cluster).config.servers, [servers], "{policy}");
            assert_eq!(dns(of, none).missing_cluster_dns, missing, "{policy}");
        }
        assert_eq!(dns(json!({"containers": [], "dnsPolicy": "Default"}), cluster).config, node);
        let own = json!({"nameservers": ["1.1.1.1"], "searches": ["x"], "options": [{"name": "ndots", "value": "1"}]});
        let only = dns(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": own}), cluster).config;
        assert_eq!(
            (only.servers, only.searches, only.options),
            (vec!["1.1.1.1".to_owned()], vec!["x".to_owned()], vec!["ndots:1".to_owned()])
        );
        let more = json!({"nameservers": ["9.9.9.9", "1.1.1.1"], "searches": ["home", "x"], "options": [
            {"name": "ndots", "value": "9"}, {"name": "trust-ad"}]});
        let merged =
            dns(json!({"containers": [], "dnsPolicy": "Default", "dnsConfig": more}), cluster).config;
        assert_eq!(merged.servers, ["9.9.9.9", "1.1.1.1"]);
        assert_eq!(merged.searches, ["lan", "home", "x"]);
        assert_eq!(merged.options, ["ndots:9", "edns0", "trust-ad"]);
    }

    #[test]
    fn what_resolvers_cannot_take_is_left_out_and_told() {
        let none = ClusterDns { servers: &[], domain: "cluster.local" };
        let dns = |config: serde_json::Value| {
            let spec = spec(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": config}));
            pod_dns(&spec, "ns", &DnsConfig::default(), none)
        };
        let servers = dns(json!({"nameservers": ["1.0.0.1", "1.0.0.2", "1.0.0.3", "1.0.0.4"]}));
        assert_eq!(servers.config.servers.len(), 3);
        assert_eq!(
            servers.cut,
            [
                "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: 1.0.0.1 \
              1.0.0.2 1.0.0.3"
            ]
        );
        let names: Vec<_> = (0..33).map(|n| format!("d{n}")).collect();
        let many = dns(json!({ "searches": names }));
        assert_eq!((many.config.searches.len(), many.cut.len()), (32, 1));
        assert!(many.cut[0].starts_with(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: d0 d1 "
        ));
        let long = dns(json!({"searches": ["a", "x".repeat(254), "b"]}));
        assert_eq!((long.config.searches, long.cut.len()), (vec!["a".to_owned(), "b".to_owned()], 1));
        // Ten of 200 characters and the blanks between them are 2009 characters.
        let wide: Vec<_> = (0..11).map(|n| format!("{n:0>200}")).collect();
        let wide = dns(json!({ "searches": wide }));
        assert_eq!((wide.config.searches.len(), wide.cut.len()), (10, 1));
        assert_eq!(dns(json!({"searches": ["a"]})).cut, Vec::<String>::new());
    }
}
