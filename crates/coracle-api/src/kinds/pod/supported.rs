//! What of a Pod this release honours. Everything else is refused, never ignored.
//!
//! One table says which fields are honoured, and with which values where not with all. A field that stands in
//! no row is refused as soon as it says something, so that a field that a new API level brings is refused too
//! until somebody builds it and adds its row.

#[cfg(test)]
mod document;

use std::net::Ipv6Addr;

use serde_json::Value;

use crate::field::{FieldError, Path};
use crate::tree;

/// Which values of a field are honoured.
#[derive(Clone, Copy)]
enum Honoured {
    /// All that are valid.
    Any,
    /// Addresses of version 4 of the protocol.
    Ipv4,
    /// These words alone.
    Words(&'static [&'static str]),
    /// This truth value alone.
    Only(bool),
    /// An object, field by field.
    Fields(&'static [(&'static str, Honoured)]),
    /// A list of objects, each field by field.
    Each(&'static [(&'static str, Honoured)]),
    /// A map of amounts; the names alone are judged.
    Amounts(fn(&str) -> bool),
    /// A volume in a directory of the node or in memory, field by field. Nothing watches how much is on the disk.
    EmptyDir,
}

use Honoured::{Amounts, Any, Each, EmptyDir, Fields, Ipv4, Only, Words};

const SECCOMP: Honoured = Fields(&[("type", Words(&["RuntimeDefault", "Unconfined"]))]);

const POD: &[(&str, Honoured)] = &[
    ("containers", Each(CONTAINER)),
    ("initContainers", Each(CONTAINER)),
    ("ephemeralContainers", Each(CONTAINER)),
    ("activeDeadlineSeconds", Any),
    ("readinessGates", Any),
    ("restartPolicy", Any),
    ("terminationGracePeriodSeconds", Any),
    ("nodeSelector", Any),
    ("nodeName", Any),
    ("tolerations", Any),
    ("schedulingGates", Any),
    (
        "affinity",
        Fields(&[("nodeAffinity", Fields(&[("requiredDuringSchedulingIgnoredDuringExecution", Any)]))]),
    ),
    ("hostname", Any),
    ("subdomain", Any),
    ("setHostnameAsFQDN", Any),
    ("hostnameOverride", Any),
    ("hostAliases", Any),
    // Until the cluster has DNS, ClusterFirst is what Default is.
    ("dnsPolicy", Any),
    ("dnsConfig", Fields(&[("nameservers", Any), ("searches", Any), ("options", Any)])),
    ("volumes", Each(VOLUME)),
    ("schedulerName", Any),
    ("enableServiceLinks", Any),
    ("priorityClassName", Any),
    ("priority", Any),
    ("preemptionPolicy", Any),
    ("serviceAccountName", Any),
    ("serviceAccount", Any),
    ("automountServiceAccountToken", Any),
    ("imagePullSecrets", Any),
    ("hostNetwork", Any),
    ("hostPID", Any),
    ("hostIPC", Any),
    ("hostUsers", Only(true)),
    ("shareProcessNamespace", Any),
    ("os", Fields(&[("name", Words(&["linux"]))])),
    (
        "securityContext",
        Fields(&[
            ("runAsUser", Any),
            ("runAsGroup", Any),
            ("runAsNonRoot", Any),
            ("supplementalGroups", Any),
            ("supplementalGroupsPolicy", Any),
            // The node says which are too much.
            ("sysctls", Any),
            ("fsGroup", Any),
            // For volumes that outlive a Pod. All that there are get their group when they are made.
            ("fsGroupChangePolicy", Any),
            ("seccompProfile", SECCOMP),
        ]),
    ),
];

const VALUE_FROM: Honoured = Fields(&[
    ("fieldRef", Any),
    ("resourceFieldRef", Any),
    ("configMapKeyRef", Any),
    ("secretKeyRef", Any),
    ("fileKeyRef", Any),
]);

const ITEMS: Honoured = Each(&[("key", Any), ("path", Any), ("mode", Any)]);
const DOWNWARD_ITEMS: Honoured =
    Each(&[("path", Any), ("fieldRef", Any), ("resourceFieldRef", Any), ("mode", Any)]);

