//! The table of the catalogue: a row for each resource.

use k8s_openapi::api::apps::v1 as apps_v1;
use k8s_openapi::api::authentication::v1 as authentication_v1;
use k8s_openapi::api::authorization::v1 as authorization_v1;
use k8s_openapi::api::autoscaling::v1 as autoscaling_v1;
use k8s_openapi::api::batch::v1 as batch_v1;
use k8s_openapi::api::coordination::v1 as coordination_v1;
use k8s_openapi::api::core::v1 as core_v1;
use k8s_openapi::api::discovery::v1 as discovery_v1;
use k8s_openapi::api::events::v1 as events_v1;
use k8s_openapi::api::policy::v1 as policy_v1;
use k8s_openapi::api::scheduling::v1 as scheduling_v1;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions_v1;

use super::{Resource, Strategy, Subresource};
use crate::kinds;

const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const STATUS_VERBS: &[&str] = &["get", "patch", "update"];

const fn status_of(kind: &'static str) -> Subresource {
    Subresource { name: "status", kind, group: "", version: "", verbs: STATUS_VERBS }
}

/// `autoscaling/v1` Scale: how many there are to be, in one form for all that can be scaled.
const SCALING: Subresource =
    Subresource { name: "scale", kind: "Scale", group: "autoscaling", version: "v1", verbs: STATUS_VERBS };

/// The kind that [`SCALING`] carries.
pub(super) static SCALE: Resource = Resource {
    group: "autoscaling",
    verbs: &[],
    ..core::<autoscaling_v1::Scale>("Scale", "scales", "scale", "", &kinds::scale::ScaleStrategy)
};

/// What is sent to `serviceaccounts/token`, and answered with the token in it.
pub(super) static TOKEN_REQUEST: Resource = Resource {
    group: "authentication.k8s.io",
    verbs: &[],
    ..core::<authentication_v1::TokenRequest>(
        "TokenRequest",
        "tokenrequests",
        "tokenrequest",
        "",
        &kinds::token_request::TokenRequestStrategy,
    )
};

/// What is sent to `pods/eviction`.
pub(super) static EVICTION: Resource = Resource {
    group: "policy",
    verbs: &[],
    ..core::<policy_v1::Eviction>(
        "Eviction",
        "evictions",
        "eviction",
        "",
        &kinds::pod_disruption_budget::EvictionStrategy,
    )
};

/// A question: a kind that is sent and answered, and of which there are no objects.
const fn question<K: schemars::JsonSchema>(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    storage_prefix: &'static str,
    strategy: &'static dyn Strategy,
) -> Resource {
    Resource {
        group,
        namespaced: false,
        verbs: &["create"],
        ..core::<K>(kind, plural, singular, storage_prefix, strategy)
    }
}

/// The common row of the core group; rows below say what differs.
const fn core<K: schemars::JsonSchema>(
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    storage_prefix: &'static str,
    strategy: &'static dyn Strategy,
) -> Resource {
    Resource {
        group: "",
        version: "v1",
        kind,
        plural,
        singular,
        short_names: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL_VERBS,
        subresources: &[],
        storage_prefix,
        name_check: crate::names::dns1123_subdomain,
        strategy,
        schema: schemars::SchemaGenerator::subschema_for::<K>,
    }
}

