//! Who may do what. Nothing is allowed that this file does not name.
//!
//! Administrators (`system:masters`) may do everything. Each component has one row of rules, for what it needs and
//! nothing else. A node agent is narrower still: its rules name its own objects, and what a rule over names
//! cannot say (a Pod that is bound to this node, a Secret that such a Pod uses) is checked by [`crate::node`]
//! against the objects themselves.

use coracle_api::catalogue;
use coracle_api::selector::FieldSelector;
use coracle_api::status::{Attempt, Denied, Status};

use crate::auth::{SYSTEM_AUTHENTICATED, SYSTEM_MASTERS, UserInfo};
use crate::request::{ResourcePath, Verb};

/// One thing that is allowed.
struct Rule {
    verbs: &'static [&'static str],
    /// API group; `*` for any.
    group: &'static str,
    /// `pods`, `pods/status`; `*` for any resource.
    resources: &'static [&'static str],
}

const READ: &[&str] = &["get", "list", "watch"];
const WRITE_EVENTS: &[&str] = &["create", "patch", "update"];

const fn rule(
    verbs: &'static [&'static str],
    group: &'static str,
    resources: &'static [&'static str],
) -> Rule {
    Rule { verbs, group, resources }
}

/// What every component may do.
const COMPONENT: &[Rule] =
    &[rule(WRITE_EVENTS, "", &["events"]), rule(WRITE_EVENTS, "events.k8s.io", &["events"])];

/// Components by user name.
const COMPONENTS: &[(&str, &[Rule])] = &[
    (
        // Feeds the copies of objects that components of one process share; it can change nothing.
        "system:coracle-informers",
        &[
            rule(READ, "", &["configmaps", "namespaces", "nodes", "pods", "serviceaccounts"]),
            rule(READ, "apps", &["deployments", "replicasets"]),
            rule(READ, "batch", &["cronjobs", "jobs"]),
            rule(READ, "coordination.k8s.io", &["leases"]),
        ],
    ),
    (
        // The network of each node: whose Pods are where.
        "system:kube-proxy",
        &[rule(READ, "", &["nodes", "services", "endpoints"])],
    ),
    (
        "system:kube-scheduler",
        &[
            rule(READ, "", &["nodes", "namespaces", "services"]),
            rule(&["get", "list", "watch", "delete"], "", &["pods"]),
            rule(&["create"], "", &["bindings", "pods/binding"]),
            rule(&["patch", "update"], "", &["pods/status"]),
        ],
    ),
    (
        "system:serviceaccount:kube-system:namespace-controller",
        &[
            rule(&["get", "list", "watch", "delete"], "", &["namespaces"]),
            rule(&["update"], "", &["namespaces/finalize"]),
            rule(&["patch", "update"], "", &["namespaces/status"]),
            rule(&["get", "list", "watch", "delete", "deletecollection"], "*", &["*"]),
        ],
    ),
    (
        "system:serviceaccount:kube-system:service-account-controller",
        &[
            rule(READ, "", &["namespaces"]),
            rule(&["get", "list", "watch", "create"], "", &["serviceaccounts"]),
        ],
    ),
    (
        "system:serviceaccount:kube-system:root-ca-cert-publisher",
        &[
            rule(READ, "", &["namespaces"]),
            rule(&["get", "list", "watch", "create", "patch", "update"], "", &["configmaps"]),
        ],
    ),
    (
        "system:serviceaccount:kube-system:node-controller",
        &[
            rule(&["get", "list", "watch", "patch", "update"], "", &["nodes"]),
            rule(&["patch", "update"], "", &["nodes/status"]),
        ],
    ),
    (
        // It reads the metadata of everything, and takes owners and finalizers from it.
        "system:serviceaccount:kube-system:generic-garbage-collector",
        &[rule(&["get", "list", "watch", "patch", "update", "delete"], "*", &["*"])],
    ),
    (
        "system:serviceaccount:kube-system:node-lifecycle-controller",
        &[
            rule(&["get", "patch", "update"], "", &["nodes"]),
            rule(&["patch", "update"], "", &["nodes/status", "pods/status"]),
        ],
    ),
    (
        "system:serviceaccount:kube-system:taint-eviction-controller",
        &[
            rule(&["get"], "", &["nodes"]),
            rule(&["get", "delete"], "", &["pods"]),
            rule(&["patch", "update"], "", &["pods/status"]),
        ],
    ),
    (
        "system:serviceaccount:kube-system:pod-garbage-collector",
        &[
            rule(&["get"], "", &["nodes"]),
            rule(&["delete"], "", &["pods"]),
            rule(&["patch", "update"], "", &["pods/status"]),
        ],
    ),
    (
        "system:serviceaccount:kube-system:replicaset-controller",
        &[
            rule(READ, "apps", &["replicasets"]),
            rule(&["patch", "update"], "apps", &["replicasets/status"]),
            rule(&["get", "list", "watch", "create", "patch", "delete"], "", &["pods"]),
        ],
    ),
    (
        "system:serviceaccount:kube-system:deployment-controller",
        &[
            rule(READ, "apps", &["deployments"]),
            // A rollback is a change of the Deployment itself.
            rule(&["patch", "update"], "apps", &["deployments", "deployments/status"]),
            rule(&["get", "list", "watch", "create", "patch", "update", "delete"], "apps", &["replicasets"]),
            rule(READ, "", &["pods"]),
        ],
    ),
    (
        "system:serviceaccount:kube-system:job-controller",
        &[
            rule(READ, "batch", &["jobs"]),
            rule(&["patch", "update"], "batch", &["jobs/status"]),
            rule(&["get", "list", "watch", "create", "patch", "delete"], "", &["pods"]),
        ],
    ),
    (
        "system:serviceaccount:kube-system:cronjob-controller",
        &[
            rule(READ, "batch", &["cronjobs"]),
            rule(&["patch", "update"], "batch", &["cronjobs/status"]),
            rule(&["get", "list", "watch", "create", "delete"], "batch", &["jobs"]),
        ],
    ),
    (
        "system:serviceaccount:kube-system:ttl-after-finished-controller",
        &[rule(&["get", "list", "watch", "delete"], "batch", &["jobs"])],
    ),
];

