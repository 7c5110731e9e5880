//! Ports, probes, hooks and signals.

use super::*;

#[test]
fn ports_are_numbers_and_collide_nowhere() {
    check(ports());
}

pub(super) fn ports() -> Vec<Row> {
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

pub(super) fn probes() -> Vec<Row> {
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

pub(super) fn hooks() -> Vec<Row> {
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
