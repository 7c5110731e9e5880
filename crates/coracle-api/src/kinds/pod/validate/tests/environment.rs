//! Variables and amounts.

use super::*;

#[test]
fn variables_have_a_name_and_one_source() {
    check(environment());
}

pub(super) fn environment() -> Vec<Row> {
    let from = |source: Value| json!([{"name": "A", "valueFrom": source}]);
    let divided = |resource: &str, divisor: &str| {
        from(json!({"resourceFieldRef": {"resource": resource, "divisor": divisor}}))
    };
    let file = |field: &str, value: &str| {
        let mut source = json!({"volumeName": "v", "path": "p", "key": "k"});
        source[field] = value.into();
        from(json!({ "fileKeyRef": source }))
    };
    vec![
        in_container("env", json!([{"name": ""}]), ["env[0].name: Required value"]),
        in_container(
            "env",
            json!([{"name": "a=b"}]),
            [&format!("env[0].name: Invalid value: \"a=b\": {ENV_NAME}")],
        ),
        in_container(
            "env",
            from(json!({})),
            ["env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, \
              `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"],
        ),
        in_container(
            "env",
            json!([{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]),
            ["env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty"],
        ),
        in_container(
            "env",
            from(json!({
                "fieldRef": {"fieldPath": "metadata.name"}, "configMapKeyRef": {"name": "m", "key": "k"}
            })),
            ["env[0].valueFrom: Invalid value: \"\": may not have more than one field specified at a time"],
        ),
        in_container(
            "env",
            from(json!({"fieldRef": {}})),
            ["env[0].valueFrom.fieldRef.fieldPath: Required value"],
        ),
        in_container(
            "env",
            from(json!({"fieldRef": {"apiVersion": "v2", "fieldPath": "metadata.name"}})),
            [
                "env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"metadata.name\": error converting fieldPath: \
              unsupported pod version: v2",
            ],
        ),
        in_container(
            "env",
            from(json!({"fieldRef": {"fieldPath": "metadata.nam"}})),
            [
                "env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"metadata.nam\": error converting fieldPath: \
              field label not supported: metadata.nam",
            ],
        ),
        in_container(
            "env",
            from(json!({"fieldRef": {"fieldPath": "metadata.labels"}})),
            [
                "env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"metadata.labels\": supported values: \
              \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \
              \"spec.serviceAccountName\", \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \
              \"status.podIPs\"",
            ],
        ),
        in_container(
            "env",
            from(json!({"fieldRef": {"fieldPath": "metadata.name['x']"}})),
            ["env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"metadata.name['x']\": error converting \
              fieldPath: field label does not support subscript: metadata.name['x']"],
        ),
        in_container(
            "env",
            from(json!({"fieldRef": {"fieldPath": "metadata.labels['a b']"}})),
            [&format!("env[0].valueFrom.fieldRef: Invalid value: \"a b\": {QUALIFIED}")],
        ),
        in_container(
            "env",
            from(json!({"resourceFieldRef": {"containerName": "c"}})),
            ["env[0].valueFrom.resourceFieldRef.resource: Required value"],
        ),
        in_container(
            "env",
            from(json!({"resourceFieldRef": {"resource": "cpu"}})),
            ["env[0].valueFrom.resourceFieldRef.resource: Unsupported value: \"cpu\": supported values: \
              \"limits.cpu\", \"limits.ephemeral-storage\", \"limits.memory\", \"requests.cpu\", \
              \"requests.ephemeral-storage\", \"requests.memory\""],
        ),
        in_container(
            "env",
            divided("limits.cpu", "2"),
            [
                "env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.cpu\": only divisor's values 1m \
              and 1 are supported with the cpu resource",
            ],
        ),
        in_container(
            "env",
            divided("requests.memory", "1m"),
            [&format!(
                "env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"requests.memory\": only divisor's \
                 values {UNITS} are supported with the memory resource"
            )],
        ),
        in_container(
            "env",
            divided("limits.ephemeral-storage", "2Mi"),
            [&format!(
                "env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.ephemeral-storage\": only \
                 divisor's values {UNITS} are supported with the local ephemeral storage resource"
            )],
        ),
        in_container(
            "env",
            from(json!({"configMapKeyRef": {"name": "m"}})),
            ["env[0].valueFrom.configMapKeyRef.key: Required value"],
        ),
        in_container(
            "env",
            from(json!({"configMapKeyRef": {"key": "k"}})),
            [&format!("env[0].valueFrom.configMapKeyRef.name: Invalid value: \"\": {SUBDOMAIN}")],
        ),
        in_container(
            "env",
            from(json!({"secretKeyRef": {"name": "s", "key": "a b"}})),
            [&format!("env[0].valueFrom.secretKeyRef.key: Invalid value: \"a b\": {CONFIG_KEY}")],
        ),
        in_container(
            "env",
            file("volumeName", ""),
            [
                "env[0].valueFrom.fileKeyRef.volumeName: Required value",
                "env[0].valueFrom.fileKeyRef.volumeName: Not found: \"\"",
            ],
        ),
        in_container(
            "env",
            file("volumeName", "w"),
            ["env[0].valueFrom.fileKeyRef.volumeName: Not found: \"w\""],
        ),
        in_container(
            "env",
            file("path", "../x"),
            ["env[0].valueFrom.fileKeyRef.path: Invalid value: \"../x\": must not contain '..'"],
        ),
        in_container(
            "env",
            file("key", "a=b"),
            [&format!("env[0].valueFrom.fileKeyRef.key: Invalid value: \"a=b\": {ENV_NAME}")],
        ),
        row(
            "",
            json!({
                "terminationGracePeriodSeconds": 30, "volumes": [{"name": "v", "configMap": {"name": "m"}}],
                "containers": [{"name": "c", "image": "i", "env": file("key", "k")}],
            }),
            [
                "spec.containers[0].env[0].valueFrom.fileKeyRef.volumeName: Invalid value: \"v\": referenced volume \
              must be of type emptyDir",
            ],
        ),
        in_container(
            "envFrom",
            json!([{"prefix": "P"}]),
            ["envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`"],
        ),
        in_container(
            "envFrom",
            json!([{"configMapRef": {"name": "m"}, "secretRef": {"name": "s"}}]),
            ["envFrom: Invalid value: \"\": may not have more than one field specified at a time"],
        ),
        in_container(
            "envFrom",
            json!([{"configMapRef": {}}]),
            ["envFrom[0].configMapRef.name: Required value"],
        ),
        in_container(
            "envFrom",
            json!([{"secretRef": {"name": "A"}}]),
            [&format!("envFrom[0].secretRef.name: Invalid value: \"A\": {SUBDOMAIN}")],
        ),
        in_container(
            "envFrom",
            json!([{"prefix": "a=", "configMapRef": {"name": "m"}}]),
            [&format!("envFrom[0].prefix: Invalid value: \"a=\": {ENV_NAME}")],
        ),
    ]
}

#[test]
fn amounts_are_sensible() {
    check(resources());
}

pub(super) fn resources() -> Vec<Row> {
    let unknown = |name: &str| {
        [
            format!(
                "resources.requests[{name}]: Invalid value: \"{name}\": must be a standard resource type or fully qualified"
            ),
            format!(
                "resources.requests[{name}]: Invalid value: \"{name}\": must be a standard resource for containers"
            ),
        ]
    };
    let [gpu_type, gpu_container] = unknown("gpu");
    vec![
        in_container(
            "resources",
            json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}),
            ["resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"],
        ),
        in_container(
            "resources",
            json!({"requests": {"cpu": "-1"}}),
            ["resources.requests[cpu]: Invalid value: \"-1\": must be greater than or equal to 0"],
        ),
        in_container("resources", json!({"requests": {"gpu": "1"}}), [&gpu_type, &gpu_container]),
        in_container("resources", json!({"requests": {"pods": "1"}}), [&unknown("pods")[1]]),
        in_container(
            "resources",
            json!({"requests": {"example.com/gpu": "1"}}),
            ["resources.limits: Required value: Limit must be set for non overcommitable resources"],
        ),
        in_container(
            "resources",
            json!({"limits": {"example.com/gpu": "2"}, "requests": {"example.com/gpu": "1"}}),
            ["resources.requests: Invalid value: \"1\": must be equal to example.com/gpu limit of 2"],
        ),
        in_container(
            "resources",
            json!({"limits": {"example.com/gpu": "1500m"}}),
            [
                "resources.limits[example.com/gpu]: Invalid value: \"1500m\": must be an integer",
                "resources.requests[example.com/gpu]: Invalid value: \"1500m\": must be an integer",
            ],
        ),
        in_container(
            "resources",
            json!({"limits": {"requests.example.com/gpu": "1"}}),
            [
                "resources.limits[requests.example.com/gpu]: Invalid value: \"requests.example.com/gpu\": doesn't \
                 follow extended resource name standard",
                "resources.requests[requests.example.com/gpu]: Invalid value: \"requests.example.com/gpu\": doesn't \
                 follow extended resource name standard",
            ],
        ),
        in_container(
            "resources",
            json!({"limits": {"hugepages-2Mi": "4Mi"}}),
            ["resources: Forbidden: HugePages require cpu or memory"],
        ),
        in_container(
            "resources",
            json!({"limits": {"hugepages-2Mi": "3Mi", "cpu": "1"}}),
            [
                "resources.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of \
                 hugepages-2Mi",
                "resources.requests[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of \
                 hugepages-2Mi",
            ],
        ),
        in_container(
            "resources",
            json!({"claims": [{"name": "x"}]}),
            [
                "resources.claims[0]: Not found: \"x\": must be one of the names in pod.spec.resourceClaims which is \
              empty",
            ],
        ),
        in_container(
            "resizePolicy",
            json!([
                {"resourceName": "cpu", "restartPolicy": "NotRequired"},
                {"resourceName": "cpu", "restartPolicy": "NotRequired"}
            ]),
            ["resizePolicy[1]: Duplicate value: \"cpu\""],
        ),
        in_container(
            "resizePolicy",
            json!([{"resourceName": "disk", "restartPolicy": "Now"}]),
            [
                "resizePolicy: Unsupported value: \"disk\": supported values: \"cpu\", \"memory\"",
                "resizePolicy: Unsupported value: \"Now\": supported values: \"NotRequired\", \"RestartContainer\"",
            ],
        ),
        row(
            "/overhead",
            json!({"cpu": "-1"}),
            ["spec.overhead.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0"],
        ),
    ]
}
