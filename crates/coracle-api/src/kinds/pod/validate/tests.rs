//! Wrong Pods, and what is said of them: each row sets one part of a Pod that is right otherwise.

use serde_json::{Value, json};

use super::super::defaults;
use super::*;

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                     start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for \
                     validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
                         '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used \
                         for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
                         with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
                         validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const ENV_NAME: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. \
                          'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is \
                          '[-._a-zA-Z0-9]+')";
const IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const PORT: &str = "must be between 1 and 65535, inclusive";
const ID: &str = "must be between 0 and 4294967295, inclusive";
const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const NO_SIDECAR: &str = "Forbidden: may not be set for init containers without restartPolicy=Always";
const EPHEMERAL: &str = "Forbidden: cannot be set for an Ephemeral Container";
const SPREAD: &str = "spec.topologySpreadConstraints[0]";
const UNITS: &str = "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei";

/// Where something is set, what, and what is said of it.
type Row = (&'static str, Value, Vec<String>);

fn row<const N: usize>(pointer: &'static str, value: Value, errors: [&str; N]) -> Row {
    (pointer, value, errors.map(str::to_owned).to_vec())
}

/// A row about the first container: pointer and errors are relative to it.
fn in_container<const N: usize>(field: &'static str, value: Value, errors: [&str; N]) -> Row {
    let errors = errors.map(|error| format!("spec.containers[0].{error}")).to_vec();
    (Box::leak(format!("/containers/0/{field}").into_boxed_str()), value, errors)
}

/// A row about the first volume's source.
fn of_volume<const N: usize>(value: Value, errors: [&str; N]) -> Row {
    let mut volume = json!({"name": "w"});
    for (kind, source) in value.as_object().unwrap() {
        volume[kind] = source.clone();
    }
    let errors = errors.map(|error| format!("spec.volumes[0]{error}")).to_vec();
    ("/volumes/0", volume, errors)
}

/// A Pod that nothing is wrong with.
fn right() -> Value {
    json!({
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "emptyDir": {}}],
        "terminationGracePeriodSeconds": 30,
    })
}

fn set(target: &mut Value, pointer: &str, value: Value) {
    let mut at = target;
    for step in pointer.split('/').skip(1) {
        at = match step.parse::<usize>() {
            Ok(index) => {
                if at.is_null() {
                    *at = json!([]);
                }
                let list = at.as_array_mut().unwrap();
                while list.len() <= index {
                    list.push(Value::Null);
                }
                &mut list[index]
            }
            Err(_) => &mut at[step],
        };
    }
    *at = value;
}

fn complete(spec: Value) -> Value {
    let mut pod = json!({"metadata": {"name": "a"}, "spec": spec});
    defaults::apply(&mut pod);
    defaults::admit(&mut pod);
    pod
}

fn errors_of(spec: Value) -> Vec<String> {
    new_pod(&complete(spec)).iter().map(ToString::to_string).collect()
}

