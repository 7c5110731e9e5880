//! What a container says when its author said nothing: pull policy, messages, probes, hooks, environment.

use serde_json::{Map, Value, json};

use super::super::default_pull_policy;
use super::{drop_zeros, elements, part, set_number, volume};
use crate::quantity::Quantity;
use crate::tree::set_default;

/// Fills in the defaults that containers of all kinds have in common.
pub(super) fn apply(container: &mut Value) {
    let Some(container) = container.as_object_mut() else { return };
    for port in elements(container, "ports") {
        set_default(port, "protocol", "TCP");
        drop_zeros(port, &["name", "hostPort", "hostIP"]);
    }
    for variable in elements(container, "env") {
        drop_zeros(variable, &["value"]);
        if let Some(source) = part(variable, "valueFrom") {
            volume::sources_of_pod(source);
        }
    }
    for source in elements(container, "envFrom") {
        drop_zeros(source, &["prefix"]);
    }
    for mount in elements(container, "volumeMounts") {
        drop_zeros(mount, &["readOnly", "subPath", "subPathExpr"]);
    }
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(said) = part(container, field) {
            probe(said);
        }
    }
    for hook in ["postStart", "preStop"] {
        let hook = part(container, "lifecycle").and_then(|lifecycle| part(lifecycle, hook));
        if let Some(http) = hook.and_then(|hook| part(hook, "httpGet")) {
            http_get(http);
        }
    }
    set_default(container, "resources", json!({}));
    if let Some(resources) = container.get_mut("resources") {
        round(resources);
    }
    set_default(container, "terminationMessagePath", "/dev/termination-log");
    set_default(container, "terminationMessagePolicy", "File");
    let policy =
        default_pull_policy(container.get("image").and_then(Value::as_str).unwrap_or_default()).to_owned();
    set_default(container, "imagePullPolicy", policy);
    drop_zeros(container, &["tty", "stdin", "stdinOnce", "workingDir", "targetContainerName"]);
}

fn probe(probe: &mut Map<String, Value>) {
    set_number(probe, "timeoutSeconds", 1);
    set_number(probe, "periodSeconds", 10);
    set_number(probe, "successThreshold", 1);
    set_number(probe, "failureThreshold", 3);
    drop_zeros(probe, &["initialDelaySeconds"]);
    if let Some(http) = part(probe, "httpGet") {
        http_get(http);
    }
    // Clients read the name of the service without asking whether there is one.
    if let Some(grpc) = part(probe, "grpc") {
        set_default(grpc, "service", "");
    }
}

fn http_get(http: &mut Map<String, Value>) {
    set_default(http, "path", "/");
    set_default(http, "scheme", "HTTP");
    drop_zeros(http, &["host"]);
}

/// Amounts have at most three decimal places.
fn round(resources: &mut Value) {
    let Some(resources) = resources.as_object_mut() else { return };
    for field in ["limits", "requests"] {
        for (_, amount) in resources.get_mut(field).and_then(Value::as_object_mut).into_iter().flatten() {
            if let Some(quantity) = amount.as_str().and_then(|text| text.parse::<Quantity>().ok()) {
                *amount = quantity.rounded_to_milli().to_string().into();
            }
        }
    }
}

/// A limit without a request is a request too.
pub(super) fn request_what_is_limited(container: &mut Value) {
    let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) else { return };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    let requests = resources.entry("requests").or_insert_with(|| json!({}));
    if let Some(requests) = requests.as_object_mut() {
        for (name, amount) in limits {
            requests.entry(name).or_insert(amount);
        }
    }
}

