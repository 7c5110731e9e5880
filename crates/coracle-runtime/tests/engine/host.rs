//! A cluster's worth of directories on this machine, and everything checked and removed at the end.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use coracle_clock::{Clock, Rng};
use coracle_cri::{
    ContainerConfig, ContainerId, ContainerState, ContainerStatus, CriResult, ImageRunConfig, ImageSpec,
    PodNetwork, PodNetworkRequest, PodNetworkStatus, PodSandboxConfig, PodSandboxId, PodSandboxMetadata,
    PodSandboxState, RuntimeService,
};
use coracle_runtime::image::Rootfs;
use coracle_runtime::{EmbeddedRuntime, LogLimit, Patience, RootfsSource, RuntimeConfig, purge};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Loopback only.
struct NoNetwork;

#[async_trait]
impl PodNetwork for NoNetwork {
    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }
    async fn set_pod_cidr(&self, _: &str) -> CriResult<()> {
        Ok(())
    }
    async fn setup(&self, request: &PodNetworkRequest) -> CriResult<PodNetworkStatus> {
        assert!(request.netns.exists(), "the namespace is pinned before the network is set up");
        Ok(PodNetworkStatus::default())
    }
    async fn teardown(&self, _: &PodSandboxId) -> CriResult<()> {
        Ok(())
    }
    async fn reconcile(&self, _: &[PodSandboxId]) -> CriResult<()> {
        Ok(())
    }
}

/// One image, in a directory that a test may change.
struct OneImage {
    dir: PathBuf,
}

impl RootfsSource for OneImage {
    fn run_config(&self, _: &str) -> CriResult<ImageRunConfig> {
        Ok(ImageRunConfig { env: vec!["PATH=/bin".into()], ..Default::default() })
    }
    fn prepare_rootfs(&self, _: &str, container: &str) -> CriResult<Rootfs> {
        let dir = self.dir.join("containers").join(container);
        let rootfs = Rootfs {
            lower: vec![self.dir.join("image")],
            upper: dir.join("upper"),
            work: dir.join("work"),
            merged: dir.join("merged"),
        };
        for path in [&rootfs.upper, &rootfs.work, &rootfs.merged] {
            std::fs::create_dir_all(path).unwrap();
        }
        Ok(rootfs)
    }
    fn prepared_rootfs(&self) -> CriResult<Vec<String>> {
        let Ok(entries) = std::fs::read_dir(self.dir.join("containers")) else { return Ok(Vec::new()) };
        Ok(entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect())
    }
    fn release_rootfs(&self, container: &str) -> CriResult<()> {
        let _ = std::fs::remove_dir_all(self.dir.join("containers").join(container));
        Ok(())
    }
}

pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: RuntimeConfig,
    pub(crate) clock: Clock,
    name: String,
}

impl Host {
    pub(crate) fn new() -> Self {
        let name = format!("coracle-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new().prefix(&name).tempdir().unwrap();
        let image = dir.path().join("images/image");
        for sub in ["bin", "etc", "root", "tmp", "var", "run"] {
            std::fs::create_dir_all(image.join(sub)).unwrap();
        }
        std::fs::copy("/bin/busybox", image.join("bin/busybox")).expect("busybox-static is installed");
        for applet in [
            "sh", "cat", "echo", "sleep", "true", "false", "id", "ls", "head", "stty", "tail", "mount",
            "env", "readlink", "hostname", "dd", "mknod", "touch", "tty", "ps", "base64",
        ] {
            symlink("busybox", image.join("bin").join(applet)).unwrap();
        }
        std::fs::write(image.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:101:102::/:/bin/sh\n")
            .unwrap();
        std::fs::write(image.join("etc/group"), "root:x:0:\nweb:x:102:\n").unwrap();
        let config = RuntimeConfig {
            data_dir: dir.path().join("data"),
            run_dir: dir.path().join("run"),
            cgroup_root: PathBuf::from(format!("/{name}")),
            log_limit: LogLimit::default(),
            patience: Patience::default(),
        };
        Host { dir, config, clock: Clock::system(), name }
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.dir.path().join("images/image")
    }

    pub(crate) async fn open(&self) -> Arc<EmbeddedRuntime> {
        self.open_with(Arc::new(NoNetwork)).await
    }

    pub(crate) async fn open_with(&self, network: Arc<dyn PodNetwork>) -> Arc<EmbeddedRuntime> {
        let images = Arc::new(OneImage { dir: self.dir.path().join("images") });
        EmbeddedRuntime::open(self.config.clone(), network, images, self.clock.clone(), Rng::from_os())
            .await
            .unwrap()
    }

    pub(crate) fn pod(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            },
            hostname: name.into(),
            log_directory: self.dir.path().join("logs").join(name),
            cgroup_parent: format!("/kubepods/besteffort/pod{name}"),
            ..Default::default()
        }
    }