/// Checks a table; what is wrong with it is told at once.
#[track_caller]
fn check(rows: Vec<Row>) {
    let mut wrong = Vec::new();
    for (pointer, value, expected) in rows {
        let mut spec = right();
        set(&mut spec, pointer, value.clone());
        let errors = errors_of(spec);
        if errors != expected {
            wrong.push(format!("{pointer} = {value}\n  said     {errors:#?}\n  expected {expected:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_is_long_and_begins_with_a_pod_that_is_right() {
    assert_eq!(errors_of(right()), [""; 0]);
    let tables = [
        containers(),
        init_containers(),
        restart_rules(),
        ephemeral_containers(),
        ports(),
        probes(),
        hooks(),
        volumes(),
        projected(),
        mounts(),
        environment(),
        resources(),
        security(),
        network(),
        scheduling(),
        whole(),
    ];
    let rows: Vec<Row> = tables.into_iter().flatten().collect();
    assert!(rows.len() >= 150, "{}", rows.len());
    assert!(rows.iter().all(|(_, _, errors)| !errors.is_empty()));
}

#[test]
fn containers_are_named_and_have_an_image() {
    check(containers());
}

fn containers() -> Vec<Row> {
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

fn init_containers() -> Vec<Row> {
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

fn restart_rules() -> Vec<Row> {
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

fn ephemeral_containers() -> Vec<Row> {
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

#[test]
fn ports_are_numbers_and_collide_nowhere() {
    check(ports());
}

fn ports() -> Vec<Row> {
    let port = |value: Value| json!([value]);
    vec![
        in_container("ports", port(json!({"name": "x"})), ["ports[0].containerPort: Required value"]),
        in_container(
            "ports",
            port(json!({"containerPort": 70000})),
            [&format!("ports[0].containerPort: Invalid value: 70000: {PORT}")],
        ),
        in_container(
            "ports",
            port(json!({"containerPort": -1})),
            [&format!("ports[0].containerPort: Invalid value: -1: {PORT}")],
        ),
        in_container(
            "ports",
            port(json!({"containerPort": 1, "hostPort": 65536})),
            [&format!("ports[0].hostPort: Invalid value: 65536: {PORT}")],
        ),
        in_container(
            "ports",
            port(json!({"containerPort": 1, "protocol": "tcp"})),
            ["ports[0].protocol: Unsupported value: \"tcp\": supported values: \"SCTP\", \"TCP\", \"UDP\""],
        ),
        in_container(
            "ports",
            port(json!({"containerPort": 1, "name": "a-name-much-too-long"})),
            ["ports[0].name: Invalid value: \"a-name-much-too-long\": must be no more than 15 bytes"],
        ),
        in_container(
            "ports",
            port(json!({"containerPort": 1, "name": "12"})),
            ["ports[0].name: Invalid value: \"12\": must contain at least one letter (a-z)"],
        ),
        in_container(
            "ports",
            port(json!({"containerPort": 1, "name": "a--b"})),
            ["ports[0].name: Invalid value: \"a--b\": must not contain consecutive hyphens"],
        ),
        in_container(
            "ports",
            json!([{"containerPort": 1, "name": "a"}, {"containerPort": 2, "name": "a"}]),
            ["ports[1].name: Duplicate value: \"a\""],
        ),
        in_container(
            "ports",
            json!([{"containerPort": 1, "hostPort": 9}, {"containerPort": 2, "hostPort": 9}]),
            ["ports[1].hostPort: Duplicate value: \"TCP//9\""],
        ),
        row(
            "/containers",
            json!([
                {"name": "a", "image": "i", "ports": [{"containerPort": 1, "hostPort": 9, "hostIP": "10.0.0.1"}]},
                {"name": "b", "image": "i", "ports": [{"containerPort": 1, "hostPort": 9, "hostIP": "10.0.0.1"}]},
            ]),
            ["spec.containers[1].ports[0].hostPort: Duplicate value: \"TCP/10.0.0.1/9\""],
        ),
    ]
}

#[test]
fn probes_have_one_handler_and_sensible_numbers() {
    check(probes());
}

fn probes() -> Vec<Row> {
    let negative = "must be greater than or equal to 0";
    let exec = |field: &str, value: i64| {
        let mut probe = json!({"exec": {"command": ["x"]}});
        probe[field] = value.into();
        probe
    };
    vec![
        in_container(
            "livenessProbe",
            json!({"initialDelaySeconds": 1}),
            ["livenessProbe: Required value: must specify a handler type"],
        ),
        in_container(
            "readinessProbe",
            json!({"exec": {"command": ["x"]}, "tcpSocket": {"port": 1}, "grpc": {"port": 1}}),
            [
                "readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
                "readinessProbe.grpc: Forbidden: may not specify more than 1 handler type",
            ],
        ),
        in_container("livenessProbe", json!({"exec": {}}), ["livenessProbe.exec.command: Required value"]),
        in_container(
            "livenessProbe",
            json!({"httpGet": {"path": "/"}}),
            [&format!("livenessProbe.httpGet.port: Invalid value: 0: {PORT}")],
        ),
        in_container(
            "livenessProbe",
            json!({"httpGet": {"port": 70000}}),
            [&format!("livenessProbe.httpGet.port: Invalid value: 70000: {PORT}")],
        ),
        in_container(
            "livenessProbe",
            json!({"httpGet": {"port": "-web"}}),
            ["livenessProbe.httpGet.port: Invalid value: \"-web\": must not begin or end with a hyphen"],
        ),
        in_container(
            "livenessProbe",
            json!({"httpGet": {"port": ""}}),
            [
                "livenessProbe.httpGet.port: Invalid value: \"\": must contain only alpha-numeric characters (a-z, \
                 0-9), and hyphens (-)",
                "livenessProbe.httpGet.port: Invalid value: \"\": must contain at least one letter (a-z)",
            ],
        ),
        in_container(
            "livenessProbe",
            json!({"httpGet": {"port": 80, "scheme": "http"}}),
            [
                "livenessProbe.httpGet.scheme: Unsupported value: \"http\": supported values: \"HTTP\", \"HTTPS\"",
            ],
        ),
        in_container(
            "livenessProbe",
            json!({"httpGet": {"port": 80, "httpHeaders": [{"name": "X Y", "value": "1"}]}}),
            [
                "livenessProbe.httpGet.httpHeaders: Invalid value: \"X Y\": a valid HTTP header must consist of \
              alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is \
              '[-A-Za-z0-9]+')",
            ],
        ),
        in_container(
            "startupProbe",
            json!({"tcpSocket": {"port": 0}}),
            [&format!("startupProbe.tcpSocket.port: Invalid value: 0: {PORT}")],
        ),
        in_container(
            "startupProbe",
            json!({"grpc": {"port": 99999}}),
            [&format!("startupProbe.grpc.port: Invalid value: 99999: {PORT}")],
        ),
        in_container(
            "livenessProbe",
            exec("initialDelaySeconds", -1),
            [&format!("livenessProbe.initialDelaySeconds: Invalid value: -1: {negative}")],
        ),
        in_container(
            "livenessProbe",
            exec("timeoutSeconds", -1),
            [&format!("livenessProbe.timeoutSeconds: Invalid value: -1: {negative}")],
        ),
        in_container(
            "readinessProbe",
            exec("periodSeconds", -2),
            [&format!("readinessProbe.periodSeconds: Invalid value: -2: {negative}")],
        ),
        in_container(
            "readinessProbe",
            exec("failureThreshold", -3),
            [&format!("readinessProbe.failureThreshold: Invalid value: -3: {negative}")],
        ),
        in_container(
            "readinessProbe",
            exec("successThreshold", -1),
            [&format!("readinessProbe.successThreshold: Invalid value: -1: {negative}")],
        ),
        in_container(
            "livenessProbe",
            exec("successThreshold", 2),
            ["livenessProbe.successThreshold: Invalid value: 2: must be 1"],
        ),
        in_container(
            "startupProbe",
            exec("successThreshold", 3),
            ["startupProbe.successThreshold: Invalid value: 3: must be 1"],
        ),
        in_container(
            "livenessProbe",
            exec("terminationGracePeriodSeconds", 0),
            ["livenessProbe.terminationGracePeriodSeconds: Invalid value: 0: must be greater than 0"],
        ),
        in_container(
            "readinessProbe",
            exec("terminationGracePeriodSeconds", 5),
            ["readinessProbe.terminationGracePeriodSeconds: Invalid value: 5: must not be set for \
              readinessProbes"],
        ),
    ]
}

#[test]
fn hooks_have_one_handler_and_fit_into_the_grace_period() {
    check(hooks());
    let mut spec = right();
    spec["os"] = json!({"name": "linux"});
    spec["containers"][0]["lifecycle"] =
        json!({"stopSignal": "SIGRTMIN+3", "preStop": {"sleep": {"seconds": 0}}});
    assert_eq!(errors_of(spec), [""; 0]);
}

fn hooks() -> Vec<Row> {
    vec![
        in_container(
            "lifecycle",
            json!({"postStart": {}}),
            ["lifecycle.postStart: Required value: must specify a handler type"],
        ),
        in_container(
            "lifecycle",
            json!({"preStop": {"exec": {"command": ["x"]}, "sleep": {"seconds": 1}}}),
            ["lifecycle.preStop.sleep: Forbidden: may not specify more than 1 handler type"],
        ),
        in_container(
            "lifecycle",
            json!({"postStart": {"exec": {}}}),
            ["lifecycle.postStart.exec.command: Required value"],
        ),
        in_container(
            "lifecycle",
            json!({"preStop": {"httpGet": {"port": 0}}}),
            [&format!("lifecycle.preStop.httpGet.port: Invalid value: 0: {PORT}")],
        ),
        in_container(
            "lifecycle",
            json!({"preStop": {"sleep": {"seconds": -1}}}),
            ["lifecycle.preStop.sleep: Invalid value: -1: must be non-negative and less than \
              terminationGracePeriodSeconds (30)"],
        ),
        in_container(
            "lifecycle",
            json!({"preStop": {"sleep": {"seconds": 31}}}),
            ["lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than \
              terminationGracePeriodSeconds (30)"],
        ),
        in_container(
            "lifecycle",
            json!({"stopSignal": "SIGTERM"}),
            ["lifecycle.stopSignal: Forbidden: may not be set for containers with empty `spec.os.name`"],
        ),
        row(
            "",
            json!({
                "os": {"name": "windows"}, "terminationGracePeriodSeconds": 30,
                "containers": [{"name": "c", "image": "i", "lifecycle": {"stopSignal": "SIGINT"}}]
            }),
            ["spec.containers[0].lifecycle.stopSignal: Unsupported value: \"SIGINT\": supported values: \
              \"SIGKILL\", \"SIGTERM\""],
        ),
    ]
}

#[test]
fn an_unknown_signal_is_answered_with_all_known_ones() {
    let mut spec = right();
    spec["os"] = json!({"name": "linux"});
    spec["containers"][0]["lifecycle"] = json!({"stopSignal": "TERM"});
    let errors = errors_of(spec);
    let (start, end) = (
        "spec.containers[0].lifecycle.stopSignal: Unsupported value: \"TERM\": supported values: \"SIGABRT\", ",
        "\"SIGWINCH\", \"SIGXCPU\", \"SIGXFSZ\"",
    );
    assert!(errors[0].starts_with(start) && errors[0].ends_with(end), "{errors:?}");
    assert_eq!(errors[0].matches("\"SIG").count(), 65);
}

#[test]
fn volumes_are_of_one_kind_each() {
    check(volumes());
}

fn volumes() -> Vec<Row> {
    let item = |item: Value| json!({"configMap": {"name": "m", "items": [item]}});
    vec![
        row("/volumes/1", json!({"name": "v"}), ["spec.volumes[1].name: Duplicate value: \"v\""]),
        row("/volumes/0", json!({}), ["spec.volumes[0].name: Required value"]),
        row(
            "/volumes/0",
            json!({"name": "a.b"}),
            ["spec.volumes[0].name: Invalid value: \"a.b\": must not contain dots"],
        ),
        of_volume(
            json!({"emptyDir": {}, "hostPath": {"path": "/"}}),
            [".hostPath: Forbidden: may not specify more than 1 volume type"],
        ),
        of_volume(
            json!({"configMap": {"name": "m"}, "secret": {"secretName": "s"}}),
            [".configMap: Forbidden: may not specify more than 1 volume type"],
        ),
        of_volume(
            json!({"emptyDir": {}, "downwardAPI": {}}),
            [".downwarAPI: Forbidden: may not specify more than 1 volume type"],
        ),
        of_volume(
            json!({"emptyDir": {"sizeLimit": "-1"}}),
            [".emptyDir.sizeLimit: Forbidden: SizeLimit field must be a valid resource quantity"],
        ),
        of_volume(json!({"hostPath": {}}), [".hostPath.path: Required value"]),
        of_volume(
            json!({"hostPath": {"path": "/a/../b"}}),
            [".hostPath.path: Invalid value: \"/a/../b\": must not contain '..'"],
        ),
        of_volume(
            json!({"hostPath": {"path": "/a", "type": "Dir"}}),
            [
                ".hostPath.type: Unsupported value: \"Dir\": supported values: \"\", \"BlockDevice\", \"CharDevice\", \
              \"Directory\", \"DirectoryOrCreate\", \"File\", \"FileOrCreate\", \"Socket\"",
            ],
        ),
        of_volume(json!({"configMap": {}}), [".configMap.name: Required value"]),
        of_volume(
            json!({"configMap": {"name": "m", "defaultMode": 512}}),
            [&format!(".configMap.defaultMode: Invalid value: 512: {MODE}")],
        ),
        of_volume(item(json!({"path": "p"})), [".configMap.items[0].key: Required value"]),
        of_volume(item(json!({"key": "k"})), [".configMap.items[0].path: Required value"]),
        of_volume(
            item(json!({"key": "k", "path": "/p"})),
            [".configMap.items[0].path: Invalid value: \"/p\": must be a relative path"],
        ),
        of_volume(
            item(json!({"key": "k", "path": "a/../../p"})),
            [".configMap.items[0].path: Invalid value: \"a/../../p\": must not contain '..'"],
        ),
        of_volume(
            item(json!({"key": "k", "path": "..p"})),
            [".configMap.items[0].path: Invalid value: \"..p\": must not start with '..'"],
        ),
        of_volume(
            item(json!({"key": "k", "path": "p", "mode": -1})),
            [&format!(".configMap.items[0].mode: Invalid value: -1: {MODE}")],
        ),
        of_volume(json!({"secret": {}}), [".secret.secretName: Required value"]),
        of_volume(
            json!({"secret": {"secretName": "s", "defaultMode": -1}}),
            [&format!(".secret.defaultMode: Invalid value: -1: {MODE}")],
        ),
        of_volume(
            json!({"secret": {"secretName": "s", "items": [{"key": "k", "path": ".."}]}}),
            [
                ".secret.items[0].path: Invalid value: \"..\": must not contain '..'",
                ".secret.items[0].path: Invalid value: \"..\": must not start with '..'",
            ],
        ),
        of_volume(
            json!({"downwardAPI": {"items": [{"path": "p"}]}}),
            [".downwardAPI: Required value: one of fieldRef and resourceFieldRef is required"],
        ),
        of_volume(
            json!({"downwardAPI": {"items": [{"fieldRef": {"fieldPath": "metadata.name"}}]}}),
            [".downwardAPI.path: Required value"],
        ),
        of_volume(
            json!({"downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "status.podIP"}}]}}),
            [".downwardAPI.fieldRef.fieldPath: Unsupported value: \"status.podIP\": supported values: \
              \"metadata.annotations\", \"metadata.labels\", \"metadata.name\", \"metadata.namespace\", \
              \"metadata.uid\""],
        ),
        of_volume(
            json!({"downwardAPI": {"items": [{"path": "p", "resourceFieldRef": {"resource": "limits.cpu"}}]}}),
            [".downwardAPI.resourceFieldRef.containerName: Required value"],
        ),
        of_volume(
            json!({"downwardAPI": {"items": [{
                "path": "p", "fieldRef": {"fieldPath": "metadata.name"},
                "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu"}
            }]}}),
            [
                ".downwardAPI: Invalid value: \"resource\": fieldRef and resourceFieldRef can not be specified \
              simultaneously",
            ],
        ),
        of_volume(
            json!({"downwardAPI": {"defaultMode": 1000}}),
            [&format!(".downwardAPI.defaultMode: Invalid value: 1000: {MODE}")],
        ),
        of_volume(
            json!({"downwardAPI": {"items": [{"path": "p", "mode": 1000, "fieldRef": {"fieldPath": "metadata.name"}}]}}),
            [&format!(".downwardAPI.mode: Invalid value: 1000: {MODE}")],
        ),
        of_volume(json!({"persistentVolumeClaim": {}}), [".persistentVolumeClaim.claimName: Required value"]),
        of_volume(
            json!({"image": {"reference": "i", "pullPolicy": "Often"}}),
            [
                ".image.pullPolicy: Unsupported value: \"Often\": supported values: \"Always\", \"IfNotPresent\", \
              \"Never\"",
            ],
        ),
        of_volume(
            json!({"nfs": {"server": "s", "path": "p"}}),
            [".nfs.path: Invalid value: \"p\": must be an absolute path"],
        ),
        of_volume(json!({"csi": {}}), [".csi.driver: Required value"]),
    ]
}

#[test]
fn projected_volumes_have_one_kind_a_source_and_one_source_a_path() {
    check(projected());
}

fn projected() -> Vec<Row> {
    let sources = |sources: Value| json!({"projected": {"sources": sources}});
    vec![
        of_volume(
            json!({"projected": {"defaultMode": 511, "sources": [{"configMap": {"name": "m"}, "secret": {"name": "s"}}]}}),
            [".projected.sources[0]: Forbidden: may not specify more than 1 volume type per source"],
        ),
        of_volume(
            json!({"projected": {"defaultMode": 512}}),
            [&format!(".projected.defaultMode: Invalid value: 512: {MODE}")],
        ),
        of_volume(sources(json!([{"secret": {}}])), [".projected.sources[0].secret.name: Required value"]),
        of_volume(
            sources(json!([{"configMap": {}}])),
            [".projected.sources[0].configMap.name: Required value"],
        ),
        of_volume(
            sources(json!([
                {"configMap": {"name": "m", "items": [{"key": "k", "path": "p"}]}},
                {"secret": {"name": "s", "items": [{"key": "k", "path": "p"}]}}
            ])),
            [".projected: Invalid value: \"s\": conflicting duplicate paths"],
        ),
        of_volume(
            sources(json!([
                {"configMap": {"name": "m", "items": [{"key": "k", "path": "p"}]}},
                {"downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "metadata.uid"}}]}}
            ])),
            [".projected: Invalid value: \"p\": conflicting duplicate paths"],
        ),
        of_volume(
            sources(json!([{"serviceAccountToken": {"path": "t", "expirationSeconds": 599}}])),
            [
                ".projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 599: may not specify a \
              duration less than 10 minutes",
            ],
        ),
        of_volume(
            sources(json!([{"serviceAccountToken": {"path": "t", "expirationSeconds": 4_294_967_297_i64}}])),
            [
                ".projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 4294967297: may not \
              specify a duration larger than 2^32 seconds",
            ],
        ),
        of_volume(sources(json!([{"serviceAccountToken": {}}])), [".projected.path: Required value"]),
        of_volume(
            sources(json!([{"serviceAccountToken": {"path": "../t"}}])),
            [".projected.path: Invalid value: \"../t\": must not contain '..'"],
        ),
        of_volume(
            sources(
                json!([{"downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "spec.x"}}]}}]),
            ),
            [
                ".projected.sources[0].downwardAPI.fieldRef.fieldPath: Invalid value: \"spec.x\": error converting \
              fieldPath: field label not supported: spec.x",
            ],
        ),
        of_volume(
            sources(json!([{"clusterTrustBundle": {"path": "p"}}])),
            [".projected.sources[0].clusterTrustBundle: Required value: either name or signerName must be \
              specified"],
        ),
        of_volume(
            sources(json!([{"podCertificate": {"signerName": "a.b/c", "keyType": "RSA1", "keyPath": "k"}}])),
            [".projected.sources[0].podCertificate.keyType: Unsupported value: \"RSA1\": supported values: \
              \"RSA3072\", \"RSA4096\", \"ECDSAP256\", \"ECDSAP384\", \"ECDSAP521\", \"ED25519\""],
        ),
    ]
}

#[test]
fn mounts_name_a_volume_and_a_place_of_their_own() {
    check(mounts());
}

fn mounts() -> Vec<Row> {
    let mount = |more: Value| {
        let mut mount = json!({"name": "v", "mountPath": "/v"});
        for (field, value) in more.as_object().unwrap() {
            mount[field] = value.clone();
        }
        json!([mount])
    };
    vec![
        in_container("volumeMounts", mount(json!({"name": "w"})), ["volumeMounts[0].name: Not found: \"w\""]),
        in_container(
            "volumeMounts",
            json!([{"mountPath": "/v"}]),
            ["volumeMounts[0].name: Required value", "volumeMounts[0].name: Not found: \"\""],
        ),
        in_container("volumeMounts", json!([{"name": "v"}]), ["volumeMounts[0].mountPath: Required value"]),
        in_container(
            "volumeMounts",
            json!([{"name": "v", "mountPath": "/v"}, {"name": "v", "mountPath": "/v"}]),
            ["volumeMounts[1].mountPath: Invalid value: \"/v\": must be unique"],
        ),
        in_container(
            "volumeMounts",
            mount(json!({"subPath": "/a"})),
            ["volumeMounts.subPath: Invalid value: \"/a\": must be a relative path"],
        ),
        in_container(
            "volumeMounts",
            mount(json!({"subPath": "a/../b"})),
            ["volumeMounts.subPath: Invalid value: \"a/../b\": must not contain '..'"],
        ),
        in_container(
            "volumeMounts",
            mount(json!({"subPath": "a", "subPathExpr": "$(A)"})),
            ["volumeMounts[0].subPathExpr: Invalid value: \"$(A)\": subPathExpr and subPath are mutually \
              exclusive"],
        ),
        in_container(
            "volumeMounts",
            mount(json!({"subPathExpr": "/$(A)"})),
            ["volumeMounts.subPathExpr: Invalid value: \"/$(A)\": must be a relative path"],
        ),
        in_container(
            "volumeMounts",
            mount(json!({"subPathExpr": "../$(A)"})),
            ["volumeMounts.subPathExpr: Invalid value: \"../$(A)\": must not contain '..'"],
        ),
        in_container(
            "volumeMounts",
            mount(json!({"mountPropagation": "Up"})),
            [
                "volumeMounts.mountPropagation: Unsupported value: \"Up\": supported values: \"Bidirectional\", \
              \"HostToContainer\", \"None\"",
            ],
        ),
        in_container(
            "volumeMounts",
            mount(json!({"mountPropagation": "Bidirectional"})),
            [
                "volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is available only to \
              privileged containers",
            ],
        ),
        in_container(
            "volumeMounts",
            mount(json!({"recursiveReadOnly": "Enabled"})),
            ["volumeMounts.recursiveReadOnly: Forbidden: may only be specified when readOnly is true"],
        ),
        in_container(
            "volumeMounts",
            mount(
                json!({"recursiveReadOnly": "IfPossible", "readOnly": true, "mountPropagation": "HostToContainer"}),
            ),
            [
                "volumeMounts.recursiveReadOnly: Forbidden: may only be specified when mountPropagation is None or \
              not specified",
            ],
        ),
        in_container(
            "volumeMounts",
            mount(json!({"recursiveReadOnly": "Maybe"})),
            [
                "volumeMounts.recursiveReadOnly: Unsupported value: \"Maybe\": supported values: \"Disabled\", \
              \"Enabled\", \"IfPossible\"",
            ],
        ),
        row(
            "",
            json!({
                "terminationGracePeriodSeconds": 30, "volumes": [{"name": "a.b"}],
                "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "a.b", "mountPath": "/v"}]}],
            }),
            [
                "spec.volumes[0].name: Invalid value: \"a.b\": must not contain dots",
                "spec.containers[0].volumeMounts[0].name: Not found: \"a.b\"",
            ],
        ),
        in_container(
            "volumeDevices",
            json!([{"name": "v", "devicePath": "/dev/x"}]),
            ["volumeDevices[0].name: Invalid value: \"v\": can only use volume source type of \
              PersistentVolumeClaim or Ephemeral for block mode"],
        ),
        in_container(
            "volumeDevices",
            json!([{"name": "w", "devicePath": "/dev/../x"}]),
            [
                "volumeDevices[0].name: Not found: \"w\"",
                "volumeDevices[0].devicePath: Invalid value: \"/dev/../x\": can not contain backsteps ('..')",
            ],
        ),
    ]
}

#[test]
fn variables_have_a_name_and_one_source() {
    check(environment());
}

fn environment() -> Vec<Row> {
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

fn resources() -> Vec<Row> {
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

#[test]
fn security_contexts_do_not_contradict_themselves() {
    check(security());
}

fn security() -> Vec<Row> {
    let both = json!({"allowPrivilegeEscalation": false, "privileged": true});
    let all = json!({"allowPrivilegeEscalation": false, "capabilities": {"add": ["CAP_SYS_ADMIN"]}});
    let profile = |profile: Value| json!({ "seccompProfile": profile });
    let sysctls = |names: &[&str]| {
        let list: Vec<Value> = names.iter().map(|name| json!({"name": name, "value": "1"})).collect();
        json!({ "sysctls": list })
    };
    let in_network = |field: &str, name: &str| {
        let mut spec = right();
        spec[field] = true.into();
        spec["securityContext"] = sysctls(&[name]);
        let error = format!(
            "spec.securityContext.sysctls[0].name: Invalid value: \"{name}\": may not be specified when '{field}' \
             is true"
        );
        ("", spec, vec![error])
    };
    vec![
        in_container(
            "securityContext",
            json!({"runAsUser": -1}),
            [&format!("securityContext.runAsUser: Invalid value: -1: {ID}")],
        ),
        in_container(
            "securityContext",
            json!({"runAsGroup": 4_294_967_296_i64}),
            [&format!("securityContext.runAsGroup: Invalid value: 4294967296: {ID}")],
        ),
        in_container(
            "securityContext",
            both.clone(),
            [&format!(
                "securityContext: Invalid value: {both}: cannot set `allowPrivilegeEscalation` to false and \
                 `privileged` to true"
            )],
        ),
        in_container(
            "securityContext",
            all.clone(),
            [&format!(
                "securityContext: Invalid value: {all}: cannot set `allowPrivilegeEscalation` to false and \
                 `capabilities.Add` CAP_SYS_ADMIN"
            )],
        ),
        in_container(
            "securityContext",
            json!({"procMount": "Bare"}),
            [
                "securityContext.procMount: Unsupported value: \"Bare\": supported values: \"Default\", \"Unmasked\"",
            ],
        ),
        in_container(
            "securityContext",
            json!({"procMount": "Unmasked"}),
            ["securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use \
              `Unmasked`"],
        ),
        in_container(
            "securityContext",
            profile(json!({})),
            [
                "securityContext.seccompProfile.type: Required value: type is required when seccompProfile is set",
            ],
        ),
        in_container(
            "securityContext",
            profile(json!({"type": "Localhost"})),
            [
                "securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is \
              Localhost",
            ],
        ),
        row(
            "/securityContext",
            profile(json!({"type": "Own"})),
            ["spec.securityContext.seccompProfile.type: Unsupported value: \"Own\": supported values: \
              \"Localhost\", \"RuntimeDefault\", \"Unconfined\""],
        ),
        row(
            "/securityContext",
            profile(json!({"type": "Localhost", "localhostProfile": "../x"})),
            [
                "spec.securityContext.seccompProfile.localhostProfile: Invalid value: \"../x\": must not contain \
              '..'",
            ],
        ),
        row(
            "/securityContext",
            json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": " x"}}),
            [
                "spec.securityContext.appArmorProfile.localhostProfile: Invalid value: \" x\": must not be padded \
              with whitespace",
            ],
        ),
        row(
            "/securityContext",
            json!({"fsGroup": -1}),
            [&format!("spec.securityContext.fsGroup: Invalid value: -1: {ID}")],
        ),
        row(
            "/securityContext",
            json!({"supplementalGroups": [1, -1]}),
            [&format!("spec.securityContext.supplementalGroups[1]: Invalid value: -1: {ID}")],
        ),
        row(
            "/securityContext",
            json!({"fsGroupChangePolicy": "Never"}),
            ["spec.securityContext.fsGroupChangePolicy: Unsupported value: \"Never\": supported values: \
              \"Always\", \"OnRootMismatch\""],
        ),
        row(
            "/securityContext",
            json!({"supplementalGroupsPolicy": "Loose"}),
            [
                "spec.securityContext.supplementalGroupsPolicy: Unsupported value: \"Loose\": supported values: \
              \"Merge\", \"Strict\"",
            ],
        ),
        row("/securityContext", sysctls(&[""]), ["spec.securityContext.sysctls[0].name: Required value"]),
        row(
            "/securityContext",
            sysctls(&["a..b"]),
            [
                "spec.securityContext.sysctls[0].name: Invalid value: \"a..b\": must have at most 253 characters and \
              match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            ],
        ),
        row(
            "/securityContext",
            sysctls(&["net.core.somaxconn", "net.core.somaxconn"]),
            ["spec.securityContext.sysctls[1].name: Duplicate value: \"net.core.somaxconn\""],
        ),
        in_network("hostNetwork", "net.core.somaxconn"),
        in_network("hostIPC", "kernel.shmmax"),
    ]
}

#[test]
fn names_and_addresses_are_well_formed() {
    check(network());
}

fn network() -> Vec<Row> {
    let servers = json!(["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"]);
    let searches: Vec<String> = (0..33).map(|i| format!("d{i}")).collect();
    let long = vec!["a".repeat(63) + "." + &"b".repeat(63) + "." + &"c".repeat(63); 11];
    vec![
        row("/hostname", json!("a.b"), ["spec.hostname: Invalid value: \"a.b\": must not contain dots"]),
        row("/subdomain", json!("A"), [&format!("spec.subdomain: Invalid value: \"A\": {LABEL}")]),
        row(
            "/hostnameOverride",
            json!("A"),
            [&format!("spec.hostnameOverride: Invalid value: \"A\": {SUBDOMAIN}")],
        ),
        row(
            "/hostnameOverride",
            json!("a".repeat(65)),
            ["spec.hostnameOverride: Too long: may not be more than 64 bytes"],
        ),
        row(
            "/dnsPolicy",
            json!("Mine"),
            ["spec.dnsPolicy: Unsupported value: \"Mine\": supported values: \"ClusterFirstWithHostNet\", \
              \"ClusterFirst\", \"Default\", \"None\""],
        ),
        row(
            "/dnsPolicy",
            json!("None"),
            ["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"],
        ),
        row(
            "",
            json!({
                "containers": [{"name": "c", "image": "i"}], "terminationGracePeriodSeconds": 30,
                "dnsPolicy": "None", "dnsConfig": {"searches": ["a"]}
            }),
            ["spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver when \
              `dnsPolicy` is None"],
        ),
        row(
            "/dnsConfig",
            json!({"nameservers": ["1.1.1"]}),
            [&format!("spec.dnsConfig.nameservers[0]: Invalid value: \"1.1.1\": {IP}")],
        ),
        row(
            "/dnsConfig",
            json!({"nameservers": servers}),
            [&format!(
                "spec.dnsConfig.nameservers: Invalid value: {servers}: must not have more than 3 nameservers"
            )],
        ),
        row(
            "/dnsConfig",
            json!({"searches": searches}),
            [&format!(
                "spec.dnsConfig.searches: Invalid value: {}: must not have more than 32 search paths",
                json!(searches)
            )],
        ),
        row(
            "/dnsConfig",
            json!({"searches": long}),
            [&format!(
                "spec.dnsConfig.searches: Invalid value: {}: must not have more than 2048 characters (including \
                 spaces) in the search list",
                json!(long)
            )],
        ),
        row(
            "/dnsConfig",
            json!({"searches": ["_a.b.", ".", "a b"]}),
            [
                "spec.dnsConfig.searches[2]: Invalid value: \"a b\": a lowercase RFC 1123 subdomain must consist of \
              lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric \
              character (e.g. 'example.com', regex used for validation is \
              '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')",
            ],
        ),
        row(
            "/dnsConfig",
            json!({"options": [{"value": "1"}]}),
            ["spec.dnsConfig.options[0]: Required value: must not be empty"],
        ),
        row(
            "/hostAliases",
            json!([{"ip": "x", "hostnames": ["a"]}]),
            [&format!("spec.hostAliases[0].ip: Invalid value: \"x\": {IP}")],
        ),
        row(
            "/hostAliases",
            json!([{"ip": "::1", "hostnames": ["a", "B"]}]),
            [&format!("spec.hostAliases[0].hostnames[1]: Invalid value: \"B\": {SUBDOMAIN}")],
        ),
        row(
            "",
            json!({
                "hostNetwork": true, "terminationGracePeriodSeconds": 30,
                "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "hostPort": 81}]}]
            }),
            ["spec.containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort` when \
              `hostNetwork` is true"],
        ),
        row(
            "",
            json!({
                "hostNetwork": true, "hostnameOverride": "a", "setHostnameAsFQDN": true,
                "containers": [{"name": "c", "image": "i"}]
            }),
            [
                "spec.hostnameOverride: Forbidden: may not be specified when setHostnameAsFQDN is true",
                "spec.hostnameOverride: Forbidden: may not be specified when hostNetwork is true",
            ],
        ),
        row(
            "",
            json!({
                "hostPID": true, "shareProcessNamespace": true, "containers": [{"name": "c", "image": "i"}]
            }),
            [
                "spec.securityContext.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID \
              cannot both be enabled",
            ],
        ),
        row(
            "",
            json!({
                "hostUsers": false, "hostNetwork": true, "hostPID": true, "hostIPC": true,
                "containers": [{"name": "c", "image": "i"}]
            }),
            [
                "spec.hostNetwork: Forbidden: when `hostUsers` is false",
                "spec.HostPID: Forbidden: when `hostUsers` is false",
                "spec.HostIPC: Forbidden: when `hostUsers` is false",
            ],
        ),
    ]
}

#[test]
fn places_and_neighbours_are_well_formed() {
    check(scheduling());
}

fn scheduling() -> Vec<Row> {
    let required = |requirement: Value| {
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [requirement]}]
        }}})
    };
    let at = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    let spread = |more: Value| {
        let mut constraint = json!({
            "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}
        });
        for (field, value) in more.as_object().unwrap() {
            constraint[field] = value.clone();
        }
        json!([constraint])
    };
    vec![
        row(
            "/tolerations",
            json!([{"operator": "Equal"}]),
            [
                "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, \
              which means \"match all values and all keys\"",
            ],
        ),
        row(
            "/tolerations",
            json!([{"key": "k", "tolerationSeconds": 1}]),
            ["spec.tolerations[0].effect: Invalid value: \"\": effect must be 'NoExecute' when \
              `tolerationSeconds` is set"],
        ),
        row(
            "/tolerations",
            json!([{"key": "k", "operator": "Exists", "value": "v"}]),
            ["spec.tolerations[0].operator: Invalid value: \"v\": value must be empty when `operator` is \
              'Exists'"],
        ),
        row(
            "/tolerations",
            json!([{"key": "k", "operator": "Is"}]),
            [
                "spec.tolerations[0].operator: Unsupported value: \"Is\": supported values: \"Equal\", \"Exists\"",
            ],
        ),
        row(
            "/tolerations",
            json!([{"key": "k", "operator": "Exists", "effect": "NoWay"}]),
            ["spec.tolerations[0].effect: Unsupported value: \"NoWay\": supported values: \"NoSchedule\", \
              \"PreferNoSchedule\", \"NoExecute\""],
        ),
        row(
            "/tolerations",
            json!([{"key": "a b", "operator": "Exists"}]),
            [&format!("spec.tolerations[0].key: Invalid value: \"a b\": {QUALIFIED}")],
        ),
        row(
            "/nodeSelector",
            json!({"a b": "c"}),
            [&format!("spec.nodeSelector: Invalid value: \"a b\": {QUALIFIED}")],
        ),
        row(
            "/affinity",
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {}}}),
            [&format!("{at}: Required value: must have at least one node selector term")],
        ),
        row(
            "/affinity",
            required(json!({"key": "k", "operator": "In"})),
            [&format!(
                "{at}[0].matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or \
                 'NotIn'"
            )],
        ),
        row(
            "/affinity",
            required(json!({"key": "k", "operator": "Exists", "values": ["v"]})),
            [&format!(
                "{at}[0].matchExpressions[0].values: Forbidden: may not be specified when `operator` is 'Exists' or \
                 'DoesNotExist'"
            )],
        ),
        row(
            "/affinity",
            required(json!({"key": "k", "operator": "Gt", "values": ["1", "2"]})),
            [&format!(
                "{at}[0].matchExpressions[0].values: Required value: must be specified single value when \
                 `operator` is 'Lt' or 'Gt'"
            )],
        ),
        row(
            "/affinity",
            required(json!({"key": "k", "operator": "Has"})),
            [&format!(
                "{at}[0].matchExpressions[0].operator: Invalid value: \"Has\": not a valid selector operator"
            )],
        ),
        row(
            "/affinity",
            json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
                "weight": 101, "preference": {}
            }]}}),
            [
                "spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: \
              101: must be in the range 1-100",
            ],
        ),
        row(
            "/affinity",
            json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": {}}]}}),
            [
                "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: \
                 Required value: can not be empty",
                "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: \
                 Invalid value: \"\": name part must be non-empty",
                &format!(
                    "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: \
                     Invalid value: \"\": {QUALIFIED}"
                ),
            ],
        ),
        row(
            "/topologySpreadConstraints",
            spread(json!({"maxSkew": 0})),
            [&format!("{SPREAD}.maxSkew: Invalid value: 0: must be greater than zero")],
        ),
        row(
            "/topologySpreadConstraints",
            spread(json!({"topologyKey": ""})),
            [&format!("{SPREAD}.topologyKey: Required value: can not be empty")],
        ),
        row(
            "/topologySpreadConstraints",
            spread(json!({"whenUnsatisfiable": "Wait"})),
            [&format!(
                "{SPREAD}.whenUnsatisfiable: Unsupported value: \"Wait\": supported values: \"DoNotSchedule\", \
                 \"ScheduleAnyway\""
            )],
        ),
        row(
            "/topologySpreadConstraints",
            spread(json!({"whenUnsatisfiable": "ScheduleAnyway", "minDomains": 2})),
            [&format!(
                "{SPREAD}.minDomains: Invalid value: 2: can only use minDomains if \
                 whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway"
            )],
        ),
        row(
            "/topologySpreadConstraints",
            json!([spread(json!({}))[0], spread(json!({}))[0]]),
            [&format!(
                "{SPREAD}.{{topologyKey, whenUnsatisfiable}}: Duplicate value: \"{{zone, DoNotSchedule}}\""
            )],
        ),
        row(
            "/readinessGates",
            json!([{"conditionType": "a b"}]),
            [&format!("spec.readinessGates[0].conditionType: Invalid value: \"a b\": {QUALIFIED}")],
        ),
        row(
            "/schedulingGates",
            json!([{"name": "g"}, {"name": "g"}]),
            ["spec.schedulingGates[1]: Duplicate value: \"g\""],
        ),
    ]
}

#[test]
fn the_pod_as_a_whole_is_well_formed() {
    check(whole());
}

fn whole() -> Vec<Row> {
    vec![
        row(
            "/restartPolicy",
            json!("Sometimes"),
            [
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \
              \"Never\"",
            ],
        ),
        row(
            "/activeDeadlineSeconds",
            json!(0),
            ["spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive"],
        ),
        row(
            "/activeDeadlineSeconds",
            json!(2_147_483_648_i64),
            [
                "spec.activeDeadlineSeconds: Invalid value: 2147483648: must be between 1 and 2147483647, inclusive",
            ],
        ),
        row(
            "/serviceAccountName",
            json!("Me"),
            [&format!("spec.serviceAccountName: Invalid value: \"Me\": {SUBDOMAIN}")],
        ),
        row("/nodeName", json!("n_1"), [&format!("spec.nodeName: Invalid value: \"n_1\": {SUBDOMAIN}")]),
        row(
            "/runtimeClassName",
            json!("A"),
            [&format!("spec.runtimeClassName: Invalid value: \"A\": {SUBDOMAIN}")],
        ),
        row(
            "/priorityClassName",
            json!("A"),
            [&format!("spec.priorityClassName: Invalid value: \"A\": {SUBDOMAIN}")],
        ),
        row(
            "/preemptionPolicy",
            json!("Maybe"),
            [
                "spec.preemptionPolicy: Unsupported value: \"Maybe\": supported values: \"PreemptLowerPriority\", \
              \"Never\"",
            ],
        ),
        row("/os", json!({}), ["spec.os.name: Required value"]),
        row(
            "/os",
            json!({"name": "plan9"}),
            ["spec.os: Unsupported value: \"plan9\": supported values: \"linux\", \"windows\""],
        ),
        row(
            "",
            json!({
                "os": {"name": "linux"}, "securityContext": {"windowsOptions": {}},
                "containers": [{"name": "c", "image": "i", "securityContext": {"windowsOptions": {}}}]
            }),
            [
                "spec.securityContext.windowsOptions: Forbidden: windows options cannot be set for a linux pod",
                "spec.containers[0].securityContext.windowsOptions: Forbidden: windows options cannot be set for a \
                 linux pod",
            ],
        ),
        row(
            "",
            json!({
                "nodeName": "n", "schedulingGates": [{"name": "g"}], "containers": [{"name": "c", "image": "i"}]
            }),
            ["spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared"],
        ),
    ]
}

#[test]
fn annotations_that_mean_something_are_judged() {
    let said = |key: &str, value: &str| {
        let mut pod = complete(right());
        pod["metadata"]["annotations"] = json!({ key: value });
        new_pod(&pod).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        said("kubernetes.io/config.mirror", "x"),
        [
            "metadata.annotations[kubernetes.io/config.mirror]: Invalid value: \"x\": must set spec.nodeName if mirror \
          pod annotation is set"
        ]
    );
    assert_eq!(
        said("controller.kubernetes.io/pod-deletion-cost", "+1"),
        [
            "metadata.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: \"+1\": must be a 32bit \
          integer"
        ]
    );
    assert_eq!(said("controller.kubernetes.io/pod-deletion-cost", "-7"), [""; 0]);
}

#[test]
fn a_template_is_judged_as_its_pods_are_but_at_its_own_path() {
    let path = Path::new("spec").child("template").child("spec");
    let said = |mut said: Value| {
        defaults::apply_to_spec(said.as_object_mut().unwrap());
        spec(&said, &path, Whose::Template).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let mut template = right();
    template["containers"][0] = json!({
        "name": "c", "image": " i", "livenessProbe": {"tcpSocket": {"port": 0}},
        "volumeMounts": [{"name": "w", "mountPath": "/w"}],
    });
    assert_eq!(
        said(template),
        [
            "spec.template.spec.containers[0].volumeMounts[0].name: Not found: \"w\"",
            "spec.template.spec.containers[0].livenessProbe.tcpSocket.port: Invalid value: 0: must be between 1 and \
             65535, inclusive",
        ]
    );
    let mut ports = right();
    ports["hostNetwork"] = true.into();
    ports["containers"][0]["ports"] = json!([{"containerPort": 80}]);
    assert_eq!(said(ports), [""; 0], "the port is left to the Pods");
}
