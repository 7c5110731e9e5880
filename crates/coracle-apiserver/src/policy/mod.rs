//! Who may do what. Nothing is allowed that this file does not name.
//!
//! Administrators (`system:masters`) may do everything. Each component has one row of rules, for what it needs and
//! nothing else. A node agent is narrower still: its rules name its own objects, and what a rule over names
//! cannot say (a Pod that is bound to this node, a Secret that such a Pod uses) is checked by [`crate::node`]
//! against the objects themselves.

mod rules;

use coracle_api::Value;
use coracle_api::catalogue;
use coracle_api::selector::FieldSelector;
use coracle_api::status::{Attempt, Denied, Status};
use serde_json::json;

use crate::auth::{SYSTEM_AUTHENTICATED, SYSTEM_MASTERS, SYSTEM_SERVICE_ACCOUNTS, UserInfo};
use crate::request::{ResourcePath, Verb};
use rules::{COMPONENT, COMPONENTS, EVERYBODY, ISSUER_PATHS, NODE, PUBLIC_PATHS, Rule};

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
    if own_rules(user).into_iter().any(allows) {
        return Ok(());
    }
    if let Some(node) = user.node_name()
        && (allows(NODE) || allows(COMPONENT))
    {
        return node_scope(attributes, node).map_err(|reason| denied(attributes, reason));
    }
    Err(denied(attributes, ""))
}

/// What a user may do whatever the objects are; node agents may do more, with their own.
fn own_rules(user: &UserInfo) -> Vec<&'static [Rule]> {
    let mut all = Vec::new();
    if user.is_in(SYSTEM_AUTHENTICATED) {
        all.push(EVERYBODY);
    }
    if let Some((_, rules)) = COMPONENTS.iter().find(|(name, _)| *name == user.name) {
        all.extend([*rules, COMPONENT]);
    }
    all
}

/// Decides about a verb that no request has, as a question about rights may name it: only who may do everything may
/// do this.
pub(crate) fn may_do_anything(user: &UserInfo) -> bool {
    user.is_in(SYSTEM_MASTERS)
}

/// What a user may do, as a SelfSubjectRulesReview tells it.
pub(crate) fn told(user: &UserInfo) -> Value {
    if may_do_anything(user) {
        return json!({
            "resourceRules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }],
            "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
            "incomplete": false,
        });
    }
    let mut rules = own_rules(user);
    let is_node = user.node_name().is_some();
    if is_node {
        rules.extend([NODE, COMPONENT]);
    }
    let resources: Vec<Value> = rules
        .into_iter()
        .flatten()
        .map(|rule| json!({ "verbs": rule.verbs, "apiGroups": [rule.group], "resources": rule.resources }))
        .collect();
    let mut paths = Vec::new();
    if user.is_in(SYSTEM_AUTHENTICATED) {
        paths.extend(PUBLIC_PATHS.iter().flat_map(|path| [format!("/{path}"), format!("/{path}/*")]));
    }
    if user.is_in(SYSTEM_SERVICE_ACCOUNTS) {
        paths.extend(ISSUER_PATHS.iter().map(|segments| format!("/{}", segments.join("/"))));
    }
    let mut told = json!({
        "resourceRules": resources,
        "nonResourceRules": [{ "verbs": ["get"], "nonResourceURLs": paths }],
        "incomplete": is_node,
    });
    if is_node {
        told["evaluationError"] = "node authorizer does not support user rule resolution".into();
    }
    told
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
    let public = segments.first().is_some_and(|first| PUBLIC_PATHS.contains(&first.as_str()));
    let open = (public && user.is_in(SYSTEM_AUTHENTICATED))
        || (user.is_in(SYSTEM_SERVICE_ACCOUNTS) && ISSUER_PATHS.iter().any(|path| *path == segments));
    if user.is_in(SYSTEM_MASTERS) || (open && verb == "get") {
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
        let account = UserInfo::service_account("default", "default");
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
            (&node, "POST", "/api/v1/namespaces/default/serviceaccounts/a/token", true),
            (&scheduler, "POST", "/api/v1/namespaces/default/serviceaccounts/a/token", false),
            (&nobody, "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", true),
            (&nobody, "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", true),
            (&nobody, "POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", false),
            (&nobody, "POST", "/apis/authentication.k8s.io/v1/tokenreviews", false),
            (&account, "GET", "/api/v1/namespaces/default/pods", false),
            (&account, "GET", "/api/v1/namespaces/default/secrets/s", false),
            (&account, "POST", "/api/v1/namespaces/default/serviceaccounts/a/token", false),
            (&account, "POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", true),
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

    #[test]
    fn service_accounts_learn_how_tokens_are_verified_and_others_do_not() {
        let jwks = ["openid", "v1", "jwks"].map(str::to_owned);
        let account = UserInfo::service_account("default", "default");
        assert!(authorize_path(&account, "get", &jwks).is_ok());
        assert!(authorize_path(&account, "post", &jwks).is_err());
        assert!(authorize_path(&account, "get", &jwks[..1]).is_err());
        assert!(authorize_path(&UserInfo::new("jane", []), "get", &jwks).is_err());
    }

    #[test]
    fn rights_are_told_as_they_are() {
        let admin = told(&UserInfo::new("kubernetes-admin", [SYSTEM_MASTERS]));
        assert_eq!(admin["resourceRules"][0]["verbs"], json!(["*"]));
        let account = told(&UserInfo::service_account("default", "default"));
        assert_eq!(account["resourceRules"].as_array().unwrap().len(), 2);
        assert_eq!(account["incomplete"], false);
        assert_eq!(told(&UserInfo::node("n1"))["incomplete"], true);
    }
}