/// In the node's network a port is the node's.
pub(super) fn take_node_ports(container: &mut Value) {
    let Some(container) = container.as_object_mut() else { return };
    for port in elements(container, "ports") {
        let number = port.get("containerPort").and_then(Value::as_i64).unwrap_or(0);
        if number != 0 {
            set_number(port, "hostPort", number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(mut container: Value) -> Value {
        container["image"] = "i:1".into();
        apply(&mut container);
        for field in
            ["image", "imagePullPolicy", "resources", "terminationMessagePath", "terminationMessagePolicy"]
        {
            assert!(container.as_object_mut().unwrap().shift_remove(field).is_some(), "{field}");
        }
        container
    }

    #[test]
    fn probes_have_the_documented_numbers() {
        let numbers = |mut probe: Value| {
            probe["timeoutSeconds"] = 1.into();
            probe["periodSeconds"] = 10.into();
            probe["successThreshold"] = 1.into();
            probe["failureThreshold"] = 3.into();
            probe
        };
        for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
            for (name, said, stored) in [
                ("command", json!({"exec": {"command": ["x"]}}), json!({"exec": {"command": ["x"]}})),
                (
                    "request",
                    json!({"httpGet": {"port": 80, "host": ""}}),
                    json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}}),
                ),
                (
                    "request that says all",
                    json!({"httpGet": {"port": "web", "path": "/x", "scheme": "HTTPS", "host": "h"}}),
                    json!({"httpGet": {"port": "web", "path": "/x", "scheme": "HTTPS", "host": "h"}}),
                ),
                ("call", json!({"grpc": {"port": 1}}), json!({"grpc": {"port": 1, "service": ""}})),
                (
                    "zeros",
                    json!({
                        "tcpSocket": {"port": 1}, "initialDelaySeconds": 0, "timeoutSeconds": 0,
                        "periodSeconds": 0, "successThreshold": 0, "failureThreshold": 0
                    }),
                    json!({"tcpSocket": {"port": 1}}),
                ),
            ] {
                assert_eq!(completed(json!({ field: said })), json!({ field: numbers(stored) }), "{name}");
            }
        }
        let said = json!({"livenessProbe": {
            "exec": {"command": ["x"]}, "initialDelaySeconds": 2, "timeoutSeconds": 3, "periodSeconds": 4,
            "successThreshold": 1, "failureThreshold": 6, "terminationGracePeriodSeconds": 7
        }});
        assert_eq!(completed(said.clone()), said);
    }

    #[test]
    fn hooks_request_the_root_by_plain_http() {
        let said = json!({"lifecycle": {
            "postStart": {"httpGet": {"port": 80}}, "preStop": {"httpGet": {"port": 1, "path": "/bye"}}
        }});
        assert_eq!(
            completed(said),
            json!({"lifecycle": {
                "postStart": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}},
                "preStop": {"httpGet": {"port": 1, "path": "/bye", "scheme": "HTTP"}}
            }})
        );
        let said = json!({"lifecycle": {"preStop": {"sleep": {"seconds": 0}}, "stopSignal": "SIGINT"}});
        assert_eq!(completed(said.clone()), said);
    }

    #[test]
    fn variables_name_the_version_and_the_unit() {
        let said = json!({"env": [
            {"name": "A", "value": ""},
            {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "C", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "containerName": ""}}},
        ], "envFrom": [{"prefix": "", "configMapRef": {"name": "m"}}]});
        assert_eq!(
            completed(said),
            json!({"env": [
                {"name": "A"},
                {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name", "apiVersion": "v1"}}},
                {"name": "C", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "0"}}},
            ], "envFrom": [{"configMapRef": {"name": "m"}}]})
        );
    }

    #[test]
    fn what_says_nothing_is_not_stored() {
        let said = json!({
            "ports": [{"containerPort": 1, "hostPort": 0, "hostIP": "", "name": "", "protocol": "UDP"}],
            "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": false, "subPath": ""}],
            "tty": false, "stdin": false, "stdinOnce": false, "workingDir": "",
        });
        assert_eq!(
            completed(said),
            json!({
                "ports": [{"containerPort": 1, "protocol": "UDP"}],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            })
        );
    }

    #[test]
    fn ports_in_the_nodes_network_are_the_nodes() {
        let mut container =
            json!({"ports": [{"containerPort": 80}, {"containerPort": 81, "hostPort": 9}, {}]});
        take_node_ports(&mut container);
        assert_eq!(
            container["ports"],
            json!([{"containerPort": 80, "hostPort": 80}, {"containerPort": 81, "hostPort": 9}, {}])
        );
    }
}
