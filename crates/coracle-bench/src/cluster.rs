//! A cluster of the measured binary, removed at the end.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use coracle_clock::Clock;

/// A cluster under a name of its own.
#[derive(Debug)]
pub(crate) struct Cluster {
    program: PathBuf,
    name: String,
}

const BASE: &str = "/tmp/coracle-bench";

impl Cluster {
    pub(crate) fn new(program: &Path) -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let program =
            program.canonicalize().with_context(|| format!("no binary at {}", program.display()))?;
        Ok(Cluster { program, name: format!("bench-{}-{number}", std::process::id()) })
    }

    fn coracle(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let output = Command::new(&self.program)
            .args(["--name", &self.name])
            .args(["--data-dir", &format!("{BASE}/data"), "--run-dir", &format!("{BASE}/run")])
            .args(arguments)
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            bail!("coracle {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Starts it; returns the time until its node is Ready.
    pub(crate) fn start(&self, clock: &Clock) -> anyhow::Result<Duration> {
        let begin = clock.elapsed();
        self.coracle(&["up"])?;
        Ok(clock.elapsed() - begin)
    }

    pub(crate) fn import(&self, archive: &Path) -> anyhow::Result<()> {
        self.coracle(&["image", "import", &archive.to_string_lossy()])
    }

    fn data(&self) -> PathBuf {
        Path::new(BASE).join("data").join(&self.name)
    }

    /// The cluster's process.
    pub(crate) fn pid(&self) -> anyhow::Result<u32> {
        let lock = std::fs::read_to_string(self.data().join("lock"))?;
        Ok(lock.split_whitespace().next().unwrap_or_default().parse()?)
    }

    /// Processes of the cluster itself: the main one and the keepers.
    pub(crate) fn processes(&self) -> anyhow::Result<Vec<u32>> {
        let mut found = vec![self.pid()?];
        found.extend(self.keepers());
        Ok(found)
    }

    /// Keepers: programs that run from memory, with a directory of this cluster as their argument.
    pub(crate) fn keepers(&self) -> Vec<u32> {
        let run = format!("{BASE}/run/{}/", self.name);
        let is_keeper = |pid: &u32| {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments);
            arguments.starts_with("/proc/self/fd/") && arguments.contains(&run)
        };
        let processes = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
        processes
            .filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok())
            .filter(is_keeper)
            .collect()
    }

    /// A client with a connection of its own.
    pub(crate) async fn client(&self) -> anyhow::Result<kube::Client> {
        let kubeconfig = kube::config::Kubeconfig::read_from(self.data().join("kubeconfig"))?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
        Ok(kube::Client::try_from(config)?)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.coracle(&["down", "--purge"]) {
            eprintln!("{error:#}");
        }
    }
}
