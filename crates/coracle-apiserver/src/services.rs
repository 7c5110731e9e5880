//! Addresses and node ports of Services.
//!
//! What is taken is a key of its own, put and removed in the same transaction as the Service: two Services never
//! get one address, however many servers write, and none is ever leaked or repaired.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use bytes::Bytes;
use coracle_api::Value;
use coracle_api::catalogue::Resource;
use coracle_api::field::{FieldError, Path};
use coracle_api::metadata;
use coracle_api::status::Status;
use coracle_store::{Compare, ListRequest, Op, Revision};
use serde_json::json;

use crate::server::{Core, store_failed};
use crate::write::Along;

const IPS: &str = "/registry/ranges/serviceips/";
const PORTS: &str = "/registry/ranges/servicenodeports/";
/// Node ports, as upstream's default.
const PORT_RANGE: std::ops::RangeInclusive<i64> = 30000..=32767;

/// A range of IPv4 addresses for Services, such as `10.43.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceRange {
    base: u32,
    prefix: u32,
}

/// A text that is no range for Services.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a range of IPv4 addresses with a prefix between 12 and 28 bits, such as 10.43.0.0/16")]
pub struct BadRange(String);

impl Default for ServiceRange {
    fn default() -> Self {
        ServiceRange { base: u32::from(Ipv4Addr::new(10, 43, 0, 0)), prefix: 16 }
    }
}

impl FromStr for ServiceRange {
    type Err = BadRange;

    fn from_str(text: &str) -> Result<Self, BadRange> {
        let bad = || BadRange(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let base = u32::from(address.parse::<Ipv4Addr>().map_err(|_| bad())?);
        let prefix: u32 = prefix.parse().map_err(|_| bad())?;
        let range = ServiceRange { base, prefix };
        if (12..=28).contains(&prefix) && base & (range.size() - 1) == 0 { Ok(range) } else { Err(bad()) }
    }
}

impl fmt::Display for ServiceRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

impl ServiceRange {
    fn size(&self) -> u32 {
        1 << (32 - self.prefix)
    }

    /// The address of the Service `kubernetes`.
    #[must_use]
    pub fn first(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1)
    }

    /// Whether a Service may have this address: any of the range but the network's and the broadcast address.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let address = u32::from(address);
        address > self.base && address < self.base + self.size() - 1
    }

    /// The first free address at or after the `start`-th, all around the range. The first address is kept for
    /// the Service `kubernetes`.
    fn pick(&self, start: u32, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        let count = self.size() - 3;
        (0..count)
            .map(|offset| Ipv4Addr::from(self.base + 2 + (start % count + offset) % count))
            .find(|address| !taken.contains(address))
    }
}

/// What a Service holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Held {
    ip: Option<Ipv4Addr>,
    ports: BTreeSet<(i64, String)>,
}

fn text<'a>(service: &'a Value, pointer: &str) -> &'a str {
    service.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn is_external_name(service: &Value) -> bool {
    text(service, "/spec/type") == "ExternalName"
}

fn wants_node_ports(service: &Value) -> bool {
    match text(service, "/spec/type") {
        "NodePort" => true,
        "LoadBalancer" => {
            service.pointer("/spec/allocateLoadBalancerNodePorts").and_then(Value::as_bool) != Some(false)
        }
        _ => false,
    }
}

fn protocol(port: &Value) -> String {
    port.get("protocol").and_then(Value::as_str).unwrap_or("TCP").to_owned()
}

fn held(service: &Value) -> Held {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
    let mut held = Held {
        ip: text(service, "/spec/clusterIP").parse().ok(),
        ports: ports
            .filter_map(|port| Some((port.get("nodePort")?.as_i64()?, protocol(port))))
            .filter(|(port, _)| *port != 0)
            .collect(),
    };
    if let Some(port) =
        service.pointer("/spec/healthCheckNodePort").and_then(Value::as_i64).filter(|p| *p != 0)
    {
        held.ports.insert((port, "TCP".to_owned()));
    }
    held
}

fn keys(held: &Held) -> BTreeSet<String> {
    let ports = held.ports.iter().map(|(port, protocol)| format!("{PORTS}{port}/{protocol}"));
    held.ip.iter().map(|ip| format!("{IPS}{ip}")).chain(ports).collect()
}

fn is_service(row: &Resource) -> bool {
    row.group.is_empty() && row.plural == "services"
}

