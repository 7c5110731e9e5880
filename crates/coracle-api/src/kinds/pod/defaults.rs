//! What a Pod says when its author said nothing.

use serde_json::{Map, Value, json};

use super::default_pull_policy;
use crate::quantity::Quantity;
use crate::tree::{self, object_in, set_default};

/// How long a Pod stays on a node that is not ready or not reachable.
const EVICTION_DELAY_SECONDS: i64 = 300;
/// Taints of a node that does not work.
const BAD_NODE: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// Fills in the documented defaults of the object.
pub(super) fn apply(pod: &mut Value) {
    if let Some(status) = pod.get_mut("status") {
        write_out_status(status);
    }
    let Some(spec) = object_in(pod, "spec") else { return };
    apply_to_spec(spec);
    set_default(spec, "enableServiceLinks", true);
    for container in containers(spec) {
        request_what_is_limited(container);
    }
}

fn containers(spec: &mut Map<String, Value>) -> impl Iterator<Item = &mut Value> {
    let lists =
        spec.iter_mut().filter(|(field, _)| matches!(field.as_str(), "containers" | "initContainers"));
    lists.filter_map(|(_, list)| list.as_array_mut()).flatten()
}

/// Fills in the defaults that a Pod and a template of Pods have in common.
pub(super) fn apply_to_spec(spec: &mut Map<String, Value>) {
    for container in containers(spec) {
        container_defaults(container);
    }
    set_default(spec, "restartPolicy", "Always");
    set_default(spec, "dnsPolicy", "ClusterFirst");
    set_default(spec, "schedulerName", "default-scheduler");
    set_default(spec, "terminationGracePeriodSeconds", 30);
    set_default(spec, "securityContext", json!({}));
    // The deprecated name of the same field follows the current one.
    let account = ["serviceAccountName", "serviceAccount"].iter().find_map(|field| {
        spec.get(*field).and_then(Value::as_str).filter(|s| !s.is_empty()).map(str::to_owned)
    });
    if let Some(account) = account {
        set_account(spec, &account);
    }
    // What is written out although it is what an absent field says.
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        if spec.get(field) == Some(&Value::Bool(false)) {
            spec.shift_remove(field);
        }
    }
    for field in ["nodeName", "hostname", "subdomain"] {
        if spec.get(field).and_then(Value::as_str) == Some("") {
            spec.shift_remove(field);
        }
    }
}

/// Writes out what upstream writes out although it says nothing: times that are not known, and states that are not
/// there. Clients print them, and compare with them.
pub(super) fn write_out_status(status: &mut Value) {
    for condition in status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
        write_out_times(condition, &["lastProbeTime", "lastTransitionTime"]);
    }
    for field in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        for container in status.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            for field in ["state", "lastState"] {
                let Some(state) = object_in(container, field) else { continue };
                if let Some(running) = state.get_mut("running") {
                    write_out_times(running, &["startedAt"]);
                }
                if let Some(terminated) = state.get_mut("terminated") {
                    write_out_times(terminated, &["startedAt", "finishedAt"]);
                }
            }
        }
    }
}

fn write_out_times(value: &mut Value, times: &[&str]) {
    let Some(map) = value.as_object_mut() else { return };
    for time in times {
        map.entry(*time).or_insert(Value::Null);
    }
}

fn set_account(spec: &mut Map<String, Value>, account: &str) {
    spec.insert("serviceAccountName".into(), account.into());
    spec.insert("serviceAccount".into(), account.into());
}

fn container_defaults(container: &mut Value) {
    let Some(container) = container.as_object_mut() else { return };
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(port) = port.as_object_mut() {
            set_default(port, "protocol", "TCP");
        }
    }
    for variable in container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(variable) = variable.as_object_mut() else { continue };
        if variable.get("value").and_then(Value::as_str) == Some("") {
            variable.shift_remove("value");
        }
    }
    set_default(container, "resources", json!({}));
    if let Some(resources) = container.get_mut("resources") {
        resource_defaults(resources);
    }
    set_default(container, "terminationMessagePath", "/dev/termination-log");
    set_default(container, "terminationMessagePolicy", "File");
    let policy =
        default_pull_policy(container.get("image").and_then(Value::as_str).unwrap_or_default()).to_owned();
    set_default(container, "imagePullPolicy", policy);
    for field in ["tty", "stdin", "stdinOnce"] {
        if container.get(field) == Some(&Value::Bool(false)) {
            container.shift_remove(field);
        }
    }
}

