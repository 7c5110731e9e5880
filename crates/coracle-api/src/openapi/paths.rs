//! The operations of the served resources, with the parameters that clients look for.

use serde_json::{Map, Value, json};

use super::definitions::{self, DELETE_OPTIONS, Dialect, PATCH, STATUS};
use crate::catalogue::{self, Resource, Subresource};

/// Query parameters, with what they do.
const DRY_RUN: (&str, &str) =
    ("dryRun", "When present, indicates that modifications should not be persisted. Valid values are: All.");
const FIELD_MANAGER: (&str, &str) =
    ("fieldManager", "The name of the actor or entity that is making these changes.");
const FIELD_VALIDATION: (&str, &str) = (
    "fieldValidation",
    "What the server does with unknown and duplicate fields: Ignore, Warn or Strict. The default is Warn.",
);
const FORCE: (&str, &str) = ("force", "Only for apply patches, which this server does not take yet.");
const SELECTION: [(&str, &str); 9] = [
    ("allowWatchBookmarks", "Asks for watch events of type BOOKMARK."),
    ("continue", "Where to go on: the token of the page before."),
    ("fieldSelector", "Restricts the answer to objects with these fields."),
    ("labelSelector", "Restricts the answer to objects with these labels."),
    ("limit", "At most so many objects."),
    ("resourceVersion", "Which state of the collection is asked for."),
    ("resourceVersionMatch", "How resourceVersion is meant."),
    ("sendInitialEvents", "Begins a watch with the state of the collection."),
    ("timeoutSeconds", "Ends the call after so many seconds."),
];
const WATCH: (&str, &str) = ("watch", "Answers changes as they happen instead of a list.");
const DELETION: [(&str, &str); 4] = [
    DRY_RUN,
    ("gracePeriodSeconds", "Seconds until the object is deleted; zero deletes it at once."),
    ("orphanDependents", "Deprecated: use propagationPolicy."),
    ("propagationPolicy", "Whether and how garbage collection is performed."),
];

/// `/api/v1` or `/apis/GROUP/VERSION`.
pub(super) fn base(resource: &Resource) -> String {
    if resource.group.is_empty() {
        format!("/api/{}", resource.version)
    } else {
        format!("/apis/{}/{}", resource.group, resource.version)
    }
}

/// All paths of some resources.
pub(super) fn paths(resources: &[&Resource], dialect: Dialect) -> Map<String, Value> {
    let mut paths = Map::new();
    for resource in resources {
        let base = base(resource);
        if resource.namespaced {
            let everywhere = Path { resource, dialect, namespaced: false };
            if resource.allows("list") {
                paths.insert(format!("{base}/{}", resource.plural), everywhere.listing());
            }
        }
        let path = Path { resource, dialect, namespaced: resource.namespaced };
        let collection = if resource.namespaced {
            format!("{base}/namespaces/{{namespace}}/{}", resource.plural)
        } else {
            format!("{base}/{}", resource.plural)
        };
        let object = format!("{collection}/{{name}}");
        for subresource in resource.subresources {
            paths.insert(format!("{object}/{}", subresource.name), path.subresource(subresource));
        }
        if resource.allows("get") {
            paths.insert(object, path.object());
        }
        paths.insert(collection, path.collection());
    }
    paths.sort_keys();
    paths
}

/// Makes the operations of one path.
struct Path<'a> {
    resource: &'a Resource,
    dialect: Dialect,
    namespaced: bool,
}

/// What an operation takes and answers.
struct Operation<'a> {
    action: &'a str,
    parameters: &'a [(&'a str, &'a str)],
    /// Definition of the request body.
    body: Option<&'a str>,
    /// Definition of the answer.
    answer: &'a str,
    /// Group, version and kind that the operation is about.
    about: (&'a str, &'a str, &'a str),
}

