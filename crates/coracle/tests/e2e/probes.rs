//! Probes and hooks in real containers: what kubectl shows of them.

use coracle_clock::Clock;
use serde_json::{Value, json};

use crate::support::{Cluster, IMAGE, condition, patience};

/// Applies a Pod with one container, the fields of which are given.
fn apply(cluster: &Cluster, name: &str, grace: u64, container: Value) {
    let mut container = container;
    container["name"] = json!("main");
    container["image"] = json!(IMAGE);
    let spec = json!({"containers": [container], "terminationGracePeriodSeconds": grace});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
    cluster.apply(&pod.to_string());
}

fn shell(script: &str) -> Value {
    json!(["sh", "-c", script])
}

fn status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

/// Looks at a Pod until it is as said.
#[track_caller]
fn until(cluster: &Cluster, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let clock = Clock::system();
    loop {
        let pod = cluster.get(&["pod", name]);
        if holds(&pod) {
            return pod;
        }
        assert!(clock.elapsed().as_secs() < 60 * u64::from(patience()), "{name} is never {what}: {pod:#}");
        #[allow(
            clippy::disallowed_methods,
            reason = "the processes that are waited for live on the system's clock"
        )]
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

fn restarted(cluster: &Cluster, name: &str) -> Value {
    let holds = |pod: &Value| status(pod)["restartCount"].as_u64() >= Some(1);
    until(cluster, name, "restarted", holds)
}

/// `kubectl describe`, its blanks made one: it must show all of this.
#[track_caller]
fn describes(cluster: &Cluster, name: &str, parts: &[&str]) {
    let text = cluster.kubectl(&["describe", "pod", name]);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in parts {
        assert!(line.contains(part), "no {part:?} in:\n{text}");
    }
}

#[test]
fn probes_and_hooks_of_real_containers_are_seen_in_kubectl() {
    let cluster = Cluster::start();
    apply(
        &cluster,
        "liveness-exec",
        3,
        json!({
            "command": shell("trap '' TERM; touch /tmp/healthy; sleep 3; rm /tmp/healthy; while :; do sleep 1; done"),
            "livenessProbe": {
                "exec": {"command": ["cat", "/tmp/healthy"]}, "initialDelaySeconds": 1, "periodSeconds": 1,
                "timeoutSeconds": 5 * patience(),
            },
        }),
    );
    apply(
        &cluster,
        "liveness-http",
        3,
        json!({
            "command": shell("trap exit TERM; while :; do sleep 0.1; done"),
            "livenessProbe": {"httpGet": {"port": 9, "path": "/healthz"}, "periodSeconds": 1},
        }),
    );
    apply(
        &cluster,
        "readiness",
        1,
        json!({
            "command": shell("mkdir /www; echo hi > /www/index.html; exec httpd -f -p 8080 -h /www"),
            "ports": [{"name": "web", "containerPort": 8080}],
            "readinessProbe": {
                "httpGet": {"port": "web", "path": "/index.html"}, "periodSeconds": 1, "failureThreshold": 1,
                "timeoutSeconds": 5 * patience(),
            },
        }),
    );
    let idle = "trap exit TERM; while :; do sleep 0.1; done";
    let hook = |script: &str| json!({"postStart": {"exec": {"command": shell(script)}}});
    let fails = json!({"command": shell(idle), "lifecycle": hook("echo no > /dev/stderr; exit 3")});
    apply(&cluster, "hook-fails", 3, fails);
    let works = json!({"command": shell(idle), "lifecycle": hook("echo hello > /message")});
    apply(&cluster, "hook-works", 3, works);
    let slow = json!({
        "command": shell("trap '' TERM; while :; do sleep 1; done"),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "600"]}}},
    });
    apply(&cluster, "hook-slow", 2, slow);

    readiness(&cluster);
    until(&cluster, "hook-works", "ready", |pod| status(pod)["ready"] == true);
    assert_eq!(cluster.kubectl(&["exec", "hook-works", "--", "cat", "/message"]), "hello\n");

    let pod = restarted(&cluster, "liveness-exec");
    // The signal is ignored, so that the end is a kill.
    assert_eq!(status(&pod)["lastState"]["terminated"]["exitCode"], 137);
    describes(
        &cluster,
        "liveness-exec",
        &[
            "exec [cat /tmp/healthy] delay=1s",
            "Liveness probe failed: cat: can't open '/tmp/healthy': No such file or directory",
            "Container main failed liveness probe, will be restarted",
        ],
    );
    let pod = restarted(&cluster, "liveness-http");
    let ip = pod["status"]["podIP"].as_str().unwrap();
    let refused = format!(
        "Liveness probe failed: Get \"http://{ip}:9/healthz\": dial tcp {ip}:9: connect: connection refused"
    );
    describes(&cluster, "liveness-http", &["Warning Unhealthy", " over ", &refused]);
    let events =
        cluster.get(&["events", "--field-selector", "reason=Unhealthy,involvedObject.name=liveness-http"]);
    // Three in a row make a restart; others may have followed it.
    assert!(events["items"][0]["count"].as_u64() >= Some(3), "{events:#}");

    until(&cluster, "hook-fails", "waiting for a restart", |pod| {
        status(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    describes(
        &cluster,
        "hook-fails",
        &[
            "Warning FailedPostStartHook",
            "PostStartHook failed",
            "Killing",
            "FailedPostStartHook",
            "Warning BackOff",
            "Back-off restarting failed container main in pod hook-fails_default",
        ],
    );
    slow_end(&cluster);
}

fn readiness(cluster: &Cluster) {
    let is_ready = |what: &str, ready: &str| {
        let holds = |pod: &Value| {
            pod["status"]["conditions"].is_array() && condition(pod, "Ready")["status"] == ready
        };
        until(cluster, "readiness", what, holds)
    };
    let row = || {
        let row = cluster.kubectl(&["get", "pod", "readiness", "--no-headers"]);
        row.split_whitespace().take(4).collect::<Vec<_>>().join(" ")
    };
    is_ready("ready", "True");
    assert_eq!(row(), "readiness 1/1 Running 0");
    cluster.kubectl(&["exec", "readiness", "--", "rm", "/www/index.html"]);
    is_ready("not ready without its page", "False");
    assert_eq!(row(), "readiness 0/1 Running 0");
    describes(cluster, "readiness", &["Readiness probe failed: HTTP probe failed with statuscode: 404"]);
    cluster.kubectl(&["exec", "readiness", "--", "sh", "-c", "echo hi > /www/index.html"]);
    is_ready("ready again", "True");
    assert_eq!(row(), "readiness 1/1 Running 0");
}

/// A hook that takes longer than the grace is given up at its end, and the program has two seconds more.
fn slow_end(cluster: &Cluster) {
    until(cluster, "hook-slow", "ready", |pod| status(pod)["ready"] == true);
    let clock = Clock::system();
    cluster.kubectl(&["delete", "pod", "hook-slow"]);
    let took = clock.elapsed().as_secs_f64();
    assert!((4.0..30.0 * f64::from(patience())).contains(&took), "{took}");
}
