//! Pulls from a real registry: Debian's `docker-registry` on a loopback port.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use coracle_cri::{AuthConfig, CriError, ImageService, ImageSpec};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};

use super::*;
use crate::image::DeviceNodes;

/// A registry of this test's own, gone with it.
struct Registry {
    dir: tempfile::TempDir,
    child: Child,
    port: u16,
    scheme: &'static str,
}

impl Registry {
    async fn start(more: &str) -> Registry {
        let dir = tempfile::tempdir().unwrap();
        write_certificates(dir.path());
        // Free a moment ago; a test that is robbed of it fails to start and tries another.
        for _ in 0..20 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let config = format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
                 http: {{addr: '127.0.0.1:{port}'{}}}\n",
                dir.path().join("data").display(),
                more.replace("DIR", &dir.path().display().to_string()),
            );
            let path = dir.path().join("config.yml");
            std::fs::write(&path, config).unwrap();
            let mut command = Command::new("docker-registry");
            command.arg("serve").arg(&path).stdout(Stdio::null()).stderr(Stdio::null());
            // SAFETY: prctl is async-signal-safe; the registry must not outlive a killed test.
            unsafe {
                command.pre_exec(|| {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    Ok(())
                });
            }
            let mut child = command.spawn().expect("docker-registry is installed");
            let clock = Clock::system();
            while child.try_wait().unwrap().is_none() {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    let scheme = if more.contains("tls") { "https" } else { "http" };
                    return Registry { dir, child, port, scheme };
                }
                clock.sleep(Duration::from_millis(10)).await;
            }
        }
        panic!("no registry could be started");
    }

    fn name(&self, rest: &str) -> String {
        format!("localhost:{}/{rest}", self.port)
    }

    /// Pushes an image and returns the digest of its manifest.
    async fn push(&self, rest: &str, layers: &[Vec<u8>]) -> String {
        let reference: Reference = self.name(rest).parse().unwrap();
        let protocol = if self.scheme == "http" { ClientProtocol::Http } else { ClientProtocol::Https };
        let config = ClientConfig { protocol, accept_invalid_certificates: true, ..ClientConfig::default() };
        let client = Client::new(config);
        client.auth(&reference, &RegistryAuth::Anonymous, RegistryOperation::Push).await.unwrap();
        let layout = oci_layout(rest, layers, gzip);
        let mut index: serde_json::Value = serde_json::from_slice(&layout["index.json"]).unwrap();
        let manifest = index["manifests"][1]["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
        for (name, bytes) in &layout {
            if let Some(hex) = name.strip_prefix("blobs/sha256/")
                && *name != manifest
            {
                client.push_blob(&reference, bytes.clone(), &format!("sha256:{hex}")).await.unwrap();
            }
        }
        let by_digest =
            reference.clone_with_digest(index["manifests"][1]["digest"].as_str().unwrap().to_owned());
        let media_type = "application/vnd.oci.image.manifest.v1+json".parse().unwrap();
        client.push_manifest_raw(&by_digest, layout[&manifest].clone(), media_type).await.unwrap();
        // Under an index, as most images are: the registry wants all of its manifests, so only ours.
        index["mediaType"] = "application/vnd.oci.image.index.v1+json".into();
        index["manifests"].as_array_mut().unwrap().remove(0);
        let bytes = serde_json::to_vec(&index).unwrap();
        let media_type = "application/vnd.oci.image.index.v1+json".parse().unwrap();
        client.push_manifest_raw(&reference, bytes.clone(), media_type).await.unwrap();
        Digest::of(&bytes).to_string()
    }

    fn blob_file(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.dir.path().join(format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A certificate authority, and a server certificate for this machine.
fn write_certificates(dir: &Path) {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_pem = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let server = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let server_pem = server.signed_by(&key, &issuer).unwrap().pem();
    std::fs::write(dir.join("ca.pem"), authority_pem).unwrap();
    std::fs::write(dir.join("cert.pem"), server_pem).unwrap();
    std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
}

pub(super) fn spec(name: impl Into<String>) -> ImageSpec {
    ImageSpec { image: name.into() }
}

pub(super) async fn pull(store: &ImageStore, name: &str) -> Result<String, CriError> {
    store.pull_image(&spec(name), None, None).await
}

pub(super) fn two_layers() -> Vec<Vec<u8>> {
    vec![busybox_layer(), layer(&[Item::File("etc/two", b"2".to_vec(), 0o644)])]
}

#[tokio::test]
async fn an_image_is_pulled_run_and_recognized() {
    let registry = Registry::start("").await;
    let layers = two_layers();
    let digest = registry.push("app/busybox:1", &layers).await;
    let fixture = Fixture::new();
    let store = fixture.open();
    let name = registry.name("app/busybox:1");
    let id = pull(&store, &name).await.unwrap();
    assert_eq!(id, Digest::of(&config(&layers)).to_string());
    let image = store.image_status(&spec(&name)).await.unwrap().unwrap();
    assert_eq!(image.repo_tags, std::slice::from_ref(&name));
    assert_eq!(image.repo_digests, [registry.name(&format!("app/busybox@{digest}"))]);
    assert!(!image.pinned);
    assert!(fixture.names("operations").is_empty());

    let rootfs = store.prepare_rootfs(&id, &coracle_cri::ContainerId("c".into())).unwrap();
    rootfs.mount(DeviceNodes::Dead).unwrap();
    let output = Command::new("chroot")
        .arg(&rootfs.merged)
        .args(["/bin/sh", "-c", "read x </etc/two; echo $x"])
        .output();
    rootfs.unmount().unwrap();
    assert_eq!(output.unwrap().stdout, b"2\n");

    // Again, by tag and by digest: recognized, although the registry has lost the layers.
    for layer in &layers {
        std::fs::remove_file(registry.blob_file(&Digest::of(&gzip(layer)))).unwrap();
    }
    assert_eq!(pull(&store, &name).await.unwrap(), id);
    let by_digest = registry.name(&format!("app/busybox@{digest}"));
    assert_eq!(pull(&store, &by_digest).await.unwrap(), id);
    assert_eq!(store.list().unwrap().len(), 1);
}

#[tokio::test]
async fn certificates_are_checked_and_an_authority_can_be_added() {
    let registry = Registry::start(", tls: {certificate: DIR/cert.pem, key: DIR/key.pem}").await;
    registry.push("a:1", &two_layers()).await;
    let fixture = Fixture::new();
    let error = pull(&fixture.open(), &registry.name("a:1")).await.unwrap_err().to_string();
    assert!(error.contains("failed to do request") && error.contains("UnknownIssuer"), "{error}");
    let mut config = fixture.config();
    config.registry.extra_ca_files = vec![registry.dir.path().join("ca.pem")];
    let store = ImageStore::open(config, Clock::system()).unwrap();
    pull(&store, &registry.name("a:1")).await.unwrap();
}

#[tokio::test]
async fn layers_that_are_here_are_not_fetched_again() {
    let registry = Registry::start("").await;
    let layers = two_layers();
    registry.push("a:1", &layers[..1]).await;
    registry.push("b:1", &layers).await;
    let fixture = Fixture::new();
    let store = fixture.open();
    pull(&store, &registry.name("a:1")).await.unwrap();
    std::fs::remove_file(registry.blob_file(&Digest::of(&gzip(&layers[0])))).unwrap();
    pull(&store, &registry.name("b:1")).await.unwrap();
    assert_eq!(fixture.names("layers").len(), 2);
}

#[tokio::test]
async fn failures_say_what_upstream_says() {
    let registry = Registry::start("").await;
    registry.push("a:1", &two_layers()).await;
    let fixture = Fixture::new();
    let store = fixture.open();
    let missing = registry.name("nope:latest");
    let expected = format!(
        "failed to pull and unpack image \"{missing}\": failed to resolve reference \"{missing}\": {missing}: not found"
    );
    assert_eq!(pull(&store, &registry.name("nope")).await, Err(CriError::NotFound(expected)));

    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let name = format!("127.0.0.1:{closed}/x:1");
    let error = pull(&store, &name).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "failed to pull and unpack image \"{name}\": failed to resolve reference \"{name}\": failed to do request: \
             Get \"https://127.0.0.1:{closed}/v2/x/manifests/1\": dial tcp 127.0.0.1:{closed}: connect: connection refused"
        )
    );
    let error = pull(&store, "registry.invalid/x:1").await.unwrap_err().to_string();
    assert!(
        error.contains("failed to resolve reference") && error.contains("lookup registry.invalid"),
        "{error}"
    );
    assert!(matches!(pull(&store, "A b").await, Err(CriError::InvalidArgument(_))));
    assert!(store.list().unwrap().is_empty() && fixture.names("operations").is_empty());
}

#[tokio::test]
async fn content_that_is_not_what_was_promised_is_refused() {
    let registry = Registry::start("").await;
    let layers = two_layers();
    registry.push("a:1", &layers).await;
    let file = registry.blob_file(&Digest::of(&gzip(&layers[1])));
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let fixture = Fixture::new();
    let store = fixture.open();
    let error = pull(&store, &registry.name("a:1")).await.unwrap_err().to_string();
    assert!(error.starts_with("failed to pull and unpack image"), "{error}");
    assert!(store.list().unwrap().is_empty() && fixture.names("layers").is_empty());
}

#[tokio::test]
async fn an_image_that_is_a_bomb_fails_its_pull_and_leaves_nothing() {
    let registry = Registry::start("").await;
    let name = registry.name("bomb:1");
    let layers = [busybox_layer(), layer(&[Item::File("zeros", vec![0; 16 << 20], 0o644)])];
    registry.push("bomb:1", &layers).await;
    let fixture = Fixture::new();
    let mut config = fixture.config();
    config.limits.max_layer_bytes = 8 << 20;
    let store = ImageStore::open(config, Clock::system()).unwrap();
    let id = Digest::of(&layers[1]);
    // What the Pod's waiting state says after `ErrImagePull: `.
    let expected = format!(
        "failed to pull and unpack image \"{name}\": failed to extract layer {id}: layer {id}: \
         the layer unpacks to more than 8388608 bytes"
    );
    let error = pull(&store, &name).await.unwrap_err();
    assert_eq!(error, CriError::Internal(expected));
    wait_until(&Clock::system(), || fixture.names("operations").is_empty()).await;
    assert_eq!(fixture.names("layers"), Vec::<String>::new());
}

#[tokio::test]
async fn credentials_are_needed_where_they_are_asked_for_and_not_remembered() {
    let registry =
        Registry::start(", headers: {}}\nauth: {htpasswd: {realm: test, path: DIR/htpasswd}").await;
    // htpasswd of "user" with password "secret" (bcrypt).
    let line = "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
    std::fs::write(registry.dir.path().join("htpasswd"), line).unwrap();
    let fixture = Fixture::new();
    let store = fixture.open();
    let name = registry.name("a:1");
    let auth = |password: &str| AuthConfig {
        username: "user".into(),
        password: password.into(),
        registry_token: String::new(),
    };
    let try_with = async |auth: Option<AuthConfig>| {
        store.pull_image(&spec(&name), auth.as_ref(), None).await.unwrap_err().to_string()
    };
    let denied = "pull access denied, repository does not exist or may require authorization";
    for auth in [None, Some(auth("wrong"))] {
        let error = try_with(auth).await;
        assert!(error.contains(denied), "{error}");
    }
    // Let in, and then there is no such image.
    let error = try_with(Some(auth("secret"))).await;
    assert!(error.ends_with("not found"), "{error}");
    let error = try_with(None).await;
    assert!(error.contains(denied), "not remembered: {error}");
}

/// A registry that answers with what the test says, then stalls.
fn stalling_registry(answers: BTreeMap<String, Vec<u8>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let answers = answers.clone();
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                loop {
                    // A TLS handshake begins with 22.
                    if reader.fill_buf().is_ok_and(|start| start.first() == Some(&22)) {
                        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
                        return;
                    }
                    let mut request = String::new();
                    if reader.read_line(&mut request).unwrap_or(0) == 0 {
                        return;
                    }
                    let mut line = String::new();
                    while reader.read_line(&mut line).unwrap_or(0) > 2 {
                        line.clear();
                    }
                    let path = request.split(' ').nth(1).unwrap_or_default();
                    match answers.get(path) {
                        Some(body) => {
                            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                            let _ = stream.write_all(head.as_bytes());
                            let _ = stream.write_all(body);
                        }
                        None => {
                            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nsome");
                            // Until the client hangs up.
                            let _ = reader.read(&mut [0; 1]);
                            return;
                        }
                    }
                }
            });
        }
    });
    port
}

