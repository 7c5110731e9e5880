//! What a hostile image or another user of the machine gets from a running cluster: nothing.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Cluster, IMAGE, root};

/// Regular files below `dir`, without unpacked images and what kubectl keeps for this test: with their mode, and whether others get to their directory.
fn files(dir: &Path, reachable: bool, found: &mut Vec<(PathBuf, u32, bool)>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else { continue };
        let mode = metadata.permissions().mode();
        if metadata.is_file() {
            found.push((path, mode & 0o777, reachable));
        } else if metadata.is_dir()
            && !["layers", "rootfs", "kubectl-home"].iter().any(|name| path.ends_with(name))
        {
            files(&path, reachable && mode & 0o011 != 0, found);
        }
    }
}

#[test]
fn nobody_else_reads_keys_secrets_tokens_or_the_store() {
    let cluster = Cluster::start();
    let secret = "hunter2-correct-horse-battery";
    cluster.kubectl(&["create", "secret", "generic", "s", &format!("--from-literal=password={secret}")]);
    let pod = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"one"}},"spec":{{"containers":[{{"name":"c",
            "image":"{IMAGE}","command":["sleep","3600"],"env":[{{"name":"P","value":"{secret}"}}]}}]}}}}"#
    );
    cluster.apply(&pod);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/one", "--timeout=30s"]);
    let made: serde_json::Value =
        serde_json::from_str(&cluster.must(&["token", "create", "--output", "json"])).unwrap();
    let token = made["token"].as_str().unwrap().split('.').nth(1).unwrap().to_owned();

    let mut found = Vec::new();
    for dir in [cluster.data(), Path::new("/tmp/coracle-e2e/run").join(cluster.name())] {
        let open = std::fs::metadata(&dir).unwrap().permissions().mode() & 0o011 != 0;
        files(&dir, open, &mut found);
    }
    let mut keys = 0;
    for (path, mode, reachable) in &found {
        let text = std::fs::read(path).unwrap_or_default();
        let has = |what: &str| text.windows(what.len()).any(|window| window == what.as_bytes());
        assert!(!(*reachable && mode & 0o044 != 0), "{} can be read: {mode:o}", path.display());
        // These by themselves, wherever they are.
        let of_store = path.starts_with(cluster.data().join("store"));
        if has("PRIVATE KEY") || has("client-key-data") || of_store {
            keys += 1;
            assert_eq!(mode & 0o077, 0, "{}: {mode:o}", path.display());
        }
        if !of_store && path.extension().is_some_and(|extension| extension == "log") {
            assert!(!has(secret) && !has(&token), "{}", path.display());
        }
    }
    assert!(keys > 3, "{found:#?}");
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let cmdline = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        assert!(!cmdline.contains(secret) && !cmdline.contains(&token), "{cmdline}");
    }
}

/// The archive that `scripts/bomb-image.py` makes, unless one was made where there is Python.
fn bomb(cluster: &Cluster) -> PathBuf {
    if let Some(made) = std::env::var_os("CORACLE_E2E_BOMB") {
        return made.into();
    }
    let bomb = cluster.data().join("bomb.tar");
    let script = Command::new("python3")
        .arg("scripts/bomb-image.py")
        .arg(&bomb)
        .arg(std::env::consts::ARCH)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(script.status.success(), "{script:?}");
    bomb
}

#[test]
fn an_image_that_is_a_bomb_is_refused_and_the_cluster_lives_on() {
    let cluster = Cluster::start();
    let bomb = bomb(&cluster);
    assert!(std::fs::metadata(&bomb).unwrap().len() < 1 << 20);
    let measured = |archive: &str| {
        let import = cluster.coracle_command(&["image", "import", archive]);
        let output = Command::new("busybox")
            .args(["time", "-v"])
            .arg(import.get_program())
            .args(import.get_args())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let (_, after) = said.split_once("Maximum resident set size (kbytes): ").expect("time says it");
        let memory: u64 = after.lines().next().unwrap().trim().parse().unwrap();
        (output, memory)
    };
    let (output, memory) = measured(bomb.to_str().unwrap());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("extended header too large"), "{error}");
    let (output, usual) = measured(crate::support::busybox_archive().to_str().unwrap());
    assert!(output.status.success(), "{output:?}");
    assert!(memory < usual + (64 << 10), "{memory} kB, where an import usually takes {usual} kB");
    assert_eq!(std::fs::read_dir(cluster.data().join("images/operations")).unwrap().count(), 0);
    assert!(!cluster.must(&["image", "ls"]).contains("bomb"));
    cluster.kubectl(&["run", "one", "--image", IMAGE, "--", "sleep", "3600"]);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/one", "--timeout=30s"]);
}
