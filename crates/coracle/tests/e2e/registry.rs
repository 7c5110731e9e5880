//! Images that only some may have: a real registry that asks for a password, and Secrets made by kubectl.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use coracle_clock::Clock;
use serde_json::{Value, json};

use crate::support::{Cluster, busybox_archive, check};

/// `user` with the password `secret`.
const PASSWORDS: &str = "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
const LOGIN: &str = "user:secret";

/// Debian's `docker-registry` on a loopback port, gone with the test.
struct Registry {
    directory: tempfile::TempDir,
    child: Child,
    port: u16,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(at("passwords"), PASSWORDS).unwrap();
        let clock = Clock::system();
        // Free a moment ago; who is robbed of it tries another.
        for _ in 0..20 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let config = format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
                 http: {{addr: '127.0.0.1:{port}'}}\nauth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                at("data"),
                at("passwords"),
            );
            std::fs::write(at("config.yml"), config).unwrap();
            let mut child = Command::new("docker-registry")
                .args(["serve", &at("config.yml")])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("docker-registry is installed: scripts/prerequisites.sh test");
            let begun = clock.elapsed();
            while child.try_wait().unwrap().is_none() && clock.elapsed() - begun < Duration::from_secs(20) {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Registry { directory, child, port };
                }
                std::thread::yield_now();
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("no registry could be started");
    }

    fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    fn curl(&self, arguments: &[&str]) -> String {
        let login = ["--silent", "--show-error", "--fail", "--max-time", "60", "--user", LOGIN];
        let output = Command::new("curl").args(login).args(arguments).output().unwrap();
        check(&output, "curl");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Puts the busybox image there under the name `team/app:1`.
    fn push(&self) {
        let unpacked = self.directory.path().join("image");
        std::fs::create_dir(&unpacked).unwrap();
        let archive = busybox_archive();
        let output = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&unpacked).output().unwrap();
        check(&output, "tar");
        let saved: Value =
            serde_json::from_slice(&std::fs::read(unpacked.join("manifest.json")).unwrap()).unwrap();
        let (config, layer) = (saved[0]["Config"].as_str().unwrap(), saved[0]["Layers"][0].as_str().unwrap());
        let blob = |file: &str, kind: &str| {
            let path = unpacked.join(file);
            let output = Command::new("sha256sum").arg(&path).output().unwrap();
            check(&output, "sha256sum");
            let text = String::from_utf8(output.stdout).unwrap();
            let digest = format!("sha256:{}", text.split_whitespace().next().unwrap());
            self.push_blob(&path, &digest);
            json!({"mediaType": kind, "digest": digest, "size": std::fs::metadata(&path).unwrap().len()})
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": blob(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [blob(layer, "application/vnd.oci.image.layer.v1.tar")],
        });
        let url = format!("http://{}/v2/team/app/manifests/1", self.host());
        let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
        self.curl(&["--request", "PUT", "--header", kind, "--data-binary", &manifest.to_string(), &url]);
    }

    fn push_blob(&self, path: &Path, digest: &str) {
        let url = format!("http://{}/v2/team/app/blobs/uploads/", self.host());
        let answer = self.curl(&["--request", "POST", "--include", &url]);
        let location = answer.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("location").then(|| value.trim().to_owned())
        });
        let file = format!("@{}", path.display());
        let kind = "Content-Type: application/octet-stream";
        let to = format!("{}&digest={digest}", location.unwrap());
        self.curl(&["--request", "PUT", "--header", kind, "--data-binary", &file, &to]);
    }
}

fn pod(name: &str, image: &str, policy: &str, secrets: &[&str]) -> String {
    let secrets: Vec<Value> = secrets.iter().map(|name| json!({ "name": name })).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0, "imagePullSecrets": secrets,
            "containers": [{"name": "c", "image": image, "imagePullPolicy": policy, "command": ["sleep", "3600"]}],
        },
    })
    .to_string()
}

fn waits_for(cluster: &Cluster, name: &str, reason: &str) {
    cluster.wait(&format!("{name} waits with {reason}"), &["pod", name], |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
    });
}

#[test]
fn images_of_a_private_registry_are_for_pods_with_its_password() {
    let registry = Registry::start();
    registry.push();
    let cluster = Cluster::start();
    let image = format!("{}/team/app:1", registry.host());
    cluster.apply(&pod("nobody", &image, "IfNotPresent", &["gone"]));
    waits_for(&cluster, "nobody", "ImagePullBackOff");
    let events = cluster.kubectl(&["describe", "pod", "nobody"]);
    for part in [
        "pull access denied, repository does not exist or may require authorization",
        "Unable to retrieve some image pull secrets (gone); attempting to pull the image may not succeed.",
    ] {
        assert!(events.contains(part), "{part} in {events}");
    }

    let server = format!("--docker-server={}", registry.host());
    let login = ["--docker-username=user", "--docker-password=secret"];
    cluster.kubectl(&["create", "secret", "docker-registry", "right", &server, login[0], login[1]]);
    cluster.kubectl(&[
        "create",
        "secret",
        "docker-registry",
        "wrong",
        &server,
        login[0],
        "--docker-password=x",
    ]);
    cluster.apply(&pod("own", &image, "IfNotPresent", &["wrong", "right"]));
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/own", "--timeout=30s"]);

    // It is here now, and still not for everybody.
    cluster.apply(&pod("never", &image, "Never", &[]));
    waits_for(&cluster, "never", "ErrImageNeverPull");
    cluster.apply(&pod("false", &image, "IfNotPresent", &["wrong"]));
    waits_for(&cluster, "false", "ImagePullBackOff");

    // As people do it for a whole namespace.
    cluster.kubectl(&[
        "patch",
        "serviceaccount",
        "default",
        "-p",
        r#"{"imagePullSecrets":[{"name":"right"}]}"#,
    ]);
    cluster.apply(&pod("account", &image, "Always", &[]));
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/account", "--timeout=30s"]);
    assert_eq!(cluster.get(&["pod", "account"])["spec"]["imagePullSecrets"], json!([{"name": "right"}]));
}
