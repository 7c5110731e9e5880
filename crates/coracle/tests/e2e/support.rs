//! A cluster for one test, kubectl of two versions, and waiting on what a watch shows.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::etcd::Etcd;

/// Image that every cluster of these tests has.
pub(crate) const IMAGE: &str = "busybox:1.35";

/// How long anything may take before the test fails, in seconds. Nothing waits for this long when all is well.
const LIMIT_SECONDS: u32 = 60;

/// How many times longer everything may take: `CORACLE_E2E_PATIENCE`, for a machine that is emulated.
pub(crate) fn patience() -> u32 {
    let patience = std::env::var("CORACLE_E2E_PATIENCE");
    patience.map_or(1, |text| text.parse().expect("CORACLE_E2E_PATIENCE is a number"))
}

/// An argument, or a more patient one if it is a limit of time.
fn patiently(argument: &str) -> String {
    let seconds = argument.strip_prefix("--timeout=").and_then(|limit| limit.strip_suffix('s')?.parse().ok());
    seconds.map_or_else(|| argument.to_owned(), |limit: u32| format!("--timeout={}s", limit * patience()))
}

/// Versions of kubectl that must work.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kubectl {
    /// 1.37, the level that Coracle serves.
    V37,
    /// 1.32, five minor versions older.
    V32,
}

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A `docker save` archive with busybox: what `CORACLE_E2E_IMAGE` names, or made once.
pub(crate) fn busybox_archive() -> &'static Path {
    static ARCHIVE: OnceLock<PathBuf> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        if let Some(path) = std::env::var_os("CORACLE_E2E_IMAGE") {
            return path.into();
        }
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("busybox-{}.tar", std::process::id()));
        let output = Command::new("python3")
            .arg(root().join("scripts/busybox-image.py"))
            .arg(&path)
            .args(["--name", IMAGE])
            .output()
            .unwrap();
        check(&output, "scripts/busybox-image.py");
        path
    })
}

/// A running cluster that is purged when the test ends.
pub(crate) struct Cluster {
    name: String,
    /// The coracle that this cluster is started, stopped and asked with.
    pub(crate) program: PathBuf,
    /// Network namespace of the machine that it is on; this machine's own if `None`.
    machine: Option<String>,
    /// Outlives the cluster: it is dropped after this has been purged.
    etcd: Option<Etcd>,
}

impl Cluster {
    /// Starts a cluster with the busybox image.
    pub(crate) fn start() -> Self {
        let cluster = Self::without_start();
        cluster.must(&["up"]);
        cluster.must(&["image", "import", busybox_archive().to_str().unwrap()]);
        cluster
    }

    /// A name of its own; nothing of the cluster is started.
    pub(crate) fn without_start() -> Self {
        let mut cluster = Self::embedded_without_start();
        match std::env::var("CORACLE_E2E_STORE").as_deref() {
            Ok("etcd") => {
                let mut etcd = Etcd::prepare();
                etcd.run();
                cluster.etcd = Some(etcd);
            }
            Ok("embedded") | Err(_) => {}
            Ok(other) => panic!("CORACLE_E2E_STORE is embedded or etcd, not {other:?}"),
        }
        cluster
    }

