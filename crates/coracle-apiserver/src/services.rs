//! Addresses of Services.
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

fn text<'a>(service: &'a Value, pointer: &str) -> &'a str {
    service.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn is_external_name(service: &Value) -> bool {
    text(service, "/spec/type") == "ExternalName"
}

/// The address that a Service holds.
fn held(service: &Value) -> Option<Ipv4Addr> {
    text(service, "/spec/clusterIP").parse().ok()
}

fn key_of(address: Ipv4Addr) -> Bytes {
    Bytes::from(format!("{IPS}{address}"))
}

fn is_service(row: &Resource) -> bool {
    row.group.is_empty() && row.plural == "services"
}

impl Core {
    /// Gives a Service its address, and adds to `along` what takes and frees it.
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
        let before = old.and_then(held);
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
            let taken: BTreeSet<Ipv4Addr> = self.taken().await?;
            Some(match (asked, before) {
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
                        Ok(ip) if Some(ip) == before => ip,
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
        write_address(new, address, headless);
        if address == before {
            return Ok(());
        }
        if let Some(address) = address {
            let (key, owner) = (key_of(address), Bytes::from(text(new, "/metadata/uid").to_owned()));
            along.compares.push(Compare { key: key.clone(), mod_revision: Revision(0) });
            along.ops.push(Op::Put { key, value: owner });
        }
        along.ops.extend(before.map(|address| Op::Delete { key: key_of(address) }));
        Ok(())
    }

    /// Adds to `along` what frees all that a Service holds.
    pub(crate) fn release(&self, row: &Resource, object: &Value, along: &mut Along) {
        if is_service(row) {
            // What the same transaction was about to take is not taken.
            along.compares.clear();
            along.ops = held(object).map(|address| Op::Delete { key: key_of(address) }).into_iter().collect();
        }
    }

    /// What is taken.
    async fn taken(&self) -> Result<BTreeSet<Ipv4Addr>, Status> {
        let request = ListRequest { prefix: Bytes::from_static(IPS.as_bytes()), ..ListRequest::default() };
        let page = self.store.list(&request).await.map_err(|error| store_failed(&error))?;
        let address = |key: &Bytes| std::str::from_utf8(key.get(IPS.len()..)?).ok()?.parse().ok();
        Ok(page.items.iter().filter_map(|kv| address(&kv.key)).collect())
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
