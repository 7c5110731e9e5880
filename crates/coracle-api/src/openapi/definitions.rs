//! Schemas of all types that some resources are made of, in the two dialects.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ListMeta, Status};
use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};

use crate::catalogue::{self, Resource};
use crate::schema::{definition_name, merge_rule};

/// Which OpenAPI a document speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

impl Dialect {
    /// A reference to a definition.
    pub(super) fn reference(self, name: &str) -> Value {
        let place = match self {
            Dialect::V2 => "#/definitions/",
            Dialect::V3 => "#/components/schemas/",
        };
        json!({ "$ref": format!("{place}{name}") })
    }
}

pub(super) const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
pub(super) const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
pub(super) const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// Definitions as `k8s-openapi` has them, by name.
static RAW: LazyLock<Map<String, Value>> = LazyLock::new(|| {
    let mut generator = SchemaGenerator::default();
    for resource in catalogue::resources().iter().chain(catalogue::carried()) {
        (resource.schema)(&mut generator);
    }
    generator.subschema_for::<DeleteOptions>();
    generator.subschema_for::<ListMeta>();
    generator.subschema_for::<Status>();
    generator.take_definitions(true)
});

/// The definition of a kind.
pub(super) fn kind(resource: &Resource) -> String {
    definition_name(resource.group, resource.version, resource.kind)
}

/// The definition of a list of a kind.
pub(super) fn list(resource: &Resource) -> String {
    format!("{}List", kind(resource))
}

/// The definitions that the resources' operations refer to, with everything below them.
pub(super) fn reachable(resources: &[&Resource], dialect: Dialect) -> Map<String, Value> {
    let mut found = Map::new();
    let mut wanted: BTreeSet<String> = BTreeSet::from([DELETE_OPTIONS.to_owned(), STATUS.to_owned()]);
    for resource in resources {
        wanted.insert(kind(resource));
        wanted.insert(LIST_META.to_owned());
        let carried = resource.subresources.iter().filter_map(catalogue::carried_by);
        wanted.extend(carried.map(kind));
        found.insert(list(resource), list_definition(resource, dialect));
    }
    found.insert(PATCH.to_owned(), json!({
        "description": "Patch is provided to give a concrete name and type to the Kubernetes PATCH request body.",
        "type": "object",
    }));
    while let Some(name) = wanted.pop_first() {
        if let Some(raw) = RAW.get(&name)
            && !found.contains_key(&name)
        {
            found.insert(name.clone(), definition(&name, raw, dialect, &mut wanted));
        }
    }
    found.sort_keys();
    found
}

fn list_definition(resource: &Resource, dialect: Dialect) -> Value {
    json!({
        "description": format!("{0}List is a list of {0} objects.", resource.kind),
        "type": "object",
        "properties": {
            "apiVersion": text_property("apiVersion"),
            "items": { "type": "array", "items": reference(&kind(resource), Map::new(), dialect) },
            "kind": text_property("kind"),
            "metadata": reference(LIST_META, Map::new(), dialect),
        },
        "required": ["items"],
        "x-kubernetes-group-version-kind": [{
            "group": resource.group, "kind": format!("{}List", resource.kind), "version": resource.version,
        }],
    })
}

/// The property of every kind that names its type, with upstream's description.
fn text_property(name: &str) -> Value {
    RAW.values()
        .find_map(|raw| raw.pointer(&format!("/properties/{name}")))
        .cloned()
        .unwrap_or_else(|| json!({ "type": "string" }))
}

/// One definition in a dialect; the names that it refers to are added to `wanted`.
fn definition(name: &str, raw: &Value, dialect: Dialect, wanted: &mut BTreeSet<String>) -> Value {
    let mut out = raw.as_object().cloned().unwrap_or_default();
    // Choices between types have no place in v2; upstream says nothing of them in either dialect.
    out.shift_remove("oneOf");
    if out.remove("x-kubernetes-int-or-string").is_some() {
        int_or_string(name, &mut out, dialect);
    }
    if let Some(Value::Object(properties)) = out.remove("properties") {
        let is_kind = properties.contains_key("apiVersion") && properties.contains_key("metadata");
        let properties: Map<String, Value> = properties
            .into_iter()
            .map(|(field, schema)| {
                let mut schema = translate(schema, dialect, wanted);
                add_merge_rule(name, &field, &mut schema);
                (field, schema)
            })
            .collect();
        out.insert("properties".to_owned(), Value::Object(properties));
        if is_kind && let Some(Value::Array(required)) = out.get_mut("required") {
            // A Rust type always has metadata; a manifest need not.
            required.retain(|field| field != "metadata");
            if required.is_empty() {
                out.shift_remove("required");
            }
        }
    }
    if let Some(resource) = catalogue::resources().iter().find(|resource| kind(resource) == name) {
        out.insert(
            "x-kubernetes-group-version-kind".to_owned(),
            json!([{
                "group": resource.group, "kind": resource.kind, "version": resource.version,
            }]),
        );
    }
    Value::Object(out)
}

fn int_or_string(name: &str, out: &mut Map<String, Value>, dialect: Dialect) {
    let is_quantity = name.ends_with(".Quantity");
    match dialect {
        Dialect::V3 if is_quantity => {
            out.insert("oneOf".to_owned(), json!([{ "type": "string" }, { "type": "number" }]));
        }
        Dialect::V3 => {
            out.insert("format".to_owned(), "int-or-string".into());
            out.insert("oneOf".to_owned(), json!([{ "type": "integer" }, { "type": "string" }]));
        }
        Dialect::V2 => {
            out.insert("type".to_owned(), "string".into());
            if !is_quantity {
                out.insert("format".to_owned(), "int-or-string".into());
            }
        }
    }
}

/// A schema below a definition.
fn translate(schema: Value, dialect: Dialect, wanted: &mut BTreeSet<String>) -> Value {
    let Value::Object(mut map) = schema else { return schema };
    if let Some(Value::String(target)) = map.shift_remove("$ref") {
        let name = target.rsplit('/').next().unwrap_or_default().to_owned();
        let reference = reference(&name, map, dialect);
        wanted.insert(name);
        return reference;
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(value) = map.get_mut(inner) {
            *value = translate(value.take(), dialect, wanted);
        }
    }
    Value::Object(map)
}

/// A reference with siblings: v3 ignores what stands beside `$ref`, so it is wrapped there.
fn reference(name: &str, mut siblings: Map<String, Value>, dialect: Dialect) -> Value {
    let Value::Object(target) = dialect.reference(name) else { return Value::Null };
    if dialect == Dialect::V3 && !siblings.is_empty() {
        siblings.insert("allOf".to_owned(), json!([target]));
    } else {
        siblings.extend(target);
    }
    Value::Object(siblings)
}

fn add_merge_rule(definition: &str, field: &str, schema: &mut Value) {
    let (Some(rule), Value::Object(map)) = (merge_rule(definition, field), schema) else { return };
    let mut set = |key: &str, value: &str| {
        if !value.is_empty() {
            map.insert(key.to_owned(), value.into());
        }
    };
    set("x-kubernetes-list-type", rule.list_type);
    set("x-kubernetes-map-type", rule.map_type);
    set("x-kubernetes-patch-strategy", rule.patch_strategy);
    set("x-kubernetes-patch-merge-key", rule.patch_merge_key);
    if !rule.list_map_keys.is_empty() {
        let keys: Vec<&str> = rule.list_map_keys.split(',').map(str::trim).collect();
        map.insert("x-kubernetes-list-map-keys".to_owned(), json!(keys));
    }
}
