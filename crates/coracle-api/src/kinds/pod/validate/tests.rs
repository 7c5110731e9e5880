//! Wrong Pods, and what is said of them: each row sets one part of a Pod that is right otherwise.

mod containers;
mod environment;
mod handlers;
mod scheduling;
mod security;
mod volumes;

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
        containers::containers(),
        containers::init_containers(),
        containers::restart_rules(),
        containers::ephemeral_containers(),
        handlers::ports(),
        handlers::probes(),
        handlers::hooks(),
        volumes::volumes(),
        volumes::projected(),
        volumes::mounts(),
        environment::environment(),
        environment::resources(),
        security::security(),
        security::network(),
        scheduling::scheduling(),
        whole(),
    ];
    let rows: Vec<Row> = tables.into_iter().flatten().collect();
    assert!(rows.len() >= 150, "{}", rows.len());
    assert!(rows.iter().all(|(_, _, errors)| !errors.is_empty()));
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
