//! Into which slices endpoints go, with as few writes as can be.
//!
//! An endpoint stays in the slice that it is in. New ones fill slices that have room, then new slices; a slice that is
//! left with nothing takes what another would be made for, or goes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use crate::workload::status::difference;

/// Endpoints with the same ports, of one family of addresses.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Sorted by name.
    pub ports: Vec<EndpointPort>,
    /// Without order.
    pub endpoints: Vec<Endpoint>,
}

/// What all slices of one owner say of it.
#[derive(Debug, Clone)]
pub struct Common {
    /// Where they are.
    pub namespace: Option<String>,
    /// What their names begin with.
    pub generate_name: String,
    /// All of their labels.
    pub labels: BTreeMap<String, String>,
    /// What they go with.
    pub owner: OwnerReference,
}

/// What is to be written.
#[derive(Debug, Default)]
pub struct Plan {
    /// New slices.
    pub create: Vec<EndpointSlice>,
    /// Slices and what becomes of them.
    pub update: Vec<(Arc<EndpointSlice>, EndpointSlice)>,
    /// Slices that go.
    pub delete: Vec<Arc<EndpointSlice>>,
}

/// What tells endpoints apart.
type Identity = (Vec<String>, Option<String>);

fn identity(endpoint: &Endpoint) -> Identity {
    (endpoint.addresses.clone(), endpoint.target_ref.as_ref().and_then(|target| target.uid.clone()))
}

/// Puts `groups` into slices of at most `limit` endpoints. A group without endpoints is one slice that says so.
#[must_use]
pub fn place(existing: &[Arc<EndpointSlice>], groups: Vec<Group>, common: &Common, limit: usize) -> Plan {
    let mut spare: Vec<Arc<EndpointSlice>> =
        existing.iter().filter(|slice| slice.metadata.deletion_timestamp.is_none()).cloned().collect();
    spare.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut plan = Plan::default();
    let mut missing = Vec::new();
    for group in groups {
        let (own, others) = spare.into_iter().partition(|slice| is_of(slice, &group));
        spare = others;
        fill(own, group, common, limit, &mut plan, &mut missing, &mut spare);
    }
    for slice in missing {
        // Another's name is as good as a new one.
        match spare.iter().position(|spare| spare.address_type == slice.address_type) {
            Some(at) => {
                let taken = spare.remove(at);
                plan.update.push((taken, slice));
            }
            None => plan.create.push(slice),
        }
    }
    plan.delete = spare;
    plan.update.retain(|(current, new)| change(current, new).is_some());
    plan
}

fn is_of(slice: &EndpointSlice, group: &Group) -> bool {
    let mut ports = slice.ports.clone().unwrap_or_default();
    sort_ports(&mut ports);
    slice.address_type == group.family && ports == group.ports
}

/// The order in which ports are compared.
pub(super) fn sort_ports(ports: &mut [EndpointPort]) {
    ports.sort_by(|a, b| (&a.name, a.port, &a.protocol).cmp(&(&b.name, b.port, &b.protocol)));
}

