//! What `kubectl get pods` shows of a Pod, rule by rule.

use serde_json::json;

use super::*;

const NOW: &str = "2030-01-01T01:00:00Z";

fn cells(spec: Value, status: Value, deleted: bool) -> Vec<String> {
    let mut pod = json!({
        "metadata": {"name": "p", "creationTimestamp": "2030-01-01T00:00:00Z"}, "spec": spec, "status": status
    });
    if deleted {
        pod["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z".into();
    }
    row(&pod, NOW.parse().unwrap()).iter().map(|cell| cell.as_str().unwrap().to_owned()).collect()
}

/// `READY STATUS RESTARTS`.
fn shown(spec: Value, status: Value, deleted: bool) -> String {
    cells(spec, status, deleted)[1..4].join(" ")
}

/// A spec with these containers; a name that ends in `+` is a sidecar's.
fn spec(inits: &[&str], containers: &[&str]) -> Value {
    let init = |name: &&str| match name.strip_suffix('+') {
        Some(name) => json!({"name": name, "restartPolicy": "Always"}),
        None => json!({ "name": name }),
    };
    let inits: Vec<Value> = inits.iter().map(init).collect();
    let containers: Vec<Value> = containers.iter().map(|name| json!({ "name": name })).collect();
    json!({"initContainers": inits, "containers": containers})
}

fn container(name: &str, state: Value) -> Value {
    json!({"name": name, "ready": false, "restartCount": 0, "state": state})
}

fn ready(name: &str) -> Value {
    json!({"name": name, "ready": true, "started": true, "restartCount": 0, "state": {"running": {}}})
}

fn running(name: &str) -> Value {
    container(name, json!({"running": {}}))
}

fn waiting(name: &str, reason: &str) -> Value {
    container(name, json!({"waiting": {"reason": reason}}))
}

fn ended(name: &str, code: i64, reason: &str) -> Value {
    container(name, json!({"terminated": {"exitCode": code, "reason": reason}}))
}

fn restarted(mut status: Value, times: i64, at: &str) -> Value {
    status["restartCount"] = times.into();
    if !at.is_empty() {
        status["lastState"] = json!({"terminated": {"finishedAt": format!("2030-01-01T{at}Z")}});
    }
    status
}

fn status(phase: &str, inits: &[Value], containers: &[Value]) -> Value {
    json!({"phase": phase, "initContainerStatuses": inits, "containerStatuses": containers})
}

fn with(mut status: Value, field: &str, value: Value) -> Value {
    status[field] = value;
    status
}

fn condition(kind: &str, is: &str, reason: &str) -> Value {
    json!([{"type": kind, "status": is, "reason": reason}])
}

#[test]
fn the_status_begins_with_phase_reason_and_gate() {
    let one = || spec(&[], &["a"]);
    let pending = || status("Pending", &[], &[]);
    let gated = || condition("PodScheduled", "False", "SchedulingGated");
    for (what, status, expected) in [
        ("phase", pending(), "0/1 Pending 0"),
        ("reason", with(status("Failed", &[], &[]), "reason", "Evicted".into()), "0/1 Evicted 0"),
        ("gate", with(pending(), "conditions", gated()), "0/1 SchedulingGated 0"),
        (
            "gate over reason",
            with(with(pending(), "reason", "X".into()), "conditions", gated()),
            "0/1 SchedulingGated 0",
        ),
        (
            "unschedulable",
            with(pending(), "conditions", condition("PodScheduled", "False", "Unschedulable")),
            "0/1 Pending 0",
        ),
    ] {
        assert_eq!(shown(one(), status, false), expected, "{what}");
    }
}

#[test]
fn init_containers_are_told_one_by_one_until_they_are_through() {
    let two = || spec(&["i", "j"], &["a"]);
    let later = || waiting("a", "PodInitializing");
    let done = |name| ended(name, 0, "Completed");
    for (what, inits, expected) in [
        (
            "none yet",
            vec![waiting("i", "PodInitializing"), waiting("j", "PodInitializing")],
            "0/1 Init:0/2 0",
        ),
        ("first runs", vec![running("i"), waiting("j", "PodInitializing")], "0/1 Init:0/2 0"),
        ("second runs", vec![done("i"), running("j")], "0/1 Init:1/2 0"),
        ("nothing known of the second", vec![done("i"), container("j", json!({}))], "0/1 Init:1/2 0"),
        ("image", vec![waiting("i", "ErrImagePull")], "0/1 Init:ErrImagePull 0"),
        ("back-off", vec![restarted(waiting("i", "CrashLoopBackOff"), 2, "")], "0/1 Init:CrashLoopBackOff 2"),
        ("failed", vec![ended("i", 1, "Error")], "0/1 Init:Error 0"),
        ("out of memory", vec![ended("i", 137, "OOMKilled")], "0/1 Init:OOMKilled 0"),
        ("code", vec![ended("i", 3, "")], "0/1 Init:ExitCode:3 0"),
        (
            "signal",
            vec![container("i", json!({"terminated": {"exitCode": 137, "signal": 9}}))],
            "0/1 Init:Signal:9 0",
        ),
        ("through", vec![done("i"), done("j")], "0/1 PodInitializing 0"),
    ] {
        assert_eq!(shown(two(), status("Pending", &inits, &[later()]), false), expected, "{what}");
    }
    let initialized = with(
        status("Running", &[running("i")], &[ready("a")]),
        "conditions",
        condition("Initialized", "True", ""),
    );
    assert_eq!(
        shown(two(), initialized, false),
        "1/1 Init:0/2 0",
        "containers count once the Pod is initialized, but the word stays"
    );
}

#[test]
fn sidecars_count_as_containers_and_are_passed_once_they_have_started() {
    let side = || spec(&["s+", "i"], &["a"]);
    let started = |is_ready: bool| {
        let mut sidecar = ready("s");
        sidecar["ready"] = is_ready.into();
        sidecar
    };
    let mut starting = running("s");
    starting["started"] = false.into();
    let mut failed = ended("s", 1, "Error");
    failed["started"] = true.into();
    let later = || waiting("a", "PodInitializing");
    let done = || ended("i", 0, "Completed");
    for (what, status, expected) in [
        ("starts", status("Pending", &[starting.clone()], &[later()]), "0/2 Init:0/2 0"),
        ("started", status("Pending", &[started(true), running("i")], &[later()]), "1/2 Init:1/2 0"),
        ("not ready", status("Running", &[started(false), done()], &[ready("a")]), "1/2 Running 0"),
        ("all ready", status("Running", &[started(true), done()], &[ready("a")]), "2/2 Running 0"),
        (
            "crashes after its start",
            status("Running", &[restarted(waiting("s", "CrashLoopBackOff"), 3, ""), done()], &[ready("a")]),
            "0/2 Init:CrashLoopBackOff 3",
        ),
        (
            "crashes while the Pod runs",
            with(
                status(
                    "Running",
                    &[restarted(waiting("s", "CrashLoopBackOff"), 3, ""), done()],
                    &[ready("a")],
                ),
                "conditions",
                condition("Initialized", "True", ""),
            ),
            "1/2 Init:CrashLoopBackOff 3",
        ),
        (
            "has started and failed",
            status("Running", &[failed.clone(), done()], &[ready("a")]),
            "1/2 Running 0",
        ),
        (
            "ended well",
            status("Succeeded", &[ended("s", 0, "Completed"), done()], &[ended("a", 0, "Completed")]),
            "0/2 Completed 0",
        ),
    ] {
        assert_eq!(shown(side(), status, false), expected, "{what}");
    }
}

#[test]
fn the_first_container_has_the_last_word() {
    let two = || spec(&[], &["a", "b"]);
    let done = |name| ended(name, 0, "Completed");
    let is_ready = || condition("Ready", "True", "");
    for (what, status, expected) in [
        (
            "creating",
            status("Pending", &[], &[waiting("a", "ContainerCreating"), waiting("b", "ContainerCreating")]),
            "0/2 ContainerCreating 0",
        ),
        ("both ready", status("Running", &[], &[ready("a"), ready("b")]), "2/2 Running 0"),
        ("one not ready", status("Running", &[], &[ready("a"), running("b")]), "1/2 Running 0"),
        (
            "first waits",
            status("Running", &[], &[waiting("a", "CrashLoopBackOff"), ended("b", 1, "Error")]),
            "0/2 CrashLoopBackOff 0",
        ),
        (
            "second waits",
            status("Running", &[], &[ready("a"), waiting("b", "ImagePullBackOff")]),
            "1/2 ImagePullBackOff 0",
        ),
        ("first ended", status("Failed", &[], &[ended("a", 1, "Error"), waiting("b", "X")]), "0/2 Error 0"),
        ("no reason", status("Failed", &[], &[ended("a", 3, ""), done("b")]), "0/2 ExitCode:3 0"),
        (
            "signal",
            status(
                "Failed",
                &[],
                &[container("a", json!({"terminated": {"exitCode": 137, "signal": 9}})), done("b")],
            ),
            "0/2 Signal:9 0",
        ),
        ("waits for nothing", status("Pending", &[], &[waiting("a", ""), done("b")]), "0/2 Completed 0"),
        ("one done", status("Running", &[], &[done("a"), ready("b")]), "1/2 NotReady 0"),
        (
            "one done, Pod ready",
            with(status("Running", &[], &[done("a"), ready("b")]), "conditions", is_ready()),
            "1/2 Running 0",
        ),
        (
            "one done, the other not ready",
            status("Running", &[], &[done("a"), running("b")]),
            "0/2 Completed 0",
        ),
        ("all done", status("Succeeded", &[], &[done("a"), done("b")]), "0/2 Completed 0"),
        (
            "ready but not running",
            status("Running", &[], &[json!({"name": "a", "ready": true, "state": {}}), ready("b")]),
            "1/2 Running 0",
        ),
    ] {
        assert_eq!(shown(two(), status, false), expected, "{what}");
    }
}

#[test]
fn what_is_being_deleted_says_so() {
    let one = || spec(&[], &["a"]);
    for (what, status, expected) in [
        ("running", status("Running", &[], &[ready("a")]), "1/1 Terminating 0"),
        ("pending", status("Pending", &[], &[]), "0/1 Terminating 0"),
        ("done", status("Succeeded", &[], &[ended("a", 0, "Completed")]), "0/1 Completed 0"),
        ("failed", status("Failed", &[], &[ended("a", 1, "Error")]), "0/1 Error 0"),
        ("lost", with(status("Running", &[], &[ready("a")]), "reason", "NodeLost".into()), "1/1 Unknown 0"),
        (
            "lost after its end",
            with(status("Failed", &[], &[]), "reason", "NodeLost".into()),
            "0/1 Unknown 0",
        ),
    ] {
        assert_eq!(shown(one(), status, true), expected, "{what}");
    }
}

#[test]
fn restarts_are_counted_with_the_time_of_the_last_one() {
    let done = |name| ended(name, 0, "Completed");
    for (what, spec, status, expected) in [
        ("none", spec(&[], &["a"]), status("Running", &[], &[ready("a")]), "0"),
        (
            "known",
            spec(&[], &["a"]),
            status("Running", &[], &[restarted(ready("a"), 3, "00:59:30")]),
            "3 (30s ago)",
        ),
        ("unknown time", spec(&[], &["a"]), status("Running", &[], &[restarted(ready("a"), 3, "")]), "3"),
        (
            "a time but no restart",
            spec(&[], &["a"]),
            status("Running", &[], &[restarted(ready("a"), 0, "00:59:30")]),
            "0",
        ),
        (
            "the latest of two",
            spec(&[], &["a", "b"]),
            status(
                "Running",
                &[],
                &[restarted(ready("a"), 1, "00:50:00"), restarted(ready("b"), 2, "00:30:00")],
            ),
            "3 (10m ago)",
        ),
        (
            "init containers count while they run",
            spec(&["i", "j"], &["a"]),
            status(
                "Pending",
                &[restarted(done("i"), 2, "00:58:00"), restarted(running("j"), 1, "00:59:00")],
                &[],
            ),
            "3 (60s ago)",
        ),
        (
            "and are forgotten afterwards",
            spec(&["i"], &["a"]),
            status(
                "Running",
                &[restarted(done("i"), 5, "00:58:00")],
                &[restarted(ready("a"), 1, "00:55:00")],
            ),
            "1 (5m ago)",
        ),
        (
            "but sidecars are not",
            spec(&["s+", "i"], &["a"]),
            status(
                "Running",
                &[restarted(ready("s"), 4, "00:59:00"), restarted(done("i"), 5, "00:59:30")],
                &[ready("a")],
            ),
            "4 (60s ago)",
        ),
    ] {
        assert_eq!(cells(spec, status, false)[3], expected, "{what}");
    }
}

#[test]
fn the_wide_columns_say_none_where_there_is_nothing() {
    let bare = cells(spec(&[], &["a"]), json!({"phase": "Pending"}), false);
    assert_eq!(bare[0], "p");
    assert_eq!(bare[4..], ["60m", "<none>", "<none>", "<none>", "<none>"]);
    let mut said = spec(&[], &["a"]);
    said["nodeName"] = "n".into();
    said["readinessGates"] = json!([{"conditionType": "x"}, {"conditionType": "y"}, {"conditionType": "z"}]);
    let status = json!({
        "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "nominatedNodeName": "m",
        "conditions": [{"type": "x", "status": "True"}, {"type": "y", "status": "False"}],
    });
    assert_eq!(cells(said, status, false)[5..], ["10.0.0.1", "n", "m", "1/3"]);
    assert_eq!(COLUMNS.len(), bare.len());
    assert_eq!(
        COLUMNS.iter().map(|column| column.name).collect::<Vec<_>>(),
        ["Name", "Ready", "Status", "Restarts", "Age", "IP", "Node", "Nominated Node", "Readiness Gates"]
    );
}

#[test]
fn finished_pods_are_marked_as_completed() {
    for (phase, reason) in [("Succeeded", Some("Succeeded")), ("Failed", Some("Failed")), ("Running", None)] {
        let marks = conditions(&json!({"status": {"phase": phase}}));
        assert_eq!(marks.first().map(|mark| mark.reason), reason);
        assert!(marks.iter().all(|mark| (mark.kind, mark.status) == ("Completed", "True")));
    }
}
