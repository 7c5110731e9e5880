//! The Pods in `examples/pods`, run as their README says, and what kubectl shows of them.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::{Cluster, Kubectl, patience, root};

fn apply(cluster: &Cluster, example: &str) {
    let path = root().join("examples/pods").join(format!("{example}.yaml"));
    cluster.kubectl(&["apply", "-f", path.to_str().unwrap()]);
}

/// What `kubectl get pods -w` prints.
struct Rows {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    seen: Vec<String>,
}

impl Rows {
    fn watch(cluster: &Cluster) -> Self {
        let mut child = cluster
            .kubectl_command(Kubectl::V37)
            .args(["get", "pods", "--watch", "--no-headers"])
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Rows { child, lines, seen: Vec::new() }
    }

    /// Reads until each of these rows has been seen: name, READY, STATUS, and at least so many RESTARTS.
    fn until(&mut self, expected: &[(&str, &str, &str, u32)]) {
        let mut missing: BTreeSet<_> = expected.iter().collect();
        for line in self.seen.clone() {
            strike(&mut missing, &line);
        }
        while !missing.is_empty() {
            let Some(line) = self.next() else {
                panic!("never seen: {missing:#?}; seen:\n{}", self.seen.join("\n"));
            };
            strike(&mut missing, &line);
        }
    }

    /// The next row; `None` when the watch has ended.
    fn next(&mut self) -> Option<String> {
        let line = self.lines.next()?.ok()?;
        self.seen.push(line.clone());
        Some(line)
    }

    fn statuses(&self, name: &str) -> Vec<&str> {
        let rows = self.seen.iter().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut statuses: Vec<_> = rows.filter(|row| row[0] == name).map(|row| row[2]).collect();
        statuses.dedup();
        statuses
    }
}

fn strike(missing: &mut BTreeSet<&(&str, &str, &str, u32)>, line: &str) {
    let row: Vec<&str> = line.split_whitespace().collect();
    missing.retain(|(name, ready, status, restarts)| {
        row[..3] != [*name, *ready, *status] || row[3].parse::<u32>().unwrap() < *restarts
    });
}

impl Drop for Rows {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn phase(cluster: &Cluster, name: &str) -> String {
    cluster.kubectl(&["get", "pod", name, "-o", "jsonpath={.status.phase}"])
}

/// What `kubectl describe` shows, with each run of blanks as one: it aligns columns.
fn described(cluster: &Cluster, name: &str) -> String {
    let text = cluster.kubectl(&["describe", "pod", name]);
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("\n")
}

fn shows(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let at =
            rest.find(part).unwrap_or_else(|| panic!("{part:?}, after what comes before it, in\n{text}"));
        rest = &rest[at + part.len()..];
    }
}

