//! Which node a Pod gets, and the words in which a Pod that gets none is told why.

use serde_json::{Value, json};

use super::{bound, cluster, decide, message, node, pod, requests};

const NO_VICTIMS: &str =
    "preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
const NOT_HELPFUL: &str = "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";

/// One node that is changed like this, with these Pods on it, refuses a Pod with this spec for this reason.
#[track_caller]
fn refused(change: &Value, on_node: &[Value], spec: &Value, reason: &str, preemption: &str) {
    let pods: Vec<_> = on_node
        .iter()
        .enumerate()
        .map(|(i, spec)| {
            let mut pod = pod(&format!("other-{i}"), spec);
            pod.spec.as_mut().unwrap().node_name = Some("a".to_owned());
            pod
        })
        .collect();
    let cluster = cluster(&[node("a", change)], &pods);
    let expected = format!("0/1 nodes are available: 1 {reason}. {preemption}");
    assert_eq!(message(decide(&pod("p", spec), &cluster)), expected);
}

#[test]
fn the_reasons_are_upstreams() {
    let none = json!({});
    refused(&json!({"spec": {"unschedulable": true}}), &[], &none, "node(s) were unschedulable", NOT_HELPFUL);
    let tainted = json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}});
    refused(&tainted, &[], &none, "node(s) had untolerated taint(s)", NOT_HELPFUL);
    let selector = json!({"nodeSelector": {"disk": "ssd"}});
    refused(&none, &[], &selector, "node(s) didn't match Pod's node affinity/selector", NOT_HELPFUL);
    let port = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]});
    refused(
        &none,
        std::slice::from_ref(&port),
        &port,
        "node(s) didn't have free ports for the requested pod ports",
        NO_VICTIMS,
    );
    let three = requests(&json!({"cpu": "3"}));
    refused(&none, std::slice::from_ref(&three), &three, "Insufficient cpu", NO_VICTIMS);
    refused(&none, &[], &requests(&json!({"cpu": "4001m"})), "Insufficient cpu", NOT_HELPFUL);
    refused(&none, &[], &requests(&json!({"memory": "8193Mi"})), "Insufficient memory", NOT_HELPFUL);
    refused(
        &none,
        &[],
        &requests(&json!({"example.com/gpu": "1"})),
        "Insufficient example.com/gpu",
        NOT_HELPFUL,
    );
    let large = requests(&json!({"ephemeral-storage": "21Gi"}));
    refused(&none, &[], &large, "Insufficient ephemeral-storage", NOT_HELPFUL);
    let full = json!({"status": {"allocatable": {"pods": "1"}}});
    refused(&full, std::slice::from_ref(&none), &none, "Too many pods", NO_VICTIMS);
    let never = json!({"preemptionPolicy": "Never", "nodeSelector": {"disk": "ssd"}});
    refused(
        &none,
        &[],
        &never,
        "node(s) didn't match Pod's node affinity/selector",
        "preemption: not eligible due to preemptionPolicy=Never.",
    );
}

#[test]
fn an_amount_that_is_no_number_fits_nowhere() {
    refused(&json!({}), &[], &requests(&json!({"cpu": "many"})), "Insufficient cpu", NOT_HELPFUL);
}

#[test]
fn reasons_are_counted_over_nodes_and_sorted_as_text() {
    let nodes = [
        node("a", &json!({"spec": {"unschedulable": true}})),
        node("b", &json!({})),
        node("c", &json!({"status": {"allocatable": {"memory": "1Gi"}}})),
    ];
    let needs = requests(&json!({"cpu": "5", "memory": "2Gi"}));
    assert_eq!(
        message(decide(&pod("p", &needs), &cluster(&nodes, &[]))),
        "0/3 nodes are available: 1 Insufficient memory, 1 node(s) were unschedulable, 2 Insufficient cpu. \
         preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
    );
    assert_eq!(
        message(decide(&pod("p", &json!({})), &cluster(&[], &[]))),
        "no nodes available to schedule pods"
    );
}

