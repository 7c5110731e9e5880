//! What a Pod says when its author said nothing.

mod container;
mod volume;

use serde_json::{Map, Value, json};

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
    let in_node_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for container in containers(spec, &["containers", "initContainers"]) {
        container::request_what_is_limited(container);
        if in_node_network {
            container::take_node_ports(container);
        }
    }
}

fn containers<'a>(
    spec: &'a mut Map<String, Value>,
    lists: &'a [&str],
) -> impl Iterator<Item = &'a mut Value> {
    let lists = spec.iter_mut().filter(|(field, _)| lists.contains(&field.as_str()));
    lists.filter_map(|(_, list)| list.as_array_mut()).flatten()
}

/// Fills in the defaults that a Pod and a template of Pods have in common.
pub(super) fn apply_to_spec(spec: &mut Map<String, Value>) {
    for container in containers(spec, &["containers", "initContainers", "ephemeralContainers"]) {
        container::apply(container);
    }
    for volume in elements(spec, "volumes") {
        volume::apply(volume);
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
    drop_zeros(
        spec,
        &["hostNetwork", "hostPID", "hostIPC", "nodeName", "hostname", "subdomain", "priorityClassName"],
    );
    for toleration in elements(spec, "tolerations") {
        drop_zeros(toleration, &["key", "operator", "value", "effect"]);
    }
}

/// The objects in the list under `field`.
fn elements<'a>(
    map: &'a mut Map<String, Value>,
    field: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    let list = map.get_mut(field).and_then(Value::as_array_mut);
    list.into_iter().flatten().filter_map(Value::as_object_mut)
}

/// The object under `field`, if there is one.
fn part<'a>(map: &'a mut Map<String, Value>, field: &str) -> Option<&'a mut Map<String, Value>> {
    map.get_mut(field)?.as_object_mut()
}

/// Drops what is written out although it is what an absent field says, so that saying it changes nothing.
fn drop_zeros(map: &mut Map<String, Value>, fields: &[&str]) {
    for field in fields {
        let zero = match map.get(*field) {
            Some(Value::Bool(said)) => !said,
            Some(Value::Number(number)) => number.as_i64() == Some(0),
            Some(Value::String(text)) => text.is_empty(),
            _ => false,
        };
        if zero {
            map.shift_remove(*field);
        }
    }
}

/// Sets a number that is not said, or is said to be zero, which counts as the same.
fn set_number(map: &mut Map<String, Value>, field: &str, number: i64) {
    if map.get(field).and_then(Value::as_i64).unwrap_or(0) == 0 {
        map.insert(field.to_owned(), number.into());
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

/// What admission adds to a new Pod: its service account, its priority, how long it stays on a bad node.
pub(super) fn admit(pod: &mut Value) {
    // What a node runs by itself has no account.
    let mirror = tree::at(pod, &["metadata", "annotations", super::MIRROR]).is_some();
    let Some(spec) = object_in(pod, "spec") else { return };
    if !mirror && tree::is_empty(spec.get("serviceAccountName")) {
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