impl Core {
    /// Gives a Service its address and node ports, and adds to `along` what takes and frees them.
    pub(crate) async fn allocate(
        &self,
        row: &Resource,
        new: &mut Value,
        old: Option<&Value>,
        along: &mut Along,
    ) -> Result<(), Status> {
        if !is_service(row) {
            return Ok(());
        }
        let before = old.map(held).unwrap_or_default();
        let invalid = |error: FieldError| Status::invalid("", "Service", metadata::name(new), &[error]);
        let spec_path = Path::new("spec");
        let headless = text(new, "/spec/clusterIP") == "None"
            || new.pointer("/spec/clusterIPs/0").and_then(Value::as_str) == Some("None");
        let address = if is_external_name(new) || headless {
            None
        } else {
            let first = new.pointer("/spec/clusterIPs/0").and_then(Value::as_str).unwrap_or_default();
            let asked = match text(new, "/spec/clusterIP") {
                "" => first,
                ip => ip,
            };
            let taken: BTreeSet<Ipv4Addr> =
                self.taken(IPS).await?.iter().filter_map(|name| name.parse().ok()).collect();
            Some(match (asked, before.ip) {
                ("", Some(ip)) => ip,
                ("", None) => {
                    let start = u32::from_str_radix(&self.ids.uid()[..8], 16).unwrap_or_default();
                    self.config
                        .service_range
                        .pick(start, &taken)
                        .ok_or_else(|| Status::internal("failed to allocate a serviceIP: range is full"))?
                }
                (asked, _) => {
                    let path = spec_path.child("clusterIPs");
                    let refuse = |why: String| {
                        let why = format!("failed to allocate IP {asked}: {why}");
                        Err(invalid(FieldError::invalid(&path, json!([asked]), why)))
                    };
                    match asked.parse::<Ipv4Addr>() {
                        Ok(ip) if Some(ip) == before.ip => ip,
                        Ok(ip) if !self.config.service_range.contains(ip) => {
                            return refuse(format!(
                                "the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}",
                                self.config.service_range
                            ));
                        }
                        Ok(ip) if taken.contains(&ip) => {
                            return refuse("provided IP is already allocated".to_owned());
                        }
                        Ok(ip) => ip,
                        Err(_) => return refuse("not a valid IPv4 address".to_owned()),
                    }
                }
            })
        };
        let any = wants_node_ports(new) || !held(new).ports.is_empty();
        let taken_ports = if any { self.taken(PORTS).await? } else { BTreeSet::new() };
        let seed = i64::from(u16::from_str_radix(&self.ids.uid()[..4], 16).unwrap_or_default());
        write_address(new, address, headless);
        give_ports(new, old, &before, &taken_ports, seed)
            .map_err(|error| Status::invalid("", "Service", metadata::name(new), &[*error]))?;
        let after = keys(&held(new));
        let before = keys(&before);
        let owner = Bytes::from(format!("{}/{}", metadata::namespace(new), metadata::name(new)));
        for key in after.difference(&before) {
            let key = Bytes::from(key.clone());
            along.compares.push(Compare { key: key.clone(), mod_revision: Revision(0) });
            along.ops.push(Op::Put { key, value: owner.clone() });
        }
        for key in before.difference(&after) {
            along.ops.push(Op::Delete { key: Bytes::from(key.clone()) });
        }
        Ok(())
    }

    /// Adds to `along` what frees all that a Service holds.
    pub(crate) fn release(&self, row: &Resource, object: &Value, along: &mut Along) {
        if is_service(row) {
            let keys = keys(&held(object)).into_iter();
            // What the same transaction was about to take is not taken.
            along.compares.clear();
            along.ops = keys.map(|key| Op::Delete { key: Bytes::from(key) }).collect();
        }
    }

    /// What is taken below `prefix`.
    async fn taken(&self, prefix: &'static str) -> Result<BTreeSet<String>, Status> {
        let request = ListRequest { prefix: Bytes::from_static(prefix.as_bytes()), ..ListRequest::default() };
        let page = self.store.list(&request).await.map_err(|error| store_failed(&error))?;
        let name = |key: &Bytes| String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
        Ok(page.items.iter().map(|kv| name(&kv.key)).collect())
    }
}

fn write_address(service: &mut Value, address: Option<Ipv4Addr>, headless: bool) {
    let external = is_external_name(service);
    let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let shown = match (address, headless) {
        (Some(ip), _) => ip.to_string(),
        (None, true) => "None".to_owned(),
        (None, false) => String::new(),
    };
    if shown.is_empty() || external {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.shift_remove(field);
        }
        return;
    }
    spec.insert("clusterIP".to_owned(), shown.as_str().into());
    spec.insert("clusterIPs".to_owned(), json!([shown]));
    spec.entry("ipFamilies").or_insert_with(|| json!(["IPv4"]));
    spec.entry("ipFamilyPolicy").or_insert_with(|| "SingleStack".into());
}

