//! The types of the API's objects, as data: what fields there are, of what type, and how they merge.
//!
//! The graph is made once, from the schemas that `k8s-openapi` carries for the kinds of the catalogue. It
//! answers which fields of an object are unknown, brings an object into the form in which it is stored
//! ([`normalize`]), guides strategic merge patches, and becomes the published OpenAPI documents.

pub(crate) mod merge_rules;

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::catalogue::{self, Resource};
use crate::quantity::Quantity;
use crate::status::Status;
use merge_rules::{MERGE_RULES, MergeRule};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// The type of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    /// An object with known fields.
    Struct(usize),
    /// An object with free keys and values of one type.
    Map(Box<Type>),
    List(Box<Type>),
    String,
    /// Base64.
    Bytes,
    Int32,
    Int64,
    Float,
    Bool,
    Quantity,
    Time,
    MicroTime,
    IntOrString,
    /// Anything.
    Any,
}

/// A field of a struct.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) kind: Type,
    pub(crate) merge: Option<&'static MergeRule>,
}

/// An object type with known fields.
#[derive(Debug)]
pub(crate) struct StructType {
    /// As `io.k8s.api.core.v1.Pod`.
    pub(crate) name: String,
    pub(crate) fields: HashMap<String, Field>,
}

/// All types that the catalogue's kinds are made of.
#[derive(Debug)]
pub(crate) struct Graph {
    pub(crate) structs: Vec<StructType>,
    by_name: HashMap<String, usize>,
    /// The schemas the graph was made from, by definition name.
    pub(crate) definitions: Map<String, Value>,
}

static GRAPH: LazyLock<Graph> = LazyLock::new(Graph::build);

/// The graph of this build's catalogue; the first call makes it.
pub(crate) fn graph() -> &'static Graph {
    &GRAPH
}

/// The name of the definition of a kind, as `io.k8s.api.core.v1.Pod`.
pub(crate) fn definition_name(group: &str, version: &str, kind: &str) -> String {
    if group == "apiextensions.k8s.io" {
        return format!("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.{version}.{kind}");
    }
    let group = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or_default() };
    format!("io.k8s.api.{group}.{version}.{kind}")
}

impl Graph {
    fn build() -> Self {
        let mut generator = schemars::SchemaGenerator::default();
        for resource in catalogue::resources().iter().chain(catalogue::carried()) {
            (resource.schema)(&mut generator);
        }
        let mut definitions = generator.take_definitions(true);
        definitions.sort_keys();
        let mut graph = Graph { structs: Vec::new(), by_name: HashMap::new(), definitions: Map::new() };
        for (name, definition) in &definitions {
            if definition.get("properties").is_some() {
                graph.by_name.insert(name.clone(), graph.structs.len());
                graph.structs.push(StructType { name: name.clone(), fields: HashMap::new() });
            }
        }
        for index in 0..graph.structs.len() {
            let name = graph.structs[index].name.clone();
            let mut fields = HashMap::new();
            for (field, schema) in crate::tree::entries_at(&definitions[&name], &["properties"]) {
                let merge = merge_rule(&name, field);
                fields.insert(field.clone(), Field { kind: graph.type_of(schema), merge });
            }
            graph.structs[index].fields = fields;
        }
        graph.definitions = definitions;
        graph
    }

    fn type_of(&self, schema: &Value) -> Type {
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            return self.type_of_reference(reference.rsplit('/').next().unwrap_or_default());
        }
        let format = crate::tree::str_at(schema, &["format"]);
        match crate::tree::str_at(schema, &["type"]) {
            "array" => {
                Type::List(Box::new(schema.get("items").map_or(Type::Any, |items| self.type_of(items))))
            }
            "object" => match schema.get("additionalProperties") {
                Some(values) => Type::Map(Box::new(self.type_of(values))),
                None => Type::Any,
            },
            "string" if format == "byte" => Type::Bytes,
            "string" => Type::String,
            "integer" if format == "int64" => Type::Int64,
            "integer" => Type::Int32,
            "number" => Type::Float,
            "boolean" => Type::Bool,
            _ => Type::Any,
        }
    }

    fn type_of_reference(&self, name: &str) -> Type {
        if let Some(index) = self.by_name.get(name) {
            return Type::Struct(*index);
        }
        match name.rsplit('.').next().unwrap_or_default() {
            "Quantity" => Type::Quantity,
            "Time" => Type::Time,
            "MicroTime" => Type::MicroTime,
            "IntOrString" => Type::IntOrString,
            _ => Type::Any,
        }
    }

    /// The type of a kind's objects.
    pub(crate) fn root(&self, resource: &Resource) -> Option<Type> {
        self.by_name
            .get(&definition_name(resource.group, resource.version, resource.kind))
            .map(|index| Type::Struct(*index))
    }
}

