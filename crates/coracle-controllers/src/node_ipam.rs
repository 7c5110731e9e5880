//! Each node's share of the Pod network: `spec.podCIDR`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use coracle_client::request::PatchBody;
use coracle_client::{
    ErrorExt as _, EventRecorder, EventType, Informer, ObjectKey, key_of, reference, request,
};
use coracle_clock::{Clock, select};
use k8s_openapi::api::core::v1::Node;
use kube::{Client, Error};
use serde_json::json;

/// After a failed write the node is looked at again.
const RETRY: Duration = Duration::from_secs(1);

/// A range of addresses; the bits after the prefix are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    v6: bool,
    /// As a number, in the low bits.
    base: u128,
    prefix: u8,
}

/// A text is no range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid CIDR address: {0}")]
pub struct ParseCidrError(String);

impl Cidr {
    fn bits(self) -> u8 {
        if self.v6 { 128 } else { 32 }
    }

    /// How many addresses, less one: the last is `base` plus this.
    fn span(self) -> u128 {
        u128::MAX.checked_shr(u32::from(128 - (self.bits() - self.prefix))).unwrap_or(0)
    }

    /// Whether an address is in both.
    #[must_use]
    pub fn overlaps(self, other: Cidr) -> bool {
        self.v6 == other.v6 && self.base <= other.base + other.span() && other.base <= self.base + self.span()
    }

    /// Its parts of this prefix length, in order; none if it is smaller than that.
    pub fn parts(self, prefix: u8) -> impl Iterator<Item = Cidr> {
        let fits = prefix >= self.prefix && prefix <= self.bits();
        let last = self.base + self.span();
        let first = fits.then_some(Cidr { prefix, ..self });
        std::iter::successors(first, move |part| {
            let next = part.base.checked_add(part.span())?.checked_add(1)?;
            (next <= last).then_some(Cidr { base: next, ..*part })
        })
    }
}

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, ParseCidrError> {
        let error = || ParseCidrError(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(error)?;
        let prefix: u8 = prefix.parse().map_err(|_| error())?;
        let (v6, base) = match address.parse().map_err(|_| error())? {
            IpAddr::V4(address) => (false, u128::from(address.to_bits())),
            IpAddr::V6(address) => (true, address.to_bits()),
        };
        let cidr = Cidr { v6, base, prefix };
        if prefix > cidr.bits() {
            return Err(error());
        }
        Ok(Cidr { base: base & !cidr.span(), ..cidr })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = if self.v6 {
            IpAddr::from(Ipv6Addr::from_bits(self.base))
        } else {
            IpAddr::from(Ipv4Addr::from_bits(u32::try_from(self.base).unwrap_or(u32::MAX)))
        };
        write!(f, "{address}/{}", self.prefix)
    }
}

/// What is to be done about the nodes without a share.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Who gets what.
    pub assign: BTreeMap<String, Cidr>,
    /// For whom nothing is left.
    pub exhausted: BTreeSet<String>,
}

/// Gives each node without a share the lowest free part of `cluster`, in order of names. `promised` is what nodes have
/// been given that may not show it yet.
///
/// A share is free if it touches no share that any node has, wherever that came from.
#[must_use]
pub fn reconcile<'a>(
    nodes: impl IntoIterator<Item = &'a Node>,
    promised: &BTreeMap<String, Cidr>,
    cluster: Cidr,
    node_prefix: u8,
) -> Plan {
    let mut plan = Plan::default();
    let mut taken: BTreeSet<Cidr> = promised.values().copied().collect();
    let mut waiting = BTreeSet::new();
    for node in nodes {
        let shares = shares_of(node);
        if shares.is_empty() {
            waiting.insert(node.metadata.name.clone().unwrap_or_default());
        }
        taken.extend(shares);
    }
    let mut free = cluster.parts(node_prefix).filter(|part| !taken.iter().any(|taken| taken.overlaps(*part)));
    for name in waiting {
        // What was promised and not written yet is written again.
        match promised.get(&name).copied().or_else(|| free.next()) {
            Some(share) => {
                plan.assign.insert(name, share);
            }
            None => {
                plan.exhausted.insert(name);
            }
        }
    }
    plan
}

fn shares_of(node: &Node) -> Vec<Cidr> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let texts = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    texts.filter_map(|text| text.parse().ok()).collect()
}

/// One loop assigns for all nodes, one after the other: that two nodes never get the same is decided here.
pub(crate) async fn run(
    client: Client,
    nodes: Informer<Node>,
    clock: Clock,
    (cluster, node_prefix): (Cidr, u8),
) {
    let recorder = EventRecorder::new(&client, "cidrAllocator", "", clock.clone());
    let mut promised = BTreeMap::new();
    let mut told = BTreeSet::new();
    let mut changes = nodes.subscribe();
    nodes.synced().await;
    loop {
        changes.pending();
        let current = nodes.list();
        // A promise is kept until the node shows a share, or is gone.
        promised
            .retain(|name: &String, _| nodes.get("", name).is_some_and(|node| shares_of(&node).is_empty()));
        let plan = reconcile(current.iter().map(AsRef::as_ref), &promised, cluster, node_prefix);
        let mut retry = false;
        for node in &current {
            let key = key_of(node.as_ref());
            if let Some(share) = plan.assign.get(&key.name) {
                promised.insert(key.name.clone(), *share);
                if let Err(error) = assign(&client, node, &key, *share).await {
                    // A conflict is a change that will be heard of, or has been.
                    if !error.is_conflict() && !error.is_not_found() {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(node = key.name, share = %share, error, "cannot assign");
                    }
                    retry = true;
                }
            } else if plan.exhausted.contains(&key.name) && told.insert(key.name.clone()) {
                let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
                let node = reference(node.as_ref());
                recorder.event(&node, EventType::Normal, "CIDRNotAvailable", message);
            }
        }
        told.retain(|name| plan.exhausted.contains(name));
        select! {
            open = changes.filled() => if !open { return },
            () = clock.sleep(RETRY), if retry => {}
        }
    }
}

