//! Cluster addresses of Services: who needs one, which are free, and how it is written in. Who has which is
//! for the caller to know.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::field::{FieldError, Path};
use crate::tree::{object_in, str_at};

/// The addresses that Services may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterIpRange {
    base: u32,
    bits: u8,
}

/// What a Service says about its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressNeed {
    /// It has none: headless, or a name for something elsewhere.
    None,
    /// Any.
    Any,
    /// This one.
    This(Ipv4Addr),
}

impl ClusterIpRange {
    /// From `10.43.0.0/16`; `None` if that is no IPv4 range, or one too small to give.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        let bits: u8 = bits.parse().ok().filter(|bits| (8..=29).contains(bits))?;
        let base = u32::from(address.parse::<Ipv4Addr>().ok()?) & (u32::MAX << (32 - bits));
        Some(ClusterIpRange { base, bits })
    }

    fn size(self) -> u32 {
        1 << (32 - u32::from(self.bits))
    }

    /// The address of the Service `kubernetes`: the first.
    #[must_use]
    pub fn first(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1)
    }

    /// Whether Services may have `ip`: it is in the range, and neither its first nor its last address.
    #[must_use]
    pub fn contains(self, ip: Ipv4Addr) -> bool {
        let ip = u32::from(ip);
        ip > self.base && ip < self.base + self.size() - 1
    }

    /// An address that is not in `used`; `start` (a random number, say) decides where the search begins.
    #[must_use]
    pub fn free(self, used: &BTreeSet<Ipv4Addr>, start: u32) -> Option<Ipv4Addr> {
        let count = self.size() - 2;
        (0..count)
            .map(|offset| Ipv4Addr::from(self.base + 1 + start.wrapping_add(offset) % count))
            .find(|ip| !used.contains(ip))
    }

    /// Why `ip` may not be given.
    #[must_use]
    pub fn refusal(self, ip: Ipv4Addr, used: &BTreeSet<Ipv4Addr>) -> Option<FieldError> {
        let why = if !self.contains(ip) {
            format!("the provided IP ({ip}) is not in the valid range. The range of valid IPs is {self}")
        } else if used.contains(&ip) {
            "provided IP is already allocated".to_owned()
        } else {
            return None;
        };
        let path = Path::new("spec").child("clusterIPs");
        Some(FieldError::invalid(
            &path,
            json!([ip.to_string()]),
            format!("failed to allocate IP {ip}: {why}"),
        ))
    }
}

impl std::fmt::Display for ClusterIpRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.bits)
    }
}

/// Whether a Service, with its defaults, needs an address.
#[must_use]
pub fn address_need(service: &Value) -> AddressNeed {
    let ip = str_at(service, &["spec", "clusterIP"]);
    if str_at(service, &["spec", "type"]) == "ExternalName" || ip == "None" {
        return AddressNeed::None;
    }
    ip.parse().map_or(AddressNeed::Any, AddressNeed::This)
}

/// The address a Service holds.
#[must_use]
pub fn address(service: &Value) -> Option<Ipv4Addr> {
    match address_need(service) {
        AddressNeed::This(ip) => Some(ip),
        AddressNeed::None | AddressNeed::Any => None,
    }
}

/// Writes the address that a Service got.
pub fn set_address(service: &mut Value, ip: Ipv4Addr) {
    if let Some(spec) = object_in(service, "spec") {
        spec.insert("clusterIP".into(), ip.to_string().into());
        spec.insert("clusterIPs".into(), json!([ip.to_string()]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_once_and_from_the_range() {
        let range = ClusterIpRange::parse("10.43.7.9/29").unwrap();
        assert_eq!(range.to_string(), "10.43.7.8/29");
        assert_eq!(range.first(), Ipv4Addr::new(10, 43, 7, 9));
        let mut used = BTreeSet::new();
        while let Some(ip) = range.free(&used, 4) {
            assert!(range.contains(ip) && used.insert(ip));
        }
        assert_eq!(used.len(), 6);
        let taken = range.refusal(range.first(), &used).unwrap().to_string();
        assert_eq!(
            taken,
            "spec.clusterIPs: Invalid value: [\"10.43.7.9\"]: failed to allocate IP 10.43.7.9: provided IP is \
             already allocated"
        );
        assert!(range.refusal(Ipv4Addr::LOCALHOST, &used).unwrap().detail.contains("10.43.7.8/29"));
        assert_eq!(ClusterIpRange::parse("10.0.0.0/33"), None);
    }

    #[test]
    fn who_needs_an_address() {
        for (spec, need) in [
            (json!({}), AddressNeed::Any),
            (json!({"clusterIP": "None"}), AddressNeed::None),
            (json!({"type": "ExternalName"}), AddressNeed::None),
            (json!({"clusterIP": "10.43.0.9"}), AddressNeed::This(Ipv4Addr::new(10, 43, 0, 9))),
        ] {
            assert_eq!(address_need(&json!({ "spec": spec })), need);
        }
        let mut service = json!({"spec": {}});
        set_address(&mut service, Ipv4Addr::new(10, 43, 0, 9));
        assert_eq!(address(&service), Some(Ipv4Addr::new(10, 43, 0, 9)));
    }
}