#[test]
fn containers_that_end_under_each_restart_policy() {
    let cluster = Cluster::start();
    let mut rows = Rows::watch(&cluster);
    apply(&cluster, "restart-one-container");
    apply(&cluster, "restart-one-of-two");
    rows.until(&[
        ("succeeds-always", "0/1", "Completed", 0),
        ("succeeds-always", "0/1", "CrashLoopBackOff", 1),
        ("succeeds-onfailure", "0/1", "Completed", 0),
        ("succeeds-never", "0/1", "Completed", 0),
        ("fails-always", "0/1", "Error", 0),
        ("fails-always", "0/1", "CrashLoopBackOff", 1),
        ("fails-onfailure", "0/1", "Error", 0),
        ("fails-onfailure", "0/1", "CrashLoopBackOff", 1),
        ("fails-never", "0/1", "Error", 0),
        ("one-succeeds-always", "1/2", "CrashLoopBackOff", 1),
        ("one-succeeds-onfailure", "1/2", "NotReady", 0),
        ("one-succeeds-never", "1/2", "NotReady", 0),
        ("one-fails-always", "1/2", "CrashLoopBackOff", 1),
        ("one-fails-onfailure", "1/2", "CrashLoopBackOff", 1),
        ("one-fails-never", "1/2", "Error", 0),
    ]);
    for (name, expected) in [
        ("succeeds-always", "Running"),
        ("succeeds-onfailure", "Succeeded"),
        ("succeeds-never", "Succeeded"),
        ("fails-always", "Running"),
        ("fails-onfailure", "Running"),
        ("fails-never", "Failed"),
        ("one-succeeds-always", "Running"),
        ("one-succeeds-onfailure", "Running"),
        ("one-succeeds-never", "Running"),
        ("one-fails-always", "Running"),
        ("one-fails-onfailure", "Running"),
        ("one-fails-never", "Running"),
    ] {
        assert_eq!(phase(&cluster, name), expected, "{name}");
    }
    // What is done for good has been restarted by nobody meanwhile.
    for name in
        ["succeeds-onfailure", "succeeds-never", "fails-never", "one-succeeds-never", "one-fails-never"]
    {
        let status = cluster.get(&["pod", name])["status"].take();
        let restarts = status["containerStatuses"].as_array().unwrap().iter().map(|c| &c["restartCount"]);
        assert!(restarts.clone().all(|count| count == 0), "{name}: {status:#}");
    }
    shows(
        &described(&cluster, "fails-always"),
        &[
            "Status: Running",
            "Last State: Terminated",
            "Reason: Error",
            "Exit Code: 1",
            "Ready: False",
            "Ready False",
            "Events:",
            "Normal Scheduled",
        ],
    );
    let events = described(&cluster, "fails-always");
    let back_off = "Back-off restarting failed container main in pod fails-always_default(";
    assert!(events.contains(back_off), "{events}");
    shows(
        &described(&cluster, "succeeds-never"),
        &["Status: Succeeded", "State: Terminated", "Reason: Completed", "Exit Code: 0", "Restart Count: 0"],
    );
    shows(
        &described(&cluster, "one-fails-never"),
        &[
            "Status: Running",
            "works:",
            "State: Running",
            "ends:",
            "State: Terminated",
            "Exit Code: 1",
            "Ready False",
        ],
    );
    assert_eq!(cluster.kubectl(&["logs", "fails-never"]), "failed\n");
    assert_eq!(cluster.kubectl(&["logs", "fails-always", "-p"]), "failed\n");
}

#[test]
fn init_containers_and_sidecars() {
    let cluster = Cluster::start();
    let mut rows = Rows::watch(&cluster);
    for example in ["init-fails", "init-works", "sidecar"] {
        apply(&cluster, example);
    }
    rows.until(&[
        ("init-fails-always", "0/1", "Init:Error", 0),
        ("init-fails-always", "0/1", "Init:CrashLoopBackOff", 1),
        ("init-fails-never", "0/1", "Init:Error", 0),
        ("init-works", "0/1", "Init:0/2", 0),
        ("init-works", "0/1", "Init:1/2", 0),
        ("init-works", "1/1", "Running", 0),
        ("sidecar", "2/2", "Running", 0),
        ("sidecar", "0/2", "Completed", 0),
    ]);
    let statuses = rows.statuses("init-works");
    let order = ["Init:0/2", "Init:1/2", "Running"].map(|status| statuses.iter().position(|s| *s == status));
    assert!(order.is_sorted(), "{statuses:?}");
    for (name, expected) in [
        ("init-fails-always", "Pending"),
        ("init-fails-never", "Failed"),
        ("init-works", "Running"),
        ("sidecar", "Succeeded"),
    ] {
        assert_eq!(phase(&cluster, name), expected, "{name}");
    }

    assert_eq!(cluster.kubectl(&["logs", "init-fails-never", "-c", "prepare"]), "cannot prepare\n");
    let refused = cluster.kubectl_fails(&["logs", "init-fails-always", "-c", "main"], "");
    let words = "container \"main\" in pod \"init-fails-always\" is waiting to start: PodInitializing";
    assert!(refused.contains(words), "{refused}");
    shows(
        &described(&cluster, "init-fails-never"),
        &[
            "Status: Failed",
            "Init Containers:",
            "prepare:",
            "State: Terminated",
            "Reason: Error",
            "Exit Code: 1",
            "Containers:",
            "main:",
            "State: Waiting",
            "Reason: PodInitializing",
            "Initialized False",
        ],
    );

    // It is Ready a moment before it listens.
    let page = "until wget -qO- http://127.0.0.1:80; do sleep 0.1; done";
    let page = cluster.kubectl(&["exec", "init-works", "--", "timeout", "30", "sh", "-c", page]);
    assert_eq!(page, "first\nsecond\n");
    shows(
        &described(&cluster, "init-works"),
        &[
            "first:",
            "Reason: Completed",
            "second:",
            "Reason: Completed",
            "web:",
            "State: Running",
            "Initialized True",
        ],
    );

    assert_eq!(cluster.kubectl(&["logs", "sidecar", "-c", "companion"]), "started\nasked to stop\n");
    let all = cluster.kubectl(&["logs", "sidecar", "--all-containers", "--prefix"]);
    for line in ["[pod/sidecar/companion] started", "[pod/sidecar/app] working", "[pod/sidecar/app] done"] {
        assert!(all.contains(line), "{all}");
    }
    shows(
        &described(&cluster, "sidecar"),
        &[
            "Status: Succeeded",
            "companion:",
            "State: Terminated",
            "app:",
            "State: Terminated",
            "Reason: Completed",
        ],
    );
}

