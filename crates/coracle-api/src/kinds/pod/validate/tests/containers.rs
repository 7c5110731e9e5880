//! Containers of every kind, and what may be said of their restarts.

use super::*;

#[test]
fn containers_are_named_and_have_an_image() {
    check(containers());
}

pub(super) fn containers() -> Vec<Row> {
    let policies = "supported values: \"Always\", \"IfNotPresent\", \"Never\"";
    vec![
        row("/containers", json!([]), ["spec.containers: Required value"]),
        row(
            "/containers",
            json!([{}]),
            ["spec.containers[0].name: Required value", "spec.containers[0].image: Required value"],
        ),
        row(
            "/containers/1",
            json!({"name": "c", "image": "i"}),
            ["spec.containers[1].name: Duplicate value: \"c\""],
        ),
        in_container("name", json!("A"), [&format!("name: Invalid value: \"A\": {LABEL}")]),
        in_container("name", json!("a.b"), ["name: Invalid value: \"a.b\": must not contain dots"]),
        in_container(
            "name",
            json!("a".repeat(64)),
            [&format!("name: Invalid value: \"{}\": must be no more than 63 bytes", "a".repeat(64))],
        ),
        in_container("image", json!(""), ["image: Required value"]),
        in_container(
            "image",
            json!(" i"),
            ["image: Invalid value: \" i\": must not have leading or trailing whitespace"],
        ),
        in_container(
            "imagePullPolicy",
            json!("Sometimes"),
            [&format!("imagePullPolicy: Unsupported value: \"Sometimes\": {policies}")],
        ),
        in_container(
            "terminationMessagePolicy",
            json!("Log"),
            ["terminationMessagePolicy: Unsupported value: \"Log\": supported values: \"File\", \
              \"FallbackToLogsOnError\""],
        ),
    ]
}

#[test]
fn what_runs_first_ends_and_so_has_neither_probes_nor_hooks() {
    check(init_containers());
}

pub(super) fn init_containers() -> Vec<Row> {
    let init = |field: &str, value: Value| {
        let mut container = json!({"name": "i", "image": "i"});
        container[field] = value;
        json!([container])
    };
    let probe = json!({"exec": {"command": ["x"]}});
    let mut rows = vec![
        row(
            "/initContainers",
            json!([{"name": "c", "image": "i"}]),
            ["spec.initContainers[0].name: Duplicate value: \"c\""],
        ),
        row(
            "/initContainers",
            json!([{"name": "i", "image": "i"}, {"name": "i", "image": "i"}]),
            ["spec.initContainers[1].name: Duplicate value: \"i\""],
        ),
        row("/initContainers", json!([{"image": "i"}]), ["spec.initContainers[0].name: Required value"]),
        row("/initContainers", json!([{"name": "i"}]), ["spec.initContainers[0].image: Required value"]),
        row(
            "/initContainers",
            json!([{"name": "i", "image": "i "}]),
            [
                "spec.initContainers[0].image: Invalid value: \"i \": must not have leading or trailing whitespace",
            ],
        ),
        row(
            "/initContainers",
            init("lifecycle", json!({"preStop": {"sleep": {"seconds": 1}}})),
            [&format!("spec.initContainers[0].lifecycle: {NO_SIDECAR}")],
        ),
        row(
            "/initContainers",
            json!([{"name": "i", "image": "i"}, {
                "name": "j", "image": "i",
                "ports": [{"containerPort": 1, "hostPort": 9}, {"containerPort": 2, "hostPort": 9}]
            }]),
            ["spec.initContainers[0].ports[1].hostPort: Duplicate value: \"TCP//9\""],
        ),
        row(
            "/initContainers",
            init("restartPolicy", json!("Sometimes")),
            [
                "spec.initContainers[0].restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \
              \"Never\", \"OnFailure\"",
            ],
        ),
        row(
            "/initContainers",
            init("resizePolicy", json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}])),
            [
                "spec.initContainers[0].resizePolicy[0].restartPolicy: Invalid value: \"RestartContainer\": must not \
              be set to 'RestartContainer' for non-sidecar initContainers",
            ],
        ),
        row(
            "/initContainers",
            json!([{"name": "s", "image": "i", "restartPolicy": "Always", "livenessProbe": {
                "exec": {"command": []}
            }}]),
            ["spec.initContainers[0].livenessProbe.exec.command: Required value"],
        ),
        row(
            "/initContainers",
            json!([{"name": "s", "image": "i", "restartPolicy": "OnFailure", "startupProbe": probe}]),
            [&format!("spec.initContainers[0].startupProbe: {NO_SIDECAR}")],
        ),
    ];
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let error = format!("spec.initContainers[0].{field}: {NO_SIDECAR}");
        rows.push(("/initContainers", init(field, probe.clone()), vec![error]));
    }
    rows
}

#[test]
fn restart_rules_are_few_and_need_a_policy() {
    check(restart_rules());
}

