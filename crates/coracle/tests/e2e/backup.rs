//! Backups of a running and of a stopped cluster, and what a restored one is.

use std::os::unix::fs::PermissionsExt;

use crate::support::{Cluster, IMAGE};

fn revision(cluster: &Cluster) -> u64 {
    let list = cluster.kubectl(&["get", "--raw", "/api/v1/namespaces/default/configmaps"]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

#[test]
fn a_restored_cluster_is_what_it_was_and_goes_on_far_above() {
    let cluster = Cluster::embedded_without_start();
    let directory = tempfile::tempdir().unwrap();
    let running = directory.path().join("running.backup");
    let stopped = directory.path().join("stopped.backup");
    let (running, stopped) = (running.to_str().unwrap(), stopped.to_str().unwrap());
    let fails = |arguments: &[&str], words: &str| {
        let output = cluster.coracle(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(words), "{arguments:?}: {said}");
    };
    cluster.must(&["up"]);
    cluster.must(&["image", "import", crate::support::busybox_archive().to_str().unwrap()]);
    cluster.kubectl(&["create", "configmap", "kept", "--from-literal=a=1"]);
    cluster.kubectl(&["run", "kept", "--image", IMAGE, "--", "sleep", "3600"]);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/kept", "--timeout=30s"]);
    cluster.must(&["backup", running]);
    let mode = std::fs::metadata(running).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "the file holds keys");

    // What comes after the backup is gone by the restore.
    cluster.kubectl(&["delete", "configmap", "kept"]);
    cluster.kubectl(&["delete", "pod", "kept", "--now"]);
    cluster.kubectl(&["create", "configmap", "later", "--from-literal=a=2"]);
    cluster.kubectl(&["run", "later", "--image", IMAGE, "--", "sleep", "3600"]);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/later", "--timeout=30s"]);
    let seen = revision(&cluster);
    fails(&["restore", running, "--force"], "is running");
    cluster.must(&["down"]);
    cluster.must(&["backup", stopped]);
    fails(&["restore", running], "--force replaces it");
    let authority = std::fs::read(cluster.data().join("pki/ca.crt")).unwrap();

    // A damaged one changes nothing.
    let mut bytes = std::fs::read(running).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damaged = directory.path().join("damaged.backup");
    std::fs::write(&damaged, &bytes).unwrap();
    let before = std::fs::read_dir(cluster.data().join("store")).unwrap().count();
    fails(&["restore", damaged.to_str().unwrap(), "--force"], "the backup is damaged before byte");
    assert_eq!(std::fs::read_dir(cluster.data().join("store")).unwrap().count(), before);

    // A restore that was cut off when the old store was gone and the new one not there yet.
    std::fs::write(cluster.data().join("restoring"), "").unwrap();
    std::fs::remove_dir_all(cluster.data().join("store")).unwrap();
    std::fs::create_dir(cluster.data().join("restore.partial")).unwrap();
    fails(&["up"], "a restore of this cluster was interrupted: run `coracle restore` with --force again");
    fails(&["server"], "a restore of this cluster was interrupted");

    cluster.must(&["restore", running, "--force"]);
    assert!(!cluster.data().join("restoring").exists() && !cluster.data().join("restore.partial").exists());
    cluster.must(&["up"]);
    // Only administrators get what holds all keys.
    let denied = cluster.kubectl_fails(&["get", "--raw", "/coracle/v1/backup", "--as", "somebody"], "");
    assert!(denied.contains("forbidden"), "{denied}");
    assert_eq!(cluster.kubectl(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"]), "1");
    assert!(revision(&cluster) > seen + 1_000_000, "no revision is used twice");
    let old =
        format!("/api/v1/namespaces/default/configmaps?watch=1&resourceVersion={seen}&timeoutSeconds=5");
    let expired = cluster.kubectl(&["get", "--raw", &old]);
    assert!(expired.contains("410") && expired.contains("Expired"), "a watcher starts anew: {expired}");
    cluster.wait("the Pod to run again", &["pod", "kept"], |pod| {
        pod["status"]["containerStatuses"][0]["state"]["running"].is_object()
            && pod["status"]["containerStatuses"][0]["restartCount"].as_u64() >= Some(1)
    });
    assert_eq!(cluster.kubectl(&["get", "pods", "-o", "name"]), "pod/kept\n");

    // The other one, on a machine that has never seen the cluster.
    cluster.must(&["down", "--purge"]);
    cluster.must(&["restore", stopped]);
    cluster.must(&["up"]);
    assert_eq!(cluster.kubectl(&["get", "configmaps", "later", "-o", "name"]), "configmap/later\n");
    assert_eq!(std::fs::read(cluster.data().join("pki/ca.crt")).unwrap(), authority);
}