fn ready(cluster: &Cluster, name: &str) {
    cluster.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=30s"]);
}

#[test]
fn probes_and_hooks_and_what_they_tell() {
    let cluster = Cluster::start();
    let mut rows = Rows::watch(&cluster);
    for example in ["liveness-exec", "liveness-http", "post-start", "readiness"] {
        apply(&cluster, example);
    }
    rows.until(&[
        ("ready", "1/1", "Running", 0),
        ("hook-works", "1/1", "Running", 0),
        ("hook-fails", "0/1", "PostStartHookError", 0),
        ("hook-fails", "0/1", "CrashLoopBackOff", 1),
        ("hook-fails", "0/1", "PostStartHookError", 2),
        ("wrong-port", "1/1", "Running", 1),
    ]);
    shows(
        &described(&cluster, "hook-fails"),
        &[
            "State: Waiting",
            "Last State: Terminated",
            "Exit Code: 137",
            "Ready: False",
            "Events:",
            "Warning FailedPostStartHook",
            "PostStartHook failed",
            "Normal Killing",
            "FailedPostStartHook",
            "Warning BackOff",
            "Back-off restarting failed container main in pod hook-fails_default(",
        ],
    );
    assert_eq!(cluster.kubectl(&["exec", "hook-works", "--", "cat", "/tmp/started"]), "started\n");
    shows(
        &described(&cluster, "wrong-port"),
        &[
            "Liveness: http-get http://:8080/passwd delay=0s",
            "Warning Unhealthy",
            "8080: connect: connection refused",
        ],
    );

    let endpoints = |ready: bool| {
        let shown = |slice: &Value| {
            let endpoints = slice["endpoints"].as_array().into_iter().flatten();
            endpoints.map(|endpoint| endpoint["conditions"]["ready"] == true).eq([ready])
        };
        cluster.wait("the endpoint", &["endpointslices", "-l", "kubernetes.io/service-name=ready"], shown);
    };
    endpoints(true);
    cluster.kubectl(&["exec", "ready", "--", "mv", "/www/index.html", "/www/gone.html"]);
    rows.until(&[("ready", "0/1", "Running", 0)]);
    endpoints(false);
    let gone = rows.seen.len();
    cluster.kubectl(&["exec", "ready", "--", "mv", "/www/gone.html", "/www/index.html"]);
    let again =
        |rows: &Rows| rows.seen[gone..].iter().any(|row| row.starts_with("ready ") && row.contains("1/1"));
    while !again(&rows) {
        rows.next().expect("the watch goes on");
    }
    endpoints(true);
    let text = described(&cluster, "ready");
    shows(&text, &["Restart Count: 0", "Readiness probe failed: HTTP probe failed with statuscode: 404"]);

    let statuses = rows.statuses("hook-fails");
    assert!(!statuses.contains(&"Running"), "{statuses:?}");
    let shown_between = statuses.windows(2).any(|pair| pair == ["CrashLoopBackOff", "Error"]);
    assert!(!shown_between, "a restart shows what it follows until it has an outcome: {statuses:?}");

    // It takes a minute, after which the first watch may have ended.
    Rows::watch(&cluster).until(&[("alive", "1/1", "Running", 1)]);
    shows(
        &described(&cluster, "alive"),
        &[
            "Last State: Terminated",
            "Reason: Error",
            "Exit Code: 137",
            "Restart Count: 1",
            "Liveness: exec [cat /tmp/healthy] delay=0s timeout=1s period=5s",
            "Warning Unhealthy",
            "(x3 over",
            "Liveness probe failed: cat: can't open '/tmp/healthy': No such file or directory",
            "Normal Killing",
            "Container main failed liveness probe, will be restarted",
        ],
    );
}