/// Documents of an image whose layers never come.
fn stalling_image() -> BTreeMap<String, Vec<u8>> {
    let layout = oci_layout("x", &two_layers(), |layer| layer[..1000.min(layer.len())].to_vec());
    let index: serde_json::Value = serde_json::from_slice(&layout["index.json"]).unwrap();
    let manifest = index["manifests"][1]["digest"].as_str().unwrap();
    let manifest = layout[&manifest.replace("sha256:", "blobs/sha256/")].clone();
    let config = config(&two_layers());
    BTreeMap::from([
        ("/v2/".to_owned(), Vec::new()),
        (format!("/v2/x/blobs/{}", Digest::of(&config)), config),
        ("/v2/x/manifests/1".to_owned(), manifest),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_stalls_is_given_up() {
    let port = stalling_registry(stalling_image());
    let fixture = Fixture::new();
    let mut config = fixture.config();
    config.registry.idle_timeout = Duration::from_millis(200);
    let store = ImageStore::open(config, Clock::system()).unwrap();
    let error = pull(&store, &format!("localhost:{port}/x:1")).await.unwrap_err().to_string();
    assert!(error.contains("failed to copy"), "{error}");
    assert!(fixture.names("layers").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_pull_leaves_nothing() {
    let port = stalling_registry(stalling_image());
    let fixture = Fixture::new();
    let store = fixture.open();
    let task = tokio::spawn({
        let store = store.clone();
        async move { pull(&store, &format!("localhost:{port}/x:1")).await }
    });
    let clock = Clock::system();
    let downloads = || {
        let operations = fixture.dir.path().join("images/operations");
        std::fs::read_dir(operations)
            .unwrap()
            .flatten()
            .filter_map(|operation| std::fs::read_dir(operation.path()).ok())
            .flatten()
            .filter(|entry| {
                entry.as_ref().is_ok_and(|e| e.file_name().to_string_lossy().starts_with("blob-"))
            })
            .count()
    };
    wait_until(&clock, || downloads() > 0).await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    wait_until(&clock, || fixture.names("operations").is_empty()).await;
    assert!(fixture.names("layers").is_empty() && store.list().unwrap().is_empty());
}

pub(super) async fn wait_until(clock: &Clock, condition: impl Fn() -> bool) {
    let waited = clock.timeout(Duration::from_secs(30), async {
        while !condition() {
            clock.sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.expect("the condition holds within 30 s");
}