/// Amounts have at most three decimal places.
fn resource_defaults(resources: &mut Value) {
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
fn request_what_is_limited(container: &mut Value) {
    let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) else { return };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    let requests = resources.entry("requests").or_insert_with(|| json!({}));
    if let Some(requests) = requests.as_object_mut() {
        for (name, amount) in limits {
            requests.entry(name).or_insert(amount);
        }
    }
}

/// What admission adds to a new Pod: its service account, its priority, how long it stays on a bad node.
pub(super) fn admit(pod: &mut Value) {
    let Some(spec) = object_in(pod, "spec") else { return };
    if tree::is_empty(spec.get("serviceAccountName")) {
        set_account(spec, "default");
    }
    set_default(spec, "priority", 0);
    set_default(spec, "preemptionPolicy", "PreemptLowerPriority");
    let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
    let Some(tolerations) = tolerations.as_array_mut() else { return };
    for key in BAD_NODE {
        let tolerated = tolerations.iter().any(|toleration| {
            let effect = tree::str_at(toleration, &["effect"]);
            let tolerated_key = tree::str_at(toleration, &["key"]);
            (tolerated_key == key || tolerated_key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if !tolerated {
            tolerations.push(stays_a_while(key));
        }
    }
}

fn stays_a_while(key: &str) -> Value {
    json!({
        "key": key,
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": EVICTION_DELAY_SECONDS,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_pod_gets_every_default_that_is_stored() {
        let mut pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [
            {"name": "c", "image": "busybox:1", "ports": [{"containerPort": 80}]}
        ]}});
        apply(&mut pod);
        admit(&mut pod);
        let toleration = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
        assert_eq!(
            pod["spec"],
            json!({
                "containers": [{
                    "name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent", "resources": {},
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                }],
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
                "terminationGracePeriodSeconds": 30, "securityContext": {}, "enableServiceLinks": true,
                "serviceAccountName": "default", "serviceAccount": "default",
                "priority": 0, "preemptionPolicy": "PreemptLowerPriority",
                "tolerations": [
                    toleration("node.kubernetes.io/not-ready"), toleration("node.kubernetes.io/unreachable")
                ],
            })
        );
        let again = {
            let mut again = pod.clone();
            apply(&mut again);
            admit(&mut again);
            again
        };
        assert_eq!(again, pod, "defaulting twice changes nothing");
    }

    #[test]
    fn a_status_writes_out_times_and_states_that_are_not_there() {
        let mut pod = json!({"spec": {}, "status": {
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2030-01-01T00:00:00Z"}],
            "containerStatuses": [
                {"name": "a", "state": {"terminated": {"exitCode": 1, "finishedAt": "2030-01-01T00:00:00Z"}}},
                {"name": "b", "lastState": {"waiting": {}}},
            ],
        }});
        apply(&mut pod);
        assert_eq!(
            pod["status"],
            json!({
                "conditions": [{
                    "type": "Ready", "status": "True", "lastProbeTime": null,
                    "lastTransitionTime": "2030-01-01T00:00:00Z",
                }],
                "containerStatuses": [
                    {"name": "a", "lastState": {}, "state": {"terminated": {
                        "exitCode": 1, "startedAt": null, "finishedAt": "2030-01-01T00:00:00Z"
                    }}},
                    {"name": "b", "lastState": {"waiting": {}}, "state": {}},
                ],
            })
        );
    }

    #[test]
    fn what_is_said_stays() {
        let mut pod = json!({"spec": {
            "containers": [{
                "image": "busybox:1", "imagePullPolicy": "Never",
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}}
            }],
            "terminationGracePeriodSeconds": 0, "enableServiceLinks": false, "serviceAccount": "me",
            "tolerations": [{"operator": "Exists"}],
        }});
        apply(&mut pod);
        admit(&mut pod);
        let spec = &pod["spec"];
        assert_eq!(spec["terminationGracePeriodSeconds"], 0);
        assert_eq!(spec["enableServiceLinks"], false);
        assert_eq!(spec["serviceAccountName"], "me");
        assert_eq!(spec["tolerations"], json!([{"operator": "Exists"}]));
        assert_eq!(spec["containers"][0]["imagePullPolicy"], "Never");
        assert_eq!(spec["containers"][0]["resources"]["requests"], json!({"cpu": "100m", "memory": "1Gi"}));
    }
}
