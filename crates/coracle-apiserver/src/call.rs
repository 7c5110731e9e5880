//! One request for a resource: the row, the scope, who asks and how the answer should look.

use std::str::FromStr;

use coracle_api::catalogue::{self, Resource, Subresource};
use coracle_api::selector::{FieldSelector, LabelSelector};
use coracle_api::status::Status;
use http::{HeaderMap, Method};

use crate::auth::UserInfo;
use crate::hub::{Attributes, Scope};
use crate::negotiate::{Format, Transforms};
use crate::request::{Query, ResourcePath, Verb, verb};

/// A request for a resource that exists, with a verb that it offers.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) row: &'static Resource,
    pub(crate) subresource: Option<&'static Subresource>,
    pub(crate) verb: Verb,
    /// `None` for cluster-scoped resources, and for all namespaces.
    pub(crate) namespace: Option<String>,
    /// Empty for requests about a collection.
    pub(crate) name: String,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) user: UserInfo,
}

impl Call {
    /// Finds what a path means.
    pub(crate) fn resolve(
        path: &ResourcePath,
        method: &Method,
        query: Query,
        headers: HeaderMap,
        user: UserInfo,
    ) -> Result<Self, Status> {
        let row = catalogue::find(&path.group, &path.version, &path.resource)
            .ok_or_else(Status::unknown_resource)?;
        let subresource = match &path.subresource {
            Some(name) => Some(row.subresource(name).ok_or_else(Status::unknown_resource)?),
            None => None,
        };
        // For a namespace itself, the path's namespace is its own name.
        let own_namespace = row.group.is_empty() && row.plural == "namespaces";
        let lost = row.namespaced && path.namespace.is_none() && path.name.is_some();
        let misplaced = !row.namespaced && path.namespace.is_some() && !own_namespace;
        if lost || misplaced {
            return Err(Status::unknown_resource());
        }
        let verb = verb(method, path.name.is_some(), &query)
            .ok_or_else(|| Status::method_not_allowed(row.group, row.plural, method.as_str()))?;
        let offered = subresource.map_or(row.verbs, |sub| sub.verbs);
        let all_namespaces = row.namespaced && path.namespace.is_none();
        let reads = matches!(verb, Verb::List | Verb::Watch);
        let named_create = verb == Verb::Create && path.name.is_some() && subresource.is_none();
        if !offered.contains(&verb.as_str()) || (all_namespaces && !reads) || named_create {
            return Err(Status::method_not_allowed(row.group, row.plural, verb.as_str()));
        }
        Ok(Call {
            row,
            subresource,
            verb,
            namespace: path.namespace.clone().filter(|_| row.namespaced),
            name: path.name.clone().unwrap_or_default(),
            query,
            headers,
            user,
        })
    }

    /// The store's key of the object that the request names.
    pub(crate) fn key(&self) -> String {
        self.row.storage_key(self.namespace.as_deref().unwrap_or_default(), &self.name)
    }

    /// How to answer.
    pub(crate) fn format(&self) -> Result<Format, Status> {
        Format::negotiate(&self.headers, &self.query, Transforms::Object)
    }

    /// 404 for the object that the request names.
    pub(crate) fn not_found(&self) -> Status {
        Status::not_found(self.row.group, self.row.plural, &self.name)
    }

    /// The selectors of a list or watch.
    pub(crate) fn filter(&self) -> Result<Filter, Status> {
        let mut filter = Filter {
            row: self.row,
            labels: LabelSelector::parse(self.query.get("labelSelector"))?,
            fields: FieldSelector::parse(self.query.get("fieldSelector"), self.row)?,
        };
        if filter.fields.is_everything() && !self.name.is_empty() {
            let text = format!("metadata.name={}", self.name);
            filter.fields = FieldSelector::parse(&text, self.row)?;
        }
        Ok(filter)
    }

    /// Divides what is selected into a part that is told from the key and the indexed field, and what is left for
    /// the filter. Objects outside the request's namespace may be in the scope.
    pub(crate) fn narrow(&self, mut filter: Filter) -> (Scope, Filter) {
        let row = self.row;
        let wanted = |field| filter.fields.exact(field).map(str::to_owned);
        let namespace = self.namespace.clone().or_else(|| wanted("metadata.namespace"));
        let scope = match (wanted("metadata.name"), &namespace) {
            (Some(name), Some(namespace)) if row.namespaced => {
                Some(Scope::Object(row.storage_key(namespace, &name).into()))
            }
            (Some(name), _) if !row.namespaced => Some(Scope::Object(row.storage_key("", &name).into())),
            _ => None,
        };
        let scope = if let Some(scope) = scope {
            filter.fields.take_exact("metadata.name");
            scope
        } else if let Some(value) =
            row.strategy.indexed_field().and_then(|field| filter.fields.take_exact(field))
        {
            return (Scope::Indexed(value.into()), filter);
        } else if let Some(namespace) = namespace.as_deref().filter(|_| row.namespaced) {
            Scope::Namespace(row.storage_list_prefix(Some(namespace)).into())
        } else {
            Scope::All
        };
        if self.namespace.is_none() && scope != Scope::All {
            filter.fields.take_exact("metadata.namespace");
        }
        (scope, filter)
    }

    /// Whether nothing is to be written.
    pub(crate) fn dry_run(&self) -> Result<bool, Status> {
        dry_run(self.query.all("dryRun"), "Options", "meta.k8s.io")
    }
}

/// Reads the values of `dryRun`.
pub(crate) fn dry_run(values: &[String], kind: &str, group: &str) -> Result<bool, Status> {
    use coracle_api::field::{FieldError, Path};
    if let Some(bad) = values.iter().find(|value| !value.is_empty() && *value != "All") {
        let error = FieldError::not_supported(&Path::new("dryRun"), bad.as_str(), &["All"]);
        return Err(Status::invalid(group, kind, "", &[error]));
    }
    Ok(values.iter().any(|value| value == "All"))
}

/// The selectors of a list or watch.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    pub(crate) row: &'static Resource,
    pub(crate) labels: LabelSelector,
    pub(crate) fields: FieldSelector,
}

impl Filter {
    /// Whether everything is selected, so that nothing needs to be decoded.
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    /// Whether an object with these attributes is selected.
    pub(crate) fn selects(&self, attributes: &Attributes) -> bool {
        self.labels.matches_labels(|name| attributes.label(name))
            && self.fields.matches_values(|name| attributes.field(name))
    }

    /// Whether `object`, in the served form, is selected.
    pub(crate) fn matches(&self, object: &serde_json::Value) -> bool {
        self.labels.matches(object) && self.fields.matches(self.row, object)
    }
}

/// How strictly bodies are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl FromStr for FieldValidation {
    type Err = Status;

    fn from_str(text: &str) -> Result<Self, Status> {
        use coracle_api::field::{FieldError, Path};
        match text {
            "" | "Warn" => Ok(FieldValidation::Warn),
            "Ignore" => Ok(FieldValidation::Ignore),
            "Strict" => Ok(FieldValidation::Strict),
            other => {
                let supported = ["", "Ignore", "Strict", "Warn"];
                let error = FieldError::not_supported(&Path::new("fieldValidation"), other, &supported);
                Err(Status::invalid("meta.k8s.io", "CreateOptions", "", &[error]))
            }
        }
    }
}