fn time_to_delete(cluster: &Cluster, name: &str) -> Duration {
    let clock = coracle_clock::Clock::system();
    let before = clock.elapsed();
    cluster.kubectl(&["delete", "pod", name]);
    clock.elapsed() - before
}

#[test]
fn ends_that_take_their_time() {
    let cluster = Cluster::start();
    for (example, name) in [("prestop-longer-than-grace", "late"), ("stubborn", "stubborn")] {
        apply(&cluster, example);
        ready(&cluster, name);
    }
    // The grace, and two seconds, and what kubectl and the machine take.
    let slack = Duration::from_secs(5) * patience();
    let took = time_to_delete(&cluster, "late");
    assert!(took >= Duration::from_secs(5) && took < Duration::from_secs(7) + slack, "{took:?}");
    let took = time_to_delete(&cluster, "stubborn");
    assert!(took >= Duration::from_secs(3) && took < Duration::from_secs(5) + slack, "{took:?}");
}

#[test]
fn images_and_memory_that_are_not_there() {
    let cluster = Cluster::start();
    let mut rows = Rows::watch(&cluster);
    for example in ["image-missing", "out-of-memory"] {
        apply(&cluster, example);
    }
    rows.until(&[
        ("image-missing", "0/1", "ErrImagePull", 0),
        ("image-missing", "0/1", "ImagePullBackOff", 0),
        ("hungry-always", "0/1", "OOMKilled", 0),
        ("hungry-always", "0/1", "CrashLoopBackOff", 1),
        ("hungry-onfailure", "0/1", "OOMKilled", 0),
        ("hungry-onfailure", "0/1", "CrashLoopBackOff", 1),
        ("hungry-never", "0/1", "OOMKilled", 0),
    ]);
    for (name, expected) in [
        ("image-missing", "Pending"),
        ("hungry-always", "Running"),
        ("hungry-onfailure", "Running"),
        ("hungry-never", "Failed"),
    ] {
        assert_eq!(phase(&cluster, name), expected, "{name}");
    }
    let text = described(&cluster, "image-missing");
    shows(&text, &["Status: Pending", "State: Waiting", "Ready: False", "Normal Pulling"]);
    for part in [
        "Pulling image \"localhost:1/no/such/image:1\"",
        "Failed to pull image \"localhost:1/no/such/image:1\": ",
        "Error: ErrImagePull",
        "Back-off pulling image \"localhost:1/no/such/image:1\"",
        "Error: ImagePullBackOff",
    ] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
    let refused = cluster.kubectl_fails(&["logs", "image-missing"], "");
    assert!(refused.contains("is waiting to start: trying and failing to pull image"), "{refused}");
    shows(
        &described(&cluster, "hungry-never"),
        &["Status: Failed", "State: Terminated", "Reason: OOMKilled", "Exit Code: 137", "Restart Count: 0"],
    );
    let states = cluster.get(&["pod", "hungry-always"])["status"]["containerStatuses"][0].take();
    let last = &states["lastState"]["terminated"];
    assert_eq!((&last["reason"], &last["exitCode"]), (&Value::from("OOMKilled"), &Value::from(137)));
}

#[test]
fn every_example_is_in_the_readme_and_run_here() {
    let readme = std::fs::read_to_string(root().join("examples/pods/README.md")).unwrap();
    let (here, streams) = (include_str!("examples.rs"), include_str!("streams.rs"));
    for entry in std::fs::read_dir(root().join("examples/pods")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(example) = name.strip_suffix(".yaml") else { continue };
        assert!(readme.contains(&format!("| `{name}` |")), "{name} is not in the README");
        let quoted = format!("\"{example}\"");
        assert!(here.contains(&quoted) || streams.contains(&quoted), "{name} is not run");
    }
}