const VOLUME: &[(&str, Honoured)] = &[
    ("name", Any),
    ("emptyDir", EmptyDir),
    ("hostPath", Fields(&[("path", Any), ("type", Any)])),
    ("image", Fields(&[("reference", Any), ("pullPolicy", Any)])),
    ("configMap", Fields(&[("name", Any), ("items", ITEMS), ("defaultMode", Any), ("optional", Any)])),
    ("secret", Fields(&[("secretName", Any), ("items", ITEMS), ("defaultMode", Any), ("optional", Any)])),
    ("downwardAPI", Fields(&[("items", DOWNWARD_ITEMS), ("defaultMode", Any)])),
    ("projected", Fields(&[("sources", Each(PROJECTION)), ("defaultMode", Any)])),
];

const PROJECTION: &[(&str, Honoured)] = &[
    ("configMap", Fields(&[("name", Any), ("items", ITEMS), ("optional", Any)])),
    ("secret", Fields(&[("name", Any), ("items", ITEMS), ("optional", Any)])),
    ("downwardAPI", Fields(&[("items", DOWNWARD_ITEMS)])),
    ("serviceAccountToken", Fields(&[("audience", Any), ("expirationSeconds", Any), ("path", Any)])),
];

const CONTAINER: &[(&str, Honoured)] = &[
    ("name", Any),
    // Of ephemeral containers alone.
    ("targetContainerName", Any),
    ("image", Any),
    ("imagePullPolicy", Any),
    ("command", Any),
    ("args", Any),
    ("workingDir", Any),
    ("env", Each(&[("name", Any), ("value", Any), ("valueFrom", VALUE_FROM)])),
    ("envFrom", Each(&[("prefix", Any), ("configMapRef", Any), ("secretRef", Any)])),
    (
        "volumeMounts",
        Each(&[
            ("name", Any),
            ("mountPath", Any),
            ("readOnly", Any),
            ("recursiveReadOnly", Any),
            ("subPath", Any),
            ("subPathExpr", Any),
            ("mountPropagation", Any),
        ]),
    ),
    (
        "ports",
        Each(&[
            ("name", Any),
            ("containerPort", Any),
            ("hostPort", Any),
            ("hostIP", Ipv4),
            ("protocol", Any),
        ]),
    ),
    (
        "resources",
        Fields(&[
            // A limit on storage would have to be enforced; a request only weighs in scheduling.
            ("limits", Amounts(|name| name != "ephemeral-storage" && !name.starts_with("hugepages-"))),
            ("requests", Amounts(|name| !name.starts_with("hugepages-"))),
        ]),
    ),
    ("restartPolicy", Any),
    ("restartPolicyRules", Any),
    ("livenessProbe", Any),
    ("readinessProbe", Any),
    ("startupProbe", Any),
    ("lifecycle", Any),
    ("terminationMessagePath", Any),
    ("terminationMessagePolicy", Any),
    ("tty", Any),
    ("stdin", Any),
    ("stdinOnce", Any),
    (
        "securityContext",
        Fields(&[
            ("runAsUser", Any),
            ("runAsGroup", Any),
            ("runAsNonRoot", Any),
            ("readOnlyRootFilesystem", Any),
            ("privileged", Any),
            ("allowPrivilegeEscalation", Any),
            ("capabilities", Any),
            ("procMount", Words(&["Default"])),
            ("seccompProfile", SECCOMP),
        ]),
    ),
];

/// The fields of a new Pod that say something this release does not honour.
pub(super) fn refuse(pod: &Value) -> Vec<FieldError> {
    pod.get("spec").map(|spec| refuse_spec(spec, &Path::new("spec"))).unwrap_or_default()
}

/// The same of the spec that stands at `path`.
pub(super) fn refuse_spec(spec: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    fields(spec, POD, path, &mut errors);
    errors
}

fn refused(path: &Path, what: &str) -> FieldError {
    FieldError::forbidden(path, format!("{what} is not supported by Coracle yet"))
}

fn fields(value: &Value, rows: &[(&str, Honoured)], path: &Path, errors: &mut Vec<FieldError>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = path.child(name);
        match rows.iter().find(|(row, _)| row == name) {
            Some((_, honoured)) => judge(name, value, *honoured, &path, errors),
            None if tree::is_empty(Some(value)) => {}
            None => errors.push(refused(&path, name)),
        }
    }
}

