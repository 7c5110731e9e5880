//! Damage, mistakes and machines that have changed: each is told, with what to do, and leaves nothing half made.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use crate::cli::traces;
use crate::support::{Cluster, busybox_archive};

/// Runs `coracle`, which must fail with exit code 1 and these words, and without a panic.
fn refused(cluster: &Cluster, arguments: &[&str], words: &[&str]) {
    let output = cluster.coracle(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not said by {arguments:?}: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

/// What a cluster left, but for links, which are other clusters' too.
pub(crate) fn left(cluster: &Cluster) -> Vec<String> {
    traces(cluster.name()).into_iter().filter(|trace| !trace.starts_with("link")).collect()
}

/// A file in the way of what a start needs as a directory.
fn obstruct(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "").unwrap();
}

#[test]
fn a_first_start_that_fails_leaves_nothing() {
    let cluster = Cluster::embedded_without_start();
    // Late: the API server has been up for a moment.
    obstruct(&cluster.data().join("images"));
    refused(&cluster, &["up"], &["the cluster's process ended at start", "cannot open the images"]);
    assert_eq!(left(&cluster), Vec::<String>::new());
    // At the beginning.
    let run = Path::new("/tmp/coracle-e2e/run").join(cluster.name());
    obstruct(&run);
    refused(&cluster, &["up"], &[&format!("cannot make {}", run.display())]);
    fs::remove_file(&run).unwrap();
    assert_eq!(left(&cluster), Vec::<String>::new());
    // What was wished then binds nobody now, and what was imported is kept.
    cluster.must(&["image", "import", busybox_archive().to_str().unwrap()]);
    obstruct(&cluster.data().join("network"));
    refused(&cluster, &["server", "--node-name", "n1"], &["network"]);
    let names: Vec<_> = fs::read_dir(cluster.data()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["images"]);
    cluster.must(&["up", "--node-name", "n2"]);
    assert_eq!(cluster.kubectl(&["get", "nodes", "-o", "name"]), "node/n2\n");
    assert!(cluster.must(&["image", "ls"]).contains("busybox"));
}

#[test]
fn what_is_damaged_or_gone_is_named_with_what_to_do() {
    let cluster = Cluster::embedded_without_start();
    cluster.must(&["up"]);
    let data = cluster.data();
    refused(&cluster, &["server"], &["is already running (process "]);
    cluster.must(&["up"]);
    cluster.must(&["down"]);
    // Each damage is undone before the next.
    let damaged = |path: &str, damage: &dyn Fn(&Path), words: &[&str]| {
        let path = data.join(path);
        let aside = data.join("aside");
        let copied = std::process::Command::new("cp").arg("-a").arg(&path).arg(&aside).status().unwrap();
        assert!(copied.success());
        damage(&path);
        refused(&cluster, &["up"], words);
        let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        fs::rename(&aside, &path).unwrap();
    };
    let write = |bytes: &'static [u8]| move |path: &Path| fs::write(path, bytes).unwrap();
    let remove = |path: &Path| fs::remove_dir_all(path).or_else(|_| fs::remove_file(path)).unwrap();
    for bytes in [&b""[..], b"{\"index\": 0", &[0; 64], b"\xff"] {
        damaged("cluster.json", &write(bytes), &["cluster.json is damaged", "down --purge"]);
    }
    damaged("cluster.json", &write(b"{\"format\": 99}"), &["by a newer coracle", "start the newer one"]);
    damaged("cluster.json", &remove, &["cluster.json is gone", "`cp /tmp/coracle-e2e/run/"]);
    damaged("store", &remove, &["the objects of this cluster are gone", "coracle restore FILE --force"]);
    let log = "store/00000000000000000001.log";
    damaged(log, &write(&[0; 8192]), &["is damaged at byte 0", "restore the store from a backup"]);
    let newer = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        bytes.truncate(3);
        fs::write(path, bytes).unwrap();
    };
    damaged(log, &newer, &["the file header is cut short"]);
    damaged("pki/ca.key", &write(b"\xff\xfe"), &["ca.key is not usable", "restore it from a backup"]);
    damaged("pki/ca.crt", &remove, &["ca.crt is not usable: it is missing"]);
    let readable = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o640)).unwrap();
    damaged("pki/ca.key", &readable, &["ca.key has mode 0640: others can use it; chmod 600"]);
    damaged(
        "pki/admin.key",
        &|path| chown(path, Some(12345), None).unwrap(),
        &["belongs to user 12345", "chown 0"],
    );
    obstruct(&data.join("images/images.json"));
    refused(&cluster, &["up"], &["images.json is damaged", "import or pull them again"]);
    fs::remove_file(data.join("images/images.json")).unwrap();
    // Somebody else has the port that the cluster was made with.
    let settings: serde_json::Value =
        serde_json::from_slice(&fs::read(data.join("cluster.json")).unwrap()).unwrap();
    for (port, whose) in [("api_port", "the API server"), ("kubelet_port", "the node agent")] {
        let number = u16::try_from(settings[port].as_u64().unwrap()).unwrap();
        let taken = std::net::TcpListener::bind(("0.0.0.0", number)).unwrap();
        let words = format!("ports: {number}, for {whose}, is in use by another program: stop it");
        refused(&cluster, &["up"], &[&words]);
        drop(taken);
    }
    // Leaves are made anew, whatever became of them.
    for name in ["apiserver.crt", "admin.key", "kubelet.crt"] {
        fs::write(data.join("pki").join(name), [0; 100]).unwrap();
    }
    fs::write(data.join("kubeconfig"), "\0\0").unwrap();
    cluster.must(&["up"]);
    assert!(cluster.kubectl(&["get", "nodes"]).contains("Ready"));
}