fn fill(
    own: Vec<Arc<EndpointSlice>>,
    group: Group,
    common: &Common,
    limit: usize,
    plan: &mut Plan,
    missing: &mut Vec<EndpointSlice>,
    spare: &mut Vec<Arc<EndpointSlice>>,
) {
    let slice = |endpoints: Vec<Endpoint>| EndpointSlice {
        metadata: ObjectMeta {
            namespace: common.namespace.clone(),
            generate_name: Some(common.generate_name.clone()),
            labels: Some(common.labels.clone()),
            owner_references: Some(vec![common.owner.clone()]),
            ..ObjectMeta::default()
        },
        address_type: group.family.clone(),
        endpoints: Some(endpoints),
        ports: Some(group.ports.clone()),
    };
    if group.endpoints.is_empty() {
        let mut own = own.into_iter();
        match own.next() {
            Some(first) => plan.update.push((first, slice(Vec::new()))),
            None => missing.push(slice(Vec::new())),
        }
        spare.extend(own);
        return;
    }
    let mut wanted: BTreeMap<Identity, Endpoint> =
        group.endpoints.iter().map(|endpoint| (identity(endpoint), endpoint.clone())).collect();
    let mut kept: Vec<(Arc<EndpointSlice>, Vec<Endpoint>, bool)> = own
        .into_iter()
        .map(|current| {
            let before = current.endpoints.clone().unwrap_or_default();
            let stay: Vec<Endpoint> = before.iter().filter_map(|old| wanted.remove(&identity(old))).collect();
            let changed = stay != before;
            (current, stay, changed)
        })
        .collect();
    let mut new: Vec<Endpoint> = wanted.into_values().collect();
    new.sort_by_cached_key(|endpoint| {
        let first = endpoint.addresses.first();
        (first.and_then(|first| first.parse::<IpAddr>().ok()), identity(endpoint))
    });
    let mut new = new.into_iter().peekable();
    // Slices that are written anyway come first, then those that are nearly full.
    kept.sort_by_key(|(current, stay, changed)| {
        (!changed, limit.saturating_sub(stay.len()), current.metadata.name.clone())
    });
    for (_, stay, _) in &mut kept {
        if !stay.is_empty() {
            let room = limit.saturating_sub(stay.len());
            stay.extend(new.by_ref().take(room));
        }
    }
    for (current, stay, _) in kept {
        if !stay.is_empty() {
            plan.update.push((current, slice(stay)));
            continue;
        }
        let refilled: Vec<Endpoint> = new.by_ref().take(limit).collect();
        if refilled.is_empty() {
            spare.push(current);
        } else {
            plan.update.push((current, slice(refilled)));
        }
    }
    while new.peek().is_some() {
        missing.push(slice(new.by_ref().take(limit).collect()));
    }
}

