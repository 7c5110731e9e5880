//! Discovery: which groups, versions and resources there are. Everything here is derived from the catalogue.

use std::fmt::Write;

use coracle_api::catalogue::{self, Resource};
use coracle_api::status::Status;
use http::header::{ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha512};

use crate::body::{Body, full};
use crate::negotiate::{Format, Transforms, aggregated_discovery};
use crate::request::Query;
use crate::server::Config;

/// The level of the API that this server speaks.
const MINOR: &str = "37";

/// `GET /version`.
pub(crate) fn version() -> Value {
    json!({
        "major": "1",
        "minor": MINOR,
        "gitVersion": concat!("v1.37.0+coracle.", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }),
    })
}

/// `GET /`.
pub(crate) fn root_paths() -> Value {
    let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for (group, version) in group_versions().into_iter().filter(|(group, _)| !group.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.push(format!("/apis/{group}/{version}"));
    }
    let rest = [
        "/.well-known/openid-configuration",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ];
    paths.extend(rest.map(str::to_owned));
    paths.dedup();
    json!({ "paths": paths })
}

/// Every group and version, in the order of the catalogue.
pub(crate) fn group_versions() -> Vec<(&'static str, &'static str)> {
    let mut seen = Vec::new();
    for row in catalogue::resources() {
        if !seen.contains(&(row.group, row.version)) {
            seen.push((row.group, row.version));
        }
    }
    seen
}

fn groups() -> Vec<&'static str> {
    let mut groups: Vec<&str> = group_versions().into_iter().map(|(group, _)| group).collect();
    groups.dedup();
    groups
}

fn rows(group: &str, version: &str) -> impl Iterator<Item = &'static Resource> {
    catalogue::resources().iter().filter(move |row| row.group == group && row.version == version)
}

/// The aggregated documents, made once.
pub(crate) struct Discovery {
    api: [Document; 2],
    apis: [Document; 2],
}

struct Document {
    version: &'static str,
    bytes: Vec<u8>,
    etag: String,
}

impl Document {
    fn new(version: &'static str, of: &[&str]) -> Self {
        let bytes = aggregated(version, of).to_string().into_bytes();
        let etag = format!("\"{}\"", hash(&bytes));
        Document { version, bytes, etag }
    }
}

/// A hash of a document in hexadecimal, in capitals as upstream's.
pub(crate) fn hash(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(128);
    for byte in Sha512::digest(bytes) {
        // Writing to a String does not fail.
        let _ = write!(out, "{byte:02X}");
    }
    out
}

impl Discovery {
    pub(crate) fn new() -> Self {
        let others: Vec<&str> = groups().into_iter().filter(|group| !group.is_empty()).collect();
        let versions = ["v2", "v2beta1"];
        Discovery {
            api: versions.map(|version| Document::new(version, &[""])),
            apis: versions.map(|version| Document::new(version, &others)),
        }
    }

    pub(crate) fn answer(
        &self,
        parts: &[&str],
        headers: &HeaderMap,
        query: &Query,
        config: &Config,
    ) -> Result<Response<Body>, Status> {
        let documents = match parts {
            ["api"] => Some(&self.api),
            ["apis"] => Some(&self.apis),
            _ => None,
        };
        if let (Some(documents), Some(version)) = (documents, aggregated_discovery(headers))
            && let Some(document) = documents.iter().find(|document| document.version == version)
        {
            let kind = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
            return Ok(with_etag(headers, &document.etag, &kind, &document.bytes));
        }
        let answer = match *parts {
            ["api"] => json!({
                "kind": "APIVersions",
                "versions": ["v1"],
                "serverAddressByClientCIDRs":
                    [{ "clientCIDR": "0.0.0.0/0", "serverAddress": config.advertise.to_string() }],
            }),
            ["api", "v1"] => resource_list("", "v1"),
            ["apis"] => {
                let groups: Vec<Value> =
                    groups().into_iter().filter(|group| !group.is_empty()).map(group).collect();
                json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
            }
            ["apis", name] if !name.is_empty() && groups().contains(&name) => {
                let mut group = group(name);
                group["kind"] = "APIGroup".into();
                group["apiVersion"] = "v1".into();
                group
            }
            ["apis", group, version] if !group.is_empty() && group_versions().contains(&(group, version)) => {
                resource_list(group, version)
            }
            _ => return Err(Status::unknown_resource()),
        };
        Ok(Format::negotiate(headers, query, Transforms::None)?.value(StatusCode::OK, &answer))
    }
}

