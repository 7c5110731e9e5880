//! A real etcd on a free loopback port, in a directory of its own, that ends with the test.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use coracle_clock::Clock;
use coracle_store::etcd::{EtcdStore, Options, Target, Tls};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// How long anything may take before the test says that it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// One member.
pub(crate) struct Member {
    name: String,
    client_port: u16,
    peer_port: u16,
    directory: PathBuf,
    child: Option<Child>,
}

/// A cluster of members, mostly of one.
pub(crate) struct Etcd {
    pub(crate) members: Vec<Member>,
    certificates: Option<Certificates>,
    arguments: Vec<String>,
    _directory: tempfile::TempDir,
}

/// An authority, a server's certificate and a client's.
struct Certificates {
    directory: PathBuf,
    tls: Tls,
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

impl Etcd {
    /// One member, without TLS.
    pub(crate) fn start() -> Etcd {
        Etcd::with(1, false, &[])
    }

    /// `count` members, started with `arguments` beside the usual ones.
    pub(crate) fn with(count: usize, tls: bool, arguments: &[&str]) -> Etcd {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let certificates = tls.then(|| Certificates::make(directory.path()));
        let member = |i: usize| Member {
            name: format!("m{i}"),
            client_port: free_port(),
            peer_port: free_port(),
            directory: directory.path().join(format!("m{i}")),
            child: None,
        };
        let members = (0..count).map(member).collect();
        let mut etcd = Etcd {
            members,
            certificates,
            arguments: arguments.iter().map(ToString::to_string).collect(),
            _directory: directory,
        };
        for i in 0..count {
            etcd.run(i);
        }
        etcd
    }

    /// Starts a member (again).
    pub(crate) fn run(&mut self, i: usize) {
        let peers = self.members.iter().map(|m| format!("{}=http://127.0.0.1:{}", m.name, m.peer_port));
        let peers = peers.collect::<Vec<_>>().join(",");
        let member = &mut self.members[i];
        assert!(member.child.is_none());
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        let (client, peer) = (
            format!("{scheme}://127.0.0.1:{}", member.client_port),
            format!("http://127.0.0.1:{}", member.peer_port),
        );
        let mut command = Command::new("etcd");
        command
            .args(["--name", &member.name, "--data-dir"])
            .arg(&member.directory)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &peers, "--heartbeat-interval", "50", "--election-timeout", "500"]);
        command.args(&self.arguments);
        if let Some(certificates) = &self.certificates {
            let file = |name: &str| certificates.directory.join(name);
            command
                .arg("--cert-file")
                .arg(file("server.crt"))
                .arg("--key-file")
                .arg(file("server.key"))
                .arg("--trusted-ca-file")
                .arg(file("ca.crt"))
                .arg("--client-cert-auth");
        }
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(member.directory.with_extension("log"))
            .unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        end_with_parent(&mut command);
        member.child = Some(command.spawn().expect("etcd runs: scripts/prerequisites.sh test"));
    }

    /// Kills a member as a power cut would end it.
    pub(crate) fn kill(&mut self, i: usize) {
        if let Some(mut child) = self.members[i].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends a member a signal; one that stops it has stopped all its threads when this returns.
    pub(crate) fn signal(&self, i: usize, signal: Signal) {
        let child = self.members[i].child.as_ref().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        kill(pid, signal).unwrap();
        if signal == Signal::SIGSTOP {
            waitid(Id::Pid(pid), WaitPidFlag::WSTOPPED).unwrap();
        }
    }

    /// Its address.
    pub(crate) fn target(&self, prefix: &str) -> Target {
        let hosts: Vec<_> = self.members.iter().map(|m| format!("127.0.0.1:{}", m.client_port)).collect();
        Target::parse(&format!("etcd://{}{prefix}", hosts.join(","))).unwrap()
    }

    /// Where a member listens for clients.
    pub(crate) fn client_port(&self, i: usize) -> u16 {
        self.members[i].client_port
    }

    /// How to prove who we are, with TLS.
    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.certificates.as_ref().map(|certificates| &certificates.tls)
    }

    /// A store in it, as soon as it answers.
    pub(crate) async fn store(&self, prefix: &str, options: Options) -> Arc<EtcdStore> {
        let clock = Clock::system();
        loop {
            match EtcdStore::connect(&self.target(prefix), self.tls(), clock.clone(), options).await {
                Ok(store) => return store,
                Err(error) if clock.elapsed() > PATIENCE => panic!("{error}\n{}", self.logs()),
                Err(_) => clock.sleep(Duration::from_millis(20)).await,
            }
        }
    }

    fn logs(&self) -> String {
        let log = |m: &Member| std::fs::read_to_string(m.directory.with_extension("log")).unwrap_or_default();
        self.members.iter().map(log).collect()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for i in 0..self.members.len() {
            self.kill(i);
        }
    }
}

/// Lets the kernel end the child should the test be killed.
fn end_with_parent(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: prctl is async-signal-safe and touches no memory of this process.
    unsafe {
        command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into));
    }
}

impl Certificates {
    fn make(parent: &Path) -> Certificates {
        let directory = parent.join("tls");
        std::fs::create_dir(&directory).unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let ca_pem = params.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::new(params, key);
        let leaf = |hosts: &[&str]| {
            let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
            let mut params = rcgen::CertificateParams::new(hosts).unwrap();
            // etcd's gateway shows the server's certificate to the server itself.
            params.extended_key_usages =
                vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
            let key = rcgen::KeyPair::generate().unwrap();
            (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
        };
        let (server, server_key) = leaf(&["127.0.0.1", "localhost"]);
        let (client, client_key) = leaf(&["client"]);
        for (name, text) in [("ca.crt", &ca_pem), ("server.crt", &server), ("server.key", &server_key)] {
            std::fs::write(directory.join(name), text).unwrap();
        }
        let client = Some((client.into_bytes(), client_key.into_bytes()));
        Certificates { directory, tls: Tls { ca_pem: ca_pem.into_bytes(), client } }
    }
}
