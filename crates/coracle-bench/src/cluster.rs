//! A cluster of the measured binary, removed at the end.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
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

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["--name", &self.name])
            .args(["--data-dir", &format!("{BASE}/data"), "--run-dir", &format!("{BASE}/run")])
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    fn coracle(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let output = self.command(arguments).output()?;
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

    /// Ends the cluster's process as a crash would; its containers run on.
    pub(crate) async fn kill(&self, clock: &Clock) -> anyhow::Result<()> {
        let pid = self.pid()?.to_string();
        let status = Command::new("kill").args(["-9", &pid]).status()?;
        if !status.success() {
            bail!("cannot kill process {pid}");
        }
        while Path::new("/proc").join(&pid).exists() {
            clock.sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Starts the cluster and does not wait for it.
    pub(crate) fn launch(&self) -> anyhow::Result<Child> {
        Ok(self.command(&["up"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?)
    }

    /// How long the store took to open, by the cluster's log.
    pub(crate) fn store_opened_in(&self) -> anyhow::Result<Duration> {
        let log = std::fs::read_to_string(self.data().join("coracle.log"))?;
        let line = log.lines().rfind(|line| line.contains("store is open")).context("no store in the log")?;
        let (_, rest) = line.split_once("took_ms").context("no time in the log")?;
        let number: String = rest
            .trim_start_matches(|c: char| !c.is_ascii_digit())
            .chars()
            .take_while(|c| c.is_ascii_digit() || *c == '.')
            .collect();
        Ok(Duration::from_secs_f64(number.parse::<f64>()? / 1000.0))
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