/// A merge patch that makes `current` say what `new` says; `None` if it does.
#[must_use]
pub fn change(current: &EndpointSlice, new: &EndpointSlice) -> Option<Value> {
    let labels = |slice: &EndpointSlice| {
        let labels = slice.metadata.labels.clone().unwrap_or_default();
        serde_json::Map::from_iter([("labels".to_owned(), json!(labels))])
    };
    let said = |slice: &EndpointSlice| {
        json!({ "endpoints": slice.endpoints.clone().unwrap_or_default(),
                "ports": slice.ports.clone().unwrap_or_default() })
    };
    let mut metadata = difference(&labels(current), &labels(new));
    let owners = |slice: &EndpointSlice| slice.metadata.owner_references.clone().unwrap_or_default();
    if owners(current) != owners(new) {
        metadata.insert("ownerReferences".to_owned(), json!(owners(new)));
    }
    let (is, wanted) = (said(current), said(new));
    if metadata.is_empty() && is == wanted {
        return None;
    }
    metadata.insert("uid".to_owned(), json!(current.metadata.uid));
    metadata.insert("resourceVersion".to_owned(), json!(current.metadata.resource_version));
    let mut patch = json!({ "metadata": metadata });
    for part in ["endpoints", "ports"] {
        if is[part] != wanted[part] {
            patch[part] = wanted[part].clone();
        }
    }
    Some(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(n: usize) -> Endpoint {
        Endpoint { addresses: vec![format!("10.0.{}.{}", n / 250, n % 250 + 1)], ..Endpoint::default() }
    }

    fn group(port: i32, endpoints: impl IntoIterator<Item = usize>) -> Group {
        let port = EndpointPort { port: Some(port), ..EndpointPort::default() };
        Group {
            family: "IPv4".to_owned(),
            ports: vec![port],
            endpoints: endpoints.into_iter().map(endpoint).collect(),
        }
    }

    fn common() -> Common {
        Common {
            namespace: Some("ns".to_owned()),
            generate_name: "web-".to_owned(),
            labels: BTreeMap::from([("kubernetes.io/service-name".to_owned(), "web".to_owned())]),
            owner: OwnerReference { name: "web".to_owned(), ..OwnerReference::default() },
        }
    }

    /// Carries out a plan as the API server does. How many writes that were.
    fn apply(slices: &mut Vec<Arc<EndpointSlice>>, groups: Vec<Group>, names: &mut usize) -> usize {
        let plan = place(slices, groups, &common(), 100);
        let writes = plan.create.len() + plan.update.len() + plan.delete.len();
        slices.retain(|slice| !plan.delete.contains(slice));
        for (old, mut new) in plan.update {
            new.metadata.name.clone_from(&old.metadata.name);
            let at = slices.iter().position(|slice| *slice == old).unwrap();
            slices[at] = Arc::new(new);
        }
        for mut new in plan.create {
            *names += 1;
            new.metadata.name = Some(format!("web-{names}"));
            slices.push(Arc::new(new));
        }
        writes
    }

    fn sizes(slices: &[Arc<EndpointSlice>]) -> Vec<(String, usize)> {
        let size = |slice: &Arc<EndpointSlice>| slice.endpoints.as_ref().map_or(0, Vec::len);
        slices.iter().map(|slice| (slice.metadata.name.clone().unwrap(), size(slice))).collect()
    }

    fn named(sizes: &[(&str, usize)]) -> Vec<(String, usize)> {
        sizes.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect()
    }

    #[test]
    fn endpoints_stay_where_they_are_and_new_ones_fill_what_has_room() {
        let (mut slices, mut names) = (Vec::new(), 0);
        let empty = Group { ports: Vec::new(), ..group(80, []) };
        assert_eq!(apply(&mut slices, vec![empty.clone()], &mut names), 1);
        assert_eq!(sizes(&slices), named(&[("web-1", 0)]));
        assert_eq!(apply(&mut slices, vec![empty.clone()], &mut names), 0, "one that says so is enough");
        // The slice that says nothing is taken for the first Pods.
        assert_eq!(apply(&mut slices, vec![group(80, 0..2)], &mut names), 1);
        assert_eq!(sizes(&slices), named(&[("web-1", 2)]));
        assert_eq!(apply(&mut slices, vec![group(80, 0..250)], &mut names), 3);
        assert_eq!(sizes(&slices), named(&[("web-1", 100), ("web-2", 100), ("web-3", 50)]));
        assert_eq!(apply(&mut slices, vec![group(80, 0..250)], &mut names), 0);
        // One goes and one comes: only one slice is written.
        assert_eq!(apply(&mut slices, vec![group(80, (1..250).chain([300]))], &mut names), 1);
        assert_eq!(sizes(&slices), named(&[("web-1", 100), ("web-2", 100), ("web-3", 50)]));
        assert_eq!(apply(&mut slices, vec![group(80, 1..3)], &mut names), 3);
        assert_eq!(sizes(&slices), named(&[("web-1", 2)]));
        assert_eq!(apply(&mut slices, vec![empty], &mut names), 1);
        assert_eq!(sizes(&slices), named(&[("web-1", 0)]));
        assert_eq!(apply(&mut slices, Vec::new(), &mut names), 1);
        assert_eq!(sizes(&slices), []);
    }

    #[test]
    fn other_ports_are_another_slice() {
        let (mut slices, mut names) = (Vec::new(), 0);
        assert_eq!(apply(&mut slices, vec![group(80, 0..3), group(81, 3..5)], &mut names), 2);
        assert_eq!(sizes(&slices), named(&[("web-1", 3), ("web-2", 2)]));
        // All have other ports now: the slices are used again.
        assert_eq!(apply(&mut slices, vec![group(90, 0..5)], &mut names), 2);
        assert_eq!(sizes(&slices), named(&[("web-1", 5)]));
    }

    #[test]
    fn an_endpoint_that_changes_changes_in_its_place() {
        let (mut slices, mut names) = (Vec::new(), 0);
        apply(&mut slices, vec![group(80, 0..150)], &mut names);
        let mut changed = group(80, 0..150);
        changed.endpoints[120].zone = Some("z".to_owned());
        let plan = place(&slices, vec![changed], &common(), 100);
        assert_eq!((plan.create.len(), plan.update.len(), plan.delete.len()), (0, 1, 0));
        let patch = change(&plan.update[0].0, &plan.update[0].1).unwrap();
        assert_eq!(patch.get("ports"), None);
        let mut relabelled = common();
        relabelled.labels.insert("team".to_owned(), "a".to_owned());
        assert_eq!(place(&slices, vec![group(80, 0..150)], &relabelled, 100).update.len(), 2);
    }
}
