//! The suite for all runtimes, with real containers.

use std::sync::Arc;

use coracle_clock::Clock;
use coracle_cri::suite::{Program, Subject};
use coracle_cri::{ContainerConfig, PodSandboxConfig, RuntimeService, runtime_suite};
use coracle_runtime::EmbeddedRuntime;

use crate::host::{Host, container, shell};

struct Embedded {
    runtime: Arc<EmbeddedRuntime>,
    // Cleaned up after the runtime.
    host: Host,
}

impl Subject for Embedded {
    fn runtime(&self) -> Arc<dyn RuntimeService> {
        self.runtime.clone()
    }

    fn clock(&self) -> Clock {
        self.host.clock.clone()
    }

    fn pod(&self, name: &str) -> PodSandboxConfig {
        self.host.pod(name)
    }

    fn container(&self, program: Program) -> ContainerConfig {
        let waits =
            |on_term: &str| shell(&format!("trap '{on_term}' TERM; echo up; while :; do sleep 0.05; done"));
        match program {
            Program::Deaf => waits(":"),
            Program::Polite => waits("exit 7"),
            Program::Ends(code) => shell(&format!("exit {code}")),
            Program::Broken => container(&["/etc/passwd"]),
            Program::Hungry => {
                shell("x=$(dd if=/dev/zero bs=1M count=200 2>/dev/null | busybox tr '\\0' a); echo survived")
            }
            Program::Echo => shell("echo up; exec cat"),
            Program::Serves => shell("echo up; exec busybox nc -ll -p 4242 -e cat"),
        }
    }

    fn command(&self) -> Vec<String> {
        ["sh", "-c", "echo out; echo err >&2; exit 5"].map(str::to_owned).to_vec()
    }

    fn slow_command(&self) -> Vec<String> {
        ["sleep", "777"].map(str::to_owned).to_vec()
    }
}

async fn open() -> Embedded {
    let host = Host::new();
    Embedded { runtime: host.open().await, host }
}

runtime_suite!(suite, #[tokio::test(flavor = "multi_thread")], super::open);
