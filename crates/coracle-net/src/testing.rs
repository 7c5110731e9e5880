//! Hosts for tests: network namespaces that nothing else is in. They need root.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

use crate::bridge::links::set_up;
use crate::bridge::netlink::Netlink;

/// Runs a test on a host of its own. Threads of the runtime begin on this one, and so share its namespace.
pub(crate) fn on_a_host<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("tests of the network run as root");
        Netlink::open().unwrap().run(vec![set_up("lo")]).unwrap();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A network namespace, pinned by a descriptor.
#[derive(Debug)]
pub(crate) struct Namespace(File);

impl Namespace {
    pub(crate) fn new() -> Self {
        Namespace::of_thread(|| unshare(CloneFlags::CLONE_NEWNET).unwrap())
    }

    pub(crate) fn current() -> Self {
        Namespace::of_thread(|| {})
    }

    fn of_thread(prepare: impl FnOnce() + Send) -> Self {
        std::thread::scope(|scope| {
            let open = || {
                prepare();
                Namespace(File::open("/proc/thread-self/ns/net").unwrap())
            };
            scope.spawn(open).join().unwrap()
        })
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = || {
                setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            };
            scope.spawn(inside).join().unwrap()
        })
    }

    /// Runs asynchronous work, and the threads that it starts, in this namespace.
    pub(crate) fn block_on<F: Future>(&self, work: impl FnOnce() -> F + Send) -> F::Output
    where
        F::Output: Send,
    {
        self.run(|| {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work())
        })
    }

    /// Joins two hosts by a cable whose ends have these names and addresses.
    pub(crate) fn connect(&self, mine: (&str, &str), other: &Namespace, theirs: (&str, &str)) {
        let host = format!("/proc/{}/fd/{}", std::process::id(), other.0.as_raw_fd());
        self.command(&format!("ip link add {} type veth peer name {}", mine.0, theirs.0));
        self.command(&format!("ip addr add {} dev {} && ip link set {} up", mine.1, mine.0, mine.0));
        self.command(&format!("ip link set {} netns {host}", theirs.0));
        other.command(&format!("ip addr add {} dev {} && ip link set {} up", theirs.1, theirs.0, theirs.0));
    }

    /// Answers one connection with the address that it came from.
    pub(crate) fn serve(&self, port: u16) -> std::thread::JoinHandle<()> {
        let listener = self.run(move || TcpListener::bind(("0.0.0.0", port)).unwrap());
        std::thread::spawn(move || {
            let (mut stream, from) = listener.accept().unwrap();
            stream.write_all(from.ip().to_string().as_bytes()).unwrap();
        })
    }

    /// Connects, and returns the address that the other side saw.
    pub(crate) fn ask(&self, ip: IpAddr, port: u16) -> Result<String, std::io::Error> {
        self.run(move || {
            let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip, port), Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let mut seen = String::new();
            stream.read_to_string(&mut seen)?;
            Ok(seen)
        })
    }

    pub(crate) fn command(&self, line: &str) -> String {
        self.run(|| {
            let output = Command::new("sh").args(["-c", line]).output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{line}: {error}");
            String::from_utf8(output.stdout).unwrap()
        })
    }
}
