//! Pods that one build has started, under another build.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::lifecycle::pod;
use crate::support::Cluster;

/// Another build: what `CORACLE_E2E_OTHER_BUILD` names, or this one with another version string in it, which is all
/// that a build of the same code differs in.
fn another_build() -> (PathBuf, Option<tempfile::TempDir>) {
    if let Some(path) = std::env::var_os("CORACLE_E2E_OTHER_BUILD") {
        return (path.into(), None);
    }
    let mut program = std::fs::File::open(env!("CARGO_BIN_EXE_coracle")).map(BufReader::new).unwrap();
    let version = concat!("coracle.", env!("CARGO_PKG_VERSION")).as_bytes();
    let other: Vec<u8> = version.iter().copied().map(another_digit).collect();
    let (mut changed, mut found) = (Vec::new(), 0);
    // The library's search for a byte is quick even in a build that is not optimized.
    while program.read_until(b'+', &mut changed).unwrap() > 0 {
        if program.fill_buf().unwrap().starts_with(version) {
            program.consume(version.len());
            changed.extend(&other);
            found += 1;
        }
    }
    assert!(found > 0, "the program says its version");
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("coracle");
    std::fs::write(&path, changed).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    (path, Some(directory))
}

fn another_digit(byte: u8) -> u8 {
    if byte.is_ascii_digit() { b'0' + (byte - b'0' + 9) % 10 } else { byte }
}

fn node_version(cluster: &Cluster) -> Value {
    cluster.get(&["nodes"])["items"][0]["status"]["nodeInfo"]["kubeletVersion"].clone()
}

fn statuses(cluster: &Cluster, names: &[&str]) -> Vec<Value> {
    names
        .iter()
        .map(|name| {
            let pod = cluster.get(&["pod", name]);
            let ready = crate::support::condition(&pod, "Ready").clone();
            serde_json::json!([pod["status"]["containerStatuses"], ready, pod["status"]["podIP"]])
        })
        .collect()
}

/// Kills the cluster's process, and starts the cluster with this program.
fn replace(cluster: &mut Cluster, program: &Path) {
    cluster.kill();
    program.clone_into(&mut cluster.program);
    cluster.must(&["up"]);
}

#[test]
fn pods_run_on_under_another_build_and_can_be_worked_with() {
    let (other, _directory) = another_build();
    let mut cluster = Cluster::without_start();
    let own = std::mem::replace(&mut cluster.program, other.clone());
    cluster.must(&["up"]);
    cluster.must(&["image", "import", crate::support::busybox_archive().to_str().unwrap()]);
    cluster.apply(&pod("lasting", "Always", "echo begun; sleep 3600"));
    cluster.apply(&pod("ending", "Never", "while [ ! -e /tmp/end ]; do sleep 0.1; done; exit 3"));
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/lasting", "pod/ending", "--timeout=30s"]);
    let old_version = node_version(&cluster);
    let before = statuses(&cluster, &["lasting", "ending"]);

    replace(&mut cluster, &own);
    cluster.wait("the node to tell its new version", &["nodes"], |node| {
        node["status"]["nodeInfo"]["kubeletVersion"] != old_version
    });
    assert_eq!(statuses(&cluster, &["lasting", "ending"]), before, "the same containers, still Ready");
    assert_eq!(cluster.kubectl(&["logs", "lasting"]), "begun\n");
    assert_eq!(cluster.kubectl(&["exec", "lasting", "--", "echo", "here"]), "here\n");
    cluster.kubectl(&["exec", "ending", "--", "touch", "/tmp/end"]);
    let ended = cluster.wait("its end", &["pod", "ending"], |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(ended["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
    cluster.kubectl(&["delete", "pod", "lasting", "ending", "--now"]);

    // And back: a Pod of the newer build under the older one.
    cluster.apply(&pod("newer", "Always", "echo begun; sleep 3600"));
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/newer", "--timeout=30s"]);
    let before = statuses(&cluster, &["newer"]);
    replace(&mut cluster, &other);
    assert_eq!(statuses(&cluster, &["newer"]), before);
    assert_eq!(cluster.kubectl(&["exec", "newer", "--", "echo", "here"]), "here\n");
    cluster.kubectl(&["delete", "pod", "newer", "--now"]);
    assert_eq!(cluster.kubectl(&["get", "pods", "-o", "name"]), "");
}
