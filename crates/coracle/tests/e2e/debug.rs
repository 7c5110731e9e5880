//! `kubectl debug`: a container added to a Pod that runs, and copies of Pods.

use crate::streams::{BOTH, Terminal, start};
use crate::support::{Cluster, IMAGE};

#[test]
fn a_container_is_added_to_a_pod_that_runs() {
    let cluster = Cluster::start();
    start(&cluster, "target", "", "exec sleep 4321");
    for (version, name) in BOTH {
        let debugger = format!("debug-{name}");
        let arguments = ["debug", "-it", "target", "--image", IMAGE, "--target=main", "--profile=general"];
        let mut terminal =
            Terminal::open(&cluster, version, &[&arguments[..], &["-c", &debugger, "--", "sh"]].concat());
        terminal.keys("\n");
        terminal.until("# ");
        // The processes of the container that is looked at, and what is the Pod's.
        terminal.keys("ps\n");
        terminal.until("sleep 4321");
        terminal.keys("echo host-$(hostname); exit 5\n");
        terminal.until("host-target");
        terminal.end();

        let pod = cluster.wait("its end", &["pods"], |pod| {
            let statuses = pod["status"]["ephemeralContainerStatuses"].as_array();
            statuses.into_iter().flatten().any(|status| {
                status["name"] == debugger.as_str() && status["state"]["terminated"]["exitCode"] == 5
            })
        });
        // The Pod has not noticed.
        assert_eq!(
            (&pod["status"]["phase"], pod["status"]["conditions"].is_array()),
            (&"Running".into(), true)
        );
        let row = cluster.kubectl(&["get", "pod", "target", "--no-headers"]);
        let row: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(row[..4], ["target", "1/1", "Running", "0"]);
        let logs = cluster.kubectl_with(version, &["logs", "target", "-c", &debugger], "");
        assert!(logs.contains("host-target"), "{logs}");
        let described = cluster.kubectl(&["describe", "pod", "target"]);
        let (_, ephemeral) = described.split_once("Ephemeral Containers:").expect("they are described");
        for part in [&format!("{debugger}:"), "Exit Code:    5"] {
            assert!(ephemeral.contains(part), "{part:?} in\n{described}");
        }
        let events = cluster.get(&["events"]);
        let path = format!("spec.ephemeralContainers{{{debugger}}}");
        assert!(events.to_string().contains(&path), "{events:#}");
    }
    // It is there for good.
    let removed = "[{\"op\": \"remove\", \"path\": \"/spec/ephemeralContainers/0\"}]";
    let refused = cluster.kubectl_fails(
        &["patch", "pod", "target", "--subresource=ephemeralcontainers", "--type=json", "-p", removed],
        "",
    );
    assert!(refused.contains("may not be removed"), "{refused}");
}

#[test]
fn a_pod_is_copied_to_be_looked_at() {
    let cluster = Cluster::start();
    start(&cluster, "original", "", "exec sleep 4321");
    for (version, name) in BOTH {
        let copy = format!("copy-{name}");
        let arguments =
            ["debug", "-it", "original", "--image", IMAGE, "--share-processes", "--profile=general"];
        let mut terminal = Terminal::open(
            &cluster,
            version,
            &[&arguments[..], &["--copy-to", &copy, "-c", "debugger", "--", "sh"]].concat(),
        );
        terminal.keys("\n");
        terminal.until("# ");
        // Processes of all containers are in one namespace.
        terminal.keys("ps\n");
        terminal.until("sleep 4321");
        terminal.keys("exit\n");
        terminal.end();

        let changed = format!("changed-{name}");
        let output = cluster.run_kubectl(
            version,
            &[
                "debug",
                "original",
                "--copy-to",
                &changed,
                "-c",
                "main",
                "--",
                "sh",
                "-c",
                "echo instead; sleep 1000",
            ],
            "",
        );
        crate::support::check(&output, "kubectl debug --copy-to");
        cluster.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{changed}"), "--timeout=30s"]);
        assert_eq!(cluster.kubectl_with(version, &["logs", &changed], ""), "instead\n");
        cluster.kubectl(&["delete", "pod", &copy, &changed, "--now"]);
    }
}