impl Path<'_> {
    fn about(&self) -> (&str, &str, &str) {
        (self.resource.group, self.resource.version, self.resource.kind)
    }

    fn listing(&self) -> Value {
        let list = definitions::list(self.resource);
        let parameters: Vec<_> = SELECTION.into_iter().chain([WATCH]).collect();
        self.item([(
            "get",
            Operation {
                action: "list",
                parameters: &parameters,
                body: None,
                answer: &list,
                about: self.about(),
            },
        )])
    }

    fn collection(&self) -> Value {
        let (kind, list) = (definitions::kind(self.resource), definitions::list(self.resource));
        let listing: Vec<_> = SELECTION.into_iter().chain([WATCH]).collect();
        let deleting: Vec<_> = SELECTION.into_iter().chain(DELETION).collect();
        let about = self.about();
        let all = [
            (
                "list",
                "get",
                Operation { action: "list", parameters: &listing, body: None, answer: &list, about },
            ),
            (
                "create",
                "post",
                Operation {
                    action: "post",
                    parameters: &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION],
                    body: Some(&kind),
                    answer: &kind,
                    about,
                },
            ),
            (
                "deletecollection",
                "delete",
                Operation {
                    action: "deletecollection",
                    parameters: &deleting,
                    body: Some(DELETE_OPTIONS),
                    answer: STATUS,
                    about,
                },
            ),
        ];
        self.item(all.into_iter().filter(|(verb, ..)| self.resource.allows(verb)).map(|(_, m, o)| (m, o)))
    }

    fn object(&self) -> Value {
        let kind = definitions::kind(self.resource);
        let about = self.about();
        let all = [
            ("get", "get", Operation { action: "get", parameters: &[], body: None, answer: &kind, about }),
            (
                "update",
                "put",
                Operation {
                    action: "put",
                    parameters: &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION],
                    body: Some(&kind),
                    answer: &kind,
                    about,
                },
            ),
            (
                "patch",
                "patch",
                Operation {
                    action: "patch",
                    parameters: &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE],
                    body: Some(PATCH),
                    answer: &kind,
                    about,
                },
            ),
            (
                "delete",
                "delete",
                Operation {
                    action: "delete",
                    parameters: &DELETION,
                    body: Some(DELETE_OPTIONS),
                    answer: STATUS,
                    about,
                },
            ),
        ];
        self.item(all.into_iter().filter(|(verb, ..)| self.resource.allows(verb)).map(|(_, m, o)| (m, o)))
    }

    /// Subresources that carry the resource's own kind, or one of the catalogue, have schemas; of the others only the method is told.
    fn subresource(&self, subresource: &Subresource) -> Value {
        let carried = catalogue::carried_by(subresource);
        let kind = definitions::kind(carried.unwrap_or(self.resource));
        let own = subresource.kind == self.resource.kind;
        let same = own || carried.is_some();
        let answer = if same { kind.as_str() } else { STATUS };
        let about = (subresource.group, subresource.version, subresource.kind);
        let about = if own { self.about() } else { about };
        let operations = subresource.verbs.iter().filter_map(|verb| {
            let (method, action, body) = match *verb {
                "get" => ("get", "get", None),
                "create" => ("post", if same { "post" } else { "connect" }, None),
                "update" => ("put", "put", same.then_some(kind.as_str())),
                "patch" => ("patch", "patch", Some(PATCH)),
                _ => return None,
            };
            let parameters: &[_] = match *verb {
                "get" => &[],
                "patch" => &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE],
                _ => &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION],
            };
            Some((method, Operation { action, parameters, body, answer, about }))
        });
        self.item(operations)
    }

    fn item<'a>(&self, operations: impl IntoIterator<Item = (&'a str, Operation<'a>)>) -> Value {
        let item: Map<String, Value> = operations
            .into_iter()
            .map(|(method, operation)| (method.to_owned(), self.operation(&operation)))
            .collect();
        Value::Object(item)
    }

    fn operation(&self, operation: &Operation<'_>) -> Value {
        let mut parameters: Vec<Value> =
            operation.parameters.iter().map(|(name, description)| self.query(name, description)).collect();
        let (group, version, kind) = operation.about;
        let mut out = json!({
            "responses": { "200": self.answer(operation.answer) },
            "x-kubernetes-action": operation.action,
            "x-kubernetes-group-version-kind": { "group": group, "kind": kind, "version": version },
        });
        if let Some(body) = operation.body {
            let schema = self.dialect.reference(body);
            match self.dialect {
                Dialect::V2 => parameters.push(json!({ "in": "body", "name": "body", "schema": schema })),
                Dialect::V3 => {
                    let media: &[&str] = if body == PATCH {
                        &[
                            "application/json-patch+json",
                            "application/merge-patch+json",
                            "application/strategic-merge-patch+json",
                        ]
                    } else {
                        &["application/json", "application/yaml"]
                    };
                    let content: Map<String, Value> =
                        media.iter().map(|kind| ((*kind).to_owned(), json!({ "schema": schema }))).collect();
                    out["requestBody"] = json!({ "content": content });
                }
            }
        }
        if self.namespaced {
            parameters.push(self.in_path("namespace"));
        }
        if ["get", "put", "patch", "delete", "connect"].contains(&operation.action) {
            parameters.push(self.in_path("name"));
        }
        out["parameters"] = Value::Array(parameters);
        out
    }

    fn query(&self, name: &str, description: &str) -> Value {
        let kind = match name {
            "limit" | "timeoutSeconds" | "gracePeriodSeconds" => "integer",
            "watch" | "allowWatchBookmarks" | "sendInitialEvents" | "force" | "orphanDependents" => "boolean",
            _ => "string",
        };
        let parameter =
            json!({ "name": name, "in": "query", "description": description, "uniqueItems": true });
        self.typed(parameter, kind)
    }

    fn in_path(&self, name: &str) -> Value {
        self.typed(json!({ "name": name, "in": "path", "required": true }), "string")
    }

    fn typed(&self, mut parameter: Value, kind: &str) -> Value {
        match self.dialect {
            Dialect::V2 => parameter["type"] = kind.into(),
            Dialect::V3 => {
                let unique = parameter.as_object_mut().and_then(|map| map.shift_remove("uniqueItems"));
                parameter["schema"] = json!({ "type": kind });
                if let Some(unique) = unique {
                    parameter["schema"]["uniqueItems"] = unique;
                }
            }
        }
        parameter
    }

    fn answer(&self, definition: &str) -> Value {
        let schema = self.dialect.reference(definition);
        match self.dialect {
            Dialect::V2 => json!({ "description": "OK", "schema": schema }),
            Dialect::V3 => {
                json!({ "description": "OK", "content": { "application/json": { "schema": schema } } })
            }
        }
    }
}
