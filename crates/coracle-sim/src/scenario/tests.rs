//! Reading scenario files: what they mean, and what is said of wrong ones.

use std::io;
use std::time::Duration;

use super::expect::When;
use super::model::Action;
use super::*;
use crate::Fault;
use jiff::SignedDuration;

const WEB: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web-0}
spec: {containers: [{name: app, image: app:1}]}
";

fn load(name: &str) -> io::Result<String> {
    match name {
        "web.yaml" => Ok(WEB.to_owned()),
        "bad.yaml" => Ok("apiVersion: v1\nkind: Pud\n".to_owned()),
        _ => Err(io::Error::new(io::ErrorKind::NotFound, "no such file")),
    }
}

fn complaints(text: &str) -> String {
    read(text, &load).expect_err(text).to_string()
}

#[test]
fn a_scenario_is_read_in_order_of_time() {
    let text = format!(
        "scenario: all at once
until: 10m
seed: 7
nodes:
  - {{count: 2, labels: {{zone: a}}}}
  - {{name: big, cpu: 16, memory: 64Gi, pods: 10}}
images:
  app:1:
    pullTime: 2s
    pullFailures: 2
    onStop: {{exits: {{code: 3, after: 20s}}}}
    runs: [{{exit: {{code: 1, after: 1s}}}}, {{exit: {{oomKilled: true, after: 5m}}}}, {{memory: {{bytes: 1Mi}}}}]
  lazy: {{onStop: ignores, present: true}}
steps:
  - at: 90s
    name: power-loss
    powerLoss: node-1
  - {{at: +5m, heal: node-1}}
  - {{at: 1m, partition: {{node: big, for: 3m}}}}
  - {{at: 2m, applyFile: web.yaml}}
  - {{at: 3m, clockJump: {{node: big, by: -1h}}}}
expect:
  - at 6m: pod web-0 condition Ready=False
  - within 5m40s of power-loss:
      - pod web-0 gone
      - no pod on node-1
---{WEB}"
    );
    let scenario = read(&text, &load).unwrap();
    assert_eq!((scenario.title.as_str(), scenario.seed), ("all at once", 7));
    let nodes: Vec<&str> = scenario.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(nodes, ["node-1", "node-2", "big"]);
    assert_eq!((scenario.nodes[2].cpus, scenario.nodes[2].memory_bytes), (16, 64 << 30));
    let steps: Vec<_> = scenario.steps.iter().map(|step| time::show(step.at)).collect();
    assert_eq!(steps, ["0s", "1m", "1m30s", "2m", "3m", "6m30s"]);
    let Action::Apply(first) = &scenario.steps[0].action else { panic!() };
    assert_eq!(first[0].target.id().to_string(), "pod/web-0");
    assert_eq!(first[0].node.locate("spec.containers[0].image").line, 31);
    let Action::Fault(Fault::Partition { lasts, .. }) = &scenario.steps[1].action else { panic!() };
    assert_eq!(*lasts, Some(SignedDuration::from_secs(180)));
    let app = &scenario.images["app:1"];
    assert_eq!((app.runs.len(), app.pull_failures.len()), (3, 2));
    assert!(app.runs[1].exit.unwrap().oom_killed && app.runs[2].exit.is_none());
    assert!(scenario.images.contains_key("lazy:latest"));
    assert_eq!(scenario.expectations.len(), 3);
    assert!(matches!(scenario.expectations[0].when, When::At(_)));
    assert_eq!(scenario.expectations[2].mark.line, 26);
}

#[test]
fn images_say_what_probes_are_answered_and_runs_may_say_otherwise() {
    let text = "
scenario: probes
until: 1m
nodes: 1
images:
  app:1:
    readyAfter: 4s
    probes:
      - {exec: [cat, /ready], from: 30s, code: 1, takes: 2s, output: no}
      - {httpGet: {port: 80, path: /live}, from: 1m, code: 503}
      - {tcpSocket: {port: 81}}
      - {grpc: {port: 82}}
      - {from: 2m}
    runs:
      - {times: 2}
      - {readyAfter: 0s, probes: []}
";
    let scenario = read(text, &load).unwrap();
    let runs = &scenario.images["app:1"].runs;
    assert_eq!(runs.len(), 3);
    assert_eq!(runs[0], runs[1]);
    assert_eq!(runs[0].ready_after, Duration::from_secs(4));
    let words: Vec<String> = runs[0].answers.iter().map(|answer| answer.command.join(" ")).collect();
    assert_eq!(words, ["cat /ready", "httpGet 80 /live", "tcpSocket 81", "grpc 82 ", ""]);
    let first = &runs[0].answers[0];
    assert_eq!((first.from, first.takes), (Duration::from_secs(30), Duration::from_secs(2)));
    assert_eq!((first.code, first.stdout.as_str()), (1, "no"));
    assert_eq!((runs[2].ready_after, runs[2].answers.len()), (Duration::ZERO, 0));

    let both = text.replace("tcpSocket: {port: 81}", "tcpSocket: {port: 81}, exec: [x]");
    let complaint = complaints(&both);
    assert!(complaint.contains("one of exec, httpGet, tcpSocket and grpc is enough"), "{complaint}");
}

#[test]
fn a_manifest_is_applied_when_its_step_says() {
    let text = format!("until: 1m\nsteps: [{{at: 30s, apply: pod/web-0}}]\n---{WEB}");
    let scenario = read(&text, &load).unwrap();
    assert_eq!(scenario.steps.len(), 1, "and not at the start as well");
    assert_eq!(scenario.steps[0].at, Duration::from_secs(30));
}

