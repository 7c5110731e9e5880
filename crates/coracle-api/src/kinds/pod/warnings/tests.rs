//! What is worth knowing of Pods that nothing is wrong with.

use serde_json::json;

use super::*;

fn told(spec: Value) -> Vec<String> {
    warnings(&json!({"metadata": {"name": "a"}, "spec": spec}))
}

#[test]
fn a_pod_as_it_should_be_says_nothing() {
    let spec = json!({
        "terminationGracePeriodSeconds": 0,
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "hostAliases": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
        "volumes": [{"name": "v", "projected": {"sources": [
            {"configMap": {"name": "m", "items": [{"key": "k", "path": "a/b"}]}},
            {"serviceAccountToken": {"path": "a/c"}}, {"secret": {"name": "s"}}
        ]}}],
        "containers": [{
            "name": "c", "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "$(A)2"}],
            "ports": [
                {"containerPort": 53, "protocol": "TCP", "name": "tcp"}, {"containerPort": 53, "protocol": "UDP"},
                {"containerPort": 54, "protocol": "TCP", "hostPort": 1}, {"containerPort": 54, "protocol": "TCP", "hostPort": 2}
            ],
            "resources": {"limits": {"memory": "1Gi", "cpu": "100m"}},
        }],
        "initContainers": [{"name": "i", "ports": [{"containerPort": 1, "name": "tcp", "protocol": "TCP"}]}],
    });
    assert_eq!(told(spec), [""; 0]);
}

#[test]
fn names_that_are_no_host_names_are_told() {
    let pod = json!({"metadata": {"name": "a.b"}, "spec": {"containers": []}});
    assert_eq!(
        warnings(&pod),
        [
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is \
          recommended: [must not contain dots]"
        ]
    );
}

#[test]
fn what_is_going_is_told_with_what_comes_instead() {
    for (spec, expected) in [
        (
            json!({"nodeSelector": {"beta.kubernetes.io/os": "linux"}}),
            "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
        ),
        (
            json!({"nodeSelector": {"beta.kubernetes.io/instance-type": "x"}}),
            "spec.nodeSelector[beta.kubernetes.io/instance-type]: deprecated since v1.17; use \
             \"node.kubernetes.io/instance-type\" instead",
        ),
        (
            json!({"affinity": {"nodeAffinity": { REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "failure-domain.beta.kubernetes.io/zone", "operator": "Exists"}
            ]}]}}}}),
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].\
             matchExpressions[0].key: failure-domain.beta.kubernetes.io/zone is deprecated since v1.17; use \
             \"topology.kubernetes.io/zone\" instead",
        ),
        (
            json!({"affinity": {"nodeAffinity": { PREFERRED: [{"preference": {"matchExpressions": [
                {"key": "k", "operator": "In", "values": ["a", "-1"]}
            ]}}]}}}),
            "spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].preference.\
             matchExpressions[0].values[1]: -1 is invalid, a valid label must be an empty string or consist of \
             alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. \
             'MyValue',  or 'my_value',  or '12345', regex used for validation is \
             '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
        ),
        (
            json!({"topologySpreadConstraints": [{"topologyKey": "beta.kubernetes.io/arch", "labelSelector": {}}]}),
            "spec.topologySpreadConstraints[0].topologyKey: beta.kubernetes.io/arch is deprecated since v1.14; use \
             \"kubernetes.io/arch\" instead",
        ),
        (
            json!({"volumes": [{"name": "v", "gitRepo": {"repository": "r"}}]}),
            "spec.volumes[0].gitRepo: deprecated in v1.11, and disabled by default in v1.33+",
        ),
        (
            json!({"volumes": [{"name": "v", "storageos": {}}]}),
            "spec.volumes[0].storageOS: deprecated in v1.22, non-functional in v1.25+",
        ),
    ] {
        assert_eq!(told(spec), [expected]);
    }
    let pod = json!({
        "metadata": {"name": "a", "annotations": {
            "scheduler.alpha.kubernetes.io/critical-pod": "", SECCOMP: "x",
            "container.seccomp.security.alpha.kubernetes.io/c": "x",
            "container.apparmor.security.beta.kubernetes.io/c": "x",
        }},
        "spec": {"containers": [{"name": "c"}]},
    });
    let seccomp = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
    let of_pod = [
        "metadata.annotations[scheduler.alpha.kubernetes.io/critical-pod]: non-functional in v1.16+; use the \
         \"priorityClassName\" field instead"
            .to_owned(),
        format!("metadata.annotations[{SECCOMP}]: {seccomp}"),
        format!("metadata.annotations[container.seccomp.security.alpha.kubernetes.io/c]: {seccomp}"),
    ];
    assert_eq!(warnings(&pod), of_pod);
    assert_eq!(
        of(&pod, &Path::new("spec").child("template"))[3],
        "spec.template.metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]: deprecated since \
         v1.30; use the \"appArmorProfile\" field instead"
    );
}

