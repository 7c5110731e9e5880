//! The tables of the policy: each component's rights, and nobody else's.

/// One thing that is allowed.
pub(super) struct Rule {
    pub(super) verbs: &'static [&'static str],
    /// API group; `*` for any.
    pub(super) group: &'static str,
    /// `pods`, `pods/status`; `*` for any resource.
    pub(super) resources: &'static [&'static str],
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
pub(super) const COMPONENT: &[Rule] =
    &[rule(WRITE_EVENTS, "", &["events"]), rule(WRITE_EVENTS, "events.k8s.io", &["events"])];

/// Components by user name.
pub(super) const COMPONENTS: &[(&str, &[Rule])] = &[
    (
        // Feeds the copies of objects that components of one process share; it can change nothing.
        "system:coracle-informers",
        &[
            rule(READ, "", &["configmaps", "endpoints", "namespaces", "nodes", "pods"]),
            rule(READ, "", &["serviceaccounts", "services"]),
            rule(READ, "apps", &["deployments", "replicasets"]),
            rule(READ, "batch", &["cronjobs", "jobs"]),
            rule(READ, "coordination.k8s.io", &["leases"]),
            rule(READ, "discovery.k8s.io", &["endpointslices"]),
            rule(READ, "policy", &["poddisruptionbudgets"]),
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
    (
        "system:serviceaccount:kube-system:endpoint-controller",
        &[
            rule(READ, "", &["pods", "services"]),
            rule(&["get", "list", "watch", "create", "patch", "update", "delete"], "", &["endpoints"]),
        ],
    ),
    (
        "system:serviceaccount:kube-system:endpointslice-controller",
        &[
            rule(READ, "", &["nodes", "pods", "services"]),
            rule(
                &["get", "list", "watch", "create", "patch", "update", "delete"],
                "discovery.k8s.io",
                &["endpointslices"],
            ),
        ],
    ),
    (
        "system:serviceaccount:kube-system:endpointslicemirroring-controller",
        &[
            rule(READ, "", &["endpoints", "services"]),
            rule(
                &["get", "list", "watch", "create", "patch", "update", "delete"],
                "discovery.k8s.io",
                &["endpointslices"],
            ),
        ],
    ),
    (
        "system:serviceaccount:kube-system:disruption-controller",
        &[
            rule(READ, "policy", &["poddisruptionbudgets"]),
            rule(&["patch", "update"], "policy", &["poddisruptionbudgets/status"]),
            rule(READ, "", &["pods"]),
            rule(&["patch", "update"], "", &["pods/status"]),
            rule(READ, "apps", &["deployments", "replicasets"]),
        ],
    ),
];

/// Node agents; what is around these rules narrows these rules to the node's own objects.
pub(super) const NODE: &[Rule] = &[
    rule(READ, "", &["services"]),
    rule(&["get", "list", "watch", "create", "patch", "update"], "", &["nodes"]),
    rule(&["get", "patch", "update"], "", &["nodes/status"]),
    rule(&["get", "list", "watch", "delete"], "", &["pods"]),
    rule(&["get", "patch", "update"], "", &["pods/status"]),
    rule(READ, "", &["configmaps", "secrets"]),
    rule(&["create"], "", &["serviceaccounts/token"]),
    rule(&["get", "create", "patch", "update", "delete"], "coordination.k8s.io", &["leases"]),
];

/// Everybody who is known: questions about themselves.
pub(super) const EVERYBODY: &[Rule] = &[
    rule(&["create"], "authentication.k8s.io", &["selfsubjectreviews"]),
    rule(&["create"], "authorization.k8s.io", &["selfsubjectaccessreviews", "selfsubjectrulesreviews"]),
];

/// The first segments of paths that everybody who is known may read.
pub(super) const PUBLIC_PATHS: &[&str] = &["api", "apis", "openapi", "version", "healthz", "livez", "readyz"];

/// What service accounts may read besides: how tokens are verified.
pub(super) const ISSUER_PATHS: &[&[&str]] =
    &[&[".well-known", "openid-configuration"], &["openid", "v1", "jwks"]];