fn judge(name: &str, value: &Value, honoured: Honoured, path: &Path, errors: &mut Vec<FieldError>) {
    match honoured {
        Any => {}
        Ipv4 => {
            let address = value.as_str().unwrap_or_default();
            if address.parse::<Ipv6Addr>().is_ok() {
                errors.push(refused(path, &format!("{name} {}", crate::field::go_quote(address))));
            }
        }
        Words(words) => {
            let word = value.as_str().unwrap_or_default();
            if !word.is_empty() && !words.contains(&word) {
                errors.push(refused(path, &format!("{name} {}", crate::field::go_quote(word))));
            }
        }
        Only(only) => {
            if value.as_bool().is_some_and(|said| said != only) {
                errors.push(refused(path, &format!("{name} {value}")));
            }
        }
        Fields(rows) => fields(value, rows, path, errors),
        EmptyDir => {
            fields(value, &[("medium", Words(&["Memory"])), ("sizeLimit", Any)], path, errors);
            let on_disk = tree::str_at(value, &["medium"]).is_empty();
            if on_disk && !tree::is_empty(value.get("sizeLimit")) {
                errors.push(refused(&path.child("sizeLimit"), "a sizeLimit of a volume on the disk"));
            }
        }
        Each(rows) => {
            for (index, element) in value.as_array().into_iter().flatten().enumerate() {
                fields(element, rows, &path.index(index), errors);
            }
        }
        Amounts(honoured) => {
            for (resource, _) in value.as_object().into_iter().flatten() {
                if !honoured(resource) {
                    let what = format!("{} of {resource}", name.trim_end_matches('s'));
                    errors.push(refused(&path.key(resource), &format!("a {what}")));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusals(spec: &Value) -> Vec<String> {
        refuse(&json!({ "spec": spec })).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_not_built_is_refused_at_its_path() {
        let not_yet =
            |path: &str, what: &str| format!("{path}: Forbidden: {what} is not supported by Coracle yet");
        for (field, value) in [
            ("topologySpreadConstraints", json!([{}])),
            ("resourceClaims", json!([{"name": "r"}])),
            ("runtimeClassName", json!("x")),
            ("overhead", json!({"cpu": "1"})),
            ("resources", json!({"limits": {"cpu": "1"}})),
        ] {
            assert_eq!(refusals(&json!({ field: value })), [not_yet(&format!("spec.{field}"), field)]);
        }
        let refused = [not_yet("spec.hostUsers", "hostUsers false")];
        assert_eq!(refusals(&json!({ "hostUsers": false })), refused);
        for (field, value) in
            [("volumeDevices", json!([{"name": "x"}])), ("resizePolicy", json!([{"resourceName": "cpu"}]))]
        {
            assert_eq!(
                refusals(&json!({"containers": [{"name": "c"}, { field: value }]})),
                [not_yet(&format!("spec.containers[1].{field}"), field)]
            );
        }
        let term = json!([{"topologyKey": "z"}]);
        assert_eq!(
            refusals(&json!({"affinity": {
                "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term},
                "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1}]},
            }})),
            [
                not_yet("spec.affinity.podAffinity", "podAffinity"),
                not_yet(
                    "spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution",
                    "preferredDuringSchedulingIgnoredDuringExecution"
                ),
            ]
        );
        for (container, path, what) in [
            (
                json!({"resources": {"limits": {"ephemeral-storage": "1Gi"}}}),
                "resources.limits[ephemeral-storage]",
                "a limit of ephemeral-storage",
            ),
            (json!({"resources": {"claims": [{"name": "x"}]}}), "resources.claims", "claims"),
            (
                json!({"securityContext": {"seccompProfile": {"type": "Localhost"}}}),
                "securityContext.seccompProfile.type",
                "type \"Localhost\"",
            ),
            (
                json!({"securityContext": {"seLinuxOptions": {"level": "x"}}}),
                "securityContext.seLinuxOptions",
                "seLinuxOptions",
            ),
            (
                json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}),
                "securityContext.appArmorProfile",
                "appArmorProfile",
            ),
            (json!({"ports": [{"hostIP": "::"}]}), "ports[0].hostIP", "hostIP \"::\""),
            (
                json!({"securityContext": {"procMount": "Unmasked"}}),
                "securityContext.procMount",
                "procMount \"Unmasked\"",
            ),
        ] {
            assert_eq!(
                refusals(&json!({"containers": [container]})),
                [not_yet(&format!("spec.containers[0].{path}"), what)]
            );
        }
    }

    #[test]
    fn volumes_of_other_kinds_and_limits_that_nobody_enforces_are_refused() {
        for (volume, path, what) in [
            (json!({"nfs": {"server": "x"}}), "nfs", "nfs"),
            (
                json!({"persistentVolumeClaim": {"claimName": "x"}}),
                "persistentVolumeClaim",
                "persistentVolumeClaim",
            ),
            (json!({"csi": {"driver": "x"}}), "csi", "csi"),
            (json!({"ephemeral": {"volumeClaimTemplate": {"spec": {}}}}), "ephemeral", "ephemeral"),
            (json!({"emptyDir": {"medium": "HugePages"}}), "emptyDir.medium", "medium \"HugePages\""),
            (
                json!({"emptyDir": {"sizeLimit": "1Gi"}}),
                "emptyDir.sizeLimit",
                "a sizeLimit of a volume on the disk",
            ),
            (
                json!({"projected": {"sources": [{"clusterTrustBundle": {"name": "x"}}]}}),
                "projected.sources[0].clusterTrustBundle",
                "clusterTrustBundle",
            ),
            (
                json!({"projected": {"sources": [{"podCertificate": {"keyType": "x"}}]}}),
                "projected.sources[0].podCertificate",
                "podCertificate",
            ),
            (json!({"configMap": {"name": "x", "items": [{"user": 1}]}}), "configMap.items[0].user", "user"),
        ] {
            assert_eq!(
                refusals(&json!({ "volumes": [volume] })),
                [format!("spec.volumes[0].{path}: Forbidden: {what} is not supported by Coracle yet")]
            );
        }
        let in_memory =
            json!({"volumes": [{"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}]});
        assert_eq!(refusals(&in_memory), Vec::<String>::new());
    }

    #[test]
    fn what_is_built_and_what_says_nothing_passes() {
        let spec = json!({
            "containers": [{
                "name": "c", "image": "i", "command": ["a"], "args": ["b"], "workingDir": "/", "tty": true,
                "stdin": true, "stdinOnce": true, "env": [{"name": "A", "value": "1"}],
                "ports": [{"containerPort": 1, "hostPort": 2, "hostIP": "192.0.2.1", "protocol": "UDP", "name": "x"}],
                "livenessProbe": {"exec": {"command": ["x"]}}, "readinessProbe": {"httpGet": {"port": 1}},
                "startupProbe": {"grpc": {"port": 1}}, "lifecycle": {"preStop": {"sleep": {"seconds": 1}}},
                "resources": {
                    "limits": {"cpu": "1", "memory": "1", "example.com/x": "1"},
                    "requests": {"ephemeral-storage": "1"}
                },
                "securityContext": {
                    "runAsUser": 1, "runAsGroup": 1, "runAsNonRoot": true, "privileged": true, "readOnlyRootFilesystem": true,
                    "allowPrivilegeEscalation": true, "capabilities": {"add": ["NET_ADMIN"]},
                    "seccompProfile": {"type": "RuntimeDefault"}, "procMount": "Default"
                },
            }],
            "initContainers": [{
                "name": "i", "image": "i", "restartPolicy": "OnFailure",
                "restartPolicyRules": [{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [1]}}]
            }],
            "ephemeralContainers": [{"name": "e", "image": "i", "targetContainerName": "c"}],
            "activeDeadlineSeconds": 5, "readinessGates": [{"conditionType": "x"}],
            "schedulingGates": [{"name": "g"}],
            "volumes": [], "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {}}}, "hostNetwork": false, "dnsPolicy": "Default", "priority": 0,
            "securityContext": {
                "supplementalGroups": [1], "supplementalGroupsPolicy": "Strict", "runAsNonRoot": true,
                "seccompProfile": {"type": "Unconfined"}, "sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}]
            }, "automountServiceAccountToken": true,
            "imagePullSecrets": [{"name": "s"}],
        });
        assert_eq!(refusals(&spec), Vec::<String>::new());
    }
}
