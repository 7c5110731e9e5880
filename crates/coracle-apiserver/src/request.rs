//! What a request asks for, from its method and URL alone.

use std::collections::BTreeMap;

use coracle_api::status::Status;
use http::Method;
use url::form_urlencoded;

/// The verbs of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are the API's own words")]
pub(crate) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    /// The verb of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let all = [
            Verb::Get,
            Verb::List,
            Verb::Watch,
            Verb::Create,
            Verb::Update,
            Verb::Patch,
            Verb::Delete,
            Verb::DeleteCollection,
        ];
        all.into_iter().find(|verb| verb.as_str() == name)
    }

    /// As authorization and metrics name it.
    #[must_use]
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch => "patch",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
        }
    }
}

/// A path below `/api/v1` or `/apis/GROUP/VERSION`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResourcePath {
    /// API group; empty for the core group.
    pub(crate) group: String,
    /// API version.
    pub(crate) version: String,
    /// Namespace, if the path has one. For a namespace itself, its own name, as upstream has it.
    pub(crate) namespace: Option<String>,
    /// Plural name.
    pub(crate) resource: String,
    /// Object name.
    pub(crate) name: Option<String>,
    /// Subresource.
    pub(crate) subresource: Option<String>,
}

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// A resource.
    Resource(ResourcePath),
    /// Anything else: discovery, health, metrics.
    Path(Vec<String>),
}

/// Takes a path apart.
pub(crate) fn route(path: &str) -> Result<Route, Status> {
    let mut segments = Vec::new();
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        segments.push(unescape(segment)?);
    }
    let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Ok(Route::Path(segments)),
    };
    let own = |text: &str| text.to_owned();
    let (namespace, resource, name, subresource) = match *rest {
        // The two subresources of namespaces look like resources in a namespace.
        ["namespaces", name, sub @ ("status" | "finalize")] => {
            (Some(own(name)), own("namespaces"), Some(own(name)), Some(own(sub)))
        }
        ["namespaces", name] => (Some(own(name)), own("namespaces"), Some(own(name)), None),
        ["namespaces", namespace, resource] => (Some(own(namespace)), own(resource), None, None),
        ["namespaces", namespace, resource, name] => {
            (Some(own(namespace)), own(resource), Some(own(name)), None)
        }
        ["namespaces", namespace, resource, name, sub] => {
            (Some(own(namespace)), own(resource), Some(own(name)), Some(own(sub)))
        }
        [resource] => (None, own(resource), None, None),
        [resource, name] => (None, own(resource), Some(own(name)), None),
        [resource, name, sub] => (None, own(resource), Some(own(name)), Some(own(sub))),
        _ => return Err(Status::unknown_resource()),
    };
    Ok(Route::Resource(ResourcePath {
        group: own(group),
        version: own(version),
        namespace,
        resource,
        name,
        subresource,
    }))
}

/// Undoes percent-encoding. A segment cannot bring in another segment.
fn unescape(segment: &str) -> Result<String, Status> {
    let bad = || Status::bad_request(format!("invalid path segment {segment:?}"));
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16)).ok_or_else(bad);
        let value = digit()? * 16 + digit()?;
        bytes.push(u8::try_from(value).map_err(|_| bad())?);
    }
    let text = String::from_utf8(bytes).map_err(|_| bad())?;
    if text.contains(['/', '\0']) || text == "." || text == ".." { Err(bad()) } else { Ok(text) }
}

/// The verb of a request for a resource.
pub(crate) fn verb(method: &Method, has_name: bool, query: &Query) -> Option<Verb> {
    Some(match (method.as_str(), has_name) {
        ("GET" | "HEAD", true) => Verb::Get,
        ("GET" | "HEAD", false) if query.flag("watch") => Verb::Watch,
        ("GET" | "HEAD", false) => Verb::List,
        ("POST", _) => Verb::Create,
        ("PUT", true) => Verb::Update,
        ("PATCH", true) => Verb::Patch,
        ("DELETE", true) => Verb::Delete,
        ("DELETE", false) => Verb::DeleteCollection,
        _ => return None,
    })
}