#[test]
fn damaged_records_of_containers_cost_these_and_no_others() {
    let cluster = Cluster::start();
    let names = ["sandbox", "container", "start", "untouched"];
    for name in names {
        cluster.apply(&crate::lifecycle::pod(name, "Always", "trap exit TERM; while :; do sleep 0.1; done"));
    }
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=30s"]);
    let before = cluster.get(&["pod", "untouched"]);
    cluster.kill();
    let runtime = cluster.data().join("runtime");
    let of = |name: &str, kind: &str, file: &str| {
        let directory = runtime.join(kind);
        let found = fs::read_dir(&directory).unwrap().find_map(|entry| {
            let record = entry.unwrap().path().join(file);
            let text = fs::read_to_string(record.with_file_name(match kind {
                "sandboxes" => "sandbox.json",
                _ => "container.json",
            }));
            text.is_ok_and(|text| text.contains(&format!("_{name}_"))).then_some(record)
        });
        found.unwrap()
    };
    fs::write(of("sandbox", "sandboxes", "sandbox.json"), [0; 50]).unwrap();
    fs::write(of("container", "containers", "container.json"), "").unwrap();
    fs::write(of("start", "containers", "start.json"), "{").unwrap();
    cluster.must(&["up"]);
    for name in ["sandbox", "container"] {
        cluster.wait("a new container", &["pod", name], |pod| {
            let status = &pod["status"]["containerStatuses"][0];
            status["ready"] == true && status["restartCount"] == 1
        });
    }
    assert_eq!(cluster.kubectl(&["exec", "start", "--", "echo", "here"]), "here\n");
    let after = cluster.get(&["pod", "untouched"]);
    assert_eq!(after["status"]["containerStatuses"], before["status"]["containerStatuses"]);
    cluster.kubectl(&["delete", "pod", "--all", "--grace-period=1"]);
    cluster.must(&["down", "--purge"]);
    assert_eq!(left(&cluster), Vec::<String>::new());
}

#[test]
fn address_and_names_are_remembered() {
    let cluster = Cluster::embedded_without_start();
    let shows = |name: &str, address: &str| {
        assert!(cluster.kubectl(&["--tls-server-name", name, "get", "nodes"]).contains("Ready"));
        let path = "-o=jsonpath={.items[0].status.addresses[?(@.type==\"InternalIP\")].address}";
        assert_eq!(cluster.kubectl(&["get", "nodes", path]), address);
    };
    cluster.must(&["up", "--address", "127.0.0.1", "--tls-san", "cluster.example"]);
    shows("cluster.example", "127.0.0.1");
    cluster.kill();
    cluster.must(&["up"]);
    shows("cluster.example", "127.0.0.1");
    let later = cluster.coracle(&["up", "--address", "127.0.0.2", "--tls-san", "other.example"]);
    let said = String::from_utf8_lossy(&later.stderr);
    assert!(later.status.success() && said.contains("takes effect at the next start"), "{said}");
    cluster.must(&["down"]);
    cluster.must(&["up"]);
    cluster.wait("the new address", &["nodes"], |node| {
        node["status"]["addresses"]
            .as_array()
            .unwrap()
            .iter()
            .any(|address| address["address"] == "127.0.0.2")
    });
    shows("other.example", "127.0.0.2");
    cluster.kubectl_fails(&["--tls-server-name", "cluster.example", "get", "nodes"], "");
}
