//! EndpointSlices.

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::Value;

use super::endpoints::validate_address;
use crate::catalogue::Strategy;
use crate::field::{FieldError, Path};
use crate::metadata::{self, validate_labels};
use crate::names;
use crate::table::Column;
use crate::tree::{at, int_at, list_at, set_default, str_at};

/// What is special about EndpointSlices.
pub(crate) struct EndpointSliceStrategy;

const ENDPOINTS_MAX: usize = 1000;
const ADDRESSES_MAX: usize = 100;
const PORTS_MAX: usize = 20_000;
const TOPOLOGY_MAX: usize = 16;
const HINTS_MAX: usize = 8;

/// More than these are counted.
const SHOWN: usize = 3;

static COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text(
        "AddressType",
        "addressType specifies the type of address carried by this EndpointSlice. All addresses in this slice must be \
         the same type. This field is immutable after creation.",
    ),
    Column::text(
        "Ports",
        "ports specifies the list of network ports exposed by each endpoint in this slice. Each port must have a \
         unique name.",
    ),
    Column::text(
        "Endpoints",
        "endpoints is a list of unique endpoints in this slice. Each slice may include a maximum of 1000 endpoints.",
    ),
    Column::AGE,
];

impl Strategy for EndpointSliceStrategy {
    fn default(&self, object: &mut Value) {
        for port in object.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(port) = port.as_object_mut() {
                port.entry("name").or_insert_with(|| "".into());
                set_default(port, "protocol", "TCP");
            }
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        metadata::bump_generation(object);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        let parts = ["addressType", "endpoints", "ports"];
        let labels = |object: &Value| at(object, &["metadata", "labels"]).cloned();
        if parts.iter().any(|part| new.get(part) != old.get(part)) || labels(new) != labels(old) {
            metadata::bump_generation(new);
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        validate(object)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = validate(new);
        if new.get("addressType") != old.get("addressType") {
            errors.push(metadata::immutable(&Path::new("addressType"), new.get("addressType")));
        }
        errors
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let ports = list_at(object, &["ports"]).iter().map(|port| match int_at(port, &["port"]) {
            Some(number) => number.to_string(),
            None if str_at(port, &["name"]).is_empty() => "*".to_owned(),
            None => str_at(port, &["name"]).to_owned(),
        });
        let addresses = list_at(object, &["endpoints"])
            .iter()
            .flat_map(|endpoint| list_at(endpoint, &["addresses"]))
            .filter_map(Value::as_str)
            .map(str::to_owned);
        vec![
            metadata::name(object).into(),
            str_at(object, &["addressType"]).into(),
            some(ports.collect()).into(),
            some(addresses.collect()).into(),
            super::age(object, now),
        ]
    }
}

fn some(all: Vec<String>) -> String {
    let shown = all[..all.len().min(SHOWN)].join(",");
    if all.len() > SHOWN {
        format!("{shown} + {} more...", all.len() - SHOWN)
    } else if shown.is_empty() {
        "<unset>".to_owned()
    } else {
        shown
    }
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("addressType");
    let kind = str_at(object, &["addressType"]);
    let known = ["FQDN", "IPv4", "IPv6"];
    if kind.is_empty() {
        errors.push(FieldError::required(&path, ""));
    } else if !known.contains(&kind) {
        errors.push(FieldError::not_supported(&path, kind, &known));
    }
    let path = Path::new("endpoints");
    let endpoints = list_at(object, &["endpoints"]);
    if endpoints.len() > ENDPOINTS_MAX {
        errors.push(FieldError::too_many(&path, endpoints.len(), ENDPOINTS_MAX));
    } else {
        for (index, endpoint) in endpoints.iter().enumerate() {
            validate_endpoint(endpoint, kind, &path.index(index), &mut errors);
        }
    }
    validate_ports(list_at(object, &["ports"]), &Path::new("ports"), &mut errors);
    errors
}

fn validate_endpoint(endpoint: &Value, kind: &str, path: &Path, errors: &mut Vec<FieldError>) {
    let at_addresses = path.child("addresses");
    let addresses = list_at(endpoint, &["addresses"]);
    if addresses.is_empty() {
        errors.push(FieldError::required(&at_addresses, "must contain at least 1 address"));
    } else if addresses.len() > ADDRESSES_MAX {
        errors.push(FieldError::too_many(&at_addresses, addresses.len(), ADDRESSES_MAX));
    }
    for (index, address) in addresses.iter().enumerate() {
        let (text, path) = (address.as_str().unwrap_or_default(), at_addresses.index(index));
        let wrong_family = match (kind, text.parse::<IpAddr>()) {
            ("IPv4", Ok(IpAddr::V6(_))) => Some("must be an IPv4 address"),
            ("IPv6", Ok(IpAddr::V4(_))) => Some("must be an IPv6 address"),
            _ => None,
        };
        if let Some(why) = wrong_family {
            errors.push(FieldError::invalid(&path, text, why));
        } else if kind == "FQDN" {
            let name = text.strip_suffix('.').unwrap_or(text);
            let complaints = names::dns1123_subdomain(name);
            errors.extend(complaints.iter().map(|why| FieldError::invalid(&path, text, why.as_str())));
            if complaints.is_empty() && !name.contains('.') {
                let why = "should be a domain with at least two segments separated by dots";
                errors.push(FieldError::invalid(&path, text, why));
            }
        } else if !kind.is_empty() {
            validate_address(text, &path, errors);
        }
    }
    let mut named = |field: &str, check: fn(&str) -> Vec<String>| {
        if let Some(Value::String(text)) = endpoint.get(field) {
            let path = path.child(field);
            errors.extend(check(text).into_iter().map(|why| FieldError::invalid(&path, text.as_str(), why)));
        }
    };
    named("nodeName", names::dns1123_subdomain);
    named("hostname", names::dns1123_label);
    let at_topology = path.child("deprecatedTopology");
    let topology = at(endpoint, &["deprecatedTopology"]);
    let size = topology.and_then(Value::as_object).map_or(0, serde_json::Map::len);
    if size > TOPOLOGY_MAX {
        errors.push(FieldError::too_many(&at_topology, size, TOPOLOGY_MAX));
    }
    errors.extend(validate_labels(topology, &at_topology));
    for field in ["forZones", "forNodes"] {
        let hints = list_at(endpoint, &["hints", field]);
        let path = path.child("hints").child(field);
        if hints.len() > HINTS_MAX {
            errors.push(FieldError::too_many(&path, hints.len(), HINTS_MAX));
        }
        let mut seen = BTreeSet::new();
        for (index, hint) in hints.iter().enumerate() {
            let (name, path) = (str_at(hint, &["name"]), path.index(index).child("name"));
            let complaints = names::label_value(name);
            errors.extend(complaints.into_iter().map(|why| FieldError::invalid(&path, name, why)));
            if !seen.insert(name) {
                errors.push(FieldError::duplicate(&path, name));
            }
        }
    }
}

fn validate_ports(ports: &[Value], path: &Path, errors: &mut Vec<FieldError>) {
    if ports.len() > PORTS_MAX {
        errors.push(FieldError::too_many(path, ports.len(), PORTS_MAX));
        return;
    }
    let mut seen = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = str_at(port, &["name"]);
        if !name.is_empty() {
            let at = path.child("name");
            errors.extend(
                names::dns1123_label(name).into_iter().map(|why| FieldError::invalid(&at, name, why)),
            );
        }
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        let (at_protocol, protocol) = (path.child("protocol"), str_at(port, &["protocol"]));
        let known = ["SCTP", "TCP", "UDP"];
        if protocol.is_empty() {
            errors.push(FieldError::required(&at_protocol, ""));
        } else if !known.contains(&protocol) {
            errors.push(FieldError::not_supported(&at_protocol, protocol, &known));
        }
        if let Some(number) = int_at(port, &["port"]) {
            let at = path.child("port");
            errors.extend(
                names::port_number(number).into_iter().map(|why| FieldError::invalid(&at, number, why)),
            );
        }
        if let Some(Value::String(text)) = port.get("appProtocol") {
            let at = path.child("appProtocol");
            let complaints = names::qualified_name(text);
            errors.extend(complaints.into_iter().map(|why| FieldError::invalid(&at, text.as_str(), why)));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::catalogue;

    fn slice(kind: &str, addresses: &[&str]) -> Value {
        json!({
            "metadata": { "name": "s" }, "addressType": kind, "ports": [{ "port": 80 }],
            "endpoints": [{ "addresses": addresses }],
        })
    }

    #[test]
    fn a_slice_has_addresses_of_its_one_kind_and_ports_of_different_names() {
        let complaints = |mut object: Value| {
            EndpointSliceStrategy.default(&mut object);
            validate(&object).iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(complaints(slice("IPv4", &["10.0.0.1"])), "");
        assert_eq!(complaints(slice("IPv6", &["2001:db8::1"])), "");
        assert_eq!(complaints(slice("FQDN", &["a.example.com"])), "");
        let mut twice = slice("IPv4", &["10.0.0.1"]);
        twice["ports"] = json!([{ "port": 80 }, { "port": 81 }]);
        for (object, expected) in [
            (slice("", &["10.0.0.1"]), "addressType: Required value"),
            (
                slice("IP", &["10.0.0.1"]),
                "addressType: Unsupported value: \"IP\": supported values: \"FQDN\", \"IPv4\", \"IPv6\"",
            ),
            (slice("IPv4", &[]), "endpoints[0].addresses: Required value: must contain at least 1 address"),
            (
                slice("IPv4", &["2001:db8::1"]),
                "endpoints[0].addresses[0]: Invalid value: \"2001:db8::1\": must be an IPv4 address",
            ),
            (
                slice("IPv4", &["127.0.0.1"]),
                "endpoints[0].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range \
                 (127.0.0.0/8, ::1/128)",
            ),
            (twice, "ports[1].name: Duplicate value: \"\""),
        ] {
            assert_eq!(complaints(object), expected);
        }
    }

    #[test]
    fn a_change_of_what_is_said_is_counted_and_the_kind_of_addresses_stays() {
        let row = catalogue::find("discovery.k8s.io", "v1", "endpointslices").unwrap();
        let mut old = slice("IPv4", &["10.0.0.1"]);
        row.default(&mut old);
        row.prepare_for_create(&mut old);
        assert_eq!(old["metadata"]["generation"], 1);
        let mut same = old.clone();
        same["metadata"]["annotations"] = json!({ "a": "b" });
        row.prepare_for_update(&mut same, &old);
        assert_eq!(same["metadata"]["generation"], 1);
        let mut new = old.clone();
        new["endpoints"] = json!([]);
        row.prepare_for_update(&mut new, &old);
        assert_eq!(new["metadata"]["generation"], 2);
        new["addressType"] = "IPv6".into();
        new["endpoints"] = json!([]);
        let errors = row.strategy.validate_update(&new, &old);
        assert_eq!(errors[0].to_string(), "addressType: Invalid value: \"IPv6\": field is immutable");
    }

    #[test]
    fn the_table_shows_three_and_counts_the_rest() {
        let now = "2030-01-01T00:00:00Z".parse().unwrap();
        let cells = |object: &Value| EndpointSliceStrategy.row(object, now)[1..4].to_vec();
        let many = slice("IPv4", &["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]);
        assert_eq!(
            cells(&many),
            [json!("IPv4"), json!("80"), json!("10.0.0.1,10.0.0.2,10.0.0.3 + 1 more...")]
        );
        let none = json!({ "addressType": "IPv4" });
        assert_eq!(cells(&none), [json!("IPv4"), json!("<unset>"), json!("<unset>")]);
    }
}