/// Node agents; [`node_scope`] narrows these rules to the node's own objects.
const NODE: &[Rule] = &[
    rule(READ, "", &["services"]),
    rule(&["get", "list", "watch", "create", "patch", "update"], "", &["nodes"]),
    rule(&["get", "patch", "update"], "", &["nodes/status"]),
    rule(&["get", "list", "watch", "delete"], "", &["pods"]),
    rule(&["get", "patch", "update"], "", &["pods/status"]),
    rule(READ, "", &["configmaps", "secrets"]),
    rule(&["get", "create", "patch", "update", "delete"], "coordination.k8s.io", &["leases"]),
];

impl Rule {
    fn allows(&self, verb: &str, group: &str, resource: &str) -> bool {
        let any = |list: &[&str], word: &str| list.iter().any(|entry| *entry == "*" || *entry == word);
        any(self.verbs, verb) && any(&[self.group], group) && any(self.resources, resource)
    }
}

/// A request for a resource, as authorization sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a> {
    pub(crate) user: &'a UserInfo,
    pub(crate) verb: Verb,
    pub(crate) path: &'a ResourcePath,
    pub(crate) field_selector: &'a str,
}

impl Attributes<'_> {
    /// The value that the field selector asks of `field`, read as the handler will read it.
    pub(crate) fn selected(&self, field: &str) -> Option<String> {
        let row = catalogue::find(&self.path.group, &self.path.version, &self.path.resource)?;
        let selector = FieldSelector::parse(self.field_selector, row).ok()?;
        selector.exact(field).map(str::to_owned)
    }
}

