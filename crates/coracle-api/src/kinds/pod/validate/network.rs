//! What is wrong with how a Pod is named and how it finds names.

use serde_json::Value;

use super::{Whose, Within, invalid_each, one_of};
use crate::field::{FieldError, Path};
use crate::names;
use crate::tree::{int_at, list_at, str_at, true_at};

const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_CHARACTERS_MAX: usize = 2048;
const HOSTNAME_BYTES_MAX: usize = 64;

/// What is wrong with ports in the node's network: they are the node's.
pub(super) fn host_network(within: &Within<'_>, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if !true_at(within.spec, &["hostNetwork"]) {
        return errors;
    }
    for (index, container) in list_at(within.spec, &["containers"]).iter().enumerate() {
        let path = path.child("containers").index(index).child("ports");
        for (index, port) in list_at(container, &["ports"]).iter().enumerate() {
            let number = |field: &str| int_at(port, &[field]).unwrap_or(0);
            let host = number("hostPort");
            // A template may leave the port to the Pods that are made of it.
            if (within.whose == Whose::Pod || host != 0) && host != number("containerPort") {
                let why = "must match `containerPort` when `hostNetwork` is true";
                errors.push(FieldError::invalid(&path.index(index).child("hostPort"), host, why));
            }
        }
    }
    errors
}

/// What is wrong with `dnsPolicy`.
pub(super) fn dns_policy(spec: &Value, path: &Path) -> Option<FieldError> {
    one_of(
        str_at(spec, &["dnsPolicy"]),
        &path.child("dnsPolicy"),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    )
}

/// What is wrong with `dnsConfig`.
pub(super) fn dns_config(spec: &Value, path: &Path) -> Vec<FieldError> {
    let path = path.child("dnsConfig");
    let config = spec.get("dnsConfig");
    let servers = config.map_or(&[][..], |config| list_at(config, &["nameservers"]));
    if str_at(spec, &["dnsPolicy"]) == "None" {
        if config.is_none() {
            let why = "must provide `dnsConfig` when `dnsPolicy` is None";
            return vec![FieldError::required(&path, why)];
        }
        if servers.is_empty() {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return vec![FieldError::required(&path.child("nameservers"), why)];
        }
    }
    let Some(config) = config else { return Vec::new() };
    let mut errors = Vec::new();
    let list = path.child("nameservers");
    if servers.len() > NAMESERVERS_MAX {
        let why = format!("must not have more than {NAMESERVERS_MAX} nameservers");
        errors.push(FieldError::invalid(&list, servers.to_vec(), why));
    }
    for (index, server) in servers.iter().enumerate() {
        let server = server.as_str().unwrap_or_default();
        errors.extend(invalid_each(&list.index(index), server, names::ip(server)));
    }
    let list = path.child("searches");
    let searches = list_at(config, &["searches"]);
    let texts: Vec<&str> = searches.iter().filter_map(Value::as_str).collect();
    if texts.len() > SEARCHES_MAX {
        let why = format!("must not have more than {SEARCHES_MAX} search paths");
        errors.push(FieldError::invalid(&list, searches.to_vec(), why));
    }
    if texts.join(" ").len() > SEARCH_CHARACTERS_MAX {
        let why = format!(
            "must not have more than {SEARCH_CHARACTERS_MAX} characters (including spaces) in the search list"
        );
        errors.push(FieldError::invalid(&list, searches.to_vec(), why));
    }
    for (index, search) in texts.into_iter().enumerate().filter(|(_, search)| *search != ".") {
        let search = search.strip_suffix('.').unwrap_or(search);
        errors.extend(invalid_each(&list.index(index), search, names::search_domain(search)));
    }
    for (index, option) in list_at(config, &["options"]).iter().enumerate() {
        if str_at(option, &["name"]).is_empty() {
            errors.push(FieldError::required(&path.child("options").index(index), "must not be empty"));
        }
    }
    errors
}

/// What is wrong with the name that the Pod's host is to have instead of the Pod's own.
pub(super) fn hostname_override(spec: &Value, path: &Path) -> Vec<FieldError> {
    let Some(name) = spec.get("hostnameOverride").and_then(Value::as_str) else { return Vec::new() };
    let path = path.child("hostnameOverride");
    let mut errors = Vec::new();
    for field in ["setHostnameAsFQDN", "hostNetwork"] {
        if true_at(spec, &[field]) {
            errors.push(FieldError::forbidden(&path, format!("may not be specified when {field} is true")));
        }
    }
    if name.len() > HOSTNAME_BYTES_MAX {
        errors.push(FieldError::too_long(&path, HOSTNAME_BYTES_MAX));
    }
    errors.extend(invalid_each(&path, name, names::dns1123_subdomain(name)));
    errors
}

/// What is wrong with the further lines of the Pod's file of hosts.
pub(super) fn host_aliases(spec: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, alias) in list_at(spec, &["hostAliases"]).iter().enumerate() {
        let path = path.child("hostAliases").index(index);
        let ip = str_at(alias, &["ip"]);
        errors.extend(invalid_each(&path.child("ip"), ip, names::ip(ip)));
        for (index, name) in list_at(alias, &["hostnames"]).iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            let path = path.child("hostnames").index(index);
            errors.extend(invalid_each(&path, name, names::dns1123_subdomain(name)));
        }
    }
    errors
}