#[test]
fn what_is_wrong_is_named_by_line_field_and_reason() {
    for (text, complaint) in [
        ("", "line 1: the file is empty: a scenario has at least `until`, `nodes` and `expect`"),
        ("nodes: 3", "line 1: until: is required"),
        ("until: 1m\nnode: 3", "line 2: node: unknown field; did you mean \"nodes\"?"),
        (
            "until: 1m\nexplode: 3",
            "line 2: explode: unknown field; there are scenario, seed, until, start, nodes, images, steps, expect",
        ),
        ("until: 90", "line 1: until: \"90\" has no unit: write 90s for seconds, or m, h, d, ms"),
        ("until: -1m", "line 1: until: \"-1m\" is before the start: times are not negative"),
        (
            "until: 1m\nsteps:\n- {at: 2m, powerLoss: node-1}",
            "line 3: steps[0].at: 2m is after the end of the run, 1m",
        ),
        (
            "until: 1m\nsteps:\n- at: 5s\n  powerLoss: node-9",
            "line 4: steps[0].powerLoss: there is no node \"node-9\"; did you mean \"node-1\"?",
        ),
        (
            "until: 1m\nsteps:\n- {at: -5s, heal: node-1}",
            "line 3: steps[0].at: \"-5s\" is before the start: times are not negative",
        ),
        (
            "until: 1m\nsteps:\n- {at: 5s, heal: node-1, crash: {}}",
            "line 3: steps[0]: does several things at once (crash, heal): make a step of each",
        ),
        (
            "until: 1m\nsteps:\n- {at: 5s, partition: {node: node-1, fro: 5s}}",
            "line 3: steps[0].partition.fro: unknown field; did you mean \"for\"?",
        ),
        (
            "until: 1m\nsteps:\n- {at: 5s, apply: pod/web}",
            "line 3: steps[0].apply: no manifest in this file is a Pod named \"web\"",
        ),
        (
            "until: 1m\nsteps:\n- {at: 5s, apply: {kind: Pod}}",
            "line 3: steps[0].apply.apiVersion: is required in a manifest",
        ),
        (
            "until: 1m\nsteps:\n- {at: 5s, applyFile: no.yaml}",
            "line 3: steps[0].applyFile: cannot read no.yaml: no such file",
        ),
        (
            "until: 1m\nsteps:\n- {at: 5s, applyFile: bad.yaml}",
            "line 3: steps[0].applyFile: bad.yaml line 2: kind: no matches for kind \"Pud\" in version \"v1\"",
        ),
        (
            "until: 1m\nsteps:\n- {at: 5s, name: pod, powerLoss: node-1}",
            "line 3: steps[0].name: \"pod\" means something else in an expectation: take another word",
        ),
        (
            "until: 1m\nexpect:\n- at 2m: pod web ready",
            "line 3: expect[0]: 2m is after the end of the run, 1m",
        ),
        (
            "until: 1m\nexpect:\n- at 5s: pod web redy",
            "line 3: expect[0]: there is no test \"redy\"; did you mean \"ready\"?",
        ),
        (
            "until: 1m\nimages:\n  app:1:\n    runs: [{exit: {code: 256}}]",
            "line 4: images.app:1.runs[0].exit.code: has to be a whole number from 0 to 255, this is 256",
        ),
        (
            "until: 1m\nsteps:\n- {at: 5s, runtimeTrouble: {node: node-1, calls: [pull_imag], slow: 5s}}",
            "line 3: steps[0].runtimeTrouble.calls[0]: there is no call \"pull_imag\"; did you mean \"pull_image\"?",
        ),
        (
            "until: 1m\nsteps:\n- {at: 5s, componentsStale: {by: 1s, of: pod, for: 5s}}",
            "line 3: steps[0].componentsStale.of: there is no kind with the plural \"pod\"; did you mean \"pods\"?",
        ),
        (
            "until: 1m\nsteps:\n- {at: 5s, runtimeTrouble: {node: node-1, for: 5s}}",
            "line 3: steps[0].runtimeTrouble.slow: or fails, eventsLost or eventsLate is required",
        ),
        (
            "until: 1m\nimages: {a: {onStop: shrugs}}",
            "line 2: images.a.onStop: has to be `ignores`, `dies` or a mapping with `exits`",
        ),
        ("until: 1m\nnodes: [{name: Big}]", "cannot name a node"),
        ("until: 1m\nnodes: [{memory: lots}]", "line 2: nodes[0].memory: \"lots\" is no quantity"),
        ("until: 1m\nnodes: 0.5", "line 2: nodes: has to be a whole number from 0 to 10000, this is 0.5"),
        (
            "until: 1m\nstart: yesterday",
            "line 2: start: \"yesterday\" is no time of the calendar: write 2030-01-01T00:00:00Z",
        ),
        (
            "apiVersion: v1\nkind: Pod",
            "line 1: the first document has to be the scenario, and the manifests come after it",
        ),
        ("until: 1m\n---\nkind: Pod", "line 3: apiVersion: is required in a manifest"),
        (
            "until: 1m\n---\napiVersion: apps/v2\nkind: Pod\n",
            "line 4: kind: no matches for kind \"Pod\" in version \"apps/v2\"; there is v1 Pod",
        ),
        ("until: [1m", "not YAML"),
    ] {
        let found = complaints(text);
        assert!(found.contains(complaint), "{text}\n  expected {complaint}\n  found    {found}");
    }
    let several = complaints("until: 1m\nnode: 3\nsteps:\n- {at: 5s}\nexpect: [at 1m]");
    assert_eq!(several.lines().count(), 3, "{several}");
}

#[test]
fn the_examples_can_be_read() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/sim");
    let mut count = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        read(&text, &load).unwrap_or_else(|problems| panic!("{}: {problems}", path.display()));
        count += 1;
    }
    assert_eq!(count, 5);
}