/// The query of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Query(BTreeMap<String, Vec<String>>);

impl Query {
    /// Parses `a=b&c=d`.
    #[must_use]
    pub(crate) fn parse(text: Option<&str>) -> Self {
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (key, value) in form_urlencoded::parse(text.unwrap_or_default().as_bytes()) {
            values.entry(key.into_owned()).or_default().push(value.into_owned());
        }
        Query(values)
    }

    /// The first value of `key`; empty if there is none.
    #[must_use]
    pub(crate) fn get(&self, key: &str) -> &str {
        self.0.get(key).and_then(|values| values.first()).map_or("", String::as_str)
    }

    /// Every value of `key`.
    #[must_use]
    pub(crate) fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// Whether `key` is present, with or without a value.
    #[must_use]
    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// A truth value: present means true unless it says `false` or `0`.
    #[must_use]
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.has(key) && !matches!(self.get(key).to_ascii_lowercase().as_str(), "false" | "0")
    }

    /// A number, `None` if absent or empty.
    ///
    /// # Errors
    /// 400 in upstream's words if it is not one.
    pub(crate) fn number(&self, key: &str) -> Result<Option<i64>, Status> {
        match self.get(key) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart_as_upstream_does() {
        let table = [
            ("/api/v1/pods", ("", "v1", None, "pods", None, None)),
            ("/api/v1/nodes/n1", ("", "v1", None, "nodes", Some("n1"), None)),
            ("/api/v1/nodes/n1/status", ("", "v1", None, "nodes", Some("n1"), Some("status"))),
            ("/api/v1/namespaces", ("", "v1", None, "namespaces", None, None)),
            ("/api/v1/namespaces/a", ("", "v1", Some("a"), "namespaces", Some("a"), None)),
            (
                "/api/v1/namespaces/a/finalize",
                ("", "v1", Some("a"), "namespaces", Some("a"), Some("finalize")),
            ),
            ("/api/v1/namespaces/a/pods", ("", "v1", Some("a"), "pods", None, None)),
            ("/api/v1/namespaces/a/pods/p/log", ("", "v1", Some("a"), "pods", Some("p"), Some("log"))),
            (
                "/apis/coordination.k8s.io/v1/namespaces/a/leases/l",
                ("coordination.k8s.io", "v1", Some("a"), "leases", Some("l"), None),
            ),
        ];
        for (path, (group, version, namespace, resource, name, subresource)) in table {
            let own = |text: Option<&str>| text.map(str::to_owned);
            let expected = ResourcePath {
                group: group.into(),
                version: version.into(),
                namespace: own(namespace),
                resource: resource.into(),
                name: own(name),
                subresource: own(subresource),
            };
            assert_eq!(route(path).unwrap(), Route::Resource(expected), "{path}");
        }
        assert_eq!(
            route("/apis/apps/v1").unwrap(),
            Route::Path(vec!["apis".into(), "apps".into(), "v1".into()])
        );
    }

    #[test]
    fn a_segment_cannot_smuggle_in_another() {
        for path in [
            "/api/v1/pods/a%2Fb",
            "/api/v1/pods/..",
            "/api/v1/pods/%2e%2e",
            "/api/v1/pods/%zz",
            "/api/v1/pods/%ff",
        ] {
            assert_eq!(route(path).unwrap_err().code, 400, "{path}");
        }
    }

    #[test]
    fn flags_and_numbers() {
        let query = Query::parse(Some("watch&follow=false&tail=0&limit=5&bad=x"));
        assert!(query.flag("watch") && !query.flag("follow") && !query.flag("tail") && !query.flag("absent"));
        assert_eq!(query.number("limit").unwrap(), Some(5));
        assert_eq!(query.number("absent").unwrap(), None);
        assert_eq!(query.number("bad").unwrap_err().code, 400);
    }
}