pub(crate) fn merge_rule(definition: &str, field: &str) -> Option<&'static MergeRule> {
    let short = match definition.strip_prefix(META) {
        Some(kind) => format!("meta/{kind}"),
        None => {
            let rest = definition.strip_prefix("io.k8s.api.")?;
            let (group, rest) = rest.split_once('.')?;
            format!("{group}/{}", rest.split_once('.')?.1)
        }
    };
    MERGE_RULES.iter().find(|rule| rule.field == field && rule.of == short)
}

/// Brings an object into the form in which it is stored, and lists the fields it drops for being unknown, in
/// the words `unknown field "spec.foo"`.
///
/// Nulls, empty lists and empty maps go, as do unknown fields; quantities become canonical; the type of
/// every value is right afterwards, so that a typed view can be taken.
///
/// # Errors
/// 400 in upstream's words if a value has the wrong type.
pub fn normalize(resource: &Resource, object: &mut Value) -> Result<Vec<String>, Status> {
    let graph = graph();
    let Some(root) = graph.root(resource) else {
        return Err(Status::internal("this kind has no schema"));
    };
    let mut walk = Walk { graph, resource, unknown: Vec::new() };
    let place = Place { parent: None, step: Step::Root };
    let owner = Owner { name: resource.kind };
    walk.value(&root, object, &place, &owner)?;
    Ok(walk.unknown)
}

/// The unknown fields of an object, in the words `unknown field "spec.foo"`; nothing is changed.
///
/// # Errors
/// 400 if a value has the wrong type.
pub fn unknown_fields(resource: &Resource, object: &Value) -> Result<Vec<String>, Status> {
    normalize(resource, &mut object.clone())
}

/// `Pod in version "v1" cannot be handled as a Pod: why`
#[must_use]
pub fn cannot_be_handled(resource: &Resource, why: &str) -> Status {
    let kind = resource.kind;
    Status::bad_request(format!(
        "{kind} in version {:?} cannot be handled as a {kind}: {why}",
        resource.version
    ))
}

/// The refusal of an object with unknown or duplicate fields under strict validation.
#[must_use]
pub fn strict_decoding_error(resource: &Resource, complaints: &[String]) -> Status {
    cannot_be_handled(resource, &format!("strict decoding error: {}", complaints.join(", ")))
}

/// Where the walk stands; a path is only spelled out when something is wrong.
struct Place<'a> {
    parent: Option<&'a Place<'a>>,
    step: Step<'a>,
}

enum Step<'a> {
    Root,
    Field(&'a str),
    Key(&'a str),
    Index(usize),
}

impl Place<'_> {
    /// The path; without `elements` only the fields of structs, as the decoder of the language that the error texts
    /// come from has it.
    fn spell(&self, elements: bool) -> String {
        let mut out = self.parent.map(|parent| parent.spell(elements)).unwrap_or_default();
        match self.step {
            Step::Index(index) if elements => out.push_str(&format!("[{index}]")),
            Step::Key(_) if !elements => {}
            Step::Field(name) | Step::Key(name) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(name);
            }
            Step::Root | Step::Index(_) => {}
        }
        out
    }
}

/// The struct whose field is being looked at.
struct Owner<'a> {
    name: &'a str,
}

struct Walk<'g> {
    graph: &'g Graph,
    resource: &'g Resource,
    unknown: Vec<String>,
}

