//! The published schemas: OpenAPI v3, a document for each group and version, and v2, one for everything.
//!
//! Clients read three things from them: field names, types and descriptions (`kubectl explain`), how lists merge
//! (`kubectl apply`), and which query parameters an operation knows (whether the server validates fields). All of it
//! comes from the catalogue and from the schemas that `k8s-openapi` carries; nothing is written down twice.
//! Documents are made at the first request for them and kept, because most clusters are never asked.

mod definitions;
mod paths;
mod protobuf;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::catalogue::{self, Resource};
use definitions::Dialect;

/// A document that is ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What is sent.
    pub bytes: Vec<u8>,
    /// Changes whenever the bytes change; hexadecimal.
    pub hash: String,
}

impl Document {
    fn new(bytes: Vec<u8>) -> Self {
        let hash = format!("{:032X}", fnv1a_128(&bytes));
        Document { bytes, hash }
    }

    fn json(value: &Value) -> Self {
        Document::new(value.to_string().into_bytes())
    }
}

/// What `/openapi/v2` answers.
#[must_use]
pub fn v2() -> &'static Document {
    static DOCUMENT: LazyLock<Document> = LazyLock::new(|| Document::json(&v2_tree()));
    &DOCUMENT
}

/// What `/openapi/v2` answers to those who ask for protobuf, which kubectl does.
#[must_use]
pub fn v2_protobuf() -> &'static Document {
    static DOCUMENT: LazyLock<Document> = LazyLock::new(|| Document::new(protobuf::document(&v2_tree())));
    &DOCUMENT
}

fn v2_tree() -> Value {
    let resources: Vec<&Resource> = catalogue::resources().iter().collect();
    json!({
        "swagger": "2.0",
        "info": info(),
        "paths": paths::paths(&resources, Dialect::V2),
        "definitions": definitions::reachable(&resources, Dialect::V2),
    })
}

/// What `/openapi/v3` answers: where the document of each group and version is.
#[must_use]
pub fn v3_index() -> &'static Document {
    static DOCUMENT: LazyLock<Document> = LazyLock::new(|| {
        let paths: serde_json::Map<String, Value> = V3
            .iter()
            .map(|(path, document)| {
                let url = format!("/openapi/v3/{path}?hash={}", document.hash);
                (path.clone(), json!({ "serverRelativeURL": url }))
            })
            .collect();
        Document::json(&json!({ "paths": paths }))
    });
    &DOCUMENT
}

/// What `/openapi/v3/PATH` answers, for a path such as `api/v1` or `apis/coordination.k8s.io/v1`.
#[must_use]
pub fn v3(path: &str) -> Option<&'static Document> {
    V3.get(path)
}

static V3: LazyLock<BTreeMap<String, Document>> = LazyLock::new(|| {
    let mut groups: BTreeMap<String, Vec<&Resource>> = BTreeMap::new();
    for resource in catalogue::resources() {
        let path = paths::base(resource).trim_start_matches('/').to_owned();
        groups.entry(path).or_default().push(resource);
    }
    groups
        .into_iter()
        .map(|(path, resources)| {
            let document = Document::json(&json!({
                "openapi": "3.0.0",
                "info": info(),
                "paths": paths::paths(&resources, Dialect::V3),
                "components": { "schemas": definitions::reachable(&resources, Dialect::V3) },
            }));
            (path, document)
        })
        .collect()
});

fn info() -> Value {
    json!({ "title": "Kubernetes", "version": "v1.37.0" })
}

/// Fowler-Noll-Vo: tells one build's document from another's, and protects against nothing.
fn fnv1a_128(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(path: &str) -> Value {
        serde_json::from_slice(&v3(path).expect("served").bytes).unwrap()
    }

    #[test]
    fn the_index_leads_to_every_group_and_version() {
        let index: Value = serde_json::from_slice(&v3_index().bytes).unwrap();
        let paths = index["paths"].as_object().unwrap();
        assert!(paths.contains_key("api/v1") && paths.contains_key("apis/coordination.k8s.io/v1"));
        for (path, entry) in paths {
            let url = entry["serverRelativeURL"].as_str().unwrap();
            assert_eq!(url, format!("/openapi/v3/{path}?hash={}", v3(path).unwrap().hash));
        }
    }

    #[test]
    fn a_kind_says_what_it_is_and_how_its_lists_merge() {
        let core = document("api/v1");
        let schemas = &core["components"]["schemas"];
        let pod = &schemas["io.k8s.api.core.v1.Pod"];
        assert_eq!(
            pod["x-kubernetes-group-version-kind"],
            json!([{"group": "", "kind": "Pod", "version": "v1"}])
        );
        assert!(pod["required"].is_null(), "a manifest need not have metadata to be looked at");
        let spec = &schemas["io.k8s.api.core.v1.PodSpec"];
        let containers = &spec["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(containers["x-kubernetes-list-type"], "map");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(
            containers["items"]["allOf"][0]["$ref"].as_str().or(containers["items"]["$ref"].as_str()),
            Some("#/components/schemas/io.k8s.api.core.v1.Container")
        );
        assert!(spec["required"].as_array().unwrap().contains(&"containers".into()));
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(target)) = map.get("$ref") {
                        found.push(target.clone());
                    }
                    map.values().for_each(|inner| references(inner, found));
                }
                Value::Array(list) => list.iter().for_each(|inner| references(inner, found)),
                _ => {}
            }
        }
        let v2: Value = serde_json::from_slice(&v2().bytes).unwrap();
        for (document, place) in [(v2, "#/definitions/"), (document("api/v1"), "#/components/schemas/")] {
            let mut found = Vec::new();
            references(&document, &mut found);
            assert!(found.len() > 100);
            for target in found {
                assert!(target.starts_with(place), "{target}");
                let pointer = target.trim_start_matches('#').to_owned();
                assert!(document.pointer(&pointer).is_some(), "{target} leads nowhere");
            }
        }
    }

    #[test]
    fn patches_say_that_the_server_validates_fields() {
        let core = document("api/v1");
        let patch = &core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Pod");
        let names: Vec<&str> = patch["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|parameter| parameter["name"].as_str())
            .collect();
        for name in ["dryRun", "fieldManager", "fieldValidation", "force"] {
            assert!(names.contains(&name), "{name} in {names:?}");
        }
    }
}