/// Sends a document that has not changed since the client fetched it as 304.
pub(crate) fn with_etag(headers: &HeaderMap, etag: &str, kind: &str, bytes: &[u8]) -> Response<Body> {
    let known = headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().trim_start_matches("W/") == etag || value.trim() == "*");
    let mut response = if known {
        let mut response = Response::new(full(Vec::new()));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        Format::json().with_gzip(headers).finish(StatusCode::OK, kind, bytes.to_vec())
    };
    if let Ok(value) = HeaderValue::from_str(etag) {
        response.headers_mut().insert(ETAG, value);
    }
    response.headers_mut().insert(http::header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn group(name: &str) -> Value {
    let versions: Vec<Value> = group_versions()
        .into_iter()
        .filter(|(group, _)| *group == name)
        .map(|(group, version)| json!({ "groupVersion": format!("{group}/{version}"), "version": version }))
        .collect();
    json!({ "name": name, "preferredVersion": versions.first(), "versions": versions })
}

fn resource_list(group: &str, version: &str) -> Value {
    let mut resources = Vec::new();
    for row in rows(group, version) {
        let mut entry = json!({
            "name": row.plural,
            "singularName": row.singular,
            "namespaced": row.namespaced,
            "kind": row.kind,
            "verbs": row.verbs,
        });
        if !row.short_names.is_empty() {
            entry["shortNames"] = json!(row.short_names);
        }
        if !row.categories.is_empty() {
            entry["categories"] = json!(row.categories);
        }
        resources.push(entry);
        for sub in row.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", row.plural, sub.name),
                "singularName": "",
                "namespaced": row.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if !sub.version.is_empty() {
                entry["group"] = sub.group.into();
                entry["version"] = sub.version.into();
            }
            resources.push(entry);
        }
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources,
    })
}

fn aggregated(document: &str, of: &[&str]) -> Value {
    let items: Vec<Value> = of
        .iter()
        .map(|group| {
            let versions: Vec<Value> = group_versions()
                .into_iter()
                .filter(|(name, _)| name == group)
                .map(|(group, version)| {
                    let resources: Vec<Value> = rows(group, version).map(aggregated_row).collect();
                    json!({ "version": version, "resources": resources, "freshness": "Current" })
                })
                .collect();
            let metadata = if group.is_empty() { json!({}) } else { json!({ "name": group }) };
            json!({ "metadata": metadata, "versions": versions })
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{document}"),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_row(row: &Resource) -> Value {
    let mut entry = json!({
        "resource": row.plural,
        "responseKind": { "group": row.group, "version": row.version, "kind": row.kind },
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular,
        "verbs": row.verbs,
    });
    if !row.short_names.is_empty() {
        entry["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        entry["categories"] = json!(row.categories);
    }
    let subresources: Vec<Value> = row
        .subresources
        .iter()
        .map(|sub| {
            let (group, version) =
                if sub.version.is_empty() { (row.group, row.version) } else { (sub.group, sub.version) };
            json!({
                "subresource": sub.name,
                "responseKind": { "group": group, "version": version, "kind": sub.kind },
                "verbs": sub.verbs,
            })
        })
        .collect();
    if !subresources.is_empty() {
        entry["subresources"] = subresources.into();
    }
    entry
}