/// The verbs that a request needs: what runs or reaches something in a Pod creates it, also where a WebSocket makes
/// it a GET.
pub(crate) fn asks_for(verb: Verb, path: &ResourcePath) -> Vec<Verb> {
    let creates = path.group.is_empty()
        && path.resource == "pods"
        && matches!(path.subresource.as_deref(), Some("exec" | "attach" | "portforward"));
    if creates && verb == Verb::Get { vec![verb, Verb::Create] } else { vec![verb] }
}

/// Decides about a request for a resource.
pub(crate) fn authorize(attributes: &Attributes<'_>) -> Result<(), Status> {
    let Attributes { user, verb, path, .. } = *attributes;
    if user.is_in(SYSTEM_MASTERS) {
        return Ok(());
    }
    let resource = match &path.subresource {
        Some(sub) => format!("{}/{sub}", path.resource),
        None => path.resource.clone(),
    };
    let allows = |rules: &[Rule]| rules.iter().any(|rule| rule.allows(verb.as_str(), &path.group, &resource));
    let own = COMPONENTS.iter().find(|(name, _)| *name == user.name).map(|(_, rules)| *rules);
    if let Some(rules) = own
        && (allows(rules) || allows(COMPONENT))
    {
        return Ok(());
    }
    if let Some(node) = user.node_name()
        && (allows(NODE) || allows(COMPONENT))
    {
        return node_scope(attributes, node).map_err(|reason| denied(attributes, reason));
    }
    Err(denied(attributes, ""))
}

