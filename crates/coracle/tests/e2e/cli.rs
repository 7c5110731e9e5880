//! The binary's own commands: what they print, and what they leave behind.

use std::collections::BTreeSet;
use std::process::Command;

use crate::support::{Cluster, IMAGE, busybox_archive};

/// What a cluster could leave on the machine, a line each, restricted to lines that name `name` or are of kinds
/// that only clusters make.
pub(crate) fn traces(name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(mounts.lines().filter(|line| line.contains(name)).map(|line| format!("mount {line}")));
    let links = std::fs::read_dir("/sys/class/net").unwrap();
    found.extend(links.map(|link| format!("link {}", link.unwrap().file_name().to_string_lossy())));
    for hierarchy in ["memory", "cpu", "pids", "unified", "."] {
        let path = format!("/sys/fs/cgroup/{hierarchy}/coracle-{name}");
        if std::path::Path::new(&path).exists() {
            found.insert(format!("cgroup {path}"));
        }
    }
    for directory in ["data", "run"] {
        let path = format!("/tmp/coracle-e2e/{directory}/{name}");
        if std::path::Path::new(&path).exists() {
            found.insert(format!("directory {path}"));
        }
    }
    let rules = Command::new("nft").args(["list", "tables"]).output().unwrap();
    let rules = String::from_utf8(rules.stdout).unwrap();
    found.extend(rules.lines().filter(|line| line.contains(name)).map(|line| format!("nft {line}")));
    for process in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let arguments = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        if arguments.contains(name) && process.file_name().to_string_lossy().parse::<u32>().is_ok() {
            found.insert(format!("process {arguments}"));
        }
    }
    found
}

#[test]
fn purge_leaves_the_machine_as_it_was_and_works_twice() {
    let cluster = Cluster::without_start();
    // Links of other tests' clusters come and go: only this cluster's bridge is looked at.
    cluster.must(&["up"]);
    cluster.must(&["image", "import", busybox_archive().to_str().unwrap()]);
    let settings = std::fs::read(cluster.data().join("cluster.json")).unwrap();
    let settings: serde_json::Value = serde_json::from_slice(&settings).unwrap();
    let bridge = format!("link {}", settings["bridge"].as_str().unwrap());
    cluster.kubectl(&["run", "one", "--image", IMAGE, "--", "sleep", "3600"]);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/one", "--timeout=30s"]);
    let during = traces(cluster.name());
    assert!(during.contains(&bridge), "{bridge} in {during:#?}");
    for kind in ["mount", "cgroup", "directory", "nft", "process"] {
        assert!(during.iter().any(|trace| trace.starts_with(kind)), "no {kind} in {during:#?}");
    }
    for _ in 0..2 {
        cluster.must(&["down", "--purge"]);
        let after: Vec<String> = traces(cluster.name())
            .into_iter()
            .filter(|trace| !trace.starts_with("link") || *trace == bridge)
            .collect();
        assert!(after.is_empty(), "{after:#?}");
    }
}

#[test]
fn a_stopped_cluster_comes_back_with_its_objects() {
    let cluster = Cluster::start();
    cluster.kubectl(&["create", "configmap", "kept", "--from-literal=a=1"]);
    cluster.kubectl(&["run", "one", "--image", IMAGE, "--", "sleep", "3600"]);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/one", "--timeout=30s"]);
    let status = cluster.must(&["status"]);
    assert!(status.contains("running"), "{status}");
    let other_port = cluster.coracle(&["up", "--port", "1"]);
    assert!(String::from_utf8_lossy(&other_port.stderr).contains("--port 1 differs from"), "{other_port:?}");
    cluster.must(&["down"]);
    let status = cluster.coracle(&["status"]);
    assert_eq!(status.status.code(), Some(3), "a stopped cluster has an exit code of its own");
    cluster.must(&["up"]);
    assert_eq!(cluster.kubectl(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"]), "1");
    cluster.wait("the Pod to run again", &["pod", "one"], |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"] == 1
            && pod["status"]["containerStatuses"][0]["state"]["running"].is_object()
    });
}

#[test]
fn containers_outlive_a_killed_cluster_process() {
    let cluster = Cluster::start();
    cluster.kubectl(&["run", "one", "--image", IMAGE, "--", "sleep", "3600"]);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/one", "--timeout=30s"]);
    let before = cluster.get(&["pod", "one"]);
    cluster.kill();
    cluster.must(&["up"]);
    let after = cluster.get(&["pod", "one"]);
    assert_eq!(after["status"]["containerStatuses"], before["status"]["containerStatuses"]);
    assert_eq!(after["status"]["podIP"], before["status"]["podIP"]);
    assert_eq!(cluster.kubectl(&["exec", "one", "--", "echo", "alive"]), "alive\n");
}

#[test]
fn damaged_settings_do_not_keep_a_cluster_from_being_purged() {
    let cluster = Cluster::start();
    cluster.kubectl(&["run", "one", "--image", IMAGE, "--", "sleep", "3600"]);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/one", "--timeout=30s"]);
    let settings = cluster.data().join("cluster.json");
    let intact: serde_json::Value = serde_json::from_slice(&std::fs::read(&settings).unwrap()).unwrap();
    let bridge = format!("link {}", intact["bridge"].as_str().unwrap());
    std::fs::write(&settings, "{").unwrap();
    let refused = cluster.coracle(&["down"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("down --purge"), "{refused:?}");
    cluster.must(&["down", "--purge"]);
    let mut left = traces(cluster.name());
    // Links of other tests' clusters come and go.
    left.retain(|trace| !trace.starts_with("link") || *trace == bridge);
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn two_clusters_side_by_side() {
    let (a, b) = (Cluster::start(), Cluster::start());
    for cluster in [&a, &b] {
        cluster.kubectl(&["run", "same", "--image", IMAGE, "--", "sleep", "3600"]);
        cluster.kubectl(&["wait", "--for=condition=Ready", "pod/same", "--timeout=30s"]);
    }
    a.kubectl(&["delete", "pod", "same", "--now"]);
    assert_eq!(b.kubectl(&["get", "pods", "-o", "name"]), "pod/same\n");
    assert_eq!(a.kubectl(&["get", "pods", "-o", "name"]), "");
}

#[test]
fn mistakes_say_what_to_do() {
    let cluster = Cluster::without_start();
    let message = |arguments: &[&str]| {
        let output = cluster.coracle(arguments);
        assert!(!output.status.success(), "coracle {arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    for arguments in [&["kubeconfig"][..], &["image", "ls"], &["image", "rm", "a:1"]] {
        let message = message(arguments);
        let start = format!("was never started here: start it with `coracle up --name {}`", cluster.name());
        assert!(message.contains(&start), "{arguments:?}: {message}");
    }
    assert!(message(&["node"]).contains("give --server and --token"));
    assert!(!cluster.data().exists(), "asking leaves nothing behind");
    assert!(message(&["image", "import", "/no/such/file"]).contains("/no/such/file"));
    assert!(message(&["token", "create"]).contains("after `coracle up`"));
    let output =
        Command::new(env!("CARGO_BIN_EXE_coracle")).args(["--name", "..", "status"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("lower-case letters"), "{output:?}");
    // Not at the start: another test damages the settings of its cluster, of which every start here warns.
    assert!(message(&["up", "--pod-cidr", "10.0.0.1/33"]).contains("error: --pod-cidr 10.0.0.1/33"));
    assert!(message(&["up", "--service-cidr", "11.0.0.0/8"]).contains("from 12 to 24"));
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    assert!(message(&["up", "--port", &port]).contains("is in use"));
}