/// Sets the share of the node as it was looked at: a node that has changed since is looked at again.
async fn assign(client: &Client, node: &Node, key: &ObjectKey, share: Cidr) -> Result<(), Error> {
    let patch = json!({
        "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
        "spec": {"podCIDR": share.to_string(), "podCIDRs": [share.to_string()]},
    });
    request::patch::<Node>(client, key, &PatchBody::Merge(patch)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(name: &str, share: Option<&str>) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"podCIDR": share, "podCIDRs": share.map(|share| [share])},
        }))
        .unwrap()
    }

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn assigned(nodes: &[Node], cluster: &str) -> Vec<String> {
        let plan = reconcile(nodes, &BTreeMap::new(), cidr(cluster), 24);
        plan.assign.iter().map(|(name, share)| format!("{name}={share}")).collect()
    }

    #[test]
    fn ranges_parse_print_split_and_overlap() {
        for text in ["10.244.0.0/16", "0.0.0.0/0", "10.0.0.1/32", "fd00::/48", "::/0"] {
            assert_eq!(cidr(text).to_string(), text);
        }
        assert_eq!(cidr("10.244.7.9/16").to_string(), "10.244.0.0/16");
        for text in ["10.0.0.0", "10.0.0.0/33", "a/8", "10.0.0.0/-1", "::/129"] {
            assert_eq!(
                text.parse::<Cidr>().unwrap_err().to_string(),
                format!("invalid CIDR address: {text}")
            );
        }
        assert!(cidr("10.0.0.0/8").overlaps(cidr("10.3.0.0/24")));
        assert!(!cidr("10.0.0.0/24").overlaps(cidr("10.0.1.0/24")));
        assert!(!cidr("::/0").overlaps(cidr("0.0.0.0/0")));
        assert_eq!(cidr("10.0.0.0/23").parts(24).count(), 2);
        assert_eq!(cidr("255.255.255.0/24").parts(25).last(), Some(cidr("255.255.255.128/25")));
        assert_eq!(cidr("fd00::/48").parts(64).count(), 65536);
        assert_eq!(cidr("10.0.0.0/25").parts(24).count(), 0);
    }

    #[test]
    fn the_lowest_free_share_goes_to_the_first_name() {
        let nodes = [node("b", None), node("a", None), node("c", Some("10.244.0.0/24"))];
        assert_eq!(assigned(&nodes, "10.244.0.0/16"), ["a=10.244.1.0/24", "b=10.244.2.0/24"]);
    }

    #[test]
    fn shares_from_elsewhere_are_not_given_again() {
        let nodes = [node("a", Some("10.244.0.128/25")), node("b", None), node("c", Some("192.168.0.0/24"))];
        assert_eq!(assigned(&nodes, "10.244.0.0/16"), ["b=10.244.1.0/24"]);
    }

    #[test]
    fn when_nothing_is_left_the_rest_waits() {
        let nodes = [node("a", None), node("b", None), node("c", None)];
        let plan = reconcile(&nodes, &BTreeMap::new(), cidr("10.0.0.0/23"), 24);
        assert_eq!(plan.assign.len(), 2);
        assert_eq!(plan.exhausted, BTreeSet::from(["c".to_owned()]));
    }

    #[test]
    fn a_promise_that_does_not_show_yet_is_kept_and_given_to_no_one_else() {
        let promised = BTreeMap::from([("b".to_owned(), cidr("10.0.0.0/24"))]);
        let nodes = [node("a", None), node("b", None)];
        let plan = reconcile(&nodes, &promised, cidr("10.0.0.0/16"), 24);
        assert_eq!(plan.assign["a"], cidr("10.0.1.0/24"));
        assert_eq!(plan.assign["b"], cidr("10.0.0.0/24"));
    }

    proptest! {
        /// Nodes come and go in any order, writes show late or at once: no two nodes ever have the same share.
        #[test]
        fn no_two_nodes_share(steps in prop::collection::vec((0..8u8, 0..3u8), 1..60)) {
            let cluster = cidr("10.0.0.0/21");
            let mut nodes: BTreeMap<String, Option<Cidr>> = BTreeMap::new();
            let mut promised: BTreeMap<String, Cidr> = BTreeMap::new();
            for (i, action) in steps {
                let name = format!("n{i}");
                match action {
                    0 => { nodes.entry(name).or_insert(None); }
                    1 => { nodes.remove(&name); promised.remove(&name); }
                    _ => if let (Some(share), Some(shown)) = (nodes.get_mut(&name), promised.remove(&name)) {
                        *share = Some(shown);
                    }
                }
                let objects: Vec<_> = nodes.iter()
                    .map(|(name, share)| node(name, share.map(|share| share.to_string()).as_deref()))
                    .collect();
                promised.extend(reconcile(&objects, &promised, cluster, 24).assign);
                let given: Vec<_> = nodes.iter().map(|(name, share)| share.or(promised.get(name).copied())).collect();
                let distinct: BTreeSet<_> = given.iter().flatten().collect();
                prop_assert_eq!(distinct.len(), given.len());
            }
        }
    }
}