pub(super) static RESOURCES: &[Resource] = &[
    Resource {
        verbs: &["create"],
        ..core::<core_v1::Binding>(
            "Binding",
            "bindings",
            "binding",
            "/registry/bindings",
            &kinds::binding::BindingStrategy,
        )
    },
    Resource {
        short_names: &["cm"],
        ..core::<core_v1::ConfigMap>(
            "ConfigMap",
            "configmaps",
            "configmap",
            "/registry/configmaps",
            &kinds::config_map::ConfigMapStrategy,
        )
    },
    Resource {
        short_names: &["ep"],
        ..core::<core_v1::Endpoints>(
            "Endpoints",
            "endpoints",
            "endpoints",
            "/registry/services/endpoints",
            &kinds::endpoints::EndpointsStrategy,
        )
    },
    Resource {
        short_names: &["ev"],
        ..core::<core_v1::Event>(
            "Event",
            "events",
            "event",
            "/registry/events",
            &kinds::event::CoreEventStrategy,
        )
    },
    Resource {
        short_names: &["ns"],
        namespaced: false,
        verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
        subresources: &[
            Subresource { name: "finalize", kind: "Namespace", group: "", version: "", verbs: &["update"] },
            status_of("Namespace"),
        ],
        name_check: crate::names::dns1123_label,
        ..core::<core_v1::Namespace>(
            "Namespace",
            "namespaces",
            "namespace",
            "/registry/namespaces",
            &kinds::namespace::NamespaceStrategy,
        )
    },
    Resource {
        short_names: &["no"],
        namespaced: false,
        subresources: &[status_of("Node")],
        ..core::<core_v1::Node>("Node", "nodes", "node", "/registry/minions", &kinds::node::NodeStrategy)
    },
    Resource {
        short_names: &["po"],
        categories: &["all"],
        subresources: &[
            Subresource {
                name: "attach",
                kind: "PodAttachOptions",
                group: "",
                version: "",
                verbs: &["create", "get"],
            },
            Subresource { name: "binding", kind: "Binding", group: "", version: "", verbs: &["create"] },
            Subresource {
                name: "ephemeralcontainers",
                kind: "Pod",
                group: "",
                version: "",
                verbs: STATUS_VERBS,
            },
            Subresource {
                name: "eviction",
                kind: "Eviction",
                group: "policy",
                version: "v1",
                verbs: &["create"],
            },
            Subresource {
                name: "exec",
                kind: "PodExecOptions",
                group: "",
                version: "",
                verbs: &["create", "get"],
            },
            Subresource { name: "log", kind: "Pod", group: "", version: "", verbs: &["get"] },
            Subresource {
                name: "portforward",
                kind: "PodPortForwardOptions",
                group: "",
                version: "",
                verbs: &["create", "get"],
            },
            status_of("Pod"),
        ],
        ..core::<core_v1::Pod>("Pod", "pods", "pod", "/registry/pods", &kinds::pod::PodStrategy)
    },
    core::<core_v1::Secret>(
        "Secret",
        "secrets",
        "secret",
        "/registry/secrets",
        &kinds::secret::SecretStrategy,
    ),
    Resource {
        short_names: &["sa"],
        subresources: &[Subresource {
            name: "token",
            kind: "TokenRequest",
            group: "authentication.k8s.io",
            version: "v1",
            verbs: &["create"],
        }],
        ..core::<core_v1::ServiceAccount>(
            "ServiceAccount",
            "serviceaccounts",
            "serviceaccount",
            "/registry/serviceaccounts",
            &kinds::service_account::ServiceAccountStrategy,
        )
    },
    Resource {
        short_names: &["svc"],
        categories: &["all"],
        subresources: &[status_of("Service")],
        name_check: crate::names::dns1035_label,
        ..core::<core_v1::Service>(
            "Service",
            "services",
            "service",
            "/registry/services/specs",
            &kinds::service::ServiceStrategy,
        )
    },
    Resource {
        group: "apps",
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &[SCALING, status_of("Deployment")],
        ..core::<apps_v1::Deployment>(
            "Deployment",
            "deployments",
            "deployment",
            "/registry/deployments",
            &kinds::deployment::DeploymentStrategy,
        )
    },
    Resource {
        group: "apps",
        short_names: &["rs"],
        categories: &["all"],
        subresources: &[SCALING, status_of("ReplicaSet")],
        ..core::<apps_v1::ReplicaSet>(
            "ReplicaSet",
            "replicasets",
            "replicaset",
            "/registry/replicasets",
            &kinds::replica_set::ReplicaSetStrategy,
        )
    },
    Resource {
        group: "events.k8s.io",
        short_names: &["ev"],
        ..core::<events_v1::Event>(
            "Event",
            "events",
            "event",
            "/registry/events",
            &kinds::event::EventsEventStrategy,
        )
    },
    question::<authentication_v1::SelfSubjectReview>(
        "authentication.k8s.io",
        "SelfSubjectReview",
        "selfsubjectreviews",
        "selfsubjectreview",
        "/registry/selfsubjectreviews",
        &kinds::review::ReviewStrategy,
    ),
    question::<authentication_v1::TokenReview>(
        "authentication.k8s.io",
        "TokenReview",
        "tokenreviews",
        "tokenreview",
        "/registry/tokenreviews",
        &kinds::review::ReviewStrategy,
    ),
    Resource {
        namespaced: true,
        ..question::<authorization_v1::LocalSubjectAccessReview>(
            "authorization.k8s.io",
            "LocalSubjectAccessReview",
            "localsubjectaccessreviews",
            "localsubjectaccessreview",
            "/registry/localsubjectaccessreviews",
            &kinds::review::AccessReviewStrategy::NamedInNamespace,
        )
    },
    question::<authorization_v1::SelfSubjectAccessReview>(
        "authorization.k8s.io",
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
        "/registry/selfsubjectaccessreviews",
        &kinds::review::AccessReviewStrategy::Oneself,
    ),
    question::<authorization_v1::SelfSubjectRulesReview>(
        "authorization.k8s.io",
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        "selfsubjectrulesreview",
        "/registry/selfsubjectrulesreviews",
        &kinds::review::ReviewStrategy,
    ),
    question::<authorization_v1::SubjectAccessReview>(
        "authorization.k8s.io",
        "SubjectAccessReview",
        "subjectaccessreviews",
        "subjectaccessreview",
        "/registry/subjectaccessreviews",
        &kinds::review::AccessReviewStrategy::Named,
    ),
    Resource {
        group: "batch",
        short_names: &["cj"],
        categories: &["all"],
        subresources: &[status_of("CronJob")],
        ..core::<batch_v1::CronJob>(
            "CronJob",
            "cronjobs",
            "cronjob",
            "/registry/cronjobs",
            &kinds::cron_job::CronJobStrategy,
        )
    },
    Resource {
        group: "batch",
        categories: &["all"],
        subresources: &[status_of("Job")],
        ..core::<batch_v1::Job>("Job", "jobs", "job", "/registry/jobs", &kinds::job::JobStrategy)
    },
    Resource {
        group: "policy",
        short_names: &["pdb"],
        subresources: &[status_of("PodDisruptionBudget")],
        ..core::<policy_v1::PodDisruptionBudget>(
            "PodDisruptionBudget",
            "poddisruptionbudgets",
            "poddisruptionbudget",
            "/registry/poddisruptionbudgets",
            &kinds::pod_disruption_budget::PodDisruptionBudgetStrategy,
        )
    },
    Resource {
        group: "scheduling.k8s.io",
        short_names: &["pc"],
        namespaced: false,
        ..core::<scheduling_v1::PriorityClass>(
            "PriorityClass",
            "priorityclasses",
            "priorityclass",
            "/registry/priorityclasses",
            &kinds::priority_class::PriorityClassStrategy,
        )
    },
    // None can be made yet. kubectl reads the list before it says that it does not know a kind.
    Resource {
        group: "apiextensions.k8s.io",
        short_names: &["crd", "crds"],
        categories: &["api-extensions"],
        namespaced: false,
        verbs: &["get", "list", "watch"],
        ..core::<apiextensions_v1::CustomResourceDefinition>(
            "CustomResourceDefinition",
            "customresourcedefinitions",
            "customresourcedefinition",
            "/registry/apiextensions.k8s.io/customresourcedefinitions",
            &kinds::custom_resource_definition::CustomResourceDefinitionStrategy,
        )
    },
    Resource {
        group: "coordination.k8s.io",
        ..core::<coordination_v1::Lease>(
            "Lease",
            "leases",
            "lease",
            "/registry/leases",
            &kinds::lease::LeaseStrategy,
        )
    },
    Resource {
        group: "discovery.k8s.io",
        ..core::<discovery_v1::EndpointSlice>(
            "EndpointSlice",
            "endpointslices",
            "endpointslice",
            "/registry/endpointslices",
            &kinds::endpoint_slice::EndpointSliceStrategy,
        )
    },
];
