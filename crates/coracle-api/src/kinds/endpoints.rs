//! Endpoints.

use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::Value;

use crate::catalogue::Strategy;
use crate::field::{FieldError, Path};
use crate::metadata;
use crate::names;
use crate::table::Column;
use crate::tree::{int_at, list_at, set_default, str_at};

/// What is special about Endpoints.
pub(crate) struct EndpointsStrategy;

static COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Endpoints", "The set of all endpoints is the union of all subsets."),
    Column::AGE,
];

/// More addresses than these are counted.
const SHOWN: usize = 3;

impl Strategy for EndpointsStrategy {
    fn default(&self, object: &mut Value) {
        for subset in object.get_mut("subsets").and_then(Value::as_array_mut).into_iter().flatten() {
            for port in subset.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(port) = port.as_object_mut() {
                    set_default(port, "protocol", "TCP");
                }
            }
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        validate(object)
    }

    fn validate_update(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
        validate(new)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn deprecation(&self) -> Option<&'static str> {
        Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![metadata::name(object).into(), addresses(object).into(), super::age(object, now)]
    }
}

fn addresses(object: &Value) -> String {
    let subsets = list_at(object, &["subsets"]);
    if subsets.is_empty() {
        return "<none>".to_owned();
    }
    let mut all = Vec::new();
    for subset in subsets {
        for port in list_at(subset, &["ports"]) {
            let number = int_at(port, &["port"]).unwrap_or(0);
            for address in list_at(subset, &["addresses"]) {
                let ip = str_at(address, &["ip"]);
                all.push(if ip.contains(':') {
                    format!("[{ip}]:{number}")
                } else {
                    format!("{ip}:{number}")
                });
            }
        }
    }
    let shown = all[..all.len().min(SHOWN)].join(",");
    if all.len() > SHOWN { format!("{shown} + {} more...", all.len() - SHOWN) } else { shown }
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, subset) in list_at(object, &["subsets"]).iter().enumerate() {
        let path = Path::new("subsets").index(index);
        let (ready, not_ready) = (list_at(subset, &["addresses"]), list_at(subset, &["notReadyAddresses"]));
        if ready.is_empty() && not_ready.is_empty() {
            errors.push(FieldError::required(&path, "must specify `addresses` or `notReadyAddresses`"));
        }
        for (field, list) in [("addresses", ready), ("notReadyAddresses", not_ready)] {
            for (index, address) in list.iter().enumerate() {
                validate_address(
                    str_at(address, &["ip"]),
                    &path.child(field).index(index).child("ip"),
                    &mut errors,
                );
            }
        }
        let ports = list_at(subset, &["ports"]);
        for (index, port) in ports.iter().enumerate() {
            let path = path.child("ports").index(index);
            let name = str_at(port, &["name"]);
            if name.is_empty() {
                if ports.len() > 1 {
                    errors.push(FieldError::required(&path.child("name"), ""));
                }
            } else {
                errors.extend(
                    names::dns1123_label(name)
                        .into_iter()
                        .map(|c| FieldError::invalid(&path.child("name"), name, c)),
                );
            }
            let number = int_at(port, &["port"]).unwrap_or(0);
            errors.extend(
                names::port_number(number)
                    .into_iter()
                    .map(|c| FieldError::invalid(&path.child("port"), number, c)),
            );
            let protocol = str_at(port, &["protocol"]);
            if protocol.is_empty() {
                errors.push(FieldError::required(&path.child("protocol"), ""));
            } else if !["SCTP", "TCP", "UDP"].contains(&protocol) {
                errors.push(FieldError::not_supported(
                    &path.child("protocol"),
                    protocol,
                    &["SCTP", "TCP", "UDP"],
                ));
            }
        }
    }
    errors
}

/// What is wrong with the address of an endpoint.
pub(super) fn validate_address(text: &str, path: &Path, errors: &mut Vec<FieldError>) {
    let Ok(ip) = text.parse::<IpAddr>() else {
        errors.extend(names::ip(text).into_iter().map(|c| FieldError::invalid(path, text, c)));
        return;
    };
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    };
    let link_local_multicast = match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] == 0xff02,
    };
    for (wrong, why) in [
        (ip.is_unspecified(), format!("may not be unspecified ({text})")),
        (ip.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()),
        (link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()),
        (
            link_local_multicast,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned(),
        ),
    ] {
        if wrong {
            errors.push(FieldError::invalid(path, text, why));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_shows_three_and_counts_the_rest() {
        let object = json!({"subsets": [{
            "addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "ports": [{"port": 80}, {"port": 443}]
        }]});
        assert_eq!(addresses(&object), "10.0.0.1:80,10.0.0.2:80,10.0.0.1:443 + 1 more...");
        assert_eq!(addresses(&json!({})), "<none>");
    }

    #[test]
    fn addresses_and_ports_are_checked() {
        let object = json!({"subsets": [
            {"addresses": [{"ip": "127.0.0.1"}, {"ip": "x"}], "ports": [{"port": 0, "protocol": "TCP"}]}, {}
        ]});
        let texts: Vec<String> = validate(&object).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range \
                 (127.0.0.0/8, ::1/128)",
                "subsets[0].addresses[1].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or \
                 2001:db8::ffff)",
                "subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "subsets[1]: Required value: must specify `addresses` or `notReadyAddresses`",
            ]
        );
    }
}
