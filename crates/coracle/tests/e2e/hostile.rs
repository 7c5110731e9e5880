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

/// Makes an archive of an image whose one layer has an entry with hundreds of megabytes of attributes, packed.
const BOMB: &str = r#"
import gzip, io, json, sys, tarfile
value = b"a" * 1000000
record = b" SCHILY.xattr.user.x=" + value + b"\n"
length = len(record) + 7
record = str(length).encode() + record
assert len(record) == length
header = tarfile.TarInfo("x"); header.type = b"x"; header.size = length
block = header.tobuf(tarfile.USTAR_FORMAT) + record + b"\0" * (-length % 512)
layer = gzip.compress(block) * 300
arch = {"aarch64": "arm64"}.get(sys.argv[2], "amd64")
config = json.dumps({"architecture": arch, "os": "linux",
                     "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]}}).encode()
manifest = json.dumps([{"Config": "config.json", "RepoTags": ["bomb:1"], "Layers": ["layer.tar"]}]).encode()
with tarfile.open(sys.argv[1], "w") as out:
    for name, data in [("manifest.json", manifest), ("config.json", config), ("layer.tar", layer)]:
        entry = tarfile.TarInfo(name); entry.size = len(data)
        out.addfile(entry, io.BytesIO(data))
"#;

/// Runs a command; says on the last line what memory it took, in kilobytes.
const MEASURED: &str = r"
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
";

#[test]
fn an_image_that_is_a_bomb_is_refused_and_the_cluster_lives_on() {
    let cluster = Cluster::start();
    let bomb = cluster.data().join("bomb.tar");
    let made = Command::new("python3")
        .args(["-c", BOMB, bomb.to_str().unwrap(), std::env::consts::ARCH])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    assert!(std::fs::metadata(&bomb).unwrap().len() < 1 << 20);
    let measured = |archive: &str| {
        let import = cluster.coracle_command(&["image", "import", archive]);
        let output = Command::new("python3")
            .args(["-c", MEASURED])
            .arg(import.get_program())
            .args(import.get_args())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let memory: u64 = text.trim().lines().last().unwrap().parse().unwrap();
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
