//! A Pod that says nearly everything, and every Pod that is one field away from it: completing and judging never
//! stumbles, completing twice changes nothing, and what is stored has a typed view.

use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::catalogue::{self, Resource};
use crate::schema;

fn pods() -> &'static Resource {
    catalogue::find("", "v1", "pods").unwrap()
}

fn full() -> Value {
    let probe = |handler: Value| {
        let mut probe = json!({
            "initialDelaySeconds": 1, "timeoutSeconds": 2, "periodSeconds": 3, "successThreshold": 1,
            "failureThreshold": 4
        });
        for (name, said) in handler.as_object().unwrap() {
            probe[name] = said.clone();
        }
        probe
    };
    let items = json!([{"key": "k", "path": "p", "mode": 256}]);
    let volumes = json!([
        {"name": "empty"}, {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "host", "hostPath": {"path": "/x", "type": "Directory"}},
        {"name": "map", "configMap": {"name": "m", "items": items, "defaultMode": 420, "optional": true}},
        {"name": "secret", "secret": {"secretName": "s", "items": items}},
        {"name": "down", "downwardAPI": {"items": [
            {"path": "l", "fieldRef": {"fieldPath": "metadata.labels['a']"}},
            {"path": "c", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}},
        ]}},
        {"name": "all", "projected": {"sources": [
            {"configMap": {"name": "m", "items": items}}, {"secret": {"name": "s"}},
            {"downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.name"}}]}},
            {"serviceAccountToken": {"path": "t", "audience": "a", "expirationSeconds": 600}},
        ]}},
    ]);
    let container = json!({
        "name": "c", "image": "i:1", "imagePullPolicy": "Never", "command": ["a"], "args": ["b"],
        "workingDir": "/", "tty": true, "stdin": true, "stdinOnce": true, "terminationMessagePath": "/m",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "ports": [{"name": "web", "containerPort": 80, "hostPort": 81, "hostIP": "10.0.0.1", "protocol": "UDP"}],
        "env": [
            {"name": "A", "value": "1"},
            {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "C", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory"}}},
            {"name": "D", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k", "optional": true}}},
            {"name": "E", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "F", "valueFrom": {"fileKeyRef": {"volumeName": "empty", "path": "p", "key": "k"}}},
        ],
        "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m", "optional": true}}, {"secretRef": {"name": "s"}}],
        "volumeMounts": [
            {"name": "empty", "mountPath": "/e", "subPath": "s"},
            {"name": "map", "mountPath": "/m", "readOnly": true, "subPathExpr": "$(A)"},
            {"name": "host", "mountPath": "/h", "mountPropagation": "HostToContainer"},
        ],
        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}},
        "livenessProbe": probe(json!({"httpGet": {
            "port": "web", "path": "/x", "scheme": "HTTPS", "host": "h", "httpHeaders": [{"name": "X", "value": "y"}]
        }, "terminationGracePeriodSeconds": 5})),
        "readinessProbe": probe(json!({"tcpSocket": {"port": 1}})),
        "startupProbe": probe(json!({"grpc": {"port": 1, "service": "s"}})),
        "lifecycle": {
            "postStart": {"exec": {"command": ["x"]}}, "preStop": {"httpGet": {"port": 80}},
            "stopSignal": "SIGINT"
        },
        "securityContext": {
            "privileged": false, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}
        },
    });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "full", "namespace": "default", "labels": {"a": "b"}, "annotations": {"a": "b"}},
        "spec": {
            "restartPolicy": "OnFailure", "terminationGracePeriodSeconds": 10, "activeDeadlineSeconds": 100,
            "dnsPolicy": "None",
            "dnsConfig": {"nameservers": ["10.0.0.1"], "searches": ["a.b"], "options": [{"name": "ndots", "value": "2"}]},
            "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a"]}], "hostname": "h", "subdomain": "s",
            "setHostnameAsFQDN": true, "shareProcessNamespace": true, "enableServiceLinks": false,
            "nodeSelector": {"a": "b"}, "os": {"name": "linux"}, "readinessGates": [{"conditionType": "a/b"}],
            "serviceAccountName": "me", "automountServiceAccountToken": false, "preemptionPolicy": "Never",
            "tolerations": [{"key": "k", "operator": "Equal", "value": "v", "effect": "NoExecute", "tolerationSeconds": 1}],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "k", "operator": "In", "values": ["v"]}]}
            ]}}},
            "topologySpreadConstraints": [{
                "maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"a": "b"}}
            }],
            "securityContext": {
                "runAsUser": 1, "runAsGroup": 2, "runAsNonRoot": true, "fsGroup": 3, "supplementalGroups": [4],
                "fsGroupChangePolicy": "Always", "supplementalGroupsPolicy": "Merge",
                "seccompProfile": {"type": "RuntimeDefault"}, "sysctls": [{"name": "a.b", "value": "1"}],
            },
            "volumes": volumes,
            "initContainers": [
                {"name": "i", "image": "i", "restartPolicy": "OnFailure", "restartPolicyRules": [
                    {"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}
                ]},
                {"name": "s", "image": "i", "restartPolicy": "Always", "startupProbe": probe(json!({"exec": {"command": ["x"]}}))},
            ],
            "containers": [container],
        }
    })
}

