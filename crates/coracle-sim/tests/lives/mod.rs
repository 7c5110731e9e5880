//! The lives of Pods against the clock: what has to be seen, and when.

use super::play;

/// A Pod of one node, with what its spec holds beside a name, in a scenario that has to hold.
fn holds(scenario: &str, spec: &str) {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    let text = format!(
        "scenario: a life\nnodes: 1\n{scenario}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n{spec}"
    );
    let report = play(&text);
    assert!(report.holds(), "{}", report.to_text("-"));
}

const IMAGES: &str = "
images:
  first:1: {runs: [{exit: {after: 2s}}]}
  flaky:1: {runs: [{exit: {code: 1, after: 1s}, times: 3}, {exit: {after: 1s}}]}
  fails:1: {runs: [{exit: {code: 3, after: 1s}}]}
  once:1: {runs: [{exit: {after: 5s}}]}
  crashes-once:1: {runs: [{exit: {code: 1, after: 3s}}, {}]}
  stubborn:1: {onStop: ignores}
  slow:1: {onStop: {exits: {code: 0, after: 4s}}}
";

#[test]
fn init_containers_run_one_after_the_other_and_are_tried_again_with_back_off() {
    let expect = "
until: 1m
expect:
  - between 2s and 5s: pod web container first terminated Completed exit 0
  # 2 s, then 1 s with no wait behind it, 1 s with 10 s, 1 s with 20 s, and the one that ends well.
  - never until 34s: pod web container app running
  - between 34s and 39s: pod web container app running
  - at end: pod web container flaky restart delays 0s 10s 20s
  - at 20s: pod web phase Pending and container flaky waiting CrashLoopBackOff and container app waiting PodInitializing
  - at 20s: pod web condition Initialized=False reason ContainersNotInitialized
  - at end: pod web phase Running and ready and condition Initialized=True
  - at end: pod web container first restarts = 0 and container flaky restarts = 3
";
    let spec = "
initContainers:
  - {name: first, image: 'first:1'}
  - {name: flaky, image: 'flaky:1'}
containers:
  - {name: app, image: 'ok:1'}
";
    holds(&format!("{IMAGES}{expect}"), spec);
}

#[test]
fn an_init_container_that_may_not_be_tried_again_is_the_end() {
    let expect = "
until: 30s
expect:
  - within 5s: pod web phase Failed
  - never: pod web container app running
  - never: pod web container init restarts > 0
  - at end: pod web container init terminated Error exit 3
";
    let spec = "
restartPolicy: Never
initContainers:
  - {name: init, image: 'fails:1'}
containers:
  - {name: app, image: 'ok:1'}
";
    holds(&format!("{IMAGES}{expect}"), spec);
}

#[test]
fn a_sidecar_runs_beside_the_others_and_ends_when_they_have_ended() {
    let expect = "
until: 1m
expect:
  - always from pod web container app running until pod web container app terminated: pod web container car running
  - within 15s: pod web phase Succeeded
  - never: pod web phase Failed
  - at end: pod web container app terminated Completed exit 0 and container car terminated
";
    let spec = "
restartPolicy: Never
initContainers:
  - {name: car, image: 'slow:1', restartPolicy: Always}
containers:
  - {name: app, image: 'once:1'}
";
    holds(&format!("{IMAGES}{expect}"), spec);
}

#[test]
fn a_sidecar_is_kept_alive_whatever_the_policy_of_its_pod() {
    let expect = "
until: 1m
expect:
  - at end: pod web phase Running and container car running and container car restarts = 1
  - never: pod web container app restarts > 0
";
    let spec = "
restartPolicy: Never
initContainers:
  - {name: car, image: 'crashes-once:1', restartPolicy: Always}
containers:
  - {name: app, image: 'ok:1'}
";
    holds(&format!("{IMAGES}{expect}"), spec);
}

#[test]
fn a_pod_whose_time_is_over_fails() {
    let expect = "
until: 1m
expect:
  - between 10s and 14s: pod web phase Failed and reason DeadlineExceeded
  - at end: pod web container app terminated
";
    let spec = "
activeDeadlineSeconds: 10
containers:
  - {name: app, image: 'ok:1'}
";
    holds(&format!("{IMAGES}{expect}"), spec);
}

#[test]
fn a_program_that_ignores_its_end_is_killed_after_its_grace() {
    let expect = "
until: 1m
steps:
  - {at: 10s, name: bye, delete: pod/web}
expect:
  - at 14s: pod web terminating and container app running
  - between 5s and 7s after bye: pod web gone
";
    let spec = "
terminationGracePeriodSeconds: 5
containers:
  - {name: app, image: 'stubborn:1'}
";
    holds(&format!("{IMAGES}{expect}"), spec);
}