impl Walk<'_> {
    fn value(
        &mut self,
        kind: &Type,
        value: &mut Value,
        place: &Place<'_>,
        owner: &Owner<'_>,
    ) -> Result<(), Status> {
        match kind {
            Type::Struct(index) => {
                if value.is_null() {
                    *value = Value::Object(Map::new());
                }
                let Value::Object(map) = value else { return Err(self.mismatch(kind, value, place, owner)) };
                self.fields(*index, map, place)
            }
            Type::Map(inner) => {
                let Value::Object(map) = value else { return Err(self.mismatch(kind, value, place, owner)) };
                for (key, value) in map.iter_mut() {
                    let place = Place { parent: Some(place), step: Step::Key(key) };
                    self.value(inner, value, &place, owner)?;
                }
                Ok(())
            }
            Type::List(inner) => {
                let Value::Array(list) = value else { return Err(self.mismatch(kind, value, place, owner)) };
                for (index, value) in list.iter_mut().enumerate() {
                    let place = Place { parent: Some(place), step: Step::Index(index) };
                    self.value(inner, value, &place, owner)?;
                }
                Ok(())
            }
            Type::Any => Ok(()),
            _ => self.scalar(kind, value, place, owner),
        }
    }

    fn fields(
        &mut self,
        index: usize,
        map: &mut Map<String, Value>,
        place: &Place<'_>,
    ) -> Result<(), Status> {
        let graph = self.graph;
        let this = &graph.structs[index];
        let owner = Owner { name: this.name.rsplit('.').next().unwrap_or_default() };
        let mut drop_any = false;
        for (key, value) in map.iter_mut() {
            let Some(field) = this.fields.get(key) else {
                let place = Place { parent: Some(place), step: Step::Field(key) };
                self.unknown.push(format!("unknown field {}", crate::field::go_quote(&place.spell(true))));
                drop_any = true;
                continue;
            };
            if value.is_null() {
                drop_any = true;
                continue;
            }
            let place = Place { parent: Some(place), step: Step::Field(key) };
            self.value(&field.kind, value, &place, &owner)?;
            drop_any |= is_empty_collection(&field.kind, value);
        }
        if drop_any {
            map.retain(|key, value| {
                this.fields
                    .get(key)
                    .is_some_and(|field| !value.is_null() && !is_empty_collection(&field.kind, value))
            });
        }
        Ok(())
    }

    fn scalar(
        &self,
        kind: &Type,
        value: &mut Value,
        place: &Place<'_>,
        owner: &Owner<'_>,
    ) -> Result<(), Status> {
        if value.is_null() {
            *value = match kind {
                Type::Bool => false.into(),
                Type::Int32 | Type::Int64 | Type::Float | Type::IntOrString => 0.into(),
                Type::Quantity => "0".into(),
                _ => "".into(),
            };
            return Ok(());
        }
        let fits = match kind {
            Type::String => value.is_string(),
            Type::Bool => value.is_boolean(),
            Type::Float => value.is_number(),
            Type::Int64 => {
                // YAML and some clients write whole numbers as 1.0.
                whole(value);
                value.is_i64()
            }
            Type::Int32 => {
                whole(value);
                value.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
            }
            Type::IntOrString => {
                whole(value);
                value.is_string() || value.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
            }
            Type::Quantity => {
                let text = match &*value {
                    Value::String(text) => text.trim().to_owned(),
                    Value::Number(number) => number.to_string(),
                    _ => String::from("{}"),
                };
                match text.parse::<Quantity>() {
                    Ok(quantity) => {
                        *value = quantity.to_string().into();
                        true
                    }
                    Err(error) => return Err(cannot_be_handled(self.resource, &error.to_string())),
                }
            }
            Type::Time | Type::MicroTime => match value.as_str() {
                Some(text) => match text.parse::<jiff::Timestamp>() {
                    Ok(_) => true,
                    Err(_) => {
                        let quoted = crate::field::go_quote(text);
                        return Err(cannot_be_handled(
                            self.resource,
                            &format!(
                                "parsing time {quoted} as \"2006-01-02T15:04:05Z07:00\": cannot parse {quoted} \
                                 as \"2006\""
                            ),
                        ));
                    }
                },
                None => false,
            },
            Type::Bytes => match value.as_str() {
                Some(text) => {
                    use base64::Engine as _;
                    let compact: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
                    match base64::engine::general_purpose::STANDARD.decode(&compact) {
                        Ok(_) => {
                            if compact.len() != text.len() {
                                *value = compact.into();
                            }
                            true
                        }
                        Err(error) => {
                            let at = match error {
                                base64::DecodeError::InvalidByte(at, _)
                                | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                                base64::DecodeError::InvalidLength(at) => at - at % 4,
                                base64::DecodeError::InvalidPadding => compact.len(),
                            };
                            return Err(cannot_be_handled(
                                self.resource,
                                &format!("illegal base64 data at input byte {at}"),
                            ));
                        }
                    }
                }
                None => false,
            },
            Type::Struct(_) | Type::Map(_) | Type::List(_) | Type::Any => true,
        };
        if fits { Ok(()) } else { Err(self.mismatch(kind, value, place, owner)) }
    }

    fn mismatch(&self, kind: &Type, value: &Value, place: &Place<'_>, owner: &Owner<'_>) -> Status {
        let found = match value {
            Value::Null => "null".to_owned(),
            Value::Bool(_) => "bool".to_owned(),
            Value::Number(n) if n.is_i64() && !matches!(kind, Type::Int32 | Type::Int64) => {
                "number".to_owned()
            }
            Value::Number(n) if matches!(kind, Type::Int32 | Type::Int64) => format!("number {n}"),
            Value::Number(_) => "number".to_owned(),
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
        };
        let path = place.spell(false);
        cannot_be_handled(
            self.resource,
            &format!(
                "json: cannot unmarshal {found} into Go struct field {}.{path} of type {}",
                owner.name,
                self.go_type(kind)
            ),
        )
    }

    /// The name of a type in the language the error texts come from.
    fn go_type(&self, kind: &Type) -> String {
        match kind {
            Type::Struct(index) => {
                let name = &self.graph.structs[*index].name;
                let mut parts = name.rsplit('.');
                let kind = parts.next().unwrap_or_default();
                format!("{}.{kind}", parts.next().unwrap_or("v1"))
            }
            Type::Map(inner) => format!("map[string]{}", self.go_type(inner)),
            Type::List(inner) => format!("[]{}", self.go_type(inner)),
            Type::String => "string".into(),
            Type::Bytes => "[]uint8".into(),
            Type::Int32 => "int32".into(),
            Type::Int64 => "int64".into(),
            Type::Float => "float64".into(),
            Type::Bool => "bool".into(),
            Type::Quantity => "resource.Quantity".into(),
            Type::Time => "v1.Time".into(),
            Type::MicroTime => "v1.MicroTime".into(),
            Type::IntOrString => "intstr.IntOrString".into(),
            Type::Any => "interface {}".into(),
        }
    }
}