pub(super) fn restart_rules() -> Vec<Row> {
    let rule = |operator: &str, values: Value| json!({"action": "Restart", "exitCodes": {"operator": operator, "values": values}});
    let container = |rules: Value| json!({"name": "c", "image": "i", "restartPolicy": "Never", "restartPolicyRules": rules});
    let many: Vec<Value> = (0..21).map(|code| rule("In", json!([code]))).collect();
    let codes: Vec<i32> = (0..256).collect();
    vec![
        in_container(
            "restartPolicy",
            json!("Mostly"),
            ["restartPolicy: Unsupported value: \"Mostly\": supported values: \"Always\", \"Never\", \
              \"OnFailure\""],
        ),
        in_container(
            "restartPolicyRules",
            json!([rule("In", json!([1]))]),
            ["restartPolicy: Required value: must specify restartPolicy when restart rules are used"],
        ),
        row(
            "/containers/0",
            container(json!(many)),
            ["spec.containers[0].restartPolicyRules: Too many: 21: must have at most 20 items"],
        ),
        row(
            "/containers/0",
            container(json!([rule("In", json!(codes))])),
            [
                "spec.containers[0].restartPolicyRules[0].exitCodes.values: Too many: 256: must have at most 255 \
              items",
            ],
        ),
        row(
            "/containers/0",
            container(json!([rule("Is", json!([1]))])),
            [
                "spec.containers[0].restartPolicyRules[0].exitCodes.operator: Unsupported value: \"Is\": supported \
              values: \"In\", \"NotIn\"",
            ],
        ),
        row(
            "/containers/0",
            container(json!([{"action": "Restart"}])),
            ["spec.containers[0].restartPolicyRules[0].exitCodes: Required value: must be specified"],
        ),
        row(
            "/containers/0",
            container(
                json!([rule("In", json!([1])), {"action": "Stop", "exitCodes": {"operator": "In", "values": [2]}}]),
            ),
            [
                "spec.containers[0].restartPolicyRules[1].action: Unsupported value: \"Stop\": supported values: \
              \"Restart\", \"RestartAllContainers\"",
            ],
        ),
        row(
            "/initContainers",
            json!([{"name": "i", "image": "i", "restartPolicyRules": [rule("In", json!([1]))]}]),
            [
                "spec.initContainers[0].restartPolicy: Required value: must specify restartPolicy when restart rules \
              are used",
            ],
        ),
    ]
}

#[test]
fn what_is_added_later_is_poor() {
    check(ephemeral_containers());
    // They come by their own way, so a new Pod has none; the checks themselves are the same there.
    let spec = complete({
        let mut spec = right();
        spec["ephemeralContainers"] = json!([{"name": "e", "image": "i", "targetContainerName": "c"}]);
        spec
    });
    assert_eq!(pod(&spec), []);
}

pub(super) fn ephemeral_containers() -> Vec<Row> {
    let always = "spec.ephemeralContainers: Forbidden: cannot be set on create".to_owned();
    let with = |field: &str, value: Value, error: &str| {
        let mut container = json!({"name": "e", "image": "i"});
        container[field] = value;
        let error = format!("spec.ephemeralContainers[0].{error}");
        ("/ephemeralContainers", json!([container]), vec![error, always.clone()])
    };
    let probe = json!({"exec": {"command": ["x"]}});
    let mut rows = vec![
        ("/ephemeralContainers", json!([{"name": "e", "image": "i"}]), vec![always.clone()]),
        with("name", json!("c"), "name: Duplicate value: \"c\""),
        with(
            "image",
            json!("i "),
            "image: Invalid value: \"i \": must not have leading or trailing whitespace",
        ),
        with("targetContainerName", json!("x"), "targetContainerName: Not found: \"x\""),
        with("targetContainerName", json!("e"), "targetContainerName: Not found: \"e\""),
        with("resources", json!({"limits": {"cpu": "1"}}), &format!("resources: {EPHEMERAL}")),
        with("ports", json!([{"containerPort": 1}]), &format!("ports: {EPHEMERAL}")),
        with(
            "lifecycle",
            json!({"preStop": {"exec": {"command": ["x"]}}}),
            &format!("lifecycle: {EPHEMERAL}"),
        ),
        with("restartPolicy", json!("Always"), &format!("restartPolicy: {EPHEMERAL}")),
        with(
            "restartPolicyRules",
            json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}]),
            &format!("restartPolicyRules: {EPHEMERAL}"),
        ),
        with(
            "resizePolicy",
            json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"}]),
            &format!("resizePolicy: {EPHEMERAL}"),
        ),
        with(
            "volumeMounts",
            json!([{"name": "v", "mountPath": "/v", "subPath": "x"}]),
            &format!("volumeMounts[0].subPath: {EPHEMERAL}"),
        ),
        with(
            "volumeMounts",
            json!([{"name": "v", "mountPath": "/v", "subPathExpr": "x"}]),
            &format!("volumeMounts[0].subPathExpr: {EPHEMERAL}"),
        ),
    ];
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        rows.push(with(field, probe.clone(), &format!("{field}: {EPHEMERAL}")));
    }
    rows
}