    /// The same, whatever the environment wishes.
    pub(crate) fn embedded_without_start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Cluster {
            name: format!("e2e-{}-{number:02}", std::process::id()),
            program: env!("CARGO_BIN_EXE_coracle").into(),
            machine: None,
            etcd: None,
        }
    }

    /// A name of its own on another machine, whatever the environment wishes; nothing is started.
    pub(crate) fn embedded_on(machine: &Machine) -> Self {
        let mut cluster = Self::embedded_without_start();
        cluster.machine = Some(machine.name.clone());
        cluster
    }

    /// A command on the cluster's machine.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        match &self.machine {
            None => Command::new(program),
            Some(machine) => inside(machine, program),
        }
    }

    /// Name of the cluster.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Directory of the cluster's data.
    pub(crate) fn data(&self) -> PathBuf {
        Path::new("/tmp/coracle-e2e/data").join(&self.name)
    }

    /// `coracle` on this cluster.
    pub(crate) fn coracle_command(&self, arguments: &[&str]) -> Command {
        let store = self.etcd.as_ref().filter(|_| arguments.first() == Some(&"up")).map(Etcd::flags);
        let waits = arguments.first() == Some(&"up") || arguments.contains(&"--detach");
        let limit = (LIMIT_SECONDS * patience()).to_string();
        let limit = if waits && patience() > 1 { vec!["--timeout", &limit] } else { Vec::new() };
        let mut command = self.command(&self.program);
        command
            .args([
                "--name",
                &self.name,
                "--data-dir",
                "/tmp/coracle-e2e/data",
                "--run-dir",
                "/tmp/coracle-e2e/run",
            ])
            .args(arguments)
            .args(limit)
            .args(store.unwrap_or_default());
        command
    }

    /// Runs `coracle` on this cluster.
    pub(crate) fn coracle(&self, arguments: &[&str]) -> Output {
        self.coracle_command(arguments).output().unwrap()
    }

    /// Runs `coracle`, which must succeed, and returns its standard output.
    pub(crate) fn must(&self, arguments: &[&str]) -> String {
        let output = self.coracle(arguments);
        check(&output, &format!("coracle {}", arguments.join(" ")));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Kills the cluster's process, and returns when it is gone.
    pub(crate) fn kill(&self) {
        let pid: i32 = std::fs::read_to_string(self.data().join("lock"))
            .unwrap()
            .split_whitespace()
            .next()
            .unwrap()
            .parse()
            .unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL).unwrap();
        let mut ended = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut ended, None).unwrap();
    }

    pub(crate) fn kubectl_command(&self, version: Kubectl) -> Command {
        let program = match version {
            Kubectl::V37 => "kubectl-1.37",
            Kubectl::V32 => "kubectl-1.32",
        };
        let mut command = self.command("timeout");
        command
            .arg((LIMIT_SECONDS * patience()).to_string())
            .arg(root().join(".cache/bin").join(program))
            .env("KUBECONFIG", self.data().join("kubeconfig"))
            .env("HOME", self.data().join("kubectl-home"));
        command
    }

    /// Runs kubectl, feeding it `input`.
    pub(crate) fn run_kubectl(&self, version: Kubectl, arguments: &[&str], input: &str) -> Output {
        // An emulated processor that has too little of a real one makes kubectl give up before it has asked anything.
        for _ in 1..patience() {
            let output = self.try_kubectl(version, arguments, input);
            if !String::from_utf8_lossy(&output.stderr).contains("TLS handshake timeout") {
                return output;
            }
        }
        self.try_kubectl(version, arguments, input)
    }

    fn try_kubectl(&self, version: Kubectl, arguments: &[&str], input: &str) -> Output {
        let mut child = self
            .kubectl_command(version)
            .args(arguments.iter().map(|argument| patiently(argument)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl runs: scripts/prerequisites.sh test");
        // A command that reads no input may be gone before it is written.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Runs kubectl 1.37, which must succeed, and returns its standard output.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        self.kubectl_with(Kubectl::V37, arguments, "")
    }

    /// Runs kubectl, which must succeed, and returns its standard output.
    pub(crate) fn kubectl_with(&self, version: Kubectl, arguments: &[&str], input: &str) -> String {
        let output = self.run_kubectl(version, arguments, input);
        check(&output, &format!("kubectl {}", arguments.join(" ")));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs kubectl 1.37, which must fail, and returns its standard error.
    pub(crate) fn kubectl_fails(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run_kubectl(Kubectl::V37, arguments, input);
        assert!(!output.status.success(), "kubectl {arguments:?} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Runs `kubectl edit` with an editor that applies a sed expression.
    pub(crate) fn edit(&self, version: Kubectl, arguments: &[&str], expression: &str) {
        let output = self
            .kubectl_command(version)
            .arg("edit")
            .args(arguments)
            .env("KUBE_EDITOR", format!("sed -i '{expression}'"))
            // kubectl asks bash otherwise, which not every machine has.
            .env("SHELL", "/bin/sh")
            .output()
            .unwrap();
        check(&output, "kubectl edit");
    }

    /// Applies a manifest.
    pub(crate) fn apply(&self, manifest: &str) {
        self.kubectl_with(Kubectl::V37, &["apply", "-f", "-"], manifest);
    }

    /// An object as JSON.
    pub(crate) fn get(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["get", "-o", "json"];
        all.extend(arguments);
        serde_json::from_str(&self.kubectl(&all)).unwrap()
    }

    /// Watches what `kubectl get --watch` of `arguments` shows from now on.
    pub(crate) fn watch(&self, arguments: &[&str]) -> Watch {
        let mut command = self.kubectl_command(Kubectl::V37);
        command.args(["get", "--watch", "-o", "json", "--output-watch-events"]);
        match arguments {
            // Of an object that is named, kubectl drops the first event, because it has just got the object: a change
            // between the two is never shown. It watches a list from where the list ends.
            [kind, name] if !kind.starts_with('-') => {
                command.args([*kind, "--field-selector", &format!("metadata.name={name}")])
            }
            _ => command.args(arguments),
        };
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let stdout: Box<dyn Read> = Box::new(child.stdout.take().unwrap());
        let events = serde_json::Deserializer::from_reader(stdout).into_iter();
        Watch { child, events, seen: VecDeque::new() }
    }

    /// Waits until an object that `arguments` select satisfies the condition, and returns it.
    pub(crate) fn wait(&self, what: &str, arguments: &[&str], holds: impl Fn(&Value) -> bool) -> Value {
        self.watch(arguments).until(what, |kind, object| kind != "DELETED" && holds(object))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.data().join("coracle.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- end of the log of {}", self.name);
            lines.iter().skip(lines.len().saturating_sub(40)).for_each(|line| eprintln!("{line}"));
            for what in [&["get", "pods", "-A", "-o", "yaml"][..], &["get", "events", "-A"]] {
                let shown = self.run_kubectl(Kubectl::V37, what, "");
                eprintln!("--- kubectl {}", what.join(" "));
                eprintln!("{}", String::from_utf8_lossy(&shown.stdout));
            }
        }
        let output = self.coracle(&["down", "--purge"]);
        if !output.status.success() {
            eprintln!("coracle down --purge: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// A machine of its own as far as the network goes: a namespace with a cable to another one.
pub(crate) struct Machine {
    pub(crate) name: String,
}

impl Machine {
    /// Two machines, 192.0.2.1 and 192.0.2.2, joined by a cable that is their way to everywhere.
    pub(crate) fn pair() -> (Self, Self) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let machine = |end: &str| {
            let machine = Machine { name: format!("e2em-{}-{number:02}{end}", std::process::id()) };
            ip(&["netns", "add", &machine.name]);
            machine.ip(&["link", "set", "lo", "up"]);
            machine
        };
        let (a, b) = (machine("a"), machine("b"));
        ip(&[
            "link", "add", "cable", "netns", &a.name, "type", "veth", "peer", "name", "cable", "netns",
            &b.name,
        ]);
        for (machine, own, other) in [(&a, "192.0.2.1/24", "192.0.2.2"), (&b, "192.0.2.2/24", "192.0.2.1")] {
            machine.ip(&["addr", "add", own, "dev", "cable"]);
            machine.ip(&["link", "set", "cable", "up"]);
            machine.ip(&["route", "add", "default", "via", other]);
        }
        (a, b)
    }

    /// Runs `ip` there.
    pub(crate) fn ip(&self, arguments: &[&str]) {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments);
        ip(&all);
    }

    /// Links that the machine has.
    pub(crate) fn links(&self) -> String {
        let output = Command::new("ip").args(["-n", &self.name, "-br", "link"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn ip(arguments: &[&str]) {
    check(&Command::new("ip").args(arguments).output().unwrap(), &format!("ip {}", arguments.join(" ")));
}

/// A command on a machine. The network alone is another one: mounts and control groups are this machine's.
pub(crate) fn inside(machine: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{machine}")).arg("--").arg(program);
    command
}

/// The events that a watch shows.
pub(crate) struct Watch {
    child: Child,
    events: serde_json::StreamDeserializer<'static, serde_json::de::IoRead<Box<dyn Read>>, Value>,
    seen: VecDeque<String>,
}

impl Watch {
    /// The next event: its type and its object. Fails the test when there is none within the limit.
    pub(crate) fn next(&mut self, what: &str) -> (String, Value) {
        match self.events.next() {
            Some(Ok(mut event)) => {
                let kind = event["type"].as_str().unwrap().to_owned();
                let object = event["object"].take();
                if self.seen.len() == 20 {
                    self.seen.pop_front();
                }
                self.seen.push_back(format!("{kind} {} {}", object["metadata"]["name"], object["status"]));
                (kind, object)
            }
            other => {
                panic!("waiting for {what}: the watch ended with {other:?}; last seen:\n{:#?}", self.seen)
            }
        }
    }

    /// Reads events up to the first that satisfies the condition, and returns its object.
    pub(crate) fn until(&mut self, what: &str, holds: impl Fn(&str, &Value) -> bool) -> Value {
        loop {
            let (kind, object) = self.next(what);
            if holds(&kind, &object) {
                return object;
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Fails the test with everything that the command printed.
pub(crate) fn check(output: &Output, what: &str) {
    assert!(
        output.status.success(),
        "{what}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Status of a condition of an object.
pub(crate) fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    object["status"]["conditions"]
        .as_array()
        .and_then(|all| all.iter().find(|condition| condition["type"] == kind))
        .unwrap_or(&Value::Null)
}