/// Narrows what a node agent may do to its own objects, as far as the request itself shows them.
fn node_scope(attributes: &Attributes<'_>, node: &str) -> Result<(), &'static str> {
    let Attributes { verb, path, .. } = *attributes;
    let selects = |field: &str, value: &str| attributes.selected(field).is_some_and(|is| is == value);
    let named = path.name.as_deref();
    let collection = matches!(verb, Verb::List | Verb::Watch);
    match path.resource.as_str() {
        "nodes" if collection && !selects("metadata.name", node) => {
            Err("can only list/watch its own Node, by field selector metadata.name")
        }
        "nodes" if named.is_some_and(|name| name != node) => Err("can only access its own Node"),
        "pods" if collection && !selects("spec.nodeName", node) => {
            Err("can only list/watch pods with spec.nodeName field selector")
        }
        "configmaps" | "secrets" if path.namespace.is_none() => {
            Err("can only read namespaced object of this type")
        }
        "configmaps" | "secrets" if collection && attributes.selected("metadata.name").is_none() => {
            Err("No Object name found")
        }
        "leases" if path.namespace.as_deref() != Some("kube-node-lease") => {
            Err("can only access leases in the \"kube-node-lease\" system namespace")
        }
        "leases" if named.is_some_and(|name| name != node) => {
            Err("can only access node lease with the same name as the requesting node")
        }
        _ => Ok(()),
    }
}

/// 403 in upstream's words.
pub(crate) fn denied(attributes: &Attributes<'_>, reason: &str) -> Status {
    let Attributes { user, verb, path, .. } = *attributes;
    Status::not_authorized(&Denied {
        user: &user.name,
        verb: verb.as_str(),
        attempt: Attempt::Resource {
            group: &path.group,
            resource: &path.resource,
            subresource: path.subresource.as_deref().unwrap_or_default(),
            namespace: path.namespace.as_deref().unwrap_or_default(),
            name: path.name.as_deref().unwrap_or_default(),
        },
        reason,
    })
}

/// Decides about a path that is not a resource: discovery is for everyone who is known, the rest for
/// administrators.
pub(crate) fn authorize_path(user: &UserInfo, verb: &str, segments: &[String]) -> Result<(), Status> {
    let discovery = matches!(
        segments.first().map(String::as_str),
        Some("api" | "apis" | "openapi" | "version" | "healthz" | "livez" | "readyz")
    );
    if user.is_in(SYSTEM_MASTERS) || (discovery && verb == "get" && user.is_in(SYSTEM_AUTHENTICATED)) {
        return Ok(());
    }
    let path = format!("/{}", segments.join("/"));
    Err(Status::not_authorized(&Denied {
        user: &user.name,
        verb,
        attempt: Attempt::Path { path: &path },
        reason: "",
    }))
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::request::{Query, Route, route, verb};

    fn may(user: &UserInfo, method: &str, url: &str) -> Result<(), Status> {
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let Route::Resource(path) = route(path).unwrap() else { panic!("{url} is no resource") };
        let query = Query::parse(Some(query));
        let verb =
            verb(&Method::from_bytes(method.as_bytes()).unwrap(), path.name.is_some(), &query).unwrap();
        authorize(&Attributes { user, verb, path: &path, field_selector: query.get("fieldSelector") })
    }

    #[test]
    fn each_identity_may_do_its_work_and_nothing_else() {
        let admin = UserInfo::new("kubernetes-admin", [SYSTEM_MASTERS]);
        let scheduler = UserInfo::new("system:kube-scheduler", []);
        let controller = |name: &str| UserInfo::service_account("kube-system", name);
        let node = UserInfo::node("n1");
        let nobody = UserInfo::new("jane", ["developers"]);
        let network = UserInfo::new("system:kube-proxy", []);
        let kubelet_client = UserInfo::new("kube-apiserver-kubelet-client", []);
        let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";
        let table = [
            (&admin, "DELETE", "/api/v1/nodes/n1", true),
            (&nobody, "GET", "/api/v1/namespaces/default/pods", false),
            (&kubelet_client, "GET", "/api/v1/nodes", false),
            (&scheduler, "POST", "/api/v1/namespaces/default/pods/p/binding", true),
            (&scheduler, "POST", "/api/v1/namespaces/default/events", true),
            (&scheduler, "GET", "/api/v1/secrets", false),
            (&scheduler, "POST", "/api/v1/namespaces/default/pods", false),
            (&controller("namespace-controller"), "DELETE", "/api/v1/namespaces/a/secrets", true),
            (&controller("namespace-controller"), "PUT", "/api/v1/namespaces/a/finalize", true),
            (&controller("namespace-controller"), "PUT", "/api/v1/namespaces/a/secrets/s", false),
            (&controller("service-account-controller"), "POST", "/api/v1/namespaces/a/serviceaccounts", true),
            (&controller("service-account-controller"), "GET", "/api/v1/pods", false),
            (&controller("root-ca-cert-publisher"), "POST", "/api/v1/namespaces/a/configmaps", true),
            (&controller("node-controller"), "PATCH", "/api/v1/nodes/n1", true),
            (&controller("generic-garbage-collector"), "DELETE", "/api/v1/namespaces/a/pods/p", true),
            (&controller("generic-garbage-collector"), "POST", "/api/v1/namespaces/a/pods", false),
            (&controller("generic-garbage-collector"), "DELETE", "/api/v1/namespaces/a/pods", false),
            (&controller("node-lifecycle-controller"), "PATCH", "/api/v1/nodes/n1/status", true),
            (&controller("node-lifecycle-controller"), "DELETE", "/api/v1/namespaces/a/pods/p", false),
            (&controller("taint-eviction-controller"), "DELETE", "/api/v1/namespaces/a/pods/p", true),
            (&controller("taint-eviction-controller"), "PATCH", "/api/v1/nodes/n1", false),
            (&controller("pod-garbage-collector"), "DELETE", "/api/v1/namespaces/a/pods/p", true),
            (&controller("pod-garbage-collector"), "GET", "/api/v1/secrets", false),
            (&controller("replicaset-controller"), "POST", "/api/v1/namespaces/a/pods", true),
            (
                &controller("replicaset-controller"),
                "PATCH",
                "/apis/apps/v1/namespaces/a/replicasets/r/status",
                true,
            ),
            (
                &controller("replicaset-controller"),
                "PATCH",
                "/apis/apps/v1/namespaces/a/replicasets/r",
                false,
            ),
            (&controller("deployment-controller"), "POST", "/apis/apps/v1/namespaces/a/replicasets", true),
            (&controller("deployment-controller"), "POST", "/api/v1/namespaces/a/pods", false),
            (&controller("job-controller"), "PATCH", "/api/v1/namespaces/a/pods/p", true),
            (&controller("job-controller"), "PATCH", "/apis/batch/v1/namespaces/a/jobs/j", false),
            (&controller("cronjob-controller"), "POST", "/apis/batch/v1/namespaces/a/jobs", true),
            (&controller("cronjob-controller"), "POST", "/api/v1/namespaces/a/pods", false),
            (
                &controller("ttl-after-finished-controller"),
                "DELETE",
                "/apis/batch/v1/namespaces/a/jobs/j",
                true,
            ),
            (&controller("ttl-after-finished-controller"), "DELETE", "/api/v1/namespaces/a/pods/p", false),
            (&network, "GET", "/api/v1/nodes?watch=1", true),
            (&network, "PATCH", "/api/v1/nodes/n1", false),
            (&network, "GET", "/api/v1/secrets", false),
            (&node, "POST", "/api/v1/nodes", true),
            (&node, "PATCH", "/api/v1/nodes/n1/status", true),
            (&node, "PATCH", "/api/v1/nodes/n2/status", false),
            (&node, "DELETE", "/api/v1/nodes/n1", false),
            (&node, "GET", "/api/v1/pods", false),
            (&node, "GET", "/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn1", true),
            (&node, "GET", "/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn2", false),
            (&node, "GET", "/api/v1/secrets", false),
            (&node, "GET", "/api/v1/secrets?fieldSelector=metadata.name%3Ds", false),
            (&node, "GET", "/api/v1/configmaps?watch=1&fieldSelector=metadata.name%3Ds", false),
            (&node, "GET", "/api/v1/namespaces/a/secrets?fieldSelector=metadata.name%3Ds", true),
            (&node, "GET", "/api/v1/namespaces/a/secrets?fieldSelector=metadata.name!%3Ds", false),
            (&node, "GET", "/api/v1/namespaces/a/secrets", false),
            (&node, "POST", "/api/v1/namespaces/default/pods/p/binding", false),
            (&node, "PUT", lease, true),
            (&node, "PUT", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n2", false),
            (&node, "PUT", "/apis/coordination.k8s.io/v1/namespaces/default/leases/n1", false),
        ];
        for (user, method, url, allowed) in table {
            assert_eq!(may(user, method, url).is_ok(), allowed, "{} {method} {url}", user.name);
        }
    }

    #[test]
    fn to_run_something_in_a_pod_is_to_create_it() {
        for (url, expected) in [
            ("/api/v1/namespaces/a/pods/p/exec", &[Verb::Get, Verb::Create][..]),
            ("/api/v1/namespaces/a/pods/p/log", &[Verb::Get]),
            ("/api/v1/namespaces/a/pods/p", &[Verb::Get]),
        ] {
            let Route::Resource(path) = route(url).unwrap() else { panic!("{url} is no resource") };
            assert_eq!(asks_for(Verb::Get, &path), expected, "{url}");
            assert_eq!(asks_for(Verb::Create, &path), [Verb::Create], "{url}");
        }
    }

    #[test]
    fn refusals_are_in_upstreams_words() {
        let nobody = UserInfo::new("jane", []);
        let refusal = may(&nobody, "GET", "/api/v1/namespaces/default/pods").unwrap_err();
        assert_eq!(refusal.code, 403);
        assert_eq!(
            refusal.message,
            r#"pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "default""#
        );
        let path = authorize_path(&nobody, "get", &["metrics".to_owned()]).unwrap_err();
        assert_eq!(path.message, r#"forbidden: User "jane" cannot get path "/metrics""#);
        assert!(authorize_path(&nobody, "get", &["api".to_owned(), "v1".to_owned()]).is_ok());
    }
}