#[test]
fn what_matches_nothing_is_told() {
    let null = "a null labelSelector results in matching no pod";
    assert_eq!(
        told(json!({
            "topologySpreadConstraints": [{"topologyKey": "z"}],
            "affinity": {
                "podAffinity": { REQUIRED: [{"topologyKey": "z"}] },
                "podAntiAffinity": { PREFERRED: [{"podAffinityTerm": {"topologyKey": "z"}}] },
            },
        })),
        [
            format!("spec.topologySpreadConstraints[0].labelSelector: {null}"),
            format!("spec.affinity.podAffinity.{REQUIRED}[0].labelSelector: {null}"),
            format!("spec.affinity.podAntiAffinity.{PREFERRED}[0].podAffinityTerm.labelSelector: {null}"),
        ]
    );
}

#[test]
fn what_is_said_twice_is_told() {
    assert_eq!(
        told(json!({
            "hostAliases": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.1"}],
            "imagePullSecrets": [{"name": "s"}, {"name": "s"}, {}],
        })),
        [
            "spec.hostAliases[1].ip: duplicate ip \"10.0.0.1\"",
            "spec.imagePullSecrets[1].name: duplicate name \"s\"",
            "spec.imagePullSecrets[2].name: invalid empty name \"\"",
        ]
    );
    let hides = "hides previous definition of \"A\", which may be dropped when using apply";
    assert_eq!(
        told(json!({
            "initContainers": [{"name": "i", "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "$(A)"}]}],
            "containers": [{"name": "c", "env": [
                {"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "A", "value": "$(A)3"},
                {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            ]}],
        })),
        [
            format!("spec.initContainers[0].env[1]: {hides}"),
            format!("spec.containers[0].env[1]: {hides}"),
            format!("spec.containers[0].env[3]: {hides}"),
        ]
    );
}

#[test]
fn ports_that_get_in_each_others_way_are_told() {
    let port =
        |host: i64, ip: &str| json!({"containerPort": 80, "protocol": "TCP", "hostPort": host, "hostIP": ip});
    let pair = |a: Value, b: Value| {
        told(json!({"containers": [{"name": "a", "ports": [a]}, {"name": "b", "ports": [b]}]}))
    };
    let (first, second) = ("spec.containers[0].ports[0]", "spec.containers[1].ports[0]");
    for (a, b, how) in [
        (port(0, ""), port(0, ""), Some("duplicate")),
        (port(9, ""), port(0, ""), Some("overlapping")),
        (port(9, ""), port(9, "10.0.0.1"), Some("dangerously ambiguous")),
        (port(9, "10.0.0.2"), port(9, "10.0.0.1"), None),
        (port(8, ""), port(9, ""), None),
    ] {
        let expected: Vec<String> =
            how.map(|how| format!("{second}: {how} port definition with {first}")).into_iter().collect();
        assert_eq!(pair(a, b), expected);
    }
    assert_eq!(
        told(json!({"containers": [{"name": "a", "ports": [
            {"containerPort": 80, "protocol": "TCP", "name": "web", "hostIP": "10.0.0.1"}
        ]}]})),
        [format!(
            "{first}: hostIP set without hostPort: {{Name:web HostPort:0 ContainerPort:80 Protocol:TCP \
             HostIP:10.0.0.1}}"
        )]
    );
    assert_eq!(
        told(json!({
            "initContainers": [{"name": "s", "restartPolicy": "Always", "ports": [
                {"containerPort": 1, "protocol": "TCP", "name": "web"}
            ]}],
            "containers": [{"name": "a", "ports": [{"containerPort": 2, "protocol": "TCP", "name": "web"}]}],
        })),
        [
            "spec.containers[0].ports[0]: duplicate port name \"web\" with spec.initContainers[0].ports[0], services and \
          probes that select ports by name will use spec.initContainers[0].ports[0]"
        ]
    );
}

#[test]
fn amounts_and_times_that_mean_something_else_are_told() {
    let fraction =
        |path: &str| format!("{path}: fractional byte value \"100m\" is invalid, must be an integer");
    assert_eq!(
        told(json!({
            "terminationGracePeriodSeconds": -1, "overhead": {"memory": "100m"},
            "containers": [{"name": "c", "resources": {
                "limits": {"memory": "100m"}, "requests": {"memory": "1", "ephemeral-storage": "100m"}
            }}],
        })),
        [
            fraction("spec.overhead[memory]"),
            fraction("spec.containers[0].resources.limits[memory]"),
            fraction("spec.containers[0].resources.requests[ephemeral-storage]"),
            "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
                .to_owned(),
        ]
    );
    assert_eq!(
        told(json!({"dnsConfig": {"nameservers": ["FD00::0:1"]}, "hostAliases": [{"ip": "fd00:0::1"}]})),
        [
            "spec.dnsConfig.nameservers[0]: IPv6 address \"FD00::0:1\" should be in RFC 5952 canonical format \
             (\"fd00::1\")",
            "spec.hostAliases[0].ip: IPv6 address \"fd00:0::1\" should be in RFC 5952 canonical format (\"fd00::1\")",
        ]
    );
}

#[test]
fn files_of_a_volume_that_cannot_all_be_there_are_told() {
    let items = |paths: &[&str]| -> Value {
        paths.iter().map(|path| json!({"key": "k", "path": path})).collect::<Vec<_>>().into()
    };
    for (source, expected) in [
        (
            json!({"configMap": {"name": "m", "items": items(&["a", "a/b"])}}),
            "(ConfigMap \"m\"): overlapping paths: \"a/b\" with \"a\"",
        ),
        (
            json!({"secret": {"secretName": "s", "items": items(&["a", "a/"])}}),
            "(Secret \"s\"): overlapping paths: \"a\" with \"a\"",
        ),
        (
            json!({"configMap": {"name": "m", "items": items(&["a/b", "a/c", "ab", "a"])}}),
            "(ConfigMap \"m\"): overlapping paths: \"a\" with \"a/b\", \"a/c\"",
        ),
        (
            json!({"downwardAPI": {"items": items(&["a", "a"])}}),
            "(DownwardAPI): overlapping paths: \"a\" with \"a\"",
        ),
        (
            json!({"projected": {"sources": [
                {"configMap": {"name": "m", "items": items(&["a"])}}, {"serviceAccountToken": {"path": "a/t"}}
            ]}}),
            "(Projected): overlapping paths: \"a/t\" (ServiceAccountToken) with \"a\" (ConfigMap \"m\")",
        ),
        (
            json!({"projected": {"sources": [
                {"clusterTrustBundle": {"signerName": "x/y", "path": "a"}}, {"secret": {"name": "s", "items": items(&["a"])}}
            ]}}),
            "(Projected): overlapping paths: \"a\" (Secret \"s\") with \"a\" (ClusterTrustBundle \"x/y\")",
        ),
        (json!({"projected": {"sources": [{}]}}), "(Projected) has no sources provided"),
    ] {
        let mut volume = source.clone();
        volume["name"] = "v".into();
        assert_eq!(told(json!({"volumes": [volume]})), [format!("volume \"v\" {expected}")], "{source}");
    }
}
