//! `coracle sim` as its users meet it: what it prints, its exit codes, and what it says of a wrong scenario.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const POD: &str = "
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {containers: [{name: app, image: 'web:1'}]}
";

fn sim(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_coracle"))
        .arg("sim")
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Writes a scenario and plays it with more arguments.
fn play(scenario: &str, arguments: &[&str]) -> (i32, String, String) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a.yaml"), scenario).unwrap();
    let output = sim(directory.path(), &[&["a.yaml"], arguments].concat());
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_scenario_that_holds_shows_what_happened_and_exits_with_0() {
    let scenario = format!("scenario: a Pod\nuntil: 1m\nexpect:\n- within 10s: pod web ready\n{POD}");
    let (code, out, err) = play(&scenario, &["--trace", "trace.txt"]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    for part in [
        "a Pod\n1 node, until 1m, seed 1\n\n+00:00:00.000 ",
        "+00:00:00.000 step: apply pod/web\n",
        "pod default/web bound to node-1\n",
        "+00:00:01.000 held: within 10s: pod web ready\n",
        "\n\n1 of 1 expectations held; 1m of virtual time; ",
    ] {
        assert!(out.contains(part), "{part:?} is not in\n{out}");
    }
    let (_, quiet, _) = play(&scenario, &["--quiet"]);
    assert_eq!(quiet.lines().count(), 4, "{quiet}");
}

#[test]
fn an_expectation_that_fails_says_what_was_seen_and_how_to_replay() {
    let scenario =
        format!("until: 1m\nexpect:\n- at 30s: pod web phase Failed\n- never: pod web on node-2\n{POD}");
    let (code, out, _) = play(&scenario, &["--quiet", "--seed", "7"]);
    assert_eq!(code, 1);
    for part in [
        "line 3: at 30s: pod web phase Failed\n  it was not so at 30s\n  saw       pod/web: phase Running, on node-1",
        "  last      +00:00:00.000 pod default/web created",
        "1 of 2 expectations held",
        "replay with: coracle sim a.yaml --seed 7",
    ] {
        assert!(out.contains(part), "{part:?} is not in\n{out}");
    }
    let (code, out, _) = play(&scenario, &["-o", "json", "--seed", "7"]);
    assert_eq!(code, 1);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["held"], false);
    assert_eq!(report["expectations"][0]["because"], "it was not so at 30s");
    assert_eq!(report["expectations"][1]["outcome"], "held");
}

#[test]
fn what_a_shorter_run_does_not_reach_is_no_failure() {
    let scenario = format!("until: 1h\nexpect:\n- at 30m: pod web phase Failed\n{POD}");
    let (code, out, _) = play(&scenario, &["--quiet", "--until", "1m"]);
    assert_eq!(code, 0);
    assert!(out.contains("0 of 1 expectations held, 1 were not reached; 1m of virtual time"), "{out}");
}

#[test]
fn what_is_wrong_is_said_by_line_field_and_reason_and_exits_with_2() {
    let refused =
        |field: &str| format!("until: 1m\n{}", POD.replace("image: 'web:1'", &format!("image: x, {field}")));
    for (scenario, complaint) in [
        (
            "until: 1m\nnodez: 3\n".to_owned(),
            "error: a.yaml:2: nodez: unknown field; did you mean \"nodes\"?\n",
        ),
        (
            "until: 1m\nsteps:\n- {at: -5s, heal: node-1}\n".to_owned(),
            "error: a.yaml:3: steps[0].at: \"-5s\" is before the start: times are not negative\n",
        ),
        (refused("bogus: 1"), "error: a.yaml:7: spec.containers[0].bogus: unknown field in a Pod\n"),
        (
            refused("ports: [{containerPort: 99999}]"),
            "error: a.yaml:7: spec.containers[0].ports[0].containerPort: Invalid value: 99999: must be between 1 and \
             65535, inclusive\n",
        ),
        (
            "until: 1m\nsteps:\n- {at: 5s, delete: pod/web}\n".to_owned(),
            "error: a.yaml:3: steps[0]: pods \"web\" not found\n",
        ),
        ("until: [1m".to_owned(), "error: a.yaml:2: not YAML: while parsing a flow sequence"),
    ] {
        let (code, out, err) = play(&scenario, &["--quiet"]);
        assert_eq!(code, 2, "{scenario}\n{out}{err}");
        assert!(err.starts_with(complaint), "{scenario}\n  expected {complaint}\n  found    {err}");
    }
    let nothing = tempfile::tempdir().unwrap();
    assert_eq!(sim(nothing.path(), &["no.yaml"]).status.code(), Some(2));
    assert_eq!(sim(nothing.path(), &[]).status.code(), Some(2));
}
