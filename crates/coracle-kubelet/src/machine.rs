//! The machine: what it has and what it is.

use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::NodeSystemInfo;

/// Facts about the machine that do not change while it is up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Machine {
    /// Processors.
    pub cpus: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// The most processes and threads at a time; 0 if that is not known.
    pub pids: u64,
    /// Size of the file system that Pods' files go to, in bytes.
    pub storage_bytes: u64,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// From the firmware; the machine id if that says nothing.
    pub system_uuid: String,
    /// Changes with every boot.
    pub boot_id: String,
    /// As `uname -r`.
    pub kernel_version: String,
    /// As `PRETTY_NAME` of the distribution.
    pub os_image: String,
    /// In Go's words: `amd64`, `arm64` …
    pub architecture: String,
}

impl Machine {
    /// Looks at the machine. `storage` is a directory on the file system that Pods' files go to. What cannot be
    /// read is left empty, as upstream does.
    #[must_use]
    pub fn inspect(storage: &Path) -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let machine_id = read("/etc/machine-id");
        let mut system_uuid = read("/sys/class/dmi/id/product_uuid").to_lowercase();
        if system_uuid.is_empty() {
            system_uuid.clone_from(&machine_id);
        }
        let memory_kib = read("/proc/meminfo").lines().find_map(|line| {
            line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        });
        let os_image = read("/etc/os-release")
            .lines()
            .find_map(|line| Some(line.strip_prefix("PRETTY_NAME=")?.trim_matches('"').to_owned()));
        let storage_bytes = rustix::fs::statvfs(storage).map(|s| s.f_blocks * s.f_frsize).unwrap_or(0);
        Machine {
            cpus: std::thread::available_parallelism()
                .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
            memory_bytes: memory_kib.unwrap_or(0) * 1024,
            pids: ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"]
                .into_iter()
                .filter_map(|path| read(path).parse().ok())
                .min()
                .unwrap_or(0),
            storage_bytes,
            machine_id,
            system_uuid,
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            kernel_version: rustix::system::uname().release().to_string_lossy().into_owned(),
            os_image: os_image.unwrap_or_else(|| "Linux".to_owned()),
            architecture: architecture(std::env::consts::ARCH).to_owned(),
        }
    }

    /// The `nodeInfo` of the Node's status.
    #[must_use]
    pub fn node_info(&self, runtime: &str, kubelet_version: &str) -> NodeSystemInfo {
        NodeSystemInfo {
            machine_id: self.machine_id.clone(),
            system_uuid: self.system_uuid.clone(),
            boot_id: self.boot_id.clone(),
            kernel_version: self.kernel_version.clone(),
            os_image: self.os_image.clone(),
            container_runtime_version: runtime.to_owned(),
            kubelet_version: kubelet_version.to_owned(),
            kube_proxy_version: String::new(),
            operating_system: "linux".to_owned(),
            architecture: self.architecture.clone(),
            ..NodeSystemInfo::default()
        }
    }
}

/// Go's name of an architecture.
fn architecture(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}