/// Every pointer into a value, the deepest last.
fn pointers(value: &Value, at: &str, out: &mut Vec<String>) {
    let mut enter = |step: String, value: &Value| {
        let at = format!("{at}/{step}");
        out.push(at.clone());
        pointers(value, &at, out);
    };
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                enter(key.replace('~', "~0").replace('/', "~1"), value);
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                enter(index.to_string(), value);
            }
        }
        _ => {}
    }
}

fn texts(pod: &Value) -> Vec<String> {
    pods().validate_create(pod).iter().map(ToString::to_string).collect()
}

#[test]
fn a_full_pod_is_right_but_for_what_this_release_refuses() {
    let mut pod = full();
    assert_eq!(schema::normalize(pods(), &mut pod).unwrap(), [""; 0]);
    pods().default(&mut pod);
    pods().prepare_for_create(&mut pod);
    let mut errors = texts(&pod);
    errors.retain(|error| !error.ends_with("is not supported by Coracle yet"));
    assert_eq!(errors, [""; 0]);
    assert_eq!(pods().strategy.warnings(&pod, None), [""; 0]);
}

#[test]
fn one_field_away_from_it_nothing_stumbles_either() {
    let full = full();
    let mut all = Vec::new();
    pointers(&full["spec"], "/spec", &mut all);
    let values = [
        Value::Null,
        json!({}),
        json!([]),
        json!(""),
        json!("..."),
        json!(0),
        json!(-1),
        json!(i64::MAX),
        json!(true),
    ];
    let mut judged = 0;
    for pointer in &all {
        for value in &values {
            let mut pod = full.clone();
            *pod.pointer_mut(pointer).unwrap() = value.clone();
            // What has the wrong type gets no further.
            if schema::normalize(pods(), &mut pod).is_err() {
                continue;
            }
            judged += 1;
            pods().default(&mut pod);
            pods().prepare_for_create(&mut pod);
            let mut again = pod.clone();
            schema::normalize(pods(), &mut again).unwrap();
            pods().default(&mut again);
            assert_eq!(again, pod, "completing twice changes something: {pointer} = {value}");
            Pod::deserialize(&pod).unwrap_or_else(|error| panic!("{pointer} = {value}: {error}"));
            let _ = texts(&pod);
            let _ = pods().strategy.warnings(&pod, None);
            let _ = pods().strategy.row(&pod, "2030-01-01T00:00:00Z".parse().unwrap());
        }
    }
    assert!(judged > 700, "{judged}");
}
