//! What updates of Pods may change, and what they may not.

use serde_json::{Value, json};

use super::*;

const DENIED: &str = "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,\
                      `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions \
                      to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it \
                      was previously negative)\n";

fn pod_with(mutate: impl Fn(&mut Value)) -> Value {
    let mut pod = json!({"metadata": {"name": "a"}, "spec": {
        "containers": [{"name": "c", "image": "i:1"}], "initContainers": [{"name": "i", "image": "i:1"}],
        "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]
    }});
    mutate(&mut pod["spec"]);
    super::super::defaults::apply(&mut pod);
    super::super::defaults::admit(&mut pod);
    pod
}

fn texts(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

/// What is said of a change of a Pod that was made with `before`, beside what this release refuses anyway.
fn changed(before: impl Fn(&mut Value), change: impl Fn(&mut Value)) -> Vec<String> {
    let old = pod_with(before);
    let mut new = old.clone();
    change(&mut new["spec"]);
    let mut errors = validate(&new, &old);
    errors.retain(|error| !error.detail.ends_with("not supported by Coracle yet"));
    texts(&errors)
}

fn change(change: impl Fn(&mut Value)) -> Vec<String> {
    changed(|_| {}, change)
}

#[test]
fn images_tolerations_deadlines_and_wrong_grace_may_change() {
    let none = [""; 0];
    assert_eq!(change(|_| {}), none);
    assert_eq!(change(|s| s["containers"][0]["image"] = "i:2".into()), none);
    assert_eq!(change(|s| s["initContainers"][0]["image"] = "i:2".into()), none);
    assert_eq!(
        change(|s| s["tolerations"].as_array_mut().unwrap().push(json!({"operator": "Exists"}))),
        none
    );
    assert_eq!(change(|s| s["tolerations"][0]["tolerationSeconds"] = 7.into()), none);
    assert_eq!(change(|s| s["activeDeadlineSeconds"] = 5.into()), none);
    assert_eq!(
        changed(|s| s["activeDeadlineSeconds"] = 5.into(), |s| s["activeDeadlineSeconds"] = 4.into()),
        none
    );
    assert_eq!(
        changed(
            |s| s["terminationGracePeriodSeconds"] = (-5).into(),
            |s| s["terminationGracePeriodSeconds"] = 1.into()
        ),
        none
    );
}

#[test]
fn images_must_stay_images() {
    assert_eq!(
        change(|s| s["containers"][0]["image"] = "".into()),
        ["spec.containers[0].image: Required value", "spec.containers[0].image: Required value"]
    );
    let padded =
        "spec.initContainers[0].image: Invalid value: \"i \": must not have leading or trailing whitespace";
    assert_eq!(change(|s| s["initContainers"][0]["image"] = "i ".into()), [padded, padded]);
}

#[test]
fn containers_stay_as_many_as_they_are() {
    assert_eq!(
        change(|s| s["containers"].as_array_mut().unwrap().push(json!({
            "name": "d", "image": "i", "imagePullPolicy": "Never", "terminationMessagePolicy": "File"
        }))),
        ["spec.containers: Forbidden: pod updates may not add or remove containers"]
    );
    assert_eq!(
        change(|s| s["initContainers"] = json!([])),
        ["spec.initContainers: Forbidden: pod updates may not add or remove containers"]
    );
}

#[test]
fn deadlines_only_shrink() {
    let with = |s: &mut Value| s["activeDeadlineSeconds"] = 5.into();
    assert_eq!(
        changed(with, |s| s["activeDeadlineSeconds"] = 6.into()),
        ["spec.activeDeadlineSeconds: Invalid value: 6: must be less than or equal to previous value"]
    );
    assert_eq!(
        changed(with, |s| {
            s.as_object_mut().unwrap().shift_remove("activeDeadlineSeconds");
        }),
        [
            "spec.activeDeadlineSeconds: Invalid value: \"null\": must not update from a positive integer to nil value"
        ]
    );
    assert_eq!(
        change(|s| s["activeDeadlineSeconds"] = (-1).into()),
        [
            "spec.activeDeadlineSeconds: Invalid value: -1: must be between 1 and 2147483647, inclusive",
            "spec.activeDeadlineSeconds: Invalid value: -1: must be between 0 and 2147483647, inclusive",
        ]
    );
}

#[test]
fn tolerations_are_only_added() {
    let kept =
        "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds";
    assert_eq!(change(|s| s["tolerations"] = json!([])), [kept]);
    assert_eq!(change(|s| s["tolerations"][0]["key"] = "l".into()), [kept]);
}

#[test]
fn gates_are_only_removed_and_what_they_hold_back_may_go_to_fewer_nodes() {
    let none = [""; 0];
    let gated = |s: &mut Value| {
        s["schedulingGates"] = json!([{"name": "g"}, {"name": "h"}]);
        s["nodeSelector"] = json!({"a": "b"});
    };
    assert_eq!(changed(gated, |s| s["schedulingGates"] = json!([{"name": "h"}])), none);
    assert_eq!(
        changed(gated, |s| s["schedulingGates"] = json!([{"name": "h"}, {"name": "x"}])),
        [
            "spec.schedulingGates[1].name: Forbidden: only deletion is allowed, but found new scheduling gate 'x'"
        ]
    );
    assert_eq!(changed(gated, |s| s["nodeSelector"]["c"] = "d".into()), none);
    assert_eq!(
        changed(gated, |s| s["nodeSelector"] = json!({"a": "c"})),
        [
            "spec.nodeSelector: Invalid value: {\"a\":\"c\"}: only additions to spec.nodeSelector are allowed (no \
          mutations or deletions)"
        ]
    );
    let expression = |key: &str| json!({"key": key, "operator": "Exists"});
    let affinity = |terms: Value| json!({"nodeAffinity": { REQUIRED: {"nodeSelectorTerms": terms}}});
    assert_eq!(
        changed(gated, |s| s["affinity"] = affinity(json!([{"matchExpressions": [expression("k")]}]))),
        none
    );
    let placed = |s: &mut Value| {
        s["schedulingGates"] = json!([{"name": "g"}]);
        s["affinity"] = affinity(json!([{"matchExpressions": [expression("k")]}]));
    };
    assert_eq!(
        changed(placed, |s| s["affinity"] =
            affinity(json!([{"matchExpressions": [expression("k"), expression("l")]}]))),
        none
    );
    let at = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    assert_eq!(
        changed(placed, |s| s["affinity"] = affinity(json!([{"matchExpressions": [expression("l")]}]))),
        [format!(
            "{at}[0]: Invalid value: {{\"matchExpressions\":[{{\"key\":\"l\",\"operator\":\"Exists\"}}]}}: only \
             additions are allowed (no mutations or deletions)"
        )]
    );
}

#[test]
fn nothing_else_may_change_and_the_difference_is_shown() {
    let refused = change(|s| s["restartPolicy"] = "Never".into());
    assert_eq!(
        refused,
        [format!(
            "{DENIED}@@ -23,7 +23,7 @@\n  ],\n  \"preemptionPolicy\": \"PreemptLowerPriority\",\n  \"priority\": 0,\n\
             - \"restartPolicy\": \"Always\",\n+ \"restartPolicy\": \"Never\",\n  \"schedulerName\": \
             \"default-scheduler\",\n  \"securityContext\": {{}},\n  \"serviceAccount\": \"default\",\n"
        )]
    );
    type Change = fn(&mut Value);
    let changes: [Change; 12] = [
        |s| s["nodeName"] = "n".into(),
        |s| s["terminationGracePeriodSeconds"] = 1.into(),
        |s| s["containers"][0]["name"] = "d".into(),
        |s| s["containers"][0]["command"] = json!(["x"]),
        |s| s["containers"][0]["env"] = json!([{"name": "A", "value": "1"}]),
        |s| {
            s["containers"][0]["livenessProbe"] = json!({
                "tcpSocket": {"port": 1}, "timeoutSeconds": 1, "periodSeconds": 1, "successThreshold": 1,
                "failureThreshold": 1
            });
        },
        |s| s["containers"][0]["resources"] = json!({"requests": {"cpu": "1"}}),
        |s| s["volumes"] = json!([{"name": "v", "emptyDir": {}}]),
        |s| s["hostNetwork"] = true.into(),
        |s| s["nodeSelector"] = json!({"a": "b"}),
        |s| s["hostname"] = "h".into(),
        |s| s["readinessGates"] = json!([{"conditionType": "x"}]),
    ];
    for change_it in changes {
        let errors = change(change_it);
        assert!(errors.len() == 1 && errors[0].starts_with(DENIED), "{errors:?}");
    }
}

#[test]
fn what_is_not_built_is_refused_in_updates_too() {
    let old = pod_with(|_| {});
    let mut new = old.clone();
    new["spec"]["runtimeClassName"] = "high".into();
    let errors = texts(&validate(&new, &old));
    assert!(
        errors.contains(
            &"spec.runtimeClassName: Forbidden: runtimeClassName is not supported by Coracle yet".to_owned()
        ),
        "{errors:?}"
    );
}

#[test]
fn who_stands_for_a_nodes_own_pod_stays_so() {
    let plain = pod_with(|s| s["nodeName"] = "n".into());
    let mut mirror = plain.clone();
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    let path = "metadata.annotations[kubernetes.io/config.mirror]: Forbidden";
    assert_eq!(texts(&validate(&mirror, &plain)), [format!("{path}: may not add mirror pod annotation")]);
    assert_eq!(
        texts(&validate(&plain, &mirror)),
        [format!("{path}: may not remove or update mirror pod annotation")]
    );
}

#[test]
fn ephemeral_containers_are_only_added() {
    let resource = crate::catalogue::find("", "v1", "pods").unwrap();
    let mut old = pod_with(|_| {});
    old["metadata"] = json!({"name": "a", "generation": 3, "resourceVersion": "7", "labels": {"l": "1"}});
    old["status"] = json!({"phase": "Running"});
    let send = |old: &Value, containers: Value| {
        let mut new = old.clone();
        new["spec"]["ephemeralContainers"] = containers;
        new["spec"]["restartPolicy"] = "Never".into();
        new["metadata"]["labels"] = json!({"l": "2"});
        new["status"] = json!({"phase": "Failed"});
        resource.default(&mut new);
        resource.prepare_for_ephemeral_containers(&mut new, old);
        let mut errors = resource.validate_ephemeral_containers(&new, old);
        errors.retain(|error| !error.detail.ends_with("not supported by Coracle yet"));
        (new, texts(&errors))
    };
    let (added, errors) =
        send(&old, json!([{"name": "debugger", "image": "i:1", "targetContainerName": "c"}]));
    assert_eq!(errors, [""; 0]);
    assert_eq!(added["metadata"]["generation"], 4);
    let mut expected = old.clone();
    expected["metadata"]["generation"] = 4.into();
    expected["spec"]["ephemeralContainers"] = json!([{
        "name": "debugger", "image": "i:1", "targetContainerName": "c", "resources": {},
        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent"
    }]);
    assert_eq!(added, expected, "nothing else changes by this way");

    let (second, errors) =
        send(&added, json!([{"name": "e", "image": "i:1"}, added["spec"]["ephemeralContainers"][0]]));
    assert_eq!(errors, [""; 0], "order does not matter");
    assert_eq!(second["metadata"]["generation"], 5);
    let (same, errors) = send(&added, added["spec"]["ephemeralContainers"].clone());
    assert_eq!((same, errors.len()), (added.clone(), 0));

    let path = "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"debugger\"";
    assert_eq!(send(&added, json!([])).1, [format!("{path} may not be removed\n")]);
    let mut other = added["spec"]["ephemeralContainers"].clone();
    other[0]["image"] = "i:2".into();
    assert_eq!(
        send(&added, other).1,
        [format!(
            "{path} may not be changed\n@@ -1,5 +1,5 @@\n {{\n- \"image\": \"i:1\",\n+ \"image\": \"i:2\",\n  \
             \"imagePullPolicy\": \"IfNotPresent\",\n  \"name\": \"debugger\",\n  \"resources\": {{}},\n"
        )]
    );
    assert_eq!(
        send(&old, json!([{"name": "c", "image": "i", "ports": [{"containerPort": 1}]}])).1,
        [
            "spec.ephemeralContainers[0].name: Duplicate value: \"c\"",
            "spec.ephemeralContainers[0].ports: Forbidden: cannot be set for an Ephemeral Container",
        ]
    );
    let mut mirror = old;
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    assert_eq!(
        send(&mirror, json!([{"name": "e", "image": "i"}])).1,
        [": Forbidden: static pods do not support ephemeral containers"]
    );
}

#[test]
fn the_generation_counts_changes_of_the_spec_alone() {
    let resource = crate::catalogue::find("", "v1", "pods").unwrap();
    let mut pod = pod_with(|s| s["terminationGracePeriodSeconds"] = (-1).into());
    pod["metadata"]["generation"] = 77.into();
    resource.prepare_for_create(&mut pod);
    assert_eq!(pod["metadata"]["generation"], 1, "what a user says does not count");
    type Change = fn(&mut Value);
    let changes: [(&str, Change, i64); 9] = [
        ("nothing", |_| {}, 1),
        ("image", |p| p["spec"]["containers"][0]["image"] = "i:2".into(), 2),
        ("init image", |p| p["spec"]["initContainers"][0]["image"] = "i:2".into(), 3),
        (
            "toleration",
            |p| p["spec"]["tolerations"].as_array_mut().unwrap().push(json!({"operator": "Exists"})),
            4,
        ),
        ("deadline", |p| p["spec"]["activeDeadlineSeconds"] = 5.into(), 5),
        ("grace", |p| p["spec"]["terminationGracePeriodSeconds"] = 1.into(), 6),
        ("label", |p| p["metadata"]["labels"] = json!({"a": "b"}), 6),
        ("its own number", |p| p["metadata"]["generation"] = 99.into(), 6),
        ("the status", |p| p["status"] = json!({"phase": "Running"}), 6),
    ];
    for (what, change, generation) in changes {
        let mut new = pod.clone();
        change(&mut new);
        resource.prepare_for_update(&mut new, &pod);
        assert_eq!(new["metadata"]["generation"], generation, "{what}");
        pod = new;
    }
    let mut new = pod.clone();
    new["status"]["phase"] = "Running".into();
    resource.prepare_for_status_update(&mut new, &pod);
    assert_eq!(new["metadata"]["generation"], 6);
    for seconds in 0..500 {
        let mut new = pod.clone();
        new["spec"]["activeDeadlineSeconds"] = (1000 - seconds).into();
        resource.prepare_for_update(&mut new, &pod);
        pod = new;
    }
    assert_eq!(pod["metadata"]["generation"], 506);
}

#[test]
fn a_status_keeps_its_class_and_what_it_observed() {
    let old = json!({
        "spec": {"restartPolicy": "Never"},
        "status": {"qosClass": "BestEffort", "observedGeneration": 3, "conditions": [
            {"type": "Ready", "status": "True", "observedGeneration": 2},
            {"type": "x", "status": "True", "observedGeneration": 1},
            {"type": "x", "status": "True"},
        ]}
    });
    let mut new = json!({"spec": {}, "metadata": {}, "status": {"phase": "Running", "observedGeneration": 0, "conditions": [
        {"type": "x", "status": "False"}, {"type": "x", "status": "False"}, {"type": "y", "status": "True"},
        {"type": "Ready", "status": "False", "observedGeneration": 4},
    ]}});
    prepare_status(&mut new, &old);
    assert_eq!(new["spec"], old["spec"]);
    assert_eq!(
        new["status"],
        json!({"phase": "Running", "observedGeneration": 3, "qosClass": "BestEffort", "conditions": [
            {"type": "x", "status": "False", "observedGeneration": 1}, {"type": "x", "status": "False"},
            {"type": "y", "status": "True"}, {"type": "Ready", "status": "False", "observedGeneration": 4},
        ]})
    );
}

#[test]
fn a_container_comes_back_only_if_it_may_be_restarted() {
    let denied = "may not be transitioned to non-terminated state";
    let rule = |action: &str| json!([{"action": action, "exitCodes": {"operator": "In", "values": [42]}}]);
    let not_in = json!([{"action": "Restart", "exitCodes": {"operator": "NotIn", "values": [42]}}]);
    let plain = json!({"name": "c"});
    let own = |policy: &str| json!({"name": "c", "restartPolicy": policy});
    let ruled = |rules: &Value| json!({"name": "c", "restartPolicy": "Never", "restartPolicyRules": rules});
    for (policy, container, code, may) in [
        ("Always", &plain, 0, true),
        ("OnFailure", &plain, 0, false),
        ("OnFailure", &plain, 1, true),
        ("Never", &plain, 1, false),
        ("Never", &own("Always"), 0, true),
        ("Always", &own("Never"), 1, false),
        ("Never", &own("OnFailure"), 1, true),
        ("Never", &own("OnFailure"), 0, false),
        ("Never", &ruled(&rule("Restart")), 42, true),
        ("Never", &ruled(&rule("Restart")), 1, false),
        ("Never", &ruled(&rule("RestartAllContainers")), 1, true),
        ("Never", &ruled(&not_in), 1, true),
        ("Never", &ruled(&not_in), 42, false),
        ("Always", &json!({"name": "other"}), 1, false),
    ] {
        for (list, statuses) in
            [("containers", "containerStatuses"), ("initContainers", "initContainerStatuses")]
        {
            let old = json!({"spec": {"restartPolicy": policy, list: [container]}, "status": {statuses: [
                {"name": "x", "state": {"running": {}}}, {"name": "c", "state": {"terminated": {"exitCode": code}}}
            ]}});
            let mut new = old.clone();
            new["status"][statuses] = json!([{"name": "c", "state": {"running": {}}}]);
            let expected =
                if may { vec![] } else { vec![format!("status.{statuses}[1].state: Forbidden: {denied}")] };
            assert_eq!(texts(&validate_status(&new, &old)), expected, "{policy} {container} {code}");
            assert_eq!(validate_status(&old, &old), [], "what stays terminated is right");
            new["status"][statuses] = json!([]);
            assert_eq!(validate_status(&new, &old), [], "what is forgotten is right");
        }
    }
    let old = json!({"spec": {"restartPolicy": "Always", "ephemeralContainers": [{"name": "e"}]}, "status": {
        "ephemeralContainerStatuses": [{"name": "e", "state": {"terminated": {"exitCode": 1}}}]
    }});
    let mut new = old.clone();
    new["status"]["ephemeralContainerStatuses"][0]["state"] = json!({"running": {}});
    assert_eq!(
        texts(&validate_status(&new, &old)),
        [format!("status.ephemeralContainerStatuses[0].state: Forbidden: {denied}")]
    );
}

#[test]
fn the_rest_of_a_status_is_well_formed() {
    let node = json!({"spec": {"nodeName": "n"}, "status": {}});
    let bare = json!({"spec": {}, "status": {"podIPs": [{"ip": "old"}]}});
    let ip = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
    let two = json!([{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]);
    for (old, status, expected) in [
        (&bare, json!({"observedGeneration": -1}), vec![
            "status.observedGeneration: Invalid value: -1: must be a non-negative integer".to_owned(),
        ]),
        (&bare, json!({"conditions": [{"type": "Ready", "observedGeneration": -2}]}), vec![
            "status.conditions[0].observedGeneration: Invalid value: -2: must be a non-negative integer".to_owned(),
        ]),
        (&bare, json!({"conditions": [{"type": "a b"}]}), vec![
            "status.conditions[0].Type: Invalid value: \"a b\": name part must consist of alphanumeric characters, '-', \
             '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or \
             '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')".to_owned(),
        ]),
        (&bare, json!({"conditions": [{"type": "a"}, {"type": "a"}]}), vec![]),
        (&bare, json!({"nominatedNodeName": "n"}), vec![]),
        (&node, json!({"nominatedNodeName": "m"}), vec![
            "status.nominatedNodeName: Forbidden: may not be set on pods that are already bound to a node".to_owned(),
        ]),
        (&bare, json!({"podIPs": [{"ip": "old"}]}), vec![]),
        (&bare, json!({"podIPs": [{"ip": "x"}]}), vec![format!("status.podIPs[0]: Invalid value: \"x\": {ip}")]),
        (&bare, json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}), vec![]),
        (&bare, json!({"podIPs": two}), vec![format!(
            "status.podIPs: Invalid value: {two}: may specify no more than one IP for each IP family"
        )]),
        (&bare, json!({"hostIP": "10.0.0.2", "hostIPs": [{"ip": "10.0.0.1"}]}), vec![
            "status.hostIPs[0].ip: Invalid value: \"10.0.0.1\": must be equal to `hostIP`".to_owned(),
        ]),
    ] {
        let mut new = old.clone();
        new["status"] = status;
        assert_eq!(texts(&validate_status(&new, old)), expected, "{new}");
    }
    let old = json!({"spec": {}, "status": {"qosClass": "Guaranteed"}});
    let new = json!({"spec": {}, "status": {"qosClass": "Burstable"}});
    assert_eq!(
        texts(&validate_status(&new, &old)),
        ["status.qosClass: Invalid value: \"Burstable\": field is immutable"]
    );
}