#[test]
fn tolerations_let_a_pod_onto_tainted_and_cordoned_nodes() {
    let tainted = json!({"spec": {
        "unschedulable": true,
        "taints": [{"key": "k", "value": "v", "effect": "NoExecute"}],
    }});
    let cluster = cluster(&[node("a", &tainted)], &[]);
    let cases = [
        (json!([{"operator": "Exists"}]), true),
        (
            json!([{"key": "k", "value": "v"}, {"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]),
            true,
        ),
        (json!([{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]), false),
        (json!([{"operator": "Exists", "effect": "NoSchedule"}]), false),
        (
            json!([{"key": "k", "value": "w"}, {"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]),
            false,
        ),
    ];
    for (tolerations, fits) in cases {
        let decision = decide(&pod("p", &json!({"tolerations": tolerations})), &cluster);
        assert_eq!(matches!(decision, crate::Decision::Bind { .. }), fits, "{tolerations}");
    }
}

#[test]
fn node_affinity_terms_are_alternatives_of_requirements() {
    let cluster = cluster(&[node("a", &json!({"metadata": {"labels": {"zone": "z1", "size": "5"}}}))], &[]);
    let cases = [
        (json!([{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["z1", "z2"]}]}]), true),
        (json!([{"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["z1"]}]}]), false),
        (json!([{"matchExpressions": [{"key": "rack", "operator": "NotIn", "values": ["r"]}]}]), true),
        (json!([{"matchExpressions": [{"key": "size", "operator": "Gt", "values": ["4"]}]}]), true),
        (json!([{"matchExpressions": [{"key": "size", "operator": "Lt", "values": ["5"]}]}]), false),
        (
            json!([{"matchExpressions": [
                {"key": "zone", "operator": "Exists"}, {"key": "size", "operator": "DoesNotExist"},
            ]}]),
            false,
        ),
        (json!([{}, {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}]), true),
        (json!([{}]), false),
    ];
    for (terms, fits) in cases {
        let spec = json!({"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms},
        }}});
        let decision = decide(&pod("p", &spec), &cluster);
        assert_eq!(matches!(decision, crate::Decision::Bind { .. }), fits, "{terms}");
    }
}

#[test]
fn host_ports_conflict_by_address_and_protocol() {
    let port = |ip: &str, protocol: &str| {
        json!({"containers": [{"name": "c", "ports": [
            {"containerPort": 1, "hostPort": 80, "hostIP": ip, "protocol": protocol},
        ]}]})
    };
    for (first, second, fits) in [
        (port("", "TCP"), port("10.0.0.1", "TCP"), false),
        (port("10.0.0.1", "TCP"), port("10.0.0.2", "TCP"), true),
        (port("", "TCP"), port("", "UDP"), true),
    ] {
        let mut other = pod("other", &first);
        other.spec.as_mut().unwrap().node_name = Some("a".to_owned());
        let cluster = cluster(&[node("a", &json!({}))], &[other]);
        let decision = decide(&pod("p", &second), &cluster);
        assert_eq!(matches!(decision, crate::Decision::Bind { .. }), fits, "{first} {second}");
    }
}

#[test]
fn what_a_pod_needs_is_its_worst_moment() {
    let asks = |cpu: &str| json!({"requests": {"cpu": cpu}});
    let spec = json!({
        "initContainers": [
            {"name": "small", "resources": asks("1")},
            {"name": "sidecar", "restartPolicy": "Always", "resources": asks("500m")},
            {"name": "large", "resources": asks("3")},
        ],
        "containers": [{"name": "c", "resources": asks("2")}],
        "overhead": {"cpu": "100m"},
    });
    let info = crate::info::PodInfo::of(&pod("p", &spec));
    assert_eq!(
        info.requests.get("cpu"),
        3600,
        "the last init container beside the sidecar, and the overhead"
    );
    assert_eq!(info.load.memory, 3 * 200 * 1024 * 1024 - 200 * 1024 * 1024);
}

#[test]
fn the_least_loaded_node_wins_and_ties_are_drawn() {
    let nodes = [node("a", &json!({})), node("b", &json!({})), node("c", &json!({}))];
    let mut on_a = pod("other", &requests(&json!({"cpu": "2"})));
    on_a.spec.as_mut().unwrap().node_name = Some("a".to_owned());
    let cluster = cluster(&nodes, &[on_a]);
    let info = crate::info::PodInfo::of(&pod("p", &json!({})));
    let places: Vec<_> = (0..4)
        .map(|tie| bound(&crate::schedule(&info, &cluster, &crate::Profile::default(), tie)).to_owned())
        .collect();
    assert_eq!(places, ["b", "c", "b", "c"]);
}

#[test]
fn a_node_that_prefers_no_pods_comes_last() {
    let avoid = json!({"spec": {"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}});
    let nodes = [node("a", &avoid), node("b", &json!({}))];
    let mut on_b = pod("other", &requests(&json!({"cpu": "3"})));
    on_b.spec.as_mut().unwrap().node_name = Some("b".to_owned());
    assert_eq!(bound(&decide(&pod("p", &json!({})), &cluster(&nodes, &[on_b]))), "b");
}
