//! Packet rules: one nftables table of this network's own, written by `nft` in one transaction.
//!
//! `nft` costs some milliseconds, so it runs when the range is set, when Pods with host ports come and go, and
//! when the node is looked at, not for every Pod. The text is a function of what is desired; loading it replaces what was there.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use coracle_cri::{PortMapping, Protocol};

use super::error::NetError;
use super::range::PodRange;

/// What the table should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Desired<'a> {
    pub(crate) table: &'a str,
    pub(crate) bridge: &'a str,
    pub(crate) range: &'a PodRange,
    pub(crate) masquerade: bool,
    /// Where packets keep their sender: all Pods of the cluster.
    pub(crate) cluster: &'a PodRange,
    /// Ports of the host, and the Pod that each leads to.
    pub(crate) ports: Vec<(IpAddr, PortMapping)>,
}

/// The table as a script for `nft`: made anew in one transaction.
pub(crate) fn script(desired: &Desired<'_>) -> String {
    let Desired { table, bridge, range, masquerade, cluster, ports } = desired;
    let mut text = delete_script(table);
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    line(format!("table ip {table} {{"));
    // Host ports on loopback make the kernel accept loopback addresses on the bridge; Pods must not profit.
    line("chain guard { type filter hook prerouting priority raw; policy accept;".to_owned());
    line(format!("iifname \"{bridge}\" ip daddr 127.0.0.0/8 counter drop"));
    line("}".to_owned());
    line("chain hostports {".to_owned());
    for (pod, port) in ports.iter().filter(|(pod, _)| pod.is_ipv4()) {
        let Some(listen) = listen(port) else { continue };
        let protocol = protocol(port.protocol);
        line(format!("{listen}{protocol} dport {} dnat to {pod}:{}", port.host_port, port.container_port));
    }
    line("}".to_owned());
    for hook in ["prerouting", "output"] {
        // Destination translation; not every version of nft knows the word for it at both hooks.
        line(format!("chain {hook} {{ type nat hook {hook} priority -100; policy accept;"));
        line("fib daddr type local jump hostports".to_owned());
        line("}".to_owned());
    }
    line("chain postrouting { type nat hook postrouting priority srcnat; policy accept;".to_owned());
    if !ports.is_empty() {
        line(format!("oifname \"{bridge}\" ip saddr 127.0.0.0/8 masquerade"));
        // Pods of one bridge answer each other directly: without this, a Pod that came by way of a host port
        // would get the answer from an address that it did not ask.
        line(format!("ct status dnat ip saddr {range} ip daddr {range} masquerade"));
    }
    if *masquerade {
        line(format!("ip saddr {range} ip daddr != {cluster} ip daddr != 224.0.0.0/4 masquerade"));
    }
    line("}".to_owned());
    line("}".to_owned());
    text
}

/// Removes the table; no error if there is none.
pub(crate) fn delete_script(table: &str) -> String {
    format!("table ip {table}\ndelete table ip {table}\n")
}

/// The condition on the destination; `None` for an address of the other family.
fn listen(port: &PortMapping) -> Option<String> {
    match port.host_ip {
        None => Some(String::new()),
        Some(ip) if ip.is_unspecified() && ip.is_ipv4() => Some(String::new()),
        Some(IpAddr::V4(ip)) => Some(format!("ip daddr {ip} ")),
        Some(IpAddr::V6(_)) => None,
    }
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

fn failed(error: std::io::Error) -> NetError {
    NetError::Rules(match error.kind() {
        std::io::ErrorKind::NotFound => "not found: install the package nftables".to_owned(),
        _ => error.to_string(),
    })
}

/// Whether the kernel has the table: reloading a firewall of the host may flush everything.
pub(crate) fn is_loaded(table: &str) -> Result<bool, NetError> {
    let output = Command::new("nft").args(["list", "tables", "ip"]).output().map_err(failed)?;
    if !output.status.success() {
        return Err(NetError::Rules(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let wanted = format!("table ip {table}");
    Ok(String::from_utf8_lossy(&output.stdout).lines().any(|line| line.trim() == wanted))
}

/// Hands a script to `nft`: all of it takes effect, or nothing.
pub(crate) fn apply(script: &str) -> Result<(), NetError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).map_err(failed)?;
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    Err(NetError::Rules(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_is_desired() {
        let range = PodRange::parse("10.42.0.0/24").unwrap();
        let port = |host_ip: Option<&str>, protocol, host_port, container_port| PortMapping {
            protocol,
            container_port,
            host_port,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        };
        let pod: IpAddr = "10.42.0.5".parse().unwrap();
        let text = script(&Desired {
            table: "t",
            bridge: "br",
            range: &range,
            masquerade: true,
            cluster: &PodRange::parse("10.42.0.0/16").unwrap(),
            ports: vec![
                (pod, port(None, Protocol::Tcp, 80, 8080)),
                (pod, port(Some("192.0.2.1"), Protocol::Udp, 53, 5353)),
                (pod, port(Some("0.0.0.0"), Protocol::Sctp, 1, 2)),
                (pod, port(Some("::1"), Protocol::Tcp, 3, 4)),
            ],
        });
        for expected in [
            "tcp dport 80 dnat to 10.42.0.5:8080\n",
            "ip daddr 192.0.2.1 udp dport 53 dnat to 10.42.0.5:5353\n",
            "sctp dport 1 dnat to 10.42.0.5:2\n",
            "ct status dnat ip saddr 10.42.0.0/24 ip daddr 10.42.0.0/24 masquerade\n",
            "ip saddr 10.42.0.0/24 ip daddr != 10.42.0.0/16 ip daddr != 224.0.0.0/4 masquerade\n",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        assert!(!text.contains("dport 3"));
    }
}