    /// Control groups of Pods, in all hierarchies.
    pub(crate) fn pod_cgroups(&self) -> Vec<String> {
        let mut found = Vec::new();
        for root in ["", "unified", "memory", "pids", "devices", "cpu", "systemd"] {
            let parent = Path::new("/sys/fs/cgroup").join(root).join(&self.name).join("kubepods/besteffort");
            let Ok(entries) = std::fs::read_dir(parent) else { continue };
            found.extend(
                entries
                    .flatten()
                    .filter(|entry| entry.path().is_dir())
                    .map(|entry| entry.path().display().to_string()),
            );
        }
        found
    }

    /// Mounts, processes and control groups of this host that are still there.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        let dir = self.dir.path().to_string_lossy().into_owned();
        for line in std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines() {
            if line.contains(&dir) {
                found.push(format!("mount {line}"));
            }
        }
        for root in ["", "unified", "memory", "pids", "devices", "cpu", "systemd"] {
            let group = Path::new("/sys/fs/cgroup").join(root).join(&self.name);
            if group.exists() {
                found.push(format!("cgroup {}", group.display()));
            }
        }
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(cmdline) = std::fs::read_to_string(entry.path().join("cmdline")) else { continue };
            if cmdline.contains(&self.config.run_dir.to_string_lossy().into_owned()) {
                found.push(format!("process {cmdline}"));
            }
        }
        found
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let (first, second) = (purge(&self.config), purge(&self.config));
        let leftovers = self.leftovers();
        // A second panic would end all tests.
        if !std::thread::panicking() {
            first.unwrap();
            second.expect("a second time succeeds");
            assert!(leftovers.is_empty(), "{leftovers:#?}");
        }
    }
}

pub(crate) fn container(command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        name: "main".into(),
        image: ImageSpec { image: "one".into() },
        command: command.iter().map(|s| (*s).to_owned()).collect(),
        log_path: "main/0.log".into(),
        ..Default::default()
    }
}

pub(crate) fn shell(script: &str) -> ContainerConfig {
    container(&["sh", "-c", script])
}

/// Waits until the container is as asked, woken by the engine's own hints.
pub(crate) async fn wait_for(
    runtime: &EmbeddedRuntime,
    id: &ContainerId,
    what: &str,
    condition: impl Fn(&ContainerStatus) -> bool,
) -> ContainerStatus {
    let mut events = runtime.container_events().await.unwrap();
    let clock = Clock::system();
    let mut last = None;
    let waited = clock
        .timeout(Duration::from_secs(60), async {
            loop {
                let status = runtime.container_status(id).await.unwrap();
                if condition(&status) {
                    return status;
                }
                last = Some(status);
                events.recv().await;
            }
        })
        .await;
    waited.unwrap_or_else(|| panic!("waited in vain for {what}; last seen: {last:#?}"))
}

pub(crate) async fn wait_for_exit(runtime: &EmbeddedRuntime, id: &ContainerId) -> ContainerStatus {
    wait_for(runtime, id, "its end", |s| s.container.state == ContainerState::Exited).await
}

/// Runs this to its end on a Tokio runtime of its own.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(work)
}

pub(crate) async fn sandbox_state(runtime: &EmbeddedRuntime, id: &PodSandboxId) -> PodSandboxState {
    runtime.pod_sandbox_status(id).await.unwrap().sandbox.state
}

/// Waits until a sandbox is not ready any more.
pub(crate) async fn until_not_ready(host: &Host, runtime: &EmbeddedRuntime, id: &PodSandboxId) {
    let stopped = async {
        while sandbox_state(runtime, id).await == PodSandboxState::Ready {
            host.clock.sleep(Duration::from_millis(5)).await;
        }
    };
    host.clock.timeout(Duration::from_secs(30), stopped).await.expect("its sandbox is not ready");
}

/// Makes and starts a container in a sandbox of its own.
pub(crate) async fn run(host: &Host, runtime: &EmbeddedRuntime, config: &ContainerConfig) -> ContainerId {
    let name = format!("p{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let pod = host.pod(&name);
    let sandbox = runtime.run_pod_sandbox(&pod).await.unwrap();
    let id = runtime.create_container(&sandbox, config, &pod).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    id
}

/// What a container wrote: stream and text of every line.
pub(crate) fn log(status: &ContainerStatus) -> Vec<String> {
    std::fs::read_to_string(&status.log_path)
        .unwrap()
        .lines()
        .map(|line| line.split_once(' ').unwrap().1.to_owned())
        .collect()
}

/// Runs a script to its end and returns its standard output.
pub(crate) async fn output(host: &Host, runtime: &EmbeddedRuntime, config: &ContainerConfig) -> String {
    let id = run(host, runtime, config).await;
    let status = wait_for_exit(runtime, &id).await;
    let lines = log(&status);
    assert_eq!(status.exit_code, Some(0), "{lines:#?}");
    lines.iter().filter_map(|l| l.strip_prefix("stdout F ")).map(|l| format!("{l}\n")).collect()
}