/// Gives out node ports.
struct NodePorts<'a> {
    before: &'a Held,
    /// `PORT/PROTOCOL` of every Service.
    taken: &'a BTreeSet<String>,
    /// Ports that this Service asks for or has been given by now.
    chosen: BTreeSet<i64>,
    seed: i64,
}

impl NodePorts<'_> {
    fn check(&self, path: &Path, asked: i64, protocol: &str) -> Result<(), Box<FieldError>> {
        let why = if self.before.ports.contains(&(asked, protocol.to_owned())) {
            return Ok(());
        } else if !PORT_RANGE.contains(&asked) {
            "provided port is not in the valid range. The range of valid ports is 30000-32767"
        } else if self.taken.contains(&format!("{asked}/{protocol}")) {
            "provided port is already allocated"
        } else {
            return Ok(());
        };
        Err(Box::new(FieldError::invalid(path, asked, why)))
    }

    fn pick(&mut self, path: &Path) -> Result<i64, Box<FieldError>> {
        let used: BTreeSet<i64> =
            self.taken.iter().filter_map(|name| name.split('/').next()?.parse().ok()).collect();
        let count = PORT_RANGE.end() - PORT_RANGE.start() + 1;
        let free = (0..count)
            .map(|offset| PORT_RANGE.start() + (self.seed + offset).rem_euclid(count))
            .find(|port| !self.chosen.contains(port) && !used.contains(port))
            .ok_or_else(|| FieldError::internal(path, "failed to allocate a nodePort: range is full"))?;
        self.chosen.insert(free);
        Ok(free)
    }
}

fn give_ports(
    service: &mut Value,
    old: Option<&Value>,
    before: &Held,
    taken: &BTreeSet<String>,
    seed: i64,
) -> Result<(), Box<FieldError>> {
    let wanted = wants_node_ports(service);
    let wants_health_check = text(service, "/spec/type") == "LoadBalancer"
        && text(service, "/spec/externalTrafficPolicy") == "Local";
    let chosen = held(service).ports.into_iter().map(|(port, _)| port).collect();
    let mut node_ports = NodePorts { before, taken, chosen, seed };
    let number =
        |port: &Value, field: &str| port.get(field).and_then(Value::as_i64).filter(|port| *port != 0);
    let spec = Path::new("spec");
    let ports = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
    for (index, port) in ports.into_iter().flatten().enumerate() {
        let path = spec.child("ports").index(index).child("nodePort");
        let protocol = protocol(port);
        // An update that leaves the node port out keeps it.
        let kept = old
            .and_then(|old| old.pointer("/spec/ports")?.as_array())
            .into_iter()
            .flatten()
            .find(|was| was.get("port") == port.get("port") && self::protocol(was) == protocol)
            .and_then(|was| number(was, "nodePort"))
            .filter(|port| !node_ports.chosen.contains(port));
        match (number(port, "nodePort"), kept) {
            (Some(asked), _) => node_ports.check(&path, asked, &protocol)?,
            (None, Some(kept)) if wanted => {
                node_ports.chosen.insert(kept);
                port["nodePort"] = kept.into();
            }
            (None, _) if wanted => port["nodePort"] = node_ports.pick(&path)?.into(),
            (None, _) => {}
        }
    }
    if wants_health_check && let Some(spec_value) = service.get_mut("spec") {
        let path = spec.child("healthCheckNodePort");
        let kept = old.and_then(|old| number(old.get("spec")?, "healthCheckNodePort"));
        match number(spec_value, "healthCheckNodePort").or(kept) {
            Some(asked) => {
                node_ports.check(&path, asked, "TCP")?;
                spec_value["healthCheckNodePort"] = asked.into();
            }
            None => spec_value["healthCheckNodePort"] = node_ports.pick(&path)?.into(),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_parse_and_count() {
        let range: ServiceRange = "10.43.0.0/16".parse().unwrap();
        assert_eq!(range, ServiceRange::default());
        assert_eq!(range.first(), Ipv4Addr::new(10, 43, 0, 1));
        assert!(range.contains(Ipv4Addr::new(10, 43, 255, 254)));
        for outside in [[10, 43, 0, 0], [10, 43, 255, 255], [10, 44, 0, 1]] {
            assert!(!range.contains(outside.into()));
        }
        for bad in ["", "10.43.0.0", "10.43.0.1/16", "10.0.0.0/8", "::/64"] {
            assert!(bad.parse::<ServiceRange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_are_given_once_until_the_range_is_full() {
        let range: ServiceRange = "10.0.0.0/28".parse().unwrap();
        let mut taken = BTreeSet::new();
        while let Some(address) = range.pick(9, &taken) {
            assert!(range.contains(address) && address != range.first());
            assert!(taken.insert(address));
        }
        assert_eq!(taken.len(), 13);
    }
}