/// A list or map that says nothing; an empty struct may say something (`securityContext: {}`).
fn is_empty_collection(kind: &Type, value: &Value) -> bool {
    match (kind, value) {
        (Type::List(_), Value::Array(list)) => list.is_empty(),
        (Type::Map(_), Value::Object(map)) => map.is_empty(),
        _ => false,
    }
}

/// `1.0` becomes `1`.
#[allow(clippy::cast_possible_truncation, reason = "the value is checked to be whole and in range")]
fn whole(value: &mut Value) {
    if let Some(float) = value.as_f64().filter(|_| value.is_f64())
        && float.fract() == 0.0
        && float.abs() < 9e15
    {
        *value = Value::from(float as i64);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pods() -> &'static Resource {
        catalogue::find("", "v1", "pods").unwrap()
    }

    #[test]
    fn unknown_fields_are_named_and_dropped() {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "bad": 1, "labels": {"free": "x"}},
            "spec": {"foo": 1, "containers": [{"name": "c", "imagee": "x", "env": [], "args": null}]},
        });
        let unknown = normalize(pods(), &mut pod).unwrap();
        assert_eq!(
            unknown,
            [
                "unknown field \"metadata.bad\"",
                "unknown field \"spec.foo\"",
                "unknown field \"spec.containers[0].imagee\""
            ]
        );
        assert_eq!(
            pod,
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "a", "labels": {"free": "x"}},
                "spec": {"containers": [{"name": "c"}]},
            })
        );
        assert_eq!(
            strict_decoding_error(pods(), &unknown[1..2]).message,
            "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \"spec.foo\""
        );
    }

    #[test]
    fn quantities_are_stored_in_canonical_form() {
        let mut pod = json!({"spec": {"containers": [
            {"resources": {"limits": {"cpu": 1, "memory": "1024Mi"}, "requests": {"cpu": "0.5"}}}
        ]}});
        normalize(pods(), &mut pod).unwrap();
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})
        );
    }

    #[test]
    fn wrong_types_are_refused_in_upstreams_words() {
        for (pod, why) in [
            (
                json!({"spec": {"containers": "x"}}),
                "json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type []v1.Container",
            ),
            (
                json!({"spec": {"containers": [{"image": 1}]}}),
                "json: cannot unmarshal number into Go struct field Container.spec.containers.image of type string",
            ),
            (
                json!({"metadata": {"labels": {"a": 1}}}),
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "x"}}}]}}),
                "quantities must match the regular expression \
                 '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
        ] {
            let status = normalize(pods(), &mut pod.clone()).unwrap_err();
            assert_eq!(status.message, format!("Pod in version \"v1\" cannot be handled as a Pod: {why}"));
            assert_eq!(status.code, 400);
        }
    }

    #[test]
    fn a_normalized_object_has_a_typed_view_that_says_the_same() {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "creationTimestamp": "2020-01-01T00:00:00Z"},
            "spec": {
                "containers": [{"name": "c", "ports": [{"containerPort": 80}], "tty": true}],
                "securityContext": {}, "terminationGracePeriodSeconds": 0
            },
        });
        normalize(pods(), &mut pod).unwrap();
        let typed: k8s_openapi::api::core::v1::Pod = serde_json::from_value(pod.clone()).unwrap();
        assert_eq!(serde_json::to_value(typed).unwrap(), pod);
    }

    #[test]
    fn every_row_of_the_catalogue_has_a_type_and_every_rule_a_field() {
        let graph = graph();
        for resource in catalogue::resources() {
            assert!(graph.root(resource).is_some(), "{resource:?}");
        }
        for rule in MERGE_RULES {
            let used =
                graph.structs.iter().flat_map(|this| this.fields.values()).any(|f| f.merge == Some(rule));
            assert!(used, "{rule:?}");
        }
    }
}
