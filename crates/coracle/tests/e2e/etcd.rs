//! A cluster whose objects are in an etcd: the same cluster, also while etcd is away.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use coracle_clock::Clock;
use nix::sys::signal::Signal;

use crate::lifecycle::{four_steps, pod};
use crate::machines::{greeter, token};
use crate::support::{Cluster, Kubectl, Machine, busybox_archive, check, inside};

/// An etcd with one member, TLS, and a directory of its own. It ends with the test.
pub(crate) struct Etcd {
    directory: tempfile::TempDir,
    client: u16,
    peer: u16,
    /// Where it runs, if not on this machine.
    machine: Option<String>,
    child: Option<Child>,
}

impl Etcd {
    /// Its address and certificates; it does not run yet.
    pub(crate) fn prepare() -> Etcd {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = authority.self_signed(&authority_key).unwrap().pem();
        let issuer = rcgen::Issuer::new(authority, authority_key);
        std::fs::write(directory.path().join("ca.crt"), ca).unwrap();
        for name in ["server", "client"] {
            let mut leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
            leaf.extended_key_usages =
                vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = leaf.signed_by(&key, &issuer).unwrap().pem();
            std::fs::write(directory.path().join(format!("{name}.crt")), certificate).unwrap();
            std::fs::write(directory.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        let free = || TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        Etcd { directory, client: free(), peer: free(), machine: None, child: None }
    }

    /// The same on another machine.
    fn prepare_on(machine: &Machine) -> Etcd {
        let mut etcd = Etcd::prepare();
        etcd.machine = Some(machine.name.clone());
        etcd
    }

    pub(crate) fn run(&mut self) {
        let (client, peer) =
            (format!("https://127.0.0.1:{}", self.client), format!("http://127.0.0.1:{}", self.peer));
        let mut command = match &self.machine {
            None => Command::new("etcd"),
            Some(machine) => inside(machine, "etcd"),
        };
        command
            .args(["--name", "m", "--data-dir"])
            .arg(self.file("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("m={peer}"), "--client-cert-auth", "--trusted-ca-file"])
            .arg(self.file("ca.crt"))
            .arg("--cert-file")
            .arg(self.file("server.crt"))
            .arg("--key-file")
            .arg(self.file("server.key"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: prctl is async-signal-safe and touches no memory of this process.
        unsafe {
            command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into));
        }
        self.child = Some(command.spawn().expect("etcd runs: scripts/prerequisites.sh test"));
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn address(&self) -> String {
        format!("etcd://127.0.0.1:{}/e2e", self.client)
    }

    /// What `up` needs to use it.
    pub(crate) fn flags(&self) -> Vec<String> {
        let file = |name: &str| self.file(name).to_str().unwrap().to_owned();
        let values = [self.address(), file("ca.crt"), file("client.crt"), file("client.key")];
        let flags = ["--store", "--store-ca", "--store-cert", "--store-key"].map(str::to_owned);
        flags.into_iter().zip(values).flat_map(<[String; 2]>::from).collect()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn up(flags: &[String]) -> Vec<&str> {
    ["up"].into_iter().chain(flags.iter().map(String::as_str)).collect()
}

#[test]
fn a_cluster_on_etcd_is_the_same_and_outlives_its_absence() {
    let mut etcd = Etcd::prepare();
    let flags = etcd.flags();
    let cluster = Cluster::embedded_without_start();
    // etcd comes when somebody already waits for it.
    let mut starting = cluster.coracle_command(&up(&flags)).stderr(Stdio::piped()).spawn().unwrap();
    let told = BufReader::new(starting.stderr.take().unwrap());
    let mut lines = told.lines().map(Result::unwrap);
    let waits = format!("waiting for {}: ", etcd.address());
    assert!(lines.any(|line| line.contains(&waits)), "nobody waits");
    etcd.run();
    let rest: Vec<String> = lines.collect();
    assert!(starting.wait().unwrap().success(), "{rest:#?}");
    cluster.must(&["image", "import", busybox_archive().to_str().unwrap()]);
    assert!(cluster.must(&["status"]).contains(&format!("store       {}\n", etcd.address())));
    four_steps(&cluster);

    cluster.apply(&pod("stays", "Always", "sleep 3600"));
    let before = cluster.wait("Running", &["pod", "stays"], |pod| pod["status"]["phase"] == "Running");
    let mut watch = cluster.watch(&["pods"]);
    cluster.kubectl(&["label", "pod", "stays", "seen=1"]);
    watch.until("its label", |_, pod| pod["metadata"]["labels"]["seen"] == "1");

    etcd.kill();
    let clock = Clock::system();
    let error = cluster.kubectl_fails(&["get", "pods"], "");
    assert!(error.contains("etcdserver: request timed out"), "{error}");
    assert!(clock.elapsed() < Duration::from_secs(10), "{:?}", clock.elapsed());
    let error = cluster.kubectl_fails(&["get", "--raw", "/readyz"], "");
    assert!(error.contains("[-]etcd failed"), "{error}");
    etcd.run();
    while !cluster.run_kubectl(Kubectl::V37, &["get", "--raw", "/readyz"], "").status.success() {
        assert!(clock.elapsed() < Duration::from_secs(30), "not ready again");
    }
    cluster.apply(&pod("after", "Always", "sleep 3600"));
    watch.until("what comes after", |_, pod| {
        pod["metadata"]["name"] == "after" && pod["status"]["phase"] == "Running"
    });
    let after = cluster.get(&["pod", "stays"]);
    assert_eq!(after["status"]["containerStatuses"], before["status"]["containerStatuses"]);

    // The place is taken, and the setting is kept.
    let other = Cluster::embedded_without_start();
    let refused = other.coracle(&up(&flags));
    let message = String::from_utf8(refused.stderr).unwrap();
    let holds = format!("{} holds the objects of cluster {:?} of ", etcd.address(), cluster.name());
    assert!(!refused.status.success() && message.contains(&holds), "{message}");
    let refused = cluster.coracle(&["up", "--store", "embedded"]);
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(message.contains("--store embedded differs from etcd://"), "{message}");

    // Purging leaves what is not on this machine, and says so; who comes then goes on with it.
    cluster.kubectl(&["create", "configmap", "kept", "--from-literal=a=1"]);
    let purged = cluster.coracle(&["down", "--purge"]);
    check(&purged, "coracle down --purge");
    let message = String::from_utf8(purged.stderr).unwrap();
    assert!(message.contains("objects are left in etcd://"), "{message}");
    assert!(message.contains("del --prefix /e2e/registry/`"), "{message}");
    other.must(&up(&flags));
    assert_eq!(other.kubectl(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"]), "1");
}

#[test]
fn two_machines_are_a_cluster_on_etcd() {
    let (first, second) = Machine::pair();
    let mut etcd = Etcd::prepare_on(&first);
    etcd.run();
    let flags = etcd.flags();
    let (server, node) = (Cluster::embedded_on(&first), Cluster::embedded_on(&second));
    let mut start = up(&flags);
    start.extend(["--node-name", "m1"]);
    server.must(&start);
    let command = server.must(&["token", "create"]);
    let url = command.split_whitespace().nth(3).unwrap();
    node.must(&["node", "--server", url, "--token", &token(&command), "--node-name", "m2", "--detach"]);
    for cluster in [&server, &node] {
        cluster.must(&["image", "import", busybox_archive().to_str().unwrap()]);
    }
    server.apply(&greeter("m1"));
    server.apply(&greeter("m2"));
    server.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=30s"]);
    let statuses = || -> Vec<_> {
        let pods = server.get(&["pods"]);
        let pods = pods["items"].as_array().unwrap().clone();
        pods.into_iter().map(|pod| pod["status"]["containerStatuses"].clone()).collect()
    };
    let ask = |from: &str, to: &str| {
        let address = server.get(&["pod", to])["status"]["podIP"].as_str().unwrap().to_owned();
        server.kubectl(&["exec", from, "--", "nc", "-w", "5", &address, "80"])
    };
    assert_eq!(ask("on-m1", "on-m2"), "m2\n");
    assert_eq!(ask("on-m2", "on-m1"), "m1\n");
    // The store goes, and so does the server; both come back, and nobody was restarted.
    let before = statuses();
    etcd.kill();
    server.kill();
    etcd.run();
    server.must(&["up"]);
    server.kubectl(&["wait", "--for=condition=Ready", "node/m2", "--timeout=30s"]);
    assert_eq!(statuses(), before);
    assert_eq!(ask("on-m1", "on-m2"), "m2\n");
    assert_eq!(server.kubectl(&["logs", "on-m2"]), "started on m2\n");
    node.must(&["down", "--purge"]);
    server.must(&["down", "--purge"]);
}

#[test]
fn a_cluster_on_etcd_is_backed_up_while_it_runs_and_restored_by_etcds_own_tools() {
    let mut etcd = Etcd::prepare();
    etcd.run();
    let flags = etcd.flags();
    let cluster = Cluster::embedded_without_start();
    cluster.must(&up(&flags));
    cluster.kubectl(&["create", "configmap", "kept", "--from-literal=a=1"]);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("backup");
    let file = file.to_str().unwrap();
    cluster.must(&["backup", file]);
    let bytes = std::fs::read(file).unwrap();
    let has = |word: &[u8]| bytes.windows(word.len()).any(|window| window == word);
    assert!(has(b"/registry/configmaps/default/kept") && has(b"ca.key"), "objects and keys");
    cluster.must(&["down"]);
    let refused = |arguments: &[&str], words: &str| {
        let output = cluster.coracle(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "{arguments:?}: {said}");
    };
    refused(&["backup", file], "back it up while it runs");
    refused(&["restore", file, "--force"], "restore that etcd with its own tools");
    // What was refused has changed nothing.
    cluster.must(&["up"]);
    assert_eq!(cluster.kubectl(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"]), "1");
}
